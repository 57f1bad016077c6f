//! How queues look in the store. One place for writer and reader.
//!
//! | key | value |
//! |---|---|
//! | `queue.item/<id>` | version byte, header length (u32, little endian), [`Header`] as JSON, payload |
//! | `queue.state/<id>` | [`StateRecord`] as JSON; absent for an item that was never claimed |
//! | `queue.parked/<id>` | as `queue.item`, with [`Header::parked`] |
//!
//! The payload is written once; claims and nacks rewrite only the small state record. Ids come first in the keys and
//! are time-ordered, so that what is enqueued together lies together.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use volary_kernel::{
    clock::Timestamp,
    id::{Tenant, TraceId, Uid},
};

use super::types::ItemId;
use crate::{entry::Seq, error::StoreError, key::Key};

pub(crate) const ITEMS: &str = "queue.item/";
pub(super) const STATES: &str = "queue.state/";
pub(super) const PARKED: &str = "queue.parked/";
const VERSION: u8 = 1;
const PREFIX: usize = 5;

/// What is known of an item beside its payload.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Header {
    pub queue: Arc<str>,
    pub tenant: Tenant,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<TraceId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Seq>,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: i16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coalesce: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    pub at: Timestamp,
    /// Journal entries from here on may tell of this item: retention keeps them while it lives.
    pub from: Seq,
    /// Its place in a numbered queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parked: Option<ParkedInfo>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lane: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub visibility_ms: Option<u64>,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature serde asks for"
)]
const fn is_zero(value: &i16) -> bool {
    *value == 0
}

/// How an item came to be parked.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ParkedInfo {
    pub at: Timestamp,
    pub attempts: u32,
    pub reason: String,
}

/// How far an item's attempts got.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct StateRecord {
    pub v: u8,
    pub attempts: u32,
    /// Who has it, and in which life of the process. Absent after a nack.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<Uid>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Seq>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

pub(super) fn item_key(id: ItemId) -> Key {
    Key::trusted(format!("{ITEMS}{id}"))
}

pub(super) fn state_key(id: ItemId) -> Key {
    Key::trusted(format!("{STATES}{id}"))
}

pub(super) fn parked_key(id: ItemId) -> Key {
    Key::trusted(format!("{PARKED}{id}"))
}

/// The item a key names.
pub(super) fn id_of(key: &Key) -> Result<ItemId, StoreError> {
    let id = key.rsplit('/').next().unwrap_or_default();
    id.parse().map_err(|_| {
        StoreError::corrupt(format!("record `{key}` does not name a queue item"), None)
    })
}

pub(super) fn encode(header: &Header, payload: &[u8]) -> Result<Bytes, StoreError> {
    let header = to_json(header)?;
    let mut value = BytesMut::with_capacity(PREFIX + header.len() + payload.len());
    value.put_u8(VERSION);
    value.put_u32_le(
        u32::try_from(header.len())
            .map_err(|_| StoreError::invalid("queue item header is too large"))?,
    );
    value.put_slice(&header);
    value.put_slice(payload);
    Ok(value.freeze())
}

pub(crate) fn decode(key: &Key, value: &Bytes) -> Result<(Header, Bytes), StoreError> {
    let bad = || {
        StoreError::corrupt(
            format!("record `{key}` is no queue item that this version can read"),
            None,
        )
    };
    let (prefix, rest) = value.split_first_chunk::<PREFIX>().ok_or_else(bad)?;
    let [VERSION, length @ ..] = *prefix else {
        return Err(bad());
    };
    let length = u32::from_le_bytes(length) as usize;
    let header = rest.get(..length).ok_or_else(bad)?;
    let header = serde_json::from_slice(header).map_err(|_| bad())?;
    Ok((header, value.slice(PREFIX + length..)))
}

pub(super) fn to_json<T: Serialize>(value: &T) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value)
        .map_err(|error| StoreError::invalid(format!("queue record is not JSON: {error}")))
}

pub(super) fn state_of(key: &Key, value: &[u8]) -> Result<StateRecord, StoreError> {
    serde_json::from_slice(value).map_err(|error| {
        StoreError::corrupt(format!("record `{key}` is no queue state: {error}"), None)
    })
}
