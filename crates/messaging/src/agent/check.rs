//! What a user's own health or readiness check says.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use volary_kernel::{ready::Check, task::panic_text};

/// The answer of a check: well, or why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckResult(Result<(), String>);

impl From<bool> for CheckResult {
    fn from(well: bool) -> Self {
        Self(well.then_some(()).ok_or_else(|| "it says no".to_owned()))
    }
}

impl<E: fmt::Display> From<Result<(), E>> for CheckResult {
    fn from(result: Result<(), E>) -> Self {
        Self(result.map_err(|error| error.to_string()))
    }
}

/// A check that a user brings.
#[derive(Clone)]
pub(super) struct UserCheck {
    name: &'static str,
    ask: Arc<dyn Fn() -> CheckResult + Send + Sync>,
}

impl UserCheck {
    pub(super) fn new<R: Into<CheckResult>>(
        name: &'static str,
        ask: impl Fn() -> R + Send + Sync + 'static,
    ) -> Self {
        Self {
            name,
            ask: Arc::new(move || ask().into()),
        }
    }

    /// Asks it; a panic is an answer, too.
    pub(super) fn answer(&self) -> Check {
        let reason = match catch_unwind(AssertUnwindSafe(|| (self.ask)())) {
            Ok(CheckResult(answer)) => answer.err(),
            Err(panic) => Some(format!("panicked: {}", panic_text(&*panic))),
        };
        Check {
            name: self.name.to_owned(),
            ok: reason.is_none(),
            reason,
            last_beat_seconds: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason<R: Into<CheckResult>>(ask: impl Fn() -> R + Send + Sync + 'static) -> Option<String> {
        let check = UserCheck::new("health check", ask).answer();
        assert_eq!(check.ok, check.reason.is_none());
        check.reason
    }

    #[test]
    fn a_check_may_say_no_say_why_or_panic() {
        assert_eq!(reason(|| true), None);
        assert_eq!(reason(|| Ok::<(), String>(())), None);
        assert_eq!(reason(|| false).as_deref(), Some("it says no"));
        assert_eq!(reason(|| Err("disk full")).as_deref(), Some("disk full"));
        let panics = || -> bool { panic!("boom") };
        assert_eq!(reason(panics).as_deref(), Some("panicked: boom"));
    }
}
