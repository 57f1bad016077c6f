//! The command line as clap reads it. Dumb values only: [`crate::settle`] makes sense of them.

use std::{path::PathBuf, time::Duration};

use clap::{Args, ColorChoice, Parser, Subcommand, ValueEnum};
use volary_kernel::{Name, Tenant, TraceId, text::parse_duration};

use crate::commands::{
    doctor, down, events, explain, flow, health, identity, init, inspect, journal, link, logs,
    parked, pools, ps, replay, schema, send, tasks, up, validate,
};

/// What stands below the list of commands.
const FOOTER: &str = "\
State is kept in .volary beside the fleet, or where --state or VOLARY_STATE say.

Exit codes: 0 ok, 1 failure, 64 usage, 65 bad manifest or data, 69 not available,
75 retry later, 77 denied, 124 deadline, 130 Ctrl-C, 143 SIGTERM.
`volary explain CODE` tells more about an error.";

/// Runs fleets of agents: starts them, keeps them healthy, delivers messages and context changes, and shows what
/// happens.
#[derive(Debug, Parser)]
#[command(name = "volary", version, after_help = FOOTER, max_term_width = 120, subcommand_value_name = "COMMAND")]
pub struct Cli {
    /// Options that all commands share.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options that all commands share.
#[derive(Debug, Args)]
#[command(next_help_heading = "Common options")]
pub struct Global {
    /// State folder [default: VOLARY_STATE, else .volary beside the fleet].
    #[arg(long, global = true, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Folder of the fleet [default: the current one].
    #[arg(short = 'C', long = "dir", global = true, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Print data as JSON: one document, or one per line.
    #[arg(long, global = true)]
    pub json: bool,
    /// When to use colour: auto, always or never; NO_COLOR and CLICOLOR_FORCE are honoured.
    #[arg(
        long,
        global = true,
        value_name = "WHEN",
        default_value = "auto",
        hide_possible_values = true
    )]
    pub color: Color,
}

/// `--color`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Color {
    Auto,
    Always,
    Never,
}

impl From<Color> for ColorChoice {
    fn from(color: Color) -> Self {
        match color {
            Color::Auto => Self::Auto,
            Color::Always => Self::Always,
            Color::Never => Self::Never,
        }
    }
}

/// The commands. Each has its own file in [`crate::commands`].
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write a small working fleet into a new folder.
    Init(init::Arguments),
    /// Check a fleet's manifests and show every problem at once.
    Validate(validate::Arguments),
    /// Start a fleet and show what happens until it is told to stop.
    Up(up::Arguments),
    /// Stop a running fleet; nothing that was accepted is lost.
    Down(down::Arguments),
    /// List the replicas of a running fleet.
    Ps(ps::Arguments),
    /// Show what agents wrote to their standard output and error.
    Logs(logs::Arguments),
    /// Show all there is to know about one agent.
    Inspect(inspect::Arguments),
    /// Show what happened: the journal so far, or with -f as it grows.
    Events(events::Arguments),
    /// Send a message to a topic, an agent or a pool.
    Send(send::Arguments),
    /// Tell whether the node is healthy and ready.
    Health(health::Arguments),
    /// Show who this node is and whom it knows; replace and revoke keys.
    Identity(identity::Arguments),
    /// Submit tasks, look at them, cancel them; as an agent, claim and report them.
    #[command(subcommand)]
    Tasks(tasks::Action),
    /// Create pools of agents, and say who is in them.
    #[command(subcommand)]
    Pools(pools::Action),
    /// Look at the flows that agents run inside, draw them, and see to their traces.
    #[command(subcommand)]
    Flow(flow::Action),
    /// Look at work whose attempts are used up, try it again or drop it.
    #[command(subcommand)]
    Parked(parked::Action),
    /// Verify, export or import the record of everything that happened.
    #[command(subcommand)]
    Journal(journal::Action),
    /// Replay recorded messages: plan, feed them again, or verify an agent with them.
    Replay(replay::Arguments),
    /// Be an agent from a shell script: receive work, acknowledge it, send.
    #[command(subcommand)]
    Link(link::Action),
    /// Say what an error code means and what to do.
    Explain(explain::Arguments),
    /// Print the JSON Schema of a manifest.
    Schema(schema::Arguments),
    /// Tell what this machine offers: isolation, watches, disk, docker.
    Doctor(doctor::Arguments),
    /// Print a completion script for a shell.
    Completions(Completions),
}

/// `volary completions`.
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell.
    pub shell: clap_complete::Shell,
}

/// Which entries of the journal are meant.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Filters")]
pub struct Filters {
    /// Only these kinds, as `page.changed` or `page.*`; may be repeated or separated by commas.
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    pub kind: Vec<String>,
    /// Only what is about this agent.
    #[arg(long, value_name = "AGENT")]
    pub agent: Option<Name>,
    /// Only this trace.
    #[arg(long, value_name = "TRACE")]
    pub trace: Option<TraceId>,
    /// Only this tenant.
    #[arg(long, value_name = "TENANT")]
    pub tenant: Option<Tenant>,
    /// Begin with this sequence number.
    #[arg(long, value_name = "SEQ")]
    pub from: Option<u64>,
}

/// A duration argument, like `30s`.
pub fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_and_option_has_words() {
        fn check(command: &clap::Command) {
            assert!(
                command.get_about().is_some(),
                "{} has no words",
                command.get_name()
            );
            for argument in command
                .get_arguments()
                .filter(|argument| !argument.is_hide_set())
            {
                let words = argument.get_help().is_some();
                assert!(
                    words,
                    "{} of {} has no words",
                    argument.get_id(),
                    command.get_name()
                );
            }
            command.get_subcommands().for_each(check);
        }
        check(&Cli::command());
    }
}
