//! From probe results to health. Pure: `(state, input, now) → actions`.
//!
//! ```text
//!             pass                      `retries` failures in a row
//! Starting ─────────▶ Healthy ───────────────────────────────────▶ Unhealthy
//!    │                   ▲                    pass                     │
//!    │                   └─────────────────────────────────────────────┘
//!    └── `retries` failures in a row after the start period ──▶ Unhealthy
//! ```
//!
//! Failures within the start period do not count; the first pass ends that grace. One probe at a time: the next
//! is due an interval after the last one ended. A result that comes late, after a restart, is not taken.

use std::time::Duration;

use volary_kernel::clock::Mono;

use super::{DEFAULT_RETRIES, ProbeSpec, STARTUP_INTERVAL};

/// How a replica is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Never healthy since its start.
    Starting,
    /// The last counted probe passed.
    Healthy,
    /// Too many probes in a row failed.
    Unhealthy,
}

/// What the machine is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// Time has passed.
    Tick,
    /// The probe with this number ended.
    Probed {
        /// Which probe.
        number: u64,
        /// Whether it passed.
        passed: bool,
    },
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Run the probe and answer with this number.
    Probe {
        /// Its number.
        number: u64,
    },
    /// Health has changed.
    Changed(Health),
}

/// The state of one replica's health, from one start to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    health: Health,
    retries: u32,
    interval: Duration,
    grace_until: Mono,
    streak: u32,
    /// Number of the probe that runs.
    running: Option<u64>,
    due: Mono,
    next_number: u64,
}

impl Machine {
    /// A replica that was started at `now`. The first probe is due at once.
    pub fn new(spec: &ProbeSpec, now: Mono) -> Self {
        Self {
            health: Health::Starting,
            retries: if spec.retries == 0 {
                DEFAULT_RETRIES
            } else {
                spec.retries
            },
            interval: spec.interval,
            grace_until: now + spec.start_period,
            streak: 0,
            running: None,
            due: now,
            next_number: 0,
        }
    }

    /// How it is.
    pub fn health(&self) -> Health {
        self.health
    }

    /// Failures in a row that counted.
    pub fn streak(&self) -> u32 {
        self.streak
    }

    /// When the next tick is wanted; `None` while a probe runs.
    pub fn due(&self) -> Option<Mono> {
        self.running.is_none().then_some(self.due)
    }

    /// Takes an input.
    pub fn step(&mut self, input: Input, now: Mono) -> Option<Action> {
        match input {
            Input::Tick if self.running.is_none() && now >= self.due => {
                let number = self.next_number;
                self.next_number += 1;
                self.running = Some(number);
                Some(Action::Probe { number })
            }
            Input::Probed { number, passed } if self.running == Some(number) => {
                self.running = None;
                let before = self.health;
                self.count(passed, now);
                self.due = now + self.pause();
                (self.health != before).then_some(Action::Changed(self.health))
            }
            Input::Tick | Input::Probed { .. } => None,
        }
    }

    fn count(&mut self, passed: bool, now: Mono) {
        if passed {
            self.streak = 0;
            self.health = Health::Healthy;
            return;
        }
        let graced = self.health == Health::Starting && now < self.grace_until;
        if !graced {
            self.streak = self.streak.saturating_add(1);
            if self.streak >= self.retries {
                self.health = Health::Unhealthy;
            }
        }
    }

    fn pause(&self) -> Duration {
        match self.health {
            Health::Starting => self.interval.min(STARTUP_INTERVAL),
            Health::Healthy | Health::Unhealthy => self.interval,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::Check;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn spec() -> ProbeSpec {
        ProbeSpec {
            interval: SECOND,
            retries: 2,
            start_period: 3 * SECOND,
            ..ProbeSpec::new(Check::Command(Vec::new()))
        }
    }

    fn at(seconds: u64) -> Mono {
        Mono::default() + Duration::from_secs(seconds)
    }

    /// One probe at `now` with a result.
    fn probe(machine: &mut Machine, passed: bool, now: Mono) -> Option<Action> {
        let Some(Action::Probe { number }) = machine.step(Input::Tick, now) else {
            panic!("a probe is due at {now:?}: {machine:?}");
        };
        machine.step(Input::Probed { number, passed }, now)
    }

    #[test]
    fn a_pass_within_the_start_period_is_healthy_at_once_and_ends_the_grace() {
        let mut machine = Machine::new(&spec(), at(0));
        assert_eq!(
            probe(&mut machine, true, at(0)),
            Some(Action::Changed(Health::Healthy))
        );
        assert_eq!(probe(&mut machine, false, at(1)), None);
        assert_eq!(
            probe(&mut machine, false, at(2)),
            Some(Action::Changed(Health::Unhealthy))
        );
    }

    #[test]
    fn failures_within_the_start_period_do_not_count() {
        let mut machine = Machine::new(&spec(), at(0));
        for second in 0..3 {
            assert_eq!(probe(&mut machine, false, at(second)), None);
        }
        assert_eq!((machine.streak(), machine.health()), (0, Health::Starting));
        assert_eq!(probe(&mut machine, false, at(3)), None);
        assert_eq!(
            probe(&mut machine, false, at(4)),
            Some(Action::Changed(Health::Unhealthy))
        );
    }

    #[test]
    fn one_pass_resets_the_streak_and_heals() {
        let mut machine = Machine::new(&spec(), at(0));
        probe(&mut machine, true, at(0));
        probe(&mut machine, false, at(1));
        assert_eq!(probe(&mut machine, true, at(2)), None);
        assert_eq!(probe(&mut machine, false, at(3)), None);
        assert_eq!(
            probe(&mut machine, false, at(4)),
            Some(Action::Changed(Health::Unhealthy))
        );
        assert_eq!(
            probe(&mut machine, true, at(5)),
            Some(Action::Changed(Health::Healthy))
        );
    }

    #[test]
    fn probes_do_not_overlap_and_late_results_are_not_taken() {
        let mut machine = Machine::new(&spec(), at(0));
        assert_eq!(
            machine.step(Input::Tick, at(0)),
            Some(Action::Probe { number: 0 })
        );
        assert_eq!(machine.step(Input::Tick, at(9)), None);
        assert_eq!(machine.due(), None);
        assert_eq!(
            machine.step(
                Input::Probed {
                    number: 7,
                    passed: true
                },
                at(9)
            ),
            None
        );
        assert_eq!(machine.health(), Health::Starting);
    }

    #[test]
    fn zero_retries_mean_the_default() {
        let machine = Machine::new(
            &ProbeSpec {
                retries: 0,
                ..spec()
            },
            at(0),
        );
        assert_eq!(machine.retries, DEFAULT_RETRIES);
    }

    proptest! {
        /// Against a model: unhealthy exactly when the last `retries` counted results failed.
        #[test]
        fn health_is_what_the_last_results_say(results in proptest::collection::vec(any::<bool>(), 1..40)) {
            let spec = ProbeSpec { start_period: Duration::ZERO, ..spec() };
            let mut machine = Machine::new(&spec, at(0));
            let mut changes = 0;
            let mut before = machine.health();
            for (index, passed) in results.iter().enumerate() {
                let action = probe(&mut machine, *passed, at(index as u64));
                let seen = &results[..=index];
                let failed = seen.iter().rev().take_while(|passed| !**passed).count();
                let model = if failed >= 2 {
                    Health::Unhealthy
                } else if seen.contains(&true) {
                    // Healthy stays until the streak is full, unhealthy until a pass.
                    if before == Health::Unhealthy && !*passed { Health::Unhealthy } else { Health::Healthy }
                } else {
                    Health::Starting
                };
                prop_assert_eq!(machine.health(), model);
                prop_assert_eq!(action.is_some(), model != before);
                changes += usize::from(action.is_some());
                before = model;
            }
            prop_assert!(changes <= results.len());
        }
    }
}
