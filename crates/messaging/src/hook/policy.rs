//! Policy: ordered rules that allow or deny a message by sender, topic, tenant and direction. Last in the default order.

use globset::{GlobBuilder, GlobMatcher};

use super::{HookContext, MessageHook, Stage, Step};
use crate::{message::Message, topic::Topic};

/// Most rules of one policy: each is tried for every message.
pub const POLICY_RULES_MAX: usize = 256;
/// Longest pattern, in bytes.
pub const POLICY_PATTERN_MAX: usize = 512;

/// What a rule says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Effect {
    /// The message may go on.
    Allow,
    /// It ends here.
    Deny,
}

/// A rule: it speaks when everything that it names fits. One that names nothing always speaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyRule {
    /// What it says.
    pub effect: Effect,
    /// The sender: a glob over its name, or its whole identity in hex.
    pub sender: Option<String>,
    /// A topic: a glob, whose `*` and `?` stay within one segment while `**` crosses them.
    pub topic: Option<String>,
    /// The tenant: a glob.
    pub tenant: Option<String>,
    /// The direction: [`Stage::PreSend`] for what goes out, [`Stage::PostReceive`] for what comes in; both if `None`.
    pub way: Option<Stage>,
}

impl PolicyRule {
    /// A rule that always speaks.
    pub const fn new(effect: Effect) -> Self {
        Self {
            effect,
            sender: None,
            topic: None,
            tenant: None,
            way: None,
        }
    }
}

/// The rules in order, and what holds when none speaks. There is no default for the latter: say it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyConfig {
    /// The first that speaks decides.
    pub rules: Vec<PolicyRule>,
    /// When none does.
    pub default: Effect,
}

/// Why a [`PolicyHook`] was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// A pattern that does not parse.
    #[error("policy rule {rule}: `{pattern}` is no pattern: {problem}")]
    Pattern {
        /// Which rule, counted from 1.
        rule: usize,
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        problem: String,
    },
    /// There are too many rules.
    #[error("{0} policy rules are more than {POLICY_RULES_MAX}")]
    TooMany(usize),
}

struct Compiled {
    effect: Effect,
    sender: Option<Who>,
    topic: Option<GlobMatcher>,
    tenant: Option<GlobMatcher>,
    way: Option<Stage>,
}

enum Who {
    Name(GlobMatcher),
    Id(crate::identity::AgentId),
}

/// Decides by rules. A message with several topics passes if it would with each of them alone.
///
/// What is denied is `Dropped{policy, reason}`; the reason names the rule by its number.
pub struct PolicyHook {
    rules: Vec<Compiled>,
    default: Effect,
}

impl PolicyHook {
    /// A policy of these rules.
    ///
    /// # Errors
    /// [`PolicyError`] for a pattern that does not parse.
    pub fn new(config: PolicyConfig) -> Result<Self, PolicyError> {
        if config.rules.len() > POLICY_RULES_MAX {
            return Err(PolicyError::TooMany(config.rules.len()));
        }
        let rules = config.rules.iter().enumerate();
        let rules = rules.map(|(index, rule)| Compiled::of(index + 1, rule));
        Ok(Self {
            rules: rules.collect::<Result<_, _>>()?,
            default: config.default,
        })
    }

    /// Why `message` may not pass: the number of the rule, or 0 for the default.
    fn denied(&self, message: &Message, stage: Stage) -> Option<usize> {
        let topics = message.topics();
        if topics.is_empty() {
            return self.denies(message, None, stage);
        }
        topics
            .iter()
            .find_map(|topic| self.denies(message, Some(topic), stage))
    }

    fn denies(&self, message: &Message, topic: Option<&Topic>, stage: Stage) -> Option<usize> {
        let mut rules = self.rules.iter().enumerate();
        let (number, effect) = rules
            .find(|(_, rule)| rule.speaks(message, topic, stage))
            .map_or((0, self.default), |(index, rule)| (index + 1, rule.effect));
        (effect == Effect::Deny).then_some(number)
    }

    fn decide(&self, message: Message, stage: Stage) -> Step<'static> {
        match self.denied(&message, stage) {
            None => Step::pass(message),
            Some(0) => Step::drop("no policy rule allows it"),
            Some(rule) => Step::drop(format!("policy rule {rule} denies it")),
        }
    }
}

impl Compiled {
    fn of(number: usize, rule: &PolicyRule) -> Result<Self, PolicyError> {
        let glob = |pattern: &Option<String>| {
            let pattern = pattern.as_deref();
            pattern.map(|pattern| compile(number, pattern)).transpose()
        };
        let sender = match rule.sender.as_deref() {
            None => None,
            Some(text) => Some(match text.parse() {
                Ok(id) => Who::Id(id),
                Err(_) => Who::Name(compile(number, text)?),
            }),
        };
        Ok(Self {
            effect: rule.effect,
            sender,
            topic: glob(&rule.topic)?,
            tenant: glob(&rule.tenant)?,
            way: rule.way,
        })
    }

    fn speaks(&self, message: &Message, topic: Option<&Topic>, stage: Stage) -> bool {
        let sender = message.sender();
        self.way.is_none_or(|way| way == stage)
            && self.sender.as_ref().is_none_or(|who| match who {
                Who::Name(glob) => glob.is_match(sender.name().as_str()),
                Who::Id(id) => *id == sender.id(),
            })
            && self
                .tenant
                .as_ref()
                .is_none_or(|glob| glob.is_match(message.tenant().as_str()))
            && self
                .topic
                .as_ref()
                .is_none_or(|glob| topic.is_some_and(|topic| glob.is_match(topic.as_str())))
    }
}

fn compile(rule: usize, pattern: &str) -> Result<GlobMatcher, PolicyError> {
    let bad = |problem: String| PolicyError::Pattern {
        rule,
        pattern: pattern.chars().take(80).collect(),
        problem,
    };
    if pattern.is_empty() || pattern.len() > POLICY_PATTERN_MAX {
        let found = pattern.len();
        return Err(bad(format!(
            "it must have 1 to {POLICY_PATTERN_MAX} bytes, found {found}"
        )));
    }
    let glob = GlobBuilder::new(pattern)
        .literal_separator(true)
        .backslash_escape(false)
        .build();
    Ok(glob
        .map_err(|error| bad(error.kind().to_string()))?
        .compile_matcher())
}

impl MessageHook for PolicyHook {
    fn name(&self) -> &'static str {
        "policy"
    }

    fn pre_send<'a>(&'a self, message: Message, _: HookContext<'a>) -> Step<'a> {
        self.decide(message, Stage::PreSend)
    }

    fn post_receive<'a>(&'a self, message: Message, _: HookContext<'a>) -> Step<'a> {
        self.decide(message, Stage::PostReceive)
    }
}

#[cfg(test)]
mod tests {
    use volary_kernel::Tenant;

    use super::*;
    use crate::{
        identity::AgentId,
        message::Sender,
        test_util::{NOW, name, topic},
    };

    fn message(from: &str, tenant: &str, topics: &[&str]) -> Message {
        let id = AgentId::from_bytes([9; 32]);
        let sender = Sender::new(id, name(from), Tenant::new(name(tenant)));
        let builder = Message::builder(sender).to(name("someone"));
        let builder = topics
            .iter()
            .fold(builder, |builder, text| builder.topic(topic(text)));
        builder.build(NOW).unwrap()
    }

    fn rule(effect: Effect, sender: &str, about: &str) -> PolicyRule {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        PolicyRule {
            sender: some(sender),
            topic: some(about),
            ..PolicyRule::new(effect)
        }
    }

    fn hook(default: Effect, rules: Vec<PolicyRule>) -> PolicyHook {
        PolicyHook::new(PolicyConfig { rules, default }).unwrap()
    }

    fn allows(hook: &PolicyHook, from: &str, topics: &[&str]) -> bool {
        let message = message(from, "default", topics);
        hook.denied(&message, Stage::PreSend).is_none()
    }

    #[test]
    fn the_first_rule_that_speaks_decides_and_else_the_default() {
        let hook = hook(
            Effect::Deny,
            vec![
                rule(Effect::Deny, "", "work/secret"),
                rule(Effect::Allow, "clerk-*", "work/*"),
                rule(Effect::Allow, "boss", ""),
            ],
        );
        assert!(allows(&hook, "clerk-1", &["work/a"]));
        assert!(!allows(&hook, "clerk-1", &["work/secret"]));
        assert!(!allows(&hook, "clerk-1", &["work/a/b"]), "one segment");
        assert!(!allows(&hook, "clerk-1", &[]), "no topic fits no pattern");
        assert!(allows(&hook, "boss", &["anything", "work/b"]));
        assert!(!allows(&hook, "stranger", &["work/a"]));
    }

    #[test]
    fn every_topic_of_a_message_must_be_allowed() {
        let hook = hook(Effect::Deny, vec![rule(Effect::Allow, "", "open/**")]);
        assert!(allows(&hook, "a", &["open/x", "open/y/z"]));
        assert!(!allows(&hook, "a", &["open/x", "closed"]));
    }

    #[test]
    fn a_rule_may_be_of_one_tenant_one_direction_and_one_identity() {
        let id = AgentId::from_bytes([9; 32]).to_string();
        let mut only = rule(Effect::Deny, &id, "");
        only.tenant = Some("acme*".into());
        only.way = Some(Stage::PostReceive);
        let hook = hook(Effect::Allow, vec![only]);
        let denied = |tenant, stage| hook.denied(&message("x", tenant, &["t"]), stage);
        assert_eq!(denied("acme-2", Stage::PostReceive), Some(1));
        assert_eq!(denied("acme-2", Stage::PreSend), None);
        assert_eq!(denied("other", Stage::PostReceive), None);
    }

    #[test]
    fn what_is_no_pattern_is_refused_with_the_number_of_its_rule() {
        for bad in ["a[", "", &"x".repeat(600)] {
            let mut second = PolicyRule::new(Effect::Deny);
            second.topic = Some(bad.to_owned());
            let rules = vec![PolicyRule::new(Effect::Allow), second];
            let error = PolicyHook::new(PolicyConfig {
                rules,
                default: Effect::Deny,
            });
            let text = error.map(drop).unwrap_err().to_string();
            assert!(text.starts_with("policy rule 2: "), "{text}");
        }
    }
}
