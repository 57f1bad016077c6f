//! `volary schema`: the JSON Schema of a manifest, for editors.

use clap::{Args, ValueEnum};
use volary::deploy::spec::schema;

use crate::{error::Outcome, exit::Exit, settle::Context};

/// `volary schema`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Which manifest: agent.yaml or fleet.yaml.
    manifest: Manifest,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Manifest {
    Agent,
    Fleet,
}

/// Prints the schema: indented for people, on one line with `--json`.
pub fn run(context: &Context, arguments: &Arguments) -> Outcome {
    let schema = match arguments.manifest {
        Manifest::Agent => schema::agent_schema(),
        Manifest::Fleet => schema::fleet_schema(),
    };
    if context.ui.json {
        context.ui.document(&schema)?;
    } else {
        context.ui.line(format_args!("{schema:#}"))?;
    }
    Ok(Exit::Ok)
}
