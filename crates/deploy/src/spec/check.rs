//! The check of a tree against its shape: it reports every problem at once. Pure.

use super::{
    codes,
    hint::{listing, near},
    problem::{Problem, Problems},
    rules::{Bad, Rule, clip},
    shape::{Shape, Table, describe, find_key, join, takes},
    source::{SourceFile, Span},
    tree::{Key, Node, Value},
};

/// Reports everything in `root` that does not fit `table`.
pub(crate) fn check(
    file: &SourceFile,
    root: &Node,
    table: &'static Table,
    problems: &mut Problems,
) {
    let mut check = Check {
        found: 0,
        file,
        root: table,
        problems,
    };
    match &root.value {
        Value::Map(entries) => check.object(entries, table, "", root.span),
        _ => {
            let message = format!("a manifest must be a mapping, found {}", root.kind());
            check
                .problems
                .push(Problem::at(&codes::WRONG_TYPE, file, root.span, message));
        }
    }
}

/// Most problems that the shape of one file gives; with more it is not a manifest, and each costs time.
const MAX_PROBLEMS: usize = 200;

struct Check<'a> {
    found: usize,
    file: &'a SourceFile,
    root: &'static Table,
    problems: &'a mut Problems,
}

impl Check<'_> {
    fn push(&mut self, problem: Problem) {
        self.found += 1;
        self.problems.push(problem);
    }

    fn wrong_type(&mut self, node: &Node, path: &str, expected: &str, hint: Option<String>) {
        let message = format!("`{path}` must be {expected}, found {}", node.kind());
        self.push(Problem::at(&codes::WRONG_TYPE, self.file, node.span, message).maybe_hint(hint));
    }

    fn node(&mut self, node: &Node, shape: &'static Shape, path: &str, key: Span) {
        if matches!(node.value, Value::Broken) || self.found >= MAX_PROBLEMS {
            return;
        }
        if matches!(node.value, Value::Null) && !matches!(shape, Shape::Any) {
            let message = format!("`{path}` has no value, expected {}", describe(shape));
            self.push(
                Problem::at(&codes::NO_VALUE, self.file, key, message)
                    .hint("give it a value, or remove the key"),
            );
            return;
        }
        match (shape, &node.value) {
            (Shape::Either(shapes), _) => self.either(node, shapes, path, key),
            (Shape::Text(rule), Value::Scalar { text, plain }) => {
                self.text(node, rule, text, *plain, path)
            }
            (Shape::Choice(words), Value::Scalar { text, .. }) => {
                self.choice(node, words, text, path)
            }
            (Shape::Bool, Value::Scalar { text, plain }) => self.bool(node, text, *plain, path),
            (Shape::Int(low, high), Value::Scalar { text, plain }) => {
                self.number(
                    node,
                    text,
                    *plain,
                    (*low as f64, *high as f64),
                    Whole::Yes,
                    path,
                );
            }
            (Shape::Number(low, high), Value::Scalar { text, plain }) => {
                self.number(node, text, *plain, (*low, *high), Whole::No, path);
            }
            (Shape::List(item), Value::List(items)) => {
                for (index, node) in items.iter().enumerate() {
                    self.node(node, item, &format!("{path}[{index}]"), node.span);
                }
            }
            (Shape::Map(rule, value), Value::Map(entries)) => self.map(entries, rule, value, path),
            (Shape::Object(table), Value::Map(entries)) => self.object(entries, table, path, key),
            (Shape::Any, _) => {}
            _ => self.wrong_type(node, path, &describe(shape), list_hint(shape, node)),
        }
    }

    fn either(&mut self, node: &Node, shapes: &'static [Shape], path: &str, key: Span) {
        match shapes.iter().find(|shape| takes(shape, &node.value)) {
            Some(shape) => self.node(node, shape, path, key),
            None => {
                let all: Vec<_> = shapes.iter().map(describe).collect();
                self.wrong_type(node, path, &all.join(", or "), None);
            }
        }
    }

    fn text(&mut self, node: &Node, rule: &'static Rule, text: &str, plain: bool, path: &str) {
        if text.contains('\0') {
            let message = format!("`{path}` must not hold a NUL character");
            self.push(Problem::at(
                &codes::WRONG_TYPE,
                self.file,
                node.span,
                message,
            ));
            return;
        }
        if plain && !rule.scalar && node.kind() != "text" && (rule.check)(text).is_err() {
            self.wrong_type(node, path, rule.expects, None);
            return;
        }
        if let Err(Bad { message, hint }) = (rule.check)(text) {
            let joint = if message.starts_with("must ") {
                " "
            } else {
                ": "
            };
            let message = format!("`{path}`{joint}{message}");
            self.push(Problem::at(rule.code, self.file, node.span, message).maybe_hint(hint));
        }
    }

    fn choice(&mut self, node: &Node, words: &'static [&'static str], text: &str, path: &str) {
        if words.contains(&text) {
            return;
        }
        let message = format!(
            "`{path}` must be {}, found `{}`",
            listing(words, "or"),
            clip(text)
        );
        let hint = near(text, words.iter().copied()).map(|near| format!("did you mean `{near}`?"));
        self.push(
            Problem::at(&codes::UNKNOWN_VALUE, self.file, node.span, message).maybe_hint(hint),
        );
    }

    fn bool(&mut self, node: &Node, text: &str, plain: bool, path: &str) {
        if plain && matches!(text, "true" | "false") {
            return;
        }
        let word = match text.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "y" | "1" => Some("true"),
            "false" | "no" | "off" | "n" | "0" => Some("false"),
            _ => None,
        };
        let hint = word.map(|word| format!("write {word}, without quotes"));
        let message = format!("`{path}` must be true or false, found `{}`", clip(text));
        self.push(Problem::at(&codes::WRONG_TYPE, self.file, node.span, message).maybe_hint(hint));
    }

    fn number(
        &mut self,
        node: &Node,
        text: &str,
        plain: bool,
        (low, high): (f64, f64),
        whole: Whole,
        path: &str,
    ) {
        let expected = if whole == Whole::Yes {
            "a whole number"
        } else {
            "a number"
        };
        // `010` is ten for some tools and eight for others.
        let zeros = text.len() > 1 && text.starts_with('0');
        let number = match whole {
            Whole::Yes if zeros || text.starts_with('+') || text == "-0" => None,
            Whole::Yes => text.parse::<i64>().ok().map(|number| number as f64),
            Whole::No => text.parse::<f64>().ok().filter(|number| number.is_finite()),
        };
        match number {
            Some(_) if !plain => {
                self.wrong_type(node, path, expected, Some("remove the quotes".into()))
            }
            Some(number) if !(low..=high).contains(&number) => {
                let message = format!(
                    "`{path}` must be {expected} from {low} to {high}, found {}",
                    clip(text)
                );
                self.push(Problem::at(
                    &codes::OUT_OF_RANGE,
                    self.file,
                    node.span,
                    message,
                ));
            }
            Some(_) => {}
            None => {
                let message = format!("`{path}` must be {expected}, found `{}`", clip(text));
                self.push(Problem::at(
                    &codes::WRONG_TYPE,
                    self.file,
                    node.span,
                    message,
                ));
            }
        }
    }

    fn map(
        &mut self,
        entries: &[(Key, Node)],
        rule: &'static Rule,
        value: &'static Shape,
        path: &str,
    ) {
        for (key, node) in entries {
            if let Err(Bad { message, hint }) = (rule.check)(&key.text) {
                let message = format!("key `{}` of `{path}` {message}", clip(&key.text));
                self.push(Problem::at(rule.code, self.file, key.span, message).maybe_hint(hint));
            }
            self.node(node, value, &join(path, &clip(&key.text)), key.span);
        }
    }

    fn object(&mut self, entries: &[(Key, Node)], table: &'static Table, path: &str, at: Span) {
        for (key, node) in entries {
            match table.fields.iter().find(|field| field.key == key.text) {
                Some(field) => self.node(node, &field.shape, &join(path, field.key), key.span),
                None => self.unknown(key, table, path),
            }
        }
        // A key that is misspelt is not missing too.
        let meant = |wanted: &str| {
            let mut keys = entries.iter().map(|(key, _)| key.text.as_str());
            keys.any(|key| key == wanted || table.meant(key) == Some(wanted))
        };
        for field in table.fields.iter().filter(|field| field.required) {
            if !meant(field.key) {
                let message = format!(
                    "{} has no `{}`, expected {}",
                    place(path),
                    field.key,
                    describe(&field.shape)
                );
                self.push(Problem::at(&codes::MISSING_KEY, self.file, at, message));
            }
        }
    }

    fn unknown(&mut self, key: &Key, table: &'static Table, path: &str) {
        if self.found >= MAX_PROBLEMS {
            return;
        }
        let message = format!("unknown key `{}` in {}", clip(&key.text), place(path));
        let problem = Problem::at(&codes::UNKNOWN_KEY, self.file, key.span, message);
        self.push(problem.hint(self.advise(&key.text, table)));
    }

    /// A near miss here, the same key elsewhere, or the keys there are.
    fn advise(&self, key: &str, table: &'static Table) -> String {
        if let Some(near) = table.meant(key) {
            return format!("did you mean `{near}`?");
        }
        if let Some(place) = find_key(self.root, key, "", 0).first() {
            return format!("`{key}` belongs under `{place}`");
        }
        let keys: Vec<_> = table.fields.iter().map(|field| field.key).collect();
        match keys.len() {
            0..=12 => format!("known keys are {}", listing(&keys, "and")),
            _ => "`volary schema` prints all known keys".to_owned(),
        }
    }
}

#[derive(PartialEq, Eq)]
enum Whole {
    Yes,
    No,
}

fn place(path: &str) -> String {
    if path.is_empty() {
        "the manifest".to_owned()
    } else {
        format!("`{path}`")
    }
}

fn list_hint(shape: &Shape, node: &Node) -> Option<String> {
    match (shape, &node.value) {
        (Shape::List(_), Value::Scalar { text, .. }) => Some(format!("write `[{}]`", clip(text))),
        (Shape::List(_), Value::Map(_)) => Some("begin each item with `- `".to_owned()),
        _ => None,
    }
}
