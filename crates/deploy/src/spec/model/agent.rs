//! One agent, resolved: what runs, where, how often, and under which name.

use std::{collections::BTreeMap, fmt, path::PathBuf, time::Duration};

use serde::Serialize;
use volary_kernel::{
    id::{Name, Tenant},
    retry::Backoff,
    secret::Secret,
};

use super::{
    DeliverySpec, EnvValue, EnvVar, HealthCheck, NetworkSpec, OutputSpec, PortSpec, Resources,
    ScalingSpec, SecretSpec, SecuritySpec, ServiceSpec, SubscriptionSpec, VolumeSpec, text,
};

/// Everything Volary knows about one agent before it starts. Each replica runs the same `AgentSpec`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentSpec {
    /// Unique in its fleet. A replica is called `<name>-<n>`, counting from 0.
    pub name: Name,
    /// Whose work the agent does; the fleet's tenant.
    pub tenant: Tenant,
    /// What people and tools wrote about it.
    pub metadata: Metadata,
    /// The manifest it came from.
    pub file: PathBuf,
    /// The manifest's folder: relative paths in the manifest start here.
    pub dir: PathBuf,
    /// The programming language, if stated. It selects nothing; `execution` does.
    pub language: Option<Language>,
    /// Which backend runs it.
    pub execution: Execution,
    /// What to run.
    pub body: Body,
    /// Whether a process may run where the node cannot guarantee that its descendants die with it.
    pub isolation: Isolation,
    /// Where a process starts; a folder that existed when the manifest was checked. Default: `dir`.
    pub working_dir: PathBuf,
    /// Ports it listens on.
    pub ports: Vec<PortSpec>,
    /// Variables of its environment, in manifest order, names unique.
    pub environment: Vec<EnvVar>,
    /// Secrets it gets as files or variables, names unique.
    pub secrets: Vec<SecretSpec>,
    /// Mounts; for a process binds only.
    pub volumes: Vec<VolumeSpec>,
    /// Passing it makes a replica ready, failing it restarts it. `None`: it is ready once it runs.
    pub health: Option<HealthCheck>,
    /// CPU and memory.
    pub resources: Resources,
    /// Reach.
    pub network: NetworkSpec,
    /// Services it expects to find; they appear in its environment as `<NAME>_HOST` and `<NAME>_PORT`.
    pub services: Vec<ServiceSpec>,
    /// How many replicas.
    pub scaling: ScalingSpec,
    /// User, group, capabilities.
    pub security: SecuritySpec,
    /// When a replica that ended is started again.
    pub restart: RestartPolicy,
    /// Agents that must be ready before this one starts; it stops before they do.
    pub depends_on: Vec<Name>,
    /// From the polite stop signal to the kill.
    #[serde(serialize_with = "text::duration")]
    pub stop_grace: Duration,
    /// Topics whose messages go to its inbox.
    pub topics: Vec<String>,
    /// Context changes that go to its inbox.
    pub subscriptions: Vec<SubscriptionSpec>,
    /// Sources it writes to, so that a change it causes is known as its own.
    pub outputs: Vec<OutputSpec>,
    /// Pools it is a member of: a message to a pool reaches one member.
    pub pools: Vec<Name>,
    /// How its inbox is served.
    pub delivery: DeliverySpec,
}

impl AgentSpec {
    /// Name of replica number `ordinal`.
    pub fn replica_name(&self, ordinal: u32) -> String {
        format!("{}-{ordinal}", self.name)
    }

    /// Every secret the agent gets: what the redactor must know before it starts.
    pub fn secret_values(&self) -> impl Iterator<Item = &Secret> {
        let variables = self
            .environment
            .iter()
            .filter_map(|variable| match &variable.value {
                EnvValue::Secret(secret) => Some(secret),
                EnvValue::Plain(_) => None,
            });
        variables.chain(self.secrets.iter().map(|secret| &secret.value))
    }

    /// A digest of the resolved manifest without secret values: equal specs have equal digests, on every machine.
    ///
    /// Reconciliation compares it to find replicas that run an older manifest.
    pub fn digest(&self) -> SpecDigest {
        let text = serde_json::to_vec(self)
            .expect("keys are text and no number is NaN, so it is always JSON");
        SpecDigest(*blake3::hash(&text).as_bytes())
    }

    /// A digest of the secret values, keyed so that it cannot be searched by guessing; `key` is the node's own.
    ///
    /// It changes when a secret is rotated though the manifest stays the same.
    pub fn secrets_digest(&self, key: &[u8; 32]) -> SpecDigest {
        let mut hasher = blake3::Hasher::new_keyed(key);
        let mut add = |name: &str, value: &str| {
            for part in [name, value] {
                hasher.update(&(part.len() as u64).to_le_bytes());
                hasher.update(part.as_bytes());
            }
        };
        for variable in &self.environment {
            if let EnvValue::Secret(secret) = &variable.value {
                add(&variable.name, secret.expose());
            }
        }
        for secret in &self.secrets {
            add(&secret.name, secret.value.expose());
        }
        SpecDigest(*hasher.finalize().as_bytes())
    }
}

/// A BLAKE3 digest, shown as 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpecDigest([u8; 32]);

impl SpecDigest {
    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for SpecDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for SpecDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Serialize for SpecDigest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// `metadata` beside the name. Volary shows it and puts labels on containers; it decides nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// Version of the agent, free text.
    pub version: Option<String>,
    /// One line for people.
    pub description: Option<String>,
    /// Who wrote it.
    pub author: Option<String>,
    /// Words to find it by.
    pub tags: Vec<String>,
    /// Keys and values to select it by.
    pub labels: BTreeMap<String, String>,
    /// Keys and values for other tools.
    pub annotations: BTreeMap<String, String>,
}

/// `spec.runtime`: the language an agent is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Language {
    /// Python.
    Python,
    /// Node.js.
    Nodejs,
    /// Go.
    Go,
    /// Rust.
    Rust,
    /// Java.
    Java,
}

/// `spec.execution`: the backend. Default: `docker` if `image` is given, else `process`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Execution {
    /// A process tree on this machine.
    Process,
    /// A container of the local Docker engine.
    Docker,
    /// A workload of a Kubernetes cluster.
    Kubernetes,
}

impl fmt::Display for Execution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Process => "process",
            Self::Docker => "docker",
            Self::Kubernetes => "kubernetes",
        })
    }
}

/// What runs: exactly one of these.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Body {
    /// A long-lived program; it takes its work over the link API.
    Command(CommandBody),
    /// A program started once per message or dispatch.
    Handler(HandlerBody),
    /// A container image.
    Image(ImageBody),
    /// A model with instructions, run by the planner.
    Model(ModelBody),
}

impl Body {
    /// Program and arguments of a process body; `None` for an image or a model.
    pub fn argv(&self) -> Option<&[String]> {
        match self {
            Self::Command(body) => Some(&body.argv),
            Self::Handler(body) => Some(&body.argv),
            Self::Image(_) | Self::Model(_) => None,
        }
    }
}

/// A long-lived program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CommandBody {
    /// Program and arguments; never empty. A program with a `/` is absolute, one without is looked up on `PATH`.
    pub argv: Vec<String>,
}

/// A program per message: JSON on stdin, JSON actions on stdout, exit code 0 acknowledges.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HandlerBody {
    /// Program and arguments; never empty. A program with a `/` is absolute, one without is looked up on `PATH`.
    pub argv: Vec<String>,
    /// Most bytes of stdout in one run; a run that prints more has failed.
    pub max_output: u64,
}

/// A container image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageBody {
    /// Image reference as written.
    pub image: String,
}

/// A model with instructions.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelBody {
    /// Who serves the model, such as `openai`.
    pub provider: String,
    /// The model's name there.
    pub name: String,
    /// Settings passed on as they are.
    pub config: serde_json::Value,
    /// What the agent is told to do.
    pub instructions: String,
}

/// `spec.isolation`: what must hold before a process is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// The whole process tree must be certain to die with the node, else start is refused. The default.
    Required,
    /// Start even where that cannot be had; chosen by the manifest's author with `isolation: none`.
    None,
}

/// When a replica that ended is started again.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RestartPolicy {
    /// Which ends count.
    pub policy: Restart,
    /// Waits between starts.
    #[serde(serialize_with = "text::backoff")]
    pub backoff: Backoff,
    /// A replica healthy this long starts counting from the first wait again.
    #[serde(serialize_with = "text::duration")]
    pub reset_after: Duration,
    /// With `on-failure`: after so many restarts in a row it is given up. `None`: never.
    pub max_restarts: Option<u32>,
}

/// `spec.restart.policy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// After every end, also exit code 0. The default.
    Always,
    /// After a signal or an exit code other than 0.
    OnFailure,
    /// Never.
    Never,
}
