//! Events as log lines, through `tracing`.

use std::{fmt, panic::AssertUnwindSafe, time::Duration};

use tracing::Level;
use volary_kernel::task::panic_text;

use super::{
    Observer,
    event::{FlowEvent, FlowEventKind},
};
use crate::outcome::Outcome;

/// The target of the log lines, for filters.
pub const LOG_TARGET: &str = "volary_flow::events";

type Latency = Box<dyn Fn(&FlowEvent, Duration) + Send + Sync>;

/// Logs every kind of event. Made by [`log_flow_events`].
pub struct LogFlowEvents {
    start: Level,
    success: Level,
    warning: Level,
    error: Level,
    latency: Option<Latency>,
}

/// An observer that logs every kind of event: starts at DEBUG, what went well at INFO, what costs somebody time or work
/// (retries, timeouts, deadlines, late results, blocked nodes) at WARN, failures at ERROR. Fields are named as in
/// [`FlowEvent::to_payload`]. Payloads of envelopes are in no event, so they are never logged.
///
/// # Examples
/// ```
/// use std::sync::Arc;
/// use volary_flow::{RunConfig, observe::log_flow_events};
/// let config = RunConfig {
///     observers: vec![Arc::new(log_flow_events())],
///     ..RunConfig::default()
/// };
/// # assert_eq!(config.observers.len(), 1);
/// ```
pub fn log_flow_events() -> LogFlowEvents {
    LogFlowEvents {
        start: Level::DEBUG,
        success: Level::INFO,
        warning: Level::WARN,
        error: Level::ERROR,
        latency: None,
    }
}

macro_rules! line {
    ($level:expr, $event:expr) => {
        if tracing::enabled!(target: LOG_TARGET, $level) {
            let event: &FlowEvent = $event;
            let fields = Fields::of(event);
            tracing::event!(
                target: LOG_TARGET,
                $level,
                event = event.kind.as_str(),
                flow = event.flow.as_str(),
                node = event.node.as_ref().map(|node| node.as_str()),
                trace = %event.trace_id,
                tenant = event.tenant.as_str(),
                attempt = (event.attempt > 0).then_some(event.attempt),
                latency_seconds = event.latency().map(|latency| latency.as_secs_f64()),
                outcome = fields.outcome,
                error_code = fields.code,
                error = fields.error,
                error_node = fields.node,
                detail = fields.detail.as_deref(),
                "{}", event.kind.as_str(),
            );
        }
    };
}
impl LogFlowEvents {
    /// The level of what begins, and of what is dropped because its trace had ended. Default DEBUG.
    #[must_use]
    pub fn start_level(mut self, level: Level) -> Self {
        self.start = level;
        self
    }

    /// The level of what went well or was asked for. Default INFO.
    #[must_use]
    pub fn success_level(mut self, level: Level) -> Self {
        self.success = level;
        self
    }

    /// The level of retries, timeouts, deadlines and other trouble. Default WARN.
    #[must_use]
    pub fn warning_level(mut self, level: Level) -> Self {
        self.warning = level;
        self
    }

    /// The level of failures. Default ERROR.
    #[must_use]
    pub fn error_level(mut self, level: Level) -> Self {
        self.error = level;
        self
    }

    /// Is told how long attempts and traces took. A panic of it is contained and logged.
    #[must_use]
    #[doc(alias = "latency_callback")]
    pub fn on_latency(
        mut self,
        told: impl Fn(&FlowEvent, Duration) + Send + Sync + 'static,
    ) -> Self {
        self.latency = Some(Box::new(told));
        self
    }

    fn level(&self, kind: &FlowEventKind) -> Level {
        match kind {
            FlowEventKind::TraceStart
            | FlowEventKind::TraceParent { .. }
            | FlowEventKind::NodeStart
            | FlowEventKind::NodeCancelled
            | FlowEventKind::CancelDrop => self.start,
            FlowEventKind::TraceEnd { outcome, .. } => match outcome {
                Outcome::Done | Outcome::Cancelled => self.success,
                Outcome::DeadlineExceeded | Outcome::Dropped { .. } => self.warning,
                Outcome::Failed(_) => self.error,
            },
            FlowEventKind::NodeSuccess { .. }
            | FlowEventKind::CancelStart { .. }
            | FlowEventKind::CancelFinish
            | FlowEventKind::Paused
            | FlowEventKind::Resumed
            | FlowEventKind::BreakerClosed => self.success,
            FlowEventKind::NodeTimeout { .. }
            | FlowEventKind::NodeRetry { .. }
            | FlowEventKind::NodeBlocked { .. }
            | FlowEventKind::LateResult
            | FlowEventKind::DeadlineSkip
            | FlowEventKind::JoinPartial { .. }
            | FlowEventKind::BreakerOpened => self.warning,
            FlowEventKind::NodeError { .. } | FlowEventKind::NodeFailed { .. } => self.error,
        }
    }

    fn log(&self, event: &FlowEvent) {
        let level = self.level(&event.kind);
        // A level is part of a call site, so there is one for each.
        match level {
            Level::ERROR => line!(Level::ERROR, event),
            Level::WARN => line!(Level::WARN, event),
            Level::INFO => line!(Level::INFO, event),
            Level::DEBUG => line!(Level::DEBUG, event),
            Level::TRACE => line!(Level::TRACE, event),
        }
    }
}

/// What only some kinds say.
#[derive(Default)]
struct Fields<'a> {
    outcome: Option<&'static str>,
    code: Option<&'static str>,
    error: Option<&'a str>,
    node: Option<&'a str>,
    detail: Option<String>,
}

impl<'a> Fields<'a> {
    fn of(event: &'a FlowEvent) -> Self {
        let mut fields = Self::default();
        let seconds = Duration::as_secs_f64;
        match &event.kind {
            FlowEventKind::TraceEnd { outcome, .. } => {
                fields.outcome = Some(outcome.as_str());
                match outcome {
                    Outcome::Failed(error) => {
                        fields.code = Some(error.code.as_str());
                        fields.error = Some(&error.message);
                        fields.node = Some(error.node.as_str());
                    }
                    Outcome::Dropped { reason } => fields.detail = Some(format!("{reason:?}")),
                    _ => {}
                }
            }
            FlowEventKind::NodeError { error, .. } => fields.error = Some(error),
            FlowEventKind::NodeFailed { code, error } => {
                fields.code = Some(code);
                fields.error = Some(error);
            }
            FlowEventKind::NodeTimeout { timeout } => {
                fields.detail = Some(format!("timeout of {} s", seconds(timeout)));
            }
            FlowEventKind::NodeRetry { delay } => {
                fields.detail = Some(format!("again in {} s", seconds(delay)));
            }
            FlowEventKind::NodeBlocked { since } => {
                fields.detail = Some(format!("holds its thread since {} s", seconds(since)));
            }
            FlowEventKind::CancelStart { queued, running } => {
                fields.detail = Some(format!("{queued} queued, {running} running"));
            }
            FlowEventKind::JoinPartial { have, want } => {
                fields.detail = Some(format!("{have} of {want}"));
            }
            FlowEventKind::TraceParent { span, .. } => fields.detail = Some(span.to_string()),
            _ => {}
        }
        fields
    }
}

impl Observer for LogFlowEvents {
    fn observe(&self, events: &[FlowEvent]) {
        for event in events {
            self.log(event);
            let (Some(told), Some(latency)) = (&self.latency, event.latency()) else {
                continue;
            };
            let call = AssertUnwindSafe(|| told(event, latency));
            if let Err(panic) = std::panic::catch_unwind(call) {
                let panic = panic_text(&*panic);
                tracing::error!(target: LOG_TARGET, panic, "the latency callback panicked");
            }
        }
    }
}

impl fmt::Debug for LogFlowEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogFlowEvents")
            .field("start", &self.start)
            .field("success", &self.success)
            .field("warning", &self.warning)
            .field("error", &self.error)
            .finish_non_exhaustive()
    }
}
