//! Pins: who still needs the journal from where. Retention keeps what is behind a pin.

use crate::{
    batch::{Batch, Expect},
    entry::Seq,
    error::StoreError,
    key::{Key, Record},
};

pub(crate) const PINS: &str = "store.pin/";

fn key(name: &str) -> Result<Key, StoreError> {
    Key::new(format!("{PINS}{name}"))
}

impl Batch {
    /// Keeps journal entries from `from` on, until `name` is pinned elsewhere or unpinned: for a cursor that lives on
    /// the journal. A pin that never moves ends in [`StoreError::Full`] for everybody.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] for a name no key can hold.
    pub fn pin(&mut self, name: &str, from: Seq) -> Result<&mut Self, StoreError> {
        Ok(self.put(key(name)?, from.0.to_string(), Expect::Any))
    }

    /// Ends a pin.
    ///
    /// # Errors
    /// As [`Batch::pin`].
    pub fn unpin(&mut self, name: &str) -> Result<&mut Self, StoreError> {
        Ok(self.delete(key(name)?, Expect::Any))
    }
}

/// Where a pin is.
#[cfg(feature = "sqlite")]
pub(crate) fn read(record: &Record) -> Result<Seq, StoreError> {
    let number = std::str::from_utf8(&record.value)
        .ok()
        .and_then(|text| text.parse().ok());
    number
        .map(Seq)
        .ok_or_else(|| StoreError::corrupt(format!("record `{}` is no pin", record.key), None))
}
