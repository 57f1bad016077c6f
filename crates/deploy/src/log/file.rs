//! The files of a replica's log, and the set of all logs.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;
use volary_kernel::clock::{Mono, SharedClock, Timestamp};
use volary_kernel::metric::{Counter, Metrics};
use volary_kernel::secret::Redactor;

use super::{LogConfig, Stream};

/// Logs by replica name, under one directory. Clones share them.
#[derive(Clone)]
pub struct LogSet(Arc<SetInner>);

struct SetInner {
    dir: PathBuf,
    clock: SharedClock,
    redactor: Redactor,
    dropped: Counter,
    open: Mutex<BTreeMap<String, ReplicaLog>>,
}

/// The log of one replica. Clones share it.
#[derive(Clone)]
pub struct ReplicaLog(Arc<LogInner>);

struct LogInner {
    path: PathBuf,
    clock: SharedClock,
    redactor: Redactor,
    dropped_bytes: Counter,
    state: Mutex<State>,
    /// Counts writes, for followers.
    changed: watch::Sender<u64>,
}

struct State {
    config: LogConfig,
    file: Option<File>,
    size: u64,
    /// Counts rotations since this log was opened.
    generation: u64,
    budget: Budget,
    dropped: Dropped,
}

#[derive(Debug, Default, Clone, Copy)]
struct Dropped {
    lines: u64,
    bytes: u64,
}

/// A token bucket over bytes. Pure.
#[derive(Debug)]
struct Budget {
    left: u64,
    at: Mono,
}

impl Budget {
    fn take(&mut self, bytes: u64, rate: u64, now: Mono) -> bool {
        let waited = now - self.at;
        let earned =
            u64::try_from(waited.as_micros() * u128::from(rate) / 1_000_000).unwrap_or(u64::MAX);
        if earned > 0 {
            self.left = self.left.saturating_add(earned).min(rate.saturating_mul(2));
            self.at = now;
        }
        let fits = self.left >= bytes;
        if fits {
            self.left -= bytes;
        }
        fits
    }
}

impl LogSet {
    /// Logs under `dir`, which is made when first needed.
    pub fn new(dir: PathBuf, clock: SharedClock, redactor: Redactor, metrics: &Metrics) -> Self {
        let dropped = metrics.counter(
            "replica_log_dropped_bytes",
            "Output of replicas that was not logged: too fast, or the disk refused it.",
        );
        Self(Arc::new(SetInner {
            dir,
            clock,
            redactor,
            dropped,
            open: Mutex::default(),
        }))
    }

    /// The log of a replica, opened for writing with these bounds when something is written.
    pub fn writer(&self, name: &str, config: LogConfig) -> ReplicaLog {
        let log = self.entry(name);
        log.0.state.lock().config = config;
        log
    }

    /// The log of a replica that wrote something, now or in an earlier life of the node.
    pub fn existing(&self, name: &str) -> Option<ReplicaLog> {
        let known = self.0.open.lock().get(name).cloned();
        known.or_else(|| self.path(name).exists().then(|| self.entry(name)))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.dir.join(format!("{name}.log"))
    }

    fn entry(&self, name: &str) -> ReplicaLog {
        let mut open = self.0.open.lock();
        open.entry(name.to_owned())
            .or_insert_with(|| self.open_log(self.path(name)))
            .clone()
    }

    fn open_log(&self, path: PathBuf) -> ReplicaLog {
        let config = LogConfig::default();
        let state = State {
            config,
            file: None,
            size: 0,
            generation: 0,
            budget: Budget {
                left: config.rate.saturating_mul(2),
                at: self.0.clock.mono(),
            },
            dropped: Dropped::default(),
        };
        ReplicaLog(Arc::new(LogInner {
            path,
            clock: self.0.clock.clone(),
            redactor: self.0.redactor.clone(),
            dropped_bytes: self.0.dropped.clone(),
            state: Mutex::new(state),
            changed: watch::channel(0).0,
        }))
    }
}

impl ReplicaLog {
    /// What is replaced before it is written.
    pub(super) fn redactor(&self) -> &Redactor {
        &self.0.redactor
    }

    /// Writes a remark of the node.
    pub fn remark(&self, text: &str) {
        let text = self.0.redactor.redact(text);
        let mut out = Vec::new();
        self.format(&mut out, Stream::Node, text.as_bytes(), false);
        self.append(&out);
    }

    /// Whether so many bytes may be taken now.
    pub(super) fn admit(&self, bytes: usize) -> bool {
        let now = self.0.clock.mono();
        let state = &mut *self.0.state.lock();
        let admitted = state.budget.take(bytes as u64, state.config.rate, now);
        if admitted && state.dropped.bytes > 0 {
            let Dropped { lines, bytes } = std::mem::take(&mut state.dropped);
            let rate = volary_kernel::text::format_bytes(state.config.rate);
            let text =
                format!("{lines} lines ({bytes} bytes) dropped: more than {rate} per second");
            let mut out = Vec::new();
            self.format(&mut out, Stream::Node, text.as_bytes(), false);
            self.write(state, &out);
        }
        admitted
    }

    /// Counts what was not admitted.
    pub(super) fn note_dropped(&self, lines: u64, bytes: usize) {
        self.0.dropped_bytes.inc_by(bytes as u64);
        let mut state = self.0.state.lock();
        state.dropped.lines += lines;
        state.dropped.bytes += bytes as u64;
    }

    /// Adds a line in the file's format to `out`.
    pub(super) fn format(&self, out: &mut Vec<u8>, stream: Stream, text: &[u8], partial: bool) {
        let at: Timestamp = self.0.clock.wall();
        let tag = if partial { 'P' } else { 'F' };
        let _memory_never_refuses = write!(out, "{at} {} {tag} ", stream.as_str());
        out.extend_from_slice(text);
        out.push(b'\n');
    }

    /// Appends formatted lines; a disk that refuses them is counted, never an error of the replica.
    pub(super) fn append(&self, lines: &[u8]) {
        self.write(&mut self.0.state.lock(), lines);
        self.0.changed.send_modify(|count| *count += 1);
    }

    fn write(&self, state: &mut State, lines: &[u8]) {
        let written = self
            .ready_file(state, lines.len() as u64)
            .and_then(|file| file.write_all(lines));
        match written {
            Ok(()) => state.size += lines.len() as u64,
            Err(_) => {
                self.0.dropped_bytes.inc_by(lines.len() as u64);
            }
        }
    }

    fn ready_file<'a>(&self, state: &'a mut State, more: u64) -> io::Result<&'a mut File> {
        if state.file.is_none() {
            if let Some(dir) = self.0.path.parent() {
                volary_kernel::file::create_private_dir(dir)?;
            }
            state.file = Some(self.create()?);
            state.size = fs::metadata(&self.0.path)?.len();
        }
        if state.size > 0 && state.size + more > state.config.max_file {
            self.rotate(state)?;
        }
        state
            .file
            .as_mut()
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn rotate(&self, state: &mut State) -> io::Result<()> {
        let oldest = state.config.files.max(1) - 1;
        for number in (0..oldest).rev() {
            match fs::rename(
                self.numbered(u64::from(number)),
                self.numbered(u64::from(number) + 1),
            ) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        if oldest == 0 {
            fs::remove_file(&self.0.path)?;
        }
        state.file = Some(self.create()?);
        state.size = 0;
        state.generation += 1;
        Ok(())
    }

    fn create(&self) -> io::Result<File> {
        OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&self.0.path)
    }

    /// The current file is number 0.
    fn numbered(&self, number: u64) -> PathBuf {
        if number == 0 {
            return self.0.path.clone();
        }
        let mut path = self.0.path.clone().into_os_string();
        path.push(format!(".{number}"));
        path.into()
    }

    /// All files that exist, oldest first, and the generation of the last.
    pub(super) fn open_all(&self) -> io::Result<(Vec<File>, u64)> {
        let state = self.0.state.lock();
        let mut files = Vec::new();
        for number in (0..u64::from(state.config.files.max(DEFAULT_LOOK))).rev() {
            match File::open(self.numbered(number)) {
                Ok(file) => files.push(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok((files, state.generation))
    }

    /// The file after `generation`, or the oldest that is kept; `None` if `generation` is the current one.
    pub(super) fn open_next(&self, generation: u64) -> io::Result<Option<(File, u64)>> {
        let state = self.0.state.lock();
        if generation >= state.generation {
            return Ok(None);
        }
        let behind = state.generation - generation - 1;
        let number = behind.min(u64::from(state.config.files.max(1) - 1));
        Ok(Some((
            File::open(self.numbered(number))?,
            state.generation - number,
        )))
    }

    /// Sees every later write.
    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// Where the current file is.
    pub fn path(&self) -> &Path {
        &self.0.path
    }
}

/// Rotated files looked for when the bounds are not known (after a restart).
const DEFAULT_LOOK: u32 = super::DEFAULT_FILES;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_budget_gives_what_it_earned_and_no_more() {
        let at = Mono::from_nanos(0);
        let mut budget = Budget { left: 200, at };
        assert!(budget.take(200, 100, at));
        assert!(!budget.take(1, 100, at));
        assert!(budget.take(50, 100, at + Duration::from_millis(500)));
        assert!(!budget.take(1, 100, at + Duration::from_millis(500)));
        assert!(!budget.take(201, 100, at + Duration::from_secs(60)));
        assert!(budget.take(200, 100, at + Duration::from_secs(60)));
    }
}
