//! Whether the store still answers, for `/health`: a commit or a read that never ends wedges every loop of the node,
//! the idle ones too, so it is seen at the store and not left to who happens to wait for it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use volary_kernel::{
    Name, SharedClock, clock,
    ready::{Heartbeat, Readiness},
    task::TaskResult,
};
use volary_store::{
    Batch, Committed, Filter, JournalPage, Key, Record, Seq, SharedStore, Store, StoreError, Watch,
};

/// Longest the store may answer nothing while somebody waits. Commits of a loaded disk take less; noticed within this
/// and a [`LOOK`], which is inside the 5 s that `/health` promises.
const SILENCE: Duration = Duration::from_secs(3);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// What waits for an answer, and how many answers there were.
#[derive(Debug, Default)]
struct Load {
    waiting: AtomicU64,
    answers: AtomicU64,
}

impl Load {
    async fn during<T>(&self, work: impl Future<Output = T>) -> T {
        let _waits = Waits::begin(self);
        let answer = work.await;
        self.answers.fetch_add(1, Ordering::Relaxed);
        answer
    }

    /// Whether nobody waits, or somebody was answered since `seen`.
    fn turns(&self, seen: &mut u64) -> bool {
        let answers = self.answers.load(Ordering::Relaxed);
        let before = std::mem::replace(seen, answers);
        self.waiting.load(Ordering::Relaxed) == 0 || answers != before
    }
}

/// One that waits; leaving without an answer is no answer.
struct Waits<'a>(&'a Load);

impl<'a> Waits<'a> {
    fn begin(load: &'a Load) -> Self {
        load.waiting.fetch_add(1, Ordering::Relaxed);
        Self(load)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A store that counts who waits for it.
struct Watched {
    store: SharedStore,
    commits: Arc<Load>,
    reads: Arc<Load>,
}

/// Beats for the store while it answers.
pub(crate) struct Pulse {
    parts: [(Heartbeat, Arc<Load>); 2],
}

/// `store`, and what tells `/health` whether it answers.
pub(crate) fn watched(store: SharedStore, readiness: &Readiness) -> (SharedStore, Pulse) {
    let (commits, reads) = (Arc::<Load>::default(), Arc::<Load>::default());
    let beat = |name: &str| readiness.heartbeat(name, SILENCE);
    let pulse = Pulse {
        parts: [
            (beat("store commits"), commits.clone()),
            (beat("store reads"), reads.clone()),
        ],
    };
    let store = Watched {
        store,
        commits,
        reads,
    };
    (Arc::new(store), pulse)
}

impl Pulse {
    /// Beats until `stop`.
    ///
    /// # Errors
    /// Never.
    pub(crate) async fn run(self, stop: CancellationToken) -> TaskResult {
        let mut seen = [0; 2];
        while !stop.is_cancelled() {
            for ((beat, load), seen) in self.parts.iter().zip(&mut seen) {
                if load.turns(seen) {
                    beat.beat();
                }
            }
            stop.run_until_cancelled(clock::sleep(LOOK)).await;
        }
        for (beat, _) in self.parts {
            beat.retire();
        }
        Ok(())
    }
}

#[async_trait]
impl Store for Watched {
    async fn commit(&self, batch: Batch) -> Result<Committed, StoreError> {
        self.commits.during(self.store.commit(batch)).await
    }

    async fn get(&self, key: &Key) -> Result<Option<Record>, StoreError> {
        self.reads.during(self.store.get(key)).await
    }

    async fn get_many(&self, keys: &[Key]) -> Result<Vec<Option<Record>>, StoreError> {
        self.reads.during(self.store.get_many(keys)).await
    }

    async fn scan(
        &self,
        prefix: &str,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Vec<Record>, StoreError> {
        self.reads
            .during(self.store.scan(prefix, after, limit))
            .await
    }

    async fn read(
        &self,
        from: Seq,
        filter: &Filter,
        limit: usize,
    ) -> Result<JournalPage, StoreError> {
        self.reads
            .during(self.store.read(from, filter, limit))
            .await
    }

    fn watch(&self, prefix: &str) -> Watch {
        self.store.watch(prefix)
    }

    async fn own_queues(&self) -> Result<(), StoreError> {
        self.store.own_queues().await
    }

    fn head(&self) -> watch::Receiver<Seq> {
        self.store.head()
    }

    fn node(&self) -> &Name {
        self.store.node()
    }

    fn clock(&self) -> &SharedClock {
        self.store.clock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn silence_counts_only_while_somebody_waits_for_an_answer() {
        let (load, mut seen) = (Load::default(), 0);
        assert!(load.turns(&mut seen));
        let mut wedged = Box::pin(load.during(std::future::pending::<()>()));
        assert!(futures_util::poll!(&mut wedged).is_pending());
        assert!(!load.turns(&mut seen));
        load.during(async {}).await;
        assert!(load.turns(&mut seen), "others are answered");
        assert!(!load.turns(&mut seen));
        drop(wedged);
        assert!(load.turns(&mut seen), "nobody waits any more");
    }
}
