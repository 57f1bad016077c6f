//! Durable traces in a running flow: taken up at start, written down before they are accepted, told of when their end is
//! on disk, paused from other processes.
//!
//! ```text
//!   start ─▶ own ─▶ load ─▶ index (kept results, live traces) ─▶ ready ─▶ places ─▶ stages
//!   emit ─▶ place ─▶ Ledger::accept ─▶ index, stages            end ─▶ Closer ─▶ reader
//!   Store::watch(pauses), retried parked traces ─▶ index
//! ```

use std::{
    collections::{HashMap, hash_map},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use serde_json::value::RawValue;
use tokio::sync::{Notify, watch};
use volary_kernel::{
    Name, Tenant, TraceId, Uid, clock,
    task::{Supervisor, TaskKind},
};
use volary_store::{Batch, Claim, Expect, Key, Queue, QueueConfig, StoreError, WatchEvent};

use super::{Accepted, emit::Times, pauses, reader::Reader, shared::Shared, trace::Trace};
use crate::{
    config::RunConfig,
    error::EmitError,
    graph::plan::{Payload, Plan},
    outcome::{DropReason, Outcome},
    state::{
        attempt,
        book::Book,
        closer::{Close, Closer, End, store_failure},
        ledger::{Intake, Kept, Ledger, Loaded, of_queue},
        owner::Owner,
        record::{self, ParkedRecord},
    },
};

/// Wait between two attempts to read what earlier lives left, and after something went wrong with what was retried.
const AGAIN: Duration = Duration::from_secs(1);
/// How long a stop waits for a slow store; what ended is written all the same, and until then nobody else runs the flow.
const FLUSH: Duration = Duration::from_secs(5);
/// Records that are removed by one commit.
const SWEEP: usize = 512;
/// Longest wait for a trace that somebody retries; then it is looked again whether the flow still runs.
const CLAIM_WAIT: Duration = Duration::from_secs(3600);

/// A value that a durable trace yields, as it is kept; none of another flow's.
pub(crate) type Stored = Option<Box<RawValue>>;

/// How far a durable flow is.
#[derive(Clone)]
enum Ready {
    /// It reads what earlier lives left.
    Opening,
    Open,
    /// It cannot be run: why.
    Refused(Arc<str>),
}

/// The durable side of a running flow.
pub(crate) struct Durability {
    pub ledger: Arc<Ledger>,
    pub closer: Closer,
    ready: watch::Sender<Ready>,
    owner: Mutex<Option<Owner>>,
    /// Ids of traces that are being accepted or taken up, and are not in the index yet; whether somebody paused them.
    reserved: Mutex<HashMap<TraceId, bool>>,
    finished: Notify,
}

/// A durable flow that cannot be one, or its durable side and the plan that it runs.
pub(crate) fn of(
    plan: Arc<Plan>,
    config: &RunConfig,
) -> (Arc<Plan>, Option<Result<Arc<Durability>, String>>) {
    let Some(durable) = &config.durable else {
        return (plan, None);
    };
    let Some(stored) = plan.durable.clone() else {
        let why = format!(
            "flow {} is run durable and was not built by build_durable",
            plan.name
        );
        return (plan, Some(Err(why)));
    };
    let ledger = Arc::new(Ledger::new(plan.clone(), stored, durable.clone()));
    let plan = Arc::new(attempt::durable_plan(&plan, &ledger));
    let durability = Durability {
        ledger,
        closer: Closer::default(),
        ready: watch::channel(Ready::Opening).0,
        owner: Mutex::default(),
        reserved: Mutex::default(),
        finished: Notify::new(),
    };
    (plan, Some(Ok(Arc::new(durability))))
}

/// An id that nobody else may use meanwhile.
struct Reserved<'a>(&'a Durability, TraceId);

impl Reserved<'_> {
    /// The trace is in the index now. Held if somebody paused it meanwhile.
    fn fulfilled(self, trace: &Arc<Trace>) {
        let paused = self.0.reserved.lock().remove(&self.1);
        if paused == Some(true) {
            pauses::held(trace);
        }
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.0.reserved.lock().remove(&self.1);
    }
}

/// Takes back what was written, unless it is kept.
struct Written<'a> {
    durable: &'a Durability,
    book: Option<Arc<Book>>,
}

impl Drop for Written<'_> {
    fn drop(&mut self) {
        if let Some(book) = self.book.take() {
            self.durable.closer.push(Close::Revoke(book));
        }
    }
}

impl Durability {
    /// Resolves when what earlier lives left is taken up.
    pub(crate) async fn ready(&self) -> Result<(), EmitError> {
        let mut ready = self.ready.subscribe();
        let ready = ready
            .wait_for(|ready| !matches!(ready, Ready::Opening))
            .await;
        match ready.as_deref() {
            Ok(Ready::Refused(why)) => Err(EmitError::Store(why.to_string())),
            Ok(_) => Ok(()),
            Err(_) => Err(EmitError::Stopped),
        }
    }

    /// Nothing more comes.
    pub(crate) fn finish(&self) {
        self.closer.finish();
        self.finished.notify_waiters();
        self.finished.notify_one();
        self.ready.send_if_modified(|ready| {
            let opening = matches!(ready, Ready::Opening);
            if opening {
                *ready = Ready::Refused("the flow is stopped".into());
            }
            opening
        });
    }

    /// The flow has stopped: once what ended is written, somebody else may run it.
    pub(crate) async fn stopped(&self) {
        if clock::timeout(FLUSH, self.closer.flushed()).await.is_ok() {
            self.release();
        }
    }

    /// Somebody else may run the flow.
    fn release(&self) {
        drop(self.owner.lock().take());
    }

    fn reserve<'a>(&'a self, shared: &Shared, id: TraceId) -> Result<Reserved<'a>, EmitError> {
        match self.reserved.lock().entry(id) {
            hash_map::Entry::Occupied(_) => return Err(EmitError::TraceInUse(id)),
            hash_map::Entry::Vacant(free) => drop(free.insert(false)),
        }
        let reserved = Reserved(self, id);
        if shared.index.get(id).is_some() {
            return Err(EmitError::TraceInUse(id));
        }
        Ok(reserved)
    }

    /// Notes whether a trace is paused that is being accepted or taken up. False if it is none.
    pub(super) fn mark(&self, id: TraceId, paused: bool) -> bool {
        let mut reserved = self.reserved.lock();
        let mark = reserved.get_mut(&id).map(|mark| *mark = paused);
        mark.is_some()
    }
}

impl Shared {
    /// Accepts an envelope once there is room and it is on disk. Dropped, it is not accepted: what was written by then is
    /// taken back.
    pub(super) async fn emit_durable(
        self: &Arc<Self>,
        durable: &Durability,
        accepted: Accepted,
        times: Times,
    ) -> Result<Reader, EmitError> {
        let deadline = times.deadline;
        super::emit::within(self, deadline, durable.ready()).await??;
        let id = accepted.trace_id;
        if self.index.get(id).is_some() {
            return Err(EmitError::TraceInUse(id));
        }
        let row = self.row(&accepted.headers.tenant);
        let places = super::emit::within(self, deadline, self.places(row.clone())).await??;
        let room = self.enter(deadline).await?;
        let reserved = durable.reserve(self, id)?;
        let book = Arc::new(Book::new(
            Uid::generate(),
            id,
            accepted.headers.tenant.clone(),
        ));
        let (trace, payload) = self.birth(accepted, row, times, Some(book.clone()));
        let tx = {
            let intake = Intake {
                headers: &trace.headers,
                deadline: deadline.map(|deadline| deadline - self.now()),
                meta: &trace.meta,
                payload: &payload,
            };
            durable.ledger.accept(&book, &intake)
        };
        let tx = tx.map_err(|error| EmitError::Store(error.to_string()))?;
        let mut written = Written {
            durable,
            book: Some(book),
        };
        let commit = durable.ledger.store().commit(tx);
        match super::emit::within(self, deadline, commit).await? {
            Ok(_) => {}
            Err(error) => {
                // What may be there all the same is taken back.
                if !matches!(error, StoreError::Io { .. }) {
                    written.book = None;
                }
                return Err(EmitError::Store(error.to_string()));
            }
        }
        let payloads = places.share(payload);
        self.enlist(&trace)?;
        written.book = None;
        self.ring(&trace);
        reserved.fulfilled(&trace);
        places.fill(&trace, payloads);
        room.keep();
        Ok(self.accepted(trace))
    }

    /// A value that a durable trace yields, as it is kept.
    pub(super) fn stored(&self, trace: &Trace, value: &Payload) -> Result<Stored, StoreError> {
        match (&trace.book, &self.durable) {
            (Some(_), Some(Ok(durable))) => durable.ledger.output(value).map(Some),
            _ => Ok(None),
        }
    }

    /// The end of a trace and its last value, as it is kept; the failure to store it, if it cannot be.
    pub(super) fn with_stored(
        &self,
        trace: &Trace,
        outcome: Outcome,
        value: Option<Payload>,
    ) -> (Outcome, Option<(Payload, Stored)>) {
        let Some(value) = value else {
            return (outcome, None);
        };
        match (self.stored(trace, &value), &trace.book) {
            (Err(error), Some(book)) => {
                let node = self.plan.name.clone();
                (store_failure(book, node, &error.to_string()), None)
            }
            (stored, _) => (outcome, Some((value, stored.unwrap_or_default()))),
        }
    }

    /// Has the end of a durable trace written, and told when it is. False if there is nothing to wait for.
    pub(super) fn write_end(&self, trace: &Arc<Trace>, outcome: Outcome) -> bool {
        let (Some(book), Some(Ok(durable))) = (&trace.book, &self.durable) else {
            return false;
        };
        let (book, trace) = (book.clone(), trace.clone());
        let deliver = move |outcome| {
            let shared = &trace.shared;
            if !trace.tell(outcome) {
                shared.keep(&trace);
            }
            shared.leave();
        };
        let end = End::new(&durable.ledger, book, outcome, deliver);
        durable.closer.push(Close::End(end));
        true
    }

    /// How long results are kept, and how many.
    pub(super) fn results_kept(&self) -> (Duration, usize) {
        match &self.durable {
            Some(Ok(durable)) => {
                let config = &durable.ledger.config;
                (config.result_ttl, config.results)
            }
            _ => (self.limits.result_ttl, self.limits.results),
        }
    }

    /// The end of a trace was read, or nobody will.
    pub(super) fn forget_end(&self, trace: &Trace) {
        if let (Some(book), Some(Ok(durable))) = (&trace.book, &self.durable) {
            durable.closer.push(Close::Read(book.uid));
        }
    }

    /// Writes that a trace was paused or resumed here.
    pub(super) fn write_pause(&self, trace: &Trace, paused: bool) {
        if let (Some(book), Some(Ok(durable))) = (&trace.book, &self.durable) {
            let _an_end_is_heard_of = book.paused();
            durable.closer.push(Close::Pause(book.clone(), paused));
        }
    }
}

/// Whether the end is only of this life of the process: the next takes the trace up again.
pub(crate) const fn goes_on(outcome: &Outcome) -> bool {
    let Outcome::Dropped { reason } = outcome else {
        return false;
    };
    matches!(reason, DropReason::Stopped)
}

// --- taking up -------------------------------------------------------------------------------

/// Starts the tasks of a durable flow.
pub(crate) fn start(shared: &Arc<Shared>, durable: &Arc<Durability>, supervisor: &Supervisor) {
    let closing = durable.clone();
    supervisor.spawn(TaskKind::new("flow-closer"), async move {
        closing.closer.run(&closing.ledger).await;
        closing.release();
        Ok(())
    });
    let opener = Opener {
        shared: shared.clone(),
        durable: durable.clone(),
    };
    supervisor.spawn(TaskKind::new("flow-durable").abort(), async move {
        let finished = opener.durable.clone();
        tokio::select! {
            () = finished.finished.notified() => {}
            () = opener.run() => {}
        }
        Ok(())
    });
}

/// Takes up what earlier lives left, and what others on the store do to its traces.
pub(super) struct Opener {
    pub shared: Arc<Shared>,
    pub durable: Arc<Durability>,
}

impl Opener {
    async fn run(&self) {
        // From before the reading, so that no pause is missed.
        let keys = &self.durable.ledger.keys;
        let mut pauses = self.durable.ledger.store().watch(&keys.pauses);
        let Some((rest, retried)) = self.open().await else {
            return;
        };
        let watch = async {
            while let Some(event) = pauses.next().await {
                match event {
                    WatchEvent::Changed(change) => self.pause_changed(&change).await,
                    WatchEvent::Lagged => self.pauses_lagged().await,
                }
            }
        };
        tokio::join!(self.go_on(rest), watch, self.take_retried(&retried));
    }

    fn refuse(&self, why: impl Into<Arc<str>>) {
        let why = why.into();
        tracing::error!(flow = %self.flow(), %why, "a durable flow cannot run");
        self.durable.ready.send_replace(Ready::Refused(why));
    }

    pub(super) fn flow(&self) -> &Name {
        &self.shared.plan.name
    }

    /// Takes the flow, and reads what earlier lives left.
    async fn open(&self) -> Option<(Vec<(Arc<Trace>, Payload)>, Queue)> {
        let ledger = &self.durable.ledger;
        let queues = &ledger.config.queues;
        match Owner::take(queues.incarnation(), self.flow()) {
            Some(owner) => *self.durable.owner.lock() = Some(owner),
            None => {
                self.refuse(format!("flow {} runs on this store already", self.flow()));
                return None;
            }
        }
        let retried = match queues.queue(QueueConfig::new(ledger.queue())) {
            Ok(queue) => queue,
            Err(error) => {
                self.refuse(error.to_string());
                return None;
            }
        };
        let loaded = loop {
            match ledger.load().await {
                Ok(loaded) => break loaded,
                Err(error @ (StoreError::Corrupt { .. } | StoreError::Closed)) => {
                    self.refuse(error.to_string());
                    return None;
                }
                Err(error) => {
                    tracing::warn!(flow = %self.flow(), %error, "what earlier lives left could not be read");
                    clock::sleep(AGAIN).await;
                }
            }
        };
        self.sweep(&loaded.garbage).await;
        let live = self.restore(loaded);
        self.durable.ready.send_replace(Ready::Open);
        Some((live, retried))
    }

    /// Removes what steps wrote whose trace ended at the same moment.
    async fn sweep(&self, garbage: &[Key]) {
        let ledger = &self.durable.ledger;
        for keys in garbage.chunks(SWEEP) {
            let mut tx = Batch::new();
            for key in keys {
                tx.delete(key.clone(), Expect::Any);
            }
            if let Err(error) = ledger.store().commit(tx).await {
                tracing::warn!(flow = %self.flow(), %error, "what is left of ended traces stays until the next start");
            }
        }
    }

    /// Puts traces into the index. Returns those that live.
    fn restore(&self, loaded: Loaded) -> Vec<(Arc<Trace>, Payload)> {
        let mut kept = loaded.kept;
        kept.sort_by_key(|kept| kept.left);
        for kept in kept {
            self.shared.restore_kept(kept);
        }
        for (book, why) in loaded.unreadable {
            let why = format!("what was accepted cannot be read any more: {why}");
            let outcome = store_failure(&book, self.durable.ledger.ingress(), &why);
            let shared = self.shared.clone();
            let left = self.durable.ledger.config.result_ttl;
            let end = book.clone();
            let deliver = move |outcome| {
                shared.restore_kept(Kept {
                    book: end,
                    outcome,
                    values: Vec::new(),
                    left,
                });
            };
            let end = End::new(&self.durable.ledger, book, outcome, deliver);
            self.durable.closer.push(Close::End(end));
        }
        let live = loaded.live.into_iter();
        live.filter_map(|resumed| self.shared.restore_live(resumed))
            .collect()
    }

    /// Hands traces that live to their ingress, those of one tenant in the order in which they were accepted.
    async fn go_on(&self, live: Vec<(Arc<Trace>, Payload)>) {
        let mut tenants: HashMap<Tenant, Vec<(Arc<Trace>, Payload)>> = HashMap::new();
        for (trace, payload) in live {
            let tenant = trace.headers.tenant.clone();
            tenants.entry(tenant).or_default().push((trace, payload));
        }
        let each = tenants.into_values().map(|live| async move {
            for (trace, payload) in live {
                if !self.shared.take_up(&trace, payload).await {
                    return;
                }
            }
        });
        futures_util::future::join_all(each).await;
    }

    // --- what a person retries ---------------------------------------------------------------

    /// Takes up parked traces that somebody retries: what was in doubt is run again.
    async fn take_retried(&self, retried: &Queue) {
        loop {
            let claims = match retried.claim("flow", 1, CLAIM_WAIT).await {
                Ok(claims) => claims,
                Err(error) => {
                    tracing::warn!(flow = %self.flow(), %error, "retried traces could not be taken up");
                    clock::sleep(AGAIN).await;
                    continue;
                }
            };
            for claim in claims {
                if let Err(error) = self.retry(retried, &claim).await {
                    tracing::warn!(flow = %self.flow(), %error, "a retried trace could not be taken up");
                    let mut tx = Batch::new();
                    let back = retried.nack(&mut tx, &claim, None, &error);
                    if back.is_ok()
                        && let Err(error) = self.durable.ledger.store().commit(tx).await
                    {
                        tracing::warn!(flow = %self.flow(), %error, "a retried trace waits for its claim to lapse");
                    }
                }
            }
        }
    }

    async fn retry(&self, retried: &Queue, claim: &Claim) -> Result<(), String> {
        let ledger = &self.durable.ledger;
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let parked: ParkedRecord =
            serde_json::from_slice(&claim.payload).map_err(|error| text(&error))?;
        if parked.v != record::VERSION {
            return Err(format!("it is of version {}", parked.v));
        }
        let id = parked.live.trace;
        if let Some(trace) = self.shared.index.get(id)
            && !self.shared.give_way(&trace)
        {
            return Err(format!("trace {id} is in use"));
        }
        let reserved = self.durable.reserve(&self.shared, id);
        let reserved = reserved.map_err(|error| text(&error))?;
        let uid = Uid::generate();
        let mut tx = Batch::new();
        retried
            .ack(&mut tx, claim)
            .map_err(|error| text(&of_queue(error)))?;
        ledger
            .add_again(&mut tx, uid, &parked)
            .map_err(|error| text(&error))?;
        let committed = ledger.store().commit(tx).await;
        committed.map_err(|error| text(&error))?;
        let live = parked.live.clone();
        let found = ledger.found_in(uid, parked).map_err(|error| text(&error))?;
        let now = ledger.store().clock().wall();
        match ledger.resumed(uid, &live, found, now, false) {
            Ok(resumed) => {
                if let Some((trace, payload)) = self.shared.restore_live(resumed) {
                    reserved.fulfilled(&trace);
                    self.shared.take_up(&trace, payload).await;
                }
            }
            Err(unreadable) => {
                let unreadable = vec![unreadable];
                self.restore(Loaded {
                    unreadable,
                    ..Loaded::default()
                });
            }
        }
        Ok(())
    }
}
