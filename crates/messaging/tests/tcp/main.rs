//! Links between nodes: that they carry, that they end well, and that nobody who means harm gets anywhere.

#![expect(clippy::unwrap_used, reason = "a test whose setup fails has failed")]

mod conformance;
mod hostile;
mod link;
mod sim;
mod support;
