//! From the checked tree of an `agent.yaml` to an [`AgentSpec`], with what must be pointed at later.

mod backend;
mod body;
mod delivery;
mod environment;
mod health;
mod place;
mod scaling;
mod secrets;

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use volary_kernel::{
    id::{Name, Tenant},
    retry::Backoff,
};

use super::{
    codes,
    context::Cx,
    model::{
        AgentSpec, EnvVar, Execution, HealthCheck, Isolation, Language, Metadata, NetworkSpec,
        PortSpec, Resources, Restart, RestartPolicy, ScalingSpec, SecretSpec, SecuritySpec,
        ServiceSpec, VolumeSpec, defaults,
    },
    source::Place,
    view::View,
};

pub(crate) use environment::{Variable, variables};

/// An agent and the places that checks across agents point at.
pub(crate) struct Draft {
    pub spec: AgentSpec,
    pub places: Places,
}

/// Where an agent says what other agents, sources and ports it has to do with.
pub(crate) struct Places {
    /// Its name.
    pub name: Place,
    /// Its entry in the fleet, if it has one.
    pub entry: Option<Place>,
    /// One for each of `spec.depends_on`.
    pub depends_on: Vec<Place>,
    /// One for each of `spec.ports`.
    pub ports: Vec<Place>,
    /// Every source that a subscription or output names.
    pub sources: Vec<(Name, Place)>,
    /// The number of replicas.
    pub replicas: Place,
}

/// What a fleet's entry says differently from the agent's own manifest.
#[derive(Default)]
pub(crate) struct Override {
    pub name: Option<Name>,
    pub name_at: Option<Place>,
    pub replicas: Option<u32>,
    pub environment: Vec<Variable>,
    pub entry: Option<Place>,
}

/// Reads an agent. `None` if it has no usable name or body; then an error was pushed.
pub(crate) fn read(
    root: View<'_>,
    tenant: &Tenant,
    over: Override,
    cx: &mut Cx<'_>,
) -> Option<Draft> {
    let spec = root.get("spec");
    let name = root.get("metadata").get("name");
    let body = body::read(spec, cx);
    let execution = execution(spec);
    let settings = Settings::read(spec, execution, &over, cx);
    backend::check(spec, execution, &settings, cx);
    let own = name.parse(Name::new);
    let (name, name_at) = match over.name {
        Some(other) => (other, over.name_at.unwrap_or_else(|| cx.place(name.span()))),
        None => (own?, cx.place(name.span())),
    };
    let mut agent = AgentSpec::new(name, cx.dir.clone(), body?);
    agent.execution = execution;
    agent.tenant = tenant.clone();
    agent.file = cx.resolve(
        &cx.file
            .path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy(),
    );
    agent.metadata = metadata(root.get("metadata"));
    agent.language = language(spec.get("runtime"));
    let replicas = match (&over.entry, over.replicas) {
        (Some(entry), Some(_)) => entry.clone(),
        _ => cx.place(spec.get("scaling").get("replicas").span()),
    };
    let places = settings.fill(&mut agent, name_at, over.entry, replicas);
    Some(Draft {
        spec: agent,
        places,
    })
}

/// Everything under `spec` but the body.
pub(crate) struct Settings {
    isolation: Isolation,
    working_dir: PathBuf,
    ports: Vec<(PortSpec, Place)>,
    environment: Vec<EnvVar>,
    secrets: Vec<SecretSpec>,
    volumes: Vec<(VolumeSpec, Place)>,
    health: Option<HealthCheck>,
    resources: Resources,
    network: NetworkSpec,
    services: Vec<ServiceSpec>,
    scaling: ScalingSpec,
    security: SecuritySpec,
    restart: RestartPolicy,
    depends_on: Vec<(Name, Place)>,
    stop_grace: Duration,
    delivery: delivery::Inbox,
}

impl Settings {
    fn read(spec: View<'_>, execution: Execution, over: &Override, cx: &mut Cx<'_>) -> Self {
        let ports = place::ports(spec, cx);
        let default_port = health::default_port(&ports);
        let services = place::services(spec.get("services"), cx);
        let secrets = secrets::read(spec.get("secrets"), cx);
        let environment = environment::read(spec, over, cx);
        let environment = match execution {
            Execution::Process => environment::with_services(environment, &services),
            Execution::Docker | Execution::Kubernetes => environment,
        };
        Self {
            isolation: isolation(spec.get("isolation")),
            working_dir: match spec.get("workingDir").text() {
                Some(path) => cx.folder(path, spec.get("workingDir").span()),
                None => cx.dir.clone(),
            },
            environment,
            secrets,
            volumes: place::volumes(spec.get("volumes"), cx),
            health: health::read(spec.get("healthCheck"), default_port, cx),
            resources: scaling::resources(spec.get("resources"), cx),
            network: place::network(spec.get("network"), execution, cx),
            scaling: scaling::scaling(spec, over.replicas, cx),
            security: place::security(spec.get("security"), cx),
            restart: restart(spec.get("restart"), cx),
            depends_on: names(spec.get("dependsOn"), cx),
            stop_grace: spec.get("stopGracePeriod").duration(defaults::STOP_GRACE),
            delivery: delivery::read(spec, cx),
            ports,
            services,
        }
    }

    fn fill(
        self,
        agent: &mut AgentSpec,
        name: Place,
        entry: Option<Place>,
        replicas: Place,
    ) -> Places {
        agent.isolation = self.isolation;
        agent.working_dir = self.working_dir;
        agent.environment = self.environment;
        agent.secrets = self.secrets;
        agent.volumes = self.volumes.into_iter().map(|(volume, _)| volume).collect();
        agent.health = self.health;
        agent.resources = self.resources;
        agent.network = self.network;
        agent.services = self.services;
        agent.scaling = self.scaling;
        agent.security = self.security;
        agent.restart = self.restart;
        agent.stop_grace = self.stop_grace;
        agent.topics = self.delivery.topics;
        agent.subscriptions = self.delivery.subscriptions;
        agent.outputs = self.delivery.outputs;
        agent.pools = self.delivery.pools;
        agent.delivery = self.delivery.delivery;
        let (ports, port_places) = self.ports.into_iter().unzip();
        agent.ports = ports;
        let (depends_on, depends_places) = self.depends_on.into_iter().unzip();
        agent.depends_on = depends_on;
        Places {
            name,
            entry,
            depends_on: depends_places,
            ports: port_places,
            sources: self.delivery.sources,
            replicas,
        }
    }
}

/// The backend asked for, or the one the body calls for.
fn execution(spec: View<'_>) -> Execution {
    match spec.get("execution").text() {
        Some("process") => Execution::Process,
        Some("docker") => Execution::Docker,
        Some("kubernetes") => Execution::Kubernetes,
        _ if spec.get("image").is_present() => Execution::Docker,
        _ => Execution::Process,
    }
}

fn isolation(view: View<'_>) -> Isolation {
    match view.text() {
        Some("none") => Isolation::None,
        _ => Isolation::Required,
    }
}

fn language(view: View<'_>) -> Option<Language> {
    Some(match view.text()? {
        "python" => Language::Python,
        "nodejs" => Language::Nodejs,
        "go" => Language::Go,
        "rust" => Language::Rust,
        "java" => Language::Java,
        _ => return None,
    })
}

fn metadata(view: View<'_>) -> Metadata {
    Metadata {
        version: view.get("version").string(),
        description: view.get("description").string(),
        author: view.get("author").string(),
        tags: view.get("tags").items().filter_map(View::string).collect(),
        labels: table(view.get("labels")),
        annotations: table(view.get("annotations")),
    }
}

/// A mapping of texts.
pub(crate) fn table(view: View<'_>) -> BTreeMap<String, String> {
    view.pairs()
        .filter_map(|(key, value)| Some((key.text.clone(), value.string()?)))
        .collect()
}

/// A list of names, each once.
fn names(view: View<'_>, cx: &mut Cx<'_>) -> Vec<(Name, Place)> {
    let mut found: Vec<(Name, Place)> = Vec::new();
    for item in view.items() {
        let Some(name) = item.parse(Name::new) else {
            continue;
        };
        match found.iter().find(|(other, _)| *other == name) {
            Some((_, first)) => {
                let problem = cx.at(
                    &codes::DUPLICATE_ITEM,
                    item.span(),
                    format!("`{name}` stands here a second time"),
                );
                let problem = problem.related(&first.file, first.span, "it first stands here");
                cx.push(problem);
            }
            None => found.push((name, cx.place(item.span()))),
        }
    }
    found
}

fn restart(view: View<'_>, cx: &mut Cx<'_>) -> RestartPolicy {
    let policy = match view.text().or(view.get("policy").text()) {
        Some("on-failure") => Restart::OnFailure,
        Some("never") => Restart::Never,
        _ => Restart::Always,
    };
    let max = view.get("maxRestarts");
    if max.is_present() && policy != Restart::OnFailure {
        let problem = cx.at(
            &codes::CHOICE,
            max.key(),
            "`maxRestarts` goes with `policy: on-failure` only",
        );
        cx.push(problem.hint("write `policy: on-failure`, or remove `maxRestarts`"));
    }
    RestartPolicy {
        policy,
        backoff: backoff(view.get("backoff"), defaults::RESTART_BACKOFF),
        reset_after: view
            .get("resetAfter")
            .duration(defaults::RESTART_RESET_AFTER),
        max_restarts: max.int(),
    }
}

/// Waits, each of whose parts may be left out. The longest is never shorter than the first.
fn backoff(view: View<'_>, default: Backoff) -> Backoff {
    let base = view.get("base").duration(default.base);
    Backoff {
        base,
        factor: view
            .get("factor")
            .parse(str::parse)
            .unwrap_or(default.factor),
        max: view.get("max").duration(default.max.max(base)).max(base),
        jitter: view
            .get("jitter")
            .parse(str::parse)
            .unwrap_or(default.jitter),
    }
}
