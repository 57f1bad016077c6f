//! Running a plan: stages, traces, time.
//!
//! ```text
//!   emit ─▶ gate (inbox + who waits) ─▶ stage: slots ─▶ gate ─▶ stage ─▶ trace cell ─▶ reader
//!              ▲ room                     │ outbox, when there is none
//!   index: traces by id, their deadlines  └─ timers: timeouts, back-off, joins        keeper: deadlines, expiry, blocked
//! ```

mod chunks;
mod control;
mod driver;
mod durable;
mod emit;
mod fuse;
mod gate;
mod here;
mod home;
mod inbox;
mod index;
mod joins;
mod keeper;
mod opener;
mod pauses;
mod pen;
mod places;
mod reader;
mod restore;
mod results;
mod room;
mod shared;
mod stop;
mod tenants;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod timers;
mod trace;
mod view;

use std::{future::poll_fn, sync::Arc, time::Duration};

use volary_kernel::{Name, Tenant, TraceId, task::TaskKind};

use self::{driver::Stage, here::Mark, home::FirstHome, shared::Shared, tenants::Tenants};
use crate::{
    config::RunConfig,
    envelope::{Headers, Meta},
    error::EmitError,
    graph::plan::{Payload, Plan},
    observe::{
        metrics::FlowMetrics,
        tap::{Observing, Setup},
    },
    outcome::{CancelReport, StopReport},
};

pub(crate) use self::{
    chunks::poll_chunk,
    control::pause,
    emit::{Later, Tried},
    here::caller,
    reader::{Keep, Read, Reader},
    trace::{Spot, Trace},
};
pub use self::{
    control::{Depths, NodeDepth},
    view::TraceView,
};

/// What is emitted, its type erased.
pub(crate) struct Accepted {
    pub payload: Payload,
    pub headers: Headers,
    pub trace_id: TraceId,
    pub deadline: Option<Duration>,
    pub meta: Meta,
    /// The trace whose node called this flow.
    pub parent: Option<Arc<Trace>>,
}

/// A plan that runs. Clones share it; when the last is dropped it stops at once.
#[derive(Clone)]
pub(crate) struct Engine {
    handle: Arc<Handle>,
    home: FirstHome,
}

struct Handle {
    shared: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.give_up();
        if let Some(Ok(durable)) = &self.shared.durable {
            durable.finish();
        }
        // Nobody can fetch any more; traces and the flow hold each other.
        self.shared.index.clear();
        // So do messages that were put into a queue after its stage had ended.
        self.shared.clear_queues();
    }
}

impl Engine {
    /// Runs a plan. To be called in a tokio runtime.
    pub(crate) fn start(plan: Arc<Plan>, config: RunConfig) -> Self {
        let (plan, durable) = durable::of(plan, &config);
        let groups = fuse::groups(&plan, config.fuse);
        let names: Vec<_> = plan.nodes.iter().map(|node| node.name.clone()).collect();
        let metrics = FlowMetrics::new(&config.metrics, &plan.name, &names, &config.metric_tenants);
        let tenants = Arc::<Tenants>::default();
        let named = tenants.clone();
        let setup = Setup::of(
            &plan,
            &config,
            Arc::new(move |serial| named.name(serial)),
            metrics.totals().events_dropped.clone(),
            metrics.totals().observer_panics.clone(),
        );
        let observing = Observing::start(setup, &config.supervisor);
        let shared = Shared::new(plan, &groups, &config, observing, metrics, tenants, durable);
        let shared = Arc::new(shared);
        if let Some(Ok(durable)) = &shared.durable {
            opener::start(&shared, durable, &config.supervisor);
        }
        for (at, nodes) in groups.iter().enumerate() {
            let mut stage = Stage::new(shared.clone(), at, nodes);
            let mut mark = Mark::new(shared.clone(), at);
            let run = async move {
                poll_fn(|cx| mark.within(|| stage.poll(cx))).await;
                Ok(())
            };
            config.supervisor.spawn(TaskKind::new("flow-stage"), run);
        }
        let token = config.supervisor.token();
        let keeper = keeper::keep(shared.clone(), token);
        let keeper = async move {
            keeper.await;
            Ok(())
        };
        config
            .supervisor
            .spawn(TaskKind::new("flow-keeper"), keeper);
        Self {
            handle: Arc::new(Handle { shared }),
            home: FirstHome::default(),
        }
    }

    /// Resolves when what earlier lives of a durable flow left is taken up.
    ///
    /// # Errors
    /// [`EmitError::Store`] if the flow cannot run, [`EmitError::Stopped`].
    pub(crate) async fn ready(&self) -> Result<(), EmitError> {
        match &self.handle.shared.durable {
            None => Ok(()),
            Some(Ok(durable)) => durable.ready().await,
            Some(Err(why)) => Err(EmitError::Store(why.clone())),
        }
    }

    /// Accepts an envelope once there is room. Cancel-safe: dropped means not accepted.
    ///
    /// # Errors
    /// When it was not accepted; nothing of it happened.
    pub(crate) async fn emit(&self, accepted: Accepted) -> Result<Reader, EmitError> {
        match self.try_emit(accepted, true)? {
            Tried::Accepted(reader) => Ok(reader),
            Tried::Later(later) => self.emit_later(later).await,
        }
    }

    /// The part of [`Engine::emit`] that needs no wait: what does not is spared to be moved into a future.
    ///
    /// # Errors
    /// As `emit`.
    pub(crate) fn try_emit(&self, accepted: Accepted, patient: bool) -> Result<Tried, EmitError> {
        let shared = &self.handle.shared;
        let home = self.home.of(shared, &accepted.headers.tenant);
        shared.try_emit(accepted, home, patient)
    }

    /// The rest of it. Cancel-safe, as `emit`.
    ///
    /// # Errors
    /// As `emit`.
    pub(crate) async fn emit_later(&self, later: Later) -> Result<Reader, EmitError> {
        self.handle.shared.emit_later(later).await
    }

    /// Accepts an envelope if there is room now.
    ///
    /// # Errors
    /// When it was not accepted; nothing of it happened.
    pub(crate) fn emit_nowait(&self, accepted: Accepted) -> Result<Reader, EmitError> {
        match self.try_emit(accepted, false)? {
            Tried::Accepted(reader) => Ok(reader),
            Tried::Later(Later::Place(_)) => Err(EmitError::Full),
            Tried::Later(Later::Disk(_)) => Err(EmitError::Store(
                "a durable flow accepts by emit, which waits for the store".to_owned(),
            )),
        }
    }

    /// A reader for a trace. None: unknown, of another tenant, expired, read already, or being read.
    pub(crate) fn fetch(&self, trace: TraceId, tenant: &Tenant) -> Option<Reader> {
        let trace = self.find(trace, tenant)?;
        reader::attach(trace)
    }

    /// Ends a trace as cancelled.
    pub(crate) fn cancel(&self, trace: TraceId, tenant: &Tenant) -> CancelReport {
        let found = self.find(trace, tenant);
        found.map_or_else(CancelReport::default, |trace| control::cancel(&trace))
    }

    /// Holds what of a trace is not running yet. False if there is no such trace, or it is paused already.
    pub(crate) fn pause(&self, trace: TraceId, tenant: &Tenant) -> bool {
        self.find(trace, tenant).is_some_and(|trace| pause(&trace))
    }

    /// Lets a paused trace go on. False if there is no such trace, or it is not paused.
    pub(crate) fn resume(&self, trace: TraceId, tenant: &Tenant) -> bool {
        let found = self.find(trace, tenant);
        found.is_some_and(|trace| control::resume(&trace))
    }

    /// The oldest traces that live.
    pub(crate) fn traces(&self, most: usize) -> Vec<TraceView> {
        self.handle.shared.traces(most)
    }

    /// What waits and runs where.
    pub(crate) fn depths(&self) -> Depths {
        self.handle.shared.depths()
    }

    /// Nodes that hold their thread for too long, and for how long.
    pub(crate) fn blocked(&self) -> Vec<(Name, Duration)> {
        self.handle.shared.blocked()
    }

    /// Stops: accepts nothing, drains for up to `limit`, then ends the rest as dropped.
    pub(crate) async fn stop(&self, limit: Duration) -> StopReport {
        self.handle.shared.stop(limit).await
    }

    fn find(&self, trace: TraceId, tenant: &Tenant) -> Option<Arc<Trace>> {
        let trace = self.handle.shared.index.get(trace)?;
        (trace.headers.tenant == *tenant).then_some(trace)
    }
}
