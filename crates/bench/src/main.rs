//! Every figure that Volary claims, measured beside its limit and its peers in one run.
//!
//! `cargo run --release -p volary-bench -- [groups…] [--quick]` prints one JSON line per figure on standard output and talks
//! on standard error. Ratios are what counts, not absolute numbers: each is oriented so that `ratio >= bar` passes, and the
//! contestants of a figure run in turns, five rounds each, of which the medians are compared.
//!
//! | group | ours | beside |
//! |---|---|---|
//! | `bus` | the local bus with four hooks, one node | kameo `tell`, ractor `cast`, a bare tokio channel |
//! | `store` | a durable batch on SQLite, hash chain included | hand-written group commit of the same records |
//! | `idle` | a node with 100 process agents at rest | its allowance of memory and processor time |
//! | `sign` | sealing and verifying frames of 64 | the bare signature and hashes |
//! | `tcp` | links over TLS: loaded, loaded and sealed, one at a time | raw framed TLS of the same bytes, the bare signature |
//! | `rate` | three levels asked and taken together | one keyed check of governor |
//! | `tasks` | tasks claimed and reported on SQLite | hand-written group commit of the same records |
//! | `replay` | recorded messages planned, and fed to a callback | reading and decoding the same rows |
//! | `flow` | flows of no-op nodes, loud neighbours, memory, cancels, streams, durable traces | hand-written tokio, an allowance, PenguiFlow as recorded, hand-written group commit |
//! | `context` | a file's change until its dispatch is held | its allowance of time |

mod bus;
mod context;
mod figure;
mod flow;

mod idle;
mod rate;
mod replay;
mod rounds;
mod sign;
mod store;
mod tasks;
mod tcp;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser;
use figure::Figure;

#[global_allocator]
static ALLOCATOR: flow::alloc::Counting = flow::alloc::Counting;

/// What a measurement may die of.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Measures groups of figures; exit code 1 when one misses its bar.
#[derive(Debug, Parser)]
#[command(name = "volary-bench", version)]
struct Arguments {
    /// Groups to measure; all that are built when none is named.
    #[arg(value_parser = clap::builder::PossibleValuesParser::new(GROUPS.iter().map(|(name, _)| *name)))]
    groups: Vec<String>,
    /// Shorter rounds: each group stays under a minute.
    #[arg(long)]
    quick: bool,
    /// Exit with 0 even when a figure misses its bar.
    #[arg(long)]
    no_fail: bool,
}

/// How much work a measurement may take.
#[derive(Debug, Clone, Copy)]
struct Plan {
    quick: bool,
}

/// Measures the figures of one group.
type Measure = fn(&Plan) -> Result<Vec<Figure>, Failure>;

/// The groups, and what measures them; `None` for those that a later issue builds.
const GROUPS: &[(&str, Option<Measure>)] = &[
    ("bus", Some(bus::measure)),
    ("store", Some(store::measure)),
    ("idle", Some(idle::measure)),
    ("tcp", Some(tcp::measure)),
    ("sign", Some(sign::measure)),
    ("rate", Some(rate::measure)),
    ("tasks", Some(tasks::measure)),
    ("replay", Some(replay::measure)),
    ("flow", Some(flow::measure)),
    ("context", Some(context::measure)),
    ("deploy", None),
];

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let plan = Plan {
        quick: arguments.quick,
    };
    let named = |name: &str| arguments.groups.iter().any(|group| group == name);
    let mut failed = 0;
    for (name, measure) in GROUPS {
        let wanted = named(name) || (arguments.groups.is_empty() && measure.is_some());
        if wanted {
            failed += usize::from(!run(name, *measure, &plan));
        }
    }
    if failed > 0 {
        tell(&format!("{failed} groups have a figure below its bar"));
    }
    ExitCode::from(u8::from(failed > 0 && !arguments.no_fail))
}

/// Measures one group and prints its lines; whether all passed.
fn run(name: &str, measure: Option<Measure>, plan: &Plan) -> bool {
    let Some(measure) = measure else {
        tell(&format!("{name}: not built yet"));
        return false;
    };
    match measure(plan) {
        Ok(figures) => {
            let mut stdout = std::io::stdout().lock();
            for figure in &figures {
                // Nobody reads on: there is nobody to tell either.
                let _ = writeln!(stdout, "{}", figure.line());
            }
            figures.iter().all(Figure::passes)
        }
        Err(error) => {
            tell(&format!("{name}: {error}"));
            false
        }
    }
}

/// Says something to the person who waits.
fn tell(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// A folder beside this program, so on the disk that the build uses and not on one in memory. It is removed when dropped.
fn scratch() -> Result<tempfile::TempDir, Failure> {
    let own = std::env::current_exe()?;
    let beside = own.parent().ok_or("this program has no folder")?;
    Ok(tempfile::Builder::new()
        .prefix("bench-")
        .tempdir_in(beside)?)
}
