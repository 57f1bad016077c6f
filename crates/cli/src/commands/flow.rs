//! `volary flow`: the graphs that agents run inside, as they describe themselves.

use clap::{Args, Subcommand, ValueEnum};
use volary::{
    flow::graph::{Description, Direction},
    ops::api::{FlowList, FlowQuery, FlowView},
};
use volary_kernel::Name;

use crate::{
    client::Node,
    codes,
    error::{CliError, Outcome},
    exit::Exit,
    settle::Context,
    ui::table::Table,
};

/// `volary flow`.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// List the flows that agents run now.
    List,
    /// Show one flow: its nodes, edges, policies and types.
    Show(One),
    /// Draw one flow: as text for Mermaid or Graphviz.
    Graph(Graph),
}

/// `volary flow graph`.
#[derive(Debug, Args)]
pub struct Graph {
    #[command(flatten)]
    one: One,
    /// For whom: mermaid, or dot for Graphviz.
    #[arg(
        long,
        value_name = "FORMAT",
        default_value = "mermaid",
        hide_possible_values = true
    )]
    format: Format,
    /// Which way it runs: LR, TB, RL or BT.
    #[arg(long, value_name = "WAY", default_value = "LR")]
    direction: Direction,
}

/// `--format`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Format {
    Mermaid,
    Dot,
}

/// One flow.
#[derive(Debug, Args)]
pub struct One {
    /// Name of the flow.
    #[arg(value_name = "FLOW")]
    name: Name,
    /// The agent that runs it, where several run one of this name.
    #[arg(long, value_name = "AGENT")]
    agent: Option<Name>,
}

/// Asks the node.
pub async fn run(context: &Context, action: &Action) -> Outcome {
    let node = Node::find(context, None)?;
    match action {
        Action::List => list(context, &node.ask("/v1/flows", &()).await?),
        Action::Graph(graph) => {
            let view = view(&node, &graph.one).await?;
            if context.ui.json {
                context.ui.document(&view.description)?;
                return Ok(Exit::Ok);
            }
            let drawn = draw(&view, graph.format, graph.direction)?;
            context.ui.raw(drawn.as_bytes())?;
            Ok(Exit::Ok)
        }
        Action::Show(one) => {
            let view = view(&node, one).await?;
            if context.ui.json {
                context.ui.document(&view)?;
            } else {
                let document = serde_json::to_value(&view).expect("views have text keys");
                context.ui.line(format_args!("{document:#}"))?;
            }
            Ok(Exit::Ok)
        }
    }
}

fn draw(view: &FlowView, format: Format, direction: Direction) -> Result<String, CliError> {
    let read = Description::from_json(&view.description.to_string());
    let read = read.map_err(|error| {
        CliError::new(
            codes::DOCUMENT,
            "the agent describes its flow in another way",
        )
        .because(&error)
        .hint("the agent was built with another version; `volary flow show` prints what it says")
    })?;
    Ok(match format {
        Format::Mermaid => read.to_mermaid(direction),
        Format::Dot => read.to_dot(direction),
    })
}

async fn view(node: &Node, one: &One) -> Result<FlowView, CliError> {
    let query = FlowQuery {
        agent: one.agent.clone(),
    };
    node.ask(&format!("/v1/flows/{}", one.name), &query).await
}

fn list(context: &Context, list: &FlowList) -> Outcome {
    if context.ui.json {
        context.ui.document(&list.flows)?;
        return Ok(Exit::Ok);
    }
    let mut table = Table::new([
        "FLOW",
        "AGENT",
        "REPLICAS",
        "NODES",
        "IN FLIGHT",
        "DONE",
        "FAILED",
    ]);
    for flow in &list.flows {
        table.row([
            flow.name.as_str().into(),
            flow.agent.as_str().into(),
            flow.replicas.len().to_string().into(),
            flow.nodes.to_string().into(),
            flow.in_flight.to_string().into(),
            flow.done.to_string().into(),
            flow.failed.to_string().into(),
        ]);
    }
    context.ui.line(table.render(&context.ui))?;
    Ok(Exit::Ok)
}
