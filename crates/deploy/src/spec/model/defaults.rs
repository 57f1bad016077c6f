//! What a manifest that says nothing gets. Each constant has its unit and its reason.

use std::{net::Ipv4Addr, time::Duration};

use volary_kernel::retry::Backoff;

use super::{
    AgentSpec, Body, Capabilities, DeliverySpec, Execution, HookSpec, Isolation, LinkLimits,
    MessagingSpec, Metadata, NetworkMode, NetworkSpec, OpsSpec, QuotaSpec, Resources, Restart,
    RestartPolicy, RetentionSpec, ScalingSpec, SecuritySpec, Settle, StoreKind, StoreSpec,
};

/// Stdout of one handler run: a thousand actions of 1 KiB.
pub const HANDLER_MAX_OUTPUT: u64 = 1 << 20;
/// From the stop signal to the kill: what Docker gives.
pub const STOP_GRACE: Duration = Duration::from_secs(10);
/// One attempt of a handler: a model call with a margin.
pub const DELIVERY_TIMEOUT: Duration = Duration::from_secs(30);
/// Attempts before parking: enough to ride out a restart of what the handler calls.
pub const DELIVERY_MAX_ATTEMPTS: u32 = 5;
/// From probe to probe: the seed's.
pub const HEALTH_INTERVAL: Duration = Duration::from_secs(30);
/// For one probe: the seed's.
pub const HEALTH_TIMEOUT: Duration = Duration::from_secs(10);
/// Failures in a row: the seed's.
pub const HEALTH_RETRIES: u32 = 3;
/// Grace after a start: the seed's.
pub const HEALTH_START_PERIOD: Duration = Duration::from_secs(5);
/// Ready for this long, a replica counts as recovered: as container engines have it.
pub const RESTART_RESET_AFTER: Duration = Duration::from_secs(10);
/// A higher number of replicas must be right for this long: the seed's.
pub const SCALE_UP_DELAY: Duration = Duration::from_secs(60);
/// A lower number of replicas must be right for this long: the seed's.
pub const SCALE_DOWN_DELAY: Duration = Duration::from_secs(300);
/// Rest of a page before its change counts: longer than an editor's save, shorter than anyone notices.
pub const SETTLE_REST: Duration = Duration::from_millis(20);
/// The longest a page that keeps changing is held back.
pub const SETTLE_MAX_WAIT: Duration = Duration::from_secs(1);
/// Data type of the pages of a `files` source.
pub const DATA_TYPE: &str = "file";
/// Largest file that is a page: context beyond it is data, not text for an agent.
pub const MAX_FILE_SIZE: u64 = 16 << 20;
/// Most pages of a source: the tree of a large project.
pub const MAX_PAGES: u32 = 200_000;
/// From look to look where there are no notifications.
pub const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// Items of an inbox: some minutes of a fast sender.
pub const INBOX_ITEMS: u64 = 100_000;
/// Bytes of an inbox: the items above at 2.5 KiB each.
pub const INBOX_BYTES: u64 = 256 << 20;
/// Bytes of a message's payload; larger data belongs in a file or store that the message names.
pub const MAX_PAYLOAD: u64 = 1 << 20;
/// The largest `messaging.maxPayload`: what the form of a message has room for. Larger things are stored elsewhere and
/// referred to.
pub const LARGEST_PAYLOAD: u64 = 8 << 20;
/// How far in the future a message may have been sent: clocks differ, but not by more.
pub const MAX_SKEW: Duration = Duration::from_secs(300);
/// Senders, and topics, that a rate limit remembers in each direction: about 1.5 MB.
pub const RATE_KEYS: u32 = 10_000;
/// Connections from other nodes: a large fleet of fleets.
pub const LINK_CONNECTIONS: u32 = 256;
/// Connections of one peer: one, and those it has left behind unnoticed.
pub const LINK_PER_PEER: u32 = 4;
/// Connections whose other end is not known yet: strangers cannot use up the others.
pub const LINK_HANDSHAKING: u32 = 64;
/// Time to say who it is: some round trips over the worst of networks.
pub const LINK_HANDSHAKE_TIME: Duration = Duration::from_secs(5);
/// Silence of a connection; pings come four times as often.
pub const LINK_IDLE: Duration = Duration::from_secs(60);
/// A read or write without progress.
pub const LINK_STALL: Duration = Duration::from_secs(20);
/// Bytes of one frame: 64 messages of 64 KiB.
pub const LINK_FRAME_BYTES: u64 = 4 << 20;
/// What a frame needs beside the payload of its largest message: names, headers, signature.
pub const LINK_FRAME_EXTRA: u64 = 64 << 10;
/// Frames on their way: fills a gigabit over 100 ms with small frames.
pub const LINK_WINDOW_FRAMES: u32 = 64;
/// Bytes on their way: four of the largest frames.
pub const LINK_WINDOW_BYTES: u64 = 16 << 20;
/// The most bytes of one frame: what its form has room for.
pub const LINK_FRAME_MOST: u64 = 16 << 20;
/// The most bytes on their way: memory that one peer may take.
pub const LINK_WINDOW_MOST: u64 = 256 << 20;
/// Free disk below which intake stops: room to drain and to shut down in.
pub const MIN_FREE_DISK: u64 = 64 << 20;
/// Age of the oldest journal entry: a week's incident can be looked into.
pub const RETENTION_MAX_AGE: Duration = Duration::from_secs(7 * 24 * 3600);
/// Bytes of journal.
pub const RETENTION_MAX_BYTES: u64 = 1 << 30;
/// Replicas of one agent, unless its manifest sets a lower bound.
pub const MAX_REPLICAS: u32 = 1000;
/// Replicas that the autoscaler goes up to, unless the manifest says more or less.
pub const AUTOSCALE_MAX: u32 = 10;
/// Replicas of a fleet: ten times what the bench runs at rest.
pub const QUOTA_MAX_REPLICAS: u32 = 1000;

/// Waits between starts: quick for a hiccup; an agent that cannot start is tried about once a minute.
pub const RESTART_BACKOFF: Backoff = Backoff {
    base: Duration::from_millis(200),
    factor: 2.0,
    max: Duration::from_secs(60),
    jitter: 0.2,
};
/// Waits between attempts: quick for a hiccup, gentle on a peer that is down.
pub const DELIVERY_BACKOFF: Backoff = Backoff {
    base: Duration::from_millis(200),
    factor: 2.0,
    max: Duration::from_secs(30),
    jitter: 0.2,
};

impl AgentSpec {
    /// An agent with every setting at its default, in the folder `dir`. For programs that need no manifest.
    pub fn new(
        name: volary_kernel::id::Name,
        dir: impl Into<std::path::PathBuf>,
        body: Body,
    ) -> Self {
        let dir = dir.into();
        let execution = match body {
            Body::Image(_) => Execution::Docker,
            Body::Command(_) | Body::Handler(_) | Body::Model(_) => Execution::Process,
        };
        Self {
            name,
            tenant: volary_kernel::id::Tenant::default(),
            metadata: Metadata::default(),
            file: dir.join("agent.yaml"),
            working_dir: dir.clone(),
            dir,
            language: None,
            execution,
            body,
            isolation: Isolation::Required,
            ports: Vec::new(),
            environment: Vec::new(),
            secrets: Vec::new(),
            volumes: Vec::new(),
            health: None,
            resources: Resources::default(),
            network: NetworkSpec::new(execution),
            services: Vec::new(),
            scaling: ScalingSpec::fixed(1),
            security: SecuritySpec::default(),
            restart: RestartPolicy::default(),
            depends_on: Vec::new(),
            stop_grace: STOP_GRACE,
            topics: Vec::new(),
            subscriptions: Vec::new(),
            outputs: Vec::new(),
            pools: Vec::new(),
            delivery: DeliverySpec::default(),
        }
    }
}

impl NetworkSpec {
    /// The network of an agent that asks for nothing.
    pub fn new(execution: Execution) -> Self {
        let mode = match execution {
            Execution::Process => NetworkMode::Host,
            Execution::Docker | Execution::Kubernetes => NetworkMode::Bridge,
        };
        Self {
            mode,
            dns: Vec::new(),
            allow_external: true,
            allowed_hosts: Vec::new(),
        }
    }
}

impl ScalingSpec {
    /// A number of replicas that only a person changes.
    pub const fn fixed(replicas: u32) -> Self {
        Self {
            replicas,
            min: 0,
            max: MAX_REPLICAS,
            autoscale: None,
        }
    }
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            policy: Restart::Always,
            backoff: RESTART_BACKOFF,
            reset_after: RESTART_RESET_AFTER,
            max_restarts: None,
        }
    }
}

impl Default for DeliverySpec {
    fn default() -> Self {
        Self {
            concurrency: 1,
            timeout: DELIVERY_TIMEOUT,
            max_attempts: DELIVERY_MAX_ATTEMPTS,
            backoff: DELIVERY_BACKOFF,
        }
    }
}

impl Default for Settle {
    fn default() -> Self {
        Self {
            rest: SETTLE_REST,
            max_wait: SETTLE_MAX_WAIT,
        }
    }
}

impl Default for MessagingSpec {
    fn default() -> Self {
        Self {
            inbox_items: INBOX_ITEMS,
            inbox_bytes: INBOX_BYTES,
            max_payload: MAX_PAYLOAD,
            hooks: vec![HookSpec::Validate { max_skew: MAX_SKEW }],
            listen: None,
            insecure: false,
            peers: Vec::new(),
            at_most_once: Vec::new(),
            limits: LinkLimits::default(),
            webhooks: super::WebhooksSpec::default(),
        }
    }
}

impl Default for LinkLimits {
    fn default() -> Self {
        Self {
            connections: LINK_CONNECTIONS,
            per_peer: LINK_PER_PEER,
            handshaking: LINK_HANDSHAKING,
            handshake_time: LINK_HANDSHAKE_TIME,
            idle: LINK_IDLE,
            stall: LINK_STALL,
            frame_bytes: LINK_FRAME_BYTES,
            window_frames: LINK_WINDOW_FRAMES,
            window_bytes: LINK_WINDOW_BYTES,
        }
    }
}

impl Default for StoreSpec {
    fn default() -> Self {
        Self {
            kind: StoreKind::Sqlite,
            min_free_disk: MIN_FREE_DISK,
        }
    }
}

impl Default for OpsSpec {
    /// A free port of loopback: fleets do not get in each other's way, and nobody outside can reach it.
    fn default() -> Self {
        Self {
            bind: (Ipv4Addr::LOCALHOST, 0).into(),
        }
    }
}

impl Default for RetentionSpec {
    fn default() -> Self {
        Self {
            max_age: RETENTION_MAX_AGE,
            max_bytes: RETENTION_MAX_BYTES,
        }
    }
}

impl Default for QuotaSpec {
    fn default() -> Self {
        Self {
            max_replicas: QUOTA_MAX_REPLICAS,
        }
    }
}

impl Capabilities {
    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.add.is_empty() && self.drop.is_empty()
    }
}
