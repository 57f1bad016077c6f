//! The lines of an archive and what they are hashed to (pure).

use std::sync::LazyLock;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use volary_kernel::{Name, TraceId, clock::Timestamp, id::Tenant};

use super::{super::chain, ArchiveRow};
use crate::{
    entry::{JournalRow, Seq},
    journal::chain::Hash,
};

const DOMAIN: &[u8] = b"volary journal export v1\0";

static ORIGIN: LazyLock<Hash> =
    LazyLock::new(|| blake3::derive_key("volary journal archive v2 origin", &[]));
static LINK: LazyLock<Hash> =
    LazyLock::new(|| blake3::derive_key("volary journal archive v2 link", &[]));
static SEALED: LazyLock<Hash> =
    LazyLock::new(|| blake3::derive_key("volary journal archive v2 seal", &[]));

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::journal) struct First {
    pub volary_journal: u32,
    pub node: Name,
    pub key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Seq>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<Box<RawValue>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::journal) struct Line {
    pub seq: Seq,
    pub at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Seq>,
    pub kind: String,
    pub tenant: Tenant,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<Name>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<TraceId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<Box<RawValue>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_hex: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed_hex: Option<String>,
    pub hash: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::journal) struct Last {
    pub entries: u64,
    pub hash: String,
    pub signature: String,
}

/// What is signed at the end.
pub(in crate::journal) fn message(lines: &blake3::Hasher) -> Vec<u8> {
    [DOMAIN, lines.finalize().as_bytes().as_slice()].concat()
}

/// Where the chain of an archive of format 2 begins.
pub(super) fn origin(first_line: &[u8]) -> Hash {
    *blake3::keyed_hash(&ORIGIN, first_line).as_bytes()
}

/// The chain of format 2 after an entry.
pub(super) fn link(previous: &Hash, entry: &ArchiveRow) -> Hash {
    let place = chain::Place {
        seq: entry.row.seq,
        at: entry.row.at.as_micros(),
        version: 0,
        cause: entry.row.cause,
    };
    let seal = match &entry.sealed {
        Some(sealed) => *blake3::keyed_hash(&SEALED, sealed).as_bytes(),
        None => Hash::default(),
    };
    let own = chain::link(previous, &place, &digest(&entry.row));
    *blake3::keyed_hash(&LINK, &[own, seal].concat()).as_bytes()
}

/// The chain of format 1 after an entry: the node's own.
pub(super) fn own_link(previous: &Hash, row: &JournalRow, version: u64) -> Hash {
    let place = chain::Place {
        seq: row.seq,
        at: row.at.as_micros(),
        version,
        cause: row.cause,
    };
    chain::link(previous, &place, &digest(row))
}

fn digest(row: &JournalRow) -> Hash {
    chain::digest(&chain::Row {
        node: row.node.as_str(),
        kind: &row.kind,
        tenant: row.tenant.as_str(),
        agent: row.agent.as_ref().map(Name::as_str),
        trace: row.trace.map(|trace| trace.to_bytes()),
        body: &row.body,
    })
}

impl Line {
    /// The line of an entry.
    pub(in crate::journal) fn of(
        row: JournalRow,
        version: Option<u64>,
        sealed: Option<&Bytes>,
        hash: &[u8],
    ) -> Self {
        let body = one_line(&row.body);
        Self {
            seq: row.seq,
            at: row.at,
            version,
            cause: row.cause,
            body_hex: body.is_none().then(|| hex::encode(&row.body)),
            body,
            kind: row.kind,
            tenant: row.tenant,
            agent: row.agent,
            trace: row.trace,
            sealed_hex: sealed.map(hex::encode),
            hash: hex::encode(hash),
        }
    }

    /// The entry, its version and its hash; `None` for what no writer writes.
    pub(super) fn into_entry(self, node: &Name) -> Option<(ArchiveRow, Option<u64>, Hash)> {
        let body = match (self.body, self.body_hex) {
            (Some(body), None) => body.get().to_owned().into_bytes(),
            (None, Some(body)) => hex::decode(body).ok()?,
            _ => return None,
        };
        // The chain has no other sign for "none".
        if self.cause == Some(Seq(0)) {
            return None;
        }
        let mut hash = Hash::default();
        hex::decode_to_slice(self.hash, &mut hash).ok()?;
        let sealed = self.sealed_hex.map(hex::decode).transpose().ok()?;
        let row = JournalRow {
            seq: self.seq,
            at: self.at,
            node: node.clone(),
            kind: self.kind,
            tenant: self.tenant,
            agent: self.agent,
            trace: self.trace,
            cause: self.cause,
            body: body.into(),
        };
        let sealed = sealed.map(Bytes::from);
        Some((ArchiveRow { row, sealed }, self.version, hash))
    }
}

/// The body as JSON, if it comes back byte for byte.
fn one_line(body: &[u8]) -> Option<Box<RawValue>> {
    let text = std::str::from_utf8(body)
        .ok()
        .filter(|text| !text.contains(['\n', '\r']))?;
    let value = RawValue::from_string(text.to_owned()).ok()?;
    (value.get() == text).then_some(value)
}
