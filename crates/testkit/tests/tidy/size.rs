//! Small files and functions: the house numbers, reported; past the hard line they fail.

use crate::facts::Kind;
use crate::tree::{Finding, RustFile, Tree};

/// Source lines of a file, its test items cut off.
const FILE_LINES: usize = 700;
/// Lines of a function from its signature to its closing brace.
const FUNCTION_LINES: usize = 100;
/// Arguments of a function, the receiver counted.
const ARGUMENTS: usize = 7;

pub fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in sources(tree) {
        let lines = source_lines(file);
        if lines > FILE_LINES {
            findings.push(Finding::new(
                &file.path,
                1,
                format!("{lines} source lines; the limit is {FILE_LINES}"),
            ));
        }
        for (line, name, lines, arguments) in functions(file) {
            if lines > FUNCTION_LINES {
                let message = format!("`{name}` has {lines} lines; the limit is {FUNCTION_LINES}");
                findings.push(Finding::new(&file.path, line, message));
            }
            if arguments > ARGUMENTS {
                let message =
                    format!("`{name}` takes {arguments} arguments; the limit is {ARGUMENTS}");
                findings.push(Finding::new(&file.path, line, message));
            }
        }
    }
    findings
}

/// Median, p90 and maximum beside the aims.
pub fn report(tree: &Tree) -> String {
    let files = spread(sources(tree).map(source_lines).collect());
    let functions = spread(
        sources(tree)
            .flat_map(functions)
            .map(|(_, _, lines, _)| lines)
            .collect(),
    );
    format!(
        "files: {} with median {} (aim 150), p90 {} (aim 400), max {} source lines\n\
         functions: {} with median {} (aim 10), p90 {} (aim 40), max {} lines",
        files.0, files.1, files.2, files.3, functions.0, functions.1, functions.2, functions.3
    )
}

fn sources(tree: &Tree) -> impl Iterator<Item = &RustFile> {
    tree.rust.iter().filter(|file| !file.is_test())
}

fn source_lines(file: &RustFile) -> usize {
    file.text
        .lines()
        .count()
        .saturating_sub(file.facts.test_lines)
}

fn functions(file: &RustFile) -> impl Iterator<Item = (usize, &str, usize, usize)> {
    file.facts
        .all
        .iter()
        .filter(|fact| !fact.in_test)
        .filter_map(|fact| match &fact.kind {
            Kind::Function {
                name,
                lines,
                arguments,
            } => Some((fact.line, name.as_str(), *lines, *arguments)),
            _ => None,
        })
}

/// Count, median, p90 and maximum.
fn spread(mut values: Vec<usize>) -> (usize, usize, usize, usize) {
    values.sort_unstable();
    let at = |share: usize| {
        values
            .get((values.len() * share / 100).min(values.len().saturating_sub(1)))
            .copied()
    };
    (
        values.len(),
        at(50).unwrap_or(0),
        at(90).unwrap_or(0),
        at(100).unwrap_or(0),
    )
}

#[test]
fn what_passes_the_hard_line_is_found() {
    let long = format!(
        "//! A.\nfn long() {{\n{}}}\n",
        "    step();\n".repeat(FUNCTION_LINES)
    );
    let wide = "fn wide(a: u8, b: u8, c: u8, d: u8, e: u8, f: u8, g: u8, h: u8) {}\n";
    let tests = format!(
        "#[cfg(test)]\nmod tests {{\n{}}}\n",
        "    // More.\n".repeat(FILE_LINES)
    );
    let found = check(&Tree::fixture(&[(
        "crates/a/src/lib.rs",
        &format!("{long}{wide}{tests}"),
    )]));
    assert_eq!(found.len(), 2, "{found:?}");
    let file = format!("//! A.\n{}", "// More.\n".repeat(FILE_LINES));
    assert_eq!(
        check(&Tree::fixture(&[("crates/a/src/lib.rs", &file)])).len(),
        1
    );
    assert!(check(&Tree::fixture(&[("crates/a/tests/all.rs", &file)])).is_empty());
}
