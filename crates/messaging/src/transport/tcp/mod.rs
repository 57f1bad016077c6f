//! Links between nodes: sealed frames over TLS 1.3, one answer per message.
//!
//! ```text
//! Link (dials) ── Hello ─▶ ◀─ HelloAck ── Listener          one connection, after a TLS handshake that shows both keys
//!    send(frame) ── Data{id, frame} ─▶  verify ─▶ Reception::arrived
//!    answers     ◀─ Answers{id, …} ──  in order, one per message
//!    Introduce (either way): who is here      Ping ─▶ ◀─ Pong      Bye{reason}
//! ```
//!
//! Data flows from who dials to who listens; two nodes that talk both ways have two connections. What is not answered
//! when a connection ends is *unknown*: it may have arrived. Who needs more (see [`crate::post`]) sends again under the
//! same ids; the receiver knows them.
//!
//! | module | what it owns |
//! |---|---|
//! | [`PeerSpec`], [`PeerBook`], [`TcpLimits`] | who may connect, and the bounds |
//! | [`Link`] | the dialing side: reconnects, window, flush when idle |
//! | [`Listener`], [`Reception`] | the accepting side |
//! | [`Tcp`] | a [`crate::Transport`] on top, at most once, for who embeds this |
//! | [`Net`] | where sockets come from |
//! | [`control`] | the bytes on the wire |

mod bus;
mod config;
pub mod control;
mod link;
mod listener;
mod metrics;
mod net;
mod tls;
mod wire;

pub use self::{
    bus::{BindError, Tcp, TcpConfig},
    config::{
        INTRODUCTION_MAX, LimitError, ListenConfig, PEERS_MAX, PeerBook, PeerBookError, PeerSpec,
        Security, TcpLimits,
    },
    control::{Answer, Durable},
    link::{Link, LinkConfig, LinkError, LinkState, Outgoing, RECONNECT, Random},
    listener::{
        Arrival, ConnectionStatus, Listener, ListenerConfig, OnRejected, OpaqueArrival,
        OpaqueArrived, Reception, Rejected, TcpError, TurnedAway,
    },
    net::{Incoming, Net, Stream},
};
