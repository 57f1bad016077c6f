//! The one thread that writes: gathers what waits into one transaction, commits it, signs the head, tells everybody.
//!
//! ```text
//!   wait ─▶ begin ─▶ apply each batch ─▶ more came? ─▶ commit (sync) ─▶ head ─▶ hooks, watchers ─▶ replies ─▶ wait
//!                      │ conflict: that one is told, the others go on
//!                      └ disk full: roll back, then each batch alone, intake refused
//!   any other failure: roll back, tell all, write no more (what is on disk is known after the next open)
//! ```

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use rusqlite::Connection;
use tokio::sync::watch;
use volary_kernel::{Mono, clock::SharedClock};

use super::{
    apply::{NotApplied, Progress, Statements},
    config::SqliteConfig,
    job::{Answer, Call, Inbox, Job, Write, units},
    lock::{Lock, Turn},
    open::Opened,
    schema::{self, failed},
    shared::{Others, SHARED_POLL},
    sign::Signer,
    space::Space,
};
use crate::{
    batch::Committed,
    entry::Seq,
    error::StoreError,
    journal::{
        Cut, Head,
        head::{Draft, HeadFile},
    },
    watch::{ChangeKind, Watchers},
};

/// Bytes of one group; later batches wait for the next.
const GROUP_BYTES: usize = 16 << 20;
/// Longest time between two rounds of housekeeping.
const KEEP_EVERY: Duration = Duration::from_secs(5);

const COMMITTING: &str = "committing";

/// What writer and store share.
pub(super) struct Shared {
    pub inbox: Inbox,
    pub watchers: Watchers,
}

/// The writing connection with its statements.
pub(super) struct Db<'conn> {
    pub conn: &'conn Connection,
    pub sql: Statements<'conn>,
}

impl Db<'_> {
    pub(super) fn begin(&self) -> rusqlite::Result<()> {
        self.conn
            .prepare_cached("BEGIN IMMEDIATE")?
            .raw_execute()
            .map(drop)
    }

    pub(super) fn commit(&self) -> rusqlite::Result<()> {
        self.conn.prepare_cached("COMMIT")?.raw_execute().map(drop)
    }

    pub(super) fn rollback(&mut self) {
        // SQLite may have rolled back by itself.
        if !self.conn.is_autocommit()
            && let Err(error) = self.conn.execute_batch("ROLLBACK")
        {
            tracing::error!(%error, "rolling back failed");
        }
        if let Err(error) = self.sql.rolled_back(self.conn) {
            tracing::error!(%error, "reading after a rollback failed");
        }
    }
}

pub(super) struct Writer {
    pub(super) config: Arc<SqliteConfig>,
    pub(super) clock: SharedClock,
    pub(super) shared: Arc<Shared>,
    /// Ends with the writer, which tells those who follow the journal.
    pub(super) news: watch::Sender<Seq>,
    pub(super) head: HeadFile,
    signer: Signer,
    /// The head that the signer is at.
    draft: Option<Draft>,
    pub(super) cut: Cut,
    pub(super) progress: Progress,
    pub(super) space: Space,
    /// Why nothing more is written.
    pub(super) failed: Option<StoreError>,
    kept: Mono,
    pub(super) more_to_keep: bool,
    lock: Lock,
    /// Of a shared database.
    pub(super) turn: Option<Turn>,
    pub(super) others: Others,
}

/// A batch that was applied, and what came of it.
type Applied = (Job, Option<Committed>);

impl Writer {
    pub(super) fn new(
        config: Arc<SqliteConfig>,
        clock: SharedClock,
        shared: Arc<Shared>,
        news: watch::Sender<Seq>,
        opened: Opened,
    ) -> Result<(Self, Connection), StoreError> {
        let Opened {
            conn,
            progress,
            cut,
            head,
            lock,
            turn,
            ..
        } = opened;
        let others = if turn.is_some() {
            Others::new(&conn, progress.version).map_err(|error| failed(COMMITTING, error))?
        } else {
            Others::default()
        };
        let space = Space::new(
            &config.path,
            config.min_free_disk,
            config.reserve,
            &config.retention,
        );
        let kept = clock.mono();
        let this = Self {
            signer: Signer::start(config.key.clone())?,
            draft: None,
            config,
            clock,
            shared,
            news,
            head,
            cut,
            progress,
            space,
            failed: None,
            kept,
            more_to_keep: false,
            lock,
            turn,
            others,
        };
        Ok((this, conn))
    }

    /// Writes until the inbox is closed; then leaves the database tidy.
    pub(super) fn run(mut self, conn: Connection) {
        match Statements::new(&conn) {
            Ok(sql) => {
                let mut db = Db { conn: &conn, sql };
                if let Err(error) = self.space.measure(&conn) {
                    self.fail(failed(COMMITTING, error));
                }
                self.space.keep_reserve();
                self.serve(&mut db);
            }
            Err(error) => {
                self.fail(failed("preparing to write", error));
                self.refuse_all();
            }
        }
        self.shared.watchers.close();
        if self.failed.is_none() {
            self.finish(conn);
        }
    }

    fn finish(mut self, conn: Connection) {
        if let Some(turn) = &mut self.turn {
            // Others stay: the log is theirs.
            let alone = turn.take().is_ok() && self.lock.is_last();
            if !alone {
                return;
            }
        }
        let end = conn
            .set_db_config(
                rusqlite::config::DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE,
                false,
            )
            .and_then(|_| conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())))
            .and_then(|()| conn.close().map_err(|(_, error)| error));
        if let Err(error) = end {
            tracing::warn!(%error, "closing the database");
        }
        if let Err(error) = self.head.sync() {
            tracing::warn!(%error, "syncing the signed head");
        }
        self.space.release_reserve();
        drop(self.lock);
    }

    fn serve(&mut self, db: &mut Db<'_>) {
        let mut jobs = Vec::new();
        // Time since something was to do, of one who shares.
        let mut quiet = Duration::ZERO;
        loop {
            let patience = match self.is_shared() {
                _ if self.more_to_keep => Duration::ZERO,
                true => SHARED_POLL,
                false => KEEP_EVERY,
            };
            match self.shared.inbox.wait(&mut jobs, patience) {
                Call::Jobs => {
                    self.group(db, &mut jobs);
                    if self.clock.mono() - self.kept >= KEEP_EVERY {
                        self.keep_once(db);
                    }
                }
                Call::Keep(waiting) => {
                    let end = self.keep_all(db);
                    for reply in waiting {
                        // One who no longer waits needs no answer.
                        let _ = reply.send(end.clone());
                    }
                }
                Call::Quiet if self.is_shared() && !self.more_to_keep && quiet < KEEP_EVERY => {
                    quiet += SHARED_POLL;
                    if let Err(error) = self.look(db.conn) {
                        tracing::warn!(%error, "looking for what others committed");
                    }
                    continue;
                }
                Call::Quiet => self.keep_once(db),
                Call::Closed => return,
            }
            quiet = Duration::ZERO;
        }
    }

    fn keep_once(&mut self, db: &mut Db<'_>) {
        self.kept = self.clock.mono();
        if self.failed.is_none()
            && let Err(error) = self.keep(db)
        {
            tracing::warn!(%error, "housekeeping failed");
        }
    }

    /// Commits what waits, together.
    fn group(&mut self, db: &mut Db<'_>, jobs: &mut Vec<Job>) {
        if self.failed.is_some() {
            self.refuse(std::mem::take(jobs));
            return;
        }
        if let Err(error) = self.enter(db) {
            return self.not_now(error, std::mem::take(jobs));
        }
        self.group_in_turn(db, jobs);
        self.leave();
    }

    /// Answers what could not be committed because others that share the database were in the way.
    fn not_now(&mut self, error: StoreError, jobs: Vec<Job>) {
        if error.is_transient() {
            for job in jobs {
                self.reply(job, Err(error.clone()));
            }
        } else {
            self.fail(error);
            self.refuse(jobs);
        }
    }

    fn group_in_turn(&mut self, db: &mut Db<'_>, jobs: &mut Vec<Job>) {
        self.make_room(db);
        let before = self.progress;
        let mut applied = Vec::with_capacity(jobs.len());
        let end = self.fill(db, jobs, &mut applied);
        if end.is_ok() && applied.is_empty() {
            db.rollback();
            return;
        }
        let end = end.and_then(|()| self.note(db, before.version, &applied));
        let end = end.and_then(|()| self.commit(db));
        match end {
            Ok(()) => self.publish(applied),
            Err(error) => {
                db.rollback();
                self.progress = before;
                applied.extend(jobs.drain(..).map(|job| (job, None)));
                if is_full(&error) {
                    applied.into_iter().for_each(|(job, _)| self.alone(db, job));
                } else if self.is_shared() && is_busy(&error) {
                    let error = StoreError::Busy {
                        path: self.config.path.clone(),
                        pid: None,
                        waited: schema::BUSY,
                    };
                    self.not_now(error, applied.into_iter().map(|(job, _)| job).collect());
                } else {
                    self.fail(failed(COMMITTING, error));
                    self.refuse(applied.into_iter().map(|(job, _)| job).collect());
                }
            }
        }
    }

    /// Applies what waits, and what comes in the meantime, inside a new transaction.
    fn fill(
        &mut self,
        db: &mut Db<'_>,
        jobs: &mut Vec<Job>,
        applied: &mut Vec<Applied>,
    ) -> rusqlite::Result<()> {
        let refusal = self.space.refusal();
        let now = self.clock.wall();
        let mut weight = 0;
        db.begin()?;
        loop {
            let mut waiting = std::mem::take(jobs).into_iter();
            while let Some(job) = waiting.next() {
                if let Some(refusal) = refusal.as_ref().filter(|_| job.intake) {
                    self.reply(job, Err(refusal.clone()));
                    continue;
                }
                match db.sql.apply(&job, &mut self.progress, now) {
                    Ok(committed) => {
                        weight += job.weight;
                        applied.push((job, Some(committed)));
                    }
                    Err(NotApplied::Refused(error)) => self.reply(job, Err(error)),
                    Err(NotApplied::Failed(error)) => {
                        applied.push((job, None));
                        jobs.extend(waiting);
                        return Err(error);
                    }
                }
            }
            if weight >= GROUP_BYTES || !self.shared.inbox.more(jobs) {
                break;
            }
        }
        self.space.wrote(weight as u64);
        db.sql.flush(applied.iter().flat_map(|(job, _)| &job.rows))
    }

    /// Leaves the note of what is about to be committed, for others that share the database.
    fn note(&mut self, db: &mut Db<'_>, before: u64, applied: &[Applied]) -> rusqlite::Result<()> {
        if !self.is_shared() {
            return Ok(());
        }
        let jobs = applied
            .iter()
            .filter_map(|(job, committed)| Some((job, committed.as_ref()?.version)));
        self.note_group(db, before, jobs)
    }

    fn commit(&mut self, db: &mut Db<'_>) -> rusqlite::Result<()> {
        db.sql.keep_version(&mut self.progress)?;
        // The head is signed while the disk syncs, and written when it has.
        self.ask_head();
        db.commit().inspect_err(|_| self.draft = None)
    }

    /// Commits one batch by itself, on a full disk: new work is refused, anything else may use the reserve.
    fn alone(&mut self, db: &mut Db<'_>, job: Job) {
        if self.failed.is_some() || job.intake {
            let error = self
                .failed
                .clone()
                .unwrap_or_else(|| self.space.disk_full());
            self.reply(job, Err(error));
            return;
        }
        if let Err(error) = self.enter(db) {
            return self.not_now(error, vec![job]);
        }
        loop {
            let before = self.progress;
            let now = self.clock.wall();
            let apply = |this: &mut Self, db: &mut Db<'_>| {
                db.begin()?;
                let committed = db.sql.apply(&job, &mut this.progress, now)?;
                db.sql.flush(job.rows.iter())?;
                if this.is_shared() {
                    let version = committed.version;
                    this.note_group(db, before.version, std::iter::once((&job, version)))?;
                }
                this.commit(db)?;
                Ok(committed)
            };
            let end = apply(self, db);
            if end.is_err() {
                db.rollback();
                self.progress = before;
            }
            match end {
                Ok(committed) => return self.publish(vec![(job, Some(committed))]),
                Err(NotApplied::Refused(error)) => return self.reply(job, Err(error)),
                Err(NotApplied::Failed(error)) if !is_full(&error) => {
                    self.fail(failed(COMMITTING, error));
                    return self.refuse(vec![job]);
                }
                Err(NotApplied::Failed(_)) if self.space.release_reserve() => {}
                Err(NotApplied::Failed(_)) => {
                    let full = self.space.disk_full();
                    return self.reply(job, Err(full));
                }
            }
        }
    }

    /// Signs what was committed, and tells everybody.
    fn publish(&mut self, applied: Vec<Applied>) {
        if applied.is_empty() {
            return;
        }
        if let Err(error) = self.write_head() {
            self.fail(StoreError::io("writing the signed head", error));
            self.refuse(applied.into_iter().map(|(job, _)| job).collect());
            return;
        }
        self.told_own();
        self.leave();
        let seq = self.progress.seq;
        let mut told = Vec::with_capacity(applied.len());
        let mut freed = 0;
        let watched = self.shared.watchers.any();
        for (mut job, committed) in applied {
            let Some(committed) = committed else { continue };
            for hook in job.hooks.drain(..) {
                // A hook is somebody else's code: its panic must not end the writer.
                if catch_unwind(AssertUnwindSafe(|| hook(&committed))).is_err() {
                    tracing::error!("a commit hook panicked");
                }
            }
            if watched {
                self.tell_watchers(&job, committed.version);
            }
            freed += units(job.weight);
            let Job {
                writes,
                rows,
                reply,
                ..
            } = job;
            told.push((reply, Answer::new(Ok(committed), writes, rows)));
        }
        self.news
            .send_if_modified(|head| std::mem::replace(head, seq) != seq);
        for (reply, answer) in told {
            // One who no longer waits needs no answer.
            let _ = reply.send(answer);
        }
        self.shared.inbox.freed(freed);
    }

    fn tell_watchers(&self, job: &Job, version: u64) {
        for write in &job.writes {
            let (key, kind) = match write {
                Write::Put { key, .. } => (key, ChangeKind::Put),
                Write::Delete { key } => (key, ChangeKind::Delete),
            };
            self.shared.watchers.publish(key, kind, version);
        }
    }

    fn ask_head(&mut self) {
        let Progress {
            seq, hash, version, ..
        } = self.progress;
        let node = self.config.node.clone();
        let head = Head {
            node,
            seq,
            hash,
            cut: self.cut,
            version,
            at: self.clock.wall(),
        };
        let draft = self.head.draft(&head);
        self.signer.ask(draft.message());
        self.draft = Some(draft);
    }

    /// Forgets a head that is no longer what should be written.
    pub(super) fn drop_draft(&mut self) {
        self.draft = None;
    }

    /// Writes the head that was asked for, or that of now.
    pub(super) fn write_head(&mut self) -> std::io::Result<()> {
        if self.draft.is_none() {
            self.ask_head();
        }
        match self.draft.take() {
            Some(draft) => self.head.write_signed(&draft, &self.signer.answer()),
            None => Ok(()),
        }
    }

    fn reply(&self, job: Job, end: Result<Committed, StoreError>) {
        self.shared.inbox.freed(units(job.weight));
        let Job {
            hooks,
            writes,
            rows,
            reply,
            ..
        } = job;
        // Before the answer: what was reserved for the batch is given back when the committer learns of it.
        drop(hooks);
        // One who no longer waits needs no answer.
        let _ = reply.send(Answer::new(end, writes, rows));
    }

    fn refuse(&self, jobs: Vec<Job>) {
        let error = self.failed.clone().unwrap_or(StoreError::Closed);
        for job in jobs {
            self.reply(job, Err(error.clone()));
        }
    }

    /// Answers everything with the failure until the inbox is closed.
    fn refuse_all(&self) {
        let mut jobs = Vec::new();
        loop {
            match self.shared.inbox.wait(&mut jobs, KEEP_EVERY) {
                Call::Jobs => self.refuse(std::mem::take(&mut jobs)),
                Call::Closed => return,
                Call::Keep(_) | Call::Quiet => {}
            }
        }
    }

    fn fail(&mut self, error: StoreError) {
        tracing::error!(%error, "the store takes no more commits");
        self.failed = Some(error);
    }
}

/// Whether somebody else had the database locked.
fn is_busy(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy)
}

/// Whether SQLite could not grow a file.
pub(super) fn is_full(error: &rusqlite::Error) -> bool {
    error.sqlite_error().is_some_and(|error| {
        error.code == rusqlite::ErrorCode::DiskFull
            || error.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE
    })
}
