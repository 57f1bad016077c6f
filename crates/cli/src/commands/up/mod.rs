//! `volary up`: starts the fleet of a folder, shows its progress until all is ready, then what happens, until it is
//! told to stop. Losing nothing.
//!
//! ```text
//!   check manifests ──▶ start ──▶ progress ──▶ feed ──(Ctrl-C, SIGTERM, down, vital failure)──▶ drain ──▶ exit
//!                                    └─ not ready in time ──▶ drain, 124 ─┘        └─ second signal ──▶ at once
//! ```
//!
//! Exit codes: 0 after a clean drain by `volary down` or SIGTERM, 130 after one by Ctrl-C, 143 or 130 when a second
//! signal cut it short, 124 when it was not ready in time, 1 when a vital part failed.

mod background;
mod foreground;
mod log;
mod progress;
mod record;
mod signals;

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use serde::Serialize;
use volary::deploy::spec::model::FleetSpec;
use volary_kernel::file::create_private_dir;

use crate::{
    args::duration,
    client::Node,
    codes,
    commands::validate,
    error::{CliError, Outcome},
    exit::Exit,
    settle::Context,
    ui::count,
};

/// How long a fleet may take to be ready, unless said otherwise: slow runtimes start in seconds, not minutes.
const WAIT: Duration = Duration::from_secs(60);

/// `volary up`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Folder with a fleet.yaml or an agent.yaml.
    #[arg(value_name = "DIR")]
    fleet: Option<PathBuf>,
    /// Run in the background: return when all is ready.
    #[arg(short, long)]
    detach: bool,
    /// Address of the operators' server [default: what the manifest says, else a free port of 127.0.0.1].
    #[arg(long, value_name = "ADDR")]
    ops: Option<SocketAddr>,
    /// Speak plain HTTP on an address that other machines reach.
    #[arg(long)]
    insecure: bool,
    /// Stop again, with exit code 124, if not all is ready by then [default: 60s with -d, else go on with a warning].
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    wait_timeout: Option<Duration>,
    /// Do not show what happens once all is ready.
    #[arg(long)]
    no_feed: bool,
    /// The part of `up -d` that stays.
    #[arg(long, hide = true, conflicts_with = "detach")]
    background: bool,
}

/// Everything settled: what to run, where.
#[derive(Debug)]
struct Plan<'a> {
    context: &'a Context,
    arguments: &'a Arguments,
    /// Folder or manifest as an absolute path.
    fleet: PathBuf,
    spec: FleetSpec,
    /// State folder, absolute.
    state: PathBuf,
}

/// Checks everything that can be checked before anything starts, then goes one of the two ways.
pub fn run(context: &Context, arguments: &Arguments) -> Outcome {
    let dir = context.fleet_dir(arguments.fleet.as_deref());
    let fleet = crate::settle::absolute(&dir)?;
    let state = context.own_state(&fleet)?;
    let running = Node::running_on(&state)?;
    let ports = if running.is_some() {
        validate::Ports::Held
    } else {
        validate::Ports::Needed
    };
    let spec = validate::load(context, &dir, ports, arguments.insecure)?;
    let plan = Plan {
        context,
        arguments,
        fleet,
        spec,
        state,
    };
    if let Some(node) = running {
        return plan.already_up(&node);
    }
    prepare(&plan.state)?;
    if arguments.detach {
        background::run(&plan)
    } else {
        foreground::run(&plan)
    }
}

/// Makes the state folder, for its owner alone. A folder with something else in it is not touched: its permissions
/// would be taken from whoever uses it.
pub fn prepare(state: &Path) -> Result<(), CliError> {
    let is_state = state.join("node.lock").exists();
    // A start that failed early may have left an empty folder of logs.
    let is_foreign = |entry: fs::DirEntry| entry.file_name() != "logs";
    let holds_something =
        fs::read_dir(state).is_ok_and(|entries| entries.flatten().any(is_foreign));
    if holds_something && !is_state {
        let message = format!(
            "{} holds something else than a fleet's state",
            state.display()
        );
        return Err(CliError::new(codes::STATE, message)
            .hint("name an empty or new folder with --state DIR"));
    }
    for folder in [state.to_owned(), state.join("logs")] {
        create_private_dir(&folder).map_err(|error| {
            CliError::new(codes::STATE, format!("cannot make {}", folder.display())).because(&error)
        })?;
    }
    Ok(())
}

impl Plan<'_> {
    /// A second `up`: nothing to do if the same runs already, else an error. Never a change behind one's back.
    fn already_up(&self, node: &Node) -> Outcome {
        match record::difference(&self.state, &self.spec) {
            None => {
                self.context
                    .ui
                    .say(format_args!("{} is up already: no change", self.spec.name));
                let waiting = background::waiting(node)?;
                announce(self.context, node, &self.spec, waiting.is_empty())?;
                if waiting.is_empty() {
                    return Ok(Exit::Ok);
                }
                let what = format!("not all of it is ready: {}", waiting.join("; "));
                Err(CliError::new(codes::UNHEALTHY, what))
            }
            Some(difference) => {
                let what = format!(
                    "a node (process {}) runs on {}, and {difference}",
                    node.pid(),
                    self.state.display()
                );
                Err(CliError::new(codes::BUSY, what))
            }
        }
    }

    fn log_file(&self) -> PathBuf {
        self.state.join("logs").join("node.log")
    }
}

/// What `up` prints when all is ready, or it does not wait for it any longer.
#[derive(Debug, Serialize)]
struct Announcement<'a> {
    fleet: &'a str,
    ready: bool,
    pid: u32,
    ops: &'a str,
    events: &'a str,
    state: &'a Path,
}

/// Prints where the fleet can be reached.
fn announce(context: &Context, node: &Node, spec: &FleetSpec, ready: bool) -> Result<(), CliError> {
    let events = node.events_url();
    let announcement = Announcement {
        fleet: spec.name.as_str(),
        ready,
        pid: node.pid(),
        ops: node.base(),
        events: &events,
        state: node.state(),
    };
    let ui = &context.ui;
    if ui.json {
        return ui.document(&announcement);
    }
    let replicas: u32 = spec.agents.iter().map(|agent| agent.scaling.replicas).sum();
    let (agents, replicas) = (
        spec.agents.len(),
        usize::try_from(replicas).unwrap_or(usize::MAX),
    );
    let (agents, replicas) = (count(agents, "agent"), count(replicas, "replica"));
    let state = if ready {
        "is ready"
    } else {
        "runs, not all of it ready"
    };
    ui.line(format_args!("{} {state}: {agents}, {replicas}", spec.name))?;
    ui.line(format_args!("ops     {}", announcement.ops))?;
    ui.line(format_args!("events  {}", announcement.events))?;
    ui.line(format_args!("state   {}", announcement.state.display()))
}
