//! From agent.yaml to running replicas: manifests, backends, health, restarts, logs.
