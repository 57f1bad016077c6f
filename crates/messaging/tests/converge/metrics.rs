//! Metrics: the collector of a Rust user.

use volary_kernel::collector::{CollectError, MetricsCollector};

/// T1 (metrics): incremented twice (1 + 2) is 3, and a gauge stays in the snapshot.
#[test]
fn a_counter_adds_up_and_a_gauge_stays_in_the_snapshot() {
    let metrics = MetricsCollector::new();
    metrics.inc("messages_sent", 1).unwrap();
    metrics.inc("messages_sent", 2).unwrap();
    metrics.set_gauge("pool_size", 5.0).unwrap();
    let snapshot = metrics.snapshot();
    assert_eq!(snapshot.counters["messages_sent"], 3);
    assert_eq!(snapshot.gauges["pool_size"], 5.0);
}

/// T2 (metrics): the exposition has the names, both TYPE words, `2` and `5.0`.
#[test]
fn the_exposition_has_names_types_and_values() {
    let metrics = MetricsCollector::new();
    metrics.inc("messages_sent", 2).unwrap();
    metrics.set_gauge("pool_size", 5.0).unwrap();
    let text = metrics.encode_text();
    for line in [
        "# TYPE messages_sent counter",
        "messages_sent 2",
        "# TYPE pool_size gauge",
        "pool_size 5.0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
}

/// Improves on the reference: one name has one kind, and what Prometheus can not read is not written.
#[test]
fn a_name_of_two_kinds_or_with_foreign_characters_is_an_error() {
    let metrics = MetricsCollector::new();
    metrics.inc("sends", 1).unwrap();
    assert!(matches!(
        metrics.set_gauge("sends", 1.0),
        Err(CollectError::Kind { .. })
    ));
    assert!(matches!(
        metrics.inc("bad\nname 1", 1),
        Err(CollectError::Name { .. })
    ));
    assert_eq!(metrics.encode_text().matches("# TYPE").count(), 1);
}
