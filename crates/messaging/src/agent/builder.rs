//! Putting a runtime together.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use volary_kernel::{
    clock::{SharedClock, SystemClock},
    collector::MetricsCollector,
    id::{Name, Tenant},
    queue::QueueConfig,
    ready::Readiness,
    retry::Backoff,
};

use super::{
    Agent, Companion,
    check::{CheckResult, UserCheck},
    counts::Counts,
    decision::Custom,
    event::{Listener, RuntimeEvent},
    policy::{ActionPolicy, ResourceLimits},
    runtime::{AgentRuntime, Parts, RuntimeError},
    tool::{Tool, ToolSet},
    work::{Work, WorkParts},
};
use crate::{
    discovery::Capability,
    hook::{HookChain, MessageHook},
    identity::IdentityRegistry,
    message::Sender,
    pool::PoolManager,
    replay::ReplayLog,
    task::TaskManager,
    topic::Topic,
    transport::{DEFAULT_INBOX, HookedTransport, Transport},
};

/// Most messages of one `decide`: enough that a burst costs few calls, few enough for one answer.
pub const DEFAULT_BATCH: usize = 64;
/// Time of one `decide`: a slow model call fits.
pub const DEFAULT_DECIDE: Duration = Duration::from_secs(30);
/// Time of one tool run.
pub const DEFAULT_TOOL: Duration = Duration::from_secs(30);
/// Time in which a stop may handle what is still in the inbox.
pub const DEFAULT_DRAIN: Duration = Duration::from_secs(10);

/// Bounds of a runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RuntimeLimits {
    /// The inbox; default [`DEFAULT_INBOX`].
    pub inbox: QueueConfig,
    /// Most messages of one `decide`; default [`DEFAULT_BATCH`].
    pub batch: usize,
    /// Most tasks of one `decide`; default 256.
    pub tasks: usize,
    /// Most decisions of one `decide`, the rest is refused; default 1,024.
    pub decisions: usize,
    /// Time of one `on_start`, `on_tick`, `decide` or `on_stop`; default [`DEFAULT_DECIDE`].
    pub decide: Duration,
    /// Time of one tool or own decision; default [`DEFAULT_TOOL`].
    pub tool: Duration,
    /// Most bytes of one tool's result as JSON; default 1 MiB.
    pub tool_output: usize,
    /// Most passes in a row that bring only observations; then they wait for the next input. Default 8.
    pub tool_loop: u32,
    /// Times a message is given to a `decide` that fails; default 3. Then it is given up and told.
    pub attempts: u32,
    /// Time between two `on_tick` when nothing else happens; default 1 s.
    pub tick: Duration,
    /// Time in which a stop may handle what was received; default [`DEFAULT_DRAIN`].
    pub drain: Duration,
}

impl Default for RuntimeLimits {
    fn default() -> Self {
        Self {
            inbox: DEFAULT_INBOX,
            batch: DEFAULT_BATCH,
            tasks: 256,
            decisions: 1024,
            decide: DEFAULT_DECIDE,
            tool: DEFAULT_TOOL,
            tool_output: 1 << 20,
            tool_loop: 8,
            attempts: 3,
            tick: Duration::from_secs(1),
            drain: DEFAULT_DRAIN,
        }
    }
}

/// What a failure of the agent means.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RestartPolicy {
    /// Waits between attempts; default [`Backoff::default`].
    pub backoff: Backoff,
    /// Failures in a row after which the runtime calls it a crash loop, which is unhealthy; default 3.
    pub crash_loop: u32,
    /// Failures in a row after which it is not tried again, and the loop ends; never by default.
    pub give_up: Option<u32>,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            backoff: Backoff::default(),
            crash_loop: 3,
            give_up: None,
        }
    }
}

/// Collects the parts of an [`AgentRuntime`].
#[must_use = "a builder does nothing until `build`"]
pub struct AgentRuntimeBuilder<A, T> {
    agent: A,
    transport: T,
    name: Option<Name>,
    tenant: Tenant,
    topics: Vec<Topic>,
    clock: SharedClock,
    metrics: MetricsCollector,
    registry: Option<IdentityRegistry>,
    hooks: Vec<Arc<dyn MessageHook>>,
    policy: ActionPolicy,
    resources: ResourceLimits,
    tools: Vec<Tool>,
    custom: Vec<Custom>,
    limits: RuntimeLimits,
    restart: RestartPolicy,
    health: Option<UserCheck>,
    ready: Option<UserCheck>,
    companion: Option<Companion>,
    listener: Listener,
    work: WorkParts,
}

impl<A: Agent, T: Transport> AgentRuntimeBuilder<A, T> {
    pub(super) fn new(agent: A, transport: T) -> Self {
        Self {
            agent,
            transport,
            name: None,
            tenant: Tenant::default(),
            topics: Vec::new(),
            clock: SystemClock::shared(),
            metrics: MetricsCollector::new(),
            registry: None,
            hooks: Vec::new(),
            policy: ActionPolicy::allow_all(),
            resources: ResourceLimits::default(),
            tools: Vec::new(),
            custom: Vec::new(),
            limits: RuntimeLimits::default(),
            restart: RestartPolicy::default(),
            health: None,
            ready: None,
            companion: None,
            listener: Listener::nobody(),
            work: WorkParts::default(),
        }
    }

    /// The name it is reached by; default `agent-` and the first 16 digits of its fingerprint.
    pub fn name(mut self, name: Name) -> Self {
        self.name = Some(name);
        self
    }

    /// Its tenant; default `default`.
    pub fn tenant(mut self, tenant: Tenant) -> Self {
        self.tenant = tenant;
        self
    }

    /// Messages of this topic are for it, too.
    pub fn topic(mut self, topic: Topic) -> Self {
        self.topics.push(topic);
        self
    }

    /// Where time comes from; default the machine's clock.
    pub fn clock(mut self, clock: SharedClock) -> Self {
        self.clock = clock;
        self
    }

    /// Where its metrics go; default a collector of its own.
    pub fn metrics_collector(mut self, metrics: MetricsCollector) -> Self {
        self.metrics = metrics;
        self
    }

    /// Only messages of believed senders are received: what is not is dropped, counted and told.
    pub fn identity_registry(mut self, registry: IdentityRegistry) -> Self {
        self.registry = Some(registry);
        self
    }

    /// Hooks around the transport, after those it has; in this order in both directions.
    pub fn hooks(mut self, hooks: Vec<Arc<dyn MessageHook>>) -> Self {
        self.hooks = hooks;
        self
    }

    /// What the agent may do; default [`ActionPolicy::allow_all`]. An empty policy denies everything.
    pub fn policy(mut self, policy: ActionPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// The most that tasks may ask for; default no limit.
    pub const fn resources(mut self, resources: ResourceLimits) -> Self {
        self.resources = resources;
        self
    }

    /// Where its tasks come from and go to. Without one, a decision about tasks fails.
    pub fn task_manager(mut self, tasks: TaskManager) -> Self {
        self.work.tasks = Some(tasks);
        self
    }

    /// Where its pools are. Without one, a decision about pools fails.
    pub fn pool_manager(mut self, pools: PoolManager) -> Self {
        self.work.pools = Some(pools);
        self
    }

    /// Something it can do: tasks that require it are shown to it.
    pub fn capability(mut self, capability: Capability) -> Self {
        self.work.capabilities.insert(capability);
        self
    }

    /// A tool that the agent may invoke, if the policy allows it.
    pub fn tool(mut self, tool: Tool) -> Self {
        self.tools.push(tool);
        self
    }

    /// A handler of the agent's own decisions, if the policy allows them.
    pub fn custom(mut self, custom: Custom) -> Self {
        self.custom.push(custom);
        self
    }

    /// Where what it receives (after verification and hooks) and sends (if it was taken) is recorded.
    pub fn replay_log(mut self, log: ReplayLog) -> Self {
        self.work.log = Some(log);
        self
    }

    /// Bounds; default [`RuntimeLimits::default`].
    pub const fn limits(mut self, limits: RuntimeLimits) -> Self {
        self.limits = limits;
        self
    }

    /// What a failure of the agent means; default [`RestartPolicy::default`].
    pub const fn restart(mut self, restart: RestartPolicy) -> Self {
        self.restart = restart;
        self
    }

    /// A check of the user's own that `/health` asks beside the loop. A panic is unhealthy.
    pub fn health_check<R: Into<CheckResult>>(
        mut self,
        check: impl Fn() -> R + Send + Sync + 'static,
    ) -> Self {
        self.health = Some(UserCheck::new("health check", check));
        self
    }

    /// A check of the user's own that `/ready` asks beside the loop. A panic is not ready.
    pub fn ready_check<R: Into<CheckResult>>(
        mut self,
        check: impl Fn() -> R + Send + Sync + 'static,
    ) -> Self {
        self.ready = Some(UserCheck::new("ready check", check));
        self
    }

    /// What starts before it and stops after it; see also [`AgentRuntime::set_ops_server`].
    pub fn ops_server(mut self, companion: impl Into<Companion>) -> Self {
        self.companion = Some(companion.into());
        self
    }

    /// Who is told what went another way than hoped. It must not block.
    pub fn on_event(mut self, listener: impl Fn(&RuntimeEvent) + Send + Sync + 'static) -> Self {
        self.listener = Listener::new(listener);
        self
    }

    /// The runtime, not yet started.
    ///
    /// # Errors
    /// [`RuntimeError`]: a bad or double tool or handler, or a metric name that is in use otherwise.
    pub fn build(self) -> Result<AgentRuntime<A, T>, RuntimeError> {
        let counts = Counts::new(&self.metrics)?;
        let tools = ToolSet::new(self.tools)?;
        let mut custom = BTreeMap::new();
        for handler in self.custom {
            let kind = handler.kind.clone();
            if custom.insert(kind.clone(), handler).is_some() {
                return Err(RuntimeError::Custom(kind));
            }
        }
        let id = self.agent.id();
        let name = match self.name {
            Some(name) => name,
            None => default_name(&id.to_string())?,
        };
        let hooks = HookChain::new(self.hooks, self.metrics.parts());
        let sender = Sender::new(id, name, self.tenant);
        let topics = self.topics.clone();
        let size = self.metrics.gauge("pool_size", &[])?;
        let work = Work::new(self.work, &sender, topics, (self.clock.clone(), size))?;
        Ok(AgentRuntime::new(Parts {
            sender,
            agent: self.agent,
            transport: HookedTransport::new(self.transport, hooks),
            topics: self.topics,
            readiness: Readiness::new(self.clock.clone()),
            clock: self.clock,
            registry: self.registry,
            policy: self.policy,
            resources: self.resources,
            tools,
            custom,
            limits: self.limits,
            restart: self.restart,
            health: self.health,
            ready: self.ready,
            companion: self.companion,
            listener: self.listener,
            work,
            counts,
        }))
    }
}

fn default_name(id: &str) -> Result<Name, RuntimeError> {
    let short: String = id.chars().take(16).collect();
    Name::new(format!("agent-{short}")).map_err(RuntimeError::Name)
}

impl<A, T> fmt::Debug for AgentRuntimeBuilder<A, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentRuntimeBuilder")
            .field("name", &self.name)
            .field("tenant", &self.tenant)
            .finish_non_exhaustive()
    }
}
