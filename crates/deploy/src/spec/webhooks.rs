//! From the checked tree of `spec.messaging.webhooks` to a [`WebhooksSpec`].

use std::{path::Path, time::Duration};

use volary_kernel::{id::Name, secret::Secret};

use super::{
    address::parse_target,
    codes,
    context::Cx,
    model::{BreakerSpec, EmitSpec, InboundSpec, OutboundSpec, ProfileKind, WebhooksSpec},
    source::Place,
    view::View,
};

/// Bytes of one body, unless a sender is given less: what the server reads of a stranger's request at all.
const BODY_MAX: u64 = 1 << 20;
/// Time for one request.
const TIMEOUT: Duration = Duration::from_secs(5);
/// With back-off from a quarter of a second by four up to five minutes, about ten minutes.
const ATTEMPTS: u32 = 8;
/// Requests at a time.
const CONCURRENCY: u32 = 4;
/// Failures in a row that open a breaker.
const FAILURES: u32 = 5;
/// How long it stays open.
const OPEN_FOR: Duration = Duration::from_secs(30);

/// Where webhooks name what agents have to do with.
#[derive(Default)]
pub(crate) struct Places {
    /// The name of every target.
    pub targets: Vec<(Name, Place)>,
    /// The topic that a sender's events go to, or that their tasks are for.
    pub emitted: Vec<(String, Place)>,
    /// The topics that targets get.
    pub taken: Vec<String>,
}

/// Reads where `spec.messaging.webhooks` names what.
pub(crate) fn places(view: View<'_>, cx: &Cx<'_>) -> Places {
    let mut places = Places::default();
    // What is no topic is told where it is read.
    let is_topic = |text: &String| {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-/".contains(&byte);
        text.bytes().all(good)
    };
    for item in view.get("inbound").items() {
        let topic = item.get("topic");
        let text = topic.string().filter(is_topic);
        let found = text.map(|text| (text, cx.place(topic.span())));
        places.emitted.extend(found);
    }
    for item in view.get("outbound").items() {
        let name = item.get("name");
        places.targets.extend(
            name.text()
                .and_then(|text| Name::new(text).ok())
                .map(|found| (found, cx.place(name.span()))),
        );
        places
            .taken
            .extend(item.get("topics").items().filter_map(View::string));
    }
    places
}

/// Reads `spec.messaging.webhooks`.
pub(crate) fn read(view: View<'_>, cx: &mut Cx<'_>) -> WebhooksSpec {
    let inbound = named(view.get("inbound"), "sender", cx, inbound);
    let outbound = named(view.get("outbound"), "target", cx, outbound);
    WebhooksSpec { inbound, outbound }
}

/// The items of a list in which each has a name of its own.
fn named<'a, T>(
    list: View<'a>,
    what: &str,
    cx: &mut Cx<'_>,
    read: impl Fn(View<'a>, Name, &mut Cx<'_>) -> Option<T>,
) -> Vec<T> {
    let (mut names, mut found) = (Vec::new(), Vec::new());
    for item in list.items() {
        let Some(name) = item.get("name").parse(Name::new) else {
            continue;
        };
        if names.contains(&name) {
            let message = format!("another {what} is called `{name}` too");
            cx.report(&codes::DUPLICATE_ITEM, item.get("name").span(), message);
        }
        names.push(name.clone());
        found.extend(read(item, name, cx));
    }
    found
}

fn inbound(item: View<'_>, name: Name, cx: &mut Cx<'_>) -> Option<InboundSpec> {
    let profile = match item.get("profile").text() {
        Some("signed") => ProfileKind::Signed,
        Some("github") => ProfileKind::Github,
        Some("gitea") => ProfileKind::Gitea,
        Some("gitlab") => ProfileKind::Gitlab,
        _ => ProfileKind::Standard,
    };
    let max_bytes = item.get("maxBytes");
    if max_bytes.bytes(BODY_MAX) > BODY_MAX {
        let message = "a webhook's body is at most 1MiB";
        cx.report(&codes::OUT_OF_RANGE, max_bytes.span(), message);
    }
    let (remember, skew) = (item.get("rememberFor"), item.get("maxSkew"));
    let (remember_for, max_skew) = (duration(remember), duration(skew));
    let stamped = matches!(profile, ProfileKind::Signed | ProfileKind::Standard);
    if stamped
        && let Some(remember_for) = remember_for
        && remember_for < max_skew.unwrap_or(Duration::from_secs(300)) * 2
    {
        let message = "an event must be known again for at least twice `maxSkew`, or a request could be repeated while it is fresh";
        cx.report(&codes::CONTRADICTION, remember.span(), message);
    }
    if !stamped && skew.is_present() {
        let message = "this profile signs no time that `maxSkew` could be about";
        cx.report(&codes::CONTRADICTION, skew.span(), message);
    }
    let secret = secret(item, "secret", cx);
    let emit = emit(item, cx);
    Some(InboundSpec {
        secret: secret?,
        emit: emit?,
        name,
        profile,
        required_fields: item
            .get("requiredFields")
            .items()
            .filter_map(View::string)
            .collect(),
        event_id: item.get("eventId").string(),
        max_bytes: max_bytes.bytes(BODY_MAX),
        max_skew,
        remember_for,
        accept_duplicates: item.get("duplicates").text().map(|word| word == "accept"),
    })
}

/// What an event becomes, and for whom.
fn emit(item: View<'_>, cx: &mut Cx<'_>) -> Option<EmitSpec> {
    let (topic, pool) = (item.get("topic"), item.get("pool"));
    let task = item.get("emitAs").text() == Some("task");
    if !task && pool.is_present() {
        let message = "only tasks are for a pool here";
        let problem = cx.at(&codes::CONTRADICTION, pool.span(), message);
        cx.push(problem.hint("say `emitAs: task`, or `topic` in place of `pool`"));
        return None;
    }
    if !topic.is_present() && !pool.is_present() {
        let message = match task {
            true => "nobody is named who may claim the task: `topic` or `pool` is missing",
            false => "`topic` is missing: where its events go",
        };
        cx.report(&codes::MISSING_KEY, item.span(), message);
        return None;
    }
    Some(match task {
        true => EmitSpec::Task {
            topic: topic.string(),
            pool: pool.text().and_then(|name| Name::new(name).ok()),
        },
        false => EmitSpec::Message {
            topic: topic.string()?,
        },
    })
}

fn duration(view: View<'_>) -> Option<Duration> {
    view.is_present().then(|| view.duration(Duration::ZERO))
}

/// The secret that `…Name` and `…Key` refer to.
fn secret(item: View<'_>, what: &str, cx: &mut Cx<'_>) -> Option<Secret> {
    let (name, key) = (
        item.get(&format!("{what}Name")),
        item.get(&format!("{what}Key")),
    );
    if name.is_present() != key.is_present() {
        let present = if name.is_present() { name } else { key };
        let message = format!("`{what}Name` and `{what}Key` belong together");
        cx.report(&codes::MISSING_KEY, present.key(), message);
    }
    cx.fleet_secret(name.text()?, key.text()?, name.span())
}

fn outbound(item: View<'_>, name: Name, cx: &mut Cx<'_>) -> Option<OutboundSpec> {
    let (url, allow_private) = (item.get("url"), item.get("allowPrivate").flag(false));
    let target = url.parse(parse_target);
    if let Some((false, ..)) = target
        && !allow_private
    {
        let problem = cx.at(
            &codes::CONTRADICTION,
            url.span(),
            "plain http is readable on the way",
        );
        cx.push(problem.hint("use https, or `allowPrivate: true` for a target beside this node"));
    }
    let ca_file = item.get("caFile");
    let breaker = item.get("breaker");
    let secret_value = secret(item, "secret", cx);
    let authorization = secret(item, "authorization", cx);
    let ca_file = ca_file.text().map(|path| {
        let full = cx.resolve(path);
        if cx.find(Path::new(&full)).is_none() {
            let message = format!("file `{path}` does not exist");
            cx.report(&codes::UNREADABLE, ca_file.span(), message);
        }
        full
    });
    let (tls, host, port, path) = target?;
    Some(OutboundSpec {
        name,
        topics: item
            .get("topics")
            .items()
            .filter_map(View::string)
            .collect(),
        url: url.string()?,
        tls,
        host,
        port,
        path,
        secret: secret_value,
        authorization,
        headers: super::agent::table(item.get("headers")),
        timeout: item.get("timeout").duration(TIMEOUT),
        max_attempts: item.get("maxAttempts").int().unwrap_or(ATTEMPTS),
        concurrency: item.get("concurrency").int().unwrap_or(CONCURRENCY),
        breaker: BreakerSpec {
            failures: breaker.get("failures").int().unwrap_or(FAILURES),
            open_for: breaker.get("openFor").duration(OPEN_FOR),
        },
        allow_private,
        ca_file,
    })
}
