//! The manager: submitting, claiming, calling off.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::RwLock;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use volary_kernel::{
    clock::SharedClock,
    id::{Name, Tenant, TraceId},
    metric::Metrics,
    secret::Redactor,
};
use volary_store::{
    Batch, Expect, ItemId, MemoryConfig, MemoryStore, NewItem, Outcome, Queue, QueueConfig,
    QueueError, Queues, SharedStore, StoreError, queue::Follow,
};

use super::{
    CLAIM_TTL_MAX, CLAIM_TTL_MIN, TaskConfig, TaskError,
    books::{self, Books, Entry, Held, QUEUES},
    event::TaskEvent,
    machine::{Step, TaskState},
    model::{ClaimToken, NewTask, REQUIRED_MAX, Task, TaskFilter, TaskId, Worker},
};
use crate::inbox::queue_priority;

/// What became of a submit.
#[derive(Debug, Clone, PartialEq)]
pub enum Submitted {
    /// It is there now.
    New(TaskId),
    /// The same was submitted before; this is how it stands.
    Before(Box<Task>),
}

impl Submitted {
    /// The task.
    pub fn id(&self) -> TaskId {
        match self {
            Self::New(id) => *id,
            Self::Before(task) => task.id,
        }
    }
}

/// A task that was handed out.
#[derive(Debug, Clone)]
pub struct TaskClaim {
    /// The task.
    pub task: Task,
    /// What a report must show.
    pub token: ClaimToken,
}

/// The tasks of all tenants of a store. Clones share them.
#[derive(Clone)]
pub struct TaskManager(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub queues: Queues,
    pub store: SharedStore,
    pub books: Arc<Books>,
    lines: RwLock<HashMap<Tenant, Queue>>,
    /// Whether nobody else runs the queues.
    alone: bool,
}

/// How often a race with somebody else is begun anew.
const TRIES: usize = 16;

impl TaskManager {
    /// The tasks in these queues of `store`. Somebody must run [`Queues::run`], so that time passes while nobody claims.
    ///
    /// # Errors
    /// Errors of reading the store.
    pub async fn open(
        queues: Queues,
        store: SharedStore,
        config: TaskConfig,
        redactor: Redactor,
        metrics: &Metrics,
    ) -> Result<Self, TaskError> {
        Self::with(queues, store, config, (redactor, metrics), false).await
    }

    async fn with(
        queues: Queues,
        store: SharedStore,
        config: TaskConfig,
        (redactor, metrics): (Redactor, &Metrics),
        alone: bool,
    ) -> Result<Self, TaskError> {
        let books = Arc::new(Books::open(&store, config, redactor, metrics).await?);
        let waiting = queues.unopened();
        let manager = Self(Arc::new(Inner {
            queues,
            store,
            books,
            lines: RwLock::default(),
            alone,
        }));
        for (name, _) in waiting {
            let tenant = name
                .strip_prefix(QUEUES)
                .and_then(|tenant| tenant.parse().ok());
            if let Some(tenant) = tenant {
                manager.line(&tenant)?;
            }
        }
        manager.gauge();
        Ok(manager)
    }

    /// Tasks that live as long as the process, for tests and for who embeds Volary without a store. [`TaskManager::run`]
    /// lets their time pass.
    ///
    /// # Errors
    /// None in practice: the store is in memory.
    pub async fn in_memory(clock: SharedClock) -> Result<Self, TaskError> {
        let node = Name::new("memory").map_err(|error| TaskError::Invalid(error.to_string()))?;
        let store: SharedStore = Arc::new(MemoryStore::new(MemoryConfig::new(node), clock));
        let queues = Queues::open(store.clone()).await?;
        let metrics = Metrics::default();
        let parts = (Redactor::default(), &metrics);
        Self::with(queues, store, TaskConfig::default(), parts, true).await
    }

    /// Lets time pass until `stop`, if nobody else runs the queues.
    pub async fn run(&self, stop: CancellationToken) {
        if self.0.alone {
            self.0.queues.run(stop).await;
        } else {
            stop.cancelled().await;
        }
    }

    /// The queue of a tenant's tasks.
    pub(super) fn line(&self, tenant: &Tenant) -> Result<Queue, TaskError> {
        if let Some(queue) = self.0.lines.read().get(tenant) {
            return Ok(queue.clone());
        }
        let mut lines = self.0.lines.write();
        let config = &self.0.books.config;
        if lines.len() >= config.max_tenants && !lines.contains_key(tenant) {
            return Err(TaskError::TooManyTenants(config.max_tenants));
        }
        let books = self.0.books.clone();
        let queue = self.0.queues.queue(QueueConfig {
            subject: "task",
            journal_claims: true,
            max_items: config.max_tasks,
            max_bytes: config.max_bytes,
            visibility: config.claim_ttl,
            max_attempts: config.max_retries.saturating_add(1),
            backoff: config.backoff,
            follow: Some(Follow::new(move |tx, happening| {
                books.follow(tx, happening)
            })),
            ..QueueConfig::new(format!("{QUEUES}{tenant}"))
        })?;
        lines.insert(tenant.clone(), queue.clone());
        Ok(queue)
    }

    /// Brings the numbers of tasks that have not ended up to date.
    pub(super) fn gauge(&self) {
        let (mut pending, mut claimed, mut parked) = (0, 0, 0);
        for queue in self.0.lines.read().values() {
            let stats = queue.stats();
            pending += stats.ready + stats.delayed;
            claimed += stats.claimed;
            parked += stats.parked;
        }
        self.0.books.meters.current([
            (TaskState::Pending, pending),
            (TaskState::Claimed, claimed),
            (TaskState::Parked, parked),
        ]);
    }

    /// News of tasks that can be claimed, of a tenant: whoever waits looks again.
    ///
    /// # Errors
    /// [`TaskError::TooManyTenants`].
    pub fn news(&self, tenant: &Tenant) -> Result<watch::Receiver<u64>, TaskError> {
        Ok(self.line(tenant)?.news())
    }

    // --- Submit ------------------------------------------------------------------------------

    /// Submits a task for `by`. Durable on return. The same again (same id, same content) changes nothing and tells how it
    /// stands.
    ///
    /// # Errors
    /// [`TaskError::Conflict`], [`TaskError::Invalid`], [`TaskError::Secret`], [`TaskError::TooLarge`]; a full queue or
    /// store.
    pub async fn submit(
        &self,
        tenant: &Tenant,
        by: &Name,
        new: NewTask,
    ) -> Result<Submitted, TaskError> {
        let task = self.made(tenant, by, new)?;
        let mut tx = Batch::new();
        self.add(&mut tx, &task)?;
        match self.0.store.commit(tx).await {
            Ok(_) => {
                self.gauge();
                Ok(Submitted::New(task.id))
            }
            Err(StoreError::Conflict { .. }) => self.before(&task).await,
            Err(error) => Err(error.into()),
        }
    }

    /// Adds a new task to `tx`: it waits from the moment the batch commits. The commit conflicts if its id is taken.
    ///
    /// # Errors
    /// As [`TaskManager::submit`], but for the conflict.
    pub fn submit_in(
        &self,
        tx: &mut Batch,
        tenant: &Tenant,
        by: &Name,
        new: NewTask,
    ) -> Result<TaskId, TaskError> {
        let task = self.made(tenant, by, new)?;
        self.add(tx, &task)?;
        Ok(task.id)
    }

    fn add(&self, tx: &mut Batch, task: &Task) -> Result<(), TaskError> {
        let queue = self.line(&task.tenant)?;
        let payload = books::to_payload(task);
        let limit = self.0.books.config.max_task_bytes;
        if payload.len() > limit {
            let found = payload.len();
            return Err(TaskError::TooLarge {
                what: "task",
                found,
                limit,
            });
        }
        if self.0.books.redactor.contains(&payload) {
            return Err(TaskError::Secret(task.id));
        }
        let start = tx.savepoint();
        let event = tx.append(TaskEvent::Submitted.record(task, Some(&task.submitted_by)));
        let item = NewItem {
            trace: Some(task.trace),
            cause: event.into(),
            priority: queue_priority(task.priority),
            deadline: task.deadline,
            lane: Some(task.lane()),
            max_attempts: Some(task.max_retries.saturating_add(1)),
            visibility: Some(task.claim_ttl()),
            ..NewItem::new(task.tenant.clone(), payload)
        };
        let enqueued = queue
            .enqueue(tx, item)
            .inspect_err(|_| tx.roll_back(start))?;
        let entry = Entry {
            v: 1,
            item: enqueued.id,
            hash: task.content_hash(),
        };
        let entry = serde_json::to_vec(&entry).expect("ids and words have a JSON form");
        tx.put(
            books::record_key(&task.tenant, task.id),
            entry,
            Expect::Absent,
        );
        self.0.books.count(tx, "submitted");
        tx.intake();
        Ok(())
    }

    fn made(&self, tenant: &Tenant, by: &Name, new: NewTask) -> Result<Task, TaskError> {
        let config = &self.0.books.config;
        let claim_ttl = new.claim_ttl.unwrap_or(config.claim_ttl);
        if !(CLAIM_TTL_MIN..=CLAIM_TTL_MAX).contains(&claim_ttl) {
            return Err(TaskError::Invalid(format!(
                "a claim must hold for 10ms to 24h, found {claim_ttl:?}"
            )));
        }
        let required = new.required_capabilities.len();
        if required > REQUIRED_MAX {
            return Err(TaskError::Invalid(format!(
                "{required} required capabilities are more than {REQUIRED_MAX}"
            )));
        }
        let now = self.0.books.clock.wall();
        if let Some(deadline) = new.deadline
            && deadline <= now
        {
            return Err(TaskError::Invalid(format!(
                "deadline {deadline} has passed, now is {now}"
            )));
        }
        Ok(Task {
            id: new.id.unwrap_or_else(TaskId::generate),
            tenant: tenant.clone(),
            pool: new.pool,
            topic: new.topic,
            required_capabilities: new.required_capabilities,
            objective: new.objective,
            inputs: new.inputs,
            constraints: new.constraints,
            priority: new.priority,
            deadline: new.deadline,
            max_retries: new.max_retries.unwrap_or(config.max_retries),
            claim_ttl_ms: u64::try_from(claim_ttl.as_millis()).unwrap_or(u64::MAX),
            submitted_by: by.clone(),
            submitted_at: now,
            trace: new.trace.unwrap_or_else(TraceId::generate),
            state: TaskState::Pending,
            assigned_to: None,
            attempts: 0,
            result: None,
            reason: None,
            epoch: None,
            ended_at: None,
        })
    }

    /// The task that has the id of a new one, if it is the same.
    async fn before(&self, new: &Task) -> Result<Submitted, TaskError> {
        let record = self.record(&new.tenant, new.id).await?;
        let (entry, _) = record.ok_or(TaskError::Unknown(new.id))?;
        if entry.hash != new.content_hash() {
            return Err(TaskError::Conflict(new.id));
        }
        let task = self.get(&new.tenant, new.id).await?;
        Ok(Submitted::Before(Box::new(task)))
    }

    /// The records of a task: the one that names its item, and how it ended if it has.
    pub(super) async fn record(
        &self,
        tenant: &Tenant,
        id: TaskId,
    ) -> Result<Option<(Entry, Option<Task>)>, TaskError> {
        let keys = [books::record_key(tenant, id), books::end_key(tenant, id)];
        let mut found = self.0.store.get_many(&keys).await?.into_iter();
        let (entry, end) = (found.next().flatten(), found.next().flatten());
        let Some(entry) = entry else { return Ok(None) };
        let end = end.as_ref().map(books::from_record).transpose()?;
        Ok(Some((books::from_record(&entry)?, end)))
    }

    // --- Claim -------------------------------------------------------------------------------

    /// Claims up to `max` tasks that `filter` admits, for `worker`; waits up to `wait` for the first. The highest priority
    /// first, then the oldest. Cancel-safe.
    ///
    /// # Errors
    /// Errors of the store.
    pub async fn claim(
        &self,
        worker: &Worker,
        filter: &TaskFilter,
        max: usize,
        wait: Duration,
    ) -> Result<Vec<TaskClaim>, TaskError> {
        let (queue, owner) = (self.line(&worker.tenant)?, worker.owner());
        let claims = queue.claim_where(&owner, max, wait, |lane| filter.admits(lane));
        let claims = claims.await?;
        let mut handed = Vec::with_capacity(claims.len());
        for claim in claims {
            handed.push(self.hand(worker, claim)?);
        }
        self.gauge();
        Ok(handed)
    }

    /// Claims this task; `None` if `filter` does not admit it, somebody has it, or it is over, or it is not there.
    ///
    /// # Errors
    /// Errors of the store.
    pub async fn claim_id(
        &self,
        worker: &Worker,
        filter: &TaskFilter,
        id: TaskId,
    ) -> Result<Option<TaskClaim>, TaskError> {
        let Some((entry, None)) = self.record(&worker.tenant, id).await? else {
            return Ok(None);
        };
        let queue = self.line(&worker.tenant)?;
        let view = queue.views(&[entry.item]).await?.pop().flatten();
        let task = view.map(|view| books::task_in(&view.payload)).transpose()?;
        if !task.is_some_and(|task| filter.admits(&task.lane())) {
            return Ok(None);
        }
        let claim = queue.claim_item(&worker.owner(), entry.item).await?;
        let claim = claim.map(|claim| self.hand(worker, claim)).transpose()?;
        self.gauge();
        Ok(claim)
    }

    fn hand(&self, worker: &Worker, claim: volary_store::Claim) -> Result<TaskClaim, TaskError> {
        let books = &self.0.books;
        let mut task = books::task_in(&claim.payload)?;
        books
            .meters
            .waited(books.clock.wall().since(task.submitted_at).as_secs_f64());
        task.state = TaskState::Pending
            .after(Step::Claim)
            .unwrap_or(TaskState::Claimed);
        task.attempts = claim.attempt;
        task.assigned_to = Some(worker.owner());
        task.epoch = Some(claim.epoch);
        task.reason.clone_from(&claim.last_reason);
        let token = ClaimToken {
            task: task.id,
            epoch: claim.epoch,
        };
        let held = Held {
            claim,
            worker: worker.name.clone(),
            task: Arc::new(task.clone()),
        };
        books
            .held
            .lock()
            .insert((task.tenant.clone(), task.id), held);
        Ok(TaskClaim { task, token })
    }

    /// The claim that `worker` holds of a task, if it does.
    pub fn held_by(&self, worker: &Worker, id: TaskId) -> Option<ClaimToken> {
        let held = self.0.books.held.lock();
        let held = held.get(&(worker.tenant.clone(), id))?;
        let epoch = held.claim.epoch;
        (held.worker == worker.name).then_some(ClaimToken { task: id, epoch })
    }

    // --- Cancel ------------------------------------------------------------------------------

    /// Calls a task off, whoever works on it: a report that comes later changes nothing. `false` if it had ended.
    ///
    /// # Errors
    /// [`TaskError::Unknown`]; errors of the store.
    pub async fn cancel(
        &self,
        tenant: &Tenant,
        id: TaskId,
        reason: &str,
    ) -> Result<bool, TaskError> {
        let reason = self.0.books.redactor.redact(reason).into_owned();
        let queue = self.line(tenant)?;
        for _ in 0..TRIES {
            let found = self.record(tenant, id).await?;
            let Some((entry, end)) = found else {
                return Err(TaskError::Unknown(id));
            };
            if end.is_some() {
                return Ok(false);
            }
            match self.take_out(&queue, tenant, entry.item, &reason).await {
                Ok(()) => {
                    self.gauge();
                    return Ok(true);
                }
                // It was claimed, settled or moved in between.
                Err(TaskError::Queue(
                    QueueError::UnknownItem(_) | QueueError::Store(StoreError::Conflict { .. }),
                )) => {}
                Err(error) => return Err(error),
            }
        }
        Err(TaskError::Invalid(format!(
            "task {id} is claimed and settled too fast to be cancelled"
        )))
    }

    async fn take_out(
        &self,
        queue: &Queue,
        tenant: &Tenant,
        item: ItemId,
        reason: &str,
    ) -> Result<(), TaskError> {
        let Some(view) = queue.views(&[item]).await?.pop().flatten() else {
            let parked = self.0.queues.drop_parked(item, reason).await;
            return parked.map_err(TaskError::from);
        };
        let mut task = books::task_in(&view.payload)?;
        debug_assert_eq!(task.tenant, *tenant);
        let books = &self.0.books;
        task.attempts = view.attempts;
        books.conclude(&mut task, (TaskState::Pending, Step::Cancel), Some(reason))?;
        let mut tx = Batch::new();
        queue.remove(&mut tx, item, Outcome::Dropped("cancelled".into()))?;
        tx.append(TaskEvent::Cancelled { reason }.record(&task, None));
        books.count(&mut tx, "cancelled");
        books.end(&mut tx, item, &task)?;
        self.0.store.commit(tx).await?;
        Ok(())
    }
}
