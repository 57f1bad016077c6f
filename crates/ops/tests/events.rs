//! Following and reading the journal over HTTP.

#![expect(clippy::unwrap_used, reason = "a test whose setup fails has failed")]

mod common;

use std::time::Duration;

use common::{LONG, Running, name, start};
use volary_kernel::{Tenant, Timestamp, clock, testing::eventually};
use volary_ops::{
    api::{Event, EventsQuery},
    client::{EventStream, StreamEvent},
};

async fn follow(ops: &Running, query: &EventsQuery, last: Option<&str>) -> EventStream {
    ops.operator().events("/events", query, last).await.unwrap()
}

async fn next(stream: &mut EventStream) -> StreamEvent {
    clock::timeout(LONG, stream.next())
        .await
        .unwrap()
        .unwrap()
        .unwrap()
}

fn from(seq: u64) -> EventsQuery {
    EventsQuery {
        from: Some(seq),
        ..EventsQuery::default()
    }
}

async fn lines(ops: &Running, query: &EventsQuery) -> Vec<Event> {
    let mut lines = ops.operator().lines("/v1/events", query).await.unwrap();
    let mut events = Vec::new();
    while let Some(line) = lines.next().await.unwrap() {
        events.push(serde_json::from_str(&line).unwrap());
    }
    events
}

fn seqs(events: &[Event]) -> Vec<u64> {
    events.iter().map(|event| event.seq.unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_tells_what_comes_and_resumes_where_it_was_cut() {
    let ops = start(|_| {});
    ops.append("page.changed", r#"{"v":1,"n":0}"#).await;
    let mut live = follow(&ops, &EventsQuery::default(), None).await;
    let second = ops.append("page.changed", r#"{"v":1,"n":1}"#).await;
    let event = next(&mut live).await;
    assert_eq!(
        (event.id.as_deref(), event.kind.as_str()),
        (Some("2"), "page.changed")
    );
    let document: Event = serde_json::from_str(&event.data).unwrap();
    assert_eq!(
        (document.seq, document.agent, document.node.as_str()),
        (Some(second), Some(name("a")), "node-1")
    );
    assert_eq!(document.body.unwrap().get(), r#"{"v":1,"n":1}"#);
    drop(live);
    for _ in 0..3 {
        ops.append("page.changed", r#"{"v":1}"#).await;
    }
    // Last-Event-ID goes before `from`.
    let mut resumed = follow(&ops, &from(1), Some("2")).await;
    for expected in ["3", "4", "5"] {
        assert_eq!(next(&mut resumed).await.id.as_deref(), Some(expected));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_choose_by_kind_agent_tenant_and_trace() {
    let ops = start(|_| {});
    for kind in ["page.changed", "page.removed", "delivery.acked"] {
        ops.append(kind, r#"{"v":1}"#).await;
    }
    let check = async |change: fn(&mut EventsQuery), expected: &[u64]| {
        let mut query = EventsQuery::default();
        change(&mut query);
        assert_eq!(seqs(&lines(&ops, &query).await), expected, "{query:?}");
    };
    check(|_| {}, &[1, 2, 3]).await;
    check(|query| query.kind = Some("page.*".into()), &[1, 2]).await;
    check(
        |query| query.kind = Some("delivery.acked,page.removed".into()),
        &[2, 3],
    )
    .await;
    check(|query| query.agent = Some(name("a")), &[1, 2, 3]).await;
    check(|query| query.agent = Some(name("b")), &[]).await;
    check(|query| query.tenant = Some(Tenant::new(name("other"))), &[]).await;
    check(
        |query| query.trace = Some(volary_kernel::TraceId::generate()),
        &[],
    )
    .await;
    check(|query| query.limit = Some(1), &[1]).await;
    check(|query| query.from = Some(3), &[3]).await;
    let bare = lines(
        &ops,
        &EventsQuery {
            body: Some(false),
            ..EventsQuery::default()
        },
    )
    .await;
    assert!(bare.iter().all(|event| event.body.is_none()));
    let mut stream = follow(
        &ops,
        &EventsQuery {
            kind: Some("delivery.*".into()),
            ..from(1)
        },
        None,
    )
    .await;
    assert_eq!(next(&mut stream).await.id.as_deref(), Some("3"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_journal_is_read_whole_and_in_order() {
    let ops = start(|_| {});
    for _ in 0..1500 {
        ops.append("page.changed", r#"{"v":1,"text":"0123456789"}"#)
            .await;
    }
    assert_eq!(
        seqs(&lines(&ops, &EventsQuery::default()).await),
        (1..=1500).collect::<Vec<_>>()
    );
    let mut stream = follow(&ops, &from(1), None).await;
    for expected in 1..=1500 {
        assert_eq!(next(&mut stream).await.id, Some(expected.to_string()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_stream_shows_life_and_moves_its_place_on() {
    let ops = start(|config| config.limits.keep_alive = Duration::from_millis(50));
    let query = EventsQuery {
        kind: Some("delivery.acked".into()),
        ..from(1)
    };
    let mut stream = follow(&ops, &query, None).await;
    for _ in 0..5 {
        ops.append("page.changed", r#"{"v":1}"#).await;
    }
    // Nothing of these fits, but whoever resumes need not look at them again.
    let passed = clock::timeout(LONG, async {
        while stream.last_id() != Some("5") {
            let _not_yet = clock::timeout(Duration::from_millis(20), stream.next()).await;
        }
    });
    passed.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_come_between_without_a_place_and_only_where_they_fit() {
    let ops = start(|_| {});
    let signal = |kind: &str| Event {
        seq: Some(7),
        at: Timestamp::from_micros(0),
        node: "node-1".to_owned(),
        kind: kind.to_owned(),
        tenant: Tenant::default(),
        agent: None,
        trace: None,
        cause: None,
        body: None,
    };
    assert!(!ops.signals.has_readers());
    let mut all = follow(&ops, &EventsQuery::default(), None).await;
    let mut pages = follow(
        &ops,
        &EventsQuery {
            kind: Some("page.*".into()),
            ..EventsQuery::default()
        },
        None,
    )
    .await;
    assert!(eventually(LONG, || ops.signals.has_readers()).await);
    ops.signals.emit(signal("flow.started"));
    let first = next(&mut all).await;
    assert_eq!((first.id, first.kind.as_str()), (None, "flow.started"));
    assert_eq!(
        serde_json::from_str::<Event>(&first.data).unwrap().seq,
        None
    );
    ops.append("page.changed", r#"{"v":1}"#).await;
    assert_eq!(next(&mut pages).await.kind, "page.changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_lags_behind_the_signals_is_told_how_many_it_missed() {
    let ops = start(|_| {});
    let mut stream = follow(&ops, &EventsQuery::default(), None).await;
    let signal = Event {
        seq: None,
        at: Timestamp::from_micros(0),
        node: String::new(),
        kind: "flow.step".to_owned(),
        tenant: Tenant::default(),
        agent: None,
        trace: None,
        cause: None,
        body: serde_json::value::RawValue::from_string(format!("\"{}\"", "x".repeat(4000))).ok(),
    };
    // Far more than sockets, pieces and the feed hold together, while nobody reads.
    for _ in 0..20_000 {
        ops.signals.emit(signal.clone());
    }
    let missed = clock::timeout(LONG, async {
        loop {
            let event = stream.next().await.unwrap().unwrap();
            if event.kind == "stream.missed" {
                return event.data;
            }
        }
    });
    let missed: serde_json::Value = serde_json::from_str(&missed.await.unwrap()).unwrap();
    assert!(missed["signals"].as_u64().unwrap() > 0);
    assert!(ops.metric("volary_signals_missed_total") > 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_bounded_and_end_with_the_server() {
    let ops = start(|config| config.limits.event_streams = 2);
    let mut first = follow(&ops, &EventsQuery::default(), None).await;
    let second = follow(&ops, &EventsQuery::default(), None).await;
    let refused = ops
        .operator()
        .events("/events", &EventsQuery::default(), None)
        .await
        .unwrap_err();
    assert_eq!(
        (refused.status(), refused.code()),
        (Some(503), Some("V6009"))
    );
    drop(second);
    assert!(eventually(LONG, || ops.metric("volary_event_streams ") == 1.0).await);
    let (report, last) = tokio::join!(ops.stop(), next(&mut first));
    assert_eq!(last.kind, "stream.stopping");
    assert!(first.next().await.unwrap().is_none());
    assert!(report.aborted.is_empty(), "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_is_refused() {
    let ops = start(|_| {});
    let check = async |query: EventsQuery, last: Option<&str>| {
        let refused = ops
            .operator()
            .events("/events", &query, last)
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Some("V6005"), "{refused}");
    };
    check(
        EventsQuery {
            kind: Some("pa*".into()),
            ..EventsQuery::default()
        },
        None,
    )
    .await;
    check(
        EventsQuery {
            limit: Some(1),
            ..EventsQuery::default()
        },
        None,
    )
    .await;
    check(EventsQuery::default(), Some("x")).await;
}
