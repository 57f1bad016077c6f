//! Stopping: nothing new, the rest drains, what is not done in time ends as dropped.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use volary_kernel::clock;

use super::shared::{Shared, Signal};
use crate::outcome::{DropReason, Outcome, StopReport};

/// How long stages have to drop what they hold, after the limit.
const GRACE: Duration = Duration::from_millis(500);

impl Shared {
    /// Accepts nothing more; who waits to emit is sent away.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.room.close();
        for node in &self.plan.ingress {
            self.node(*node).gate(super::gate::Gate::close).wake();
        }
        self.progress.notify_waiters();
    }

    /// Resolves when no trace lives. To be called once it is closed.
    pub(crate) async fn drained(&self) {
        self.until(|| self.live() == 0).await;
    }

    async fn until(&self, done: impl Fn() -> bool) {
        loop {
            let progress = self.progress.notified();
            tokio::pin!(progress);
            progress.as_mut().enable();
            if done() {
                return;
            }
            progress.await;
        }
    }

    /// Ends all traces that live; returns them.
    fn end_all(&self) -> Vec<volary_kernel::TraceId> {
        let reason = DropReason::Stopped;
        let now = self.now();
        let mut ended = Vec::new();
        self.write(|pen| {
            for trace in self.index.all() {
                if self.end(pen, &trace, Outcome::Dropped { reason }, None, now) {
                    ended.push(trace.id);
                }
            }
        });
        ended
    }

    /// Tells all stages, and the keeper, to end.
    pub(crate) fn exit_stages(&self) {
        self.exited.store(true, Ordering::SeqCst);
        for stage in &self.stages {
            stage.signal(Signal::Exit);
        }
        self.bell.notify.notify_one();
    }

    /// Ends at once, without waiting for anybody.
    pub(crate) fn give_up(&self) {
        self.close();
        self.end_all();
        self.exit_stages();
    }

    /// Stops: drains for up to `limit`, then ends the rest.
    pub(crate) async fn stop(self: &Arc<Self>, limit: Duration) -> StopReport {
        self.close();
        let in_time = self.live() == 0 || clock::timeout(limit, self.drained()).await.is_ok();
        let mut report = StopReport::default();
        if !in_time {
            report.unfinished = self.end_all();
        }
        self.exit_stages();
        let all_done = || self.running.load(Ordering::SeqCst) == 0;
        if !all_done() {
            let _some_may_hold_their_thread = clock::timeout(GRACE, self.until(all_done)).await;
        }
        self.show();
        // Whoever ends a trace from outside holds the pen until that is written down.
        self.pen.wait();
        // Observers get what was told until here, if they are quick enough.
        let _they_may_be_slow = clock::timeout(GRACE, self.observing.close()).await;
        for stage in &self.stages {
            if stage.done.load(Ordering::SeqCst) {
                continue;
            }
            let node = stage.busy_with.load(Ordering::Relaxed) as usize;
            let name = self.plan.nodes.get(node).map(|node| node.name.to_string());
            report.blocked.extend(name);
        }
        if let Some(Ok(durable)) = &self.durable {
            durable.stopped().await;
        }
        report
    }
}
