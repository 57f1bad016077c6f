//! Reading the journal of a database that no node has to run on: for plans and exports. Changes nothing.

use std::path::Path;

use parking_lot::Mutex;
use volary_kernel::{Name, sign::PublicKey};

use crate::{
    entry::{Filter, JournalPage, Seq},
    error::StoreError,
    sqlite::{open::find_state, reader, schema::View},
};

/// A journal opened to be looked at. Works beside a running node too; sees what was committed when it reads.
///
/// It does not compare the entries with the signed head: [`super::verify`] does.
pub struct OfflineJournal {
    node: Name,
    view: Mutex<View>,
}

impl std::fmt::Debug for OfflineJournal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OfflineJournal")
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

impl OfflineJournal {
    /// Opens the database of the node with this key. Blocks.
    ///
    /// # Errors
    /// [`StoreError::Io`] when it cannot be read, [`StoreError::Corrupt`] when it is no journal of that node.
    pub fn open(database: &Path, key: &PublicKey) -> Result<Self, StoreError> {
        let view = View::of(database)?;
        let found = find_state(view.conn(), "", key)?;
        let node =
            Name::new(&found.node).map_err(|error| StoreError::corrupt(error.to_string(), None))?;
        Ok(Self {
            node,
            view: Mutex::new(view),
        })
    }

    /// Whose journal.
    pub const fn node(&self) -> &Name {
        &self.node
    }

    /// A page, as [`crate::Store::read`] gives it. Blocks.
    ///
    /// # Errors
    /// As [`crate::Store::read`].
    pub fn read(
        &self,
        from: Seq,
        filter: &Filter,
        limit: usize,
    ) -> Result<JournalPage, StoreError> {
        reader::journal(self.view.lock().conn(), &self.node, from, filter, limit)
    }
}
