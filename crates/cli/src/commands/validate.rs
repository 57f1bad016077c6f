//! `volary validate`: checks manifests and shows every problem at once; and the loading that `volary up` shares.

use std::{
    net::{SocketAddr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
};

use clap::Args;
use serde_json::json;
use volary::deploy::spec::{
    self, EXIT_BAD_CONFIG, LoadOptions, Loaded, Problems,
    files::Files,
    model::{FleetSpec, PortSpec, Protocol},
};

use crate::{
    error::{CliError, Outcome},
    exit::Exit,
    settle::{self, Context},
    ui::count,
};

/// `volary validate`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Folder with a fleet.yaml or an agent.yaml, or one of these files.
    #[arg(value_name = "DIR")]
    fleet: Option<PathBuf>,
}

/// Prints what the fleet consists of, or all that is wrong with it.
pub fn run(context: &Context, arguments: &Arguments) -> Outcome {
    let dir = context.fleet_dir(arguments.fleet.as_deref());
    let json = context.ui.json;
    match read(&dir, false) {
        Ok(Loaded {
            fleet, warnings, ..
        }) => {
            if json {
                let agents: Vec<&str> = fleet
                    .agents
                    .iter()
                    .map(|agent| agent.name.as_str())
                    .collect();
                let sources: Vec<&str> = fleet.sources.keys().map(|name| name.as_str()).collect();
                context.ui.document(&json!({
                    "valid": true, "fleet": fleet.name, "agents": agents, "sources": sources, "problems": warnings,
                }))?;
            } else {
                show(context, &warnings);
                context
                    .ui
                    .line(format_args!("{} is valid: {}", fleet.name, summary(&fleet)))?;
            }
            Ok(Exit::Ok)
        }
        Err(problems) => {
            if json {
                context
                    .ui
                    .document(&json!({ "valid": false, "problems": problems }))?;
            } else {
                show(context, &problems);
            }
            Err(CliError::Silent(exit(&problems)))
        }
    }
}

/// Whether the ports of the host that a fleet wants have to be free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ports {
    /// The fleet is about to take them.
    Needed,
    /// The fleet runs and has them.
    Held,
}

/// Loads a fleet to run it; shows warnings, or all problems.
///
/// # Errors
/// When there are errors; they have been shown.
pub fn load(
    context: &Context,
    dir: &Path,
    ports: Ports,
    insecure: bool,
) -> Result<FleetSpec, CliError> {
    let failed = |problems: Problems| {
        show(context, &problems);
        CliError::Silent(exit(&problems))
    };
    let loaded = read(dir, insecure).map_err(failed)?;
    show(context, &loaded.warnings);
    if ports == Ports::Needed {
        let taken = loaded.check_ports(&is_free);
        if taken.has_errors() {
            return Err(failed(taken));
        }
    }
    Ok(loaded.fleet)
}

/// Loads a fleet to look at it. Says so, and gives nothing, where its manifests have errors.
pub fn glance(context: &Context, dir: &Path) -> Option<FleetSpec> {
    match read(dir, true) {
        Ok(loaded) => Some(loaded.fleet),
        Err(problems) => {
            context.ui.say(format!(
                "the manifests in {} cannot be read ({}); `volary validate` says why",
                dir.display(),
                problems.summary()
            ));
            None
        }
    }
}

/// Loads a fleet to look at it, without a word where it cannot be.
pub fn quiet(dir: &Path) -> Option<FleetSpec> {
    read(dir, true).ok().map(|loaded| loaded.fleet)
}

fn read(dir: &Path, insecure: bool) -> Result<Loaded, Problems> {
    let options = LoadOptions {
        files: Files::disk(),
        env: &settle::variable,
        backends: spec::BACKENDS,
        insecure_bind: insecure,
    };
    spec::load_fleet(dir, &options)
}

/// Shows problems the way compilers do, on standard error.
fn show(context: &Context, problems: &Problems) {
    if !problems.is_empty() {
        context.ui.say(format!("{problems}{}", problems.summary()));
    }
}

fn exit(problems: &Problems) -> Exit {
    if problems.exit_code() == EXIT_BAD_CONFIG {
        Exit::BadData
    } else {
        Exit::Unavailable
    }
}

fn summary(fleet: &FleetSpec) -> String {
    format!(
        "{}, {}",
        count(fleet.agents.len(), "agent"),
        count(fleet.sources.len(), "source")
    )
}

/// Whether a port of the host can be bound now.
fn is_free(port: &PortSpec) -> bool {
    let address = SocketAddr::new(port.address, port.host);
    match port.protocol {
        Protocol::Tcp => TcpListener::bind(address).is_ok(),
        Protocol::Udp => UdpSocket::bind(address).is_ok(),
    }
}
