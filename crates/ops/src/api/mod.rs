//! The documents of the HTTP API: what requests take and replies give, shared by the sections of the server and by
//! the client of the command line.
//!
//! Requests refuse unknown keys. Replies may grow keys; readers must not refuse what they do not know. Times are
//! RFC 3339, durations are written as people write them (`"30s"`, `"1m30s"`), ids are text.

mod event;
mod fleet;
mod flow;
mod flow_trace;
mod health;
mod identity;
mod inbox;
mod message;
mod parked;
mod payload;
mod pool;
mod replay;
mod task;

use std::{fmt, str::FromStr, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use volary_kernel::text::{format_duration, parse_duration};

pub use self::{
    event::{Event, EventsQuery},
    fleet::{
        AgentSummary, AgentView, DownReply, DownRequest, FleetView, InboxStats, LogsQuery,
        PortView, ReplicaView, SourceView,
    },
    flow::{
        FlowList, FlowQuery, FlowRegistration, FlowReport, FlowReportReply, FlowSeries, FlowSignal,
        FlowSummary, FlowValue, FlowView, RegisterFlows, RegisterFlowsReply,
    },
    flow_trace::{
        FlowAct, FlowActReply, FlowActRequest, FlowActed, FlowAnswer, FlowAsk, FlowControl,
        FlowControlReply, FlowOrder, FlowSaid, FlowTrace, FlowTraceView, FlowTraces,
        FlowTracesQuery,
    },
    health::{CheckView, HealthDocument, HealthStatus},
    identity::{
        AcceptRequest, IdentityList, IdentityStatus, IdentityView, NodeIdentity, OnceView,
        PeerList, PeerView, RotateReply, RotateRequest, StrandedView,
    },
    inbox::{
        AckReply, AckRequest, Action, InboxItem, InboxQuery, InboxReply, ItemKind, NackReply,
        NackRequest,
    },
    message::{
        Admission, Outcome, SENDS_MAX, Send, SendMany, SendManyReply, SendReply, SendRequest,
        Target,
    },
    parked::{ParkedItem, ParkedList, ParkedQuery, ParkedView, RetryReply},
    payload::{JSON, OCTETS, decode_payload, encode_payload},
    pool::{CreatePool, JoinPool, PoolList, PoolReply, PoolView},
    replay::{
        ReplayDifference, ReplayDirection, ReplayDivergence, ReplayMessage, ReplayPlan,
        ReplayQuery, ReplayReply, ReplayRequest, ReplayUnreadable, VerifyReply, VerifyRequest,
    },
    task::{
        CancelReply, CancelRequest, ClaimReply, ClaimRequest, FailReply, FailRequest, RenewReply,
        RenewRequest, ReportReply, ReportRequest, SubmitReply, SubmitRequest, TaskClaimView,
        TaskList, TaskView, TaskWaitQuery, TaskWaitReply, TasksQuery,
    },
};

/// The longest `wait` of a long poll. Longer waits are refused: ask again instead.
pub const MAX_WAIT: Duration = Duration::from_secs(60);

/// A duration as people write it: `"30s"`, `"1m30s"`, `"500ms"`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, JsonSchema)]
#[schemars(with = "String")]
pub struct DurationText(pub Duration);

impl fmt::Display for DurationText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format_duration(self.0))
    }
}

impl fmt::Debug for DurationText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for DurationText {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        parse_duration(text)
            .map(Self)
            .map_err(|error| error.to_string())
    }
}

impl Serialize for DurationText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DurationText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// The wait a request asks for, checked against [`MAX_WAIT`]; none means no wait.
///
/// # Errors
/// 400 when the wait is longer than [`MAX_WAIT`].
pub fn checked_wait(wait: Option<DurationText>) -> Result<Duration, crate::ApiError> {
    match wait {
        None => Ok(Duration::ZERO),
        Some(DurationText(wait)) if wait <= MAX_WAIT => Ok(wait),
        Some(wait) => {
            let limit = DurationText(MAX_WAIT);
            Err(
                crate::ApiError::bad_request(format!("wait is {wait}, the limit is {limit}"))
                    .hint("ask again instead"),
            )
        }
    }
}
