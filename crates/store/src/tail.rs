//! Following the journal: every matching entry in order, from the store itself, so that a slow reader misses nothing.

use std::collections::VecDeque;

use tokio::sync::watch;

use crate::{
    entry::{Filter, JournalRow, Seq},
    error::StoreError,
    store::SharedStore,
};

/// Entries fetched at once; what a follower holds in memory.
const TAIL_PAGE: usize = 256;

/// Follows a journal.
pub struct Tail {
    store: SharedStore,
    filter: Filter,
    next: Seq,
    ready: VecDeque<JournalRow>,
    head: watch::Receiver<Seq>,
}

impl Tail {
    /// Follows `store` from entry `from` on. `Seq(0)` means: from the first entry that is still there.
    pub fn new(store: SharedStore, from: Seq, filter: Filter) -> Self {
        let head = store.head();
        Self {
            store,
            filter,
            next: from,
            ready: VecDeque::new(),
            head,
        }
    }

    /// Where the follower stands: every entry before this was returned or did not match.
    pub fn position(&self) -> Seq {
        self.ready.front().map_or(self.next, |row| row.seq)
    }

    /// The next matching entry; waits for one. `None` when the store was closed. Cancel-safe.
    ///
    /// # Errors
    /// [`StoreError::Trimmed`], once, when retention removed entries the follower has not seen; it then goes on at
    /// the first one left. Errors of reading otherwise; calling again tries again.
    pub async fn next(&mut self) -> Result<Option<JournalRow>, StoreError> {
        loop {
            if let Some(row) = self.ready.pop_front() {
                return Ok(Some(row));
            }
            let head = *self.head.borrow_and_update();
            if head >= self.next.max(Seq::FIRST) {
                self.fetch().await?;
            } else if self.head.changed().await.is_err() {
                return Ok(None);
            }
        }
    }

    /// The next matching entry if it is in memory already: never reads, never waits.
    pub fn at_hand(&mut self) -> Option<JournalRow> {
        self.ready.pop_front()
    }

    async fn fetch(&mut self) -> Result<(), StoreError> {
        let page = self.store.read(self.next, &self.filter, TAIL_PAGE).await?;
        let from = self.next;
        if from > Seq(0) && from < page.first {
            self.next = page.first;
            return Err(StoreError::Trimmed {
                from,
                first: page.first,
            });
        }
        self.next = page.next;
        self.ready.extend(page.rows);
        Ok(())
    }
}
