//! A histogram that can be read, and that takes in what another process counted.
//!
//! One atomic add per bucket and one for the sum: a reader may see the sum of a value a moment before its bucket.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder, NoLabelSet},
    metrics::{MetricType, TypedMetric},
};

/// A histogram handle: cheap to clone, two atomic adds per use.
#[derive(Debug, Clone)]
pub struct Histogram(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Upper bounds, ascending; what is above the last has a bucket of its own.
    bounds: Box<[f64]>,
    counts: Box<[AtomicU64]>,
    /// The bits of a double.
    sum: AtomicU64,
}

/// What a histogram has counted.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Counted {
    /// How many values lie in each bucket (not in those below it), the one without an upper bound last.
    pub counts: Vec<u64>,
    /// Sum of all values.
    pub sum: f64,
}

impl Histogram {
    /// An empty one with these upper bounds, ascending.
    pub fn new(bounds: impl IntoIterator<Item = f64>) -> Self {
        let bounds: Box<[f64]> = bounds.into_iter().collect();
        Self(Arc::new(Inner {
            counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(),
            sum: AtomicU64::new(0.0_f64.to_bits()),
            bounds,
        }))
    }

    /// Takes one value in.
    pub fn observe(&self, value: f64) {
        self.observe_many(value, 1);
    }

    /// Takes a value in `times` over: one that was measured, for others like it that were not.
    pub fn observe_many(&self, value: f64, times: u64) {
        let bucket = self.0.bounds.partition_point(|bound| *bound < value);
        self.add_to_sum(value * times as f64);
        self.0.counts[bucket].fetch_add(times, Ordering::Relaxed);
    }

    /// Takes in what was counted elsewhere with the same bounds; `false`, and nothing is taken, if it has another number of
    /// buckets or its sum is no number.
    pub fn add(&self, counted: &Counted) -> bool {
        if counted.counts.len() != self.0.counts.len() || !counted.sum.is_finite() {
            return false;
        }
        self.add_to_sum(counted.sum);
        for (bucket, count) in self.0.counts.iter().zip(&counted.counts) {
            bucket.fetch_add(*count, Ordering::Relaxed);
        }
        true
    }

    /// What it has counted so far.
    pub fn read(&self) -> Counted {
        let count = |bucket: &AtomicU64| bucket.load(Ordering::Relaxed);
        Counted {
            counts: self.0.counts.iter().map(count).collect(),
            sum: f64::from_bits(self.0.sum.load(Ordering::Relaxed)),
        }
    }

    fn add_to_sum(&self, value: f64) {
        let more = |bits: u64| Some((f64::from_bits(bits) + value).to_bits());
        let _always_updated = self
            .0
            .sum
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
    }
}

impl TypedMetric for Histogram {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        let Counted { counts, sum } = self.read();
        // The encoder adds the buckets up, and writes this bound as `+Inf`.
        let bounds = self.0.bounds.iter().copied().chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(counts.iter().copied()).collect();
        encoder.encode_histogram::<NoLabelSet>(sum, counts.iter().sum(), &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_at_a_bound_lies_below_it() {
        let histogram = Histogram::new([0.1, 1.0]);
        for value in [0.05, 0.1, 0.5, 1.0, 7.0] {
            histogram.observe(value);
        }
        let read = histogram.read();
        assert_eq!(read.counts, [2, 2, 1]);
        assert!((read.sum - 8.65).abs() < 1e-9, "{}", read.sum);
    }

    #[test]
    fn a_value_that_stands_for_others_counts_for_them_and_the_last_bucket_has_no_bound() {
        let metrics = crate::metric::Metrics::default();
        let took = metrics.histogram("took_seconds", "Time", &[0.1, 1.0]);
        took.observe(0.0625);
        took.observe_many(0.25, 64);
        took.observe(5.0);
        let text = metrics.encode_text();
        for line in [
            "volary_took_seconds_bucket{le=\"0.1\"} 1\n",
            "volary_took_seconds_bucket{le=\"1.0\"} 65\n",
            "volary_took_seconds_bucket{le=\"+Inf\"} 66\n",
            "volary_took_seconds_count 66\n",
            "volary_took_seconds_sum 21.0625\n",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }

    #[test]
    fn what_another_process_counted_is_added_or_refused_whole() {
        let histogram = Histogram::new([0.1]);
        histogram.observe(0.05);
        let counted = |counts: &[u64], sum| Counted {
            counts: counts.to_vec(),
            sum,
        };
        assert!(histogram.add(&counted(&[2, 3], 10.0)));
        assert!(!histogram.add(&counted(&[1], 1.0)));
        assert!(!histogram.add(&counted(&[1, 1], f64::NAN)));
        assert_eq!(histogram.read(), counted(&[3, 3], 10.05));
    }
}
