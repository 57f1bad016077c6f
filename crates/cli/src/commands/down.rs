//! `volary down`: stops a running fleet and waits until its node has gone.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use volary::ops::api::DownRequest;
use volary_kernel::clock;

use crate::{
    args::duration,
    client::Node,
    codes,
    error::{CliError, Outcome},
    exit::Exit,
    settle::Context,
};

/// How often to look whether the node has gone.
const LOOK: Duration = Duration::from_millis(20);

/// `volary down`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Folder of the fleet.
    #[arg(value_name = "DIR")]
    fleet: Option<PathBuf>,
    /// How long to wait until the node has gone.
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "60s")]
    timeout: Duration,
}

/// Asks the node to drain. A fleet that does not run is as good as stopped.
pub async fn run(context: &Context, arguments: &Arguments) -> Outcome {
    let Some(node) = Node::find_running(context, arguments.fleet.as_deref())? else {
        let state = context.running_state(arguments.fleet.as_deref())?;
        if context.ui.json {
            context
                .ui
                .document(&serde_json::json!({ "stopped": false, "pid": null }))?;
        }
        context.ui.say(format_args!(
            "no node runs on {}: nothing to stop",
            state.display()
        ));
        return Ok(Exit::Ok);
    };
    let reply = node.down(&DownRequest::default()).await?;
    context
        .ui
        .say(format_args!("stopping node process {}", reply.pid));
    let gone = async {
        while node.lives() {
            clock::sleep(LOOK).await;
        }
    };
    clock::timeout(arguments.timeout, gone)
        .await
        .map_err(|error| {
            CliError::new(
                codes::SLOW_DOWN,
                format!("node process {} is still there", reply.pid),
            )
            .because(&error)
        })?;
    if context.ui.json {
        context
            .ui
            .document(&serde_json::json!({ "stopped": true, "pid": reply.pid }))?;
    }
    context.ui.say("stopped");
    Ok(Exit::Ok)
}
