//! The receiving end of a transport.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::Mutex;
use volary_kernel::{
    clock::SharedClock,
    id::{Name, Tenant},
    metric::Counter,
    queue::{QueueStats, Receiver},
};

use crate::{
    hook::{HookChain, HookContext, Stage, Verdict},
    message::Message,
};

/// An open inbox. Dropping it frees its name and drops what waits in it.
pub struct Endpoint {
    tenant: Tenant,
    name: Name,
    inbox: Receiver<Message>,
    clock: SharedClock,
    expired: Counter,
    guard: Option<Guard>,
    /// Those of the innermost transport first.
    hooks: Vec<Arc<HookChain>>,
    /// Taken from the inbox and not yet looked at.
    received: VecDeque<Message>,
    registration: Registration,
}

/// Says whether a message may go on to the hooks; it tells who needs to know why not.
pub(crate) type Guard = Arc<dyn Fn(&Message) -> bool + Send + Sync>;

/// Runs once: when the endpoint is closed or goes.
pub(crate) struct Registration(Arc<Mutex<Option<Remove>>>);

type Remove = Box<dyn FnOnce() + Send + Sync>;

impl Registration {
    pub(crate) fn new(remove: impl FnOnce() + Send + Sync + 'static) -> Self {
        Self(Arc::new(Mutex::new(Some(Box::new(remove)))))
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        run_once(&self.0);
    }
}

fn run_once(remove: &Mutex<Option<Remove>>) {
    let remove = remove.lock().take();
    if let Some(remove) = remove {
        remove();
    }
}

/// Closes an endpoint for what is sent from then on, while what is in its inbox can still be received.
#[derive(Clone)]
pub struct Closer(Arc<Mutex<Option<Remove>>>);

impl Closer {
    /// Frees the endpoint's name. Doing it twice is harmless.
    pub fn close(&self) {
        run_once(&self.0);
    }
}

impl std::fmt::Debug for Closer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Closer(closed: {})", self.0.lock().is_none())
    }
}

impl Endpoint {
    pub(crate) fn new(
        (tenant, name): (Tenant, Name),
        inbox: Receiver<Message>,
        clock: SharedClock,
        expired: Counter,
        registration: Registration,
    ) -> Self {
        Self {
            tenant,
            name,
            inbox,
            clock,
            expired,
            guard: None,
            hooks: Vec::new(),
            received: VecDeque::new(),
            registration,
        }
    }

    /// Asks `guard` about each message before any hook sees it.
    pub(crate) fn with_guard(mut self, guard: Guard) -> Self {
        self.guard = Some(guard);
        self
    }

    /// Runs `then` too, once, when the endpoint is closed or goes.
    pub(crate) fn when_closed(self, then: impl FnOnce() + Send + Sync + 'static) -> Self {
        let mut remove = self.registration.0.lock();
        let former = remove.take();
        *remove = Some(Box::new(move || {
            if let Some(former) = former {
                former();
            }
            then();
        }));
        drop(remove);
        self
    }

    /// What closes this endpoint from elsewhere: [`Endpoint::recv`] then ends when the inbox is empty.
    pub fn closer(&self) -> Closer {
        Closer(self.registration.0.clone())
    }

    /// Runs these hooks, after those it has, on what is received from here on.
    pub(crate) fn with_hooks(mut self, hooks: Arc<HookChain>) -> Self {
        if !hooks.is_empty() {
            self.hooks.push(hooks);
        }
        self
    }

    /// Its name.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Whose it is.
    pub fn tenant(&self) -> &Tenant {
        &self.tenant
    }

    /// What its inbox holds and has dropped.
    pub fn stats(&self) -> QueueStats {
        self.inbox.stats()
    }

    /// The next message; `None` once the transport is shut down and the inbox is empty.
    ///
    /// Expired messages and those a hook stops are counted and skipped. A call that is dropped while a hook waits loses
    /// the message that was in the hook; otherwise cancel-safe.
    pub async fn recv(&mut self) -> Option<Message> {
        loop {
            let message = match self.received.pop_front() {
                Some(message) => message,
                None => self.inbox.recv().await?,
            };
            if let Some(message) = self.receive(message).await {
                return Some(message);
            }
        }
    }

    /// Waits for at least one message, then moves up to `max` into `into`; 0 means the transport is shut down.
    ///
    /// Cancellation is as for [`Endpoint::recv`].
    pub async fn recv_many(&mut self, into: &mut Vec<Message>, max: usize) -> usize {
        let before = into.len();
        while into.len() == before {
            if self.received.is_empty() && self.inbox.recv_many(into, max).await == 0 {
                return 0;
            }
            self.sift(into, before, max).await;
        }
        into.len() - before
    }

    /// Lets the messages from `start` on through hooks and deadline, and removes those that end here.
    async fn sift(&mut self, messages: &mut Vec<Message>, start: usize, max: usize) {
        let is_plain = |message: &Message| message.deadline().is_none();
        if self.hooks.is_empty()
            && self.guard.is_none()
            && messages[start..].iter().all(is_plain)
            && self.received.is_empty()
        {
            return;
        }
        // What is not looked at when this is dropped stays for the next call.
        self.received.extend(messages.drain(start..));
        while messages.len() - start < max.max(1)
            && let Some(message) = self.received.pop_front()
        {
            messages.extend(self.receive(message).await);
        }
    }

    async fn receive(&self, message: Message) -> Option<Message> {
        if message
            .deadline()
            .is_some_and(|deadline| deadline <= self.clock.wall())
        {
            self.expired.inc();
            return None;
        }
        if self.guard.as_ref().is_some_and(|guard| !guard(&message)) {
            return None;
        }
        let context = HookContext {
            stage: Stage::PostReceive,
            receiver: Some(&self.name),
        };
        let mut message = message;
        for hooks in &self.hooks {
            match hooks.run(message, context).await {
                Verdict::Pass(passed) => message = passed,
                Verdict::Stop(admission) => {
                    tracing::debug!(receiver = %self.name, %admission, "a hook stopped a received message");
                    return None;
                }
            }
        }
        Some(message)
    }
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Endpoint({}/{})", self.tenant, self.name)
    }
}
