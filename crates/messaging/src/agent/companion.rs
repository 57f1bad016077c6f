//! Something that starts before a runtime and stops after it, such as its ops server.

use std::{fmt, pin::Pin, sync::Arc};

use super::AgentError;

type Step =
    Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Result<(), AgentError>> + Send>> + Send + Sync>;

/// A companion of a runtime: started before anything else of it, stopped after everything else. Cheap to clone.
///
/// Both steps must be idempotent; a start that fails must leave nothing behind.
#[derive(Clone)]
pub struct Companion {
    name: &'static str,
    start: Step,
    stop: Step,
}

impl fmt::Debug for Companion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Companion({})", self.name)
    }
}

impl Companion {
    /// A companion of this name.
    pub fn new<S, E>(
        name: &'static str,
        start: impl Fn() -> S + Send + Sync + 'static,
        stop: impl Fn() -> E + Send + Sync + 'static,
    ) -> Self
    where
        S: Future<Output = Result<(), AgentError>> + Send + 'static,
        E: Future<Output = Result<(), AgentError>> + Send + 'static,
    {
        Self {
            name,
            start: Arc::new(move || Box::pin(start())),
            stop: Arc::new(move || Box::pin(stop())),
        }
    }

    /// Its name.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    pub(super) async fn start(&self) -> Result<(), AgentError> {
        (self.start)().await
    }

    pub(super) async fn stop(&self) -> Result<(), AgentError> {
        (self.stop)().await
    }
}
