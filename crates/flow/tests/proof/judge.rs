//! Holds what was seen of a trace against what may be seen.

use volary_flow::{FlowErrorCode, Outcome};

use crate::{
    act::Item,
    model::Expected,
    spec::{Kind, Spec, Temper, TraceSpec},
    support::{MS, trace},
};

/// What was seen of a trace.
#[derive(Debug, Clone)]
pub struct Seen {
    pub values: Vec<Item>,
    /// Numbers of the pieces of its stream, in the order they were read.
    pub chunks: Vec<u64>,
    pub outcome: Outcome,
    /// From accepted to read.
    pub took: std::time::Duration,
    /// A cancel said that it ended it.
    pub cancelled: bool,
}

/// The rules that `seen` breaks.
pub fn judge(spec: &Spec, of: &TraceSpec, expected: &Expected, seen: &Seen) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut rule = |holds: bool, what: &str| {
        if !holds {
            wrong.push(format!(
                "trace {}: {what}\n  seen {seen:?}\n  expected {expected:?}",
                of.number
            ));
        }
    };
    let is_cancelled = matches!(seen.outcome, Outcome::Cancelled);
    rule(
        seen.cancelled == is_cancelled,
        "it is cancelled when a cancel says so, and not else",
    );
    let counted = seen
        .chunks
        .iter()
        .zip(0..)
        .all(|(seq, wanted)| *seq == wanted);
    rule(counted, "pieces of its stream are numbered without gaps");
    let prompt = of.reading == crate::spec::Reading::Prompt;
    if let Some(deadline) = of.deadline {
        rule(
            !prompt || seen.took <= deadline + 3 * MS,
            "a trace ends by its deadline",
        );
    }
    for value in &seen.values {
        rule(value.trace == of.number, "it yields what is its own");
    }
    if of.is_left_alone() && expected.exact && expected.codes.is_empty() {
        rule(seen.outcome.is_done(), "nothing can fail, so it is done");
    }
    if of.is_left_alone()
        && expected.exact
        && !expected.codes.is_empty()
        && expected.finishes.is_empty()
    {
        rule(
            matches!(seen.outcome, Outcome::Failed(_)),
            "a node fails for good, so it fails",
        );
    }
    if expected.exact {
        let known =
            |value: &Item| expected.values.contains(value) || expected.finishes.contains(value);
        rule(seen.values.iter().all(known), "it yields nothing else");
    }
    match &seen.outcome {
        Outcome::Done => done(expected, seen, &mut rule),
        Outcome::Failed(error) => {
            let code = error.code.as_str();
            let late = of.deadline.is_some() && expected.attempts.contains(code);
            let may = expected.codes.contains(code) || late;
            rule(!expected.exact || may, "it fails as nothing in it can");
            rule(possible(spec, error.code), "no node can fail this way");
            rule(error.trace_id == trace(of.number), "the failure is its own");
            let most = spec.nodes.iter().map(|node| node.retries + 1).max();
            rule(
                Some(error.attempts) <= most,
                "no more attempts than allowed",
            );
        }
        Outcome::DeadlineExceeded => {
            let due = of
                .deadline
                .is_some_and(|deadline| seen.took + MS >= deadline);
            rule(due, "its deadline has passed");
        }
        Outcome::Cancelled => {}
        Outcome::Dropped { .. } => rule(false, "nothing is dropped while the flow runs"),
    }
    wrong
}

fn done(expected: &Expected, seen: &Seen, rule: &mut impl FnMut(bool, &str)) {
    let finals = seen.values.iter().filter(|value| value.last).count();
    if finals > 0 {
        let ends = seen.values.last().is_some_and(|value| value.last);
        rule(finals == 1 && ends, "one final answer, and it comes last");
        return;
    }
    rule(
        !expected.exact || expected.finishes.is_empty(),
        "a final answer was given, so there is one",
    );
    rule(
        !expected.exact || expected.codes.is_empty(),
        "a node fails for good, so it is not done",
    );
    if expected.exact && expected.finishes.is_empty() {
        let mut values = seen.values.clone();
        values.sort();
        rule(
            values == expected.values,
            "it yields all that reaches an egress, once",
        );
    }
}

/// Whether anything in the graph can fail this way.
fn possible(spec: &Spec, code: FlowErrorCode) -> bool {
    let any = |kind: fn(&Kind) -> bool| spec.nodes.iter().any(|node| kind(&node.kind));
    match code {
        FlowErrorCode::NodeError => spec.temper != Temper::Calm,
        FlowErrorCode::NodePanic => spec.temper == Temper::Wild,
        FlowErrorCode::NodeTimeout => spec.nodes.iter().any(|node| node.timeout.is_some()),
        FlowErrorCode::NoSuchTarget => {
            spec.temper == Temper::Wild && any(|kind| *kind == Kind::Router)
        }
        FlowErrorCode::HopBudgetExhausted => spec.nodes.iter().any(|node| node.back.is_some()),
        FlowErrorCode::TooManyMessages => true,
        FlowErrorCode::JoinIncomplete => any(|kind| kind.is_join()),
        _ => false,
    }
}
