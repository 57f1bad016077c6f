//! `volary replay`: which recorded messages a replay would feed again, and in which order. Delivers nothing.

use clap::{Args, ValueEnum};
use volary::ops::api::{ReplayDirection, ReplayPlan, ReplayQuery};
use volary_kernel::{Name, Tenant, Timestamp, TraceId, text::format_bytes};

use crate::{client::Node, error::Outcome, exit::Exit, settle::Context, ui::table::Table};

/// `volary replay`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Only plan: deliver nothing. The only mode of this build, so it has to be given.
    #[arg(long, required = true)]
    dry_run: bool,
    /// Only messages that went this way, seen from the agent.
    #[arg(long, value_name = "WAY")]
    direction: Option<Way>,
    /// Only messages to or from this agent.
    #[arg(long, value_name = "AGENT")]
    agent: Option<Name>,
    /// Only this tenant.
    #[arg(long, value_name = "TENANT")]
    tenant: Option<Tenant>,
    /// Only this trace.
    #[arg(long, value_name = "TRACE")]
    trace: Option<TraceId>,
    /// Only accepted at or after this time, like 2026-11-21T09:30:00Z.
    #[arg(long, value_name = "TIME")]
    from: Option<Timestamp>,
    /// Only accepted before this time.
    #[arg(long, value_name = "TIME")]
    to: Option<Timestamp>,
    /// Only journal entries at or after this one: where a plan that was too long goes on.
    #[arg(long, value_name = "SEQ")]
    from_seq: Option<u64>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Way {
    Inbound,
    Outbound,
}

/// Asks the node for the plan and prints it.
pub async fn run(context: &Context, arguments: &Arguments) -> Outcome {
    let node = Node::find(context, None)?;
    let query = ReplayQuery {
        direction: arguments.direction.map(|way| match way {
            Way::Inbound => ReplayDirection::Inbound,
            Way::Outbound => ReplayDirection::Outbound,
        }),
        agent: arguments.agent.clone(),
        tenant: arguments.tenant.clone(),
        trace: arguments.trace,
        from: arguments.from,
        to: arguments.to,
        from_seq: arguments.from_seq,
    };
    let plan = node.replay(&query).await?;
    if context.ui.json {
        context.ui.document(&plan)?;
    } else {
        context.ui.line(table(context, &plan))?;
        notes(context, &plan);
    }
    Ok(Exit::Ok)
}

fn table(context: &Context, plan: &ReplayPlan) -> String {
    let mut table = Table::new([
        "SEQ",
        "AT",
        "DIRECTION",
        "AGENT",
        "SENDER",
        "TOPICS",
        "SIZE",
        "TRACE",
        "ID",
    ]);
    for message in &plan.messages {
        let way = match message.direction {
            ReplayDirection::Inbound => "inbound",
            ReplayDirection::Outbound => "outbound",
        };
        table.row([
            message.seq.into(),
            message.at.into(),
            way.into(),
            (&message.agent).into(),
            (&message.sender).into(),
            message.topics.join(",").into(),
            format_bytes(message.bytes).into(),
            message.trace.into(),
            message.id.into(),
        ]);
    }
    table.render(&context.ui)
}

fn notes(context: &Context, plan: &ReplayPlan) {
    context.ui.say(format_args!(
        "{} messages would be fed, in this order",
        plan.messages.len()
    ));
    for gap in &plan.unreadable {
        context.ui.say(format_args!(
            "entry {} cannot be read: {}",
            gap.seq, gap.problem
        ));
    }
    if let Some(first) = plan.missing_before {
        context.ui.say(format_args!(
            "what came before entry {first} was removed by retention"
        ));
    }
    if let Some(next) = plan.next {
        context
            .ui
            .say(format_args!("there is more: --from-seq {next}"));
    }
}
