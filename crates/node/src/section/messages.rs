//! `POST /v1/messages`: operators and agents send.

use std::{sync::Arc, time::Duration};

use volary_kernel::{TraceId, clock};
use volary_messaging::{
    Admission, Priority, Refusal, Sender, Topic,
    action::SendAction,
    event::Outcome,
    post::{Origin, Posted},
};
use volary_ops::{
    ApiError, Json, LinkPeer, Operator, Route, Section,
    api::{self, SENDS_MAX, SendMany, SendManyReply, SendReply, SendRequest, checked_wait},
};

use volary_store::{Batch, Cause};

use super::{admission, inbox_error, limited};
use crate::core::Core;

pub(super) struct MessagesSection(pub Arc<Core>);

impl Section for MessagesSection {
    fn name(&self) -> &'static str {
        "messages"
    }

    fn routes(&self) -> Vec<Route> {
        let (operators, agents) = (self.0.clone(), self.0.clone());
        let by_operator = move |_: Operator, Json(request): Json<SendRequest>| {
            let core = operators.clone();
            async move { send(&core, core.operator.sender(), request).await }
        };
        let by_agent = move |peer: LinkPeer, Json(request): Json<SendRequest>| {
            let core = agents.clone();
            async move { send(&core, core.speaker(&peer)?.voice.sender(), request).await }
        };
        let (operators, agents) = (self.0.clone(), self.0.clone());
        let many_by_operator = move |_: Operator, Json(request): Json<SendMany>| {
            let core = operators.clone();
            async move { send_many(&core, &core.operator.sender(), request).await }
        };
        let many_by_agent = move |peer: LinkPeer, Json(request): Json<SendMany>| {
            let core = agents.clone();
            async move { send_many(&core, &core.speaker(&peer)?.voice.sender(), request).await }
        };
        let many = "Sends up to 1000 messages, in one commit.";
        let words = "Sends a message to the subscribers of a topic, to one agent, or to one member of a pool.";
        vec![
            Route::post("/v1/messages", by_operator)
                .summary(words)
                .takes::<SendRequest>()
                .gives::<SendReply>(),
            Route::post("/v1/messages", by_agent)
                .link()
                .summary(words)
                .takes::<SendRequest>()
                .gives::<SendReply>(),
            Route::post("/v1/messages/batch", many_by_operator)
                .summary(many)
                .takes::<SendMany>()
                .gives::<SendManyReply>(),
            Route::post("/v1/messages/batch", many_by_agent)
                .link()
                .summary(many)
                .takes::<SendMany>()
                .gives::<SendManyReply>(),
        ]
    }
}

async fn send(
    core: &Core,
    sender: Sender,
    request: SendRequest,
) -> Result<Json<SendReply>, ApiError> {
    let wait = checked_wait(request.wait)?;
    let trace = request.trace.unwrap_or_else(TraceId::generate);
    let action = send_action(request.send)?;
    let message = action
        .into_message(&sender, trace, core.clock.wall())
        .map_err(|error| ApiError::bad_request(error.to_string()))?;
    let id = message.id();
    let (posted, _) = core
        .settler
        .post
        .send(message, Origin::Minted)
        .await
        .map_err(inbox_error)?;
    if let Admission::Refused(why @ Refusal::RateLimited { retry_after }) = &posted.admission {
        return Err(limited(&why.to_string(), *retry_after));
    }
    let (word, mut reason) = admission(&posted.admission);
    let outcome = match wait {
        Duration::ZERO => None,
        wait => await_outcome(core, &posted, wait).await?,
    };
    match &outcome {
        Some((_, Some(why))) => reason = Some(why.clone()),
        None if posted.admission == Admission::Sent && !wait.is_zero() => {
            let why = "it is sent at most once: what becomes of it is not known here";
            reason = Some(why.to_owned());
        }
        // Done is as far as this node knows.
        Some((api::Outcome::Done, None)) => {
            let there: Vec<String> = core.neighbours.among(&posted.deliveries).collect();
            reason = (!there.is_empty()).then(|| {
                let there = there.join(", ");
                format!("taken by {there}, which knows what becomes of it there")
            });
        }
        _ => {}
    }
    Ok(Json(SendReply {
        id,
        trace,
        admission: word,
        outcome: outcome.map(|(outcome, _)| outcome),
        reason,
    }))
}

/// Sends together. What is refused is answered in its place; only if nothing could be stored is it an error.
async fn send_many(
    core: &Core,
    sender: &Sender,
    request: SendMany,
) -> Result<Json<SendManyReply>, ApiError> {
    let found = request.messages.len();
    if !(1..=SENDS_MAX).contains(&found) {
        let message = format!("{found} messages in one request; there must be 1 to {SENDS_MAX}");
        return Err(ApiError::bad_request(message));
    }
    let (mut tx, mut sent) = (Batch::new(), Vec::with_capacity(found));
    for send in request.messages {
        let trace = request.trace.unwrap_or_else(TraceId::generate);
        let message = send_action(send)?
            .into_message(sender, trace, core.clock.wall())
            .map_err(|error| ApiError::bad_request(error.to_string()))?;
        let id = message.id();
        let post = &core.settler.post;
        let posted = post
            .post(&mut tx, message, Origin::Minted, Cause::None)
            .await
            .map_err(inbox_error)?;
        let (admission, reason) = admission(&posted.admission);
        sent.push(SendReply {
            id,
            trace,
            admission,
            outcome: None,
            reason,
        });
    }
    if !tx.is_empty() {
        let stored = core.store.commit(tx).await;
        stored.map_err(|error| inbox_error(error.into()))?;
    }
    Ok(Json(SendManyReply { sent }))
}

type Ended = Option<(api::Outcome, Option<String>)>;

/// How the message ended, if it did within `wait`.
async fn await_outcome(core: &Core, posted: &Posted, wait: Duration) -> Result<Ended, ApiError> {
    let items = posted.items();
    if items.is_empty() {
        return Ok(None);
    }
    let ended = core
        .stopping
        .run_until_cancelled(clock::timeout(wait, core.inboxes.outcome(&items)))
        .await;
    let Some(Ok(outcome)) = ended else {
        return Ok(None);
    };
    Ok(Some(match outcome.map_err(inbox_error)? {
        Outcome::Done => (api::Outcome::Done, None),
        Outcome::Failed { reason } | Outcome::Parked { reason } => {
            (api::Outcome::Failed, Some(reason))
        }
        Outcome::DeadlineExceeded => (api::Outcome::DeadlineExceeded, None),
        Outcome::Dropped { reason } => (api::Outcome::Dropped, Some(reason)),
    }))
}

/// What a request to send asks of messaging.
pub(super) fn send_action(send: api::Send) -> Result<SendAction, ApiError> {
    let topic = send.topic.as_deref().map(Topic::new).transpose();
    let action = SendAction {
        topic: topic.map_err(|error| ApiError::bad_request(error.to_string()))?,
        to: send.to,
        pool: send.pool,
        payload: send.payload,
        payload_base64: send.payload_base64,
        content_type: send.content_type,
        headers: send.headers,
        priority: send.priority.map(Priority).unwrap_or_default(),
        deadline: send.deadline,
    };
    action.check().map_err(ApiError::bad_request)?;
    Ok(action)
}
