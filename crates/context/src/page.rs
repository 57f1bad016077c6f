//! Pages and what happens to them: the nouns of this crate, as they travel through journal, inbox and handler.

use std::{borrow::Borrow, collections::BTreeMap, fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::Value;
use volary_kernel::{Name, Tenant, Timestamp, TraceId};

/// Longest [`Scope`], in bytes: it becomes part of journal rows and labels.
pub const SCOPE_MAX: usize = 256;

/// A text is not what it was taken for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PageTextError {
    /// Not `<source>:<path>`.
    #[error("page id must be `<source>:<path>`, found `{0}`")]
    PageId(String),
    /// Empty, too long, or with control characters.
    #[error("scope must be 1 to {SCOPE_MAX} bytes without control characters, found `{0}`")]
    Scope(String),
    /// Not 64 hex digits.
    #[error("content hash must be 64 hex digits, found `{0}`")]
    Hash(String),
}

fn clip(text: &str) -> String {
    text.chars().take(80).collect()
}

macro_rules! text_type {
    ($name:ident) => {
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self}")
            }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }
    };
}

// --- PageId ------------------------------------------------------------------------------------

/// The stable name of a page: `<source>:<path within the source>`. Cheap to clone.
///
/// It stays the same over restarts, re-creation of the page and a move of the source's root.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageId(Arc<str>);

impl PageId {
    /// The page at `path` of `source`.
    pub fn new(source: &Name, path: &str) -> Self {
        Self(format!("{source}:{path}").into())
    }

    /// The whole id.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The source's name: what stands before the first colon.
    pub fn source(&self) -> &str {
        self.0.split_once(':').map_or("", |(source, _)| source)
    }

    /// The path within the source.
    pub fn path(&self) -> &str {
        self.0.split_once(':').map_or("", |(_, path)| path)
    }
}

impl Borrow<str> for PageId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for PageId {
    type Err = PageTextError;
    fn from_str(text: &str) -> Result<Self, PageTextError> {
        match text.split_once(':') {
            Some((source, path)) if Name::new(source).is_ok() && !path.is_empty() => {
                Ok(Self(text.into()))
            }
            _ => Err(PageTextError::PageId(clip(text))),
        }
    }
}

text_type!(PageId);

// --- Scope -------------------------------------------------------------------------------------

/// What a source was mapped into: a project, a session, a design. Subscriptions can ask for one.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Scope(Arc<str>);

impl Scope {
    /// Checks and takes `text`.
    ///
    /// # Errors
    /// [`PageTextError::Scope`] with the text that was found.
    pub fn new(text: &str) -> Result<Self, PageTextError> {
        if text.is_empty() || text.len() > SCOPE_MAX || text.chars().any(char::is_control) {
            return Err(PageTextError::Scope(clip(text)));
        }
        Ok(Self(text.into()))
    }

    /// The scope as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The scope `default`, for sources that were mapped into none.
impl Default for Scope {
    fn default() -> Self {
        Self("default".into())
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for Scope {
    type Err = PageTextError;
    fn from_str(text: &str) -> Result<Self, PageTextError> {
        Self::new(text)
    }
}

text_type!(Scope);

// --- ContentHash -------------------------------------------------------------------------------

/// The BLAKE3 hash of a page's content; 64 hex digits as text.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContentHash([u8; 32]);

impl ContentHash {
    /// The hash of `content`.
    pub fn of(content: &[u8]) -> Self {
        Self(*blake3::hash(content).as_bytes())
    }

    /// A hash that was computed elsewhere.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The hash as bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl FromStr for ContentHash {
    type Err = PageTextError;
    fn from_str(text: &str) -> Result<Self, PageTextError> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| PageTextError::Hash(clip(text)))?;
        Ok(Self(bytes))
    }
}

text_type!(ContentHash);

// --- Cursor ------------------------------------------------------------------------------------

/// The place of a change in its source's history: a counter that only grows, also over restarts.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Cursor(pub u64);

impl Cursor {
    /// The place after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

// --- Page --------------------------------------------------------------------------------------

/// A unit of context from a source, without its content.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[doc(alias = "VirtualContextPage")]
pub struct Page {
    /// Its stable name.
    pub id: PageId,
    /// The source it comes from.
    pub source: Name,
    /// What the source is mapped into.
    pub scope: Scope,
    /// Whose page it is.
    pub tenant: Tenant,
    /// What kind of content it is: `file`, `note`, `requirements`, …
    pub data_type: Arc<str>,
    /// Grows with every change while the page exists; a page that comes back begins at 1 again.
    pub version: u64,
    /// The hash of its content; of an invalidated page, the last one known.
    pub content_hash: ContentHash,
    /// What the source says about it, for example `bytes`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, Value>,
    /// Pages it refers to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<PageId>,
}

// --- PageChange --------------------------------------------------------------------------------

/// What happened to a page. Readers must expect kinds they do not know: edges between pages come later.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum ChangeKind {
    /// It exists and did not before.
    Added,
    /// Its content is another one.
    Replaced {
        /// What changed within it, where the source knows.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        edit_diff: Option<String>,
    },
    /// It no longer exists, or may no longer be relied on.
    Invalidated {
        /// Why, as a short fixed word: see the constants of [`reason`].
        reason: Arc<str>,
    },
}

impl ChangeKind {
    /// The kind without its details, as used in subscriptions, metrics and labels.
    pub const fn name(&self) -> KindName {
        match self {
            Self::Added => KindName::Added,
            Self::Replaced { .. } => KindName::Replaced,
            Self::Invalidated { .. } => KindName::Invalidated,
        }
    }
}

/// The kinds by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum KindName {
    /// See [`ChangeKind::Added`].
    Added,
    /// See [`ChangeKind::Replaced`].
    Replaced,
    /// See [`ChangeKind::Invalidated`].
    Invalidated,
}

impl KindName {
    /// The name as text.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Replaced => "replaced",
            Self::Invalidated => "invalidated",
        }
    }
}

impl fmt::Display for KindName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why a page was invalidated.
pub mod reason {
    /// What it stood for is gone.
    pub const DELETED: &str = "deleted";
    /// The source's settings leave it out now.
    pub const EXCLUDED: &str = "excluded";
    /// It grew beyond the size bound.
    pub const TOO_LARGE: &str = "too_large";
    /// A symbolic link, directory or device took its place.
    pub const NOT_A_FILE: &str = "not_a_file";
}

/// What else is known about a change.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Extra {
    /// Path within the source, with `/` between its parts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relative_path: Option<Arc<str>>,
    /// A number or vector that the change publishes, for damping.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Value>,
    /// When the content became true, by the source's own clock; for files the modification time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effective_at: Option<Timestamp>,
    /// Anything else.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

/// One change of one page. Immutable once committed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[doc(alias = "PageChangeEvent")]
#[doc(alias = "page_event")]
pub struct PageChange {
    /// Stable id: a hash of scope, cursor, page and kind. The same change never has two, two changes never share one.
    pub id: ContentHash,
    /// Place in the source's history.
    pub cursor: Cursor,
    /// What happened.
    #[serde(flatten)]
    pub kind: ChangeKind,
    /// The page afterwards; of an invalidated page, as it was last.
    pub page: Page,
    /// The content hash before the change; `None` if the page did not exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<ContentHash>,
    /// The change or dispatch that led to this one; `None` for a new root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// The trace that everything it leads to belongs to.
    pub trace: TraceId,
    /// When the node saw it.
    pub occurred_at: Timestamp,
    /// What else is known.
    #[serde(default)]
    pub extra: Extra,
}

impl PageChange {
    /// The stable id of a change.
    pub fn event_id(scope: &Scope, cursor: Cursor, page: &PageId, kind: KindName) -> ContentHash {
        let mut hash = blake3::Hasher::new_derive_key("volary 2026 page change id v1");
        for part in [scope.as_str(), page.as_str(), kind.as_str()] {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        }
        hash.update(&cursor.0.to_le_bytes());
        ContentHash(*hash.finalize().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(kind: ChangeKind) -> PageChange {
        let source = Name::new("notes").unwrap();
        let id = PageId::new(&source, "a/b:c.md");
        let scope = Scope::default();
        PageChange {
            id: PageChange::event_id(&scope, Cursor(7), &id, kind.name()),
            cursor: Cursor(7),
            kind,
            page: Page {
                id,
                source,
                scope,
                tenant: Tenant::default(),
                data_type: "file".into(),
                version: 2,
                content_hash: ContentHash::of(b"x"),
                metadata: BTreeMap::from([("bytes".into(), Value::from(1))]),
                links: Vec::new(),
            },
            previous: Some(ContentHash::of(b"w")),
            cause: None,
            trace: TraceId::generate(),
            occurred_at: Timestamp::from_micros(1),
            extra: Extra {
                relative_path: Some("a/b:c.md".into()),
                ..Extra::default()
            },
        }
    }

    #[test]
    fn a_change_of_each_kind_survives_json() {
        let kinds = [
            ChangeKind::Added,
            ChangeKind::Replaced {
                edit_diff: Some("-x\n+y".into()),
            },
            ChangeKind::Invalidated {
                reason: reason::DELETED.into(),
            },
        ];
        for kind in kinds {
            let change = change(kind);
            let json = serde_json::to_string(&change).unwrap();
            assert_eq!(
                serde_json::from_str::<PageChange>(&json).unwrap(),
                change,
                "{json}"
            );
        }
    }

    #[test]
    fn the_wire_form_shows_kind_and_path_at_the_top() {
        let json = serde_json::to_value(change(ChangeKind::Added)).unwrap();
        assert_eq!(json["kind"], "added");
        assert_eq!(json["extra"]["relative_path"], "a/b:c.md");
        assert_eq!(json["page"]["id"], "notes:a/b:c.md");
    }

    #[test]
    fn an_invalidated_change_carries_its_reason() {
        let json = serde_json::to_value(change(ChangeKind::Invalidated {
            reason: reason::DELETED.into(),
        }))
        .unwrap();
        assert_eq!(
            (&json["kind"], &json["reason"]),
            (&"invalidated".into(), &"deleted".into())
        );
    }

    #[test]
    fn page_ids_split_at_the_first_colon_only() {
        let id: PageId = "notes:a/b:c.md".parse().unwrap();
        assert_eq!((id.source(), id.path()), ("notes", "a/b:c.md"));
        for bad in ["", "notes", "notes:", ":x", "No Name:x"] {
            assert!(bad.parse::<PageId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn event_ids_differ_by_scope_cursor_page_and_kind() {
        let name = Name::new("s").unwrap();
        let base = (
            Scope::default(),
            Cursor(1),
            PageId::new(&name, "a"),
            KindName::Added,
        );
        let id = |t: &(Scope, Cursor, PageId, KindName)| PageChange::event_id(&t.0, t.1, &t.2, t.3);
        let others = [
            (Scope::new("other").unwrap(), base.1, base.2.clone(), base.3),
            (base.0.clone(), Cursor(2), base.2.clone(), base.3),
            (base.0.clone(), base.1, PageId::new(&name, "b"), base.3),
            (base.0.clone(), base.1, base.2.clone(), KindName::Replaced),
        ];
        assert_eq!(id(&base), id(&base.clone()));
        assert!(others.iter().all(|other| id(other) != id(&base)));
    }

    #[test]
    fn scopes_refuse_emptiness_excess_and_control_characters() {
        for bad in ["", "a\nb", &"x".repeat(SCOPE_MAX + 1)] {
            assert!(Scope::new(bad).is_err(), "{bad:?}");
        }
        assert!(Scope::new("tenant:acme:session:1").is_ok());
    }
}
