//! Tools: a name, what it does, the schema of its parameters, and the function.

use std::{collections::BTreeMap, fmt, pin::Pin, sync::Arc, time::Duration};

use serde::de::DeserializeOwned;
use serde_json::Value;

/// Longest name of a tool, in bytes: what model providers take.
pub const TOOL_NAME_MAX: usize = 64;

/// Why a tool gave no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ToolError {
    /// The parameters are not what it takes.
    #[error("parameters of `{tool}`: {problem}")]
    Params {
        /// The tool.
        tool: String,
        /// What is wrong with them.
        problem: String,
    },
    /// It said so.
    #[error("{0}")]
    Failed(String),
    /// It panicked; the panic went no further.
    #[error("panicked: {0}")]
    Panicked(String),
    /// It took longer than its time and was cancelled.
    #[error("did not finish within {}, and was cancelled", volary_kernel::text::brief_duration(*.0))]
    TimedOut(Duration),
    /// What it gave is larger than the runtime takes.
    #[error("its result of {found} bytes is larger than {limit}")]
    TooLarge {
        /// Bytes given.
        found: usize,
        /// Bytes taken.
        limit: usize,
    },
}

impl ToolError {
    /// An error with this text.
    pub fn failed(problem: impl fmt::Display) -> Self {
        Self::Failed(problem.to_string())
    }
}

/// Why a tool can not be registered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ToolSetError {
    /// The name is not one that models can call.
    #[error("tool name `{0}` must be 1 to {TOOL_NAME_MAX} letters, digits, `_`, `-` or `.`")]
    Name(String),
    /// There is one of this name.
    #[error("there are two tools named `{0}`")]
    Taken(String),
    /// The schema is not a JSON object.
    #[error("the schema of tool `{0}` must be a JSON object, as JSON Schema writes it")]
    Schema(String),
}

type Running = Pin<Box<dyn Future<Output = Result<Value, ToolError>> + Send>>;

/// Something an agent can have done. Cheap to clone.
///
/// Contract of the function: it is cancelled (dropped) when its time is over, so what must not be left half done needs a
/// guard of its own; it must not block the thread.
#[derive(Clone)]
pub struct Tool {
    name: String,
    description: String,
    schema: Arc<Value>,
    timeout: Option<Duration>,
    run: Arc<dyn Fn(Value) -> Running + Send + Sync>,
}

impl fmt::Debug for Tool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tool({})", self.name)
    }
}

impl Tool {
    /// A tool that takes its parameters as JSON. `schema` is the JSON Schema of the parameters, for whoever chooses tools.
    pub fn new<F>(
        name: impl Into<String>,
        schema: Value,
        run: impl Fn(Value) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<Value, ToolError>> + Send + 'static,
    {
        Self {
            name: name.into(),
            description: String::new(),
            schema: Arc::new(schema),
            timeout: None,
            run: Arc::new(move |params| Box::pin(run(params))),
        }
    }

    /// A tool whose parameters are read into `P`; what does not fit is [`ToolError::Params`] and it is not run.
    pub fn typed<P: DeserializeOwned, F>(
        name: impl Into<String>,
        schema: Value,
        run: impl Fn(P) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<Value, ToolError>> + Send + 'static,
    {
        let name = name.into();
        let tool = name.clone();
        let run = move |params: Value| -> Running {
            match serde_json::from_value::<P>(params) {
                Ok(params) => Box::pin(run(params)),
                Err(error) => {
                    let (tool, problem) = (tool.clone(), error.to_string());
                    Box::pin(std::future::ready(Err(ToolError::Params { tool, problem })))
                }
            }
        };
        Self {
            name,
            description: String::new(),
            schema: Arc::new(schema),
            timeout: None,
            run: Arc::new(run),
        }
    }

    /// Says what it does.
    #[must_use]
    pub fn describe(mut self, description: impl Into<String>) -> Self {
        self.description = description.into();
        self
    }

    /// Gives it another time than the runtime's default.
    #[must_use]
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it does.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// The JSON Schema of its parameters.
    pub fn schema(&self) -> &Value {
        &self.schema
    }

    pub(super) fn time(&self, default: Duration) -> Duration {
        self.timeout.unwrap_or(default)
    }

    /// Starts it. Not public: only the executor runs tools, after the policy was asked.
    pub(super) fn start(&self, params: Value) -> Running {
        (self.run)(params)
    }
}

/// Tools by name.
#[derive(Debug, Clone, Default)]
pub(super) struct ToolSet(BTreeMap<String, Tool>);

impl ToolSet {
    pub(super) fn new(tools: Vec<Tool>) -> Result<Self, ToolSetError> {
        let mut set = BTreeMap::new();
        for tool in tools {
            let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
            let name = tool.name.clone();
            if name.is_empty() || name.len() > TOOL_NAME_MAX || !name.chars().all(fits) {
                return Err(ToolSetError::Name(name.chars().take(80).collect()));
            }
            if !tool.schema.is_object() {
                return Err(ToolSetError::Schema(name));
            }
            if set.insert(name.clone(), tool).is_some() {
                return Err(ToolSetError::Taken(name));
            }
        }
        Ok(Self(set))
    }

    pub(super) fn get(&self, name: &str) -> Option<&Tool> {
        self.0.get(name)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn tool(name: &str, schema: Value) -> Tool {
        Tool::new(name, schema, async |params| Ok(params))
    }

    #[test]
    fn bad_names_bad_schemas_and_doubles_are_refused() {
        let object = || json!({"type": "object"});
        let check = |tools| ToolSet::new(tools).map(|_| ());
        assert_eq!(
            check(vec![tool("a", object()), tool("b", object())]),
            Ok(())
        );
        let twice = vec![tool("a", object()), tool("a", object())];
        assert_eq!(check(twice), Err(ToolSetError::Taken("a".into())));
        for bad in ["", "a b", "ä", &"x".repeat(65)] {
            let refused = check(vec![tool(bad, object())]);
            assert!(matches!(refused, Err(ToolSetError::Name(_))), "{bad}");
        }
        assert_eq!(
            check(vec![tool("a", json!("no"))]),
            Err(ToolSetError::Schema("a".into()))
        );
    }

    #[tokio::test]
    async fn typed_parameters_that_do_not_fit_are_told_and_nothing_runs() {
        let double = Tool::typed("double", json!({}), async |n: i64| Ok(json!(2 * n)));
        assert_eq!(double.start(json!(4)).await, Ok(json!(8)));
        let refused = double.start(json!("four")).await;
        assert!(
            matches!(&refused, Err(ToolError::Params { tool, .. }) if tool == "double"),
            "{refused:?}"
        );
    }
}
