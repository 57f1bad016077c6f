//! The conformance cases of the runtime-operations reference, named after what they check. Each test's documentation
//! begins with the case it stands for; `docs/reference/conformance-runtime-operations.md` lists them all.

#![expect(clippy::unwrap_used, reason = "a test whose setup fails has failed")]

mod contained;
mod hooks;
mod local;
mod metrics;
mod pools;
mod rate;
mod rate_processes;
mod replay;
mod runtime;
mod support;
mod tasks;
mod tcp;
mod vectors;
mod verified;
mod webhooks;
