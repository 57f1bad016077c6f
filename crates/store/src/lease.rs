//! A lease: at most one holder at a time, over any store, with a fencing epoch.
//!
//! The lease is a record with a time to live. Taking it expects the record absent; holding on to it expects the
//! version written last. Its epoch grows with every new holder, so that work done under an old lease can be refused:
//! [`Lease::fence`] lets a batch apply only while the lease is held.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use volary_kernel::clock::Timestamp;

use crate::{
    batch::{Batch, Expect},
    error::StoreError,
    key::Key,
    store::SharedStore,
};

/// A lease was not got, or is lost.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LeaseError {
    /// Somebody has it.
    #[error("lease `{name}` is held by `{holder}` until {until}")]
    Held {
        /// The lease.
        name: String,
        /// Who has it.
        holder: String,
        /// When it lapses unless renewed.
        until: Timestamp,
    },
    /// It lapsed, and somebody else may have it.
    #[error("lease `{0}` was lost")]
    Lost(String),
    /// The store refused or failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[derive(Serialize, Deserialize)]
struct Body {
    v: u8,
    holder: String,
    /// Absent in the first record of a holder, whose version is the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    epoch: Option<u64>,
}

/// A lease that is held. Dropping it does not release it: it lapses.
pub struct Lease {
    store: SharedStore,
    name: String,
    key: Key,
    holder: String,
    ttl: Duration,
    epoch: u64,
    version: u64,
    until: Timestamp,
}

impl Lease {
    /// Takes the lease `name` for `ttl`.
    ///
    /// # Errors
    /// [`LeaseError::Held`]; errors of the store.
    pub async fn acquire(
        store: SharedStore,
        name: &str,
        holder: &str,
        ttl: Duration,
    ) -> Result<Self, LeaseError> {
        let key = Key::new(format!("lease/{name}"))?;
        let until = store.clock().wall() + ttl;
        let mut tx = Batch::new();
        tx.put_ttl(key.clone(), body(holder, None)?, Expect::Absent, ttl);
        match store.commit(tx).await {
            Ok(committed) => {
                let version = committed.version;
                let (name, holder) = (name.to_owned(), holder.to_owned());
                Ok(Self {
                    store,
                    name,
                    key,
                    holder,
                    ttl,
                    epoch: version,
                    version,
                    until,
                })
            }
            Err(StoreError::Conflict { .. }) => Err(held(&store, name, &key).await?),
            Err(error) => Err(error.into()),
        }
    }

    /// Holds it for another `ttl` from now.
    ///
    /// # Errors
    /// [`LeaseError::Lost`] if it had lapsed; errors of the store, after which it may have been renewed or not.
    pub async fn renew(&mut self) -> Result<(), LeaseError> {
        let until = self.store.clock().wall() + self.ttl;
        let mut tx = Batch::new();
        let body = body(&self.holder, Some(self.epoch))?;
        tx.put_ttl(
            self.key.clone(),
            body,
            Expect::Version(self.version),
            self.ttl,
        );
        self.version = self.commit(tx).await?;
        self.until = until;
        Ok(())
    }

    /// Gives it back.
    ///
    /// # Errors
    /// [`LeaseError::Lost`] if it had lapsed; errors of the store.
    pub async fn release(self) -> Result<(), LeaseError> {
        let mut tx = Batch::new();
        tx.delete(self.key.clone(), Expect::Version(self.version));
        self.commit(tx).await.map(drop)
    }

    async fn commit(&self, tx: Batch) -> Result<u64, LeaseError> {
        match self.store.commit(tx).await {
            Ok(committed) => Ok(committed.version),
            Err(StoreError::Conflict { .. }) => Err(LeaseError::Lost(self.name.clone())),
            Err(error) => Err(error.into()),
        }
    }

    /// Lets `tx` apply only while this lease is held (and not renewed in between).
    pub fn fence(&self, tx: &mut Batch) {
        tx.check(self.key.clone(), Expect::Version(self.version));
    }

    /// Grows with every holder; stays the same through renewals.
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// When it lapses unless renewed, by the wall clock.
    pub const fn until(&self) -> Timestamp {
        self.until
    }
}

fn body(holder: &str, epoch: Option<u64>) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(&Body {
        v: 1,
        holder: holder.into(),
        epoch,
    })
    .map_err(|error| StoreError::invalid(format!("lease holder is not JSON: {error}")))
}

/// Who has the lease, as an error.
async fn held(store: &SharedStore, name: &str, key: &Key) -> Result<LeaseError, StoreError> {
    let record = store.get(key).await?;
    let body = record
        .as_ref()
        .and_then(|record| serde_json::from_slice::<Body>(&record.value).ok());
    Ok(LeaseError::Held {
        name: name.into(),
        holder: body.map_or_else(|| "somebody".into(), |body| body.holder),
        until: record
            .and_then(|record| record.expires)
            .unwrap_or_else(|| store.clock().wall()),
    })
}
