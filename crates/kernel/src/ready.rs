//! Whether this process can take work, and whether its loops still turn.
//!
//! A [`Latch`] says "ready" or why not. A [`Heartbeat`] is beaten by a loop; silence beyond its limit means the loop is
//! wedged. Both are read without waiting for anybody, so a thread of its own can answer while everything else hangs.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::{Mutex, RwLock};
use serde::Serialize;

use crate::clock::{Mono, SharedClock};

/// One line of a report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was checked.
    pub name: String,
    /// Whether it is as it should be.
    pub ok: bool,
    /// Why not, or a remark.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Seconds since the last beat, for heartbeats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_beat_seconds: Option<u64>,
}

/// All checks together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether every check is ok.
    pub ok: bool,
    /// The checks, by name.
    pub checks: Vec<Check>,
}

impl Report {
    fn of(checks: Vec<Check>) -> Self {
        Self {
            ok: checks.iter().all(|check| check.ok),
            checks,
        }
    }
}

#[derive(Debug)]
struct Pulse {
    last: AtomicU64,
    max_silence: Duration,
    ended: AtomicBool,
}

#[derive(Debug, Default)]
struct Inner {
    latches: RwLock<BTreeMap<String, Arc<Mutex<Option<String>>>>>,
    pulses: RwLock<BTreeMap<String, Arc<Pulse>>>,
}

/// The register of latches and heartbeats; clones share it.
#[derive(Clone)]
pub struct Readiness {
    clock: SharedClock,
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Readiness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Readiness")
            .field("ready", &self.ready())
            .finish_non_exhaustive()
    }
}

impl Readiness {
    /// An empty register: healthy and ready.
    pub fn new(clock: SharedClock) -> Self {
        Self {
            clock,
            inner: Arc::default(),
        }
    }

    /// A new latch, not ready ("starting") until it is set. A latch of the same name is replaced.
    pub fn latch(&self, name: impl Into<String>) -> Latch {
        let state = Arc::new(Mutex::new(Some("starting".to_owned())));
        let name = name.into();
        self.inner
            .latches
            .write()
            .insert(name.clone(), state.clone());
        Latch {
            name,
            state,
            inner: self.inner.clone(),
        }
    }

    /// A new heartbeat that may be silent for at most `max_silence`. One of the same name is replaced.
    pub fn heartbeat(&self, name: impl Into<String>, max_silence: Duration) -> Heartbeat {
        let name = name.into();
        let last = AtomicU64::new(self.clock.mono().as_nanos());
        let pulse = Arc::new(Pulse {
            last,
            max_silence,
            ended: AtomicBool::new(false),
        });
        self.inner
            .pulses
            .write()
            .insert(name.clone(), pulse.clone());
        Heartbeat {
            name,
            pulse,
            register: self.clone(),
            retired: AtomicBool::new(false),
        }
    }

    /// Whether every loop turns.
    pub fn health(&self) -> Report {
        let now = self.clock.mono();
        Report::of(
            self.inner
                .pulses
                .read()
                .iter()
                .map(|(name, pulse)| check_pulse(name, pulse, now))
                .collect(),
        )
    }

    /// Whether work can be taken: every latch is set.
    pub fn ready(&self) -> Report {
        let latches = self.inner.latches.read();
        let checks = latches.iter().map(|(name, state)| {
            let reason = state.lock().clone();
            Check {
                name: name.clone(),
                ok: reason.is_none(),
                reason,
                last_beat_seconds: None,
            }
        });
        Report::of(checks.collect())
    }
}

fn check_pulse(name: &str, pulse: &Pulse, now: Mono) -> Check {
    let silence = now - Mono::from_nanos(pulse.last.load(Ordering::Relaxed));
    let reason = if pulse.ended.load(Ordering::Relaxed) {
        Some("its loop ended".to_owned())
    } else if silence > pulse.max_silence {
        Some(format!(
            "silent for {} s, at most {} s expected",
            silence.as_secs(),
            pulse.max_silence.as_secs_f32()
        ))
    } else {
        None
    };
    Check {
        name: name.to_owned(),
        ok: reason.is_none(),
        reason,
        last_beat_seconds: Some(silence.as_secs()),
    }
}

/// One named condition of readiness. Dropping it leaves it as it was; [`Latch::remove`] takes it off the register.
#[derive(Debug)]
pub struct Latch {
    name: String,
    state: Arc<Mutex<Option<String>>>,
    inner: Arc<Inner>,
}

impl Latch {
    /// The condition holds.
    pub fn set_ready(&self) {
        *self.state.lock() = None;
    }

    /// The condition does not hold, because of `reason`.
    pub fn set_not_ready(&self, reason: impl Into<String>) {
        *self.state.lock() = Some(reason.into());
    }

    /// Takes the latch off the register.
    pub fn remove(self) {
        let mut latches = self.inner.latches.write();
        if latches
            .get(&self.name)
            .is_some_and(|state| Arc::ptr_eq(state, &self.state))
        {
            latches.remove(&self.name);
        }
    }
}

/// One loop's sign of life. Dropping it without [`Heartbeat::retire`] (a panic, an early return) reads as "ended".
#[derive(Debug)]
pub struct Heartbeat {
    name: String,
    pulse: Arc<Pulse>,
    register: Readiness,
    retired: AtomicBool,
}

impl Heartbeat {
    /// The loop has turned.
    pub fn beat(&self) {
        self.pulse
            .last
            .store(self.register.clock.mono().as_nanos(), Ordering::Relaxed);
    }

    /// Awaits `input` and beats meanwhile. Only for waiting on input: work that hangs must not be kept looking alive.
    /// As cancel-safe as `input`.
    pub async fn while_waiting<F: Future>(&self, input: F) -> F::Output {
        let mut input = std::pin::pin!(input);
        loop {
            self.beat();
            tokio::select! {
                biased;
                output = &mut input => {
                    self.beat();
                    return output;
                }
                () = crate::clock::sleep(self.pulse.max_silence / 4) => {}
            }
        }
    }

    /// The loop ended as planned: the heartbeat leaves the register for good, whoever still holds and beats it.
    pub fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
        let mut pulses = self.register.inner.pulses.write();
        if pulses
            .get(&self.name)
            .is_some_and(|pulse| Arc::ptr_eq(pulse, &self.pulse))
        {
            pulses.remove(&self.name);
        }
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        let retired = *self.retired.get_mut();
        self.pulse.ended.store(!retired, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{ManualClock, SystemClock};

    #[test]
    fn readiness_names_what_is_missing() {
        let readiness = Readiness::new(ManualClock::default().shared());
        let latch = readiness.latch("store");
        assert_eq!(
            readiness.ready().checks[0].reason.as_deref(),
            Some("starting")
        );
        latch.set_ready();
        assert!(readiness.ready().ok);
        latch.set_not_ready("disk full");
        assert_eq!(
            readiness.ready().checks[0].reason.as_deref(),
            Some("disk full")
        );
        latch.remove();
        assert!(readiness.ready().ok);
    }

    #[test]
    fn a_silent_or_dropped_heartbeat_is_unhealthy_and_a_retired_one_is_not() {
        let clock = ManualClock::default();
        let readiness = Readiness::new(clock.shared());
        let beat = readiness.heartbeat("loop", Duration::from_secs(3));
        clock.advance(Duration::from_secs(3));
        assert!(readiness.health().ok);
        clock.advance(Duration::from_secs(1));
        assert!(!readiness.health().ok);
        beat.beat();
        assert!(readiness.health().ok);
        drop(beat);
        assert_eq!(
            readiness.health().checks[0].reason.as_deref(),
            Some("its loop ended")
        );
        readiness.heartbeat("loop", Duration::from_secs(3)).retire();
        assert_eq!(readiness.health().checks, []);
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_for_input_keeps_the_heart_beating() {
        let readiness = Readiness::new(SystemClock::shared());
        let beat = readiness.heartbeat("loop", Duration::from_secs(2));
        let (healthy, ()) = tokio::join!(
            async {
                crate::clock::sleep(Duration::from_secs(60)).await;
                readiness.health().ok
            },
            beat.while_waiting(crate::clock::sleep(Duration::from_secs(61)))
        );
        assert!(healthy);
    }
}
