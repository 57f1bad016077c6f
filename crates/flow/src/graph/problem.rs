//! What is wrong with a graph: every problem says what, where, and how to mend it.

use std::fmt;

/// What kind of problem it is: a closed set, for programs and tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProblemCode {
    /// A name that is none.
    BadName,
    /// Two nodes of one name.
    DuplicateName,
    /// More nodes or edges than a flow can have.
    TooLarge,
    /// A node of another builder.
    ForeignNode,
    /// Nothing that is emitted gets in.
    NoIngress,
    /// Nothing gets out, and nothing ends in a sink or a final answer.
    NoEgress,
    /// No way leads to a node.
    Unreachable,
    /// What a node hands on goes nowhere.
    DeadEnd,
    /// Nodes that only lead to each other.
    Endless,
    /// A cycle that is not declared.
    UndeclaredCycle,
    /// An edge that is declared as closing a cycle and closes none.
    NotACycle,
    /// The same thing said twice.
    Twice,
    /// A join that cannot complete.
    BadJoin,
    /// A bound of zero.
    ZeroBound,
    /// A number that means nothing.
    BadNumber,
    /// A setting that has no effect where it stands.
    NoEffect,
    /// A switch without arms.
    NoArms,
    /// The output of a node of a durable flow that cannot be stored.
    NotStored,
    /// A routing table names what the router does not lead to.
    NoSuchTarget,
}

impl ProblemCode {
    /// Its name in messages for programs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BadName => "bad_name",
            Self::DuplicateName => "duplicate_name",
            Self::TooLarge => "too_large",
            Self::ForeignNode => "foreign_node",
            Self::NoIngress => "no_ingress",
            Self::NoEgress => "no_egress",
            Self::Unreachable => "unreachable",
            Self::DeadEnd => "dead_end",
            Self::Endless => "endless",
            Self::UndeclaredCycle => "undeclared_cycle",
            Self::NotACycle => "not_a_cycle",
            Self::Twice => "twice",
            Self::BadJoin => "bad_join",
            Self::ZeroBound => "zero_bound",
            Self::BadNumber => "bad_number",
            Self::NoEffect => "no_effect",
            Self::NoArms => "no_arms",
            Self::NotStored => "not_stored",
            Self::NoSuchTarget => "no_such_target",
        }
    }
}

/// One problem of a graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Its kind.
    pub code: ProblemCode,
    /// Where: a node, an edge or the flow, as it is shown.
    pub place: String,
    /// What.
    pub message: String,
    /// How to mend it.
    pub hint: String,
}

/// `place: message; hint`.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.place, self.message, self.hint)
    }
}

/// Everything that is wrong with a graph, found at once; never empty.
///
/// Shown as a headline and one line per problem.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct BuildErrors {
    /// The flow's name, as it was given.
    pub flow: String,
    /// The problems, in the order of the graph.
    pub problems: Vec<Problem>,
}

impl BuildErrors {
    /// Whether there is a problem of this kind.
    pub fn has(&self, code: ProblemCode) -> bool {
        self.problems.iter().any(|problem| problem.code == code)
    }
}

impl fmt::Display for BuildErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.problems.len();
        let noun = if count == 1 { "problem" } else { "problems" };
        write!(f, "flow `{}` has {count} {noun}:", self.flow)?;
        for problem in &self.problems {
            write!(f, "\n  - {problem}")?;
        }
        Ok(())
    }
}
