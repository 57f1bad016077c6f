//! The connections of a listener: who may have one more, and who has to go.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use volary_kernel::{clock::Timestamp, id::Name, metric::Gauge, sign::PublicKey};

use super::ConnectionStatus;
use crate::transport::tcp::{
    PeerBook, PeerSpec, TcpLimits,
    control::{Code, Greeting},
};

/// How often the connections of one peer may be there while those of its earlier lives end.
const LIVES: usize = 3;

/// Shared by a listener and its connections.
pub(super) struct Table {
    limits: TcpLimits,
    gauge: Gauge,
    entries: Mutex<Entries>,
}

#[derive(Default)]
struct Entries {
    next: u64,
    /// In order of arrival.
    by_number: BTreeMap<u64, Entry>,
}

struct Entry {
    stop: Stop,
    remote: Option<SocketAddr>,
    who: Who,
}

enum Who {
    /// In the handshake; whether it has sent a byte.
    Nobody(Arc<AtomicBool>),
    Peer(Box<Peer>),
}

struct Peer {
    key: PublicKey,
    name: Name,
    incarnation: u64,
    since: Timestamp,
}

/// Tells a connection to end, and why.
#[derive(Clone)]
pub(super) struct Stop {
    token: CancellationToken,
    why: Arc<Mutex<Option<Code>>>,
}

impl Stop {
    fn new(parent: &CancellationToken) -> Self {
        Self {
            token: parent.child_token(),
            why: Arc::default(),
        }
    }

    fn stop(&self, code: Code) {
        self.why.lock().get_or_insert(code);
        self.token.cancel();
    }

    /// Waits until it is told; `Closing` if the whole listener stops.
    pub(super) async fn told(&self) -> Code {
        self.token.cancelled().await;
        self.why.lock().unwrap_or(Code::Closing)
    }
}

/// A place in the table, given back when dropped.
pub(super) struct Place {
    table: Arc<Table>,
    number: u64,
    pub(super) stop: Stop,
    /// Set once the other side has sent a byte.
    pub(super) spoke: Arc<AtomicBool>,
}

impl Drop for Place {
    fn drop(&mut self) {
        if self
            .table
            .entries
            .lock()
            .by_number
            .remove(&self.number)
            .is_some()
        {
            self.table.gauge.dec();
        }
    }
}

/// What became of somebody who knocked.
pub(super) enum Knock {
    /// There is a place; another in the handshake may have had to go for it.
    In(Place),
    /// There is none, for this reason.
    Out(&'static str),
}

impl Table {
    pub(super) fn new(limits: TcpLimits, gauge: Gauge) -> Arc<Self> {
        Arc::new(Self {
            limits,
            gauge,
            entries: Mutex::default(),
        })
    }

    /// Gives somebody new a place in the handshake.
    pub(super) fn knock(
        self: &Arc<Self>,
        remote: Option<SocketAddr>,
        listener: &CancellationToken,
    ) -> Knock {
        let mut entries = self.entries.lock();
        let handshaking = entries.handshaking().count();
        let full = entries.by_number.len() >= self.limits.connections;
        if full || handshaking >= self.limits.handshaking {
            let reason = if full { "connections" } else { "handshaking" };
            // Who sends a byte and then nothing is no better than who sends nothing: else a few could keep all others out.
            let Some(slow) = entries
                .longest_silent()
                .or_else(|| entries.longest_greeting())
            else {
                return Knock::Out(reason);
            };
            if let Some(entry) = entries.by_number.remove(&slow) {
                entry.stop.stop(Code::TooMany);
                self.gauge.dec();
            }
        }
        let number = entries.next;
        entries.next += 1;
        let (stop, spoke) = (Stop::new(listener), Arc::new(AtomicBool::new(false)));
        let entry = Entry {
            stop: stop.clone(),
            remote,
            who: Who::Nobody(spoke.clone()),
        };
        entries.by_number.insert(number, entry);
        self.gauge.inc();
        Knock::In(Place {
            table: self.clone(),
            number,
            stop,
            spoke,
        })
    }

    /// Lets a peer in that has greeted. Connections of an earlier life of it end.
    pub(super) fn admit(
        &self,
        place: &Place,
        peer: &PeerSpec,
        greeting: &Greeting,
        since: Timestamp,
    ) -> Result<(), Code> {
        let mut entries = self.entries.lock();
        let (mut own, mut all) = (0, 0);
        for entry in entries.by_number.values() {
            match &entry.who {
                Who::Peer(there) if there.key == peer.key => {
                    all += 1;
                    if there.incarnation == greeting.incarnation {
                        own += 1;
                    } else {
                        entry.stop.stop(Code::Replaced);
                    }
                }
                _ => {}
            }
        }
        // Those that were told to end count until they have: a peer that begins anew again and again takes nobody's place.
        if own >= self.limits.per_peer || all >= self.limits.per_peer * LIVES {
            return Err(Code::TooMany);
        }
        // Gone already if it was silent for too long.
        let entry = entries.by_number.get_mut(&place.number);
        entry.ok_or(Code::TooMany)?.who = Who::Peer(Box::new(Peer {
            key: peer.key,
            name: peer.name.clone(),
            incarnation: greeting.incarnation,
            since,
        }));
        Ok(())
    }

    /// Ends the connections of keys that are no longer in the book.
    pub(super) fn sweep(&self, book: &PeerBook) {
        for entry in self.entries.lock().by_number.values() {
            if let Who::Peer(there) = &entry.who
                && book.by_key(&there.key).is_none()
            {
                entry.stop.stop(Code::Unknown);
            }
        }
    }

    /// The peers that are connected now, by name.
    pub(super) fn status(&self) -> Vec<ConnectionStatus> {
        let entries = self.entries.lock();
        let mut status: Vec<ConnectionStatus> = entries
            .by_number
            .values()
            .filter_map(|entry| match &entry.who {
                Who::Nobody(_) => None,
                Who::Peer(there) => Some(ConnectionStatus {
                    peer: there.name.clone(),
                    remote: entry.remote,
                    since: there.since,
                }),
            })
            .collect();
        status.sort_by(|a, b| a.peer.cmp(&b.peer));
        status
    }
}

impl Entries {
    fn handshaking(&self) -> impl Iterator<Item = (&u64, &Arc<AtomicBool>)> {
        self.by_number
            .iter()
            .filter_map(|(number, entry)| match &entry.who {
                Who::Nobody(spoke) => Some((number, spoke)),
                Who::Peer(_) => None,
            })
    }

    fn longest_greeting(&self) -> Option<u64> {
        self.handshaking().next().map(|(number, _)| *number)
    }

    fn longest_silent(&self) -> Option<u64> {
        self.handshaking()
            .find(|(_, spoke)| !spoke.load(Ordering::Relaxed))
            .map(|(number, _)| *number)
    }
}
