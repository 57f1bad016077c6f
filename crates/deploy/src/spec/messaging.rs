//! From the checked tree of `spec.messaging` to a [`MessagingSpec`].

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use volary_kernel::{
    id::{Name, Tenant},
    sign::PublicKey,
    text::{format_bytes, parse_duration},
};

use super::{
    address::is_loopback,
    codes,
    context::Cx,
    hint::listing,
    model::{
        BucketSpec, Effect, EnrichSpec, HookSpec, LinkLimits, MessagingSpec, PeerSpec, PolicyRule,
        RateLimitSpec, Way, defaults,
    },
    view::View,
    webhooks,
};

/// The order of hooks that holds for most. Whether policy or the record comes first is a matter of what the record is for.
const USUAL_ORDER: [&str; 5] = ["validate", "rateLimit", "enrich", "policy", "record"];
/// Hooks whose order matters, and what comes of the other one.
const REASONS: [(&str, &str, &str); 6] = [
    (
        "validate",
        "rateLimit",
        "malformed messages would use up tokens",
    ),
    ("validate", "enrich", "malformed messages would be enriched"),
    (
        "rateLimit",
        "enrich",
        "work would be spent on messages that are over the limit",
    ),
    (
        "rateLimit",
        "policy",
        "policy would be asked about messages that are over the limit",
    ),
    (
        "enrich",
        "policy",
        "policy would judge another message than the one that goes on",
    ),
    (
        "enrich",
        "record",
        "the record would be of another message than the one that goes on",
    ),
];

/// Reads `spec.messaging` of a fleet whose own tenant is `tenant` and whose operators' server is at `ops`.
pub(crate) fn read(
    view: View<'_>,
    tenant: &Tenant,
    ops: SocketAddr,
    cx: &mut Cx<'_>,
) -> MessagingSpec {
    let inbox = view.get("inbox");
    let max_payload = max_payload(view.get("maxPayload"), cx);
    let spec = MessagingSpec {
        inbox_items: inbox
            .get("maxItems")
            .int()
            .map_or(defaults::INBOX_ITEMS, u64::from),
        inbox_bytes: inbox.get("maxBytes").bytes(defaults::INBOX_BYTES),
        max_payload,
        hooks: hooks(view.get("hooks"), cx),
        listen: listen(view.get("listen"), ops, cx),
        insecure: view.get("insecure").flag(false),
        peers: peers(view.get("peers"), tenant, cx),
        at_most_once: once(view.get("atMostOnce"), "topic", cx, View::string),
        limits: limits(view.get("limits"), max_payload, cx),
        webhooks: webhooks::read(view.get("webhooks"), cx),
    };
    links(view, &spec, cx);
    spec
}

fn max_payload(view: View<'_>, cx: &mut Cx<'_>) -> u64 {
    let bytes = view.bytes(defaults::MAX_PAYLOAD);
    if bytes > defaults::LARGEST_PAYLOAD {
        let (found, limit) = (format_bytes(bytes), format_bytes(defaults::LARGEST_PAYLOAD));
        let message = format!("a message of {found} is larger than a message can be ({limit})");
        cx.report(&codes::OUT_OF_RANGE, view.span(), message);
    }
    bytes
}

fn listen(view: View<'_>, ops: SocketAddr, cx: &mut Cx<'_>) -> Option<SocketAddr> {
    let address: SocketAddr = view.parse(str::parse)?;
    let same =
        address.ip() == ops.ip() || address.ip().is_unspecified() || ops.ip().is_unspecified();
    if address.port() != 0 && address.port() == ops.port() && same {
        let message = format!("{address} is also wanted by the operators' server");
        let problem = cx.at(&codes::DUPLICATE_PORT, view.span(), message);
        cx.push(problem.hint("give `ops.bind` or `messaging.listen` another port"));
    }
    Some(address)
}

/// The items of a list in which each may stand once.
fn once<'a, T: PartialEq>(
    view: View<'a>,
    what: &str,
    cx: &mut Cx<'_>,
    read: impl Fn(View<'a>) -> Option<T>,
) -> Vec<T> {
    let mut found = Vec::new();
    for item in view.items() {
        let Some(value) = read(item) else { continue };
        if found.contains(&value) {
            let text = item.text().unwrap_or_default();
            let message = format!("{what} `{text}` stands here twice");
            cx.report(&codes::DUPLICATE_ITEM, item.span(), message);
        }
        found.push(value);
    }
    found
}

fn peers(view: View<'_>, tenant: &Tenant, cx: &mut Cx<'_>) -> Vec<PeerSpec> {
    let mut peers: Vec<PeerSpec> = Vec::new();
    for item in view.items() {
        let (name, key) = (item.get("name"), item.get("key"));
        let spec = name
            .parse(Name::new)
            .zip(key.parse(PublicKey::from_hex))
            .map(|(name, key)| peer(item, name, key, tenant, cx));
        let Some(spec) = spec else { continue };
        if peers.iter().any(|other| other.name == spec.name) {
            let message = format!("another peer is called `{}` too", spec.name);
            cx.report(&codes::DUPLICATE_ITEM, name.span(), message);
        }
        if let Some(other) = peers.iter().find(|other| other.key == spec.key) {
            let message = format!("peer `{}` has this key too", other.name);
            let problem = cx.at(&codes::DUPLICATE_ITEM, key.span(), message);
            cx.push(
                problem.hint("every node has a key of its own: `volary identity peer` prints it"),
            );
        }
        peers.push(spec);
    }
    peers
}

fn peer(item: View<'_>, name: Name, key: PublicKey, tenant: &Tenant, cx: &mut Cx<'_>) -> PeerSpec {
    let (tenants, give_up) = (item.get("tenants"), item.get("giveUpAfter"));
    let address = item.get("address").string();
    if tenants.is_list() && tenants.items().next().is_none() {
        let message = "a peer without tenants may neither send nor receive anything";
        cx.report(&codes::NO_VALUE, tenants.span(), message);
    }
    if give_up.is_present() && address.is_none() {
        let message = format!(
            "`giveUpAfter` is about what is sent, and nothing is sent to peer `{name}` without an `address`"
        );
        cx.report(&codes::CONTRADICTION, give_up.span(), message);
    }
    let listed = once(tenants, "tenant", cx, |item| {
        item.parse(Name::new).map(Tenant::new)
    });
    PeerSpec {
        name,
        key,
        address,
        tenants: if listed.is_empty() {
            vec![tenant.clone()]
        } else {
            listed
        },
        give_up_after: give_up.parse(parse_duration),
    }
}

/// What must hold between `listen`, `peers` and `insecure`.
fn links(view: View<'_>, spec: &MessagingSpec, cx: &mut Cx<'_>) {
    let (listen, peers) = (view.get("listen"), view.get("peers"));
    if spec.insecure {
        let open = |address: &str| {
            format!("{address} is not this machine, and `insecure` links are not encrypted")
        };
        let listens = spec.listen.filter(|address| !address.ip().is_loopback());
        if let Some(address) = listens {
            cx.report(&codes::OPEN_LINK, listen.span(), open(&address.to_string()));
        }
        for address in peers.items().map(|peer| peer.get("address")) {
            if let Some(text) = address.text().filter(|text| !is_loopback(text)) {
                cx.report(&codes::OPEN_LINK, address.span(), open(text));
            }
        }
    }
    if spec.listen.is_none() && !listen.is_present() {
        for peer in peers.items().filter(|peer| peer.is_map()) {
            if !peer.get("address").is_present() {
                let name = peer.get("name").text().unwrap_or_default();
                let message =
                    format!("peer `{name}` has no `address`, and this node has no `listen`");
                let problem = cx.at(&codes::NO_LINK, peer.span(), message);
                cx.push(problem.hint("add `address: HOST:PORT` to the peer, or `listen: 0.0.0.0:7400` to `messaging`"));
            }
        }
    }
    if spec.listen.is_some() && peers.items().next().is_none() {
        let problem = cx.at(
            &codes::NO_CALLER,
            listen.span(),
            "nobody may connect: there are no `peers`",
        );
        cx.push(problem.hint("add what `volary identity peer` prints on the other node"));
    }
}

fn limits(view: View<'_>, max_payload: u64, cx: &mut Cx<'_>) -> LinkLimits {
    let default = LinkLimits::default();
    let int = |key: &str, default: u32| view.get(key).int().unwrap_or(default);
    let time = |key: &str, default: Duration| view.get(key).duration(default);
    let least = max_payload.saturating_add(defaults::LINK_FRAME_EXTRA);
    let (frame, window) = (view.get("maxFrame"), view.get("windowBytes"));
    let frame_bytes = frame.bytes(default.frame_bytes.max(least));
    let window_bytes = window.bytes(default.window_bytes.max(frame_bytes));
    let short = |found: u64, least: u64, of: &str| {
        let (found, least) = (format_bytes(found), format_bytes(least));
        format!("{found} are too few for {of} ({least})")
    };
    for (view, found, most) in [
        (frame, frame_bytes, defaults::LINK_FRAME_MOST),
        (window, window_bytes, defaults::LINK_WINDOW_MOST),
    ] {
        if found > most {
            let (found, most) = (format_bytes(found), format_bytes(most));
            let message = format!("{found} are more than a link takes ({most})");
            cx.report(&codes::OUT_OF_RANGE, view.span(), message);
        }
    }
    for view in ["handshakeTime", "idle", "stall"].map(|key| view.get(key)) {
        if view.parse(parse_duration) == Some(Duration::ZERO) {
            cx.report(
                &codes::OUT_OF_RANGE,
                view.span(),
                "no time at all would close every connection",
            );
        }
    }
    if frame_bytes < least {
        let message = short(frame_bytes, least, "a message of `maxPayload`");
        cx.report(&codes::CONTRADICTION, frame.span(), message);
    }
    if window_bytes < frame_bytes {
        let message = short(window_bytes, frame_bytes, "one frame");
        cx.report(&codes::CONTRADICTION, window.span(), message);
    }
    LinkLimits {
        connections: int("connections", default.connections),
        per_peer: int("perPeer", default.per_peer),
        handshaking: int("handshaking", default.handshaking),
        handshake_time: time("handshakeTime", default.handshake_time),
        idle: time("idle", default.idle),
        stall: time("stall", default.stall),
        frame_bytes,
        window_frames: int("windowFrames", default.window_frames),
        window_bytes,
    }
}

fn hooks(view: View<'_>, cx: &mut Cx<'_>) -> Vec<HookSpec> {
    if !view.is_present() {
        return MessagingSpec::default().hooks;
    }
    let mut found: Vec<(&str, View<'_>)> = Vec::new();
    let mut hooks = Vec::new();
    for item in view.items().filter(|item| item.is_map()) {
        let Some((key, settings)) = one_of(item, "a hook", &USUAL_ORDER, cx) else {
            continue;
        };
        if found.iter().any(|(other, _)| *other == key) {
            let message = format!("hook `{key}` stands here twice and would act twice");
            cx.report(&codes::DUPLICATE_ITEM, item.span(), message);
        }
        found.push((key, item));
        hooks.extend(hook(key, settings, cx));
    }
    let at = |wanted: &str| found.iter().position(|(key, _)| *key == wanted);
    for (first, second, why) in REASONS {
        let (Some(before), Some(after)) = (at(first), at(second)) else {
            continue;
        };
        if before > after {
            let message = format!("hook `{second}` comes before `{first}`: {why}");
            let problem = cx.at(&codes::HOOK_ORDER, found[after].1.span(), message);
            let order = USUAL_ORDER.join(", ");
            cx.push(problem.hint(format!("the usual order is {order}")));
            break;
        }
    }
    hooks
}

/// The only key of a mapping that has exactly one of `keys`.
fn one_of<'a, 'k>(
    item: View<'a>,
    what: &str,
    keys: &'k [&'k str],
    cx: &mut Cx<'_>,
) -> Option<(&'k str, View<'a>)> {
    let found: Vec<_> = keys
        .iter()
        .map(|key| (*key, item.get(key)))
        .filter(|(_, view)| view.is_present())
        .collect();
    // An unknown key has been reported already, and was meant to be one of them.
    let unknown = item
        .pairs()
        .any(|(key, _)| !keys.contains(&key.text.as_str()));
    match found[..] {
        [one] => return Some(one),
        [] if unknown => {}
        _ => {
            let message = format!("{what} has exactly one of {}", listing(keys, "and"));
            let problem = cx.at(&codes::CHOICE, item.span(), message);
            cx.push(problem.hint("begin each with `- `"));
        }
    }
    None
}

fn hook(key: &str, view: View<'_>, cx: &mut Cx<'_>) -> Option<HookSpec> {
    Some(match key {
        "validate" => HookSpec::Validate {
            max_skew: view.get("maxSkew").duration(defaults::MAX_SKEW),
        },
        "rateLimit" => HookSpec::RateLimit(rate_limit(view, cx)),
        "enrich" => HookSpec::Enrich(enrich(view, cx)),
        "record" => HookSpec::Record {},
        "policy" => {
            let rules = view.get("rules").items().filter(|item| item.is_map());
            let rules = rules.filter_map(|item| rule(item, cx)).collect();
            let default = match view.get("default").text()? {
                "allow" => Effect::Allow,
                _ => Effect::Deny,
            };
            HookSpec::Policy { default, rules }
        }
        _ => return None,
    })
}

fn headers(view: View<'_>) -> BTreeMap<String, String> {
    view.pairs()
        .filter_map(|(key, value)| Some((key.text.clone(), value.string()?)))
        .collect()
}

fn enrich(view: View<'_>, cx: &mut Cx<'_>) -> EnrichSpec {
    let listed = |key: &str| view.get(key).items().filter_map(View::string).collect();
    let spec = EnrichSpec {
        headers: headers(view.get("headers")),
        defaults: headers(view.get("defaults")),
        trim: listed("trim"),
        lowercase: listed("lowercase"),
        remove: listed("remove"),
        received_at: view.get("receivedAt").string(),
    };
    if view.is_map() && view.pairs().next().is_none() {
        let message = "an enrich hook without keys does nothing";
        cx.report(&codes::NO_VALUE, view.span(), message);
    }
    spec
}

fn rate_limit(view: View<'_>, cx: &mut Cx<'_>) -> RateLimitSpec {
    let bucket = |key: &str| {
        let view = view.get(key);
        let number = |key: &str| view.get(key).parse(str::parse::<f64>);
        Some(BucketSpec {
            capacity: number("capacity")?,
            refill_per_second: number("refillPerSecond")?,
        })
    };
    let buckets = ["global", "sender", "topic"];
    if buckets.iter().all(|key| !view.get(key).is_present()) {
        let message = format!(
            "a rate limit without {} limits nothing",
            listing(&buckets, "or")
        );
        cx.report(&codes::NO_VALUE, view.span(), message);
    }
    let shared = view.get("shared");
    if shared.flag(false) && !view.get("global").is_present() {
        let message = "`shared` is about the global bucket, and there is none";
        cx.report(&codes::CONTRADICTION, shared.span(), message);
    }
    RateLimitSpec {
        global: bucket("global"),
        sender: bucket("sender"),
        topic: bucket("topic"),
        max_keys: view.get("maxKeys").int().unwrap_or(defaults::RATE_KEYS),
        shared: shared.flag(false),
    }
}

fn rule(item: View<'_>, cx: &mut Cx<'_>) -> Option<PolicyRule> {
    let (key, matches) = one_of(item, "a rule", &["allow", "deny"], cx)?;
    Some(PolicyRule {
        effect: match key {
            "allow" => Effect::Allow,
            _ => Effect::Deny,
        },
        sender: matches.get("sender").string(),
        topic: matches.get("topic").string(),
        tenant: matches.get("tenant").string(),
        way: matches.get("way").text().map(|way| match way {
            "egress" => Way::Egress,
            _ => Way::Ingress,
        }),
    })
}
