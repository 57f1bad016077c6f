//! `/v1/fleet`, `/v1/replicas`, `/v1/agents`: what runs, and how it is started and stopped.

use std::{collections::BTreeMap, sync::Arc};

use axum::extract::Path;
use serde_json::json;
use volary_context::dispatch::SourceState;
use volary_deploy::{
    spec::model::{AgentSpec, Body, PortSpec, SourceKind},
    supervise::ReplicaStatus,
};
use volary_kernel::Name;
use volary_ops::{
    ApiError, Json, Operator, Route, Section,
    api::{
        AgentSummary, AgentView, DownReply, DownRequest, FleetView, InboxStats, PortView,
        ReplicaView, SourceView,
    },
};

use crate::core::Core;

pub(super) struct FleetSection(pub Arc<Core>);

impl Section for FleetSection {
    fn name(&self) -> &'static str {
        "fleet"
    }

    fn routes(&self) -> Vec<Route> {
        let core = || self.0.clone();
        let (whole, replicas, one, stopped) = (core(), core(), core(), core());
        let fleet = move |_: Operator| {
            let core = whole.clone();
            async move { Json(fleet(&core)) }
        };
        let replicas = move |_: Operator| {
            let core = replicas.clone();
            async move { Json(core.replica_views()) }
        };
        let agent = move |_: Operator, Path(name): Path<String>| {
            let core = one.clone();
            async move { agent(&core, &name) }
        };
        let down = move |_: Operator, Json(request): Json<DownRequest>| {
            let core = stopped.clone();
            async move { down(&core, &request) }
        };
        vec![
            Route::get("/v1/fleet", fleet)
                .summary("Shows the fleet.")
                .gives::<FleetView>(),
            Route::get("/v1/replicas", replicas)
                .summary("Lists the replicas.")
                .gives::<Vec<ReplicaView>>(),
            Route::get("/v1/agents/{name}", agent)
                .summary("Shows one agent.")
                .gives::<AgentView>(),
            Route::post("/v1/down", down)
                .summary("Stops the node: it finishes what it has and stops its agents.")
                .takes::<DownRequest>()
                .gives::<DownReply>(),
        ]
    }
}

fn fleet(core: &Core) -> FleetView {
    let replicas = core.replica_views();
    FleetView {
        name: core.fleet.name.to_string(),
        tenant: core.fleet.tenant.clone(),
        node: core.store.node().to_string(),
        version: crate::VERSION.to_owned(),
        pid: std::process::id(),
        started_at: core.started_at,
        agents: core
            .fleet
            .agents
            .iter()
            .map(|agent| summary(core, agent, &replicas))
            .collect(),
        sources: core
            .fleet
            .sources
            .values()
            .map(|source| source_view(core, source))
            .collect(),
    }
}

fn source_view(core: &Core, source: &volary_deploy::spec::model::SourceSpec) -> SourceView {
    let SourceKind::Files(files) = &source.kind;
    let status = core.source(&source.name);
    SourceView {
        name: source.name.to_string(),
        kind: "files".to_owned(),
        location: files.path.display().to_string(),
        ready: status
            .as_ref()
            .is_some_and(|status| status.state == SourceState::Live),
        pages: status.map_or(0, |status| u64::try_from(status.pages).unwrap_or(0)),
    }
}

fn summary(core: &Core, agent: &AgentSpec, replicas: &[ReplicaView]) -> AgentSummary {
    let own = || {
        replicas
            .iter()
            .filter(|replica| replica.agent == agent.name)
    };
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    AgentSummary {
        name: agent.name.clone(),
        tenant: agent.tenant.clone(),
        body: match &agent.body {
            Body::Command(_) => "command",
            Body::Handler(_) => "handler",
            Body::Image(_) => "image",
            Body::Model(_) => "model",
        }
        .to_owned(),
        replicas: count(own().count()),
        ready: count(own().filter(|replica| replica.ready).count()),
        waiting: inbox(core, &agent.name).map_or(0, |inbox| inbox.ready + inbox.delayed),
    }
}

fn inbox(core: &Core, agent: &Name) -> Option<InboxStats> {
    let stats = core.agents.get(agent)?.mailbox.stats();
    Some(InboxStats {
        ready: stats.ready as u64,
        delayed: stats.delayed as u64,
        claimed: stats.claimed as u64,
        parked: stats.parked as u64,
        bytes: stats.bytes,
    })
}

fn agent(core: &Core, name: &str) -> Result<Json<AgentView>, ApiError> {
    let known = || {
        core.fleet
            .agents
            .iter()
            .map(|agent| agent.name.as_str())
            .collect::<Vec<_>>()
            .join(", ")
    };
    let spec = core.fleet.agent(name).ok_or_else(|| {
        ApiError::not_found(format!("no agent is called `{name}`"))
            .hint(format!("this fleet has {}", known()))
    })?;
    let replicas = core.replica_views();
    let identity = core
        .agents
        .get(&spec.name)
        .map(|speaker| speaker.voice.sender().id().to_string());
    Ok(Json(AgentView {
        agent: summary(core, spec, &replicas),
        replicas: replicas
            .into_iter()
            .filter(|replica| replica.agent == spec.name)
            .collect(),
        inbox: inbox(core, &spec.name),
        topics: spec.topics.clone(),
        spec: serde_json::to_value(spec).unwrap_or_default(),
        more: BTreeMap::from([("identity".to_owned(), json!(identity))]),
    }))
}

fn down(core: &Core, request: &DownRequest) -> Result<Json<DownReply>, ApiError> {
    *core.stop_within.lock() = request.deadline.map(|deadline| deadline.0);
    core.shutdown.request_shutdown(crate::STOP_REQUESTED);
    let replicas = core
        .replica_views()
        .iter()
        .filter(|replica| replica.pid.is_some())
        .count();
    Ok(Json(DownReply {
        pid: std::process::id(),
        replicas: u32::try_from(replicas).unwrap_or(u32::MAX),
    }))
}

/// A replica as operators see it.
pub(crate) fn replica_view(status: &ReplicaStatus, agent: &AgentSpec) -> Option<ReplicaView> {
    Some(ReplicaView {
        agent: agent.name.clone(),
        replica: Name::new(&status.replica).ok()?,
        tenant: agent.tenant.clone(),
        backend: status.backend.to_string(),
        state: status.state.as_str().to_owned(),
        ready: status.ready,
        pid: status.pid,
        container: None,
        restarts: status.restarts,
        started_at: status.started_at,
        ports: agent.ports.iter().map(port_view).collect(),
        reason: status.reason.clone(),
    })
}

fn port_view(port: &PortSpec) -> PortView {
    PortView {
        name: None,
        port: port.container,
        host_port: (port.host != port.container).then_some(port.host),
        protocol: port.protocol.to_string(),
    }
}
