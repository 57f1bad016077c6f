//! The shipped alerts speak of metrics that exist.

use std::collections::BTreeSet;

use crate::tree::{Finding, Tree};

const RULES: &str = "docs/recipes/alerts.yml";

/// Metrics of Prometheus itself and of its blackbox exporter.
const FOREIGN: &[&str] = &["up", "probe_success"];

pub fn check(tree: &Tree) -> Vec<Finding> {
    let Some(text) = tree.text_of(RULES) else {
        return vec![Finding::new(RULES, 1, "the alerts are missing")];
    };
    let known = names_in_code(tree);
    let mut findings = Vec::new();
    let mut in_expression = false;
    for (index, line) in text.lines().enumerate() {
        let words = line.trim_start();
        match words.split_once(':') {
            Some(("expr", _)) => in_expression = true,
            Some((key, _)) if key.chars().all(|c| c.is_ascii_lowercase()) => in_expression = false,
            _ => {}
        }
        if !in_expression {
            continue;
        }
        for name in metrics_in(words) {
            if !FOREIGN.contains(&name.as_str()) && !is_registered(&name, &known) {
                let message = format!("no code registers the metric `{name}`");
                findings.push(Finding::new(RULES, index + 1, message));
            }
        }
    }
    findings
}

/// Every string in the code that has the form of a metric's name.
fn names_in_code(tree: &Tree) -> BTreeSet<String> {
    let code = tree.rust.iter().filter(|file| !file.is_test());
    let is_name = |word: &&str| word.contains('_') && is_snake(word);
    code.flat_map(|file| file.text.split('"').filter(is_name).map(str::to_owned))
        .collect()
}

fn is_snake(word: &str) -> bool {
    word.chars()
        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

/// The facade adds prefix and suffix; a collector's names stand as they are, and may be made of a stem and a way.
fn is_registered(name: &str, known: &BTreeSet<String>) -> bool {
    match name.strip_prefix("volary_") {
        Some(facade) => {
            let counter = facade.strip_suffix("_total");
            known.contains(counter.unwrap_or(facade))
        }
        None => {
            let limited =
                name.starts_with("rate_limit_") && known.contains("rate_limit_ingress_dropped");
            known.contains(name) || limited
        }
    }
}

/// The names in an expression: words with an underscore, outside of quotes.
fn metrics_in(expression: &str) -> Vec<String> {
    let bare = expression.split('"').step_by(2);
    bare.flat_map(|part| part.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')))
        .filter(|word| word.contains('_') && is_snake(word))
        .map(str::to_owned)
        .collect()
}

#[test]
fn an_alert_on_a_metric_that_no_code_registers_is_found() {
    let code = "//! A.\nfn f(m: &Metrics) { m.counter(\"drops_here\", \"Help\"); m.counter(\"own_total\", &[]); }";
    let rules = |expression: &str| {
        let text =
            format!("- alert: A\n  expr: {expression}\n  for: 1m\n  labels: {{ no_metric: x }}\n");
        check(&Tree::fixture(&[
            (RULES, &text),
            ("crates/a/src/lib.rs", code),
        ]))
        .len()
    };
    assert_eq!(
        rules("rate(volary_drops_here_total{why=\"not_a_name\"}[5m]) > 0"),
        0
    );
    assert_eq!(rules("own_total + up"), 0);
    assert_eq!(rules("rate(volary_gone_total[5m])"), 1);
    assert_eq!(rules("drops_here"), 0);
    assert_eq!(rules("gone_total"), 1);
}
