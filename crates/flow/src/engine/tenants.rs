//! Short numbers for tenants, given back when nothing of a tenant lives.

use std::{collections::VecDeque, sync::Arc};

use hashbrown::HashMap;
use parking_lot::RwLock;
use volary_kernel::Tenant;

use crate::observe::metrics::TenantLabel;

/// So many are kept before those without a live trace are forgotten.
const KEPT: usize = 1024;
/// Names of so many forgotten ones are kept for events that are still to be told.
const REMEMBERED: usize = 4096;

/// What stands for a tenant: its own while anybody holds its row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Numbers {
    /// Its number, given on when nobody holds the row.
    pub ix: u32,
    /// Its name in events, never given on.
    pub serial: u32,
    /// What it counts as.
    pub label: TenantLabel,
}

/// A tenant and what stands for it.
#[derive(Debug)]
pub(crate) struct Row {
    pub tenant: Tenant,
    pub numbers: Numbers,
}

#[derive(Default)]
struct Table {
    of: HashMap<Tenant, Arc<Row>>,
    /// By serial, those forgotten lately included.
    names: HashMap<u32, Tenant>,
    forgotten: VecDeque<u32>,
    serial: u32,
    /// Highest number ever given, plus one.
    used: u32,
    free: Vec<u32>,
    collect_at: usize,
}

/// Numbers of tenants.
#[derive(Default)]
pub(crate) struct Tenants(RwLock<Table>);

impl Tenants {
    /// The row of a tenant; `label` is asked what a new one counts as.
    pub(crate) fn enter(
        &self,
        tenant: &Tenant,
        label: impl FnOnce(&Tenant) -> TenantLabel,
    ) -> Arc<Row> {
        if let Some(row) = self.0.read().of.get(tenant) {
            return row.clone();
        }
        self.0.write().open(tenant, label)
    }

    /// The tenant of a serial, if it was not forgotten long ago.
    pub(crate) fn name(&self, serial: u32) -> Option<Tenant> {
        self.0.read().names.get(&serial).cloned()
    }
}

impl Table {
    fn open(&mut self, tenant: &Tenant, label: impl FnOnce(&Tenant) -> TenantLabel) -> Arc<Row> {
        if let Some(row) = self.of.get(tenant) {
            return row.clone();
        }
        if self.of.len() >= self.collect_at.max(KEPT) {
            self.collect();
        }
        let ix = self.free.pop().unwrap_or_else(|| {
            self.used += 1;
            self.used - 1
        });
        self.serial = self.serial.wrapping_add(1);
        let numbers = Numbers {
            ix,
            serial: self.serial,
            label: label(tenant),
        };
        self.names.insert(numbers.serial, tenant.clone());
        let row = Arc::new(Row {
            tenant: tenant.clone(),
            numbers,
        });
        self.of.insert(row.tenant.clone(), row.clone());
        row
    }

    /// Forgets tenants that nobody holds. Nobody can take hold meanwhile: the table is locked for writing.
    fn collect(&mut self) {
        let Self {
            of,
            free,
            forgotten,
            ..
        } = self;
        of.retain(|_, row| {
            let held = Arc::strong_count(row) > 1;
            if !held {
                free.push(row.numbers.ix);
                forgotten.push_back(row.numbers.serial);
            }
            held
        });
        while self.forgotten.len() > REMEMBERED {
            if let Some(serial) = self.forgotten.pop_front() {
                self.names.remove(&serial);
            }
        }
        self.collect_at = self.of.len() * 2;
    }
}

#[cfg(test)]
mod tests {
    use volary_kernel::metric::Metrics;

    use super::*;
    use crate::observe::metrics::FlowMetrics;

    fn tenant(n: usize) -> Tenant {
        format!("t{n}").parse().unwrap()
    }

    #[test]
    fn a_number_is_kept_while_its_tenant_lives_and_given_back_then() {
        let metrics = FlowMetrics::new(&Metrics::default(), &"flow".parse().unwrap(), &[], &[]);
        let tenants = Tenants::default();
        let first = tenants.enter(&tenant(0), |t| metrics.label(t));
        for n in 1..KEPT * 20 {
            let row = tenants.enter(&tenant(n), |t| metrics.label(t));
            assert!(row.numbers.ix == n as u32 || n >= KEPT);
        }
        assert!(tenants.0.read().names.len() <= KEPT + 1 + REMEMBERED);
        assert_eq!(tenants.name(first.numbers.serial), Some(tenant(0)));
        let again = tenants.enter(&tenant(0), |t| metrics.label(t));
        assert_eq!(again.numbers.ix, first.numbers.ix);
        assert!(tenants.0.read().used <= KEPT as u32 + 1);
    }
}
