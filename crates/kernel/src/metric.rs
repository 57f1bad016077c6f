//! The metric facade: one registry, one prefix, names that follow the rules, labels that stay bounded.
//!
//! Rules (Prometheus naming): `snake_case`, base units as suffix (`_seconds`, `_bytes`, `_ratio`), the prefix `volary_`
//! is added here, and so is `_total` for counters. Handles are cheap to keep: take one at start, not per event.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64},
    },
};

use parking_lot::{Mutex, RwLock};
use prometheus_client::{
    metrics::{counter::Counter as RawCounter, family::Family, gauge::Gauge as RawGauge},
    registry::Registry,
};

mod histogram;

pub use histogram::{Counted, Histogram};

/// Prefix of every metric.
pub const PREFIX: &str = "volary";

/// Most label combinations of one family; further ones are counted under the label value `other`.
pub const MAX_SERIES: usize = 1000;

/// The label value that stands for whatever is past [`MAX_SERIES`].
pub const OTHER: &str = "other";

/// Bucket bounds for durations in seconds, 100 µs to 60 s.
pub const SECONDS: [f64; 14] = [
    0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0,
];

/// A counter handle: cheap to clone, one atomic add per use.
pub type Counter = RawCounter<u64, AtomicU64>;
/// A gauge handle.
pub type Gauge = RawGauge<i64, AtomicI64>;

type Labels = Vec<(&'static str, String)>;

/// The registry; clones share it.
///
/// Registering the same name twice with the same kind returns the same metric, so parts need not know who was first.
///
/// # Panics
/// Registering a name that breaks the rules, or one name as two kinds, is a defect of the program and panics at start.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Mutex<Registry>,
    known: RwLock<HashMap<String, Known>>,
}

#[derive(Clone)]
enum Known {
    Counter(Vectored<Counter>),
    Gauge(Vectored<Gauge>),
    Histogram(Vectored<Histogram>),
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Metrics({} names)", self.0.known.read().len())
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let registry = Mutex::new(Registry::with_prefix(PREFIX));
        Self(Arc::new(Inner {
            registry,
            known: RwLock::default(),
        }))
    }
}

// --- families --------------------------------------------------------------------------------

/// A metric with labels, whose combinations are bounded by [`MAX_SERIES`].
pub struct Vectored<M: Clone> {
    names: Arc<[&'static str]>,
    family: Family<Labels, M, Maker<M>>,
    handles: Arc<RwLock<BTreeMap<Vec<String>, M>>>,
}

impl<M: Clone> Clone for Vectored<M> {
    fn clone(&self) -> Self {
        Self {
            names: self.names.clone(),
            family: self.family.clone(),
            handles: self.handles.clone(),
        }
    }
}

impl<M: Clone> std::fmt::Debug for Vectored<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Vectored({:?})", self.names)
    }
}

/// How a family makes a member; a plain struct, because a histogram needs its buckets.
#[derive(Clone)]
struct Maker<M>(Arc<dyn Fn() -> M + Send + Sync>);

impl<M> prometheus_client::metrics::family::MetricConstructor<M> for Maker<M> {
    fn new_metric(&self) -> M {
        (self.0)()
    }
}

impl<M: Clone> Vectored<M> {
    fn new(names: &[&'static str], make: impl Fn() -> M + Send + Sync + 'static) -> Self {
        let family =
            Family::new_with_constructor(Maker(Arc::new(make) as Arc<dyn Fn() -> M + Send + Sync>));
        Self {
            names: names.into(),
            family,
            handles: Arc::default(),
        }
    }

    /// The member for these label values, in the order of the names; keep it where it is used often.
    ///
    /// # Panics
    /// If there are more or fewer values than names: a defect of the program.
    pub fn with(&self, values: &[&str]) -> M {
        assert_eq!(
            values.len(),
            self.names.len(),
            "label values for {:?}",
            self.names
        );
        let key: Vec<String> = values.iter().map(|value| (*value).to_owned()).collect();
        if let Some(member) = self.handles.read().get(&key) {
            return member.clone();
        }
        let mut handles = self.handles.write();
        let bounded = handles.len() >= MAX_SERIES && !handles.contains_key(&key);
        let key = if bounded {
            self.names.iter().map(|_| OTHER.to_owned()).collect()
        } else {
            key
        };
        handles
            .entry(key)
            .or_insert_with_key(|key| self.member(key))
            .clone()
    }

    fn member(&self, values: &[String]) -> M {
        let labels = self
            .names
            .iter()
            .copied()
            .zip(values.iter().cloned())
            .collect::<Labels>();
        self.family.get_or_create(&labels).clone()
    }
}

/// A counter with labels.
pub type CounterFamily = Vectored<Counter>;
/// A gauge with labels.
pub type GaugeFamily = Vectored<Gauge>;
/// A histogram with labels.
pub type HistogramFamily = Vectored<Histogram>;

// --- reading ---------------------------------------------------------------------------------

/// One series as it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Its name as it was registered: without prefix, and without `_total`.
    pub name: String,
    /// Its labels, in the order of registration.
    pub labels: Vec<(&'static str, String)>,
    /// What it has come to.
    pub value: SampleValue,
}

/// What a series has come to.
#[derive(Debug, Clone, PartialEq)]
pub enum SampleValue {
    /// Of a counter.
    Counter(u64),
    /// Of a gauge.
    Gauge(i64),
    /// Of a histogram.
    Histogram(Counted),
}

impl<M: Clone> Vectored<M> {
    fn samples(&self, name: &str, value: impl Fn(&M) -> SampleValue, into: &mut Vec<Sample>) {
        for (values, member) in self.handles.read().iter() {
            into.push(Sample {
                name: name.to_owned(),
                labels: self
                    .names
                    .iter()
                    .copied()
                    .zip(values.iter().cloned())
                    .collect(),
                value: value(member),
            });
        }
    }
}

impl Metrics {
    /// Every series whose name begins with `prefix`, by name and label values: for whoever carries them elsewhere.
    pub fn samples(&self, prefix: &str) -> Vec<Sample> {
        let known = self.0.known.read();
        let mut names: Vec<&String> = known
            .keys()
            .filter(|name| name.starts_with(prefix))
            .collect();
        names.sort_unstable();
        let mut samples = Vec::new();
        for name in names {
            match &known[name] {
                Known::Counter(family) => {
                    family.samples(name, |one| SampleValue::Counter(one.get()), &mut samples);
                }
                Known::Gauge(family) => {
                    family.samples(name, |one| SampleValue::Gauge(one.get()), &mut samples);
                }
                Known::Histogram(family) => {
                    family.samples(name, |one| SampleValue::Histogram(one.read()), &mut samples);
                }
            }
        }
        samples
    }
}

// --- registration ----------------------------------------------------------------------------

impl Metrics {
    /// A counter; `name` without prefix and without `_total`.
    pub fn counter(&self, name: &str, help: &str) -> Counter {
        self.counter_family(name, help, &[]).with(&[])
    }

    /// A counter with labels.
    pub fn counter_family(&self, name: &str, help: &str, labels: &[&'static str]) -> CounterFamily {
        assert!(
            !name.ends_with("_total"),
            "metric `{name}`: `_total` is added to counters by the encoder"
        );
        let make = || Known::Counter(Vectored::new(labels, Counter::default));
        match self.register(name, help, labels, make) {
            Known::Counter(family) => family,
            _ => panic!("metric `{name}` is registered as another kind"),
        }
    }

    /// A gauge.
    pub fn gauge(&self, name: &str, help: &str) -> Gauge {
        self.gauge_family(name, help, &[]).with(&[])
    }

    /// A gauge with labels.
    pub fn gauge_family(&self, name: &str, help: &str, labels: &[&'static str]) -> GaugeFamily {
        let make = || Known::Gauge(Vectored::new(labels, Gauge::default));
        match self.register(name, help, labels, make) {
            Known::Gauge(family) => family,
            _ => panic!("metric `{name}` is registered as another kind"),
        }
    }

    /// A histogram with these upper bounds; see [`SECONDS`].
    pub fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        self.histogram_family(name, help, &[], buckets).with(&[])
    }

    /// A histogram with labels.
    pub fn histogram_family(
        &self,
        name: &str,
        help: &str,
        labels: &[&'static str],
        buckets: &[f64],
    ) -> HistogramFamily {
        let bounds: Arc<[f64]> = buckets.into();
        let make = || {
            Known::Histogram(Vectored::new(labels, move || {
                Histogram::new(bounds.iter().copied())
            }))
        };
        match self.register(name, help, labels, make) {
            Known::Histogram(family) => family,
            _ => panic!("metric `{name}` is registered as another kind"),
        }
    }

    fn register(
        &self,
        name: &str,
        help: &str,
        labels: &[&'static str],
        make: impl FnOnce() -> Known,
    ) -> Known {
        if let Some(problem) =
            name_problem(name).or_else(|| labels.iter().find_map(|label| label_problem(label)))
        {
            panic!("metric `{name}`: {problem}");
        }
        let mut known = self.0.known.write();
        if let Some(found) = known.get(name) {
            return found.clone();
        }
        let made = make();
        let mut registry = self.0.registry.lock();
        let help = help.trim_end_matches('.');
        match &made {
            Known::Counter(family) => registry.register(name, help, family.family.clone()),
            Known::Gauge(family) => registry.register(name, help, family.family.clone()),
            Known::Histogram(family) => registry.register(name, help, family.family.clone()),
        }
        known.insert(name.to_owned(), made.clone());
        made
    }

    /// Everything as OpenMetrics 1.0 text, ending in `# EOF`.
    pub fn encode_openmetrics(&self) -> String {
        openmetrics(&self.0.registry.lock())
    }

    /// Everything as Prometheus 0.0.4 text.
    pub fn encode_text(&self) -> String {
        prometheus_text(&self.encode_openmetrics(), |_| true)
    }
}

/// A registry as OpenMetrics 1.0 text, ending in `# EOF`.
pub(crate) fn openmetrics(registry: &Registry) -> String {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry)
        .expect("writing into a string cannot fail");
    without_empty_labels(&text)
}

/// A metric without labels is written without braces, as everybody expects to find it.
fn without_empty_labels(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        match line.split_once('{') {
            Some((name, rest)) if !line.starts_with('#') && rest.starts_with('}') => {
                clean.push_str(name);
                clean.push_str(&rest[1..]);
            }
            _ => clean.push_str(line),
        }
    }
    clean
}

/// In 0.0.4 a counter's HELP and TYPE carry the sample's name, and UNIT and EOF do not exist. `has_total` says whether
/// the samples of a counter's family keep the `_total` that OpenMetrics asks for.
pub(crate) fn prometheus_text(openmetrics: &str, has_total: impl Fn(&str) -> bool) -> String {
    let mut text = String::with_capacity(openmetrics.len());
    let mut help: Option<(&str, &str)> = None;
    let mut bare: Option<&str> = None;
    for line in openmetrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let Some((name, kind)) = rest.split_once(' ') else {
                continue;
            };
            bare = (kind == "counter" && !has_total(name)).then_some(name);
            let suffix = if kind == "counter" && bare.is_none() {
                "_total"
            } else {
                ""
            };
            if let Some((_, words)) = help.take().filter(|(helped, _)| *helped == name) {
                let _infallible = writeln!(text, "# HELP {name}{suffix} {words}");
            }
            let _infallible = writeln!(text, "# TYPE {name}{suffix} {kind}");
        } else if !line.starts_with('#') {
            let sample = bare.and_then(|name| {
                let rest = line.strip_prefix(name)?.strip_prefix("_total")?;
                Some((name, rest))
            });
            let _infallible = match sample {
                Some((name, rest)) => writeln!(text, "{name}{rest}"),
                None => writeln!(text, "{line}"),
            };
        }
    }
    text
}

// --- name rules ------------------------------------------------------------------------------

/// Unit suffixes that are not base units, with the base unit to use.
const WRONG_UNITS: [(&str, &str); 8] = [
    ("_ms", "_seconds"),
    ("_millis", "_seconds"),
    ("_milliseconds", "_seconds"),
    ("_micros", "_seconds"),
    ("_minutes", "_seconds"),
    ("_kb", "_bytes"),
    ("_mb", "_bytes"),
    ("_percent", "_ratio"),
];

/// What is wrong with a metric name, if anything.
pub fn name_problem(name: &str) -> Option<String> {
    let snake = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if !name.starts_with(|first: char| first.is_ascii_lowercase()) || !name.bytes().all(snake) {
        return Some("a name is lower-case snake_case".to_owned());
    }
    if name.starts_with("volary_") {
        return Some("the prefix is added by the registry".to_owned());
    }
    let wrong = WRONG_UNITS
        .iter()
        .find(|(suffix, _)| name.ends_with(suffix));
    wrong.map(|(suffix, base)| format!("`{suffix}` is not a base unit, use `{base}`"))
}

/// Labels whose values are unbounded by nature and therefore never allowed.
const UNBOUNDED_LABELS: [&str; 5] = ["trace", "trace_id", "message_id", "id", "path"];

fn label_problem(label: &str) -> Option<String> {
    UNBOUNDED_LABELS
        .contains(&label)
        .then(|| format!("label `{label}` has unbounded values"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_text_forms_name_the_same_series() {
        let metrics = Metrics::default();
        metrics
            .counter_family("messages_accepted", "Messages taken in.", &["tenant"])
            .with(&["a\"b"])
            .inc_by(3);
        metrics.gauge("agents", "Agents known").set(2);
        metrics
            .histogram("commit_seconds", "Commit time", &[0.1, 1.0])
            .observe(0.5);
        let text = metrics.encode_text();
        assert!(
            text.contains("# HELP volary_messages_accepted_total Messages taken in.\n"),
            "{text}"
        );
        assert!(
            text.contains("# TYPE volary_messages_accepted_total counter\n"),
            "{text}"
        );
        assert!(
            text.contains("volary_messages_accepted_total{tenant=\"a\\\"b\"} 3\n"),
            "{text}"
        );
        assert!(
            text.contains("volary_commit_seconds_bucket{le=\"1.0\"} 1\n"),
            "{text}"
        );
        assert!(text.contains("volary_agents 2\n"), "{text}");
        assert!(!text.contains("EOF"), "{text}");
        assert!(metrics.encode_openmetrics().ends_with("# EOF\n"));
    }

    #[test]
    fn series_are_read_by_the_beginning_of_their_name() {
        let metrics = Metrics::default();
        metrics
            .counter_family("flow_ended", "Ended", &["flow"])
            .with(&["b"])
            .inc();
        metrics.gauge("flow_depth", "Depth").set(-2);
        metrics
            .histogram("flow_seconds", "Time", &[1.0])
            .observe(0.5);
        metrics.counter("others", "Others").inc();
        let read: Vec<_> = metrics
            .samples("flow_")
            .into_iter()
            .map(|sample| (sample.name, sample.labels, sample.value))
            .collect();
        let label = vec![("flow", "b".to_owned())];
        let counted = Counted {
            counts: vec![1, 0],
            sum: 0.5,
        };
        assert_eq!(
            read,
            [
                ("flow_depth".to_owned(), vec![], SampleValue::Gauge(-2)),
                ("flow_ended".to_owned(), label, SampleValue::Counter(1)),
                (
                    "flow_seconds".to_owned(),
                    vec![],
                    SampleValue::Histogram(counted)
                ),
            ]
        );
    }

    #[test]
    fn the_same_name_is_the_same_metric() {
        let metrics = Metrics::default();
        metrics.counter("restarts", "Restarts").inc();
        metrics.counter("restarts", "Restarts").inc();
        assert_eq!(metrics.counter("restarts", "Restarts").get(), 2);
    }

    #[test]
    fn labels_past_the_bound_are_counted_as_other() {
        let metrics = Metrics::default();
        let family = metrics.counter_family("sends", "Sends", &["sender"]);
        for n in 0..MAX_SERIES + 50 {
            family.with(&[&n.to_string()]).inc();
        }
        assert_eq!(family.with(&[OTHER]).get(), 50);
    }

    #[test]
    fn names_follow_the_rules() {
        for good in ["queue_items", "commit_seconds", "retained_bytes"] {
            assert_eq!(name_problem(good), None);
        }
        for bad in [
            "Queue",
            "queue-items",
            "volary_queue",
            "wait_ms",
            "size_kb",
            "cpu_percent",
            "1st",
            "",
        ] {
            assert!(name_problem(bad).is_some(), "{bad}");
        }
    }

    #[test]
    #[should_panic(expected = "unbounded values")]
    fn a_trace_label_is_refused() {
        Metrics::default().counter_family("sends", "Sends", &["trace"]);
    }
}
