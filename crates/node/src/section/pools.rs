//! `/v1/pools`: operators create and look, agents join and leave.

use std::sync::Arc;

use axum::extract::Path;
use volary_kernel::{Name, Tenant, secret::Secret};
use volary_messaging::pool::{Admit, Created, Pool, PoolError, Via};
use volary_ops::{
    ApiError, Json, LinkPeer, Operator, Route, Section,
    api::{CreatePool, JoinPool, PoolList, PoolReply, PoolView},
};

use super::{forbidden, queue_error};
use crate::core::Core;

pub(super) struct PoolsSection(pub Arc<Core>);

/// Who asks.
#[derive(Clone, Copy)]
enum By<'a> {
    Operator,
    Agent(&'a LinkPeer),
}

impl Section for PoolsSection {
    fn name(&self) -> &'static str {
        "pools"
    }

    fn routes(&self) -> Vec<Route> {
        let mut routes = self.of_operators();
        routes.extend(self.of_agents());
        routes
    }
}

impl PoolsSection {
    fn of_operators(&self) -> Vec<Route> {
        let core = || self.0.clone();
        let (listed, shown, created, deleted, joined, left) =
            (core(), core(), core(), core(), core(), core());
        let list = move |_: Operator| {
            let core = listed.clone();
            async move { Json(list(&core, core.operator.sender().tenant())) }
        };
        let show = move |_: Operator, Path(name): Path<Name>| {
            let core = shown.clone();
            async move { show(&core, &name) }
        };
        let create = move |_: Operator, Json(request): Json<CreatePool>| {
            let core = created.clone();
            async move { create(&core, request).await }
        };
        let delete = move |_: Operator, Path(name): Path<Name>| {
            let core = deleted.clone();
            async move {
                let by = core.operator.sender();
                let done = core.pools.delete(by.tenant(), &name, by.name()).await;
                changed(name, done)
            }
        };
        let join = move |_: Operator, Path(name): Path<Name>, Json(request): Json<JoinPool>| {
            let core = joined.clone();
            async move { join(&core, By::Operator, name, request).await }
        };
        let leave = move |_: Operator, Path(name): Path<Name>, Json(request): Json<JoinPool>| {
            let core = left.clone();
            async move { leave(&core, By::Operator, name, request).await }
        };
        vec![
            Route::get("/v1/pools", list)
                .summary("Lists pools.")
                .gives::<PoolList>(),
            Route::get("/v1/pools/{name}", show)
                .summary("Shows one pool.")
                .gives::<PoolView>(),
            Route::post("/v1/pools", create)
                .summary("Creates a pool.")
                .takes::<CreatePool>()
                .gives::<PoolReply>(),
            Route::delete("/v1/pools/{name}", delete)
                .summary("Deletes a pool.")
                .gives::<PoolReply>(),
            Route::post("/v1/pools/{name}/join", join)
                .summary("Lets an agent into a pool.")
                .takes::<JoinPool>()
                .gives::<PoolReply>(),
            Route::post("/v1/pools/{name}/leave", leave)
                .summary("Takes an agent out of a pool.")
                .takes::<JoinPool>()
                .gives::<PoolReply>(),
        ]
    }

    fn of_agents(&self) -> [Route; 3] {
        let core = || self.0.clone();
        let (listed, joined, left) = (core(), core(), core());
        let list = move |peer: LinkPeer| {
            let core = listed.clone();
            async move { Json(list(&core, &peer.tenant)) }
        };
        let join = move |peer: LinkPeer, Path(name): Path<Name>, Json(request): Json<JoinPool>| {
            let core = joined.clone();
            async move { join(&core, By::Agent(&peer), name, request).await }
        };
        let leave = move |peer: LinkPeer, Path(name): Path<Name>, Json(request): Json<JoinPool>| {
            let core = left.clone();
            async move { leave(&core, By::Agent(&peer), name, request).await }
        };
        [
            Route::get("/v1/pools", list)
                .link()
                .summary("Lists pools.")
                .gives::<PoolList>(),
            Route::post("/v1/pools/{name}/join", join)
                .link()
                .summary("Joins a pool.")
                .takes::<JoinPool>()
                .gives::<PoolReply>(),
            Route::post("/v1/pools/{name}/leave", leave)
                .link()
                .summary("Leaves a pool.")
                .takes::<JoinPool>()
                .gives::<PoolReply>(),
        ]
    }
}

fn pool_error(error: PoolError) -> ApiError {
    match error {
        PoolError::Unknown(_) => ApiError::not_found(error.to_string())
            .hint("list what there is with `volary pools list`"),
        PoolError::Conflict(_) => {
            ApiError::conflict(error.to_string()).hint("delete it first, or choose another name")
        }
        PoolError::NotAdmitted { .. } => forbidden(error.to_string()),
        PoolError::ShortToken(_) | PoolError::Full { .. } => {
            ApiError::bad_request(error.to_string())
        }
        PoolError::Store(error) => queue_error(error.into()),
    }
}

fn changed(name: Name, done: Result<bool, PoolError>) -> Result<Json<PoolReply>, ApiError> {
    let changed = done.map_err(pool_error)?;
    Ok(Json(PoolReply { name, changed }))
}

fn view(pool: Pool) -> PoolView {
    PoolView {
        admission: pool.admission.as_str().to_owned(),
        members: pool.members.into_keys().collect(),
        name: pool.name,
        tenant: pool.tenant,
        created_by: pool.created_by,
        created_at: pool.created_at,
    }
}

fn list(core: &Core, tenant: &Tenant) -> PoolList {
    let pools = core.pools.list(tenant);
    PoolList {
        pools: pools.into_iter().map(view).collect(),
    }
}

fn show(core: &Core, name: &Name) -> Result<Json<PoolView>, ApiError> {
    let pool = core.pools.get(core.operator.sender().tenant(), name);
    pool.map(|pool| Json(view(pool)))
        .ok_or_else(|| pool_error(PoolError::Unknown(name.clone())))
}

async fn create(core: &Core, request: CreatePool) -> Result<Json<PoolReply>, ApiError> {
    let admit = match (request.allow, request.token) {
        (None, None) => Admit::Open,
        (Some(allow), None) => Admit::AllowList(allow.into_iter().collect()),
        (None, Some(token)) => Admit::Token(Secret::new(token)),
        (Some(_), Some(_)) => {
            return Err(ApiError::bad_request("allow and token are both given")
                .hint("give one of them, or none"));
        }
    };
    let by = core.operator.sender();
    let created = core
        .pools
        .create(by.tenant(), &request.name, admit, by.name())
        .await;
    changed(request.name, created.map(|created| created == Created::Now))
}

async fn join(
    core: &Core,
    by: By<'_>,
    name: Name,
    request: JoinPool,
) -> Result<Json<PoolReply>, ApiError> {
    let done = match by {
        By::Agent(peer) => {
            own(peer, &request)?;
            let token = request.token.as_deref();
            core.pools
                .join(&peer.tenant, &name, &peer.agent, token)
                .await
        }
        By::Operator => {
            let (agent, operator) = (named(core, request.agent)?, core.operator.sender());
            let tenant = operator.tenant();
            core.pools
                .admit(tenant, &name, (&agent, Via::Joined), operator.name())
                .await
        }
    };
    changed(name, done)
}

async fn leave(
    core: &Core,
    by: By<'_>,
    name: Name,
    request: JoinPool,
) -> Result<Json<PoolReply>, ApiError> {
    let done = match by {
        By::Agent(peer) => {
            own(peer, &request)?;
            core.pools
                .leave(&peer.tenant, &name, &peer.agent, &peer.agent)
                .await
        }
        By::Operator => {
            let operator = core.operator.sender();
            let agent = request.agent.ok_or_else(no_agent)?;
            core.pools
                .leave(operator.tenant(), &name, &agent, operator.name())
                .await
        }
    };
    changed(name, done)
}

/// An agent acts for itself only.
fn own(peer: &LinkPeer, request: &JoinPool) -> Result<(), ApiError> {
    match &request.agent {
        Some(other) if *other != peer.agent => Err(forbidden(format!(
            "`{}` can not act for `{other}`",
            peer.agent
        ))),
        _ => Ok(()),
    }
}

fn no_agent() -> ApiError {
    ApiError::bad_request("no agent is named").hint("give `agent`")
}

/// The agent that an operator names, which must be of this fleet.
fn named(core: &Core, agent: Option<Name>) -> Result<Name, ApiError> {
    let agent = agent.ok_or_else(no_agent)?;
    if core.agents.contains_key(&agent) {
        Ok(agent)
    } else {
        Err(ApiError::not_found(format!(
            "agent `{agent}` is not in this fleet"
        )))
    }
}
