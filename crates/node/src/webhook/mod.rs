//! Webhooks of a fleet: the senders that may post here, and the sinks that post elsewhere.
//!
//! What is believed and what an answer means is decided in [`volary_messaging::webhook`]; here are the sockets.

mod client;

use std::{sync::Arc, time::Duration};

use serde_json::json;
use tokio_util::sync::CancellationToken;
use volary_deploy::spec::model::{EmitSpec, FleetSpec, InboundSpec, OutboundSpec, ProfileKind};
use volary_kernel::{
    Name, SharedClock,
    metric::Metrics,
    ready::Heartbeat,
    retry::Backoff,
    secret::{Redactor, Secret},
    task::TaskResult,
};
use volary_messaging::{
    Identity, Sender, Topic,
    inbox::{InboxSpec, Inboxes},
    post::Post,
    task::{NewTask, TaskManager},
    webhook::{
        BreakerConfig, Duplicates, Emit, EventIn, Inbound, ProviderProfile, SENDER, Sink, Target,
    },
};
use volary_store::SharedStore;

use crate::error::NodeError;

/// Waits between attempts: soon for a hiccup, ten minutes in all for eight attempts.
const BACKOFF: Backoff = Backoff {
    base: Duration::from_millis(250),
    factor: 4.0,
    max: Duration::from_secs(300),
    jitter: 0.2,
};
/// Added to a request's time before its claim lapses.
const CLAIM_MARGIN: Duration = Duration::from_secs(30);
/// Longest a sink waits for something to send before it looks around.
const IDLE_WAIT: Duration = Duration::from_secs(60);

/// The webhooks of a node.
pub(crate) struct Webhooks {
    pub inbound: Option<Inbound>,
    pub sinks: Vec<Outbox>,
}

/// A sink and how many workers it has.
#[derive(Clone)]
pub(crate) struct Outbox {
    pub name: Name,
    pub sink: Sink,
    pub workers: u32,
}

/// What webhooks stand on.
pub(crate) struct Parts<'a> {
    pub inboxes: &'a Inboxes,
    pub post: &'a Post,
    pub store: &'a SharedStore,
    pub clock: &'a SharedClock,
    pub metrics: &'a Metrics,
    pub key: &'a Identity,
    pub tasks: &'a TaskManager,
}

/// Declares the secrets of webhooks.
pub(crate) fn declare_secrets(fleet: &FleetSpec, redactor: &Redactor) -> Result<(), NodeError> {
    for secret in fleet.messaging.webhooks.secret_values() {
        redactor
            .add(secret)
            .map_err(|error| NodeError::Fleet(format!("messaging.webhooks: {error}")))?;
    }
    Ok(())
}

impl Webhooks {
    /// Opens the inboxes of the targets and readies both directions. Nothing runs.
    pub(crate) fn open(fleet: &FleetSpec, parts: &Parts<'_>) -> Result<Self, NodeError> {
        let spec = &fleet.messaging.webhooks;
        let name = Name::new(SENDER).expect("the constant keeps the rules of names");
        let sender = Sender::new(parts.key.id(), name, fleet.tenant.clone());
        let provider = |spec| {
            let profile = profile(spec);
            Ok((profile, emit(spec, &sender, parts.tasks)?))
        };
        let providers = spec.inbound.iter().map(provider);
        let providers = providers.collect::<Result<Vec<_>, NodeError>>()?;
        let inbound = (!providers.is_empty()).then(|| {
            let (post, store, clock) = (parts.post, parts.store, parts.clock);
            Inbound::new(
                providers,
                sender,
                post.clone(),
                store.clone(),
                clock.clone(),
                parts.metrics,
            )
        });
        let sinks = spec
            .outbound
            .iter()
            .map(|target| sink(fleet, target, parts));
        Ok(Self {
            inbound,
            sinks: sinks.collect::<Result<_, _>>()?,
        })
    }
}

fn topic(text: &str) -> Result<Topic, NodeError> {
    Topic::new(text).map_err(|error| NodeError::Fleet(format!("messaging.webhooks: {error}")))
}

fn profile(spec: &InboundSpec) -> ProviderProfile {
    let (name, secret) = (spec.name.clone(), spec.secret.clone());
    let mut profile = match spec.profile {
        ProfileKind::Signed => ProviderProfile::signed(name, secret),
        ProfileKind::Standard => ProviderProfile::standard(name, secret),
        ProfileKind::Github => ProviderProfile::github(name, secret),
        ProfileKind::Gitea => ProviderProfile::gitea(name, secret),
        ProfileKind::Gitlab => ProviderProfile::gitlab(name, secret),
    };
    profile.required.clone_from(&spec.required_fields);
    profile.max_bytes = usize::try_from(spec.max_bytes).unwrap_or(usize::MAX);
    if let Some(field) = &spec.event_id {
        profile.event = EventIn::Field(field.clone());
    }
    if let Some(skew) = spec.max_skew {
        profile.skew = skew;
        profile.seen_for = profile.seen_for.max(skew * 2);
    }
    if let Some(seen_for) = spec.remember_for {
        profile.seen_for = seen_for;
    }
    match spec.accept_duplicates {
        Some(true) => profile.duplicates = Duplicates::Accept,
        Some(false) => profile.duplicates = Duplicates::Refuse,
        None => {}
    }
    profile
}

fn emit(spec: &InboundSpec, sender: &Sender, tasks: &TaskManager) -> Result<Emit, NodeError> {
    let (to_topic, pool) = match &spec.emit {
        EmitSpec::Message { topic: text } => return Ok(Emit::Message(topic(text)?)),
        EmitSpec::Task { topic: text, pool } => {
            let to_topic = text.as_deref().map(topic).transpose()?;
            (to_topic, pool.clone())
        }
    };
    let (provider, sender, tasks) = (spec.name.clone(), sender.clone(), tasks.clone());
    Ok(Emit::Task(Arc::new(move |tx, event| {
        let inputs = serde_json::from_slice(&event.body).unwrap_or_default();
        let new = NewTask {
            pool: pool.clone(),
            topic: to_topic.clone(),
            objective: json!({"webhook": provider, "event": event.kind, "id": event.id}),
            inputs,
            ..NewTask::default()
        };
        let added = tasks.submit_in(tx, sender.tenant(), sender.name(), new);
        Box::pin(std::future::ready(added.map(drop)))
    })))
}

fn sink(fleet: &FleetSpec, spec: &OutboundSpec, parts: &Parts<'_>) -> Result<Outbox, NodeError> {
    let topics = spec.topics.iter().map(|text| topic(text));
    let bounds = &fleet.messaging;
    let mailbox = parts.inboxes.open(InboxSpec {
        max_items: usize::try_from(bounds.inbox_items).unwrap_or(usize::MAX),
        max_bytes: bounds.inbox_bytes,
        visibility: spec.timeout + CLAIM_MARGIN,
        max_attempts: spec.max_attempts,
        backoff: BACKOFF,
        ..InboxSpec::new(
            fleet.tenant.clone(),
            spec.name.clone(),
            topics.collect::<Result<_, _>>()?,
        )
    });
    let bad = |error: String| NodeError::Fleet(format!("webhook `{}`: {error}", spec.name));
    let mailbox = mailbox.map_err(|error| bad(error.to_string()))?;
    let plain = spec.headers.iter();
    let mut headers: Vec<(String, Secret)> = plain
        .map(|(name, value)| (name.clone(), Secret::new(value.clone())))
        .collect();
    headers.extend(
        spec.authorization
            .iter()
            .map(|value| ("authorization".to_owned(), value.clone())),
    );
    let target = Target {
        url: spec.url.clone(),
        secret: spec.secret.clone(),
        headers,
    };
    let breaker = BreakerConfig {
        failures: spec.breaker.failures,
        open_for: spec.breaker.open_for,
    };
    let sink = Sink::new(
        (mailbox, target, spec.timeout),
        breaker,
        client::sending(spec).map_err(bad)?,
        (parts.store.clone(), parts.clock.clone()),
        parts.metrics,
    );
    Ok(Outbox {
        name: spec.name.clone(),
        sink,
        workers: spec.concurrency,
    })
}

/// One worker's loop, until `stop`; a request that has begun is finished.
///
/// # Errors
/// When the store fails: the supervisor begins again after a back-off.
pub(crate) async fn work(
    outbox: Outbox,
    owner: String,
    beat: Heartbeat,
    stop: CancellationToken,
) -> TaskResult {
    while !stop.is_cancelled() {
        beat.while_waiting(outbox.sink.step(&owner, IDLE_WAIT, &stop))
            .await?;
        beat.beat();
    }
    beat.retire();
    Ok(())
}
