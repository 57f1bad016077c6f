//! From journal entries to the messages that they stand for (pure).

use std::time::Duration;

use bytes::Bytes;
use volary_kernel::id::Name;
use volary_store::{Filter, journal::ArchiveRow};

use super::{Direction, PlannedMessage, ReplayQuery, Unreadable};
use crate::event::{is_from_peer, kind, message_in, receivers_in};

/// Kinds of entries that hold a message.
pub(super) const KINDS: [&str; 3] = [kind::ACCEPTED, kind::SENT, kind::RECEIVED];

/// What the journal is asked for.
pub(super) fn filter(query: &ReplayQuery) -> Filter {
    Filter {
        kinds: KINDS.map(str::to_owned).into(),
        agent: None,
        trace: query.trace,
        tenant: query.tenant.clone(),
        since: query.from,
        // The journal's bound is exclusive, a replay's is not.
        until: query.to.map(|to| to + Duration::from_micros(1)),
    }
}

/// Adds the messages that one entry stands for.
pub(super) fn of_row(
    entry: &ArchiveRow,
    query: &ReplayQuery,
    planned: &mut Vec<PlannedMessage>,
) -> Result<(), Unreadable> {
    let row = &entry.row;
    let message = message_in(&row.body).map_err(|error| Unreadable {
        seq: row.seq,
        problem: error.to_string(),
    })?;
    let sealed = entry.sealed.clone().or_else(|| sealed_in(&row.body));
    let mut nth = 0;
    let mut add = |direction: Direction, agent: Name| {
        let wanted = query.direction.is_none_or(|wanted| wanted == direction)
            && query.agent.as_ref().is_none_or(|wanted| *wanted == agent);
        if wanted {
            planned.push(PlannedMessage {
                seq: row.seq,
                nth,
                at: row.at,
                node: row.node.clone(),
                direction,
                agent,
                message: message.clone(),
                sealed: sealed.clone(),
            });
        }
        nth += 1;
    };
    // What a peer sent is no agent's of this node.
    if row.kind != kind::RECEIVED && !is_from_peer(&row.body) {
        add(Direction::Outbound, message.sender().name().clone());
    }
    for receiver in receivers_in(&row.body) {
        add(Direction::Inbound, receiver);
    }
    Ok(())
}

/// The sealed form in a body, as messages of other nodes are recorded.
pub(super) fn sealed_in(body: &[u8]) -> Option<Bytes> {
    let sealed = crate::event::sealed_in(body).ok().flatten()?;
    Some(sealed.encode())
}
