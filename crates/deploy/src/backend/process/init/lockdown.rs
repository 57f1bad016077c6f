//! Landlock and no-new-privileges, entered by the init itself, so that every command of a replica shares one
//! domain: none can mount, none can trace a process outside it, none gains privileges by a set-user-id file.

use std::io;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetStatus, Scope,
};

use super::super::wire::{Plan, View};
use super::{At, StepError};

/// Confines this process and everything it starts.
pub(super) fn enter(plan: &Plan) -> Result<(), StepError> {
    rustix::thread::set_no_new_privs(true).at(|| "no-new-privileges".to_owned())?;
    if !plan.landlock {
        return Ok(());
    }
    let open = if plan.view == View::Mounts {
        vec![PathBuf::from("/")]
    } else {
        allowed(plan)
    };
    let status = restrict(&open)
        .map_err(io::Error::other)
        .at(|| "landlock".to_owned())?;
    if plan.view == View::Landlock && status == RulesetStatus::NotEnforced {
        return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)).at(|| "landlock".to_owned());
    }
    Ok(())
}

fn restrict(open: &[PathBuf]) -> Result<RulesetStatus, landlock::RulesetError> {
    let all = AccessFs::from_all(ABI::V7);
    let mut rules: RulesetCreated = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)?
        .scope(Scope::AbstractUnixSocket)?
        .create()?;
    for path in open {
        if let Ok(fd) = PathFd::new(path) {
            rules = rules.add_rule(PathBeneath::new(fd, all))?;
        }
    }
    Ok(rules.restrict_self()?.ruleset)
}

/// Everything beside the way down to a hidden directory, and the replica's own places inside it. A rule
/// covers a whole subtree, so the directories on the way cannot be listed: their other entries are named.
fn allowed(plan: &Plan) -> Vec<PathBuf> {
    let mut open = Vec::new();
    visit(Path::new("/"), &plan.hide, &mut open);
    open.extend(plan.private.iter().map(|private| private.dir.clone()));
    open.extend(plan.binds.iter().map(|bind| bind.source.clone()));
    open
}

fn visit(directory: &Path, hidden: &[PathBuf], open: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if hidden.contains(&path) {
            continue;
        }
        if hidden.iter().any(|hidden| hidden.starts_with(&path)) {
            visit(&path, hidden, open);
        } else {
            open.push(path);
        }
    }
}
