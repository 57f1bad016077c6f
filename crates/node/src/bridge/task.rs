//! Handler agents in pools: their workers take tasks beside deliveries.
//!
//! ```text
//! claim ──▶ run (document of kind `task` on stdin, the claim renewed meanwhile)
//!              │ exit 0 ──▶ completed, with the last `report` as result, and the `send`s: one commit
//!              └ anything else ──▶ failed: again after a back-off, or parked
//! ```

use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use volary_deploy::backend::{HandlerOutcome, ReplicaId};
use volary_kernel::{SharedClock, clock, ready::Heartbeat, task::TaskResult};
use volary_messaging::{
    Sender,
    action::{Action, SendAction},
    delivery::{Delivery, DeliveryKind},
    message::{Headers, Payload},
    pool::PoolManager,
    task::{ClaimToken, Failing, Task, TaskClaim, TaskError, TaskFilter, TaskManager, Worker},
    topic::Topic,
};
use volary_store::{Batch, StoreError, queue::QueueError};

use super::{
    handler::{HandlerAgent, LIMIT_TRIES, ROOM_TRIES, ROOM_WAIT, limit_wait},
    settle::{SettleError, Settler},
};

/// A claim is renewed when a third of its time has passed.
const RENEWALS: u32 = 3;

/// Where a handler agent gets tasks from.
#[derive(Clone)]
pub(crate) struct TaskWork {
    pub tasks: TaskManager,
    pub pools: PoolManager,
    pub clock: SharedClock,
    pub topics: Vec<Topic>,
}

impl TaskWork {
    /// News of tasks of the agent's tenant.
    pub(super) fn news(&self, sender: &Sender) -> Result<watch::Receiver<u64>, TaskError> {
        self.tasks.news(sender.tenant())
    }

    fn worker(sender: &Sender, replica: &ReplicaId) -> Worker {
        Worker {
            replica: replica.to_string(),
            ..Worker::new(sender.tenant().clone(), sender.name().clone())
        }
    }

    /// The next task of one of the agent's pools, if there is one now. Tasks of no pool are for who asks for them.
    pub(super) async fn next(
        &self,
        sender: &Sender,
        replica: &ReplicaId,
    ) -> Result<Option<TaskClaim>, TaskError> {
        let pools = self.pools.of_agent(sender.tenant(), sender.name());
        if pools.is_empty() {
            return Ok(None);
        }
        let filter = TaskFilter {
            pools: Some(pools),
            topics: Some(self.topics.clone()),
            capabilities: Some(std::collections::BTreeSet::new()),
        };
        let worker = Self::worker(sender, replica);
        let mut claims = self
            .tasks
            .claim(&worker, &filter, 1, Duration::ZERO)
            .await?;
        Ok(claims.pop())
    }
}

/// The task as its handler is shown it.
fn delivery(task: &Task) -> Result<Delivery, TaskError> {
    let shown = json!({
        "id": task.id, "pool": task.pool, "objective": task.objective,
        "inputs": task.inputs, "constraints": task.constraints,
    });
    let payload = Payload::json(&shown).map_err(|error| TaskError::Invalid(error.to_string()))?;
    Ok(Delivery {
        id: task.id.0,
        kind: DeliveryKind::Task,
        topic: task.topic.clone(),
        sender: task.submitted_by.to_string(),
        tenant: task.tenant.clone(),
        trace: task.trace,
        attempt: task.attempts,
        idempotency_key: task.idempotency_key(),
        message: None,
        task: Some(task.id.0),
        headers: Headers::new(),
        replayed: None,
        deadline: task.deadline,
        payload,
    })
}

/// What a handler asked for, apart: the result is its last report.
fn parted(actions: Vec<Action>) -> (Vec<SendAction>, Value) {
    let (mut sends, mut result) = (Vec::new(), Value::Null);
    for action in actions {
        match action {
            Action::Send(send) => sends.push(send),
            Action::Report(report) => {
                let text = || Value::String(report.get().to_owned());
                result = serde_json::from_str(report.get()).unwrap_or_else(|_| text());
            }
        }
    }
    (sends, result)
}

impl HandlerAgent {
    /// Works one task to its end.
    pub(super) async fn work_task(
        &self,
        work: &TaskWork,
        replica: &ReplicaId,
        claim: TaskClaim,
        beat: &Heartbeat,
    ) -> TaskResult {
        let sender = self.voice.sender();
        let worker = TaskWork::worker(&sender, replica);
        let delivery = delivery(&claim.task)?;
        let run = self.run(replica, &delivery, work.clock.wall());
        let renewed = renew(work, &worker, &claim);
        let outcome = tokio::select! {
            outcome = beat.while_waiting(run) => outcome,
            () = renewed => {
                // The run was dropped, and with it its processes.
                tracing::warn!(agent = %worker.name, task = %claim.task.id, "a task was taken away while it was worked on");
                return Ok(());
            }
        };
        let ended = self
            .settle_task(work, (&worker, &sender), &claim, outcome, beat)
            .await;
        match ended {
            Err(TaskError::Lapsed { .. } | TaskError::Unknown(_)) => {
                tracing::warn!(agent = %worker.name, task = %claim.task.id, "an attempt at a task ended after its claim");
                Ok(())
            }
            other => Ok(other?),
        }
    }

    async fn settle_task(
        &self,
        work: &TaskWork,
        (worker, sender): (&Worker, &Sender),
        claim: &TaskClaim,
        outcome: HandlerOutcome,
        beat: &Heartbeat,
    ) -> Result<(), TaskError> {
        let fail = async |reason: String| {
            let failing = work
                .tasks
                .fail(worker, claim.token, &reason, Failing::Again(None));
            failing.await.map(drop)
        };
        let actions = match self.actions(&outcome) {
            Ok(actions) => parted(actions),
            Err(reason) => return fail(reason).await,
        };
        let mut tries = 0;
        loop {
            let (sends, result) = actions.clone();
            let whose = (worker, sender, &claim.task);
            let done = self
                .settler
                .complete(&work.tasks, whose, claim.token, sends, result)
                .await;
            let wait = match done {
                Ok(()) => return Ok(()),
                Err(SettleError::StoreFull(_)) => ROOM_WAIT,
                Err(SettleError::Later(_)) if tries < ROOM_TRIES => {
                    tries += 1;
                    ROOM_WAIT
                }
                Err(SettleError::Limited { retry_after, .. }) if tries < LIMIT_TRIES => {
                    tries += 1;
                    limit_wait(retry_after, tries)
                }
                // The report says so, and the journal keeps what was to be reported.
                Err(SettleError::Lapsed) => {
                    let late = work.tasks.report(worker, claim.token, actions.1);
                    return late.await.map(drop);
                }
                Err(other) => return fail(other.to_string()).await,
            };
            work.tasks.renew(worker, claim.token).await?;
            let least = claim.task.claim_ttl() / RENEWALS;
            beat.while_waiting(clock::sleep(wait.min(least))).await;
        }
    }
}

/// Renews a claim until that is no longer possible.
async fn renew(work: &TaskWork, worker: &Worker, claim: &TaskClaim) {
    let wait = claim.task.claim_ttl() / RENEWALS;
    loop {
        clock::sleep(wait).await;
        if work.tasks.renew(worker, claim.token).await.is_err() {
            return;
        }
    }
}

impl Settler {
    /// Completes a task, and sends what follows from it, in one commit.
    async fn complete(
        &self,
        tasks: &TaskManager,
        (worker, sender, task): (&Worker, &Sender, &Task),
        token: ClaimToken,
        sends: Vec<SendAction>,
        result: Value,
    ) -> Result<(), SettleError> {
        let mut tx = Batch::new();
        let cause = tasks
            .report_in(&mut tx, worker, token, result)
            .map_err(of_task)?;
        for send in sends {
            self.send(&mut tx, (sender, task.trace), send, cause)
                .await?;
        }
        self.store.commit(tx).await?;
        Ok(())
    }
}

fn of_task(error: TaskError) -> SettleError {
    match error {
        TaskError::Lapsed { .. } | TaskError::Unknown(_) | TaskError::NotAuthorized { .. } => {
            SettleError::Lapsed
        }
        TaskError::Queue(QueueError::Store(full @ StoreError::Full { .. })) => {
            SettleError::StoreFull(full.to_string())
        }
        TaskError::Queue(error) => SettleError::Inbox(error.into()),
        other => SettleError::Task(other),
    }
}
