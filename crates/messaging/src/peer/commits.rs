//! Commits of one receiver that are on their way, in order.

use std::collections::{HashSet, VecDeque};

use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesOrdered};

use crate::identity::AgentId;

/// Commits on their way, and of whom the messages in each are that must not be overtaken.
#[derive(Default)]
pub(super) struct Commits {
    running: FuturesOrdered<BoxFuture<'static, ()>>,
    senders: VecDeque<HashSet<AgentId>>,
}

impl Commits {
    pub(super) fn push(&mut self, commit: BoxFuture<'static, ()>, senders: HashSet<AgentId>) {
        self.running.push_back(commit);
        self.senders.push_back(senders);
    }

    /// Waits for the oldest; `None` if there is none. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<()> {
        let ended = self.running.next().await;
        self.senders.pop_front();
        ended
    }

    pub(super) fn len(&self) -> usize {
        self.running.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    /// Waits until nothing of a sender is on its way.
    pub(super) async fn end_of(&mut self, sender: AgentId) {
        while self.senders.iter().any(|of| of.contains(&sender)) {
            self.next().await;
        }
    }
}
