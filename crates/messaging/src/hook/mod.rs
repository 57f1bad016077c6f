//! Hooks: what looks at each message on its way out and in, in order, and may change, drop or refuse it.
//!
//! ```text
//! send ─▶ pre_send of hook 1, 2, … ─▶ (sealed, carried, verified) ─▶ post_receive of hook 1, 2, … ─▶ receiver
//!             │ Continue(message)  next hook sees this message
//!             │ Drop{reason}       it ends here on purpose: Admission::Dropped
//!             │ Refuse(why)        the sender is told why:    Admission::Refused
//!             └ Err, panic, time-out: on_error of that hook, counted, Admission::Refused{Hook}
//! ```
//! Hooks change the opened message, never sealed bytes.

mod chain;
mod enrich;
mod order;
mod policy;
mod record;
mod secret;
mod validate;

use std::{borrow::Cow, fmt, future::Future, pin::Pin, time::Duration};

use volary_kernel::{id::Name, text};

pub(crate) use self::secret::contains_secret;
pub use self::{
    chain::{DEFAULT_HOOK_TIMEOUT, HookChain, Verdict},
    enrich::{ENRICH_RULES_MAX, EnrichError, EnrichHook, EnrichRule, HeaderEdit},
    order::{DEFAULT_ORDER, order_problem},
    policy::{
        Effect, POLICY_PATTERN_MAX, POLICY_RULES_MAX, PolicyConfig, PolicyError, PolicyHook,
        PolicyRule,
    },
    record::RecorderHook,
    secret::SecretGuard,
    validate::{MessageLimits, ValidateHook},
};
use crate::{admission::Refusal, message::Message};

/// Where a hook runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Before signing, at the sender.
    PreSend,
    /// After verification, at the receiver.
    PostReceive,
}

impl Stage {
    /// The word for logs and labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PreSend => "pre_send",
            Self::PostReceive => "post_receive",
        }
    }
}

/// What a hook decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Go on with this message, changed or not.
    Continue(Message),
    /// Take it out, on purpose.
    Drop {
        /// Why, for the sender and the journal.
        reason: Cow<'static, str>,
    },
    /// Turn it back and say why.
    Refuse(Refusal),
}

/// Why a hook gave no decision.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HookError {
    /// It returned an error.
    #[error("{0}")]
    Failed(String),
    /// It panicked; the panic went no further.
    #[error("panicked: {0}")]
    Panicked(String),
    /// It took longer than its time.
    #[error("did not decide within {}", text::brief_duration(*.0))]
    TimedOut(Duration),
}

impl HookError {
    /// An error with this text.
    pub fn failed(problem: impl fmt::Display) -> Self {
        Self::Failed(problem.to_string())
    }
}

/// Where a hook is called, beside the message.
#[derive(Debug, Clone, Copy)]
pub struct HookContext<'a> {
    /// The stage.
    pub stage: Stage,
    /// The agent that receives, where that is known: in `post_receive` of an endpoint.
    pub receiver: Option<&'a Name>,
}

/// A decision that is still being made.
pub type Pending<'a> = Pin<Box<dyn Future<Output = Result<Outcome, HookError>> + Send + 'a>>;

/// A hook's answer: made on the spot (nothing is allocated), or a future that is awaited for a bounded time.
pub enum Step<'a> {
    /// Decided.
    Done(Result<Outcome, HookError>),
    /// Being decided.
    Wait(Pending<'a>),
}

impl<'a> Step<'a> {
    /// Goes on with `message`.
    pub const fn pass(message: Message) -> Self {
        Self::Done(Ok(Outcome::Continue(message)))
    }

    /// Takes the message out.
    pub fn drop(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::Done(Ok(Outcome::Drop {
            reason: reason.into(),
        }))
    }

    /// Turns the message back.
    pub const fn refuse(why: Refusal) -> Self {
        Self::Done(Ok(Outcome::Refuse(why)))
    }

    /// Decides in `future`.
    pub fn wait(future: impl Future<Output = Result<Outcome, HookError>> + Send + 'a) -> Self {
        Self::Wait(Box::pin(future))
    }
}

/// Middleware on a transport.
///
/// Contract:
/// - Hooks run in the order in which they were registered, in both stages, one after the other for one message;
///   different messages may be in one hook at the same time.
/// - A hook that decides at once returns [`Step::Done`] and must not block. One that waits returns [`Step::Wait`];
///   it gets at most the chain's time-out and must be cancel-safe.
/// - An error, a panic or a time-out stops this message only. [`MessageHook::on_error`] of the failing hook is called,
///   and what it does can not hide the error.
/// - Routing data of a transport is not visible here: topics are the sender's topics.
pub trait MessageHook: Send + Sync + 'static {
    /// Short constant name: a label of counters, and what a sender is told.
    fn name(&self) -> &'static str;

    /// Looks at a message before it is signed. Passes it on if not implemented.
    fn pre_send<'a>(&'a self, message: Message, context: HookContext<'a>) -> Step<'a> {
        let _unused = context;
        Step::pass(message)
    }

    /// Looks at a message after it was verified. Passes it on if not implemented.
    fn post_receive<'a>(&'a self, message: Message, context: HookContext<'a>) -> Step<'a> {
        let _unused = context;
        Step::pass(message)
    }

    /// Told that this hook failed. Does nothing if not implemented.
    fn on_error(&self, error: &HookError, context: HookContext<'_>) {
        let _unused = (error, context);
    }
}
