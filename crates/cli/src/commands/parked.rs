//! `volary parked`: work whose attempts are used up, and what to do with it.

use clap::{Args, Subcommand};
use volary::ops::api::{ParkedItem, ParkedQuery};
use volary_kernel::{Clock, Name, SystemClock, text::format_bytes};

use crate::{
    client::Node,
    error::{CliError, Outcome},
    exit::Exit,
    settle::Context,
    ui::{table::Table, time},
};

/// `volary parked`.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// List what is parked, oldest first.
    List(List),
    /// Show one item with its payload.
    Show(Item),
    /// Put items back to be tried again from their first attempt.
    Retry(Items),
    /// Give items up for good.
    Drop(Items),
}

/// `volary parked list`.
#[derive(Debug, Args)]
pub struct List {
    /// Only this agent's.
    #[arg(long, value_name = "AGENT")]
    agent: Option<Name>,
    /// Print only the ids, one per line.
    #[arg(short, long)]
    quiet: bool,
}

/// One item.
#[derive(Debug, Args)]
pub struct Item {
    /// Id of the item, as `parked list` prints it.
    #[arg(value_name = "ID")]
    id: String,
}

/// Some items.
#[derive(Debug, Args)]
pub struct Items {
    /// Ids of the items, as `parked list` prints them.
    #[arg(value_name = "ID", required_unless_present = "all")]
    ids: Vec<String>,
    /// All that are parked.
    #[arg(long, conflicts_with = "ids")]
    all: bool,
    /// With --all: only this agent's.
    #[arg(long, value_name = "AGENT", requires = "all")]
    agent: Option<Name>,
}

/// Asks the node.
pub async fn run(context: &Context, action: &Action) -> Outcome {
    let node = Node::find(context, None)?;
    match action {
        Action::List(arguments) => list(context, &node, arguments).await,
        Action::Show(item) => {
            let view = node.parked_show(&item.id).await?;
            if context.ui.json {
                context.ui.document(&view)?;
            } else {
                let document = serde_json::to_value(&view).expect("views have text keys");
                context.ui.line(format_args!("{document:#}"))?;
            }
            Ok(Exit::Ok)
        }
        Action::Retry(items) => each(context, &node, items, Deed::Retry).await,
        Action::Drop(items) => each(context, &node, items, Deed::Drop).await,
    }
}

async fn list(context: &Context, node: &Node, arguments: &List) -> Outcome {
    let query = ParkedQuery {
        agent: arguments.agent.clone(),
        limit: None,
    };
    let list = node.parked(&query).await?;
    if context.ui.json {
        context.ui.document(&list.items)?;
    } else if arguments.quiet {
        for item in &list.items {
            context.ui.line(&item.id)?;
        }
    } else {
        context.ui.line(table(context, &list.items))?;
    }
    if list.more {
        context.ui.say("there are more: these are the oldest");
    }
    Ok(Exit::Ok)
}

fn table(context: &Context, items: &[ParkedItem]) -> String {
    let now = SystemClock.wall();
    let mut table = Table::new([
        "ID", "AGENT", "ATTEMPTS", "PARKED", "SIZE", "TRACE", "REASON",
    ]);
    for item in items {
        table.row([
            (&item.id).into(),
            item.agent.as_ref().map_or("-", Name::as_str).into(),
            item.attempts.into(),
            time::ago(now, item.parked_at).into(),
            format_bytes(item.bytes).into(),
            item.trace
                .map_or_else(|| "-".into(), |trace| trace.to_string())
                .into(),
            (&item.reason).into(),
        ]);
    }
    table.render(&context.ui)
}

#[derive(Clone, Copy)]
enum Deed {
    Retry,
    Drop,
}

/// Does it to every item, goes on after an error, and fails if one did.
async fn each(context: &Context, node: &Node, items: &Items, deed: Deed) -> Outcome {
    let ids = if items.all {
        let list = node
            .parked(&ParkedQuery {
                agent: items.agent.clone(),
                limit: None,
            })
            .await?;
        list.items.into_iter().map(|item| item.id).collect()
    } else {
        items.ids.clone()
    };
    let mut exit = Exit::Ok;
    for id in &ids {
        let done = match deed {
            Deed::Retry => node.parked_retry(id).await,
            Deed::Drop => node.parked_drop(id).await,
        };
        match done {
            Ok(reply) if context.ui.json => context.ui.document(&reply)?,
            Ok(reply) => context.ui.line(&reply.id)?,
            Err(CliError::BrokenPipe) => return Err(CliError::BrokenPipe),
            Err(error) => {
                context.ui.tell(&error);
                exit = error.exit();
            }
        }
    }
    Ok(exit)
}
