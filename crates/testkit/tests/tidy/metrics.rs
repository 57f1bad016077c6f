//! Metric names keep the rules of the facade before it runs: snake case, no prefix, base units.

use crate::facts::Kind;
use crate::tree::{Finding, Tree};

/// What registers a metric, by the kind of its method.
const REGISTERS: &[(&str, Metric)] = &[
    ("counter", Metric::Counter),
    ("counter_family", Metric::Counter),
    ("gauge", Metric::Gauge),
    ("gauge_family", Metric::Gauge),
    ("histogram", Metric::Histogram),
    ("histogram_family", Metric::Histogram),
];

/// Units that a name may not end with, and the base unit to use.
const SCALED: &[(&str, &str)] = &[
    ("_ms", "_seconds"),
    ("_millis", "_seconds"),
    ("_milliseconds", "_seconds"),
    ("_micros", "_seconds"),
    ("_us", "_seconds"),
    ("_minutes", "_seconds"),
    ("_kb", "_bytes"),
    ("_kib", "_bytes"),
    ("_mb", "_bytes"),
    ("_mib", "_bytes"),
    ("_percent", "_ratio"),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Metric {
    Counter,
    Gauge,
    Histogram,
}

pub fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.rust.iter().filter(|file| !file.is_test()) {
        for fact in file.facts.all.iter().filter(|fact| !fact.in_test) {
            let Kind::Method(method, Some(name)) = &fact.kind else {
                continue;
            };
            let Some((_, kind)) = REGISTERS.iter().find(|(register, _)| register == method) else {
                continue;
            };
            for problem in problems(*kind, name) {
                findings.push(Finding::new(
                    &file.path,
                    fact.line,
                    format!("metric `{name}` {problem}"),
                ));
            }
        }
    }
    findings
}

fn problems(kind: Metric, name: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let snake = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        && !name.contains("__")
        && !name.ends_with('_');
    if !snake {
        problems.push("is not in snake case".to_owned());
    }
    if name.starts_with("volary_") {
        problems.push("has the prefix that the facade adds".to_owned());
    }
    if name.ends_with("_total") {
        problems.push("has the suffix that the facade adds to counters".to_owned());
    }
    if let Some((unit, base)) = SCALED.iter().find(|(unit, _)| name.ends_with(unit)) {
        problems.push(format!("ends with {unit}: use the base unit {base}"));
    }
    let has_unit = ["_seconds", "_bytes", "_ratio", "_items"]
        .iter()
        .any(|unit| name.ends_with(unit));
    if kind == Metric::Histogram && !has_unit {
        problems.push("does not end with its unit (_seconds, _bytes, _ratio, _items)".to_owned());
    }
    problems
}

#[test]
fn a_bad_name_is_found() {
    let text = "//! A.\nfn f(m: Metrics) {\nm.counter(\"volary_sent_total\", \"Help.\");\nm.histogram(\"latency_ms\", \"Help.\");\n\
                m.gauge(\"Depth\", \"Help.\");\nm.counter_family(\"messages_sent\", \"Help.\", &[]);\n}";
    let lines: Vec<usize> = check(&Tree::fixture(&[("crates/a/src/lib.rs", text)]))
        .iter()
        .map(|f| f.line)
        .collect();
    assert_eq!(lines, [3, 3, 4, 4, 5]);
}
