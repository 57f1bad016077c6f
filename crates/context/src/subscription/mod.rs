//! Who wants to hear of which changes.

mod criteria;
mod index;
mod predicate;

use std::sync::Arc;

use volary_kernel::{Name, Tenant};

pub use self::{
    criteria::{Criteria, CriteriaError, DEPTH_MAX, PARTS_MAX},
    index::{IndexConfig, SubscriptionError, SubscriptionIndex},
    predicate::{Anchor, Predicate},
};

/// One agent's wish to hear of some changes.
#[derive(Debug, Clone)]
#[doc(alias = "PageSubscription")]
pub struct Subscription {
    /// Unique on the node and the same after a restart, for example `<agent>/<number>`: 1 to 128 bytes.
    pub id: Arc<str>,
    /// Who is told.
    pub agent: Name,
    /// Only pages of this tenant are ever matched.
    pub tenant: Tenant,
    /// Which changes.
    pub predicate: Predicate,
}

impl Subscription {
    /// A subscription from its written form.
    ///
    /// # Errors
    /// [`CriteriaError`] when the criteria make no sense.
    pub fn new(
        id: impl Into<Arc<str>>,
        agent: Name,
        tenant: Tenant,
        criteria: &Criteria,
    ) -> Result<Self, CriteriaError> {
        Ok(Self {
            id: id.into(),
            agent,
            tenant,
            predicate: Predicate::new(criteria)?,
        })
    }
}
