//! The item that travels through a flow.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use volary_kernel::{Tenant, TraceId};

/// Facts about a trace that its nodes may read: set once, the same in every branch.
///
/// Not for secrets: what is here may be shown and stored.
pub type Meta = Arc<BTreeMap<String, serde_json::Value>>;

/// Whose a trace is, and how it is to be treated.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Headers {
    /// The tenant boundary: queues are fair between tenants, and no call reaches another tenant's trace.
    pub tenant: Tenant,
    /// What it is about, for routers and observers.
    pub topic: Option<String>,
    /// Among the traces of one tenant, higher goes first; 0 is usual.
    pub priority: u8,
}

/// What is emitted into a flow: a payload with the headers of its trace.
///
/// # Examples
/// ```
/// use std::time::Duration;
/// use volary_flow::Envelope;
/// let envelope = Envelope::new("ping").tenant("demo".parse()?).deadline(Duration::from_secs(10));
/// assert_eq!(envelope.headers.priority, 0);
/// # Ok::<(), volary_kernel::id::IdError>(())
/// ```
#[doc(alias = "Message")]
#[derive(Debug, Clone)]
pub struct Envelope<T> {
    /// What the ingress nodes get.
    pub payload: T,
    /// Whose it is.
    pub headers: Headers,
    /// The trace; a fresh one unless set.
    pub trace_id: TraceId,
    /// How long the whole trace may take from the moment it is accepted. Default: the flow's default deadline.
    #[doc(alias = "deadline_s")]
    pub deadline: Option<Duration>,
    /// Facts for the nodes.
    pub meta: Meta,
}

impl<T> Envelope<T> {
    /// A payload with a fresh trace of the default tenant.
    pub fn new(payload: T) -> Self {
        Self {
            payload,
            headers: Headers::default(),
            trace_id: TraceId::generate(),
            deadline: None,
            meta: Meta::default(),
        }
    }

    /// Sets the tenant.
    #[must_use]
    pub fn tenant(mut self, tenant: Tenant) -> Self {
        self.headers.tenant = tenant;
        self
    }

    /// Sets the trace.
    #[must_use]
    pub fn trace(mut self, trace_id: TraceId) -> Self {
        self.trace_id = trace_id;
        self
    }

    /// Sets the priority among the traces of its tenant.
    #[must_use]
    pub fn priority(mut self, priority: u8) -> Self {
        self.headers.priority = priority;
        self
    }

    /// Bounds the whole trace: queues, attempts, back-off, sub-flows.
    #[must_use]
    pub fn deadline(mut self, budget: Duration) -> Self {
        self.deadline = Some(budget);
        self
    }

    /// Sets the facts.
    #[must_use]
    pub fn meta(mut self, meta: impl Into<Meta>) -> Self {
        self.meta = meta.into();
        self
    }

    /// The same trace with another payload.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Envelope<U> {
        Envelope {
            payload: f(self.payload),
            headers: self.headers,
            trace_id: self.trace_id,
            deadline: self.deadline,
            meta: self.meta,
        }
    }
}
