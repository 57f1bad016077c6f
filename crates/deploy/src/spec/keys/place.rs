//! Keys below `spec` of an agent: ports, mounts, resources, network, scaling, user.

use super::{Field, Shape, Table};
use crate::spec::rules;

use Shape::{Bool, Choice, Int, List, Object, Text};

pub(super) static PORT: Table = Table {
    name: "Port",
    doc: "A port the agent listens on.",
    fields: &[
        Field::new(
            "container",
            Text(&rules::PORT),
            "The port the program binds.",
        )
        .required()
        .also(&["containerPort", "target"]),
        Field::new(
            "host",
            Text(&rules::PORT),
            "The port on the host. Default: the same.",
        )
        .also(&["hostPort", "published"]),
        Field::new("protocol", Choice(&["tcp", "udp"]), "Default tcp."),
    ],
};

pub(super) static VOLUME: Table = Table {
    name: "Volume",
    doc: "A mount.",
    fields: &[
        Field::new(
            "source",
            Text(&rules::PATH),
            "A path (bind), a name (volume), or a group of `spec.config` (configmap).",
        ),
        Field::new("target", Text(&rules::TARGET), "Where it is mounted.")
            .required()
            .also(&["mountPath", "destination"]),
        Field::new(
            "type",
            Choice(&["bind", "volume", "tmpfs", "temporary", "configmap"]),
            "Default: bind for a path, volume for a name, tmpfs without a source.",
        ),
        Field::new("readOnly", Bool, "Default false.").also(&["ro", "read_only"]),
        Field::new("size", Text(&rules::MEMORY), "With tmpfs: at most."),
    ],
};

static AMOUNTS: Table = Table {
    name: "Amounts",
    doc: "CPU and memory.",
    fields: &[
        Field::new("cpu", Text(&rules::CPU), "CPUs: `2`, `0.5`, `500m`."),
        Field::new("memory", Text(&rules::MEMORY), "Bytes: `512Mi`, `2Gi`."),
        Field::new(
            "ephemeral-storage",
            Text(&rules::MEMORY),
            "Bytes of disk that end with the replica.",
        ),
    ],
};

pub(super) static RESOURCES: Table = Table {
    name: "Resources",
    doc: "CPU and memory, at most and at least.",
    fields: &[
        Field::new("limits", Object(&AMOUNTS), "At most.").also(&["limit"]),
        Field::new("requests", Object(&AMOUNTS), "At least.").also(&["reservations"]),
    ],
};

static HOST_RULE: Shape = Text(&rules::HOST_RULE);
static IP: Shape = Text(&rules::IP);
static SHORT_PORT: Shape = Text(&rules::SHORT_PORT);

static NETWORK_SECURITY: Table = Table {
    name: "NetworkSecurity",
    doc: "What the agent may reach.",
    fields: &[
        Field::new(
            "allowExternalConnections",
            Bool,
            "Whether it may reach beyond the fleet. Default true.",
        ),
        Field::new(
            "allowedHosts",
            List(&HOST_RULE),
            "If given, the only outside hosts it may reach.",
        ),
    ],
};

pub(super) static NETWORK: Table = Table {
    name: "Network",
    doc: "Reach.",
    fields: &[
        Field::new(
            "mode",
            Text(&rules::TEXT),
            "bridge, host, none, or the name of a network. Default: host for a process, bridge for a container.",
        ),
        Field::new(
            "ports",
            List(&SHORT_PORT),
            "Ports in short form; together with `spec.ports`.",
        ),
        Field::new("dns", List(&IP), "Name servers."),
        Field::new("security", Object(&NETWORK_SECURITY), "What it may reach."),
    ],
};

pub(super) static SERVICE: Table = Table {
    name: "Service",
    doc: "A service the agent expects to find, told to it as <NAME>_HOST and <NAME>_PORT.",
    fields: &[
        Field::new("name", Text(&rules::NAME), "Its name.").required(),
        Field::new("port", Text(&rules::PORT), "Its port.").required(),
        Field::new("protocol", Choice(&["tcp", "udp"]), "Default tcp."),
    ],
};

static TARGET: Table = Table {
    name: "MetricTarget",
    doc: "What the autoscaler aims at.",
    fields: &[
        Field::new(
            "type",
            Choice(&["Utilization"]),
            "Percent of what is requested.",
        )
        .required(),
        Field::new("averageUtilization", Int(1, 1000), "The percentage.").required(),
    ],
};

static RESOURCE_METRIC: Table = Table {
    name: "ResourceMetric",
    doc: "A resource to scale by.",
    fields: &[
        Field::new("name", Choice(&["cpu", "memory"]), "Which one.").required(),
        Field::new("target", Object(&TARGET), "What to aim at.").required(),
    ],
};

static METRIC: Table = Table {
    name: "Metric",
    doc: "What to scale by.",
    fields: &[
        Field::new("type", Choice(&["Resource"]), "CPU or memory.").required(),
        Field::new(
            "resource",
            Object(&RESOURCE_METRIC),
            "Which, and what to aim at.",
        )
        .required(),
    ],
};

static METRIC_ITEM: Shape = Object(&METRIC);

pub(super) static SCALING: Table = Table {
    name: "Scaling",
    doc: "How many replicas.",
    fields: &[
        Field::new("replicas", Int(0, 1000), "How many. Default 1."),
        Field::new("minReplicas", Int(0, 1000), "At least. Default 0.").also(&["min"]),
        Field::new(
            "maxReplicas",
            Int(1, 1000),
            "At most. Default 1000, with autoscaling 10.",
        )
        .also(&["max"]),
        Field::new(
            "metrics",
            List(&METRIC_ITEM),
            "What to scale by between the two.",
        ),
    ],
};

pub(super) static AUTOSCALING: Table = Table {
    name: "Autoscaling",
    doc: "What the autoscaler aims at.",
    fields: &[
        Field::new("enabled", Bool, "Default true."),
        Field::new(
            "targetCPUUtilizationPercentage",
            Int(1, 1000),
            "Mean CPU use, percent of what is requested.",
        ),
        Field::new(
            "targetMemoryUtilizationPercentage",
            Int(1, 1000),
            "Mean memory use, percent of what is requested.",
        ),
        Field::new(
            "scaleDownDelay",
            Text(&rules::DURATION),
            "A lower number must be right for this long. Default 300s.",
        ),
        Field::new(
            "scaleUpDelay",
            Text(&rules::DURATION),
            "A higher number must be right for this long. Default 60s.",
        ),
    ],
};

static CAPABILITY: Shape = Text(&rules::CAPABILITY);

static CAPABILITIES: Table = Table {
    name: "Capabilities",
    doc: "Linux capabilities; `drop` is applied before `add`.",
    fields: &[
        Field::new("drop", List(&CAPABILITY), "Taken away."),
        Field::new("add", List(&CAPABILITY), "Given."),
    ],
};

pub(super) static SECURITY: Table = Table {
    name: "Security",
    doc: "User, group, capabilities.",
    fields: &[
        Field::new("runAsUser", Int(0, u32::MAX as i64 - 1), "User id."),
        Field::new("runAsGroup", Int(0, u32::MAX as i64 - 1), "Group id."),
        Field::new("readOnlyRootFilesystem", Bool, "Default false."),
        Field::new("capabilities", Object(&CAPABILITIES), "Linux capabilities."),
    ],
};
