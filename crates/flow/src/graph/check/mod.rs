//! Whether a drawn graph is sound: all that is wrong, found at once. Pure.

mod cycles;
mod nodes;

use std::collections::HashMap;

pub(crate) use nodes::listing;
use volary_kernel::Name;

use super::{
    describe::NodeKind,
    problem::{Problem, ProblemCode},
    sketch::{EGRESS, End, INGRESS, NodeSketch, Sketch},
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
    let (ends, ways_out) = ends(sketch);
    if ways_out.contains(&true) {
        dead_ends(sketch, &ends, &ways_out, problems);
    } else {
        problems.push(the_flow(
            ProblemCode::NoEgress,
            "has no egress, so that nobody gets what it computes",
            "name the node whose values are the result: b.egress(node)",
        ));
    }
}

/// Whether a branch may end at each node without a successor; and whether a trace can come to its end there at all, which it
/// can at every step, as that may give the final answer.
fn ends(sketch: &Sketch) -> (Vec<bool>, Vec<bool>) {
    let mut ends: Vec<bool> = sketch.nodes.iter().map(|node| node.ends).collect();
    for edge in sketch.edges.iter().filter(|edge| edge.to == End::Egress) {
        ends[edge.from] = true;
    }
    let out = |(ix, node): (usize, &NodeSketch)| ends[ix] || node.kind == NodeKind::Step;
    let ways_out = sketch.nodes.iter().enumerate().map(out).collect();
    (ends, ways_out)
}

/// All that can be reached from the marked ones.
fn flood(mut from: Vec<bool>, next: &[Vec<usize>]) -> Vec<bool> {
    let marked = (0..from.len()).filter(|node| from[*node]).collect();
    spread(&mut from, marked, next);
    from
}

/// Marks a node and all that can be reached from it, where all is marked that can be reached from what is. However often it
/// is called with one set of marks, each edge is looked at once.
fn flood_from(reached: &mut [bool], node: usize, next: &[Vec<usize>]) {
    if !std::mem::replace(&mut reached[node], true) {
        spread(reached, vec![node], next);
    }
}

fn spread(reached: &mut [bool], mut open: Vec<usize>, next: &[Vec<usize>]) {
    while let Some(node) = open.pop() {
        for to in &next[node] {
            if !std::mem::replace(&mut reached[*to], true) {
                open.push(*to);
            }
        }
    }
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
            flood_from(&mut known, ix, &next);
        }
    }
}

/// Nodes whose values get lost, or never come to an end.
fn dead_ends(sketch: &Sketch, ends: &[bool], ways_out: &[bool], problems: &mut Vec<Problem>) {
    let next = sketch.successors(|_| true);
    let before = reversed(&next);
    let dead = |node: usize| next[node].is_empty() && !ends[node];
    for (ix, part) in sketch.nodes.iter().enumerate() {
        if dead(ix) && part.kind != NodeKind::Switch {
            problems.push(Problem {
                code: ProblemCode::DeadEnd,
                place: node(&part.name),
                message: format!("the {} it hands on goes nowhere", short(part.output)),
                hint: "connect it to a node, make it an egress, or add it with b.sink".to_owned(),
            });
        }
    }
    let told: Vec<bool> = (0..next.len())
        .map(|node| ways_out[node] || dead(node))
        .collect();
    let leads = flood(told, &before);
    // All ahead of one that was told of, and all behind one.
    let (mut ahead, mut behind) = (vec![false; leads.len()], vec![false; leads.len()]);
    for ix in 0..leads.len() {
        if leads[ix] || ahead[ix] || behind[ix] {
            continue;
        }
        problems.push(Problem {
            code: ProblemCode::Endless,
            place: node(&sketch.nodes[ix].name),
            message: "no way leads from it to an egress: it only goes round".to_owned(),
            hint: "connect a node of the cycle to the egress, or let a step finish the trace"
                .to_owned(),
        });
        flood_from(&mut ahead, ix, &next);
        flood_from(&mut behind, ix, &before);
    }
}

fn short(full: &str) -> String {
    format!("`{}`", super::sketch::short_type(full))
}

#[cfg(test)]
mod tests {
    use crate::{
        Context, Emit, FlowBuilder, NodeError,
        graph::{BuildErrors, Flow, JoinPolicy, ProblemCode},
        policy::{NodePolicy, wrong_everywhere},
    };

    async fn pass<T>(value: T, _: Context) -> Result<T, NodeError> {
        Ok(value)
    }

    fn lines(built: Result<Flow<u64, u64>, BuildErrors>) -> Vec<String> {
        let errors = built.expect_err("the graph is wrong");
        errors.problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_empty_graph_has_no_way_in_and_no_way_out() {
        let lines = lines(FlowBuilder::new("empty").build());
        assert_eq!(
            lines,
            [
                "the flow: has no ingress, so that nothing can be emitted into it; name the node that gets what is \
                 emitted: b.ingress(node)",
                "the flow: has no egress, so that nobody gets what it computes; name the node whose values are the \
                 result: b.egress(node)",
            ]
        );
    }

    #[test]
    fn nodes_without_a_way_to_or_from_them_are_told_once_each_by_their_cause() {
        let mut b = FlowBuilder::new("ways");
        let way = b.node("way", pass);
        let dead = b.node("dead", pass::<u64>);
        let lost = b.node("lost", pass::<u64>);
        let after = b.node("after-lost", pass);
        let round = b.node("round", pass);
        let about = b.node("about", pass);
        b.connect(way, dead)
            .connect(lost, after)
            .connect(way, round);
        b.connect(round, about).connect_back(about, round);
        b.ingress(way).egress(way).egress(after);
        assert_eq!(
            lines(b.build()),
            [
                "node `lost`: nothing leads to it; connect a node to it, make it an ingress, or remove it",
                "node `dead`: the `u64` it hands on goes nowhere; connect it to a node, make it an egress, or add it \
                 with b.sink",
                "node `round`: no way leads from it to an egress: it only goes round; connect a node of the cycle to \
                 the egress, or let a step finish the trace",
            ]
        );
    }

    #[test]
    fn sinks_and_steps_that_only_finish_need_no_successor_and_other_steps_do() {
        let mut b = FlowBuilder::<u64, u64>::new("ends");
        let split = b.node("split", pass);
        let audit = b.sink("audit", |_: u64, _| async move { Ok(()) });
        let answer = b.step("answer", |n: u64, _| async move {
            Ok(Emit::<std::convert::Infallible, u64>::Finish(n))
        });
        b.connect(split, audit)
            .connect(split, answer)
            .ingress(split);
        assert!(b.build().is_ok());

        let mut b = FlowBuilder::<u64, u64>::new("ends");
        let step = b.step("step", |n: u64, _| async move { Ok(Emit::Next(n)) });
        b.ingress(step);
        assert!(lines(b.build())[0].starts_with("node `step`: the `u64` it hands on goes nowhere"));
    }

    #[test]
    fn what_closes_no_cycle_is_refused_as_a_closing_edge() {
        let mut b = FlowBuilder::<u64, u64>::new("back");
        let (one, two) = (b.node("one", pass), b.node("two", pass));
        b.connect_back(one, two).ingress(one).egress(two);
        assert_eq!(
            lines(b.build()),
            [
                "edge `one` → `two`: is declared as closing a cycle, but no way leads from `two` to `one`; use \
                 b.connect(one, two), which has a bounded queue",
            ]
        );
    }

    #[test]
    fn what_is_said_twice_or_where_it_means_nothing_is_refused() {
        let mut b = FlowBuilder::<u64, u64>::new("twice");
        let one = b.node("one", pass);
        let join = b.join_k("join", 2);
        let sum = b.node("sum", |all: Vec<u64>, _| async move {
            Ok(all.iter().sum::<u64>())
        });
        b.connect(one, join).connect(one, join).connect(join, sum);
        b.ingress(one).ingress(one).egress(sum).egress(sum);
        b.queue(one, 1).queue(one, 2);
        b.policy(one, NodePolicy::default())
            .policy(one, NodePolicy::default());
        b.policy(join, NodePolicy::default());
        let policy = JoinPolicy::default();
        b.join_policy(join, policy).join_policy(join, policy);
        let list = b.flat_map("list", pass::<Vec<u64>>);
        b.connect(join, list).egress(list);
        let errors = b.build().expect_err("the graph is wrong");
        let count = |code| {
            errors
                .problems
                .iter()
                .filter(|found| found.code == code)
                .count()
        };
        assert_eq!(count(ProblemCode::Twice), 6, "{errors}");
        assert_eq!(count(ProblemCode::NoEffect), 1, "{errors}");
        assert_eq!(errors.problems.len(), 7, "{errors}");
    }

    #[test]
    fn each_problem_of_a_policy_is_told_with_its_node_and_what_to_do() {
        let policy = wrong_everywhere();
        let problems = policy.problems();
        let mut b = FlowBuilder::<u64, u64>::new("policies");
        let (good, bad) = (b.node("good", pass), b.node("bad", pass));
        b.policy(bad, policy).connect(good, bad);
        b.ingress(good).egress(bad);
        let errors = b.build().expect_err("the policy means nothing");
        let codes: Vec<_> = errors.problems.iter().map(|found| found.code).collect();
        let (zero, number) = (ProblemCode::ZeroBound, ProblemCode::BadNumber);
        assert_eq!(
            codes,
            [
                zero, zero, number, number, number, number, number, zero, zero, zero
            ]
        );
        assert_eq!(problems.len(), codes.len());
        for (line, of_policy) in errors.problems.iter().zip(&problems) {
            assert_eq!((&*line.place, &*line.hint), ("node `bad`", of_policy.hint));
            assert!(line.message.contains(of_policy.field), "{line}");
            assert!(line.message.contains(&of_policy.message), "{line}");
        }
        assert_eq!(
            errors.problems[2].to_string(),
            "node `bad`: the `max_retries` of its policy means 1001 retries; give at most 1,000; what must be tried \
             for ever belongs into a durable queue"
        );
    }

    #[test]
    fn too_many_attempts_at_once_are_a_number_and_no_zero() {
        let mut b = FlowBuilder::<u64, u64>::new("policies");
        let node = b.node("node", pass);
        let policy = NodePolicy {
            concurrency: 65_537,
            ..NodePolicy::default()
        };
        b.policy(node, policy).ingress(node).egress(node);
        let errors = b.build().expect_err("it is too many");
        assert_eq!(errors.problems.len(), 1, "{errors}");
        assert_eq!(errors.problems[0].code, ProblemCode::BadNumber);
    }

    #[test]
    fn joins_that_cannot_complete_are_refused() {
        let mut b = FlowBuilder::<u64, u64>::new("joins");
        let one = b.join_all("one");
        let sum = b.node("sum", |all: Vec<u64>, _| async move {
            Ok(all.iter().sum::<u64>())
        });
        b.connect(one, sum)
            .connect_back(sum, one)
            .ingress(one)
            .egress(sum);
        let lines = lines(b.build());
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].starts_with("node `one`: is a join and an ingress"));
        assert!(lines[1].starts_with("node `one`: waits for every edge into it"));
    }

    #[test]
    fn names_are_mended_where_it_can_be_guessed_what_was_meant() {
        let check = |name: &str, better: Option<&str>| {
            assert_eq!(super::mended(name).as_deref(), better, "{name}");
        };
        check("Fetch Page", Some("fetch-page"));
        check("fetchPage", Some("fetch-page"));
        check("HTTPGet", Some("httpget"));
        check("  a / b ", Some("a-b"));
        check("_x_", Some("x"));
        check("é", None);
        check("", None);
        check(&"ab".repeat(40), Some(&"ab".repeat(40)[..63]));
    }

    #[test]
    fn a_node_may_not_be_called_as_the_ends_of_the_flow() {
        let mut b = FlowBuilder::<u64, u64>::new("ends");
        let node = b.node("egress", pass);
        b.ingress(node).egress(node);
        assert_eq!(
            lines(b.build()),
            ["node `egress`: this is the name of the flow's own end; choose another name"]
        );
    }
}
