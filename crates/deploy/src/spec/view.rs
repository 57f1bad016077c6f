//! Typed looks at a tree that has passed the shape check.
//!
//! A getter answers `None` for what is absent and for what has the wrong form; the latter has been reported already.

use std::time::Duration;

use volary_kernel::text::{parse_bytes, parse_duration};

use super::{
    source::Span,
    tree::{Key, Node, Value},
};

/// A value that may be there, and where to point at in either case.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    node: Option<&'a Node>,
    /// The key it stands behind, or the mapping it would belong in.
    key: Span,
}

impl<'a> View<'a> {
    pub fn new(node: &'a Node) -> Self {
        Self {
            node: Some(node),
            key: node.span,
        }
    }

    /// The value behind `key`.
    pub fn get(self, key: &str) -> Self {
        let found = self.pairs().find(|(found, _)| found.text == key);
        match found {
            Some((key, view)) => Self {
                node: view.node,
                key: key.span,
            },
            None => Self {
                node: None,
                key: self.key,
            },
        }
    }

    /// Whether the key is there, with whatever value.
    pub fn is_present(self) -> bool {
        self.node.is_some()
    }

    /// The value if it is there, else the key.
    pub fn span(self) -> Span {
        self.node
            .filter(|node| !matches!(node.value, Value::Null | Value::Broken))
            .map_or(self.key, |node| node.span)
    }

    /// The key.
    pub fn key(self) -> Span {
        self.key
    }

    pub fn text(self) -> Option<&'a str> {
        match &self.node?.value {
            Value::Scalar { text, .. } => Some(text),
            _ => None,
        }
    }

    pub fn string(self) -> Option<String> {
        self.text().map(str::to_owned)
    }

    pub fn parse<T, E>(self, read: impl FnOnce(&'a str) -> Result<T, E>) -> Option<T> {
        read(self.text()?).ok()
    }

    pub fn flag(self, default: bool) -> bool {
        self.parse(str::parse).unwrap_or(default)
    }

    pub fn int(self) -> Option<u32> {
        self.parse(str::parse)
    }

    pub fn duration(self, default: Duration) -> Duration {
        self.parse(parse_duration).unwrap_or(default)
    }

    pub fn bytes(self, default: u64) -> u64 {
        self.parse(parse_bytes).unwrap_or(default)
    }

    pub fn is_list(self) -> bool {
        matches!(
            self.node,
            Some(Node {
                value: Value::List(_),
                ..
            })
        )
    }

    pub fn is_map(self) -> bool {
        matches!(
            self.node,
            Some(Node {
                value: Value::Map(_),
                ..
            })
        )
    }

    /// The items of a list; nothing for anything else.
    pub fn items(self) -> impl Iterator<Item = View<'a>> {
        let items: &[Node] = match self.node {
            Some(Node {
                value: Value::List(items),
                ..
            }) => items,
            _ => &[],
        };
        items.iter().map(View::new)
    }

    /// The pairs of a mapping; nothing for anything else.
    pub fn pairs(self) -> impl Iterator<Item = (&'a Key, View<'a>)> {
        let pairs: &[(Key, Node)] = match self.node {
            Some(Node {
                value: Value::Map(pairs),
                ..
            }) => pairs,
            _ => &[],
        };
        pairs.iter().map(|(key, node)| {
            (
                key,
                View {
                    node: Some(node),
                    key: key.span,
                },
            )
        })
    }

    /// The value as JSON: unquoted numbers, true and false as such.
    pub fn json(self) -> serde_json::Value {
        self.node.map_or(serde_json::Value::Null, json)
    }
}

fn json(node: &Node) -> serde_json::Value {
    match &node.value {
        Value::Null | Value::Broken => serde_json::Value::Null,
        Value::Scalar { text, plain } => {
            let number = || {
                text.parse::<serde_json::Number>()
                    .ok()
                    .map(serde_json::Value::Number)
            };
            let word = || text.parse::<bool>().ok().map(serde_json::Value::Bool);
            let typed = plain.then(|| word().or_else(number)).flatten();
            typed.unwrap_or_else(|| serde_json::Value::String(text.clone()))
        }
        Value::List(items) => items.iter().map(json).collect(),
        Value::Map(pairs) => pairs
            .iter()
            .map(|(key, node)| (key.text.clone(), json(node)))
            .collect(),
    }
}
