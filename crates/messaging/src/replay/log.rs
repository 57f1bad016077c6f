//! A recording of one's own, for who embeds parts of Volary in a program.

use std::{io::Write, path::Path, sync::Arc};

use volary_kernel::{
    clock::{SharedClock, SystemClock, Timestamp},
    id::Name,
    sign::SigningKey,
};
use volary_store::{
    Batch, MemoryConfig, MemoryStore, Seq, SharedStore,
    journal::{ArchiveTrust, ExportSummary},
};

use super::{PlannedMessage, Recording, ReplayError, ReplayQuery, ReplayRunner, Signers, archive};
use crate::{
    event::{Event, with_seal},
    frame::SealedMessage,
    message::Message,
};

/// What messages an agent or program got and sent, in order, as entries of a journal. Clones share it.
///
/// Bounded by its store: a memory store forgets the oldest entries past its size, a node's journal by its retention.
#[derive(Clone)]
pub struct ReplayLog {
    store: SharedStore,
}

impl std::fmt::Debug for ReplayLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ReplayLog({})", self.store.node())
    }
}

impl Default for ReplayLog {
    fn default() -> Self {
        Self::new()
    }
}

impl ReplayLog {
    /// A log in memory, of at most [`volary_store::MemoryConfig`]'s default size: the oldest entries go first.
    pub fn new() -> Self {
        Self::in_memory(SystemClock::shared())
    }

    /// The same by another clock.
    pub fn in_memory(clock: SharedClock) -> Self {
        let node = Name::new("replay-log").expect("the constant keeps the rules of names");
        Self::over(Arc::new(MemoryStore::new(MemoryConfig::new(node), clock)))
    }

    /// A log in the journal of `store`, beside whatever else is there.
    pub const fn over(store: SharedStore) -> Self {
        Self { store }
    }

    /// Its store.
    pub const fn store(&self) -> &SharedStore {
        &self.store
    }

    /// Records that `receiver` got `message`. Durable (as far as the store is) when it returns.
    ///
    /// # Errors
    /// Errors of the store.
    pub async fn record_inbound(
        &self,
        message: &Message,
        receiver: &Name,
    ) -> Result<Seq, ReplayError> {
        let receiver = Some(receiver);
        self.record(&Event::Received { message, receiver }, None)
            .await
    }

    /// Records that `message` was sent by its sender.
    ///
    /// # Errors
    /// Errors of the store.
    pub async fn record_outbound(&self, message: &Message) -> Result<Seq, ReplayError> {
        self.record(&Event::Sent { message }, None).await
    }

    /// Records a message without saying whose side it is seen from: as sent.
    ///
    /// # Errors
    /// Errors of the store.
    pub async fn record_message(&self, message: &Message) -> Result<Seq, ReplayError> {
        self.record_outbound(message).await
    }

    /// Records that `receiver` got `message`, with the seal that proves it. `message` is what `sealed` opened to: whoever
    /// records has verified it.
    ///
    /// # Errors
    /// Errors of the store.
    pub async fn record_sealed(
        &self,
        sealed: &SealedMessage,
        message: &Message,
        receiver: &Name,
    ) -> Result<Seq, ReplayError> {
        let receiver = Some(receiver);
        self.record(&Event::Received { message, receiver }, Some(sealed))
            .await
    }

    async fn record(
        &self,
        event: &Event<'_>,
        sealed: Option<&SealedMessage>,
    ) -> Result<Seq, ReplayError> {
        let mut entry = event.record();
        if let Some(sealed) = sealed {
            entry = with_seal(entry, &sealed.encode());
        }
        let mut batch = Batch::new();
        batch.intake();
        let entry = batch.append(entry);
        let committed = self.store.commit(batch).await?;
        Ok(committed.seq(entry).unwrap_or_default())
    }

    /// How many messages it holds.
    ///
    /// # Errors
    /// Errors of the store.
    pub async fn count(&self) -> Result<u64, ReplayError> {
        let all = super::Replay::new().dry_run();
        let report = self.runner().replay(all).await;
        Ok(report.map_err(|stopped| stopped.cause)?.messages)
    }

    /// Its entries, to be replayed or exported.
    pub fn recording(&self) -> Recording {
        self.store.clone().into()
    }

    /// A runner over it.
    pub fn runner(&self) -> ReplayRunner {
        ReplayRunner::new(self.recording()).clock(self.store.clock().clone())
    }

    /// Writes what `query` means as an archive that proves itself, signed with `key`; messages of `signers` are sealed.
    ///
    /// # Errors
    /// [`ReplayError`].
    pub async fn export<W: Write>(
        &self,
        query: &ReplayQuery,
        key: &SigningKey,
        signers: &Signers,
        out: W,
    ) -> Result<ExportSummary, ReplayError> {
        let at: Timestamp = self.store.clock().wall();
        archive::export(&self.recording(), query, (key, at), signers, out)
            .await
            .map(|exported| exported.summary)
    }

    /// A verified archive, to be replayed. It stays apart from this log: nothing of it can pass for what was recorded here.
    ///
    /// # Errors
    /// [`ReplayError::Archive`].
    pub async fn import(path: &Path, trust: ArchiveTrust) -> Result<Recording, ReplayError> {
        Ok(Recording::archive(path, trust).await?.0)
    }

    /// Everything in it, in order, as far as a plan reaches.
    ///
    /// # Errors
    /// Errors of the store.
    pub async fn messages(&self) -> Result<Vec<PlannedMessage>, ReplayError> {
        Ok(self.runner().plan(&ReplayQuery::default()).await?.messages)
    }
}
