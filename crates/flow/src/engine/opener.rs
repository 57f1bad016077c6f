//! Taking up what earlier lives of a durable flow left, and what others on the store do to its traces.
//!
//! ```text
//!   start ─▶ own ─▶ load ─▶ index (kept results, live traces) ─▶ ready ─▶ places ─▶ stages
//!   Store::watch(pauses), retried parked traces ─▶ index
//! ```

use std::{collections::HashMap, sync::Arc, time::Duration};

use volary_kernel::{
    Name, Tenant, Uid, clock,
    task::{Supervisor, TaskKind},
};
use volary_store::{Batch, Claim, Expect, Key, Queue, QueueConfig, StoreError, WatchEvent};

use super::{
    durable::{Durability, Ready},
    shared::Shared,
    trace::Trace,
};
use crate::{
    graph::plan::Payload,
    state::{
        closer::{Close, End, store_failure},
        ledger::of_queue,
        load::{Kept, Loaded},
        owner::Owner,
        record::{self, ParkedRecord},
    },
};

/// Wait between two attempts to read what earlier lives left, and after something went wrong with what was retried.
const AGAIN: Duration = Duration::from_secs(1);
/// Records that are removed by one commit.
const SWEEP: usize = 512;
/// Longest wait for a trace that somebody retries; then it is looked again whether the flow still runs.
const CLAIM_WAIT: Duration = Duration::from_secs(3600);

/// Starts the tasks of a durable flow.
pub(crate) fn start(shared: &Arc<Shared>, durable: &Arc<Durability>, supervisor: &Supervisor) {
    let closing = durable.clone();
    supervisor.spawn(TaskKind::new("flow-closer"), async move {
        closing.closer.run(&closing.ledger).await;
        closing.release();
        Ok(())
    });
    let opener = Opener {
        shared: shared.clone(),
        durable: durable.clone(),
    };
    supervisor.spawn(TaskKind::new("flow-durable").abort(), async move {
        let finished = opener.durable.clone();
        tokio::select! {
            () = finished.finished.notified() => {}
            () = opener.run() => {}
        }
        Ok(())
    });
}

/// Takes up what earlier lives left, and what others on the store do to its traces.
pub(super) struct Opener {
    pub shared: Arc<Shared>,
    pub durable: Arc<Durability>,
}

impl Opener {
    async fn run(&self) {
        // From before the reading, so that no pause is missed.
        let keys = &self.durable.ledger.keys;
        let mut pauses = self.durable.ledger.store().watch(&keys.pauses);
        let Some((rest, retried)) = self.open().await else {
            return;
        };
        let watch = async {
            while let Some(event) = pauses.next().await {
                match event {
                    WatchEvent::Changed(change) => self.pause_changed(&change).await,
                    WatchEvent::Lagged => self.pauses_lagged().await,
                }
            }
        };
        tokio::join!(self.go_on(rest), watch, self.take_retried(&retried));
    }

    fn refuse(&self, why: impl Into<Arc<str>>) {
        let why = why.into();
        tracing::error!(flow = %self.flow(), %why, "a durable flow cannot run");
        self.durable.ready.send_replace(Ready::Refused(why));
    }

    pub(super) fn flow(&self) -> &Name {
        &self.shared.plan.name
    }

    /// Takes the flow, and reads what earlier lives left.
    async fn open(&self) -> Option<(Vec<(Arc<Trace>, Payload)>, Queue)> {
        let ledger = &self.durable.ledger;
        let queues = &ledger.config.queues;
        match Owner::take(queues.incarnation(), self.flow()) {
            Some(owner) => *self.durable.owner.lock() = Some(owner),
            None => {
                self.refuse(format!("flow {} runs on this store already", self.flow()));
                return None;
            }
        }
        let retried = match queues.queue(QueueConfig::new(ledger.queue())) {
            Ok(queue) => queue,
            Err(error) => {
                self.refuse(error.to_string());
                return None;
            }
        };
        let loaded = loop {
            match ledger.load().await {
                Ok(loaded) => break loaded,
                Err(error @ (StoreError::Corrupt { .. } | StoreError::Closed)) => {
                    self.refuse(error.to_string());
                    return None;
                }
                Err(error) => {
                    tracing::warn!(flow = %self.flow(), %error, "what earlier lives left could not be read");
                    clock::sleep(AGAIN).await;
                }
            }
        };
        self.sweep(&loaded.garbage).await;
        let live = self.restore(loaded);
        self.durable.ready.send_replace(Ready::Open);
        Some((live, retried))
    }

    /// Removes what steps wrote whose trace ended at the same moment.
    async fn sweep(&self, garbage: &[Key]) {
        let ledger = &self.durable.ledger;
        for keys in garbage.chunks(SWEEP) {
            let mut tx = Batch::new();
            for key in keys {
                tx.delete(key.clone(), Expect::Any);
            }
            if let Err(error) = ledger.store().commit(tx).await {
                tracing::warn!(flow = %self.flow(), %error, "what is left of ended traces stays until the next start");
            }
        }
    }

    /// Puts traces into the index. Returns those that live.
    fn restore(&self, loaded: Loaded) -> Vec<(Arc<Trace>, Payload)> {
        let mut kept = loaded.kept;
        kept.sort_by_key(|kept| kept.left);
        for kept in kept {
            self.shared.restore_kept(kept);
        }
        for (book, why) in loaded.unreadable {
            let why = format!("what was accepted cannot be read any more: {why}");
            let outcome = store_failure(&book, self.durable.ledger.ingress(), &why);
            let shared = self.shared.clone();
            let left = self.durable.ledger.config.result_ttl;
            let end = book.clone();
            let deliver = move |outcome| {
                shared.restore_kept(Kept {
                    book: end,
                    outcome,
                    values: Vec::new(),
                    left,
                });
            };
            let end = End::new(&self.durable.ledger, book, outcome, deliver);
            self.durable.closer.push(Close::End(end));
        }
        let live = loaded.live.into_iter();
        live.filter_map(|resumed| self.shared.restore_live(resumed))
            .collect()
    }

    /// Hands traces that live to their ingress, those of one tenant in the order in which they were accepted.
    async fn go_on(&self, live: Vec<(Arc<Trace>, Payload)>) {
        let mut tenants: HashMap<Tenant, Vec<(Arc<Trace>, Payload)>> = HashMap::new();
        for (trace, payload) in live {
            let tenant = trace.headers.tenant.clone();
            tenants.entry(tenant).or_default().push((trace, payload));
        }
        let each = tenants.into_values().map(|live| async move {
            for (trace, payload) in live {
                if !self.shared.take_up(&trace, payload).await {
                    return;
                }
            }
        });
        futures_util::future::join_all(each).await;
    }

    // --- what a person retries ---------------------------------------------------------------

    /// Takes up parked traces that somebody retries: what was in doubt is run again.
    async fn take_retried(&self, retried: &Queue) {
        loop {
            let claims = match retried.claim("flow", 1, CLAIM_WAIT).await {
                Ok(claims) => claims,
                Err(error) => {
                    tracing::warn!(flow = %self.flow(), %error, "retried traces could not be taken up");
                    clock::sleep(AGAIN).await;
                    continue;
                }
            };
            for claim in claims {
                if let Err(error) = self.retry(retried, &claim).await {
                    tracing::warn!(flow = %self.flow(), %error, "a retried trace could not be taken up");
                    let mut tx = Batch::new();
                    let back = retried.nack(&mut tx, &claim, None, &error);
                    if back.is_ok()
                        && let Err(error) = self.durable.ledger.store().commit(tx).await
                    {
                        tracing::warn!(flow = %self.flow(), %error, "a retried trace waits for its claim to lapse");
                    }
                }
            }
        }
    }

    async fn retry(&self, retried: &Queue, claim: &Claim) -> Result<(), String> {
        let ledger = &self.durable.ledger;
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let parked: ParkedRecord =
            serde_json::from_slice(&claim.payload).map_err(|error| text(&error))?;
        if parked.v != record::VERSION {
            return Err(format!("it is of version {}", parked.v));
        }
        let id = parked.live.trace;
        if let Some(trace) = self.shared.index.get(id)
            && !self.shared.give_way(&trace)
        {
            return Err(format!("trace {id} is in use"));
        }
        let reserved = self.durable.reserve(&self.shared, id);
        let reserved = reserved.map_err(|error| text(&error))?;
        let uid = Uid::generate();
        let mut tx = Batch::new();
        retried
            .ack(&mut tx, claim)
            .map_err(|error| text(&of_queue(error)))?;
        ledger
            .add_again(&mut tx, uid, &parked)
            .map_err(|error| text(&error))?;
        let committed = ledger.store().commit(tx).await;
        committed.map_err(|error| text(&error))?;
        let live = parked.live.clone();
        let found = ledger.found_in(uid, parked).map_err(|error| text(&error))?;
        let now = ledger.store().clock().wall();
        match ledger.resumed(uid, &live, found, now, false) {
            Ok(resumed) => {
                if let Some((trace, payload)) = self.shared.restore_live(resumed) {
                    reserved.fulfilled(&trace);
                    self.shared.take_up(&trace, payload).await;
                }
            }
            Err(unreadable) => {
                let unreadable = vec![unreadable];
                self.restore(Loaded {
                    unreadable,
                    ..Loaded::default()
                });
            }
        }
        Ok(())
    }
}
