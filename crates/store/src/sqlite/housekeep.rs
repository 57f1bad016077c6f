//! What the writer does beside commits: removes records past their time and the old beginning of the journal, and
//! watches the room.

use super::{
    retention::{self, Wanted},
    schema::failed,
    writer::{Db, Writer, is_full},
};
use crate::{error::StoreError, key::Key, watch::ChangeKind};

/// Records past their time removed in one transaction.
const REAP: i64 = 512;

const KEEPING: &str = "housekeeping";

impl Writer {
    /// One round: a few milliseconds at most. Sets `more_to_keep` if another is due.
    pub(super) fn keep(&mut self, db: &mut Db<'_>) -> Result<(), StoreError> {
        self.more_to_keep = false;
        self.enter(db)?;
        let end = self.keep_in_turn(db);
        self.leave();
        end
    }

    fn keep_in_turn(&mut self, db: &mut Db<'_>) -> Result<(), StoreError> {
        let reaped = self.transaction(db, Self::reap)?;
        for key in &reaped {
            self.shared
                .watchers
                .publish(key, ChangeKind::Expired, self.progress.version);
        }
        self.space
            .measure(db.conn)
            .map_err(|error| failed(KEEPING, error))?;
        let trimmed = self.trim(db)?;
        self.space.keep_reserve();
        self.more_to_keep =
            trimmed || i64::try_from(reaped.len()).is_ok_and(|reaped| reaped == REAP);
        Ok(())
    }

    /// Rounds until nothing is left to do.
    pub(super) fn keep_all(&mut self, db: &mut Db<'_>) -> Result<(), StoreError> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        loop {
            self.keep(db)?;
            if !self.more_to_keep {
                return Ok(());
            }
        }
    }

    /// Before a group: if the database nears its bound, removes what may go, so that new work need not be refused.
    pub(super) fn make_room(&mut self, db: &mut Db<'_>) {
        let end = self
            .space
            .look(db.conn)
            .map_err(|error| failed(KEEPING, error));
        let end = end.and_then(|trimming| if trimming { self.trim(db) } else { Ok(false) });
        match end {
            Ok(more) => self.more_to_keep |= more,
            Err(error) => tracing::warn!(%error, "removing old journal entries failed"),
        }
    }

    fn reap(&mut self, db: &mut Db<'_>) -> rusqlite::Result<Vec<Key>> {
        let now = self.clock.wall().as_micros();
        let sql = "SELECT key FROM record WHERE expires <= ?1 ORDER BY expires LIMIT ?2";
        let mut statement = db.conn.prepare_cached(sql)?;
        let keys = statement.query_map([now, REAP], |row| row.get::<_, String>(0))?;
        let keys: Vec<_> = keys
            .map(|key| key.map(Key::trusted))
            .collect::<Result<_, _>>()?;
        for key in &keys {
            db.sql.delete(key)?;
        }
        self.note_expired(db, &keys)?;
        Ok(keys)
    }

    /// Removes a few old entries; whether it did.
    fn trim(&mut self, db: &mut Db<'_>) -> Result<bool, StoreError> {
        let before = self.clock.wall() - self.config.retention.max_age;
        let wanted = Wanted {
            before,
            room: self.space.trimming,
        };
        let Some(cut) = retention::plan(db.conn, wanted, self.progress.seq)? else {
            return Ok(false);
        };
        let config = self.config.clone();
        self.transaction(db, |this, db| {
            retention::cut(
                db.conn,
                &mut db.sql,
                &cut,
                config.node.as_str(),
                &config.key,
                &mut this.progress,
            )
        })?;
        self.cut = cut;
        self.drop_draft();
        self.write_head()
            .map_err(|error| StoreError::io("writing the signed head", error))?;
        self.space
            .measure(db.conn)
            .map_err(|error| failed(KEEPING, error))?;
        Ok(true)
    }

    fn transaction<T>(
        &mut self,
        db: &mut Db<'_>,
        work: impl FnOnce(&mut Self, &mut Db<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let before = self.progress;
        let end = db.begin().and_then(|()| {
            let done = work(self, db)?;
            db.commit()?;
            Ok(done)
        });
        if end.is_ok() {
            self.told_own();
        }
        end.map_err(|error| {
            db.rollback();
            self.progress = before;
            if is_full(&error) {
                self.space.disk_full()
            } else {
                failed(KEEPING, error)
            }
        })
    }
}
