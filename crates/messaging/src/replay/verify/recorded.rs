//! What an agent was shown and what it asked for, read back from the journal.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};
use volary_kernel::{
    clock::Timestamp,
    id::{Name, Tenant, TraceId, Uid},
};
use volary_store::{Filter, JournalRow, PAGE_MAX, Seq};

use super::Act;
use crate::{
    codec,
    delivery::{Delivery, DeliveryKind, Replayed, encode_message, encode_replayed},
    event::{kind, message_in},
    replay::{Recording, ReplayError, ReplayQuery},
};

/// Kind of the entry that holds an agent's report.
const REPORT: &str = "agent.report";

/// A delivery that was acknowledged: the document, and what the agent asked for then.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordedDelivery {
    /// Its `delivery.acked` entry.
    pub seq: Seq,
    /// The delivery.
    pub id: Uid,
    /// Whose it was.
    pub agent: Name,
    /// The tenant.
    pub tenant: Tenant,
    /// The request it belongs to.
    pub trace: TraceId,
    /// The attempt that was acknowledged.
    pub attempt: u32,
    /// When that attempt began.
    pub began: Timestamp,
    /// The same in every attempt.
    pub idempotency_key: String,
    /// What the agent was shown.
    pub document: String,
    /// What it asked for.
    pub acts: Vec<Act>,
}

/// A delivery that cannot be fed again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Its `delivery.acked` entry.
    pub seq: Seq,
    /// Why.
    pub why: String,
}

/// Some recorded deliveries.
#[derive(Debug, Clone, Default)]
pub struct RecordedPage {
    /// Those that can be fed again, in the order in which they were acknowledged.
    pub deliveries: Vec<RecordedDelivery>,
    /// Those that cannot.
    pub skipped: Vec<Skipped>,
    /// Where to go on if there is more.
    pub next: Option<Seq>,
}

/// The body of a `delivery.acked` entry.
#[derive(Deserialize)]
struct Acked {
    id: Uid,
    message: Option<Uid>,
    kind: DeliveryKind,
    attempt: u32,
    actions: usize,
    began: Option<Timestamp>,
    input: Option<Box<RawValue>>,
}

/// The deliveries that `query` means (agent, tenant, trace, time and place of their acknowledgement), at most `limit`.
///
/// # Errors
/// Errors of reading the journal.
pub async fn deliveries(
    recording: &Recording,
    query: &ReplayQuery,
    limit: usize,
) -> Result<RecordedPage, ReplayError> {
    let filter = Filter {
        kinds: vec![kind::ACKED.to_owned()],
        agent: query.agent.clone(),
        trace: query.trace,
        tenant: query.tenant.clone(),
        since: query.from,
        until: query.to.map(|to| to + Duration::from_micros(1)),
    };
    let mut found = RecordedPage::default();
    let mut from = query.from_seq.unwrap_or(Seq::FIRST);
    let limit = limit.max(1);
    loop {
        let page = recording.page(from, &filter, limit.min(PAGE_MAX)).await?;
        for entry in &page.rows {
            if query.to_seq.is_some_and(|last| entry.row.seq > last) {
                return Ok(found);
            }
            if found.deliveries.len() >= limit {
                found.next = Some(entry.row.seq);
                return Ok(found);
            }
            match recorded(recording, &entry.row).await? {
                Ok(delivery) => found.deliveries.push(delivery),
                Err(why) => found.skipped.push(Skipped {
                    seq: entry.row.seq,
                    why,
                }),
            }
        }
        if page.end || page.next <= from {
            return Ok(found);
        }
        from = page.next;
    }
}

async fn recorded(
    recording: &Recording,
    row: &JournalRow,
) -> Result<Result<RecordedDelivery, String>, ReplayError> {
    let acked: Acked = match serde_json::from_slice(&row.body) {
        Ok(acked) => acked,
        Err(error) => return Ok(Err(format!("its acknowledgement cannot be read: {error}"))),
    };
    let (Some(agent), Some(trace)) = (row.agent.clone(), row.trace) else {
        return Ok(Err("its acknowledgement names no agent or trace".to_owned()));
    };
    let Some(began) = acked.began else {
        let why = "it was recorded by a version that did not keep the time of the attempt";
        return Ok(Err(why.to_owned()));
    };
    let shown = match (&acked.input, acked.kind) {
        (Some(input), _) => shown(input.get().to_owned()),
        (None, DeliveryKind::Message) => {
            of_message(recording, row, &acked, (&agent, trace)).await?
        }
        (None, _) => Err("its content was not recorded".to_owned()),
    };
    let (document, idempotency_key) = match shown {
        Ok(shown) => shown,
        Err(why) => return Ok(Err(why)),
    };
    let acts = match acts(recording, row.seq, acked.actions).await? {
        Ok(acts) => acts,
        Err(why) => return Ok(Err(why)),
    };
    Ok(Ok(RecordedDelivery {
        seq: row.seq,
        id: acked.id,
        agent,
        tenant: row.tenant.clone(),
        trace,
        attempt: acked.attempt,
        began,
        idempotency_key,
        document,
        acts,
    }))
}

type Shown = Result<(String, String), String>;

/// The document and the idempotency key in it.
fn shown(document: String) -> Shown {
    #[derive(Deserialize)]
    struct Key {
        idempotency_key: String,
    }
    match serde_json::from_str::<Key>(&document) {
        Ok(key) => Ok((document, key.idempotency_key)),
        Err(error) => Err(format!("its document cannot be read: {error}")),
    }
}

/// The document of a message's delivery, made from the entry that holds the message.
async fn of_message(
    recording: &Recording,
    row: &JournalRow,
    acked: &Acked,
    (agent, trace): (&Name, TraceId),
) -> Result<Shown, ReplayError> {
    let gone = || {
        Ok(Err(
            "the entry with its message is not kept any more".to_owned()
        ))
    };
    let filter = Filter {
        kinds: vec![kind::ACCEPTED.to_owned(), kind::REPLAYED.to_owned()],
        trace: Some(trace),
        ..Filter::default()
    };
    let holds = |row: &JournalRow| {
        #[derive(Deserialize)]
        struct Id {
            id: Uid,
        }
        let found = serde_json::from_slice::<Id>(&row.body).ok();
        found.map(|found| found.id) == acked.message
    };
    let mut from = row.cause.unwrap_or(Seq::FIRST);
    let held = loop {
        let page = recording.page(from, &filter, PAGE_MAX).await?;
        let held = page.rows.into_iter().find(|entry| holds(&entry.row));
        if let Some(held) = held.filter(|held| held.row.seq < row.seq) {
            break held.row;
        }
        if page.end || page.next <= from || page.next > row.seq {
            return gone();
        }
        from = page.next;
    };
    let stored = match message_in(&held.body) {
        Ok(message) if held.kind == kind::ACCEPTED => {
            encode_message(&message, &codec::encode(&message), agent)
        }
        Ok(message) => {
            #[derive(Deserialize)]
            struct Mark {
                recorded: Replayed,
                idempotency_key: String,
            }
            match serde_json::from_slice::<Mark>(&held.body) {
                Ok(mark) => encode_replayed(
                    &codec::encode(&message),
                    &mark.idempotency_key,
                    &mark.recorded,
                ),
                Err(error) => return Ok(Err(error.to_string())),
            }
        }
        Err(error) => return Ok(Err(error.to_string())),
    };
    let delivery = Delivery::decode(&stored, acked.id, acked.attempt, &row.tenant);
    Ok(delivery
        .map(|delivery| (delivery.to_json(), delivery.idempotency_key))
        .map_err(|error| error.to_string()))
}

/// What was asked for with the acknowledgement: the entries it caused.
async fn acts(
    recording: &Recording,
    acked: Seq,
    actions: usize,
) -> Result<Result<Vec<Act>, String>, ReplayError> {
    let filter = Filter {
        kinds: [kind::ACCEPTED, kind::REFUSED, kind::DROPPED, REPORT]
            .map(str::to_owned)
            .into(),
        ..Filter::default()
    };
    let mut found = Vec::with_capacity(actions.min(PAGE_MAX));
    let mut from = acked.next();
    // They were committed together, so they stand together.
    'pages: while found.len() < actions {
        let limit = (actions - found.len()).min(PAGE_MAX);
        let page = recording.page(from, &filter, limit).await?;
        for entry in &page.rows {
            if entry.row.cause != Some(acked) {
                break 'pages;
            }
            found.push(act(&entry.row));
        }
        if page.end || page.next <= from {
            break;
        }
        from = page.next;
    }
    if found.len() < actions {
        let kept = found.len();
        return Ok(Err(format!(
            "of its {actions} actions, the journal holds {kept}"
        )));
    }
    Ok(found.into_iter().collect())
}

fn act(row: &JournalRow) -> Result<Act, String> {
    let body = || -> Result<Value, String> {
        serde_json::from_slice(&row.body).map_err(|error| error.to_string())
    };
    match &*row.kind {
        kind::ACCEPTED => message_in(&row.body)
            .map(|message| Act::of_message(&message))
            .map_err(|error| error.to_string()),
        REPORT => {
            let mut body = body()?;
            Ok(Act::of_report(body["report"].take()))
        }
        _ => Ok(Act::of_refused(&body()?)),
    }
}
