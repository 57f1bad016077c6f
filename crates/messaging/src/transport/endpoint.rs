//! The receiving end of a transport.

use std::{collections::VecDeque, sync::Arc};

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
    hooks: Option<Arc<HookChain>>,
    /// Taken from the inbox and not yet looked at.
    received: VecDeque<Message>,
    _registration: Registration,
}

/// Runs once when the endpoint goes.
pub(crate) struct Registration(Option<Box<dyn FnOnce() + Send + Sync>>);

impl Registration {
    pub(crate) fn new(remove: impl FnOnce() + Send + Sync + 'static) -> Self {
        Self(Some(Box::new(remove)))
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(remove) = self.0.take() {
            remove();
        }
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
            hooks: None,
            received: VecDeque::new(),
            _registration: registration,
        }
    }

    /// Runs these hooks on what is received from here on.
    pub(crate) fn with_hooks(mut self, hooks: Arc<HookChain>) -> Self {
        self.hooks = Some(hooks).filter(|hooks| !hooks.is_empty());
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
        if self.hooks.is_none()
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
        let Some(hooks) = &self.hooks else {
            return Some(message);
        };
        let context = HookContext {
            stage: Stage::PostReceive,
            receiver: Some(&self.name),
        };
        match hooks.run(message, context).await {
            Verdict::Pass(message) => Some(message),
            Verdict::Stop(admission) => {
                tracing::debug!(receiver = %self.name, %admission, "a hook stopped a received message");
                None
            }
        }
    }
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Endpoint({}/{})", self.tenant, self.name)
    }
}
