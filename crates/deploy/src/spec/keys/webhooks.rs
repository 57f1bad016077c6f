//! Keys of `spec.messaging.webhooks` in `fleet.yaml`.

use super::{Field, Shape, Table};
use crate::spec::rules;

use Shape::{Bool, Choice, Int, List, Map, Object, Text};

static TOPIC: Shape = Text(&rules::TOPIC);
static FIELD: Shape = Text(&rules::TEXT);
static HEADER_VALUE: Shape = Text(&rules::HEADER);

static INBOUND: Table = Table {
    name: "InboundWebhook",
    doc: "A sender of webhooks. It posts to /v1/webhooks/NAME of the operators' server.",
    fields: &[
        Field::new(
            "name",
            Text(&rules::NAME),
            "Its name: the last part of the address it posts to.",
        )
        .required()
        .also(&["provider"]),
        Field::new(
            "profile",
            Choice(&["signed", "standard", "github", "gitea", "gitlab"]),
            "How it proves itself. `standard` is Standard Webhooks; `signed` is x-webhook-signature over x-webhook-timestamp, a dot and the body. Default standard.",
        )
        .also(&["type", "kind"]),
        Field::new(
            "secretName",
            Text(&rules::ITEM),
            "The secret it shares with this node: a name under `spec.secrets`.",
        )
        .required()
        .also(&["secret"]),
        Field::new(
            "secretKey",
            Text(&rules::ITEM),
            "The key of that secret.",
        )
        .required(),
        Field::new(
            "emitAs",
            Choice(&["message", "task"]),
            "What an event becomes: a message on `topic`, or a task for one member of `pool`, or for one who gets `topic`. Default message.",
        )
        .also(&["emit", "as"]),
        Field::new(
            "topic",
            Text(&rules::TOPIC),
            "The topic its events go to. Needed, unless they become tasks of a pool.",
        ),
        Field::new(
            "pool",
            Text(&rules::NAME),
            "The pool whose members work on it. Only with `emitAs: task`.",
        ),
        Field::new(
            "requiredFields",
            List(&FIELD),
            "Fields that the JSON object must have.",
        ),
        Field::new(
            "eventId",
            Text(&rules::TEXT),
            "The field that names an event. Default: what the profile says.",
        ),
        Field::new(
            "maxBytes",
            Text(&rules::BYTES),
            "Bytes of one body. Default 1MiB, which is also the most.",
        ),
        Field::new(
            "maxSkew",
            Text(&rules::DURATION),
            "How far a signed time may be from now. Default 5m.",
        ),
        Field::new(
            "rememberFor",
            Text(&rules::DURATION),
            "How long an event is known again. Default 1h where the time is signed, else 7d.",
        ),
        Field::new(
            "duplicates",
            Choice(&["accept", "refuse"]),
            "What an event that was accepted before is answered: 202 without effect, or 401. Default accept; for `signed` refuse.",
        ),
    ],
};
static INBOUND_ITEM: Shape = Object(&INBOUND);

static BREAKER: Table = Table {
    name: "CircuitBreaker",
    doc: "When a target is left alone.",
    fields: &[
        Field::new(
            "failures",
            Int(1, 1000),
            "Failures in a row that open it. Default 5.",
        ),
        Field::new(
            "openFor",
            Text(&rules::DURATION),
            "How long it stays open. Default 30s.",
        ),
    ],
};

static OUTBOUND: Table = Table {
    name: "OutboundWebhook",
    doc: "A target: messages of its topics are posted to its URL, until it has them or they are parked.",
    fields: &[
        Field::new(
            "name",
            Text(&rules::NAME),
            "Its name; it has an inbox like an agent, and agents can send `to` it.",
        )
        .required(),
        Field::new("topics", List(&TOPIC), "The topics that go to it.").also(&["topic"]),
        Field::new(
            "url",
            Text(&rules::WEBHOOK_URL),
            "Where to post. A message cannot change it, and redirects are not followed.",
        )
        .required()
        .also(&["target", "endpoint"]),
        Field::new(
            "secretName",
            Text(&rules::ITEM),
            "The secret to sign with, as Standard Webhooks has it: a name under `spec.secrets`. Default: unsigned.",
        )
        .also(&["secret"]),
        Field::new("secretKey", Text(&rules::ITEM), "The key of that secret."),
        Field::new(
            "authorizationName",
            Text(&rules::ITEM),
            "The secret that is sent as the Authorization header, whole: a name under `spec.secrets`.",
        )
        .also(&["authorization"]),
        Field::new("authorizationKey", Text(&rules::ITEM), "The key of that secret."),
        Field::new(
            "headers",
            Map(&rules::HEADER_NAME, &HEADER_VALUE),
            "More headers. No credentials: these are shown.",
        ),
        Field::new(
            "timeout",
            Text(&rules::DURATION),
            "Time for one request with its answer. Default 5s.",
        ),
        Field::new(
            "maxAttempts",
            Int(1, 100),
            "Attempts before a message is parked. Default 8, within about ten minutes.",
        ),
        Field::new("concurrency", Int(1, 64), "Requests at a time. Default 4."),
        Field::new("breaker", Object(&BREAKER), "When it is left alone."),
        Field::new(
            "allowPrivate",
            Bool,
            "Whether it may be in a private network or on this machine, also over plain http. Default false.",
        ),
        Field::new(
            "caFile",
            Text(&rules::PATH),
            "Certificates (PEM) to believe in place of the machine's.",
        )
        .also(&["ca"]),
    ],
};
static OUTBOUND_ITEM: Shape = Object(&OUTBOUND);

/// `spec.messaging.webhooks`.
pub(super) static WEBHOOKS: Table = Table {
    name: "Webhooks",
    doc: "What other systems say over HTTP, and what is said to them.",
    fields: &[
        Field::new("inbound", List(&INBOUND_ITEM), "Who may post here."),
        Field::new(
            "outbound",
            List(&OUTBOUND_ITEM),
            "Where messages are posted to.",
        ),
    ],
};
