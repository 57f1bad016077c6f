//! `/v1/identities` and `/v1/peers`: whose keys are believed, and how the links to other nodes are.

use std::{collections::BTreeSet, sync::Arc};

use axum::{extract::Path, http::StatusCode};
use volary_kernel::{Name, Tenant};
use volary_messaging::{
    AgentId, Identity,
    identity::{Known, RegistryError, Succession, Voucher},
    peer::{PeerState, PeerStatus},
    transport::tcp::PeerSpec,
};
use volary_ops::{
    ApiError, Json, Operator, Route, Section,
    api::{
        AcceptRequest, IdentityList, IdentityStatus, IdentityView, InboxStats, NodeIdentity,
        OnceView, PeerList, PeerView, RotateReply, RotateRequest, StrandedView,
    },
};

use crate::{
    core::Core,
    error,
    neighbours::{AcceptError, revoked_at, state_word},
};

pub(super) struct IdentitiesSection(pub Arc<Core>);

impl Section for IdentitiesSection {
    fn name(&self) -> &'static str {
        "identities"
    }

    fn routes(&self) -> Vec<Route> {
        let core = || self.0.clone();
        let (listed, revoked, rotated, shown, accepted) = (core(), core(), core(), core(), core());
        let list = move |_: Operator| {
            let core = listed.clone();
            async move { Json(list(&core)) }
        };
        let revoke = move |_: Operator, Path(id): Path<String>| {
            let core = revoked.clone();
            async move { revoke(&core, &id).await }
        };
        let rotate = move |_: Operator, Json(request): Json<RotateRequest>| {
            let core = rotated.clone();
            async move { rotate(&core, request).await }
        };
        let peers = move |_: Operator| {
            let core = shown.clone();
            async move { Json(peers(&core)) }
        };
        let accept = move |_: Operator, Json(request): Json<AcceptRequest>| {
            let core = accepted.clone();
            async move { accept(&core, &request).await }
        };
        vec![
            Route::get("/v1/identities", list)
                .summary("Lists the identities that are known, revoked ones too.")
                .gives::<IdentityList>(),
            Route::post("/v1/identities/{id}/revoke", revoke)
                .summary("Believes a key no longer, for good.")
                .gives::<IdentityView>(),
            Route::post("/v1/identities/rotate", rotate)
                .summary("Gives an agent of this fleet a new key; its peers hear of it at once.")
                .takes::<RotateRequest>()
                .gives::<RotateReply>(),
            Route::get("/v1/peers", peers)
                .summary("Lists the peers and how the links to them are.")
                .gives::<PeerList>(),
            Route::post("/v1/peers/accept", accept)
                .summary("Believes a peer's statement that its key has changed.")
                .takes::<AcceptRequest>()
                .gives::<RotateReply>(),
        ]
    }

    fn snapshot(&self) -> serde_json::Value {
        serde_json::to_value(peers(&self.0)).unwrap_or_default()
    }
}

// --- identities ------------------------------------------------------------------------------

fn list(core: &Core) -> IdentityList {
    let all = core.neighbours.identities.all();
    IdentityList {
        identities: all.iter().map(|(id, known)| view(id, known)).collect(),
    }
}

fn view(id: &AgentId, known: &Known) -> IdentityView {
    let revoked_at = revoked_at(known);
    IdentityView {
        id: id.to_string(),
        name: known.name.clone(),
        tenant: known.tenant.clone(),
        status: match revoked_at {
            None => IdentityStatus::Active,
            Some(_) => IdentityStatus::Revoked,
        },
        revoked_at,
        introduced_by: match &known.voucher {
            Voucher::Here => None,
            Voucher::Peer(peer) => Some(peer.clone()),
        },
        key: known.key.to_string(),
    }
}

async fn revoke(core: &Core, id: &str) -> Result<Json<IdentityView>, ApiError> {
    let id: AgentId = id
        .parse()
        .map_err(|error| ApiError::bad_request(format!("{error}")))?;
    let known = core.neighbours.revoke(id).await.map_err(registry_error)?;
    // One of ours is introduced no longer.
    core.introduce()
        .map_err(|error| ApiError::internal("introduction", &error))?;
    Ok(Json(view(&id, &known)))
}

async fn rotate(core: &Core, request: RotateRequest) -> Result<Json<RotateReply>, ApiError> {
    let name = request.agent;
    let speaker = core
        .agents
        .get(&name)
        .ok_or_else(|| ApiError::not_found(format!("no agent is called `{name}`")))?;
    let path = core.state.agent_key(name.as_str());
    let rotated = Identity::rotate(&path, core.clock.wall());
    let (new, statement) = rotated.map_err(|error| {
        ApiError::domain(
            StatusCode::INTERNAL_SERVER_ERROR,
            error::IDENTITY.id,
            error.to_string(),
        )
        .hint(error::IDENTITY.hint)
    })?;
    match core.neighbours.succeed(&statement).await {
        Ok(_) => {}
        // A key that is revoked already has no successor; the new one begins anew.
        Err(RegistryError::Revoked { .. } | RegistryError::Unknown(_)) => {}
        Err(error) => return Err(registry_error(error)),
    }
    speaker.voice.replace(new.clone());
    let entered = core.neighbours.enter(&speaker.voice).await;
    entered
        .and_then(|()| core.introduce())
        .map_err(|error| ApiError::internal("introduction", &error))?;
    Ok(Json(reply(name, &statement)))
}

fn reply(name: Name, statement: &Succession) -> RotateReply {
    RotateReply {
        name,
        old: AgentId::of(statement.old()).to_string(),
        id: AgentId::of(statement.new_key()).to_string(),
        key: statement.new_key().to_string(),
    }
}

fn registry_error(error: RegistryError) -> ApiError {
    match error {
        RegistryError::Unknown(_) => ApiError::not_found(error.to_string())
            .hint("`volary identity list` shows those that are known"),
        RegistryError::Store(_) => ApiError::internal("identities", &error),
        other => ApiError::conflict(other.to_string()),
    }
}

// --- peers -----------------------------------------------------------------------------------

fn peers(core: &Core) -> PeerList {
    let me = core.operator.identity();
    let status = core.neighbours.status();
    PeerList {
        node: NodeIdentity {
            name: core.fleet.name.clone(),
            id: me.id().to_string(),
            key: me.public().to_string(),
            listen: core.neighbours.address().map(|address| address.to_string()),
        },
        peers: status
            .iter()
            .map(|(spec, status)| peer(core, spec, status))
            .collect(),
        stranded: core
            .stranded()
            .map(|(peer, items)| StrandedView {
                peer,
                items: items as u64,
            })
            .collect(),
    }
}

fn peer(core: &Core, spec: &PeerSpec, status: &PeerStatus) -> PeerView {
    let calls = match status.state {
        PeerState::ReceiveOnly => core.neighbours.calls_here(&spec.name),
        _ => None,
    };
    // The operator over there speaks with the key of the node: a person is no agent.
    let is_agent = |tenant: &Tenant, name: &Name| {
        let known = core.neighbours.identities.named(tenant, name);
        known.is_none_or(|(id, _)| id != AgentId::of(&spec.key))
    };
    let agents: BTreeSet<_> = status
        .routes
        .iter()
        .map(|(tenant, name, _)| (tenant, name))
        .filter(|(tenant, name)| is_agent(tenant, name))
        .collect();
    PeerView {
        name: spec.name.clone(),
        id: AgentId::of(&spec.key).to_string(),
        address: spec.address.clone(),
        tenants: spec.tenants.clone(),
        state: match calls {
            Some(_) => "connected",
            None => state_word(status.state),
        }
        .to_owned(),
        since: Some(calls.unwrap_or(status.since)),
        last_error: status.last_error.clone(),
        outbox: InboxStats {
            ready: status.outbox.ready as u64,
            delayed: status.outbox.delayed as u64,
            claimed: status.outbox.claimed as u64,
            parked: status.outbox.parked as u64,
            bytes: status.outbox.bytes,
        },
        agents: agents.len() as u64,
        once: OnceView {
            offered: status.once.offered,
            delivered: status.once.delivered,
            refused: status.once.refused,
            dropped: status.once.dropped,
        },
        unconfirmed: status.unconfirmed as u64,
    }
}

async fn accept(core: &Core, request: &AcceptRequest) -> Result<Json<RotateReply>, ApiError> {
    let statement: Succession = request
        .statement
        .parse()
        .map_err(|error| ApiError::bad_request(format!("{error}")))?;
    match core.neighbours.accept(&statement).await {
        Ok(peer) => Ok(Json(reply(peer.name, &statement))),
        Err(error @ AcceptError::Unknown(_)) => Err(ApiError::not_found(error.to_string())
            .hint("`volary identity peers` shows the peers; a statement that was accepted before needs nothing")),
        Err(error @ (AcceptError::Forged(_) | AcceptError::Own | AcceptError::Taken(_))) => {
            Err(ApiError::conflict(error.to_string()))
        }
        Err(AcceptError::Store(error)) => Err(ApiError::internal("peers", &error)),
    }
}
