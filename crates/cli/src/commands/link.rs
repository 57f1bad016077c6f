//! `volary link`: an agent from a shell script. Takes work, acknowledges it, sends; speaks for the replica whose
//! environment it runs in.

use std::time::Duration;

use clap::{Args, Subcommand};
use volary::ops::api::{
    AckRequest, Action as Deed, DurationText, InboxQuery, NackRequest, Send as Message, SendRequest,
};
use volary_kernel::{Clock, Name, SystemClock, TraceId};

use crate::{
    args::duration,
    client::Link,
    codes,
    commands::{payload, send},
    error::{CliError, Outcome},
    exit::Exit,
    settle::Context,
};

/// Longest single question to the node; a longer wait asks again.
const ASK: Duration = Duration::from_secs(30);

/// `volary link`.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// Claim work: one JSON document per line. Exit code 75 when nothing came in time.
    Next(Next),
    /// Acknowledge claims, together with what they led to: all of it happens, or nothing.
    Ack(Ack),
    /// Give a claim back: it comes again, or is parked when its attempts are used up.
    Nack(Nack),
    /// Send a message at once.
    Send(Send),
}

/// `volary link next`.
#[derive(Debug, Args)]
pub struct Next {
    /// Wait this long for the first item.
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "30s")]
    wait: Duration,
    /// Most items to claim at once.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    max: u32,
}

/// `volary link ack`.
#[derive(Debug, Args)]
pub struct Ack {
    /// The `id` of each claim.
    #[arg(value_name = "ID", required = true)]
    ids: Vec<String>,
    /// Send a message to a topic with it; may be repeated.
    #[arg(long, value_name = "TOPIC=JSON", value_parser = pair)]
    send: Vec<(String, String)>,
    /// Send a message to an agent with it; may be repeated.
    #[arg(long, value_name = "AGENT=JSON", value_parser = pair)]
    send_to: Vec<(String, String)>,
    /// Put a report into the journal with it; may be repeated.
    #[arg(long, value_name = "JSON")]
    report: Vec<String>,
    /// Read further actions from standard input, one JSON document per line, as a handler prints them.
    #[arg(long)]
    actions: bool,
}

/// `volary link nack`.
#[derive(Debug, Args)]
pub struct Nack {
    /// The `id` of the claim.
    #[arg(value_name = "ID")]
    id: String,
    /// When it comes again [default: by the agent's back-off].
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    delay: Option<Duration>,
    /// Why, for the journal and for whoever looks at parked items.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// No further attempt would do better: park it at once.
    #[arg(long, conflicts_with = "delay")]
    give_up: bool,
}

/// `volary link send`.
#[derive(Debug, Args)]
pub struct Send {
    #[command(flatten)]
    target: send::Target,
    /// JSON payload, @FILE for a file's content, - for standard input.
    #[arg(value_name = "JSON", allow_hyphen_values = true)]
    payload: String,
    /// Trace that the message belongs to [default: a new one].
    #[arg(long, value_name = "TRACE")]
    trace: Option<TraceId>,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, json) = text
        .split_once('=')
        .ok_or_else(|| format!("`{text}` has no `=` between receiver and JSON"))?;
    Ok((name.to_owned(), json.to_owned()))
}

/// Asks the node over the replica's own socket.
pub async fn run(context: &Context, action: &Action) -> Outcome {
    let link = Link::of_environment(&context.environment)?;
    match action {
        Action::Next(arguments) => next(context, &link, arguments).await,
        Action::Ack(arguments) => ack(context, &link, arguments).await,
        Action::Nack(arguments) => nack(context, &link, arguments).await,
        Action::Send(arguments) => send(context, &link, arguments).await,
    }
}

async fn next(context: &Context, link: &Link, arguments: &Next) -> Outcome {
    let deadline = SystemClock.mono() + arguments.wait;
    loop {
        let left = deadline - SystemClock.mono();
        let query = InboxQuery {
            max: Some(arguments.max),
            wait: Some(DurationText(whole_millis(left.min(ASK)))),
        };
        let reply = link.next(&query).await?;
        for item in &reply.items {
            context.ui.document(item)?;
        }
        if !reply.items.is_empty() {
            return Ok(Exit::Ok);
        }
        if SystemClock.mono() >= deadline {
            // Not an error: a loop asks again. So it says nothing.
            return Err(CliError::Silent(Exit::RetryLater));
        }
    }
}

/// Durations are written for people; finer than this nobody asks.
pub fn whole_millis(duration: Duration) -> Duration {
    Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

async fn ack(context: &Context, link: &Link, arguments: &Ack) -> Outcome {
    let request = AckRequest {
        id: None,
        ids: arguments.ids.clone(),
        actions: deeds(arguments)?,
    };
    let reply = link.ack(&request).await?;
    if context.ui.json {
        context.ui.document(&reply)?;
    }
    Ok(Exit::Ok)
}

/// What goes with an acknowledgement, in the order topics, agents, reports, standard input.
fn deeds(arguments: &Ack) -> Result<Vec<Deed>, CliError> {
    let mut deeds = Vec::new();
    for (topic, json) in &arguments.send {
        let payload = Some(payload::json(json, "--send")?);
        deeds.push(Deed::Send(Message {
            topic: Some(topic.clone()),
            payload,
            ..Message::default()
        }));
    }
    for (agent, json) in &arguments.send_to {
        let agent = Name::new(agent).map_err(|error| {
            CliError::new(
                codes::DOCUMENT,
                format!("--send-to needs an agent's name, found `{agent}`"),
            )
            .because(&error)
        })?;
        let payload = Some(payload::json(json, "--send-to")?);
        deeds.push(Deed::Send(Message {
            to: Some(agent),
            payload,
            ..Message::default()
        }));
    }
    for json in &arguments.report {
        deeds.push(Deed::Report(payload::json(json, "--report")?));
    }
    if arguments.actions {
        for (index, line) in payload::stdin()?
            .lines()
            .enumerate()
            .filter(|(_, line)| !line.trim().is_empty())
        {
            deeds.push(serde_json::from_str(line).map_err(|error| {
                let place = format!("line {} of standard input is not an action", index + 1);
                CliError::new(codes::DOCUMENT, place).because(&error).hint(
                    "write {\"send\":{\"topic\":…,\"payload\":…}} or {\"report\":…} on each line",
                )
            })?);
        }
    }
    Ok(deeds)
}

async fn nack(context: &Context, link: &Link, arguments: &Nack) -> Outcome {
    let request = NackRequest {
        id: arguments.id.clone(),
        delay: arguments.delay.map(DurationText),
        reason: arguments.reason.clone(),
        give_up: arguments.give_up,
    };
    let reply = link.nack(&request).await?;
    if context.ui.json {
        context.ui.document(&reply)?;
    }
    Ok(Exit::Ok)
}

async fn send(context: &Context, link: &Link, arguments: &Send) -> Outcome {
    let request = SendRequest {
        send: Message {
            topic: arguments.target.topic.clone(),
            to: arguments.target.to.clone(),
            pool: arguments.target.pool.clone(),
            payload: Some(payload::read(&arguments.payload)?),
            ..Message::default()
        },
        trace: arguments.trace,
        wait: None,
    };
    let reply = link.send(&request).await?;
    send::show(context, &reply)?;
    send::judge(&reply, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ack(send: &[(&str, &str)], send_to: &[(&str, &str)]) -> Ack {
        let owned = |pairs: &[(&str, &str)]| {
            pairs
                .iter()
                .map(|(name, json)| ((*name).to_owned(), (*json).to_owned()))
                .collect()
        };
        Ack {
            ids: vec!["a".into()],
            send: owned(send),
            send_to: owned(send_to),
            report: Vec::new(),
            actions: false,
        }
    }

    #[test]
    fn what_goes_with_an_acknowledgement_is_checked_before_it_is_sent() {
        assert_eq!(
            deeds(&ack(&[("work", "{\"n\":1}")], &[("b", "2")]))
                .unwrap()
                .len(),
            2
        );
        assert_eq!(
            deeds(&ack(&[("work", "hello")], &[])).unwrap_err().exit(),
            Exit::BadData
        );
        assert_eq!(
            deeds(&ack(&[], &[("Not A Name", "1")])).unwrap_err().exit(),
            Exit::BadData
        );
    }

    #[test]
    fn a_receiver_and_its_json_are_parted_at_the_first_equals_sign() {
        assert_eq!(pair("a/b={\"x\":\"y=z\"}").unwrap().1, "{\"x\":\"y=z\"}");
        assert!(pair("a/b").is_err());
    }
}
