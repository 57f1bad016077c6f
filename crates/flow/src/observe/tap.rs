//! Where stages write down what happens, and the one task that tells observers of it.
//!
//! ```text
//! stage: Tap (own Vec) ──end of wake──▶ Hub (one bounded Vec) ──every 2 ms, when there is something──▶ Window ─▶ observers
//!                                        full: the batch is dropped, its events counted
//! ```
//! Recording is a write into the stage's own memory: no lock, no allocation, no shared counter. Without observers
//! nothing is recorded at all.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use hashbrown::{HashMap, hash_map::Entry};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, watch};
use volary_kernel::{
    Mono, Name, SharedClock, Tenant, clock,
    metric::Counter,
    secret::Redactor,
    task::{Supervisor, TaskKind, panic_text},
};

pub(crate) use super::record::{ChainRun, TraceTag};
use super::{
    Observer,
    event::FlowEventKind,
    events::{Events, Whose},
    record::Record,
    times::Times,
    window::{Window, ranks},
};
use crate::{
    config::RunConfig,
    graph::plan::{NodeIx, Plan, Target},
    outcome::Outcome,
};

/// Most records that wait for the observer task (4 MiB).
const MAX_RECORDS: usize = 65_536;
/// While nothing happens, there is room for so many (128 KiB).
const KEPT_RECORDS: usize = 2_048;
/// Most bytes of texts that wait with them.
const MAX_BYTES: usize = 8 << 20;
/// A tap hands over before the end of a wake when it holds this many.
const TAP_RECORDS: usize = 512;
/// How long arrivals are gathered before they are told.
const GATHER: Duration = Duration::from_millis(2);
/// Most events of one call of an observer.
const BATCH: usize = 1_024;
/// Most tenants whose names the observer task keeps.
const MAX_TENANTS: usize = 1_024;
/// Longest error text of an event, in bytes.
const MAX_TEXT: usize = 4_096;

/// Names a tenant by the engine's index; `None` if it is unknown.
pub(crate) type TenantOf = Arc<dyn Fn(u32) -> Option<Tenant> + Send + Sync>;

/// What a stage writes to. One per stage; cheap to make for whoever else has something to tell.
pub(crate) struct Tap {
    hub: Option<Arc<Hub>>,
    chain: u16,
    records: Vec<Record>,
}

impl Tap {
    /// Records nothing.
    pub(crate) const fn off() -> Self {
        Self {
            hub: None,
            chain: 0,
            records: Vec::new(),
        }
    }

    /// Whether anybody listens.
    #[inline]
    pub(crate) fn is_on(&self) -> bool {
        self.hub.is_some()
    }

    /// A message went through nodes of this stage's chain, each of which succeeded at its first attempt without waiting.
    /// What parks is told by [`Tap::event`], start and end apart.
    #[inline]
    pub(crate) fn chain(&mut self, tag: &TraceTag, run: ChainRun) {
        if self.is_on() {
            self.push(Record::chain(tag, self.chain, run));
        }
    }

    /// Anything else. Error texts are cleaned of declared secrets and cut here, before they are kept anywhere.
    #[inline]
    pub(crate) fn event(
        &mut self,
        tag: &TraceTag,
        node: Option<NodeIx>,
        attempt: u32,
        at: Mono,
        kind: FlowEventKind,
    ) {
        if let Some(hub) = &self.hub {
            let kind = shown(kind, hub.redactor.as_ref());
            self.push(Record::event(tag, node, attempt, at, kind));
        }
    }

    #[inline]
    fn push(&mut self, record: Record) {
        self.records.push(record);
        if self.records.len() >= TAP_RECORDS {
            self.flush();
        }
    }

    /// Hands over what was recorded; at the end of a wake. Takes a lock for the time of a copy, if there is anything.
    #[inline]
    pub(crate) fn flush(&mut self) {
        if !self.records.is_empty() {
            self.hand_over();
        }
    }

    #[cold]
    #[inline(never)]
    fn hand_over(&mut self) {
        if let Some(hub) = &self.hub {
            hub.take_in(&mut self.records);
        }
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.flush();
    }
}

/// What waits for the observer task.
#[derive(Default)]
struct Waiting {
    records: Vec<Record>,
    bytes: usize,
    /// The observers have been told of everything for the last time.
    closed: bool,
}

/// The nodes of each stage.
type Chains = Vec<Vec<NodeIx>>;

struct Hub {
    waiting: Mutex<Waiting>,
    arrived: Notify,
    chains: RwLock<Arc<Chains>>,
    redactor: Option<Redactor>,
    dropped: Counter,
}

impl Hub {
    fn take_in(&self, records: &mut Vec<Record>) {
        let bytes: usize = records.iter().map(Record::extra).sum();
        let mut waiting = self.waiting.lock();
        let full = waiting.records.len() + records.len() > MAX_RECORDS
            || waiting.bytes + bytes > MAX_BYTES;
        if full || waiting.closed {
            drop(waiting);
            self.drop_all(records);
            return;
        }
        let first = waiting.records.is_empty();
        waiting.records.append(records);
        waiting.bytes += bytes;
        drop(waiting);
        if first {
            self.arrived.notify_one();
        }
    }

    fn drop_all(&self, records: &mut Vec<Record>) {
        let events = records.iter().map(Record::events).sum();
        self.dropped.inc_by(events);
        records.clear();
    }
}

/// What observing a flow needs to know of it.
pub(crate) struct Setup {
    pub flow: Name,
    pub nodes: Vec<Name>,
    pub ranks: Vec<u16>,
    pub observers: Vec<Arc<dyn Observer>>,
    pub clock: SharedClock,
    /// Knows the secrets that error texts must not show.
    pub redactor: Option<Redactor>,
    pub tenants: TenantOf,
    /// `volary_flow_events_dropped_total` of this flow.
    pub dropped: Counter,
    /// `volary_flow_observer_panics_total` of this flow.
    pub panics: Counter,
}

impl Setup {
    /// What a plan and its configuration say.
    pub(crate) fn of(
        plan: &Plan,
        config: &RunConfig,
        tenants: TenantOf,
        dropped: Counter,
        panics: Counter,
    ) -> Self {
        let edges = plan.nodes.iter().enumerate().flat_map(|(from, node)| {
            let from = NodeIx::try_from(from).unwrap_or(NodeIx::MAX);
            node.out.iter().filter_map(move |edge| match edge.to {
                Target::Node(to) if !edge.back => Some((from, to)),
                _ => None,
            })
        });
        Self {
            flow: plan.name.clone(),
            nodes: plan.nodes.iter().map(|node| node.name.clone()).collect(),
            ranks: ranks(plan.nodes.len(), edges),
            observers: config.observers.clone(),
            clock: config.clock.clone(),
            redactor: config.redactor.clone(),
            tenants,
            dropped,
            panics,
        }
    }
}

/// Observing of one flow: gives out taps, and ends the observer task. Dropping it lets the task tell the rest and end.
pub(crate) struct Observing {
    hub: Option<Arc<Hub>>,
    stop: watch::Sender<bool>,
    ended: watch::Receiver<()>,
}

impl Observing {
    /// Starts the observer task, if there is anybody to tell.
    pub(crate) fn start(setup: Setup, supervisor: &Supervisor) -> Self {
        let (stop, stopped) = watch::channel(false);
        let (ends, ended) = watch::channel(());
        let hub = (!setup.observers.is_empty()).then(|| {
            let hub = Arc::new(Hub {
                waiting: Mutex::default(),
                arrived: Notify::new(),
                chains: RwLock::default(),
                redactor: setup.redactor.clone(),
                dropped: setup.dropped.clone(),
            });
            let teller = Teller::new(hub.clone(), setup);
            let told = async move {
                teller.run(stopped).await;
                drop(ends);
                Ok(())
            };
            supervisor.spawn(TaskKind::new("flow-observer"), told);
            hub
        });
        Self { hub, stop, ended }
    }

    /// A tap for a stage that runs these nodes, to be asked for once; or for somebody who runs none.
    pub(crate) fn tap(&self, chain: &[NodeIx]) -> Tap {
        let Some(hub) = &self.hub else {
            return Tap::off();
        };
        let mut chains = hub.chains.write();
        let known = || chains.iter().position(Vec::is_empty);
        let at = chain.is_empty().then(known).flatten().unwrap_or_else(|| {
            Arc::make_mut(&mut chains).push(chain.to_vec());
            chains.len() - 1
        });
        Tap {
            hub: Some(hub.clone()),
            chain: u16::try_from(at).unwrap_or(u16::MAX),
            records: Vec::new(),
        }
    }

    /// Lets the observers be told of all that was handed over, and waits until they were. Cancel-safe.
    pub(crate) async fn close(&self) {
        self.stop.send_replace(true);
        let mut ended = self.ended.clone();
        // Ends with an error when the task is over, which is what is waited for.
        while ended.changed().await.is_ok() {}
    }
}

/// The task's side.
struct Teller {
    hub: Arc<Hub>,
    tell: Option<Tell>,
}

/// What is taken to a blocking thread and back: an observer may take its time without holding up a node.
struct Tell {
    hub: Arc<Hub>,
    setup: Setup,
    window: Window,
    fresh: Vec<Record>,
    events: Events,
    tenants: TenantNames,
    times: Times,
}

/// Names of tenants, as copies of the observers' own: what stages and callers share is not touched once per event.
#[derive(Default)]
struct TenantNames {
    all: HashMap<u32, Tenant>,
    /// The one that was asked for last: most records in a row are of one.
    last: Option<(u32, Tenant)>,
}

impl TenantNames {
    /// The name of a tenant, kept by the one of the engine's numbers that is never given on.
    fn name(&mut self, tenant: u32, named: &TenantOf) -> Option<&Tenant> {
        if self.last.as_ref().is_none_or(|(last, _)| *last != tenant) {
            let name = self.look_up(tenant, named)?.clone();
            self.last = Some((tenant, name));
        }
        self.last.as_ref().map(|(_, name)| name)
    }

    fn look_up(&mut self, tenant: u32, named: &TenantOf) -> Option<&Tenant> {
        if self.all.len() >= MAX_TENANTS && !self.all.contains_key(&tenant) {
            self.all.clear();
        }
        match self.all.entry(tenant) {
            Entry::Occupied(known) => Some(known.into_mut()),
            Entry::Vacant(vacant) => {
                let name = named(tenant)?;
                let own = name.as_str().parse().unwrap_or(name);
                Some(vacant.insert(own))
            }
        }
    }
}

impl Teller {
    fn new(hub: Arc<Hub>, setup: Setup) -> Self {
        let tell = Tell {
            hub: hub.clone(),
            times: Times::read(&setup.clock),
            setup,
            window: Window::default(),
            fresh: Vec::new(),
            events: Events::default(),
            tenants: TenantNames::default(),
        };
        Self {
            hub,
            tell: Some(tell),
        }
    }

    async fn run(mut self, mut stop: watch::Receiver<bool>) {
        loop {
            let waits = self
                .tell
                .as_ref()
                .is_some_and(|tell| tell.window.is_empty());
            if waits && !stopped(&stop) {
                tokio::select! {
                    () = self.hub.arrived.notified() => {}
                    _ = stop.wait_for(|stop| *stop) => {}
                }
            }
            if !stopped(&stop) {
                // It may end sooner by a stop, which is looked at next.
                let _gathered = clock::timeout(GATHER, stop.wait_for(|stop| *stop)).await;
            }
            let last = stopped(&stop);
            let Some(tell) = self.tell.take() else {
                return;
            };
            match tokio::task::spawn_blocking(move || tell.round(last)).await {
                Ok(tell) => self.tell = Some(tell),
                Err(_shutting_down) => return,
            }
            if last {
                return;
            }
        }
    }
}

/// Asked to end, or whoever could ask is gone.
fn stopped(stop: &watch::Receiver<bool>) -> bool {
    *stop.borrow() || stop.has_changed().is_err()
}

impl Tell {
    fn round(mut self, last: bool) -> Self {
        {
            let mut waiting = self.hub.waiting.lock();
            std::mem::swap(&mut waiting.records, &mut self.fresh);
            waiting.bytes = 0;
            waiting.closed = last;
        }
        let chains = self.hub.chains.read().clone();
        let mut fresh = std::mem::take(&mut self.fresh);
        self.window
            .round(&mut fresh, last, &chains, &self.setup.ranks);
        self.times = self.times.renewed(&self.setup.clock);
        for record in &mut fresh {
            self.expand(record, &chains);
            if self.events.all().len() >= BATCH {
                self.tell();
            }
        }
        self.tell();
        fresh.clear();
        self.fresh = fresh;
        if self.window.is_empty() {
            self.rest();
        }
        self
    }

    /// Gives back what a flood took, once it is over.
    fn rest(&mut self) {
        self.fresh.shrink_to(KEPT_RECORDS);
        self.window.shrink_to(KEPT_RECORDS);
        self.events.rest();
        let mut waiting = self.hub.waiting.lock();
        if waiting.records.is_empty() {
            waiting.records.shrink_to(KEPT_RECORDS);
        }
    }

    fn expand(&mut self, record: &mut Record, chains: &[Vec<NodeIx>]) {
        let named = record.tag().and_then(|tag| {
            let tenant = self.tenants.name(tag.tenant, &self.setup.tenants)?;
            Some((tag, tenant))
        });
        let Some((tag, tenant)) = named else {
            self.setup.dropped.inc_by(record.events());
            return;
        };
        let whose = Whose {
            flow: &self.setup.flow,
            nodes: &self.setup.nodes,
            times: self.times,
            tenant,
            trace_id: tag.id,
        };
        self.events.add(whose, record, chains);
    }

    fn tell(&mut self) {
        let events = self.events.all();
        if events.is_empty() {
            return;
        }
        for observer in &self.setup.observers {
            let told = AssertUnwindSafe(|| observer.observe(events));
            if let Err(panic) = std::panic::catch_unwind(told) {
                self.setup.panics.inc();
                let flow = self.setup.flow.as_str();
                tracing::error!(flow, panic = panic_text(&*panic), "an observer panicked");
            }
        }
        self.events.clear();
    }
}

/// As observers may see it: texts bounded and without declared secrets, no error values of the program.
fn shown(kind: FlowEventKind, redactor: Option<&Redactor>) -> FlowEventKind {
    match kind {
        FlowEventKind::NodeError { error, latency } => FlowEventKind::NodeError {
            error: clean(error, redactor),
            latency,
        },
        FlowEventKind::NodeFailed { code, error } => FlowEventKind::NodeFailed {
            code,
            error: clean(error, redactor),
        },
        FlowEventKind::TraceEnd {
            outcome: Outcome::Failed(mut error),
            latency,
        } => {
            error.message = clean(error.message, redactor);
            error.source = None;
            FlowEventKind::TraceEnd {
                outcome: Outcome::Failed(error),
                latency,
            }
        }
        other => other,
    }
}

fn clean(text: String, redactor: Option<&Redactor>) -> String {
    let mut text = match redactor {
        Some(redactor) => redactor.redact(&text).into_owned(),
        None => text,
    };
    text.truncate(text.floor_char_boundary(MAX_TEXT));
    text
}
