//! Records of pauses, as whoever runs the flow reads, writes and removes them.

use std::collections::HashMap;

use volary_kernel::{Tenant, TraceId};
use volary_store::{Batch, Expect, Key, StoreError};

use super::{
    book::Book,
    ledger::{Ledger, corrupt, each},
    record::{self, PauseRecord, VERSION},
};

impl Ledger {
    /// Adds to `tx` that a trace was paused or resumed by whoever runs it.
    pub(crate) fn add_pause(
        &self,
        tx: &mut Batch,
        book: &Book,
        paused: bool,
    ) -> Result<(), StoreError> {
        let key = self.keys.pause(book.trace)?;
        if paused {
            let pause = PauseRecord {
                v: VERSION,
                tenant: book.tenant.clone(),
                at: self.wall(),
            };
            tx.put(key, record::encode(&pause)?, Expect::Any);
        } else {
            tx.delete(key, Expect::Any);
        }
        let kind = if paused {
            "flow.paused"
        } else {
            "flow.resumed"
        };
        tx.append(self.entry(kind, book, None, &[])?);
        Ok(())
    }

    /// Whose pause a record is, if it is there.
    pub(crate) async fn pause_of(
        &self,
        key: &Key,
    ) -> Result<Option<(PauseRecord, u64)>, StoreError> {
        let Some(record) = self.store().get(key).await? else {
            return Ok(None);
        };
        let pause = record::decode(&record.key, &record.value)?;
        Ok(Some((pause, record.version)))
    }

    /// Removes the record that a trace is paused which has ended: it came too late to go with the end. What cannot be
    /// removed now goes at the next start.
    pub(crate) async fn remove_late_pause(&self, trace: TraceId) {
        let remove = async {
            let key = self.keys.pause(trace)?;
            let Some((_, version)) = self.pause_of(&key).await? else {
                return Ok(());
            };
            let mut tx = Batch::new();
            tx.delete(key, Expect::Version(version));
            self.store().commit(tx).await.map(drop)
        };
        match remove.await {
            // It was resumed meanwhile.
            Ok(()) | Err(StoreError::Conflict { .. }) => {}
            Err(error) => {
                tracing::debug!(flow = %self.plan.name, %trace, %error, "a late pause stays until the next start");
            }
        }
    }

    /// All traces that somebody paused, and whose they are.
    pub(crate) async fn pauses(&self) -> Result<HashMap<TraceId, Tenant>, StoreError> {
        let mut pauses = HashMap::new();
        each(self.store(), &self.keys.pauses, |record| {
            let trace: Option<TraceId> = record::end_of(&record.key, &self.keys.pauses);
            let pause: PauseRecord = record::decode(&record.key, &record.value)?;
            pauses.insert(trace.ok_or_else(|| corrupt(&record.key))?, pause.tenant);
            Ok(())
        })
        .await?;
        Ok(pauses)
    }
}
