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

/// Whether the process holds a lock on the file, by the system's own table, which can be read without taking the lock
/// for a moment from a node that starts. `None` where that table cannot be read.
fn holds_lock(pid: u32, path: &Path) -> Option<bool> {
    let inode = match fs::metadata(path) {
        Ok(metadata) => metadata.ino(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Some(false),
        Err(_) => return None,
    };
    let table = fs::read_to_string(PathBuf::from("/proc/locks")).ok()?;
    Some(table.lines().any(|line| is_held(line, pid, inode)))
}

/// A line of the table: `1: FLOCK  ADVISORY  WRITE 708 08:01:1234 0 EOF`.
fn is_held(line: &str, pid: u32, inode: u64) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    let Some(at) = words
        .iter()
        .position(|word| matches!(*word, "READ" | "WRITE"))
    else {
        return false;
    };
    let holder = words.get(at + 1).and_then(|word| word.parse::<u32>().ok());
    let file = words
        .get(at + 2)
        .and_then(|word| word.rsplit(':').next())
        .and_then(|word| word.parse::<u64>().ok());
    holder == Some(pid) && file == Some(inode)
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
    fn a_lock_is_known_by_process_and_file() {
        let line = "3: FLOCK  ADVISORY  WRITE 708 08:01:1234 0 EOF";
        assert!(is_held(line, 708, 1234));
        assert!(!is_held(line, 709, 1234) && !is_held(line, 708, 1235));
        assert!(!is_held("3: -> FLOCK ADVISORY", 708, 1234));
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
}
