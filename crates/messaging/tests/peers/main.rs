//! Messages between two nodes: durable ones, at-most-once ones, what is seen and what is believed; over a simulated network
//! with seeds, and over real TLS sockets with two databases.

#![expect(clippy::unwrap_used, reason = "a test whose setup fails has failed")]

mod agreed;
mod belief;
mod crowd;
mod edges;
mod node;
mod pair;
mod sim;
mod simulated;
mod store;
