//! What the end of a flow's trace means for the inbox item it was made from. Pure.
//!
//! ```text
//! done                       acknowledged, with what its values ask for, in one commit
//! failed, may be mended      comes again after the agent's back-off, parked after its last attempt
//! failed for good            parked at once: a person decides
//! cancelled                  parked at once: somebody did not want it done, and it must not come again by itself
//! deadline exceeded          comes again; if it was the message's own, the inbox ends it
//! dropped (the flow stops)   comes again at once, to whoever runs next
//! ```

use std::time::Duration;

use volary_flow::{EmitError, FlowError, FlowErrorCode, Outcome};

/// What becomes of an item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It was handled.
    Ack,
    /// It comes again: after this time, or by the agent's back-off.
    Again {
        reason: String,
        delay: Option<Duration>,
    },
    /// No further attempt would do better.
    GiveUp { reason: String },
}

impl Verdict {
    #[cfg(test)]
    const fn as_str(&self) -> &'static str {
        match self {
            Self::Ack => "acked",
            Self::Again { .. } => "retried",
            Self::GiveUp { .. } => "given_up",
        }
    }

    fn again(reason: impl ToString) -> Self {
        Self::Again {
            reason: reason.to_string(),
            delay: None,
        }
    }

    /// What the outcome of a trace means.
    pub(crate) fn of(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Done => Self::Ack,
            Outcome::Failed(error) if is_final(error) => Self::GiveUp {
                reason: error.to_string(),
            },
            Outcome::Failed(error) => Self::again(&**error),
            Outcome::Cancelled => Self::GiveUp {
                reason: "the trace was cancelled".to_owned(),
            },
            Outcome::DeadlineExceeded => Self::again("the flow did not end within its deadline"),
            Outcome::Dropped { .. } => Self::stopped(),
        }
    }

    /// What it means that the flow did not take the envelope.
    pub(crate) fn of_refusal(error: &EmitError) -> Self {
        match error {
            EmitError::Stopped => Self::stopped(),
            EmitError::TraceInUse(_) => Self::Again {
                reason: "an earlier attempt at it still runs in this process".to_owned(),
                delay: Some(Duration::from_secs(1)),
            },
            EmitError::Full | EmitError::DeadlineExceeded | EmitError::Store(_) => {
                Self::again(error)
            }
            // Whoever calls would call as deep again.
            EmitError::TooDeep(_) | EmitError::CallsItself => Self::GiveUp {
                reason: error.to_string(),
            },
        }
    }

    /// What it means that its payload is not what the flow takes.
    pub(crate) fn of_payload(problem: &str) -> Self {
        Self::GiveUp {
            reason: format!("the payload is not what the flow takes: {problem}"),
        }
    }

    /// What it means that what the flow's values ask for cannot be made.
    pub(crate) fn of_answer(problem: &str) -> Self {
        Self::GiveUp {
            reason: format!("the flow's answer cannot be sent: {problem}"),
        }
    }

    fn stopped() -> Self {
        Self::Again {
            reason: "the flow stopped before it was done".to_owned(),
            delay: Some(Duration::ZERO),
        }
    }
}

/// Whether no further attempt would end otherwise.
fn is_final(error: &FlowError) -> bool {
    let permanent = error
        .source
        .as_ref()
        .is_some_and(|source| !source.retryable);
    match error.code {
        FlowErrorCode::NodeError => permanent,
        FlowErrorCode::InDoubt | FlowErrorCode::NoSuchTarget => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use volary_flow::{DropReason, NodeError};
    use volary_kernel::TraceId;

    use super::*;

    fn failed(code: FlowErrorCode, source: Option<NodeError>) -> Outcome {
        Outcome::Failed(Box::new(FlowError {
            trace_id: TraceId::generate(),
            node: "charge".parse().unwrap(),
            code,
            message: "no".to_owned(),
            attempts: 3,
            latency: None,
            timeout: None,
            source,
        }))
    }

    #[test]
    fn each_outcome_settles_its_item() {
        let word = |outcome: &Outcome| Verdict::of(outcome).as_str();
        assert_eq!(word(&Outcome::Done), "acked");
        assert_eq!(word(&Outcome::Cancelled), "given_up");
        assert_eq!(word(&Outcome::DeadlineExceeded), "retried");
        let code = FlowErrorCode::NodeError;
        let (mended, never) = (NodeError::retryable("no"), NodeError::permanent("no"));
        assert_eq!(word(&failed(code, Some(mended))), "retried");
        assert_eq!(word(&failed(code, Some(never))), "given_up");
        assert_eq!(word(&failed(FlowErrorCode::NodeTimeout, None)), "retried");
        assert_eq!(word(&failed(FlowErrorCode::InDoubt, None)), "given_up");
        let reason = DropReason::Stopped;
        let Verdict::Again { delay, .. } = Verdict::of(&Outcome::Dropped { reason }) else {
            panic!("what a stop dropped comes again");
        };
        assert_eq!(delay, Some(Duration::ZERO));
    }

    #[test]
    fn a_reason_names_the_node() {
        let Verdict::Again { reason, .. } = Verdict::of(&failed(FlowErrorCode::NodeTimeout, None))
        else {
            panic!("a timeout may be mended");
        };
        assert!(
            reason.contains("charge") && reason.contains("node_timeout"),
            "{reason}"
        );
    }
}
