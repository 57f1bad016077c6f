//! HTTP for operators and agents: health, readiness, metrics, events, control and the link API.
