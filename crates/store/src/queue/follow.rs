//! What a queue does by itself, for those who must know in the same commit.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use volary_kernel::{
    clock::Timestamp,
    id::{Tenant, TraceId},
};

use super::{ItemId, format::Header};
use crate::{batch::Batch, entry::Seq, error::StoreError};

/// What a queue does with an item without being asked to by a batch of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed<'a> {
    /// It was handed out (told with [`super::QueueConfig::journal_claims`]).
    Claimed {
        /// Which attempt.
        attempt: u32,
        /// To whom.
        owner: &'a str,
    },
    /// A claim ended without an answer, and the item may be claimed again.
    Lapsed {
        /// Which attempt.
        attempt: u32,
    },
    /// It was set aside.
    Parked {
        /// Attempts made.
        attempts: u32,
        /// Why.
        reason: &'a str,
    },
    /// Its deadline passed while it waited.
    Expired {
        /// Attempts made.
        attempts: u32,
    },
    /// Somebody puts it back to be tried from the first attempt.
    Retried,
    /// Somebody gives it up after it was parked.
    Dropped {
        /// Attempts made.
        attempts: u32,
        /// Why.
        reason: &'a str,
    },
}

/// An item, and what the queue does with it.
#[derive(Debug, Clone, Copy)]
pub struct Happening<'a> {
    /// The item.
    pub id: ItemId,
    /// Whose it is.
    pub tenant: &'a Tenant,
    /// The request it belongs to.
    pub trace: Option<TraceId>,
    /// The journal entry that brought it about.
    pub cause: Option<Seq>,
    /// When it was enqueued.
    pub enqueued_at: Timestamp,
    /// What it is.
    pub payload: &'a Bytes,
    /// What is done.
    pub deed: Deed<'a>,
}

impl<'a> Happening<'a> {
    pub(super) const fn new(
        id: ItemId,
        header: &'a Header,
        payload: &'a Bytes,
        deed: Deed<'a>,
    ) -> Self {
        Self {
            id,
            tenant: &header.tenant,
            trace: header.trace,
            cause: header.cause,
            enqueued_at: header.at,
            payload,
            deed,
        }
    }
}

type Follower = dyn Fn(&mut Batch, &Happening<'_>) -> Result<(), StoreError> + Send + Sync;

/// Adds to each batch in which a queue does something by itself: the journal entry that tells of it, and records that must
/// change with it. Runs on the queue's way; it must be short and must not wait.
#[derive(Clone)]
pub struct Follow(Arc<Follower>);

impl Follow {
    /// Adds what `follower` adds.
    pub fn new(
        follower: impl Fn(&mut Batch, &Happening<'_>) -> Result<(), StoreError> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(follower))
    }

    pub(super) fn tell(&self, tx: &mut Batch, happening: &Happening<'_>) -> Result<(), StoreError> {
        (self.0)(tx, happening)
    }
}

impl fmt::Debug for Follow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Follow")
    }
}
