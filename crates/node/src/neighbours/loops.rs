//! Whether the loops that talk with peers are all there, for `/health`.

use std::{collections::BTreeMap, time::Duration};

use tokio_util::sync::CancellationToken;
use volary_kernel::{
    clock,
    ready::Heartbeat,
    task::{Supervisor, TaskResult},
};

/// The loops that must be there as long as links are wanted.
pub(crate) struct Loops(Vec<(Supervisor, BTreeMap<&'static str, usize>)>);

/// Comes and goes with those who call.
const CONNECTION: &str = "tcp-connection";
/// How often they are counted.
const COUNT_EVERY: Duration = Duration::from_millis(500);

impl Loops {
    /// Those that run now.
    pub(crate) fn of(tasks: [&Supervisor; 2]) -> Self {
        let counted = tasks.map(|tasks| {
            let mut running = tasks.running();
            running.remove(CONNECTION);
            (tasks.clone(), running)
        });
        Self(counted.into())
    }

    fn all_run(&self) -> bool {
        self.0.iter().all(|(tasks, wanted)| {
            let running = tasks.running();
            let count = |name| running.get(name).copied().unwrap_or_default();
            wanted.iter().all(|(name, wanted)| count(name) >= *wanted)
        })
    }

    /// Beats until `stop` while all of them run.
    pub(crate) async fn run(self, beat: Heartbeat, stop: CancellationToken) -> TaskResult {
        let stopping = |(tasks, _): &(Supervisor, _)| tasks.token().is_cancelled();
        while !stop.is_cancelled() {
            // Those that stop in order are not dead.
            if self.all_run() || self.0.iter().any(stopping) {
                beat.beat();
            }
            stop.run_until_cancelled(clock::sleep(COUNT_EVERY)).await;
        }
        beat.retire();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use volary_kernel::{SystemClock, ready::Readiness, task::TaskKind, testing::eventually};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_died_is_seen_in_health_and_one_that_stops_in_order_is_not() {
        let readiness = Readiness::new(SystemClock::shared());
        let (couriers, links) = (Supervisor::new(), Supervisor::new());
        let (die, told) = tokio::sync::oneshot::channel::<()>();
        let stop = links.token();
        couriers.spawn(TaskKind::new("peer-courier"), async {
            let _told = told.await;
            panic!("as the test wants it");
        });
        links.spawn(TaskKind::new("tcp-accept"), async move {
            stop.cancelled().await;
            Ok(())
        });
        links.spawn(TaskKind::new(CONNECTION), async { Ok(()) });
        let base = Supervisor::new();
        let beat = readiness.heartbeat("links", Duration::from_secs(3));
        let loops = Loops::of([&couriers, &links]);
        base.spawn(TaskKind::new("link-pulse"), loops.run(beat, base.token()));
        clock::sleep(Duration::from_secs(10)).await;
        assert!(readiness.health().ok, "{:?}", readiness.health());
        die.send(()).unwrap();
        let named = || {
            let report = readiness.health();
            !report.ok && report.checks.iter().any(|check| check.name == "links")
        };
        assert!(eventually(Duration::from_secs(5), named).await);
        links.drain(Duration::from_secs(1)).await;
        clock::sleep(Duration::from_secs(2)).await;
        assert!(readiness.health().ok);
        base.drain(Duration::from_secs(1)).await;
    }
}
