//! `volary events`: the journal so far, or with `-f` what happens as it happens.

use std::fmt::Write as _;

use clap::Args;
use futures_util::StreamExt;
use volary::ops::api::{Event, EventsQuery};

use crate::{
    args::Filters,
    client::{Feed, Heard, Node},
    error::{CliError, Outcome},
    exit::Exit,
    settle::Context,
    ui::{self, Ui, tame, time},
};

/// `volary events`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Wait for what comes next, until Ctrl-C. Begins now, or with --from there.
    #[arg(short, long)]
    follow: bool,
    /// Without -f: at most this many, the oldest.
    #[arg(long, value_name = "N", conflicts_with = "follow")]
    limit: Option<u64>,
    #[command(flatten)]
    filters: Filters,
}

/// Prints one line per event.
pub async fn run(context: &Context, arguments: &Arguments) -> Outcome {
    let node = Node::find(context, None)?;
    let query = EventsQuery {
        limit: arguments.limit,
        ..query(&arguments.filters)
    };
    if arguments.follow {
        print(&context.ui, node.follow(&query).await?).await?;
        context.ui.say("the node has stopped");
    } else {
        print_all(&context.ui, node.events(&query).await?).await?;
    }
    Ok(Exit::Ok)
}

/// The filters as the node takes them.
pub fn query(filters: &Filters) -> EventsQuery {
    EventsQuery {
        from: filters.from,
        kind: (!filters.kind.is_empty()).then(|| filters.kind.join(",")),
        agent: filters.agent.clone(),
        trace: filters.trace,
        tenant: filters.tenant.clone(),
        ..EventsQuery::default()
    }
}

/// Prints a live feed: each event at once.
pub async fn print(ui: &Ui, mut events: Feed<Heard>) -> Result<(), CliError> {
    while let Some(heard) = events.next().await {
        match heard? {
            Heard::Event(event) => ui.line(line(ui, &event))?,
            Heard::Gap(gap) => ui.say(gap),
        }
    }
    Ok(())
}

/// Prints what is there already: much of it, so buffered.
async fn print_all(ui: &Ui, mut events: Feed<Event>) -> Result<(), CliError> {
    use std::io::Write as _;
    let mut out = ui.bulk();
    while let Some(event) = events.next().await {
        writeln!(out, "{}", line(ui, &event?)).map_err(|error| CliError::output(&error))?;
    }
    out.flush().map_err(|error| CliError::output(&error))
}

/// One event on one line: a document, or `time #seq kind agent trace details`.
pub fn line(ui: &Ui, event: &Event) -> String {
    if ui.json {
        return serde_json::to_string(event).expect("events have text keys and finite numbers");
    }
    let seq = event
        .seq
        .map_or_else(|| "-".to_owned(), |seq| format!("#{seq}"));
    let agent = event.agent.as_ref().map_or("-", |agent| agent.as_str());
    let trace: String = event.trace.map_or_else(
        || "-".to_owned(),
        |trace| trace.to_string().chars().take(8).collect(),
    );
    // Padded before painted: colour codes have no width.
    let kind = ui.paint(style(&event.kind), format!("{:<20}", tame(&event.kind)));
    let head = ui.paint(ui::DIM, format!("{} {seq:<7}", time::of_day(event.at)));
    let details = event
        .body
        .as_deref()
        .map(|body| details(body.get()))
        .unwrap_or_default();
    format!("{head} {kind} {agent:<16} {trace:<8} {details}")
        .trim_end()
        .to_owned()
}

fn style(kind: &str) -> anstyle::Style {
    const BAD: [&str; 6] = [
        "failed",
        "parked",
        "crash",
        "refused",
        "dropped",
        "unhealthy",
    ];
    match kind {
        kind if BAD.iter().any(|word| kind.contains(word)) => ui::BAD,
        kind if kind.ends_with("nacked") || kind.ends_with("retry") => ui::WARN,
        kind if kind.ends_with("acked") || kind.ends_with("ready") => ui::GOOD,
        _ => anstyle::Style::new(),
    }
}

/// Most characters of details: what is left of a wide line.
const DETAILS: usize = 100;

/// Longest value that is shown among them.
const VALUE: usize = 64;

/// What tells most about an event, in this order; other values follow.
const FIRST: [&str; 13] = [
    "replica", "page", "kind", "topics", "targets", "sender", "reason", "attempt", "attempts",
    "actions", "retry_in", "exit", "pid",
];

/// What is only noise on a line: ids to look up with `--json`, and what the line says already.
const NOISE: [&str; 15] = [
    "v",
    "id",
    "item",
    "change",
    "cursor",
    "trace",
    "queue",
    "message",
    "subscription",
    "enqueued_at",
    "occurred_at",
    "content_type",
    "sender_id",
    "sent_at",
    "priority",
];

/// The plain values of a body, `key=value` in a row; the whole of it is for `--json`.
fn details(body: &str) -> String {
    let Ok(serde_json::Value::Object(body)) = serde_json::from_str(body) else {
        return String::new();
    };
    let first = FIRST.iter().filter_map(|key| body.get_key_value(*key));
    let rest = body
        .iter()
        .filter(|(key, _)| !FIRST.contains(&key.as_str()) && !NOISE.contains(&key.as_str()));
    let mut text = String::new();
    for (key, value) in first.chain(rest) {
        // Encoded bytes and the like: nothing to read in passing. A reason is, however long.
        let fits = |value: &String| key == "reason" || value.chars().nth(VALUE).is_none();
        let Some(value) = plain(value).filter(fits) else {
            continue;
        };
        let gap = if text.is_empty() { "" } else { " " };
        write!(text, "{gap}{key}={}", tame(&value)).expect("writing to a String cannot fail");
    }
    match text.char_indices().nth(DETAILS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// A value as it is shown on a line; a page is its id.
fn plain(value: &serde_json::Value) -> Option<String> {
    match value {
        serde_json::Value::String(text) => Some(text.clone()),
        serde_json::Value::Number(_) | serde_json::Value::Bool(_) => Some(value.to_string()),
        serde_json::Value::Array(values) if !values.is_empty() => {
            let values: Option<Vec<String>> = values.iter().map(plain).collect();
            values.map(|values| values.join(","))
        }
        serde_json::Value::Object(fields) => fields.get("id").and_then(plain),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ColorChoice;
    use serde_json::json;

    fn event() -> Event {
        let event = json!({
            "seq": 12, "at": "2026-11-21T09:26:13.042Z", "kind": "page.changed", "tenant": "default", "agent": null,
            "trace": "4bf92f3577b34da6a3ce929d0e0e4736", "cause": null,
            "body": {"v": 1, "path": "a\u{1b}.md", "kind": "added", "links": []},
        });
        serde_json::from_value(event).unwrap()
    }

    #[test]
    fn an_event_is_one_line_and_harmless_to_a_terminal() {
        let ui = Ui::new(false, ColorChoice::Never);
        assert_eq!(
            line(&ui, &event()),
            "09:26:13.042 #12     page.changed         -                4bf92f35 kind=added path=a\u{fffd}.md"
        );
    }

    #[test]
    fn a_reason_is_cut_and_not_left_out() {
        let body =
            json!({"v": 1, "item": "1", "reason": "x".repeat(200), "bytes": "y".repeat(200)});
        let shown = details(&body.to_string());
        assert_eq!(shown, format!("reason={}…", "x".repeat(93)));
    }

    #[test]
    fn a_document_has_every_key_that_others_script_against() {
        let ui = Ui::new(true, ColorChoice::Never);
        let document: serde_json::Value = serde_json::from_str(&line(&ui, &event())).unwrap();
        for key in ["seq", "at", "kind", "tenant", "agent", "trace", "cause"] {
            assert!(document.get(key).is_some(), "{key}");
        }
    }
}
