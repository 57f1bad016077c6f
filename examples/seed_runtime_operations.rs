//! Runtime operations: hooks, rate limiting, ops server and replay, put together as a production service would.
//!
//! ```sh
//! cargo run -p volary --example seed_runtime_operations
//! curl http://127.0.0.1:9100/ready
//! ```
//!
//! It listens for peers on port 9001 (TLS 1.3, each side proves its key), is operated on 127.0.0.1:9100, runs for a minute
//! or until Ctrl-C, and ends with a replay that only plans. `crates/node/tests/seed_runtime_operations.rs` runs the same
//! composition: it scrapes all three paths, trips the limiter, and replays.

use std::{error::Error, sync::Arc, time::Duration};

use volary::{
    RuntimeOpsServer,
    kernel::{
        clock::{self, SystemClock},
        collector::MetricsCollector,
        id::Name,
    },
    messaging::{
        Direction, HookChain, HookedTransport, Identity, IdentityRegistry, Message, Replay,
        ReplayLog,
        agent::{Agent, AgentError, AgentRuntime, Cx, Decision},
        hook::{MessageLimits, ValidateHook},
        pool::PoolManager,
        rate::{RateLimitHook, RateLimiter, RateLimiterConfig, TokenBucketConfig},
        task::{Task, TaskManager},
        transport::tcp::{PeerSpec, Tcp, TcpConfig},
    },
};

/// Decides nothing; yours does.
pub struct MyAgent(Identity);

impl Agent for MyAgent {
    fn identity(&self) -> &Identity {
        &self.0
    }

    async fn decide(
        &mut self,
        _messages: &[Message],
        _tasks: &[Task],
        _cx: &Cx<'_>,
    ) -> Result<Vec<Decision>, AgentError> {
        Ok(vec![])
    }
}

/// What differs between a test and a service.
pub struct Settings {
    /// Who the agent is.
    pub identity: Identity,
    /// Where peers connect.
    pub listen: String,
    /// Where it is operated.
    pub ops_port: u16,
    /// Who may connect.
    pub peers: Vec<PeerSpec>,
    /// Whose messages are received.
    pub identity_registry: IdentityRegistry,
}

/// The parts that its operator holds on to.
pub struct Service {
    /// The runtime.
    pub runtime: AgentRuntime<MyAgent, HookedTransport<Tcp>>,
    /// The transport below the hooks.
    pub base_transport: Tcp,
    /// Its ops server.
    pub ops_server: RuntimeOpsServer,
    /// What is counted.
    pub metrics: MetricsCollector,
    /// What is recorded.
    pub replay_log: ReplayLog,
}

/// The composition, not yet started.
pub async fn compose(settings: Settings) -> Result<Service, Box<dyn Error>> {
    let clock = SystemClock::shared();
    let metrics = MetricsCollector::new();
    let agent = MyAgent(settings.identity.clone());
    let name: Name = "my-agent".parse()?;

    // 1. The base transport: the agent's own key is what its connections and messages are signed with.
    let mut tcp = TcpConfig::new(settings.identity, name.clone()).listen(settings.listen);
    tcp.metrics = metrics.parts().clone();
    for peer in settings.peers {
        tcp = tcp.peer(peer);
    }
    let base_transport = Tcp::bind(tcp).await?;

    // 2. Hooks around it, in order: validation first, then the limits, early in the chain.
    let limiter = RateLimiter::new(RateLimiterConfig {
        global: Some(TokenBucketConfig::new(200.0, 100.0)?),
        sender: Some(TokenBucketConfig::new(60.0, 20.0)?),
        topic: Some(TokenBucketConfig::new(120.0, 40.0)?),
        ..RateLimiterConfig::default()
    });
    let rate_limit =
        RateLimitHook::new(limiter, clock.clone(), metrics.parts()).metrics_collector(&metrics)?;
    let transport = HookedTransport::new(
        base_transport.clone(),
        HookChain::new(
            vec![
                Arc::new(ValidateHook::new(MessageLimits::default(), clock.clone())),
                Arc::new(rate_limit),
                // add your own MessageHook here
            ],
            metrics.parts(),
        ),
    );

    // 3. The runtime, with its log and its metrics; only messages of believed senders are received.
    let replay_log = ReplayLog::new();
    let pool_manager = PoolManager::in_memory(clock.clone()).await?;
    let task_manager = TaskManager::in_memory(clock).await?;
    let runtime = AgentRuntime::builder(agent, transport)
        .name(name)
        .pool_manager(pool_manager)
        .task_manager(task_manager)
        .metrics_collector(metrics.clone())
        .replay_log(replay_log.clone())
        .identity_registry(settings.identity_registry)
        .health_check(|| true)
        .ready_check(|| true)
        .build()?;

    // 4. Its ops server, on loopback: what is reachable from elsewhere goes through a proxy with TLS and authentication.
    let ops_server =
        RuntimeOpsServer::new(&runtime, metrics.clone(), "127.0.0.1", settings.ops_port);
    runtime.set_ops_server(ops_server.clone())?;
    Ok(Service {
        runtime,
        base_transport,
        ops_server,
        metrics,
        replay_log,
    })
}

/// Replays what an agent got: first a plan, then into `sink`, in the order in which it was accepted.
pub async fn replay<F>(
    replay_log: &ReplayLog,
    agent: &Name,
    mut sink: impl FnMut(Message) -> F + Send,
) -> Result<(u64, u64), Box<dyn Error>>
where
    F: Future<Output = Result<(), AgentError>> + Send,
{
    let runner = replay_log.runner();
    let inbound = || Replay::new().direction(Direction::Inbound);
    let plan = runner
        .replay(inbound().agent(agent.clone()).dry_run())
        .await?;
    let replayed = inbound().callback(|planned| sink(planned.message));
    let fed = runner.replay(replayed).await?;
    Ok((plan.messages, fed.messages))
}

/// Composes, runs for a minute, stops, and plans a replay.
#[tokio::main]
#[expect(clippy::print_stdout, reason = "an example shows what happens")]
async fn main() -> Result<(), Box<dyn Error>> {
    let service = compose(Settings {
        identity: Identity::generate()?,
        listen: "0.0.0.0:9001".to_owned(),
        ops_port: 9100,
        peers: vec![],
        identity_registry: IdentityRegistry::in_memory(),
    })
    .await?;
    service.runtime.start().await?;
    println!("agent {}", service.runtime.sender().id());
    println!("operated on http://127.0.0.1:9100/health, /ready and /metrics");

    tokio::select! {
        () = clock::sleep(Duration::from_secs(60)) => {}
        _ = tokio::signal::ctrl_c() => {}
    }

    let report = service.runtime.stop().await;
    service.base_transport.close().await;
    println!(
        "handled {} messages, left {}",
        report.handled,
        report.unhandled.len()
    );
    let name = service.runtime.sender().name();
    let (planned, _) = replay(&service.replay_log, name, async |_message| Ok(())).await?;
    println!("a replay would feed {planned} messages");
    Ok(())
}
