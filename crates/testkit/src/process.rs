//! Processes seen from outside: who is alive, what they cost, and the end of them.
//!
//! All of it reads `/proc`. A process that ends while it is looked at simply is not there.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal};

/// How often [`eventually`] asks.
const POLL: Duration = Duration::from_millis(10);

/// Asks until the condition holds or the deadline has passed, and says whether it held. Blocks its thread: this is for
/// conditions on other processes, which no clock of ours can pause.
#[must_use]
#[expect(
    clippy::disallowed_methods,
    reason = "other processes run on real time"
)]
pub fn eventually(deadline: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let start = std::time::Instant::now();
    loop {
        if condition() {
            return true;
        }
        if start.elapsed() >= deadline {
            return false;
        }
        std::thread::sleep(POLL);
    }
}

/// Whether the process exists and is not a zombie.
#[must_use]
pub fn is_alive(pid: u32) -> bool {
    stat(pid).is_some_and(|stat| stat.state != 'Z' && stat.state != 'X')
}

/// Sends SIGKILL and waits until the process is gone, with its files and locks: a large one takes its time, and shows no
/// environment meanwhile. One that is gone already is fine.
pub fn kill9(pid: u32) {
    signal(pid, Signal::KILL);
    // The first thread may be gone while another one still holds what they share.
    let threads = || std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    let gone = || !is_alive(pid) && threads() <= 1;
    assert!(
        eventually(Duration::from_secs(20), gone),
        "process {pid} outlives SIGKILL"
    );
}

/// Sends SIGTERM; a process that is gone already is fine.
pub fn terminate(pid: u32) {
    signal(pid, Signal::TERM);
}

fn signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pid = pid.expect("process ids are positive numbers below 2^22");
    if let Err(error) = rustix::process::kill_process(pid, signal)
        && error != rustix::io::Errno::SRCH
    {
        panic!("cannot signal process {}: {error}", pid.as_raw_nonzero());
    }
}

/// Living processes whose environment holds the text. Processes of other users are seen by root only.
#[must_use]
pub fn processes_with_env(marker: &str) -> Vec<u32> {
    living()
        .filter(|pid| holds(&file(*pid, "environ"), marker))
        .collect()
}

/// Living processes whose environment, arguments or working folder hold the text: also those whose environment was
/// cleared on the way.
#[must_use]
pub fn processes_touching(marker: &str) -> Vec<u32> {
    let folder = |pid: u32| std::fs::read_link(file(pid, "cwd")).unwrap_or_default();
    living()
        .filter(|pid| {
            holds(&file(*pid, "environ"), marker)
                || holds(&file(*pid, "cmdline"), marker)
                || folder(*pid).to_string_lossy().contains(marker)
        })
        .collect()
}

/// The process and everything below it, parents first.
#[must_use]
pub fn descendants(root: u32) -> Vec<u32> {
    let parents: Vec<(u32, u32)> = living()
        .filter_map(|pid| Some((pid, stat(pid)?.parent)))
        .collect();
    let mut found = vec![root];
    let mut at = 0;
    while at < found.len() {
        let parent = found[at];
        found.extend(
            parents
                .iter()
                .filter(|(_, of)| *of == parent)
                .map(|(pid, _)| *pid),
        );
        at += 1;
    }
    found
}

/// The name of the program, as the kernel keeps it (15 bytes).
#[must_use]
pub fn name(pid: u32) -> String {
    std::fs::read_to_string(file(pid, "comm"))
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// The arguments of the process, joined by spaces.
#[must_use]
pub fn arguments(pid: u32) -> String {
    let bytes = std::fs::read(file(pid, "cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes)
        .replace('\0', " ")
        .trim()
        .to_owned()
}

/// Proportional memory of the process in bytes: shared pages are divided among those who share them. `None` when it is gone
/// or not ours to read.
#[must_use]
pub fn proportional_memory(pid: u32) -> Option<u64> {
    let rollup = std::fs::read_to_string(file(pid, "smaps_rollup")).ok()?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Processor time that the process has used, user and system; that of children it waited for is not in it.
#[must_use]
pub fn processor_time(pid: u32) -> Option<Duration> {
    let ticks = stat(pid)?.ticks;
    let per_second = rustix::param::clock_ticks_per_second();
    Some(Duration::from_secs_f64(ticks as f64 / per_second as f64))
}

struct Stat {
    state: char,
    parent: u32,
    ticks: u64,
}

fn stat(pid: u32) -> Option<Stat> {
    let text = std::fs::read_to_string(file(pid, "stat")).ok()?;
    // The name stands in parentheses and may hold any character, so fields count from the last one.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some(Stat {
        state: fields.first()?.chars().next()?,
        parent: u32::try_from(number(1)?).ok()?,
        ticks: number(11)? + number(12)?,
    })
}

fn living() -> impl Iterator<Item = u32> {
    let entries = std::fs::read_dir("/proc").expect("/proc is mounted");
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid| is_alive(*pid))
}

fn file(pid: u32, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{name}"))
}

fn holds(path: &Path, marker: &str) -> bool {
    let bytes = std::fs::read(path).unwrap_or_default();
    bytes
        .windows(marker.len())
        .any(|window| window == marker.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_marked_process_is_found_until_it_is_killed() {
        let marker = format!("volary-mark-{}", std::process::id());
        let mut child = Command::new("sh")
            .args(["-c", "read line"])
            .env("MARK", &marker)
            .stdin(Stdio::piped())
            .spawn()
            .expect("a shell starts");
        let pid = child.id();
        assert!(eventually(Duration::from_secs(5), || processes_with_env(
            &marker
        ) == [pid]));
        assert!(processes_touching(&marker).contains(&pid));
        assert!(descendants(std::process::id()).contains(&pid));
        assert!(proportional_memory(pid).is_some_and(|bytes| bytes > 0));
        assert!(processor_time(pid).is_some());
        kill9(pid);
        let _ = child.wait().expect("the killed child is reaped");
        assert!(!is_alive(pid));
        assert!(processes_with_env(&marker).is_empty());
    }

    #[test]
    fn a_condition_that_never_holds_ends_at_the_deadline() {
        assert!(!eventually(Duration::from_millis(30), || false));
    }
}
