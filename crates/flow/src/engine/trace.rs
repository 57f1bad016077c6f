//! One request through the flow: the cell that its messages, its reader and whoever ends it share.
//!
//! ```text
//!   counts:  pending (messages that exist anywhere) and, of them, those that sit in joins
//!            pending = 0           nothing can come: done
//!            pending = in joins    nothing can come but by resolving a join
//!   outcome: set once, under the lock; whoever sets it tells the reader at once. What is left of the trace in queues is
//!            dropped by whoever meets it, and never counts as a result again
//! ```

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    task::Waker,
};

use parking_lot::Mutex;
use smallvec::SmallVec;
use volary_kernel::{Mono, TraceId};

use super::{
    Accepted, driver::discard, durable::Stored, emit::Times, gate::Grant, home::Home,
    joins::Bucket, shared::Shared, tenants::Numbers,
};
use crate::{
    envelope::{Headers, Meta},
    graph::plan::{NodeIx, Payload},
    outcome::Outcome,
    state::book::Book,
    stream::StreamChunk,
};

/// A message between nodes.
pub(crate) struct Msg {
    pub trace: Arc<Trace>,
    pub payload: Payload,
    /// Which invocation of a node along its path; see `Context::idempotency_key`.
    pub step: u64,
    /// Attempts that were made.
    pub attempts: u32,
    /// By which edge into its node it came.
    pub edge: u16,
}

impl Msg {
    /// With which a trace begins at an ingress.
    pub(crate) fn first(trace: &Arc<Trace>, payload: Payload, edge: u16, step: u64) -> Self {
        Self {
            trace: trace.clone(),
            payload,
            step,
            attempts: 0,
            edge,
        }
    }
}

/// What a trace yields.
pub(crate) enum Yield {
    Value(Payload),
    Chunk(Box<StreamChunk>),
}

/// One request through the flow.
pub(crate) struct Trace {
    pub id: TraceId,
    /// Of its tenant; its home holds the row.
    pub tenant: Numbers,
    home: Arc<Home>,
    pub headers: Headers,
    pub meta: Meta,
    pub deadline: Option<Mono>,
    pub accepted: Mono,
    /// How many flows called one another to get here.
    pub depth: u32,
    /// Whose node called it.
    pub parent: Option<Arc<Trace>>,
    /// Its records in the store, of a durable flow.
    pub book: Option<Arc<Book>>,
    /// Key of the deadline's timer in the index, as bits.
    pub timer: AtomicU64,
    counts: AtomicU64,
    /// Set once, under the lock of the cell.
    ended: AtomicBool,
    paused: AtomicBool,
    /// That it began was told,
    begin_told: AtomicBool,
    /// and that nothing is left of it.
    finish_told: AtomicBool,
    hops: AtomicU32,
    pub cell: Mutex<Cell>,
}

/// What of a trace changes under its lock.
#[derive(Default)]
pub(crate) struct Cell {
    first: Option<Yield>,
    more: VecDeque<Yield>,
    /// Of what is unread.
    pub values: u32,
    pub chunks: u32,
    pub outcome: Option<Outcome>,
    /// The outcome is not on disk yet: nobody learns it.
    pub untold: bool,
    pub reader: Option<Waker>,
    /// Who waits for a place for it. That of an earlier life may have a reader by then.
    in_line: Option<Waker>,
    /// What became of that wait.
    granted: Option<Grant>,
    /// A reader exists.
    pub attached: bool,
    /// Its end was read, or it expired.
    pub gone: bool,
    parked: Vec<Parked>,
    tokens: u32,
    pub rare: Option<Box<Rare>>,
}

struct Parked {
    token: u32,
    spot: Spot,
    waker: Waker,
}

/// Where something waits to be woken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spot {
    /// An attempt of this node, under way.
    Runs(NodeIx),
    /// A message at this node: in back-off, or in a join.
    Waits(NodeIx),
    /// Somebody who asked to be told of the end.
    Watches,
}

/// What few traces have.
#[derive(Default)]
pub(crate) struct Rare {
    pub joins: SmallVec<[(NodeIx, JoinSpot); 1]>,
    /// Messages that were met while it was paused.
    pub held: Vec<(NodeIx, Msg)>,
    /// Next numbers of unfinished streams.
    pub streams: Vec<(String, u64)>,
    /// Who waits until chunks are read.
    pub writers: Vec<Waker>,
    /// When it expires, if nobody fetches it.
    pub expires: Option<Mono>,
}

/// A trace in a join.
#[derive(Default)]
pub(crate) struct JoinSpot {
    pub bucket: Bucket<Msg>,
    /// The run that waits for its time to be over.
    pub wait: Option<u32>,
}

impl Cell {
    pub(crate) fn push(&mut self, item: Yield) {
        match item {
            Yield::Value(_) => self.values += 1,
            Yield::Chunk(_) => self.chunks += 1,
        }
        if self.first.is_none() && self.more.is_empty() {
            self.first = Some(item);
        } else {
            self.more.push_back(item);
        }
    }

    /// Puts a value back that was read.
    pub(crate) fn push_front(&mut self, value: Payload) {
        self.values += 1;
        if let Some(next) = self.first.replace(Yield::Value(value)) {
            self.more.push_front(next);
        }
    }

    pub(crate) fn pop(&mut self) -> Option<Yield> {
        let item = self.first.take().or_else(|| self.more.pop_front())?;
        match item {
            Yield::Value(_) => self.values -= 1,
            Yield::Chunk(_) => self.chunks -= 1,
        }
        Some(item)
    }

    pub(crate) const fn has_unread(&self) -> bool {
        self.values + self.chunks > 0
    }

    /// Takes what is unread if that is one value and nothing else, which most traces yield.
    pub(crate) fn take_only(&mut self) -> Option<Payload> {
        if self.values != 1 || self.chunks > 0 {
            return None;
        }
        match self.pop() {
            Some(Yield::Value(value)) => Some(value),
            _ => None,
        }
    }

    /// Takes all that is unread.
    pub(crate) fn take_unread(&mut self) -> Unread {
        (self.values, self.chunks) = (0, 0);
        Unread {
            first: self.first.take(),
            more: (!self.more.is_empty()).then(|| std::mem::take(&mut self.more)),
        }
    }

    pub(crate) fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    /// Has `waker` woken when the trace ends.
    pub(crate) fn park(&mut self, waker: Waker, spot: Spot) -> u32 {
        self.tokens = self.tokens.wrapping_add(1);
        let token = self.tokens;
        self.parked.push(Parked { token, spot, waker });
        token
    }

    pub(crate) fn unpark(&mut self, token: u32) {
        if let Some(at) = self.parked.iter().position(|parked| parked.token == token) {
            self.parked.swap_remove(at);
        }
    }

    /// Ends the wait for a place. Returns who is to be woken, once the gate is free.
    pub(crate) fn grant(&mut self, grant: Grant) -> Option<Waker> {
        self.granted = Some(grant);
        self.in_line.take()
    }

    /// What was granted.
    pub(crate) fn granted(&self) -> Option<Grant> {
        self.granted
    }

    /// Takes what was granted; else `waker` is woken then.
    pub(crate) fn poll_grant(&mut self, waker: &Waker) -> Option<Grant> {
        let granted = self.granted.take();
        if granted.is_none() {
            self.in_line = Some(waker.clone());
        }
        granted
    }

    /// Attempts that are under way and not between two polls for the first time.
    pub(crate) fn running(&self) -> usize {
        let runs = |parked: &&Parked| matches!(parked.spot, Spot::Runs(_));
        self.parked.iter().filter(runs).count()
    }

    /// The nodes at which something of it is: attempts that wait, back-off, joins, what is held. Not what stands in queues.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = NodeIx> {
        let parked = self.parked.iter().filter_map(|parked| match parked.spot {
            Spot::Runs(node) | Spot::Waits(node) => Some(node),
            Spot::Watches => None,
        });
        let rare = self.rare.iter().flat_map(|rare| {
            let joins = rare.joins.iter().map(|(node, _)| *node);
            joins.chain(rare.held.iter().map(|(node, _)| *node))
        });
        parked.chain(rare)
    }
}

/// What a trace yielded and nobody read.
pub(crate) struct Unread {
    first: Option<Yield>,
    /// Most traces yield once.
    more: Option<VecDeque<Yield>>,
}

impl Unread {
    /// Keeps the first value if there is none yet, and those after it if they are asked for; drops the rest.
    pub(crate) fn sift(self, first: &mut Option<Payload>, mut after: Option<&mut Vec<Payload>>) {
        let mut keep = |item| {
            let Yield::Value(value) = item else { return };
            if first.is_none() {
                *first = Some(value);
            } else if let Some(after) = &mut after {
                after.push(value);
            }
        };
        if let Some(item) = self.first {
            keep(item);
        }
        if let Some(more) = self.more {
            more.into_iter().for_each(keep);
        }
    }
}

/// What is left to do once a trace ended, outside its lock.
pub(crate) struct Ending {
    parked: Vec<Parked>,
    reader: Option<Waker>,
    rare: Option<Box<Rare>>,
    pub attached: bool,
}

impl Ending {
    /// Tells everybody. Returns how many messages were dropped with it.
    pub(crate) fn tell(self) -> u32 {
        if let Some(reader) = self.reader {
            reader.wake();
        }
        for parked in self.parked {
            parked.waker.wake();
        }
        let Some(mut rare) = self.rare else { return 0 };
        for writer in rare.writers.drain(..) {
            writer.wake();
        }
        let joined: usize = rare.joins.iter().map(|(_, spot)| spot.bucket.len()).sum();
        let messages = u32::try_from(joined + rare.held.len()).unwrap_or(u32::MAX);
        let joins = std::mem::take(&mut rare.joins).into_iter();
        discard(joins.flat_map(|(_, mut spot)| spot.bucket.take_all()));
        discard(rare.held.drain(..));
        messages
    }
}

/// What there is of a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    pub pending: u32,
    pub joined: u32,
}

impl Counts {
    const fn of(bits: u64) -> Self {
        Self {
            pending: bits as u32,
            joined: (bits >> 32) as u32,
        }
    }

    /// Nothing can come any more but by resolving a join.
    pub(crate) const fn is_quiet(self) -> bool {
        self.pending > 0 && self.pending == self.joined
    }
}

impl Drop for Trace {
    /// What nobody read is dropped by whoever drops the trace last, which may be a task that others need.
    fn drop(&mut self) {
        let cell = self.cell.get_mut();
        if cell.has_unread() {
            let unread = cell.take_unread();
            discard(unread.first);
            discard(unread.more.into_iter().flatten());
        }
    }
}

impl Trace {
    /// A trace with `pending` messages, and what its ingress gets.
    pub(crate) fn new(
        accepted: Accepted,
        home: Arc<Home>,
        times: Times,
        pending: u32,
        book: Option<Arc<Book>>,
    ) -> (Self, Payload) {
        let depth = accepted.parent.as_ref();
        let trace = Self {
            id: accepted.trace_id,
            tenant: home.row.numbers,
            home,
            headers: accepted.headers,
            meta: accepted.meta,
            deadline: times.deadline,
            accepted: times.accepted,
            depth: depth.map_or(0, |parent| parent.depth + 1),
            parent: accepted.parent,
            book,
            timer: AtomicU64::new(u64::MAX),
            counts: AtomicU64::new(u64::from(pending)),
            ended: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            begin_told: AtomicBool::new(false),
            finish_told: AtomicBool::new(false),
            hops: AtomicU32::new(0),
            cell: Mutex::new(Cell {
                attached: true,
                ..Cell::default()
            }),
        };
        (trace, accepted.payload)
    }

    /// The flow that it goes through.
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.home.shared
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Whether it may not go on: ended or paused.
    pub(crate) fn is_held(&self) -> bool {
        self.has_ended() || self.is_paused()
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Acquire)
    }

    /// Sets or clears the pause; true if that changed something.
    pub(crate) fn set_paused(&self, paused: bool) -> bool {
        self.paused.swap(paused, Ordering::AcqRel) != paused
    }

    /// True for the first who asks: it tells that the trace began.
    pub(crate) fn first_to_tell(&self) -> bool {
        !self.begin_told.load(Ordering::Relaxed) && !self.begin_told.swap(true, Ordering::Relaxed)
    }

    /// True for the first who asks: it tells that nothing of a cancelled trace is left.
    pub(crate) fn first_to_finish(&self) -> bool {
        !self.finish_told.swap(true, Ordering::Relaxed)
    }

    /// Counts an edge that closes a cycle; returns how often that happened.
    pub(crate) fn hop(&self) -> u32 {
        self.hops.fetch_add(1, Ordering::Relaxed).saturating_add(1)
    }

    /// How often it went over edges that close a cycle.
    pub(crate) fn hops(&self) -> u16 {
        u16::try_from(self.hops.load(Ordering::Relaxed)).unwrap_or(u16::MAX)
    }

    pub(crate) fn counts(&self) -> Counts {
        Counts::of(self.counts.load(Ordering::Acquire))
    }

    /// More messages exist.
    pub(crate) fn add(&self, messages: u32) -> Counts {
        let before = self.counts.fetch_add(u64::from(messages), Ordering::AcqRel);
        Counts::of(before + u64::from(messages))
    }

    /// Messages are gone.
    pub(crate) fn remove(&self, messages: u32) -> Counts {
        let before = self.counts.fetch_sub(u64::from(messages), Ordering::AcqRel);
        Counts::of(before - u64::from(messages))
    }

    /// A message sits in a join now.
    pub(crate) fn join(&self) -> Counts {
        let one = 1 << 32;
        Counts::of(self.counts.fetch_add(one, Ordering::AcqRel) + one)
    }

    /// Of the messages in a join, `left` left it and `gone` exist no more.
    pub(crate) fn unjoin(&self, left: u32, gone: u32) -> Counts {
        let less = u64::from(left) << 32 | u64::from(gone);
        Counts::of(self.counts.fetch_sub(less, Ordering::AcqRel) - less)
    }

    /// Sets the outcome, with a last value, if there is none. The reader of an untold one learns it by [`Trace::tell`].
    pub(crate) fn close(
        &self,
        outcome: Outcome,
        value: Option<(Payload, Stored)>,
        untold: bool,
    ) -> Option<Ending> {
        let mut cell = self.cell.lock();
        if cell.outcome.is_some() {
            return None;
        }
        if let Some((value, stored)) = value {
            self.keep_value(stored);
            cell.push(Yield::Value(value));
        }
        cell.untold = untold;
        cell.outcome = Some(outcome);
        self.ended.store(true, Ordering::Release);
        Some(Ending {
            parked: std::mem::take(&mut cell.parked),
            reader: cell.reader.take(),
            rare: cell.rare.take(),
            attached: cell.attached,
        })
    }

    /// The outcome, perhaps another than was thought, is on disk or cannot be: the reader learns it. Returns whether there
    /// is one.
    pub(crate) fn tell(&self, outcome: Outcome) -> bool {
        let (reader, attached) = {
            let mut cell = self.cell.lock();
            cell.outcome = Some(outcome);
            cell.untold = false;
            (cell.reader.take(), cell.attached)
        };
        if let Some(reader) = reader {
            reader.wake();
        }
        attached
    }

    /// Keeps a value that is yielded in the trace's book.
    pub(crate) fn keep_value(&self, stored: Stored) {
        if let (Some(book), Some(stored)) = (&self.book, stored) {
            book.yields(stored);
        }
    }

    /// It ended in an earlier life of the process, and nobody has read it.
    pub(crate) fn ended_before(&self, outcome: Outcome, values: Vec<Payload>) {
        let mut cell = self.cell.lock();
        for value in values {
            cell.push(Yield::Value(value));
        }
        cell.outcome = Some(outcome);
        cell.attached = false;
        self.ended.store(true, Ordering::Release);
    }
}
