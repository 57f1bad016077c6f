//! What stands between those who send and the connection: the window, what is to be written, what waits for answers.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{self, Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use volary_kernel::clock::Mono;

use super::{LinkError, Outgoing};
use crate::{
    frame::FRAME_MESSAGES_MAX,
    transport::tcp::{
        control::{Answer, Durable, Greeting},
        wire::Ended,
    },
};

type Answers = Result<Vec<Answer>, LinkError>;

/// Shared by the link's handles and its task.
pub(super) struct Gate {
    state: Mutex<State>,
    /// There is something to write, or the last answer came.
    pub(super) work: Notify,
}

enum State {
    /// Not connected.
    Shut,
    Open(Open),
    /// For good.
    Closed,
}

/// One connection's share.
struct Open {
    connection: u64,
    window: Arc<Window>,
    /// Nothing more gets in.
    closing: bool,
    next_id: u64,
    to_write: VecDeque<Unwritten>,
    /// In order of their ids, up to the last one.
    waiting: VecDeque<Waiting>,
}

/// Room for frames that are not answered.
struct Window {
    /// Whose turn it is to find room: frames that found it at the same moment would go in whatever order their senders'
    /// tasks wake. Who waits has its place in the line from its first poll on.
    line: sync::Mutex<()>,
    frames: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    max_bytes: usize,
    frame_bytes: usize,
}

/// A frame to be written.
pub(super) struct Unwritten {
    pub(super) id: u64,
    pub(super) count: u16,
    pub(super) durable: Option<Durable>,
    pub(super) frame: Bytes,
}

struct Waiting {
    id: u64,
    count: usize,
    since: Mono,
    answer: oneshot::Sender<Answers>,
    _room: [OwnedSemaphorePermit; 2],
}

/// What became of the frames in flight when a connection ended.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Cut {
    /// Written, at least in part, and not answered.
    pub(super) unanswered: usize,
}

impl Gate {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::new(State::Shut),
            work: Notify::new(),
        }
    }

    /// Lets frames through to a connection, within what both sides take.
    pub(super) fn open(&self, connection: u64, own: &Greeting, peer: &Greeting) {
        let frames = own.window_frames.min(peer.window_frames).max(1);
        let bytes = own.window_bytes.min(peer.window_bytes).max(1);
        let mut state = self.state.lock();
        if matches!(*state, State::Closed) {
            return;
        }
        *state = State::Open(Open {
            connection,
            window: Arc::new(Window {
                line: sync::Mutex::new(()),
                frames: Arc::new(Semaphore::new(frames as usize)),
                bytes: Arc::new(Semaphore::new(bytes as usize)),
                max_bytes: bytes as usize,
                frame_bytes: own.frame_bytes.min(peer.frame_bytes) as usize,
            }),
            closing: false,
            next_id: 1,
            to_write: VecDeque::new(),
            waiting: VecDeque::new(),
        });
    }

    /// Ends what is in flight: everybody who waits learns it.
    pub(super) fn shut(&self, for_good: bool) -> Cut {
        let next = if for_good { State::Closed } else { State::Shut };
        let former = {
            let mut state = self.state.lock();
            let closed = matches!(*state, State::Closed);
            std::mem::replace(&mut *state, if closed { State::Closed } else { next })
        };
        let State::Open(open) = former else {
            return Cut::default();
        };
        open.window.close();
        let first_unwritten = open.to_write.front().map_or(u64::MAX, |first| first.id);
        let mut cut = Cut::default();
        for waiting in open.waiting {
            let unwritten = waiting.id >= first_unwritten;
            cut.unanswered += usize::from(!unwritten);
            let why = if unwritten {
                LinkError::NotConnected
            } else {
                LinkError::Down
            };
            // Who dropped the call does not want to know.
            let _gone = waiting.answer.send(Err(why));
        }
        cut
    }

    /// Waits for room, then queues a frame; what comes out resolves to its answers.
    pub(super) async fn enter(
        &self,
        outgoing: Outgoing,
        now: impl FnOnce() -> Mono,
    ) -> Result<oneshot::Receiver<Answers>, LinkError> {
        let found = outgoing.count;
        let orders = outgoing
            .durable
            .as_ref()
            .map(|durable| durable.orders.len());
        let count = u16::try_from(found)
            .ok()
            .filter(|_| (1..=FRAME_MESSAGES_MAX).contains(&found))
            .filter(|_| orders.is_none_or(|orders| orders == found))
            .ok_or(LinkError::Count { found })?;
        let window = self.window(outgoing.connection)?;
        let bytes = outgoing.frame.len();
        if bytes > window.frame_bytes {
            return Err(LinkError::TooLarge {
                found: bytes,
                limit: window.frame_bytes,
            });
        }
        let _turn = window.line.lock().await;
        let Some(room) = window.room(bytes).await else {
            // The connection ended meanwhile, or the link is closing.
            self.window(outgoing.connection)?;
            return Err(LinkError::NotConnected);
        };
        let (answer, answers) = oneshot::channel();
        let mut state = self.state.lock();
        let open = match &mut *state {
            State::Open(open) if open.closing => return Err(LinkError::Closed),
            State::Open(open) if Arc::ptr_eq(&open.window, &window) => open,
            State::Closed => return Err(LinkError::Closed),
            State::Shut | State::Open(_) => return Err(LinkError::NotConnected),
        };
        let id = open.next_id;
        open.next_id += 1;
        open.waiting.push_back(Waiting {
            id,
            count: found,
            since: now(),
            answer,
            _room: room,
        });
        let Outgoing { frame, durable, .. } = outgoing;
        open.to_write.push_back(Unwritten {
            id,
            count,
            durable,
            frame,
        });
        drop(state);
        self.work.notify_one();
        Ok(answers)
    }

    /// The window of the connection, if it is the one that is `wanted`.
    fn window(&self, wanted: Option<u64>) -> Result<Arc<Window>, LinkError> {
        match &*self.state.lock() {
            State::Shut => Err(LinkError::NotConnected),
            State::Closed => Err(LinkError::Closed),
            State::Open(open) if open.closing => Err(LinkError::Closed),
            State::Open(open) if wanted.is_some_and(|wanted| wanted != open.connection) => {
                Err(LinkError::NotConnected)
            }
            State::Open(open) => Ok(open.window.clone()),
        }
    }

    /// Lets nothing more in; what is in goes its way.
    pub(super) fn close_intake(&self) {
        if let State::Open(open) = &mut *self.state.lock() {
            open.closing = true;
            open.window.close();
        }
    }

    /// Takes out up to `max` frames to be written.
    pub(super) fn take(&self, into: &mut Vec<Unwritten>, max: usize) {
        if let State::Open(open) = &mut *self.state.lock() {
            let count = open.to_write.len().min(max);
            into.extend(open.to_write.drain(..count));
        }
    }

    /// Hands out the answers of the frame that is next to be answered; says since when they were waited for.
    pub(super) fn answer(&self, id: u64, answers: Vec<Answer>) -> Result<Mono, Ended> {
        let waiting = {
            let mut state = self.state.lock();
            let State::Open(open) = &mut *state else {
                return Err(Ended::protocol("answers to nothing"));
            };
            let fits = |waiting: &Waiting| waiting.id == id && waiting.count == answers.len();
            if !open.waiting.front().is_some_and(fits) {
                let problem = format!("{} answers to frame {id} are not due", answers.len());
                return Err(Ended::protocol(problem));
            }
            open.waiting.pop_front()
        };
        let waiting = waiting.ok_or_else(|| Ended::protocol("answers to nothing"))?;
        let since = waiting.since;
        let _gone = waiting.answer.send(Ok(answers));
        Ok(since)
    }

    /// Whether no frame waits for anything.
    pub(super) fn is_quiet(&self) -> bool {
        match &*self.state.lock() {
            State::Open(open) => open.waiting.is_empty(),
            State::Shut | State::Closed => true,
        }
    }
}

impl Window {
    /// `None` once the window is closed.
    async fn room(&self, bytes: usize) -> Option<[OwnedSemaphorePermit; 2]> {
        let frames = self.frames.clone().acquire_owned().await.ok()?;
        // A frame larger than the window goes when nothing else is on its way.
        let bytes = u32::try_from(bytes.min(self.max_bytes)).unwrap_or(u32::MAX);
        let bytes = self.bytes.clone().acquire_many_owned(bytes);
        Some([frames, bytes.await.ok()?])
    }

    fn close(&self) {
        self.frames.close();
        self.bytes.close();
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::FutureExt as _;

    use super::*;
    use crate::{admission::Admission, identity::Identity};

    fn greeting(window_frames: u32) -> Greeting {
        Greeting {
            key: Identity::generate().unwrap().public(),
            name: "side".parse().unwrap(),
            incarnation: 1,
            frame_bytes: 1024,
            window_frames,
            window_bytes: 1024,
            introduction: Bytes::new(),
        }
    }

    fn frame(text: &'static str) -> Outgoing {
        Outgoing {
            frame: Bytes::from_static(text.as_bytes()),
            count: 1,
            durable: None,
            connection: Some(1),
        }
    }

    fn written(gate: &Gate) -> Vec<(u64, Bytes)> {
        let mut frames = Vec::new();
        gate.take(&mut frames, usize::MAX);
        frames
            .into_iter()
            .map(|unwritten| (unwritten.id, unwritten.frame))
            .collect()
    }

    #[test]
    fn frames_that_find_room_at_the_same_moment_go_in_the_order_in_which_they_came() {
        let gate = Gate::new();
        gate.open(1, &greeting(2), &greeting(9));
        let enter = |text| gate.enter(frame(text), || Mono::from_nanos(1));
        for text in ["one", "two"] {
            enter(text).now_or_never().unwrap().unwrap();
        }
        assert_eq!(written(&gate).len(), 2);
        let (mut first, mut second) = (pin!(enter("first")), pin!(enter("second")));
        assert!(first.as_mut().now_or_never().is_none(), "there is no room");
        assert!(second.as_mut().now_or_never().is_none());
        for id in [1, 2] {
            gate.answer(id, vec![Admission::Queued]).unwrap();
        }
        // There is room for both, and the task of the later one wakes before the other.
        let early = second.as_mut().now_or_never();
        let _answers = first.now_or_never().unwrap().unwrap();
        let _answers = match early {
            Some(entered) => entered.unwrap(),
            None => second.now_or_never().unwrap().unwrap(),
        };
        let frames = [(3, "first".into()), (4, "second".into())];
        assert_eq!(written(&gate), frames);
    }
}
