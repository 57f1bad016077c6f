//! The one task that drives all replicas: it feeds the machines, does what they say, and tells what happened.
//!
//! Everything it waits for — starts, ends, probes — runs inside this task, so dropping it drops all of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use volary_kernel::clock::{self, Mono, SharedClock, Timestamp};
use volary_kernel::id::Name;
use volary_kernel::metric::{CounterFamily, GaugeFamily, Metrics};
use volary_kernel::retry::random_unit;
use volary_kernel::secret::Redactor;

use super::handle::{Ask, Handle};
use super::lifecycle::{Action, Input, Lifecycle, Moment, State};
use super::order::Order;
use super::status::ReplicaStatus;
use super::{AgentPlan, Body, Config, DrainReport, SuperviseError};
use crate::backend::{Backend, BackendError, Exit, ReplicaId, ReplicaSpec, Started};
use crate::event::{Event, What};
use crate::health::{self, Health, Machine, ProbeResult, ProbeSpec};

/// Orders that may wait; more wait in their callers.
const ORDERS: usize = 256;
/// Events kept for a slow reader; older ones are dropped and counted to it.
const EVENTS: usize = 4096;
/// A wait with no end, cut into parts.
const IDLE: Duration = Duration::from_secs(3600);

/// What ended inside the task; the number tells which start it belongs to.
enum Done {
    Launched(usize, u64, Result<Started, BackendError>),
    Exited(usize, u64, Exit),
    Probed(usize, u64, u64, ProbeResult),
    Asked,
}

struct Replica {
    id: ReplicaId,
    agent: usize,
    spec: Option<ReplicaSpec>,
    life: Lifecycle,
    /// Counts starts: what comes from an earlier one is not taken.
    start: u64,
    machine: Option<Machine>,
    pid: Option<u32>,
    started_at: Option<Timestamp>,
    /// Shown while it waits.
    waits_on: Vec<Name>,
    last_probe: String,
}

/// Keeps a fleet's replicas as they are wanted.
pub struct Service {
    backend: Arc<dyn Backend>,
    clock: SharedClock,
    agents: Vec<AgentPlan>,
    order: Order,
    replicas: Vec<Replica>,
    work: FuturesUnordered<BoxFuture<'static, Done>>,
    orders: mpsc::Receiver<Ask>,
    shown: watch::Sender<Arc<Vec<ReplicaStatus>>>,
    events: broadcast::Sender<Event>,
    restarts: CounterFamily,
    states: GaugeFamily,
    redactor: Redactor,
    draining: Option<Drain>,
}

struct Drain {
    deadline: Mono,
    tell: Vec<oneshot::Sender<DrainReport>>,
}

// ---- building -------------------------------------------------------------------------------------------

impl Service {
    /// Checks the fleet and makes the service; nothing runs before [`run`](Self::run).
    ///
    /// # Errors
    /// [`SuperviseError::UnknownDependency`], [`SuperviseError::Cycle`].
    pub fn new(
        config: Config,
        backend: Arc<dyn Backend>,
        clock: SharedClock,
        metrics: &Metrics,
    ) -> Result<(Self, Handle), SuperviseError> {
        let needs = config
            .agents
            .iter()
            .map(|agent| (agent.name.clone(), agent.depends_on.clone()));
        let order = Order::new(needs.collect::<BTreeMap<_, _>>())?;
        let replicas = config
            .agents
            .iter()
            .enumerate()
            .flat_map(|(index, agent)| Replica::of(index, agent))
            .collect();
        let (orders_in, orders) = mpsc::channel(ORDERS);
        let (shown, seen) = watch::channel(Arc::default());
        let events = broadcast::channel(EVENTS).0;
        let handle = Handle {
            orders: orders_in,
            shown: seen,
            events: events.clone(),
        };
        let service = Self {
            backend,
            clock,
            agents: config.agents,
            order,
            replicas,
            work: FuturesUnordered::new(),
            orders,
            shown,
            events,
            restarts: metrics.counter_family(
                "replica_restarts",
                "Starts of a replica after its first one.",
                &["agent"],
            ),
            states: metrics.gauge_family("replicas", "Replicas by state.", &["state"]),
            redactor: config.redactor,
            draining: None,
        };
        service.show();
        Ok((service, handle))
    }
}

impl Replica {
    fn of(index: usize, agent: &AgentPlan) -> Vec<Self> {
        let make = |id, spec, handler| Self {
            id,
            agent: index,
            spec,
            life: Lifecycle::new(agent.rules, handler),
            start: 0,
            machine: None,
            pid: None,
            started_at: None,
            waits_on: Vec::new(),
            last_probe: String::new(),
        };
        match &agent.body {
            Body::Handler => vec![make(ReplicaId::new(agent.name.clone(), 0), None, true)],
            Body::Process(specs) => specs
                .iter()
                .map(|spec| make(spec.id.clone(), Some(spec.clone()), false))
                .collect(),
        }
    }
}

// ---- the loop -------------------------------------------------------------------------------------------

impl Service {
    /// Starts everything and keeps it so, until `cancel` or a drain has ended it all. A cancel drains with the
    /// default deadline.
    pub async fn run(mut self, cancel: CancellationToken) {
        for index in 0..self.replicas.len() {
            self.step(index, Input::Start);
        }
        loop {
            self.settle();
            if self.is_drained() {
                break;
            }
            let wait = self.next_due().map_or(IDLE, |due| due - self.clock.mono());
            tokio::select! {
                biased;
                () = cancel.cancelled(), if self.draining.is_none() => self.drain(super::DEFAULT_DRAIN, None),
                Some(order) = self.orders.recv() => self.obey(order),
                Some(done) = self.work.next(), if !self.work.is_empty() => self.took(done),
                () = clock::sleep(wait) => {}
            }
        }
        let left: Vec<_> = self
            .replicas
            .iter()
            .filter(|replica| !replica.life.state().is_at_rest())
            .map(|replica| replica.id.to_string())
            .collect();
        for tell in self
            .draining
            .take()
            .into_iter()
            .flat_map(|drain| drain.tell)
        {
            let _nobody_waits = tell.send(DrainReport { left: left.clone() });
        }
    }

    /// Gives every machine what time and the others have brought, until nothing changes; then shows it.
    fn settle(&mut self) {
        let mut changed = true;
        while changed {
            changed = false;
            for index in 0..self.replicas.len() {
                let before = self.replicas[index].life.state();
                self.step(index, Input::Tick);
                self.wait_or_go(index);
                if self.draining.is_some() {
                    self.stop_in_order(index);
                }
                changed |= self.replicas[index].life.state() != before;
            }
        }
        for index in 0..self.replicas.len() {
            self.probe_if_due(index);
        }
        self.show();
    }

    fn wait_or_go(&mut self, index: usize) {
        if self.replicas[index].life.state() != State::Pending || self.draining.is_some() {
            return;
        }
        let agent = &self.agents[self.replicas[index].agent].name;
        let missing = self.order.missing(agent, |on| self.is_ready(on));
        if missing.is_empty() {
            self.replicas[index].waits_on.clear();
            self.step(index, Input::DependenciesReady);
        } else if missing != self.replicas[index].waits_on {
            self.replicas[index].waits_on.clone_from(&missing);
            self.emit(index, What::Waiting { on: missing });
        }
    }

    /// An agent is ready when all its replicas are, or have completed their work.
    fn is_ready(&self, name: &Name) -> bool {
        self.of_agent(name).all(|replica| {
            let life = &replica.life;
            life.state() == State::Ready
                || (life.state() == State::Stopped && life.reason() == Some("completed"))
        })
    }

    fn of_agent<'a>(&'a self, name: &'a Name) -> impl Iterator<Item = &'a Replica> {
        self.replicas
            .iter()
            .filter(move |replica| replica.id.agent == *name)
    }

    fn stop_in_order(&mut self, index: usize) {
        let replica = &self.replicas[index];
        if replica.life.state().is_at_rest() || replica.life.state() == State::Stopping {
            return;
        }
        let up = |other: &Name| {
            self.of_agent(other)
                .any(|replica| !replica.life.state().is_at_rest())
        };
        if self.order.may_stop(&replica.id.agent, up) {
            self.step(index, Input::Stop);
        }
    }

    fn next_due(&self) -> Option<Mono> {
        let lives = self
            .replicas
            .iter()
            .filter_map(|replica| replica.life.due());
        let probes = self
            .replicas
            .iter()
            .filter_map(|replica| replica.machine.as_ref()?.due());
        let drain = self.draining.as_ref().map(|drain| drain.deadline);
        lives.chain(probes).chain(drain).min()
    }

    fn is_drained(&self) -> bool {
        let Some(drain) = &self.draining else {
            return false;
        };
        let late = self.clock.mono() >= drain.deadline;
        late || self
            .replicas
            .iter()
            .all(|replica| replica.life.state().is_at_rest())
    }

    fn obey(&mut self, order: Ask) {
        match order {
            Ask::Drain(deadline, tell) => self.drain(deadline, Some(tell)),
            Ask::Wish(target, wish, tell) => {
                let found: Vec<usize> = (0..self.replicas.len())
                    .filter(|index| target.is(&self.replicas[*index].id))
                    .collect();
                let answer = if found.is_empty() {
                    Err(SuperviseError::Unknown {
                        target: target.to_string(),
                    })
                } else if self.draining.is_some() {
                    Err(SuperviseError::Closed)
                } else {
                    for index in &found {
                        self.step(*index, wish.into());
                    }
                    self.show();
                    Ok(found
                        .iter()
                        .map(|index| self.replicas[*index].id.to_string())
                        .collect())
                };
                let _nobody_waits = tell.send(answer);
            }
        }
    }

    fn drain(&mut self, deadline: Duration, tell: Option<oneshot::Sender<DrainReport>>) {
        let at = self.clock.mono() + deadline;
        let drain = self.draining.get_or_insert(Drain {
            deadline: at,
            tell: Vec::new(),
        });
        drain.deadline = drain.deadline.min(at);
        drain.tell.extend(tell);
    }

    fn took(&mut self, done: Done) {
        match done {
            Done::Launched(index, start, result) if self.replicas[index].start == start => {
                self.launched(index, result);
            }
            Done::Exited(index, start, exit) if self.replicas[index].start == start => {
                self.replicas[index].machine = None;
                self.replicas[index].pid = None;
                self.step(index, Input::Exited(exit));
            }
            Done::Probed(index, start, number, result) if self.replicas[index].start == start => {
                self.probed(index, number, result);
            }
            Done::Launched(..) | Done::Exited(..) | Done::Probed(..) | Done::Asked => {}
        }
    }

    // ---- doing what the machines say ----

    fn step(&mut self, index: usize, input: Input) {
        let now = Moment {
            mono: self.clock.mono(),
            wall: self.clock.wall(),
            random: random_unit(),
        };
        let replica = &mut self.replicas[index];
        let restarts = replica.life.restarts();
        let actions = replica.life.step(input, now);
        if replica.life.restarts() > restarts {
            self.restarts.with(&[replica.id.agent.as_str()]).inc();
        }
        for action in actions {
            match action {
                Action::Emit(what) => self.emit(index, what),
                Action::Launch => self.launch(index),
                Action::Terminate => self.terminate(index),
            }
        }
    }

    fn launch(&mut self, index: usize) {
        let replica = &mut self.replicas[index];
        let Some(spec) = replica.spec.clone() else {
            return;
        };
        replica.start += 1;
        let (backend, start) = (self.backend.clone(), replica.start);
        self.work.push(Box::pin(async move {
            Done::Launched(index, start, backend.start(&spec).await)
        }));
    }

    fn launched(&mut self, index: usize, result: Result<Started, BackendError>) {
        let probe = self.probe_of(index).cloned();
        let now = self.clock.mono();
        match result {
            Ok(started) => {
                let replica = &mut self.replicas[index];
                replica.pid = started.pid;
                replica.started_at = Some(started.at);
                replica.machine = probe.as_ref().map(|spec| Machine::new(spec, now));
                let (backend, id, start) =
                    (self.backend.clone(), replica.id.clone(), replica.start);
                self.work.push(Box::pin(async move {
                    let exit = backend.wait(&id).await.unwrap_or(Exit::Lost);
                    Done::Exited(index, start, exit)
                }));
                let Started { pid, warnings, .. } = started;
                self.step(
                    index,
                    Input::Launched {
                        pid,
                        warnings,
                        probed: probe.is_some(),
                    },
                );
            }
            Err(error) => {
                let transient = error.is_transient();
                let reason = self.redactor.redact(&error.to_string()).into_owned();
                self.step(index, Input::LaunchFailed { transient, reason });
            }
        }
    }

    fn terminate(&mut self, index: usize) {
        let replica = &self.replicas[index];
        let left = self
            .draining
            .as_ref()
            .map(|drain| drain.deadline - self.clock.mono());
        let grace = replica
            .life
            .rules()
            .grace
            .min(left.unwrap_or(Duration::MAX));
        let (backend, id) = (self.backend.clone(), replica.id.clone());
        // Its end comes by the wait that was begun at its start.
        self.work.push(Box::pin(async move {
            if let Err(error) = backend.stop(&id, grace).await {
                tracing::warn!(replica = %id, %error, "stop failed");
            }
            Done::Asked
        }));
    }

    fn probe_of(&self, index: usize) -> Option<&ProbeSpec> {
        self.agents[self.replicas[index].agent].health.as_ref()
    }

    fn probe_if_due(&mut self, index: usize) {
        let now = self.clock.mono();
        let stopping = self.replicas[index].life.state() == State::Stopping;
        let Some(machine) = self.replicas[index].machine.as_mut().filter(|_| !stopping) else {
            self.replicas[index].machine = None;
            return;
        };
        let Some(health::Action::Probe { number }) = machine.step(health::Input::Tick, now) else {
            return;
        };
        let Some(spec) = self.probe_of(index).cloned() else {
            return;
        };
        let replica = &self.replicas[index];
        let (backend, id, start) = (self.backend.clone(), replica.id.clone(), replica.start);
        let wall = self.clock.wall();
        self.work.push(Box::pin(async move {
            let result = health::run(&spec, backend.as_ref(), &id, wall).await;
            Done::Probed(index, start, number, result)
        }));
    }

    fn probed(&mut self, index: usize, number: u64, result: ProbeResult) {
        let now = self.clock.mono();
        let replica = &mut self.replicas[index];
        let passed = result.is_ok();
        let said = result.err().unwrap_or_default();
        replica.last_probe = self.redactor.redact(&said).into_owned();
        let Some(machine) = &mut replica.machine else {
            return;
        };
        let change = machine.step(health::Input::Probed { number, passed }, now);
        let reason = replica.last_probe.clone();
        match change {
            Some(health::Action::Changed(Health::Healthy)) => self.step(index, Input::Healthy),
            Some(health::Action::Changed(Health::Unhealthy)) => {
                self.step(index, Input::Unhealthy { reason });
            }
            _ => {}
        }
    }

    // ---- telling ----

    fn emit(&self, index: usize, what: What) {
        let event = Event {
            replica: self.replicas[index].id.clone(),
            what,
        };
        tracing::info!(kind = event.kind(), replica = %event.replica, body = %event.body(), "replica");
        let _nobody_listens = self.events.send(event);
    }

    fn show(&self) {
        let all: Vec<_> = self
            .replicas
            .iter()
            .map(|replica| self.status(replica))
            .collect();
        for word in State::ALL {
            let count = all
                .iter()
                .filter(|status| status.state.as_str() == word)
                .count();
            self.states
                .with(&[word])
                .set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        self.shown.send_if_modified(|shown| {
            let new = **shown != all;
            if new {
                *shown = Arc::new(all);
            }
            new
        });
    }

    fn status(&self, replica: &Replica) -> ReplicaStatus {
        let life = &replica.life;
        let waits = replica
            .waits_on
            .iter()
            .map(Name::as_str)
            .collect::<Vec<_>>()
            .join(", ");
        let reason = match life.state() {
            State::Pending if !waits.is_empty() => Some(format!("waits for {waits}")),
            // An exit code, say, is the check's and not the replica's.
            State::Starting if !replica.last_probe.is_empty() => {
                Some(format!("health check: {}", replica.last_probe))
            }
            _ => life.reason().map(str::to_owned),
        };
        ReplicaStatus {
            agent: replica.id.agent.clone(),
            replica: replica.id.to_string(),
            backend: if replica.spec.is_some() {
                self.backend.name()
            } else {
                "handler"
            },
            state: life.state(),
            ready: life.state() == State::Ready,
            pid: replica.pid,
            restarts: life.restarts(),
            started_at: replica.started_at,
            ports: self.agents[replica.agent].ports.clone(),
            last_exit: life.last_exit().cloned(),
            reason,
        }
    }
}
