//! `volary logs`: what agents wrote to their standard output and error.

use clap::Args;
use futures_util::StreamExt;
use volary::ops::api::LogsQuery;
use volary_kernel::Name;

use crate::{client::Node, error::Outcome, exit::Exit, settle::Context, ui};

/// `volary logs`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// An agent, or one replica of it like `worker-0` [default: all].
    #[arg(value_name = "AGENT")]
    agent: Option<Name>,
    /// Go on with what comes.
    #[arg(short, long)]
    follow: bool,
    /// Begin with the last N lines of each replica [default: all that is kept].
    #[arg(short = 'n', long, value_name = "N")]
    tail: Option<u32>,
}

/// Copies the node's answer to standard output, line by line.
pub async fn run(context: &Context, arguments: &Arguments) -> Outcome {
    let node = Node::find(context, None)?;
    let replicas = node.replicas().await?;
    let mut query = LogsQuery {
        tail: arguments.tail,
        follow: arguments.follow,
        ..LogsQuery::default()
    };
    let mut shown = replicas.len();
    if let Some(name) = &arguments.agent {
        let own = replicas
            .iter()
            .filter(|replica| &replica.agent == name)
            .count();
        if own > 0 {
            (query.agent, shown) = (Some(name.clone()), own);
        } else if replicas.iter().any(|replica| &replica.replica == name) {
            (query.replica, shown) = (Some(name.clone()), 1);
        } else {
            return Err(super::inspect::unknown(name, &replicas));
        }
    }
    let mut lines = node.logs(&query).await?;
    while let Some(line) = lines.next().await {
        let line = line?;
        if context.ui.json {
            context.ui.document(&document(&line, shown > 1))?;
        } else {
            context.ui.line(ui::tame(&line))?;
        }
    }
    Ok(Exit::Ok)
}

/// The node writes `replica | text` where several are shown, else the text alone.
fn document(line: &str, several: bool) -> serde_json::Value {
    match line.split_once(" | ").filter(|_| several) {
        Some((replica, text)) => serde_json::json!({ "replica": replica.trim_end(), "line": text }),
        None => serde_json::json!({ "line": line }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_replica_is_told_apart_from_what_it_wrote() {
        assert_eq!(
            document("a-0   | x | y", true),
            serde_json::json!({"replica": "a-0", "line": "x | y"})
        );
        assert_eq!(
            document("x | y", false),
            serde_json::json!({"line": "x | y"})
        );
    }
}
