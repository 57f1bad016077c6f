//! Whether a drawn graph is sound: all that is wrong, found at once. Pure.

mod cycles;
mod nodes;

use std::collections::HashMap;

pub(crate) use nodes::listing;
use volary_kernel::Name;

use super::{
    problem::{Problem, ProblemCode},
    sketch::{EGRESS, End, INGRESS, Sketch},
};

/// Most nodes of a flow, and most edges.
const MOST: usize = u16::MAX as usize;

/// Everything that is wrong, in the order: names, nodes, shape.
pub(crate) fn check(sketch: &Sketch) -> Vec<Problem> {
    let mut problems = Vec::new();
    names(sketch, &mut problems);
    nodes::check(sketch, &mut problems);
    problems.extend(sketch.found.iter().cloned());
    if sketch.nodes.len() > MOST || sketch.edges.len() > MOST {
        let (nodes, edges) = (sketch.nodes.len(), sketch.edges.len());
        problems.push(Problem {
            code: ProblemCode::TooLarge,
            place: "the flow".to_owned(),
            message: format!("has {nodes} nodes and {edges} edges"),
            hint: format!("at most {MOST} of each fit; split it into sub-flows"),
        });
        return problems;
    }
    ways(sketch, &mut problems);
    cycles::check(sketch, &mut problems);
    problems
}

/// How a node is shown as a place.
fn node(name: &str) -> String {
    format!("node `{name}`")
}

fn names(sketch: &Sketch, problems: &mut Vec<Problem>) {
    if let Some((message, hint)) = bad_name(&sketch.name) {
        problems.push(Problem {
            code: ProblemCode::BadName,
            place: "the flow".to_owned(),
            message,
            hint,
        });
    }
    let mut seen: HashMap<&str, usize> = HashMap::new();
    for part in &sketch.nodes {
        let name = part.name.as_str();
        let times = seen.entry(name).or_default();
        *times += 1;
        if *times == 2 {
            problems.push(Problem {
                code: ProblemCode::DuplicateName,
                place: node(name),
                message: "another node has this name".to_owned(),
                hint:
                    "give each node a name of its own: events, metrics and routers know it by that"
                        .to_owned(),
            });
        }
        if *times > 1 {
            continue;
        }
        if name == EGRESS || name == INGRESS {
            problems.push(Problem {
                code: ProblemCode::BadName,
                place: node(name),
                message: "this is the name of the flow's own end".to_owned(),
                hint: "choose another name".to_owned(),
            });
        } else if let Some((message, hint)) = bad_name(name) {
            problems.push(Problem {
                code: ProblemCode::BadName,
                place: node(name),
                message,
                hint,
            });
        }
    }
}

/// What is wrong with a name, and what to do.
fn bad_name(name: &str) -> Option<(String, String)> {
    Name::new(name).err()?;
    let rule = "a name is 1 to 63 of a-z, 0-9, '-', '_' and '.', beginning and ending with a letter or digit";
    let message = "is not a name".to_owned();
    Some(match mended(name) {
        Some(better) => (message, format!("write `{better}`: {rule}")),
        None => (message, rule.to_owned()),
    })
}

/// The name that was probably meant.
fn mended(name: &str) -> Option<String> {
    let mut better = String::new();
    let mut after_lower = false;
    for c in name.chars() {
        if c.is_ascii_uppercase() && after_lower {
            better.push('-');
        }
        after_lower = c.is_ascii_lowercase() || c.is_ascii_digit();
        match c.to_ascii_lowercase() {
            c if c.is_ascii_alphanumeric() || matches!(c, '_' | '.') => better.push(c),
            _ if better.ends_with('-') => {}
            _ => better.push('-'),
        }
    }
    let inner = |c: char| !c.is_ascii_alphanumeric();
    let mut better = better.trim_matches(inner);
    if better.len() > 63 {
        better = better[..63].trim_matches(inner);
    }
    Name::new(better).is_ok().then(|| better.to_owned())
}

/// Ways in, ways out, and what no way touches.
fn ways(sketch: &Sketch, problems: &mut Vec<Problem>) {
    let the_flow = |code, message: &str, hint: &str| Problem {
        code,
        place: "the flow".to_owned(),
        message: message.to_owned(),
        hint: hint.to_owned(),
    };
    if sketch.ingress.is_empty() {
        problems.push(the_flow(
            ProblemCode::NoIngress,
            "has no ingress, so that nothing can be emitted into it",
            "name the node that gets what is emitted: b.ingress(node)",
        ));
    } else {
        unreachable(sketch, problems);
    }
    let ends = ends(sketch);
    if ends.contains(&true) {
        dead_ends(sketch, &ends, problems);
    } else {
        problems.push(the_flow(
            ProblemCode::NoEgress,
            "has no egress, so that nobody gets what it computes",
            "name the node whose values are the result: b.egress(node)",
        ));
    }
}

/// Whether a branch may end at each node.
fn ends(sketch: &Sketch) -> Vec<bool> {
    let mut ends: Vec<bool> = sketch.nodes.iter().map(|node| node.ends).collect();
    for edge in sketch.edges.iter().filter(|edge| edge.to == End::Egress) {
        ends[edge.from] = true;
    }
    ends
}

/// All that can be reached from the marked ones.
fn flood(from: Vec<bool>, next: &[Vec<usize>]) -> Vec<bool> {
    let mut reached = from;
    let mut open: Vec<usize> = (0..reached.len()).filter(|node| reached[*node]).collect();
    while let Some(node) = open.pop() {
        for to in &next[node] {
            if !std::mem::replace(&mut reached[*to], true) {
                open.push(*to);
            }
        }
    }
    reached
}

fn reversed(next: &[Vec<usize>]) -> Vec<Vec<usize>> {
    let mut before = vec![Vec::new(); next.len()];
    for (from, all) in next.iter().enumerate() {
        for to in all {
            before[*to].push(from);
        }
    }
    before
}

/// Nodes that nothing reaches. What only follows from another problem is not told again.
fn unreachable(sketch: &Sketch, problems: &mut Vec<Problem>) {
    let next = sketch.successors(|_| true);
    let before = reversed(&next);
    let mut known = vec![false; sketch.nodes.len()];
    for ingress in &sketch.ingress {
        known[*ingress] = true;
    }
    known = flood(known, &next);
    let alone = |node: usize| before[node].iter().all(|from| *from == node);
    for round in [true, false] {
        for ix in 0..sketch.nodes.len() {
            if known[ix] || (round && !alone(ix)) {
                continue;
            }
            let part = &sketch.nodes[ix];
            let name = &part.name;
            let (code, message, hint) = if part.join.is_some() && before[ix].is_empty() {
                (
                    ProblemCode::BadJoin,
                    "has no inputs to join".to_owned(),
                    format!("connect the branches to it: b.connect(branch, {name})"),
                )
            } else if alone(ix) {
                (
                    ProblemCode::Unreachable,
                    "nothing leads to it".to_owned(),
                    "connect a node to it, make it an ingress, or remove it".to_owned(),
                )
            } else {
                (
                    ProblemCode::Unreachable,
                    "only nodes that it leads to lead to it".to_owned(),
                    "connect a node that an ingress reaches to it".to_owned(),
                )
            };
            problems.push(Problem {
                code,
                place: node(name),
                message,
                hint,
            });
            let mut seen = known;
            seen[ix] = true;
            known = flood(seen, &next);
        }
    }
}

/// Nodes whose values get lost, or never come to an end.
fn dead_ends(sketch: &Sketch, ends: &[bool], problems: &mut Vec<Problem>) {
    let next = sketch.successors(|_| true);
    let before = reversed(&next);
    let dead = |node: usize| next[node].is_empty() && !ends[node];
    for (ix, part) in sketch.nodes.iter().enumerate() {
        if dead(ix) && part.kind != super::describe::NodeKind::Switch {
            problems.push(Problem {
                code: ProblemCode::DeadEnd,
                place: node(&part.name),
                message: format!("the {} it hands on goes nowhere", short(part.output)),
                hint: "connect it to a node, make it an egress, or add it with b.sink".to_owned(),
            });
        }
    }
    let told: Vec<bool> = (0..next.len())
        .map(|node| ends[node] || dead(node))
        .collect();
    let mut leads = flood(told, &before);
    for ix in 0..leads.len() {
        if leads[ix] {
            continue;
        }
        problems.push(Problem {
            code: ProblemCode::Endless,
            place: node(&sketch.nodes[ix].name),
            message: "no way leads from it to an egress: it only goes round".to_owned(),
            hint: "connect a node of the cycle to the egress, or let a step finish the trace"
                .to_owned(),
        });
        let mut group = vec![false; leads.len()];
        group[ix] = true;
        let (ahead, behind) = (flood(group.clone(), &next), flood(group, &before));
        for other in 0..leads.len() {
            leads[other] |= ahead[other] || behind[other];
        }
    }
}

fn short(full: &str) -> String {
    format!("`{}`", super::sketch::short_type(full))
}
