//! Checks between agents, and between agents and their fleet. All pure.

use std::collections::BTreeSet;

use volary_kernel::id::Name;

use super::{
    agent::Draft,
    codes,
    hint::{listing, near},
    model::{AgentSpec, Execution, PortSpec},
    order,
    problem::{Problem, Problems},
    source::Place,
    webhooks,
};

/// What the agents are checked against.
pub(crate) struct Surroundings<'a> {
    pub sources: BTreeSet<&'a Name>,
    /// Whether some manifest could not be read, so that a name that is not found may be in it.
    pub incomplete: bool,
    pub has_fleet: bool,
    pub max_replicas: u32,
    pub quota_at: &'a Place,
    pub webhooks: &'a webhooks::Places,
}

pub(crate) fn check(drafts: &[Draft], around: &Surroundings<'_>, problems: &mut Problems) {
    names(drafts, problems);
    dependencies(drafts, around, problems);
    sources(drafts, around, problems);
    ports(drafts, problems);
    quota(drafts, around, problems);
    webhooks(drafts, around, problems);
}

fn names(drafts: &[Draft], problems: &mut Problems) {
    for (at, draft) in drafts.iter().enumerate() {
        let Some(first) = drafts[..at]
            .iter()
            .find(|other| other.spec.name == draft.spec.name)
        else {
            continue;
        };
        let same_file = draft.spec.file == first.spec.file;
        let (here, there) = match (&draft.places.entry, &first.places.entry) {
            (Some(here), Some(there)) if same_file => (here, there),
            _ => (&draft.places.name, &first.places.name),
        };
        let message = format!("a second agent is called `{}`", draft.spec.name);
        let problem = Problem::at_place(&codes::DUPLICATE_AGENT, here, message)
            .related(&there.file, there.span, "the first one is here")
            .hint("rename one, or give its entry in fleet.yaml another `name`");
        problems.push(problem);
    }
}

fn dependencies(drafts: &[Draft], around: &Surroundings<'_>, problems: &mut Problems) {
    let known: Vec<&str> = drafts
        .iter()
        .map(|draft| draft.spec.name.as_str())
        .collect();
    for draft in drafts {
        for (name, place) in draft.spec.depends_on.iter().zip(&draft.places.depends_on) {
            if known.contains(&name.as_str()) || around.incomplete {
                continue;
            }
            let message = format!(
                "`{}` depends on `{name}`, which the fleet does not have",
                draft.spec.name
            );
            let hint = near(name.as_str(), known.iter().copied())
                .map(|near| format!("did you mean `{near}`?"));
            problems
                .push(Problem::at_place(&codes::UNKNOWN_AGENT, place, message).maybe_hint(hint));
        }
    }
    cycles(drafts, problems);
}

/// Reports one cycle after the other, leaving out the nodes of those already reported.
fn cycles(drafts: &[Draft], problems: &mut Problems) {
    let specs: Vec<&AgentSpec> = drafts.iter().map(|draft| &draft.spec).collect();
    let mut edges = order::edges(&specs);
    while let Err(cycle) = order::layers(&edges) {
        let names: Vec<_> = cycle
            .iter()
            .map(|at| drafts[*at].spec.name.as_str())
            .collect();
        let (first, second) = (&drafts[cycle[0]], names[1]);
        let position = first
            .spec
            .depends_on
            .iter()
            .position(|name| name.as_str() == second);
        let place = position.map_or(&first.places.name, |at| &first.places.depends_on[at]);
        let message = format!("agents wait for each other: {}", names.join(" -> "));
        problems.push(
            Problem::at_place(&codes::DEPENDENCY_CYCLE, place, message)
                .hint("remove one of these dependencies"),
        );
        for at in cycle {
            edges[at].clear();
        }
    }
}

fn sources(drafts: &[Draft], around: &Surroundings<'_>, problems: &mut Problems) {
    let known: Vec<&str> = around.sources.iter().map(|name| name.as_str()).collect();
    for (name, place) in drafts.iter().flat_map(|draft| &draft.places.sources) {
        if known.contains(&name.as_str()) {
            continue;
        }
        let hint = match near(name.as_str(), known.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None if !around.has_fleet => {
                "sources are declared under `spec.sources` of a fleet.yaml, and there is none"
                    .to_owned()
            }
            None if known.is_empty() => "declare it under `spec.sources` of fleet.yaml".to_owned(),
            None => format!("the fleet has {}", listing(&known, "and")),
        };
        let message = format!("source `{name}` is not declared");
        problems.push(Problem::at_place(&codes::UNKNOWN_SOURCE, place, message).hint(hint));
    }
}

/// A target has an inbox like an agent, so it has a name like one; and what comes in is for somebody.
fn webhooks(drafts: &[Draft], around: &Surroundings<'_>, problems: &mut Problems) {
    let places = around.webhooks;
    for (name, place) in &places.targets {
        if let Some(agent) = drafts.iter().find(|draft| draft.spec.name == *name) {
            let there = &agent.places.name;
            let message = format!("a target and an agent are both called `{name}`");
            let problem = Problem::at_place(&codes::DUPLICATE_AGENT, place, message)
                .related(&there.file, there.span, "the agent is here")
                .hint("give the target another name: messages to it go to its inbox, as to an agent's");
            problems.push(problem);
        }
    }
    if around.incomplete {
        return;
    }
    for (topic, place) in &places.emitted {
        let has = |topics: &[String]| topics.contains(topic);
        if !has(&places.taken) && !drafts.iter().any(|draft| has(&draft.spec.topics)) {
            let message = format!("no agent and no target gets topic `{topic}`");
            let known = drafts.iter().flat_map(|draft| &draft.spec.topics);
            let hint = near(topic, known.map(String::as_str));
            let hint = hint.map(|near| format!("did you mean `{near}`?"));
            problems.push(Problem::at_place(&codes::NO_RECEIVER, place, message).maybe_hint(hint));
        }
    }
}

/// Ports of the host that the agents bind or publish, with their owners.
pub(crate) fn host_ports(drafts: &[Draft]) -> Vec<(&Name, PortSpec, &Place)> {
    let on_host = drafts
        .iter()
        .filter(|draft| draft.spec.execution != Execution::Kubernetes);
    on_host
        .flat_map(|draft| {
            let ports = draft.spec.ports.iter().zip(&draft.places.ports);
            ports.map(|(port, place)| (&draft.spec.name, *port, place))
        })
        .collect()
}

fn ports(drafts: &[Draft], problems: &mut Problems) {
    let all = host_ports(drafts);
    for (at, (owner, port, place)) in all.iter().enumerate() {
        let Some((other, _, first)) = all[..at].iter().find(|(_, other, _)| overlap(port, other))
        else {
            continue;
        };
        let whose = if owner == other {
            "the same agent".to_owned()
        } else {
            format!("agent `{other}`")
        };
        let message = format!(
            "port {}/{} of the host is also wanted by {whose}",
            port.host, port.protocol
        );
        problems.push(
            Problem::at_place(&codes::DUPLICATE_PORT, place, message).related(
                &first.file,
                first.span,
                "it is wanted here",
            ),
        );
    }
    for draft in drafts
        .iter()
        .filter(|draft| draft.spec.scaling.replicas > 1)
    {
        if let (Some(place), true) = (
            draft.places.ports.first(),
            draft.spec.execution != Execution::Kubernetes,
        ) {
            let message = format!(
                "{} replicas cannot share one port of the host",
                draft.spec.scaling.replicas
            );
            let replicas = &draft.places.replicas;
            let problem = Problem::at_place(&codes::REPLICA_PORT, place, message);
            problems.push(problem.related(
                &replicas.file,
                replicas.span,
                "the number of replicas is set here",
            ));
        }
    }
}

fn overlap(one: &PortSpec, other: &PortSpec) -> bool {
    let addresses = one.address == other.address
        || one.address.is_unspecified()
        || other.address.is_unspecified();
    one.host == other.host && one.protocol == other.protocol && addresses
}

fn quota(drafts: &[Draft], around: &Surroundings<'_>, problems: &mut Problems) {
    let wanted: u64 = drafts
        .iter()
        .map(|draft| u64::from(draft.spec.scaling.replicas))
        .sum();
    if wanted > u64::from(around.max_replicas) {
        let message = format!(
            "the fleet wants {wanted} replicas, its quota is {}",
            around.max_replicas
        );
        problems.push(Problem::at_place(&codes::QUOTA, around.quota_at, message));
    }
}
