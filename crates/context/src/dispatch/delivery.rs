//! A change on its way to a subscriber, and what becomes of changes that meet before they are delivered. Pure.
//!
//! Delivery is level-triggered: of several changes to a page only the newest content matters. What a subscriber is told
//! is the difference between what it knew before the first change it has not received and what is there now:
//!
//! | knew before | is now | told |
//! |---|---|---|
//! | nothing | nothing | nothing |
//! | nothing | content | `Added` |
//! | content | nothing | `Invalidated` |
//! | content | other content | `Replaced` |
//! | content | the same content | nothing |
//!
//! So `Added` + `Replaced` is `Added` with the newest content, `Added` + `Invalidated` is nothing, and `Invalidated` +
//! `Added` is `Replaced`.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use volary_store::{Batch, EntryRef};

use crate::{
    page::{ChangeKind, ContentHash, PageChange},
    source::SourceChange,
    subscription::Subscription,
};

/// Longest coalescing key that is written out; longer ones are hashed. Queues take 256 bytes.
const KEY_MAX: usize = 256;

/// One change for one subscription.
#[derive(Debug, Clone)]
pub struct Dispatch {
    /// Who is told, and why.
    pub subscription: Arc<Subscription>,
    /// What happened.
    pub change: Arc<PageChange>,
    /// The `page.changed` entry in the batch that the delivery is added to.
    pub cause: EntryRef,
}

impl Dispatch {
    /// By which changes to one page meet in an inbox: the subscription and the page.
    pub fn coalesce_key(&self) -> String {
        let (subscription, page) = (&self.subscription.id, &self.change.page.id);
        let key = format!("{subscription}|{page}");
        if key.len() <= KEY_MAX {
            return key;
        }
        format!(
            "{subscription}|#{}",
            ContentHash::of(page.as_str().as_bytes())
        )
    }

    /// What the subscriber knows of the page if it has received everything so far: to be kept with the first
    /// undelivered change of a page, and given to [`DispatchPayload::since`] when it is handed out.
    pub fn base(&self) -> String {
        self.change
            .previous
            .map_or_else(|| ABSENT.to_owned(), |hash| hash.to_string())
    }

    /// What the agent receives.
    pub fn payload(&self) -> DispatchPayload {
        DispatchPayload {
            v: 1,
            subscription_id: self.subscription.id.clone(),
            page_event: PageChange::clone(&self.change),
        }
    }
}

const ABSENT: &str = "absent";

/// What an agent receives of a change, as JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DispatchPayload {
    /// Version of this form.
    pub v: u32,
    /// The subscription that asked for it.
    pub subscription_id: Arc<str>,
    /// What happened.
    pub page_event: PageChange,
}

impl DispatchPayload {
    /// The payload for a subscriber that knows `base` (see [`Dispatch::base`]): the kind is put right
    /// if earlier changes were coalesced into this one. `None` if nothing changed for this subscriber.
    pub fn since(mut self, base: &str) -> Option<Self> {
        let known = match base {
            ABSENT => None,
            hash => match hash.parse() {
                Ok(hash) => Some(hash),
                // Not ours: the change stands as it is.
                Err(_) => return Some(self),
            },
        };
        let event = &mut self.page_event;
        event.kind = net(known, &event.kind, event.page.content_hash)?;
        event.previous = known;
        Some(self)
    }
}

/// What changed between `known` and the state after a change of `kind` to `hash`.
fn net(known: Option<ContentHash>, kind: &ChangeKind, hash: ContentHash) -> Option<ChangeKind> {
    match (known, kind) {
        (None, ChangeKind::Invalidated { .. }) => None,
        (None, _) => Some(ChangeKind::Added),
        (Some(_), gone @ ChangeKind::Invalidated { .. }) => Some(gone.clone()),
        (Some(known), _) if known == hash => None,
        (Some(_), replaced @ ChangeKind::Replaced { .. }) => Some(replaced.clone()),
        (Some(_), _) => Some(ChangeKind::Replaced { edit_diff: None }),
    }
}

/// Two changes of a page, neither of them committed, as one. `None` if together they are nothing.
pub(super) fn merge(first: &SourceChange, newer: SourceChange) -> Option<SourceChange> {
    let kind = net(first.previous, &newer.kind, newer.state.content_hash)?;
    let kind = match kind {
        // A diff against the state between the two would be wrong.
        ChangeKind::Replaced { .. } => ChangeKind::Replaced { edit_diff: None },
        other => other,
    };
    let settled_for = first.settled_for.max(newer.settled_for);
    Some(SourceChange {
        kind,
        previous: first.previous,
        settled_for,
        ..newer
    })
}

/// Why a change could not be delivered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeliverError {
    /// The inbox has no room now. The change waits and is tried again.
    #[error("{0}")]
    Full(String),
    /// It will never be taken: the agent is gone, or the payload is not allowed. The page's state moves on.
    #[error("{0}")]
    Refused(String),
}

/// Puts a dispatch into its agent's inbox, by adding to the batch; returns what the inbox calls it.
///
/// Contract: short, does not wait, and may be called several times for the same change with different batches, all but
/// one of which are dropped uncommitted. It coalesces by [`Dispatch::coalesce_key`].
pub type Deliver = Arc<dyn Fn(&mut Batch, &Dispatch) -> Result<String, DeliverError> + Send + Sync>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::{Cursor, Extra, reason};
    use crate::source::PageState;
    use proptest::prelude::*;
    use std::{collections::BTreeMap, time::Duration};

    fn change(previous: Option<u8>, now: Option<u8>, cursor: u64) -> SourceChange {
        let hash = |content: u8| ContentHash::of(&[content]);
        let kind = match (previous, now) {
            (_, None) => ChangeKind::Invalidated {
                reason: reason::DELETED.into(),
            },
            (None, _) => ChangeKind::Added,
            _ => ChangeKind::Replaced {
                edit_diff: Some("diff".into()),
            },
        };
        SourceChange {
            cursor: Cursor(cursor),
            kind,
            state: PageState {
                path: "a".into(),
                data_type: "file".into(),
                version: 1,
                content_hash: hash(now.or(previous).unwrap_or(0)),
                metadata: BTreeMap::new(),
                links: Vec::new(),
                stamp: "".into(),
            },
            previous: previous.map(hash),
            extra: Extra::default(),
            settled_for: Duration::ZERO,
        }
    }

    proptest! {
        /// Merging any run of changes tells the difference between its two ends.
        #[test]
        fn merged_changes_tell_the_difference_of_the_ends(
            contents in prop::collection::vec(prop::option::of(0..3u8), 2..10),
        ) {
            let mut merged: Option<SourceChange> = None;
            for (cursor, pair) in contents.windows(2).enumerate().filter(|(_, pair)| pair[0] != pair[1]) {
                let next = change(pair[0], pair[1], cursor as u64);
                merged = match merged {
                    None => Some(next),
                    Some(first) => merge(&first, next),
                };
            }
            let (first, last) = (contents[0], *contents.last().unwrap());
            let expected = (first != last).then(|| change(first, last, 0).kind.name());
            prop_assert_eq!(merged.as_ref().map(|merged| merged.kind.name()), expected);
            if let (Some(merged), Some(last)) = (merged, last) {
                prop_assert_eq!(merged.state.content_hash, ContentHash::of(&[last]));
            }
        }
    }

    #[test]
    fn a_merged_replacement_does_not_keep_a_diff_of_its_last_step() {
        let merged = merge(&change(Some(1), Some(2), 1), change(Some(2), Some(3), 2)).unwrap();
        assert_eq!(merged.kind, ChangeKind::Replaced { edit_diff: None });
        assert_eq!(merged.cursor, Cursor(2));
    }
}
