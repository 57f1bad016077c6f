//! Probes: how a replica is asked whether it is well.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde::Serialize;

use super::text;

/// One probe and its timing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HealthCheck {
    /// What is asked.
    pub probe: Probe,
    /// From the end of one probe to the start of the next.
    #[serde(serialize_with = "text::duration")]
    pub interval: Duration,
    /// A probe that takes longer has failed; never longer than an hour.
    #[serde(serialize_with = "text::duration")]
    pub timeout: Duration,
    /// Failures in a row that make a replica unhealthy; at least 1.
    pub retries: u32,
    /// After a start, failures within this time do not count, and the first success ends it.
    #[serde(serialize_with = "text::duration")]
    pub start_period: Duration,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", rename_all_fields = "camelCase")]
pub enum Probe {
    /// `GET` over plain HTTP/1.1; redirects are not followed.
    Http {
        /// Host to connect to; `127.0.0.1` by default.
        host: String,
        /// Port to connect to.
        port: u16,
        /// Path and query, beginning with `/`.
        path: String,
        /// Further headers.
        headers: BTreeMap<String, String>,
        /// The only status that passes; `None`: any of 200 to 399.
        expect_status: Option<u16>,
    },
    /// A program in the agent's own surroundings; exit code 0 passes.
    Command {
        /// Program and arguments; never empty. A program with a `/` is absolute.
        argv: Vec<String>,
    },
    /// A TCP connection that is accepted passes.
    Tcp {
        /// Host to connect to; `127.0.0.1` by default.
        host: String,
        /// Port to connect to.
        port: u16,
    },
    /// A file that is there passes.
    File {
        /// The file.
        path: PathBuf,
        /// It must also have been written within this time.
        #[serde(serialize_with = "text::optional_duration")]
        max_age: Option<Duration>,
    },
}
