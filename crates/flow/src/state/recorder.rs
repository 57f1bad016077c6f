//! Keeps the history of traces: an observer whose events are saved in batches by a task of its own.
//!
//! A slow or failing store never holds a flow up: what finds no room, and what the store refuses, is counted and logged.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use volary_kernel::{
    TraceId, Uid, clock,
    metric::{Counter, CounterFamily, Metrics},
    queue::{QueueConfig, Receiver, Sender, Weigh, WhenFull, bounded},
    task::{Supervisor, TaskKind, TaskResult},
};

use super::history::{EventId, StateStore, StoredEvent};
use crate::observe::{FlowEvent, FlowEventKind, Observer};

/// Most events that wait to be saved.
const WAITING: usize = 16_384;
/// Most bytes of them.
const WAITING_BYTES: usize = 16 << 20;
/// Most events of one commit.
const GROUP: usize = 1_024;
/// Traces whose events are counted. Beyond it counting begins anew.
const TRACES: usize = 100_000;
/// Attempts to save a batch, and the wait between them.
const TRIES: u32 = 3;
const BETWEEN: Duration = Duration::from_millis(200);

impl Weigh for StoredEvent {
    fn weight(&self) -> usize {
        // Its texts are cut; numbers and names are small.
        256
    }
}

/// Saves the events it is told of. Give it to a flow as one of `RunConfig::observers`.
pub struct Recorder {
    waiting: Sender<StoredEvent>,
    state: Mutex<State>,
    max_events: usize,
    lost: CounterFamily,
}

struct State {
    id: EventId,
    counts: HashMap<TraceId, usize>,
}

impl Recorder {
    /// Starts saving to `history`. The task ends when the recorder is dropped and what it held is saved, or when
    /// `supervisor` drains.
    pub fn start(
        history: Arc<StateStore>,
        supervisor: &Supervisor,
        metrics: &Metrics,
    ) -> Arc<Self> {
        let lost = metrics.counter_family(
            "flow_history_lost",
            "Events of traces that are not in their history, by reason: full, store, bound.",
            &["reason"],
        );
        let (waiting, events) = bounded(QueueConfig {
            max_items: WAITING,
            max_bytes: WAITING_BYTES,
            when_full: WhenFull::DropNewest,
        });
        let max_events = history.config().max_events;
        let token = supervisor.token();
        let save = Saver {
            history,
            events,
            failed: lost.with(&["store"]),
        };
        supervisor.spawn(TaskKind::new("flow-history"), async move {
            save.run(token).await
        });
        let source = Uid::generate();
        let state = State {
            id: EventId { source, seq: 0 },
            counts: HashMap::new(),
        };
        Arc::new(Self {
            waiting,
            state: Mutex::new(state),
            max_events,
            lost,
        })
    }
}

impl Observer for Recorder {
    fn observe(&self, events: &[FlowEvent]) {
        let mut state = self.state.lock();
        for event in events {
            let ends = matches!(event.kind, FlowEventKind::TraceEnd { .. });
            if state.counts.len() >= TRACES {
                state.counts.clear();
            }
            let count = state.counts.entry(event.trace_id).or_insert(0);
            *count += 1;
            // How it ended is always kept.
            let over = *count > self.max_events && !ends;
            if ends {
                state.counts.remove(&event.trace_id);
            }
            if over {
                self.lost.with(&["bound"]).inc();
                continue;
            }
            state.id.seq += 1;
            let stored = StoredEvent::of(event, state.id);
            if self.waiting.try_send(stored).is_err() {
                self.lost.with(&["full"]).inc();
            }
        }
    }
}

struct Saver {
    history: Arc<StateStore>,
    events: Receiver<StoredEvent>,
    failed: Counter,
}

impl Saver {
    async fn run(mut self, token: tokio_util::sync::CancellationToken) -> TaskResult {
        let mut batch = Vec::new();
        loop {
            let got = token
                .run_until_cancelled(self.events.recv_many(&mut batch, GROUP))
                .await;
            match got {
                Some(0) => return Ok(()),
                Some(_) => self.save(&mut batch).await,
                None => break,
            }
        }
        // What is there already is still saved.
        while let Some(event) = self.events.try_recv() {
            batch.push(event);
            if batch.len() >= GROUP {
                self.save(&mut batch).await;
            }
        }
        self.save(&mut batch).await;
        Ok(())
    }

    async fn save(&self, batch: &mut Vec<StoredEvent>) {
        let mut tries = 1;
        loop {
            match self.history.save(batch).await {
                Ok(_) => break,
                Err(error) if error.is_transient() && tries < TRIES => {
                    tries += 1;
                    clock::sleep(BETWEEN).await;
                }
                Err(error) => {
                    let lost = batch.len();
                    self.failed.inc_by(lost as u64);
                    tracing::error!(%error, lost, "events of traces could not be saved");
                    break;
                }
            }
        }
        batch.clear();
    }
}
