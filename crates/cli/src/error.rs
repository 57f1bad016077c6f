//! Errors as the user meets them: a code, what happened, why, and what to do. The one place that words them.

use std::{fmt, io};

use serde::Serialize;
use volary::{ErrorClass, NodeError};

use crate::{
    codes::{self, Code},
    exit::Exit,
};

/// What ends a command early.
#[derive(Debug)]
pub enum CliError {
    /// Something to tell the user.
    Told(Box<Told>),
    /// Everything was said already; only the exit code is left.
    Silent(Exit),
    /// The reader of standard output has gone, which is no fault of anybody.
    BrokenPipe,
}

/// An error with its words.
#[derive(Debug, Serialize)]
pub struct Told {
    /// Stable code.
    pub code: String,
    /// What happened, with the values at hand.
    pub message: String,
    /// What led to it, nearest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The exit code.
    #[serde(skip)]
    pub exit: Exit,
}

/// What every command returns.
pub type Outcome = Result<Exit, CliError>;

impl CliError {
    /// An error of the command line with the usual hint of its code.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self::foreign(code.id, message, Some(code.hint.into()), code.exit)
    }

    /// An error with a code of another part.
    pub fn foreign(
        code: impl Into<String>,
        message: impl Into<String>,
        hint: Option<String>,
        exit: Exit,
    ) -> Self {
        let told = Told {
            code: code.into(),
            message: message.into(),
            causes: Vec::new(),
            hint,
            exit,
        };
        Self::Told(Box::new(told))
    }

    /// Adds an error and all that it says was its source.
    #[must_use]
    pub fn because(mut self, cause: &dyn std::error::Error) -> Self {
        if let Self::Told(told) = &mut self {
            let mut next = Some(cause);
            while let Some(error) = next {
                let words = error.to_string();
                // A wrapper often repeats its source in its own words.
                if !told
                    .causes
                    .last()
                    .is_some_and(|last| last.ends_with(&words))
                {
                    told.causes.push(words);
                }
                next = error.source();
            }
        }
        self
    }

    /// An error of the node, with its code, its causes and its hint.
    pub fn of_node(error: &NodeError) -> Self {
        let code = error.code();
        let told = Self::foreign(
            code.id,
            error.to_string(),
            Some(code.hint.into()),
            exit_of(code.class),
        );
        match std::error::Error::source(error) {
            Some(source) => told.because(source),
            None => told,
        }
    }

    /// Replaces the hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        if let Self::Told(told) = &mut self {
            told.hint = Some(hint.into());
        }
        self
    }

    /// The exit code.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Told(told) => told.exit,
            Self::Silent(exit) => *exit,
            Self::BrokenPipe => Exit::Ok,
        }
    }

    /// Writing to standard output failed.
    pub fn output(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::BrokenPipe,
            _ => Self::new(codes::OUTPUT, "cannot write the output").because(error),
        }
    }
}

/// The exit code for an error of the node.
pub const fn exit_of(class: ErrorClass) -> Exit {
    match class {
        ErrorClass::Failure => Exit::Failure,
        ErrorClass::BadData => Exit::BadData,
        ErrorClass::Unavailable => Exit::Unavailable,
        ErrorClass::RetryLater => Exit::RetryLater,
    }
}

/// `error[V8003]: message`, then causes and hint, indented.
impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error[{}]: {}", self.code, self.message)?;
        for cause in &self.causes {
            write!(f, "\n  cause: {cause}")?;
        }
        match &self.hint {
            Some(hint) => write!(f, "\n  hint: {hint}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot read the disk")]
    struct Outer(#[source] io::Error);

    fn told(error: CliError) -> String {
        match error {
            CliError::Told(told) => told.to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn causes_come_in_order_and_the_hint_last() {
        let cause = Outer(io::Error::other("it is on fire"));
        let error = CliError::new(codes::READ, "cannot read notes.json")
            .because(&cause)
            .hint("use water");
        assert_eq!(
            told(error),
            "error[V8015]: cannot read notes.json\n  cause: cannot read the disk\n  cause: it is on fire\n  hint: use water"
        );
    }

    #[test]
    fn a_closed_pipe_is_no_error() {
        let error = CliError::output(&io::ErrorKind::BrokenPipe.into());
        assert!(matches!(error, CliError::BrokenPipe) && error.exit() == Exit::Ok);
        assert_eq!(
            CliError::output(&io::ErrorKind::StorageFull.into()).exit(),
            Exit::Failure
        );
    }
}
