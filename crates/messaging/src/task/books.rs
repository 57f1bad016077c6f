//! What is kept of tasks beside the queue: the record of each, the ones that ended, the claims that hold.
//!
//! | key | value |
//! |---|---|
//! | `task/<tenant>/<id>` | [`Entry`]: the queue item, and the hash of the content |
//! | `task.end/<tenant>/<id>` | the task as it ended; written once, so that it ends once |
//!
//! While a task is alive the item in the queue `tasks/<tenant>` is the truth: 16 bytes of id, then the task as JSON. Records
//! of ended tasks go after the retention time and, oldest first, above a number.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use volary_kernel::{
    clock::{SharedClock, Timestamp},
    id::{Name, Tenant, Uid},
    metric::{Counter, CounterFamily, GaugeFamily, Histogram, Metrics},
    secret::Redactor,
};
use volary_store::{
    Batch, Claim, Expect, ItemId, Key, SharedStore, StoreError,
    queue::{Deed, Happening},
};

use super::{
    TaskConfig,
    event::TaskEvent,
    machine::{Step, TaskState},
    model::{Task, TaskId},
};

const RECORDS: &str = "task/";
pub(super) const ENDS: &str = "task.end/";
/// What the queue of a tenant's tasks is called, before the tenant.
pub(super) const QUEUES: &str = "tasks/";
const ID_LEN: usize = 16;

/// The record of a task.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Entry {
    pub v: u8,
    pub item: ItemId,
    pub hash: String,
}

pub(super) fn record_key(tenant: &Tenant, id: TaskId) -> Key {
    key(RECORDS, tenant, id)
}

pub(super) fn end_key(tenant: &Tenant, id: TaskId) -> Key {
    key(ENDS, tenant, id)
}

fn key(prefix: &str, tenant: &Tenant, id: TaskId) -> Key {
    Key::new(format!("{prefix}{tenant}/{id}")).expect("a prefix, a name and a UUID make a key")
}

/// What waits in the queue.
pub(super) fn to_payload(task: &Task) -> Bytes {
    let mut out = task.id.0.as_bytes().to_vec();
    let written = serde_json::to_writer(&mut out, task);
    written.expect("a task has text keys only, and memory does not fail");
    out.into()
}

/// The task in a queue item.
///
/// # Errors
/// [`StoreError::Corrupt`].
pub fn task_in(payload: &[u8]) -> Result<Task, StoreError> {
    let corrupt = |problem: String| StoreError::Corrupt {
        what: format!("task in a queue can not be read: {problem}"),
        seq: None,
    };
    let (id, json) = payload
        .split_first_chunk::<ID_LEN>()
        .ok_or_else(|| corrupt("it is too short".into()))?;
    let task: Task = serde_json::from_slice(json).map_err(|error| corrupt(error.to_string()))?;
    if task.id == TaskId(Uid::from_bytes(*id)) {
        Ok(task)
    } else {
        Err(corrupt("it has two ids".into()))
    }
}

pub(super) fn from_record<T: for<'de> Deserialize<'de>>(
    record: &volary_store::Record,
) -> Result<T, StoreError> {
    serde_json::from_slice(&record.value).map_err(|error| StoreError::Corrupt {
        what: format!("record `{}` can not be read: {error}", record.key.as_str()),
        seq: None,
    })
}

/// A claim that somebody holds.
pub(super) struct Held {
    pub claim: Claim,
    pub worker: Name,
    pub task: Arc<Task>,
}

/// A task that ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ended {
    pub at: Timestamp,
    pub id: TaskId,
    pub state: TaskState,
}

/// Numbers about tasks.
pub(super) struct Meters {
    events: CounterFamily,
    now: GaugeFamily,
    wait: Histogram,
    forgotten: Counter,
}

/// Bounds of the histogram of waits, in seconds.
const WAITS: &[f64] = &[0.001, 0.01, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0, 3600.0];

impl Meters {
    fn new(metrics: &Metrics) -> Self {
        Self {
            events: metrics.counter_family("tasks", "What happened to tasks", &["event"]),
            now: metrics.gauge_family("tasks_current", "Tasks that have not ended", &["state"]),
            wait: metrics.histogram(
                "task_claim_wait_seconds",
                "Seconds from submitting a task to its claims",
                WAITS,
            ),
            forgotten: metrics.counter(
                "task_results_forgotten",
                "Ended tasks that were forgotten before their time, to make room",
            ),
        }
    }

    pub(super) fn current(&self, counts: [(TaskState, usize); 3]) {
        for (state, count) in counts {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.now.with(&[state.as_str()]).set(count);
        }
    }

    pub(super) fn waited(&self, seconds: f64) {
        self.wait.observe(seconds);
    }
}

/// The books of all tenants.
pub(super) struct Books {
    pub config: TaskConfig,
    pub clock: SharedClock,
    pub redactor: Redactor,
    pub meters: Meters,
    pub held: Mutex<HashMap<(Tenant, TaskId), Held>>,
    /// Oldest first.
    pub ended: Mutex<HashMap<Tenant, VecDeque<Ended>>>,
}

impl Books {
    pub(super) async fn open(
        store: &SharedStore,
        config: TaskConfig,
        redactor: Redactor,
        metrics: &Metrics,
    ) -> Result<Self, StoreError> {
        let mut ended: HashMap<Tenant, Vec<Ended>> = HashMap::new();
        let mut after: Option<Key> = None;
        loop {
            let page = store.scan(ENDS, after.as_ref(), 512).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.key.clone());
            for record in &page {
                let task: Task = from_record(record)?;
                let (id, state) = (task.id, task.state);
                let at = task.ended_at.unwrap_or_default();
                ended
                    .entry(task.tenant)
                    .or_default()
                    .push(Ended { at, id, state });
            }
        }
        let sorted = |(tenant, mut ended): (Tenant, Vec<Ended>)| {
            ended.sort_by_key(|ended| (ended.at, ended.id));
            (tenant, VecDeque::from(ended))
        };
        Ok(Self {
            clock: store.clock().clone(),
            config,
            redactor,
            meters: Meters::new(metrics),
            held: Mutex::default(),
            ended: Mutex::new(ended.into_iter().map(sorted).collect()),
        })
    }

    /// Counts an event once `tx` is committed.
    pub(super) fn count(self: &Arc<Self>, tx: &mut Batch, word: &'static str) {
        let counter = self.meters.events.with(&[word]);
        tx.on_commit(move |_| {
            counter.inc();
        });
    }

    /// Adds to `tx` how a task ended. The batch conflicts if it has ended already.
    pub(super) fn end(
        self: &Arc<Self>,
        tx: &mut Batch,
        item: ItemId,
        task: &Task,
    ) -> Result<(), StoreError> {
        let (tenant, id) = (task.tenant.clone(), task.id);
        for oldest in self.surplus(&tenant) {
            tx.delete(record_key(&tenant, oldest.id), Expect::Any);
            tx.delete(end_key(&tenant, oldest.id), Expect::Any);
            self.meters.forgotten.inc();
        }
        let ttl = self.config.retention;
        let entry = Entry {
            v: 1,
            item,
            hash: task.content_hash(),
        };
        tx.put_ttl(record_key(&tenant, id), to_json(&entry)?, Expect::Any, ttl);
        tx.put_ttl(end_key(&tenant, id), to_json(task)?, Expect::Absent, ttl);
        let at = task.ended_at.unwrap_or_else(|| self.clock.wall());
        let ended = Ended {
            at,
            id,
            state: task.state,
        };
        let books = self.clone();
        tx.on_commit(move |_| {
            books.held.lock().remove(&(tenant.clone(), id));
            books
                .ended
                .lock()
                .entry(tenant)
                .or_default()
                .push_back(ended);
        });
        Ok(())
    }

    /// Takes out what is too old, and what is too much when one more comes.
    fn surplus(&self, tenant: &Tenant) -> Vec<Ended> {
        let mut all = self.ended.lock();
        let Some(ended) = all.get_mut(tenant) else {
            return Vec::new();
        };
        let now = self.clock.wall();
        // Their records have gone by themselves.
        while ended
            .front()
            .is_some_and(|ended| ended.at + self.config.retention <= now)
        {
            ended.pop_front();
        }
        let surplus = (ended.len() + 1).saturating_sub(self.config.max_ended.max(1));
        ended.drain(..surplus.min(ended.len())).collect()
    }

    /// Adds to the batch in which the queue does something by itself what must go with it.
    pub(super) fn follow(
        self: &Arc<Self>,
        tx: &mut Batch,
        happening: &Happening<'_>,
    ) -> Result<(), StoreError> {
        let mut task = task_in(happening.payload)?;
        let agent_of = |owner: &str| Name::new(owner.split('/').next().unwrap_or_default()).ok();
        let (word, event, agent) = match happening.deed {
            Deed::Claimed { attempt, owner } => (
                "claimed",
                TaskEvent::Claimed { attempt, by: owner },
                agent_of(owner),
            ),
            Deed::Lapsed { attempt } => ("lapsed", TaskEvent::Lapsed { attempt }, None),
            Deed::Retried => ("retried", TaskEvent::Retried, None),
            Deed::Parked { attempts, reason } => {
                ("parked", TaskEvent::Parked { attempts, reason }, None)
            }
            Deed::Expired { attempts } => {
                task.attempts = attempts;
                self.conclude(&mut task, (TaskState::Pending, Step::Expire), None)?;
                ("expired", TaskEvent::Expired, None)
            }
            Deed::Dropped { attempts, reason } => {
                task.attempts = attempts;
                self.conclude(&mut task, (TaskState::Parked, Step::Cancel), Some(reason))?;
                ("cancelled", TaskEvent::Cancelled { reason }, None)
            }
        };
        tx.append(event.record(&task, agent.as_ref()).cause(happening.cause));
        self.count(tx, word);
        if task.state.is_terminal() {
            self.end(tx, happening.id, &task)?;
        }
        if let Deed::Parked { .. } = happening.deed {
            let (books, place) = (self.clone(), (task.tenant.clone(), task.id));
            tx.on_commit(move |_| drop(books.held.lock().remove(&place)));
        }
        Ok(())
    }

    /// Brings a task to its end, if `step` leads there.
    pub(super) fn conclude(
        &self,
        task: &mut Task,
        (from, step): (TaskState, Step),
        reason: Option<&str>,
    ) -> Result<(), StoreError> {
        let next = from.after(step);
        task.state = next.map_err(|refused| StoreError::Invalid(refused.to_string()))?;
        task.reason = reason.map(str::to_owned);
        task.ended_at = Some(self.clock.wall());
        Ok(())
    }
}

fn to_json<T: Serialize>(value: &T) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value)
        .map_err(|error| StoreError::Invalid(format!("task record is not JSON: {error}")))
}
