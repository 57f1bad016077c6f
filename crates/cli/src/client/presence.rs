//! Whether a node runs on a state folder, and where it listens: its card `node.json`, believed only while its process
//! holds the lock beside it.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::{codes, error::CliError};

/// What a node says about itself in its state folder.
#[derive(Debug, Deserialize)]
struct Card {
    pid: u32,
    ops: SocketAddr,
}

/// A node that runs.
#[derive(Debug)]
pub struct Presence {
    pub pid: u32,
    pub ops: SocketAddr,
    /// When its process began, in ticks since boot: a later process with its id began later.
    began: Option<u64>,
}

impl Presence {
    /// Reads the card. A card whose process is gone, or is another one meanwhile, counts as none.
    pub fn read(state: &Path) -> Result<Option<Self>, CliError> {
        let path = state.join("node.json");
        let text = match super::read(&path) {
            Ok(text) => text,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(unreadable(&path).because(&error)),
        };
        let Ok(card) = serde_json::from_str::<Card>(&text) else {
            return Err(CliError::new(
                codes::VERSION,
                format!("{} cannot be understood", path.display()),
            ));
        };
        let process = Process::look(card.pid);
        let holds = holds_lock(card.pid, &state.join("node.lock")).unwrap_or(true);
        let running = process.as_ref().is_some_and(Process::lives) && holds;
        Ok(running.then(|| Self {
            pid: card.pid,
            ops: card.ops,
            began: process.map(|process| process.began),
        }))
    }

    /// Whether the very process is still there.
    pub fn lives(&self) -> bool {
        Process::look(self.pid)
            .is_some_and(|process| process.lives() && Some(process.began) == self.began)
    }
}

fn unreadable(path: &Path) -> CliError {
    CliError::new(codes::STATE, format!("cannot read {}", path.display()))
}

/// Whether the process holds a lock on the file, by what the system says of its open files: read without taking the lock
/// for a moment from a node that starts. The table of all locks, `/proc/locks`, would not do: it is read page by page while
/// others come and go, and a line that stays can be missed. `None` where the process cannot be looked into.
fn holds_lock(pid: u32, path: &Path) -> Option<bool> {
    let lock = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Some(false),
        Err(_) => return None,
    };
    let process = PathBuf::from(format!("/proc/{pid}"));
    let files = fs::read_dir(process.join("fd")).ok()?;
    let held = files.flatten().any(|open| {
        let same = fs::metadata(open.path())
            .is_ok_and(|file| (file.dev(), file.ino()) == (lock.dev(), lock.ino()));
        same && fs::read_to_string(process.join("fdinfo").join(open.file_name()))
            .is_ok_and(|told| tells_of_a_lock(&told))
    });
    Some(held)
}

/// Whether what is told of an open file has a line like `lock: 1: FLOCK  ADVISORY  WRITE 708 08:01:1234 0 EOF`.
fn tells_of_a_lock(told: &str) -> bool {
    told.lines()
        .any(|line| line.starts_with("lock:") && line.contains("FLOCK"))
}

/// What the system says about a process.
#[derive(Debug, PartialEq, Eq)]
struct Process {
    state: char,
    began: u64,
}

impl Process {
    fn look(pid: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// State and start time are the 3rd and 22nd word; the 2nd, a name, may hold spaces and brackets.
    fn parse(stat: &str) -> Option<Self> {
        let (_, rest) = stat.rsplit_once(')')?;
        let words: Vec<&str> = rest.split_whitespace().collect();
        Some(Self {
            state: words.first()?.chars().next()?,
            began: words.get(19)?.parse().ok()?,
        })
    }

    fn lives(&self) -> bool {
        !matches!(self.state, 'Z' | 'X')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_whatever_its_name() {
        let stat = "42 (a) (b)) S 1 42 42 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 98765 1 1";
        assert_eq!(
            Process::parse(stat),
            Some(Process {
                state: 'S',
                began: 98765
            })
        );
        assert_eq!(Process::parse("rubbish"), None);
        assert!(Process::look(std::process::id()).unwrap().lives());
    }

    #[test]
    fn a_lock_is_known_among_what_is_told_of_a_file() {
        let open = "pos:\t0\nflags:\t02100002\nmnt_id:\t29\nino:\t1234\n";
        assert!(!tells_of_a_lock(open));
        let posix = format!("{open}lock:\t1: POSIX  ADVISORY  WRITE 708 08:01:1234 0 EOF\n");
        assert!(!tells_of_a_lock(&posix));
        let held = format!("{open}lock:\t1: FLOCK  ADVISORY  WRITE 708 08:01:1234 0 EOF\n");
        assert!(tells_of_a_lock(&held));
    }

    #[test]
    fn a_card_that_a_dead_node_left_counts_as_none() {
        let state = tempfile::tempdir().unwrap();
        let card =
            |pid: u32| format!("{{\"pid\":{pid},\"ops\":\"127.0.0.1:1\",\"version\":\"x\"}}");
        assert!(Presence::read(state.path()).unwrap().is_none());
        // This process lives, but holds no lock here: the id was used again.
        std::fs::write(state.path().join("node.lock"), "").unwrap();
        std::fs::write(state.path().join("node.json"), card(std::process::id())).unwrap();
        assert!(Presence::read(state.path()).unwrap().is_none());
        std::fs::write(state.path().join("node.json"), card(u32::MAX)).unwrap();
        assert!(Presence::read(state.path()).unwrap().is_none());
        std::fs::write(state.path().join("node.json"), "{}").unwrap();
        assert!(Presence::read(state.path()).is_err());
    }

    #[test]
    fn a_node_that_holds_its_lock_is_there() {
        let state = tempfile::tempdir().unwrap();
        let lock = std::fs::File::create(state.path().join("node.lock")).unwrap();
        lock.try_lock().unwrap();
        let card = format!("{{\"pid\":{},\"ops\":\"127.0.0.1:1\"}}", std::process::id());
        std::fs::write(state.path().join("node.json"), card).unwrap();
        assert!(Presence::read(state.path()).unwrap().unwrap().lives());
    }

    #[test]
    fn a_held_lock_is_seen_while_hundreds_of_others_come_and_go() {
        let state = tempfile::tempdir().unwrap();
        let lock = std::fs::File::create(state.path().join("node.lock")).unwrap();
        lock.try_lock().unwrap();
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let files: Vec<_> = (0..300)
                    .map(|n| std::fs::File::create(state.path().join(n.to_string())).unwrap())
                    .collect();
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    files.iter().for_each(|file| file.lock().unwrap());
                    files.iter().for_each(|file| file.unlock().unwrap());
                }
            });
            let missed = (0..200)
                .filter(|_| {
                    holds_lock(std::process::id(), &state.path().join("node.lock")) != Some(true)
                })
                .count();
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            assert_eq!(missed, 0);
        });
    }
}
