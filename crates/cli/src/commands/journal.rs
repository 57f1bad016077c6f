//! `volary journal`: the record of everything that happened, checked or taken away. Works with and without a running
//! node, on what is on disk.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufReader, BufWriter, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use serde_json::json;
use volary::store::{
    Seq,
    journal::{self, ExportError, ExportSummary, VerifyReport},
};
use volary_kernel::sign::{PublicKey, SigningKey};

use crate::{
    codes,
    error::{CliError, Outcome},
    exit::Exit,
    settle::Context,
};

/// `volary journal`.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// Check every entry against the signed head: finds edits, gaps, and a journal that ends too early.
    Verify(Verify),
    /// Write the journal as JSON lines that prove themselves: chained, and signed at the end.
    Export(Export),
}

/// `volary journal verify`.
#[derive(Debug, Args)]
pub struct Verify {
    /// An export to check [default: the journal of the fleet].
    #[arg(value_name = "EXPORT")]
    export: Option<PathBuf>,
    /// The node's public key, 64 hex digits [default: from the state folder].
    #[arg(long, value_name = "HEX", value_parser = public_key)]
    key: Option<PublicKey>,
}

/// `volary journal export`.
#[derive(Debug, Args)]
pub struct Export {
    /// Write to this new file [default: standard output].
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Begin with this sequence number [default: the first that is kept].
    #[arg(long, value_name = "SEQ")]
    from: Option<u64>,
}

fn public_key(text: &str) -> Result<PublicKey, String> {
    PublicKey::from_hex(text).map_err(|error| error.to_string())
}

/// Reads the state folder; asks no node.
pub fn run(context: &Context, action: &Action) -> Outcome {
    let state = context.running_state(None)?;
    match action {
        Action::Verify(arguments) => verify(context, &state, arguments),
        Action::Export(arguments) => export(context, &state, arguments),
    }
}

// --- verify ----------------------------------------------------------------------------------

fn verify(context: &Context, state: &Path, arguments: &Verify) -> Outcome {
    let key = match &arguments.key {
        Some(key) => *key,
        None => node_key(state)?.public(),
    };
    match &arguments.export {
        Some(path) => verify_export(context, path, &key),
        None => {
            let database = database(state)?;
            let report = journal::verify(&database, &key).map_err(|error| {
                CliError::new(codes::STATE, "the journal cannot be read").because(&error)
            })?;
            show(context, &report)
        }
    }
}

fn show(context: &Context, report: &VerifyReport) -> Outcome {
    if context.ui.json {
        context.ui.document(&document(report))?;
    } else {
        for problem in &report.problems {
            context.ui.line(problem)?;
        }
    }
    if report.is_ok() {
        if !context.ui.json {
            context.ui.line(whole(report))?;
        }
        return Ok(Exit::Ok);
    }
    let message = match report.first_bad() {
        Some(seq) => format!(
            "the first bad or missing entry is {seq}; {} problems",
            report.problem_count
        ),
        None => format!(
            "{} problems, none of them in an entry",
            report.problem_count
        ),
    };
    Err(CliError::new(codes::DAMAGED, message))
}

fn whole(report: &VerifyReport) -> String {
    let unacknowledged = match report.unacknowledged {
        0 => String::new(),
        more => format!(", {more} of them written but not acknowledged when the node was killed"),
    };
    match (report.first, report.last) {
        (Some(first), Some(last)) => {
            format!(
                "the journal is whole: {} entries, {first} to {last}{unacknowledged}",
                report.entries
            )
        }
        _ => "the journal is whole: it has no entry yet".to_owned(),
    }
}

fn document(report: &VerifyReport) -> serde_json::Value {
    let problems: Vec<_> = report
        .problems
        .iter()
        .map(|problem| json!({ "seq": problem.seq, "what": problem.what }))
        .collect();
    json!({
        "ok": report.is_ok(),
        "node": report.head.as_ref().map(|head| &head.node),
        "head": report.head.as_ref().map(|head| head.seq),
        "first": report.first,
        "last": report.last,
        "entries": report.entries,
        "records": report.records,
        "unacknowledged": report.unacknowledged,
        "first_bad": report.first_bad(),
        "problems": problems,
        "problem_count": report.problem_count,
    })
}

fn verify_export(context: &Context, path: &Path, key: &PublicKey) -> Outcome {
    let file = File::open(path).map_err(|error| {
        CliError::new(codes::READ, format!("cannot open {}", path.display())).because(&error)
    })?;
    match journal::verify_export(BufReader::new(file), key) {
        Ok(summary) => {
            let words = format!(
                "the export is whole: {} entries of {}",
                summary.entries, summary.node
            );
            if context.ui.json {
                context.ui.document(&summary_document(&summary))?
            } else {
                context.ui.line(words)?
            }
            Ok(Exit::Ok)
        }
        Err(ExportError::Io(error)) => Err(CliError::new(codes::READ, error)),
        Err(error) => Err(CliError::new(
            codes::DAMAGED,
            format!("{} is not as it was written", path.display()),
        )
        .because(&error)),
    }
}

fn summary_document(summary: &ExportSummary) -> serde_json::Value {
    json!({
        "ok": true, "node": summary.node, "entries": summary.entries, "first": summary.first, "last": summary.last,
    })
}

// --- export ----------------------------------------------------------------------------------

fn export(context: &Context, state: &Path, arguments: &Export) -> Outcome {
    let (database, key) = (database(state)?, node_key(state)?);
    let from = arguments.from.map(Seq);
    let summary = match &arguments.output {
        None => write(&database, &key, from, context.ui.bulk())
            .map_err(|error| failed(error, "the output"))?,
        Some(path) => {
            let name = path.display().to_string();
            // What happened may be private: for its owner alone, and nothing is written over.
            let file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(path);
            let file = file.map_err(|error| failed(Failed::Output(error), &name))?;
            let summary = write(&database, &key, from, BufWriter::new(&file))
                .map_err(|error| failed(error, &name))?;
            file.sync_all()
                .map_err(|error| failed(Failed::Output(error), &name))?;
            summary
        }
    };
    let seq = |seq: Option<Seq>| seq.map_or_else(|| "-".to_owned(), |seq| seq.to_string());
    let (first, last, key) = (seq(summary.first), seq(summary.last), key.public());
    context.ui.say(format_args!(
        "{} entries, {first} to {last}, signed with the key {key}",
        summary.entries
    ));
    Ok(Exit::Ok)
}

/// Why there is no export.
enum Failed {
    Output(io::Error),
    Journal(ExportError),
}

/// Exports from an entry on; what retention has removed is left out.
fn write(
    database: &Path,
    key: &SigningKey,
    from: Option<Seq>,
    out: impl Write,
) -> Result<ExportSummary, Failed> {
    let mut out = Watched { out, failed: None };
    let ended = journal::export(database, key, from.unwrap_or(Seq::FIRST), &mut out);
    let flushed = out.out.flush();
    match (out.failed, ended) {
        (Some(error), _) => Err(Failed::Output(error)),
        (None, Err(error)) => Err(Failed::Journal(error)),
        (None, Ok(summary)) => flushed.map(|()| summary).map_err(Failed::Output),
    }
}

/// Keeps what the system said, so that a reader who has left can be told from a full disk.
struct Watched<W> {
    out: W,
    failed: Option<io::Error>,
}

impl<W: Write> Write for Watched<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes).map_err(|error| {
            let kind = error.kind();
            self.failed = Some(error);
            kind.into()
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn failed(failed: Failed, place: &str) -> CliError {
    match failed {
        Failed::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => CliError::BrokenPipe,
        Failed::Output(error) => {
            CliError::new(codes::OUTPUT, format!("cannot write {place}")).because(&error)
        }
        Failed::Journal(error) => {
            CliError::new(codes::DAMAGED, "the journal cannot be exported").because(&error)
        }
    }
}

// --- state -----------------------------------------------------------------------------------

fn database(state: &Path) -> Result<PathBuf, CliError> {
    let path = state.join("volary.db");
    match path.try_exists() {
        Ok(true) => Ok(path),
        Ok(false) => Err(CliError::new(
            codes::NO_JOURNAL,
            format!("{} has no journal", state.display()),
        )),
        Err(error) => Err(CliError::new(
            codes::STATE,
            format!("cannot look at {}", path.display()),
        )
        .because(&error)),
    }
}

/// The key that signs the journal's head.
fn node_key(state: &Path) -> Result<SigningKey, CliError> {
    let path = state.join("keys/node.key");
    // What may not be looked at may well be there.
    let is_absent = |path: &Path| matches!(path.try_exists(), Ok(false));
    if is_absent(&path) && is_absent(&state.join("volary.db")) {
        return Err(CliError::new(
            codes::NO_JOURNAL,
            format!("{} has no journal", state.display()),
        ));
    }
    let cannot = |error: &dyn std::error::Error| {
        CliError::new(
            codes::STATE,
            format!("cannot use the node's key {}", path.display()),
        )
        .because(error)
    };
    let bytes = fs::read(&path).map_err(|error| cannot(&error))?;
    SigningKey::from_pkcs8(&bytes).map_err(|error| cannot(&error))
}
