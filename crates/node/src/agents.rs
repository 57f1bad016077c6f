//! From a resolved manifest to what each part of the node needs of an agent.

use std::collections::BTreeMap;

use volary_context::{Criteria, Subscription};
use volary_deploy::{
    backend::{
        Bind, BindTarget, DirAccess, EnvValue, PrivateFile, ProgramSpec, ReplicaId,
        process::ProcessBackend,
    },
    resolve::{self, Grant},
    spec::model::{AgentSpec, Body, MessagingSpec},
    supervise::AgentPlan,
};
use volary_kernel::{
    Name,
    secret::{Redactor, Secret},
};
use volary_messaging::{
    Identity, Topic,
    inbox::{InboxSpec, Inboxes},
};
use volary_ops::{LinkPeer, TokenTable};

use crate::{
    core::{Speaker, Voice},
    error::NodeError,
    state::StateDir,
};

/// Added to a handler's timeout before its claim lapses: time to kill it and to commit what it asked for.
const CLAIM_MARGIN: std::time::Duration = std::time::Duration::from_secs(30);

/// What an agent finds under these names in its own directory.
const TOKEN_FILE: &str = "token";
const LINK_SOCKET: &str = "link.sock";

/// Declares the agents' secrets, so that they are recognised wherever they turn up.
pub(crate) fn declare_secrets(agents: &[AgentSpec], redactor: &Redactor) -> Result<(), NodeError> {
    for agent in agents {
        let bad = |problem| NodeError::Secret {
            agent: agent.name.to_string(),
            problem,
        };
        let too_short = resolve::register_secrets(agent, redactor).map_err(bad)?;
        if !too_short.is_empty() {
            let found = too_short.join(", ");
            return Err(NodeError::ShortSecret {
                agent: agent.name.to_string(),
                secrets: found,
            });
        }
    }
    agents
        .iter()
        .try_for_each(|agent| refuse_shown(agent, redactor))
}

/// Arguments of a program are shown to everybody on the machine: no declared secret may stand there.
fn refuse_shown(agent: &AgentSpec, redactor: &Redactor) -> Result<(), NodeError> {
    let argv = agent.body.argv().unwrap_or_default();
    if !argv.iter().any(|word| redactor.contains(word.as_bytes())) {
        return Ok(());
    }
    Err(NodeError::ShownSecret {
        agent: agent.name.to_string(),
    })
}

/// The agent's identity and inbox.
pub(crate) fn speaker(
    agent: &AgentSpec,
    bounds: &MessagingSpec,
    state: &StateDir,
    inboxes: &Inboxes,
) -> Result<Speaker, NodeError> {
    let identity = Identity::load_or_generate(&state.agent_key(agent.name.as_str()))?;
    let voice = Voice::new(identity, agent.name.clone(), agent.tenant.clone());
    let topic = |topic: &String| {
        Topic::new(topic)
            .map_err(|error| NodeError::Fleet(format!("agent `{}`: {error}", agent.name)))
    };
    let topics = agent
        .topics
        .iter()
        .map(topic)
        .collect::<Result<Vec<_>, _>>()?;
    let visibility = match agent.body {
        Body::Handler(_) => agent.delivery.timeout + CLAIM_MARGIN,
        _ => agent.delivery.timeout,
    };
    let mailbox = inboxes.open(InboxSpec {
        max_items: usize::try_from(bounds.inbox_items).unwrap_or(usize::MAX),
        max_bytes: bounds.inbox_bytes,
        visibility,
        max_attempts: agent.delivery.max_attempts,
        backoff: agent.delivery.backoff,
        ..InboxSpec::new(agent.tenant.clone(), agent.name.clone(), topics)
    });
    Ok(Speaker {
        mailbox: mailbox.map_err(|error| NodeError::Fleet(error.to_string()))?,
        voice,
    })
}

/// The agent's subscriptions, called `<agent>/<index>`.
pub(crate) fn subscriptions(agent: &AgentSpec) -> Result<Vec<Subscription>, NodeError> {
    let bad = |index: usize, problem: &dyn std::fmt::Display| {
        NodeError::Fleet(format!(
            "subscription {index} of agent `{}`: {problem}",
            agent.name
        ))
    };
    let subscription = |(index, spec)| {
        let criteria = serde_json::to_value(spec).and_then(serde_json::from_value::<Criteria>);
        let criteria = criteria.map_err(|error| bad(index, &error))?;
        let id = format!("{}/{index}", agent.name);
        Subscription::new(id, agent.name.clone(), agent.tenant.clone(), &criteria)
            .map_err(|error| bad(index, &error))
    };
    agent
        .subscriptions
        .iter()
        .enumerate()
        .map(subscription)
        .collect()
}

/// What a replica is given beside its manifest: its token, the way to the link API, and who it is.
pub(crate) struct Surroundings<'a> {
    pub backend: &'a ProcessBackend,
    pub links: &'a TokenTable,
    pub redactor: &'a Redactor,
    pub state: &'a StateDir,
    pub program: &'a std::path::Path,
}

impl Surroundings<'_> {
    /// What the supervisor of replicas keeps alive.
    pub(crate) fn plan(&self, agent: &AgentSpec) -> Result<AgentPlan, NodeError> {
        let mut grants = BTreeMap::new();
        if matches!(agent.body, Body::Command(_)) {
            for ordinal in 0..agent.scaling.replicas {
                let id = ReplicaId::new(agent.name.clone(), ordinal);
                grants.insert(id.clone(), self.grant(agent, &id)?);
            }
        }
        resolve::agent_plan(agent, |id| grants[id].clone()).ok_or_else(|| not_a_process(agent))
    }

    /// The workers of a handler agent, one for each item handled at once, and what they run.
    pub(crate) fn workers(
        &self,
        agent: &AgentSpec,
    ) -> Result<Vec<(ReplicaId, ProgramSpec)>, NodeError> {
        let mut programs = BTreeMap::new();
        for ordinal in 0..agent.scaling.replicas.max(1) {
            let id = ReplicaId::new(agent.name.clone(), ordinal);
            let grant = self.grant(agent, &id)?;
            programs.insert(
                id,
                resolve::program(agent, &grant).ok_or_else(|| not_a_process(agent))?,
            );
        }
        let workers = usize::try_from(agent.delivery.concurrency.max(1)).unwrap_or(1);
        let replicas = programs.into_iter().collect::<Vec<_>>();
        Ok(replicas.iter().cycle().take(workers).cloned().collect())
    }

    /// What the node gives to one replica.
    fn grant(&self, agent: &AgentSpec, id: &ReplicaId) -> Result<Grant, NodeError> {
        let token = self.token(agent, id)?;
        let link = format!(
            "unix:{}",
            self.backend.private_dir(id).join(LINK_SOCKET).display()
        );
        let plain = [
            ("VOLARY_LINK", link),
            ("VOLARY_BIN", self.program.display().to_string()),
            ("VOLARY_AGENT", agent.name.to_string()),
            ("VOLARY_REPLICA", id.to_string()),
            ("VOLARY_TENANT", agent.tenant.to_string()),
        ];
        let mut env: BTreeMap<_, _> = plain
            .into_iter()
            .map(|(name, value)| (name.to_owned(), EnvValue::Plain(value)))
            .collect();
        env.insert(
            "VOLARY_TOKEN_FILE".to_owned(),
            EnvValue::PrivatePath(TOKEN_FILE.to_owned()),
        );
        let socket = Bind {
            source: self.state.link_socket(),
            target: BindTarget::Private(LINK_SOCKET.to_owned()),
            access: DirAccess::ReadWrite,
        };
        Ok(Grant {
            env,
            files: vec![PrivateFile::new(TOKEN_FILE, token)],
            binds: vec![socket],
        })
    }

    fn token(&self, agent: &AgentSpec, id: &ReplicaId) -> Result<Secret, NodeError> {
        let replica =
            Name::new(id.to_string()).map_err(|error| NodeError::Fleet(error.to_string()))?;
        let peer = LinkPeer {
            tenant: agent.tenant.clone(),
            agent: agent.name.clone(),
            replica,
        };
        let token = self
            .links
            .issue(peer)
            .map_err(|error| NodeError::Fleet(error.to_string()))?;
        self.redactor
            .add(&token)
            .map_err(|problem| NodeError::Secret {
                agent: agent.name.to_string(),
                problem,
            })?;
        Ok(token)
    }
}

fn not_a_process(agent: &AgentSpec) -> NodeError {
    NodeError::Fleet(format!(
        "agent `{}` does not run as processes, and nothing else is part of this build",
        agent.name
    ))
}

#[cfg(test)]
mod tests {
    use volary_deploy::spec::{BACKENDS, LoadOptions, files::Files, load_fleet};

    use super::*;

    #[test]
    fn a_declared_secret_among_the_arguments_is_refused_without_being_shown() {
        let folder = tempfile::tempdir().unwrap();
        let manifest = "apiVersion: agent.dev/v1\nkind: Agent\nmetadata: {name: shower}\nspec:\n  \
                        command: [sh, -c, 'login --key canary-77']\n  \
                        secrets: [{name: key, from: env, envKey: KEY}]\n";
        std::fs::write(folder.path().join("agent.yaml"), manifest).unwrap();
        let options = LoadOptions {
            files: Files::disk(),
            env: &|name| (name == "KEY").then(|| "canary-77".to_owned()),
            backends: BACKENDS,
            insecure_bind: false,
        };
        let fleet = load_fleet(folder.path(), &options).unwrap().fleet;
        let refused = declare_secrets(&fleet.agents, &Redactor::default()).unwrap_err();
        assert!(
            matches!(refused, NodeError::ShownSecret { .. }),
            "{refused}"
        );
        assert!(!refused.to_string().contains("canary"), "{refused}");
    }
}
