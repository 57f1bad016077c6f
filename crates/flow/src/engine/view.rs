//! Which traces live and where they are: looked at, never held up.

use std::time::Duration;

use hashbrown::HashMap;
use volary_kernel::{Name, Tenant, TraceId};

use super::shared::Shared;
use crate::graph::plan::NodeIx;

/// A trace that lives, as it was at about this moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceView {
    /// The trace.
    pub trace_id: TraceId,
    /// Whose.
    pub tenant: Tenant,
    /// Since it was accepted.
    pub age: Duration,
    /// What is left of its deadline.
    pub remaining: Option<Duration>,
    /// Whether it is paused: what runs goes on, nothing more begins.
    pub paused: bool,
    /// Messages of it, wherever they are.
    pub messages: usize,
    /// Nodes at which it waits or runs, in the order of the graph. None while it is on its way.
    pub nodes: Vec<Name>,
}

impl Shared {
    /// The oldest traces that live, at most so many.
    pub(crate) fn traces(&self, most: usize) -> Vec<TraceView> {
        let mut live = self.index.all();
        live.retain(|trace| !trace.has_ended());
        live.sort_by_key(|trace| (trace.accepted, trace.id));
        live.truncate(most);
        let mut at: HashMap<TraceId, Vec<NodeIx>> =
            live.iter().map(|trace| (trace.id, Vec::new())).collect();
        for (node, ix) in self.nodes.iter().zip(0..) {
            node.gate(|gate| {
                for msg in gate.inbox.iter() {
                    if let Some(nodes) = at.get_mut(&msg.trace.id) {
                        nodes.push(ix);
                    }
                }
            });
        }
        let now = self.now();
        let view = |trace: std::sync::Arc<super::Trace>| {
            let mut nodes = at.remove(&trace.id).unwrap_or_default();
            nodes.extend(trace.cell.lock().nodes());
            nodes.sort_unstable();
            nodes.dedup();
            let name = |ix: NodeIx| self.plan.nodes[usize::from(ix)].name.clone();
            TraceView {
                trace_id: trace.id,
                tenant: trace.headers.tenant.clone(),
                age: now - trace.accepted,
                remaining: trace.deadline.map(|deadline| deadline - now),
                paused: trace.is_paused(),
                messages: trace.counts().pending as usize,
                nodes: nodes.into_iter().map(name).collect(),
            }
        };
        live.into_iter().map(view).collect()
    }
}
