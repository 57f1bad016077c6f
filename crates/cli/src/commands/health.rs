//! `volary health`: whether the node is healthy and ready.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use volary::ops::api::{CheckView, HealthDocument, HealthStatus};

use crate::{
    client::Node,
    error::{CliError, Outcome},
    exit::Exit,
    settle::Context,
    ui::{
        self, Ui,
        table::{Cell, Table},
    },
};

/// `volary health`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Folder of the fleet.
    #[arg(value_name = "DIR")]
    fleet: Option<PathBuf>,
}

/// What `volary health --json` prints.
#[derive(Debug, Serialize)]
struct Document {
    health: HealthDocument,
    ready: HealthDocument,
}

/// Asks both questions; exit code 0 only if both are answered with yes.
pub async fn run(context: &Context, arguments: &Arguments) -> Outcome {
    let node = Node::find(context, arguments.fleet.as_deref())?;
    let document = Document {
        health: node.health("/health").await?,
        ready: node.health("/ready").await?,
    };
    let well = document.health.status == HealthStatus::Healthy
        && document.ready.status == HealthStatus::Ready;
    if context.ui.json {
        context.ui.document(&document)?;
    } else {
        context.ui.line(show(&context.ui, &document))?;
    }
    if well {
        Ok(Exit::Ok)
    } else {
        Err(CliError::Silent(crate::codes::UNHEALTHY.exit))
    }
}

fn show(ui: &Ui, document: &Document) -> String {
    let mut table = Table::new(["QUESTION", "CHECK", "OK", "REASON"]);
    for (question, answer) in [("healthy", &document.health), ("ready", &document.ready)] {
        table.row([
            question.into(),
            "(all)".into(),
            word(is_well(answer)),
            "".into(),
        ]);
        for check in &answer.checks {
            table.row([
                "".into(),
                (&check.name).into(),
                word(check.ok),
                reason(check).into(),
            ]);
        }
    }
    table.render(ui)
}

fn is_well(answer: &HealthDocument) -> bool {
    matches!(answer.status, HealthStatus::Healthy | HealthStatus::Ready)
}

fn word(ok: bool) -> Cell {
    if ok {
        Cell::styled("yes", ui::GOOD)
    } else {
        Cell::styled("no", ui::BAD)
    }
}

fn reason(check: &CheckView) -> String {
    let beat = check
        .last_beat_seconds
        .map(|seconds| format!("last beat {seconds:.1}s ago"));
    check.reason.clone().or(beat).unwrap_or_default()
}
