//! Durable traces in a running flow: written down before they are accepted, told of when their end is on disk.
//!
//! ```text
//!   emit ─▶ place ─▶ Ledger::accept ─▶ index, stages            end ─▶ Closer ─▶ reader
//! ```

use std::{
    collections::{HashMap, hash_map},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use serde_json::value::RawValue;
use tokio::sync::{Notify, watch};
use volary_kernel::{TraceId, Uid, clock};
use volary_store::StoreError;

use super::{
    Accepted, emit::Times, home::Home, pauses, reader::Reader, shared::Shared, trace::Trace,
};
use crate::{
    config::RunConfig,
    error::EmitError,
    graph::plan::{Payload, Plan},
    outcome::{DropReason, Outcome},
    state::{
        attempt,
        book::Book,
        closer::{Close, Closer, End, store_failure},
        ledger::{Intake, Ledger},
        owner::Owner,
    },
};

/// How long a stop waits for a slow store; what ended is written all the same, and until then nobody else runs the flow.
const FLUSH: Duration = Duration::from_secs(5);

/// A value that a durable trace yields, as it is kept; none of another flow's.
pub(crate) type Stored = Option<Box<RawValue>>;

/// How far a durable flow is.
#[derive(Clone)]
pub(super) enum Ready {
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
    pub(super) ready: watch::Sender<Ready>,
    pub(super) owner: Mutex<Option<Owner>>,
    /// Ids of traces that are being accepted or taken up, and are not in the index yet; whether somebody paused them.
    reserved: Mutex<HashMap<TraceId, bool>>,
    pub(super) finished: Notify,
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
pub(super) struct Reserved<'a>(&'a Durability, TraceId);

impl Reserved<'_> {
    /// The trace is in the index now. Held if somebody paused it meanwhile.
    pub(super) fn fulfilled(self, trace: &Arc<Trace>) {
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
    pub(super) fn release(&self) {
        drop(self.owner.lock().take());
    }

    pub(super) fn reserve<'a>(
        &'a self,
        shared: &Shared,
        id: TraceId,
    ) -> Result<Reserved<'a>, EmitError> {
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
        &self,
        durable: &Durability,
        accepted: Accepted,
        home: Arc<Home>,
        times: Times,
    ) -> Result<Reader, EmitError> {
        let deadline = times.deadline;
        super::emit::within(self, deadline, durable.ready()).await??;
        let id = accepted.trace_id;
        if self.index.get(id).is_some() {
            return Err(EmitError::TraceInUse(id));
        }
        let tenant = home.row.tenant.clone();
        let book = Arc::new(Book::new(Uid::generate(), id, tenant));
        let (trace, payload) = self.birth(accepted, home, times, Some(book.clone()));
        let places = super::emit::within(self, deadline, self.places(&trace)).await??;
        let room = self.enter(deadline).await?;
        let reserved = durable.reserve(self, id)?;
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
        places.fill(payloads);
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
            let shared = trace.shared();
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
