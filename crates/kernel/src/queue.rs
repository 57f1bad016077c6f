//! Bounded queues between tasks: bounded by count *and* by bytes, with a named policy when full.
//!
//! ```text
//! Sender::send ──▶ [ full? ] ──no──▶ queued ──▶ Receiver::recv
//!                     │ Block      wait for room (cancel-safe: nothing is sent unless it returns)
//!                     │ DropNewest the item comes back as Refused{DroppedNewest}
//!                     │ DropOldest the oldest items make room and are counted
//!                     └ Reject     the item comes back as Refused{Full}
//! ```
//! Order is first in, first out over all senders. Nothing is lost silently: every item is received, returned or counted.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::Notify;

/// What happens to an item for which there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum WhenFull {
    /// The sender waits for room.
    Block,
    /// The new item is refused and counted as dropped.
    DropNewest,
    /// The oldest queued items are dropped and counted until the new one fits.
    DropOldest,
    /// The new item is handed back; its sender decides.
    Reject,
}

/// The bounds of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueConfig {
    /// Most items held at once; 0 counts as 1.
    pub max_items: usize,
    /// Most bytes held at once, by [`Weigh`]. An item heavier than this is refused as [`Why::TooLarge`].
    pub max_bytes: usize,
    /// What happens when either bound is reached.
    pub when_full: WhenFull,
}

/// How many bytes an item holds on to, roughly.
pub trait Weigh {
    /// The weight in bytes; must not change while the item is queued.
    fn weight(&self) -> usize;
}

impl Weigh for Vec<u8> {
    fn weight(&self) -> usize {
        self.len()
    }
}

impl Weigh for bytes::Bytes {
    fn weight(&self) -> usize {
        self.len()
    }
}

impl Weigh for String {
    fn weight(&self) -> usize {
        self.len()
    }
}

/// How an item got in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admitted {
    /// There was room.
    Queued,
    /// Older items, this many, were dropped to make room.
    DroppedOldest(usize),
}

/// Why an item did not get in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// A bound was reached and the policy is [`WhenFull::Reject`] (or `try_send` met [`WhenFull::Block`]).
    Full,
    /// A bound was reached and the policy is [`WhenFull::DropNewest`]; the drop is counted.
    DroppedNewest,
    /// The item alone is heavier than the queue's byte bound.
    TooLarge,
    /// The receiver is gone.
    Closed,
}

/// An item that did not get in, given back to its sender.
#[derive(Debug, Error)]
#[error("item refused: {why:?}")]
pub struct Refused<T> {
    /// The item.
    pub item: T,
    /// The reason.
    pub why: Why,
}

/// What a queue holds and has dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct QueueStats {
    /// Items held now.
    pub items: usize,
    /// Bytes held now.
    pub bytes: usize,
    /// Items dropped since the start, by either drop policy.
    pub dropped: u64,
}

#[derive(Debug)]
struct Inner<T> {
    /// Each with its weight, so that taking one out does not touch it: it is in another core's cache.
    items: VecDeque<(T, usize)>,
    bytes: usize,
    receiver_gone: bool,
    waiting_senders: usize,
    receiver_waits: bool,
}

#[derive(Debug)]
struct Shared<T> {
    config: QueueConfig,
    inner: Mutex<Inner<T>>,
    room: Notify,
    arrival: Notify,
    senders: AtomicUsize,
    dropped: AtomicU64,
}

/// The sending side; clones share the queue.
#[derive(Debug)]
pub struct Sender<T>(Arc<Shared<T>>);

/// The receiving side. Dropping it closes the queue and drops what is queued.
#[derive(Debug)]
pub struct Receiver<T>(Arc<Shared<T>>);

/// Makes a queue.
pub fn bounded<T: Weigh>(config: QueueConfig) -> (Sender<T>, Receiver<T>) {
    let config = QueueConfig {
        max_items: config.max_items.max(1),
        ..config
    };
    let inner = Inner {
        items: VecDeque::with_capacity(config.max_items.min(1024)),
        bytes: 0,
        receiver_gone: false,
        waiting_senders: 0,
        receiver_waits: false,
    };
    let shared = Arc::new(Shared {
        config,
        inner: Mutex::new(inner),
        room: Notify::new(),
        arrival: Notify::new(),
        senders: AtomicUsize::new(1),
        dropped: AtomicU64::new(0),
    });
    (Sender(shared.clone()), Receiver(shared))
}

impl<T: Weigh> Shared<T> {
    /// `Ok` or `Err(item, why)`; with [`WhenFull::Block`] a full queue answers [`Why::Full`].
    fn offer(&self, item: T) -> Result<Admitted, Refused<T>> {
        let weight = item.weight();
        if weight > self.config.max_bytes {
            return Err(Refused {
                item,
                why: Why::TooLarge,
            });
        }
        let mut inner = self.inner.lock();
        if inner.receiver_gone {
            return Err(Refused {
                item,
                why: Why::Closed,
            });
        }
        let mut dropped = Vec::new();
        if !self.fits(&inner, weight) {
            match self.config.when_full {
                WhenFull::Block | WhenFull::Reject => {
                    return Err(Refused {
                        item,
                        why: Why::Full,
                    });
                }
                WhenFull::DropNewest => {
                    self.dropped.fetch_add(1, Ordering::Relaxed);
                    return Err(Refused {
                        item,
                        why: Why::DroppedNewest,
                    });
                }
                WhenFull::DropOldest => dropped = self.make_room(&mut inner, weight),
            }
        }
        inner.bytes += weight;
        inner.items.push_back((item, weight));
        let wake = std::mem::take(&mut inner.receiver_waits);
        drop(inner);
        if wake {
            self.arrival.notify_one();
        }
        // The dropped items' own drop code runs here, outside the lock.
        Ok(if dropped.is_empty() {
            Admitted::Queued
        } else {
            Admitted::DroppedOldest(dropped.len())
        })
    }

    fn fits(&self, inner: &Inner<T>, weight: usize) -> bool {
        inner.items.len() < self.config.max_items && inner.bytes + weight <= self.config.max_bytes
    }

    fn make_room(&self, inner: &mut Inner<T>, weight: usize) -> Vec<T> {
        let mut dropped = Vec::new();
        while !self.fits(inner, weight) {
            let Some((oldest, weight)) = inner.items.pop_front() else {
                break;
            };
            inner.bytes -= weight;
            dropped.push(oldest);
        }
        self.dropped
            .fetch_add(dropped.len() as u64, Ordering::Relaxed);
        dropped
    }

    fn take(&self, inner: &mut Inner<T>, into: &mut Vec<T>, max: usize) -> usize {
        let count = inner.items.len().min(max);
        let mut freed = 0;
        into.extend(inner.items.drain(..count).map(|(item, weight)| {
            freed += weight;
            item
        }));
        inner.bytes -= freed;
        count
    }

    fn stats(&self) -> QueueStats {
        let inner = self.inner.lock();
        QueueStats {
            items: inner.items.len(),
            bytes: inner.bytes,
            dropped: self.dropped.load(Ordering::Relaxed),
        }
    }
}

// --- Sender ----------------------------------------------------------------------------------

impl<T: Weigh> Sender<T> {
    /// Sends by the queue's policy; waits only under [`WhenFull::Block`]. Cancel-safe: a dropped call sent nothing.
    ///
    /// # Errors
    /// [`Refused`] with the item and the reason.
    pub async fn send(&self, item: T) -> Result<Admitted, Refused<T>> {
        let mut refused = match self.0.offer(item) {
            Err(refused)
                if refused.why == Why::Full && self.0.config.when_full == WhenFull::Block =>
            {
                refused
            }
            done => return done,
        };
        loop {
            let mut room = std::pin::pin!(self.0.room.notified());
            // Registered before the offer: each wake-up of the receiver then finds its own sender.
            room.as_mut().enable();
            let _waiting = Waiting::new(&self.0);
            refused = match self.0.offer(refused.item) {
                Err(refused) if refused.why == Why::Full => refused,
                done => return done,
            };
            room.await;
        }
    }

    /// Sends without waiting; under [`WhenFull::Block`] a full queue answers [`Why::Full`].
    ///
    /// # Errors
    /// [`Refused`] with the item and the reason.
    pub fn try_send(&self, item: T) -> Result<Admitted, Refused<T>> {
        self.0.offer(item)
    }

    /// What the queue holds and has dropped.
    pub fn stats(&self) -> QueueStats {
        self.0.stats()
    }
}

struct Waiting<'a, T>(&'a Shared<T>);

impl<'a, T> Waiting<'a, T> {
    fn new(shared: &'a Shared<T>) -> Self {
        shared.inner.lock().waiting_senders += 1;
        Self(shared)
    }
}

impl<T> Drop for Waiting<'_, T> {
    fn drop(&mut self) {
        self.0.inner.lock().waiting_senders -= 1;
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.senders.fetch_add(1, Ordering::Relaxed);
        Self(self.0.clone())
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if self.0.senders.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.arrival.notify_one();
        }
    }
}

// --- Receiver --------------------------------------------------------------------------------

impl<T: Weigh> Receiver<T> {
    /// The next item; `None` once every sender is gone and the queue is empty. Cancel-safe.
    pub async fn recv(&mut self) -> Option<T> {
        let mut one = Vec::with_capacity(1);
        self.recv_many(&mut one, 1).await;
        one.pop()
    }

    /// Waits for at least one item, then moves up to `max` of them into `into`; 0 means closed. Cancel-safe.
    pub async fn recv_many(&mut self, into: &mut Vec<T>, max: usize) -> usize {
        // An empty queue is often about to be filled: giving the others one turn first lets items gather, and saves the
        // sender the cost of waking this task for each of them.
        let mut patient = true;
        loop {
            let closed = self.0.senders.load(Ordering::Acquire) == 0;
            let taken = self.take(into, max.max(1), !patient);
            if taken > 0 || closed {
                return taken;
            }
            if std::mem::take(&mut patient) {
                tokio::task::yield_now().await;
            } else {
                self.0.arrival.notified().await;
            }
        }
    }

    /// An item that is there now.
    pub fn try_recv(&mut self) -> Option<T> {
        let mut one = Vec::with_capacity(1);
        self.take(&mut one, 1, false);
        one.pop()
    }

    /// What the queue holds and has dropped.
    pub fn stats(&self) -> QueueStats {
        self.0.stats()
    }

    fn take(&self, into: &mut Vec<T>, max: usize, will_wait: bool) -> usize {
        let mut inner = self.0.inner.lock();
        let taken = self.0.take(&mut inner, into, max);
        inner.receiver_waits = will_wait && taken == 0;
        let wake = inner.waiting_senders.min(taken);
        drop(inner);
        for _ in 0..wake {
            self.0.room.notify_one();
        }
        taken
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut inner = self.0.inner.lock();
        inner.receiver_gone = true;
        let items = std::mem::take(&mut inner.items);
        inner.bytes = 0;
        drop(inner);
        self.0
            .dropped
            .fetch_add(items.len() as u64, Ordering::Relaxed);
        self.0.room.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn queue(
        max_items: usize,
        max_bytes: usize,
        when_full: WhenFull,
    ) -> (Sender<Vec<u8>>, Receiver<Vec<u8>>) {
        bounded(QueueConfig {
            max_items,
            max_bytes,
            when_full,
        })
    }

    #[tokio::test]
    async fn items_come_out_in_order_and_then_the_end() {
        let (sender, mut receiver) = queue(10, 100, WhenFull::Reject);
        for n in 0..5 {
            sender.send(vec![n]).await.unwrap();
        }
        drop(sender);
        for n in 0..5 {
            assert_eq!(receiver.recv().await, Some(vec![n]));
        }
        assert_eq!(receiver.recv().await, None);
    }

    #[tokio::test]
    async fn reject_and_drop_newest_hand_the_item_back() {
        for (policy, why, dropped) in [
            (WhenFull::Reject, Why::Full, 0),
            (WhenFull::DropNewest, Why::DroppedNewest, 1),
        ] {
            let (sender, receiver) = queue(1, 100, policy);
            sender.send(vec![1]).await.unwrap();
            let refused = sender.send(vec![2]).await.unwrap_err();
            assert_eq!((refused.item, refused.why), (vec![2], why));
            assert_eq!(receiver.stats().dropped, dropped);
        }
    }

    #[tokio::test]
    async fn drop_oldest_makes_room_by_bytes_and_counts() {
        let (sender, mut receiver) = queue(10, 4, WhenFull::DropOldest);
        for n in 0..4 {
            sender.send(vec![n]).await.unwrap();
        }
        assert_eq!(
            sender.send(vec![9, 9, 9]).await.unwrap(),
            Admitted::DroppedOldest(3)
        );
        assert_eq!(receiver.try_recv(), Some(vec![3]));
        assert_eq!(
            receiver.stats(),
            QueueStats {
                items: 1,
                bytes: 3,
                dropped: 3
            }
        );
        assert_eq!(sender.try_send(vec![0; 5]).unwrap_err().why, Why::TooLarge);
    }

    #[tokio::test]
    async fn a_blocked_sender_goes_on_when_there_is_room_and_learns_of_the_close() {
        let (sender, mut receiver) = queue(1, 100, WhenFull::Block);
        sender.send(vec![1]).await.unwrap();
        let (sent, received) = tokio::join!(sender.send(vec![2]), async {
            tokio::task::yield_now().await;
            receiver.recv().await
        });
        assert_eq!((sent.unwrap(), received), (Admitted::Queued, Some(vec![1])));
        let (refused, ()) = tokio::join!(sender.send(vec![3]), async {
            tokio::task::yield_now().await;
            drop(receiver);
        });
        assert_eq!(refused.unwrap_err().why, Why::Closed);
    }

    #[tokio::test]
    async fn many_senders_lose_nothing_through_a_small_queue() {
        let (sender, mut receiver) = queue(3, 1000, WhenFull::Block);
        let senders = (0..8u8).map(|id| {
            let sender = sender.clone();
            async move {
                for n in 0..500u16 {
                    sender
                        .send(vec![id, n.to_be_bytes()[0], n.to_be_bytes()[1]])
                        .await
                        .unwrap();
                }
            }
        });
        let all = tokio_util_join(senders.collect());
        drop(sender);
        let (received, ()) = tokio::join!(
            async {
                let mut items = Vec::new();
                while receiver.recv_many(&mut items, 2).await > 0 {}
                items
            },
            all
        );
        assert_eq!(received.len(), 8 * 500);
        for id in 0..8 {
            let own: Vec<_> = received.iter().filter(|item| item[0] == id).collect();
            assert!(
                own.windows(2).all(|pair| pair[0] < pair[1]),
                "sender {id} out of order"
            );
        }
    }

    async fn tokio_util_join(futures: Vec<impl Future<Output = ()>>) {
        let mut futures: Vec<_> = futures.into_iter().map(Box::pin).collect();
        std::future::poll_fn(|cx| {
            futures.retain_mut(|future| future.as_mut().poll(cx).is_pending());
            if futures.is_empty() {
                std::task::Poll::Ready(())
            } else {
                std::task::Poll::Pending
            }
        })
        .await;
    }

    proptest! {
        #[test]
        fn bounds_hold_and_every_item_is_received_returned_or_counted(
            weights in prop::collection::vec(0usize..12, 0..200), policy in 0..3u8, takes in prop::collection::vec(0usize..4, 200),
        ) {
            let policy = [WhenFull::Reject, WhenFull::DropNewest, WhenFull::DropOldest][usize::from(policy)];
            let (sender, mut receiver) = queue(5, 10, policy);
            let (mut received, mut rejected) = (0u64, 0u64);
            for (weight, take) in weights.iter().zip(&takes) {
                match sender.try_send(vec![0; *weight]) {
                    Ok(_) => {}
                    Err(Refused { why: Why::DroppedNewest, .. }) => {}
                    Err(_) => rejected += 1,
                }
                let stats = sender.stats();
                prop_assert!(stats.items <= 5 && stats.bytes <= 10);
                for _ in 0..*take {
                    received += u64::from(receiver.try_recv().is_some());
                }
            }
            let stats = sender.stats();
            prop_assert_eq!(weights.len() as u64, received + rejected + stats.items as u64 + stats.dropped);
        }
    }
}
