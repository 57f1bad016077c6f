//! `/v1/replay`: plans of recorded messages, feeding them to an agent's inbox, and comparing what a handler does with what
//! it did. Each call is bounded; whoever wants more goes on at `next`.

use std::{sync::Arc, time::Duration};

use axum::http::StatusCode;
use volary_kernel::clock::Mono;
use volary_messaging::{
    inbox::InboxError,
    replay::{
        Direction, ImportError, PlannedMessage, Position, Recording, Replay, ReplayError,
        ReplayQuery as Wanted, ReplayRunner,
        verify::{Divergence, verify_deliveries},
    },
};
use volary_ops::{
    ApiError, Json, Operator, Query, Route, Section,
    api::{
        ReplayDifference, ReplayDirection, ReplayDivergence, ReplayMessage, ReplayPlan,
        ReplayQuery, ReplayReply, ReplayRequest, ReplayUnreadable, VerifyReply, VerifyRequest,
    },
};
use volary_store::Seq;

use crate::{core::Core, error, hooks};

/// Most messages that one call feeds: each is a commit.
const FEED_MAX: u32 = 256;
/// Most deliveries that one call verifies: each is a process.
const VERIFY_MAX: u32 = 16;
/// After this no further delivery is begun in the same call, so that an answer comes in time.
const VERIFY_TIME: Duration = Duration::from_secs(5);

pub(super) struct ReplaySection(pub Arc<Core>);

impl Section for ReplaySection {
    fn name(&self) -> &'static str {
        "replay"
    }

    fn routes(&self) -> Vec<Route> {
        let (core, feeder, verifier) = (self.0.clone(), self.0.clone(), self.0.clone());
        let plan = move |_: Operator, Query(query): Query<ReplayQuery>| {
            let core = core.clone();
            async move { plan(&core, query).await }
        };
        let feed = move |_: Operator, Json(request): Json<ReplayRequest>| {
            let core = feeder.clone();
            async move { feed(&core, request).await }
        };
        let verify = move |_: Operator, Json(request): Json<VerifyRequest>| {
            let core = verifier.clone();
            async move { verify(&core, request).await }
        };
        vec![
            Route::get("/v1/replay", plan)
                .summary("Plans a replay of recorded messages; delivers nothing.")
                .query::<ReplayQuery>()
                .gives::<ReplayPlan>(),
            Route::post("/v1/replay", feed)
                .summary("Puts recorded messages into an agent's inbox, marked as replayed.")
                .takes::<ReplayRequest>()
                .gives::<ReplayReply>(),
            Route::post("/v1/replay/verify", verify)
                .summary("Runs a handler on recorded deliveries and compares its actions; carries nothing out.")
                .takes::<VerifyRequest>()
                .gives::<VerifyReply>(),
        ]
    }
}

// --- plan ------------------------------------------------------------------------------------

async fn plan(core: &Core, query: ReplayQuery) -> Result<Json<ReplayPlan>, ApiError> {
    let runner = runner(core, query.archive.as_deref()).await?;
    let max = query
        .max
        .map(|max| usize::try_from(max).unwrap_or(usize::MAX));
    let wanted = wanted(query);
    let planned = match max {
        Some(max) => runner.plan_up_to(&wanted, max).await,
        None => runner.plan(&wanted).await,
    };
    let plan = planned.map_err(|error| failure(&error))?;
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

async fn runner(core: &Core, archive: Option<&str>) -> Result<ReplayRunner, ApiError> {
    let recording = match archive {
        None => Recording::journal(core.store.clone()),
        Some(name) => core
            .imports
            .open(name)
            .await
            .map_err(|error| failure(&error))?,
    };
    Ok(ReplayRunner::new(recording).clock(core.clock.clone()))
}

fn wanted(query: ReplayQuery) -> Wanted {
    Wanted {
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
        to_seq: query.to_seq.map(Seq),
    }
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
        idempotency_key: planned.idempotency_key(),
        sealed: planned.sealed.is_some(),
    }
}

// --- feed ------------------------------------------------------------------------------------

async fn feed(core: &Core, request: ReplayRequest) -> Result<Json<ReplayReply>, ApiError> {
    let ReplayRequest { query, into } = request;
    if !core.agents.contains_key(&into) {
        return Err(
            ApiError::not_found(format!("agent `{into}` is not in this fleet"))
                .hint("`volary ps` lists the agents"),
        );
    }
    let runner = runner(core, query.archive.as_deref()).await?;
    let limit = query.max.unwrap_or(FEED_MAX).clamp(1, FEED_MAX);
    let replay = Replay::of(wanted(query)).limit(limit.into()).inbox(
        core.inboxes.clone(),
        core.store.clone(),
        into,
    );
    let seq = |position: Position| position.seq.0;
    let mut last = None;
    let replay = replay.progress(|progress| last = Some(seq(progress.position)));
    let reply = match runner.replay(replay).await {
        Ok(report) => ReplayReply {
            fed: report.fed,
            last: report.last.map(seq),
            next: report.next.map(seq),
            stopped: None,
            retry: false,
        },
        Err(stopped) => ReplayReply {
            fed: stopped.fed,
            last,
            next: stopped.position.map(seq),
            stopped: Some(stopped.cause.to_string()),
            retry: matches!(&stopped.cause, ReplayError::Inbox(error) if may_pass(error)),
        },
    };
    Ok(Json(reply))
}

fn may_pass(error: &InboxError) -> bool {
    error.refusal().is_some_and(|why| why.is_transient())
}

// --- verify ----------------------------------------------------------------------------------

async fn verify(core: &Core, request: VerifyRequest) -> Result<Json<VerifyReply>, ApiError> {
    let VerifyRequest { agent, query } = request;
    let unknown = || {
        ApiError::not_found(format!("agent `{agent}` has no handler in this fleet"))
            .hint("only agents whose manifest says `handler` can be run on recorded deliveries")
    };
    let handler = core.handlers.get(&agent).ok_or_else(unknown)?;
    if query.archive.is_some() || query.direction.is_some() {
        return Err(ApiError::bad_request(
            "a verification reads the node's own journal, and takes neither `archive` nor `direction`",
        ));
    }
    let limit = query.max.unwrap_or(VERIFY_MAX).clamp(1, VERIFY_MAX);
    let recording = Recording::journal(core.store.clone());
    let mut wanted = Wanted {
        agent: Some(agent.clone()),
        ..wanted(query)
    };
    let until: Mono = core.clock.mono() + VERIFY_TIME;
    let added = hooks::added(&core.fleet.messaging);
    let mut reply = VerifyReply::default();
    // One at a time: how long each takes is not known.
    for _ in 0..limit {
        let run = |recorded, context| async move { handler.rehearse(&recorded, context).await };
        let verified = verify_deliveries(&recording, &wanted, (1, added), run).await;
        let report = verified.map_err(|error| failure(&error))?;
        reply.checked += report.checked;
        reply.same += report.same;
        reply
            .skipped
            .extend(report.skipped.into_iter().map(|one| ReplayUnreadable {
                seq: one.seq.0,
                problem: one.why,
            }));
        reply.divergence = report.divergence.map(divergence);
        reply.next = report.next.map(|seq| seq.0);
        wanted.from_seq = report.next;
        let ended = reply.divergence.is_some() || reply.next.is_none();
        if ended || core.clock.mono() >= until || core.stopping.is_cancelled() {
            break;
        }
    }
    Ok(Json(reply))
}

fn divergence(found: Divergence) -> ReplayDivergence {
    let value = |act| serde_json::to_value(act).ok();
    let difference = |one: volary_messaging::replay::verify::Difference| ReplayDifference {
        at: one.at,
        expected: one.expected,
        actual: one.actual,
    };
    ReplayDivergence {
        seq: found.seq.0,
        delivery: found.delivery,
        trace: found.trace,
        action: found.action as u64,
        expected: found.expected.and_then(value),
        actual: found.actual.and_then(value),
        differences: found.differences.into_iter().map(difference).collect(),
        failure: found.failure,
    }
}

// --- failures --------------------------------------------------------------------------------

fn failure(error: &ReplayError) -> ApiError {
    match error {
        ReplayError::Import(ImportError::Unknown(_)) => ApiError::not_found(error.to_string())
            .hint("`volary journal import` takes an archive in"),
        ReplayError::Import(_) | ReplayError::Archive(_) => ApiError::domain(
            StatusCode::UNPROCESSABLE_ENTITY,
            error::ARCHIVE.id,
            error.to_string(),
        )
        .hint(error::ARCHIVE.hint),
        other => ApiError::internal("a replay", other),
    }
}
