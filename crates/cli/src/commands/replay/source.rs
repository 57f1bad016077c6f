//! Where recorded messages are read when no node is asked: the database of a fleet, or an archive.

use std::{path::Path, sync::Arc};

use volary::{
    messaging::replay::{
        Direction, ImportError, Imported, Imports, PlannedMessage, Recording, ReplayError,
        ReplayQuery as Wanted,
    },
    ops::api::{ReplayDirection, ReplayMessage, ReplayPlan, ReplayQuery, ReplayUnreadable},
    store::{
        Seq,
        journal::{ArchiveTrust, ExportError, OfflineJournal},
    },
};
use volary_kernel::sign::PublicKey;

use crate::{
    codes,
    commands::journal::{database, node_key},
    error::CliError,
};

/// The journal of a state folder, read from its database. Works beside a running node.
pub fn offline(state: &Path) -> Result<Recording, CliError> {
    let (database, key) = (database(state)?, node_key(state)?.public());
    let unreadable = |error: &dyn std::error::Error| {
        CliError::new(codes::STATE, "the journal cannot be read").because(error)
    };
    let journal = OfflineJournal::open(&database, &key).map_err(|error| unreadable(&error))?;
    let node = journal.node().clone();
    let read = move |from, filter: &_, limit| journal.read(from, filter, limit);
    Ok(Recording::pages(node, Arc::new(read)))
}

/// Whose archives are accepted: the key that is named, else the node's own.
pub fn trust(state: &Path, key: Option<&PublicKey>) -> Result<ArchiveTrust, CliError> {
    match key {
        Some(key) => Ok(ArchiveTrust::Key(*key)),
        None => match node_key(state) {
            Ok(key) => Ok(ArchiveTrust::Key(key.public())),
            Err(error) => Err(error.hint(
                "name the key that has signed the archive with --key HEX: its first line states it",
            )),
        },
    }
}

/// Takes an archive into the state folder's imports.
pub fn import(state: &Path, path: &Path, trust: ArchiveTrust) -> Result<Imported, CliError> {
    Imports::new(state.join("imports"))
        .import(path, trust)
        .map_err(|error| match error {
            ImportError::Archive(error) => refused(path, &error),
            ImportError::Io { .. } => CliError::new(codes::READ, error.to_string()),
            other => CliError::new(codes::ARCHIVE, other.to_string()),
        })
}

/// An archive that is not accepted.
pub fn refused(path: &Path, error: &ExportError) -> CliError {
    let path = path.display();
    match error {
        ExportError::Io(why) => CliError::new(codes::READ, format!("{path}: {why}")),
        ExportError::WrongKey { found, .. } => CliError::new(
            codes::FOREIGN_KEY,
            format!("{path} is signed with another key than the one that is trusted"),
        )
        .because(error)
        .hint(format!(
            "if you know that key to be good, accept it with --key {found}"
        )),
        _ => {
            CliError::new(codes::ARCHIVE, format!("{path} is not as it was written")).because(error)
        }
    }
}

/// A failed replay, plan or export.
pub fn failure(path: Option<&Path>, error: &ReplayError) -> CliError {
    match (path, error) {
        (Some(path), ReplayError::Archive(error)) => refused(path, error),
        _ => CliError::new(codes::STATE, "the recorded messages cannot be read").because(error),
    }
}

/// The query as messaging takes it.
pub fn wanted(query: &ReplayQuery) -> Wanted {
    Wanted {
        direction: query.direction.map(|direction| match direction {
            ReplayDirection::Inbound => Direction::Inbound,
            ReplayDirection::Outbound => Direction::Outbound,
        }),
        agent: query.agent.clone(),
        tenant: query.tenant.clone(),
        trace: query.trace,
        from: query.from,
        to: query.to,
        from_seq: query.from_seq.map(Seq),
        to_seq: query.to_seq.map(Seq),
    }
}

/// A plan as the API tells it.
pub fn shown(plan: volary::messaging::ReplayPlan) -> ReplayPlan {
    let message = |planned: &PlannedMessage| ReplayMessage {
        seq: planned.seq.0,
        at: planned.at,
        direction: match planned.direction {
            Direction::Inbound => ReplayDirection::Inbound,
            Direction::Outbound => ReplayDirection::Outbound,
        },
        agent: planned.agent.clone(),
        id: planned.message.id(),
        sender: planned.message.sender().name().clone(),
        topics: planned
            .message
            .topics()
            .iter()
            .map(ToString::to_string)
            .collect(),
        tenant: planned.message.tenant().clone(),
        trace: planned.message.trace(),
        bytes: planned.message.body().len() as u64,
        idempotency_key: planned.idempotency_key(),
        sealed: planned.sealed.is_some(),
    };
    let unreadable = |gap: &volary::messaging::replay::Unreadable| ReplayUnreadable {
        seq: gap.seq.0,
        problem: gap.problem.clone(),
    };
    ReplayPlan {
        messages: plan.messages.iter().map(message).collect(),
        unreadable: plan.unreadable.iter().map(unreadable).collect(),
        next: plan.next.map(|seq| seq.0),
        missing_before: plan.missing_before.map(|seq| seq.0),
    }
}
