//! `POST /v1/messages`: operators and agents send.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde_json::value::RawValue;
use volary_kernel::{Name, TraceId, clock};
use volary_messaging::{
    Sender, Topic,
    action::SendAction,
    event::Outcome,
    post::{Origin, Posted},
};
use volary_ops::{
    ApiError, Json, LinkPeer, Operator, Route, Section,
    api::{self, SendReply, SendRequest, checked_wait},
};

use super::{admission, inbox_error};
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
            async move { send(&core, core.operator.clone(), request).await }
        };
        let by_agent = move |peer: LinkPeer, Json(request): Json<SendRequest>| {
            let core = agents.clone();
            async move { send(&core, core.speaker(&peer)?.sender.clone(), request).await }
        };
        let words = "Sends a message to the subscribers of a topic, or to one agent.";
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
    let action = send_action(
        (request.topic, request.to),
        (request.payload, request.payload_base64),
        request.content_type,
        request.headers,
    )?;
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
    let (word, mut reason) = admission(&posted.admission);
    let outcome = match wait {
        Duration::ZERO => None,
        wait => await_outcome(core, &posted, wait).await?,
    };
    if let Some((_, Some(why))) = &outcome {
        reason = Some(why.clone());
    }
    Ok(Json(SendReply {
        id,
        trace,
        admission: word,
        outcome: outcome.map(|(outcome, _)| outcome),
        reason,
    }))
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
pub(super) fn send_action(
    (topic, to): (Option<String>, Option<Name>),
    (payload, payload_base64): (Option<Box<RawValue>>, Option<String>),
    content_type: Option<String>,
    headers: BTreeMap<String, String>,
) -> Result<SendAction, ApiError> {
    let topic = topic
        .map(|topic| Topic::new(&topic))
        .transpose()
        .map_err(|error| ApiError::bad_request(error.to_string()))?;
    let action = SendAction {
        topic,
        to,
        payload,
        payload_base64,
        content_type,
        headers,
        priority: volary_messaging::Priority::default(),
        deadline: None,
    };
    action.check().map_err(ApiError::bad_request)?;
    Ok(action)
}
