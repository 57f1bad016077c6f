//! Keys below `spec` of an agent: what runs, what it gets, how it is kept alive.

use super::{Field, Shape, Table};
use crate::spec::rules;

use Shape::{Choice, Either, Int, List, Map, Number, Object, Text};

pub(super) static TEXT: Shape = Text(&rules::TEXT);
/// An argument of a program; it may be empty.
pub(super) static ARGUMENT: Shape = Text(&rules::ANY);

pub(super) static HANDLER: Table = Table {
    name: "Handler",
    doc: "A program started once per message: JSON on stdin, JSON actions on stdout.",
    fields: &[
        Field::new(
            "command",
            Either(&[Text(&rules::TEXT), List(&ARGUMENT)]),
            "The program: a list, or a text for `sh -c`.",
        )
        .required(),
        Field::new(
            "maxOutput",
            Text(&rules::BYTES),
            "Most bytes of stdout in one run. Default 1MiB.",
        ),
    ],
};

pub(super) static MODEL: Table = Table {
    name: "Model",
    doc: "The model that a planner agent uses.",
    fields: &[
        Field::new(
            "provider",
            Text(&rules::TEXT),
            "Who serves it, such as `openai`.",
        )
        .required(),
        Field::new("name", Text(&rules::TEXT), "Its name there.").required(),
        Field::new(
            "config",
            Map(&rules::ITEM, &Shape::Any),
            "Settings passed on as they are.",
        ),
    ],
};

pub(super) static VARIABLE: Table = Table {
    name: "Variable",
    doc: "An environment variable: with a `value`, or `from` somewhere.",
    fields: &[
        Field::new("name", Text(&rules::VARIABLE), "The variable's name.").required(),
        Field::new("value", Text(&rules::ANY), "Its value, as written."),
        Field::new(
            "from",
            Choice(&["env", "secret", "config", "configmap", "file"]),
            "Where its value comes from instead.",
        )
        .also(&["valueFrom"]),
        Field::new(
            "envKey",
            Text(&rules::VARIABLE),
            "With `from: env`: the variable to copy. Default: the same name.",
        ),
        Field::new(
            "secretName",
            Text(&rules::SECRET),
            "With `from: secret`: an entry of the fleet's `spec.secrets`.",
        ),
        Field::new(
            "secretKey",
            Text(&rules::ITEM),
            "With `secretName`: the key in that entry. Default: the variable's name.",
        ),
        Field::new(
            "configKey",
            Text(&rules::ITEM),
            "With `from: config`: the key in `spec.config`. Default: the variable's name.",
        ),
        Field::new(
            "configMapName",
            Text(&rules::ITEM),
            "With `from: configmap`: a group in the fleet's `spec.config`.",
        ),
        Field::new(
            "configMapKey",
            Text(&rules::ITEM),
            "With `configMapName`: the key in it. Default: the variable's name.",
        ),
        Field::new(
            "path",
            Text(&rules::PATH),
            "With `from: file`: the file; one line end at its end is dropped.",
        ),
        Field::new(
            "defaultValue",
            Text(&rules::ANY),
            "With `from: env | config | configmap`: the value where there is none.",
        )
        .also(&["default"]),
    ],
};

pub(super) static SECRET: Table = Table {
    name: "Secret",
    doc: "A secret the agent gets, as a file unless asked otherwise.",
    fields: &[
        Field::new(
            "name",
            Text(&rules::SECRET),
            "The secret's name, and that of its file.",
        )
        .required(),
        Field::new(
            "from",
            Choice(&["env", "file", "secret", "kubernetes-secret"]),
            "Where it comes from.",
        )
        .required(),
        Field::new(
            "envKey",
            Text(&rules::VARIABLE),
            "With `from: env`: the variable. Default: API_KEY for `api-key`.",
        ),
        Field::new(
            "path",
            Text(&rules::PATH),
            "With `from: file`: the file; one line end at its end is dropped.",
        ),
        Field::new(
            "secretName",
            Text(&rules::SECRET),
            "With `from: secret | kubernetes-secret`: an entry of the fleet's `spec.secrets`.",
        ),
        Field::new(
            "secretKey",
            Text(&rules::ITEM),
            "With `secretName`: the key in that entry. Default: the secret's name.",
        ),
        Field::new(
            "as",
            Choice(&["file", "env"]),
            "How the agent gets it. Default file; `env` is visible to others, with a warning.",
        ),
    ],
};

static HEADER: Shape = Text(&rules::HEADER);

static HTTP_PROBE: Table = Table {
    name: "HttpProbe",
    doc: "GET over plain HTTP; redirects are not followed.",
    fields: &[
        Field::new("path", Text(&rules::URL_PATH), "Default /health."),
        Field::new(
            "port",
            Text(&rules::PORT),
            "Default: the agent's only port.",
        ),
        Field::new("host", Text(&rules::HOST), "Default 127.0.0.1."),
        Field::new("headers", Map(&rules::ITEM, &HEADER), "Further headers."),
        Field::new(
            "expectStatus",
            Int(100, 599),
            "The only status that passes. Default: any of 200 to 399.",
        ),
    ],
};

static TCP_PROBE: Table = Table {
    name: "TcpProbe",
    doc: "A TCP connection that is accepted passes.",
    fields: &[
        Field::new(
            "port",
            Text(&rules::PORT),
            "Default: the agent's only port.",
        ),
        Field::new("host", Text(&rules::HOST), "Default 127.0.0.1."),
    ],
};

static FILE_PROBE: Table = Table {
    name: "FileProbe",
    doc: "A file that is there passes.",
    fields: &[
        Field::new("path", Text(&rules::PATH), "The file.").required(),
        Field::new(
            "maxAge",
            Text(&rules::DURATION),
            "It must have been written within this time.",
        ),
    ],
};

pub(super) static HEALTH: Table = Table {
    name: "HealthCheck",
    doc: "Exactly one of command, http, tcp and file, and its timing.",
    fields: &[
        Field::new(
            "command",
            Either(&[Text(&rules::TEXT), List(&ARGUMENT)]),
            "A program; exit code 0 passes.",
        )
        .also(&["exec", "test"]),
        Field::new(
            "http",
            Either(&[Text(&rules::URL), Object(&HTTP_PROBE)]),
            "A URL that answers 200 to 399.",
        )
        .also(&["httpGet"]),
        Field::new(
            "tcp",
            Either(&[Text(&rules::HOST_PORT), Object(&TCP_PROBE)]),
            "A port that accepts.",
        )
        .also(&["tcpSocket"]),
        Field::new(
            "file",
            Either(&[Text(&rules::PATH), Object(&FILE_PROBE)]),
            "A file that is there.",
        ),
        Field::new(
            "interval",
            Text(&rules::DURATION),
            "From one probe to the next. Default 30s.",
        )
        .also(&["periodSeconds"]),
        Field::new(
            "timeout",
            Text(&rules::DURATION),
            "A probe that takes longer has failed. Default 10s.",
        )
        .also(&["timeoutSeconds"]),
        Field::new(
            "retries",
            Int(1, 1000),
            "Failures in a row that count. Default 3.",
        )
        .also(&["failureThreshold"]),
        Field::new(
            "startPeriod",
            Text(&rules::DURATION),
            "Failures right after a start that do not count. Default 5s.",
        )
        .also(&["initialDelaySeconds"]),
    ],
};

pub(super) static BACKOFF: Table = Table {
    name: "Backoff",
    doc: "Waits that grow from failure to failure.",
    fields: &[
        Field::new("base", Text(&rules::DURATION), "After the first failure."),
        Field::new("factor", Number(1.0, 100.0), "Growth per failure."),
        Field::new("max", Text(&rules::DURATION), "The longest wait."),
        Field::new(
            "jitter",
            Number(0.0, 1.0),
            "The share of a wait that is random.",
        ),
    ],
};

pub(super) static RESTART: Table = Table {
    name: "Restart",
    doc: "When a replica that ended is started again.",
    fields: &[
        Field::new(
            "policy",
            Choice(&["always", "on-failure", "never"]),
            "Default always.",
        ),
        Field::new(
            "backoff",
            Object(&BACKOFF),
            "Waits between starts. Default 200ms doubling to 1m, a fifth random.",
        ),
        Field::new(
            "resetAfter",
            Text(&rules::DURATION),
            "Ready this long, the waits begin anew. Default 10s.",
        ),
        Field::new(
            "maxRestarts",
            Int(0, 1_000_000),
            "With on-failure: give up after so many in a row. Default: never.",
        ),
    ],
};

static KIND: Shape = Choice(&["added", "replaced", "invalidated"]);
static PAGE: Shape = Text(&rules::PAGE);
static SUBSCRIPTION_ITEM: Shape = Object(&SUBSCRIPTION);

pub(super) static SUBSCRIPTION: Table = Table {
    name: "Subscription",
    doc: "Context changes the agent wants; every key that is given must hold.",
    fields: &[
        Field::new("source", Text(&rules::NAME), "A source of the fleet."),
        Field::new(
            "path",
            Text(&rules::GLOB),
            "A glob over the page's path, such as `notes/**/*.md`.",
        )
        .also(&["glob", "pattern"]),
        Field::new("dataType", Text(&rules::TEXT), "The page's data type."),
        Field::new(
            "pages",
            List(&PAGE),
            "The page is one of these, such as `notes:todo.md`.",
        ),
        Field::new("kinds", List(&KIND), "Kinds of change. Default: all.")
            .also(&["events", "kind"]),
        Field::new("all", List(&SUBSCRIPTION_ITEM), "All of these hold."),
        Field::new(
            "any",
            List(&SUBSCRIPTION_ITEM),
            "At least one of these holds.",
        ),
        Field::new("not", Object(&SUBSCRIPTION), "This does not hold."),
    ],
};

pub(super) static OUTPUT: Table = Table {
    name: "Output",
    doc: "A source the agent writes to.",
    fields: &[
        Field::new("source", Text(&rules::NAME), "A source of the fleet.").required(),
        Field::new("path", Text(&rules::GLOB), "Which pages. Default: any."),
    ],
};

pub(super) static DELIVERY: Table = Table {
    name: "Delivery",
    doc: "How the inbox is served.",
    fields: &[
        Field::new(
            "concurrency",
            Int(1, 1024),
            "Items worked on at once. Default 1.",
        ),
        Field::new(
            "timeout",
            Text(&rules::DURATION),
            "Longest one attempt may take. Default 30s.",
        ),
        Field::new(
            "maxAttempts",
            Int(1, 1_000_000),
            "Attempts before an item is parked. Default 5.",
        )
        .also(&["retries", "maxRetries"]),
        Field::new(
            "backoff",
            Object(&BACKOFF),
            "Waits between attempts. Default 200ms doubling to 30s, a fifth random.",
        ),
    ],
};
