//! What waits for one peer: the queue `outbox/<peer>`, filled in the batch of the send, emptied by the peer's courier.
//!
//! An item is a message in the stored form of a delivery whose receiver is the peer, so that `volary parked` can show it.

use bytes::Bytes;
use volary_kernel::id::{Name, Uid};
use volary_store::{
    Batch, Cause, ItemId, NewItem, Queue, QueueConfig, QueueError, Queues, queue::Loan,
};

use super::PeerConfig;
use crate::{
    codec::DecodeError,
    delivery::{encode_message, stored_message},
    identity::AgentId,
    inbox::queue_priority,
    message::Message,
};

/// Name of the queue of what waits for `peer`.
pub fn queue_name(peer: &Name) -> String {
    format!("outbox/{peer}")
}

/// What waits for one peer.
#[derive(Clone)]
pub(super) struct Outbox {
    peer: Name,
    pub(super) queue: Queue,
}

impl Outbox {
    pub(super) async fn open(queues: &Queues, config: &PeerConfig) -> Result<Self, QueueError> {
        let peer = config.spec.name.clone();
        let queue = QueueConfig {
            subject: "outbox",
            max_items: config.max_items,
            max_bytes: config.max_bytes,
            ..QueueConfig::new(queue_name(&peer))
        };
        Ok(Self {
            queue: queues.numbered(queue).await?,
            peer,
        })
    }

    /// Adds a message to `tx`; `encoded` is its binary form.
    pub(super) fn enqueue(
        &self,
        tx: &mut Batch,
        message: &Message,
        encoded: &[u8],
        cause: Cause,
    ) -> Result<ItemId, QueueError> {
        let item = NewItem {
            trace: Some(message.trace()),
            cause,
            priority: queue_priority(message.priority()),
            deadline: message.deadline(),
            ..NewItem::new(
                message.tenant().clone(),
                encode_message(message, encoded, &self.peer),
            )
        };
        Ok(self.queue.enqueue(tx, item)?.id)
    }
}

/// A lent message: what a courier needs to know of it before it is sealed.
pub(super) struct Parcel {
    pub(super) loan: Loan,
    pub(super) id: Uid,
    pub(super) sender: AgentId,
    /// The message's binary form.
    pub(super) encoded: Bytes,
}

impl Parcel {
    /// Reads a lent item; hands it back if it can not be read.
    pub(super) fn open(loan: Loan) -> Result<Self, Box<(Loan, DecodeError)>> {
        let read = stored_message(loan.payload()).and_then(|encoded| {
            crate::codec::peek(&encoded).map(|(id, sender)| (encoded, id, sender))
        });
        match read {
            Ok((encoded, id, sender)) => Ok(Self {
                loan,
                id,
                sender,
                encoded,
            }),
            Err(error) => Err(Box::new((loan, error))),
        }
    }
}
