//! What a connection is doing, and whether it may go on. Pure: `now` comes from outside.
//!
//! ```text
//!            first byte          head complete
//!   Idle ───────────────▶ Head ───────────────▶ Busy ──┐
//!    ▲  limit: idle             limit: head            │ answer written
//!    └─────────────────────────────────────────────────┘
//!   in every phase: a write that makes no progress, limit: write_stall
//! ```

use std::time::Duration;

use volary_kernel::Mono;

use super::config::Limits;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Head,
    Busy,
}

/// What a connection is doing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Activity {
    phase: Phase,
    since: Mono,
    stalled: Option<Mono>,
}

impl Activity {
    /// A fresh connection.
    pub(super) const fn new(now: Mono) -> Self {
        Self {
            phase: Phase::Idle,
            since: now,
            stalled: None,
        }
    }

    /// Bytes came.
    pub(super) fn read(&mut self, now: Mono) {
        if self.phase == Phase::Idle {
            (self.phase, self.since) = (Phase::Head, now);
        }
    }

    /// A whole head is there; an answer is being made.
    pub(super) fn request(&mut self, now: Mono) {
        (self.phase, self.since) = (Phase::Busy, now);
    }

    /// The answer is handed over.
    pub(super) fn answered(&mut self, now: Mono) {
        (self.phase, self.since) = (Phase::Idle, now);
    }

    /// A write made progress, or not.
    pub(super) fn write(&mut self, progress: bool, now: Mono) {
        self.stalled = if progress {
            None
        } else {
            self.stalled.or(Some(now))
        };
    }

    /// Whether a request is being answered.
    pub(super) fn is_busy(&self) -> bool {
        self.phase == Phase::Busy
    }

    /// Why the connection must end now, if it must.
    pub(super) fn overdue(&self, now: Mono, limits: &Limits) -> Option<&'static str> {
        let over = |since: Mono, limit: Duration| now - since >= limit;
        if self
            .stalled
            .is_some_and(|since| over(since, limits.write_stall))
        {
            return Some("write_stall");
        }
        match self.phase {
            Phase::Idle if over(self.since, limits.idle) => Some("idle"),
            Phase::Head if over(self.since, limits.head) => Some("slow_head"),
            Phase::Idle | Phase::Head | Phase::Busy => None,
        }
    }
}

/// How often to look whether a connection is overdue: a quarter of the shortest limit, at least every 20 ms.
pub(super) fn look_every(limits: &Limits) -> Duration {
    (limits.head.min(limits.idle).min(limits.write_stall) / 4).max(Duration::from_millis(20))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Mono {
        Mono::from_nanos(0) + Duration::from_secs(seconds)
    }

    #[test]
    fn each_phase_has_its_own_limit() {
        let limits = Limits::default();
        let mut activity = Activity::new(at(0));
        assert_eq!(activity.overdue(at(59), &limits), None);
        assert_eq!(activity.overdue(at(60), &limits), Some("idle"));
        activity.read(at(50));
        activity.read(at(59));
        assert_eq!(activity.overdue(at(59), &limits), None);
        assert_eq!(
            activity.overdue(at(60), &limits),
            Some("slow_head"),
            "counted from the first byte"
        );
        activity.request(at(59));
        activity.read(at(60));
        assert_eq!(activity.overdue(at(6000), &limits), None);
        activity.answered(at(6000));
        assert_eq!(activity.overdue(at(6059), &limits), None);
        assert_eq!(activity.overdue(at(6060), &limits), Some("idle"));
    }

    #[test]
    fn a_client_that_does_not_read_is_cut_in_any_phase() {
        let limits = Limits::default();
        let mut activity = Activity::new(at(0));
        activity.request(at(0));
        activity.write(false, at(10));
        activity.write(false, at(39));
        assert_eq!(activity.overdue(at(39), &limits), None);
        assert_eq!(activity.overdue(at(40), &limits), Some("write_stall"));
        activity.write(true, at(40));
        assert_eq!(activity.overdue(at(90), &limits), None);
    }
}
