//! The thread of one running `files` source: waits for hints and times, and does what they ask for.

use std::{collections::HashSet, sync::Arc, time::Duration};

use volary_kernel::{Mono, SharedClock, Timestamp};

use super::{
    FilesConfig, Initial, WatchMode,
    root::Root,
    settle::{MAX_DIRTY, Motion, Ripe, Settle},
    table::{EXCLUDED, Entry, Seen, Stamp, Table, Verdict},
    watch::{Gathered, Hints, WatchError, Watches},
};
use crate::{
    page::{ChangeKind, ContentHash, Cursor, Extra, reason},
    path,
    pattern::Filter,
    source::{BATCH_MAX, BEAT_EVERY, Notice, PageProblem, PageState, SourceChange, SourceError, SourceItem, Start},
};

/// Page problems remembered so that each is reported once.
const MAX_REPORTED: usize = 1024;
/// Unreadable pages that are tried again every [`BEAT_EVERY`]; others wait for the next rescan.
const MAX_RETRIED: usize = 1024;
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
    pub table: Table,
    pub settle: Settle,
    /// Number of the current scan: what was met in it need not be looked for.
    pub scan: u32,
    pub timers: Timers,
    baseline: bool,
    first_ever: bool,
    caught_up: bool,
    cursor: Cursor,
    changes: Vec<SourceChange>,
    states: Vec<PageState>,
    reported: HashSet<(Arc<str>, &'static str)>,
    retried: Vec<Arc<str>>,
    buffer: Vec<u8>,
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
        let first_ever = start.cursor.is_none();
        for (path, state) in start.known {
            let stamp = Stamp::from(&*state.stamp);
            table.load(path, Entry { version: state.version, hash: state.content_hash, stamp, met: 0 });
        }
        Self {
            settle: Settle::new(config.settle, MAX_DIRTY),
            baseline: first_ever && config.initial == Initial::Baseline,
            first_ever: first_ever && table.len() == 0,
            caught_up: false,
            cursor: start.cursor.unwrap_or_default(),
            config,
            filter,
            clock,
            hints,
            root: None,
            watches: None,
            polling: false,
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
            Err(error) if self.first_ever || span == Span::Once => return Err(self.root_missing(&error)),
            // Perhaps a disk that is not mounted yet: wait for it, and take nothing for deleted before it was seen.
            Err(error) => out.notice(Notice::Away(error.to_string()))?,
        }
        while span == Span::Live && !self.hints.is_closed() {
            self.turn(&out)?;
        }
        Ok(())
    }

    fn root_missing(&self, error: &std::io::Error) -> SourceError {
        SourceError::RootMissing { root: self.config.root.display().to_string(), problem: error.to_string() }
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
            out.send(SourceItem::CaughtUp { pages: self.table.len() })?;
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
        (out.beat)();
        let gathered = self.hints.wait(self.next_wake() - self.now());
        self.take_hints(gathered, out)?;
        self.run_timers(out)?;
        self.look_at_ripe(out)
    }

    fn next_wake(&self) -> Mono {
        let rescan = self.timers.rescan.map(|(at, _)| at);
        let times = [self.settle.next_due(), self.timers.everything, rescan];
        times.into_iter().flatten().fold(self.timers.root_check, Mono::min)
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
        let every = if self.polling { Some(self.config.poll_interval) } else { self.config.rescan_interval };
        self.timers.everything = every.map(|every| self.now() + every);
    }

    /// Plans a rescan; many in a row wait longer and longer.
    pub fn plan_rescan(&mut self, reason: &'static str) {
        let now = self.now();
        let timers = &mut self.timers;
        if timers.rescan.is_some() {
            return;
        }
        timers.rescans = if now - timers.last_rescan > RESCAN_QUIET { 1 } else { timers.rescans.saturating_add(1) };
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
        match Watches::new(self.hints.clone()) {
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
            return Err(SourceError::WatchLimit { root: self.config.root.display().to_string(), problem });
        }
        self.watches = None;
        self.polling = true;
        self.plan_next_look();
        out.notice(Notice::FellBack { reason: problem, every: self.config.poll_interval })
    }

    // --- hints -----------------------------------------------------------------------------------

    fn take_hints(&mut self, gathered: Gathered, out: &Outside<'_>) -> Result<(), SourceError> {
        if let Some(reason) = gathered.rescan {
            self.plan_rescan(reason);
        }
        let mut root_hinted = false;
        for (file, hint) in gathered.paths {
            let Some(page) = self.root.as_ref().and_then(|root| root.page_path(&file)) else { continue };
            if page.is_empty() {
                root_hinted = true;
            } else if hint.structure {
                self.restructure(&page, hint.motion, out)?;
            } else {
                self.mark(&page, hint.motion);
            }
        }
        if root_hinted { self.check_root(out) } else { Ok(()) }
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

    // --- looking ---------------------------------------------------------------------------------

    fn look_at_ripe(&mut self, out: &Outside<'_>) -> Result<(), SourceError> {
        loop {
            let ripe = self.settle.take_due(self.now(), BATCH_MAX);
            let last = ripe.len() < BATCH_MAX;
            for ripe in ripe {
                self.look_at(&ripe, out)?;
            }
            self.flush(out)?;
            (out.beat)();
            // More than one batch: new hints come first, or the operating system's queue may run over.
            if last || self.hints.is_closed() {
                return Ok(());
            }
            let gathered = self.hints.wait(Duration::ZERO);
            self.take_hints(gathered, out)?;
        }
    }

    /// Looks at one page and notes what there is to tell.
    pub fn look_at(&mut self, ripe: &Ripe, out: &Outside<'_>) -> Result<(), SourceError> {
        let Some((seen, bytes)) = self.see(ripe, out)? else { return Ok(()) };
        let previous = self.table.get(&ripe.path).map(|entry| entry.hash);
        match self.table.take(&ripe.path, seen, self.scan) {
            Verdict::Nothing => Ok(()),
            Verdict::NoRoom => {
                let limit = self.config.max_pages;
                self.problem(&ripe.path, "", PageProblem::NoRoom { limit }, out)
            }
            Verdict::Restamped => {
                let state = self.state_of(&ripe.path, previous);
                self.states.push(state);
                self.flush_if_full(out)
            }
            Verdict::Changed(kind) => self.changed(ripe, kind, previous, bytes, out),
        }
    }

    /// What is there; `None` if it has to be looked at again later.
    fn see(&mut self, ripe: &Ripe, out: &Outside<'_>) -> Result<Option<(Seen, u64)>, SourceError> {
        if !self.filter.takes(&ripe.path) {
            return Ok(Some((EXCLUDED, 0)));
        }
        let Some(root) = &self.root else { return Ok(Some((Seen::Gone(reason::DELETED), 0))) };
        let known = self.table.get(&ripe.path).map(|entry| entry.stamp);
        let limit = self.config.max_file_bytes;
        let look = root.look(&ripe.path, known.as_ref(), limit, self.clock.wall(), &mut self.buffer);
        match look {
            Ok(look) if !look.steady && self.settle.again(ripe, self.now()) => Ok(None),
            Ok(look) => {
                if look.seen == Seen::Gone(reason::TOO_LARGE) {
                    let problem = PageProblem::TooLarge { bytes: look.bytes, limit };
                    self.problem(&ripe.path, &ripe.path, problem, out)?;
                } else if !self.reported.is_empty() {
                    self.reported.remove(&(ripe.path.clone(), "too_large"));
                    self.reported.remove(&(ripe.path.clone(), "unreadable"));
                }
                Ok(Some((look.seen, look.bytes)))
            }
            Err(error) => {
                self.problem(&ripe.path, &ripe.path, PageProblem::Unreadable(error.to_string()), out)?;
                if self.retried.len() < MAX_RETRIED {
                    self.retried.push(ripe.path.clone());
                }
                Ok(None)
            }
        }
    }

    fn changed(
        &mut self,
        ripe: &Ripe,
        kind: ChangeKind,
        previous: Option<ContentHash>,
        bytes: u64,
        out: &Outside<'_>,
    ) -> Result<(), SourceError> {
        if kind == ChangeKind::Added && path::is_escaped(&ripe.path) {
            self.problem(&ripe.path, &ripe.path, PageProblem::EscapedName, out)?;
        }
        if matches!(kind, ChangeKind::Invalidated { .. }) {
            self.reported.remove(&("".into(), "no_room"));
        }
        let state = self.state_of(&ripe.path, previous);
        if self.baseline {
            self.states.push(state);
            return self.flush_if_full(out);
        }
        self.cursor = self.cursor.next();
        let entry = self.table.get(&ripe.path);
        let effective_at = entry.map(|entry| Timestamp::from_micros(entry.stamp.modified / 1000));
        let mut extra =
            Extra { relative_path: Some(ripe.path.clone()), effective_at, ..Extra::default() };
        let file = path::file_path(&ripe.path);
        if let Some(file) = self.config.root.join(file).to_str() {
            extra.other.insert("file".into(), file.into());
        }
        if entry.is_some() {
            extra.other.insert("bytes".into(), bytes.into());
        }
        let settled_for = self.now() - ripe.first;
        self.changes.push(SourceChange { cursor: self.cursor, kind, state, previous, extra, settled_for });
        self.flush_if_full(out)
    }

    fn state_of(&self, path: &Arc<str>, previous: Option<ContentHash>) -> PageState {
        let entry = self.table.get(path);
        PageState {
            path: path.clone(),
            data_type: self.config.data_type.clone(),
            version: entry.map_or(0, |entry| entry.version),
            content_hash: entry.map(|entry| entry.hash).or(previous).unwrap_or_else(|| ContentHash::of(b"")),
            metadata: std::collections::BTreeMap::new(),
            links: Vec::new(),
            stamp: entry.map_or_else(|| "".into(), |entry| entry.stamp.to_string().into()),
        }
    }

    /// Reports a problem, once for each `key` while it lasts.
    pub fn problem(
        &mut self,
        path: &Arc<str>,
        key: &str,
        problem: PageProblem,
        out: &Outside<'_>,
    ) -> Result<(), SourceError> {
        let key = (Arc::from(key), problem.code());
        if self.reported.len() >= MAX_REPORTED || !self.reported.insert(key) {
            return Ok(());
        }
        out.notice(Notice::Page { path: path.clone(), problem })
    }

    // --- sending ---------------------------------------------------------------------------------

    fn flush_if_full(&mut self, out: &Outside<'_>) -> Result<(), SourceError> {
        if self.changes.len() >= BATCH_MAX || self.states.len() >= BATCH_MAX { self.flush(out) } else { Ok(()) }
    }

    pub fn flush(&mut self, out: &Outside<'_>) -> Result<(), SourceError> {
        // States first: one that was pushed before a change of the same page must not come after it.
        if !self.states.is_empty() {
            out.send(SourceItem::States(std::mem::take(&mut self.states)))?;
        }
        if !self.changes.is_empty() {
            out.send(SourceItem::Changes(std::mem::take(&mut self.changes)))?;
        }
        Ok(())
    }
}

impl Outside<'_> {
    fn send(&self, item: SourceItem) -> Result<(), SourceError> {
        (self.send)(item)
    }

    pub fn notice(&self, notice: Notice) -> Result<(), SourceError> {
        self.send(SourceItem::Notice(notice))
    }

    pub fn beat(&self) {
        (self.beat)();
    }
}
