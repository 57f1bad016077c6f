//! Looking at tasks, and waiting for their end.

use std::time::Duration;

use volary_kernel::{clock, id::Tenant};
use volary_store::{
    ItemId, QueueError,
    queue::{ItemView, ParkedItem, Place, Standing},
};

use super::{
    TaskError, TaskManager,
    books::{self, QUEUES},
    machine::TaskState,
    model::{Task, TaskFilter, TaskId},
};

/// Most tasks of one page.
pub const PAGE_MAX: usize = 1000;

/// How a task stood when the wait ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Waited {
    /// It ended, or it is parked: nothing more happens to it by itself.
    Done(Box<Task>),
    /// Time was up before that.
    TimedOut(Box<Task>),
}

/// Which tasks to list.
#[derive(Debug, Clone, Default)]
pub struct TaskQuery {
    /// In this state only.
    pub state: Option<TaskState>,
    /// Of these lanes only.
    pub filter: TaskFilter,
    /// Most tasks; at most `PAGE_MAX`, and that many if zero.
    pub limit: usize,
}

/// Some tasks, and whether there are more.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskPage {
    /// The tasks.
    pub tasks: Vec<Task>,
    /// Where the next page begins, if there is more.
    pub next: Option<Place>,
}

impl TaskManager {
    /// A task as it is.
    ///
    /// # Errors
    /// [`TaskError::Unknown`]; errors of reading.
    pub async fn get(&self, tenant: &Tenant, id: TaskId) -> Result<Task, TaskError> {
        let queue = self.line(tenant)?;
        // It may move from one place to another while this looks: then it looks again.
        for _ in 0..8 {
            let found = self.record(tenant, id).await?;
            let (entry, end) = found.ok_or(TaskError::Unknown(id))?;
            if let Some(task) = end {
                return Ok(task);
            }
            if let Some(view) = queue.views(&[entry.item]).await?.pop().flatten() {
                return of_view(view);
            }
            match self.0.queues.parked_item(entry.item).await {
                Ok(parked) => return of_parked(&parked),
                Err(QueueError::UnknownItem(_)) => tokio::task::yield_now().await,
                Err(error) => return Err(error.into()),
            }
        }
        Err(TaskError::Unknown(id))
    }

    /// A page of tasks that may be claimed and that `filter` admits, in the order in which they would be. Costs a look at
    /// each kind of task (pool, topic, capabilities) and at each one returned, however many wait.
    ///
    /// # Errors
    /// Errors of reading.
    pub async fn list_pending(
        &self,
        tenant: &Tenant,
        filter: &TaskFilter,
        after: Option<Place>,
        limit: usize,
    ) -> Result<TaskPage, TaskError> {
        let queue = self.line(tenant)?;
        queue.sweep().await?;
        let limit = limit.clamp(1, PAGE_MAX);
        let places = queue.list_ready(after, limit, |lane| filter.admits(lane));
        let next = (places.len() == limit)
            .then(|| places.last().copied())
            .flatten();
        let ids: Vec<ItemId> = places.into_iter().map(|(_, id)| id).collect();
        let views = queue.views(&ids).await?.into_iter().flatten();
        let tasks = views.map(of_view).collect::<Result<_, _>>()?;
        Ok(TaskPage { tasks, next })
    }

    /// Tasks of a tenant in any state: those that wait, are claimed, are parked, then the ones that ended last.
    ///
    /// # Errors
    /// Errors of reading.
    pub async fn list(&self, tenant: &Tenant, query: &TaskQuery) -> Result<Vec<Task>, TaskError> {
        let limit = if query.limit == 0 {
            PAGE_MAX
        } else {
            query.limit.min(PAGE_MAX)
        };
        let wanted = |state| query.state.is_none_or(|wanted| wanted == state);
        let mut tasks = Vec::new();
        if wanted(TaskState::Pending) {
            let page = self
                .list_pending(tenant, &query.filter, None, limit)
                .await?;
            tasks.extend(page.tasks);
        }
        if wanted(TaskState::Pending) || wanted(TaskState::Claimed) {
            self.held(tenant, query, limit, &mut tasks).await?;
        }
        if wanted(TaskState::Parked) {
            self.parked(tenant, query, limit, &mut tasks).await?;
        }
        if query.state.is_none_or(TaskState::is_terminal) {
            self.over(tenant, query, limit, &mut tasks).await?;
        }
        tasks.truncate(limit);
        Ok(tasks)
    }

    async fn held(
        &self,
        tenant: &Tenant,
        query: &TaskQuery,
        limit: usize,
        tasks: &mut Vec<Task>,
    ) -> Result<(), TaskError> {
        let queue = self.line(tenant)?;
        let mut after = None;
        while tasks.len() < limit {
            let ids = queue.list_held(after, PAGE_MAX);
            let Some(last) = ids.last() else { break };
            after = Some(*last);
            for view in queue.views(&ids).await?.into_iter().flatten() {
                // What is ready was listed already.
                if view.standing != Standing::Ready {
                    admit(tasks, query, of_view(view)?);
                }
            }
        }
        Ok(())
    }

    async fn parked(
        &self,
        tenant: &Tenant,
        query: &TaskQuery,
        limit: usize,
        tasks: &mut Vec<Task>,
    ) -> Result<(), TaskError> {
        let name = format!("{QUEUES}{tenant}");
        let mut after = None;
        while tasks.len() < limit {
            let page = self.0.queues.parked(after, PAGE_MAX).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.id);
            for item in page.iter().filter(|item| *item.queue == *name) {
                admit(tasks, query, of_parked(item)?);
            }
        }
        Ok(())
    }

    async fn over(
        &self,
        tenant: &Tenant,
        query: &TaskQuery,
        limit: usize,
        tasks: &mut Vec<Task>,
    ) -> Result<(), TaskError> {
        let keys: Vec<_> = {
            let ended = self.0.books.ended.lock();
            let ended = ended.get(tenant).into_iter().flatten().rev();
            let wanted = ended.filter(|ended| query.state.is_none_or(|state| state == ended.state));
            wanted
                .map(|ended| books::end_key(tenant, ended.id))
                .collect()
        };
        for keys in keys.chunks(PAGE_MAX) {
            if tasks.len() >= limit {
                break;
            }
            for record in self.0.store.get_many(keys).await?.into_iter().flatten() {
                admit(tasks, query, books::from_record(&record)?);
            }
        }
        Ok(())
    }

    /// Waits until a task ends or is parked, at most `timeout`. Cancel-safe.
    ///
    /// # Errors
    /// [`TaskError::Unknown`]; [`QueueError::TooManyWaiters`]; errors of reading.
    pub async fn wait_until_done(
        &self,
        tenant: &Tenant,
        id: TaskId,
        timeout: Duration,
    ) -> Result<Waited, TaskError> {
        let clock = &self.0.books.clock;
        let until = clock.mono() + timeout;
        loop {
            let task = self.get(tenant, id).await?;
            if task.state.is_terminal() || task.state == TaskState::Parked {
                return Ok(Waited::Done(Box::new(task)));
            }
            let left = until - clock.mono();
            if left.is_zero() {
                return Ok(Waited::TimedOut(Box::new(task)));
            }
            let (entry, _) = self
                .record(tenant, id)
                .await?
                .ok_or(TaskError::Unknown(id))?;
            match clock::timeout(left, self.0.queues.outcome(entry.item)).await {
                // It ended while this looked; the next look finds how.
                Ok(Ok(_) | Err(QueueError::UnknownItem(_))) => tokio::task::yield_now().await,
                Ok(Err(error)) => return Err(error.into()),
                // The next look is the last.
                Err(_elapsed) => {}
            }
        }
    }
}

fn admit(tasks: &mut Vec<Task>, query: &TaskQuery, task: Task) {
    let state = query.state.is_none_or(|state| state == task.state);
    if state && query.filter.admits(&task.lane()) {
        tasks.push(task);
    }
}

fn of_view(view: ItemView) -> Result<Task, TaskError> {
    let mut task = books::task_in(&view.payload)?;
    task.state = match view.standing {
        Standing::Claimed => TaskState::Claimed,
        Standing::Ready | Standing::Delayed | Standing::Leaving => TaskState::Pending,
    };
    task.assigned_to = view.owner;
    task.attempts = view.attempts;
    task.epoch = view.epoch;
    task.reason = view.last_reason;
    Ok(task)
}

fn of_parked(parked: &ParkedItem) -> Result<Task, TaskError> {
    let mut task = books::task_in(&parked.payload)?;
    task.state = TaskState::Parked;
    task.attempts = parked.attempts;
    task.reason = Some(parked.reason.clone());
    Ok(task)
}
