//! The runbook of flows (`docs/recipes/flow-runbook.md`), symptom by symptom: each is reproduced, seen by the signal that the
//! runbook says to look at, mended as it says, and seen to be gone.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

mod desk;
mod slow;
#[path = "../support/store.rs"]
#[expect(dead_code, reason = "each test binary uses a part of it")]
mod store;
mod storm;
mod stuck;
#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "each test binary uses a part of it")]
mod support;
mod tells;
mod tenants;
mod twice;
