//! Opening: take the lock, compare the database with its signed head, and only then let anything be written.

use rusqlite::{Connection, OptionalExtension as _};
use volary_kernel::{clock::Timestamp, sign::PublicKey};

use super::{
    apply::{Progress, Statements},
    config::{OnDamage, Sharing, SqliteConfig},
    lock::{Lock, Turn},
    rows::{self, JOURNAL, Raw},
    schema::{self, META_CUT, META_NODE, META_VERSION, failed},
};
use crate::{
    entry::Seq,
    error::StoreError,
    journal::{
        Cut, Head,
        chain::{self, Hash},
        head::{self, HeadError, HeadFile},
    },
};

const OPENING: &str = "opening the database";

/// A database that is ready to be written to.
pub(super) struct Opened {
    pub conn: Connection,
    pub progress: Progress,
    pub cut: Cut,
    pub head: HeadFile,
    pub lock: Lock,
    /// Of a shared database; not held.
    pub turn: Option<Turn>,
    /// What was accepted although it is not as the head says.
    pub accepted: Option<StoreError>,
}

pub(super) fn open(config: &SqliteConfig, now: Timestamp) -> Result<Opened, StoreError> {
    let lock = Lock::take(&config.path, config.sharing, config.busy)?;
    let mut turn = match config.sharing {
        Sharing::Exclusive => None,
        Sharing::Shared => Some(Turn::open(&config.path, config.busy)?),
    };
    if let Some(turn) = &mut turn {
        // Others neither commit nor write the head while they are compared.
        turn.take()?;
    }
    let head_path = head::path_of(&config.path);
    let there = std::fs::metadata(&config.path).is_ok_and(|file| file.len() > 0);
    let read = HeadFile::open(&head_path, &config.key.public());
    let (head, damage) = match (there, read) {
        (_, Ok((file, head))) => {
            let damage = compare(config, there, &head)?;
            (Some(file), damage)
        }
        (false, Err(HeadError::Missing)) => (None, None),
        (_, Err(error)) => (None, Some(StoreError::corrupt(error.to_string(), None))),
    };
    if let Some(damage) = &damage
        && config.on_damage == OnDamage::Refuse
    {
        return Err(damage.clone());
    }
    let head = head.filter(|_| damage.is_none());
    let head = match head {
        Some(head) => head,
        // Before the database: one that has entries and no head is then always damage.
        None => HeadFile::create(&head_path, &current(config, now)?, &config.key)
            .map_err(|error| StoreError::io("writing the signed head", error))?,
    };
    let conn = schema::open_writer(&config.path)?;
    let mut found = state(&conn, config)?;
    if found.fresh {
        let mut keep = |conn: &Connection| -> rusqlite::Result<()> {
            let mut sql = Statements::new(conn)?;
            sql.put_meta(
                META_NODE,
                config.node.as_str().as_bytes(),
                &mut found.progress,
            )
        };
        keep(&conn).map_err(|error| failed(OPENING, error))?;
    }
    if let Some(turn) = &mut turn {
        turn.leave();
    }
    Ok(Opened {
        conn,
        progress: found.progress,
        cut: found.cut,
        head,
        lock,
        turn,
        accepted: damage,
    })
}

/// The head of what the database holds now.
fn current(config: &SqliteConfig, at: Timestamp) -> Result<Head, StoreError> {
    let node = config.node.clone();
    if !std::fs::metadata(&config.path).is_ok_and(|file| file.len() > 0) {
        let hash = chain::origin(node.as_str());
        return Ok(Head {
            node,
            seq: Seq(0),
            hash,
            cut: Cut { seq: Seq(0), hash },
            version: 0,
            at,
        });
    }
    let found = state(&schema::open_reader(&config.path)?, config)?;
    let Progress {
        seq, hash, version, ..
    } = found.progress;
    Ok(Head {
        node,
        seq,
        hash,
        cut: found.cut,
        version,
        at,
    })
}

/// What is wrong with the database, seen from its head.
fn compare(
    config: &SqliteConfig,
    there: bool,
    head: &Head,
) -> Result<Option<StoreError>, StoreError> {
    if !there {
        let gone = || {
            StoreError::corrupt(
                "the database is gone, its signed head is there",
                Some(head.cut.seq.next()),
            )
        };
        return Ok((head.version > 0).then(gone));
    }
    let conn = match schema::open_reader(&config.path) {
        // Made, but not yet laid out: the process died at its very first step.
        Err(StoreError::Corrupt { .. }) if head.version == 0 => return Ok(None),
        other => other?,
    };
    let found = state(&conn, config)?;
    match check_head(&conn, &found, head) {
        Ok(()) => Ok(None),
        Err(damage @ StoreError::Corrupt { .. }) => Ok(Some(damage)),
        Err(error) => Err(error),
    }
}

/// How far a database has come.
pub(crate) struct Found {
    pub progress: Progress,
    pub cut: Cut,
    pub node: String,
    fresh: bool,
}

fn state(conn: &Connection, config: &SqliteConfig) -> Result<Found, StoreError> {
    let found = find_state(conn, config.node.as_str(), &config.key.public())?;
    if found.node != config.node.as_str() {
        let what = format!(
            "the database belongs to node `{}`, not to `{}`",
            found.node, config.node
        );
        return Err(StoreError::invalid(what));
    }
    Ok(found)
}

/// Reads how far a database has come; `node` is whose it is if it does not say.
pub(crate) fn find_state(
    conn: &Connection,
    node: &str,
    key: &PublicKey,
) -> Result<Found, StoreError> {
    let said = rows::find(conn, META_NODE)?;
    let fresh = said.is_none();
    let node = said.map_or_else(
        || node.into(),
        |record| String::from_utf8_lossy(&record.value).into_owned(),
    );
    let cut = match rows::find(conn, META_CUT)? {
        Some(record) => read_cut(&record.value, &node, key)?,
        None => Cut {
            seq: Seq(0),
            hash: chain::origin(&node),
        },
    };
    let kept = rows::find(conn, META_VERSION)?;
    let kept = kept
        .and_then(|record| std::str::from_utf8(&record.value).ok()?.parse().ok())
        .unwrap_or(0);
    let last = rows::last(conn).map_err(|error| failed(OPENING, error))?;
    let (seq, hash, version) = match last {
        Some(row) => (row.seq, hash_of(&row)?, row.version),
        None => (cut.seq, cut.hash, 0),
    };
    let chunk = conn.query_row("SELECT max(id) FROM chunk", [], |row| {
        row.get::<_, Option<i64>>(0)
    });
    let chunk = chunk.map_err(|error| failed(OPENING, error))?.unwrap_or(0) + 1;
    let progress = Progress {
        seq,
        hash,
        version: version.max(kept),
        chunk,
        version_unkept: false,
    };
    Ok(Found {
        progress,
        cut,
        node,
        fresh,
    })
}

fn hash_of(row: &Raw) -> Result<Hash, StoreError> {
    let bad = |_| StoreError::corrupt("journal entry has a bad hash", Some(row.seq));
    row.hash.as_slice().try_into().map_err(bad)
}

/// A cut as it is kept: sequence number, hash, signature.
pub(super) fn cut_value(cut: &Cut, node: &str, key: &volary_kernel::sign::SigningKey) -> Vec<u8> {
    let mut value = cut.seq.0.to_le_bytes().to_vec();
    value.extend_from_slice(&cut.hash);
    value.extend_from_slice(&key.sign(&cut.message(node)));
    value
}

fn read_cut(value: &[u8], node: &str, key: &PublicKey) -> Result<Cut, StoreError> {
    let parse = || {
        let (seq, rest) = value.split_first_chunk::<8>()?;
        let (hash, signature) = rest.split_first_chunk::<32>()?;
        let cut = Cut {
            seq: Seq(u64::from_le_bytes(*seq)),
            hash: *hash,
        };
        key.verify_strict(&cut.message(node), signature.try_into().ok()?)
            .ok()?;
        Some(cut)
    };
    parse().ok_or_else(|| {
        StoreError::corrupt(
            "the cut that retention left was not signed with this node's key",
            None,
        )
    })
}

/// Compares what was found with the signed head: nothing that was acknowledged may be missing, and what was written
/// after the head must continue it.
pub(crate) fn check_head(conn: &Connection, found: &Found, head: &Head) -> Result<(), StoreError> {
    let Progress { seq, version, .. } = found.progress;
    if head.node.as_str() != found.node {
        return Err(StoreError::corrupt(
            format!("the signed head is of node `{}`", head.node),
            None,
        ));
    }
    if seq < head.seq {
        let what = format!(
            "the database ends at journal entry {seq}, its signed head is at {}",
            head.seq
        );
        return Err(StoreError::corrupt(what, Some(seq.next())));
    }
    if version < head.version {
        let what = format!(
            "the database is at commit {version}, its signed head is at {}",
            head.version
        );
        return Err(StoreError::corrupt(what, Some(seq.next())));
    }
    if found.cut.seq < head.cut.seq {
        let what = format!(
            "the journal is cut at entry {}, its signed head says {}",
            found.cut.seq, head.cut.seq
        );
        return Err(StoreError::corrupt(what, Some(head.cut.seq.next())));
    }
    if head.seq < found.cut.seq {
        // Cut, and died before the head was written: the signed cut vouches for itself.
        return Ok(());
    }
    let at_head = if head.seq == found.cut.seq {
        found.cut.hash
    } else {
        hash_at(conn, head.seq)?
    };
    if at_head != head.hash {
        return Err(StoreError::corrupt(
            "the journal is not the one that its signed head is of",
            Some(head.seq),
        ));
    }
    check_after(conn, head.seq, at_head, &found.node)
}

fn hash_at(conn: &Connection, seq: Seq) -> Result<Hash, StoreError> {
    let hash = conn
        .query_row(
            "SELECT hash FROM journal WHERE seq = ?1",
            [seq.0.cast_signed()],
            |row| row.get::<_, Vec<u8>>(0),
        )
        .optional()
        .map_err(|error| failed(OPENING, error))?;
    let hash = hash.ok_or_else(|| StoreError::corrupt("journal entry is missing", Some(seq)))?;
    hash.as_slice()
        .try_into()
        .map_err(|_| StoreError::corrupt("journal entry has a bad hash", Some(seq)))
}

/// Checks the entries written after the head was.
fn check_after(conn: &Connection, seq: Seq, hash: Hash, node: &str) -> Result<(), StoreError> {
    let sql = format!("SELECT {JOURNAL} FROM journal WHERE seq > ?1 ORDER BY seq");
    let mut statement = conn.prepare(&sql).map_err(|error| failed(OPENING, error))?;
    let mut rows = statement
        .query([seq.0.cast_signed()])
        .map_err(|error| failed(OPENING, error))?;
    let (mut seq, mut hash) = (seq, hash);
    while let Some(row) = rows.next().map_err(|error| failed(OPENING, error))? {
        let row = Raw::read(conn, row).map_err(|error| failed(OPENING, error))?;
        let link = (row.seq == seq.next())
            .then(|| row.link(&hash, node))
            .flatten();
        (seq, hash) = match link {
            Some(link) if link.as_slice() == row.hash => (row.seq, link),
            _ => {
                return Err(StoreError::corrupt(
                    "journal entry does not continue the chain",
                    Some(seq.next()),
                ));
            }
        };
    }
    Ok(())
}
