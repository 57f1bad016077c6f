//! From agent.yaml to running replicas: manifests, backends, health, restarts, logs.
//!
//! | module | what it owns |
//! |---|---|
//! | [`spec`] | manifests: read, checked, every problem at once |
//! | [`resolve`] | pure: from a checked manifest to what is asked of the modules below |
//! | [`supervise`] | keeps replicas as wanted: order, restarts, drain; one task over pure machines |
//! | [`health`] | when to probe, what results mean, and the probes |
//! | [`backend`] | the seam of how replicas run; `process` runs them in namespaces of their own |
//! | [`mod@log`] | what replicas write: rotation, redaction, tail, follow |
//! | [`event`] | the closed list of what happens to replicas |

pub mod backend;
pub mod event;
pub mod health;
pub mod log;
pub mod resolve;
pub mod spec;
pub mod supervise;
