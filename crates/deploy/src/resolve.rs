//! From a checked manifest to what the backend and the supervisor are asked for. Pure.
//!
//! The node adds what only it knows — token, link socket, its own variables — as a [`Grant`] per replica.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use volary_kernel::secret::{Redactor, Secret, SecretError};

use crate::backend::{
    Bind, CapabilityChange, EnvValue, HandlerRun, Isolation, Limits, PrivateFile, ProgramSpec,
    ReplicaId, ReplicaSpec, RootAccess, User,
};
use crate::health::{Check, HttpCheck, ProbeSpec};
use crate::spec::model;
use crate::supervise::{AgentPlan, Body, RestartPolicy, Rules};

/// Lines of a secret with at least so many bytes are looked for on their own: a key printed line by line.
const MIN_SECRET_LINE: usize = 16;

/// What the node gives to one replica beside its manifest.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Grant {
    /// Variables such as `VOLARY_LINK`; they win over the manifest's.
    pub env: BTreeMap<String, EnvValue>,
    /// Files such as its token.
    pub files: Vec<PrivateFile>,
    /// Places such as the link socket.
    pub binds: Vec<Bind>,
}

/// Declares every secret of an agent to the redactor, before anything of it runs. Says which are too short to be
/// found in a text; a person should be told.
///
/// # Errors
/// When the register is full.
pub fn register_secrets(
    agent: &model::AgentSpec,
    redactor: &Redactor,
) -> Result<Vec<String>, SecretError> {
    let variables = agent
        .environment
        .iter()
        .filter_map(|variable| match &variable.value {
            model::EnvValue::Secret(secret) => Some((&variable.name, secret)),
            model::EnvValue::Plain(_) => None,
        });
    let secrets = agent
        .secrets
        .iter()
        .map(|secret| (&secret.name, &secret.value));
    let mut too_short = Vec::new();
    for (name, secret) in variables.chain(secrets) {
        match redactor.add(secret) {
            Err(SecretError::TooShort { .. }) => too_short.push(name.clone()),
            other => other?,
        }
        let lines = secret.expose().lines().map(str::trim);
        for line in lines.filter(|line| line.len() >= MIN_SECRET_LINE && *line != secret.expose()) {
            redactor.add(&Secret::new(line))?;
        }
    }
    Ok(too_short)
}

/// What runs for a process body; `None` for an image or a model.
pub fn program(agent: &model::AgentSpec, grant: &Grant) -> Option<ProgramSpec> {
    let mut program = ProgramSpec::new(agent.body.argv()?.iter().cloned(), &agent.working_dir);
    for service in &agent.services {
        let name = service.name.to_ascii_uppercase().replace(['-', '.'], "_");
        program
            .env
            .insert(format!("{name}_HOST"), "127.0.0.1".into());
        program.env.insert(
            format!("{name}_PORT"),
            EnvValue::Plain(service.port.to_string()),
        );
    }
    for variable in &agent.environment {
        let value = match &variable.value {
            model::EnvValue::Plain(text) => EnvValue::Plain(text.clone()),
            model::EnvValue::Secret(secret) => EnvValue::Secret(secret.clone()),
        };
        program.env.insert(variable.name.clone(), value);
    }
    for secret in &agent.secrets {
        let (variable, value) = match &secret.target {
            model::SecretTarget::Env { variable } => {
                (variable, EnvValue::Secret(secret.value.clone()))
            }
            model::SecretTarget::File { variable } => {
                program
                    .files
                    .push(PrivateFile::new(&secret.name, secret.value.clone()));
                (variable, EnvValue::PrivatePath(secret.name.clone()))
            }
        };
        program.env.insert(variable.clone(), value);
    }
    program.env.extend(grant.env.clone());
    program.files.extend(grant.files.iter().cloned());
    program.binds.extend(grant.binds.iter().cloned());
    walls(agent, &mut program);
    Some(program)
}

fn walls(agent: &model::AgentSpec, program: &mut ProgramSpec) {
    let security = &agent.security;
    program.limits = limits(&agent.resources);
    program.user = security
        .run_as_user
        .zip(security.run_as_group)
        .map(|(uid, gid)| User { uid, gid });
    program.isolation = match agent.isolation {
        model::Isolation::Required => Isolation::Namespace,
        model::Isolation::None => Isolation::None,
    };
    if security.read_only_root {
        program.root = RootAccess::ReadOnly;
    }
    program.capabilities = CapabilityChange {
        drop: security.capabilities.drop.clone(),
        add: security.capabilities.add.clone(),
    };
}

fn limits(resources: &model::Resources) -> Limits {
    #[expect(clippy::cast_precision_loss, reason = "a number of cores is small")]
    let cpu = resources
        .limits
        .cpu_milli
        .map(|milli| milli as f64 / 1000.0);
    Limits {
        memory: resources.limits.memory,
        cpu,
        ..Limits::default()
    }
}

/// What the supervisor keeps alive; `None` for an image or a model.
pub fn agent_plan(
    agent: &model::AgentSpec,
    grant: impl Fn(&ReplicaId) -> Grant,
) -> Option<AgentPlan> {
    let body = match &agent.body {
        model::Body::Handler(_) => Body::Handler,
        model::Body::Command(_) => {
            let ids = (0..agent.scaling.replicas).map(|n| ReplicaId::new(agent.name.clone(), n));
            let specs =
                ids.map(|id| Some(ReplicaSpec::new(id.clone(), program(agent, &grant(&id))?)));
            Body::Process(specs.collect::<Option<_>>()?)
        }
        model::Body::Image(_) | model::Body::Model(_) => return None,
    };
    Some(AgentPlan {
        name: agent.name.clone(),
        depends_on: agent.depends_on.clone(),
        body,
        rules: rules(agent),
        health: agent.health.as_ref().map(probe),
        ports: agent.ports.iter().map(|port| port.host).collect(),
    })
}

fn rules(agent: &model::AgentSpec) -> Rules {
    let restart = &agent.restart;
    Rules {
        policy: match restart.policy {
            model::Restart::Always => RestartPolicy::Always,
            model::Restart::OnFailure => RestartPolicy::OnFailure,
            model::Restart::Never => RestartPolicy::Never,
        },
        max_restarts: restart.max_restarts,
        backoff: restart.backoff,
        reset_after: restart.reset_after,
        grace: agent.stop_grace,
        ..Rules::default()
    }
}

fn probe(check: &model::HealthCheck) -> ProbeSpec {
    ProbeSpec {
        check: match &check.probe {
            model::Probe::Http {
                host,
                port,
                path,
                headers,
                expect_status,
            } => Check::Http(HttpCheck {
                host: host.clone(),
                port: *port,
                path: path.clone(),
                headers: headers.clone().into_iter().collect(),
                expect_status: *expect_status,
            }),
            model::Probe::Command { argv } => Check::Command(argv.clone()),
            model::Probe::Tcp { host, port } => Check::Tcp {
                host: host.clone(),
                port: *port,
            },
            model::Probe::File { path, max_age } => Check::File {
                path: path.clone(),
                max_age: *max_age,
            },
        },
        interval: check.interval,
        timeout: check.timeout,
        retries: check.retries,
        start_period: check.start_period,
    }
}

/// One run of a handler agent for one message; `None` if the agent is no handler.
pub fn handler_run(
    agent: &model::AgentSpec,
    id: ReplicaId,
    grant: &Grant,
    stdin: impl Into<Bytes>,
) -> Option<HandlerRun> {
    let model::Body::Handler(body) = &agent.body else {
        return None;
    };
    let timeout: Duration = agent.delivery.timeout;
    let max_output = usize::try_from(body.max_output).unwrap_or(usize::MAX);
    Some(HandlerRun {
        timeout,
        max_output,
        ..HandlerRun::new(id, program(agent, grant)?, stdin)
    })
}
