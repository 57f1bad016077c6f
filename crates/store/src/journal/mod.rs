//! The journal's proof: a hash chain over all entries, a signed head beside the database, checks and exports of both.

pub(crate) mod chain;
pub(crate) mod head;

pub use head::{Cut, Head};
