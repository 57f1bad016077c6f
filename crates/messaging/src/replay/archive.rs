//! Exports: the messages of a query as an archive, each sealed where its sender's key is at hand.

use std::{
    collections::{BTreeMap, HashMap},
    io::Write,
};

use bytes::Bytes;
use serde_json::value::RawValue;
use volary_kernel::{clock::Timestamp, sign::SigningKey};
use volary_store::{
    PAGE_MAX,
    journal::{ArchiveRow, ArchiveWriter, ExportError, ExportSummary},
};

use super::{Recording, ReplayError, ReplayQuery, plan, runner::Pages};
use crate::{
    event::message_in,
    frame::{self, Trust},
    identity::{AgentId, Identity},
    message::Message,
};

/// Messages that share a signature.
const SEAL_TOGETHER: usize = 64;

/// Whose messages can be sealed at export: the identities that the exporter holds.
#[derive(Debug, Clone, Default)]
pub struct Signers(HashMap<AgentId, Identity>);

impl FromIterator<Identity> for Signers {
    fn from_iter<I: IntoIterator<Item = Identity>>(identities: I) -> Self {
        let keyed = identities.into_iter().map(|one| (one.id(), one));
        Self(keyed.collect())
    }
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// The entries.
    pub summary: ExportSummary,
    /// How many of them carry a seal.
    pub sealed: u64,
}

/// Writes the entries that `query` means to `out`, as an archive of format 2 signed by `key` at `at`. The filter is part
/// of what is signed. An entry that was recorded with a seal keeps it; one whose sender is among `signers` gets one.
///
/// # Errors
/// [`ReplayError`]; what was written so far is no archive.
pub async fn export<W: Write>(
    recording: &Recording,
    query: &ReplayQuery,
    (key, at): (&SigningKey, Timestamp),
    signers: &Signers,
    out: W,
) -> Result<Exported, ReplayError> {
    let filter = serde_json::to_string(query)
        .and_then(RawValue::from_string)
        .map_err(|error| ExportError::Io(error.to_string()))?;
    let mut writer = ArchiveWriter::begin(out, recording.node().clone(), key, at, filter)?;
    let mut pages = Pages::new(recording, query, query.from_seq);
    let (mut planned, mut sealed) = (Vec::new(), 0);
    while let Some(mut rows) = pages.next(PAGE_MAX).await? {
        rows.retain(|row| {
            // What cannot be read is kept: an export leaves nothing out silently.
            let wanted = plan::of_row(row, query, &mut planned).is_err() || !planned.is_empty();
            planned.clear();
            wanted
        });
        for row in seal(rows, signers) {
            sealed += u64::from(row.sealed.is_some());
            writer.add(row)?;
        }
    }
    let (summary, _) = writer.finish(key)?;
    Ok(Exported { summary, sealed })
}

/// Gives each entry the seal it can have.
fn seal(mut rows: Vec<ArchiveRow>, signers: &Signers) -> Vec<ArchiveRow> {
    let mut by_sender: BTreeMap<AgentId, Vec<(usize, Message)>> = BTreeMap::new();
    for (index, row) in rows.iter_mut().enumerate() {
        row.sealed = row.sealed.take().or_else(|| plan::sealed_in(&row.row.body));
        if row.sealed.is_some() {
            continue;
        }
        if let Ok(message) = message_in(&row.row.body)
            && signers.0.contains_key(&message.sender().id())
        {
            let of_sender = by_sender.entry(message.sender().id()).or_default();
            of_sender.push((index, message));
        }
    }
    for (sender, messages) in by_sender {
        for together in messages.chunks(SEAL_TOGETHER) {
            let seals = seals(&signers.0[&sender], together);
            for ((index, _), seal) in together.iter().zip(seals) {
                rows[*index].sealed = seal;
            }
        }
    }
    rows
}

/// The seals of some messages of one sender; none where one does not fit into a frame.
fn seals(identity: &Identity, messages: &[(usize, Message)]) -> Vec<Option<Bytes>> {
    let contents: Vec<Message> = messages
        .iter()
        .map(|(_, message)| message.clone())
        .collect();
    let trusted = identity.public();
    let opened = frame::seal(identity, &contents)
        .ok()
        .and_then(|frame| frame::open(&frame, Trust::Key(&trusted)).ok());
    match opened {
        Some(frame) => (0..contents.len())
            .map(|index| Some(frame.sealed(index)?.encode()))
            .collect(),
        // Too large together: each alone.
        None if messages.len() > 1 => messages
            .iter()
            .flat_map(|message| seals(identity, std::slice::from_ref(message)))
            .collect(),
        None => vec![None],
    }
}
