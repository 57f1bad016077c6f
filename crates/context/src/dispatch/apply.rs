//! From a source's changes to one commit.

use std::{collections::HashMap, sync::Arc};

use volary_kernel::{Mono, Name, TraceId, clock, retry::random_unit};
use volary_store::{Batch, Expect, StoreError};

use super::{
    Shared,
    delivery::{DeliverError, Dispatch},
    mapping::Mapping,
    record::{page_key, page_value, source_key, source_value},
    waiting::Waiting,
};
use crate::{
    event::Event,
    page::{ChangeKind, Cursor, Page, PageChange, PageId},
    source::{BATCH_MAX, Notice, PageState, SourceChange, SourceItem},
    subscription::Subscription,
};

/// Conflicts in a row before a batch counts as failed. Each means that somebody else got something done.
const CONFLICTS: u32 = 100;

/// Applies what one run of a source tells.
pub(super) struct Applier<'a> {
    pub mapping: &'a Mapping,
    pub shared: &'a Shared,
    pub cursor: Cursor,
    pub caught_up: bool,
    pub waiting: Waiting,
    /// Tries in a row that brought no waiting change on its way.
    pub tries: u32,
    /// When waiting changes are tried again.
    pub retry_at: Option<Mono>,
}

/// A change and those who want to hear of it.
struct Prepared {
    source: SourceChange,
    change: Arc<PageChange>,
    wanted: Vec<Arc<Subscription>>,
}

/// The agents whose inboxes are full, and what is.
type Full = HashMap<Name, String>;

/// A batch, and which of the changes are in it.
struct Built {
    batch: Batch,
    taken: Vec<bool>,
    delivered: u64,
    refused: u64,
}

impl Applier<'_> {
    /// Applies one item.
    pub(super) async fn take(&mut self, item: SourceItem) -> Result<(), StoreError> {
        match item {
            SourceItem::Changes(changes) => self.take_changes(changes).await,
            SourceItem::States(states) => self.remember(states).await,
            SourceItem::CaughtUp { pages } => {
                self.caught_up = true;
                let mut batch = Batch::new();
                self.put_cursor(&mut batch);
                self.mapping.caught_up(pages);
                self.commit_event(
                    batch,
                    &Event::SourceCaughtUp {
                        source: self.source(),
                        pages,
                    },
                )
                .await
            }
            SourceItem::Notice(notice) => self.take_notice(notice).await,
        }
    }

    fn source(&self) -> Name {
        self.mapping.name().clone()
    }

    fn put_cursor(&self, batch: &mut Batch) {
        let value = source_value(self.cursor, self.caught_up);
        batch.put(source_key(self.mapping.name()), value, Expect::Any);
    }

    async fn take_notice(&mut self, notice: Notice) -> Result<(), StoreError> {
        let source = self.source();
        let event = match notice {
            Notice::Rescan(reason) => {
                self.mapping.metrics.rescans.inc();
                Event::SourceRescan { source, reason }
            }
            Notice::FellBack { reason, every } => Event::SourceFellBack {
                source,
                reason,
                every,
            },
            Notice::Page { path, problem } => {
                self.mapping.metrics.problem(problem.code());
                Event::PageProblem {
                    source,
                    path,
                    problem,
                }
            }
            Notice::Away(reason) => {
                self.mapping.away(&reason);
                Event::SourceAway { source, reason }
            }
            Notice::Back => {
                self.mapping.back();
                Event::SourceBack { source }
            }
        };
        tracing::warn!(source = %self.mapping.name(), event = event.kind(), what = ?event, "source reported");
        self.commit_event(Batch::new(), &event).await
    }

    /// Stores states that nobody is told of. A page whose change still waits keeps its old record: it must not look
    /// told before it is.
    async fn remember(&mut self, states: Vec<PageState>) -> Result<(), StoreError> {
        let make = |_: &Self| {
            let mut batch = Batch::new();
            for state in states
                .iter()
                .filter(|state| !self.waiting.holds(&state.path))
            {
                batch.put(
                    page_key(self.mapping.name(), &state.path),
                    page_value(state),
                    Expect::Any,
                );
            }
            batch
        };
        self.commit(make).await
    }

    async fn commit_event(&self, batch: Batch, event: &Event) -> Result<(), StoreError> {
        let mut batch = batch;
        batch.append(event.record(&self.mapping.place.tenant));
        self.shared.parts.store.commit(batch).await.map(|_| ())
    }

    /// Commits what `make` makes, again and again while the store is full.
    async fn commit(&self, make: impl Fn(&Self) -> Batch) -> Result<(), StoreError> {
        let mut tries = 0;
        loop {
            let batch = make(self);
            if batch.is_empty() {
                return Ok(());
            }
            match self.shared.parts.store.commit(batch).await {
                Err(StoreError::Full { .. }) => self.pause(&mut tries).await?,
                other => {
                    if tries > 0 {
                        self.mapping.store_has_room();
                    }
                    return other.map(|_| ());
                }
            }
        }
    }

    /// Waits a little for room in the store; `Err` once the mapping is stopped.
    async fn pause(&self, tries: &mut u32) -> Result<(), StoreError> {
        *tries = tries.saturating_add(1);
        self.mapping.store_full();
        self.mapping.beat_applying();
        clock::sleep(self.shared.config.retry.delay(*tries, random_unit())).await;
        if self.mapping.is_cancelled() {
            return Err(StoreError::Closed);
        }
        Ok(())
    }

    // --- changes -----------------------------------------------------------------------------------

    /// Applies changes; those that meet a waiting one of their page join it.
    pub(super) async fn take_changes(
        &mut self,
        changes: Vec<SourceChange>,
    ) -> Result<(), StoreError> {
        if let Some(last) = changes.last() {
            self.cursor = self.cursor.max(last.cursor);
        }
        let (joining, fresh): (Vec<_>, Vec<_>) = changes
            .into_iter()
            .partition(|change| self.waiting.holds(&change.state.path));
        joining
            .into_iter()
            .for_each(|change| self.waiting.add(change));
        self.try_changes(fresh).await
    }

    /// Tries the waiting changes again.
    pub(super) async fn retry(&mut self) -> Result<(), StoreError> {
        let before = self.waiting.len();
        let waiting = self.waiting.take();
        self.try_changes(waiting).await?;
        let progress = self.waiting.len() < before;
        self.tries = if progress {
            0
        } else {
            self.tries.saturating_add(1)
        };
        self.retry_at = None;
        self.plan_retry();
        Ok(())
    }

    fn plan_retry(&mut self) {
        if self.waiting.is_empty() {
            (self.retry_at, self.tries) = (None, 0);
        } else if self.retry_at.is_none() {
            let wait = self
                .shared
                .config
                .retry
                .delay(self.tries.saturating_add(1), random_unit());
            self.retry_at = Some(self.now() + wait);
        }
    }

    async fn try_changes(&mut self, changes: Vec<SourceChange>) -> Result<(), StoreError> {
        let was_waiting = self.mapping.is_blocked();
        let mut full = Full::new();
        let mut changes = changes.into_iter().peekable();
        while changes.peek().is_some() {
            let chunk: Vec<_> = changes
                .by_ref()
                .take(BATCH_MAX)
                .map(|change| self.prepare(change))
                .collect();
            self.commit_changes(chunk, &mut full).await?;
        }
        self.mapping
            .metrics
            .waiting
            .set(i64::try_from(self.waiting.len()).unwrap_or(i64::MAX));
        let full = full.into_iter().next();
        self.plan_retry();
        self.show_waiting(was_waiting, full).await
    }

    fn now(&self) -> Mono {
        self.shared.parts.store.clock().mono()
    }

    /// How long until waiting changes are tried again; `None` if there are none.
    pub(super) fn retry_in(&self) -> Option<std::time::Duration> {
        self.retry_at.map(|at| at - self.now())
    }

    async fn show_waiting(
        &self,
        was: bool,
        full: Option<(Name, String)>,
    ) -> Result<(), StoreError> {
        let event = match full {
            Some((agent, reason)) if !self.waiting.is_empty() => {
                self.mapping.blocked(
                    self.waiting.len() >= self.shared.config.max_waiting,
                    &agent,
                    &reason,
                );
                if was {
                    return Ok(());
                }
                Event::DispatchBlocked {
                    source: self.source(),
                    agent,
                    reason,
                }
            }
            _ if was && self.waiting.is_empty() => {
                self.mapping.unblocked();
                Event::DispatchUnblocked {
                    source: self.source(),
                }
            }
            _ => return Ok(()),
        };
        self.commit_event(Batch::new(), &event).await
    }

    fn prepare(&self, source: SourceChange) -> Prepared {
        let Mapping { place, .. } = self.mapping;
        let name = self.mapping.name();
        let id = PageId::new(name, &source.state.path);
        let kind = source.kind.name();
        let change = PageChange {
            id: PageChange::event_id(&place.scope, source.cursor, &id, kind),
            cursor: source.cursor,
            kind: source.kind.clone(),
            page: Page {
                id,
                source: name.clone(),
                scope: place.scope.clone(),
                tenant: place.tenant.clone(),
                data_type: source.state.data_type.clone(),
                version: source.state.version,
                content_hash: source.state.content_hash,
                metadata: source.state.metadata.clone(),
                links: source.state.links.clone(),
            },
            previous: source.previous,
            cause: None,
            trace: TraceId::generate(),
            occurred_at: self.shared.parts.store.clock().wall(),
            extra: source.extra.clone(),
        };
        let wanted = self.shared.index.read().matching(&change.page, kind);
        Prepared {
            source,
            change: Arc::new(change),
            wanted,
        }
    }

    /// Commits as many of the changes as the inboxes take; the others wait.
    async fn commit_changes(
        &mut self,
        changes: Vec<Prepared>,
        full: &mut Full,
    ) -> Result<(), StoreError> {
        let (mut tries, mut conflicts) = (0, 0);
        let built = loop {
            let mut built = self.build(&changes, full);
            if !built.taken.contains(&true) {
                break built;
            }
            let batch = std::mem::take(&mut built.batch);
            match self.shared.parts.store.commit(batch).await {
                Ok(_) => {
                    if tries > 0 {
                        self.mapping.store_has_room();
                    }
                    break built;
                }
                Err(StoreError::Full { .. }) => self.pause(&mut tries).await?,
                // A delivery was settled just when a change was to take its place.
                Err(StoreError::Conflict { .. }) if conflicts < CONFLICTS => conflicts += 1,
                Err(error) => return Err(error),
            }
        };
        self.mapping.metrics.dispatched.inc_by(built.delivered);
        self.mapping.metrics.refused.inc_by(built.refused);
        for (prepared, taken) in changes.into_iter().zip(built.taken) {
            if taken {
                self.mapping
                    .changed(prepared.source.kind.name(), prepared.source.settled_for);
            } else {
                self.waiting.add(prepared.source);
            }
        }
        Ok(())
    }

    /// Makes the batch. A change is in it with all of its deliveries or not at all; an inbox that turns out to be full
    /// gets nothing more until the next try.
    fn build(&self, changes: &[Prepared], full: &mut Full) -> Built {
        let mut built = Built {
            batch: Batch::new(),
            taken: Vec::with_capacity(changes.len()),
            delivered: 0,
            refused: 0,
        };
        built.batch.intake();
        for prepared in changes {
            let mut fits = !prepared
                .wanted
                .iter()
                .any(|held| full.contains_key(&held.agent));
            if fits {
                let before = (built.batch.savepoint(), built.delivered, built.refused);
                if let Err((agent, reason)) = self.add_change(&mut built, prepared) {
                    built.batch.roll_back(before.0);
                    (built.delivered, built.refused) = (before.1, before.2);
                    full.insert(agent, reason);
                    fits = false;
                }
            }
            built.taken.push(fits);
        }
        self.put_cursor(&mut built.batch);
        built
    }

    /// Adds one change, its record and its deliveries. `Err` names an inbox that is full.
    fn add_change(&self, built: &mut Built, prepared: &Prepared) -> Result<(), (Name, String)> {
        let tenant = &self.mapping.place.tenant;
        let Prepared {
            source,
            change,
            wanted,
        } = prepared;
        let batch = &mut built.batch;
        let cause = batch.append(Event::PageChanged(change.clone()).record(tenant));
        let key = page_key(self.mapping.name(), &source.state.path);
        match source.kind {
            ChangeKind::Invalidated { .. } => batch.delete(key, Expect::Any),
            _ => batch.put(key, page_value(&source.state), Expect::Any),
        };
        for held in wanted {
            let dispatch = Dispatch {
                subscription: held.clone(),
                change: change.clone(),
                cause,
            };
            let (subscription, agent, change) =
                (held.id.clone(), held.agent.clone(), change.clone());
            let event = match (self.shared.parts.deliver)(batch, &dispatch) {
                Ok(item) => {
                    built.delivered += 1;
                    Event::DispatchEnqueued {
                        subscription,
                        agent,
                        change,
                        item,
                    }
                }
                Err(DeliverError::Full(reason)) => return Err((agent, reason)),
                Err(DeliverError::Refused(reason)) => {
                    built.refused += 1;
                    Event::DispatchRefused {
                        subscription,
                        agent,
                        change,
                        reason,
                    }
                }
            };
            batch.append(event.record(tenant).cause(cause));
        }
        Ok(())
    }
}
