//! What a runtime works with beside messages: tasks it is shown and claims, and the log of what its agent gets and sends.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use parking_lot::Mutex as SyncMutex;
use serde_json::Value;
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;
use volary_kernel::{
    clock::{Mono, SharedClock},
    collector::FloatGauge,
    id::Name,
};

use super::{
    decision::{Done, Failure},
    event::{Listener, RuntimeEvent},
};
use crate::{
    discovery::Capability,
    message::{Message, Sender},
    pool::{Admit, Created, PoolManager},
    replay::{ReplayError, ReplayLog},
    task::{
        ClaimToken, Failing, NewTask, Task, TaskError, TaskFilter, TaskId, TaskManager, Worker,
    },
    topic::Topic,
};

/// Most claims of one runtime at a time.
pub(super) const CLAIMS_MAX: usize = 1024;

/// The parts that a builder collects; each may be missing.
#[derive(Default)]
pub(super) struct WorkParts {
    pub(super) log: Option<ReplayLog>,
    pub(super) tasks: Option<TaskManager>,
    pub(super) pools: Option<PoolManager>,
    pub(super) capabilities: BTreeSet<Capability>,
}

/// The parts around an agent.
pub(super) struct Work {
    log: Option<ReplayLog>,
    tasks: Option<TaskManager>,
    pools: Option<PoolManager>,
    size: FloatGauge,
    capabilities: BTreeSet<Capability>,
    topics: Vec<Topic>,
    worker: Worker,
    clock: SharedClock,
    held: SyncMutex<BTreeMap<TaskId, Held>>,
    news: Option<Mutex<watch::Receiver<u64>>>,
}

/// A claim of this runtime.
#[derive(Clone, Copy)]
struct Held {
    token: ClaimToken,
    ttl: Duration,
    renew_at: Mono,
}

impl Held {
    /// A claim that was just made or renewed; it is renewed after a third of its time.
    fn from(token: ClaimToken, ttl: Duration, now: Mono) -> Self {
        Self {
            token,
            ttl,
            renew_at: now + ttl / 3,
        }
    }
}

impl Work {
    pub(super) fn new(
        parts: WorkParts,
        sender: &Sender,
        topics: Vec<Topic>,
        (clock, size): (SharedClock, FloatGauge),
    ) -> Result<Self, TaskError> {
        let news = parts
            .tasks
            .as_ref()
            .map(|tasks| tasks.news(sender.tenant()));
        Ok(Self {
            log: parts.log,
            news: news.transpose()?.map(Mutex::new),
            tasks: parts.tasks,
            pools: parts.pools,
            size,
            capabilities: parts.capabilities,
            topics,
            worker: Worker::new(sender.tenant().clone(), sender.name().clone()),
            clock,
            held: SyncMutex::default(),
        })
    }

    /// Tasks that the agent holds, then those that it may claim, at most `max`.
    pub(super) async fn visible(&self, max: usize, listener: &Listener) -> Vec<Task> {
        self.gauge();
        let Some(tasks) = &self.tasks else {
            return Vec::new();
        };
        let held: Vec<TaskId> = self.held.lock().keys().copied().take(max).collect();
        let mut visible = Vec::with_capacity(held.len());
        for id in held {
            match tasks.get(&self.worker.tenant, id).await {
                Ok(task) if !task.state.is_terminal() => visible.push(task),
                Ok(_) | Err(TaskError::Unknown(_)) => {
                    self.held.lock().remove(&id);
                }
                Err(error) => trouble("tasks", &error, listener),
            }
        }
        let left = max.saturating_sub(visible.len());
        if left > 0 {
            let tenant = &self.worker.tenant;
            match tasks.list_pending(tenant, &self.filter(), None, left).await {
                Ok(page) => visible.extend(page.tasks),
                Err(error) => trouble("tasks", &error, listener),
            }
        }
        visible
    }

    fn filter(&self) -> TaskFilter {
        TaskFilter {
            pools: Some(self.pools()),
            topics: Some(self.topics.clone()),
            capabilities: Some(self.capabilities.clone()),
        }
    }

    /// The pools that the agent is in.
    fn pools(&self) -> Vec<Name> {
        let (tenant, name) = (&self.worker.tenant, &self.worker.name);
        let pools = self.pools.as_ref();
        pools.map_or_else(Vec::new, |pools| pools.of_agent(tenant, name))
    }

    /// Tells how many members the agent's pools have.
    pub(super) fn gauge(&self) {
        let Some(pools) = &self.pools else { return };
        let members = |pool: &Name| {
            pools
                .get(&self.worker.tenant, pool)
                .map(|pool| pool.members.len())
        };
        let size: usize = self.pools().iter().filter_map(members).sum();
        #[expect(
            clippy::cast_precision_loss,
            reason = "members are far fewer than 2^52"
        )]
        self.size.set(size as f64);
    }

    fn pool_manager(&self) -> Result<&PoolManager, Failure> {
        let none = || Failure::Invalid("the runtime has no pool manager".to_owned());
        self.pools.as_ref().ok_or_else(none)
    }

    pub(super) async fn join(&self, pool: &Name, token: Option<&str>) -> Result<Done, Failure> {
        let (tenant, name) = (&self.worker.tenant, &self.worker.name);
        let joined = self.pool_manager()?.join(tenant, pool, name, token).await?;
        Ok(Done::Pool(joined))
    }

    pub(super) async fn leave(&self, pool: &Name) -> Result<Done, Failure> {
        let (tenant, name) = (&self.worker.tenant, &self.worker.name);
        let left = self.pool_manager()?.leave(tenant, pool, name, name).await?;
        Ok(Done::Pool(left))
    }

    pub(super) async fn create(&self, pool: &Name, admit: Admit) -> Result<Done, Failure> {
        let (tenant, name) = (&self.worker.tenant, &self.worker.name);
        let created = self
            .pool_manager()?
            .create(tenant, pool, admit, name)
            .await?;
        Ok(Done::Pool(created == Created::Now))
    }

    /// Whether the agent may claim `task`, by its pools, topics and capabilities.
    fn may_claim(&self, task: &Task) -> bool {
        let pools = self.pools();
        task.pool.as_ref().is_none_or(|pool| pools.contains(pool))
            && task
                .topic
                .as_ref()
                .is_none_or(|topic| self.topics.contains(topic))
            && task.required_capabilities.is_subset(&self.capabilities)
    }

    /// Resolves when there may be tasks to claim that were not there before. Cancel-safe.
    pub(super) async fn changed(&self) {
        if let Some(news) = &self.news
            && news.lock().await.changed().await.is_ok()
        {
            return;
        }
        std::future::pending().await
    }

    /// Lets the time of tasks pass, where nobody else does.
    pub(super) async fn run(&self, stop: CancellationToken) {
        if let Some(tasks) = &self.tasks {
            tasks.run(stop).await;
        }
    }

    // --- Decisions ---------------------------------------------------------------------------

    fn manager(&self) -> Result<&TaskManager, Failure> {
        let none = || Failure::Invalid("the runtime has no task manager".to_owned());
        self.tasks.as_ref().ok_or_else(none)
    }

    pub(super) async fn submit(&self, task: NewTask) -> Result<Done, Failure> {
        let (tenant, by) = (&self.worker.tenant, &self.worker.name);
        let submitted = self.manager()?.submit(tenant, by, task).await?;
        Ok(Done::Submitted(submitted.id()))
    }

    /// The task as it stands, if the agent may claim it.
    pub(super) async fn claimable(&self, id: TaskId) -> Result<Task, Failure> {
        let task = self.manager()?.get(&self.worker.tenant, id).await?;
        if self.may_claim(&task) {
            Ok(task)
        } else {
            Err(Failure::Denied(format!(
                "task {id} is for another pool, topic or capability"
            )))
        }
    }

    pub(super) async fn claim(&self, id: TaskId) -> Result<Done, Failure> {
        if self.held.lock().len() >= CLAIMS_MAX {
            let problem = format!("the agent holds {CLAIMS_MAX} claims, which is the limit");
            return Err(Failure::Invalid(problem));
        }
        let claim = self
            .manager()?
            .claim_id(&self.worker, &self.filter(), id)
            .await?;
        let Some(claim) = claim else {
            let problem = format!("task {id} is somebody else's, or over");
            return Err(Failure::Failed(problem));
        };
        let held = Held::from(claim.token, claim.task.claim_ttl(), self.clock.mono());
        self.held.lock().insert(id, held);
        Ok(Done::Claimed(Box::new(claim.task)))
    }

    fn token(&self, id: TaskId) -> Result<ClaimToken, Failure> {
        let held = self.held.lock().get(&id).map(|held| held.token);
        held.ok_or_else(|| {
            Failure::Invalid(format!("not authorized: this agent holds no claim of {id}"))
        })
    }

    pub(super) async fn report(&self, id: TaskId, result: Value) -> Result<Done, Failure> {
        let token = self.token(id)?;
        let reported = self.manager()?.report(&self.worker, token, result).await;
        self.settled(id, reported)?;
        Ok(Done::Reported)
    }

    pub(super) async fn fail(
        &self,
        id: TaskId,
        reason: &str,
        then: Failing,
    ) -> Result<Done, Failure> {
        let token = self.token(id)?;
        let failed = self
            .manager()?
            .fail(&self.worker, token, reason, then)
            .await;
        self.settled(id, failed).map(Done::TaskFailed)
    }

    /// Forgets a claim that is over, whichever way.
    fn settled<R>(&self, id: TaskId, result: Result<R, TaskError>) -> Result<R, Failure> {
        let over = match &result {
            Ok(_) => true,
            Err(error) => matches!(error, TaskError::Lapsed { .. } | TaskError::Unknown(_)),
        };
        if over {
            self.held.lock().remove(&id);
        }
        Ok(result?)
    }

    // --- Claims ------------------------------------------------------------------------------

    /// Renews the claims that are due. One that has lapsed is told and forgotten: its work must not be reported.
    pub(super) async fn renew(&self, listener: &Listener) {
        let Some(tasks) = &self.tasks else { return };
        let now = self.clock.mono();
        let due = |(id, held): (&TaskId, &Held)| (held.renew_at <= now).then_some((*id, *held));
        let due: Vec<(TaskId, Held)> = self.held.lock().iter().filter_map(due).collect();
        for (id, held) in due {
            match tasks.renew(&self.worker, held.token).await {
                Ok(ttl) => {
                    if let Some(held) = self.held.lock().get_mut(&id) {
                        *held = Held::from(held.token, ttl, self.clock.mono());
                    }
                }
                Err(error @ (TaskError::Lapsed { .. } | TaskError::Unknown(_))) => {
                    self.held.lock().remove(&id);
                    trouble("claims", &error, listener);
                }
                Err(error) => trouble("claims", &error, listener),
            }
        }
    }

    /// How long until the next claim is due; at most a second.
    pub(super) fn next_renewal(&self) -> Duration {
        let least = self.held.lock().values().map(|held| held.ttl / 6).min();
        let second = Duration::from_secs(1);
        least
            .unwrap_or(second)
            .clamp(Duration::from_millis(2), second)
    }

    /// Gives back what the agent still holds; the attempts do not count.
    pub(super) async fn release_all(&self, listener: &Listener) {
        let Some(tasks) = &self.tasks else { return };
        let held = std::mem::take(&mut *self.held.lock());
        for held in held.into_values() {
            if let Err(error) = tasks.release(&self.worker, held.token).await {
                trouble("claims", &error, listener);
            }
        }
    }

    // --- Log ---------------------------------------------------------------------------------

    /// Records what was sent. A log that fails does not stop the agent: it is told.
    pub(super) async fn record_sent(&self, message: &Message, listener: &Listener) {
        if let Some(log) = &self.log {
            told(log.record_outbound(message).await.map(drop), listener);
        }
    }

    /// Records what was received, verified and passed by the hooks, before the agent sees it.
    pub(super) async fn record_received(
        &self,
        message: &Message,
        receiver: &Name,
        listener: &Listener,
    ) {
        if let Some(log) = &self.log {
            let recorded = log.record_inbound(message, receiver).await;
            told(recorded.map(drop), listener);
        }
    }
}

fn told(recorded: Result<(), ReplayError>, listener: &Listener) {
    if let Err(error) = recorded {
        trouble("replay log", &error, listener);
    }
}

fn trouble(part: &'static str, error: &dyn std::error::Error, listener: &Listener) {
    tracing::warn!(part, %error, "a part around an agent failed");
    listener.tell(&RuntimeEvent::Trouble {
        part,
        problem: error.to_string(),
    });
}
