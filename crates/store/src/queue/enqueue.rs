//! Putting items in: a reservation in memory that becomes real when the caller's batch commits.

use std::sync::Arc;

use super::{
    Enqueued, Inner, ItemId, LANE_MAX, NewItem, QUEUE_NAME_MAX, Queue, QueueError, QueueFull,
    format::{self, Header},
    index::{Index, Meta, Over, State},
    load::meta_of,
};
use crate::{
    batch::{Batch, Committed, Expect},
    entry::{Cause, Seq},
};
use volary_kernel::{Uid, clock::Timestamp};

impl Queue {
    /// Adds an item to `tx`; it waits from the moment the batch commits. A bound is checked now, and the room is given
    /// back if the batch is not committed.
    ///
    /// With a coalescing key, an item of the same tenant and key that nobody has claimed is replaced: it keeps its id
    /// and position, its attempts begin anew. One that somebody has claimed, or whose batch is open, is settled first: the
    /// new item waits behind it, so that of one key the newest always comes last. A replaced item is not handed out while the batch is open, so commit it soon. The commit
    /// ends in a conflict if the item was settled in the meantime after all; then make the batch anew.
    ///
    /// # Errors
    /// [`QueueError::Full`], [`QueueError::Invalid`].
    pub fn enqueue(&self, tx: &mut Batch, item: NewItem) -> Result<Enqueued, QueueError> {
        let shared = &self.inner.shared;
        for (what, text) in [("coalescing key", &item.coalesce), ("base", &item.base)] {
            if let Some(text) = text
                && text.len() > QUEUE_NAME_MAX
            {
                let found = text.len();
                return Err(QueueError::Invalid(format!(
                    "{what} has {found} bytes, limit {QUEUE_NAME_MAX}"
                )));
            }
        }
        if self.inner.numbered && item.coalesce.is_some() {
            return Err(QueueError::Invalid(format!(
                "items of the numbered queue `{}` are not coalesced",
                self.inner.name
            )));
        }
        check_own(&item)?;
        let bytes = item.payload.len() as u64;
        let mut header = Header {
            queue: self.inner.name.clone(),
            tenant: item.tenant,
            trace: item.trace,
            cause: if let Cause::Seq(seq) = item.cause {
                Some(seq)
            } else {
                None
            },
            priority: item.priority,
            coalesce: item.coalesce.map(Arc::from),
            base: item.base.map(Arc::from),
            deadline: item.deadline,
            not_before: item.not_before,
            at: shared.clock.wall(),
            from: shared.head.borrow().next(),
            number: None,
            parked: None,
            lane: item.lane.map(Arc::from),
            max_attempts: item.max_attempts,
            visibility_ms: item
                .visibility
                .map(|visibility| u64::try_from(visibility.as_millis()).unwrap_or(u64::MAX)),
        };
        let meta = meta_of(&header, bytes, shared);
        let (place, base) = self.reserve(tx.token(), meta)?;
        header.base = base;
        let id = place.id();
        if self.inner.numbered {
            header.number = self.inner.index.lock().number_of(id);
        }
        match format::encode(&header, &item.payload) {
            Ok(value) => tx.put(format::item_key(id), value, Expect::Any),
            Err(error) => {
                place.end(&self.inner, None, item.cause, None);
                return Err(error.into());
            }
        };
        if let Place::Replace {
            version: Some(version),
            ..
        } = &place
        {
            // A claim that has lapsed may still be settled by a batch that is on its way.
            tx.delete(format::state_key(id), Expect::Version(*version));
        }
        let coalesced = !matches!(place, Place::New(_));
        let (inner, cause) = (self.inner.clone(), item.cause);
        tx.on_end(move |committed| place.end(&inner, committed, cause, item.not_before));
        Ok(Enqueued { id, coalesced })
    }

    /// The item's place, and the base that it has there.
    fn reserve(&self, token: u64, mut meta: Meta) -> Result<(Place, Option<Arc<str>>), QueueError> {
        let config = &self.inner.config;
        if self.inner.shared.parked_in(&self.inner.name) >= config.max_parked {
            return Err(self.full(QueueFull::Parked, config.max_parked as u64));
        }
        let over = |over| match over {
            Over::Items => self.full(QueueFull::Items, config.max_items as u64),
            Over::Bytes => self.full(QueueFull::Bytes, config.max_bytes),
        };
        let mut index = self.inner.index.lock();
        let old = meta
            .coalesce
            .as_ref()
            .and_then(|key| index.replaceable(&meta.tenant, key, token));
        let Some((id, state)) = old else {
            index.room(1, meta.bytes).map_err(over)?;
            let id = ItemId(Uid::generate());
            let base = meta.base.clone();
            meta.number = self.inner.numbered.then(|| index.number());
            index.insert(id, meta, State::Pending(token));
            return Ok((Place::New(id), base));
        };
        let old = index
            .get(id)
            .map(|(old, _)| (old.bytes, old.version, old.base.clone()));
        let (old_bytes, version, base) = old.unwrap_or_default();
        meta.base = base.clone();
        let extra = meta.bytes.saturating_sub(old_bytes);
        index.room(0, extra).map_err(over)?;
        if matches!(state, State::Pending(_)) {
            index.unhold(id, 0, Some((meta, state)));
            return Ok((Place::Same(id), base));
        }
        index.hold(id, extra);
        let meta = Box::new(meta);
        let place = Place::Replace {
            id,
            extra,
            meta,
            version,
        };
        Ok((place, base))
    }

    fn full(&self, what: QueueFull, limit: u64) -> QueueError {
        QueueError::Full {
            queue: self.inner.name.clone(),
            what,
            limit,
        }
    }
}

/// What an item says in place of its queue.
fn check_own(item: &NewItem) -> Result<(), QueueError> {
    let found = item.lane.as_ref().map_or(0, String::len);
    if found > LANE_MAX {
        return Err(QueueError::Invalid(format!(
            "lane has {found} bytes, limit {LANE_MAX}"
        )));
    }
    if item.max_attempts == Some(0) {
        return Err(QueueError::Invalid(
            "an item needs at least 1 attempt".into(),
        ));
    }
    Ok(())
}

/// Where a new item goes.
enum Place {
    /// To the end.
    New(ItemId),
    /// In place of one that this batch has put in.
    Same(ItemId),
    /// In place of one that waits, and is held back meanwhile.
    Replace {
        id: ItemId,
        extra: u64,
        meta: Box<Meta>,
        /// Of its state record.
        version: Option<u64>,
    },
}

impl Place {
    const fn id(&self) -> ItemId {
        match self {
            Self::New(id) | Self::Same(id) | Self::Replace { id, .. } => *id,
        }
    }

    /// Makes the reservation real, or undoes it.
    fn end(
        self,
        inner: &Inner,
        committed: Option<&Committed>,
        cause: Cause,
        not_before: Option<Timestamp>,
    ) {
        let shared = &inner.shared;
        let id = self.id();
        let now = shared.clock.mono();
        let start = Index::waiting(not_before.map(|at| shared.mono_of(at)), now);
        let mut index = inner.index.lock();
        match (self, committed) {
            (Self::New(_), None) => {
                drop(index);
                inner.finish(
                    id,
                    super::Outcome::Dropped("its batch was not committed".into()),
                );
                return;
            }
            (Self::New(_) | Self::Same(_), Some(_)) => index.set(id, start),
            (Self::Same(_), None) => return,
            (Self::Replace { extra, .. }, None) => index.unhold(id, extra, None),
            (Self::Replace { extra, meta, .. }, Some(_)) => {
                index.unhold(id, extra, Some((*meta, start)))
            }
        }
        if let Some(committed) = committed {
            index.caused(id, resolve(cause, committed));
        }
        let next = index.next_timer();
        drop(index);
        inner.news.fresh();
        if let Some(next) = next {
            shared.wake_at(next);
        }
    }
}

fn resolve(cause: Cause, committed: &Committed) -> Option<Seq> {
    match cause {
        Cause::None => None,
        Cause::Seq(seq) => Some(seq),
        Cause::Entry(entry) => committed.seq(entry),
    }
}
