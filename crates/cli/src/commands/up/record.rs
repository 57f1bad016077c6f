//! What a node was started with, kept in its state folder so that a second `up` can tell whether anything changed.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;
use volary::deploy::spec::model::FleetSpec;
use volary_kernel::file::write_atomic;

use crate::{codes, error::CliError};

fn path(state: &Path) -> PathBuf {
    state.join("fleet.json")
}

/// The resolved fleet, without the values of secrets.
fn document(spec: &FleetSpec) -> Value {
    serde_json::to_value(spec).expect("a fleet has text keys and finite numbers")
}

/// Remembers what is started.
///
/// # Errors
/// When the state folder cannot be written.
pub fn write(state: &Path, spec: &FleetSpec) -> Result<(), CliError> {
    let text = format!("{:#}\n", document(spec));
    write_atomic(&path(state), text.as_bytes(), 0o600).map_err(|error| {
        CliError::new(
            codes::STATE,
            format!("cannot write {}", path(state).display()),
        )
        .because(&error)
    })
}

/// What differs between what runs and `spec`, in words; `None` if nothing does.
pub fn difference(state: &Path, spec: &FleetSpec) -> Option<String> {
    let recorded = fs::read(path(state))
        .ok()
        .and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    let Some(running) = recorded else {
        return Some("what it runs is not recorded".into());
    };
    let wanted = document(spec);
    if running == wanted {
        return None;
    }
    if running["file"] != wanted["file"] {
        return Some(format!(
            "it runs another fleet: {}",
            running["file"].as_str().unwrap_or("unknown")
        ));
    }
    let changed: Vec<String> = names(&running, &wanted);
    Some(if changed.is_empty() {
        "its fleet.yaml has changed since it was started".to_owned()
    } else {
        format!(
            "since it was started these agents have changed: {}",
            changed.join(", ")
        )
    })
}

/// Names of agents that are in only one of the two, or differ.
fn names(running: &Value, wanted: &Value) -> Vec<String> {
    let agents = |fleet: &Value| fleet["agents"].as_array().cloned().unwrap_or_default();
    let (running, wanted) = (agents(running), agents(wanted));
    let only_in = |one: &[Value], other: &[Value]| -> Vec<String> {
        let differing = one.iter().filter(|agent| !other.contains(agent));
        differing
            .filter_map(|agent| agent["name"].as_str().map(str::to_owned))
            .collect()
    };
    let mut names = only_in(&running, &wanted);
    names.extend(only_in(&wanted, &running));
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn agents_that_came_went_or_changed_are_named() {
        let running = json!({"agents": [{"name": "a", "n": 1}, {"name": "b"}, {"name": "gone"}]});
        let wanted = json!({"agents": [{"name": "a", "n": 2}, {"name": "b"}, {"name": "new"}]});
        assert_eq!(names(&running, &wanted), ["a", "gone", "new"]);
        assert_eq!(names(&running, &running), Vec::<String>::new());
    }
}
