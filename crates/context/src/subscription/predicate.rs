//! Criteria made ready to be asked, and where an index can hold on to them. Pure.

use std::{collections::BTreeSet, sync::Arc};

use volary_kernel::Name;

use super::criteria::{Criteria, CriteriaError, DEPTH_MAX, PARTS_MAX};
use crate::{
    page::{KindName, Page, PageId, Scope},
    pattern::Pattern,
};

/// A question about a page and what happened to it.
#[derive(Debug, Clone)]
pub enum Predicate {
    /// Is it of this source?
    Source(Name),
    /// Does its path match?
    Path(Pattern),
    /// Is it of this data type?
    DataType(Arc<str>),
    /// Is it in this scope?
    Scope(Scope),
    /// Is it one of these?
    Pages(BTreeSet<PageId>),
    /// Is the change of one of these kinds?
    Kinds(BTreeSet<KindName>),
    /// Do all hold?
    All(Vec<Predicate>),
    /// Does one hold?
    Any(Vec<Predicate>),
    /// Does it not hold?
    Not(Box<Predicate>),
}

/// Something every matching page has in common, by which an index finds the subscription.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Anchor {
    /// The page itself.
    Page(PageId),
    /// Its path.
    Path(String),
    /// A directory, with its `/`, that it lies in.
    Directory(String),
    /// Its source.
    Source(Name),
    /// Its scope.
    Scope(Scope),
    /// Its data type.
    DataType(Arc<str>),
}

impl Predicate {
    /// Checks criteria and makes them ready.
    ///
    /// # Errors
    /// [`CriteriaError`] when they make no sense.
    pub fn new(criteria: &Criteria) -> Result<Self, CriteriaError> {
        compile(criteria, 0, &mut 0)
    }

    /// The answer for a change of `kind` of `page`.
    pub fn matches(&self, page: &Page, kind: KindName) -> bool {
        match self {
            Self::Source(source) => page.source == *source,
            Self::Path(pattern) => pattern.matches(page.id.path()),
            Self::DataType(data_type) => page.data_type == *data_type,
            Self::Scope(scope) => page.scope == *scope,
            Self::Pages(pages) => pages.contains(&page.id),
            Self::Kinds(kinds) => kinds.contains(&kind),
            Self::All(parts) => parts.iter().all(|part| part.matches(page, kind)),
            Self::Any(parts) => parts.iter().any(|part| part.matches(page, kind)),
            Self::Not(part) => !part.matches(page, kind),
        }
    }

    /// Anchors of which every matching page has at least one; `None` if there are none: a bare `not` or `kinds`, a
    /// glob that begins with a wildcard. Of several ways the narrowest is taken.
    pub fn anchors(&self) -> Option<Vec<Anchor>> {
        match self {
            Self::Source(source) => Some(vec![Anchor::Source(source.clone())]),
            Self::Path(pattern) => path_anchor(pattern).map(|anchor| vec![anchor]),
            Self::DataType(data_type) => Some(vec![Anchor::DataType(data_type.clone())]),
            Self::Scope(scope) => Some(vec![Anchor::Scope(scope.clone())]),
            Self::Pages(pages) => Some(pages.iter().cloned().map(Anchor::Page).collect()),
            Self::Kinds(_) | Self::Not(_) => None,
            Self::All(parts) => parts
                .iter()
                .filter_map(Self::anchors)
                .min_by_key(|anchors| breadth(anchors)),
            Self::Any(parts) => {
                let each: Option<Vec<_>> = parts.iter().map(Self::anchors).collect();
                let all: BTreeSet<_> = each?.into_iter().flatten().collect();
                Some(all.into_iter().collect())
            }
        }
    }
}

/// Broader last: the broadest anchor decides, then their number.
fn breadth(anchors: &[Anchor]) -> (u8, usize) {
    let rank = |anchor: &Anchor| match anchor {
        Anchor::Page(_) => 0,
        Anchor::Path(_) => 1,
        Anchor::Directory(_) => 2,
        Anchor::Source(_) => 3,
        Anchor::Scope(_) => 4,
        Anchor::DataType(_) => 5,
    };
    (anchors.iter().map(rank).max().unwrap_or(0), anchors.len())
}

fn path_anchor(pattern: &Pattern) -> Option<Anchor> {
    match pattern.literal_prefix() {
        "" => None,
        directory if directory.ends_with('/') => Some(Anchor::Directory(directory.to_owned())),
        path => Some(Anchor::Path(path.to_owned())),
    }
}

fn compile(
    criteria: &Criteria,
    depth: usize,
    parts: &mut usize,
) -> Result<Predicate, CriteriaError> {
    if depth > DEPTH_MAX {
        return Err(CriteriaError::TooDeep);
    }
    let mut all = Vec::new();
    all.extend(criteria.source.clone().map(Predicate::Source));
    all.extend(
        criteria
            .path
            .as_deref()
            .map(Pattern::new)
            .transpose()?
            .map(Predicate::Path),
    );
    all.extend(criteria.data_type.clone().map(Predicate::DataType));
    all.extend(criteria.scope.clone().map(Predicate::Scope));
    if let Some(pages) = listed("pages", criteria.pages.as_deref())? {
        *parts += pages.len();
        all.push(Predicate::Pages(pages.iter().cloned().collect()));
    }
    if let Some(kinds) = listed("kinds", criteria.kinds.as_deref())? {
        all.push(Predicate::Kinds(kinds.iter().copied().collect()));
    }
    let mut each = |nested: &[Criteria]| -> Result<Vec<Predicate>, CriteriaError> {
        nested
            .iter()
            .map(|nested| compile(nested, depth + 1, parts))
            .collect()
    };
    if let Some(nested) = listed("all", criteria.all.as_deref())? {
        all.extend(each(nested)?);
    }
    if let Some(nested) = listed("any", criteria.any.as_deref())? {
        all.push(Predicate::Any(each(nested)?));
    }
    if let Some(nested) = &criteria.not {
        all.push(Predicate::Not(Box::new(compile(nested, depth + 1, parts)?)));
    }
    *parts += all.len();
    if *parts > PARTS_MAX {
        return Err(CriteriaError::TooMany);
    }
    match all.len() {
        0 => Err(CriteriaError::Empty),
        1 => Ok(all.swap_remove(0)),
        _ => Ok(Predicate::All(all)),
    }
}

fn listed<'a, T>(
    name: &'static str,
    list: Option<&'a [T]>,
) -> Result<Option<&'a [T]>, CriteriaError> {
    match list {
        Some([]) => Err(CriteriaError::EmptyList(name)),
        list => Ok(list),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(written: serde_json::Value) -> Criteria {
        serde_json::from_value(written).unwrap()
    }

    fn anchors(written: serde_json::Value) -> Option<Vec<Anchor>> {
        Predicate::new(&parse(written)).unwrap().anchors()
    }

    fn refused(written: serde_json::Value) -> CriteriaError {
        Predicate::new(&parse(written)).unwrap_err()
    }

    fn source(name: &str) -> Anchor {
        Anchor::Source(Name::new(name).unwrap())
    }

    #[test]
    fn unknown_keys_are_refused() {
        let error = serde_json::from_value::<Criteria>(json!({"sorce": "x"}))
            .unwrap_err()
            .to_string();
        assert!(error.contains("unknown field `sorce`"), "{error}");
        assert!(serde_json::from_value::<Criteria>(json!({"kinds": ["deleted"]})).is_err());
    }

    #[test]
    fn the_narrowest_criterion_anchors() {
        let by_source = anchors(json!({"source": "notes", "path": "**/*.md", "dataType": "note"}));
        assert_eq!(by_source, Some(vec![source("notes")]));
        let by_directory = anchors(json!({"source": "notes", "path": "a/b/*.md"}));
        assert_eq!(by_directory, Some(vec![Anchor::Directory("a/b/".into())]));
        let by_page = anchors(json!({"source": "notes", "pages": ["notes:x"]}));
        assert_eq!(
            by_page,
            Some(vec![Anchor::Page("notes:x".parse().unwrap())])
        );
    }

    #[test]
    fn an_alternative_is_anchored_only_if_each_branch_is() {
        let both = json!({"any": [{"source": "b"}, {"source": "a", "kinds": ["added"]}]});
        assert_eq!(anchors(both), Some(vec![source("a"), source("b")]));
        assert_eq!(
            anchors(json!({"any": [{"source": "a"}, {"path": "*.md"}]})),
            None
        );
        assert_eq!(anchors(json!({"not": {"source": "a"}})), None);
        assert_eq!(anchors(json!({"kinds": ["added"]})), None);
    }

    #[test]
    fn what_says_nothing_or_cannot_match_is_refused() {
        assert_eq!(refused(json!({})), CriteriaError::Empty);
        assert_eq!(refused(json!({"any": []})), CriteriaError::EmptyList("any"));
        assert_eq!(refused(json!({"not": {}})), CriteriaError::Empty);
        assert!(matches!(
            refused(json!({"path": "a["})),
            CriteriaError::Pattern(_)
        ));
    }

    #[test]
    fn nesting_and_size_are_bounded() {
        let mut deep = json!({"source": "a"});
        for _ in 0..=DEPTH_MAX {
            deep = json!({"not": deep});
        }
        assert_eq!(refused(deep), CriteriaError::TooDeep);
        let many: Vec<_> = (0..=PARTS_MAX).map(|n| format!("a:{n}")).collect();
        assert_eq!(refused(json!({"pages": many})), CriteriaError::TooMany);
    }

    #[test]
    fn criteria_keep_their_written_form() {
        let written = json!({"source": "notes", "path": "**/*.md", "kinds": ["added"], "not": {"path": "drafts/**"}});
        assert_eq!(
            serde_json::to_value(parse(written.clone())).unwrap(),
            written
        );
    }
}
