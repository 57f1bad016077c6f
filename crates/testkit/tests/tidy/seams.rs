//! Few seams: a trait that others may implement is a promise, so the workspace has at most a dozen.
//!
//! Extension traits that nobody outside can implement (a supertrait named `Sealed`) are not seams.

use crate::facts::Kind;
use crate::tree::{Finding, Tree};

/// At most this many public traits.
const LIMIT: usize = 12;

pub fn check(tree: &Tree) -> Vec<Finding> {
    let seams = seams(tree);
    if seams.len() <= LIMIT {
        return Vec::new();
    }
    let message = |name: &str| {
        format!(
            "`{name}` is one of {} public traits; the limit is {LIMIT}",
            seams.len()
        )
    };
    seams
        .iter()
        .map(|(path, line, name)| Finding::new(path, *line, message(name)))
        .collect()
}

/// The seams by name, in one line.
pub fn report(tree: &Tree) -> String {
    let names: Vec<String> = seams(tree).into_iter().map(|(_, _, name)| name).collect();
    format!(
        "public traits: {} of {LIMIT} ({})",
        names.len(),
        names.join(", ")
    )
}

fn seams(tree: &Tree) -> Vec<(String, usize, String)> {
    let domains = tree.rust.iter().filter(|file| {
        !file.is_test()
            && file
                .krate()
                .is_some_and(|krate| !matches!(krate, "bench" | "testkit"))
    });
    domains
        .flat_map(|file| {
            file.facts.all.iter().filter_map(|fact| match &fact.kind {
                Kind::PublicTrait {
                    name,
                    sealed: false,
                } if !fact.in_test => Some((file.path.clone(), fact.line, name.clone())),
                _ => None,
            })
        })
        .collect()
}

#[test]
fn the_thirteenth_seam_is_found() {
    let traits: String = (0..LIMIT)
        .map(|n| format!("pub trait T{n} {{}}\n"))
        .collect();
    let others = "pub(crate) trait Inner {}\ntrait Own {}\npub trait Ext: private::Sealed {}\n";
    let enough = format!("//! A.\n{traits}{others}");
    assert!(check(&Tree::fixture(&[("crates/a/src/lib.rs", &enough)])).is_empty());
    let too_many = format!("{enough}pub trait Last {{}}\n");
    assert_eq!(
        check(&Tree::fixture(&[("crates/a/src/lib.rs", &too_many)])).len(),
        LIMIT + 1
    );
}
