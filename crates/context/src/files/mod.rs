//! The `files` source: the regular files below a directory, each a page.
//!
//! ```text
//!  notifications ─► hints ─► settle (rest 20 ms, at most 1 s) ─► look: stat, read, hash ─► table: compare ─► changes
//!  start, overflow, interval ─► walk ──┘                                                    └─ new stamps ─► states
//! ```
//!
//! Truth is the file system compared with the page table; notifications only say where to look. One thread per running
//! source does it all: [`worker`] drives, [`walk`] finds, [`root`] looks; [`settle`] and [`table`] decide and are pure.
//!
//! Left out: symbolic links (neither followed nor pages themselves), devices, pipes and sockets; what the filter
//! excludes; files over the size bound and files whose name holds a declared secret (reported). A name that is not plain text is escaped (see [`crate::path`]) and
//! reported once.
//!
//! There is no use of `notify`'s own poll watcher: looking again at intervals is what a rescan does anyway, with the
//! filter applied and without a second copy of the tree in memory.

mod look;
mod root;
pub mod settle;
mod table;
mod walk;
mod watch;
mod worker;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;
use volary_kernel::{Name, SharedClock, secret::Redactor};

pub use self::settle::SettleConfig;
use self::{
    watch::Hints,
    worker::{Span, Worker},
};
use crate::{
    pattern::{Filter, PatternError},
    source::{ChangeSink, PageSource, SourceError, Start},
};

/// Largest file that is a page: 16 MiB. Context beyond it is data, not text to be read by an agent.
pub const DEFAULT_MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;
/// Most pages of one source: 200,000, about 50 MiB of memory.
pub const DEFAULT_MAX_PAGES: usize = 200_000;
/// Time between looks without notifications: 2 s.
pub const DEFAULT_POLL_INTERVAL: Duration = Duration::from_secs(2);
/// Time between looks at everything although notifications work: 10 min. They are not perfectly reliable, and network
/// file systems send none for what others do.
pub const DEFAULT_RESCAN_INTERVAL: Duration = Duration::from_secs(600);
/// The data type of pages when none is configured.
pub const DEFAULT_DATA_TYPE: &str = "file";

/// How changes are noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WatchMode {
    /// By notifications; at intervals, with a notice, where these cannot be had.
    #[default]
    Auto,
    /// By notifications; an error where these cannot be had.
    Notify,
    /// At intervals only: for network file systems.
    Poll,
}

/// What the files mean that are there when a source is started for the first time ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Initial {
    /// Each is an `Added`: who subscribes to notes wants those that exist too.
    #[default]
    Dispatch,
    /// They are the baseline: only what changes from now on is told.
    Baseline,
}

/// Settings of a `files` source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilesConfig {
    /// The source's name.
    pub name: Name,
    /// The directory. It has to exist when the source is first started.
    pub root: PathBuf,
    /// Globs of files that are pages; empty means all. See [`crate::pattern`].
    pub include: Vec<String>,
    /// Globs of files and directories that are left out, beside [`crate::pattern::DEFAULT_EXCLUDES`].
    pub exclude: Vec<String>,
    /// Whether the default excludes apply. Default: they do.
    pub default_excludes: bool,
    /// The pages' data type. Default: [`DEFAULT_DATA_TYPE`].
    pub data_type: Arc<str>,
    /// Largest file that is a page, in bytes. Default: [`DEFAULT_MAX_FILE_BYTES`].
    pub max_file_bytes: u64,
    /// Most pages. New files beyond it are refused with a notice. Default: [`DEFAULT_MAX_PAGES`].
    pub max_pages: usize,
    /// How long changes rest.
    pub settle: SettleConfig,
    /// How changes are noticed. Default: [`WatchMode::Auto`].
    pub watch: WatchMode,
    /// Time between looks without notifications. Default: [`DEFAULT_POLL_INTERVAL`].
    pub poll_interval: Duration,
    /// Time between looks at everything with notifications; `None` for never. Default: [`DEFAULT_RESCAN_INTERVAL`].
    pub rescan_interval: Option<Duration>,
    /// What existing files mean at the first start. Default: [`Initial::Dispatch`].
    pub initial: Initial,
}

impl FilesConfig {
    /// The defaults for a directory.
    pub fn new(name: Name, root: impl Into<PathBuf>) -> Self {
        Self {
            name,
            root: root.into(),
            include: Vec::new(),
            exclude: Vec::new(),
            default_excludes: true,
            data_type: DEFAULT_DATA_TYPE.into(),
            max_file_bytes: DEFAULT_MAX_FILE_BYTES,
            max_pages: DEFAULT_MAX_PAGES,
            settle: SettleConfig::default(),
            watch: WatchMode::default(),
            poll_interval: DEFAULT_POLL_INTERVAL,
            rescan_interval: Some(DEFAULT_RESCAN_INTERVAL),
            initial: Initial::default(),
        }
    }
}

/// The files below a directory as pages.
#[derive(Clone)]
#[doc(alias = "LocalFsWatcher")]
pub struct FilesSource {
    config: Arc<FilesConfig>,
    filter: Arc<Filter>,
    clock: SharedClock,
    secrets: Redactor,
    /// Directories that can be watched, for fault injection.
    watch_limit: Arc<AtomicUsize>,
    /// The hints of the current run, for fault injection.
    hints: Arc<parking_lot::Mutex<Option<Hints>>>,
}

impl std::fmt::Debug for FilesSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FilesSource")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl FilesSource {
    /// Checks the settings. The directory is looked for when the source is started.
    ///
    /// # Errors
    /// [`PatternError`] of a glob that does not parse.
    pub fn new(mut config: FilesConfig, clock: SharedClock) -> Result<Self, PatternError> {
        let filter = Filter::new(&config.include, &config.exclude, config.default_excludes)?;
        if let Ok(root) = std::path::absolute(&config.root) {
            config.root = root;
        }
        Ok(Self {
            config: Arc::new(config),
            filter: Arc::new(filter),
            clock,
            secrets: Redactor::default(),
            watch_limit: Arc::new(AtomicUsize::new(usize::MAX)),
            hints: Arc::default(),
        })
    }

    /// The same, for which a file whose name holds one of these secrets is no page. Reported once, without the secret.
    #[must_use]
    pub fn without_names_of(mut self, secrets: Redactor) -> Self {
        self.secrets = secrets;
        self
    }

    /// Makes the running source believe that the operating system dropped notifications. For tests.
    #[doc(hidden)]
    pub fn inject_overflow(&self) {
        if let Some(hints) = &*self.hints.lock() {
            hints
                .take_in(Ok(notify::Event::new(notify::EventKind::Other)
                    .set_flag(notify::event::Flag::Rescan)));
        }
    }

    /// Makes the operating system's watches end after this many. For tests.
    #[doc(hidden)]
    pub fn inject_watch_limit(&self, watches: usize) {
        self.watch_limit.store(watches, Ordering::Relaxed);
    }

    async fn run(
        &self,
        span: Span,
        start: Start,
        sink: ChangeSink,
        cancel: CancellationToken,
    ) -> Result<(), SourceError> {
        let hints = Hints::default();
        *self.hints.lock() = Some(hints.clone());
        // Dropping this future ends the thread too.
        let _closer = CloseOnDrop(hints.clone());
        let runtime = tokio::runtime::Handle::current();
        let (config, filter, clock) =
            (self.config.clone(), self.filter.clone(), self.clock.clone());
        let watch_limit = self.watch_limit.load(Ordering::Relaxed);
        let secrets = self.secrets.clone();
        let (worker_hints, worker_cancel) = (hints.clone(), cancel.clone());
        let mut thread = tokio::task::spawn_blocking(move || {
            let send = |item| {
                runtime.block_on(async {
                    worker_cancel
                        .run_until_cancelled(sink.send(item))
                        .await
                        .unwrap_or(Err(SourceError::SinkClosed))
                })
            };
            let beat = || sink.beat();
            let mut worker = Worker::new(config, filter, clock, worker_hints, start);
            worker.watch_limit = watch_limit;
            worker.secrets = secrets;
            worker.run(span, &send, &beat)
        });
        let ended = tokio::select! {
            ended = &mut thread => ended,
            () = cancel.cancelled() => {
                hints.close();
                thread.await
            }
        };
        match ended {
            Ok(Err(SourceError::SinkClosed)) if cancel.is_cancelled() => Ok(()),
            Ok(result) => result,
            Err(join) => Err(SourceError::Failed(join.to_string())),
        }
    }
}

struct CloseOnDrop(Hints);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}

#[async_trait]
impl PageSource for FilesSource {
    fn name(&self) -> &Name {
        &self.config.name
    }

    fn is_static(&self) -> bool {
        false
    }

    async fn scan(
        &self,
        start: Start,
        sink: ChangeSink,
        cancel: CancellationToken,
    ) -> Result<(), SourceError> {
        self.run(Span::Once, start, sink, cancel).await
    }

    async fn watch(
        &self,
        start: Start,
        sink: ChangeSink,
        cancel: CancellationToken,
    ) -> Result<(), SourceError> {
        self.run(Span::Live, start, sink, cancel).await
    }
}
