//! Routing tables: which targets a key means, as data that can be changed while the flow runs.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::RwLock;
use serde::{Deserialize, Deserializer, de};

use super::route::{Decision, RouteRequest};

/// Most entries of a table.
const MOST: usize = 100_000;

/// A [`RoutePolicy`](super::RoutePolicy) that looks a key up in a table. Cheap to clone; clones share the table.
///
/// As JSON a table is an object from keys to the name of a target, a list of names, `null` for nobody, or `"*"` for what the
/// router proposed. A key that the table does not have, or a value without a key, gets the default, which is
/// [`Decision::Accept`] unless it is set.
///
/// # Examples
/// ```
/// use volary_flow::graph::{Decision, TablePolicy};
/// let table = TablePolicy::<String>::by(|request| request.payload.chars().next().map(String::from))
///     .default_to(Decision::Drop)
///     .json(r#"{"a": "first", "b": ["first", "second"], "c": null, "d": "*"}"#)?;
/// assert_eq!(table.get("b"), Some(Decision::Only(vec!["first".into(), "second".into()])));
/// assert_eq!(table.get("c"), Some(Decision::Drop));
/// # Ok::<(), volary_flow::graph::TableError>(())
/// ```
#[doc(alias = "DictRoutingPolicy")]
pub struct TablePolicy<T> {
    key: Arc<KeyOf<T>>,
    table: Arc<RwLock<Table>>,
}

type KeyOf<T> = dyn Fn(&RouteRequest<T>) -> Option<String> + Send + Sync;

struct Table {
    mapping: BTreeMap<String, Decision>,
    default: Decision,
}

/// Why a text is no routing table.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// It is no JSON, or something else than a table.
    #[error("{from}: not a routing table: {error}")]
    Json {
        /// Where it came from.
        from: String,
        /// What is wrong, with its place.
        error: serde_json::Error,
    },
    /// The file cannot be read.
    #[error("routing table {path}: {error}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: std::io::Error,
    },
    /// The environment variable is not set.
    #[error("the environment variable `{0}` is not set: it should hold a routing table as JSON")]
    Unset(String),
    /// What the caller's loader said.
    #[error("{from}: {message}")]
    Load {
        /// Where it came from.
        from: String,
        /// What was wrong.
        message: String,
    },
    /// More entries than a table holds.
    #[error("{from}: {count} entries; a routing table holds at most {MOST}")]
    TooMany {
        /// Where it came from.
        from: String,
        /// How many.
        count: usize,
    },
}

impl<T> TablePolicy<T> {
    /// An empty table that is asked for the key that `key` finds in a value or its surroundings.
    #[doc(alias = "key_getter")]
    pub fn by(key: impl Fn(&RouteRequest<T>) -> Option<String> + Send + Sync + 'static) -> Self {
        Self {
            key: Arc::new(key),
            table: Arc::new(RwLock::new(Table {
                mapping: BTreeMap::new(),
                default: Decision::Accept,
            })),
        }
    }

    /// A table by tenant.
    pub fn by_tenant() -> Self {
        Self::by(|request| Some(request.context.tenant().to_string()))
    }

    /// A table by the topic of the headers.
    pub fn by_topic() -> Self {
        Self::by(|request| request.context.headers().topic.clone())
    }

    /// A table by trace id.
    pub fn by_trace() -> Self {
        Self::by(|request| Some(request.context.trace_id().to_string()))
    }

    /// Sets what a key without entry means.
    #[must_use]
    pub fn default_to(self, decision: Decision) -> Self {
        self.set_default(decision);
        self
    }

    /// Adds entries.
    ///
    /// # Errors
    /// [`TableError::TooMany`].
    pub fn entries<K: Into<String>>(
        self,
        entries: impl IntoIterator<Item = (K, Decision)>,
    ) -> Result<Self, TableError> {
        self.update_mapping(entries)?;
        Ok(self)
    }

    /// Adds the entries of a JSON object.
    ///
    /// # Errors
    /// [`TableError::Json`] with line and column; a key that stands there twice is an error too.
    #[doc(alias = "from_json")]
    pub fn json(self, text: &str) -> Result<Self, TableError> {
        self.add("the routing table", text)
    }

    /// Adds the entries of a JSON file, which is read now.
    ///
    /// # Errors
    /// [`TableError::Read`] and as [`TablePolicy::json`], naming the file.
    #[doc(alias = "from_json_file")]
    pub fn json_file(self, path: impl AsRef<Path>) -> Result<Self, TableError> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(|error| TableError::Read {
            path: path.to_owned(),
            error,
        })?;
        self.add(&format!("routing table {}", path.display()), &text)
    }

    /// Adds the entries of JSON that the caller read from the environment variable of this name: libraries do not read it.
    ///
    /// # Errors
    /// [`TableError::Unset`] for no value, and as [`TablePolicy::json`], naming the variable.
    #[doc(alias = "from_env")]
    pub fn env(self, variable: &str, value: Option<&str>) -> Result<Self, TableError> {
        let text = value.ok_or_else(|| TableError::Unset(variable.to_owned()))?;
        self.add(&format!("environment variable {variable}"), text)
    }

    /// Adds the entries that a loader of the caller makes of a text in another format.
    ///
    /// # Errors
    /// [`TableError::Load`] with what the loader said.
    #[doc(alias = "loader")]
    pub fn loaded<K: Into<String>, E: fmt::Display>(
        self,
        from: &str,
        text: &str,
        load: impl FnOnce(&str) -> Result<Vec<(K, Decision)>, E>,
    ) -> Result<Self, TableError> {
        let entries = load(text).map_err(|error| TableError::Load {
            from: from.to_owned(),
            message: error.to_string(),
        })?;
        self.merge(from, entries)?;
        Ok(self)
    }

    /// Adds entries while the flow runs, replacing those of the same keys; the next value that is routed sees them.
    ///
    /// # Errors
    /// [`TableError::TooMany`]; then nothing was changed.
    pub fn update_mapping<K: Into<String>>(
        &self,
        entries: impl IntoIterator<Item = (K, Decision)>,
    ) -> Result<(), TableError> {
        self.merge("the update", entries)
    }

    /// Removes the entry of a key while the flow runs, and tells what it was.
    pub fn remove(&self, key: &str) -> Option<Decision> {
        self.table.write().mapping.remove(key)
    }

    /// Sets what a key without entry means, while the flow runs.
    pub fn set_default(&self, decision: Decision) {
        self.table.write().default = decision;
    }

    /// The entry of a key.
    pub fn get(&self, key: &str) -> Option<Decision> {
        self.table.read().mapping.get(key).cloned()
    }

    /// Names of all targets, for the check of the graph.
    pub(crate) fn targets(&self) -> Vec<String> {
        let table = self.table.read();
        let decisions = table.mapping.values().chain([&table.default]);
        let mut targets: Vec<String> = decisions
            .filter_map(|decision| match decision {
                Decision::Only(names) => Some(names),
                Decision::Accept | Decision::Drop => None,
            })
            .flatten()
            .cloned()
            .collect();
        targets.sort_unstable();
        targets.dedup();
        targets
    }

    pub(crate) fn decide(&self, request: &RouteRequest<T>) -> Decision {
        let key = (self.key)(request);
        let table = self.table.read();
        let entry = key.and_then(|key| table.mapping.get(&key));
        entry.unwrap_or(&table.default).clone()
    }

    fn add(self, from: &str, text: &str) -> Result<Self, TableError> {
        let Entries(entries) = serde_json::from_str(text).map_err(|error| TableError::Json {
            from: from.to_owned(),
            error,
        })?;
        self.merge(from, entries)?;
        Ok(self)
    }

    fn merge<K: Into<String>>(
        &self,
        from: &str,
        entries: impl IntoIterator<Item = (K, Decision)>,
    ) -> Result<(), TableError> {
        let entries: BTreeMap<String, Decision> = entries
            .into_iter()
            .map(|(key, decision)| (key.into(), decision))
            .collect();
        let mut table = self.table.write();
        let new = |key: &&String| !table.mapping.contains_key(*key);
        let count = table.mapping.len() + entries.keys().filter(new).count();
        if count > MOST {
            return Err(TableError::TooMany {
                from: from.to_owned(),
                count,
            });
        }
        table.mapping.extend(entries);
        Ok(())
    }
}

impl<T> Clone for TablePolicy<T> {
    fn clone(&self) -> Self {
        Self {
            key: self.key.clone(),
            table: self.table.clone(),
        }
    }
}

impl<T> fmt::Debug for TablePolicy<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = self.table.read();
        f.debug_struct("TablePolicy")
            .field("mapping", &table.mapping)
            .field("default", &table.default)
            .finish_non_exhaustive()
    }
}

/// The entries of a JSON object, each key once.
struct Entries(Vec<(String, Decision)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object from keys to targets")
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some((key, Entry(decision))) = map.next_entry::<String, Entry>()? {
                    if entries.contains_key(&key) {
                        return Err(de::Error::custom(format!(
                            "the key `{key}` stands there twice"
                        )));
                    }
                    entries.insert(key, decision);
                }
                Ok(Entries(entries.into_iter().collect()))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

/// What one key means.
struct Entry(Decision);

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Entry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a target, a list of names, null for nobody, or \"*\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Entry, E> {
                Ok(Entry(match text {
                    "*" => Decision::Accept,
                    name => Decision::only(name),
                }))
            }

            fn visit_unit<E: de::Error>(self) -> Result<Entry, E> {
                Ok(Entry(Decision::Drop))
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Entry, A::Error> {
                let mut names = Vec::new();
                while let Some(name) = list.next_element::<String>()? {
                    names.push(name);
                }
                Ok(Entry(match names.is_empty() {
                    true => Decision::Drop,
                    false => Decision::Only(names),
                }))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}
