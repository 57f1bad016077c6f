//! From agent.yaml to running replicas: manifests, backends, health, restarts, logs.

pub mod backend;
pub mod event;
pub mod health;
pub mod log;
pub mod spec;
pub mod supervise;
