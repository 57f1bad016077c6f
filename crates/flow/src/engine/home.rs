//! What the traces that are emitted by one handle have in common: their flow, and their tenant.
//!
//! Each trace holds it instead of both, and each handle has its own: a count that all callers of a flow change would go from
//! core to core with every trace.

use std::sync::{Arc, OnceLock};

use volary_kernel::Tenant;

use super::{shared::Shared, tenants::Row};

/// A flow and a tenant of it.
pub(crate) struct Home {
    pub shared: Arc<Shared>,
    pub row: Arc<Row>,
}

impl Home {
    /// A home of its own, for what is emitted by no handle.
    pub(super) fn new(shared: &Arc<Shared>, tenant: &Tenant) -> Arc<Self> {
        let label = |tenant: &Tenant| shared.metrics.label(tenant);
        Arc::new(Self {
            shared: shared.clone(),
            row: shared.tenants.enter(tenant, label),
        })
    }
}

/// The home of the first tenant that a handle emits for: most emit for one. A copy of a handle that has emitted shares it.
#[derive(Clone, Default)]
pub(super) struct FirstHome(OnceLock<Arc<Home>>);

impl FirstHome {
    pub(super) fn of(&self, shared: &Arc<Shared>, tenant: &Tenant) -> Arc<Home> {
        let first = self.0.get_or_init(|| Home::new(shared, tenant));
        if first.row.tenant == *tenant {
            return first.clone();
        }
        Home::new(shared, tenant)
    }
}
