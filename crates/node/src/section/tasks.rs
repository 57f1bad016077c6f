//! `/v1/tasks`: operators submit, look and call off; agents submit, claim, renew, report and fail.

use std::{collections::BTreeSet, sync::Arc};

use axum::{extract::Path, http::StatusCode};
use serde::de::DeserializeOwned;
use volary_kernel::{Name, Tenant, Timestamp, text};
use volary_messaging::{
    Capability, Priority, Topic,
    task::{
        ClaimToken, Failing, NewTask, Reported, Submitted, Task, TaskClaim, TaskError, TaskFilter,
        TaskId, TaskQuery, TaskState, Waited, Worker,
    },
};
use volary_ops::{
    ApiError, Json, LinkPeer, Operator, Query, Route, Section,
    api::{
        CancelReply, CancelRequest, ClaimReply, ClaimRequest, DurationText, FailReply, FailRequest,
        RenewReply, RenewRequest, ReportReply, ReportRequest, SubmitReply, SubmitRequest,
        TaskClaimView, TaskList, TaskView, TaskWaitQuery, TaskWaitReply, TasksQuery, checked_wait,
    },
};

use super::{forbidden, queue_error};
use crate::{core::Core, error};

/// Tasks listed when the request does not say how many.
const LISTED: u32 = 100;
/// Most tasks of one claim.
const MAX_CLAIMS: u32 = 100;

pub(super) struct TasksSection(pub Arc<Core>);

impl TasksSection {
    /// A handler of an agent's request with a body.
    fn by_agent<T, R, F>(
        &self,
        handle: impl Fn(Arc<Core>, LinkPeer, T) -> F + Clone + Send + Sync + 'static,
    ) -> impl Fn(LinkPeer, Json<T>) -> F + Clone + Send + Sync + 'static
    where
        T: DeserializeOwned + Send + 'static,
        F: Future<Output = Result<Json<R>, ApiError>> + Send + 'static,
    {
        let core = self.0.clone();
        move |peer: LinkPeer, Json(request): Json<T>| handle(core.clone(), peer, request)
    }

    fn of_operators(&self) -> Vec<Route> {
        let core = || self.0.clone();
        let (submitted, listed, shown, waited, cancelled) =
            (core(), core(), core(), core(), core());
        let submit = move |_: Operator, Json(request): Json<SubmitRequest>| {
            let core = submitted.clone();
            async move {
                let sender = core.operator.sender();
                submit(&core, sender.tenant(), sender.name(), request).await
            }
        };
        let list = move |_: Operator, Query(query): Query<TasksQuery>| {
            let core = listed.clone();
            async move { list(&core, query).await }
        };
        let show = move |_: Operator, Path(id): Path<String>| {
            let core = shown.clone();
            async move { show(&core, core.operator.sender().tenant(), &id).await }
        };
        let wait =
            move |_: Operator, Path(id): Path<String>, Query(query): Query<TaskWaitQuery>| {
                let core = waited.clone();
                async move { wait(&core, &id, query).await }
            };
        let cancel =
            move |_: Operator, Path(id): Path<String>, Json(request): Json<CancelRequest>| {
                let core = cancelled.clone();
                async move { cancel(&core, &id, request).await }
            };
        vec![
            Route::post("/v1/tasks", submit)
                .summary("Submits a task.")
                .takes::<SubmitRequest>()
                .gives::<SubmitReply>(),
            Route::get("/v1/tasks", list)
                .summary("Lists tasks, in whatever state.")
                .query::<TasksQuery>()
                .gives::<TaskList>(),
            Route::get("/v1/tasks/{id}", show)
                .summary("Shows one task.")
                .gives::<TaskView>(),
            Route::get("/v1/tasks/{id}/wait", wait)
                .summary("Waits until a task ends or is parked.")
                .query::<TaskWaitQuery>()
                .gives::<TaskWaitReply>(),
            Route::post("/v1/tasks/{id}/cancel", cancel)
                .summary("Calls a task off, whoever works on it.")
                .takes::<CancelRequest>()
                .gives::<CancelReply>(),
        ]
    }
}

impl Section for TasksSection {
    fn name(&self) -> &'static str {
        "tasks"
    }

    fn routes(&self) -> Vec<Route> {
        let submit_own = self.by_agent(|core, peer: LinkPeer, request| async move {
            submit(&core, &peer.tenant, &peer.agent, request).await
        });
        let claim =
            self.by_agent(|core, peer, request| async move { claim(&core, &peer, request).await });
        let renew =
            self.by_agent(|core, peer, request| async move { renew(&core, &peer, request).await });
        let report =
            self.by_agent(|core, peer, request| async move { report(&core, &peer, request).await });
        let fail =
            self.by_agent(|core, peer, request| async move { fail(&core, &peer, request).await });
        let looked = self.0.clone();
        let look = move |peer: LinkPeer, Path(id): Path<String>| {
            let core = looked.clone();
            async move { show(&core, &peer.tenant, &id).await }
        };
        let mut routes = self.of_operators();
        routes.extend([
            Route::post("/v1/tasks", submit_own)
                .link()
                .summary("Submits a task.")
                .takes::<SubmitRequest>()
                .gives::<SubmitReply>(),
            Route::get("/v1/tasks/{id}", look)
                .link()
                .summary("Shows one task of the agent's tenant.")
                .gives::<TaskView>(),
            Route::post("/v1/tasks/claim", claim)
                .link()
                .summary("Claims tasks; each comes again unless it is reported or renewed in time.")
                .takes::<ClaimRequest>()
                .gives::<ClaimReply>(),
            Route::post("/v1/tasks/renew", renew)
                .link()
                .summary("Holds a claim for another time.")
                .takes::<RenewRequest>()
                .gives::<RenewReply>(),
            Route::post("/v1/tasks/report", report)
                .link()
                .summary("Says that a task was done, and what it came to.")
                .takes::<ReportRequest>()
                .gives::<ReportReply>(),
            Route::post("/v1/tasks/fail", fail)
                .link()
                .summary("Says that an attempt at a task failed.")
                .takes::<FailRequest>()
                .gives::<FailReply>(),
        ]);
        routes
    }
}

fn task_error(error: TaskError) -> ApiError {
    match error {
        TaskError::Unknown(_) => ApiError::not_found(error.to_string())
            .hint("list what there is with `volary tasks list`; ended tasks are kept for a day"),
        TaskError::Lapsed { .. } => ApiError::conflict(error.to_string())
            .hint("claim it again if it is pending; renew claims while work goes on, or ask for a longer claim_ttl"),
        TaskError::Conflict(_) => ApiError::conflict(error.to_string())
            .hint("leave `id` out for a new task, or send the same content"),
        TaskError::NotAuthorized { .. } => forbidden(error.to_string()),
        TaskError::Invalid(_) | TaskError::Secret(_) | TaskError::TooLarge { .. } => {
            ApiError::bad_request(error.to_string())
        }
        TaskError::TooManyTenants(_) => {
            ApiError::domain(StatusCode::SERVICE_UNAVAILABLE, error::NO_ROOM.id, error.to_string())
                .hint(error::NO_ROOM.hint)
        }
        TaskError::Queue(error) => queue_error(error),
    }
}

fn bad(error: impl ToString) -> ApiError {
    ApiError::bad_request(error.to_string())
}

fn task_id(text: &str) -> Result<TaskId, ApiError> {
    text.parse().map_err(bad)
}

fn topic(text: Option<&str>) -> Result<Option<Topic>, ApiError> {
    text.map(Topic::new).transpose().map_err(bad)
}

fn capabilities(words: &[String]) -> Result<BTreeSet<Capability>, ApiError> {
    let read = words.iter().map(|word| Capability::new(word));
    read.collect::<Result<_, _>>().map_err(bad)
}

fn deadline(words: Option<&str>, now: Timestamp) -> Result<Option<Timestamp>, ApiError> {
    let Some(words) = words else { return Ok(None) };
    let after = text::parse_duration(words).map(|after| now + after);
    let at = after.or_else(|_| words.parse::<Timestamp>());
    at.map(Some).map_err(|_| {
        bad(format!(
            "deadline must be a duration like `30s` or an RFC 3339 time, found `{words}`"
        ))
    })
}

async fn submit(
    core: &Core,
    tenant: &Tenant,
    by: &Name,
    request: SubmitRequest,
) -> Result<Json<SubmitReply>, ApiError> {
    let new = NewTask {
        id: request.id.as_deref().map(task_id).transpose()?,
        pool: request.pool,
        topic: topic(request.topic.as_deref())?,
        required_capabilities: capabilities(&request.capabilities)?,
        objective: request.objective,
        inputs: request.inputs,
        constraints: request.constraints,
        priority: request.priority.map(Priority).unwrap_or_default(),
        deadline: deadline(request.deadline.as_deref(), core.clock.wall())?,
        max_retries: request.max_retries,
        claim_ttl: request.claim_ttl.map(|ttl| ttl.0),
        trace: request.trace,
    };
    let submitted = core
        .tasks
        .submit(tenant, by, new)
        .await
        .map_err(task_error)?;
    let state = match &submitted {
        Submitted::New(_) => TaskState::Pending,
        Submitted::Before(task) => task.state,
    };
    Ok(Json(SubmitReply {
        id: submitted.id().to_string(),
        repeated: matches!(submitted, Submitted::Before(_)),
        state: state.to_string(),
    }))
}

fn view(task: Task) -> TaskView {
    TaskView {
        id: task.id.to_string(),
        state: task.state.to_string(),
        claim_ttl: DurationText(task.claim_ttl()),
        tenant: task.tenant,
        pool: task.pool,
        topic: task.topic.map(|topic| topic.to_string()),
        capabilities: task
            .required_capabilities
            .iter()
            .map(ToString::to_string)
            .collect(),
        objective: task.objective,
        inputs: task.inputs,
        constraints: task.constraints,
        priority: task.priority.0,
        deadline: task.deadline,
        max_retries: task.max_retries,
        submitted_by: task.submitted_by,
        submitted_at: task.submitted_at,
        trace: task.trace,
        assigned_to: task.assigned_to,
        attempts: task.attempts,
        result: task.result,
        reason: task.reason,
        ended_at: task.ended_at,
    }
}

async fn list(core: &Core, query: TasksQuery) -> Result<Json<TaskList>, ApiError> {
    let query = TaskQuery {
        state: query
            .state
            .as_deref()
            .map(str::parse)
            .transpose()
            .map_err(bad)?,
        filter: TaskFilter {
            pools: query.pool.map(|pool| vec![pool]),
            topics: topic(query.topic.as_deref())?.map(|topic| vec![topic]),
            capabilities: None,
        },
        limit: usize::try_from(query.limit.unwrap_or(LISTED).max(1)).unwrap_or(usize::MAX),
    };
    let tenant = core.operator.sender().tenant().clone();
    let tasks = core.tasks.list(&tenant, &query).await.map_err(task_error)?;
    Ok(Json(TaskList {
        tasks: tasks.into_iter().map(view).collect(),
    }))
}

async fn show(core: &Core, tenant: &Tenant, id: &str) -> Result<Json<TaskView>, ApiError> {
    let task = core
        .tasks
        .get(tenant, task_id(id)?)
        .await
        .map_err(task_error)?;
    Ok(Json(view(task)))
}

async fn wait(
    core: &Core,
    id: &str,
    query: TaskWaitQuery,
) -> Result<Json<TaskWaitReply>, ApiError> {
    let (id, wait) = (task_id(id)?, checked_wait(query.wait)?);
    let tenant = core.operator.sender().tenant().clone();
    let waiting = core.tasks.wait_until_done(&tenant, id, wait);
    let (done, task) = match core.stopping.run_until_cancelled(waiting).await {
        Some(Ok(Waited::Done(task))) => (true, *task),
        Some(Ok(Waited::TimedOut(task))) => (false, *task),
        Some(Err(error)) => return Err(task_error(error)),
        None => (
            false,
            core.tasks.get(&tenant, id).await.map_err(task_error)?,
        ),
    };
    Ok(Json(TaskWaitReply {
        done,
        task: view(task),
    }))
}

async fn cancel(
    core: &Core,
    id: &str,
    request: CancelRequest,
) -> Result<Json<CancelReply>, ApiError> {
    let reason = request
        .reason
        .as_deref()
        .unwrap_or("cancelled by the operator");
    let tenant = core.operator.sender().tenant().clone();
    let cancelled = core
        .tasks
        .cancel(&tenant, task_id(id)?, reason)
        .await
        .map_err(task_error)?;
    Ok(Json(CancelReply {
        id: id.to_owned(),
        cancelled,
    }))
}

// --- Agents ------------------------------------------------------------------------------------

fn worker(peer: &LinkPeer) -> Worker {
    Worker {
        tenant: peer.tenant.clone(),
        name: peer.agent.clone(),
        replica: peer.replica.to_string(),
    }
}

/// What an agent may see: tasks of its pools and of its topics, and of none.
pub(crate) fn filter_of(core: &Core, tenant: &Tenant, agent: &Name) -> TaskFilter {
    let spec = core.fleet.agents.iter().find(|spec| spec.name == *agent);
    let topics = spec.into_iter().flat_map(|spec| &spec.topics);
    TaskFilter {
        pools: Some(core.pools.of_agent(tenant, agent)),
        topics: Some(topics.filter_map(|topic| Topic::new(topic).ok()).collect()),
        capabilities: None,
    }
}

async fn claim(
    core: &Core,
    peer: &LinkPeer,
    request: ClaimRequest,
) -> Result<Json<ClaimReply>, ApiError> {
    core.speaker(peer)?;
    let wait = checked_wait(request.wait)?;
    let mut filter = filter_of(core, &peer.tenant, &peer.agent);
    filter.capabilities = Some(capabilities(&request.capabilities)?);
    if let (Some(mine), Some(wanted)) = (&mut filter.pools, &request.pools) {
        mine.retain(|pool| wanted.contains(pool));
    }
    let worker = worker(peer);
    let claims = match &request.id {
        Some(id) => {
            let claim = core.tasks.claim_id(&worker, &filter, task_id(id)?).await;
            claim.map_err(task_error)?.into_iter().collect()
        }
        None => {
            let max = request.max.unwrap_or(1).clamp(1, MAX_CLAIMS);
            let max = usize::try_from(max).unwrap_or(1);
            let claiming = core.tasks.claim(&worker, &filter, max, wait);
            let claims = core.stopping.run_until_cancelled(claiming).await;
            claims
                .unwrap_or_else(|| Ok(Vec::new()))
                .map_err(task_error)?
        }
    };
    let claims = claims
        .into_iter()
        .map(|TaskClaim { task, token }| TaskClaimView {
            claim: token.to_string(),
            idempotency_key: task.idempotency_key(),
            task: view(task),
        });
    Ok(Json(ClaimReply {
        claims: claims.collect(),
    }))
}

fn token(text: &str) -> Result<ClaimToken, ApiError> {
    text.parse().map_err(bad)
}

async fn renew(
    core: &Core,
    peer: &LinkPeer,
    request: RenewRequest,
) -> Result<Json<RenewReply>, ApiError> {
    let holds = core
        .tasks
        .renew(&worker(peer), token(&request.claim)?)
        .await;
    let holds_for = DurationText(holds.map_err(task_error)?);
    Ok(Json(RenewReply { holds_for }))
}

async fn report(
    core: &Core,
    peer: &LinkPeer,
    request: ReportRequest,
) -> Result<Json<ReportReply>, ApiError> {
    let token = token(&request.claim)?;
    let reported = core
        .tasks
        .report(&worker(peer), token, request.result)
        .await;
    let repeated = reported.map_err(task_error)? == Reported::Before;
    Ok(Json(ReportReply { repeated }))
}

async fn fail(
    core: &Core,
    peer: &LinkPeer,
    request: FailRequest,
) -> Result<Json<FailReply>, ApiError> {
    let reason = request
        .reason
        .as_deref()
        .unwrap_or("the agent gave no reason");
    let then = if request.give_up {
        Failing::GiveUp
    } else {
        Failing::Again(request.delay.map(|delay| delay.0))
    };
    let token = token(&request.claim)?;
    let state = core.tasks.fail(&worker(peer), token, reason, then).await;
    let state = state.map_err(task_error)?.to_string();
    Ok(Json(FailReply { state }))
}
