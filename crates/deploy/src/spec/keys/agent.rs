//! Keys of `agent.yaml`.

use super::{Field, Shape, Table, parts, place};
use crate::spec::rules;

use Shape::{Choice, Either, List, Map, Object, Text};

static METADATA: Table = Table {
    name: "Metadata",
    doc: "Name and description.",
    fields: &[
        Field::new("name", Text(&rules::NAME), "Unique in its fleet.").required(),
        Field::new("version", Text(&rules::TEXT), "Version of the agent."),
        Field::new("description", Text(&rules::ANY), "One line for people."),
        Field::new("author", Text(&rules::ANY), "Who wrote it."),
        Field::new("tags", List(&parts::TEXT), "Words to find it by."),
        Field::new(
            "labels",
            Map(&rules::TEXT, &ANY),
            "Keys and values to select it by.",
        ),
        Field::new(
            "annotations",
            Map(&rules::TEXT, &ANY),
            "Keys and values for other tools.",
        ),
    ],
};

static ANY: Shape = Text(&rules::ANY);
static NAME: Shape = Text(&rules::NAME);
static TOPIC: Shape = Text(&rules::TOPIC);
static PORT: Shape = Either(&[Text(&rules::SHORT_PORT), Object(&place::PORT)]);
static VARIABLE: Shape = Object(&parts::VARIABLE);
static SECRET: Shape = Object(&parts::SECRET);
static VOLUME: Shape = Object(&place::VOLUME);
static SERVICE: Shape = Object(&place::SERVICE);
static SUBSCRIPTION: Shape = Object(&parts::SUBSCRIPTION);
static OUTPUT: Shape = Either(&[Text(&rules::NAME), Object(&parts::OUTPUT)]);

/// `spec` of an agent.
pub(crate) static SPEC: Table = Table {
    name: "AgentSpec",
    doc: "What runs, where, and what it gets.",
    fields: &[
        Field::new(
            "runtime",
            Choice(&["python", "nodejs", "go", "rust", "java"]),
            "The language it is written in; selects nothing.",
        ),
        Field::new(
            "execution",
            Choice(&["process", "docker", "kubernetes"]),
            "The backend. Default: docker with `image`, else process.",
        ),
        Field::new(
            "command",
            Either(&[Text(&rules::TEXT), List(&parts::ARGUMENT)]),
            "A long-lived program: a list, or a text for `sh -c`.",
        )
        .also(&["cmd", "entrypoint", "run"]),
        Field::new(
            "handler",
            Either(&[
                Text(&rules::TEXT),
                List(&parts::ARGUMENT),
                Object(&parts::HANDLER),
            ]),
            "A program started once per message: JSON on stdin, JSON actions on stdout.",
        ),
        Field::new("image", Text(&rules::TEXT), "A container image."),
        Field::new(
            "model",
            Object(&parts::MODEL),
            "The model of a planner agent; with `instructions`.",
        ),
        Field::new(
            "instructions",
            Text(&rules::TEXT),
            "What a planner agent is told to do; with `model`.",
        )
        .also(&["prompt", "instruction"]),
        Field::new(
            "workingDir",
            Text(&rules::PATH),
            "Where a process starts. Default: the manifest's folder.",
        )
        .also(&["cwd", "working_dir"]),
        Field::new(
            "isolation",
            Choice(&["required", "none"]),
            "`none`: start even where orphans cannot be ruled out. Default required.",
        ),
        Field::new("ports", List(&PORT), "Ports it listens on."),
        Field::new("environment", List(&VARIABLE), "Environment variables.").also(&["env"]),
        Field::new(
            "config",
            Map(&rules::ITEM, &ANY),
            "Values for `from: config`, before the fleet's.",
        ),
        Field::new("secrets", List(&SECRET), "Secrets it gets."),
        Field::new("volumes", List(&VOLUME), "Mounts.").also(&["mounts"]),
        Field::new(
            "healthCheck",
            Object(&parts::HEALTH),
            "Passing it makes a replica ready, failing it restarts it.",
        )
        .also(&["liveness", "livenessProbe", "readiness", "readinessProbe"]),
        Field::new("resources", Object(&place::RESOURCES), "CPU and memory."),
        Field::new("network", Object(&place::NETWORK), "Reach.").also(&["networking"]),
        Field::new("services", List(&SERVICE), "Services it expects to find."),
        Field::new("scaling", Object(&place::SCALING), "How many replicas."),
        Field::new(
            "autoscaling",
            Object(&place::AUTOSCALING),
            "What the autoscaler aims at.",
        ),
        Field::new(
            "security",
            Object(&place::SECURITY),
            "User, group, capabilities.",
        )
        .also(&["securityContext"]),
        Field::new(
            "restart",
            Either(&[
                Choice(&["always", "on-failure", "never"]),
                Object(&parts::RESTART),
            ]),
            "When a replica that ended is started again. Default always.",
        )
        .also(&["restartPolicy"]),
        Field::new("dependsOn", List(&NAME), "Agents that must be ready first.")
            .also(&["depends_on", "needs"]),
        Field::new(
            "stopGracePeriod",
            Text(&rules::DURATION),
            "From the polite stop signal to the kill. Default 10s.",
        )
        .also(&["terminationGracePeriodSeconds", "stopTimeout"]),
        Field::new("topics", List(&TOPIC), "Topics whose messages it receives.")
            .also(&["subscribe", "topic"]),
        Field::new(
            "subscriptions",
            List(&SUBSCRIPTION),
            "Context changes it receives.",
        )
        .also(&["watch", "watches"]),
        Field::new("outputs", List(&OUTPUT), "Sources it writes to."),
        Field::new("pools", List(&NAME), "Pools it is a member of."),
        Field::new(
            "delivery",
            Object(&parts::DELIVERY),
            "How its inbox is served.",
        ),
    ],
};

/// `agent.yaml`.
pub(crate) static AGENT: Table = Table {
    name: "Agent",
    doc: "An agent of Volary (agent.yaml).",
    fields: &[
        Field::new("apiVersion", Text(&rules::TEXT), "agent.dev/v1").required(),
        Field::new("kind", Text(&rules::TEXT), "Agent").required(),
        Field::new("metadata", Object(&METADATA), "Name and description.").required(),
        Field::new("spec", Object(&SPEC), "What runs, where, and what it gets.").required(),
    ],
};
