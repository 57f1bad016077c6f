//! Ends of durable traces, written in groups: whoever waits for an end learns it when it is on disk.

use std::sync::Arc;

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use parking_lot::Mutex;
use tokio::sync::Notify;
use volary_kernel::{Name, TraceId, Uid};
use volary_store::{Batch, StoreError};

use super::{book::Book, ledger::Ledger, record::ParkedRecord};
use crate::{
    error::{FlowError, FlowErrorCode},
    outcome::Outcome,
};

/// Most ends of one commit.
const GROUP: usize = 256;
/// Commits under way from which on no more are begun.
const GROUPS: usize = 4;

/// Tells whoever waits.
pub(crate) type Deliver = Box<dyn FnOnce(Outcome) + Send + Sync>;

/// Something to be closed.
pub(crate) enum Close {
    /// A trace ended.
    End(End),
    /// Its end was read, or nobody reads it any more.
    Read(Uid),
    /// It was not accepted after all.
    Revoke(Arc<Book>),
    /// It was paused, or resumed, in this process.
    Pause(Arc<Book>, bool),
}

impl Close {
    /// Whether it may be written before, after and beside others: an end is read only once it is written, and of two that
    /// concern one trace otherwise, one is a pause.
    const fn has_no_order(&self) -> bool {
        matches!(self, Self::End(_) | Self::Read(_))
    }
}

/// The end of a trace.
pub(crate) struct End {
    pub book: Arc<Book>,
    pub outcome: Outcome,
    /// Where a failure to store it belongs.
    node: Name,
    deliver: Option<Deliver>,
}

impl End {
    pub(crate) fn new(
        ledger: &Ledger,
        book: Arc<Book>,
        outcome: Outcome,
        deliver: impl FnOnce(Outcome) + Send + Sync + 'static,
    ) -> Self {
        Self {
            book,
            outcome,
            node: ledger.ingress(),
            deliver: Some(Box::new(deliver)),
        }
    }

    /// It is on disk.
    fn written(mut self) {
        self.book.drop_values();
        if let Some(deliver) = self.deliver.take() {
            deliver(self.outcome.clone());
        }
    }

    /// It could not be written: whoever waits learns that, and the next start takes the trace up again.
    fn lost(mut self, why: &str) {
        self.tell_lost(why);
    }

    fn tell_lost(&mut self, why: &str) {
        if let Some(deliver) = self.deliver.take() {
            tracing::error!(trace = %self.book.trace, why, "the end of a durable trace could not be stored");
            deliver(store_failure(&self.book, self.node.clone(), why));
        }
    }
}

/// Whoever waits learns something, whatever happens to the one who writes.
impl Drop for End {
    fn drop(&mut self) {
        self.tell_lost("the process stops");
    }
}

/// What waits to be closed: at most what lives, and what is kept, which is bounded.
#[derive(Default)]
pub(crate) struct Closer {
    queue: Mutex<Queue>,
    news: Notify,
    /// Told when nothing waits and nothing is under way.
    idle: Notify,
}

#[derive(Default)]
struct Queue {
    waiting: Vec<Close>,
    busy: bool,
    /// Nothing more comes.
    finished: bool,
    /// Nobody writes any more.
    gone: bool,
}

/// Tells that nobody writes any more.
struct Gone<'a>(&'a Closer);

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        let waiting = {
            let mut queue = self.0.queue.lock();
            queue.gone = true;
            std::mem::take(&mut queue.waiting)
        };
        // Outside the lock: dropping an end tells whoever waits for it.
        drop(waiting);
        self.0.idle.notify_waiters();
    }
}

impl Closer {
    pub(crate) fn push(&self, close: Close) {
        let mut queue = self.queue.lock();
        if queue.gone {
            drop(queue);
            // Dropping an end tells whoever waits for it.
            drop(close);
            return;
        }
        queue.waiting.push(close);
        drop(queue);
        self.news.notify_one();
    }

    /// Nothing more comes: [`Closer::run`] ends when all is written.
    pub(crate) fn finish(&self) {
        self.queue.lock().finished = true;
        self.news.notify_one();
    }

    /// Writes what comes, until it is told that nothing more does.
    ///
    /// Several groups are under way at once: an end that comes while a group is being written does not wait for that. What
    /// has to be written in its order waits for all before it, and is waited for.
    pub(crate) async fn run(&self, ledger: &Ledger) {
        let _gone = Gone(self);
        let mut under_way = FuturesUnordered::new();
        loop {
            let (mut all, finished) = self.take(under_way.len());
            if all.is_empty() && under_way.is_empty() {
                self.idle.notify_waiters();
                if finished {
                    return;
                }
            }
            let some = !all.is_empty();
            while !all.is_empty() {
                let rest = all.split_off(all.len().min(GROUP));
                let group = std::mem::replace(&mut all, rest);
                if group.iter().all(Close::has_no_order) {
                    under_way.push(close(ledger, group));
                } else {
                    while under_way.next().await.is_some() {}
                    close(ledger, group).await;
                }
            }
            if some && under_way.is_empty() {
                continue;
            }
            tokio::select! {
                Some(()) = under_way.next() => {}
                () = self.news.notified() => {}
            }
        }
    }

    /// What waits, if it can be written now; and whether nothing more comes.
    fn take(&self, under_way: usize) -> (Vec<Close>, bool) {
        let mut queue = self.queue.lock();
        let all = if under_way < GROUPS {
            std::mem::take(&mut queue.waiting)
        } else {
            Vec::new()
        };
        queue.busy = under_way > 0 || !all.is_empty();
        (all, queue.finished)
    }

    /// Waits until all that was pushed before is written, or cannot be.
    pub(crate) async fn flushed(&self) {
        loop {
            let idle = self.idle.notified();
            tokio::pin!(idle);
            idle.as_mut().enable();
            {
                let queue = self.queue.lock();
                if queue.gone || queue.waiting.is_empty() && !queue.busy {
                    return;
                }
            }
            idle.await;
        }
    }
}

/// A thing to be closed, and what is parked of it.
type Prepared = (Close, Option<ParkedRecord>);

/// Writes a group together; one by one if it is refused as it is, so that none suffers for another.
async fn close(ledger: &Ledger, group: Vec<Close>) {
    let mut prepared: Vec<Prepared> = Vec::with_capacity(group.len());
    for job in group {
        match (doubt(ledger, &job).await, job) {
            (Ok(parked), job) => prepared.push((job, parked)),
            (Err(error), Close::End(end)) => end.lost(&error.to_string()),
            // Their time to live, or the next start, does it.
            (Err(_), _) => {}
        }
    }
    match ledger.persist(|| batch(ledger, &prepared)).await {
        Ok(()) => {
            // Everybody is told before anything else is done.
            let told = prepared.into_iter().filter_map(|(job, _)| closed(job));
            for trace in told.collect::<Vec<_>>() {
                ledger.remove_late_pause(trace).await;
            }
        }
        Err(StoreError::TooLarge { .. } | StoreError::Invalid(_)) => {
            for job in prepared {
                close_one(ledger, job).await;
            }
        }
        Err(error) => {
            for (job, _) in prepared {
                if let Close::End(end) = job {
                    end.lost(&error.to_string());
                }
            }
        }
    }
}

async fn close_one(ledger: &Ledger, job: Prepared) {
    let job = [job];
    let end = ledger.persist(|| batch(ledger, &job)).await;
    let [(job, _)] = job;
    match (end, job) {
        (Ok(()), job) => remove_late(ledger, closed(job)).await,
        (Err(error), Close::End(mut end)) => {
            // What it yielded cannot be stored; that it failed for that can.
            end.book.drop_values();
            end.outcome = store_failure(&end.book, ledger.ingress(), &error.to_string());
            let job = [(Close::End(end), None)];
            let again = ledger.persist(|| batch(ledger, &job)).await;
            let [(job, _)] = job;
            match (again, job) {
                (Err(error), Close::End(end)) => end.lost(&error.to_string()),
                (_, job) => remove_late(ledger, closed(job)).await,
            }
        }
        (Err(error), _) => {
            tracing::warn!(flow = %ledger.plan.name, %error, "what is left of a durable trace could not be removed");
        }
    }
}

/// It is on disk. The trace, if a pause of it came too late to go with its end.
fn closed(job: Close) -> Option<TraceId> {
    let Close::End(end) = job else { return None };
    let late = end.book.ended().then_some(end.book.trace);
    end.written();
    late
}

async fn remove_late(ledger: &Ledger, pause: Option<TraceId>) {
    if let Some(trace) = pause {
        ledger.remove_late_pause(trace).await;
    }
}

fn batch(ledger: &Ledger, jobs: &[Prepared]) -> Result<Batch, StoreError> {
    let mut tx = Batch::new();
    for (job, parked) in jobs {
        match job {
            Close::End(end) => ledger.add_end(&mut tx, &end.book, &end.outcome, parked.as_ref())?,
            Close::Read(uid) => ledger.add_read(&mut tx, *uid)?,
            Close::Revoke(book) => ledger.add_revoke(&mut tx, book)?,
            Close::Pause(book, paused) => ledger.add_pause(&mut tx, book, *paused)?,
        }
    }
    Ok(tx)
}

/// What is parked of a trace that ends in doubt.
async fn doubt(ledger: &Ledger, job: &Close) -> Result<Option<ParkedRecord>, StoreError> {
    match job {
        Close::End(End {
            book,
            outcome: Outcome::Failed(error),
            ..
        }) if error.code == FlowErrorCode::InDoubt => ledger.parked_of(book).await,
        _ => Ok(None),
    }
}

/// How a trace ends that could not be stored.
pub(crate) fn store_failure(book: &Book, node: Name, message: &str) -> Outcome {
    Outcome::Failed(Box::new(FlowError {
        trace_id: book.trace,
        node,
        code: FlowErrorCode::Store,
        message: message.to_owned(),
        attempts: 0,
        latency: None,
        timeout: None,
        source: None,
    }))
}
