//! The one wiring function: every part of a node, made in the order in which they need each other. Nothing here runs;
//! [`crate::node`] starts and stops what was built.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use volary_context::{
    Dispatcher, DispatcherConfig, FilesConfig, FilesSource,
    dispatch::Parts as ContextParts,
    files::{Initial, SettleConfig, WatchMode},
};
use volary_deploy::{
    backend::{
        Backend, ReplicaId,
        process::{ProcessBackend, ProcessConfig, Shared},
    },
    spec::model::{self, AgentSpec, Body, FleetSpec, SourceKind, SourceSpec, StoreKind},
    supervise,
};
use volary_kernel::{
    Name, Tenant, clock, metric::Metrics, ready::Readiness, secret::Redactor, task::Supervisor,
};
use volary_messaging::{
    Identity, Topic,
    discovery::Discovery,
    inbox::Inboxes,
    pool::PoolManager,
    post::{Post, PostConfig},
    replay::Imports,
    task::{TaskConfig, TaskManager},
};
use volary_ops::{
    Exposure, Limits, OpsConfig, OpsParts, OpsServer, Signals, SocketConfig, TcpConfig, TokenTable,
};
use volary_store::{
    MemoryConfig, MemoryStore, Queues, Retention, SharedStore, SqliteConfig, SqliteStore,
    StoreError,
};

use crate::{
    agents::{self, Surroundings},
    bridge::{dispatch, handler::HandlerAgent, settle::Settler, task::TaskWork},
    claims::Claims,
    config::NodeConfig,
    core::{Core, Speaker, Voice},
    error::NodeError,
    flows::Flows,
    hooks::{self, HookParts},
    neighbours::{self, Neighbours},
    pulse::{self, Pulse},
    section,
    state::{self, NodeLock, StateDir},
    webhook::{self, Webhooks},
};

/// The name under which operators send.
const OPERATOR: &str = "operator";

/// A node whose parts know each other and none of which runs.
pub(crate) struct Built {
    pub core: Arc<Core>,
    pub state: StateDir,
    pub lock: NodeLock,
    pub ops: OpsServer,
    pub service: supervise::Service,
    pub handlers: Vec<(Arc<HandlerAgent>, Vec<ReplicaId>)>,
    pub sources: Vec<Arc<FilesSource>>,
    pub tasks: Tasks,
    /// Closed last, if this node opened it.
    pub database: Option<SqliteStore>,
    /// Tells whether the store answers.
    pub pulse: Pulse,
}

/// Who runs what; drained in this order when the node stops.
#[derive(Default)]
pub(crate) struct Tasks {
    /// Watchers of sources.
    pub context: Supervisor,
    /// Handler workers.
    pub work: Supervisor,
    /// What sends to peers, and takes from them.
    pub couriers: Supervisor,
    /// Links to peers, and the listener for them.
    pub links: Supervisor,
    /// Replicas.
    pub replicas: Supervisor,
    /// The backend's own.
    pub backend: Supervisor,
    /// The ops server.
    pub ops: Supervisor,
    /// Queues and the journal's bridges.
    pub base: Supervisor,
}

/// Builds a node: the whole wiring, a part a line, each from those above it.
pub(crate) async fn build(config: NodeConfig) -> Result<Built, NodeError> {
    let tasks = Tasks::default();
    let ground = ground(&config).await?;
    let mail = mail(&config, &ground, &tasks).await?;
    let run = run(&config, &ground, &mail, &tasks).await?;
    let context = context(&config, &ground, &mail, &tasks)?;
    let sources = config
        .fleet
        .sources
        .values()
        .map(|source| files_source(source, &config, &ground.redactor))
        .collect::<Result<_, _>>()?;
    let ops_bind = TcpConfig {
        address: config.ops_bind.unwrap_or(config.fleet.ops.bind),
        exposure: if config.insecure {
            Exposure::Insecure
        } else {
            Exposure::LoopbackOnly
        },
        ..TcpConfig::default()
    };
    let signals = Signals::default();
    let flows = Flows::new(&ground.metrics, signals.clone(), &config.fleet.name);
    let core = Arc::new(Core {
        operator: mail.operator,
        neighbours: mail.neighbours,
        webhooks: mail.webhooks,
        state: ground.state.clone(),
        started_at: config.clock.wall(),
        fleet: config.fleet,
        clock: config.clock,
        readiness: ground.readiness.clone(),
        store: ground.store.clone(),
        queues: ground.queues.clone(),
        inboxes: mail.inboxes,
        settler: mail.settler,
        agents: mail.speakers,
        tasks: mail.tasks,
        pools: mail.pools,
        discovery: mail.discovery,
        backend: run.backend,
        replicas: run.replicas,
        context,
        claims: Mutex::new(Claims::default()),
        flows: Arc::new(flows),
        signals,
        handlers: run
            .handlers
            .iter()
            .map(|(handler, _)| (handler.mailbox.name().clone(), handler.clone()))
            .collect(),
        imports: Imports::new(ground.state.imports()),
        stop_within: Mutex::default(),
        shutdown: tasks.base.clone(),
        stopping: CancellationToken::new(),
    });
    core.introduce()?;
    let ops = ops(&core, &ground, run.links, ops_bind)?;
    let Ground {
        state,
        lock,
        database,
        pulse,
        ..
    } = ground;
    Ok(Built {
        core,
        state,
        lock,
        ops,
        service: run.service,
        handlers: run.handlers,
        sources,
        tasks,
        database,
        pulse,
    })
}

/// What everything stands on.
struct Ground {
    state: StateDir,
    lock: NodeLock,
    metrics: Metrics,
    redactor: Redactor,
    readiness: Readiness,
    key: Identity,
    store: SharedStore,
    database: Option<SqliteStore>,
    pulse: Pulse,
    queues: Queues,
}

async fn ground(config: &NodeConfig) -> Result<Ground, NodeError> {
    tracing::debug!("opening the state directory and the store");
    let state = StateDir::new(&config.state_dir);
    state.create()?;
    let lock = take_lock(&state, config).await?;
    state.sweep()?;
    let redactor = Redactor::default();
    agents::declare_secrets(&config.fleet.agents, &redactor)?;
    webhook::declare_secrets(&config.fleet, &redactor)?;
    let key = Identity::load_or_generate(&state.node_key())?;
    let journal = Identity::load(&state.journal_key())?;
    let (store, database) = open_store(config, &state, &journal).await?;
    let readiness = Readiness::new(config.clock.clone());
    let (store, pulse) = pulse::watched(store, &readiness);
    Ok(Ground {
        queues: Queues::open(store.clone()).await?,
        readiness,
        metrics: Metrics::default(),
        state,
        lock,
        redactor,
        key,
        store,
        database,
        pulse,
    })
}

/// What carries messages.
struct Mail {
    inboxes: Inboxes,
    settler: Settler,
    speakers: BTreeMap<Name, Speaker>,
    tasks: TaskManager,
    pools: PoolManager,
    discovery: Discovery,
    operator: Voice,
    neighbours: Neighbours,
    webhooks: Webhooks,
}

/// What carries messages through the fleet's hooks, and out of attempts.
async fn settler(
    config: &NodeConfig,
    ground: &Ground,
    (inboxes, neighbours): (&Inboxes, &Neighbours),
    tasks: &Tasks,
) -> Result<Settler, NodeError> {
    let Ground {
        store,
        redactor,
        metrics,
        ..
    } = ground;
    let parts = HookParts {
        store,
        clock: &config.clock,
        redactor,
        metrics,
        tasks: &tasks.base,
    };
    let messaging = &config.fleet.messaging;
    let post = PostConfig {
        limits: hooks::limits(messaging),
        hooks: hooks::hooks(messaging, &parts)?,
        secrets: redactor.clone(),
        remote: neighbours.any().then(|| neighbours.peers.routes()),
        ..PostConfig::default()
    };
    let post = Post::open(
        inboxes.clone(),
        store.clone(),
        post,
        config.clock.clone(),
        metrics,
    );
    Ok(Settler {
        post: post.await?,
        store: store.clone(),
        clock: config.clock.clone(),
        redactor: redactor.clone(),
    })
}

async fn mail(config: &NodeConfig, ground: &Ground, tasks: &Tasks) -> Result<Mail, NodeError> {
    tracing::debug!("opening the inboxes");
    let Ground {
        store,
        redactor,
        metrics,
        ..
    } = ground;
    let inboxes = Inboxes::new(
        ground.queues.clone(),
        store.clone(),
        redactor.clone(),
        metrics,
    );
    let parts = neighbours::Ground {
        store,
        queues: &ground.queues,
        clock: &config.clock,
        metrics,
        me: &ground.key,
    };
    let neighbours = Neighbours::open(&config.fleet, &parts).await?;
    let settler = settler(config, ground, (&inboxes, &neighbours), tasks).await?;
    let mut speakers = BTreeMap::new();
    for agent in &config.fleet.agents {
        let speaker = agents::speaker(agent, &config.fleet.messaging, &ground.state, &inboxes)?;
        neighbours.enter(&speaker.voice).await?;
        speakers.insert(agent.name.clone(), speaker);
    }
    let operator = operator(&config.fleet, ground.key.clone(), neighbours.any());
    if neighbours.any() {
        neighbours.enter(&operator).await?;
    }
    let tasks = TaskManager::open(
        ground.queues.clone(),
        store.clone(),
        TaskConfig::default(),
        redactor.clone(),
        metrics,
    )
    .await?;
    let pools = PoolManager::open(store.clone(), Some(inboxes.clone()), metrics).await?;
    let member_of =
        |spec: &AgentSpec, pool: &Name| ((spec.tenant.clone(), pool.clone()), spec.name.clone());
    let mut wanted: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for spec in &config.fleet.agents {
        for (pool, agent) in spec.pools.iter().map(|pool| member_of(spec, pool)) {
            wanted.entry(pool).or_default().insert(agent);
        }
    }
    pools
        .follow_manifests(&wanted, operator.sender().name())
        .await?;
    let parts = webhook::Parts {
        inboxes: &inboxes,
        post: &settler.post,
        store,
        clock: &config.clock,
        metrics,
        key: &ground.key,
        tasks: &tasks,
    };
    let webhooks = Webhooks::open(&config.fleet, &parts)?;
    Ok(Mail {
        tasks,
        pools,
        discovery: Discovery::open(store.clone()).await?,
        operator,
        neighbours,
        webhooks,
        inboxes,
        settler,
        speakers,
    })
}

/// As whom operators send. Among peers, by the fleet's name too: each of them has an operator.
fn operator(fleet: &FleetSpec, key: Identity, among_peers: bool) -> Voice {
    let full = Name::new(format!("{OPERATOR}.{}", fleet.name));
    let name = match full {
        Ok(full) if among_peers => Ok(full),
        Err(_) if among_peers => Name::new(format!("{OPERATOR}.{}", &key.id().to_string()[..16])),
        _ => Name::new(OPERATOR),
    };
    let name = name.expect("the constant, alone or with hex digits, keeps the rules of names");
    Voice::new(key, name, fleet.tenant.clone())
}

/// A handler agent and its workers.
type Handler = (Arc<HandlerAgent>, Vec<ReplicaId>);
type Handlers = Vec<Handler>;

/// What runs agents.
struct Run {
    backend: Arc<dyn Backend>,
    links: TokenTable,
    service: supervise::Service,
    replicas: supervise::Handle,
    handlers: Handlers,
}

async fn run(
    config: &NodeConfig,
    ground: &Ground,
    mail: &Mail,
    tasks: &Tasks,
) -> Result<Run, NodeError> {
    tracing::debug!("preparing the backend");
    let process = ProcessConfig {
        base_env: config.base_env.clone(),
        ..ProcessConfig::new(config.init.clone(), ground.state.root())
    };
    let shared = Shared {
        clock: config.clock.clone(),
        redactor: ground.redactor.clone(),
        metrics: ground.metrics.clone(),
        tasks: tasks.backend.clone(),
    };
    let backend = ProcessBackend::new(process, shared).await?;
    let recovered = backend.recover().await?;
    tracing::debug!(
        removed = recovered.removed.len(),
        "swept what a predecessor left"
    );
    let links = TokenTable::default();
    let around = Surroundings {
        backend: &backend,
        links: &links,
        redactor: &ground.redactor,
        state: &ground.state,
        program: &config.program,
    };
    let plans = config
        .fleet
        .agents
        .iter()
        .map(|agent| around.plan(agent))
        .collect::<Result<_, _>>()?;
    let handlers = config
        .fleet
        .agents
        .iter()
        .filter_map(|agent| handler(agent, &around, mail).transpose());
    let handlers = handlers.collect::<Result<Handlers, _>>()?;
    let supervised = supervise::Config {
        agents: plans,
        redactor: ground.redactor.clone(),
    };
    let backend: Arc<dyn Backend> = Arc::new(backend);
    let service = supervise::Service::new(
        supervised,
        backend.clone(),
        config.clock.clone(),
        &ground.metrics,
    );
    let (service, replicas) = service.map_err(|error| NodeError::Fleet(error.to_string()))?;
    Ok(Run {
        backend,
        links,
        service,
        replicas,
        handlers,
    })
}

/// The workers of a handler agent; nothing for an agent with another body.
fn handler(
    agent: &AgentSpec,
    around: &Surroundings<'_>,
    mail: &Mail,
) -> Result<Option<Handler>, NodeError> {
    let Body::Handler(body) = &agent.body else {
        return Ok(None);
    };
    let speaker = &mail.speakers[&agent.name];
    let workers = around.workers(agent)?;
    let ids = workers.iter().map(|(id, _)| id.clone()).collect();
    let shared = HandlerAgent {
        mailbox: speaker.mailbox.clone(),
        voice: speaker.voice.clone(),
        settler: mail.settler.clone(),
        backend: Arc::new(around.backend.clone()),
        programs: workers.into_iter().collect(),
        timeout: agent.delivery.timeout,
        tasks: (!agent.pools.is_empty()).then(|| TaskWork {
            tasks: mail.tasks.clone(),
            pools: mail.pools.clone(),
            clock: mail.settler.clock.clone(),
            topics: agent
                .topics
                .iter()
                .filter_map(|topic| Topic::new(topic).ok())
                .collect(),
        }),
        max_output: usize::try_from(body.max_output).unwrap_or(usize::MAX),
    };
    Ok(Some((Arc::new(shared), ids)))
}

fn context(
    config: &NodeConfig,
    ground: &Ground,
    mail: &Mail,
    tasks: &Tasks,
) -> Result<Dispatcher, NodeError> {
    tracing::debug!("preparing context");
    let parts = ContextParts {
        store: ground.store.clone(),
        deliver: dispatch::deliver(mail.inboxes.clone()),
        tasks: tasks.context.clone(),
        readiness: ground.readiness.clone(),
        metrics: ground.metrics.clone(),
    };
    let context = Dispatcher::new(DispatcherConfig::default(), parts);
    for agent in &config.fleet.agents {
        for subscription in agents::subscriptions(agent)? {
            let bad = |error| NodeError::Fleet(format!("agent `{}`: {error}", agent.name));
            context.subscribe(subscription).map_err(bad)?;
        }
    }
    Ok(context)
}

/// Room in a request body for what goes around the payload: names, headers, trace.
const ENVELOPE_BYTES: usize = 64 << 10;

/// Bounds of the ops server under which a payload that the fleet allows arrives, as base64 too.
fn ops_limits(max_payload: u64) -> Limits {
    let payload = usize::try_from(max_payload).unwrap_or(usize::MAX);
    let body = (payload / 3)
        .saturating_mul(4)
        .saturating_add(ENVELOPE_BYTES);
    let limits = Limits::default();
    Limits {
        body_bytes: limits.body_bytes.max(body),
        all_bodies_bytes: limits.all_bodies_bytes.max(body.saturating_mul(2)),
        ..limits
    }
}

fn ops(
    core: &Arc<Core>,
    ground: &Ground,
    links: TokenTable,
    tcp: TcpConfig,
) -> Result<OpsServer, NodeError> {
    tracing::debug!("binding the ops server");
    let config = OpsConfig {
        tcp: Some(tcp),
        // Its folder is the node's alone; an agent that runs as another user meets it in its own directory.
        socket: Some(SocketConfig {
            mode: 0o666,
            ..SocketConfig::new(ground.state.link_socket())
        }),
        limits: ops_limits(core.fleet.messaging.max_payload),
        ..OpsConfig::new(ground.state.operator_token())
    };
    let parts = OpsParts {
        version: crate::VERSION.to_owned(),
        clock: core.clock.clone(),
        readiness: ground.readiness.clone(),
        metrics: ground.metrics.clone(),
        redactor: ground.redactor.clone(),
        store: ground.store.clone(),
        signals: core.signals.clone(),
        links,
        sections: section::all(core),
    };
    Ok(OpsServer::bind(config, parts)?)
}

/// A killed process is seen as dead a moment before its last thread has closed its files.
const LAST_BREATH: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Takes the lock; waits for a holder that is dying, not for one that runs.
async fn take_lock(state: &StateDir, config: &NodeConfig) -> Result<NodeLock, NodeError> {
    let until = config.clock.mono() + LAST_BREATH;
    loop {
        match NodeLock::acquire(state) {
            Err(NodeError::Running { pid, .. })
                if !state::is_running(&pid) && config.clock.mono() < until =>
            {
                clock::sleep(LOOK_AGAIN).await;
            }
            taken => return taken,
        }
    }
}

async fn open_store(
    config: &NodeConfig,
    state: &StateDir,
    key: &Identity,
) -> Result<(SharedStore, Option<SqliteStore>), NodeError> {
    if let Some(store) = &config.store {
        return Ok((store.clone(), None));
    }
    let name = config.fleet.name.clone();
    match config.fleet.store.kind {
        StoreKind::Memory => {
            let store = MemoryStore::new(MemoryConfig::new(name), config.clock.clone());
            Ok((Arc::new(store), None))
        }
        StoreKind::Sqlite => {
            let retention = &config.fleet.retention;
            let sqlite = SqliteConfig {
                retention: Retention {
                    max_age: retention.max_age,
                    max_bytes: retention.max_bytes,
                },
                min_free_disk: config.fleet.store.min_free_disk,
                ..SqliteConfig::new(state.database(), name, key.signing_key())
            };
            let until = config.clock.mono() + LAST_BREATH;
            let store = loop {
                match SqliteStore::open(sqlite.clone(), config.clock.clone()).await {
                    // The node's lock is ours: only its dead holder's last thread can still have the database.
                    Err(StoreError::InUse { .. }) if config.clock.mono() < until => {
                        clock::sleep(LOOK_AGAIN).await;
                    }
                    opened => break opened?,
                }
            };
            Ok((Arc::new(store.clone()), Some(store)))
        }
    }
}

fn files_source(
    source: &SourceSpec,
    config: &NodeConfig,
    secrets: &Redactor,
) -> Result<Arc<FilesSource>, NodeError> {
    let SourceKind::Files(files) = &source.kind;
    let settings = FilesConfig {
        include: files.include.clone(),
        exclude: files.exclude.clone(),
        default_excludes: files.default_excludes,
        data_type: source.data_type.as_str().into(),
        max_file_bytes: files.max_file_size,
        max_pages: usize::try_from(files.max_pages).unwrap_or(usize::MAX),
        settle: SettleConfig {
            rest: source.settle.rest,
            max_wait: source.settle.max_wait,
        },
        watch: match files.watch {
            model::WatchMode::Auto => WatchMode::Auto,
            model::WatchMode::Notify => WatchMode::Notify,
            model::WatchMode::Poll => WatchMode::Poll,
        },
        poll_interval: files.poll_interval,
        initial: match files.initial {
            model::Initial::Dispatch => Initial::Dispatch,
            model::Initial::Baseline => Initial::Baseline,
        },
        ..FilesConfig::new(source.name.clone(), &files.path)
    };
    let built = FilesSource::new(settings, config.clock.clone());
    built
        .map(|source| Arc::new(source.without_names_of(secrets.clone())))
        .map_err(|error| NodeError::Fleet(format!("source `{}`: {error}", source.name)))
}

/// Where the fleet's sources are mapped to.
pub(crate) fn place(tenant: &Tenant) -> volary_context::dispatch::Place {
    volary_context::dispatch::Place {
        tenant: tenant.clone(),
        ..Default::default()
    }
}
