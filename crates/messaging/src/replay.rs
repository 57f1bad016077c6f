//! Replay, dry: which recorded messages would be fed again, in which order.
//!
//! The plan is read from the journal's rows, so it is ordered by when the node accepted a message, not by what a sender
//! claims, and holds the messages' bytes as they were. Feeding them to an agent is not done here.

use serde::{Deserialize, Serialize};
use volary_kernel::{
    clock::Timestamp,
    id::{Name, Tenant, TraceId},
};
use volary_store::{Filter, JournalRow, PAGE_MAX, Seq, SharedStore, StoreError};

use crate::{
    event::{kind, message_in, receivers_in},
    message::Message,
};

/// Most messages of one plan. A longer one ends `truncated`, and goes on at its `next`.
pub const PLAN_MAX: usize = 100_000;

/// Which way a message went, seen from the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// To the agent.
    Inbound,
    /// From the agent.
    Outbound,
}

/// What to replay. What is not set does not restrict.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReplayQuery {
    /// Only messages that went this way.
    pub direction: Option<Direction>,
    /// Only messages of this agent: to it or from it, as `direction` says; both if that is not set.
    pub agent: Option<Name>,
    /// Only of this tenant.
    pub tenant: Option<Tenant>,
    /// Only of this request.
    pub trace: Option<TraceId>,
    /// Only accepted at or after this time.
    pub from: Option<Timestamp>,
    /// Only accepted before this time.
    pub to: Option<Timestamp>,
    /// Only journal entries at or after this one: where a truncated plan goes on.
    pub from_seq: Option<Seq>,
}

/// One message of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedMessage {
    /// Its journal entry.
    pub seq: Seq,
    /// When it was accepted.
    pub at: Timestamp,
    /// Which way it went.
    pub direction: Direction,
    /// The agent on this node's side: the receiver of an inbound message, the sender of an outbound one.
    pub agent: Name,
    /// The message, with its bytes as they were.
    pub message: Message,
}

impl Serialize for PlannedMessage {
    /// Tells what it is and where it goes, not what is in it.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let mut out = serializer.serialize_struct("PlannedMessage", 11)?;
        out.serialize_field("seq", &self.seq)?;
        out.serialize_field("at", &self.at)?;
        out.serialize_field("direction", &self.direction)?;
        out.serialize_field("agent", &self.agent)?;
        out.serialize_field("id", &self.message.id())?;
        out.serialize_field("sender", self.message.sender().name())?;
        out.serialize_field("to", &self.message.recipient())?;
        out.serialize_field("topics", self.message.topics())?;
        out.serialize_field("tenant", self.message.tenant())?;
        out.serialize_field("trace", &self.message.trace())?;
        out.serialize_field("bytes", &self.message.body().len())?;
        out.end()
    }
}

/// An entry that should hold a message but does not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unreadable {
    /// The journal entry.
    pub seq: Seq,
    /// What is wrong with it.
    pub problem: String,
}

/// What a replay would do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ReplayPlan {
    /// The messages, in the order in which they were accepted.
    pub messages: Vec<PlannedMessage>,
    /// Entries that could not be read; a live replay would stop at the first.
    pub unreadable: Vec<Unreadable>,
    /// Where to go on if there is more.
    pub next: Option<Seq>,
    /// The first entry that retention has left, if the query reaches further back.
    pub missing_before: Option<Seq>,
}

/// Plans replays from a node's journal.
#[doc(alias = "ReplayLog")]
#[derive(Clone)]
pub struct ReplayRunner {
    store: SharedStore,
}

impl ReplayRunner {
    /// A runner over this journal.
    pub const fn new(store: SharedStore) -> Self {
        Self { store }
    }

    /// The messages that `query` means, as they would be fed: nothing is delivered.
    ///
    /// # Errors
    /// Errors of reading the journal.
    pub async fn plan(&self, query: &ReplayQuery) -> Result<ReplayPlan, StoreError> {
        let filter = Filter {
            kinds: [kind::ACCEPTED, kind::SENT, kind::RECEIVED]
                .map(str::to_owned)
                .into(),
            agent: None,
            trace: query.trace,
            tenant: query.tenant.clone(),
            since: query.from,
            until: query.to,
        };
        let asked = query.from_seq.unwrap_or(Seq::FIRST);
        let (mut plan, mut from) = (ReplayPlan::default(), asked);
        loop {
            let page = match self.store.read(from, &filter, PAGE_MAX).await {
                Err(StoreError::Trimmed { first, .. }) if first > from => {
                    plan.missing_before = Some(first);
                    from = first;
                    continue;
                }
                page => page?,
            };
            if page.first > asked {
                plan.missing_before = Some(page.first);
            }
            for row in &page.rows {
                if plan.messages.len() >= PLAN_MAX {
                    plan.next = Some(row.seq);
                    return Ok(plan);
                }
                plan_row(&mut plan, row, query);
            }
            if page.end || page.next <= from {
                return Ok(plan);
            }
            from = page.next;
        }
    }
}

/// Adds what one entry stands for.
fn plan_row(plan: &mut ReplayPlan, row: &JournalRow, query: &ReplayQuery) {
    let message = match message_in(&row.body) {
        Ok(message) => message,
        Err(error) => {
            plan.unreadable.push(Unreadable {
                seq: row.seq,
                problem: error.to_string(),
            });
            return;
        }
    };
    let wanted = |direction: Direction, agent: &Name| {
        query.direction.is_none_or(|wanted| wanted == direction)
            && query.agent.as_ref().is_none_or(|wanted| wanted == agent)
    };
    let mut add = |direction: Direction, agent: Name| {
        if wanted(direction, &agent) {
            let message = message.clone();
            plan.messages.push(PlannedMessage {
                seq: row.seq,
                at: row.at,
                direction,
                agent,
                message,
            });
        }
    };
    if row.kind != kind::RECEIVED {
        add(Direction::Outbound, message.sender().name().clone());
    }
    for receiver in receivers_in(&row.body) {
        add(Direction::Inbound, receiver);
    }
}
