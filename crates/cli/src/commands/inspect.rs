//! `volary inspect`: all there is to know about one agent or replica.

use clap::Args;
use volary::ops::api::ReplicaView;
use volary_kernel::Name;

use crate::{
    client::Node,
    codes,
    error::{CliError, Outcome},
    exit::Exit,
    settle::Context,
};

/// `volary inspect`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// An agent, or one replica of it like `worker-0`.
    #[arg(value_name = "AGENT")]
    name: Name,
}

/// Prints JSON: indented for people, on one line with `--json`.
pub async fn run(context: &Context, arguments: &Arguments) -> Outcome {
    let node = Node::find(context, None)?;
    let replicas = node.replicas().await?;
    let name = &arguments.name;
    let document = match replicas.iter().find(|replica| &replica.replica == name) {
        Some(replica) => serde_json::to_value(replica),
        // An agent may have no replica: the node knows.
        None => serde_json::to_value(node.agent(name).await.map_err(|error| match error {
            CliError::Told(told) if told.exit == Exit::Failure => unknown(name, &replicas),
            other => other,
        })?),
    };
    let document = document.expect("views have text keys and finite numbers");
    if context.ui.json {
        context.ui.document(&document)?;
    } else {
        context.ui.line(format_args!("{document:#}"))?;
    }
    Ok(Exit::Ok)
}

/// The error for a name that no agent or replica has.
pub fn unknown(name: &Name, replicas: &[ReplicaView]) -> CliError {
    let mut known: Vec<&str> = replicas
        .iter()
        .map(|replica| replica.agent.as_str())
        .collect();
    known.dedup();
    let error = CliError::new(
        codes::NO_AGENT,
        format!("no agent and no replica is called `{name}`"),
    );
    if known.is_empty() {
        error
    } else {
        error.hint(format!("this fleet has {}", known.join(", ")))
    }
}
