//! `/v1/flows`: agents say which flows they run and how those do, operators look. Their traces: `flow_traces.rs`.

use std::sync::Arc;

use axum::extract::Path;
use volary_kernel::Name;
use volary_ops::{
    ApiError, Json, LinkPeer, Operator, Query, Route, Section,
    api::{
        FlowList, FlowQuery, FlowReport, FlowReportReply, FlowView, RegisterFlows,
        RegisterFlowsReply,
    },
};

use crate::{
    core::Core,
    flows::{self, NotShown, Refused},
};

pub(super) struct FlowsSection(pub Arc<Core>);

impl Section for FlowsSection {
    fn name(&self) -> &'static str {
        "flows"
    }

    fn routes(&self) -> Vec<Route> {
        let (registered, reported, listed, shown) = (
            self.0.clone(),
            self.0.clone(),
            self.0.clone(),
            self.0.clone(),
        );
        let register = move |peer: LinkPeer, Json(request): Json<RegisterFlows>| {
            let core = registered.clone();
            async move { register(&core, &peer, request) }
        };
        let report = move |peer: LinkPeer, Json(report): Json<FlowReport>| {
            let core = reported.clone();
            async move { take_report(&core, &peer, report) }
        };
        let list = move |_: Operator| {
            let core = listed.clone();
            async move {
                Json(FlowList {
                    flows: core.flows.list(),
                })
            }
        };
        let show = move |_: Operator, Path(name): Path<Name>, Query(query): Query<FlowQuery>| {
            let core = shown.clone();
            async move { show(&core, &name, query.agent.as_ref()) }
        };
        vec![
            Route::post("/v1/flows", register)
                .link()
                .summary("Says which flows the replica runs, as long as its process lives.")
                .takes::<RegisterFlows>()
                .gives::<RegisterFlowsReply>(),
            Route::post("/v1/flows/report", report)
                .link()
                .summary("Says how the flows of the replica do: metrics for /metrics, events for the live feed.")
                .takes::<FlowReport>()
                .gives::<FlowReportReply>(),
            Route::get("/v1/flows", list)
                .summary("Lists the flows that agents run now.")
                .gives::<FlowList>(),
            Route::get("/v1/flows/{name}", show)
                .summary("Shows one flow: its nodes, edges, policies and types.")
                .query::<FlowQuery>()
                .gives::<FlowView>(),
        ]
    }
}

fn register(
    core: &Core,
    peer: &LinkPeer,
    request: RegisterFlows,
) -> Result<Json<RegisterFlowsReply>, ApiError> {
    core.speaker(peer)?;
    let process = flows::process_of(&core.replicas.replicas(), peer.replica.as_str());
    let process = process.ok_or_else(|| {
        ApiError::conflict(format!("replica `{}` has no process that lives on", peer.replica))
            .hint("flows are registered by agents with a `command`; a handler's process ends with its item")
    })?;
    let run = core
        .flows
        .register(peer, process, request.flows, core.clock.wall());
    Ok(Json(RegisterFlowsReply {
        run: run.map_err(|why| refused(&why))?,
    }))
}

fn take_report(
    core: &Core,
    peer: &LinkPeer,
    report: FlowReport,
) -> Result<Json<FlowReportReply>, ApiError> {
    let taken = core.flows.report(peer, report, core.clock.mono());
    taken.map(Json).map_err(|why| refused(&why))
}

pub(super) fn refused(why: &Refused) -> ApiError {
    match why {
        Refused::Ended(_) => ApiError::conflict(why.to_string())
            .hint("POST /v1/flows again; reports then carry the `run` that it answers with"),
        Refused::TooMany { .. } | Refused::Bad(_) => ApiError::bad_request(why.to_string()),
    }
}

fn show(core: &Core, name: &Name, agent: Option<&Name>) -> Result<Json<FlowView>, ApiError> {
    let view = core.flows.view(name, agent);
    view.map(Json).map_err(|why| not_shown(name, &why))
}

/// A flow that is not there, in the words of the API.
pub(super) fn not_shown(name: &Name, why: &NotShown) -> ApiError {
    match why {
        NotShown::Unknown(there) => {
            let error = ApiError::not_found(format!("no agent runs a flow `{name}` now"));
            if there.is_empty() {
                return error.hint("none runs; an agent registers its flows when it starts");
            }
            let there = there
                .iter()
                .map(|(flow, agent)| format!("{flow} (of {agent})"));
            let there: Vec<String> = there.take(SHOWN).collect();
            error.hint(format!("there are: {}", there.join(", ")))
        }
        NotShown::Several(agents) => {
            let agents: Vec<&str> = agents.iter().map(Name::as_str).take(SHOWN).collect();
            let agents = agents.join(", ");
            ApiError::bad_request(format!("several agents run a flow `{name}`: {agents}"))
                .hint("say whose is meant: --agent, or `agent` in the query")
        }
    }
}

/// Most names in a hint.
const SHOWN: usize = 20;
