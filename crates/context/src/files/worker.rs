//! The thread of one running `files` source: waits for hints and times, and does what they ask for.

use std::{collections::HashSet, sync::Arc, time::Duration};

use volary_kernel::{Mono, SharedClock, Timestamp, secret::Redactor};

use super::{
    FilesConfig, Initial, WatchMode,
    root::Root,
    settle::{MAX_DIRTY, Motion, Settle},
    table::{Entry, Stamp, Table},
    watch::{Gathered, Hints, WatchError, Watches},
};
use crate::{
    page::Cursor,
    pattern::Filter,
    source::{BEAT_EVERY, Notice, PageState, SourceChange, SourceError, SourceItem, Start},
};

/// Rescans in a row without a wait; then 100 ms, doubling to 10 s.
const FREE_RESCANS: u32 = 3;
const RESCAN_QUIET: Duration = Duration::from_secs(60);

/// How long a run goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Span {
    /// Until everything has been looked at once.
    Once,
    /// Until it is cancelled.
    Live,
}

/// What the worker may do to the world outside of the file system.
pub struct Outside<'a> {
    send: &'a dyn Fn(SourceItem) -> Result<(), SourceError>,
    beat: &'a dyn Fn(),
}

/// When what is due.
#[derive(Debug, Default)]
pub struct Timers {
    root_check: Mono,
    everything: Option<Mono>,
    rescan: Option<(Mono, &'static str)>,
    rescans: u32,
    last_rescan: Mono,
}

/// The state of one run.
pub struct Worker {
    pub config: Arc<FilesConfig>,
    pub filter: Arc<Filter>,
    pub clock: SharedClock,
    pub hints: Hints,
    pub root: Option<Root>,
    pub watches: Option<Watches>,
    pub polling: bool,
    /// Directories that can be watched; all but in tests.
    pub watch_limit: usize,
    /// What no page's name may hold.
    pub secrets: Redactor,
    pub table: Table,
    pub settle: Settle,
    /// Number of the current scan: what was met in it need not be looked for.
    pub scan: u32,
    pub timers: Timers,
    pub baseline: bool,
    first_ever: bool,
    caught_up: bool,
    pub cursor: Cursor,
    pub changes: Vec<SourceChange>,
    pub states: Vec<PageState>,
    pub reported: HashSet<(Arc<str>, &'static str)>,
    pub retried: Vec<Arc<str>>,
    pub buffer: Vec<u8>,
}

impl Worker {
    pub fn new(
        config: Arc<FilesConfig>,
        filter: Arc<Filter>,
        clock: SharedClock,
        hints: Hints,
        start: Start,
    ) -> Self {
        let mut table = Table::new(config.max_pages);
        let never_caught_up = !start.caught_up;
        for (path, state) in start.known {
            let stamp = Stamp::from(&*state.stamp);
            table.load(
                path,
                Entry {
                    version: state.version,
                    hash: state.content_hash,
                    stamp,
                    met: 0,
                },
            );
        }
        Self {
            settle: Settle::new(config.settle, MAX_DIRTY),
            baseline: never_caught_up && config.initial == Initial::Baseline,
            first_ever: never_caught_up && table.len() == 0,
            caught_up: false,
            cursor: start.cursor,
            config,
            filter,
            clock,
            hints,
            root: None,
            watches: None,
            polling: false,
            watch_limit: usize::MAX,
            secrets: Redactor::default(),
            table,
            scan: 0,
            timers: Timers::default(),
            changes: Vec::new(),
            states: Vec::new(),
            reported: HashSet::new(),
            retried: Vec::new(),
            buffer: Vec::new(),
        }
    }

    /// The whole run.
    pub fn run(
        mut self,
        span: Span,
        send: &dyn Fn(SourceItem) -> Result<(), SourceError>,
        beat: &dyn Fn(),
    ) -> Result<(), SourceError> {
        let out = Outside { send, beat };
        self.timers.root_check = self.now() + BEAT_EVERY;
        match Root::open(&self.config.root) {
            Ok(root) => self.arrive(root, span, &out)?,
            Err(error) if self.first_ever || span == Span::Once => {
                return Err(self.root_missing(&error));
            }
            // Perhaps a disk that is not mounted yet: wait for it, and take nothing for deleted before it was seen.
            Err(error) => out.notice(Notice::Away(error.to_string()))?,
        }
        while span == Span::Live && !self.hints.is_closed() {
            self.turn(&out)?;
        }
        Ok(())
    }

    fn root_missing(&self, error: &std::io::Error) -> SourceError {
        SourceError::RootMissing {
            root: self.config.root.display().to_string(),
            problem: error.to_string(),
        }
    }

    pub fn now(&self) -> Mono {
        self.clock.mono()
    }

    pub fn wall(&self) -> Timestamp {
        self.clock.wall()
    }

    /// First sight of the root in this run: everything is looked at without rest.
    fn arrive(&mut self, root: Root, span: Span, out: &Outside<'_>) -> Result<(), SourceError> {
        self.root = Some(root);
        if span == Span::Live {
            self.start_watching(out)?;
        }
        self.look_at_everything_now(out)?;
        self.plan_next_look();
        self.drain(out)?;
        if !self.hints.is_closed() {
            self.baseline = false;
            self.caught_up = true;
            out.send(SourceItem::CaughtUp {
                pages: self.table.len(),
            })?;
        }
        Ok(())
    }

    /// Waits until the pages that were in motion at the first look have come to rest, however busy the tree is.
    fn drain(&mut self, out: &Outside<'_>) -> Result<(), SourceError> {
        let latest = self.now() + self.config.settle.max_wait;
        while let Some(due) = self.settle.next_due() {
            if self.hints.is_closed() || self.now() > latest {
                return Ok(());
            }
            let gathered = self.hints.wait((due - self.now()).min(BEAT_EVERY));
            self.take_hints(gathered, out)?;
            self.look_at_ripe(out)?;
        }
        Ok(())
    }

    fn turn(&mut self, out: &Outside<'_>) -> Result<(), SourceError> {
        out.beat();
        let gathered = self.hints.wait(self.next_wake() - self.now());
        self.take_hints(gathered, out)?;
        self.run_timers(out)?;
        self.look_at_ripe(out)
    }

    fn next_wake(&self) -> Mono {
        let rescan = self.timers.rescan.map(|(at, _)| at);
        let times = [self.settle.next_due(), self.timers.everything, rescan];
        times
            .into_iter()
            .flatten()
            .fold(self.timers.root_check, Mono::min)
    }

    fn run_timers(&mut self, out: &Outside<'_>) -> Result<(), SourceError> {
        let now = self.now();
        if now >= self.timers.root_check {
            self.check_root(out)?;
            for path in std::mem::take(&mut self.retried) {
                self.mark(&path, Motion::Settled);
            }
        }
        if let Some((at, reason)) = self.timers.rescan
            && now >= at
        {
            self.timers.rescan = None;
            out.notice(Notice::Rescan(reason))?;
            self.start_over(out)?;
        } else if self.timers.everything.is_some_and(|at| now >= at) {
            self.mark_everything_changed(out)?;
            self.plan_next_look();
        }
        Ok(())
    }

    pub fn plan_next_look(&mut self) {
        let every = if self.polling {
            Some(self.config.poll_interval)
        } else {
            self.config.rescan_interval
        };
        self.timers.everything = every.map(|every| self.now() + every);
    }

    /// Plans a rescan; many in a row wait longer and longer.
    pub fn plan_rescan(&mut self, reason: &'static str) {
        let now = self.now();
        let timers = &mut self.timers;
        if timers.rescan.is_some() {
            return;
        }
        timers.rescans = if now - timers.last_rescan > RESCAN_QUIET {
            1
        } else {
            timers.rescans.saturating_add(1)
        };
        timers.last_rescan = now;
        let wait = match timers.rescans.checked_sub(FREE_RESCANS + 1) {
            None => Duration::ZERO,
            Some(more) => Duration::from_millis(100 << more.min(7)).min(Duration::from_secs(10)),
        };
        timers.rescan = Some((now + wait, reason));
    }

    // --- root ------------------------------------------------------------------------------------

    fn check_root(&mut self, out: &Outside<'_>) -> Result<(), SourceError> {
        self.timers.root_check = self.now() + BEAT_EVERY;
        if self.root.as_ref().is_some_and(Root::is_current) {
            return Ok(());
        }
        match Root::open(&self.config.root) {
            Ok(root) if !self.caught_up => {
                out.notice(Notice::Back)?;
                self.arrive(root, Span::Live, out)
            }
            Ok(root) => {
                let was_away = self.root.replace(root).is_none();
                if was_away {
                    out.notice(Notice::Back)?;
                }
                self.start_over(out)
            }
            Err(error) if self.root.is_some() => {
                self.root = None;
                self.watches = None;
                out.notice(Notice::Away(error.to_string()))?;
                self.mark_known();
                Ok(())
            }
            Err(_) => Ok(()),
        }
    }

    /// New watches and a look at everything, after notifications were lost or the root is another one.
    fn start_over(&mut self, out: &Outside<'_>) -> Result<(), SourceError> {
        if !self.polling {
            self.start_watching(out)?;
        }
        self.mark_everything_changed(out)?;
        self.plan_next_look();
        Ok(())
    }

    fn start_watching(&mut self, out: &Outside<'_>) -> Result<(), SourceError> {
        self.watches = None;
        if self.config.watch == WatchMode::Poll {
            self.polling = true;
            return Ok(());
        }
        match Watches::new(self.hints.clone(), self.watch_limit) {
            Ok(watches) => self.watches = Some(watches),
            Err(error) => self.fall_back(error, out)?,
        }
        Ok(())
    }

    /// Goes on without notifications, or ends with an error where that is not allowed.
    pub fn fall_back(&mut self, error: WatchError, out: &Outside<'_>) -> Result<(), SourceError> {
        let problem = match error {
            WatchError::Limit(problem) | WatchError::Other(problem) => problem,
            WatchError::Vanished => "it vanished".to_owned(),
        };
        if self.config.watch == WatchMode::Notify {
            return Err(SourceError::WatchLimit {
                root: self.config.root.display().to_string(),
                problem,
            });
        }
        self.watches = None;
        self.polling = true;
        self.plan_next_look();
        out.notice(Notice::FellBack {
            reason: problem,
            every: self.config.poll_interval,
        })
    }

    // --- hints -----------------------------------------------------------------------------------

    pub fn take_hints(&mut self, gathered: Gathered, out: &Outside<'_>) -> Result<(), SourceError> {
        if let Some(reason) = gathered.rescan {
            self.plan_rescan(reason);
        }
        let mut root_hinted = false;
        for (file, hint) in gathered.paths {
            let Some(page) = self.root.as_ref().and_then(|root| root.page_path(&file)) else {
                continue;
            };
            if page.is_empty() {
                root_hinted = true;
            } else if hint.structure {
                self.restructure(&page, hint.motion, out)?;
            } else {
                self.mark(&page, hint.motion);
            }
        }
        if root_hinted {
            self.check_root(out)
        } else {
            Ok(())
        }
    }

    /// Marks a page dirty if it is one, known or possible.
    pub fn mark(&mut self, page: &str, motion: Motion) {
        if self.table.get(page).is_some() || self.filter.takes(page) {
            let now = self.now();
            if self.settle.mark(page.into(), motion, now).is_err() {
                self.plan_rescan("too many changes at once");
            }
        }
    }
}

impl Outside<'_> {
    pub fn send(&self, item: SourceItem) -> Result<(), SourceError> {
        (self.send)(item)
    }

    pub fn notice(&self, notice: Notice) -> Result<(), SourceError> {
        self.send(SourceItem::Notice(notice))
    }

    pub fn beat(&self) {
        (self.beat)();
    }
}
