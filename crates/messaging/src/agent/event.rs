//! What a runtime tells its owner besides metrics: everything that went another way than hoped, one closed enum.

use std::{sync::Arc, time::Duration};

use crate::message::Message;

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum RuntimeEvent {
    /// A received message was dropped before any hook saw it, because its sender could not be verified.
    Unverified {
        /// The message.
        message: Message,
        /// Why it is not believed.
        reason: Unverified,
    },
    /// A decision or tool run was denied by the policy.
    Denied {
        /// Which, and why.
        reason: String,
    },
    /// A tool did not finish in time and was cancelled.
    ToolTimedOut {
        /// The tool.
        tool: String,
        /// Its time.
        limit: Duration,
    },
    /// `on_start`, `on_tick` or `decide` failed, panicked or took too long; the agent is tried again after `retry_in`.
    AgentFailed {
        /// The method.
        stage: &'static str,
        /// What happened.
        problem: String,
        /// Failures since it last worked, this one included.
        failures: u32,
        /// When it is tried again; never if the policy gives up.
        retry_in: Option<Duration>,
    },
    /// A message that was received was not handled and never will be.
    Unhandled {
        /// The message.
        message: Message,
        /// Why not.
        reason: String,
    },
    /// A part around the agent failed; the runtime goes on.
    Trouble {
        /// The part.
        part: &'static str,
        /// What happened.
        problem: String,
    },
}

/// Why a message's sender is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unverified {
    /// Its identity was never registered.
    UnknownSender,
    /// Its identity was revoked.
    Revoked,
    /// Its identity is registered under another name or for another tenant.
    WrongName,
    /// The same sender sent a message of this id before.
    Repeated,
}

impl Unverified {
    /// The word for metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UnknownSender => "unknown_sender",
            Self::Revoked => "revoked",
            Self::WrongName => "wrong_name",
            Self::Repeated => "repeated",
        }
    }
}

/// What is called with each event.
type Told = Arc<dyn Fn(&RuntimeEvent) + Send + Sync>;

/// Who is told. It must not block; a panic in it is contained.
#[derive(Clone)]
pub(super) struct Listener(Option<Told>);

impl Listener {
    pub(super) const fn nobody() -> Self {
        Self(None)
    }

    pub(super) fn new(listener: impl Fn(&RuntimeEvent) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(listener)))
    }

    pub(super) fn tell(&self, event: &RuntimeEvent) {
        tracing::debug!(?event, "runtime event");
        if let Some(listener) = &self.0 {
            let told = std::panic::AssertUnwindSafe(|| listener(event));
            if std::panic::catch_unwind(told).is_err() {
                tracing::error!("the listener of a runtime's events panicked");
            }
        }
    }
}
