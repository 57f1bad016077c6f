//! What a replica uses, added up over its process tree.

use std::fs;

use super::super::report::Stats;

/// Bytes per page of memory and clock ticks per second, as the kernel reports them to user space.
const TICKS: f64 = 100.0;

/// Adds up the init and all its descendants.
pub(super) fn of_tree(init: u32) -> Stats {
    let mut stats = Stats::default();
    let mut left = vec![init];
    // Bounded by the processes there are; a tree that grows meanwhile is cut.
    while let Some(pid) = left.pop().filter(|_| stats.processes < 100_000) {
        left.extend(children(pid));
        let Some((cpu, memory)) = of_process(pid) else {
            continue;
        };
        stats.cpu_seconds += cpu;
        stats.memory_bytes += memory;
        stats.processes += 1;
    }
    stats
}

fn children(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten();
    tasks
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|text| {
            text.split_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect::<Vec<_>>()
        })
        .collect()
}

/// Processor seconds (ended children included) and resident bytes.
fn of_process(pid: u32) -> Option<(f64, u64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let ticks = |index: usize| fields.get(index)?.parse::<f64>().ok();
    let cpu = (ticks(11)? + ticks(12)? + ticks(13)? + ticks(14)?) / TICKS;
    let pages: u64 = fields.get(21)?.parse().ok()?;
    Some((cpu, pages * rustix::param::page_size() as u64))
}
