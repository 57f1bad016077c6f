//! What happens to replicas, into the journal.

use bytes::Bytes;
use futures_util::FutureExt as _;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use volary_deploy::{
    event::Event,
    supervise::{EventStream, Feed},
};
use volary_kernel::{
    Tenant, clock,
    ready::Heartbeat,
    retry::{Backoff, random_unit},
    task::TaskResult,
};
use volary_store::{Batch, Entry, SharedStore, StoreError};

/// Kind of the entry that says how many events were lost because the journal was slower than they came.
const LOST: &str = "replica.events_lost";

/// Copies events until the node stops; what has come by then is copied too.
///
/// # Errors
/// When the store is closed or damaged.
pub(crate) async fn record(
    mut events: EventStream,
    store: SharedStore,
    tenant: Tenant,
    (beat, stop): (Heartbeat, CancellationToken),
) -> TaskResult {
    loop {
        let next = stop.run_until_cancelled(events.next());
        // Cancelled: whoever makes events has ended, so what is there now is all there will be.
        let Some(feed) = (match beat.while_waiting(next).await {
            Some(feed) => feed,
            None => events.next().now_or_never().flatten(),
        }) else {
            break;
        };
        let entry = match feed {
            Feed::Event(event) => entry(&event, &tenant),
            Feed::Lagged(count) => Entry::new(
                LOST,
                tenant.clone(),
                Bytes::from(json!({"v": 1, "count": count}).to_string()),
            ),
        };
        append(&store, entry, &beat).await?;
    }
    beat.retire();
    Ok(())
}

fn entry(event: &Event, tenant: &Tenant) -> Entry {
    let mut body = event.body();
    if let Some(body) = body.as_object_mut() {
        body.insert("v".to_owned(), json!(1));
        body.insert("replica".to_owned(), json!(event.replica.to_string()));
    }
    Entry::new(event.kind(), tenant.clone(), Bytes::from(body.to_string()))
        .agent(event.replica.agent.clone())
}

/// Appends one entry; waits while the disk is full, because what happened must not be lost.
async fn append(store: &SharedStore, entry: Entry, beat: &Heartbeat) -> Result<(), StoreError> {
    let mut failures = 0;
    loop {
        let mut tx = Batch::new();
        tx.append(entry.clone());
        match store.commit(tx).await {
            Err(StoreError::Full { .. }) => {
                failures += 1;
                beat.while_waiting(clock::sleep(
                    Backoff::default().delay(failures, random_unit()),
                ))
                .await;
            }
            committed => return committed.map(drop),
        }
    }
}
