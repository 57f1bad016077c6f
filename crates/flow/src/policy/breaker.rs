//! The circuit breaker of one node and tenant. Pure.

use volary_kernel::Mono;

use super::Breaker;

/// Whether an attempt may run now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admit {
    /// It may.
    Run,
    /// It may, and its end decides whether others may: the only one until then.
    Probe,
    /// It may not.
    Refuse {
        /// Ask again then; none while a probe is under way.
        until: Option<Mono>,
    },
}

/// As what an attempt was let through. Whoever got one reports its end exactly once: success, failure or abandoned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pass {
    /// As one of many.
    Run,
    /// As the one that decides.
    Probe,
}

/// What a report changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// Nothing that is told of.
    None,
    /// It opened, also again after a probe that failed.
    Opened,
    /// It closed.
    Closed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// So many failures in a row.
    Closed(u32),
    Open(Mono),
    Probing,
}

/// Closed until so many attempts in a row failed, then open for a while, then one attempt decides.
#[derive(Debug, Clone)]
pub(crate) struct BreakerState {
    config: Breaker,
    state: State,
}

impl BreakerState {
    /// A closed breaker.
    pub(crate) const fn new(config: Breaker) -> Self {
        Self {
            config,
            state: State::Closed(0),
        }
    }

    /// Lets an attempt through, or not.
    pub(crate) fn admit(&mut self, now: Mono) -> Admit {
        match self.state {
            State::Closed(_) => Admit::Run,
            State::Open(until) if now < until => Admit::Refuse { until: Some(until) },
            State::Open(_) => {
                self.state = State::Probing;
                Admit::Probe
            }
            State::Probing => Admit::Refuse { until: None },
        }
    }

    /// The attempt succeeded. One that began before the breaker opened says nothing of how it is now.
    pub(crate) fn success(&mut self, pass: Pass) -> Change {
        match (self.state, pass) {
            (State::Probing, Pass::Probe) => {
                self.state = State::Closed(0);
                Change::Closed
            }
            (State::Closed(_), _) => {
                self.state = State::Closed(0);
                Change::None
            }
            _ => Change::None,
        }
    }

    /// The attempt failed.
    pub(crate) fn failure(&mut self, pass: Pass, now: Mono) -> Change {
        let failures = match (self.state, pass) {
            (State::Probing, Pass::Probe) => self.config.failures,
            (State::Closed(failures), _) => failures.saturating_add(1),
            _ => return Change::None,
        };
        if failures < self.config.failures {
            self.state = State::Closed(failures);
            return Change::None;
        }
        self.state = State::Open(now + self.config.open_for);
        Change::Opened
    }

    /// The attempt ended without saying anything of what the node needs: cancelled, out of time, a permanent error.
    /// After a probe the next attempt is one.
    pub(crate) fn abandoned(&mut self, pass: Pass, now: Mono) {
        if (self.state, pass) == (State::Probing, Pass::Probe) {
            self.state = State::Open(now);
        }
    }

    /// Whether it is as a new one.
    pub(crate) const fn is_at_rest(&self) -> bool {
        matches!(self.state, State::Closed(0))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const CONFIG: Breaker = Breaker {
        failures: 3,
        open_for: Duration::from_secs(10),
    };

    fn at(seconds: u64) -> Mono {
        Mono::from_nanos(seconds * 1_000_000_000)
    }

    fn opened(now: Mono) -> BreakerState {
        let mut breaker = BreakerState::new(CONFIG);
        assert_eq!(breaker.failure(Pass::Run, now), Change::None);
        assert_eq!(breaker.failure(Pass::Run, now), Change::None);
        assert_eq!(breaker.failure(Pass::Run, now), Change::Opened);
        breaker
    }

    #[test]
    fn it_opens_after_failures_in_a_row_and_a_success_begins_the_count_again() {
        let mut breaker = BreakerState::new(CONFIG);
        for _ in 0..20 {
            breaker.failure(Pass::Run, at(0));
            breaker.failure(Pass::Run, at(0));
            breaker.success(Pass::Run);
        }
        assert_eq!(breaker.admit(at(0)), Admit::Run);
        let mut breaker = opened(at(0));
        let until = Some(at(10));
        assert_eq!(breaker.admit(at(9)), Admit::Refuse { until });
    }

    #[test]
    fn half_open_it_lets_exactly_one_through() {
        let mut breaker = opened(at(0));
        assert_eq!(breaker.admit(at(10)), Admit::Probe);
        for later in [10, 11, 1_000] {
            assert_eq!(breaker.admit(at(later)), Admit::Refuse { until: None });
        }
        assert_eq!(breaker.success(Pass::Probe), Change::Closed);
        assert_eq!(breaker.admit(at(1_000)), Admit::Run);
        assert!(breaker.is_at_rest());
    }

    #[test]
    fn a_probe_that_fails_opens_it_again_at_once() {
        let mut breaker = opened(at(0));
        assert_eq!(breaker.admit(at(10)), Admit::Probe);
        assert_eq!(breaker.failure(Pass::Probe, at(12)), Change::Opened);
        let until = Some(at(22));
        assert_eq!(breaker.admit(at(21)), Admit::Refuse { until });
        assert_eq!(breaker.admit(at(22)), Admit::Probe);
    }

    #[test]
    fn a_probe_that_is_abandoned_hands_its_place_on() {
        let mut breaker = opened(at(0));
        assert_eq!(breaker.admit(at(10)), Admit::Probe);
        breaker.abandoned(Pass::Run, at(11));
        assert_eq!(breaker.admit(at(11)), Admit::Refuse { until: None });
        breaker.abandoned(Pass::Probe, at(11));
        assert_eq!(breaker.admit(at(11)), Admit::Probe);
    }

    #[test]
    fn an_attempt_from_before_it_opened_decides_nothing() {
        let mut breaker = opened(at(0));
        assert_eq!(breaker.success(Pass::Run), Change::None);
        assert_eq!(breaker.failure(Pass::Run, at(5)), Change::None);
        let until = Some(at(10));
        assert_eq!(breaker.admit(at(9)), Admit::Refuse { until });
        assert_eq!(breaker.admit(at(10)), Admit::Probe);
        assert_eq!(breaker.success(Pass::Run), Change::None);
        assert_eq!(breaker.admit(at(10)), Admit::Refuse { until: None });
    }

    #[test]
    fn an_open_time_beyond_all_time_does_not_overflow() {
        let mut breaker = BreakerState::new(Breaker {
            failures: 1,
            open_for: Duration::MAX,
        });
        assert_eq!(breaker.failure(Pass::Run, at(1)), Change::Opened);
        let last = Mono::from_nanos(u64::MAX - 1);
        assert!(matches!(breaker.admit(last), Admit::Refuse { .. }));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Admit,
        Succeed(usize),
        Fail(usize),
        Abandon(usize),
        Pass(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => Just(Step::Admit),
            2 => any::<usize>().prop_map(Step::Succeed),
            4 => any::<usize>().prop_map(Step::Fail),
            1 => any::<usize>().prop_map(Step::Abandon),
            2 => (0..15u64).prop_map(Step::Pass),
        ]
    }

    proptest! {
        /// Whatever ends in whatever order: never two probes, nothing runs while it is open, and when all ended and time
        /// passed, the next attempt is let through.
        #[test]
        fn it_never_lets_two_probe_and_never_stays_shut(
            failures in 1..5u32,
            steps in prop::collection::vec(step(), 0..200),
        ) {
            let mut breaker = BreakerState::new(Breaker { failures, ..CONFIG });
            let (mut now, mut under_way) = (0, Vec::new());
            let mut open_until = None;
            for step in steps {
                match step {
                    Step::Pass(seconds) => now += seconds,
                    Step::Admit => match breaker.admit(at(now)) {
                        Admit::Run => {
                            prop_assert!(open_until.is_none(), "it ran while open");
                            under_way.push(Pass::Run);
                        }
                        Admit::Probe => {
                            prop_assert!(!under_way.contains(&Pass::Probe), "two probes");
                            prop_assert!(open_until.is_some_and(|until| at(now) >= until));
                            under_way.push(Pass::Probe);
                        }
                        Admit::Refuse { until } => {
                            let probing = under_way.contains(&Pass::Probe);
                            prop_assert_eq!(until.is_none(), probing);
                            prop_assert!(until.is_none_or(|until| at(now) < until));
                        }
                    },
                    Step::Succeed(which) | Step::Fail(which) | Step::Abandon(which) if under_way.is_empty() => {
                        let _ = which;
                    }
                    Step::Succeed(which) => {
                        let pass = under_way.swap_remove(which % under_way.len());
                        if breaker.success(pass) == Change::Closed {
                            open_until = None;
                        }
                    }
                    Step::Fail(which) => {
                        let pass = under_way.swap_remove(which % under_way.len());
                        if breaker.failure(pass, at(now)) == Change::Opened {
                            open_until = Some(at(now + 10));
                        }
                    }
                    Step::Abandon(which) => {
                        let pass = under_way.swap_remove(which % under_way.len());
                        breaker.abandoned(pass, at(now));
                    }
                }
            }
            for pass in under_way {
                breaker.abandoned(pass, at(now));
            }
            let later = breaker.admit(at(now + 10));
            prop_assert!(!matches!(later, Admit::Refuse { .. }), "{later:?}");
        }
    }
}
