//! `volary send`: a message to a topic or an agent.

use std::{collections::BTreeMap, time::Duration};

use clap::Args;
use volary::ops::api::{Admission, DurationText, Outcome as Ending, Send, SendReply, SendRequest};
use volary_kernel::{Name, TraceId};

use crate::{
    args::duration,
    client::Node,
    codes,
    commands::payload,
    error::{CliError, Outcome},
    exit::Exit,
    settle::Context,
};

/// `volary send`.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    target: Target,
    /// JSON payload, @FILE for a file's content, - for standard input.
    #[arg(value_name = "JSON", allow_hyphen_values = true)]
    payload: String,
    /// Wait this long for the outcome, at most 60s.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    wait: Option<Duration>,
    /// Trace that the message belongs to [default: a new one].
    #[arg(long, value_name = "TRACE")]
    trace: Option<TraceId>,
    /// A header for the receiver; may be repeated.
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
    /// How urgent, 0 to 255 [default: 128].
    #[arg(long, value_name = "NUMBER")]
    priority: Option<u8>,
    /// From when on nobody wants it: a duration like 30s, or an RFC 3339 time.
    #[arg(long, value_name = "WHEN")]
    deadline: Option<String>,
}

/// Whom a message is for.
#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = false)]
pub struct Target {
    /// Topic whose subscribers get it.
    #[arg(long, value_name = "TOPIC")]
    pub topic: Option<String>,
    /// Agent that gets it.
    #[arg(long, value_name = "AGENT")]
    pub to: Option<Name>,
    /// Pool one of whose members gets it.
    #[arg(long, value_name = "POOL")]
    pub pool: Option<Name>,
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text
        .split_once('=')
        .ok_or_else(|| format!("`{text}` has no `=`"))?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Sends, prints what became of it, and tells it by the exit code too.
pub async fn run(context: &Context, arguments: &Arguments) -> Outcome {
    let payload = payload::read(&arguments.payload)?;
    let node = Node::find(context, None)?;
    let request = SendRequest {
        send: Send {
            topic: arguments.target.topic.clone(),
            to: arguments.target.to.clone(),
            pool: arguments.target.pool.clone(),
            payload: Some(payload),
            headers: arguments
                .headers
                .iter()
                .cloned()
                .collect::<BTreeMap<_, _>>(),
            priority: arguments.priority,
            deadline: arguments.deadline.clone(),
            ..Send::default()
        },
        trace: arguments.trace,
        wait: arguments.wait.map(DurationText),
    };
    let reply = node.send(&request).await?;
    show(context, &reply)?;
    judge(&reply, arguments.wait)
}

/// Prints the reply: a document, or one line.
pub fn show(context: &Context, reply: &SendReply) -> Result<(), CliError> {
    if context.ui.json {
        return context.ui.document(reply);
    }
    let outcome = reply
        .outcome
        .map(|outcome| format!(" outcome {}", word(&outcome)))
        .unwrap_or_default();
    // Why something is not done is told by the error that ends the command.
    let reason = match (&reply.outcome, &reply.reason) {
        (Some(Ending::Done), Some(reason)) => format!(" ({reason})"),
        _ => String::new(),
    };
    context.ui.line(format_args!(
        "{} id {} trace {}{outcome}{reason}",
        word(&reply.admission),
        reply.id,
        reply.trace
    ))
}

/// The word that documents use for it.
fn word(value: &impl serde::Serialize) -> String {
    let json = serde_json::to_value(value).expect("a word is always JSON");
    json.as_str().unwrap_or_default().to_owned()
}

/// The exit code for what became of a message.
pub fn judge(reply: &SendReply, wait: Option<Duration>) -> Outcome {
    let because = reply
        .reason
        .as_deref()
        .map(|reason| format!(": {reason}"))
        .unwrap_or_default();
    let admission = word(&reply.admission);
    match (reply.admission, reply.outcome) {
        (Admission::NoRoute, _) => Err(CliError::new(
            codes::NOT_SENT,
            format!("nobody takes this message{because}"),
        )),
        (Admission::Refused | Admission::Dropped, _) => Err(CliError::new(
            codes::NOT_SENT,
            format!("the message was {admission}{because}"),
        )),
        (_, Some(Ending::Done)) => Ok(Exit::Ok),
        (_, Some(Ending::DeadlineExceeded)) => Err(CliError::new(
            codes::NO_OUTCOME,
            format!("the message's own deadline passed{because}"),
        )),
        (_, Some(ending)) => Err(CliError::new(
            codes::WORK_FAILED,
            format!("the work ended {}{because}", word(&ending)),
        )),
        // It was not waited for: there is nothing to wait for.
        (Admission::Sent, None) if wait.is_some() => Err(CliError::new(
            codes::NO_OUTCOME,
            format!("no outcome{because}"),
        )
        .hint("leave out --wait for the topics of `messaging.atMostOnce`")),
        (_, None) => match wait {
            None => Ok(Exit::Ok),
            Some(wait) => {
                let limit = DurationText(wait);
                let hint = format!("it goes on: volary events --trace {}", reply.trace);
                Err(
                    CliError::new(codes::NO_OUTCOME, format!("no outcome within {limit}"))
                        .hint(hint),
                )
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn exit(reply: serde_json::Value, wait: Option<u64>) -> Exit {
        let mut document =
            json!({"id": volary_kernel::Uid::generate(), "trace": TraceId::generate()});
        document
            .as_object_mut()
            .unwrap()
            .extend(reply.as_object().unwrap().clone());
        let reply: SendReply = serde_json::from_value(document).unwrap();
        judge(&reply, wait.map(Duration::from_secs)).unwrap_or_else(|error| error.exit())
    }

    #[test]
    fn the_exit_code_tells_what_became_of_it() {
        assert_eq!(exit(json!({"admission": "queued"}), None), Exit::Ok);
        assert_eq!(
            exit(json!({"admission": "queued", "outcome": "done"}), Some(1)),
            Exit::Ok
        );
        assert_eq!(
            exit(json!({"admission": "queued"}), Some(1)),
            Exit::Deadline
        );
        assert_eq!(
            exit(
                json!({"admission": "queued", "outcome": "deadline_exceeded"}),
                Some(1)
            ),
            Exit::Deadline
        );
        assert_eq!(
            exit(json!({"admission": "queued", "outcome": "failed"}), Some(1)),
            Exit::Failure
        );
        assert_eq!(exit(json!({"admission": "sent"}), None), Exit::Ok);
        assert_eq!(exit(json!({"admission": "sent"}), Some(1)), Exit::Deadline);
        assert_eq!(exit(json!({"admission": "no_route"}), None), Exit::Failure);
        assert_eq!(
            exit(json!({"admission": "refused", "reason": "full"}), None),
            Exit::Failure
        );
    }
}
