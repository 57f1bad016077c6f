//! What an agent receives: topics, subscriptions, outputs, pools, delivery.

use volary_kernel::id::Name;

use crate::spec::{
    codes,
    context::Cx,
    model::{ChangeKind, DeliverySpec, OutputSpec, SubscriptionSpec, defaults},
    source::Place,
    view::View,
};

/// The messaging keys of an agent.
pub(super) struct Inbox {
    pub topics: Vec<String>,
    pub subscriptions: Vec<SubscriptionSpec>,
    pub outputs: Vec<OutputSpec>,
    pub pools: Vec<Name>,
    pub delivery: DeliverySpec,
    /// Every source named, with its place.
    pub sources: Vec<(Name, Place)>,
}

pub(super) fn read(spec: View<'_>, cx: &mut Cx<'_>) -> Inbox {
    let mut sources = Vec::new();
    let subscriptions = spec
        .get("subscriptions")
        .items()
        .map(|item| subscription(item, 0, &mut sources, cx))
        .collect();
    let outputs = spec
        .get("outputs")
        .items()
        .filter_map(|item| output(item, &mut sources, cx))
        .collect();
    Inbox {
        topics: topics(spec.get("topics"), cx),
        subscriptions,
        outputs,
        pools: super::names(spec.get("pools"), cx)
            .into_iter()
            .map(|(name, _)| name)
            .collect(),
        delivery: delivery(spec.get("delivery")),
        sources,
    }
}

fn topics(view: View<'_>, cx: &mut Cx<'_>) -> Vec<String> {
    let mut topics: Vec<String> = Vec::new();
    for item in view.items() {
        let Some(topic) = item.string() else { continue };
        if topics.contains(&topic) {
            cx.report(
                &codes::DUPLICATE_ITEM,
                item.span(),
                format!("topic `{topic}` stands here a second time"),
            );
        } else {
            topics.push(topic);
        }
    }
    topics
}

/// Deepest nesting of `all`, `any` and `not`: what the context engine takes.
const MAX_NESTING: usize = 16;

fn subscription(
    view: View<'_>,
    depth: usize,
    sources: &mut Vec<(Name, Place)>,
    cx: &mut Cx<'_>,
) -> SubscriptionSpec {
    if depth > MAX_NESTING {
        let message = format!("a subscription nests at most {MAX_NESTING} levels deep");
        cx.report(&codes::OUT_OF_RANGE, view.span(), message);
        return SubscriptionSpec::default();
    }
    not_empty(view, cx);
    let source = source(view.get("source"), sources, cx);
    pages(view.get("pages"), sources, cx);
    let mut each = |key: &str, cx: &mut Cx<'_>| -> Vec<SubscriptionSpec> {
        let items = view.get(key).items();
        items
            .map(|item| subscription(item, depth + 1, sources, cx))
            .collect()
    };
    let all = each("all", cx);
    let any = each("any", cx);
    let not = view.get("not");
    let not = not
        .is_map()
        .then(|| Box::new(subscription(not, depth + 1, sources, cx)));
    let texts = |key: &str| view.get(key).items().filter_map(View::text);
    SubscriptionSpec {
        source,
        path: view.get("path").string(),
        data_type: view.get("dataType").string(),
        pages: texts("pages").map(str::to_owned).collect(),
        kinds: texts("kinds").filter_map(kind).collect(),
        all,
        any,
        not,
    }
}

/// A subscription that asks for nothing, or a list that nothing can match, is a slip.
fn not_empty(view: View<'_>, cx: &mut Cx<'_>) {
    if view.is_map() && view.pairs().next().is_none() {
        let problem = cx.at(&codes::NO_VALUE, view.span(), "the subscription is empty");
        cx.push(problem.hint("name at least a `source`"));
    }
    for key in ["pages", "kinds", "all", "any"] {
        let list = view.get(key);
        if list.is_list() && list.items().next().is_none() {
            let message = format!("`{key}` is an empty list, which nothing can match");
            cx.report(&codes::NO_VALUE, list.span(), message);
        }
    }
}

/// Notes the sources that pages, each `source:path`, belong to.
fn pages(list: View<'_>, sources: &mut Vec<(Name, Place)>, cx: &Cx<'_>) {
    for item in list.items() {
        let source = item.text().and_then(|page| page.split_once(':'));
        if let Some(name) = source.and_then(|(source, _)| Name::new(source).ok()) {
            sources.push((name, cx.place(item.span())));
        }
    }
}

fn source(view: View<'_>, sources: &mut Vec<(Name, Place)>, cx: &Cx<'_>) -> Option<Name> {
    let name = view.parse(Name::new)?;
    sources.push((name.clone(), cx.place(view.span())));
    Some(name)
}

fn kind(text: &str) -> Option<ChangeKind> {
    Some(match text {
        "added" => ChangeKind::Added,
        "replaced" => ChangeKind::Replaced,
        "invalidated" => ChangeKind::Invalidated,
        _ => return None,
    })
}

fn output(view: View<'_>, sources: &mut Vec<(Name, Place)>, cx: &Cx<'_>) -> Option<OutputSpec> {
    let name = if view.is_map() {
        view.get("source")
    } else {
        view
    };
    Some(OutputSpec {
        source: source(name, sources, cx)?,
        path: view.get("path").string(),
    })
}

fn delivery(view: View<'_>) -> DeliverySpec {
    DeliverySpec {
        concurrency: view.get("concurrency").int().unwrap_or(1),
        timeout: view.get("timeout").duration(defaults::DELIVERY_TIMEOUT),
        max_attempts: view
            .get("maxAttempts")
            .int()
            .unwrap_or(defaults::DELIVERY_MAX_ATTEMPTS),
        backoff: super::backoff(view.get("backoff"), defaults::DELIVERY_BACKOFF),
    }
}
