//! Is a replica well? A pure state machine ([`machine`]) that says when to probe and what results mean, and the
//! probes themselves ([`probe`]), which work for every backend.

mod http;
mod machine;
mod probe;

use std::path::PathBuf;
use std::time::Duration;

pub use machine::{Action, Health, Input, Machine};
pub use probe::{ProbeResult, run};

/// What is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// `GET` over plain HTTP/1.1: healthy by status.
    Http(HttpCheck),
    /// A connection can be made.
    Tcp {
        /// Host name or address.
        host: String,
        /// Port.
        port: u16,
    },
    /// A command inside the replica ends with 0.
    Command(Vec<String>),
    /// A file exists on the machine, and is not older than a bound if there is one.
    File {
        /// Which.
        path: PathBuf,
        /// Oldest it may be.
        max_age: Option<Duration>,
    },
}

/// Particulars of an HTTP check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpCheck {
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Path and query.
    pub path: String,
    /// Headers to send.
    pub headers: Vec<(String, String)>,
    /// The only status that passes; any of 200 to 399 when `None`. Redirects are not followed.
    pub expect_status: Option<u16>,
}

/// When to look and how patient to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeSpec {
    /// What is looked at.
    pub check: Check,
    /// Between probes.
    pub interval: Duration,
    /// Longest one probe may take.
    pub timeout: Duration,
    /// Failures in a row that mean unhealthy; 0 means the default.
    pub retries: u32,
    /// Failures within this time of the start do not count.
    pub start_period: Duration,
}

/// Half a minute, as the format of the manifest has it.
pub const DEFAULT_INTERVAL: Duration = Duration::from_secs(30);
/// Longest one probe may take by default.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// Failures in a row by default.
pub const DEFAULT_RETRIES: u32 = 3;
/// Patience with a start by default.
pub const DEFAULT_START_PERIOD: Duration = Duration::from_secs(5);
/// While a replica has never been healthy, probes come this often at least, so that ready is seen soon.
pub const STARTUP_INTERVAL: Duration = Duration::from_millis(200);

impl ProbeSpec {
    /// A check with the default times.
    pub fn new(check: Check) -> Self {
        Self {
            check,
            interval: DEFAULT_INTERVAL,
            timeout: DEFAULT_TIMEOUT,
            retries: DEFAULT_RETRIES,
            start_period: DEFAULT_START_PERIOD,
        }
    }
}
