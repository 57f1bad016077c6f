//! How a task moves from state to state, and how it never does (pure).
//!
//! ```text
//!             claim                  complete
//!  Pending ──────────▶ Claimed ─────────────────▶ Completed
//!   │  ▲ ▲ ◀── lapse, fail (retries left) ─┘ │ give up ─▶ Failed
//!   │  │ └──────── retry ──────── Parked ◀───┘ fail or lapse (none left)
//!   │  │                            │ drop
//!   │ cancel (of Pending, Claimed, Parked) ─▶ Cancelled
//!   └─ deadline (of Pending; of Claimed when the claim lapses) ─▶ Expired
//! ```

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where a task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// It waits to be claimed (perhaps for a while, after a failed attempt).
    Pending,
    /// Somebody works on it.
    Claimed,
    /// It was done, and has a result.
    Completed,
    /// It was given up by who worked on it.
    Failed,
    /// It was called off.
    Cancelled,
    /// Its deadline passed.
    Expired,
    /// Its attempts are used up; a person looks at it.
    Parked,
}

/// What happens to a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Somebody takes it.
    Claim,
    /// A claim ends without an answer.
    Lapse,
    /// An attempt failed.
    Fail,
    /// The worker says that trying again is no use.
    GiveUp,
    /// It was done.
    Complete,
    /// It is called off, or dropped after it was parked.
    Cancel,
    /// Its deadline passes.
    Expire,
    /// Its last attempt failed or lapsed.
    Park,
    /// A person lets it be tried again.
    Retry,
}

/// A step that the state does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a task that is {from} can not {step}")]
pub struct NotAllowed {
    /// The state.
    pub from: TaskState,
    /// The step.
    pub step: Step,
}

impl TaskState {
    /// Every state.
    pub const ALL: [Self; 7] = [
        Self::Pending,
        Self::Claimed,
        Self::Completed,
        Self::Failed,
        Self::Cancelled,
        Self::Expired,
        Self::Parked,
    ];

    /// The word in JSON and in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Claimed => "claimed",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
            Self::Parked => "parked",
        }
    }

    /// Whether nothing ever happens to it any more.
    pub const fn is_terminal(self) -> bool {
        matches!(
            self,
            Self::Completed | Self::Failed | Self::Cancelled | Self::Expired
        )
    }

    /// The state after `step`.
    ///
    /// # Errors
    /// [`NotAllowed`]; a terminal state allows nothing.
    pub const fn after(self, step: Step) -> Result<Self, NotAllowed> {
        Ok(match (self, step) {
            (Self::Pending, Step::Claim) => Self::Claimed,
            (Self::Claimed, Step::Lapse | Step::Fail) | (Self::Parked, Step::Retry) => {
                Self::Pending
            }
            (Self::Claimed, Step::Complete) => Self::Completed,
            (Self::Claimed, Step::GiveUp) => Self::Failed,
            (Self::Claimed, Step::Park) => Self::Parked,
            (Self::Pending | Self::Claimed, Step::Expire) => Self::Expired,
            (Self::Pending | Self::Claimed | Self::Parked, Step::Cancel) => Self::Cancelled,
            (from, step) => return Err(NotAllowed { from, step }),
        })
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl std::str::FromStr for TaskState {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|state| state.as_str() == text);
        known.ok_or_else(|| {
            let words = Self::ALL.map(Self::as_str).join(", ");
            format!("state must be one of {words}, found `{text}`")
        })
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Claim => "be claimed",
            Self::Lapse => "lapse",
            Self::Fail => "fail",
            Self::GiveUp => "be given up",
            Self::Complete => "be completed",
            Self::Cancel => "be cancelled",
            Self::Expire => "expire",
            Self::Park => "be parked",
            Self::Retry => "be retried",
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            Just(Step::Claim),
            Just(Step::Lapse),
            Just(Step::Fail),
            Just(Step::GiveUp),
            Just(Step::Complete),
            Just(Step::Cancel),
            Just(Step::Expire),
            Just(Step::Park),
            Just(Step::Retry),
        ]
    }

    #[test]
    fn what_was_never_claimed_is_not_completed() {
        assert!(TaskState::Pending.after(Step::Complete).is_err());
        assert!(TaskState::Parked.after(Step::Complete).is_err());
    }

    proptest! {
        #[test]
        fn whatever_happens_it_ends_once_and_only_a_claim_leads_to_a_result(
            steps in proptest::collection::vec(step(), 0..60),
        ) {
            let (mut state, mut ends, mut last) = (TaskState::Pending, 0, Step::Retry);
            for step in steps {
                let before = state;
                match state.after(step) {
                    Ok(next) => {
                        prop_assert!(!before.is_terminal());
                        ends += u32::from(next.is_terminal());
                        if matches!(next, TaskState::Completed | TaskState::Failed) {
                            prop_assert_eq!(before, TaskState::Claimed);
                        }
                        (state, last) = (next, step);
                    }
                    Err(refused) => prop_assert_eq!(refused, NotAllowed { from: before, step }),
                }
            }
            prop_assert!(ends <= 1);
            prop_assert!(state != TaskState::Claimed || last == Step::Claim);
        }

        #[test]
        fn words_read_back(index in 0usize..7) {
            let state = TaskState::ALL[index];
            prop_assert_eq!(state.as_str().parse(), Ok(state));
        }
    }
}
