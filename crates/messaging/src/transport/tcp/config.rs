//! Who may connect, and what bounds a connection.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::RwLock;
use tokio::sync::watch;
use volary_kernel::{
    id::{Name, Tenant},
    sign::PublicKey,
};

/// Most peers of one [`PeerBook`].
pub const PEERS_MAX: usize = 1024;
/// Most bytes of an introduction.
pub const INTRODUCTION_MAX: usize = 4 * 1024 * 1024;

/// Another node (or a library user's other instance), as the configuration names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerSpec {
    /// What it is called here.
    pub name: Name,
    /// Its identity key: the one key it is believed by.
    pub key: PublicKey,
    /// Where it listens, `host:port`; absent if it only dials us.
    pub address: Option<String>,
    /// The tenants it may speak for and hear of. What that means is up to who receives; the link only carries it.
    pub tenants: Vec<Tenant>,
}

impl PeerSpec {
    /// A peer that only dials us, for the default tenant.
    pub fn new(name: Name, key: PublicKey) -> Self {
        Self {
            name,
            key,
            address: None,
            tenants: vec![Tenant::default()],
        }
    }

    /// The same, dialed at `host:port`.
    #[must_use]
    pub fn at(mut self, address: impl Into<String>) -> Self {
        self.address = Some(address.into());
        self
    }
}

/// How a connection is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Security {
    /// TLS 1.3, mutual, by raw public keys.
    #[default]
    Tls,
    /// Nothing is encrypted and nobody proves who they are: for tests and for looking at the bytes. Refused on any
    /// address that is not a loopback one.
    Insecure,
}

/// What bounds a listener and its connections, and the dialing side of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpLimits {
    /// Most connections at once, those in the handshake included. Default 256; further ones are closed at once.
    pub connections: usize,
    /// Most connections of one peer at once. Default 4.
    pub per_peer: usize,
    /// Most connections in the handshake at once. Default 64. At the bound, the longest silent one is closed in
    /// favour of the new one; if none is silent, the one that is at it longest.
    pub handshaking: usize,
    /// Time from connecting until the greeting is exchanged. Default 5 s.
    pub handshake_time: Duration,
    /// A connection that was silent this long is closed. Default 60 s.
    pub idle: Duration,
    /// The dialing side asks for a sign of life when it heard nothing for this long. Default 15 s.
    pub ping: Duration,
    /// Most bytes of one frame of messages. Default 4 MiB, at most [`crate::frame::FRAME_BYTES_MAX`].
    pub frame_bytes: usize,
    /// Most frames sent and not yet answered. Default 64.
    pub window_frames: usize,
    /// Most bytes sent and not yet answered; a single frame may be larger when nothing else is on its way. Default 16 MiB.
    pub window_bytes: usize,
    /// A read in the middle of a frame, or a write, that makes no progress for this long ends the connection; a frame
    /// has this long and a second for each 64 KiB. Default 20 s.
    pub stall: Duration,
    /// How long a close waits for answers that are on their way. Default 5 s.
    pub drain: Duration,
}

impl Default for TcpLimits {
    fn default() -> Self {
        Self {
            connections: 256,
            per_peer: 4,
            handshaking: 64,
            handshake_time: Duration::from_secs(5),
            idle: Duration::from_secs(60),
            ping: Duration::from_secs(15),
            frame_bytes: 4 * 1024 * 1024,
            window_frames: 64,
            window_bytes: 16 * 1024 * 1024,
            stall: Duration::from_secs(20),
            drain: Duration::from_secs(5),
        }
    }
}

/// Why limits make no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} must be {rule}")]
pub struct LimitError {
    /// The limit.
    pub what: &'static str,
    /// What it must be.
    pub rule: &'static str,
}

impl TcpLimits {
    /// Checks the limits.
    ///
    /// # Errors
    /// [`LimitError`] naming the first that makes no sense.
    pub fn check(&self) -> Result<(), LimitError> {
        let rules = [
            (self.connections == 0, "connections", "at least 1"),
            (self.per_peer == 0, "per_peer", "at least 1"),
            (self.handshaking == 0, "handshaking", "at least 1"),
            (
                self.handshake_time.is_zero(),
                "handshake_time",
                "above zero",
            ),
            (self.idle.is_zero(), "idle", "above zero"),
            (self.ping.is_zero(), "ping", "above zero"),
            (self.ping >= self.idle, "ping", "shorter than idle"),
            (self.frame_bytes < 1024, "frame_bytes", "at least 1024"),
            (
                self.frame_bytes > crate::frame::FRAME_BYTES_MAX,
                "frame_bytes",
                "at most 16 MiB",
            ),
            (
                !(1..=WINDOW_FRAMES_MAX).contains(&self.window_frames),
                "window_frames",
                "1 to 4096",
            ),
            (self.window_bytes < 1024, "window_bytes", "at least 1024"),
            (
                self.window_bytes > WINDOW_BYTES_MAX,
                "window_bytes",
                "at most 256 MiB",
            ),
            (self.stall.is_zero(), "stall", "above zero"),
        ];
        match rules.into_iter().find(|(broken, ..)| *broken) {
            Some((_, what, rule)) => Err(LimitError { what, rule }),
            None => Ok(()),
        }
    }
}

const WINDOW_FRAMES_MAX: usize = 4096;
const WINDOW_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Where and how to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenConfig {
    /// `host:port`; port 0 takes a free one.
    pub address: String,
    /// Bounds.
    pub limits: TcpLimits,
    /// Protection.
    pub security: Security,
}

impl ListenConfig {
    /// TLS with the default limits.
    pub fn new(address: impl Into<String>) -> Self {
        Self {
            address: address.into(),
            limits: TcpLimits::default(),
            security: Security::Tls,
        }
    }
}

/// Why a peer can not be written down.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerBookError {
    /// Two peers of one name.
    #[error("two peers are called `{0}`")]
    Name(Name),
    /// Two peers of one key.
    #[error("peers `{first}` and `{second}` have the same key; each node needs its own identity")]
    Key {
        /// Who has it already.
        first: Name,
        /// Who wants it too.
        second: Name,
    },
    /// No room.
    #[error("{PEERS_MAX} peers are known, which is the limit")]
    Full,
}

/// The peers that are believed. Clones share it. A change takes effect at once: live connections of a key that is no
/// longer in it are closed.
#[derive(Debug, Clone)]
pub struct PeerBook(Arc<Book>);

#[derive(Debug)]
struct Book {
    peers: RwLock<HashMap<PublicKey, PeerSpec>>,
    changes: watch::Sender<u64>,
}

impl Default for PeerBook {
    fn default() -> Self {
        Self(Arc::new(Book {
            peers: RwLock::default(),
            changes: watch::channel(0).0,
        }))
    }
}

impl PeerBook {
    /// A book of these peers.
    ///
    /// # Errors
    /// [`PeerBookError`].
    pub fn new(peers: impl IntoIterator<Item = PeerSpec>) -> Result<Self, PeerBookError> {
        let book = Self::default();
        for peer in peers {
            if book.by_name(&peer.name).is_some() {
                return Err(PeerBookError::Name(peer.name));
            }
            book.insert(peer)?;
        }
        Ok(book)
    }

    /// Adds a peer, or replaces the one of the same name (and then no longer believes its former key).
    ///
    /// # Errors
    /// [`PeerBookError`]; nothing changed.
    pub fn insert(&self, peer: PeerSpec) -> Result<(), PeerBookError> {
        let mut peers = self.0.peers.write();
        if let Some(other) = peers.get(&peer.key)
            && other.name != peer.name
        {
            return Err(PeerBookError::Key {
                first: other.name.clone(),
                second: peer.name,
            });
        }
        let former = peers.len();
        let others = peers.values().filter(|known| known.name != peer.name);
        if others.count() >= PEERS_MAX {
            return Err(PeerBookError::Full);
        }
        peers.retain(|_, known| known.name != peer.name);
        peers.insert(peer.key, peer);
        debug_assert!(peers.len() <= former + 1);
        drop(peers);
        self.changed();
        Ok(())
    }

    /// No longer believes the peer of this name; whether there was one.
    pub fn remove(&self, name: &Name) -> bool {
        let mut peers = self.0.peers.write();
        let former = peers.len();
        peers.retain(|_, known| known.name != *name);
        let removed = peers.len() < former;
        drop(peers);
        if removed {
            self.changed();
        }
        removed
    }

    /// The peer of this key.
    pub fn by_key(&self, key: &PublicKey) -> Option<PeerSpec> {
        self.0.peers.read().get(key).cloned()
    }

    /// The peer of this name.
    pub fn by_name(&self, name: &Name) -> Option<PeerSpec> {
        let peers = self.0.peers.read();
        peers.values().find(|peer| peer.name == *name).cloned()
    }

    /// All peers, by name.
    pub fn all(&self) -> Vec<PeerSpec> {
        let mut all: Vec<PeerSpec> = self.0.peers.read().values().cloned().collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Seen as changed at each change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    fn changed(&self) {
        self.0.changes.send_modify(|count| *count += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{identity::Identity, test_util::name};

    fn peer(text: &str) -> PeerSpec {
        PeerSpec::new(name(text), Identity::generate().unwrap().public())
    }

    #[test]
    fn a_book_has_each_name_and_each_key_once() {
        let (a, b) = (peer("a"), peer("b"));
        let twin = PeerSpec::new(name("c"), a.key);
        assert!(matches!(
            PeerBook::new([a.clone(), twin]),
            Err(PeerBookError::Key { .. })
        ));
        let same = PeerSpec::new(name("a"), b.key);
        assert_eq!(
            PeerBook::new([a.clone(), same]).map(drop),
            Err(PeerBookError::Name(name("a")))
        );
        assert_eq!(PeerBook::new([b.clone(), a.clone()]).unwrap().all(), [a, b]);
    }

    #[test]
    fn a_new_key_under_the_same_name_replaces_the_old_one() {
        let (old, new) = (peer("a"), peer("a"));
        let book = PeerBook::new([old.clone()]).unwrap();
        let changes = book.changes();
        book.insert(new.clone()).unwrap();
        assert!(changes.has_changed().unwrap());
        assert_eq!(book.by_key(&old.key), None);
        assert_eq!(book.by_key(&new.key), Some(new));
        assert!(book.remove(&name("a")) && !book.remove(&name("a")));
    }

    #[test]
    fn limits_that_can_not_work_are_named() {
        assert_eq!(TcpLimits::default().check(), Ok(()));
        let limits = TcpLimits {
            ping: Duration::from_secs(60),
            ..TcpLimits::default()
        };
        assert_eq!(
            limits.check().unwrap_err().to_string(),
            "ping must be shorter than idle"
        );
    }
}
