//! `volary flow`: the graphs that agents run inside, as they describe themselves, and their traces.

use clap::{Args, Subcommand, ValueEnum};
use volary::{
    flow::graph::{Description, Direction},
    ops::api::{
        FlowAct, FlowActReply, FlowActRequest, FlowList, FlowQuery, FlowTrace, FlowTraces,
        FlowTracesQuery, FlowView,
    },
};
use volary_kernel::{Clock, Name, SystemClock, Tenant, Timestamp, TraceId};

use crate::{
    client::Node,
    codes,
    error::{CliError, Outcome},
    exit::Exit,
    settle::Context,
    ui::{table::Table, time},
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
    /// List the traces of a flow: those that live, oldest first, then the last that ended.
    Traces(Traces),
    /// End a trace; its message is parked.
    Cancel(Trace),
    /// Hold what of a trace does not run yet, at most as long as its message is claimed.
    Pause(Trace),
    /// Let a paused trace go on.
    Resume(Trace),
}

/// `volary flow traces`.
#[derive(Debug, Args)]
pub struct Traces {
    /// Name of the flow.
    #[arg(value_name = "FLOW")]
    name: Name,
    /// Only of this agent.
    #[arg(long, value_name = "AGENT")]
    agent: Option<Name>,
    /// Only of agents of this tenant.
    #[arg(long, value_name = "TENANT")]
    tenant: Option<Tenant>,
    /// Print only the ids of those that live, one per line.
    #[arg(short, long)]
    quiet: bool,
}

/// `volary flow cancel`, `pause` and `resume`.
#[derive(Debug, Args)]
pub struct Trace {
    /// The trace, as `flow traces` prints it, or the trace of its message, as `send` and `events` print it.
    #[arg(value_name = "TRACE")]
    trace: TraceId,
    /// Only of agents of this tenant.
    #[arg(long, value_name = "TENANT")]
    tenant: Option<Tenant>,
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
        Action::Traces(arguments) => traces(context, &node, arguments).await,
        Action::Cancel(trace) => act(context, &node, FlowAct::Cancel, trace).await,
        Action::Pause(trace) => act(context, &node, FlowAct::Pause, trace).await,
        Action::Resume(trace) => act(context, &node, FlowAct::Resume, trace).await,
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

async fn traces(context: &Context, node: &Node, arguments: &Traces) -> Outcome {
    let query = FlowTracesQuery {
        agent: arguments.agent.clone(),
        tenant: arguments.tenant.clone(),
    };
    let path = format!("/v1/flows/{}/traces", arguments.name);
    let list: FlowTraces = node.ask(&path, &query).await?;
    if context.ui.json {
        context.ui.document(&list.traces)?;
    } else if arguments.quiet {
        let living = list.traces.iter().filter(|view| !has_ended(&view.trace));
        for view in living {
            context.ui.line(view.trace.trace)?;
        }
    } else {
        context.ui.line(table(context, &list, SystemClock.wall()))?;
    }
    if list.more {
        context
            .ui
            .say("more live than are shown: these are the oldest");
    }
    for replica in &list.silent {
        context.ui.say(format_args!("{replica} did not answer"));
    }
    Ok(Exit::Ok)
}

const fn has_ended(trace: &FlowTrace) -> bool {
    trace.ended_at.is_some()
}

fn table(context: &Context, list: &FlowTraces, now: Timestamp) -> String {
    let mut table = Table::new([
        "TRACE",
        "MESSAGE",
        "TENANT",
        "REPLICA",
        "STATE",
        "AGE",
        "WHERE OR WHY",
    ]);
    for view in &list.traces {
        let trace = &view.trace;
        let age = if has_ended(trace) {
            time::ago(now, trace.ended_at)
        } else {
            time::span(trace.age.0)
        };
        let nodes: Vec<&str> = trace.nodes.iter().map(Name::as_str).collect();
        let at = match &trace.reason {
            Some(reason) => reason.clone(),
            None if nodes.is_empty() => "-".to_owned(),
            None => nodes.join(", "),
        };
        table.row([
            trace.trace.into(),
            trace
                .message_trace
                .map_or_else(|| "-".into(), |message| message.into()),
            trace.tenant.as_str().into(),
            view.replica.as_str().into(),
            (&trace.state).into(),
            age.into(),
            at.into(),
        ]);
    }
    table.render(&context.ui)
}

async fn act(context: &Context, node: &Node, act: FlowAct, trace: &Trace) -> Outcome {
    let path = format!("/v1/flow-traces/{}/{}", trace.trace, act.as_str());
    let request = FlowActRequest {
        tenant: trace.tenant.clone(),
    };
    let reply: FlowActReply = node.tell(&path, &request).await?;
    if context.ui.json {
        context.ui.document(&reply.traces)?;
        return Ok(Exit::Ok);
    }
    for acted in &reply.traces {
        context.ui.line(acted.trace)?;
    }
    Ok(Exit::Ok)
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
