//! A Rust program as a long-lived agent of a fleet: it speaks the link API, and may let a flow do its work.
//!
//! ```text
//!            ┌──────────────── serve ────────────────┐
//!  inbox ──▶ │ item ─▶ envelope ─▶ flow ─▶ outcome ──┼──▶ ack with what the values ask for, in one commit
//!            │  (tenant, time left, priority, trace)  │     nack with the reason, or parked
//!            └───────────────┬────────────────────────┘
//!                            ├─ reporter ──▶ /metrics, the live feed and `volary flow` of the node
//!                            └─ steering ◀──▶ `volary flow traces|cancel|pause|resume`
//! ```
//!
//! The node names socket and token in the environment of every replica: `VOLARY_LINK` and `VOLARY_TOKEN_FILE`.

pub mod answer;
mod delta;
mod flow;
mod origin;
mod report;
mod serve;
mod signal;
mod steer;
mod verdict;

use std::{path::Path, time::Duration};

use volary_ops::{
    api::{
        AckReply, AckRequest, DurationText, FlowControl, FlowControlReply, FlowReport,
        FlowReportReply, InboxItem, InboxQuery, InboxReply, NackReply, NackRequest, RegisterFlows,
        RegisterFlowsReply, SendReply, SendRequest,
    },
    client::{Client, ClientError, Endpoint, read_token},
};

pub use self::{
    flow::LinkFlow,
    origin::{ORIGIN, Origin, TRACEPARENT, flow_trace},
    serve::{Actions, ServeLimits, ServeReport},
};
pub(crate) use self::{
    flow::ended,
    origin::{Treatment, envelope},
    verdict::Verdict,
};

/// An agent's link to its node; cheap to clone. Each call is one request; dropping it closes its connection.
#[derive(Debug, Clone)]
pub struct Link(Client);

impl Link {
    /// The link of a replica: `link` is what `VOLARY_LINK` says, `token_file` what `VOLARY_TOKEN_FILE` says.
    ///
    /// # Errors
    /// [`ClientError::Request`] when they cannot be read.
    pub fn open(link: &str, token_file: &Path) -> Result<Self, ClientError> {
        let endpoint: Endpoint = link.parse()?;
        Ok(Self(Client::new(endpoint).token(read_token(token_file)?)))
    }

    /// A link over a client that has the replica's token.
    pub const fn new(client: Client) -> Self {
        Self(client)
    }

    /// Claims up to `max` items; waits up to `wait` for the first, at most [`volary_ops::api::MAX_WAIT`].
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn next(&self, max: u32, wait: Duration) -> Result<Vec<InboxItem>, ClientError> {
        let query = InboxQuery {
            max: Some(max),
            wait: Some(DurationText(wait)),
        };
        let client = self.0.clone().waiting(wait);
        let reply: InboxReply = client.get("/v1/inbox", &query).await?;
        Ok(reply.items)
    }

    /// Acknowledges, with actions: all of it happens, or nothing.
    ///
    /// # Errors
    /// [`ClientError`]; 409 when the claim does not hold any more.
    pub async fn ack(&self, request: &AckRequest) -> Result<AckReply, ClientError> {
        self.0.post("/v1/inbox/ack", request).await
    }

    /// Gives a claim back.
    ///
    /// # Errors
    /// As [`Link::ack`].
    pub async fn nack(&self, request: &NackRequest) -> Result<NackReply, ClientError> {
        self.0.post("/v1/inbox/nack", request).await
    }

    /// Sends a message at once.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn send(&self, request: &SendRequest) -> Result<SendReply, ClientError> {
        self.0.post("/v1/messages", request).await
    }

    /// Says which flows this process runs; [`LinkFlow`] does it by itself.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn register_flows(
        &self,
        request: &RegisterFlows,
    ) -> Result<RegisterFlowsReply, ClientError> {
        self.0.post("/v1/flows", request).await
    }

    /// Says how they do; [`LinkFlow`] does it by itself.
    ///
    /// # Errors
    /// [`ClientError`]; 409 when they must be registered again.
    pub async fn report_flows(&self, report: &FlowReport) -> Result<FlowReportReply, ClientError> {
        self.0.post("/v1/flows/report", report).await
    }

    /// Answers what operators asked of them, and waits for what they ask next; [`LinkFlow`] does it by itself.
    ///
    /// # Errors
    /// [`ClientError`]; 409 when they must be registered again.
    pub async fn control_flows(
        &self,
        control: &FlowControl,
    ) -> Result<FlowControlReply, ClientError> {
        let wait = control.wait.map(|wait| wait.0).unwrap_or_default();
        let client = self.0.clone().waiting(wait);
        client.post("/v1/flows/control", control).await
    }
}
