//! YAML text to a small tree with places.
//!
//! The lexing and parsing is granit-parser's; this module keeps what typed deserialising would lose: every place, every
//! duplicate key, and the text of a plain scalar as it was written (`yes` stays `yes`, `1.10` stays `1.10`). A tree is
//! bounded in depth and size, also after its aliases are put in.

use std::collections::HashMap;

use granit_parser::{ErrorKind, Event, Parser, ScalarStyle, ScanError, Span as RawSpan, Tag};

use super::{
    codes::{self, CodeInfo},
    problem::{Problem, Problems},
    source::{SourceFile, Span},
};

/// Deepest nesting: manifests need about ten levels.
const MAX_DEPTH: usize = 64;
/// Most nodes, aliases put in: a fleet of a hundred long agents has about a tenth.
const MAX_NODES: usize = 50_000;

/// Most items of one list and keys of one mapping: what a person writes is far shorter, and checks may look at pairs.
const MAX_ENTRIES: usize = 1000;

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub span: Span,
    pub value: Value,
}

#[derive(Debug, Clone)]
pub(crate) enum Value {
    /// Something that has been reported and is skipped from then on.
    Broken,
    /// Nothing, `~` or `null`.
    Null,
    /// Text, and whether it was written without quotes.
    Scalar {
        text: String,
        plain: bool,
    },
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// A key of a mapping and where it stands.
#[derive(Debug, Clone)]
pub(crate) struct Key {
    pub text: String,
    pub span: Span,
}

impl Node {
    /// What it is, for messages.
    pub fn kind(&self) -> &'static str {
        match &self.value {
            Value::Null | Value::Broken => "nothing",
            Value::Scalar { plain: true, text } if text == "true" || text == "false" => {
                "true or false"
            }
            Value::Scalar { plain: true, text } if text.parse::<f64>().is_ok() => "a number",
            Value::Scalar { .. } => "text",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }

    fn size(&self) -> usize {
        1 + match &self.value {
            Value::Broken | Value::Null | Value::Scalar { .. } => 0,
            Value::List(items) => items.iter().map(Self::size).sum(),
            Value::Map(entries) => entries.iter().map(|(_, node)| 1 + node.size()).sum(),
        }
    }
}

/// The tree of a file's one document. `None` if there is none to work with; then an error was pushed.
pub(crate) fn parse(file: &SourceFile, problems: &mut Problems) -> Option<Node> {
    let options = granit_parser::options! {
        emit_comments: false,
        emit_unresolved_aliases: true,
        flow_nesting_limit: MAX_DEPTH,
        block_nesting_limit: MAX_DEPTH,
    };
    let mut builder = Builder {
        file,
        problems,
        open: Vec::new(),
        anchors: HashMap::new(),
        root: None,
        nodes: 0,
        documents: 0,
    };
    for event in Parser::new_from_str_with_options(&file.text, options) {
        match event {
            Ok((event, raw)) => {
                if builder.take(event, raw).is_err() {
                    return None;
                }
            }
            Err(error) => {
                builder.problems.push(syntax_problem(file, &error));
                return None;
            }
        }
    }
    let root = builder
        .root
        .filter(|root| !matches!(root.value, Value::Null));
    if root.is_none() {
        problems.push(Problem::of_file(
            &codes::EMPTY,
            &file.path,
            "the file is empty",
        ));
    }
    root
}

fn span_of(raw: RawSpan) -> Span {
    let (start, end) = raw
        .byte_range()
        .map_or((0, 0), |range| (range.start, range.end));
    let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
    Span {
        start,
        end,
        line: number(raw.start.line()),
        column: number(raw.start.col() + 1),
    }
}

fn syntax_problem(file: &SourceFile, error: &ScanError) -> Problem {
    let marker = *error.marker();
    let span = span_of(RawSpan::empty(marker));
    match error.kind() {
        ErrorKind::TabNotAllowed
        | ErrorKind::TabInBlockIndentation
        | ErrorKind::TabInIndentation
        | ErrorKind::TabAtBlockScalarStart
        | ErrorKind::TabInPlainScalar => {
            Problem::at(&codes::TAB, file, span, "a tab is used for indentation")
                .hint("indent with spaces")
        }
        ErrorKind::RecursionLimitExceeded => Problem::at(
            &codes::LIMIT,
            file,
            span,
            format!("nested deeper than {MAX_DEPTH} levels"),
        ),
        _ => Problem::at(
            &codes::SYNTAX,
            file,
            span,
            format!("not valid YAML: {}", error.info()),
        )
        .hint("a missing quote, bracket, colon or indentation is here or on a line above"),
    }
}

/// The tree must be given up; the reason has been pushed.
struct GiveUp;

struct Builder<'a> {
    file: &'a SourceFile,
    problems: &'a mut Problems,
    open: Vec<Open>,
    anchors: HashMap<usize, Node>,
    root: Option<Node>,
    nodes: usize,
    documents: usize,
}

/// A list or mapping that has begun.
struct Open {
    span: Span,
    anchor: usize,
    items: Items,
}

enum Items {
    List(Vec<Node>),
    Map {
        entries: Vec<(Key, Node)>,
        key: Option<Option<Key>>,
    },
}

impl Builder<'_> {
    fn push(
        &mut self,
        code: &'static CodeInfo,
        span: Span,
        message: impl Into<String>,
        hint: &str,
    ) {
        let problem = Problem::at(code, self.file, span, message);
        self.problems.push(if hint.is_empty() {
            problem
        } else {
            problem.hint(hint)
        });
    }

    fn take(&mut self, event: Event<'_>, raw: RawSpan) -> Result<(), GiveUp> {
        let span = span_of(raw);
        let tag_at = raw.tag_span().map_or(span, span_of);
        match event {
            Event::DocumentStart(..) => return self.begin_document(span),
            Event::Alias(id) => return self.alias(id, span),
            Event::UnresolvedAlias(name) => return self.lost_alias(&name, span),
            Event::Scalar(text, style, anchor, tag) => {
                let text_tag = self.check_tag(tag.as_deref(), tag_at);
                let plain = style == ScalarStyle::Plain && !text_tag;
                let null = plain && matches!(&*text, "" | "~" | "null" | "Null" | "NULL");
                let value = if null {
                    Value::Null
                } else {
                    Value::Scalar {
                        text: text.into_owned(),
                        plain,
                    }
                };
                return self.add(Node { span, value }, anchor);
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.check_tag(tag.as_deref(), tag_at);
                self.open.push(Open {
                    span,
                    anchor,
                    items: Items::List(Vec::new()),
                });
            }
            Event::MappingStart(_, anchor, tag) => {
                self.check_tag(tag.as_deref(), tag_at);
                self.open.push(Open {
                    span,
                    anchor,
                    items: Items::Map {
                        entries: Vec::new(),
                        key: None,
                    },
                });
            }
            Event::SequenceEnd | Event::MappingEnd => return self.close(span),
            _ => {}
        }
        if self.open.len() > MAX_DEPTH {
            self.push(
                &codes::LIMIT,
                span,
                format!("nested deeper than {MAX_DEPTH} levels"),
                "",
            );
            return Err(GiveUp);
        }
        Ok(())
    }

    fn lost_alias(&mut self, name: &str, span: Span) -> Result<(), GiveUp> {
        let message = format!("alias `*{name}` has no anchor `&{name}` before it");
        let hint = "to begin a value with `*`, put it in quotes";
        self.push(&codes::YAML_FEATURE, span, message, hint);
        let value = Value::Broken;
        self.add(Node { span, value }, 0)
    }

    fn begin_document(&mut self, span: Span) -> Result<(), GiveUp> {
        self.documents += 1;
        if self.documents > 1 {
            let hint = "put each manifest into a file of its own";
            self.push(
                &codes::MANY_DOCUMENTS,
                span,
                "a second YAML document begins here",
                hint,
            );
            return Err(GiveUp);
        }
        Ok(())
    }

    /// Whether the tag makes a text of what follows. Other tags are refused.
    fn check_tag(&mut self, tag: Option<&Tag>, span: Span) -> bool {
        let Some(tag) = tag else { return false };
        if tag.is_yaml_core_schema_tag("str") {
            return true;
        }
        self.push(
            &codes::YAML_FEATURE,
            span,
            format!("tag `{}` is not used in manifests", tag.original()),
            "remove the tag",
        );
        false
    }

    fn alias(&mut self, id: usize, span: Span) -> Result<(), GiveUp> {
        let Some(node) = self.anchors.get(&id).cloned() else {
            self.push(
                &codes::YAML_FEATURE,
                span,
                "the alias stands inside the value that it stands for",
                "",
            );
            return Err(GiveUp);
        };
        self.grow(node.size(), span)?;
        self.add(node, 0)
    }

    fn close(&mut self, end: Span) -> Result<(), GiveUp> {
        let Some(open) = self.open.pop() else {
            return Ok(());
        };
        let value = match open.items {
            Items::List(items) => Value::List(items),
            Items::Map { entries, .. } => Value::Map(entries),
        };
        let span = Span {
            end: end.end.max(open.span.end),
            ..open.span
        };
        self.add(Node { span, value }, open.anchor)
    }

    /// Counts nodes against the limit.
    fn grow(&mut self, nodes: usize, span: Span) -> Result<(), GiveUp> {
        self.nodes += nodes;
        let entries = self.open.last().map_or(0, |open| match &open.items {
            Items::List(items) => items.len(),
            Items::Map { entries, .. } => entries.len(),
        });
        let message = match (self.nodes > MAX_NODES, entries >= MAX_ENTRIES) {
            (true, _) => format!("more than {MAX_NODES} nodes once aliases are put in"),
            (_, true) => format!("more than {MAX_ENTRIES} entries in one list or mapping"),
            _ => return Ok(()),
        };
        self.push(&codes::LIMIT, span, message, "");
        Err(GiveUp)
    }

    /// Puts a finished node where it belongs: as the root, an item, a key or a value.
    fn add(&mut self, node: Node, anchor: usize) -> Result<(), GiveUp> {
        self.grow(1, node.span)?;
        if anchor != 0 {
            // What an anchor holds is kept twice.
            self.grow(node.size(), node.span)?;
            self.anchors.insert(anchor, node.clone());
        }
        let pending = match self.open.last_mut().map(|open| &mut open.items) {
            None => {
                self.root = Some(node);
                return Ok(());
            }
            Some(Items::List(items)) => {
                items.push(node);
                return Ok(());
            }
            Some(Items::Map { key, .. }) => key.take(),
        };
        match pending {
            None => {
                let key = self.key_of(node);
                self.set_key(key);
            }
            Some(None) => {}
            Some(Some(key)) => self.insert(key, node),
        }
        Ok(())
    }

    fn set_key(&mut self, new: Option<Key>) {
        if let Some(Open {
            items: Items::Map { key, .. },
            ..
        }) = self.open.last_mut()
        {
            *key = Some(new);
        }
    }

    /// A key, or `None` if what stands there cannot be one; its value is then dropped.
    fn key_of(&mut self, node: Node) -> Option<Key> {
        match node.value {
            Value::Scalar { text, plain: true } if text == "<<" => {
                self.push(
                    &codes::YAML_FEATURE,
                    node.span,
                    "merge keys (`<<`) are not used in manifests",
                    "write the keys out",
                );
                None
            }
            Value::Scalar { text, .. } => Some(Key {
                text,
                span: node.span,
            }),
            _ => {
                self.push(
                    &codes::YAML_FEATURE,
                    node.span,
                    format!("a key must be text, found {}", node.kind()),
                    "",
                );
                None
            }
        }
    }

    fn insert(&mut self, key: Key, node: Node) {
        let Some(Open {
            items: Items::Map { entries, .. },
            ..
        }) = self.open.last_mut()
        else {
            return;
        };
        match entries.iter().find(|(other, _)| other.text == key.text) {
            None => entries.push((key, node)),
            Some((first, _)) => {
                let message = format!("key `{}` stands here a second time", key.text);
                let problem = Problem::at(&codes::DUPLICATE_KEY, self.file, key.span, message);
                self.problems
                    .push(problem.related(self.file, first.span, "it first stands here"));
            }
        }
    }
}
