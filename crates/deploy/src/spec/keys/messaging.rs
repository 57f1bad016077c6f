//! Keys of `spec.messaging` in `fleet.yaml`.

use super::{Field, Shape, Table, webhooks::WEBHOOKS};
use crate::spec::rules;

use Shape::{Bool, Choice, Int, List, Map, Number, Object, Text};

/// Most tokens of a bucket, and most that come back in a second.
const TOKENS_MAX: f64 = 1e9;

static INBOX: Table = Table {
    name: "Inbox",
    doc: "Bounds of every agent's inbox; what is beyond is refused.",
    fields: &[
        Field::new("maxItems", Int(1, 10_000_000), "Items. Default 100000."),
        Field::new(
            "maxBytes",
            Text(&rules::BYTES),
            "Bytes of payload. Default 256MiB.",
        ),
    ],
};

static TENANT: Shape = Text(&rules::NAME);
static TOPIC: Shape = Text(&rules::TOPIC);

static PEER: Table = Table {
    name: "Peer",
    doc: "Another node. `volary identity peer` on that node prints its entry.",
    fields: &[
        Field::new(
            "name",
            Text(&rules::NAME),
            "What this node calls it: in events, in status, in metrics.",
        )
        .required(),
        Field::new(
            "key",
            Text(&rules::PUBLIC_KEY),
            "Its public key, 64 hex digits. Who does not have the private one is turned away.",
        )
        .required()
        .also(&["publicKey", "identity"]),
        Field::new(
            "address",
            Text(&rules::DIAL),
            "Where it listens, host:port. Without it, it calls here and is not called.",
        )
        .also(&["host", "url", "endpoint"]),
        Field::new(
            "tenants",
            List(&TENANT),
            "Tenants whose messages go to it and are taken from it. Default: the fleet's.",
        )
        .also(&["tenant"]),
        Field::new(
            "giveUpAfter",
            Text(&rules::DURATION),
            "Park messages that could not be delivered to it for this long. Default: never.",
        ),
    ],
};
static PEER_ITEM: Shape = Object(&PEER);

static VALIDATE: Table = Table {
    name: "ValidateHook",
    doc: "Refuses what is too large, expired, from the future, or no JSON although it says so.",
    fields: &[Field::new(
        "maxSkew",
        Text(&rules::DURATION),
        "How far a message may be sent in the future: clocks differ. Default 5m.",
    )],
};

static BUCKET: Table = Table {
    name: "TokenBucket",
    doc: "How many at once, and how many come back in a second.",
    fields: &[
        Field::new(
            "capacity",
            Number(0.0, TOKENS_MAX),
            "Messages at once; 0 lets none through.",
        )
        .required()
        .also(&["burst"]),
        Field::new(
            "refillPerSecond",
            Number(0.0, TOKENS_MAX),
            "Messages that come back in a second.",
        )
        .required()
        .also(&["refill_tokens_per_sec", "refill", "rate"]),
    ],
};

static RATE_LIMIT: Table = Table {
    name: "RateLimitHook",
    doc: "Refuses what comes too fast. A message takes from all its buckets or from none.",
    fields: &[
        Field::new("global", Object(&BUCKET), "All messages of one direction."),
        Field::new("sender", Object(&BUCKET), "Each sender.").also(&["agent"]),
        Field::new("topic", Object(&BUCKET), "Each topic."),
        Field::new(
            "maxKeys",
            Int(16, 1_000_000),
            "Senders, and topics, remembered in each direction. Default 10000.",
        ),
        Field::new(
            "shared",
            Bool,
            "Whether all nodes on one store share the global bucket. Default false.",
        ),
    ],
};

static HEADER_VALUE: Shape = Text(&rules::HEADER);

static HEADER_NAME: Shape = Text(&rules::HEADER_NAME);

static ENRICH: Table = Table {
    name: "EnrichHook",
    doc: "Sets and tidies headers, in this order.",
    fields: &[
        Field::new(
            "headers",
            Map(&rules::HEADER_NAME, &HEADER_VALUE),
            "Headers that every message gets, whatever its sender said.",
        )
        .also(&["set"]),
        Field::new(
            "defaults",
            Map(&rules::HEADER_NAME, &HEADER_VALUE),
            "Headers that a message gets if its sender said nothing.",
        )
        .also(&["default"]),
        Field::new(
            "trim",
            List(&HEADER_NAME),
            "Headers whose values lose the white space around them.",
        ),
        Field::new(
            "lowercase",
            List(&HEADER_NAME),
            "Headers whose values become lower case.",
        ),
        Field::new("remove", List(&HEADER_NAME), "Headers that go."),
        Field::new(
            "receivedAt",
            Text(&rules::HEADER_NAME),
            "Header that gets the time of receipt, on the way in.",
        ),
    ],
};

static RECORD: Table = Table {
    name: "RecordHook",
    doc: "Makes every send and receive a journal entry.",
    fields: &[],
};

static MATCH: Table = Table {
    name: "PolicyMatch",
    doc: "Messages for which all of it is true; without keys, all messages.",
    fields: &[
        Field::new(
            "sender",
            Text(&rules::PATTERN),
            "Name of the sender, or its id; `*` stands for any text.",
        )
        .also(&["from", "agent"]),
        Field::new(
            "topic",
            Text(&rules::PATTERN),
            "Its topic; `*` stands for any text within a segment, `**` for any segments.",
        )
        .also(&["topics"]),
        Field::new(
            "tenant",
            Text(&rules::PATTERN),
            "Its tenant; `*` stands for any text.",
        ),
        Field::new(
            "way",
            Choice(&["egress", "ingress"]),
            "egress: as it is sent. ingress: as it is received. Default: both.",
        )
        .also(&["direction"]),
    ],
};

static RULE: Table = Table {
    name: "PolicyRule",
    doc: "Exactly one of the two.",
    fields: &[
        Field::new("allow", Object(&MATCH), "These go on."),
        Field::new("deny", Object(&MATCH), "These are taken out.").also(&["drop", "refuse"]),
    ],
};
static RULE_ITEM: Shape = Object(&RULE);

static POLICY: Table = Table {
    name: "PolicyHook",
    doc: "Says who may send what; the first rule that matches decides.",
    fields: &[
        Field::new(
            "default",
            Choice(&["allow", "deny"]),
            "What happens to messages that no rule matches.",
        )
        .required(),
        Field::new("rules", List(&RULE_ITEM), "Rules in order."),
    ],
};

static HOOK: Table = Table {
    name: "Hook",
    doc: "One hook: exactly one of these.",
    fields: &[
        Field::new(
            "validate",
            Object(&VALIDATE),
            "Refuses what is no proper message.",
        ),
        Field::new(
            "rateLimit",
            Object(&RATE_LIMIT),
            "Refuses what comes too fast.",
        )
        .also(&["rate_limit", "ratelimit", "limit"]),
        Field::new("enrich", Object(&ENRICH), "Adds headers.").also(&["normalize", "normalise"]),
        Field::new(
            "record",
            Object(&RECORD),
            "Makes every send and receive a journal entry.",
        ),
        Field::new("policy", Object(&POLICY), "Says who may send what."),
    ],
};
static HOOK_ITEM: Shape = Object(&HOOK);

static LIMITS: Table = Table {
    name: "LinkLimits",
    doc: "Bounds of the links to other nodes.",
    fields: &[
        Field::new(
            "connections",
            Int(1, 100_000),
            "Connections that are taken at once. Default 256.",
        ),
        Field::new("perPeer", Int(1, 1000), "Of one peer. Default 4."),
        Field::new(
            "handshaking",
            Int(1, 100_000),
            "Connections whose other end is not known yet. Default 64.",
        ),
        Field::new(
            "handshakeTime",
            Text(&rules::DURATION),
            "Time to say who it is. Default 5s.",
        ),
        Field::new(
            "idle",
            Text(&rules::DURATION),
            "Silence after which a connection is closed. Default 60s.",
        ),
        Field::new(
            "stall",
            Text(&rules::DURATION),
            "How long a read or write may make no progress. Default 20s.",
        ),
        Field::new(
            "maxFrame",
            Text(&rules::BYTES),
            "Bytes of one frame of messages. Default 4MiB, or maxPayload and 64KiB if that is more.",
        ),
        Field::new(
            "windowFrames",
            Int(1, 4096),
            "Frames on their way without an answer. Default 64.",
        ),
        Field::new(
            "windowBytes",
            Text(&rules::BYTES),
            "Bytes on their way without an answer. Default 16MiB.",
        ),
    ],
};

/// `spec.messaging`.
pub(crate) static MESSAGING: Table = Table {
    name: "Messaging",
    doc: "Bounds of messaging, hooks, and other nodes.",
    fields: &[
        Field::new("inbox", Object(&INBOX), "Bounds of every agent's inbox."),
        Field::new(
            "maxPayload",
            Text(&rules::BYTES),
            "Bytes of payload in one message. Default 1MiB.",
        ),
        Field::new(
            "hooks",
            List(&HOOK_ITEM),
            "What looks at every message, in order. Default: validate. Secrets are refused in any case.",
        ),
        Field::new(
            "listen",
            Text(&rules::BIND),
            "Where other nodes may connect. Default: nowhere.",
        )
        .also(&["bind", "address"]),
        Field::new(
            "peers",
            List(&PEER_ITEM),
            "Other nodes that this one talks with.",
        )
        .also(&["nodes"]),
        Field::new(
            "insecure",
            Bool,
            "Without encryption; within this machine only. Default false.",
        ),
        Field::new(
            "atMostOnce",
            List(&TOPIC),
            "Topics that go to other nodes once and are not kept: what is lost on the way stays lost.",
        ),
        Field::new(
            "limits",
            Object(&LIMITS),
            "Bounds of the links to other nodes.",
        ),
        Field::new(
            "webhooks",
            Object(&WEBHOOKS),
            "What other systems say over HTTP, and what is said to them.",
        )
        .also(&["webhook"]),
    ],
};
