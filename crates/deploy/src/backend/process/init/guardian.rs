//! Killing without a namespace: the init is the subreaper of all its descendants and kills until none is left.

use std::collections::BTreeMap;

use super::super::sys;

/// Rounds of look and kill. Each stops what it sees before it kills, so that a fork bomb loses the race.
const ROUNDS: usize = 1000;

/// Kills every descendant of this process and waits for each. Used only where no namespace could be had.
pub(super) fn kill_descendants() {
    let own = i32::try_from(std::process::id()).unwrap_or(1);
    for _ in 0..ROUNDS {
        let descendants = descendants_of(own);
        for pid in &descendants {
            let _may_have_ended = sys::kill(*pid, libc::SIGSTOP);
        }
        for pid in &descendants {
            let _may_have_ended = sys::kill(*pid, libc::SIGKILL);
        }
        while sys::reap().is_some() {}
        if descendants.is_empty() {
            return;
        }
        rustix::thread::sched_yield();
    }
}

/// Living descendants by the parent links in `/proc`.
fn descendants_of(root: i32) -> Vec<i32> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()) {
        if let Some(parent) = living_parent(pid) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = children.remove(&root).unwrap_or_default();
    let mut next = 0;
    while let Some(pid) = found.get(next).copied() {
        found.extend(children.remove(&pid).unwrap_or_default());
        next += 1;
    }
    found
}

/// The parent of a process that is not yet a zombie.
fn living_parent(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything, parentheses too: fields start after the last one.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(parent)
}
