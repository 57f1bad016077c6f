//! Context changes on their way into inboxes, and out of them again.
//!
//! In: one item per subscription and page; a newer change takes the place of one that nobody has claimed, and the item
//! keeps what the agent knew before the first of them. Out: the agent is told the difference between what it knew and
//! what is there now; if there is none, the item is settled without bothering it.

use std::sync::Arc;

use volary_context::dispatch::{Deliver, DeliverError, Dispatch, DispatchPayload};
use volary_messaging::{
    Parcel,
    delivery::DeliveryKind,
    inbox::{Claimed, InboxError, Inboxes, PutOptions},
    message::Payload,
};

/// What the dispatcher calls to deliver.
pub(crate) fn deliver(inboxes: Inboxes) -> Deliver {
    Arc::new(move |tx, dispatch| {
        let parcel = parcel(dispatch)?;
        let options = PutOptions {
            cause: dispatch.cause.into(),
            coalesce: Some(dispatch.coalesce_key()),
            base: Some(dispatch.base()),
            ..PutOptions::default()
        };
        let to = (&dispatch.subscription.tenant, &dispatch.subscription.agent);
        match inboxes.put(tx, to, &parcel, options) {
            Ok(enqueued) => Ok(enqueued.id.to_string()),
            Err(error) => Err(deliver_error(&error)),
        }
    })
}

fn parcel(dispatch: &Dispatch) -> Result<Parcel, DeliverError> {
    let refused = |problem: &dyn std::fmt::Display| DeliverError::Refused(problem.to_string());
    let change = &dispatch.change;
    Ok(Parcel {
        kind: DeliveryKind::Dispatch,
        topic: None,
        sender: format!("source:{}", change.page.source),
        trace: change.trace,
        idempotency_key: format!("{}/{}", change.id, dispatch.subscription.id),
        payload: Payload::json(&dispatch.payload()).map_err(|error| refused(&error))?,
    })
}

fn deliver_error(error: &InboxError) -> DeliverError {
    match error.refusal() {
        Some(why) if why.is_transient() => DeliverError::Full(why.to_string()),
        _ => DeliverError::Refused(error.to_string()),
    }
}

/// What the agent is told of a claimed delivery; the claim comes back as the error if nothing changed for it after all.
pub(crate) fn open(mut claimed: Claimed) -> Result<Claimed, Box<Claimed>> {
    if claimed.delivery.kind != DeliveryKind::Dispatch {
        return Ok(claimed);
    }
    // A payload that is no change of ours is passed on as it is.
    let Some(base) = claimed.base() else {
        return Ok(claimed);
    };
    let Ok(payload) = serde_json::from_slice::<DispatchPayload>(claimed.delivery.payload.bytes())
    else {
        return Ok(claimed);
    };
    let Some(payload) = payload.since(base) else {
        return Err(Box::new(claimed));
    };
    if let Ok(payload) = Payload::json(&payload) {
        claimed.delivery.payload = payload;
    }
    Ok(claimed)
}
