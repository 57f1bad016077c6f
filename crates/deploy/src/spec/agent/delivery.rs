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
        .map(|item| subscription(item, &mut sources, cx))
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

fn subscription(
    view: View<'_>,
    sources: &mut Vec<(Name, Place)>,
    cx: &mut Cx<'_>,
) -> SubscriptionSpec {
    if view.is_map() && view.pairs().next().is_none() {
        let problem = cx.at(&codes::NO_VALUE, view.span(), "the subscription is empty");
        cx.push(problem.hint("name at least a `source`"));
    }
    let source = source(view.get("source"), sources, cx);
    let mut each = |key: &str, cx: &mut Cx<'_>| -> Vec<SubscriptionSpec> {
        view.get(key)
            .items()
            .map(|item| subscription(item, sources, cx))
            .collect()
    };
    let all = each("all", cx);
    let any = each("any", cx);
    let not = view.get("not");
    SubscriptionSpec {
        source,
        path: view.get("path").string(),
        data_type: view.get("dataType").string(),
        kinds: view
            .get("kinds")
            .items()
            .filter_map(|item| item.text().and_then(kind))
            .collect(),
        all,
        any,
        not: not
            .is_map()
            .then(|| Box::new(subscription(not, sources, cx))),
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
