//! What the node adds to the HTTP API, a file for each noun.

mod fleet;
mod flow_traces;
mod flows;
mod identities;
mod inbox;
mod logs;
mod messages;
mod parked;
mod pools;
mod replay;
mod tasks;
mod webhooks;

pub(crate) use fleet::replica_view;

use std::{sync::Arc, time::Duration};

use axum::http::StatusCode;
use volary_messaging::{Admission, inbox::InboxError};
use volary_ops::{ApiError, Section, api};
use volary_store::{StoreError, queue::QueueError};

use crate::{core::Core, error};

/// All sections over `core`.
pub(crate) fn all(core: &Arc<Core>) -> Vec<Arc<dyn Section>> {
    let mut sections: Vec<Arc<dyn Section>> = vec![
        Arc::new(fleet::FleetSection(core.clone())),
        Arc::new(messages::MessagesSection(core.clone())),
        Arc::new(inbox::InboxSection(core.clone())),
        Arc::new(parked::ParkedSection(core.clone())),
        Arc::new(logs::LogsSection(core.clone())),
        Arc::new(identities::IdentitiesSection(core.clone())),
        Arc::new(replay::ReplaySection(core.clone())),
        Arc::new(tasks::TasksSection(core.clone())),
        Arc::new(pools::PoolsSection(core.clone())),
        Arc::new(flows::FlowsSection(core.clone())),
        Arc::new(flow_traces::FlowTracesSection(core.clone())),
    ];
    if let Some(inbound) = &core.webhooks.inbound {
        sections.push(Arc::new(webhooks::WebhooksSection(inbound.clone())));
    }
    sections
}

/// The word and the reason of an admission.
pub(crate) fn admission(admission: &Admission) -> (api::Admission, Option<String>) {
    match admission {
        Admission::Delivered => (api::Admission::Delivered, None),
        Admission::Queued => (api::Admission::Queued, None),
        Admission::Sent => (api::Admission::Sent, None),
        Admission::NoRoute => (api::Admission::NoRoute, None),
        Admission::Partial { .. } => (api::Admission::Delivered, Some(admission.to_string())),
        Admission::Refused(why) => (api::Admission::Refused, Some(why.to_string())),
        Admission::Dropped { .. } => (api::Admission::Dropped, Some(admission.to_string())),
    }
}

/// A failed inbox in the words of the API.
pub(crate) fn inbox_error(error: InboxError) -> ApiError {
    match error {
        InboxError::Queue(error) => queue_error(error),
        InboxError::Unknown { .. } => ApiError::not_found(error.to_string()),
        other => ApiError::internal("inbox", &other),
    }
}

/// A failed queue in the words of the API.
pub(crate) fn queue_error(error: QueueError) -> ApiError {
    match error {
        QueueError::Lapsed(_) => lapsed(),
        QueueError::UnknownItem(_) => ApiError::not_found(error.to_string())
            .hint("list what there is with `volary parked list`"),
        QueueError::Full { .. } => full(&error.to_string()),
        QueueError::TooManyWaiters(_) => ApiError::domain(
            StatusCode::SERVICE_UNAVAILABLE,
            error::WAITERS.id,
            error.to_string(),
        )
        .hint(error::WAITERS.hint),
        QueueError::Store(StoreError::Full { .. }) => full(&error.to_string()),
        QueueError::Store(StoreError::TooLarge { .. }) => ApiError::bad_request(error.to_string()),
        other => ApiError::internal("queue", &other),
    }
}

/// 429 for a sender that is over a limit: when there is room again.
pub(crate) fn limited(message: &str, retry_after: Duration) -> ApiError {
    let seconds = retry_after.as_secs() + u64::from(retry_after.subsec_nanos() > 0);
    ApiError::domain(StatusCode::TOO_MANY_REQUESTS, error::LIMITED.id, message)
        .hint(error::LIMITED.hint)
        .retry_after(u32::try_from(seconds).unwrap_or(u32::MAX).max(1))
}

/// 403: the agent may not do this.
fn forbidden(message: impl Into<String>) -> ApiError {
    ApiError::domain(StatusCode::FORBIDDEN, error::NOT_ALLOWED.id, message)
        .hint(error::NOT_ALLOWED.hint)
}

fn full(message: &str) -> ApiError {
    ApiError::domain(StatusCode::SERVICE_UNAVAILABLE, error::NO_ROOM.id, message)
        .hint(error::NO_ROOM.hint)
        .retry_after(1)
}

/// The answer to one who settles a claim that is no longer his.
pub(crate) fn lapsed() -> ApiError {
    ApiError::conflict("the claim does not hold: its time was over, it was settled already, or it is another agent's")
        .hint("claim again with GET /v1/inbox; raise `delivery.timeout` if the work takes longer")
}
