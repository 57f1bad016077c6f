//! A node at its stage: whether it may run one more, what it gives back, where its attempts live.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use hashbrown::HashMap;

use super::{
    super::{
        gate::{Freed, Gate},
        shared::{Shared, Signal, StageShared},
        trace::Trace,
    },
    Job, NodeRun, Run, contained,
    run::Doing,
    sample::Sampling,
};
use crate::{
    context,
    graph::plan::{NodeIx, Payload, Returned, Work},
    policy::guard::Guards,
};

/// Tells the stage which run was woken.
pub(super) struct RunWake {
    stage: Arc<StageShared>,
    local: u16,
    run: u32,
    pub(super) told: AtomicBool,
}

impl Wake for RunWake {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.told.swap(true, Ordering::AcqRel) {
            let (local, run) = (self.local, self.run);
            self.stage.signal(Signal::Ready { local, run });
        }
    }
}

impl NodeRun {
    pub(super) fn new(shared: &Arc<Shared>, ix: NodeIx, behind: Option<NodeIx>) -> Self {
        let plan = &shared.plan.nodes[usize::from(ix)];
        let straight = match shared.node(ix).routes.as_slice() {
            [route] if !route.back => route.to.filter(|(to, _)| Some(*to) == behind),
            _ => None,
        };
        let guarded = plan.policy.breaker.is_some() || plan.policy.max_retries > 0;
        Self {
            ix,
            work: match &plan.work {
                Work::Call(call) => Job::Call(call.clone()),
                Work::Join(join) => Job::Join(join.clone()),
            },
            sampling: Sampling::default(),
            runs: Vec::new(),
            free: Vec::new(),
            active: 0,
            taken: VecDeque::new(),
            batch: 1,
            releases: Vec::new(),
            outbox: HashMap::new(),
            waiting: 0,
            backing_off: 0,
            guards: guarded.then(|| Guards::new(&plan.policy)),
            is_ingress: shared.node(ix).ingress,
            straight: straight.map(|(_, edge)| edge),
            policy: plan.policy.clone(),
        }
    }

    /// Whether its attempts need nothing but to be run: no breaker to ask, no input to keep.
    pub(super) const fn is_plain(&self) -> bool {
        self.guards.is_none() && matches!(self.work, Job::Call(_))
    }

    /// Whether one more attempt may run.
    pub(super) fn has_room(&self) -> bool {
        self.active < self.policy.concurrency.max(1)
    }

    /// Has a place given back the next time this is at its gate.
    pub(super) fn release(&mut self, tenant: u32, edge: u16) {
        match self.releases.last_mut() {
            Some((of, on, places)) if (*of, *on) == (tenant, edge) => *places += 1,
            _ => self.releases.push((tenant, edge, 1)),
        }
    }

    pub(super) fn release_at(&mut self, gate: &mut Gate, freed: &mut Freed) {
        for (tenant, edge, places) in self.releases.drain(..) {
            let ingress = self.is_ingress == Some(edge);
            gate.release(tenant, edge, places, ingress, freed);
        }
    }

    /// Starts an attempt in the run that is spare, and polls it once.
    #[inline]
    pub(super) fn start(
        &mut self,
        stage: &Arc<StageShared>,
        local: usize,
        trace: &Arc<Trace>,
        payload: Payload,
        step: u64,
        attempt: u32,
    ) -> Result<Poll<Returned>, String> {
        stage.set_busy_with(self.ix);
        let run = self.spare(stage, local);
        let place = &mut self.runs[run as usize];
        let Job::Call(call) = &self.work else {
            return Err("a join is no code".to_owned());
        };
        let slot = place.slot.get_or_insert_with(|| call.clone().slot());
        contained(|| {
            let context = context::Context::new(trace.clone(), self.ix, attempt, step);
            slot.start(payload, context, &mut Context::from_waker(&place.waker))
        })
    }

    /// Takes a free run: the one that was spare before.
    pub(super) fn open(&mut self, stage: &Arc<StageShared>, local: usize) -> u32 {
        let run = self.spare(stage, local);
        self.free.pop();
        run
    }

    /// The free run that is next, which stays free: an attempt that is ready at once has nothing to keep in it.
    #[inline]
    pub(super) fn spare(&mut self, stage: &Arc<StageShared>, local: usize) -> u32 {
        match self.free.last() {
            Some(run) => *run,
            None => self.add_run(stage, local),
        }
    }

    #[cold]
    fn add_run(&mut self, stage: &Arc<StageShared>, local: usize) -> u32 {
        let run = u32::try_from(self.runs.len()).unwrap_or(u32::MAX);
        let wake = Arc::new(RunWake {
            stage: stage.clone(),
            local: u16::try_from(local).unwrap_or(u16::MAX),
            run,
            told: AtomicBool::new(false),
        });
        self.runs.push(Run {
            slot: None,
            waker: Waker::from(wake.clone()),
            wake,
            doing: Doing::Nothing,
        });
        self.free.push(run);
        run
    }
}
