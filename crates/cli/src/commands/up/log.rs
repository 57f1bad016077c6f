//! The node's own log, on standard error: text on a terminal, else one JSON document per line. Values of declared
//! secrets are taken out of every line.

use std::io::{self, IsTerminal, Write};

use tracing_subscriber::{EnvFilter, fmt::MakeWriter};
use volary::deploy::spec::model::{EnvValue, FleetSpec};
use volary_kernel::secret::Redactor;

use crate::{codes, error::CliError};

/// Starts logging at `level`, or what `VOLARY_LOG` asks for.
///
/// # Errors
/// When `VOLARY_LOG` cannot be understood.
pub fn start(wanted: Option<&str>, level: &str, redactor: Redactor) -> Result<(), CliError> {
    let filter = EnvFilter::try_new(wanted.unwrap_or(level)).map_err(|error| {
        CliError::new(codes::USAGE, "VOLARY_LOG cannot be understood")
            .because(&error)
            .hint("write a level like `info`, or `warn,volary_deploy=debug`")
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(Redacted(redactor));
    let started = if io::stderr().is_terminal() {
        builder.with_target(false).try_init()
    } else {
        builder
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .try_init()
    };
    started.map_err(|error| {
        CliError::new(codes::SYSTEM, "logging is started already").because(&*error)
    })
}

/// Knows every secret of a fleet.
pub fn redactor(spec: &FleetSpec) -> Redactor {
    let redactor = Redactor::default();
    for agent in &spec.agents {
        let variables = agent
            .environment
            .iter()
            .filter_map(|variable| match &variable.value {
                EnvValue::Secret(secret) => Some(secret),
                EnvValue::Plain(_) => None,
            });
        for secret in variables.chain(agent.secrets.iter().map(|secret| &secret.value)) {
            // One too short to be told from ordinary text was warned about when the manifests were checked.
            let _too_short = redactor.add(secret);
        }
    }
    redactor
}

/// A writer to standard error for one line of the log.
struct Redacted(Redactor);

impl<'a> MakeWriter<'a> for Redacted {
    type Writer = Line<'a>;
    fn make_writer(&'a self) -> Line<'a> {
        Line {
            redactor: &self.0,
            line: Vec::new(),
        }
    }
}

struct Line<'a> {
    redactor: &'a Redactor,
    line: Vec<u8>,
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        let _gone = io::stderr()
            .lock()
            .write_all(&self.redactor.redact_bytes(&self.line));
    }
}
