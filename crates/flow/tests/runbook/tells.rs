//! Logs that tell too much.

use std::{io, sync::Arc};

use parking_lot::Mutex;
use volary_flow::{
    Envelope, NodeError,
    observe::{Logging, configure_logging, log_flow_events},
    policy::NodePolicy,
    state::DurableConfig,
};
use volary_kernel::{
    SystemClock,
    secret::{Redactor, Secret},
};
use volary_store::{Queues, SharedStore};

use crate::{
    desk::{ANN, Desk, single},
    store::memory,
    support::{config, of, soon, tenant, trace, until},
};

const CANARY: &str = "canary-1234";

/// Lines that were logged.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Lines {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().clone()).unwrap()
    }

    /// The logging of a program, with lines that go here.
    fn logging(&self) -> Logging<impl Fn() -> Self + Send + Sync + 'static> {
        let lines = self.clone();
        configure_logging()
            .structured(true)
            .writer(move || lines.clone())
    }
}

fn knows_the_canary() -> Redactor {
    let redactor = Redactor::default();
    redactor.add(&Secret::new(CANARY)).unwrap();
    redactor
}

/// What is logged, and what observers are told, of a trace whose node says what it should not.
async fn told_of_failure(redactor: Option<Redactor>) -> (String, String) {
    let lines = Lines::default();
    let _installed = tracing::subscriber::set_default(lines.logging().subscriber());
    let flow = single(NodePolicy::default(), |_, _| async move {
        Err(NodeError::permanent(format!("card {CANARY} was refused")))
    });
    let desk = Desk::start_with(&flow, |config| config.redactor = redactor);
    desk.outcome(of(ANN, 1).trace(trace(1))).await;
    desk.seen.whole(trace(1)).await;
    let events = desk.seen.of(trace(1));
    volary_flow::observe::Observer::observe(&log_flow_events(), &events);
    (lines.text(), format!("{events:?}"))
}

#[tokio::test(start_paused = true)]
async fn an_error_text_tells_a_secret() {
    let (logged, shown) = told_of_failure(None).await;
    assert!(logged.contains(CANARY), "{logged}");
    assert!(shown.contains(CANARY), "{shown}");

    // The secret is declared, and the flow has a redactor that knows it.
    let (logged, shown) = told_of_failure(Some(knows_the_canary())).await;
    for text in [logged, shown] {
        assert!(text.contains("card [redacted] was refused"), "{text}");
        assert!(!text.contains(CANARY), "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_logs_its_payload() {
    let logged = async |logging: fn(&Lines) -> Box<dyn tracing::Subscriber + Send + Sync>| {
        let lines = Lines::default();
        let _installed = tracing::subscriber::set_default(logging(&lines));
        let flow = single(NodePolicy::default(), |n, _| async move {
            tracing::info!(payload = CANARY, n, "charged");
            Ok(n)
        });
        let desk = Desk::start(&flow);
        assert!(desk.outcome(of(ANN, 1)).await.is_done());
        lines.text()
    };
    let all = logged(|lines| Box::new(lines.logging().redact_fields(false).subscriber())).await;
    assert!(all.contains(CANARY), "{all}");

    // As it is unless it is told otherwise: fields that are named like a payload or a secret are hidden, in JSON.
    let hidden = logged(|lines| Box::new(lines.logging().subscriber())).await;
    assert!(!hidden.contains(CANARY), "{hidden}");
    let line: serde_json::Value = serde_json::from_str(hidden.lines().next().unwrap()).unwrap();
    assert_eq!(
        (&line["message"], &line["extra"]["n"]),
        (&"charged".into(), &1.into())
    );
}

/// Whether the canary stands in the store while a durable trace with this fact about it is under way.
async fn is_stored(fact: &str) -> bool {
    let store: SharedStore = memory(SystemClock::shared());
    let queues = Queues::open(store.clone()).await.unwrap();
    let mut b = volary_flow::FlowBuilder::new("desk");
    let runs = Arc::new(Mutex::new(false));
    let ran = runs.clone();
    let node = b.durable_node("node", move |n: u64, _| {
        *ran.lock() = true;
        async move {
            std::future::pending::<()>().await;
            Ok(n)
        }
    });
    b.ingress(node).egress(node);
    let mut config = config();
    config.durable = Some(DurableConfig::new(queues));
    let flow = b.build_durable().unwrap().start(config);
    let mut envelope = Envelope::new(1).tenant(tenant(ANN));
    envelope.meta = Arc::new([("card".to_owned(), fact.into())].into());
    let _handle = soon("emit", flow.emit(envelope)).await.unwrap();
    until("it runs", || *runs.lock()).await;
    let records = store.scan("", None, 1_000).await.unwrap();
    assert!(!records.is_empty());
    let text = format!(
        "{:?}",
        records
            .iter()
            .map(|record| String::from_utf8_lossy(&record.value).into_owned())
            .collect::<Vec<_>>()
    );
    text.contains(CANARY)
}

#[tokio::test(start_paused = true)]
async fn a_secret_stands_in_meta() {
    assert!(is_stored(CANARY).await, "it is on disk");
    // A name instead, by which the node finds the secret where secrets are kept.
    assert!(!is_stored("cards/ann").await);
}
