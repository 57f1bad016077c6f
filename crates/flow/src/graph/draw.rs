//! Pictures of a described flow, as Mermaid and as DOT. Pure.

use std::{collections::HashSet, fmt::Write as _, str::FromStr};

use super::{
    describe::{Description, NodeDescription, NodeKind},
    sketch::{EGRESS, INGRESS},
};

/// Which way a picture runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Direction {
    /// From left to right.
    #[default]
    LeftToRight,
    /// From top to bottom.
    TopToBottom,
    /// From right to left.
    RightToLeft,
    /// From bottom to top.
    BottomToTop,
}

impl Direction {
    /// As Mermaid and Graphviz write it: `LR`, `TB`, `RL`, `BT`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::LeftToRight => "LR",
            Self::TopToBottom => "TB",
            Self::RightToLeft => "RL",
            Self::BottomToTop => "BT",
        }
    }
}

/// A text that names no direction.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("direction must be one of LR, TB, RL, BT, found `{0}`")]
pub struct DirectionError(String);

/// From `LR`, `TB` (or `TD`), `RL`, `BT`, in either case.
impl FromStr for Direction {
    type Err = DirectionError;
    fn from_str(text: &str) -> Result<Self, DirectionError> {
        match text.to_ascii_uppercase().as_str() {
            "LR" => Ok(Self::LeftToRight),
            "TB" | "TD" => Ok(Self::TopToBottom),
            "RL" => Ok(Self::RightToLeft),
            "BT" => Ok(Self::BottomToTop),
            _ => Err(DirectionError(text.chars().take(80).collect())),
        }
    }
}

/// A Mermaid flowchart.
pub(crate) fn mermaid(flow: &Description, direction: Direction) -> String {
    let ids = ids(flow);
    let mut text = format!("flowchart {}\n", direction.as_str());
    let mut line = |line: String| {
        text.push_str("    ");
        text.push_str(&line);
        text.push('\n');
    };
    if !flow.ingress.is_empty() {
        line(format!("{INGRESS}([\"{INGRESS}\"]):::{INGRESS}"));
    }
    for (node, id) in flow.nodes.iter().zip(&ids) {
        let label = mermaid_text(&node.name);
        let (open, close) = match node.kind {
            NodeKind::Route | NodeKind::Switch => ("{", "}"),
            NodeKind::Join => ("{{", "}}"),
            NodeKind::Subflow => ("[[", "]]"),
            NodeKind::Sink => ("[(", ")]"),
            _ => ("[", "]"),
        };
        line(format!("{id}{open}\"{label}\"{close}:::{}", class(node)));
    }
    if !flow.egress.is_empty() {
        line(format!("{EGRESS}([\"{EGRESS}\"]):::{EGRESS}"));
    }
    let id_of = |name: &str| find(flow, &ids, name);
    for name in &flow.ingress {
        line(format!("{INGRESS} --> {}", id_of(name)));
    }
    for edge in &flow.edges {
        let (from, to) = (id_of(&edge.from), id_of(&edge.to));
        let label = edge.label.as_deref().map(mermaid_text);
        line(match (edge.back, label) {
            (true, None) => format!("{from} -. \"loop\" .-> {to}"),
            (true, Some(label)) => format!("{from} -. \"loop: {label}\" .-> {to}"),
            (false, None) => format!("{from} --> {to}"),
            (false, Some(label)) => format!("{from} -- \"{label}\" --> {to}"),
        });
    }
    for name in &flow.egress {
        line(format!("{} --> {EGRESS}", id_of(name)));
    }
    for (class, style) in [
        (INGRESS, "fill:#e7f5ff,stroke:#1971c2"),
        (EGRESS, "fill:#ebfbee,stroke:#2f9e44"),
        ("code", "fill:#f8f9fa,stroke:#495057"),
        ("choice", "fill:#fff9db,stroke:#f08c00"),
        ("join", "fill:#f3f0ff,stroke:#6741d9"),
        ("subflow", "fill:#fff0f6,stroke:#c2255c"),
    ] {
        line(format!("classDef {class} {style}"));
    }
    text
}

/// A digraph for Graphviz.
pub(crate) fn dot(flow: &Description, direction: Direction) -> String {
    let ids = ids(flow);
    let mut text = format!("digraph \"{}\" {{\n", dot_text(&flow.flow));
    let mut line = |line: String| {
        let _ = writeln!(text, "    {line}");
    };
    line(format!("rankdir={};", direction.as_str()));
    line("node [shape=box, style=rounded];".to_owned());
    if !flow.ingress.is_empty() {
        line(format!(
            "{INGRESS} [label=\"{INGRESS}\", shape=oval, class=\"{INGRESS}\"];"
        ));
    }
    for (node, id) in flow.nodes.iter().zip(&ids) {
        let shape = match node.kind {
            NodeKind::Route | NodeKind::Switch => ", shape=diamond",
            NodeKind::Join => ", shape=hexagon",
            NodeKind::Subflow => ", shape=box3d",
            NodeKind::Sink => ", shape=cylinder",
            _ => "",
        };
        let label = dot_text(&node.name);
        line(format!(
            "{id} [label=\"{label}\"{shape}, class=\"{}\"];",
            class(node)
        ));
    }
    if !flow.egress.is_empty() {
        line(format!(
            "{EGRESS} [label=\"{EGRESS}\", shape=oval, class=\"{EGRESS}\"];"
        ));
    }
    let id_of = |name: &str| find(flow, &ids, name);
    for name in &flow.ingress {
        line(format!("{INGRESS} -> {};", id_of(name)));
    }
    for edge in &flow.edges {
        let (from, to) = (id_of(&edge.from), id_of(&edge.to));
        let label = edge.label.as_deref().map(dot_text);
        line(match (edge.back, label) {
            (true, None) => {
                format!("{from} -> {to} [label=\"loop\", style=dashed, class=\"loop\"];")
            }
            (true, Some(label)) => {
                format!("{from} -> {to} [label=\"loop: {label}\", style=dashed, class=\"loop\"];")
            }
            (false, None) => format!("{from} -> {to};"),
            (false, Some(label)) => format!("{from} -> {to} [label=\"{label}\"];"),
        });
    }
    for name in &flow.egress {
        line(format!("{} -> {EGRESS};", id_of(name)));
    }
    text.push_str("}\n");
    text
}

const fn class(node: &NodeDescription) -> &'static str {
    match node.kind {
        NodeKind::Route | NodeKind::Switch => "choice",
        NodeKind::Join => "join",
        NodeKind::Subflow => "subflow",
        _ => "code",
    }
}

/// An id per node: its name with everything but letters and digits as `_`, behind a prefix that keeps it from being a
/// word of the picture's language, and numbered where names fall together.
fn ids(flow: &Description) -> Vec<String> {
    let mut taken = HashSet::new();
    let mut ids = Vec::with_capacity(flow.nodes.len());
    for node in &flow.nodes {
        let stem = format!("n_{}", plain(&node.name));
        let mut id = stem.clone();
        let mut number = 2;
        while !taken.insert(id.clone()) {
            id = format!("{stem}_{number}");
            number += 1;
        }
        ids.push(id);
    }
    ids
}

/// Letters and digits, all else as `_`.
fn plain(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    name.chars().map(plain).collect()
}

/// The id of the node of this name. One that a description made by hand lacks is drawn by its name.
fn find(flow: &Description, ids: &[String], name: &str) -> String {
    let place = flow.nodes.iter().position(|node| node.name == name);
    place.map_or_else(|| format!("x_{}", plain(name)), |place| ids[place].clone())
}

/// Text inside quotes of Mermaid, which has entities for what would end them.
fn mermaid_text(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '"' => safe.push_str("#quot;"),
            '#' => safe.push_str("#35;"),
            '<' => safe.push_str("#lt;"),
            '>' => safe.push_str("#gt;"),
            '`' => safe.push_str("#96;"),
            c if c.is_control() => safe.push(' '),
            c => safe.push(c),
        }
    }
    safe
}

/// Text inside quotes of DOT.
fn dot_text(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '"' => safe.push_str("\\\""),
            '\\' => safe.push_str("\\\\"),
            c if c.is_control() => safe.push(' '),
            c => safe.push(c),
        }
    }
    safe
}
