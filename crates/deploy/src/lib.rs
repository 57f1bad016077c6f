//! From agent.yaml to running replicas: manifests, backends, health, restarts, logs.

pub mod spec;
