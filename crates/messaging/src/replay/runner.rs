//! The runner: plans, and feeds a callback or an inbox.

use std::fmt;

use futures_util::future::BoxFuture;
use volary_kernel::{
    clock::{self, SharedClock, SystemClock, Timestamp},
    id::{Name, Tenant, TraceId},
};
use volary_store::{Batch, PAGE_MAX, Seq, SharedStore};

use super::{
    Direction, PLAN_MAX, Pace, PlannedMessage, Position, Recording, ReplayError, ReplayPlan,
    ReplayQuery, Speed, Unreadable, plan,
};
use crate::inbox::Inboxes;

/// What a callback gives back.
type Fed = Result<(), Box<dyn std::error::Error + Send + Sync>>;
type Callback<'a> = Box<dyn FnMut(PlannedMessage) -> BoxFuture<'a, Fed> + Send + 'a>;
type Watcher<'a> = Box<dyn FnMut(&Progress) + Send + 'a>;

/// Who is fed.
enum Target<'a> {
    Nobody,
    Callback(Callback<'a>),
    Inbox(Inboxes, SharedStore, Name),
}

/// What to replay, to whom, how fast. Dry until somebody is named to be fed.
#[must_use = "a replay does nothing until it is given to a runner"]
pub struct Replay<'a> {
    query: ReplayQuery,
    after: Option<Position>,
    limit: Option<u64>,
    dry: bool,
    speed: Speed,
    target: Target<'a>,
    progress: Option<Watcher<'a>>,
}

impl fmt::Debug for Replay<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replay")
            .field("query", &self.query)
            .field("speed", &self.speed)
            .finish_non_exhaustive()
    }
}

impl Default for Replay<'_> {
    fn default() -> Self {
        Self::of(ReplayQuery::default())
    }
}

impl<'a> Replay<'a> {
    /// Everything recorded.
    pub fn new() -> Self {
        Self::default()
    }

    /// What `query` means.
    pub const fn of(query: ReplayQuery) -> Self {
        Self {
            query,
            after: None,
            limit: None,
            dry: false,
            speed: Speed::Max,
            target: Target::Nobody,
            progress: None,
        }
    }

    /// Only messages that went this way.
    pub const fn direction(mut self, direction: Direction) -> Self {
        self.query.direction = Some(direction);
        self
    }

    /// Only messages of this agent.
    #[doc(alias = "agent_id")]
    pub fn agent(mut self, agent: Name) -> Self {
        self.query.agent = Some(agent);
        self
    }

    /// Only of this tenant.
    pub fn tenant(mut self, tenant: Tenant) -> Self {
        self.query.tenant = Some(tenant);
        self
    }

    /// Only of this request.
    pub const fn trace(mut self, trace: TraceId) -> Self {
        self.query.trace = Some(trace);
        self
    }

    /// Only accepted at or after this time.
    #[doc(alias = "start_ts")]
    pub const fn from(mut self, from: Timestamp) -> Self {
        self.query.from = Some(from);
        self
    }

    /// Only accepted at or before this time.
    #[doc(alias = "end_ts")]
    pub const fn to(mut self, to: Timestamp) -> Self {
        self.query.to = Some(to);
        self
    }

    /// Begins with the message at this place: where a replay stopped.
    pub const fn after(mut self, position: Position) -> Self {
        self.after = Some(position);
        self
    }

    /// Feeds at most so many.
    pub const fn limit(mut self, messages: u64) -> Self {
        self.limit = Some(messages);
        self
    }

    /// Feeds nobody, whoever was named.
    pub const fn dry_run(mut self) -> Self {
        self.dry = true;
        self
    }

    /// Keeps the recorded distances at this speed. Default [`Speed::Max`]: no waits.
    pub const fn speed(mut self, speed: Speed) -> Self {
        self.speed = speed;
        self
    }

    /// Feeds `callback`, one message after the other; its error stops the replay. The message is as it was recorded.
    pub fn callback<F, R, E>(mut self, mut callback: F) -> Self
    where
        F: FnMut(PlannedMessage) -> R + Send + 'a,
        R: Future<Output = Result<(), E>> + Send + 'a,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.target = Target::Callback(Box::new(move |planned| {
            let fed = callback(planned);
            Box::pin(async move { fed.await.map_err(Into::into) })
        }));
        self
    }

    /// Feeds the inbox of `agent`, one commit for each message: durable, marked, under the recorded id and key. `store` is
    /// that of the inboxes. Of an entry that several agents received, one message is fed: the agent's own if it was one
    /// of them.
    pub fn inbox(mut self, inboxes: Inboxes, store: SharedStore, agent: Name) -> Self {
        self.target = Target::Inbox(inboxes, store, agent);
        self
    }

    /// Tells how far it is, after each message.
    pub fn progress(mut self, watcher: impl FnMut(&Progress) + Send + 'a) -> Self {
        self.progress = Some(Box::new(watcher));
        self
    }
}

/// How far a replay is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Messages so far.
    pub messages: u64,
    /// Where the last one was.
    pub position: Position,
    /// When it was accepted.
    pub at: Timestamp,
}

/// What a replay did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReplayReport {
    /// Messages that were meant.
    pub messages: u64,
    /// Of them, fed to somebody: all, or none.
    pub fed: u64,
    /// The last one.
    pub last: Option<Position>,
    /// Where to go on, if the limit ended it.
    pub next: Option<Position>,
    /// The first entry that retention has left, if the query reaches further back.
    pub missing_before: Option<Seq>,
}

/// A replay that ended early. What was fed before stays fed.
#[derive(Debug, thiserror::Error)]
#[error("the replay stopped after {fed} messages, before {}: {cause}", position.map_or_else(|| "the first".to_owned(), |position| format!("entry {position}")))]
pub struct ReplayStopped {
    /// The message that was not fed, if one was reached: give it to [`Replay::after`] to go on.
    pub position: Option<Position>,
    /// Messages that were fed.
    pub fed: u64,
    /// Why.
    #[source]
    pub cause: ReplayError,
}

/// Plans and runs replays of a recording.
#[derive(Clone)]
pub struct ReplayRunner {
    recording: Recording,
    clock: SharedClock,
}

impl ReplayRunner {
    /// A runner over a store's journal or another recording.
    pub fn new(recording: impl Into<Recording>) -> Self {
        Self {
            recording: recording.into(),
            clock: SystemClock::shared(),
        }
    }

    /// The same, pacing by another clock.
    #[must_use]
    pub fn clock(mut self, clock: SharedClock) -> Self {
        self.clock = clock;
        self
    }

    /// What it replays.
    pub const fn recording(&self) -> &Recording {
        &self.recording
    }

    /// The messages that `query` means, as they would be fed: nothing is delivered. At most [`PLAN_MAX`], by whole
    /// entries.
    ///
    /// # Errors
    /// Errors of reading the record.
    pub async fn plan(&self, query: &ReplayQuery) -> Result<ReplayPlan, ReplayError> {
        self.plan_up_to(query, PLAN_MAX).await
    }

    /// The same, with at most `limit` messages, or those of one entry.
    ///
    /// # Errors
    /// Errors of reading the record.
    pub async fn plan_up_to(
        &self,
        query: &ReplayQuery,
        limit: usize,
    ) -> Result<ReplayPlan, ReplayError> {
        let limit = limit.clamp(1, PLAN_MAX);
        let mut pages = Pages::new(&self.recording, query, query.from_seq);
        let mut result = ReplayPlan::default();
        let mut planned = Vec::new();
        'pages: while let Some(rows) = pages.next(limit.min(PAGE_MAX)).await? {
            for row in &rows {
                if let Err(unreadable) = plan::of_row(row, query, &mut planned) {
                    result.unreadable.push(unreadable);
                }
                if !result.messages.is_empty() && result.messages.len() + planned.len() > limit {
                    result.next = Some(row.row.seq);
                    break 'pages;
                }
                result.messages.append(&mut planned);
            }
        }
        result.missing_before = pages.missing_before;
        Ok(result)
    }

    /// Feeds what `replay` means, in order, one page of the record in memory at a time.
    ///
    /// Dropping the future stops between two messages, or leaves one that was being fed in doubt.
    ///
    /// # Errors
    /// [`ReplayStopped`], with the place to go on.
    pub async fn replay(&self, replay: Replay<'_>) -> Result<ReplayReport, ReplayStopped> {
        let mut run = Run {
            report: ReplayReport::default(),
            pace: Pace::new(replay.speed),
            at: replay.after,
        };
        let ended = self.feed(replay, &mut run).await;
        ended.map(|()| run.report).map_err(|cause| ReplayStopped {
            position: run.at,
            fed: run.report.fed,
            cause,
        })
    }

    async fn feed(&self, mut replay: Replay<'_>, run: &mut Run) -> Result<(), ReplayError> {
        let query = replay.query;
        let after = replay.after;
        let from = after.map(|after| after.seq).max(query.from_seq);
        let mut pages = Pages::new(&self.recording, &query, from);
        let mut planned = Vec::new();
        while let Some(rows) = pages.next(PAGE_MAX).await? {
            run.report.missing_before = pages.missing_before;
            for row in &rows {
                let unreadable =
                    |Unreadable { seq, problem }| ReplayError::Unreadable { seq, problem };
                if let Err(error) = plan::of_row(row, &query, &mut planned) {
                    run.at = Some(Position {
                        seq: error.seq,
                        nth: 0,
                    });
                    return Err(unreadable(error));
                }
                if let Target::Inbox(_, _, agent) = &replay.target {
                    one_for(agent, &mut planned);
                }
                for message in planned.drain(..) {
                    let position = message.position();
                    if after.is_some_and(|after| position < after) {
                        continue;
                    }
                    if replay
                        .limit
                        .is_some_and(|limit| run.report.messages >= limit)
                    {
                        run.report.next = Some(position);
                        return Ok(());
                    }
                    run.at = Some(position);
                    let at = message.at;
                    if !replay.dry {
                        self.give(message, &mut replay.target, run).await?;
                    }
                    run.report.messages += 1;
                    run.report.last = Some(position);
                    if let Some(watcher) = &mut replay.progress {
                        let messages = run.report.messages;
                        watcher(&Progress {
                            messages,
                            position,
                            at,
                        });
                    }
                }
            }
        }
        run.report.missing_before = pages.missing_before;
        Ok(())
    }

    async fn give(
        &self,
        message: PlannedMessage,
        target: &mut Target<'_>,
        run: &mut Run,
    ) -> Result<(), ReplayError> {
        let wait = match target {
            Target::Nobody => return Ok(()),
            _ => run.pace.wait(message.at, self.clock.mono()),
        };
        if !wait.is_zero() {
            clock::sleep(wait).await;
        }
        match target {
            Target::Nobody => {}
            Target::Callback(callback) => {
                callback(message).await.map_err(ReplayError::Callback)?;
            }
            Target::Inbox(inboxes, store, agent) => {
                let mut tx = Batch::new();
                inboxes.replay(&mut tx, agent, &message)?;
                store.commit(tx).await?;
            }
        }
        run.report.fed += 1;
        Ok(())
    }
}

struct Run {
    report: ReplayReport,
    pace: Pace,
    at: Option<Position>,
}

/// Of one entry's messages, the one to feed `agent` with: its own, else the first that somebody received, else as sent.
pub(super) fn one_for(agent: &Name, planned: &mut Vec<PlannedMessage>) {
    let rank = |message: &PlannedMessage| match message.direction {
        Direction::Inbound if message.agent == *agent => 0,
        Direction::Inbound => 1,
        Direction::Outbound => 2,
    };
    let best = planned
        .iter()
        .enumerate()
        .min_by_key(|(index, message)| (rank(message), *index))
        .map(|(index, _)| index);
    if let Some(best) = best {
        planned.swap(0, best);
        planned.truncate(1);
    }
}

/// Walks a recording.
pub(super) struct Pages<'a> {
    recording: &'a Recording,
    filter: volary_store::Filter,
    asked: Seq,
    from: Seq,
    last: Option<Seq>,
    pub(super) missing_before: Option<Seq>,
    ended: bool,
}

impl<'a> Pages<'a> {
    pub(super) fn new(recording: &'a Recording, query: &ReplayQuery, from: Option<Seq>) -> Self {
        let asked = from.unwrap_or(Seq::FIRST).max(Seq::FIRST);
        Self {
            recording,
            filter: plan::filter(query),
            asked,
            from: asked,
            last: query.to_seq,
            missing_before: None,
            ended: false,
        }
    }

    pub(super) async fn next(
        &mut self,
        limit: usize,
    ) -> Result<Option<Vec<volary_store::journal::ArchiveRow>>, ReplayError> {
        if self.ended {
            return Ok(None);
        }
        let mut page = self.recording.page(self.from, &self.filter, limit).await?;
        if page.first > self.asked {
            self.missing_before = Some(page.first);
        }
        self.ended = page.end || page.next <= self.from;
        self.from = page.next;
        if let Some(last) = self.last {
            let before = page.rows.len();
            page.rows.retain(|row| row.row.seq <= last);
            self.ended |= page.rows.len() < before || page.next > last;
        }
        Ok(Some(page.rows))
    }
}
