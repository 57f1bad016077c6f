//! Finding files: the whole tree at start, after lost notifications and at intervals; one directory when it appears.

use std::sync::Arc;

use super::{
    root::Item,
    settle::{Motion, Ripe},
    watch::WatchError,
    worker::{Outside, Worker},
};
use crate::{
    path,
    source::{PageProblem, SourceError},
};

/// What happens to a file that a walk finds changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    /// It is looked at now.
    Now,
    /// It rests first: a writer may be at work.
    Rest,
}

impl Worker {
    /// Looks at the whole tree and at every known page, without rest.
    pub fn look_at_everything_now(&mut self, out: &Outside<'_>) -> Result<(), SourceError> {
        self.scan = self.scan.wrapping_add(1);
        self.walk("", Found::Now, out)?;
        for path in self.unmet() {
            let first = self.now();
            self.look_at(&Ripe { path, first }, out)?;
        }
        self.flush(out)
    }

    /// Walks the whole tree and marks what may have changed.
    pub fn mark_everything_changed(&mut self, out: &Outside<'_>) -> Result<(), SourceError> {
        self.scan = self.scan.wrapping_add(1);
        self.walk("", Found::Rest, out)?;
        for path in self.unmet() {
            self.mark(&path, Motion::Moving);
        }
        Ok(())
    }

    /// Marks every known page: the root is gone.
    pub fn mark_known(&mut self) {
        let known: Vec<Arc<str>> = self.table.under("").map(|(path, _)| path.clone()).collect();
        for path in known {
            self.mark(&path, Motion::Moving);
        }
    }

    /// Something came, went or was moved at `page`, perhaps a directory.
    pub fn restructure(
        &mut self,
        page: &str,
        motion: Motion,
        out: &Outside<'_>,
    ) -> Result<(), SourceError> {
        let below: Vec<Arc<str>> = self
            .table
            .under(page)
            .map(|(path, _)| path.clone())
            .collect();
        for path in below {
            self.mark(&path, Motion::Moving);
        }
        self.mark(page, motion);
        let entered = path::ancestors(page).all(|part| self.filter.enters(part));
        if entered
            && self
                .root
                .as_ref()
                .is_some_and(|root| root.is_directory(page))
        {
            self.walk(page, Found::Rest, out)?;
        }
        Ok(())
    }

    /// Known pages that the current scan did not come by.
    fn unmet(&self) -> Vec<Arc<str>> {
        let all = self.table.under("");
        all.filter(|(_, entry)| entry.met != self.scan)
            .map(|(path, _)| path.clone())
            .collect()
    }

    /// Goes through a directory and all below it; each is watched before it is listed.
    fn walk(&mut self, start: &str, found: Found, out: &Outside<'_>) -> Result<(), SourceError> {
        let mut stack = vec![start.to_owned()];
        while let Some(directory) = stack.pop() {
            if self.hints.is_closed() {
                return Ok(());
            }
            out.beat();
            self.watch_directory(&directory, out)?;
            let Some(root) = &self.root else {
                return Ok(());
            };
            match root.list(&directory, self.wall()) {
                Ok(items) => self.take_items(items, &mut stack, found, out)?,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => self.keep_unreadable(&directory, &error, out)?,
            }
        }
        Ok(())
    }

    fn watch_directory(&mut self, directory: &str, out: &Outside<'_>) -> Result<(), SourceError> {
        let (Some(watches), Some(root)) = (&mut self.watches, &self.root) else {
            return Ok(());
        };
        match watches.add(&root.file(directory)) {
            Ok(()) | Err(WatchError::Vanished) => Ok(()),
            Err(limit @ WatchError::Limit(_)) => self.fall_back(limit, out),
            Err(WatchError::Other(problem)) => self.problem(
                &directory.into(),
                directory,
                PageProblem::Unreadable(problem),
                out,
            ),
        }
    }

    fn take_items(
        &mut self,
        mut items: Vec<Item>,
        stack: &mut Vec<String>,
        found: Found,
        out: &Outside<'_>,
    ) -> Result<(), SourceError> {
        // In order, so that changes and their records come in the order of paths.
        items.sort_unstable_by(|a, b| b.path.cmp(&a.path));
        while let Some(item) = items.pop() {
            if !item.directory {
                self.take_file(&item, found, out)?;
            } else if self.filter.enters(&item.path) {
                stack.push(item.path);
            }
        }
        Ok(())
    }

    fn take_file(
        &mut self,
        item: &Item,
        found: Found,
        out: &Outside<'_>,
    ) -> Result<(), SourceError> {
        let known = self.table.get(&item.path).map(|entry| entry.stamp);
        let same = known
            .zip(item.stamp)
            .is_some_and(|(known, now)| known.proves_same(&now));
        if same && self.filter.takes(&item.path) {
            self.table.meet(&item.path, self.scan);
        } else if found == Found::Now {
            if self.filter.takes(&item.path) {
                let first = self.now();
                self.look_at(
                    &Ripe {
                        path: item.path.as_str().into(),
                        first,
                    },
                    out,
                )?;
            }
        } else {
            self.table.meet(&item.path, self.scan);
            self.mark(&item.path, Motion::Moving);
        }
        Ok(())
    }

    /// What cannot be listed is not gone: the pages below it stay as they were last seen.
    fn keep_unreadable(
        &mut self,
        directory: &str,
        error: &std::io::Error,
        out: &Outside<'_>,
    ) -> Result<(), SourceError> {
        let below: Vec<Arc<str>> = self
            .table
            .under(directory)
            .map(|(path, _)| path.clone())
            .collect();
        for path in below {
            self.table.meet(&path, self.scan);
        }
        self.problem(
            &directory.into(),
            directory,
            PageProblem::Unreadable(error.to_string()),
            out,
        )
    }
}
