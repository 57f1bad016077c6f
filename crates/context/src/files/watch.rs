//! Notifications of the operating system, taken as hints: which paths to look at, never what happened to them.
//!
//! Each directory is watched by itself, before it is listed, so that excluded trees cost nothing and nothing falls
//! between watching and listing.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use notify::{
    ErrorKind, Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode, CreateKind, ModifyKind, RemoveKind, RenameMode},
};
use parking_lot::{Condvar, Mutex};

use super::settle::Motion;

/// Most paths waiting to be looked at; beyond it everything is looked at again.
const MAX_HINTS: usize = 65_536;

/// What is hinted of one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hint {
    /// Whether a writer is probably still at work.
    pub motion: Motion,
    /// Whether a directory may have come or gone here.
    pub structure: bool,
}

/// What has gathered since the last look.
#[derive(Debug, Default)]
pub struct Gathered {
    /// Whether the run should end.
    pub closed: bool,
    /// Hints were lost, for this reason: look at everything.
    pub rescan: Option<&'static str>,
    /// Hinted paths.
    pub paths: HashMap<PathBuf, Hint>,
}

/// Where the notification thread puts hints and the worker takes them. Bounded; a clone shares it.
#[derive(Debug, Clone, Default)]
pub struct Hints(Arc<(Mutex<Gathered>, Condvar)>);

impl Hints {
    fn change(&self, change: impl FnOnce(&mut Gathered)) {
        let (state, wake) = &*self.0;
        change(&mut state.lock());
        wake.notify_one();
    }

    /// Asks the worker to end.
    pub fn close(&self) {
        self.change(|state| state.closed = true);
    }

    /// Asks for a look at everything.
    pub fn rescan(&self, reason: &'static str) {
        self.change(|state| {
            state.rescan.get_or_insert(reason);
            state.paths = HashMap::new();
        });
    }

    /// Whether the run should end.
    pub fn is_closed(&self) -> bool {
        self.0.0.lock().closed
    }

    fn add(&self, paths: impl IntoIterator<Item = PathBuf>, hint: Hint) {
        self.change(|state| {
            if state.rescan.is_some() {
                return;
            }
            for path in paths {
                state
                    .paths
                    .entry(path)
                    .and_modify(|old| {
                        *old = Hint {
                            motion: hint.motion,
                            structure: old.structure || hint.structure,
                        }
                    })
                    .or_insert(hint);
            }
            if state.paths.len() > MAX_HINTS {
                state.rescan = Some("too many hints at once");
                state.paths = HashMap::new();
            }
        });
    }

    /// Waits at most `limit` for anything to gather, and takes it.
    pub fn wait(&self, limit: Duration) -> Gathered {
        let (state, wake) = &*self.0;
        let mut state = state.lock();
        let idle = |state: &mut Gathered| {
            !state.closed && state.rescan.is_none() && state.paths.is_empty()
        };
        if !limit.is_zero() {
            let _timed_out = wake.wait_while_for(&mut state, idle, limit);
        }
        let closed = state.closed;
        let taken = std::mem::take(&mut *state);
        state.closed = closed;
        taken
    }

    /// Takes in one notification.
    pub fn take_in(&self, event: notify::Result<Event>) {
        match event {
            Ok(event) if event.need_rescan() => self.rescan("notifications were lost"),
            Ok(event) => {
                if let Some(hint) = hint(&event.kind) {
                    self.add(event.paths, hint);
                }
            }
            Err(_) => self.rescan("notifications failed"),
        }
    }
}

/// What a notification hints at; `None` if no content can have changed.
fn hint(kind: &EventKind) -> Option<Hint> {
    let (motion, structure) = match kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => (Motion::Settled, false),
        // The old and the new name came as two notifications before.
        EventKind::Access(_) | EventKind::Modify(ModifyKind::Name(RenameMode::Both)) => {
            return None;
        }
        EventKind::Modify(ModifyKind::Name(RenameMode::To)) => (Motion::Settled, true),
        EventKind::Create(CreateKind::File)
        | EventKind::Remove(RemoveKind::File)
        | EventKind::Modify(ModifyKind::Data(_) | ModifyKind::Metadata(_)) => {
            (Motion::Moving, false)
        }
        _ => (Motion::Moving, true),
    };
    Some(Hint { motion, structure })
}

// --- watches -----------------------------------------------------------------------------------

/// Why a directory cannot be watched.
#[derive(Debug, PartialEq, Eq)]
pub enum WatchError {
    /// It is not there any more.
    Vanished,
    /// The operating system has no more watches or instances to give.
    Limit(String),
    /// Anything else.
    Other(String),
}

impl From<notify::Error> for WatchError {
    fn from(error: notify::Error) -> Self {
        match &error.kind {
            ErrorKind::PathNotFound => Self::Vanished,
            ErrorKind::MaxFilesWatch => Self::Limit(
                "the limit of file watches is reached (fs.inotify.max_user_watches)".into(),
            ),
            ErrorKind::Io(io) => match io.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Self::Vanished,
                // EMFILE, ENFILE
                _ if matches!(io.raw_os_error(), Some(24 | 23)) => Self::Limit(
                    "the limit of watchers is reached (fs.inotify.max_user_instances)".into(),
                ),
                _ => Self::Other(io.to_string()),
            },
            _ => Self::Other(error.to_string()),
        }
    }
}

/// The watches of one run. Dropping it removes them and ends its thread.
#[derive(Debug)]
pub struct Watches {
    watcher: RecommendedWatcher,
    /// Watches that may still be added; a finite number only in tests of what happens at the system's limit.
    left: usize,
}

impl Watches {
    /// A watcher without watches that reports to `hints`.
    ///
    /// # Errors
    /// [`WatchError`] when the operating system gives none.
    pub fn new(hints: Hints, left: usize) -> Result<Self, WatchError> {
        let config = notify::Config::default().with_follow_symlinks(false);
        let watcher = RecommendedWatcher::new(move |event| hints.take_in(event), config)?;
        Ok(Self { watcher, left })
    }

    /// Watches one directory, not what is below it. Doing it again is right and harmless.
    ///
    /// # Errors
    /// [`WatchError`] when it is gone or no watch can be had.
    pub fn add(&mut self, directory: &Path) -> Result<(), WatchError> {
        let limit = || notify::Error::new(ErrorKind::MaxFilesWatch);
        self.left = self.left.checked_sub(1).ok_or_else(limit)?;
        Ok(self.watcher.watch(directory, RecursiveMode::NonRecursive)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use notify::event::{DataChange, Flag};

    const NOW: Duration = Duration::ZERO;

    fn event(kind: EventKind, path: &str) -> notify::Result<Event> {
        Ok(Event::new(kind).add_path(path.into()))
    }

    #[test]
    fn lost_notifications_ask_for_a_look_at_everything() {
        let hints = Hints::default();
        hints.take_in(event(EventKind::Create(CreateKind::File), "/a"));
        hints.take_in(Ok(Event::new(EventKind::Other).set_flag(Flag::Rescan)));
        hints.take_in(event(EventKind::Create(CreateKind::File), "/b"));
        let gathered = hints.wait(NOW);
        assert_eq!(
            (gathered.rescan, gathered.paths.len()),
            (Some("notifications were lost"), 0)
        );
        assert_eq!(hints.wait(NOW).rescan, None);
    }

    #[test]
    fn hints_of_one_path_gather_into_one_and_the_last_motion_counts() {
        let hints = Hints::default();
        hints.take_in(event(EventKind::Create(CreateKind::Folder), "/a"));
        hints.take_in(event(
            EventKind::Modify(ModifyKind::Data(DataChange::Any)),
            "/a",
        ));
        hints.take_in(event(
            EventKind::Access(AccessKind::Close(AccessMode::Write)),
            "/a",
        ));
        let paths = hints.wait(NOW).paths;
        assert_eq!(
            paths[Path::new("/a")],
            Hint {
                motion: Motion::Settled,
                structure: true
            }
        );
        assert_eq!(paths.len(), 1);
    }

    #[test]
    fn reading_a_file_hints_at_nothing() {
        let hints = Hints::default();
        hints.take_in(event(
            EventKind::Access(AccessKind::Open(AccessMode::Any)),
            "/a",
        ));
        assert_eq!(hints.wait(NOW).paths.len(), 0);
    }

    #[test]
    fn too_many_hints_become_a_look_at_everything() {
        let hints = Hints::default();
        for n in 0..=MAX_HINTS {
            hints.take_in(event(EventKind::Create(CreateKind::File), &format!("/{n}")));
        }
        let gathered = hints.wait(NOW);
        assert_eq!((gathered.rescan.is_some(), gathered.paths.len()), (true, 0));
    }

    #[test]
    fn a_closed_gathering_stays_closed() {
        let hints = Hints::default();
        hints.close();
        assert!(hints.wait(Duration::from_secs(60)).closed);
        assert!(hints.wait(NOW).closed && hints.is_closed());
    }

    #[test]
    fn a_limit_is_told_apart_from_a_missing_directory() {
        let limit = notify::Error::new(ErrorKind::MaxFilesWatch);
        assert!(matches!(WatchError::from(limit), WatchError::Limit(_)));
        let instances = notify::Error::io(io::Error::from_raw_os_error(24));
        assert!(matches!(WatchError::from(instances), WatchError::Limit(_)));
        let mut watches = Watches::new(Hints::default(), usize::MAX).unwrap();
        assert_eq!(
            watches.add(Path::new("/no/such/directory")),
            Err(WatchError::Vanished)
        );
    }
}
