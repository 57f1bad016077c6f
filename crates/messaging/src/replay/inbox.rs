//! Recorded messages into an inbox: marked, under their own ids and keys.

use volary_kernel::id::Name;
use volary_store::{Batch, ItemId, NewItem};

use super::{PlannedMessage, ReplayError};
use crate::{
    codec,
    delivery::{Replayed, encode_replayed},
    event::Event,
    hook::contains_secret,
    inbox::{InboxError, Inboxes},
};

impl Inboxes {
    /// Adds a recorded message to `tx` for `agent` of the message's tenant, with its `message.replayed` entry.
    ///
    /// The delivery keeps the message's id, content and the idempotency key under which `planned`'s agent had it. It is
    /// marked as replayed and has no deadline. While it waits, the same message replayed into the same inbox takes its
    /// place. Hooks are not asked: an operator has named the receiver; the secret guard is.
    ///
    /// # Errors
    /// [`ReplayError::Inbox`]: no such agent in that tenant, or no room; [`ReplayError::Secret`].
    pub fn replay(
        &self,
        tx: &mut Batch,
        agent: &Name,
        planned: &PlannedMessage,
    ) -> Result<ItemId, ReplayError> {
        let message = &planned.message;
        if contains_secret(self.redactor(), message) {
            return Err(ReplayError::Secret);
        }
        let mailbox = self
            .mailbox(message.tenant(), agent)
            .ok_or_else(|| InboxError::Unknown {
                tenant: message.tenant().clone(),
                name: agent.clone(),
            })?;
        let mark = Replayed {
            node: planned.node.clone(),
            seq: planned.seq,
            at: planned.at,
        };
        let key = planned.idempotency_key();
        let encoded = codec::encode(message);
        let event = Event::Replayed {
            message,
            encoded: &encoded,
            into: agent,
            from: &mark,
            key: &key,
        };
        let entry = tx.append(event.record());
        let stored = encode_replayed(&encoded, &key, &mark);
        let item = NewItem {
            trace: Some(message.trace()),
            cause: entry.into(),
            coalesce: Some(format!("replay/{key}")),
            ..NewItem::new(message.tenant().clone(), stored)
        };
        let id = mailbox.enqueue_item(tx, item)?;
        tx.intake();
        Ok(id)
    }
}
