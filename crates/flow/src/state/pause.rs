//! Pausing a durable trace from any process on its store: a record that whoever runs the flow watches.
//!
//! A paused trace starts no further step; what runs ends and is kept. It stays paused over restarts. Its deadline goes on.

use volary_kernel::{Name, Tenant, TraceId};
use volary_store::{Batch, Entry, Expect, SharedStore, StoreError};

use super::{
    ledger::each,
    record::{self, Keys, LiveRecord, PauseRecord, VERSION},
};

/// A trace was neither paused nor resumed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PauseError {
    /// No such trace of this tenant lives in this flow.
    #[error("trace {0} does not live in this flow, or is another tenant's")]
    Unknown(TraceId),
    /// The store refused or failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Lets a durable trace start no further step until it is resumed. Pausing one that is paused is no error.
///
/// Looks through the live traces of the flow: meant for people and for rare use.
///
/// # Errors
/// [`PauseError`].
pub async fn pause(
    store: &SharedStore,
    flow: &Name,
    trace: TraceId,
    tenant: &Tenant,
) -> Result<(), PauseError> {
    let (keys, live) = find(store, flow, trace, tenant).await?;
    let pause = PauseRecord {
        v: VERSION,
        tenant: tenant.clone(),
        at: store.clock().wall(),
    };
    let mut tx = Batch::new();
    // A trace that ends meanwhile leaves no pause behind.
    tx.check(live.0, Expect::Version(live.1));
    tx.put(keys.pause(trace)?, record::encode(&pause)?, Expect::Any);
    tx.append(entry("flow.paused", flow, trace, tenant)?);
    commit(store, tx, trace).await
}

/// Lets a paused trace go on. Resuming one that is not paused is no error.
///
/// # Errors
/// [`PauseError`].
pub async fn resume(
    store: &SharedStore,
    flow: &Name,
    trace: TraceId,
    tenant: &Tenant,
) -> Result<(), PauseError> {
    let (keys, _) = find(store, flow, trace, tenant).await?;
    let mut tx = Batch::new();
    tx.delete(keys.pause(trace)?, Expect::Any);
    tx.append(entry("flow.resumed", flow, trace, tenant)?);
    commit(store, tx, trace).await
}

async fn commit(store: &SharedStore, tx: Batch, trace: TraceId) -> Result<(), PauseError> {
    match store.commit(tx).await {
        Ok(_) => Ok(()),
        Err(StoreError::Conflict { .. }) => Err(PauseError::Unknown(trace)),
        Err(error) => Err(error.into()),
    }
}

/// The live record of the trace, as key and version.
pub(crate) async fn find(
    store: &SharedStore,
    flow: &Name,
    trace: TraceId,
    tenant: &Tenant,
) -> Result<(Keys, (volary_store::Key, u64)), PauseError> {
    let keys = Keys::of(flow);
    let mut found = None;
    each(store, &keys.live, |row| {
        let live: LiveRecord = record::decode(&row.key, &row.value)?;
        if live.trace == trace && live.tenant == *tenant {
            found = Some((row.key, row.version));
        }
        Ok(())
    })
    .await?;
    Ok((keys, found.ok_or(PauseError::Unknown(trace))?))
}

fn entry(
    kind: &'static str,
    flow: &Name,
    trace: TraceId,
    tenant: &Tenant,
) -> Result<Entry, StoreError> {
    let body = serde_json::json!({"v": VERSION, "flow": flow});
    Ok(Entry::json(kind, tenant.clone(), &body)?.trace(trace))
}
