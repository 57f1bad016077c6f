//! Items set aside for a person: one list over all queues.

use std::sync::Arc;

use bytes::Bytes;
use volary_kernel::{
    clock::Timestamp,
    id::{Name, Tenant, TraceId, Uid},
};

use super::{
    DEFAULT_SUBJECT, Deed, Follow, Happening, ItemId, NewItem, Outcome, QUEUE_NAME_MAX, Queue,
    QueueError, Queues,
    format::{self, Header, ParkedInfo},
    index::State,
    load::{Loaded, meta_of},
    loan, settle,
};
use crate::{
    batch::{Batch, Expect},
    entry::{Cause, Seq},
    error::StoreError,
    key::Record,
};

/// An item that waits for a person.
#[derive(Debug, Clone)]
pub struct ParkedItem {
    /// The item.
    pub id: ItemId,
    /// Its queue.
    pub queue: Arc<str>,
    /// Whose it is.
    pub tenant: Tenant,
    /// The request it belongs to.
    pub trace: Option<TraceId>,
    /// The journal entry that brought it about.
    pub cause: Option<Seq>,
    /// When it was enqueued.
    pub enqueued_at: Timestamp,
    /// When it was parked.
    pub parked_at: Timestamp,
    /// How often it was tried.
    pub attempts: u32,
    /// Why it was parked.
    pub reason: String,
    /// What it is.
    pub payload: Bytes,
}

fn item_of(record: &Record) -> Result<(ParkedItem, Header), QueueError> {
    let (header, payload) = format::decode(&record.key, &record.value)?;
    let Some(parked) = header.parked.clone() else {
        return Err(StoreError::corrupt(
            format!("record `{}` does not say why it is parked", record.key),
            None,
        )
        .into());
    };
    let item = ParkedItem {
        id: format::id_of(&record.key)?,
        queue: header.queue.clone(),
        tenant: header.tenant.clone(),
        trace: header.trace,
        cause: header.cause,
        enqueued_at: header.at,
        parked_at: parked.at,
        attempts: parked.attempts,
        reason: parked.reason,
        payload,
    };
    Ok((item, header))
}

impl Queues {
    /// Up to `limit` parked items of all queues, oldest first, after `after` if given.
    ///
    /// # Errors
    /// Errors of reading.
    pub async fn parked(
        &self,
        after: Option<ItemId>,
        limit: usize,
    ) -> Result<Vec<ParkedItem>, QueueError> {
        let after = after.map(format::parked_key);
        let records = self
            .shared
            .store
            .scan(format::PARKED, after.as_ref(), limit)
            .await?;
        records
            .iter()
            .map(|record| item_of(record).map(|(item, _)| item))
            .collect()
    }

    /// One parked item.
    ///
    /// # Errors
    /// [`QueueError::UnknownItem`] if it is not parked; errors of reading.
    pub async fn parked_item(&self, id: ItemId) -> Result<ParkedItem, QueueError> {
        Ok(item_of(&self.parked_record(id).await?)?.0)
    }

    async fn parked_record(&self, id: ItemId) -> Result<Record, QueueError> {
        let record = self.shared.store.get(&format::parked_key(id)).await?;
        record.ok_or(QueueError::UnknownItem(id))
    }

    /// Adds to `tx` an item that is parked from the start: work that was begun elsewhere and that only a person can settle. A
    /// retry puts it into `queue`. Bounds do not hold it back: what it stands for was accepted already.
    ///
    /// # Errors
    /// [`QueueError::Invalid`] for the name of a queue that is empty or too long; [`StoreError::Invalid`].
    pub fn park_new(
        &self,
        tx: &mut Batch,
        queue: &str,
        item: NewItem,
        reason: &str,
    ) -> Result<ItemId, QueueError> {
        if queue.is_empty() || queue.len() > QUEUE_NAME_MAX {
            let found = queue.len();
            return Err(QueueError::Invalid(format!(
                "queue name must have 1 to {QUEUE_NAME_MAX} bytes, found {found}"
            )));
        }
        let (id, now) = (ItemId(Uid::generate()), self.shared.clock.wall());
        let reason = settle::clip(reason);
        let header = Header {
            queue: queue.into(),
            tenant: item.tenant,
            trace: item.trace,
            cause: match item.cause {
                Cause::Seq(seq) => Some(seq),
                Cause::None | Cause::Entry(_) => None,
            },
            priority: item.priority,
            coalesce: None,
            base: None,
            deadline: None,
            not_before: None,
            at: now,
            from: Seq(0),
            number: None,
            parked: Some(ParkedInfo {
                at: now,
                attempts: 1,
                reason: reason.clone(),
            }),
            lane: item.lane.map(Arc::from),
            max_attempts: item.max_attempts,
            visibility_ms: None,
        };
        let value = format::encode(&header, &item.payload)?;
        tx.put(format::parked_key(id), value, Expect::Absent);
        let subject = self.subject_of(&header);
        let told = (Some(1), Some(reason.as_str()));
        tx.append(settle::entry(subject, "parked", id, &header, told)?);
        let shared = self.shared.clone();
        tx.on_commit(move |_| {
            shared.count_parked(&header.queue, true);
            shared.outcomes.settle(id, Outcome::Parked(reason));
        });
        Ok(id)
    }

    /// How many items are parked.
    pub fn parked_count(&self) -> usize {
        self.shared.parked.lock().values().sum()
    }

    /// Puts a parked item back into its queue, with all its attempts and without its old deadline. Bounds do not hold
    /// it back: it was accepted already.
    ///
    /// # Errors
    /// [`QueueError::UnknownItem`] if it is not parked; errors of the store.
    pub async fn retry_parked(&self, id: ItemId) -> Result<(), QueueError> {
        let record = self.parked_record(id).await?;
        let (item, mut header) = item_of(&record)?;
        header.parked = None;
        header.deadline = None;
        // What came after it was handed out already: nothing new may meet it.
        header.coalesce = None;
        header.from = self.shared.head.borrow().next();
        let number = self.renumber(&header.queue);
        header.number = number.as_ref().map(loan::Number::get);
        let mut tx = self.leave(&record, id)?;
        tx.put(
            format::item_key(id),
            format::encode(&header, &item.payload)?,
            Expect::Absent,
        );
        match self.follow_of(&header) {
            Some(follow) => {
                let happening = Happening::new(id, &header, &item.payload, Deed::Retried);
                follow.tell(&mut tx, &happening)?;
            }
            None => drop(tx.append(settle::entry(
                self.subject_of(&header),
                "retried",
                id,
                &header,
                (Some(item.attempts), None),
            )?)),
        }
        let (queues, bytes) = (self.clone(), item.payload.len() as u64);
        tx.on_commit(move |_| {
            queues.re_enter(id, header, bytes);
            if let Some(number) = number {
                number.keep();
            }
        });
        self.commit_leave(tx, id).await
    }

    /// Removes a parked item for good.
    ///
    /// # Errors
    /// [`QueueError::UnknownItem`] if it is not parked; errors of the store.
    pub async fn drop_parked(&self, id: ItemId, reason: &str) -> Result<(), QueueError> {
        let record = self.parked_record(id).await?;
        let (item, header) = item_of(&record)?;
        let mut tx = self.leave(&record, id)?;
        let attempts = item.attempts;
        match self.follow_of(&header) {
            Some(follow) => {
                let deed = Deed::Dropped { attempts, reason };
                follow.tell(&mut tx, &Happening::new(id, &header, &item.payload, deed))?;
            }
            None => drop(tx.append(settle::entry(
                self.subject_of(&header),
                "dropped",
                id,
                &header,
                (Some(attempts), Some(reason)),
            )?)),
        }
        let (shared, reason) = (self.shared.clone(), reason.to_owned());
        tx.on_commit(move |_| shared.outcomes.settle(id, Outcome::Dropped(reason)));
        self.commit_leave(tx, id).await
    }

    /// A number for an item that comes back to a numbered queue.
    fn renumber(&self, queue: &str) -> Option<loan::Number> {
        let queue = self.shelf.lock().open.get(queue).cloned()?;
        queue.inner.numbered.then(|| loan::Number::of(&queue))
    }

    /// Who is told of an item, if its queue is open and says so.
    fn follow_of(&self, header: &Header) -> Option<Follow> {
        let shelf = self.shelf.lock();
        shelf.open.get(&header.queue)?.config().follow.clone()
    }

    /// What journal entries about an item name: as its queue says, if that is open.
    fn subject_of(&self, header: &Header) -> (&'static str, Option<Name>) {
        let shelf = self.shelf.lock();
        let config = shelf.open.get(&header.queue).map(Queue::config);
        config.map_or((DEFAULT_SUBJECT, None), |config| {
            (config.subject, config.agent.clone())
        })
    }

    /// A batch that takes an item out of the parked ones.
    fn leave(&self, record: &Record, id: ItemId) -> Result<Batch, QueueError> {
        let (header, _) = format::decode(&record.key, &record.value)?;
        let mut tx = Batch::new();
        tx.delete(record.key.clone(), Expect::Version(record.version));
        let shared = self.shared.clone();
        tx.on_commit(move |_| {
            shared.count_parked(&header.queue, false);
            shared.outcomes.forget(id);
        });
        Ok(tx)
    }

    async fn commit_leave(&self, tx: Batch, id: ItemId) -> Result<(), QueueError> {
        match self.shared.store.commit(tx).await {
            Ok(_) => Ok(()),
            // Somebody else was faster.
            Err(StoreError::Conflict { .. }) => Err(QueueError::UnknownItem(id)),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes a retried item wait in memory too.
    fn re_enter(&self, id: ItemId, header: Header, bytes: u64) {
        let mut shelf = self.shelf.lock();
        let Some(queue) = shelf.open.get(&header.queue) else {
            let loaded = Loaded {
                id,
                bytes,
                state: None,
                header,
            };
            shelf
                .waiting
                .entry(loaded.header.queue.clone())
                .or_default()
                .push(loaded);
            return;
        };
        let meta = meta_of(&header, bytes, &self.shared);
        queue.inner.index.lock().insert(id, meta, State::Ready);
        queue.inner.news.fresh();
    }
}
