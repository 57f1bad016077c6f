//! Keys of `fleet.yaml`.

use super::{Field, Shape, Table, parts};
use crate::spec::rules;

use Shape::{Bool, Choice, Either, Int, List, Map, Object, Text};

static METADATA: Table = Table {
    name: "FleetMetadata",
    doc: "Name and description.",
    fields: &[
        Field::new("name", Text(&rules::NAME), "The fleet's name.").required(),
        Field::new("description", Text(&rules::ANY), "One line for people."),
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

static ENTRY: Table = Table {
    name: "FleetAgent",
    doc: "An agent of the fleet, with what differs from its own manifest.",
    fields: &[
        Field::new("path", Text(&rules::PATH), "Its folder, or its manifest.").required(),
        Field::new(
            "name",
            Text(&rules::NAME),
            "Another name, so that one manifest can be used twice.",
        ),
        Field::new("replicas", Int(0, 1000), "Another number of replicas."),
        Field::new(
            "environment",
            List(&ENTRY_VARIABLE),
            "Variables added, or put in the place of those with the same name.",
        )
        .also(&["env"]),
    ],
};

static ENTRY_VARIABLE: Shape = Object(&parts::VARIABLE);
static AGENT: Shape = Either(&[Text(&rules::PATH), Object(&ENTRY)]);

static GLOB: Shape = Text(&rules::GLOB);

static SETTLE: Table = Table {
    name: "Settle",
    doc: "When a change counts as finished.",
    fields: &[
        Field::new(
            "rest",
            Text(&rules::DURATION),
            "Nothing more happened to the page for this long. Default 20ms.",
        )
        .also(&["quiet", "min"]),
        Field::new(
            "maxWait",
            Text(&rules::DURATION),
            "The longest a page that keeps changing is held back. Default 1s.",
        )
        .also(&["max"]),
    ],
};

static SOURCE: Table = Table {
    name: "Source",
    doc: "Where context comes from.",
    fields: &[
        Field::new("type", Choice(&["files"]), "The kind of source.").required(),
        Field::new("path", Text(&rules::PATH), "With files: the folder.")
            .required()
            .also(&["root", "dir", "folder"]),
        Field::new(
            "include",
            List(&GLOB),
            "Globs, relative to the folder, of files that count. Default: all. Without a `/` they match at any depth.",
        ),
        Field::new(
            "exclude",
            List(&GLOB),
            "Globs of files and folders that do not count.",
        ),
        Field::new(
            "defaultExcludes",
            Bool,
            "Whether version control, build output and editors' files do not count. Default true.",
        ),
        Field::new(
            "dataType",
            Text(&rules::TEXT),
            "Data type of the pages. Default file.",
        ),
        Field::new(
            "maxFileSize",
            Text(&rules::BYTES),
            "Larger files do not count. Default 16MiB.",
        ),
        Field::new(
            "maxPages",
            Int(1, 10_000_000),
            "Most pages. Default 200000.",
        ),
        Field::new(
            "watch",
            Choice(&["auto", "notify", "poll"]),
            "By notifications, or at intervals. Default auto: at intervals only where there are no notifications.",
        ),
        Field::new(
            "pollInterval",
            Text(&rules::DURATION),
            "The interval. Default 2s.",
        ),
        Field::new(
            "initial",
            Choice(&["dispatch", "baseline"]),
            "Whether files there at the very first start are told as added. Default dispatch.",
        ),
        Field::new(
            "settle",
            Object(&SETTLE),
            "When a change counts as finished.",
        ),
    ],
};
static SOURCE_ITEM: Shape = Object(&SOURCE);

static STORE: Table = Table {
    name: "Store",
    doc: "Where records are kept.",
    fields: &[
        Field::new(
            "type",
            Choice(&["sqlite", "memory"]),
            "Default sqlite, in the state folder. `memory` forgets all at the end.",
        ),
        Field::new(
            "minFreeDisk",
            Text(&rules::BYTES),
            "Intake stops while the disk has less free. Default 64MiB.",
        ),
    ],
};

static OPS: Table = Table {
    name: "Ops",
    doc: "The operators' server.",
    fields: &[Field::new(
        "bind",
        Text(&rules::BIND),
        "Where it listens. Default 127.0.0.1:0, a free port.",
    )
    .also(&["address", "listen", "port"])],
};

static RETENTION: Table = Table {
    name: "Retention",
    doc: "How long and how much journal is kept.",
    fields: &[
        Field::new(
            "maxAge",
            Text(&rules::DURATION),
            "Older entries go. Default 7d.",
        ),
        Field::new(
            "maxBytes",
            Text(&rules::BYTES),
            "The oldest entries beyond this go. Default 1GiB.",
        ),
    ],
};

static QUOTA: Table = Table {
    name: "Quota",
    doc: "What the fleet may use at most.",
    fields: &[Field::new(
        "maxReplicas",
        Int(1, 100_000),
        "Replicas of all agents together. Default 1000.",
    )],
};

static SECRET_KEY: Table = Table {
    name: "SecretSource",
    doc: "Where a secret's value is: exactly one of the two.",
    fields: &[
        Field::new(
            "fromEnv",
            Text(&rules::VARIABLE),
            "A variable where Volary runs.",
        )
        .also(&["env"]),
        Field::new(
            "fromFile",
            Text(&rules::PATH),
            "A file; one line end at its end is dropped.",
        )
        .also(&["file"]),
    ],
};
static SECRET_SOURCE: Shape = Object(&SECRET_KEY);
static SECRET: Shape = Map(&rules::ITEM, &SECRET_SOURCE);
static CONFIG: Shape = Either(&[Text(&rules::ANY), Map(&rules::ITEM, &ANY)]);

static SPEC: Table = Table {
    name: "FleetSpec",
    doc: "Agents, sources, and the node's own settings.",
    fields: &[
        Field::new(
            "agents",
            List(&AGENT),
            "Folders or manifests of the agents.",
        )
        .required(),
        Field::new(
            "tenant",
            Text(&rules::NAME),
            "Whose work it is. Default `default`.",
        ),
        Field::new(
            "sources",
            Map(&rules::NAME, &SOURCE_ITEM),
            "Where context comes from, by name.",
        ),
        Field::new(
            "messaging",
            Object(&super::MESSAGING),
            "Bounds of messaging, hooks, and other nodes.",
        ),
        Field::new("store", Object(&STORE), "Where records are kept."),
        Field::new("ops", Object(&OPS), "The operators' server."),
        Field::new(
            "retention",
            Object(&RETENTION),
            "How long and how much journal is kept.",
        ),
        Field::new("quota", Object(&QUOTA), "What the fleet may use at most."),
        Field::new(
            "secrets",
            Map(&rules::SECRET, &SECRET),
            "Secrets by name and key, each fromEnv or fromFile.",
        ),
        Field::new(
            "config",
            Map(&rules::ITEM, &CONFIG),
            "Values by name, or by group and name.",
        ),
    ],
};

/// `fleet.yaml`.
pub(crate) static FLEET: Table = Table {
    name: "Fleet",
    doc: "A fleet of Volary (fleet.yaml).",
    fields: &[
        Field::new("apiVersion", Text(&rules::TEXT), "volary.dev/v1").required(),
        Field::new("kind", Text(&rules::TEXT), "Fleet").required(),
        Field::new("metadata", Object(&METADATA), "Name and description.").required(),
        Field::new(
            "spec",
            Object(&SPEC),
            "Agents, sources, and the node's own settings.",
        )
        .required(),
    ],
};
