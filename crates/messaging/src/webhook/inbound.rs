//! What comes in: checked, remembered and taken in, in one commit.

use std::{borrow::Cow, collections::HashMap, fmt, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use volary_kernel::{
    clock::SharedClock,
    id::Name,
    metric::{CounterFamily, Metrics},
};
use volary_store::{Batch, Cause, Expect, Key, SharedStore, StoreError};

use super::profile::{Arrived, Duplicates, ProviderProfile, Rejection, WebhookEvent};
use crate::{
    admission::{Admission, FULL_RETRY, Refusal},
    inbox::InboxError,
    message::{BuildError, ContentType, Headers, Message, Payload, Sender},
    post::{Origin, Post},
    task::TaskError,
    topic::Topic,
};

const PREFIX: &str = "webhook/seen/";

/// Adds a task for an event to the batch in which the event is remembered; its answer is the sender's.
pub type TaskSink = Arc<
    dyn for<'a> Fn(&'a mut Batch, WebhookEvent) -> BoxFuture<'a, Result<(), TaskError>>
        + Send
        + Sync,
>;

/// What an event becomes.
#[derive(Clone)]
pub enum Emit {
    /// A message on a topic, with the body as its content.
    Message(Topic),
    /// A task.
    Task(TaskSink),
}

impl fmt::Debug for Emit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Message(topic) => write!(f, "Message({topic})"),
            Self::Task(_) => f.write_str("Task"),
        }
    }
}

/// What a request came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// It is stored for whom it is for.
    Accepted,
    /// It was accepted before; nothing happened now.
    Repeated,
    /// It is not believed, or not what it should be.
    Rejected(Rejection),
    /// Nobody can take it now: the sender should try again.
    Later {
        /// When.
        retry_after: Duration,
        /// Why, without anything of the request.
        problem: String,
    },
}

impl Received {
    /// The HTTP status that says it.
    pub const fn status(&self) -> u16 {
        match self {
            Self::Accepted | Self::Repeated => 202,
            Self::Rejected(_) => 401,
            Self::Later { .. } => 503,
        }
    }
}

/// The providers and where their events go. Clones share it.
#[derive(Clone)]
pub struct Inbound(Arc<Parts>);

struct Parts {
    providers: HashMap<Name, (ProviderProfile, Emit)>,
    sender: Sender,
    post: Post,
    store: SharedStore,
    clock: SharedClock,
    received: CounterFamily,
}

impl Inbound {
    /// The providers, by name; a later one takes the place of an earlier one with its name. Events come from `sender`.
    pub fn new(
        providers: impl IntoIterator<Item = (ProviderProfile, Emit)>,
        sender: Sender,
        post: Post,
        store: SharedStore,
        clock: SharedClock,
        metrics: &Metrics,
    ) -> Self {
        let named =
            |(profile, emit): (ProviderProfile, Emit)| (profile.name.clone(), (profile, emit));
        Self(Arc::new(Parts {
            providers: providers.into_iter().map(named).collect(),
            sender,
            post,
            store,
            clock,
            received: metrics.counter_family(
                "webhook_inbound",
                "Webhook requests, by provider and by what they came to",
                &["provider", "result"],
            ),
        }))
    }

    /// The largest body that any provider may send: more need not be read.
    pub fn max_bytes(&self) -> usize {
        let sizes = self
            .0
            .providers
            .values()
            .map(|(profile, _)| profile.max_bytes);
        sizes.max().unwrap_or(0)
    }

    /// Takes one request in. Remembering it and storing what it becomes are one commit: of two equal requests at the same
    /// time one is accepted.
    ///
    /// # Errors
    /// When the store can not be read or written. The sender should try again.
    pub async fn receive(
        &self,
        provider: &str,
        arrived: Arrived<'_>,
    ) -> Result<Received, InboxError> {
        let Some((profile, emit)) = self.0.providers.get(provider) else {
            self.0
                .received
                .with(&["", Rejection::Provider.label()])
                .inc();
            return Ok(Received::Rejected(Rejection::Provider));
        };
        let received = match profile.check(&arrived, self.0.clock.wall()) {
            Ok(event) => self.take_in(profile, emit, event).await?,
            Err(rejection) => Received::Rejected(rejection),
        };
        let result = match &received {
            Received::Accepted => "accepted",
            Received::Repeated => "repeated",
            Received::Rejected(why) => why.label(),
            Received::Later { .. } => "later",
        };
        self.0.received.with(&[profile.name.as_str(), result]).inc();
        Ok(received)
    }

    async fn take_in(
        &self,
        profile: &ProviderProfile,
        emit: &Emit,
        event: WebhookEvent,
    ) -> Result<Received, InboxError> {
        let Parts { store, post, .. } = &*self.0;
        let repeated = || match profile.duplicates {
            Duplicates::Accept => Received::Repeated,
            Duplicates::Refuse => Received::Rejected(Rejection::Duplicate),
        };
        let key = Key::new(format!("{PREFIX}{}/{}", profile.name, event.same))
            .expect("a prefix, a name and hex digits make a key");
        if store.get(&key).await?.is_some() {
            return Ok(repeated());
        }
        let mut tx = Batch::new();
        match emit {
            Emit::Message(topic) => {
                let message = match self.message(profile, topic, &event) {
                    Ok(message) => message,
                    Err(error) => {
                        let problem = Cow::Owned(error.to_string());
                        return Ok(later(&Admission::Refused(Refusal::Invalid { problem })));
                    }
                };
                let posted = post
                    .post(&mut tx, message, Origin::Minted, Cause::None)
                    .await?;
                if posted.admission != Admission::Queued {
                    if !tx.is_empty() {
                        store.commit(tx).await?;
                    }
                    return Ok(later(&posted.admission));
                }
            }
            Emit::Task(sink) => match sink(&mut tx, event).await {
                Ok(()) => {}
                Err(error) => return task_refused(error),
            },
        }
        tx.put_ttl(key, Vec::new(), Expect::Absent, profile.seen_for);
        match store.commit(tx).await {
            Ok(_) => Ok(Received::Accepted),
            Err(StoreError::Conflict { .. }) => Ok(repeated()),
            Err(error) => match Refusal::of_store(&error) {
                Some(why) => Ok(later(&Admission::Refused(why))),
                None => Err(error.into()),
            },
        }
    }

    /// The message. A label of the sender's that no header of ours can hold is left out: the body has it all.
    fn message(
        &self,
        profile: &ProviderProfile,
        topic: &Topic,
        event: &WebhookEvent,
    ) -> Result<Message, BuildError> {
        let labels = [
            ("webhook-provider", Some(profile.name.as_str())),
            ("webhook-event", event.kind.as_deref()),
            ("webhook-id", event.id.as_deref()),
        ];
        let mut headers = Headers::new();
        for (name, value) in labels {
            if let Some(value) = value
                && headers.set(name, value).is_err()
            {
                tracing::debug!(provider = %profile.name, name, "a webhook's label is left out");
            }
        }
        Message::builder(self.0.sender.clone())
            .topic(topic.clone())
            .payload(Payload::new(ContentType::JSON, event.body.clone())?)
            .headers(headers)
            .build(self.0.clock.wall())
    }
}

/// A task that cannot be taken now, or as it is.
fn task_refused(error: TaskError) -> Result<Received, InboxError> {
    let why = match error {
        TaskError::Queue(error) => {
            let error = InboxError::Queue(error);
            error.refusal().ok_or(error)?
        }
        TaskError::Secret(_) => Refusal::Secret,
        other => Refusal::Invalid {
            problem: Cow::Owned(other.to_string()),
        },
    };
    Ok(later(&Admission::Refused(why)))
}

fn later(admission: &Admission) -> Received {
    let retry_after = match admission {
        Admission::Refused(
            Refusal::Full { retry_after, .. } | Refusal::RateLimited { retry_after },
        ) => *retry_after,
        _ => FULL_RETRY,
    };
    Received::Later {
        retry_after,
        problem: format!("it could not be taken in: {}", admission.label()),
    }
}
