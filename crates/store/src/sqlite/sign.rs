//! Signing the head while the disk syncs: a thread of its own, asked before the commit and read after it.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use volary_kernel::sign::{Signature, SigningKey};

use crate::error::StoreError;

#[derive(Default)]
struct State {
    /// What is to be signed, and the number of that question.
    question: Option<Vec<u8>>,
    asked: u64,
    answer: Option<(u64, Signature)>,
    closed: bool,
}

#[derive(Default)]
struct Desk {
    state: Mutex<State>,
    /// Wakes the signer.
    question: Condvar,
    /// Wakes whoever waits for a signature.
    answer: Condvar,
}

/// Signs one message at a time; a new question takes the place of one whose answer was not fetched.
pub(super) struct Signer {
    desk: Arc<Desk>,
}

impl Signer {
    pub(super) fn start(key: Arc<SigningKey>) -> Result<Self, StoreError> {
        let desk = Arc::new(Desk::default());
        let theirs = desk.clone();
        let thread = std::thread::Builder::new().name("volary-sign".into());
        thread
            .spawn(move || theirs.serve(&key))
            .map_err(|error| StoreError::io("starting the signer", error))?;
        Ok(Self { desk })
    }

    /// Begins to sign `message`.
    pub(super) fn ask(&self, message: Vec<u8>) {
        let mut state = self.desk.state.lock();
        state.asked += 1;
        state.question = Some(message);
        self.desk.question.notify_one();
    }

    /// The signature of what was asked last.
    pub(super) fn answer(&self) -> Signature {
        let mut state = self.desk.state.lock();
        loop {
            match state.answer {
                Some((number, signature)) if number == state.asked => return signature,
                _ => self.desk.answer.wait(&mut state),
            }
        }
    }
}

impl Drop for Signer {
    fn drop(&mut self) {
        self.desk.state.lock().closed = true;
        self.desk.question.notify_one();
    }
}

impl Desk {
    fn serve(&self, key: &SigningKey) {
        let mut state = self.state.lock();
        while !state.closed {
            let Some(message) = state.question.take() else {
                self.question.wait(&mut state);
                continue;
            };
            let number = state.asked;
            let signature = parking_lot::MutexGuard::unlocked(&mut state, || key.sign(&message));
            state.answer = Some((number, signature));
            self.answer.notify_one();
        }
    }
}
