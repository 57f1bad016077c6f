//! Reading all queues at open.

use std::{collections::HashMap, sync::Arc, time::Duration};

use super::{
    QueueError, Shared,
    format::{self, Header, StateRecord},
    index::{Index, Meta, State},
    types::ItemId,
};
use crate::{
    key::Record,
    store::{SharedStore, Store},
};

/// Records fetched at once.
const PAGE: usize = 512;

/// An item as the store has it.
pub(super) struct Loaded {
    pub id: ItemId,
    pub header: Header,
    pub bytes: u64,
    pub state: Option<(u64, StateRecord)>,
}

impl Loaded {
    /// Puts it into its queue's index. A claim of an earlier life of the process has lapsed.
    pub(super) fn enter(self, index: &mut Index, shared: &Shared) {
        let now = shared.clock.mono();
        let Self {
            id,
            header,
            bytes,
            state,
        } = self;
        let mut meta = meta_of(&header, bytes, shared);
        let mut start = Index::waiting(header.not_before.map(|at| shared.mono_of(at)), now);
        if let Some((version, state)) = state {
            (meta.version, meta.attempts) = (Some(version), state.attempts);
            meta.cause = meta.cause.or(state.cause);
            start = match state.owner {
                Some(_) => State::Claimed(now),
                None => Index::waiting(state.not_before.map(|at| shared.mono_of(at)), now),
            };
        }
        index.insert(id, meta, start);
        let _claims_of_an_earlier_life = index.advance(now);
    }
}

/// What the index needs to know of an item that was never claimed.
pub(super) fn meta_of(header: &Header, bytes: u64, shared: &Shared) -> Meta {
    Meta {
        tenant: header.tenant.clone(),
        priority: header.priority,
        bytes,
        coalesce: header.coalesce.clone(),
        base: header.base.clone(),
        deadline: header.deadline.map(|at| shared.mono_of(at)),
        attempts: 0,
        version: None,
        cause: header.cause,
        number: header.number,
        lane: header.lane.clone(),
        max_attempts: header.max_attempts,
        visibility: header.visibility_ms.map(Duration::from_millis),
    }
}

type Waiting = HashMap<Arc<str>, Vec<Loaded>>;

pub(super) async fn scan(
    store: &SharedStore,
) -> Result<(Waiting, HashMap<Arc<str>, usize>), QueueError> {
    let mut states = HashMap::new();
    each(store.as_ref(), format::STATES, |record| {
        let state = format::state_of(&record.key, &record.value)?;
        states.insert(format::id_of(&record.key)?, (record.version, state));
        Ok(())
    })
    .await?;
    let mut waiting: Waiting = HashMap::new();
    each(store.as_ref(), format::ITEMS, |record| {
        let id = format::id_of(&record.key)?;
        let (header, payload) = format::decode(&record.key, &record.value)?;
        let loaded = Loaded {
            id,
            bytes: payload.len() as u64,
            state: states.remove(&id),
            header,
        };
        waiting
            .entry(loaded.header.queue.clone())
            .or_default()
            .push(loaded);
        Ok(())
    })
    .await?;
    let mut parked: HashMap<Arc<str>, usize> = HashMap::new();
    each(store.as_ref(), format::PARKED, |record| {
        let (header, _) = format::decode(&record.key, &record.value)?;
        *parked.entry(header.queue).or_default() += 1;
        Ok(())
    })
    .await?;
    Ok((waiting, parked))
}

async fn each(
    store: &dyn Store,
    prefix: &str,
    mut take: impl FnMut(Record) -> Result<(), QueueError> + Send,
) -> Result<(), QueueError> {
    let mut after = None;
    loop {
        let page = store.scan(prefix, after.as_ref(), PAGE).await?;
        let full = page.len() == PAGE;
        after = page.last().map(|record| record.key.clone());
        page.into_iter().try_for_each(&mut take)?;
        if !full {
            return Ok(());
        }
    }
}
