//! Resolved manifests: what the rest of Volary runs on. Nothing here is undecided.
//!
//! Values of these types come out of [`load_fleet`](super::load_fleet), checked and with every default filled in. An
//! `Option` left in them is an answer ("no limit", "no probe"), never a question. Paths are joined to the folder of the
//! file that named them. All types serialise (secrets as `[redacted]`), which is what `plan` and `inspect` show.

mod agent;
pub mod defaults;
mod delivery;
mod environment;
mod fleet;
mod health;
mod messaging;
mod place;
mod text;
mod webhooks;

pub use agent::{
    AgentSpec, Body, CommandBody, Execution, HandlerBody, ImageBody, Isolation, Language, Metadata,
    ModelBody,
};
pub use agent::{Restart, RestartPolicy, SpecDigest};
pub use delivery::{ChangeKind, DeliverySpec, OutputSpec, SubscriptionSpec};
pub use environment::{EnvValue, EnvVar, SecretSpec, SecretTarget};
pub use fleet::{
    FilesSource, FleetSpec, Initial, OpsSpec, QuotaSpec, RetentionSpec, Settle, SourceKind,
    SourceSpec,
};
pub use fleet::{StoreKind, StoreSpec, WatchMode};
pub use health::{HealthCheck, Probe};
pub use messaging::{
    BucketSpec, Effect, EnrichSpec, HookSpec, LinkLimits, MessagingSpec, PeerSpec, PolicyRule,
    RateLimitSpec, Way,
};
pub use place::{
    AutoscaleSpec, Capabilities, NetworkMode, NetworkSpec, PortSpec, Protocol, ResourceSet,
    Resources,
};
pub use place::{ScalingSpec, SecuritySpec, ServiceSpec, VolumeSource, VolumeSpec};
pub use webhooks::{BreakerSpec, EmitSpec, InboundSpec, OutboundSpec, ProfileKind, WebhooksSpec};
