//! `/v1/parked`: one place to look at what got stuck, and to try it again or give it up.

use std::sync::Arc;

use axum::extract::Path;
use volary_kernel::Name;
use volary_messaging::{delivery::Delivery, inbox::parse_item, task::task_in};
use volary_ops::{
    ApiError, Json, Operator, Query, Route, Section,
    api::{self, ParkedList, ParkedQuery, ParkedView, RetryReply},
};
use volary_store::queue::{ItemId, ParkedItem};

use super::queue_error;
use crate::core::Core;

/// What queues of tasks are called, before the tenant.
const TASKS: &str = "tasks/";
/// Items listed when the request does not say how many.
const LISTED: usize = 1000;

pub(super) struct ParkedSection(pub Arc<Core>);

impl Section for ParkedSection {
    fn name(&self) -> &'static str {
        "parked"
    }

    fn routes(&self) -> Vec<Route> {
        let core = || self.0.clone();
        let (listed, shown, retried, dropped) = (core(), core(), core(), core());
        let list = move |_: Operator, Query(query): Query<ParkedQuery>| {
            let core = listed.clone();
            async move { list(&core, query).await }
        };
        let show = move |_: Operator, Path(id): Path<String>| {
            let core = shown.clone();
            async move { show(&core, &id).await }
        };
        let retry = move |_: Operator, Path(id): Path<String>| {
            let core = retried.clone();
            async move { settle(&core, &id, Settle::Retry).await }
        };
        let drop = move |_: Operator, Path(id): Path<String>| {
            let core = dropped.clone();
            async move { settle(&core, &id, Settle::Drop).await }
        };
        vec![
            Route::get("/v1/parked", list)
                .summary("Lists what waits for a person, over all queues.")
                .query::<ParkedQuery>()
                .gives::<ParkedList>(),
            Route::get("/v1/parked/{id}", show)
                .summary("Shows one item with its payload.")
                .gives::<ParkedView>(),
            Route::post("/v1/parked/{id}/retry", retry)
                .summary("Tries an item again.")
                .gives::<RetryReply>(),
            Route::delete("/v1/parked/{id}", drop)
                .summary("Gives an item up.")
                .gives::<RetryReply>(),
        ]
    }
}

fn item_id(text: &str) -> Result<ItemId, ApiError> {
    parse_item(text).map_err(|error| ApiError::bad_request(error.to_string()))
}

async fn list(core: &Core, query: ParkedQuery) -> Result<Json<ParkedList>, ApiError> {
    let limit = query
        .limit
        .map_or(LISTED, |limit| usize::try_from(limit).unwrap_or(LISTED))
        .clamp(1, LISTED);
    let (mut items, mut after) = (Vec::new(), None);
    loop {
        let page = core
            .queues
            .parked(after, LISTED)
            .await
            .map_err(queue_error)?;
        let Some(last) = page.last() else {
            return Ok(Json(ParkedList { items, more: false }));
        };
        after = Some(last.id);
        for item in page {
            let item = view(core, &item);
            if query.agent.is_some() && query.agent != item.agent {
                continue;
            }
            if items.len() == limit {
                return Ok(Json(ParkedList { items, more: true }));
            }
            items.push(item);
        }
    }
}

/// The agent whose inbox a queue is.
fn agent_of(core: &Core, queue: &str) -> Option<Name> {
    let name = queue
        .rsplit('/')
        .next()
        .and_then(|name| Name::new(name).ok())?;
    core.agents.contains_key(&name).then_some(name)
}

fn view(core: &Core, item: &ParkedItem) -> api::ParkedItem {
    api::ParkedItem {
        id: item.id.to_string(),
        queue: item.queue.to_string(),
        agent: agent_of(core, &item.queue),
        tenant: item.tenant.clone(),
        trace: item.trace,
        attempts: item.attempts,
        reason: item.reason.clone(),
        enqueued_at: item.enqueued_at,
        parked_at: Some(item.parked_at),
        bytes: item.payload.len() as u64,
    }
}

async fn show(core: &Core, id: &str) -> Result<Json<ParkedView>, ApiError> {
    let found = core
        .queues
        .parked_item(item_id(id)?)
        .await
        .map_err(queue_error)?;
    let stored = found.payload.clone();
    let delivery = Delivery::decode(&stored, found.id.0, found.attempts, &found.tenant);
    let (payload, payload_base64) = match &delivery {
        _ if found.queue.starts_with(TASKS) => {
            let task = task_in(&stored).ok();
            let json = task.and_then(|task| serde_json::to_vec(&task).ok());
            api::encode_payload(api::JSON, &json.unwrap_or_default())
        }
        Ok(delivery) => api::encode_payload(
            delivery.payload.content_type().as_str(),
            delivery.payload.bytes(),
        ),
        // What cannot be read is shown as it is.
        Err(_) => api::encode_payload(api::OCTETS, &stored),
    };
    Ok(Json(ParkedView {
        item: view(core, &found),
        payload,
        payload_base64,
    }))
}

#[derive(Clone, Copy)]
enum Settle {
    Retry,
    Drop,
}

async fn settle(core: &Core, id: &str, how: Settle) -> Result<Json<RetryReply>, ApiError> {
    let id = item_id(id)?;
    let found = core.queues.parked_item(id).await.map_err(queue_error)?;
    let settled = match how {
        Settle::Retry => core.queues.retry_parked(id).await,
        Settle::Drop => core.queues.drop_parked(id, "dropped by the operator").await,
    };
    settled.map_err(queue_error)?;
    Ok(Json(RetryReply {
        id: id.to_string(),
        queue: found.queue.to_string(),
    }))
}
