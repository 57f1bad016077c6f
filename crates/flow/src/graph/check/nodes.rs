//! Each node by itself: bounds, numbers, settings that mean something. Pure.

use std::time::Duration;

use crate::{
    graph::{
        describe::NodeKind,
        problem::{Problem, ProblemCode},
        sketch::{EdgeSketch, End, JoinSketch, NodeSketch, Sketch},
    },
    policy::PolicyProblem,
};

pub(super) fn check(sketch: &Sketch, problems: &mut Vec<Problem>) {
    if sketch.queue_maxsize == 0 {
        problems.push(Problem {
            code: ProblemCode::ZeroBound,
            place: "the flow".to_owned(),
            message: "its queue_maxsize is 0, so that no message could wait".to_owned(),
            hint: "set it to at least 1; the default is 64".to_owned(),
        });
    }
    let out = sketch.out();
    let mut closes_cycle = vec![false; sketch.nodes.len()];
    for edge in sketch.edges.iter().filter(|edge| edge.back) {
        if let End::Node(to) = edge.to {
            closes_cycle[to] = true;
        }
    }
    for (ix, node) in sketch.nodes.iter().enumerate() {
        let mut found = Found { node, problems };
        found.bounds();
        if node.join.is_none() {
            found.policy();
        } else if node.policy_set {
            found.tell(
                ProblemCode::NoEffect,
                "has a policy, but a join runs no code",
                "use b.join_policy for its timeout and partial results",
            );
        }
        if let Some(join) = node.join {
            found.join(join, closes_cycle[ix]);
        }
        if node.kind == NodeKind::Switch && out[ix].is_empty() {
            found.tell(
                ProblemCode::NoArms,
                "is a switch without arms, so that every value fails",
                "add arms with .arm(label, take, node)",
            );
        }
        found.table(sketch, &out[ix]);
    }
}

/// A node and where its problems go.
struct Found<'a> {
    node: &'a NodeSketch,
    problems: &'a mut Vec<Problem>,
}

impl Found<'_> {
    fn tell(&mut self, code: ProblemCode, message: impl Into<String>, hint: impl Into<String>) {
        self.problems.push(Problem {
            code,
            place: super::node(&self.node.name),
            message: message.into(),
            hint: hint.into(),
        });
    }

    fn bounds(&mut self) {
        if self.node.queue == Some(0) {
            self.tell(
                ProblemCode::ZeroBound,
                "its queue is 0, so that no message could wait for it",
                "set it to at least 1; the default is 64",
            );
        }
        if self.node.width == Some(0) {
            self.tell(
                ProblemCode::ZeroBound,
                "works on 0 elements at once",
                "set it to at least 1",
            );
        }
    }

    fn policy(&mut self) {
        let policy = &self.node.policy;
        for PolicyProblem {
            field,
            message,
            hint,
        } in policy.problems()
        {
            let code = match field {
                "concurrency" if policy.concurrency > 0 => ProblemCode::BadNumber,
                "concurrency"
                | "timeout"
                | "retry_budget.reserve"
                | "breaker.failures"
                | "breaker.open_for" => ProblemCode::ZeroBound,
                _ => ProblemCode::BadNumber,
            };
            let message = format!("the `{field}` of its policy means {message}");
            self.tell(code, message, hint);
        }
    }

    fn join(&mut self, join: JoinSketch, closes_cycle: bool) {
        if join.count == Some(0) {
            self.tell(
                ProblemCode::ZeroBound,
                "joins 0 messages, so that it would never begin",
                "set k to at least 1, or use b.join_all",
            );
        }
        if join.timeout == Some(Duration::ZERO) {
            self.tell(
                ProblemCode::ZeroBound,
                "its timeout is 0, so that it would never wait",
                "give it a time, or None",
            );
        }
        if self.node.ingress {
            self.tell(
                ProblemCode::BadJoin,
                "is a join and an ingress: one emitted value is nothing to join",
                "put a node in front of it",
            );
        }
        if join.count.is_none() && closes_cycle {
            self.tell(
                ProblemCode::BadJoin,
                "waits for every edge into it, and one of them only brings what it itself set off",
                "use b.join_k, or lead the loop to a node in front of the join",
            );
        }
    }

    fn table(&mut self, sketch: &Sketch, out: &[&EdgeSketch]) {
        if self.node.table.is_empty() {
            return;
        }
        let exits: Vec<&str> = out.iter().map(|edge| sketch.name_of(edge.to)).collect();
        for name in &self.node.table {
            if exits.contains(&name.as_str()) {
                continue;
            }
            self.tell(
                ProblemCode::NoSuchTarget,
                format!("its routing table names `{name}`, to which it does not lead"),
                match near(name, &exits) {
                    Some(exit) => format!("write `{exit}`, or connect it to a node `{name}`"),
                    None => format!("it leads to {}", listing(&exits)),
                },
            );
        }
    }
}

/// What was probably meant.
fn near<'a>(word: &str, among: &[&'a str]) -> Option<&'a str> {
    let distance = |other: &&str| strsim::damerau_levenshtein(word, other);
    let best = among.iter().min_by_key(|other| distance(other))?;
    (distance(best) <= 1 + word.len() / 4).then_some(*best)
}

/// `a`, `b` and `c`; `nowhere` for none.
pub(crate) fn listing(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    match quoted.split_last() {
        None => "nowhere".to_owned(),
        Some((only, [])) => only.clone(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
    }
}
