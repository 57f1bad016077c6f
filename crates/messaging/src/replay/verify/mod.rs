//! Verify: recorded inputs fed to an agent again, and what it does compared with what it did.
//!
//! Nothing that the agent asks for is carried out. What it is told as time and randomness is what it was told then: the
//! time at which the attempt began, and a seed that follows from the idempotency key and the attempt, so it is the same
//! whenever the same work is done. Whatever else it looks at (the real clock, files, the network) is as it is now: a
//! difference that comes from there shows as a divergence.

mod act;
mod context;
mod recorded;

pub use self::{
    act::{Act, ActKind, Added, Difference, compare},
    context::{ReplayContext, ReplayRandom, seed},
    recorded::{RecordedDelivery, Skipped, deliveries},
};

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use volary_kernel::id::{Name, TraceId, Uid};
use volary_store::Seq;

use super::{
    Direction, PlannedMessage, Recording, ReplayError, ReplayQuery, ReplayRunner, Unreadable,
};
use crate::action::Action;

/// Where an agent first did something else than it did then.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Divergence {
    /// The entry of the input: the acknowledgement of the delivery, or the recorded message.
    pub seq: Seq,
    /// The delivery, if it was one.
    pub delivery: Option<Uid>,
    /// Its request.
    pub trace: TraceId,
    /// Which action of that input, from 1.
    pub action: usize,
    /// What it did then; `None` if nothing more.
    pub expected: Option<Act>,
    /// What it does now; `None` if nothing more.
    pub actual: Option<Act>,
    /// What is different, if both did something of the same kind.
    pub differences: Vec<Difference>,
    /// What the agent's run ended with, if it did not end well.
    pub failure: Option<String>,
}

/// What a verification found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// Inputs that were fed and compared.
    pub checked: u64,
    /// Actions that were the same.
    pub same: u64,
    /// Inputs that could not be compared, and why.
    pub skipped: Vec<Skipped>,
    /// The first difference; what comes after it was not looked at.
    pub divergence: Option<Divergence>,
    /// Where to go on, if a limit ended it.
    pub next: Option<Seq>,
}

impl VerifyReport {
    /// Whether everything that was compared was the same.
    pub const fn is_clean(&self) -> bool {
        self.divergence.is_none()
    }
}

/// Feeds the deliveries that `agent` acknowledged to `run` again, and compares what it asks for. Ends at the first
/// difference, or after `limit` deliveries.
///
/// `run` gives the actions, or why there are none: a failed run is a divergence, since the recorded one was acknowledged.
///
/// # Errors
/// Errors of reading the journal.
pub async fn verify_deliveries<R>(
    recording: &Recording,
    query: &ReplayQuery,
    (limit, added): (usize, Added),
    mut run: impl FnMut(RecordedDelivery, ReplayContext) -> R,
) -> Result<VerifyReport, ReplayError>
where
    R: Future<Output = Result<Vec<Action>, String>>,
{
    let page = deliveries(recording, query, limit).await?;
    let mut report = VerifyReport {
        skipped: page.skipped,
        next: page.next,
        ..VerifyReport::default()
    };
    for recorded in page.deliveries {
        let expected = recorded.acts.clone();
        let (seq, delivery, trace) = (recorded.seq, recorded.id, recorded.trace);
        let context =
            ReplayContext::new(recorded.began, &recorded.idempotency_key, recorded.attempt);
        let now = recorded.began;
        let outcome = run(recorded, context).await.and_then(|actions| {
            let acts = actions.iter().map(|action| Act::of_action(action, now));
            acts.collect::<Result<Vec<_>, _>>()
        });
        report.checked += 1;
        let found = match outcome {
            Ok(actual) => compare(&expected, &actual, added),
            Err(failure) => Some(Divergence::failed(expected.first().cloned(), failure)),
        };
        match found {
            None => report.same += expected.len() as u64,
            Some(found) => {
                report.same += found.action as u64 - 1;
                report.divergence = Some(Divergence {
                    seq,
                    delivery: Some(delivery),
                    trace,
                    ..found
                });
                report.next = None;
                break;
            }
        }
    }
    Ok(report)
}

/// Feeds the messages that `agent` received, as a [`super::ReplayLog`] recorded them, to `decide`, and compares what it
/// wants to send with the messages that were recorded as sent by it, one by one in order. Inputs and outputs need not be
/// matched to each other for that, so it does not matter how many messages were decided together. Ends at the first
/// difference. [`crate::agent::Rehearsal`] is the `decide` of an agent written as code.
///
/// `added` says whether hooks may have changed what was recorded. A failed `decide` is a divergence.
///
/// # Errors
/// Errors of reading the record.
pub async fn verify_messages<R>(
    recording: &Recording,
    agent: &Name,
    added: Added,
    mut decide: impl FnMut(PlannedMessage, ReplayContext) -> R,
) -> Result<VerifyReport, ReplayError>
where
    R: Future<Output = Result<Vec<Act>, String>>,
{
    let mut received = Walk::new(recording, agent, Direction::Inbound);
    let mut sent = Walk::new(recording, agent, Direction::Outbound);
    let mut report = VerifyReport::default();
    let mut last = None;
    while let Some(planned) = received.next().await? {
        let place = (planned.seq, planned.message.trace());
        last = Some(place);
        let context = ReplayContext::new(planned.at, &planned.idempotency_key(), 1);
        report.checked += 1;
        let acts = match decide(planned, context).await {
            Ok(acts) => acts,
            Err(failure) => {
                let expected = sent.next().await?;
                let expected = expected.map(|sent| Act::of_message(&sent.message));
                report.divergence = Some(Divergence::failed(expected, failure).at(place, 1));
                return Ok(report);
            }
        };
        for (index, actual) in acts.into_iter().enumerate() {
            let expected = sent.next().await?;
            let expected = expected.map(|sent| Act::of_message(&sent.message));
            if let Some(found) = compare(expected.as_slice(), &[actual], added) {
                report.divergence = Some(found.at(place, index + 1));
                return Ok(report);
            }
            report.same += 1;
        }
    }
    if let (Some(place), Some(missing)) = (last, sent.next().await?) {
        let found = compare(&[Act::of_message(&missing.message)], &[], added);
        report.divergence = found.map(|found| found.at(place, 1));
    }
    Ok(report)
}

/// The recorded messages of an agent that went one way, read in pieces.
struct Walk {
    runner: ReplayRunner,
    query: ReplayQuery,
    ahead: VecDeque<PlannedMessage>,
    ended: bool,
}

/// Messages read at a time.
const PIECE: usize = 1000;

impl Walk {
    fn new(recording: &Recording, agent: &Name, direction: Direction) -> Self {
        Self {
            runner: ReplayRunner::new(recording.clone()),
            query: ReplayQuery {
                direction: Some(direction),
                agent: Some(agent.clone()),
                ..ReplayQuery::default()
            },
            ahead: VecDeque::new(),
            ended: false,
        }
    }

    async fn next(&mut self) -> Result<Option<PlannedMessage>, ReplayError> {
        while self.ahead.is_empty() && !self.ended {
            let plan = self.runner.plan_up_to(&self.query, PIECE).await?;
            if let Some(Unreadable { seq, problem }) = plan.unreadable.into_iter().next() {
                return Err(ReplayError::Unreadable { seq, problem });
            }
            self.ahead = plan.messages.into();
            self.query.from_seq = plan.next;
            self.ended = plan.next.is_none();
        }
        Ok(self.ahead.pop_front())
    }
}

impl Divergence {
    fn failed(expected: Option<Act>, failure: String) -> Self {
        Self {
            failure: Some(failure),
            ..Self::of(1, expected, None)
        }
    }

    fn of(action: usize, expected: Option<Act>, actual: Option<Act>) -> Self {
        Self {
            seq: Seq::default(),
            delivery: None,
            trace: TraceId::from_bytes([1; 16]).expect("not all zero"),
            action,
            expected,
            actual,
            differences: Vec::new(),
            failure: None,
        }
    }

    fn at(self, (seq, trace): (Seq, TraceId), action: usize) -> Self {
        Self {
            seq,
            trace,
            action,
            ..self
        }
    }
}
