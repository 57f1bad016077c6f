//! The collector that a Rust user gives to what runs: counters, gauges and histograms by name, made by their first use.
//!
//! It stands beside [`Metrics`], which it holds: the parts of Volary register there under `volary_`, and a user's own
//! names, which have no prefix, live here. Both are one exposition, written by one encoder.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    sync::{Arc, atomic::AtomicU64},
};

use parking_lot::{Mutex, RwLock};
use prometheus_client::{
    metrics::{
        counter::Counter as RawCounter, family::Family, family::MetricConstructor,
        gauge::Gauge as RawGauge, histogram::Histogram as RawHistogram,
    },
    registry::Registry,
};

use crate::metric::{self, Counter, MAX_SERIES, Metrics, OTHER, SECONDS};

/// Most names of one collector: names are made by their first use, and must not be made from data.
pub const MAX_NAMES: usize = 1000;
/// Most labels of one metric.
pub const MAX_LABELS: usize = 8;
/// Most bytes of a metric's or label's name, and of a label's value; longer values are cut.
pub const MAX_TEXT: usize = 128;

/// A gauge with a fractional value.
pub type FloatGauge = RawGauge<f64, AtomicU64>;

/// Why a metric is refused. Nothing was counted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CollectError {
    /// The name is not one that Prometheus reads, or is kept for Volary's own.
    #[error("metric name `{name}`: {problem}")]
    Name {
        /// The name, at most 80 characters.
        name: String,
        /// The rule it breaks.
        problem: &'static str,
    },
    /// A label's name is not one that Prometheus reads, or there are too many.
    #[error("label `{label}` of metric `{name}`: {problem}")]
    Label {
        /// The metric.
        name: String,
        /// The label, at most 80 characters.
        label: String,
        /// The rule it breaks.
        problem: &'static str,
    },
    /// The name is in use as another kind.
    #[error("metric `{name}` is a {is}, it can not be a {asked} too")]
    Kind {
        /// The metric.
        name: String,
        /// What it is.
        is: &'static str,
        /// What it was used as.
        asked: &'static str,
    },
    /// The metric has other labels.
    #[error("metric `{name}` has the labels {expected:?}, found {found:?}")]
    Labels {
        /// The metric.
        name: String,
        /// Its labels.
        expected: Vec<String>,
        /// The labels given.
        found: Vec<String>,
    },
    /// Another metric writes samples of this name.
    #[error("metric `{name}` would write the samples of `{other}`")]
    Clash {
        /// The metric.
        name: String,
        /// The one that is there.
        other: String,
    },
    /// [`MAX_NAMES`] is reached.
    #[error("{MAX_NAMES} metric names are known, which is the limit; use labels for what varies")]
    Full,
}

/// Labels of one series: name and value.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

type Key = Vec<(String, String)>;

/// Metrics by name; clones share them. Bounded by [`MAX_NAMES`] names and [`MAX_SERIES`] series each.
///
/// ```
/// use volary_kernel::collector::MetricsCollector;
/// let metrics = MetricsCollector::new();
/// metrics.inc("messages_sent", 2)?;
/// metrics.set_gauge("pool_size", 3.0)?;
/// assert!(metrics.encode_text().contains("\nmessages_sent 2\n"));
/// assert!(metrics.encode_text().contains("\npool_size 3.0\n"));
/// assert!(metrics.set_gauge("messages_sent", 1.0).is_err());
/// # Ok::<(), volary_kernel::collector::CollectError>(())
/// ```
#[derive(Clone, Default)]
pub struct MetricsCollector(Arc<Inner>);

#[derive(Default)]
struct Inner {
    parts: Metrics,
    known: RwLock<BTreeMap<String, Known>>,
    help: RwLock<BTreeMap<String, String>>,
}

struct Known {
    labels: Vec<String>,
    kind: Kind,
}

enum Kind {
    Counter(Series<Counter>),
    Gauge(Series<FloatGauge>),
    Histogram(Series<Measured>),
}

impl Kind {
    const fn word(&self) -> &'static str {
        match self {
            Self::Counter(_) => "counter",
            Self::Gauge(_) => "gauge",
            Self::Histogram(_) => "histogram",
        }
    }
}

/// The series of one name.
#[derive(Clone)]
struct Series<M: Clone> {
    family: Family<Key, M, Make<M>>,
    handles: Arc<Mutex<HashMap<Key, M>>>,
}

#[derive(Clone)]
struct Make<M>(Arc<dyn Fn() -> M + Send + Sync>);

impl<M> MetricConstructor<M> for Make<M> {
    fn new_metric(&self) -> M {
        (self.0)()
    }
}

impl<M: Clone> Series<M> {
    fn new(make: impl Fn() -> M + Send + Sync + 'static) -> Self {
        Self {
            family: Family::new_with_constructor(Make(Arc::new(make))),
            handles: Arc::default(),
        }
    }

    fn with(&self, labels: Labels<'_>) -> M {
        let cut = |value: &str| {
            let end = value.floor_char_boundary(MAX_TEXT);
            value[..end].to_owned()
        };
        let key: Key = labels
            .iter()
            .map(|(name, value)| ((*name).to_owned(), cut(value)))
            .collect();
        let mut handles = self.handles.lock();
        if let Some(known) = handles.get(&key) {
            return known.clone();
        }
        let key = if handles.len() >= MAX_SERIES {
            labels
                .iter()
                .map(|(name, _)| ((*name).to_owned(), OTHER.to_owned()))
                .collect()
        } else {
            key
        };
        let member = self.family.get_or_create(&key).clone();
        handles.entry(key).or_insert(member).clone()
    }
}

/// A histogram that also tells how much it has seen.
#[derive(Debug, Clone)]
pub struct Measured {
    histogram: RawHistogram,
    seen: Arc<Mutex<Summary>>,
}

impl Measured {
    /// Takes one value in.
    pub fn observe(&self, value: f64) {
        self.histogram.observe(value);
        let mut seen = self.seen.lock();
        seen.count += 1;
        seen.sum += value;
    }
}

impl prometheus_client::encoding::EncodeMetric for Measured {
    fn encode(
        &self,
        encoder: prometheus_client::encoding::MetricEncoder<'_>,
    ) -> Result<(), std::fmt::Error> {
        self.histogram.encode(encoder)
    }

    fn metric_type(&self) -> prometheus_client::metrics::MetricType {
        prometheus_client::metrics::MetricType::Histogram
    }
}

impl prometheus_client::metrics::TypedMetric for Measured {
    const TYPE: prometheus_client::metrics::MetricType =
        prometheus_client::metrics::MetricType::Histogram;
}

/// What a histogram has seen.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Summary {
    /// Number of values.
    pub count: u64,
    /// Their sum.
    pub sum: f64,
}

/// All values of a collector at one time, by name, or `name{label="value"}` for a metric with labels.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Snapshot {
    /// The counters.
    pub counters: BTreeMap<String, u64>,
    /// The gauges.
    pub gauges: BTreeMap<String, f64>,
    /// The histograms.
    pub histograms: BTreeMap<String, Summary>,
}

impl std::fmt::Debug for MetricsCollector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MetricsCollector({} names)", self.0.known.read().len())
    }
}

impl MetricsCollector {
    /// An empty collector.
    pub fn new() -> Self {
        Self::default()
    }

    /// The registry of Volary's own parts: give it to transports, hooks and limiters. What they count is told here too,
    /// under `volary_`.
    pub fn parts(&self) -> &Metrics {
        &self.0.parts
    }

    /// Adds `by` to a counter.
    ///
    /// # Errors
    /// [`CollectError`].
    pub fn inc(&self, name: &str, by: u64) -> Result<(), CollectError> {
        self.counter(name, &[])?.inc_by(by);
        Ok(())
    }

    /// Sets a gauge.
    ///
    /// # Errors
    /// [`CollectError`].
    pub fn set_gauge(&self, name: &str, value: f64) -> Result<(), CollectError> {
        self.gauge(name, &[])?.set(value);
        Ok(())
    }

    /// Takes one value into a histogram, with the bounds of [`SECONDS`] unless [`MetricsCollector::buckets`] gave others.
    ///
    /// # Errors
    /// [`CollectError`].
    pub fn observe(&self, name: &str, value: f64) -> Result<(), CollectError> {
        self.histogram(name, &[])?.observe(value);
        Ok(())
    }

    /// One series of a counter, to be kept where it is used often.
    ///
    /// # Errors
    /// [`CollectError`].
    pub fn counter(&self, name: &str, labels: Labels<'_>) -> Result<Counter, CollectError> {
        let make = || Kind::Counter(Series::new(RawCounter::default));
        let find = |kind: &Kind| match kind {
            Kind::Counter(series) => Some(series.with(labels)),
            _ => None,
        };
        self.series(name, labels, "counter", make, find)
    }

    /// One series of a gauge.
    ///
    /// # Errors
    /// [`CollectError`].
    pub fn gauge(&self, name: &str, labels: Labels<'_>) -> Result<FloatGauge, CollectError> {
        let make = || Kind::Gauge(Series::new(RawGauge::default));
        let find = |kind: &Kind| match kind {
            Kind::Gauge(series) => Some(series.with(labels)),
            _ => None,
        };
        self.series(name, labels, "gauge", make, find)
    }

    /// One series of a histogram.
    ///
    /// # Errors
    /// [`CollectError`].
    pub fn histogram(&self, name: &str, labels: Labels<'_>) -> Result<Measured, CollectError> {
        let find = |kind: &Kind| match kind {
            Kind::Histogram(series) => Some(series.with(labels)),
            _ => None,
        };
        self.series(name, labels, "histogram", || histogram(&SECONDS), find)
    }

    /// Declares a histogram with these upper bounds, before its first value.
    ///
    /// # Errors
    /// [`CollectError`], also if the name is in use.
    pub fn buckets(&self, name: &str, labels: &[&str], upper: &[f64]) -> Result<(), CollectError> {
        let mut known = self.0.known.write();
        if let Some(found) = known.get(name) {
            return Err(CollectError::Kind {
                name: name.to_owned(),
                is: found.kind.word(),
                asked: "histogram with other buckets",
            });
        }
        let labels: Vec<(&str, &str)> = labels.iter().map(|label| (*label, "")).collect();
        check_new(&known, name, &labels, "histogram")?;
        known.insert(name.to_owned(), new_known(&labels, histogram(upper)));
        Ok(())
    }

    /// Says what a metric tells: its HELP line. The name need not be known yet; what is not described says its name.
    pub fn describe(&self, name: &str, help: &str) {
        let mut all = self.0.help.write();
        if all.len() < MAX_NAMES || all.contains_key(name) {
            all.insert(name.to_owned(), help.trim_end_matches('.').to_owned());
        }
    }

    fn series<M>(
        &self,
        name: &str,
        labels: Labels<'_>,
        asked: &'static str,
        make: impl FnOnce() -> Kind,
        find: impl Fn(&Kind) -> Option<M>,
    ) -> Result<M, CollectError> {
        if let Some(known) = self.0.known.read().get(name) {
            return check_known(name, known, labels, asked, find);
        }
        let mut known = self.0.known.write();
        if !known.contains_key(name) {
            check_new(&known, name, labels, asked)?;
            known.insert(name.to_owned(), new_known(labels, make()));
        }
        check_known(name, &known[name], labels, asked, find)
    }

    /// The values of all metrics that have a name of their own here.
    pub fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for (name, known) in &*self.0.known.read() {
            match &known.kind {
                Kind::Counter(series) => {
                    for (key, member) in &*series.handles.lock() {
                        snapshot.counters.insert(text_of(name, key), member.get());
                    }
                }
                Kind::Gauge(series) => {
                    for (key, member) in &*series.handles.lock() {
                        snapshot.gauges.insert(text_of(name, key), member.get());
                    }
                }
                Kind::Histogram(series) => {
                    for (key, member) in &*series.handles.lock() {
                        let seen = *member.seen.lock();
                        snapshot.histograms.insert(text_of(name, key), seen);
                    }
                }
            }
        }
        snapshot
    }

    /// Everything as Prometheus 0.0.4 text: counters under the names they were given, then what Volary's parts count.
    #[doc(alias = "format_prometheus")]
    pub fn encode_text(&self) -> String {
        let known = self.0.known.read();
        let is_counter_without_total = |family: &str| {
            known
                .get(family)
                .is_some_and(|known| matches!(known.kind, Kind::Counter(_)))
        };
        let own = own_openmetrics(&known, &self.0.help.read());
        let own = metric::prometheus_text(&own, |family| !is_counter_without_total(family));
        own + &self.0.parts.encode_text()
    }

    /// Everything as OpenMetrics 1.0 text, where a counter's sample always ends in `_total`.
    pub fn encode_openmetrics(&self) -> String {
        let own = own_openmetrics(&self.0.known.read(), &self.0.help.read());
        let own = own.strip_suffix("# EOF\n").unwrap_or(&own);
        format!("{own}{}", self.0.parts.encode_openmetrics())
    }
}

fn histogram(upper: &[f64]) -> Kind {
    let upper: Arc<[f64]> = upper.into();
    Kind::Histogram(Series::new(move || Measured {
        histogram: RawHistogram::new(upper.iter().copied()),
        seen: Arc::default(),
    }))
}

fn new_known(labels: Labels<'_>, kind: Kind) -> Known {
    let known = Known {
        labels: labels.iter().map(|(name, _)| (*name).to_owned()).collect(),
        kind,
    };
    if labels.is_empty() {
        // A metric without labels is zero from the start, as scrapers expect.
        match &known.kind {
            Kind::Counter(series) => drop(series.with(&[])),
            Kind::Gauge(series) => drop(series.with(&[])),
            Kind::Histogram(series) => drop(series.with(&[])),
        }
    }
    known
}

fn text_of(name: &str, key: &Key) -> String {
    let mut text = name.to_owned();
    for (index, (label, value)) in key.iter().enumerate() {
        let before = if index == 0 { '{' } else { ',' };
        let _infallible = write!(text, "{before}{label}={value:?}");
    }
    if !key.is_empty() {
        text.push('}');
    }
    text
}

fn own_openmetrics(known: &BTreeMap<String, Known>, help: &BTreeMap<String, String>) -> String {
    let mut registry = Registry::default();
    for (name, known) in known {
        let help = help.get(name).map_or(name.as_str(), String::as_str);
        match &known.kind {
            Kind::Counter(series) => {
                registry.register(family_of(name), help, series.family.clone());
            }
            Kind::Gauge(series) => registry.register(name, help, series.family.clone()),
            Kind::Histogram(series) => registry.register(name, help, series.family.clone()),
        }
    }
    metric::openmetrics(&registry)
}

/// A counter's name without the suffix that the encoder adds.
fn family_of(name: &str) -> &str {
    name.strip_suffix("_total").unwrap_or(name)
}

// --- rules -----------------------------------------------------------------------------------

fn check_known<M>(
    name: &str,
    known: &Known,
    labels: Labels<'_>,
    asked: &'static str,
    find: impl Fn(&Kind) -> Option<M>,
) -> Result<M, CollectError> {
    let same = known.labels.len() == labels.len()
        && known
            .labels
            .iter()
            .zip(labels)
            .all(|(known, (given, _))| known == given);
    if known.kind.word() == asked && !same {
        return Err(CollectError::Labels {
            name: name.to_owned(),
            expected: known.labels.clone(),
            found: labels.iter().map(|(name, _)| cut(name)).collect(),
        });
    }
    find(&known.kind).ok_or_else(|| CollectError::Kind {
        name: name.to_owned(),
        is: known.kind.word(),
        asked,
    })
}

fn check_new(
    known: &BTreeMap<String, Known>,
    name: &str,
    labels: Labels<'_>,
    kind: &'static str,
) -> Result<(), CollectError> {
    if let Some(problem) = name_problem(name) {
        let name = cut(name);
        return Err(CollectError::Name { name, problem });
    }
    let label_error = |label: &str, problem| CollectError::Label {
        name: name.to_owned(),
        label: cut(label),
        problem,
    };
    for (index, (label, _)) in labels.iter().enumerate() {
        if index >= MAX_LABELS {
            return Err(label_error(label, "a metric has at most 8 labels"));
        }
        if labels[..index].iter().any(|(other, _)| other == label) {
            return Err(label_error(label, "it stands there twice"));
        }
        if let Some(problem) = label_problem(label, kind) {
            return Err(label_error(label, problem));
        }
    }
    if known.len() >= MAX_NAMES {
        return Err(CollectError::Full);
    }
    let mine = samples(name, kind);
    for (other, known) in known {
        let theirs = samples(other, known.kind.word());
        if mine.iter().any(|sample| theirs.contains(sample)) {
            return Err(CollectError::Clash {
                name: name.to_owned(),
                other: other.clone(),
            });
        }
    }
    Ok(())
}

/// The names that a metric takes up in either text form.
fn samples(name: &str, kind: &str) -> Vec<String> {
    let suffixes: &[&str] = match kind {
        "counter" => &["", "_total"],
        "histogram" => &["", "_bucket", "_sum", "_count"],
        _ => &[""],
    };
    let stem = if kind == "counter" {
        family_of(name)
    } else {
        name
    };
    suffixes
        .iter()
        .map(|suffix| format!("{stem}{suffix}"))
        .collect()
}

fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}

fn is_name(text: &str, also: char) -> bool {
    let first = |c: char| c.is_ascii_alphabetic() || c == '_' || c == also;
    text.len() <= MAX_TEXT
        && text.starts_with(first)
        && text.chars().all(|c| first(c) || c.is_ascii_digit())
}

/// What is wrong with a metric's name, if anything.
fn name_problem(name: &str) -> Option<&'static str> {
    if !is_name(name, ':') {
        return Some(
            "it must be letters, digits, `_` and `:`, not begin with a digit, and have at most 128 characters",
        );
    }
    if family_of(name).is_empty() {
        return Some("it is nothing but a suffix");
    }
    name.starts_with("volary_")
        .then_some("`volary_` is kept for what Volary's own parts count")
}

fn label_problem(label: &str, kind: &str) -> Option<&'static str> {
    if !is_name(label, '_') {
        return Some("it must be letters, digits and `_`, and not begin with a digit");
    }
    if label.starts_with("__") {
        return Some("names that begin with `__` are kept for Prometheus itself");
    }
    (label == "le" && kind == "histogram").then_some("a histogram's bounds use this label")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_keep_the_names_they_were_given_and_gauges_show_a_fraction() {
        let metrics = MetricsCollector::new();
        metrics.inc("messages_sent", 1).unwrap();
        metrics.inc("messages_sent", 1).unwrap();
        metrics.inc("rate_limit_ingress_dropped_total", 4).unwrap();
        metrics.set_gauge("pool_size", 3.0).unwrap();
        metrics.describe("pool_size", "Members of the pool.");
        metrics.parts().counter("restarts", "Restarts").inc();
        let text = metrics.encode_text();
        for line in [
            "# TYPE messages_sent counter",
            "messages_sent 2",
            "# TYPE rate_limit_ingress_dropped_total counter",
            "rate_limit_ingress_dropped_total 4",
            "# HELP pool_size Members of the pool.",
            "# TYPE pool_size gauge",
            "pool_size 3.0",
            "volary_restarts_total 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        let open = metrics.encode_openmetrics();
        assert!(open.contains("\nmessages_sent_total 2\n"), "{open}");
        assert_eq!(open.matches("# EOF").count(), 1, "{open}");
        assert!(open.ends_with("# EOF\n"), "{open}");
    }

    #[test]
    fn labels_and_histograms_are_written_and_in_the_snapshot() {
        let metrics = MetricsCollector::new();
        metrics
            .counter("drops", &[("bucket", "a\"b")])
            .unwrap()
            .inc_by(2);
        metrics.buckets("wait_seconds", &[], &[0.5, 1.0]).unwrap();
        metrics.observe("wait_seconds", 0.25).unwrap();
        metrics.observe("wait_seconds", 0.75).unwrap();
        let text = metrics.encode_text();
        assert!(text.contains("drops{bucket=\"a\\\"b\"} 2\n"), "{text}");
        assert!(
            text.contains("wait_seconds_bucket{le=\"0.5\"} 1\n"),
            "{text}"
        );
        assert!(text.contains("wait_seconds_count 2\n"), "{text}");
        let snapshot = metrics.snapshot();
        assert_eq!(snapshot.counters["drops{bucket=\"a\\\"b\"}"], 2);
        let seen = Summary { count: 2, sum: 1.0 };
        assert_eq!(snapshot.histograms["wait_seconds"], seen);
    }

    #[test]
    fn a_second_kind_other_labels_and_clashing_samples_are_errors() {
        let metrics = MetricsCollector::new();
        metrics.inc("sends", 1).unwrap();
        assert!(matches!(
            metrics.set_gauge("sends", 1.0),
            Err(CollectError::Kind {
                is: "counter",
                asked: "gauge",
                ..
            })
        ));
        assert!(matches!(
            metrics.counter("sends", &[("to", "a")]),
            Err(CollectError::Labels { .. })
        ));
        assert!(matches!(
            metrics.inc("sends_total", 1),
            Err(CollectError::Clash { .. })
        ));
        metrics.observe("wait", 1.0).unwrap();
        assert!(matches!(
            metrics.set_gauge("wait_count", 1.0),
            Err(CollectError::Clash { .. })
        ));
    }

    #[test]
    fn names_that_prometheus_does_not_read_are_refused() {
        let metrics = MetricsCollector::new();
        for name in ["", "1st", "a-b", "a b", "a\nb 1", "volary_x", "_total", "é"] {
            let refused = metrics.inc(name, 1);
            assert!(matches!(refused, Err(CollectError::Name { .. })), "{name}");
        }
        for label in ["", "1", "a-b", "__name__", "a:b"] {
            let refused = metrics.counter("good", &[(label, "x")]);
            assert!(
                matches!(refused, Err(CollectError::Label { .. })),
                "{label}"
            );
        }
        assert!(metrics.histogram("h", &[("le", "x")]).is_err());
        assert_eq!(metrics.snapshot(), Snapshot::default());
    }

    #[test]
    fn names_and_series_are_bounded() {
        let metrics = MetricsCollector::new();
        for n in 0..MAX_SERIES + 7 {
            metrics
                .counter("sends", &[("to", &n.to_string())])
                .unwrap()
                .inc();
        }
        assert_eq!(metrics.snapshot().counters["sends{to=\"other\"}"], 7);
        for n in 1..MAX_NAMES {
            metrics.inc(&format!("name_{n}"), 1).unwrap();
        }
        assert_eq!(metrics.inc("one_more", 1), Err(CollectError::Full));
    }
}
