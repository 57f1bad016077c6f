//! Where the attempts of a node live, one after the other: its allocations are made once and used again.
//!
//! A slot knows the type of its attempts, so that a node's code, the first poll and what is made of its result are one call.

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context as Poller, Poll, ready},
};

use super::plan::{Call, Payload, Returned};
use crate::context::Context;

/// A place for one attempt at a time.
///
/// Code of users may panic in each of its functions, and when it is dropped: the caller contains that, and throws a slot away
/// in which something panicked.
pub(crate) trait Slot: Send {
    /// Begins an attempt and polls it once, as most are ready then. What was in the slot before is dropped.
    fn start(&mut self, input: Payload, context: Context, cx: &mut Poller<'_>) -> Poll<Returned>;

    /// Polls the attempt that was begun. Of one that was ready nothing is kept.
    fn poll(&mut self, cx: &mut Poller<'_>) -> Poll<Returned>;
}

/// A future in an allocation that is used again.
pub(super) struct Seat<F>(Pin<Box<Option<F>>>);

impl<F> Default for Seat<F> {
    fn default() -> Self {
        Self(Box::pin(None))
    }
}

impl<F: Future> Seat<F> {
    /// Polls a new future where it is going to stay.
    #[inline]
    pub(super) fn start(&mut self, future: F, cx: &mut Poller<'_>) -> Poll<F::Output> {
        self.0.set(Some(future));
        self.poll(cx)
    }

    /// Polls what is in it; pending for ever if nothing is. A future that is ready is dropped at once.
    #[inline]
    pub(super) fn poll(&mut self, cx: &mut Poller<'_>) -> Poll<F::Output> {
        let Some(future) = self.0.as_mut().as_pin_mut() else {
            return Poll::Pending;
        };
        let output = ready!(future.poll(cx));
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.0.set(None))) {
            // Dropped in the course of that panic, an output that panics as well would end the process.
            let _second_panic = catch_unwind(AssertUnwindSafe(|| drop(output)));
            resume_unwind(panic);
        }
        Poll::Ready(output)
    }
}

/// A slot for the futures that `begin` makes.
struct Begins<B, F> {
    begin: B,
    seat: Seat<F>,
}

impl<B, F> Slot for Begins<B, F>
where
    B: Fn(Payload, Context) -> F + Send,
    F: Future<Output = Returned> + Send,
{
    fn start(&mut self, input: Payload, context: Context, cx: &mut Poller<'_>) -> Poll<Returned> {
        self.seat.start((self.begin)(input, context), cx)
    }

    fn poll(&mut self, cx: &mut Poller<'_>) -> Poll<Returned> {
        self.seat.poll(cx)
    }
}

/// A slot for attempts that `begin` begins.
pub(crate) fn of<B, F>(begin: B) -> Box<dyn Slot>
where
    B: Fn(Payload, Context) -> F + Send + 'static,
    F: Future<Output = Returned> + Send + 'static,
{
    let seat = Seat::default();
    Box::new(Begins { begin, seat })
}

/// One attempt in a slot of its own.
pub(crate) async fn attempt(call: Arc<dyn Call>, input: Payload, context: Context) -> Returned {
    let mut slot = Some(call.slot());
    let mut begin = Some((input, context));
    std::future::poll_fn(|cx| {
        let Some(running) = &mut slot else {
            return Poll::Pending;
        };
        let polled = AssertUnwindSafe(|| match begin.take() {
            Some((input, context)) => running.start(input, context, cx),
            None => running.poll(cx),
        });
        catch_unwind(polled).unwrap_or_else(|panic| {
            // Dropped in the course of that panic, an attempt that panics as well would end the process.
            let _second_panic = catch_unwind(AssertUnwindSafe(|| drop(slot.take())));
            resume_unwind(panic)
        })
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    /// Answers its polls in turn, with a panic where there is no answer; its drop may panic.
    struct Turns {
        answers: Vec<Option<Poll<u32>>>,
        bomb: bool,
        _alive: Arc<()>,
    }

    impl Future for Turns {
        type Output = u32;

        fn poll(mut self: Pin<&mut Self>, _: &mut Poller<'_>) -> Poll<u32> {
            self.answers.remove(0).expect("on purpose: polled")
        }
    }

    impl Drop for Turns {
        fn drop(&mut self) {
            assert!(!self.bomb, "on purpose: dropped");
        }
    }

    const READY: Option<Poll<u32>> = Some(Poll::Ready(7));
    const PENDING: Option<Poll<u32>> = Some(Poll::Pending);
    const PANICS: Option<Poll<u32>> = None;

    /// A seat, and what the futures in it keep alive.
    #[derive(Default)]
    struct Test {
        seat: Seat<Turns>,
        alive: Arc<()>,
    }

    impl Test {
        /// None is a panic.
        fn start(&mut self, answers: &[Option<Poll<u32>>], bomb: bool) -> Option<Poll<u32>> {
            let future = Turns {
                answers: answers.to_vec(),
                bomb,
                _alive: self.alive.clone(),
            };
            let cx = &mut Poller::from_waker(Waker::noop());
            catch_unwind(AssertUnwindSafe(|| self.seat.start(future, cx))).ok()
        }

        fn poll(&mut self) -> Option<Poll<u32>> {
            let cx = &mut Poller::from_waker(Waker::noop());
            catch_unwind(AssertUnwindSafe(|| self.seat.poll(cx))).ok()
        }

        fn is_empty(&mut self) -> bool {
            Arc::strong_count(&self.alive) == 1 && self.poll() == PENDING
        }

        /// Whether it is as good as new.
        fn works(&mut self) -> bool {
            self.start(&[READY], false) == READY && self.is_empty()
        }
    }

    #[test]
    fn what_is_ready_is_gone() {
        let mut test = Test::default();
        assert!(test.is_empty() && test.works());
        assert_eq!(test.start(&[PENDING, PENDING, READY], false), PENDING);
        assert_eq!(test.poll(), PENDING);
        assert_eq!(test.poll(), READY);
        assert!(test.is_empty() && test.works());
    }

    #[test]
    fn what_comes_next_takes_the_place_of_what_was_there() {
        let mut test = Test::default();
        assert_eq!(test.start(&[PENDING], false), PENDING);
        assert!(test.works());
        assert_eq!(test.start(&[PANICS], false), PANICS);
        assert_eq!(test.start(&[PENDING, PANICS], false), PENDING);
        assert_eq!(test.poll(), PANICS);
        assert!(test.works());
    }

    #[test]
    fn a_drop_that_panics_leaves_it_empty() {
        let mut test = Test::default();
        assert_eq!(test.start(&[READY], true), PANICS);
        assert!(test.is_empty() && test.works());
        assert_eq!(test.start(&[PENDING, READY], true), PENDING);
        assert_eq!(test.poll(), PANICS);
        assert!(test.is_empty() && test.works());
    }

    /// Its drop panics, and so does that of what it answers.
    struct Twice(bool);

    impl Future for Twice {
        type Output = Self;

        fn poll(self: Pin<&mut Self>, _: &mut Poller<'_>) -> Poll<Self> {
            Poll::Ready(Self(self.0))
        }
    }

    impl Drop for Twice {
        fn drop(&mut self) {
            assert!(!self.0, "on purpose: dropped");
        }
    }

    #[test]
    fn an_answer_that_panics_in_a_panic_does_not_end_the_process() {
        let mut seat = Seat::default();
        let cx = &mut Poller::from_waker(Waker::noop());
        let started = catch_unwind(AssertUnwindSafe(|| seat.start(Twice(true), cx).is_ready()));
        assert!(started.is_err());
        assert!(seat.start(Twice(false), cx).is_ready());
    }

    #[test]
    fn one_that_is_thrown_away_takes_its_future_with_it() {
        for bomb in [false, true] {
            let mut test = Test::default();
            assert_eq!(test.start(&[PENDING], bomb), PENDING);
            let Test { seat, alive } = test;
            let dropped = catch_unwind(AssertUnwindSafe(|| drop(seat)));
            assert_eq!(dropped.is_err(), bomb);
            assert_eq!(Arc::strong_count(&alive), 1);
        }
    }
}
