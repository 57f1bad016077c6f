//! Shapes: which keys there are and what each takes. Pure.
//!
//! The tables in [`keys`](super::keys) are made of these. The JSON Schema is written from the same tables, so that it
//! cannot say anything else than the parser does.

use super::{
    hint::{listing, near},
    rules::Rule,
    tree::Value,
};

/// What a value may be.
pub(crate) enum Shape {
    /// Text of a kind.
    Text(&'static Rule),
    /// `true` or `false`.
    Bool,
    /// A whole number within bounds.
    Int(i64, i64),
    /// A number within bounds.
    Number(f64, f64),
    /// One of some words.
    Choice(&'static [&'static str]),
    /// A list of one thing.
    List(&'static Shape),
    /// Keys that the user chooses, all with one thing.
    Map(&'static Rule, &'static Shape),
    /// Known keys.
    Object(&'static Table),
    /// Several forms; which one is told by whether a text, list or mapping is found.
    Either(&'static [Shape]),
    /// Anything.
    Any,
}

/// A mapping with known keys.
pub(crate) struct Table {
    /// Its name in the schema, unique.
    pub name: &'static str,
    pub doc: &'static str,
    pub fields: &'static [Field],
}

/// One known key.
pub(crate) struct Field {
    pub key: &'static str,
    pub shape: Shape,
    pub doc: &'static str,
    pub required: bool,
    /// What other tools call it: only for hints.
    pub also: &'static [&'static str],
}

impl Field {
    pub const fn new(key: &'static str, shape: Shape, doc: &'static str) -> Self {
        Self {
            key,
            shape,
            doc,
            required: false,
            also: &[],
        }
    }

    pub const fn required(mut self) -> Self {
        self.required = true;
        self
    }

    pub const fn also(mut self, also: &'static [&'static str]) -> Self {
        self.also = also;
        self
    }
}

impl Table {
    /// The key that an unknown one is most likely meant to be. `None` also for a known one.
    pub fn meant(&self, key: &str) -> Option<&'static str> {
        if self.fields.iter().any(|field| field.key == key) {
            return None;
        }
        let also = self.fields.iter().find(|field| field.also.contains(&key));
        let near = || near(key, self.fields.iter().map(|field| field.key));
        also.map(|field| field.key).or_else(near)
    }
}

pub(crate) fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

/// Whether a form of value is what a shape takes; its content is another matter.
pub(crate) fn takes(shape: &Shape, value: &Value) -> bool {
    match shape {
        Shape::List(_) => matches!(value, Value::List(_)),
        Shape::Map(..) | Shape::Object(_) => matches!(value, Value::Map(_)),
        Shape::Any => true,
        Shape::Either(shapes) => shapes.iter().any(|shape| takes(shape, value)),
        Shape::Text(_) | Shape::Bool | Shape::Int(..) | Shape::Number(..) | Shape::Choice(_) => {
            matches!(value, Value::Scalar { .. })
        }
    }
}

/// What a shape takes, to be read after "must be".
pub(crate) fn describe(shape: &Shape) -> String {
    match shape {
        Shape::Text(rule) => rule.expects.to_owned(),
        Shape::Bool => "true or false".to_owned(),
        Shape::Int(..) => "a whole number".to_owned(),
        Shape::Number(..) => "a number".to_owned(),
        Shape::Choice(words) => listing(words, "or"),
        Shape::List(_) => "a list".to_owned(),
        Shape::Map(..) => "a mapping".to_owned(),
        Shape::Object(table) if table.fields.is_empty() => "`{}`".to_owned(),
        Shape::Object(table) if table.fields.len() <= 5 => {
            let keys: Vec<_> = table.fields.iter().map(|field| field.key).collect();
            format!("a mapping with {}", listing(&keys, "and"))
        }
        Shape::Object(_) => "a mapping".to_owned(),
        Shape::Either(shapes) => shapes
            .iter()
            .map(describe)
            .collect::<Vec<_>>()
            .join(", or "),
        Shape::Any => "anything".to_owned(),
    }
}

/// Deepest place looked at for a misplaced key; the tables nest less.
const SEARCH_DEPTH: usize = 5;

/// Paths of the mappings below `table` that have `key`.
pub(crate) fn find_key(table: &'static Table, key: &str, path: &str, depth: usize) -> Vec<String> {
    let mut places = Vec::new();
    if depth > SEARCH_DEPTH {
        return places;
    }
    for field in table.fields {
        if let Some((table, suffix)) = object_of(&field.shape) {
            let path = format!("{}{suffix}", join(path, field.key));
            if table.fields.iter().any(|field| field.key == key) {
                places.push(path.clone());
            }
            places.extend(find_key(table, key, &path, depth + 1));
        }
    }
    places.sort_by_key(|place| place.matches('.').count());
    places
}

fn object_of(shape: &'static Shape) -> Option<(&'static Table, &'static str)> {
    match shape {
        Shape::Object(table) => Some((table, "")),
        Shape::List(item) => object_of(item).map(|(table, _)| (table, "[]")),
        Shape::Map(_, value) => object_of(value).map(|(table, _)| (table, ".<name>")),
        Shape::Either(shapes) => shapes.iter().find_map(object_of),
        _ => None,
    }
}
