//! What machines read: metrics in both forms, the OpenAPI document, the snapshots of the sections.

#![expect(clippy::unwrap_used, reason = "a test whose setup fails has failed")]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{TestSection, get, raw, start, status};
use serde_json::Value;
use volary_ops::{MetricsAccess, Section as _};

/// Reads an exposition as a scraper would and complains about what the formats forbid.
fn lint(text: &str, open_metrics: bool) -> BTreeMap<String, f64> {
    let (mut types, mut samples) = (BTreeMap::new(), BTreeMap::new());
    let mut family = String::new();
    let mut seen = BTreeSet::new();
    assert!(text.ends_with('\n'));
    assert_eq!(text.ends_with("# EOF\n"), open_metrics);
    for line in text.lines().filter(|line| *line != "# EOF") {
        if let Some(rest) = line.strip_prefix("# ") {
            let mut words = rest.splitn(3, ' ');
            let (keyword, name) = (words.next().unwrap(), words.next().unwrap());
            if name != family {
                assert!(
                    seen.insert(name.to_owned()),
                    "family {name} stands in two places"
                );
                name.clone_into(&mut family);
            }
            match keyword {
                "TYPE" => assert!(
                    types
                        .insert(name.to_owned(), words.next().unwrap().to_owned())
                        .is_none()
                ),
                "HELP" => assert!(words.next().is_some_and(|help| !help.is_empty()), "{line}"),
                "UNIT" => assert!(
                    open_metrics && name.ends_with(words.next().unwrap()),
                    "{line}"
                ),
                other => panic!("unknown keyword {other}"),
            }
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap();
        let name = series.split('{').next().unwrap();
        assert!(name.starts_with("volary_"), "{line}");
        let kind = types
            .get(&family)
            .unwrap_or_else(|| panic!("{line} has no TYPE"));
        let suffixes: &[&str] = match (kind.as_str(), open_metrics) {
            ("counter", true) => &["_total"],
            ("histogram", _) => &["_bucket", "_sum", "_count"],
            _ => &[""],
        };
        assert!(
            suffixes
                .iter()
                .any(|suffix| name == format!("{family}{suffix}")),
            "{line} in family {family}"
        );
        assert!(
            samples
                .insert(series.to_owned(), value.parse().unwrap())
                .is_none(),
            "{line} twice"
        );
    }
    samples
}

fn parts(answer: &str) -> (&str, &str) {
    answer.split_once("\r\n\r\n").unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_come_in_the_form_that_is_asked_for_and_both_are_sound() {
    let ops = start(|_| {});
    let _ = ops.operator().text("/v1/who").await.unwrap();
    let text = raw(ops.address(), &get("/metrics", &[]));
    assert!(
        parts(&text)
            .0
            .contains("content-type: text/plain; version=0.0.4; charset=utf-8"),
        "{text}"
    );
    let samples = lint(parts(&text).1, false);
    assert_eq!(samples["volary_build_info{version=\"1.2.3\"}"], 1.0);
    assert!(samples["volary_process_resident_memory_bytes"] > 0.0);
    assert!(samples["volary_http_requests_total{surface=\"operator\",class=\"2xx\"}"] >= 1.0);
    let open = raw(
        ops.address(),
        &get(
            "/metrics",
            &["Accept: application/openmetrics-text; version=1.0.0"],
        ),
    );
    assert!(
        parts(&open)
            .0
            .contains("application/openmetrics-text; version=1.0.0; charset=utf-8"),
        "{open}"
    );
    let open = lint(parts(&open).1, true);
    let names = |samples: &BTreeMap<String, f64>| samples.keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(names(&open), names(&samples));
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_can_be_closed() {
    let ops = start(|config| config.metrics = MetricsAccess::Token);
    assert_eq!(status(&raw(ops.address(), &get("/metrics", &[]))), 401);
    assert!(
        ops.operator()
            .text("/metrics")
            .await
            .unwrap()
            .contains("volary_build_info")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_mounted_route_is_in_the_api_document_and_nothing_else() {
    let ops = start(|_| {});
    let document: Value = ops.operator().get("/v1/openapi.json", &()).await.unwrap();
    let same: Value = ops.link("a-0").get("/v1/openapi.json", &()).await.unwrap();
    assert_eq!(document, same);
    let mut documented = BTreeSet::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            assert!(operation["responses"]["200"].is_object(), "{method} {path}");
            assert!(operation["security"].is_array(), "{method} {path}");
            documented.insert((method.to_uppercase(), path.clone()));
        }
    }
    for (method, path) in &documented {
        let known = [
            "/health",
            "/ready",
            "/metrics",
            "/events",
            "/v1/events",
            "/v1/openapi.json",
            "/v1/inspect",
        ];
        let of_section = known.contains(&path.as_str()) || path.starts_with("/v1/");
        assert!(of_section, "{method} {path}");
    }
    assert_eq!(documented.len(), 7 + distinct(&TestSection::default()));
    // What is documented is there: nothing answers "no such route".
    for (method, path) in documented
        .iter()
        .filter(|(_, path)| !["/v1/wait", "/v1/flood", "/v1/poll"].contains(&path.as_str()))
    {
        let path = path.replace("{id}", "1");
        let token = ops.handle.operator_token().expose();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer {token}\r\nContent-Length: 0\r\n\r\n"
        );
        if path == "/events" {
            continue; // It has no end.
        }
        let answer = raw(ops.address(), &request);
        assert!(
            !answer.contains("V6006") && !answer.contains("V6007"),
            "{method} {path}: {answer}"
        );
    }
    let echo = &document["paths"]["/v1/echo"]["post"];
    assert_eq!(
        echo["security"].as_array().unwrap().len(),
        2,
        "on both surfaces"
    );
    let schema = &echo["requestBody"]["content"]["application/json"]["schema"]["$ref"];
    assert_eq!(schema, "#/components/schemas/Echo");
    assert_eq!(
        document["components"]["schemas"]["Echo"]["additionalProperties"],
        false
    );
    let thing = &document["paths"]["/v1/things/{id}"]["get"]["parameters"];
    assert_eq!(
        (&thing[0]["in"], &thing[1]["name"]),
        (&"path".into(), &"text".into())
    );
}

fn distinct(section: &TestSection) -> usize {
    // The two surfaces share `/v1/who`, `/v1/echo` and both of `/v1/wait`.
    section.routes().len() - 4
}

#[tokio::test(flavor = "multi_thread")]
async fn inspect_shows_the_snapshot_of_every_section() {
    let ops = start(|_| {});
    let inspect: Value = ops.operator().get("/v1/inspect", &()).await.unwrap();
    assert_eq!(inspect, serde_json::json!({"test": {"begun": 0}}));
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_neither_kept_nor_guessed_at_nor_shared_with_other_origins() {
    let ops = start(|_| {});
    let answer = raw(
        ops.address(),
        &get("/health", &["Origin: https://evil.example"]),
    )
    .to_lowercase();
    for header in [
        "cache-control: no-store",
        "x-content-type-options: nosniff",
        "referrer-policy: no-referrer",
    ] {
        assert!(answer.contains(header), "{answer}");
    }
    assert!(!answer.contains("access-control-"), "{answer}");
}
