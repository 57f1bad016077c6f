//! `volary journal`: the record of everything that happened, checked or taken away. Works with and without a running
//! node, on what is on disk.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, BufReader, BufWriter, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use serde_json::json;
use volary::{
    StateDir,
    messaging::{
        Direction, Identity, ReplayQuery,
        replay::{self, Signers},
    },
    store::{
        Seq, StoreError,
        journal::{self, ExportError, ExportSummary, VerifyReport},
    },
};
use volary_kernel::{
    Timestamp,
    clock::{Clock as _, SystemClock},
    sign::{PublicKey, SigningKey},
};

use super::replay::{Wanted, Way, public_key, source};
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
    /// Write the journal, or chosen messages of it, as JSON lines that prove themselves: chained, and signed at the end.
    Export(Export),
    /// Take an archive of another journal in, apart from the fleet's own, if it is whole and signed by a trusted key.
    Import(Import),
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
    from_seq: Option<u64>,
    /// Only messages, each with its sender's signature: what a replay would feed. So it is with any choice below.
    #[arg(long)]
    messages: bool,
    #[command(flatten)]
    wanted: Wanted,
    /// Only messages accepted at or after this time, like 2026-11-21T09:30:00Z.
    #[arg(long, value_name = "TIME")]
    from: Option<Timestamp>,
    /// Only messages accepted at or before this time.
    #[arg(long, value_name = "TIME")]
    to: Option<Timestamp>,
}

/// `volary journal import`.
#[derive(Debug, Args)]
pub struct Import {
    /// The archive, as `volary journal export` wrote it.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The public key that has signed it, 64 hex digits [default: the node's own].
    #[arg(long, value_name = "HEX", value_parser = public_key)]
    key: Option<PublicKey>,
}

/// Reads the state folder; asks no node.
pub fn run(context: &Context, action: &Action) -> Outcome {
    let state = context.running_state(None)?;
    match action {
        Action::Verify(arguments) => verify(context, &state, arguments),
        Action::Export(arguments) => export(context, &state, arguments),
        Action::Import(arguments) => import(context, &state, arguments),
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
        Err(error @ (ExportError::WrongKey { .. } | ExportError::Io(_))) => {
            Err(source::refused(path, &error))
        }
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
    if let (Some(from), Some(to)) = (arguments.from, arguments.to)
        && from > to
    {
        let problem = format!("--from {from} is after --to {to}: nothing is between them");
        return Err(CliError::new(codes::USAGE, problem));
    }
    let key = node_key(state)?;
    let write = |out: &mut dyn Write| match arguments.query() {
        None => whole_journal(state, &key, arguments.from_seq.map(Seq), out),
        Some(query) => chosen(context, state, &key, &query, out),
    };
    let (summary, sealed) = match &arguments.output {
        None => write(&mut context.ui.bulk()).map_err(|error| failed(error, "the output"))?,
        Some(path) => {
            let name = path.display().to_string();
            to_new_file(path, write).map_err(|error| failed(error, &name))?
        }
    };
    let seq = |seq: Option<Seq>| seq.map_or_else(|| "-".to_owned(), |seq| seq.to_string());
    let (first, last, key) = (seq(summary.first), seq(summary.last), key.public());
    let seals = sealed.map_or_else(String::new, |sealed| {
        format!(", {sealed} of them with their senders' signatures")
    });
    context.ui.say(format_args!(
        "{} entries, {first} to {last}{seals}, signed with the key {key}",
        summary.entries
    ));
    Ok(Exit::Ok)
}

impl Export {
    /// What is chosen; nothing for the whole journal.
    fn query(&self) -> Option<ReplayQuery> {
        let Wanted {
            direction,
            agent,
            tenant,
            trace,
        } = self.wanted.clone();
        let query = ReplayQuery {
            direction: direction.map(|way| match way {
                Way::Inbound => Direction::Inbound,
                Way::Outbound => Direction::Outbound,
            }),
            agent,
            tenant,
            trace,
            from: self.from,
            to: self.to,
            ..ReplayQuery::default()
        };
        let chosen = self.messages || query != ReplayQuery::default();
        chosen.then(|| ReplayQuery {
            from_seq: self.from_seq.map(Seq),
            ..query
        })
    }
}

/// What was written, and how much of it carries a seal.
type Written = Result<(ExportSummary, Option<u64>), Failed>;

/// Writes beside `path` and moves it there when it is whole: readable by its owner alone, writable by nobody. Nothing is
/// written over.
fn to_new_file(path: &Path, write: impl FnOnce(&mut dyn Write) -> Written) -> Written {
    let exists = || Failed::Output(io::ErrorKind::AlreadyExists.into());
    if path.symlink_metadata().is_ok() {
        return Err(exists());
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temp = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let _gone = fs::remove_file(&temp);
    let written = (|| {
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600);
        let file = file.open(&temp).map_err(Failed::Output)?;
        let mut out = BufWriter::new(&file);
        let written = write(&mut out)?;
        out.flush().map_err(Failed::Output)?;
        file.set_permissions(Permissions::from_mode(0o400))
            .and_then(|()| file.sync_all())
            // Unlike a rename, a link does not replace what is there.
            .and_then(|()| fs::hard_link(&temp, path))
            .map_err(Failed::Output)?;
        Ok(written)
    })();
    let _gone = fs::remove_file(&temp);
    written
}

/// Chosen messages, each with the seal that proves it alone: the recorded one, or one made with its sender's key.
fn chosen(
    context: &Context,
    state: &Path,
    key: &SigningKey,
    query: &ReplayQuery,
    out: &mut dyn Write,
) -> Written {
    let recording = source::offline(state).map_err(Failed::Told)?;
    let signers: Signers = identities(state);
    let mut out = Watched { out, failed: None };
    let at = SystemClock.wall();
    let exported = crate::commands::blocking_value(async {
        let out = &mut out;
        replay::export(&recording, query, (key, at), &signers, out).await
    });
    let exported = exported.map_err(Failed::Told)?;
    context.ui.progress("");
    match (out.failed, exported) {
        (Some(error), _) => Err(Failed::Output(error)),
        (None, Ok(exported)) => Ok((exported.summary, Some(exported.sealed))),
        (None, Err(error)) => Err(Failed::Told(source::failure(None, &error))),
    }
}

/// The identities whose keys lie in the state folder: the agents', the node's, in whose name operators send, and the
/// journal's, the node's first; and all of them that were replaced since.
fn identities(state: &Path) -> Signers {
    let agents = fs::read_dir(state.join("keys/agents"));
    let agents = agents.into_iter().flatten().flatten();
    let paths = agents.map(|entry| entry.path());
    let own = StateDir::new(state);
    let paths = paths.chain([own.node_key(), own.journal_key()]);
    paths
        .filter(|path| path.extension().is_some_and(|kind| kind == "key"))
        .flat_map(|path| {
            let former = Identity::former(&path).unwrap_or_default();
            former.into_iter().chain(Identity::load(&path))
        })
        .collect()
}

// --- import ----------------------------------------------------------------------------------

fn import(context: &Context, state: &Path, arguments: &Import) -> Outcome {
    let trust = source::trust(state, arguments.key.as_ref())?;
    let imported = source::import(state, &arguments.file, trust)?;
    if context.ui.json {
        let mut document = summary_document(&imported.summary);
        document["name"] = json!(imported.name);
        document["was_there"] = json!(imported.was_there);
        context.ui.document(&document)?;
    } else {
        context.ui.line(format_args!(
            "{}: {} entries of {}{}",
            imported.name,
            imported.summary.entries,
            imported.summary.node,
            if imported.was_there {
                ", imported before"
            } else {
                ""
            },
        ))?;
    }
    Ok(Exit::Ok)
}

/// Why there is no export.
enum Failed {
    Output(io::Error),
    Journal(ExportError),
    Told(CliError),
}

/// Exports from an entry on; what retention has removed is left out.
fn whole_journal(
    state: &Path,
    key: &SigningKey,
    from: Option<Seq>,
    out: &mut dyn Write,
) -> Written {
    let database = database(state).map_err(Failed::Told)?;
    let mut out = Watched { out, failed: None };
    let ended = journal::export(&database, key, from.unwrap_or(Seq::FIRST), &mut out);
    let flushed = out.out.flush();
    match (out.failed, ended) {
        (Some(error), _) => Err(Failed::Output(error)),
        (None, Err(error)) => Err(Failed::Journal(error)),
        (None, Ok(summary)) => flushed.map(|()| (summary, None)).map_err(Failed::Output),
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
        Failed::Told(error) => error,
        Failed::Output(error) => {
            CliError::new(codes::OUTPUT, format!("cannot write {place}")).because(&error)
        }
        Failed::Journal(ExportError::Store(StoreError::Invalid(problem))) => {
            CliError::new(codes::USAGE, problem)
        }
        Failed::Journal(error) => {
            CliError::new(codes::DAMAGED, "the journal cannot be exported").because(&error)
        }
    }
}

// --- state -----------------------------------------------------------------------------------

pub(super) fn database(state: &Path) -> Result<PathBuf, CliError> {
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
pub(super) fn node_key(state: &Path) -> Result<SigningKey, CliError> {
    let path = StateDir::new(state).journal_key();
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
