//! Room for traces: a count, and a line of those who wait for it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crossbeam_utils::CachePadded;
use tokio::sync::Notify;

/// A bounded count. Taking and giving are an atomic each while nobody waits; who waits is served in order.
pub(crate) struct Room {
    /// By itself: it changes with each trace, on whatever core.
    free: CachePadded<AtomicUsize>,
    waiting: AtomicUsize,
    closed: AtomicBool,
    line: Notify,
}

/// One who waits.
struct Waiting<'a>(&'a Room);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
        // Who comes after may have seen this one and not looked for itself.
        self.0.pass_on();
    }
}

impl Room {
    pub(crate) fn new(places: usize) -> Self {
        Self {
            free: CachePadded::new(AtomicUsize::new(places)),
            waiting: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            line: Notify::new(),
        }
    }

    /// Places that nobody has.
    pub(crate) fn free(&self) -> usize {
        self.free.load(Ordering::SeqCst)
    }

    /// Takes a place, if there is one and nobody waits for it.
    pub(crate) fn try_take(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) == 0 && self.claim()
    }

    fn claim(&self) -> bool {
        let fewer = |free: usize| free.checked_sub(1);
        let free = &self.free;
        free.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fewer)
            .is_ok()
    }

    /// Takes a place once there is one; false if it is closed before. Cancel-safe.
    pub(crate) async fn take(&self) -> bool {
        // One of those who wait looks for itself; whoever is before the others tells them when it leaves.
        let mut first = self.waiting.fetch_add(1, Ordering::SeqCst) == 0;
        let _waiting = Waiting(self);
        loop {
            let turn = self.line.notified();
            tokio::pin!(turn);
            // From here on a place that is given is not missed.
            turn.as_mut().enable();
            if self.closed.load(Ordering::SeqCst) {
                return false;
            }
            if first && self.claim() {
                return true;
            }
            turn.await;
            first = true;
        }
    }

    /// Gives a place back.
    pub(crate) fn give(&self) {
        self.free.fetch_add(1, Ordering::SeqCst);
        self.pass_on();
    }

    /// Wakes the next in the line if there is a place for it.
    fn pass_on(&self) {
        if self.waiting.load(Ordering::SeqCst) > 0 && self.free() > 0 {
            self.line.notify_one();
        }
    }

    /// Sends all away who wait or will.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.line.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use tokio::task::{JoinHandle, yield_now};
    use volary_kernel::clock;

    use super::*;

    #[expect(clippy::disallowed_methods, reason = "a test awaits it itself")]
    fn start<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        tokio::spawn(task)
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_served_in_order_and_nobody_gets_in_before() {
        let room = Arc::new(Room::new(1));
        assert!(room.try_take() && !room.try_take());
        let order = Arc::new(parking_lot::Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for n in 0..3 {
            let (in_line, order) = (room.clone(), order.clone());
            tasks.push(start(async move {
                assert!(in_line.take().await);
                order.lock().push(n);
            }));
            yield_now().await;
        }
        for _ in 0..3 {
            room.give();
            assert!(!room.try_take(), "it is another's turn");
            yield_now().await;
        }
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*order.lock(), [0, 1, 2]);
        assert!(room.free() == 0 && !room.try_take());
        room.give();
        assert!(room.try_take());
    }

    #[tokio::test(start_paused = true)]
    async fn one_who_leaves_the_line_takes_nothing_with_it() {
        let room = Arc::new(Room::new(1));
        assert!(room.try_take());
        let gone = clock::timeout(Duration::from_millis(1), room.take()).await;
        assert!(gone.is_err());
        let (first, second) = (room.clone(), room.clone());
        let leaver = start(async move { first.take().await });
        yield_now().await;
        let stayer = start(async move { second.take().await });
        yield_now().await;
        room.give();
        leaver.abort();
        assert!(stayer.await.unwrap() || leaver.await.is_ok());
        assert_eq!(room.free(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_one_sends_all_away() {
        let room = Arc::new(Room::new(0));
        let waiting = room.clone();
        let waits = start(async move { waiting.take().await });
        yield_now().await;
        room.close();
        assert!(!waits.await.unwrap() && !room.take().await);
    }

    /// Real threads: places are neither lost nor made, and everybody is served.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn many_take_and_give_and_all_are_served() {
        let room = Arc::new(Room::new(3));
        let inside = Arc::new(AtomicUsize::new(0));
        let mut tasks = Vec::new();
        for _ in 0..50 {
            let (room, inside) = (room.clone(), inside.clone());
            tasks.push(start(async move {
                for _ in 0..200 {
                    if !room.try_take() {
                        assert!(room.take().await);
                    }
                    assert!(inside.fetch_add(1, Ordering::SeqCst) < 3);
                    yield_now().await;
                    inside.fetch_sub(1, Ordering::SeqCst);
                    room.give();
                }
            }));
        }
        let all = async {
            for task in tasks {
                task.await.unwrap();
            }
        };
        clock::timeout(Duration::from_secs(20), all).await.unwrap();
        assert_eq!(room.free(), 3);
    }

    /// Two come to wait for one free place at the same moment: one of them finds it, as nobody gives another that could wake
    /// them.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_free_place_is_found_by_one_of_two_who_come_at_once() {
        for _ in 0..5_000 {
            let room = Arc::new(Room::new(1));
            let met = Arc::new(AtomicUsize::new(0));
            let waits = |room: Arc<Room>, met: Arc<AtomicUsize>| async move {
                met.fetch_add(1, Ordering::SeqCst);
                for spins in 1.. {
                    if met.load(Ordering::SeqCst) == 2 {
                        break;
                    }
                    if spins % 1_000 == 0 {
                        // Both may be on one thread.
                        yield_now().await;
                    }
                    std::hint::spin_loop();
                }
                assert!(room.take().await);
                room.give();
            };
            let both = [0; 2].map(|_| start(waits(room.clone(), met.clone())));
            for task in both {
                let done = clock::timeout(Duration::from_secs(10), task).await;
                done.unwrap().unwrap();
            }
        }
    }
}
