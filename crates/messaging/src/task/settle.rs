//! Ending a claim: report, fail, renew. All of it is fenced by the claim's number.

use std::{sync::Arc, time::Duration};

use serde_json::Value;
use volary_store::{Batch, Claim, EntryRef, QueueError, StoreError, queue::Nacked};

use super::{
    TaskError, TaskManager,
    books::Held,
    event::TaskEvent,
    machine::{Step, TaskState},
    model::{ClaimToken, Task, Worker},
};

/// What became of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reported {
    /// The task is completed.
    Now,
    /// It was, by the same report.
    Before,
}

/// What becomes of a task whose attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failing {
    /// It is tried again, after the back-off or this time, while attempts are left.
    Again(Option<Duration>),
    /// It is over: trying again is no use.
    GiveUp,
}

/// How long a claim holds from now.
pub type Renewed = Duration;

/// A claim and its task, checked to be the asker's.
type Mine = (Claim, Arc<Task>);

impl TaskManager {
    fn mine(&self, worker: &Worker, token: ClaimToken) -> Result<Option<Mine>, TaskError> {
        let held = self.0.books.held.lock();
        let found = held.get(&(worker.tenant.clone(), token.task));
        let Some(Held {
            claim,
            worker: name,
            task,
        }) = found.filter(|held| held.claim.epoch == token.epoch)
        else {
            return Ok(None);
        };
        if *name == worker.name {
            Ok(Some((claim.clone(), task.clone())))
        } else {
            let (id, worker) = (token.task, worker.name.clone());
            Err(TaskError::NotAuthorized { id, worker })
        }
    }

    /// Holds a claim for another time from now.
    ///
    /// # Errors
    /// [`TaskError::Lapsed`], [`TaskError::NotAuthorized`], [`TaskError::Unknown`].
    pub async fn renew(&self, worker: &Worker, token: ClaimToken) -> Result<Renewed, TaskError> {
        let Some((claim, task)) = self.mine(worker, token)? else {
            return Err(self.lapsed(worker, token).await);
        };
        match self.line(&worker.tenant)?.renew(&claim) {
            Ok(()) => Ok(task.claim_ttl()),
            Err(QueueError::Lapsed(_)) => Err(self.lapsed(worker, token).await),
            Err(error) => Err(error.into()),
        }
    }

    /// Says that a task was done, and what it came to. Doing it twice under the same claim with the same result is
    /// harmless. A report under a claim that has ended changes nothing: it is an error, and the journal keeps its result
    /// (`task.late`).
    ///
    /// # Errors
    /// [`TaskError::Lapsed`], [`TaskError::NotAuthorized`], [`TaskError::Unknown`], [`TaskError::TooLarge`]; errors of the
    /// store.
    pub async fn report(
        &self,
        worker: &Worker,
        token: ClaimToken,
        result: Value,
    ) -> Result<Reported, TaskError> {
        let mut tx = Batch::new();
        match self.report_in(&mut tx, worker, token, result.clone()) {
            Ok(_) => match self.0.store.commit(tx).await {
                Ok(_) => {
                    self.gauge();
                    Ok(Reported::Now)
                }
                Err(StoreError::Conflict { .. }) => self.late(worker, token, &result).await,
                Err(error) => Err(error.into()),
            },
            Err(TaskError::Lapsed { .. }) => self.late(worker, token, &result).await,
            Err(error) => Err(error),
        }
    }

    /// Adds to `tx` that a task was done. The commit conflicts if the claim has ended by then. Returns the entry, which is
    /// the cause of what else follows from the work.
    ///
    /// # Errors
    /// [`TaskError::Lapsed`], [`TaskError::NotAuthorized`], [`TaskError::TooLarge`].
    pub fn report_in(
        &self,
        tx: &mut Batch,
        worker: &Worker,
        token: ClaimToken,
        result: Value,
    ) -> Result<EntryRef, TaskError> {
        let result = self.clean(result)?;
        let gone = TaskError::Lapsed {
            id: token.task,
            state: TaskState::Pending,
        };
        let Some((claim, task)) = self.mine(worker, token)? else {
            return Err(gone);
        };
        match self.line(&worker.tenant)?.ack(tx, &claim) {
            Ok(()) => {}
            Err(QueueError::Lapsed(_)) => return Err(gone),
            Err(error) => return Err(error.into()),
        }
        let (books, owner) = (&self.0.books, worker.owner());
        let mut task = Task::clone(&task);
        books.conclude(&mut task, (TaskState::Claimed, Step::Complete), None)?;
        let event = TaskEvent::Completed {
            by: &owner,
            result: &result,
        };
        let entry = tx.append(event.record(&task, Some(&worker.name)).cause(claim.cause));
        task.result = Some(result);
        books.count(tx, "completed");
        books.end(tx, claim.id, &task)?;
        Ok(entry)
    }

    /// Says that an attempt failed.
    ///
    /// # Errors
    /// As [`TaskManager::report`].
    pub async fn fail(
        &self,
        worker: &Worker,
        token: ClaimToken,
        reason: &str,
        then: Failing,
    ) -> Result<TaskState, TaskError> {
        let Some((claim, task)) = self.mine(worker, token)? else {
            return Err(self.lapsed(worker, token).await);
        };
        let (books, owner) = (&self.0.books, worker.owner());
        let reason = books.redactor.redact(reason).into_owned();
        let queue = self.line(&worker.tenant)?;
        let mut tx = Batch::new();
        let ended = match then {
            Failing::GiveUp => queue.fail(&mut tx, &claim, &reason).map(|()| None),
            Failing::Again(delay) => queue.nack(&mut tx, &claim, delay, &reason).map(Some),
        };
        let nacked = match ended {
            Ok(nacked) => nacked,
            Err(QueueError::Lapsed(_)) => return Err(self.lapsed(worker, token).await),
            Err(error) => return Err(error.into()),
        };
        let (state, retry_in) = match nacked {
            None => (TaskState::Failed, None),
            Some(Nacked::Retry(delay)) => (TaskState::Pending, Some(delay)),
            Some(Nacked::Parked) => (TaskState::Parked, None),
        };
        let event = TaskEvent::Failed {
            by: &owner,
            reason: &reason,
            retry_in,
        };
        tx.append(event.record(&task, Some(&worker.name)).cause(claim.cause));
        books.count(&mut tx, "failed");
        if state == TaskState::Failed {
            let mut task = Task::clone(&task);
            books.conclude(&mut task, (TaskState::Claimed, Step::GiveUp), Some(&reason))?;
            books.end(&mut tx, claim.id, &task)?;
        }
        match self.0.store.commit(tx).await {
            Ok(_) => {
                self.gauge();
                Ok(state)
            }
            Err(StoreError::Conflict { .. }) => Err(self.lapsed(worker, token).await),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives a claimed task back unused: the attempt does not count.
    ///
    /// # Errors
    /// As [`TaskManager::fail`].
    pub async fn release(&self, worker: &Worker, token: ClaimToken) -> Result<(), TaskError> {
        let Some((claim, _)) = self.mine(worker, token)? else {
            return Err(self.lapsed(worker, token).await);
        };
        let mut tx = Batch::new();
        match self.line(&worker.tenant)?.release(&mut tx, &claim) {
            Ok(()) => {}
            Err(QueueError::Lapsed(_)) => return Err(self.lapsed(worker, token).await),
            Err(error) => return Err(error.into()),
        }
        match self.0.store.commit(tx).await {
            Ok(_) => Ok(()),
            Err(StoreError::Conflict { .. }) => Err(self.lapsed(worker, token).await),
            Err(error) => Err(error.into()),
        }
    }

    /// Within the bound, and without declared secrets.
    fn clean(&self, result: Value) -> Result<Value, TaskError> {
        let text = result.to_string();
        let (found, limit) = (text.len(), self.0.books.config.max_task_bytes);
        if found > limit {
            return Err(TaskError::TooLarge {
                what: "result",
                found,
                limit,
            });
        }
        match self.0.books.redactor.redact(&text) {
            std::borrow::Cow::Borrowed(_) => Ok(result),
            // What is left need not be JSON (a secret may have been a number): then it is kept as text.
            std::borrow::Cow::Owned(text) => {
                Ok(serde_json::from_str(&text).unwrap_or(Value::String(text)))
            }
        }
    }

    /// What one is told who settles a claim that has ended.
    async fn lapsed(&self, worker: &Worker, token: ClaimToken) -> TaskError {
        match self.get(&worker.tenant, token.task).await {
            Ok(task) => TaskError::Lapsed {
                id: task.id,
                state: task.state,
            },
            Err(error) => error,
        }
    }

    /// A report whose claim has ended: the same as before, or too late.
    async fn late(
        &self,
        worker: &Worker,
        token: ClaimToken,
        result: &Value,
    ) -> Result<Reported, TaskError> {
        let task = self.get(&worker.tenant, token.task).await?;
        let (result, owner) = (self.clean(result.clone())?, worker.owner());
        let same = task.epoch == Some(token.epoch) && task.result.as_ref() == Some(&result);
        if same && task.state == TaskState::Completed {
            return Ok(Reported::Before);
        }
        let mut tx = Batch::new();
        let event = TaskEvent::Late {
            by: &owner,
            token,
            result: &result,
        };
        tx.append(event.record(&task, Some(&worker.name)));
        self.0.books.count(&mut tx, "late");
        self.0.store.commit(tx).await?;
        Err(TaskError::Lapsed {
            id: task.id,
            state: task.state,
        })
    }
}
