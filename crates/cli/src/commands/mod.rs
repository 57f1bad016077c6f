//! One file per command: its arguments, and what it does.

pub mod doctor;
pub mod down;
pub mod events;
pub mod explain;
pub mod flow;
pub mod health;
pub mod identity;
pub mod init;
pub mod inspect;
pub mod journal;
pub mod link;
pub mod logs;
pub mod parked;
pub mod payload;
pub mod pools;
pub mod ps;
pub mod replay;
pub mod schema;
pub mod send;
pub mod tasks;
pub mod up;
pub mod validate;

use std::{ffi::OsString, process::ExitCode};

use clap::{CommandFactory, Parser, error::ErrorKind};

use crate::{
    args::{Cli, Command, Completions},
    codes,
    error::{CliError, Outcome},
    exit::Exit,
    settle::Context,
    ui::Ui,
};

/// Everything after the check for a namespace's first process.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => return usage(&error).into(),
    };
    let context = Context::new(&cli.global);
    let exit = match run(&context, cli.command) {
        Ok(exit) => exit,
        Err(error) => {
            context.ui.tell(&error);
            error.exit()
        }
    };
    exit.into()
}

/// Help and version are data and fine; anything else is a wrong command line.
fn usage(error: &clap::Error) -> Exit {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _gone = error.print();
            Exit::Ok
        }
        _ => {
            let ui = Ui::new(false, clap::ColorChoice::Auto);
            let words = error.render();
            let words = if ui.colored_talk() {
                words.ansi().to_string()
            } else {
                words.to_string()
            };
            ui.say(
                words
                    .replacen("error:", &format!("error[{}]:", codes::USAGE.id), 1)
                    .trim_end(),
            );
            Exit::Usage
        }
    }
}

fn run(context: &Context, command: Command) -> Outcome {
    match command {
        Command::Init(arguments) => init::run(context, &arguments),
        Command::Validate(arguments) => validate::run(context, &arguments),
        Command::Up(arguments) => up::run(context, &arguments),
        Command::Down(arguments) => blocking(down::run(context, &arguments)),
        Command::Ps(arguments) => blocking(ps::run(context, &arguments)),
        Command::Logs(arguments) => blocking(logs::run(context, &arguments)),
        Command::Inspect(arguments) => blocking(inspect::run(context, &arguments)),
        Command::Events(arguments) => blocking(events::run(context, &arguments)),
        Command::Send(arguments) => blocking(send::run(context, &arguments)),
        Command::Identity(arguments) => identity::run(context, &arguments),
        Command::Health(arguments) => blocking(health::run(context, &arguments)),
        Command::Tasks(action) => blocking(tasks::run(context, &action)),
        Command::Pools(action) => blocking(pools::run(context, &action)),
        Command::Flow(action) => blocking(flow::run(context, &action)),
        Command::Parked(action) => blocking(parked::run(context, &action)),
        Command::Journal(action) => journal::run(context, &action),
        Command::Replay(arguments) => blocking(replay::run(context, &arguments)),
        Command::Link(action) => blocking(link::run(context, &action)),
        Command::Explain(arguments) => explain::run(context, &arguments),
        Command::Schema(arguments) => schema::run(context, &arguments),
        Command::Doctor(arguments) => doctor::run(context, &arguments),
        Command::Completions(arguments) => completions(context.ui, &arguments),
    }
}

/// Runs what talks to a node on a small runtime, built by hand.
fn blocking(command: impl Future<Output = Outcome>) -> Outcome {
    blocking_value(command)?
}

fn blocking_value<T>(future: impl Future<Output = T>) -> Result<T, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let refused =
        |error| CliError::new(codes::SYSTEM, "cannot start the async runtime").because(&error);
    Ok(runtime.map_err(refused)?.block_on(future))
}

fn completions(ui: Ui, arguments: &Completions) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), "volary", &mut script);
    ui.raw(&script)?;
    Ok(Exit::Ok)
}
