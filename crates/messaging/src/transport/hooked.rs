//! A transport with hooks around it.

use std::sync::Arc;

use super::{Endpoint, EndpointError, EndpointSpec, Transport};
use crate::{
    admission::Admission,
    hook::{HookChain, HookContext, Stage, Verdict},
    message::Message,
};

/// Runs a chain of hooks before each send of `base` and after each receive.
#[derive(Debug, Clone)]
pub struct HookedTransport<T> {
    base: T,
    hooks: Arc<HookChain>,
}

impl<T: Transport> HookedTransport<T> {
    /// `base` with these hooks, in this order in both directions.
    pub fn new(base: T, hooks: HookChain) -> Self {
        Self {
            base,
            hooks: Arc::new(hooks),
        }
    }

    /// The transport inside.
    pub const fn base(&self) -> &T {
        &self.base
    }
}

impl<T: Transport> Transport for HookedTransport<T> {
    async fn send(&self, message: Message) -> Admission {
        let context = HookContext {
            stage: Stage::PreSend,
            receiver: None,
        };
        match self.hooks.run(message, context).await {
            Verdict::Pass(message) => self.base.send(message).await,
            Verdict::Stop(admission) => admission,
        }
    }

    fn open(&self, spec: EndpointSpec) -> Result<Endpoint, EndpointError> {
        Ok(self.base.open(spec)?.with_hooks(self.hooks.clone()))
    }
}
