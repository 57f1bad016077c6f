//! Looking at the pages that have come to rest, and telling what follows from it.

use std::{sync::Arc, time::Duration};

use volary_kernel::Timestamp;

use super::{
    settle::Ripe,
    table::{EXCLUDED, Seen, Verdict},
    worker::{Outside, Worker},
};
use crate::{
    page::{ChangeKind, ContentHash, Extra, reason},
    path,
    source::{BATCH_MAX, Notice, PageProblem, PageState, SourceChange, SourceError, SourceItem},
};

/// Page problems remembered so that each is reported once.
const MAX_REPORTED: usize = 1024;
/// Unreadable pages that are tried again every second; others wait for the next rescan.
const MAX_RETRIED: usize = 1024;

impl Worker {
    pub fn look_at_ripe(&mut self, out: &Outside<'_>) -> Result<(), SourceError> {
        loop {
            let ripe = self.settle.take_due(self.now(), BATCH_MAX);
            let last = ripe.len() < BATCH_MAX;
            for ripe in ripe {
                self.look_at(&ripe, out)?;
            }
            self.flush(out)?;
            out.beat();
            // More than one batch: new hints come first, or the operating system's queue may run over.
            if last || self.hints.is_closed() {
                return Ok(());
            }
            let gathered = self.hints.wait(Duration::ZERO);
            self.take_hints(gathered, out)?;
        }
    }

    /// Looks at one page and notes what there is to tell.
    pub fn look_at(&mut self, ripe: &Ripe, out: &Outside<'_>) -> Result<(), SourceError> {
        if self.secrets.contains(ripe.path.as_bytes()) {
            return self.problem(&ripe.path, &ripe.path, PageProblem::SecretName, out);
        }
        let Some((seen, bytes)) = self.see(ripe, out)? else {
            return Ok(());
        };
        let previous = self.table.get(&ripe.path).map(|entry| entry.hash);
        match self.table.take(&ripe.path, seen, self.scan) {
            Verdict::Nothing => Ok(()),
            Verdict::NoRoom => {
                let limit = self.config.max_pages;
                self.problem(&ripe.path, "", PageProblem::NoRoom { limit }, out)
            }
            Verdict::Restamped => {
                let state = self.state_of(&ripe.path, previous);
                self.remember(state, out)
            }
            Verdict::Changed(kind) => self.changed(ripe, kind, previous, bytes, out),
        }
    }

    /// What is there; `None` if it has to be looked at again later.
    fn see(&mut self, ripe: &Ripe, out: &Outside<'_>) -> Result<Option<(Seen, u64)>, SourceError> {
        if !self.filter.takes(&ripe.path) {
            return Ok(Some((EXCLUDED, 0)));
        }
        let Some(root) = &self.root else {
            return Ok(Some((Seen::Gone(reason::DELETED), 0)));
        };
        let known = self.table.get(&ripe.path).map(|entry| entry.stamp);
        let limit = self.config.max_file_bytes;
        let look = root.look(
            &ripe.path,
            known.as_ref(),
            limit,
            self.clock.wall(),
            &mut self.buffer,
        );
        match look {
            Ok(look) if !look.steady && self.settle.again(ripe, self.now()) => Ok(None),
            Ok(look) => {
                if look.seen == Seen::Gone(reason::TOO_LARGE) {
                    let problem = PageProblem::TooLarge {
                        bytes: look.bytes,
                        limit,
                    };
                    self.problem(&ripe.path, &ripe.path, problem, out)?;
                } else if !self.reported.is_empty() {
                    self.reported.remove(&(ripe.path.clone(), "too_large"));
                    self.reported.remove(&(ripe.path.clone(), "unreadable"));
                }
                Ok(Some((look.seen, look.bytes)))
            }
            Err(error) => {
                self.problem(
                    &ripe.path,
                    &ripe.path,
                    PageProblem::Unreadable(error.to_string()),
                    out,
                )?;
                if self.retried.len() < MAX_RETRIED {
                    self.retried.push(ripe.path.clone());
                }
                Ok(None)
            }
        }
    }

    fn changed(
        &mut self,
        ripe: &Ripe,
        kind: ChangeKind,
        previous: Option<ContentHash>,
        bytes: u64,
        out: &Outside<'_>,
    ) -> Result<(), SourceError> {
        if kind == ChangeKind::Added && path::is_escaped(&ripe.path) {
            self.problem(&ripe.path, &ripe.path, PageProblem::EscapedName, out)?;
        }
        if matches!(kind, ChangeKind::Invalidated { .. }) {
            self.reported.remove(&("".into(), "no_room"));
        }
        let state = self.state_of(&ripe.path, previous);
        if self.baseline {
            return self.remember(state, out);
        }
        self.cursor = self.cursor.next();
        let entry = self.table.get(&ripe.path);
        let effective_at = entry.map(|entry| Timestamp::from_micros(entry.stamp.modified / 1000));
        let mut extra = Extra {
            relative_path: Some(ripe.path.clone()),
            effective_at,
            ..Extra::default()
        };
        let file = path::file_path(&ripe.path);
        if let Some(file) = self.config.root.join(file).to_str() {
            extra.other.insert("file".into(), file.into());
        }
        if entry.is_some() {
            extra.other.insert("bytes".into(), bytes.into());
        }
        let settled_for = self.now() - ripe.first;
        let change = SourceChange {
            cursor: self.cursor,
            kind,
            state,
            previous,
            extra,
            settled_for,
        };
        self.tell(change, out)
    }

    fn state_of(&self, path: &Arc<str>, previous: Option<ContentHash>) -> PageState {
        let entry = self.table.get(path);
        PageState {
            path: path.clone(),
            data_type: self.config.data_type.clone(),
            version: entry.map_or(0, |entry| entry.version),
            content_hash: entry
                .map(|entry| entry.hash)
                .or(previous)
                .unwrap_or_else(|| ContentHash::of(b"")),
            metadata: std::collections::BTreeMap::new(),
            links: Vec::new(),
            stamp: entry.map_or_else(|| "".into(), |entry| entry.stamp.to_string().into()),
        }
    }

    /// Reports a problem, once for each `key` while it lasts.
    pub fn problem(
        &mut self,
        path: &Arc<str>,
        key: &str,
        problem: PageProblem,
        out: &Outside<'_>,
    ) -> Result<(), SourceError> {
        let key = (Arc::from(key), problem.code());
        if self.reported.len() >= MAX_REPORTED || !self.reported.insert(key) {
            return Ok(());
        }
        let path = self.secrets.redact(path).into();
        out.notice(Notice::Page { path, problem })
    }

    // --- sending ---------------------------------------------------------------------------------

    /// Puts a state in line. States and changes are never in line together: a state must not overtake a change.
    fn remember(&mut self, state: PageState, out: &Outside<'_>) -> Result<(), SourceError> {
        if !self.changes.is_empty() || self.states.len() >= BATCH_MAX {
            self.flush(out)?;
        }
        self.states.push(state);
        Ok(())
    }

    fn tell(&mut self, change: SourceChange, out: &Outside<'_>) -> Result<(), SourceError> {
        if !self.states.is_empty() || self.changes.len() >= BATCH_MAX {
            self.flush(out)?;
        }
        self.changes.push(change);
        Ok(())
    }

    /// Sends what is in line.
    pub fn flush(&mut self, out: &Outside<'_>) -> Result<(), SourceError> {
        if !self.changes.is_empty() {
            out.send(SourceItem::Changes(std::mem::take(&mut self.changes)))?;
        }
        if !self.states.is_empty() {
            out.send(SourceItem::States(std::mem::take(&mut self.states)))?;
        }
        Ok(())
    }
}
