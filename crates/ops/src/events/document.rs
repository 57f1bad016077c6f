//! One journal entry as the document that travels.

use serde_json::value::RawValue;
use volary_kernel::secret::Redactor;
use volary_store::JournalRow;

use crate::api::Event;

/// `row` as JSON, one line, without what must not be shown.
pub(super) fn of_row(row: &JournalRow, with_body: bool, redactor: &Redactor) -> Vec<u8> {
    encode(&event(row, with_body), redactor)
}

/// `event` as JSON, one line, without what must not be shown.
pub(super) fn encode(event: &Event, redactor: &Redactor) -> Vec<u8> {
    let json =
        serde_json::to_vec(event).expect("ids, names and a checked body always encode as JSON");
    redactor.redact_bytes(&json).into_owned()
}

fn event(row: &JournalRow, with_body: bool) -> Event {
    Event {
        seq: Some(row.seq.0),
        at: row.at,
        node: row.node.to_string(),
        kind: row.kind.clone(),
        tenant: row.tenant.clone(),
        agent: row.agent.clone(),
        trace: row.trace,
        cause: row.cause.map(|cause| cause.0),
        body: with_body.then(|| body(row)).flatten(),
    }
}

/// The body as one line of JSON. What is no JSON is left out: `volary journal verify` is the place to find out why.
fn body(row: &JournalRow) -> Option<Box<RawValue>> {
    let raw = serde_json::from_slice::<Box<RawValue>>(&row.body).ok()?;
    if !raw.get().contains(['\n', '\r']) {
        return Some(raw);
    }
    // Line breaks can only stand between tokens; a value without them is the same value.
    RawValue::from_string(raw.get().replace(['\n', '\r'], " ")).ok()
}
