//! How an identity looks in the store: `identity/<id>`, JSON.

use serde::{Deserialize, Serialize};
use volary_kernel::{
    id::{Name, Tenant},
    sign::PublicKey,
};
use volary_store::{Key, Record, StoreError};

use super::{AgentId, Known, Status, Voucher};

pub(super) const PREFIX: &str = "identity/";

#[derive(Serialize, Deserialize)]
struct Row {
    v: u8,
    key: String,
    name: Name,
    tenant: Tenant,
    status: Status,
    voucher: Voucher,
}

pub(super) fn key(id: &AgentId) -> Key {
    Key::new(format!("{PREFIX}{id}")).expect("a prefix and 64 hex digits make a key")
}

pub(super) fn write(known: &Known) -> Vec<u8> {
    let row = Row {
        v: 1,
        key: hex::encode(known.key.to_bytes()),
        name: known.name.clone(),
        tenant: known.tenant.clone(),
        status: known.status,
        voucher: known.voucher.clone(),
    };
    serde_json::to_vec(&row).expect("names, digits and times have a JSON form")
}

/// Reads a record; its id is computed from the key in it, never believed.
pub(super) fn read(record: &Record) -> Result<(AgentId, Known), StoreError> {
    let corrupt = |problem: &dyn std::fmt::Display| StoreError::Corrupt {
        what: format!("record `{}` is no identity: {problem}", record.key),
        seq: None,
    };
    let row: Row = serde_json::from_slice(&record.value).map_err(|error| corrupt(&error))?;
    if row.v != 1 {
        return Err(corrupt(&format!("version {} is not known", row.v)));
    }
    let public = PublicKey::from_hex(&row.key).map_err(|error| corrupt(&error))?;
    let id = AgentId::of(&public);
    if record.key != key(&id) {
        return Err(corrupt(&"it holds another key"));
    }
    let known = Known {
        key: public,
        name: row.name,
        tenant: row.tenant,
        status: row.status,
        voucher: row.voucher,
    };
    Ok((id, known))
}
