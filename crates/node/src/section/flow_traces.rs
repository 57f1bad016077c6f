//! Traces of flows: `GET /v1/flows/{name}/traces` and `POST /v1/flow-traces/{trace}/…` for operators, `POST /v1/flows/control`
//! for the agents that are asked. See decision 18.

use std::sync::Arc;

use axum::extract::Path;
use volary_kernel::{Name, TraceId};
use volary_ops::{
    ApiError, Json, LinkPeer, Operator, Query, Route, Section,
    api::{
        FlowAct, FlowActReply, FlowActRequest, FlowActed, FlowAsk, FlowControl, FlowControlReply,
        FlowSaid, FlowTraceView, FlowTraces, FlowTracesQuery, checked_wait,
    },
    code,
};

use super::flows::{not_shown, refused};
use crate::core::Core;

pub(super) struct FlowTracesSection(pub Arc<Core>);

impl Section for FlowTracesSection {
    fn name(&self) -> &'static str {
        "flow-traces"
    }

    fn routes(&self) -> Vec<Route> {
        let (listed, asked) = (self.0.clone(), self.0.clone());
        let list =
            move |_: Operator, Path(name): Path<Name>, Query(query): Query<FlowTracesQuery>| {
                let core = listed.clone();
                async move { list(&core, &name, &query).await }
            };
        let control = move |peer: LinkPeer, Json(control): Json<FlowControl>| {
            let core = asked.clone();
            async move { orders(&core, &peer, control).await }
        };
        vec![
            Route::get("/v1/flows/{name}/traces", list)
                .summary("Lists the traces of a flow: those that live, and those that ended lately.")
                .query::<FlowTracesQuery>()
                .gives::<FlowTraces>(),
            self.act(FlowAct::Cancel, "/v1/flow-traces/{trace}/cancel")
                .summary("Ends a trace of an agent's flow; its message is parked."),
            self.act(FlowAct::Pause, "/v1/flow-traces/{trace}/pause")
                .summary("Holds what of a trace does not run yet, at most as long as its message is claimed."),
            self.act(FlowAct::Resume, "/v1/flow-traces/{trace}/resume")
                .summary("Lets a paused trace go on."),
            Route::post("/v1/flows/control", control)
                .link()
                .summary("Answers what operators asked of the replica's flows, and waits for what they ask next.")
                .takes::<FlowControl>()
                .gives::<FlowControlReply>(),
        ]
    }
}

impl FlowTracesSection {
    fn act(&self, act: FlowAct, path: &'static str) -> Route {
        let core = self.0.clone();
        let handler =
            move |_: Operator, Path(trace): Path<TraceId>, Json(request): Json<FlowActRequest>| {
                let core = core.clone();
                async move { do_it(&core, act, trace, &request).await }
            };
        Route::post(path, handler)
            .takes::<FlowActRequest>()
            .gives::<FlowActReply>()
    }
}

async fn orders(
    core: &Core,
    peer: &LinkPeer,
    control: FlowControl,
) -> Result<Json<FlowControlReply>, ApiError> {
    let wait = checked_wait(control.wait)?;
    let orders = core
        .stopping
        .run_until_cancelled(core.flows.control(peer, control, wait))
        .await;
    let orders = orders.unwrap_or_else(|| Ok(Vec::new()));
    Ok(Json(FlowControlReply {
        orders: orders.map_err(|why| refused(&why))?,
    }))
}

async fn list(
    core: &Core,
    name: &Name,
    query: &FlowTracesQuery,
) -> Result<Json<FlowTraces>, ApiError> {
    let whom = (Some(name), query.agent.as_ref(), query.tenant.as_ref());
    let ask = FlowAsk::Traces { flow: name.clone() };
    let answers = core.flows.ask(whom, &ask).await;
    let mut reply = FlowTraces::default();
    for (peer, said) in answers.map_err(|why| not_shown(name, &why))? {
        match said {
            Some(FlowSaid::Traces { traces, more }) => {
                reply.more |= more;
                reply
                    .traces
                    .extend(traces.into_iter().map(|trace| FlowTraceView {
                        agent: peer.agent.clone(),
                        replica: peer.replica.clone(),
                        trace,
                    }));
            }
            Some(FlowSaid::Refused { why }) => return Err(ApiError::conflict(why)),
            Some(FlowSaid::Acted { .. }) | None => reply.silent.push(peer.replica),
        }
    }
    // Of several replicas: what lives first and the oldest of it, then what ended last.
    reply.traces.sort_by_key(|view| {
        let age = std::cmp::Reverse(view.trace.age);
        view.trace
            .ended_at
            .map_or((None, Some(age)), |at| (Some(std::cmp::Reverse(at)), None))
    });
    Ok(Json(reply))
}

async fn do_it(
    core: &Core,
    act: FlowAct,
    trace: TraceId,
    request: &FlowActRequest,
) -> Result<Json<FlowActReply>, ApiError> {
    let unknown = || {
        ApiError::not_found(format!("no flow works on trace {trace} now"))
            .hint("`volary flow traces FLOW` lists what there is")
    };
    let whom = (None, None, request.tenant.as_ref());
    let answers = core.flows.ask(whom, &FlowAsk::Act { act, trace }).await;
    let (mut reply, mut cannot, mut silent) = (FlowActReply::default(), None, Vec::new());
    for (peer, said) in answers.map_err(|_| unknown())? {
        match said {
            Some(FlowSaid::Acted { flow, traces }) => {
                reply
                    .traces
                    .extend(traces.into_iter().map(|trace| FlowActed {
                        flow: flow.clone(),
                        agent: peer.agent.clone(),
                        replica: peer.replica.clone(),
                        trace,
                    }));
            }
            Some(FlowSaid::Refused { why }) => cannot = Some(why),
            Some(FlowSaid::Traces { .. }) | None => silent.push(peer.replica.to_string()),
        }
    }
    for acted in &reply.traces {
        let (act, flow, trace) = (act.as_str(), &acted.flow, &acted.trace);
        tracing::info!(act, %flow, replica = %acted.replica, %trace, "an operator acted on a trace");
    }
    match (reply.traces.is_empty(), cannot) {
        (false, _) => Ok(Json(reply)),
        (true, Some(why)) => Err(ApiError::conflict(why)),
        (true, None) if silent.is_empty() => Err(unknown()),
        (true, None) => Err(ApiError::new(
            code::HANDLER_TIMEOUT,
            format!(
                "no answer from {}, and no other knows trace {trace}",
                silent.join(", ")
            ),
        )),
    }
}
