//! Pure modules take what they need as arguments: they import no runtime, file system, socket, clock or adapter.

use crate::facts::Kind;
use crate::tree::{Finding, Tree};

/// The modules that decide and do not act, as files.
const PURE: &[&str] = &[
    "crates/context/src/dispatch/delivery.rs",
    "crates/context/src/dispatch/waiting.rs",
    "crates/context/src/files/settle.rs",
    "crates/context/src/files/table.rs",
    "crates/context/src/path.rs",
    "crates/context/src/pattern.rs",
    "crates/context/src/subscription/index.rs",
    "crates/context/src/subscription/predicate.rs",
    "crates/deploy/src/backend/process/alias.rs",
    "crates/deploy/src/backend/process/wire.rs",
    "crates/deploy/src/health/machine.rs",
    "crates/deploy/src/log/line.rs",
    "crates/deploy/src/resolve.rs",
    "crates/deploy/src/spec/address.rs",
    "crates/deploy/src/spec/check.rs",
    "crates/deploy/src/spec/cross.rs",
    "crates/deploy/src/spec/hint.rs",
    "crates/deploy/src/spec/order.rs",
    "crates/deploy/src/spec/port.rs",
    "crates/deploy/src/spec/quantity.rs",
    "crates/deploy/src/spec/rules.rs",
    "crates/deploy/src/spec/schema.rs",
    "crates/deploy/src/spec/shape.rs",
    "crates/deploy/src/spec/tree.rs",
    "crates/deploy/src/spec/view.rs",
    "crates/deploy/src/supervise/lifecycle.rs",
    "crates/deploy/src/supervise/order.rs",
    "crates/flow/src/engine/driver/sample.rs",
    "crates/flow/src/engine/fuse.rs",
    "crates/flow/src/engine/inbox.rs",
    "crates/flow/src/engine/joins.rs",
    "crates/flow/src/engine/results.rs",
    "crates/flow/src/engine/timers.rs",
    "crates/flow/src/policy/breaker.rs",
    "crates/flow/src/policy/budget.rs",
    "crates/flow/src/policy/check.rs",
    "crates/flow/src/policy/guard.rs",
    "crates/flow/src/policy/mod.rs",
    "crates/flow/src/policy/retry.rs",
    "crates/flow/src/state/codec.rs",
    "crates/flow/src/state/record.rs",
    "crates/flow/src/observe/payload.rs",
    "crates/flow/src/observe/record.rs",
    "crates/flow/src/observe/trace_context.rs",
    "crates/flow/src/observe/window.rs",
    "crates/flow/src/stream/resequence.rs",
    "crates/flow/src/stream/sse.rs",
    "crates/flow/src/stream/ws.rs",
    "crates/flow/src/graph/check/cycles.rs",
    "crates/flow/src/graph/check/mod.rs",
    "crates/flow/src/graph/check/nodes.rs",
    "crates/flow/src/graph/draw.rs",
    "crates/flow/src/graph/sketch.rs",
    "crates/kernel/src/rate.rs",
    "crates/kernel/src/retry.rs",
    "crates/messaging/src/agent/policy.rs",
    "crates/messaging/src/codec.rs",
    "crates/messaging/src/compat/converge.rs",
    "crates/messaging/src/discovery/descriptor.rs",
    "crates/messaging/src/discovery/introduction.rs",
    "crates/messaging/src/frame/merkle.rs",
    "crates/messaging/src/identity/table.rs",
    "crates/messaging/src/frame/wide.rs",
    "crates/messaging/src/hook/order.rs",
    "crates/messaging/src/rate/pot.rs",
    "crates/messaging/src/rate/table.rs",
    "crates/messaging/src/replay/pace.rs",
    "crates/messaging/src/replay/plan.rs",
    "crates/messaging/src/replay/verify/act.rs",
    "crates/messaging/src/route.rs",
    "crates/messaging/src/task/machine.rs",
    "crates/messaging/src/task/model.rs",
    "crates/messaging/src/transport/tcp/bus/recent.rs",
    "crates/messaging/src/transport/tcp/control.rs",
    "crates/messaging/src/webhook/breaker.rs",
    "crates/messaging/src/webhook/egress.rs",
    "crates/messaging/src/webhook/outbound.rs",
    "crates/messaging/src/webhook/profile.rs",
    "crates/node/src/claims.rs",
    "crates/node/src/flows/book.rs",
    "crates/node/src/flows/series.rs",
    "crates/node/src/link/delta.rs",
    "crates/node/src/link/origin.rs",
    "crates/node/src/link/verdict.rs",
    "crates/ops/src/auth/check.rs",
    "crates/ops/src/client/query.rs",
    "crates/ops/src/client/sse.rs",
    "crates/ops/src/events/filter.rs",
    "crates/ops/src/host.rs",
    "crates/ops/src/negotiate.rs",
    "crates/ops/src/server/activity.rs",
    "crates/store/src/journal/archive/line.rs",
    "crates/store/src/journal/chain.rs",
    "crates/store/src/queue/index.rs",
];

/// What a pure module may not name, and everything below it.
///
/// Addresses, headers and byte strings are data and may be named: see [`DATA`].
const BANNED: &[&str] = &[
    "axum",
    "hyper",
    "landlock",
    "libc",
    "notify",
    "rusqlite",
    "rustix",
    "std::env",
    "std::fs",
    "std::net",
    "std::os",
    "std::process",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
    "tokio",
    "tokio_util",
];

/// What stands below something banned and only holds values.
const DATA: &[&str] = &[
    "axum::http",
    "std::net::IpAddr",
    "std::net::Ipv4Addr",
    "std::net::Ipv6Addr",
    "std::net::SocketAddr",
    "std::os::unix::ffi",
];

/// Names that read a clock or draw randomness where they are used, wherever they come from.
const READS: &[&str] = &[
    "SystemClock",
    "Instant",
    "SystemTime",
    "random_unit",
    "getrandom",
];

/// Methods that read a clock.
const READING_METHODS: &[&str] = &["wall", "mono"];

pub fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = check_files(tree, PURE);
    findings.extend(unlisted(tree, PURE));
    findings
}

/// Files that say `Pure:`, `(pure)` or `Pure.` of themselves and are not listed.
fn unlisted(tree: &Tree, pure: &[&str]) -> Vec<Finding> {
    let says = |text: &str| {
        let doc = text.lines().take_while(|line| line.starts_with("//!"));
        doc.into_iter().any(|line| {
            ["(pure)", "Pure:", "Pure."]
                .iter()
                .any(|word| line.contains(word))
        })
    };
    tree.rust
        .iter()
        .filter(|file| says(&file.text) && !pure.contains(&file.path.as_str()))
        .map(|file| {
            Finding::new(
                &file.path,
                1,
                "says that it is pure and is not listed as such",
            )
        })
        .collect()
}

fn check_files(tree: &Tree, pure: &[&str]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for path in pure {
        let Some(file) = tree.rust.iter().find(|file| file.path == *path) else {
            findings.push(Finding::new(
                path,
                1,
                "is listed as pure and does not exist",
            ));
            continue;
        };
        for (fact, named) in file.facts.paths().filter(|(fact, _)| !fact.in_test) {
            let below = |banned: &str| named == banned || named.starts_with(&format!("{banned}::"));
            let used = matches!(fact.kind, Kind::Path(_));
            let reads = |word: &str| used && named.split("::").any(|part| part == word);
            let acts =
                BANNED.iter().any(|banned| below(banned)) && !DATA.iter().any(|data| below(data));
            if acts || READS.iter().any(|word| reads(word)) {
                findings.push(Finding::new(
                    path,
                    fact.line,
                    format!("a pure module names `{named}`"),
                ));
            }
        }
        for fact in file.facts.all.iter().filter(|fact| !fact.in_test) {
            if let Kind::Method(name, _) = &fact.kind
                && READING_METHODS.contains(&name.as_str())
            {
                findings.push(Finding::new(
                    path,
                    fact.line,
                    format!("a pure module reads a clock by `.{name}()`"),
                ));
            }
        }
    }
    findings
}

#[test]
fn a_pure_module_that_acts_is_found() {
    let text = "//! A.\nuse std::time::Duration;\nuse std::{fs, io};\nuse volary_kernel::clock::SystemClock;\n\
                fn f() { tokio::spawn(g()); clock.wall(); SystemClock::default(); }\n#[cfg(test)]\nmod tests { use std::fs; }";
    let tree = Tree::fixture(&[("crates/a/src/lib.rs", text)]);
    let lines: Vec<usize> = check_files(&tree, &["crates/a/src/lib.rs"])
        .iter()
        .map(|f| f.line)
        .collect();
    assert_eq!(lines, [3, 5, 5, 5]);
}

#[test]
fn a_listed_file_that_is_gone_is_found() {
    assert_eq!(
        check_files(&Tree::fixture(&[]), &["crates/a/src/gone.rs"]).len(),
        1
    );
}

#[test]
fn a_file_that_claims_purity_without_being_held_to_it_is_found() {
    let tree = Tree::fixture(&[
        (
            "crates/a/src/claims.rs",
            "//! Numbers. Pure: `now` is given.\n",
        ),
        ("crates/a/src/silent.rs", "//! Numbers.\n"),
    ]);
    assert_eq!(unlisted(&tree, &[]).len(), 1);
    assert!(unlisted(&tree, &["crates/a/src/claims.rs"]).is_empty());
}
