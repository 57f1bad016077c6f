//! The transport inside one node: bounded inboxes in memory, nothing signed, nothing copied.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use parking_lot::RwLock;
use volary_kernel::{
    clock::SharedClock,
    id::{Name, Tenant},
    metric::{Counter, Metrics},
    queue::{self, Admitted, QueueConfig, Refused, Sender, WhenFull, Why},
};

use super::{Endpoint, EndpointError, EndpointSpec, Transport, endpoint::Registration, together};
use crate::{
    admission::{Admission, FULL_RETRY, Refusal},
    message::Message,
    metrics::{self, AdmissionCounters},
    route::{Found, RoutingTable, Targets},
};

/// The local bus. Clones share it.
#[derive(Clone)]
pub struct Local(Arc<Inner>);

struct Inner {
    routes: RwLock<RoutingTable<Arc<Inbox>>>,
    closed: AtomicBool,
    clock: SharedClock,
    admissions: AdmissionCounters,
    overflowed: Counter,
    expired: Counter,
}

struct Inbox {
    name: Name,
    queue: Sender<Message>,
    config: QueueConfig,
}

impl std::fmt::Debug for Local {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Local({} endpoints)", self.0.routes.read().all().count())
    }
}

impl Local {
    /// A bus without endpoints.
    pub fn new(clock: SharedClock, metrics: &Metrics) -> Self {
        let dropped = metrics::inbox_dropped(metrics);
        Self(Arc::new(Inner {
            routes: RwLock::default(),
            closed: AtomicBool::new(false),
            clock,
            admissions: AdmissionCounters::new(metrics, "local"),
            overflowed: dropped.with(&["oldest"]),
            expired: dropped.with(&["expired"]),
        }))
    }

    /// Ends the bus: sends are refused from now on, and endpoints end when their inboxes are empty.
    pub fn close(&self) {
        self.0.closed.store(true, Ordering::Release);
        *self.0.routes.write() = RoutingTable::default();
    }

    /// Whether an endpoint of this name is open.
    pub(super) fn has(&self, tenant: &Tenant, name: &Name) -> bool {
        self.0.routes.read().get(tenant, name).is_some()
    }

    /// Delivers without counting the answer.
    pub(super) async fn deliver(&self, message: Message) -> Admission {
        if self.0.closed.load(Ordering::Acquire) {
            return Admission::Refused(Refusal::Closed);
        }
        let late = |deadline| deadline <= self.0.clock.wall();
        if message.deadline().is_some_and(late) {
            return Admission::Refused(Refusal::Expired);
        }
        match self.0.put_at_once(message) {
            Attempt::Done(admission) => admission,
            Attempt::Wait(inbox, message) => one(self.0.put(&inbox, message).await),
            Attempt::Many(mut targets, message) => match targets.pop() {
                Some(last) => self.deliver_to_many(targets, &last, message).await,
                None => Admission::NoRoute,
            },
        }
    }

    async fn deliver_to_many(
        &self,
        targets: Targets<Arc<Inbox>>,
        last: &Inbox,
        message: Message,
    ) -> Admission {
        let mut answers = Vec::with_capacity(targets.len() + 1);
        for target in &targets {
            answers.push(one(self.0.put(target, message.clone()).await));
        }
        answers.push(one(self.0.put(last, message).await));
        together(answers)
    }
}

/// How far a delivery got without waiting.
enum Attempt {
    Done(Admission),
    /// The only inbox is full and wants its senders to wait.
    Wait(Arc<Inbox>, Message),
    /// There are several inboxes.
    Many(Targets<Arc<Inbox>>, Message),
}

fn one(put: Result<(), Admission>) -> Admission {
    put.map_or_else(|refused| refused, |()| Admission::Delivered)
}

impl Inner {
    /// The common case, one inbox with room, without sharing or waiting for anything.
    fn put_at_once(&self, message: Message) -> Attempt {
        let routes = self.routes.read();
        let inbox = match routes.find(&message) {
            Found::Nobody => return Attempt::Done(Admission::NoRoute),
            Found::One(inbox) => inbox,
            Found::Several => return Attempt::Many(routes.targets(&message), message),
        };
        match inbox.queue.try_send(message) {
            Err(refused)
                if refused.why == Why::Full && inbox.config.when_full == WhenFull::Block =>
            {
                Attempt::Wait(inbox.clone(), refused.item)
            }
            sent => Attempt::Done(one(self.answer(inbox, sent))),
        }
    }

    async fn put(&self, inbox: &Inbox, message: Message) -> Result<(), Admission> {
        self.answer(inbox, inbox.queue.send(message).await)
    }

    fn answer(
        &self,
        inbox: &Inbox,
        sent: Result<Admitted, Refused<Message>>,
    ) -> Result<(), Admission> {
        match sent {
            Ok(Admitted::Queued) => Ok(()),
            Ok(Admitted::DroppedOldest(count)) => {
                self.overflowed.inc_by(count as u64);
                Ok(())
            }
            Err(refused) => Err(match refused.why {
                Why::Full => Admission::Refused(Refusal::Full {
                    what: format!("inbox of `{}`", inbox.name).into(),
                    retry_after: FULL_RETRY,
                }),
                Why::DroppedNewest => Admission::Dropped {
                    hook: "inbox".to_owned(),
                    reason: "it is full and drops what is new".into(),
                },
                Why::TooLarge => Admission::Refused(Refusal::TooLarge {
                    found: refused.item.weight(),
                    limit: inbox.config.max_bytes,
                }),
                // Its endpoint was dropped between routing and now.
                Why::Closed => Admission::NoRoute,
            }),
        }
    }
}

impl Transport for Local {
    async fn send(&self, message: Message) -> Admission {
        let admission = self.deliver(message).await;
        self.0.admissions.count(&admission);
        admission
    }

    fn open(&self, spec: EndpointSpec) -> Result<Endpoint, EndpointError> {
        let EndpointSpec {
            tenant,
            name,
            topics,
            inbox,
        } = spec;
        let (queue, receiver) = queue::bounded(inbox);
        let target = Arc::new(Inbox {
            name: name.clone(),
            queue,
            config: inbox,
        });
        let mut routes = self.0.routes.write();
        if self.0.closed.load(Ordering::Acquire) {
            return Err(EndpointError::Closed);
        }
        if !routes.insert(&tenant, &name, &topics, target.clone()) {
            return Err(EndpointError::Taken { tenant, name });
        }
        drop(routes);
        let (bus, key) = (Arc::downgrade(&self.0), (tenant.clone(), name.clone()));
        let target = Arc::downgrade(&target);
        let registration = Registration::new(move || {
            let Some(bus) = bus.upgrade() else { return };
            let mut routes = bus.routes.write();
            // After a close another bus life could have begun; only the own registration is removed.
            let own = routes
                .get(&key.0, &key.1)
                .is_some_and(|found| std::ptr::eq(Arc::as_ptr(found), target.as_ptr()));
            if own {
                routes.remove(&key.0, &key.1);
            }
        });
        Ok(Endpoint::new(
            (tenant, name),
            receiver,
            self.0.clock.clone(),
            self.0.expired.clone(),
            registration,
        ))
    }
}

#[cfg(test)]
mod tests {
    use volary_kernel::clock::{ManualClock, SystemClock};

    use super::*;
    use crate::{
        hook::{HookChain, SecretGuard, ValidateHook},
        test_util::{NOW, message, name, sender, topic},
        transport::{HookedTransport, conformance},
    };

    fn local(metrics: &Metrics) -> Local {
        Local::new(SystemClock::shared(), metrics)
    }

    fn spec(agent: &str) -> EndpointSpec {
        EndpointSpec::new(Tenant::default(), name(agent), vec![topic("t")])
    }

    #[tokio::test]
    async fn it_is_a_transport() {
        conformance::run(|| local(&Metrics::default())).await;
    }

    #[tokio::test]
    async fn with_hooks_it_is_still_a_transport() {
        conformance::run(|| {
            let metrics = Metrics::default();
            let validate = ValidateHook::new(Default::default(), SystemClock::shared());
            let guard = SecretGuard::new(Default::default());
            let hooks = HookChain::new(vec![Arc::new(validate), Arc::new(guard)], &metrics);
            HookedTransport::new(local(&metrics), hooks)
        })
        .await;
    }

    #[tokio::test]
    async fn a_closed_bus_refuses_and_its_endpoints_end_when_empty() {
        let bus = local(&Metrics::default());
        let mut endpoint = bus.open(spec("b")).unwrap();
        let sent = message("a", "t", "last");
        assert_eq!(bus.send(sent.clone()).await, Admission::Delivered);
        bus.close();
        assert_eq!(
            bus.send(message("a", "t", "late")).await,
            Admission::Refused(Refusal::Closed)
        );
        assert_eq!(bus.open(spec("c")).map(drop), Err(EndpointError::Closed));
        assert_eq!(
            (endpoint.recv().await, endpoint.recv().await),
            (Some(sent), None)
        );
    }

    #[tokio::test]
    async fn a_closed_endpoint_gives_what_it_has_and_takes_nothing_more() {
        let bus = local(&Metrics::default());
        let mut endpoint = bus.open(spec("b")).unwrap();
        let sent = message("a", "t", "last");
        bus.send(sent.clone()).await;
        let closer = endpoint.closer();
        closer.close();
        closer.close();
        assert_eq!(
            bus.send(message("a", "t", "late")).await,
            Admission::NoRoute
        );
        let again = bus.open(spec("b")).expect("the name is free");
        assert_eq!(
            (endpoint.recv().await, endpoint.recv().await),
            (Some(sent), None)
        );
        drop(endpoint);
        assert_eq!(
            bus.send(message("a", "t", "next")).await,
            Admission::Delivered,
            "the old endpoint's end does not free the new one's name"
        );
        drop(again);
    }

    #[tokio::test]
    async fn a_message_that_expires_in_the_inbox_is_skipped_and_counted() {
        let (metrics, clock) = (Metrics::default(), ManualClock::new(NOW));
        let bus = Local::new(clock.shared(), &metrics);
        let mut endpoint = bus.open(spec("b")).unwrap();
        let soon = NOW + std::time::Duration::from_secs(5);
        let late = Message::builder(sender("a"))
            .topic(topic("t"))
            .deadline(soon)
            .build(NOW)
            .unwrap();
        assert_eq!(bus.send(late).await, Admission::Delivered);
        clock.advance(std::time::Duration::from_secs(6));
        let good = message("a", "t", "good");
        bus.send(good.clone()).await;
        assert_eq!(endpoint.recv().await, Some(good));
        assert_eq!(metrics::inbox_dropped(&metrics).with(&["expired"]).get(), 1);
    }

    #[tokio::test]
    async fn every_answer_is_counted() {
        let metrics = Metrics::default();
        let bus = local(&metrics);
        bus.send(message("a", "t", "")).await;
        let text = metrics.encode_text();
        let line = "volary_messages_sent_total{transport=\"local\",admission=\"no_route\"} 1";
        assert!(text.contains(line), "{text}");
    }
}
