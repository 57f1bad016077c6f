//! The plan: which messages a replay would feed, in which order.

use volary::{
    messaging::ReplayRunner,
    messaging::replay::Recording,
    ops::api::{ReplayDirection, ReplayPlan, ReplayQuery},
};
use volary_kernel::text::format_bytes;

use super::{Arguments, source};
use crate::{
    client::Node,
    error::{CliError, Outcome},
    exit::Exit,
    settle::Context,
    ui::{count, table::Table},
};

/// Prints the plan. A node is asked if it runs; without one, its database or the archive is read.
pub async fn run(context: &Context, arguments: &Arguments, query: ReplayQuery) -> Outcome {
    let plan = plan(context, arguments, &query).await?;
    if context.ui.json {
        context.ui.document(&plan)?;
    } else {
        context.ui.line(table(context, &plan))?;
        notes(context, &plan);
    }
    Ok(Exit::Ok)
}

async fn plan(
    context: &Context,
    arguments: &Arguments,
    query: &ReplayQuery,
) -> Result<ReplayPlan, CliError> {
    let state = context.running_state(None)?;
    let path = arguments.from_export.as_deref();
    let recording = match path {
        Some(path) => {
            let trust = source::trust(&state, arguments.key.as_ref())?;
            let opened = Recording::archive(path, trust).await;
            opened
                .map_err(|error| source::failure(Some(path), &error))?
                .0
        }
        None => match Node::running_on(&state)?.filter(Node::lives) {
            Some(node) => return node.replay(query).await,
            None => source::offline(&state)?,
        },
    };
    let planned = ReplayRunner::new(recording)
        .plan(&source::wanted(query))
        .await
        .map_err(|error| source::failure(path, &error))?;
    Ok(source::shown(planned))
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
        "{} would be fed, in this order; nothing was delivered (that takes --into AGENT)",
        count(plan.messages.len(), "message")
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
