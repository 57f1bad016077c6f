//! What operators ask of the processes that run flows, and what those answer: see decision 18.
//!
//! An order waits here until its process asks for it, and its asker until the answer comes. A process that ends takes its desk
//! with it: whoever waits learns it at once.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use volary_kernel::{Name, Tenant, clock};
use volary_ops::api::{FlowAnswer, FlowAsk, FlowOrder, FlowSaid};

/// Most orders of one run that are not answered.
const ORDERS_MAX: usize = 32;

/// The desks of all runs, by replica.
#[derive(Default)]
pub(super) struct Desks(Mutex<State>);

#[derive(Default)]
struct State {
    desks: BTreeMap<Name, Desk>,
    number: u64,
}

struct Desk {
    run: String,
    /// Orders that its process has not asked for.
    waiting: VecDeque<FlowOrder>,
    /// Who waits for which answer.
    asked: BTreeMap<u64, oneshot::Sender<FlowSaid>>,
    arrived: Arc<Notify>,
}

impl Desks {
    /// Opens the desk of a run; that of the replica's run before is gone.
    pub(super) fn open(&self, replica: &Name, run: &str) {
        let desk = Desk {
            run: run.to_owned(),
            waiting: VecDeque::new(),
            asked: BTreeMap::new(),
            arrived: Arc::default(),
        };
        let before = self.0.lock().desks.insert(replica.clone(), desk);
        if let Some(before) = before {
            before.arrived.notify_waiters();
        }
    }

    /// Removes the desks of all replicas but those.
    pub(super) fn keep(&self, alive: impl Fn(&Name) -> bool) {
        self.0.lock().desks.retain(|replica, desk| {
            let stays = alive(replica);
            if !stays {
                desk.arrived.notify_waiters();
            }
            stays
        });
    }

    /// Asks a process. None if it is gone, or does not work off what it was asked.
    pub(super) fn ask(
        &self,
        replica: &Name,
        tenant: Tenant,
        ask: FlowAsk,
    ) -> Option<oneshot::Receiver<FlowSaid>> {
        let mut state = self.0.lock();
        let State { desks, number } = &mut *state;
        let desk = desks.get_mut(replica)?;
        desk.forget();
        if desk.asked.len() >= ORDERS_MAX {
            return None;
        }
        *number += 1;
        let id = *number;
        let (answer, answered) = oneshot::channel();
        desk.asked.insert(id, answer);
        desk.waiting.push_back(FlowOrder { id, tenant, ask });
        desk.arrived.notify_one();
        Some(answered)
    }

    /// Takes answers of a run in. False if the run has ended.
    pub(super) fn answer(&self, replica: &Name, run: &str, answers: Vec<FlowAnswer>) -> bool {
        let mut state = self.0.lock();
        let desk = state.desks.get_mut(replica);
        let Some(desk) = desk.filter(|desk| desk.run == run) else {
            return false;
        };
        for FlowAnswer { id, said } in answers {
            if let Some(asker) = desk.asked.remove(&id) {
                // Whoever asked may have given up.
                let _nobody_waits = asker.send(said);
            }
        }
        true
    }

    /// The next orders of a run, once there are any or `wait` is over. None if the run has ended.
    pub(super) async fn orders(
        &self,
        replica: &Name,
        run: &str,
        wait: Duration,
    ) -> Option<Vec<FlowOrder>> {
        let arrived = {
            let state = self.0.lock();
            let desk = state.desks.get(replica)?;
            (desk.run == run).then(|| desk.arrived.clone())?
        };
        let orders = async {
            loop {
                let told = arrived.notified();
                let orders = self.take(replica, run)?;
                if !orders.is_empty() {
                    return Some(orders);
                }
                told.await;
            }
        };
        clock::timeout(wait, orders)
            .await
            .unwrap_or_else(|_| self.take(replica, run))
    }

    fn take(&self, replica: &Name, run: &str) -> Option<Vec<FlowOrder>> {
        let mut state = self.0.lock();
        let desk = state.desks.get_mut(replica)?;
        if desk.run != run {
            return None;
        }
        desk.forget();
        Some(desk.waiting.drain(..).collect())
    }
}

impl Desk {
    /// Forgets what nobody waits for any more.
    fn forget(&mut self) {
        self.asked.retain(|_, asker| !asker.is_closed());
        let asked = &self.asked;
        self.waiting.retain(|order| asked.contains_key(&order.id));
    }
}

#[cfg(test)]
mod tests {
    use volary_kernel::TraceId;
    use volary_ops::api::FlowAct;

    use super::*;

    const WAIT: Duration = Duration::from_secs(20);

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn cancel() -> FlowAsk {
        FlowAsk::Act {
            act: FlowAct::Cancel,
            trace: TraceId::generate(),
        }
    }

    fn refused() -> FlowSaid {
        FlowSaid::Refused {
            why: "it has ended".to_owned(),
        }
    }

    fn desks() -> Desks {
        let desks = Desks::default();
        desks.open(&name("desk-0"), "1");
        desks
    }

    fn ask(desks: &Desks) -> Option<oneshot::Receiver<FlowSaid>> {
        desks.ask(&name("desk-0"), Tenant::default(), cancel())
    }

    #[tokio::test(start_paused = true)]
    async fn an_order_is_handed_out_once_and_its_answer_reaches_who_asked() {
        let desks = desks();
        let replica = name("desk-0");
        let asked = async {
            let answered = ask(&desks).unwrap();
            answered.await.unwrap()
        };
        let serves = async {
            let orders = desks.orders(&replica, "1", WAIT).await.unwrap();
            assert_eq!((orders.len(), orders[0].tenant.as_str()), (1, "default"));
            let id = orders[0].id;
            let said = refused();
            assert!(desks.answer(&replica, "1", vec![FlowAnswer { id, said }]));
            desks.orders(&replica, "1", WAIT).await.unwrap()
        };
        let (again, said) = tokio::join!(serves, asked);
        assert_eq!((again, said), (vec![], refused()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_that_ended_is_told_so_and_so_is_who_waits_for_it() {
        let desks = desks();
        let replica = name("desk-0");
        let first = ask(&desks).unwrap();
        assert_eq!(desks.orders(&replica, "1", WAIT).await.unwrap().len(), 1);
        let ends = async { desks.open(&replica, "2") };
        let (polled, ()) = tokio::join!(desks.orders(&replica, "1", WAIT), ends);
        assert_eq!(polled, None, "another registration took its place");
        assert!(first.await.is_err());
        assert!(!desks.answer(&replica, "1", vec![]));

        let second = ask(&desks).unwrap();
        desks.keep(|_| false);
        assert!(second.await.is_err(), "its process is gone");
        assert!(ask(&desks).is_none());
        assert_eq!(desks.orders(&replica, "2", WAIT).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn orders_are_bounded_and_those_that_nobody_waits_for_are_not_handed_out() {
        let desks = desks();
        let asked: Vec<_> = (0..ORDERS_MAX).map(|_| ask(&desks).unwrap()).collect();
        assert!(ask(&desks).is_none(), "it does not listen");
        drop(asked);
        let one = ask(&desks).unwrap();
        let orders = desks.orders(&name("desk-0"), "1", WAIT).await.unwrap();
        assert_eq!(orders.len(), 1);
        drop(one);
    }
}
