//! What PenguiFlow 3.6.4 did, measured once on two shared cores with Python 3.11.7; medians of three fresh processes.
//!
//! Constants, not measured again: figures that are compared with them say `"peer_recorded": true`.

/// Messages per second of no-op chains: (nodes, one producer, 1,000 traces at once).
pub const CHAINS: [(usize, f64, f64); 3] = [
    (1, 15_741.0, 10_324.0),
    (3, 6_621.0, 5_139.0),
    (10, 2_236.0, 2_057.0),
];

/// Joins per second of a fan-out to eight and a join: one producer.
pub const FANOUT: f64 = 1_171.0;

/// Latency of a chain of three nodes at 100 traces a second, in microseconds: the middle, and the 99th of 100.
pub const LATENCY: (f64, f64) = (425.0, 873.0);

/// Bytes of a queued trace that is answered to its own caller.
pub const QUEUED_BYTES: f64 = 5_300.0;

/// Bytes that stay of each finished trace.
pub const LEAKED_BYTES: f64 = 230.0;

/// Throughput with all events logged as JSON to nowhere, as a share of that without.
pub const LOGGING: f64 = 0.33;

/// Microseconds of one cancel with 10,000 traces queued.
pub const CANCEL: f64 = 5_500.0;

/// Chunks per second from a node to the reader.
pub const STREAM: f64 = 133_000.0;

/// Seconds that a quiet tenant waits beside one that floods, and beside one that fails.
pub const NEIGHBOUR: (f64, f64) = (2.5, 30.05);
