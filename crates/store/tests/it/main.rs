//! Stores from the outside: conformance, damage, crashes, full disks, retention.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod archive;
mod common;
mod conform;
mod crash;
mod damage;
mod full;
mod model;
mod proof;
mod races;
mod retention;
mod shared;
