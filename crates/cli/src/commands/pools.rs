//! `volary pools`: groups of agents, one of which gets each message to the pool, and all of which see its tasks.

use clap::{Args, Subcommand};
use volary::ops::api::{CreatePool, JoinPool, PoolList, PoolReply, PoolView};
use volary_kernel::Name;

use crate::{
    client::Node,
    commands::payload,
    error::{CliError, Outcome},
    exit::Exit,
    settle::Context,
    ui::table::Table,
};

/// `volary pools`.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// List pools.
    List,
    /// Show one pool and its members.
    Show(One),
    /// Create a pool. The same again changes nothing.
    Create(Create),
    /// Let an agent into a pool, whatever its admission says.
    Join(Member),
    /// Take an agent out of a pool.
    Leave(Member),
    /// Delete a pool; its tasks stay.
    Delete(One),
}

/// One pool.
#[derive(Debug, Args)]
pub struct One {
    /// Name of the pool.
    #[arg(value_name = "POOL")]
    name: Name,
}

/// `volary pools create`.
#[derive(Debug, Args)]
pub struct Create {
    /// Name of the pool.
    #[arg(value_name = "POOL")]
    name: Name,
    /// Only this agent may join; may be repeated. Without it and --token-file every agent may.
    #[arg(long, value_name = "AGENT", conflicts_with = "token_file")]
    allow: Vec<Name>,
    /// Only who shows the token in this file (- for standard input) may join.
    #[arg(long, value_name = "FILE")]
    token_file: Option<String>,
}

/// A pool and an agent.
#[derive(Debug, Args)]
pub struct Member {
    /// Name of the pool.
    #[arg(value_name = "POOL")]
    name: Name,
    /// The agent.
    #[arg(value_name = "AGENT")]
    agent: Name,
}

/// Asks the node.
pub async fn run(context: &Context, action: &Action) -> Outcome {
    let node = Node::find(context, None)?;
    match action {
        Action::List => list(context, &node.ask("/v1/pools", &()).await?),
        Action::Show(one) => {
            let view: PoolView = node.ask(&format!("/v1/pools/{}", one.name), &()).await?;
            if context.ui.json {
                context.ui.document(&view)?;
            } else {
                let document = serde_json::to_value(&view).expect("views have text keys");
                context.ui.line(format_args!("{document:#}"))?;
            }
            Ok(Exit::Ok)
        }
        Action::Create(arguments) => {
            let request = CreatePool {
                name: arguments.name.clone(),
                allow: (!arguments.allow.is_empty()).then(|| arguments.allow.clone()),
                token: arguments
                    .token_file
                    .as_deref()
                    .map(payload::line)
                    .transpose()?,
            };
            told(context, &node.tell("/v1/pools", &request).await?)
        }
        Action::Join(member) => told(context, &change(&node, member, "join").await?),
        Action::Leave(member) => told(context, &change(&node, member, "leave").await?),
        Action::Delete(one) => told(
            context,
            &node.remove(&format!("/v1/pools/{}", one.name)).await?,
        ),
    }
}

async fn change(node: &Node, member: &Member, verb: &str) -> Result<PoolReply, CliError> {
    let request = JoinPool {
        agent: Some(member.agent.clone()),
        token: None,
    };
    node.tell(&format!("/v1/pools/{}/{verb}", member.name), &request)
        .await
}

fn told(context: &Context, reply: &PoolReply) -> Outcome {
    if context.ui.json {
        context.ui.document(reply)?;
    } else if reply.changed {
        context.ui.line(&reply.name)?;
    } else {
        context
            .ui
            .say(format_args!("pool {} was so before", reply.name));
    }
    Ok(Exit::Ok)
}

fn list(context: &Context, list: &PoolList) -> Outcome {
    if context.ui.json {
        context.ui.document(&list.pools)?;
        return Ok(Exit::Ok);
    }
    let mut table = Table::new(["POOL", "ADMISSION", "MEMBERS"]);
    for pool in &list.pools {
        let members: Vec<&str> = pool.members.iter().map(Name::as_str).collect();
        let members = if members.is_empty() {
            "-".to_owned()
        } else {
            members.join(" ")
        };
        table.row([
            pool.name.as_str().into(),
            (&pool.admission).into(),
            members.into(),
        ]);
    }
    context.ui.line(table.render(&context.ui))?;
    Ok(Exit::Ok)
}
