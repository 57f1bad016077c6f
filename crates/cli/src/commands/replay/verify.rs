//! Verify: a handler run on what it handled, compared with what it did then.

use serde_json::json;
use volary::ops::api::{ReplayDivergence, ReplayQuery, ReplayUnreadable, VerifyRequest};

use crate::{
    client::Node,
    codes,
    error::{CliError, Outcome},
    exit::Exit,
    settle::Context,
    ui::{table::Table, tame},
};

/// Skipped deliveries that are named.
const NAMED: usize = 5;

/// Verifies until the end or the first difference.
pub async fn run(context: &Context, mut query: ReplayQuery) -> Outcome {
    let node = Node::find(context, None)?;
    let (mut checked, mut same) = (0, 0);
    let mut skipped: Vec<ReplayUnreadable> = Vec::new();
    let Some(agent) = query.agent.take() else {
        return Err(CliError::new(codes::USAGE, "--verify needs --agent AGENT"));
    };
    let divergence = loop {
        let request = VerifyRequest {
            agent: agent.clone(),
            query: query.clone(),
        };
        let reply = node.verify_replay(&request).await?;
        checked += reply.checked;
        same += reply.same;
        skipped.extend(reply.skipped);
        context
            .ui
            .progress(format_args!("{checked} deliveries verified"));
        if reply.divergence.is_some() || reply.next.is_none() {
            break reply.divergence;
        }
        query.from_seq = reply.next;
    };
    if context.ui.json {
        context.ui.document(&json!({
            "agent": agent, "ok": divergence.is_none(), "checked": checked, "same": same, "skipped": skipped,
            "divergence": divergence,
        }))?;
    } else {
        for gap in skipped.iter().take(NAMED) {
            context.ui.say(format_args!(
                "delivery acknowledged in entry {} was skipped: {}",
                gap.seq, gap.problem
            ));
        }
        if skipped.len() > NAMED {
            let more = skipped.len() - NAMED;
            context.ui.say(format_args!("{more} more were skipped"));
        }
        match &divergence {
            Some(found) => show(context, found)?,
            None => context.ui.line(format_args!(
                "{agent} does what it did: {checked} deliveries, {same} actions, {} skipped",
                skipped.len()
            ))?,
        }
    }
    match divergence {
        None => Ok(Exit::Ok),
        Some(found) => Err(CliError::new(
            codes::DIVERGED,
            format!(
                "{agent} does something else: delivery {checked}, acknowledged in entry {}, action {}",
                found.seq, found.action
            ),
        )),
    }
}

fn show(context: &Context, found: &ReplayDivergence) -> Result<(), CliError> {
    let ui = &context.ui;
    if let Some(failure) = &found.failure {
        return ui.line(format_args!(
            "expected: the run ends well\nactual:   {}",
            tame(failure)
        ));
    }
    let act = |act: &Option<serde_json::Value>| match act {
        None => "no action".to_owned(),
        Some(act) => {
            let text = |name: &str| act[name].as_str().unwrap_or_default().to_owned();
            let payload = &act["payload"];
            let words = format!("{} {} {payload}", text("kind"), text("target"));
            tame(&words.replace("  ", " "))
        }
    };
    ui.line(format_args!("expected: {}", act(&found.expected)))?;
    ui.line(format_args!("actual:   {}", act(&found.actual)))?;
    if found.differences.is_empty() {
        return Ok(());
    }
    let mut table = Table::new(["DIFFERENT", "EXPECTED", "ACTUAL"]);
    for one in &found.differences {
        table.row([
            tame(&one.at).into(),
            tame(&one.expected).into(),
            tame(&one.actual).into(),
        ]);
    }
    ui.line(table.render(ui))
}
