//! What others hold of the service: orders in, the state of all replicas and their events out.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, mpsc, oneshot, watch};
use volary_kernel::clock;
use volary_kernel::id::Name;

use super::lifecycle::{Input, State};
use super::status::ReplicaStatus;
use super::{DrainReport, SuperviseError};
use crate::backend::ReplicaId;
use crate::event::Event;

/// Whom an order is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// All replicas of an agent.
    Agent(Name),
    /// One replica, by its name `agent-0`.
    Replica(String),
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Wish {
    Start,
    Stop,
    Restart,
}

pub(super) enum Ask {
    Wish(
        Target,
        Wish,
        oneshot::Sender<Result<Vec<String>, SuperviseError>>,
    ),
    Drain(Duration, oneshot::Sender<DrainReport>),
}

/// Talks to the service; cheap to clone.
#[derive(Clone)]
pub struct Handle {
    pub(super) orders: mpsc::Sender<Ask>,
    pub(super) shown: watch::Receiver<Arc<Vec<ReplicaStatus>>>,
    pub(super) events: broadcast::Sender<Event>,
}

/// Events from now on.
pub struct EventStream(broadcast::Receiver<Event>);

/// What a reader of events gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Feed {
    /// Something happened.
    Event(Event),
    /// The reader was too slow: so many events were dropped for it.
    Lagged(u64),
}

impl EventStream {
    /// The next event; `None` when the service has ended. Cancel-safe.
    pub async fn next(&mut self) -> Option<Feed> {
        match self.0.recv().await {
            Ok(event) => Some(Feed::Event(event)),
            Err(broadcast::error::RecvError::Lagged(count)) => Some(Feed::Lagged(count)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

// ---- handle ---------------------------------------------------------------------------------------------

impl Handle {
    /// All replicas as they are now, in the order of the fleet.
    pub fn replicas(&self) -> Arc<Vec<ReplicaStatus>> {
        self.shown.borrow().clone()
    }

    /// Events from now on, at most once each; the last 4096 wait for a slow reader.
    pub fn subscribe(&self) -> EventStream {
        EventStream(self.events.subscribe())
    }

    /// Starts what is not running, past failures forgotten. Returns when the wish is taken.
    ///
    /// # Errors
    /// [`SuperviseError::Unknown`], [`SuperviseError::Closed`].
    pub async fn start(&self, target: Target) -> Result<(), SuperviseError> {
        self.wish(target, Wish::Start).await.map(drop)
    }

    /// Ends replicas, which then stay ended. Returns when they have; dropping it changes nothing.
    ///
    /// # Errors
    /// [`SuperviseError::Unknown`], [`SuperviseError::Closed`].
    pub async fn stop(&self, target: Target) -> Result<(), SuperviseError> {
        let names = self.wish(target, Wish::Stop).await?;
        let mut shown = self.shown.clone();
        let at_rest =
            |status: &ReplicaStatus| !names.contains(&status.replica) || status.state.is_at_rest();
        let waited = shown.wait_for(|all| all.iter().all(at_rest)).await;
        waited.map(drop).map_err(|_| SuperviseError::Closed)
    }

    /// Ends replicas and starts them again. Returns when the wish is taken.
    ///
    /// # Errors
    /// [`SuperviseError::Unknown`], [`SuperviseError::Closed`].
    pub async fn restart(&self, target: Target) -> Result<(), SuperviseError> {
        self.wish(target, Wish::Restart).await.map(drop)
    }

    /// Waits until every replica is ready, or rests because its work is complete. Fails at once when one is given
    /// up or in a crash loop.
    ///
    /// # Errors
    /// [`SuperviseError::NotReady`] with each replica's state and reason.
    pub async fn wait_all_ready(&self, deadline: Duration) -> Result<(), SuperviseError> {
        let mut shown = self.shown.clone();
        let settled = |all: &Arc<Vec<ReplicaStatus>>| {
            let lost = |status: &ReplicaStatus| {
                matches!(status.state, State::Failed | State::CrashLoop { .. })
            };
            all.iter().all(is_fine) || all.iter().any(lost)
        };
        let waited = clock::timeout(deadline, shown.wait_for(settled))
            .await
            .map(|now| now.map(drop));
        if let Ok(Err(_)) = waited {
            return Err(SuperviseError::Closed);
        }
        let all = self.replicas();
        let waiting: Vec<_> = all
            .iter()
            .filter(|status| !is_fine(status))
            .map(ReplicaStatus::describe)
            .collect();
        if waiting.is_empty() {
            Ok(())
        } else {
            Err(SuperviseError::NotReady { waiting })
        }
    }

    /// Ends everything, dependents first, within `deadline`; the service ends with it.
    pub async fn drain(&self, deadline: Duration) -> DrainReport {
        let (tell, told) = oneshot::channel();
        if self.orders.send(Ask::Drain(deadline, tell)).await.is_err() {
            return DrainReport::default();
        }
        told.await.unwrap_or_default()
    }

    /// Each replica that is not ready, with its state and reason; those whose work is complete are not among them.
    pub fn not_ready(&self) -> Vec<String> {
        let all = self.replicas();
        all.iter()
            .filter(|status| !is_fine(status))
            .map(ReplicaStatus::describe)
            .collect()
    }

    /// Told of every change of what [`Handle::replicas`] shows.
    pub fn watch(&self) -> watch::Receiver<Arc<Vec<ReplicaStatus>>> {
        self.shown.clone()
    }

    async fn wish(&self, target: Target, wish: Wish) -> Result<Vec<String>, SuperviseError> {
        let (tell, told) = oneshot::channel();
        let sent = self.orders.send(Ask::Wish(target, wish, tell)).await;
        sent.map_err(|_| SuperviseError::Closed)?;
        told.await.map_err(|_| SuperviseError::Closed)?
    }
}

fn is_fine(status: &ReplicaStatus) -> bool {
    status.ready
        || (status.state == State::Stopped && status.reason.as_deref() == Some("completed"))
}

impl Target {
    pub(super) fn is(&self, id: &ReplicaId) -> bool {
        match self {
            Self::Agent(name) => id.agent == *name,
            Self::Replica(name) => id.to_string() == *name,
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Agent(name) => name.fmt(f),
            Self::Replica(name) => f.write_str(name),
        }
    }
}

impl From<Wish> for Input {
    fn from(wish: Wish) -> Self {
        match wish {
            Wish::Start => Self::Start,
            Wish::Stop => Self::Stop,
            Wish::Restart => Self::Restart,
        }
    }
}
