//! A running node: what is started in which order, and how it stops.
//!
//! ```text
//! start:  queues ─▶ ops ─▶ links ─▶ journal bridges ─▶ replicas ─▶ handlers ─▶ sources
//! stop:   not ready ─▶ listener ─▶ sources ─▶ handlers finish ─▶ replicas, dependents first ─▶ couriers ─▶ links
//!         ─▶ ops ─▶ queues ─▶ store
//! ```
//! The link API stays up until the replicas are gone, so that they can acknowledge what they finish. What is not
//! finished in time is killed; it was never acknowledged, so it comes again after the next start.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use serde_json::{Value, json};
use volary_deploy::supervise::SuperviseError;
use volary_kernel::{
    clock,
    ready::Latch,
    retry::Backoff,
    task::{Supervisor, TaskKind},
};
use volary_ops::{OpsHandle, api::ReplicaView};
use volary_store::{Batch, Entry, SharedStore, SqliteStore};

use crate::{
    bridge::{directory, handler, lifecycle},
    build::{self, Built, Tasks},
    config::NodeConfig,
    core::Core,
    error::NodeError,
    neighbours::{self, Neighbours},
    state::{NodeCard, NodeLock, StateDir},
    webhook,
};

/// Longest silence of a loop of the node before `/health` says so.
const LOOP_SILENCE: Duration = Duration::from_secs(3);

/// How long the parts that hold no work may take to end.
const SHORT: Duration = Duration::from_secs(5);

/// How long a node may take to stop before what is left is killed. Kubernetes gives a pod 30 s in all.
pub const DEFAULT_STOP: Duration = Duration::from_secs(25);

/// A running node. Dropping it without [`Node::stop`] kills its replicas and loses nothing that was acknowledged.
pub struct Node {
    core: Arc<Core>,
    state: StateDir,
    ops: OpsHandle,
    address: SocketAddr,
    tasks: Tasks,
    database: Option<SqliteStore>,
    _lock: NodeLock,
}

/// What a stop left behind.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StopReport {
    /// What did not end in time and was killed, in words. Empty is a clean stop.
    pub left: Vec<String>,
}

impl StopReport {
    /// Whether everything ended by itself.
    pub fn is_clean(&self) -> bool {
        self.left.is_empty()
    }
}

impl Node {
    /// Builds and starts a node. Returns when the ops server listens; replicas are still starting.
    ///
    /// # Errors
    /// [`NodeError`]; nothing is left running then.
    pub async fn start(config: NodeConfig) -> Result<Self, NodeError> {
        let Built {
            core,
            state,
            lock,
            ops,
            service,
            handlers,
            sources,
            tasks,
            database,
            pulse,
        } = build::build(config).await?;
        let handle = ops.handle();
        let address = handle
            .address()
            .ok_or_else(|| NodeError::Fleet("the ops server has no address".to_owned()))?;
        let node = Self {
            core,
            state,
            ops: handle,
            address,
            tasks,
            database,
            _lock: lock,
        };
        let Self { core, tasks, .. } = &node;
        // Before anybody can ask: a node with nothing to wait for yet is not a ready one.
        let replicas_ready = core.readiness.latch("replicas");

        let (queues, token) = (core.queues.clone(), tasks.base.token());
        tasks
            .base
            .spawn(TaskKind::new("queues").vital(), async move {
                queues.run(token).await;
                Ok(())
            });
        let beating = pulse.run(tasks.base.token());
        tasks.base.spawn(TaskKind::new("store-pulse"), beating);
        let own = tasks.ops.clone();
        tasks
            .ops
            .spawn(TaskKind::new("ops-server").vital(), async move {
                ops.run(own).await?;
                Ok(())
            });
        node.card().write(&node.state)?;
        node.journal(
            "node.started",
            json!({"version": crate::VERSION, "fleet": core.fleet.name}),
        )
        .await?;

        let post = &core.settler.post;
        core.neighbours
            .start(post, &core.readiness, (&tasks.couriers, &tasks.links))
            .await?;
        node.watch_links().await?;

        let beat = core.readiness.heartbeat("replica-journal", LOOP_SILENCE);
        let record = lifecycle::record(
            core.replicas.subscribe(),
            core.store.clone(),
            core.fleet.tenant.clone(),
            (beat, tasks.base.token()),
        );
        tasks
            .base
            .spawn(TaskKind::new("replica-journal").vital(), record);
        let (token, beat) = (
            tasks.replicas.token(),
            core.readiness.heartbeat("replicas", LOOP_SILENCE),
        );
        tasks
            .replicas
            .spawn(TaskKind::new("replicas").vital(), async move {
                beat.while_waiting(service.run(token)).await;
                beat.retire();
                Ok(())
            });
        for (agent, workers) in handlers {
            for (index, replica) in workers.into_iter().enumerate() {
                node.spawn_worker(&agent, index, replica);
            }
        }
        node.spawn_sinks();
        node.follow_replicas();
        for source in sources {
            let place = build::place(&node.core.fleet.tenant);
            node.core
                .context
                .map(source, place)
                .map_err(|error| NodeError::Fleet(error.to_string()))?;
        }
        node.watch_readiness(replicas_ready);
        Ok(node)
    }

    /// Says what waits for peers that are not in the manifest any more: nothing carries it, until they are there again.
    async fn tell_stranded(&self) -> Result<(), NodeError> {
        for (peer, items) in self.core.stranded() {
            tracing::warn!(
                peer,
                items,
                "messages wait for a peer that is not in messaging.peers any more: they go out once it is there again"
            );
            self.journal("peer.stranded", json!({"peer": peer, "items": items}))
                .await?;
        }
        Ok(())
    }

    /// The workers that post to other systems.
    fn spawn_sinks(&self) {
        for outbox in &self.core.webhooks.sinks {
            for index in 0..outbox.workers {
                let (outbox, readiness, stop) = (
                    outbox.clone(),
                    self.core.readiness.clone(),
                    self.tasks.work.token(),
                );
                let name = format!("webhook {} {index}", outbox.name);
                let kind = TaskKind::new("webhook").restart(Backoff::default());
                self.tasks.work.spawn_restarting(kind, move || {
                    let beat = readiness.heartbeat(name.clone(), LOOP_SILENCE);
                    webhook::work(outbox.clone(), name.clone(), beat, stop.clone())
                });
            }
        }
    }

    fn spawn_worker(
        &self,
        agent: &Arc<handler::HandlerAgent>,
        index: usize,
        replica: volary_deploy::backend::ReplicaId,
    ) {
        let (agent, readiness, stop) = (
            agent.clone(),
            self.core.readiness.clone(),
            self.tasks.work.token(),
        );
        let name = format!("handler {} {index}", replica.agent);
        let kind = TaskKind::new("handler").restart(Backoff::default());
        self.tasks.work.spawn_restarting(kind, move || {
            let beat = readiness.heartbeat(name.clone(), LOOP_SILENCE);
            handler::work(agent.clone(), replica.clone(), beat, stop.clone())
        });
    }

    /// Beats for the loops that send to peers and take from them, as long as none of them has died; and says anew who
    /// our agents are before that runs out.
    async fn watch_links(&self) -> Result<(), NodeError> {
        self.tell_stranded().await?;
        if !self.core.neighbours.any() {
            return Ok(());
        }
        let (core, base) = (self.core.clone(), &self.tasks.base);
        let clock = core.clock.clone();
        base.spawn(
            TaskKind::new("introduction"),
            Neighbours::renew(clock, move || core.introduce(), base.token()),
        );
        let beat = self.core.readiness.heartbeat("links", LOOP_SILENCE);
        let loops = neighbours::Loops::of([&self.tasks.couriers, &self.tasks.links]);
        base.spawn(TaskKind::new("link-pulse"), loops.run(beat, base.token()));
        Ok(())
    }

    /// What follows the replicas: the directory of agents, and the flows, which end with their process.
    fn follow_replicas(&self) {
        let replicas = &self.tasks.replicas;
        let directory = directory::run(self.core.clone(), replicas.token());
        replicas.spawn(TaskKind::new("directory"), directory);
        let (core, stop) = (self.core.clone(), self.tasks.base.token());
        self.tasks.base.spawn(TaskKind::new("flows"), async move {
            core.flows.follow(core.replicas.clone(), stop).await
        });
    }

    /// Keeps the latch `replicas`: ready once every replica is.
    fn watch_readiness(&self, latch: Latch) {
        let (core, token) = (self.core.clone(), self.tasks.base.token());
        self.tasks
            .base
            .spawn(TaskKind::new("readiness").abort(), async move {
                let mut seen = core.replicas.watch();
                loop {
                    let waiting: Vec<String> = core.replicas.not_ready();
                    if waiting.is_empty() {
                        latch.set_ready();
                    } else {
                        latch.set_not_ready(waiting.join("; "));
                    }
                    let changed = token.run_until_cancelled(seen.changed()).await;
                    if !matches!(changed, Some(Ok(()))) {
                        latch.set_not_ready("stopping");
                        return Ok(());
                    }
                }
            });
    }

    /// Address of the ops server.
    pub const fn ops_addr(&self) -> SocketAddr {
        self.address
    }

    /// A URL of the live feed with the operator token in it: for the operator's own terminal.
    pub fn events_url(&self) -> String {
        format!(
            "http://{}/events?token={}",
            self.address,
            self.ops.operator_token().expose()
        )
    }

    /// The state directory.
    pub fn state_dir(&self) -> &Path {
        self.state.root()
    }

    /// The store, for who embeds a node.
    pub fn store(&self) -> &SharedStore {
        &self.core.store
    }

    /// The replicas as they are now.
    pub fn replicas(&self) -> Vec<ReplicaView> {
        self.core.replica_views()
    }

    /// What is not ready yet, in words; empty when everything is.
    pub fn not_ready(&self) -> Vec<String> {
        let report = self.core.readiness.ready();
        report
            .checks
            .into_iter()
            .filter_map(|check| {
                check
                    .reason
                    .map(|reason| format!("{}: {reason}", check.name))
            })
            .collect()
    }

    /// Waits until everything is ready, at most `deadline`. Cancel-safe.
    ///
    /// # Errors
    /// [`SuperviseError::NotReady`] with what is not, at once when a replica was given up.
    pub async fn wait_ready(&self, deadline: Duration) -> Result<(), SuperviseError> {
        let until = self.core.clock.mono() + deadline;
        self.core.replicas.wait_all_ready(deadline).await?;
        while !self.core.readiness.ready().ok {
            if self.core.clock.mono() >= until {
                return Err(SuperviseError::NotReady {
                    waiting: self.not_ready(),
                });
            }
            clock::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Resolves with the reason when somebody asked the node to stop, or a part that it cannot do without has failed.
    /// Cancel-safe.
    pub async fn shutdown_requested(&self) -> String {
        let Tasks {
            context,
            work,
            couriers,
            links,
            replicas,
            backend,
            ops,
            base,
        } = &self.tasks;
        let all = [context, work, couriers, links, replicas, backend, ops, base]
            .map(|tasks| Box::pin(tasks.shutdown_requested()));
        futures_util::future::select_all(all).await.0
    }

    /// Stops everything within about `deadline`, or sooner if who asked for the stop gave less time, and says what had
    /// to be killed.
    pub async fn stop(self, deadline: Duration) -> StopReport {
        let mut report = StopReport::default();
        let asked = *self.core.stop_within.lock();
        let deadline = asked.map_or(deadline, |asked| asked.min(deadline));
        self.core.readiness.latch("node").set_not_ready("stopping");
        let _journal_may_be_full = self.journal("node.stopping", json!({})).await;
        self.core.neighbours.close_listener().await;
        drain(&self.tasks.context, SHORT, &mut report).await;
        drain(&self.tasks.work, deadline / 2, &mut report).await;
        let left = self.core.replicas.drain(deadline / 2).await.left;
        report
            .left
            .extend(left.into_iter().map(|replica| format!("replica {replica}")));
        drain(&self.tasks.replicas, SHORT, &mut report).await;
        drain(&self.tasks.couriers, SHORT, &mut report).await;
        self.core.neighbours.close_links().await;
        drain(&self.tasks.links, SHORT, &mut report).await;
        self.core.backend.close().await;
        drain(&self.tasks.backend, SHORT, &mut report).await;
        self.core.stopping.cancel();
        drain(
            &self.tasks.ops,
            volary_ops::DEFAULT_DRAIN + SHORT,
            &mut report,
        )
        .await;
        let _journal_may_be_full = self
            .journal("node.stopped", json!({"left": report.left}))
            .await;
        drain(&self.tasks.base, SHORT, &mut report).await;
        if let Some(database) = &self.database {
            database.close().await;
        }
        let _already_gone = std::fs::remove_file(self.state.card());
        report
    }

    fn card(&self) -> NodeCard {
        NodeCard {
            pid: std::process::id(),
            ops: self.address,
            link: self.state.link_socket(),
            fleet: self.core.fleet.name.to_string(),
            source: self.core.fleet.file.clone(),
            started_at: self.core.started_at,
            version: crate::VERSION.to_owned(),
        }
    }

    async fn journal(&self, kind: &'static str, mut body: Value) -> Result<(), NodeError> {
        if let Some(body) = body.as_object_mut() {
            body.insert("v".to_owned(), json!(1));
        }
        let mut tx = Batch::new();
        tx.append(Entry::new(
            kind,
            self.core.fleet.tenant.clone(),
            Bytes::from(body.to_string()),
        ));
        self.core.store.commit(tx).await?;
        Ok(())
    }
}

async fn drain(tasks: &Supervisor, deadline: Duration, report: &mut StopReport) {
    let drained = tasks.drain(deadline).await;
    report.left.extend(
        drained
            .aborted
            .into_iter()
            .map(|(kind, count)| format!("{count} {kind}")),
    );
}
