//! Running one probe, whatever it looks at, within its time.

use std::path::Path;
use std::time::Duration;

use tokio::net::TcpStream;
use volary_kernel::clock::{self, Timestamp};

use super::{Check, ProbeSpec, http};
use crate::backend::{Backend, ExecRequest, Exit, ReplicaId};

/// Output of a failed command that is shown, bytes.
const SHOWN: usize = 400;

/// What a probe found: `Err` says why it is not well.
pub type ProbeResult = Result<(), String>;

/// Looks once. Longer than the probe's timeout is a failure, and what was started for it is ended. Cancel-safe.
pub async fn run(
    spec: &ProbeSpec,
    backend: &dyn Backend,
    id: &ReplicaId,
    wall: Timestamp,
) -> ProbeResult {
    let look = async {
        match &spec.check {
            Check::Http(check) => http::check(check).await,
            Check::Tcp { host, port } => tcp(host, *port).await,
            Check::Command(argv) => command(argv, spec.timeout, backend, id).await,
            Check::File { path, max_age } => file(path, *max_age, wall).await,
        }
    };
    let limit = volary_kernel::text::format_duration(spec.timeout);
    clock::timeout(spec.timeout, look)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {limit}")))
}

async fn tcp(host: &str, port: u16) -> ProbeResult {
    let connected = TcpStream::connect((host, port)).await;
    connected
        .map(drop)
        .map_err(|error| format!("connect to {host}:{port}: {error}"))
}

async fn command(
    argv: &[String],
    timeout: Duration,
    backend: &dyn Backend,
    id: &ReplicaId,
) -> ProbeResult {
    let mut request = ExecRequest::new(argv.iter().cloned());
    request.timeout = timeout;
    let outcome = backend
        .exec(id, request)
        .await
        .map_err(|error| error.to_string())?;
    match outcome.exit {
        Some(Exit::Code(0)) => Ok(()),
        Some(exit) => {
            let said = [outcome.stdout, outcome.stderr].concat();
            let shown = String::from_utf8_lossy(&said[..said.len().min(SHOWN)])
                .trim()
                .to_owned();
            Err(format!("{exit}: {shown}")
                .trim_end_matches([':', ' '])
                .to_owned())
        }
        None => Err(format!(
            "no answer within {}",
            volary_kernel::text::format_duration(timeout)
        )),
    }
}

async fn file(path: &Path, max_age: Option<Duration>, wall: Timestamp) -> ProbeResult {
    let shown = path.display();
    let found = tokio::fs::metadata(path)
        .await
        .map_err(|error| format!("{shown}: {error}"))?;
    let Some(max_age) = max_age else {
        return Ok(());
    };
    let modified = found
        .modified()
        .map_err(|error| format!("{shown}: {error}"))?;
    let since = modified
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    let changed = Timestamp::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX));
    let age = wall.since(changed);
    if age <= max_age {
        return Ok(());
    }
    Err(format!(
        "{shown} is {} old",
        volary_kernel::text::format_duration(age)
    ))
}
