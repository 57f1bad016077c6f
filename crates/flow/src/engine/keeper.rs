//! The task that looks after time: deadlines, results that nobody reads, nodes that hold their thread.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio_util::sync::CancellationToken;
use volary_kernel::{Mono, Name, clock};

use super::shared::Shared;
use crate::{observe::FlowEventKind, outcome::Outcome};

/// How often depths are shown while anything lives.
const SHOWN: Duration = Duration::from_secs(1);

/// Looks after time until the flow has stopped.
pub(crate) async fn keep(shared: Arc<Shared>, token: CancellationToken) {
    let mut keeper = Keeper {
        told: vec![0; shared.stages.len()],
        shared,
        ended: false,
    };
    keeper.run(token).await;
    keeper.ended = true;
}

struct Keeper {
    shared: Arc<Shared>,
    /// Per stage: since when it was busy when that was told last.
    told: Vec<u64>,
    ended: bool,
}

impl Drop for Keeper {
    /// Without its keeper a flow could not keep deadlines: it ends.
    fn drop(&mut self) {
        if !self.ended {
            self.shared.give_up();
        }
    }
}

impl Keeper {
    async fn run(&mut self, token: CancellationToken) {
        let shared = self.shared.clone();
        while !shared.exited.load(Ordering::SeqCst) {
            let next = self.look();
            let due = async {
                match next {
                    Some(next) => clock::sleep(next - shared.now()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shared.bell.notify.notified() => {}
                () = due => {}
                () = token.cancelled(), if !shared.closed.load(Ordering::SeqCst) => shared.close(),
                () = shared.drained(), if token.is_cancelled() => shared.exit_stages(),
            }
        }
    }

    /// Does what is due. Returns when to look again.
    fn look(&mut self) -> Option<Mono> {
        let shared = &self.shared;
        // Who adds something from here on rings, whatever it is.
        shared.bell.next.store(u64::MAX, Ordering::SeqCst);
        let now = shared.now();
        let due = shared.index.due(now);
        if !due.is_empty() {
            shared.write(|pen| {
                for trace in due {
                    shared.end(pen, &trace, Outcome::DeadlineExceeded, None, now);
                }
            });
        }
        let expiry = shared.expire_due(now);
        let watch = self.watch(now);
        let shared = &self.shared;
        let next = [shared.index.next_deadline(), expiry, watch];
        let next = next.into_iter().flatten().min();
        let nanos = next.map_or(u64::MAX, Mono::as_nanos);
        shared.bell.next.store(nanos, Ordering::SeqCst);
        next
    }

    /// Tells of nodes that hold their thread. Returns when to look again, while any stage is busy.
    fn watch(&mut self, now: Mono) -> Option<Mono> {
        let shared = &self.shared;
        let limit = shared.limits.blocked_after.max(Duration::from_millis(1));
        if !shared.bell.watches.load(Ordering::SeqCst) {
            return None;
        }
        let mut busy = false;
        for (stage, told) in shared.stages.iter().zip(&mut self.told) {
            let since = stage.busy_since.load(Ordering::Relaxed);
            busy |= since != 0;
            let for_long = now - Mono::from_nanos(since) >= limit;
            if since == 0 || !for_long || *told == since {
                continue;
            }
            *told = since;
            let node = stage.busy_with.load(Ordering::Relaxed);
            let Ok(node) = u16::try_from(node) else {
                continue;
            };
            let name = &shared.plan.nodes[usize::from(node)].name;
            let since = now - Mono::from_nanos(since);
            tracing::warn!(flow = %shared.plan.name, node = %name, ?since, "a node holds its thread");
            shared.metrics.blocked(node);
            if let Some(tag) = stage.busy_for() {
                let kind = FlowEventKind::NodeBlocked { since };
                shared.write(|pen| pen.tap.event(&tag, Some(node), 0, now, kind));
            }
        }
        shared.show();
        if !busy && shared.live() == 0 {
            shared.bell.watches.store(false, Ordering::SeqCst);
            // Who was accepted in between may have seen that it watches.
            if shared.live() == 0 {
                return None;
            }
            shared.bell.watches.store(true, Ordering::SeqCst);
        }
        Some(now + limit.min(SHOWN))
    }
}

impl Shared {
    /// Nodes that hold their thread for too long, and for how long.
    pub(crate) fn blocked(&self) -> Vec<(Name, Duration)> {
        let now = self.now();
        let held = |stage: &Arc<super::shared::StageShared>| {
            let since = stage.busy_since.load(Ordering::Relaxed);
            let node = usize::try_from(stage.busy_with.load(Ordering::Relaxed)).ok()?;
            let time = now - Mono::from_nanos(since);
            let name = self.plan.nodes.get(node)?.name.clone();
            (since != 0 && time >= self.limits.blocked_after).then_some((name, time))
        };
        self.stages.iter().filter_map(held).collect()
    }
}
