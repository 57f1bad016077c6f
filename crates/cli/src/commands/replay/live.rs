//! Live: recorded messages into an agent's inbox, piece by piece, so that an end in between is a place to go on from.

use std::time::Duration;

use serde_json::json;
use volary::{
    messaging::replay::{Pace, Speed},
    ops::api::{ReplayMessage, ReplayQuery, ReplayRequest},
};
use volary_kernel::{
    Name,
    clock::{self, Clock as _, SystemClock},
};

use super::{Arguments, source};
use crate::{
    client::Node,
    codes,
    error::{CliError, Outcome},
    exit::Exit,
    settle::Context,
};

/// Messages planned at a time when they are paced.
const AHEAD: u32 = 1000;
/// Wait before a full inbox is tried again.
const FULL_WAIT: Duration = Duration::from_millis(500);

struct Live<'a> {
    context: &'a Context,
    node: Node,
    into: &'a Name,
    query: ReplayQuery,
    fed: u64,
}

/// Feeds and tells how far it is.
pub async fn run(
    context: &Context,
    arguments: &Arguments,
    mut query: ReplayQuery,
    into: &Name,
) -> Outcome {
    let node = Node::find(context, None)?;
    if let Some(path) = &arguments.from_export {
        let trust = source::trust(node.state(), arguments.key.as_ref())?;
        let imported = source::import(node.state(), path, trust)?;
        context
            .ui
            .say(format_args!("reading the import {}", imported.name));
        query.archive = Some(imported.name);
    }
    let mut live = Live {
        context,
        node,
        into,
        query,
        fed: 0,
    };
    match arguments.speed {
        Speed::Max => live.feed_to(None).await?,
        paced => live.feed_paced(Pace::new(paced)).await?,
    }
    if context.ui.json {
        context
            .ui
            .document(&json!({"fed": live.fed, "into": into}))?;
    } else {
        context.ui.line(format_args!(
            "{} messages are in the inbox of {into}, marked as replayed",
            live.fed
        ))?;
    }
    Ok(Exit::Ok)
}

impl Live<'_> {
    /// Feeds everything from `query.from_seq` up to an entry, or to the end.
    async fn feed_to(&mut self, last: Option<u64>) -> Result<(), CliError> {
        loop {
            let query = ReplayQuery {
                to_seq: last,
                ..self.query.clone()
            };
            let into = self.into.clone();
            let reply = self.node.feed(&ReplayRequest { query, into }).await;
            let reply = reply.map_err(|error| self.with_place(error))?;
            self.fed += reply.fed;
            self.tell(reply.last);
            match (reply.stopped, reply.next) {
                (None, None) => break,
                (None, next) => self.query.from_seq = next,
                (Some(_), next) if reply.retry => {
                    self.query.from_seq = next;
                    clock::sleep(FULL_WAIT).await;
                }
                (Some(why), next) => {
                    self.query.from_seq = next.or(self.query.from_seq);
                    let message = format!("{why}; {} messages were fed before", self.fed);
                    let stopped = CliError::new(codes::REPLAY_STOPPED, message);
                    return Err(self.with_place(stopped));
                }
            }
        }
        if let Some(last) = last {
            self.query.from_seq = Some(last + 1);
        }
        Ok(())
    }

    /// Feeds each message when it is due.
    async fn feed_paced(&mut self, mut pace: Pace) -> Result<(), CliError> {
        let mut next = self.query.from_seq;
        loop {
            let query = ReplayQuery {
                from_seq: next,
                max: Some(AHEAD),
                ..self.query.clone()
            };
            let plan = self.node.replay(&query).await?;
            let mut messages = plan.messages.as_slice();
            while let Some(first) = messages.first() {
                let wait = pace.wait(first.at, SystemClock.mono());
                if !wait.is_zero() {
                    clock::sleep(wait).await;
                }
                // What is due by now goes together.
                let now = SystemClock.mono();
                let due = |message: &ReplayMessage, pace: &mut Pace| {
                    message.seq == first.seq || pace.wait(message.at, now).is_zero()
                };
                let count = messages
                    .iter()
                    .take_while(|message| due(message, &mut pace))
                    .count();
                let (together, later) = messages.split_at(count.max(1));
                let (from, to) = (first.seq, together[together.len() - 1].seq);
                self.query.from_seq = Some(from);
                self.feed_to(Some(to)).await?;
                messages = later;
            }
            next = plan.next;
            if next.is_none() {
                return Ok(());
            }
        }
    }

    fn with_place(&self, error: CliError) -> CliError {
        match self.query.from_seq {
            Some(seq) => error.hint(format!("go on with --from-seq {seq}")),
            None => error,
        }
    }

    fn tell(&self, last: Option<u64>) {
        if let Some(last) = last {
            self.context
                .ui
                .progress(format_args!("{} messages, up to entry {last}", self.fed));
        }
    }
}
