//! What waits in a queue and whose turn it is. Pure: time is a parameter, nothing here does I/O.
//!
//! ```text
//!            enqueue                 claim                      ack, fail
//!   Pending ───────▶ Ready ──────────────▶ Claiming ─▶ Claimed ─────────▶ (gone)
//!      │ abort        ▲ ▲ ◀── not committed ──┘          │  │ park
//!      ▼              │ └───── lapse (attempts left) ────┘  ▼
//!    (gone)           └── Delayed ◀── nack ──────────────── (gone)
//!                            │ deadline passed, attempts used up
//!   Ready, Delayed ──────────┴──▶ Doomed ── swept into the store ──▶ (gone)
//! ```

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    ops::Bound,
    sync::Arc,
    time::Duration,
};

use volary_kernel::{Mono, Tenant};

use super::{number::Numbers, types::ItemId};
use crate::entry::Seq;

/// Where an item stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Part of a batch that is not committed yet (the batch's token).
    Pending(u64),
    /// May be claimed.
    Ready,
    /// May be claimed from this time on.
    Delayed(Mono),
    /// Picked; its claim is being committed.
    Claiming,
    /// Handed out until this time.
    Claimed(Mono),
    /// Must leave the queue; the sweeper will commit that.
    Doomed(Doom),
}

/// Why an item must leave the queue without anybody having settled it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doom {
    /// Its deadline passed.
    Deadline,
    /// Its last attempt ended without an answer.
    Exhausted,
}

/// What the index knows of an item.
#[derive(Debug, Clone)]
pub(super) struct Meta {
    pub tenant: Tenant,
    pub priority: i16,
    pub bytes: u64,
    pub coalesce: Option<Arc<str>>,
    /// Kept from the first of the items that were coalesced.
    pub base: Option<Arc<str>>,
    pub deadline: Option<Mono>,
    pub attempts: u32,
    /// Version of the item's state record; `None` if there is none.
    pub version: Option<u64>,
    /// The journal entry that brought it about.
    pub cause: Option<Seq>,
    /// Its place in a numbered queue.
    pub number: Option<u64>,
    /// What it is claimed and listed by, beside its turn.
    pub lane: Option<Arc<str>>,
    /// In place of the queue's.
    pub max_attempts: Option<u32>,
    /// In place of the queue's.
    pub visibility: Option<Duration>,
}

#[derive(Debug)]
struct Item {
    meta: Meta,
    state: State,
    /// Replacements of its payload that are being committed; not claimable meanwhile.
    holds: u32,
    /// The item of the same coalescing key that came before it; not claimable until that one has left.
    ahead: Option<ItemId>,
}

/// Bounds of an index.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub items: usize,
    pub bytes: u64,
    pub attempts: u32,
}

/// A bound that would be passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Over {
    Items,
    Bytes,
}

/// An item picked for a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Picked {
    pub id: ItemId,
    pub version: Option<u64>,
    pub attempt: u32,
}

/// How many items are in which state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub pending: usize,
    pub ready: usize,
    pub delayed: usize,
    pub claimed: usize,
    pub doomed: usize,
}

/// Where an item stands among those that are ready: the highest priority first, then the oldest.
pub(super) type Rank = (Reverse<i16>, ItemId);
type Ready = BTreeSet<Rank>;

/// What happened when time passed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Passed {
    /// Something became ready.
    pub freed: bool,
    /// Claims that ended without an answer, of items that may be tried again, and which attempt it was.
    pub lapsed: Vec<(ItemId, u32)>,
}

/// All items of one queue.
#[derive(Debug)]
pub(super) struct Index {
    bounds: Bounds,
    items: HashMap<ItemId, Item>,
    bytes: u64,
    ready: HashMap<Tenant, Ready>,
    /// What is ready, by lane; none of them is empty.
    lanes: HashMap<Arc<str>, Ready>,
    /// Items with a lane that are there and not ready.
    held: BTreeSet<ItemId>,
    /// Tenants that have something ready, the next one first.
    turns: VecDeque<Tenant>,
    timers: BTreeSet<(Mono, ItemId)>,
    doomed: BTreeSet<ItemId>,
    /// The newest item of each key.
    coalesce: HashMap<(Tenant, Arc<str>), ItemId>,
    /// The item that waits for this one to leave.
    behind: HashMap<ItemId, ItemId>,
    numbers: Numbers,
    counts: Counts,
}

impl Index {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            items: HashMap::new(),
            bytes: 0,
            ready: HashMap::new(),
            lanes: HashMap::new(),
            held: BTreeSet::new(),
            turns: VecDeque::new(),
            timers: BTreeSet::new(),
            doomed: BTreeSet::new(),
            coalesce: HashMap::new(),
            behind: HashMap::new(),
            numbers: Numbers::default(),
            counts: Counts::default(),
        }
    }

    // --- Enqueue ---------------------------------------------------------------------------

    /// Whether `items` more items with `bytes` more bytes fit.
    pub(super) fn room(&self, items: usize, bytes: u64) -> Result<(), Over> {
        if self.items.len() + items > self.bounds.items {
            return Err(Over::Items);
        }
        if self.bytes.saturating_add(bytes) > self.bounds.bytes {
            Err(Over::Bytes)
        } else {
            Ok(())
        }
    }

    /// Takes an item in, in `state`, whether it fits or not.
    pub(super) fn insert(&mut self, id: ItemId, mut meta: Meta, state: State) {
        self.bytes += meta.bytes;
        meta.number = meta.number.map(|number| self.numbers.hold(number));
        let key = meta.coalesce.clone().map(|key| (meta.tenant.clone(), key));
        let ahead = key.and_then(|key| self.coalesce.insert(key, id));
        if let Some(ahead) = ahead {
            self.behind.insert(ahead, id);
        }
        if let Some(deadline) = meta.deadline {
            self.timers.insert((deadline, id));
        }
        self.items.insert(
            id,
            Item {
                meta,
                state,
                holds: 0,
                ahead,
            },
        );
        self.enter(id);
    }

    /// The waiting item that a new one of this key would replace, if there is one: one that nobody has claimed, or
    /// one of the same uncommitted batch.
    pub(super) fn replaceable(
        &self,
        tenant: &Tenant,
        key: &Arc<str>,
        token: u64,
    ) -> Option<(ItemId, State)> {
        let id = *self.coalesce.get(&(tenant.clone(), key.clone()))?;
        let state = self.items.get(&id)?.state;
        let fits = match state {
            State::Ready | State::Delayed(_) => true,
            State::Pending(other) => other == token,
            State::Claiming | State::Claimed(_) | State::Doomed(_) => false,
        };
        fits.then_some((id, state))
    }

    /// Keeps an item from being claimed while its payload is being replaced, and reserves `extra` bytes for that.
    pub(super) fn hold(&mut self, id: ItemId, extra: u64) {
        self.leave(id);
        if let Some(item) = self.items.get_mut(&id) {
            item.holds += 1;
            self.bytes += extra;
        }
        self.enter(id);
    }

    /// Ends a hold; with `meta` and `state` if the replacement was committed.
    pub(super) fn unhold(&mut self, id: ItemId, extra: u64, replaced: Option<(Meta, State)>) {
        self.leave(id);
        if let Some(item) = self.items.get_mut(&id) {
            item.holds = item.holds.saturating_sub(1);
            self.bytes = self.bytes.saturating_sub(extra);
            if let Some((meta, state)) = replaced {
                self.bytes = self.bytes.saturating_sub(item.meta.bytes) + meta.bytes;
                if let Some(old) = item.meta.deadline {
                    self.timers.remove(&(old, id));
                }
                self.timers
                    .extend(meta.deadline.map(|deadline| (deadline, id)));
                (item.meta, item.state) = (meta, state);
            }
        }
        self.enter(id);
    }

    // --- Moves -----------------------------------------------------------------------------

    /// Moves an item to `state`; nothing if it is gone.
    pub(super) fn set(&mut self, id: ItemId, state: State) {
        self.leave(id);
        if let Some(item) = self.items.get_mut(&id) {
            item.state = state;
        }
        self.enter(id);
    }

    /// Notes that its state record is now at `version`, after `attempts` attempts.
    pub(super) fn wrote(&mut self, id: ItemId, version: u64, attempts: u32) {
        if let Some(item) = self.items.get_mut(&id) {
            (item.meta.version, item.meta.attempts) = (Some(version), attempts);
        }
    }

    /// Notes that its state record is gone.
    pub(super) fn unwrote(&mut self, id: ItemId) {
        if let Some(item) = self.items.get_mut(&id) {
            (item.meta.version, item.meta.attempts) = (None, 0);
        }
    }

    /// Notes the journal entry that brought an item about.
    pub(super) fn caused(&mut self, id: ItemId, cause: Option<Seq>) {
        if let Some(item) = self.items.get_mut(&id) {
            item.meta.cause = cause;
        }
    }

    /// Takes an item out; whether another waited for that.
    pub(super) fn remove(&mut self, id: ItemId) -> bool {
        self.leave(id);
        let Some(item) = self.items.remove(&id) else {
            return false;
        };
        self.bytes = self.bytes.saturating_sub(item.meta.bytes);
        if let Some(number) = item.meta.number {
            self.numbers.release(number);
        }
        if let Some(deadline) = item.meta.deadline {
            self.timers.remove(&(deadline, id));
        }
        let next = self.behind.remove(&id);
        match (item.ahead, next) {
            (Some(ahead), Some(next)) => drop(self.behind.insert(ahead, next)),
            (Some(ahead), None) => drop(self.behind.remove(&ahead)),
            (None, _) => {}
        }
        if let Some(next) = next {
            self.leave(next);
            if let Some(next) = self.items.get_mut(&next) {
                next.ahead = item.ahead;
            }
            self.enter(next);
        } else if let Some(key) = item.meta.coalesce {
            let key = (item.meta.tenant, key);
            match item.ahead {
                Some(ahead) => drop(self.coalesce.insert(key, ahead)),
                None => drop(self.coalesce.remove(&key)),
            }
        }
        next.is_some()
    }

    /// Picks up to `max` items, tenants in turn, then the highest priority, then the oldest.
    pub(super) fn pick(&mut self, max: usize) -> Vec<Picked> {
        let mut picked = Vec::new();
        while picked.len() < max {
            let Some(tenant) = self.turns.front() else {
                break;
            };
            let next = self.ready.get(tenant).and_then(|ready| ready.first());
            let Some((_, id)) = next.copied() else {
                if let Some(idle) = self.turns.pop_front() {
                    self.ready.remove(&idle);
                }
                continue;
            };
            self.turns.rotate_left(1);
            picked.extend(self.take(id));
        }
        picked
    }

    /// Picks up to `max` items of the lanes meant, the highest priority first, then the oldest.
    pub(super) fn pick_where(&mut self, max: usize, lanes: &dyn Fn(&str) -> bool) -> Vec<Picked> {
        let ranks = self.ready_where(None, max, lanes);
        ranks
            .into_iter()
            .filter_map(|(_, id)| self.take(id))
            .collect()
    }

    /// Picks this item, if it may be claimed.
    pub(super) fn pick_item(&mut self, id: ItemId) -> Option<Picked> {
        let item = self.items.get(&id)?;
        let free = item.state == State::Ready && item.holds == 0 && item.ahead.is_none();
        if free { self.take(id) } else { None }
    }

    fn take(&mut self, id: ItemId) -> Option<Picked> {
        self.set(id, State::Claiming);
        let Item { meta, .. } = self.items.get(&id)?;
        Some(Picked {
            id,
            version: meta.version,
            attempt: meta.attempts + 1,
        })
    }

    /// Up to `limit` items of the lanes meant that may be claimed, in the order in which they would be, after `after`.
    /// Costs a look at each lane and at each item returned, however many items there are.
    pub(super) fn ready_where(
        &self,
        after: Option<Rank>,
        limit: usize,
        lanes: &dyn Fn(&str) -> bool,
    ) -> Vec<Rank> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut heads: BTreeMap<Rank, _> = BTreeMap::new();
        for (_, ready) in self.lanes.iter().filter(|(lane, _)| lanes(lane)) {
            let mut rest = ready.range((from, Bound::Unbounded)).copied();
            heads.extend(rest.next().map(|first| (first, rest)));
        }
        let mut found = Vec::new();
        while found.len() < limit
            && let Some((rank, mut rest)) = heads.pop_first()
        {
            found.push(rank);
            heads.extend(rest.next().map(|next| (next, rest)));
        }
        found
    }

    /// Up to `limit` items with a lane that are there and may not be claimed now, oldest first, after `after`.
    pub(super) fn held_after(&self, after: Option<ItemId>, limit: usize) -> Vec<ItemId> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.held
            .range((from, Bound::Unbounded))
            .take(limit)
            .copied()
            .collect()
    }

    /// Lets time pass: what was delayed becomes ready, what lapsed is ready again or doomed, what passed its deadline
    /// is doomed.
    pub(super) fn advance(&mut self, now: Mono) -> Passed {
        let mut passed = Passed::default();
        while let Some((at, id)) = self.timers.first().copied().filter(|(at, _)| *at <= now) {
            self.timers.remove(&(at, id));
            let Some(item) = self.items.get_mut(&id) else {
                continue;
            };
            let late = item.meta.deadline.is_some_and(|deadline| deadline <= now);
            let attempts = item.meta.attempts;
            let spent = attempts >= item.meta.max_attempts.unwrap_or(self.bounds.attempts);
            let claimed = matches!(item.state, State::Claimed(_));
            let next = match item.state {
                State::Ready | State::Delayed(_) if late && item.holds == 0 => {
                    State::Doomed(Doom::Deadline)
                }
                State::Delayed(until) if until <= now => State::Ready,
                State::Claimed(until) if until <= now && late => State::Doomed(Doom::Deadline),
                State::Claimed(until) if until <= now && spent => State::Doomed(Doom::Exhausted),
                State::Claimed(until) if until <= now => State::Ready,
                _ => continue,
            };
            passed.freed |= next == State::Ready;
            if claimed && next == State::Ready {
                passed.lapsed.push((id, attempts));
            }
            self.set(id, next);
        }
        passed
    }

    /// Where an item goes that may be tried again at `at`.
    pub(super) fn waiting(at: Option<Mono>, now: Mono) -> State {
        at.filter(|at| *at > now)
            .map_or(State::Ready, State::Delayed)
    }

    // --- Numbers ---------------------------------------------------------------------------

    /// Begins to number.
    pub(super) fn number_by(&mut self, numbers: Numbers) {
        self.numbers = numbers;
    }

    pub(super) const fn numbers(&self) -> &Numbers {
        &self.numbers
    }

    /// The next number. It counts as not settled until [`Index::unnumber`], or until its item is removed.
    pub(super) fn number(&mut self) -> u64 {
        self.numbers.take()
    }

    /// The number of an item.
    pub(super) fn number_of(&self, id: ItemId) -> Option<u64> {
        self.items.get(&id)?.meta.number
    }

    /// Gives a number back that no item has got.
    pub(super) fn unnumber(&mut self, number: u64) {
        self.numbers.release(number);
    }

    /// Every number below this one is settled.
    pub(super) fn low(&self) -> u64 {
        self.numbers.low()
    }

    /// Calls the present life by a later name.
    pub(super) fn rename(&mut self, from: u64, to: u64) {
        self.numbers.rename(from, to);
        for item in self.items.values_mut() {
            let number = &mut item.meta.number;
            *number = number.map(|number| self.numbers.current(number));
        }
    }

    // --- Questions -------------------------------------------------------------------------

    /// Whether the claim that wrote `epoch` still holds.
    pub(super) fn holds_claim(&self, id: ItemId, epoch: u64, now: Mono) -> bool {
        self.items.get(&id).is_some_and(|item| {
            item.meta.version == Some(epoch)
                && matches!(item.state, State::Claimed(until) if until > now)
        })
    }

    /// What is known of an item, and where it stands.
    pub(super) fn get(&self, id: ItemId) -> Option<(&Meta, State)> {
        self.items.get(&id).map(|item| (&item.meta, item.state))
    }

    /// What is handed out, oldest first.
    pub(super) fn claimed_ids(&self) -> Vec<ItemId> {
        let claimed =
            |(id, item): (&ItemId, &Item)| matches!(item.state, State::Claimed(_)).then_some(*id);
        let mut ids: Vec<_> = self.items.iter().filter_map(claimed).collect();
        ids.sort_unstable();
        ids
    }

    /// Items that must leave.
    pub(super) fn doomed(&self) -> Vec<(ItemId, Doom, Option<u64>, u32)> {
        let doomed = self.doomed.iter().filter_map(|id| {
            let item = self.items.get(id)?;
            let State::Doomed(doom) = item.state else {
                return None;
            };
            Some((*id, doom, item.meta.version, item.meta.attempts))
        });
        doomed.collect()
    }

    /// When [`Index::advance`] has something to do next.
    pub(super) fn next_timer(&self) -> Option<Mono> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Whether something may be claimed now. What is held back may not.
    pub(super) fn has_ready(&self) -> bool {
        self.ready.values().any(|ready| !ready.is_empty())
    }

    /// Whether something must leave.
    pub(super) fn has_doomed(&self) -> bool {
        !self.doomed.is_empty()
    }

    pub(super) const fn counts(&self) -> Counts {
        self.counts
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    // --- Bookkeeping -----------------------------------------------------------------------

    /// Takes an item out of the lists of its state.
    fn leave(&mut self, id: ItemId) {
        let Some(item) = self.items.get(&id) else {
            return;
        };
        if let Some(lane) = &item.meta.lane {
            self.held.remove(&id);
            if item.state == State::Ready
                && let Some(ready) = self.lanes.get_mut(lane)
            {
                ready.remove(&(Reverse(item.meta.priority), id));
                if ready.is_empty() {
                    self.lanes.remove(lane);
                }
            }
        }
        *count(&mut self.counts, item.state) -= 1;
        match item.state {
            State::Ready => {
                // An emptied list stays until its turn comes, so that a tenant is never in `turns` twice.
                if let Some(ready) = self.ready.get_mut(&item.meta.tenant) {
                    ready.remove(&(Reverse(item.meta.priority), id));
                }
            }
            State::Delayed(at) | State::Claimed(at) => {
                // The deadline's timer may be at the same moment; it must stay.
                if item.meta.deadline != Some(at) {
                    self.timers.remove(&(at, id));
                }
            }
            State::Doomed(_) => {
                self.doomed.remove(&id);
            }
            State::Pending(_) | State::Claiming => {}
        }
    }

    /// Puts an item into the lists of its state.
    fn enter(&mut self, id: ItemId) {
        let Some(item) = self.items.get(&id) else {
            return;
        };
        *count(&mut self.counts, item.state) += 1;
        if matches!(item.state, State::Ready | State::Delayed(_)) {
            // It may have fired while the item was claimed or held.
            self.timers
                .extend(item.meta.deadline.map(|deadline| (deadline, id)));
        }
        let free = item.holds == 0 && item.ahead.is_none();
        if let Some(lane) = &item.meta.lane {
            if item.state == State::Ready && free {
                let rank = (Reverse(item.meta.priority), id);
                self.lanes.entry(lane.clone()).or_default().insert(rank);
            } else if !matches!(item.state, State::Pending(_)) {
                self.held.insert(id);
            }
        }
        match item.state {
            State::Ready if free => {
                let tenant = &item.meta.tenant;
                if !self.ready.contains_key(tenant) {
                    self.turns.push_back(tenant.clone());
                }
                self.ready
                    .entry(tenant.clone())
                    .or_default()
                    .insert((Reverse(item.meta.priority), id));
            }
            State::Delayed(at) | State::Claimed(at) => {
                self.timers.insert((at, id));
            }
            State::Doomed(_) => {
                self.doomed.insert(id);
            }
            State::Ready | State::Pending(_) | State::Claiming => {}
        }
    }
}

const fn count(counts: &mut Counts, state: State) -> &mut usize {
    match state {
        State::Pending(_) => &mut counts.pending,
        State::Ready => &mut counts.ready,
        State::Delayed(_) => &mut counts.delayed,
        State::Claiming | State::Claimed(_) => &mut counts.claimed,
        State::Doomed(_) => &mut counts.doomed,
    }
}
