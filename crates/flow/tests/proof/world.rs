//! What nodes of a random graph tell while they run, and what is checked at each of their steps.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;
use volary_flow::{Context, NodeError, graph::RunningFlow};
use volary_kernel::clock;

use crate::{
    act::{End, Item, act},
    spec::Spec,
    support::{WANTED, tenant, trace},
};

/// The running flow of a random graph.
pub type Running = RunningFlow<Item, Item>;

/// What nodes share.
pub struct World {
    pub spec: Spec,
    /// The flow itself, so that its gauges are read from within its nodes.
    pub flow: OnceLock<Running>,
    /// The flow that sub-flow nodes call.
    pub child: OnceLock<Running>,
    busy: Vec<AtomicUsize>,
    /// Traces whose end was read.
    ended: Mutex<HashSet<u64>>,
    /// Attempts made and whether one returned, by key of the step.
    steps: Mutex<HashMap<String, (u32, bool)>>,
    wrong: Mutex<Vec<String>>,
}

/// An attempt that runs.
struct Busy<'a>(&'a AtomicUsize);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl World {
    pub fn new(spec: Spec) -> Arc<Self> {
        let busy = spec.nodes.iter().map(|_| AtomicUsize::new(0)).collect();
        Arc::new(Self {
            spec,
            flow: OnceLock::new(),
            child: OnceLock::new(),
            busy,
            ended: Mutex::default(),
            steps: Mutex::default(),
            wrong: Mutex::default(),
        })
    }

    /// Notes that a rule was broken.
    pub fn wrong(&self, what: String) {
        let mut wrong = self.wrong.lock();
        if wrong.len() < 20 {
            wrong.push(what);
        }
    }

    /// All that was noted.
    pub fn all_wrong(&self) -> Vec<String> {
        self.wrong.lock().clone()
    }

    /// The end of a trace was read: nothing of it runs any more.
    pub fn ended(&self, number: u64) {
        self.ended.lock().insert(number);
    }

    /// Reads the gauges and holds them against the bounds.
    pub fn check_bounds(&self) {
        let Some(flow) = self.flow.get() else { return };
        let depths = flow.depths();
        if depths.traces > self.spec.live {
            self.wrong(format!("{} traces at once", depths.traces));
        }
        let cycles = self.spec.nodes.iter().any(|node| node.back.is_some());
        let strict = !cycles && !self.spec.pauses;
        for (at, node) in self.spec.nodes.iter().enumerate() {
            let name = Spec::name(at);
            let Some(depth) = depths
                .nodes
                .iter()
                .find(|depth| depth.node.as_str() == name)
            else {
                self.wrong(format!("no gauge of {name}"));
                continue;
            };
            if !node.kind.is_join() && depth.running > node.concurrency {
                self.wrong(format!("{} attempts of {name} at once", depth.running));
            }
            let ingress = usize::from(at < self.spec.ingress);
            let leads = self
                .spec
                .nodes
                .iter()
                .filter(|from| from.next.contains(&at));
            let edges = leads.count() + ingress;
            // Of each tenant: a message gives its place up when its attempt begins, and comes back when it is tried again.
            let again = if node.retries > 0 {
                node.concurrency
            } else {
                0
            };
            let most = (edges * node.queue + again) * crate::spec::TENANTS.len();
            // What goes round, or is resumed, goes past the bounds: it was admitted before.
            if strict && !node.kind.is_join() && depth.queued > most {
                self.wrong(format!("{} wait for {name}, of {most}", depth.queued));
            }
        }
    }

    /// One attempt of a node that is neither router nor join.
    pub async fn attempt(
        &self,
        node: usize,
        item: &Item,
        context: &Context,
    ) -> Result<End, NodeError> {
        let _busy = self.enter(node, item, context);
        let attempt = context.attempt();
        let act = act(&self.spec, node, item, attempt);
        for _ in 0..act.chunks {
            context.chunk("piece").await?;
        }
        if !act.delay.is_zero() {
            clock::sleep(act.delay).await;
        }
        self.check_bounds();
        match act.end {
            End::Error => Err(NodeError::retryable(WANTED)),
            End::Permanent => Err(NodeError::permanent(WANTED)),
            End::Panic => panic!("{WANTED}"),
            end => {
                self.returned(&context.idempotency_key());
                Ok(end)
            }
        }
    }

    fn enter(&self, node: usize, item: &Item, context: &Context) -> Busy<'_> {
        let busy = self.busy[node].fetch_add(1, Ordering::SeqCst) + 1;
        let most = self.spec.nodes[node].concurrency;
        if busy > most {
            self.wrong(format!("{busy} attempts of n{node} at once, of {most}"));
        }
        self.check_bounds();
        let number = item.trace;
        if self.ended.lock().contains(&number) {
            self.wrong(format!("n{node} ran for trace {number} after its end"));
        }
        let wanted = usize::try_from(number).ok();
        let wanted = wanted.and_then(|at| self.spec.traces.get(at));
        if wanted.is_none_or(|wanted| *context.tenant() != tenant(wanted.tenant)) {
            self.wrong(format!("trace {number} is of {}", context.tenant()));
        }
        if context.trace_id() != trace(number) || context.node().as_str() != Spec::name(node) {
            self.wrong(format!("an item of trace {number} in {context:?}"));
        }
        self.began(&context.idempotency_key(), context.attempt());
        Busy(&self.busy[node])
    }

    /// Attempts of a step are counted without gaps, and none follows one that returned.
    fn began(&self, key: &str, attempt: u32) {
        let mut steps = self.steps.lock();
        let (made, returned) = steps.entry(key.to_owned()).or_default();
        *made += 1;
        let (made, returned) = (*made, *returned);
        drop(steps);
        if made != attempt {
            self.wrong(format!("attempt {attempt} of {key} is its {made}th"));
        }
        if returned {
            self.wrong(format!("{key} ran again after it returned"));
        }
    }

    fn returned(&self, key: &str) {
        if let Some(step) = self.steps.lock().get_mut(key) {
            step.1 = true;
        }
    }
}
