//! `GET /v1/replay`: what a replay of recorded messages would feed. Nothing is delivered.

use std::sync::Arc;

use volary_messaging::replay::{Direction, PlannedMessage, ReplayQuery as Wanted, ReplayRunner};
use volary_ops::{
    ApiError, Json, Operator, Query, Route, Section,
    api::{ReplayDirection, ReplayMessage, ReplayPlan, ReplayQuery, ReplayUnreadable},
};
use volary_store::Seq;

use crate::core::Core;

pub(super) struct ReplaySection(pub Arc<Core>);

impl Section for ReplaySection {
    fn name(&self) -> &'static str {
        "replay"
    }

    fn routes(&self) -> Vec<Route> {
        let core = self.0.clone();
        let plan = move |_: Operator, Query(query): Query<ReplayQuery>| {
            let core = core.clone();
            async move { plan(&core, query).await }
        };
        vec![
            Route::get("/v1/replay", plan)
                .summary("Plans a replay of recorded messages; delivers nothing.")
                .query::<ReplayQuery>()
                .gives::<ReplayPlan>(),
        ]
    }
}

async fn plan(core: &Core, query: ReplayQuery) -> Result<Json<ReplayPlan>, ApiError> {
    let wanted = Wanted {
        direction: query.direction.map(|direction| match direction {
            ReplayDirection::Inbound => Direction::Inbound,
            ReplayDirection::Outbound => Direction::Outbound,
        }),
        agent: query.agent,
        tenant: query.tenant,
        trace: query.trace,
        from: query.from,
        to: query.to,
        from_seq: query.from_seq.map(Seq),
    };
    let runner = ReplayRunner::new(core.store.clone());
    let plan = runner
        .plan(&wanted)
        .await
        .map_err(|error| ApiError::internal("planning a replay", &error))?;
    let unreadable = |gap: volary_messaging::replay::Unreadable| ReplayUnreadable {
        seq: gap.seq.0,
        problem: gap.problem,
    };
    Ok(Json(ReplayPlan {
        messages: plan.messages.iter().map(message).collect(),
        unreadable: plan.unreadable.into_iter().map(unreadable).collect(),
        next: plan.next.map(|seq| seq.0),
        missing_before: plan.missing_before.map(|seq| seq.0),
    }))
}

fn message(planned: &PlannedMessage) -> ReplayMessage {
    let message = &planned.message;
    ReplayMessage {
        seq: planned.seq.0,
        at: planned.at,
        direction: match planned.direction {
            Direction::Inbound => ReplayDirection::Inbound,
            Direction::Outbound => ReplayDirection::Outbound,
        },
        agent: planned.agent.clone(),
        id: message.id(),
        sender: message.sender().name().clone(),
        topics: message.topics().iter().map(ToString::to_string).collect(),
        tenant: message.tenant().clone(),
        trace: message.trace(),
        bytes: message.body().len() as u64,
    }
}
