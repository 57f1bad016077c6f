//! `GET /health` and `GET /ready`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One word for the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HealthStatus {
    /// `/health`: every loop turns (200).
    Healthy,
    /// `/health`: a loop is silent or dead (503).
    Unhealthy,
    /// `/ready`: everything can take work (200).
    Ready,
    /// `/ready`: something cannot take work yet, any more or for now (503).
    NotReady,
}

/// What `/health` and `/ready` answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HealthDocument {
    /// One word for the whole.
    pub status: HealthStatus,
    /// What was looked at, by name.
    pub checks: Vec<CheckView>,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CheckView {
    /// Its name.
    pub name: String,
    /// Whether it is well.
    pub ok: bool,
    /// Why it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Seconds since its last sign of life, for loops.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_beat_seconds: Option<u64>,
}
