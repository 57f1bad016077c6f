//! The `volary` command: parses, settles, runs, and turns every outcome into words and an exit code.
//!
//! Only this crate prints, reads the environment and exits. Each command is a file in [`commands`].

mod args;
mod client;
mod codes;
mod commands;
mod error;
mod exit;
mod settle;
mod ui;

use std::{ffi::OsString, process::ExitCode};

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    // The first process of a replica's own PID namespace is this program: before any thread, runtime or parser.
    if args.get(1).is_some_and(|first| first == "__init") {
        volary::deploy::backend::process::init_main()
    }
    commands::main(args)
}
