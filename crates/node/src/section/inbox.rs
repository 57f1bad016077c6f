//! `GET /v1/inbox`, `POST /v1/inbox/ack` and `/nack`: long-lived agents receive and settle.

use std::{sync::Arc, time::Duration};

use volary_messaging::{
    action::Action,
    delivery::{Delivery, DeliveryKind},
    inbox::Claimed,
};
use volary_ops::{
    ApiError, Json, LinkPeer, Query, Route, Section,
    api::{
        self, AckReply, AckRequest, DurationText, InboxItem, InboxQuery, InboxReply, ItemKind,
        NackReply, NackRequest, SendReply, checked_wait,
    },
};
use volary_store::queue::Nacked;

use super::{admission, inbox_error, lapsed, messages::send_action};
use crate::{bridge::settle::SettleError, core::Core};

/// Most items of one request.
const MAX_ITEMS: usize = 100;

pub(super) struct InboxSection(pub Arc<Core>);

impl Section for InboxSection {
    fn name(&self) -> &'static str {
        "inbox"
    }

    fn routes(&self) -> Vec<Route> {
        let (next, ack, nack) = (self.0.clone(), self.0.clone(), self.0.clone());
        let next = move |peer: LinkPeer, Query(query): Query<InboxQuery>| {
            let core = next.clone();
            async move { claim(&core, &peer, query).await }
        };
        let ack = move |peer: LinkPeer, Json(request): Json<AckRequest>| {
            let core = ack.clone();
            async move { acknowledge(&core, &peer, request).await }
        };
        let nack = move |peer: LinkPeer, Json(request): Json<NackRequest>| {
            let core = nack.clone();
            async move { hand_back(&core, &peer, request).await }
        };
        vec![
            Route::get("/v1/inbox", next)
                .link()
                .summary("Claims deliveries; each comes again unless it is acknowledged in time.")
                .query::<InboxQuery>()
                .gives::<InboxReply>(),
            Route::post("/v1/inbox/ack", ack)
                .link()
                .summary("Says that deliveries were handled; what follows from them happens in the same commit.")
                .takes::<AckRequest>()
                .gives::<AckReply>(),
            Route::post("/v1/inbox/nack", nack)
                .link()
                .summary("Says that a delivery could not be handled.")
                .takes::<NackRequest>()
                .gives::<NackReply>(),
        ]
    }
}

async fn claim(
    core: &Core,
    peer: &LinkPeer,
    query: InboxQuery,
) -> Result<Json<InboxReply>, ApiError> {
    let speaker = core.speaker(peer)?;
    let mailbox = &speaker.mailbox;
    let wait = checked_wait(query.wait)?;
    let wanted = query
        .max
        .map_or(1, |max| usize::try_from(max).unwrap_or(MAX_ITEMS))
        .clamp(1, MAX_ITEMS);
    let room = core.sweep_claims();
    if room < wanted {
        return Err(super::full("more claims than can be held at once"));
    }
    let owner = peer.replica.to_string();
    let claimed = core
        .stopping
        .run_until_cancelled(mailbox.claim(&owner, wanted, wait))
        .await;
    let claimed = claimed
        .unwrap_or_else(|| Ok(Vec::new()))
        .map_err(inbox_error)?;
    let until = core.clock.mono() + mailbox.visibility();
    let mut items = Vec::with_capacity(claimed.len());
    for claimed in claimed {
        // One that cannot be settled comes again by itself; it must not cost the others their answer.
        let opened = core
            .settler
            .open(mailbox, &speaker.voice.sender(), claimed)
            .await;
        let opened = opened.inspect_err(|error| tracing::debug!(%error, "nothing to tell"));
        if let Ok(Some(claimed)) = opened {
            let token = core.claims.lock().hold(&peer.agent, claimed.clone(), until);
            items.push(InboxItem {
                priority: Some(claimed.priority().0),
                holds_for: Some(DurationText(mailbox.visibility())),
                ..item(token, claimed.delivery)
            });
        }
    }
    Ok(Json(InboxReply { items }))
}

fn item(token: String, delivery: Delivery) -> InboxItem {
    let (payload, payload_base64) = api::encode_payload(
        delivery.payload.content_type().as_str(),
        delivery.payload.bytes(),
    );
    InboxItem {
        id: token,
        kind: match delivery.kind {
            DeliveryKind::Message => ItemKind::Message,
            DeliveryKind::Dispatch => ItemKind::Dispatch,
            DeliveryKind::Task => ItemKind::Task,
        },
        topic: delivery.topic.as_ref().map(ToString::to_string),
        sender: delivery.sender,
        tenant: delivery.tenant,
        trace: Some(delivery.trace),
        attempt: delivery.attempt,
        idempotency_key: delivery.idempotency_key,
        redelivered: delivery.attempt > 1,
        headers: delivery
            .headers
            .iter()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        deadline: delivery.deadline,
        priority: None,
        holds_for: None,
        payload,
        payload_base64,
    }
}

async fn acknowledge(
    core: &Core,
    peer: &LinkPeer,
    request: AckRequest,
) -> Result<Json<AckReply>, ApiError> {
    let speaker = core.speaker(peer)?;
    let tokens = request.claims()?;
    let claimed = tokens
        .iter()
        .map(|token| find(core, peer, token))
        .collect::<Result<Vec<_>, _>>()?;
    let actions = request
        .actions
        .into_iter()
        .map(action)
        .collect::<Result<Vec<_>, _>>()?;
    let settled = core
        .settler
        .ack(&speaker.mailbox, &speaker.voice.sender(), &claimed, actions)
        .await;
    let sent = settled.map_err(|error| settle_error(core, &tokens, error))?;
    forget(core, &tokens);
    let sent = sent.into_iter().map(|sent| {
        let (word, reason) = admission(&sent.admission);
        SendReply {
            id: sent.id,
            trace: sent.trace,
            admission: word,
            outcome: None,
            reason,
        }
    });
    Ok(Json(AckReply {
        acked: claimed.len(),
        sent: sent.collect(),
    }))
}

fn action(action: api::Action) -> Result<Action, ApiError> {
    Ok(match action {
        api::Action::Send(send) => Action::Send(send_action(send)?),
        api::Action::Report(report) => Action::Report(report),
    })
}

async fn hand_back(
    core: &Core,
    peer: &LinkPeer,
    request: NackRequest,
) -> Result<Json<NackReply>, ApiError> {
    let mailbox = &core.speaker(peer)?.mailbox;
    let claimed = find(core, peer, &request.id)?;
    let delay: Option<Duration> = request.delay.map(|delay| delay.0);
    let reason = request
        .reason
        .as_deref()
        .unwrap_or("the agent gave no reason");
    let settler = &core.settler;
    let nacked = if request.give_up {
        settler.park(mailbox, &claimed, reason).await
    } else {
        settler.nack(mailbox, &claimed, delay, reason).await
    };
    let tokens = [request.id];
    let nacked = nacked.map_err(|error| settle_error(core, &tokens, error))?;
    forget(core, &tokens);
    Ok(Json(NackReply {
        parked: nacked == Nacked::Parked,
    }))
}

fn find(core: &Core, peer: &LinkPeer, token: &str) -> Result<Claimed, ApiError> {
    core.claims
        .lock()
        .find(&peer.agent, token)
        .cloned()
        .ok_or_else(lapsed)
}

fn forget(core: &Core, tokens: &[String]) {
    let mut claims = core.claims.lock();
    tokens.iter().for_each(|token| claims.forget(token));
}

fn settle_error(core: &Core, tokens: &[String], error: SettleError) -> ApiError {
    match error {
        SettleError::Action(error) => ApiError::bad_request(error.to_string()),
        SettleError::Task(error) => ApiError::bad_request(error.to_string()),
        error @ SettleError::TooLarge(_) => ApiError::bad_request(error.to_string()),
        SettleError::Later(why) | SettleError::StoreFull(why) => super::full(&why),
        SettleError::Limited { words, retry_after } => super::limited(&words, retry_after),
        SettleError::Lapsed => {
            forget(core, tokens);
            lapsed()
        }
        SettleError::Inbox(error) => inbox_error(error),
    }
}
