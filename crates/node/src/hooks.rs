//! The hooks that a fleet names, made in its order.

use std::sync::Arc;

use volary_deploy::spec::model::{
    self, BucketSpec, EnrichSpec, HookSpec, MessagingSpec, RateLimitSpec,
};
use volary_kernel::{SharedClock, metric::Metrics, secret::Redactor, task::Supervisor};
use volary_messaging::{
    MessageHook,
    hook::{
        Effect, EnrichHook, EnrichRule, HeaderEdit, MessageLimits, PolicyConfig, PolicyHook,
        PolicyRule, RecorderHook, Stage, ValidateHook,
    },
    rate::{RateLimitHook, RateLimiter, RateLimiterConfig, TokenBucketConfig},
    replay::verify::Added,
};
use volary_store::SharedStore;

use crate::error::NodeError;

/// What hooks stand on.
pub(crate) struct HookParts<'a> {
    pub store: &'a SharedStore,
    pub clock: &'a SharedClock,
    pub redactor: &'a Redactor,
    pub metrics: &'a Metrics,
    /// Runs what a hook does beside.
    pub tasks: &'a Supervisor,
}

type Hook = Arc<dyn MessageHook>;

/// What a message may be in this fleet.
pub(crate) fn limits(spec: &MessagingSpec) -> MessageLimits {
    MessageLimits {
        max_payload: usize::try_from(spec.max_payload).unwrap_or(usize::MAX),
        ..MessageLimits::default()
    }
}

/// The hooks of a fleet. The guard of secrets is not among them: it is always there, and last.
pub(crate) fn hooks(spec: &MessagingSpec, parts: &HookParts<'_>) -> Result<Vec<Hook>, NodeError> {
    spec.hooks
        .iter()
        .map(|hook| make(hook, spec, parts))
        .collect()
}

/// Whether the record holds messages otherwise than their senders made them.
pub(crate) fn added(spec: &MessagingSpec) -> Added {
    let changes = |hook: &HookSpec| match hook {
        HookSpec::Enrich(_) => true,
        HookSpec::Validate { .. }
        | HookSpec::RateLimit(_)
        | HookSpec::Record {}
        | HookSpec::Policy { .. } => false,
    };
    if spec.hooks.iter().any(changes) {
        Added::Allowed
    } else {
        Added::Refused
    }
}

fn make(hook: &HookSpec, spec: &MessagingSpec, parts: &HookParts<'_>) -> Result<Hook, NodeError> {
    Ok(match hook {
        HookSpec::Validate { max_skew } => {
            let limits = MessageLimits {
                max_skew: *max_skew,
                ..limits(spec)
            };
            Arc::new(ValidateHook::new(limits, parts.clock.clone()))
        }
        HookSpec::RateLimit(limit) => Arc::new(rate_limit(limit, parts)?),
        HookSpec::Enrich(enrich) => Arc::new(
            EnrichHook::new(edits(enrich), parts.clock.clone())
                .map_err(|error| bad(hook, &error))?,
        ),
        HookSpec::Record {} => Arc::new(RecorderHook::new(
            parts.store.clone(),
            parts.redactor.clone(),
        )),
        HookSpec::Policy { default, rules } => {
            let config = PolicyConfig {
                rules: rules.iter().map(rule).collect(),
                default: effect(*default),
            };
            Arc::new(PolicyHook::new(config).map_err(|error| bad(hook, &error))?)
        }
    })
}

fn bad(hook: &HookSpec, problem: &dyn std::fmt::Display) -> NodeError {
    NodeError::Fleet(format!("messaging.hooks, `{}`: {problem}", hook.key()))
}

fn rate_limit(spec: &RateLimitSpec, parts: &HookParts<'_>) -> Result<RateLimitHook, NodeError> {
    let bucket = |bucket: Option<BucketSpec>| {
        bucket
            .map(|bucket| TokenBucketConfig::new(bucket.capacity, bucket.refill_per_second))
            .transpose()
            .map_err(|error| bad(&HookSpec::RateLimit(*spec), &error))
    };
    let config = RateLimiterConfig {
        global: bucket(spec.global)?,
        sender: bucket(spec.sender)?,
        topic: bucket(spec.topic)?,
        max_keys: usize::try_from(spec.max_keys).unwrap_or(usize::MAX),
        ..RateLimiterConfig::default()
    };
    let limiter = if spec.shared {
        let name = parts.store.node();
        RateLimiter::shared(parts.store, name, config, parts.tasks, parts.metrics)?
    } else {
        RateLimiter::new(config)
    };
    Ok(RateLimitHook::new(
        limiter,
        parts.clock.clone(),
        parts.metrics,
    ))
}

/// The edits in the order that the manifest promises.
fn edits(spec: &EnrichSpec) -> Vec<EnrichRule> {
    let rule = |header: &String, edit: HeaderEdit| EnrichRule {
        header: header.clone(),
        edit,
        stage: None,
    };
    let set = spec
        .headers
        .iter()
        .map(|(header, value)| rule(header, HeaderEdit::Set(value.clone())));
    let default = spec
        .defaults
        .iter()
        .map(|(header, value)| rule(header, HeaderEdit::Default(value.clone())));
    let each = |headers: &[String], edit: HeaderEdit| -> Vec<EnrichRule> {
        headers
            .iter()
            .map(|header| rule(header, edit.clone()))
            .collect()
    };
    set.chain(default)
        .chain(each(&spec.trim, HeaderEdit::Trim))
        .chain(each(&spec.lowercase, HeaderEdit::Lowercase))
        .chain(each(&spec.remove, HeaderEdit::Remove))
        .chain(each(spec.received_at.as_slice(), HeaderEdit::ReceivedAt))
        .collect()
}

const fn effect(effect: model::Effect) -> Effect {
    match effect {
        model::Effect::Allow => Effect::Allow,
        model::Effect::Deny => Effect::Deny,
    }
}

fn rule(rule: &model::PolicyRule) -> PolicyRule {
    PolicyRule {
        effect: effect(rule.effect),
        sender: rule.sender.clone(),
        topic: rule.topic.clone(),
        tenant: rule.tenant.clone(),
        way: rule.way.map(|way| match way {
            model::Way::Egress => Stage::PreSend,
            model::Way::Ingress => Stage::PostReceive,
        }),
    }
}

#[cfg(test)]
mod tests {
    use volary_deploy::spec::{BACKENDS, LoadOptions, codes, files::Files, load_fleet};
    use volary_kernel::SystemClock;
    use volary_messaging::hook::{DEFAULT_ORDER, order_problem};
    use volary_store::{MemoryConfig, MemoryStore};

    use super::*;

    const AGENT: &str = "apiVersion: agent.dev/v1\nkind: Agent\nmetadata: {name: a}\nspec: {command: [sh, -c, 'sleep 1']}\n";
    const HOOKS: [(&str, &str); 5] = [
        ("validate", "{maxSkew: 1m}"),
        (
            "rateLimit",
            "{sender: {capacity: 2, refillPerSecond: 0.5}, shared: false}",
        ),
        (
            "enrich",
            "{headers: {a: b}, defaults: {c: d}, trim: [a], lowercase: [a], remove: [x], receivedAt: at}",
        ),
        (
            "policy",
            "{default: deny, rules: [{allow: {sender: 'a*', topic: 'work/**', way: egress}}]}",
        ),
        ("record", "{}"),
    ];

    fn loaded(order: &[usize]) -> volary_deploy::spec::Loaded {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("a")).unwrap();
        std::fs::write(folder.path().join("a/agent.yaml"), AGENT).unwrap();
        let mut text =
            "apiVersion: volary.dev/v1\nkind: Fleet\nmetadata: {name: f}\nspec:\n  agents: [./a]\n  \
             messaging:\n    hooks:\n"
                .to_owned();
        for at in order {
            let (key, settings) = HOOKS[*at];
            text.push_str(&format!("      - {key}: {settings}\n"));
        }
        std::fs::write(folder.path().join("fleet.yaml"), text).unwrap();
        let options = LoadOptions {
            files: Files::disk(),
            env: &|_| None,
            backends: BACKENDS,
            insecure_bind: false,
        };
        load_fleet(folder.path(), &options).unwrap()
    }

    #[test]
    fn hooks_are_made_in_the_order_of_the_manifest() {
        let clock = SystemClock::shared();
        let store = MemoryStore::new(
            MemoryConfig::new(volary_kernel::Name::new("f").unwrap()),
            clock.clone(),
        );
        let store: SharedStore = Arc::new(store);
        let parts = HookParts {
            store: &store,
            clock: &clock,
            redactor: &Redactor::default(),
            metrics: &Metrics::default(),
            tasks: &Supervisor::new(),
        };
        for order in [vec![0, 1, 2, 3, 4], vec![4, 2, 0], vec![1]] {
            let made = hooks(&loaded(&order).fleet.messaging, &parts).unwrap();
            let names: Vec<_> = made.iter().map(|hook| hook.name()).collect();
            let wanted: Vec<_> = order.iter().map(|at| DEFAULT_ORDER[*at]).collect();
            let plain = |names: &[&str]| names.join(" ").replace(['_', '-'], "");
            assert_eq!(plain(&names), plain(&wanted));
            let enriched = order.contains(&2);
            let wanted = if enriched {
                Added::Allowed
            } else {
                Added::Refused
            };
            assert_eq!(added(&loaded(&order).fleet.messaging), wanted);
        }
    }

    /// Manifests and messaging do not know each other; here their words on the order of hooks are held together.
    #[test]
    fn manifests_warn_of_an_order_exactly_where_messaging_does() {
        let mut orders: Vec<Vec<usize>> = vec![Vec::new()];
        let mut warned = 0;
        while let Some(order) = orders.pop() {
            let more = (0..HOOKS.len()).filter(|at| !order.contains(at));
            orders.extend(more.map(|at| [order.clone(), vec![at]].concat()));
            if order.is_empty() {
                continue;
            }
            let names: Vec<&str> = order.iter().map(|at| HOOKS[*at].0).collect();
            let loaded = loaded(&order);
            let found: Vec<_> = loaded
                .warnings
                .iter()
                .filter(|problem| *problem.code == codes::HOOK_ORDER)
                .collect();
            match order_problem(&names) {
                None => assert!(found.is_empty(), "{names:?}"),
                Some(words) => {
                    assert_eq!(found.len(), 1, "{names:?}");
                    let said = words.split("; the usual order").next().unwrap();
                    assert_eq!(found[0].message.replace('`', ""), said.replace('`', ""));
                    warned += 1;
                }
            }
        }
        assert!(warned > 100, "{warned}");
    }
}
