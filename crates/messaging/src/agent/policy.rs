//! What an agent may do: one allow-list for kinds of decisions, one for tools, one for kinds of its own. Pure.

use std::collections::BTreeSet;

use serde_json::Value;

use super::decision::{Decision, DecisionKind, Failure};

/// What may pass.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Allow<T> {
    All,
    Only(BTreeSet<T>),
}

impl<T: Ord> Allow<T> {
    const fn nothing() -> Self {
        Self::Only(BTreeSet::new())
    }

    fn permits<Q: Ord + ?Sized>(&self, item: &Q) -> bool
    where
        T: std::borrow::Borrow<Q>,
    {
        match self {
            Self::All => true,
            Self::Only(items) => items.contains(item),
        }
    }

    fn add(&mut self, item: T) {
        if let Self::Only(items) = self {
            items.insert(item);
        }
    }
}

/// The policy that every decision and every tool run passes. An empty one denies everything.
///
/// ```
/// use volary_messaging::agent::{ActionPolicy, DecisionKind};
/// let policy = ActionPolicy::deny_all()
///     .allow(DecisionKind::SendMessage)
///     .allow_tool("search");
/// assert!(policy.permits_tool("search"));
/// assert!(!policy.permits_tool("delete"));
/// assert!(!policy.permits(DecisionKind::SubmitTask));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActionPolicy {
    kinds: Allow<DecisionKind>,
    tools: Allow<String>,
    custom: Allow<String>,
}

/// Denies everything.
impl Default for ActionPolicy {
    fn default() -> Self {
        Self::deny_all()
    }
}

impl ActionPolicy {
    /// Nothing may be done.
    pub const fn deny_all() -> Self {
        Self {
            kinds: Allow::nothing(),
            tools: Allow::nothing(),
            custom: Allow::nothing(),
        }
    }

    /// Everything may be done: every kind of decision, every registered tool, every registered handler.
    pub const fn allow_all() -> Self {
        Self {
            kinds: Allow::All,
            tools: Allow::All,
            custom: Allow::All,
        }
    }

    /// Only decisions of these kinds; none if there are none. Tools and own kinds are allowed by name.
    pub fn allowing(kinds: impl IntoIterator<Item = DecisionKind>) -> Self {
        Self {
            kinds: Allow::Only(kinds.into_iter().collect()),
            ..Self::deny_all()
        }
    }

    /// Decisions of this kind, too.
    #[must_use]
    pub fn allow(mut self, kind: DecisionKind) -> Self {
        self.kinds.add(kind);
        self
    }

    /// This tool, too; it also needs no further permission to be invoked.
    #[must_use]
    pub fn allow_tool(mut self, tool: impl Into<String>) -> Self {
        self.kinds.add(DecisionKind::InvokeTool);
        self.tools.add(tool.into());
        self
    }

    /// Own decisions of this kind, too.
    #[must_use]
    pub fn allow_custom(mut self, kind: impl Into<String>) -> Self {
        self.kinds.add(DecisionKind::Custom);
        self.custom.add(kind.into());
        self
    }

    /// Whether decisions of this kind may pass. A tool's or own kind's name is asked for beside it.
    pub fn permits(&self, kind: DecisionKind) -> bool {
        self.kinds.permits(&kind)
    }

    /// Whether this tool may run.
    pub fn permits_tool(&self, tool: &str) -> bool {
        self.permits(DecisionKind::InvokeTool) && self.tools.permits(tool)
    }

    /// Why `decision` may not pass, if it may not.
    pub(super) fn denial(&self, decision: &Decision) -> Option<String> {
        let kind = decision.kind();
        let named = match decision {
            Decision::InvokeTool { tool, .. } if !self.permits_tool(tool) => {
                Some(format!("the policy does not allow the tool `{tool}`"))
            }
            Decision::Custom { kind, .. } if !self.custom.permits(kind.as_str()) => Some(format!(
                "the policy does not allow own decisions of kind `{kind}`"
            )),
            _ => None,
        };
        let general = || format!("the policy does not allow {}", kind.as_str());
        (!self.permits(kind)).then(general).or(named)
    }
}

/// The most that a task may ask for to be submitted or claimed by an agent, by its constraints `cpu` and `memory_mb`.
/// What is `None` does not matter. Volary checks what tasks say here; it does not measure what they use.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ResourceLimits {
    /// Processors.
    pub cpu: Option<f64>,
    /// Megabytes.
    pub memory_mb: Option<f64>,
}

impl ResourceLimits {
    pub(super) fn check(&self, constraints: &Value) -> Result<(), Failure> {
        for (name, limit) in [("cpu", self.cpu), ("memory_mb", self.memory_mb)] {
            let (Some(limit), Some(asked)) = (limit, constraints.get(name)) else {
                continue;
            };
            let Some(asked) = asked.as_f64() else {
                let problem = format!("constraint `{name}` must be a number, found {asked}");
                return Err(Failure::Invalid(problem));
            };
            if asked > limit {
                let reason = format!("the task asks for {asked} {name}, the agent has {limit}");
                return Err(Failure::Denied(reason));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn invoke(tool: &str) -> Decision {
        Decision::InvokeTool {
            call: "1".into(),
            tool: tool.into(),
            params: json!({}),
        }
    }

    #[test]
    fn an_empty_allow_list_denies_everything() {
        for policy in [
            ActionPolicy::default(),
            ActionPolicy::deny_all(),
            ActionPolicy::allowing([]),
        ] {
            for kind in DecisionKind::ALL {
                assert!(!policy.permits(kind), "{kind:?}");
            }
            assert!(policy.denial(&invoke("search")).is_some());
        }
    }

    #[test]
    fn a_tool_needs_its_name_on_the_list() {
        let policy = ActionPolicy::allowing([DecisionKind::InvokeTool]);
        assert!(policy.denial(&invoke("search")).is_some());
        let policy = policy.allow_tool("search");
        assert_eq!(policy.denial(&invoke("search")), None);
        assert!(policy.denial(&invoke("delete")).unwrap().contains("delete"));
        assert_eq!(ActionPolicy::allow_all().denial(&invoke("delete")), None);
    }

    #[test]
    fn a_task_that_asks_for_more_than_there_is_is_denied() {
        let limits = ResourceLimits {
            cpu: Some(1.0),
            memory_mb: None,
        };
        assert_eq!(limits.check(&json!({"cpu": 1, "memory_mb": 4096})), Ok(()));
        assert_eq!(limits.check(&Value::Null), Ok(()));
        let much = limits.check(&json!({"cpu": 1.5}));
        assert!(matches!(much, Err(Failure::Denied(_))), "{much:?}");
        let words = limits.check(&json!({"cpu": "all"}));
        assert!(matches!(words, Err(Failure::Invalid(_))), "{words:?}");
    }
}
