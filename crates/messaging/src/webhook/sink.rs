//! The sink of a topic: takes deliveries out of its inbox, has them posted, and settles them by the answer.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use volary_kernel::{
    clock::{self, SharedClock},
    metric::{Counter, CounterFamily, Metrics},
};
use volary_store::{Batch, QueueError, SharedStore, StoreError};

use super::{
    breaker::{Breaker, BreakerConfig},
    outbound::{Outgoing, Target, Verdict, judge},
};
use crate::inbox::{Claimed, InboxError, Mailbox};

/// How one request is made: the status and the `retry-after` of the answer, or why there was none.
pub type Sending = Arc<
    dyn Fn(Outgoing) -> BoxFuture<'static, Result<(u16, Option<String>), SendProblem>>
        + Send
        + Sync,
>;

/// Why a request had no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendProblem {
    /// It may work another time: no connection, an answer that broke off.
    #[error("{0}")]
    Passing(String),
    /// It is not allowed, or can not work with this target.
    #[error("{0}")]
    Refused(String),
}

/// What becomes of deliveries to one target. Clones share the breaker.
#[derive(Clone)]
pub struct Sink(Arc<Parts>);

struct Parts {
    mailbox: Mailbox,
    target: Target,
    timeout: Duration,
    breaker: Mutex<Breaker>,
    send: Sending,
    store: SharedStore,
    clock: SharedClock,
    counters: Counters,
}

struct Counters {
    sent: Counter,
    again: Counter,
    parked: Counter,
    open: Counter,
}

impl Sink {
    /// The sink of `mailbox`, whose deliveries go to `target` within `timeout` each. A claim must hold longer than that.
    pub fn new(
        (mailbox, target, timeout): (Mailbox, Target, Duration),
        breaker: BreakerConfig,
        send: Sending,
        (store, clock): (SharedStore, SharedClock),
        metrics: &Metrics,
    ) -> Self {
        let family: CounterFamily = metrics.counter_family(
            "webhook_outbound",
            "Attempts to post deliveries, by target and by what they came to",
            &["target", "result"],
        );
        let counter = |result| family.with(&[mailbox.name().as_str(), result]);
        let counters = Counters {
            sent: counter("sent"),
            again: counter("again"),
            parked: counter("parked"),
            open: counter("circuit_open"),
        };
        Self(Arc::new(Parts {
            breaker: Mutex::new(Breaker::new(breaker)),
            mailbox,
            target,
            timeout,
            send,
            store,
            clock,
            counters,
        }))
    }

    /// Handles up to one delivery: waits up to `wait` for it, or until `stop`; what was claimed by then is handled. Returns
    /// how many were. What is not settled when this is dropped is claimed again once its claim lapses.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn step(
        &self,
        owner: &str,
        wait: Duration,
        stop: &CancellationToken,
    ) -> Result<usize, InboxError> {
        let claim = self.0.mailbox.claim(owner, 1, wait);
        let Some(claims) = stop.run_until_cancelled(claim).await else {
            return Ok(0);
        };
        let claims = claims?;
        let handled = claims.len();
        for claimed in claims {
            match self.handle(&claimed).await {
                // It took too long and belongs to somebody else: the target drops the repeat by its key.
                Err(InboxError::Queue(
                    QueueError::Lapsed { .. } | QueueError::Store(StoreError::Conflict { .. }),
                )) => {}
                settled => settled?,
            }
        }
        Ok(handled)
    }

    async fn handle(&self, claimed: &Claimed) -> Result<(), InboxError> {
        let Parts {
            mailbox, counters, ..
        } = &*self.0;
        let verdict = self.ask(claimed).await;
        let mut tx = Batch::new();
        let counter = match &verdict {
            Verdict::Done => {
                mailbox.ack(&mut tx, claimed, 0)?;
                &counters.sent
            }
            Verdict::Again { after, reason } => {
                mailbox.nack(&mut tx, claimed, *after, reason)?;
                &counters.again
            }
            Verdict::Never { reason } => {
                mailbox.park(&mut tx, claimed, reason)?;
                &counters.parked
            }
        };
        self.0.store.commit(tx).await?;
        counter.inc();
        Ok(())
    }

    async fn ask(&self, claimed: &Claimed) -> Verdict {
        let Parts {
            target,
            clock,
            breaker,
            ..
        } = &*self.0;
        if let Err(wait) = breaker.lock().enter(clock.wall()) {
            self.0.counters.open.inc();
            return Verdict::Again {
                after: Some(wait),
                reason: "the target failed too often in a row and is left alone".to_owned(),
            };
        }
        let request = target.request(&claimed.delivery, clock.wall());
        let answer = clock::timeout(self.0.timeout, (self.0.send)(request)).await;
        let verdict = match answer {
            Ok(Ok((status, retry_after))) => judge(status, retry_after.as_deref()),
            Ok(Err(SendProblem::Refused(reason))) => Verdict::Never { reason },
            Ok(Err(SendProblem::Passing(reason))) => Verdict::Again {
                after: None,
                reason,
            },
            Err(elapsed) => Verdict::Again {
                after: None,
                reason: format!("the target's answer {elapsed}"),
            },
        };
        // A clear no is an answer: the target is there.
        let good = !matches!(verdict, Verdict::Again { .. });
        if breaker.lock().ended(good, clock.wall()) {
            tracing::warn!(target = %self.0.mailbox.name(), "a webhook's target is left alone for a while");
        }
        verdict
    }
}
