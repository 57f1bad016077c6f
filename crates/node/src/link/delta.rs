//! What a process tells its node about the series of its flows: those that changed, and what they have come to since the run
//! began. Pure.

use std::collections::{BTreeMap, BTreeSet};

use volary_kernel::metric::{Counted, Sample, SampleValue};
use volary_ops::api::{FlowSeries, FlowValue};

use crate::flows::series::{self, SERIES};

/// A series: its place in [`SERIES`], and its labels.
type Key = (usize, Vec<String>);
type Values = BTreeMap<Key, FlowValue>;

/// What the node knows of the series of a process.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// What each had come to when the node last took a report.
    taken: Values,
    /// What each had come to when the run began.
    base: Values,
}

/// What is to be told.
#[derive(Debug)]
pub(super) struct News {
    pub series: Vec<FlowSeries>,
    now: Values,
}

impl Told {
    /// A new run has begun: from here it counts from nothing.
    pub(super) fn begin_run(&mut self) {
        self.base = std::mem::take(&mut self.taken);
    }

    /// What is new in these samples of `flows`. Series that the node does not know are left out, and tenants are added up.
    pub(super) fn news(&self, samples: Vec<Sample>, flows: &BTreeSet<String>) -> News {
        let mut now = values(samples);
        // The first label of every series is its flow.
        now.retain(|(_, labels), _| flows.contains(&labels[0]));
        let changed = now
            .iter()
            .filter(|(key, value)| self.taken.get(*key).is_none_or(|taken| taken != *value));
        let series = changed.map(|((index, labels), value)| {
            let names = SERIES[*index].labels.iter().map(|name| (*name).to_owned());
            FlowSeries {
                name: SERIES[*index].name.to_owned(),
                labels: names.zip(labels.iter().cloned()).collect(),
                value: since(self.base.get(&(*index, labels.clone())), value),
            }
        });
        News {
            series: series.collect(),
            now,
        }
    }

    /// The node has taken it.
    pub(super) fn taken(&mut self, news: News) {
        self.taken = news.now;
    }
}

fn values(samples: Vec<Sample>) -> Values {
    let mut values = Values::new();
    for sample in samples {
        let Some((index, series)) = series::find(&sample.name) else {
            continue;
        };
        let label = |wanted: &&str| {
            let found = sample.labels.iter().find(|(name, _)| name == wanted);
            found.map(|(_, value)| value.clone())
        };
        let Some(labels) = series.labels.iter().map(label).collect::<Option<Vec<_>>>() else {
            continue;
        };
        let value = match sample.value {
            SampleValue::Counter(value) => FlowValue::Counter(value),
            SampleValue::Gauge(value) => FlowValue::Gauge(value),
            SampleValue::Histogram(Counted { counts, sum }) => FlowValue::Histogram { counts, sum },
        };
        match values.entry((index, labels)) {
            std::collections::btree_map::Entry::Vacant(slot) => {
                slot.insert(value);
            }
            std::collections::btree_map::Entry::Occupied(mut slot) => add(slot.get_mut(), &value),
        }
    }
    values
}

fn add(to: &mut FlowValue, more: &FlowValue) {
    match (to, more) {
        (FlowValue::Counter(to), FlowValue::Counter(more)) => *to = to.saturating_add(*more),
        (FlowValue::Gauge(to), FlowValue::Gauge(more)) => *to = to.saturating_add(*more),
        (
            FlowValue::Histogram { counts, sum },
            FlowValue::Histogram {
                counts: more,
                sum: value,
            },
        ) => {
            for (count, more) in counts.iter_mut().zip(more) {
                *count = count.saturating_add(*more);
            }
            *sum += value;
        }
        _ => {}
    }
}

fn since(base: Option<&FlowValue>, now: &FlowValue) -> FlowValue {
    match (base, now) {
        (Some(FlowValue::Counter(base)), FlowValue::Counter(now)) => {
            FlowValue::Counter(now.saturating_sub(*base))
        }
        (
            Some(FlowValue::Histogram {
                counts: base,
                sum: was,
            }),
            FlowValue::Histogram { counts, sum },
        ) => FlowValue::Histogram {
            counts: counts
                .iter()
                .zip(base)
                .map(|(now, was)| now.saturating_sub(*was))
                .collect(),
            sum: (sum - was).max(0.0),
        },
        _ => now.clone(),
    }
}

#[cfg(test)]
mod tests {
    use volary_kernel::metric::Metrics;

    use super::*;

    fn counters(news: &News) -> Vec<FlowValue> {
        news.series
            .iter()
            .map(|series| series.value.clone())
            .collect()
    }

    fn flows() -> BTreeSet<String> {
        ["f".to_owned()].into()
    }

    #[test]
    fn only_what_changed_is_told_and_a_lost_report_is_told_again() {
        let metrics = Metrics::default();
        let success = metrics.counter_family("flow_node_success", "S", &["flow", "node", "tenant"]);
        let node = |tenant| success.with(&["f", "n", tenant]);
        let mut told = Told::default();
        node("a").inc_by(2);
        node("b").inc();
        metrics.counter("flow_unknown_to_nodes", "U").inc();
        success.with(&["not registered", "n", "a"]).inc();
        let news = told.news(metrics.samples("flow_"), &flows());
        assert_eq!(
            counters(&news),
            [FlowValue::Counter(3)],
            "tenants are added up"
        );
        assert_eq!(news.series[0].labels.len(), 2);
        // The report is lost.
        node("a").inc();
        let news = told.news(metrics.samples("flow_"), &flows());
        assert_eq!(counters(&news), [FlowValue::Counter(4)]);
        told.taken(news);
        assert!(
            told.news(metrics.samples("flow_"), &flows())
                .series
                .is_empty()
        );
    }

    #[test]
    fn a_new_run_does_not_count_again_what_the_node_has() {
        let metrics = Metrics::default();
        let labels = ["flow", "node"];
        let success = metrics
            .counter_family("flow_node_success", "S", &labels)
            .with(&["f", "n"]);
        let mut told = Told::default();
        success.inc_by(5);
        let news = told.news(metrics.samples("flow_"), &flows());
        told.taken(news);
        success.inc();
        told.begin_run();
        let news = told.news(metrics.samples("flow_"), &flows());
        assert_eq!(counters(&news), [FlowValue::Counter(1)]);
    }
}
