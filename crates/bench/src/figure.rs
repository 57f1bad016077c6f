//! One figure, and its line of JSON.

use serde_json::{Map, Value};

use crate::rounds::Samples;

/// A measured figure beside what it is compared with.
#[derive(Debug, Clone)]
pub struct Figure {
    bench: String,
    unit: &'static str,
    bar: f64,
    ours: f64,
    limit: Option<f64>,
    peer: Option<f64>,
    ratio: Option<f64>,
    spread: f64,
    more: Map<String, Value>,
}

impl Figure {
    /// A figure of which more is better, without anything beside it yet: its ratio is missing, so it fails.
    pub fn rate(bench: impl Into<String>, unit: &'static str, bar: f64, ours: &Samples) -> Self {
        Self {
            bench: bench.into(),
            unit,
            bar,
            ours: ours.median(),
            limit: None,
            peer: None,
            ratio: None,
            spread: ours.spread(),
            more: Map::new(),
        }
    }

    /// A cost with an allowance: the limit is the allowance, the ratio is allowance ÷ ours, the bar is 1.
    pub fn cost(
        bench: impl Into<String>,
        unit: &'static str,
        allowance: f64,
        ours: &Samples,
    ) -> Self {
        let mut figure = Self::rate(bench, unit, 1.0, ours);
        figure.limit = Some(allowance);
        figure.ratio = Some(allowance / figure.ours);
        figure
    }

    /// A cost of which nothing is allowed: the ratio is 1 when there is none, else 0; the bar is 1.
    pub fn none(bench: impl Into<String>, unit: &'static str, ours: &Samples) -> Self {
        let mut figure = Self::rate(bench, unit, 1.0, ours);
        figure.limit = Some(0.0);
        figure.ratio = Some(if figure.ours <= 0.0 { 1.0 } else { 0.0 });
        figure
    }

    /// Compares with the limit: the ratio is ours ÷ limit.
    pub fn against_limit(mut self, limit: &Samples) -> Self {
        self.limit = Some(limit.median());
        self.ratio = self.limit.map(|limit| self.ours / limit);
        self
    }

    /// Compares with a peer: the ratio is ours ÷ peer.
    pub fn against_peer(mut self, peer: &Samples) -> Self {
        self.peer = Some(peer.median());
        self.ratio = self.peer.map(|peer| self.ours / peer);
        self
    }

    /// Compares with what a peer did when it was measured once: the ratio is ours ÷ peer.
    pub fn against_recorded(mut self, peer: f64) -> Self {
        self.peer = Some(peer);
        self.ratio = Some(self.ours / peer);
        self.with("peer_recorded", true)
    }

    /// Shows what a peer did when it was measured once, without comparing.
    pub fn recorded(mut self, peer: f64) -> Self {
        self.peer = Some(peer);
        self.with("peer_recorded", true)
    }

    /// Shows the limit without comparing.
    pub fn limit(mut self, limit: &Samples) -> Self {
        self.limit = Some(limit.median());
        self
    }

    /// Adds something to know.
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.more.insert(key.to_owned(), value.into());
        self
    }

    /// Whether the ratio reaches the bar; one that is missing or not a number does not.
    pub fn passes(&self) -> bool {
        self.ratio
            .is_some_and(|ratio| ratio.is_finite() && ratio >= self.bar)
    }

    /// The line of JSON, its keys in a fixed order.
    pub fn line(&self) -> String {
        let optional = |value: Option<f64>| value.map_or(Value::Null, rounded);
        let known = [
            ("bench", Value::from(self.bench.clone())),
            ("ours", rounded(self.ours)),
            ("limit", optional(self.limit)),
            ("peer", optional(self.peer)),
            ("ratio", optional(self.ratio)),
            ("bar", rounded(self.bar)),
            ("unit", Value::from(self.unit)),
            ("spread", rounded(self.spread)),
        ];
        let more = self
            .more
            .iter()
            .map(|(key, value)| (key.as_str(), value.clone()));
        let members: Vec<String> = known
            .into_iter()
            .chain(more)
            .map(|(key, value)| format!("{}:{value}", Value::from(key)))
            .collect();
        format!("{{{}}}", members.join(","))
    }
}

/// Four significant digits, which is more than any of this is worth; `null` for what is not a number.
pub fn rounded(value: f64) -> Value {
    if !value.is_finite() {
        return Value::Null;
    }
    if value.abs() >= 1000.0 {
        return Value::from(value.round() as i64);
    }
    Value::from((value * 1000.0).round() / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(values: &[f64]) -> Samples {
        values.iter().copied().collect()
    }

    #[test]
    fn the_line_has_exactly_the_promised_keys_first() {
        let figure = Figure::rate("bus.hooks4", "msg/s", 1.0, &samples(&[2.0e6, 3.0e6, 4.0e6]))
            .limit(&samples(&[9.0e6]))
            .against_peer(&samples(&[2.5e6]))
            .with("note", "n");
        assert_eq!(
            figure.line(),
            r#"{"bench":"bus.hooks4","ours":3000000,"limit":9000000,"peer":2500000,"ratio":1.2,"bar":1.0,"unit":"msg/s","spread":0.667,"note":"n"}"#
        );
        assert!(figure.passes());
    }

    #[test]
    fn a_cost_passes_below_its_allowance_only() {
        assert!(Figure::cost("idle", "MiB", 40.0, &samples(&[39.0])).passes());
        assert!(!Figure::cost("idle", "MiB", 40.0, &samples(&[41.0])).passes());
    }

    #[test]
    fn where_nothing_is_allowed_only_nothing_passes() {
        assert!(Figure::none("leak", "B", &samples(&[0.0])).passes());
        assert!(Figure::none("leak", "B", &samples(&[-8.0])).passes());
        assert!(!Figure::none("leak", "B", &samples(&[0.01])).passes());
        assert!(!Figure::none("leak", "B", &samples(&[f64::NAN])).passes());
    }

    #[test]
    fn a_recorded_peer_says_so() {
        let figure = Figure::rate("x", "1/s", 2.0, &samples(&[10.0])).against_recorded(5.0);
        assert!(figure.passes());
        assert!(figure.line().contains(r#""peer":5.0,"ratio":2.0"#));
        assert!(figure.line().contains(r#""peer_recorded":true"#));
    }

    #[test]
    fn a_missing_ratio_and_one_that_is_no_number_fail() {
        let missing = Figure::rate("x", "1/s", 1.0, &samples(&[1.0]));
        assert!(!missing.passes());
        assert!(missing.line().contains(r#""ratio":null"#));
        let nothing =
            Figure::rate("x", "1/s", 1.0, &samples(&[0.0])).against_limit(&samples(&[0.0]));
        assert!(!nothing.passes());
        assert!(nothing.line().contains(r#""ratio":null"#));
    }
}
