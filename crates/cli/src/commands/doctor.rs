//! `volary doctor`: what this machine offers to a fleet, found out by trying.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::Args;
use rustix::process::{Resource, getrlimit};
use serde::Serialize;
use volary::deploy::backend::{
    Backend, Support,
    process::{InitCommand, ProcessBackend, ProcessConfig, Shared},
};
use volary_kernel::{
    Clock as _, SystemClock, Timestamp, Uid, file::create_private_dir, metric::Metrics,
    secret::Redactor, task::Supervisor, text::format_bytes,
};

use crate::{
    client::Node,
    codes,
    commands::validate,
    error::{CliError, Outcome},
    exit::Exit,
    settle::Context,
    ui::{
        self,
        table::{Cell, Table},
    },
};

/// Watches that a large tree needs; a checkout of a big project has some ten thousand folders.
const WATCHES: u64 = 65_536;
/// Instances: one per source, beside what the desktop and editors take.
const INSTANCES: u64 = 128;
/// Events held while the node is busy; beyond, sources scan again.
const QUEUED: u64 = 16_384;
/// Open files: each replica, connection and log takes a few.
const FILES: u64 = 4_096;
/// Free disk below which intake may soon stop.
const DISK: u64 = 1 << 30;

/// Clocks of two machines may differ by this.
const CLOCK_SKEW: std::time::Duration = std::time::Duration::from_secs(300);

/// `volary doctor`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Folder of the fleet, whose disk is looked at.
    #[arg(value_name = "DIR")]
    fleet: Option<PathBuf>,
}

/// One thing looked at.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    status: Status,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    Warning,
    Bad,
}

/// Prints what was found; exit code 69 when process agents cannot run here as they should.
pub fn run(context: &Context, arguments: &Arguments) -> Outcome {
    let mut checks = vec![kernel()];
    checks.extend(super::blocking_value(isolation())??);
    checks.push(docker());
    checks.extend(inotify());
    checks.push(open_files());
    let dir = crate::settle::absolute(&context.fleet_dir(arguments.fleet.as_deref()))?;
    let state = context.own_state(&dir)?;
    checks.push(disk(&dir));
    checks.push(clock(&state));
    checks.extend(listen(&dir, &state)?);
    if context.ui.json {
        context.ui.document(&checks)?;
    } else {
        context.ui.line(table(context, &checks))?;
    }
    let bad = checks.iter().any(|check| check.status == Status::Bad);
    if bad {
        Err(CliError::Silent(Exit::Unavailable))
    } else {
        Ok(Exit::Ok)
    }
}

fn table(context: &Context, checks: &[Check]) -> String {
    let mut table = Table::new(["CHECK", "STATUS", "FOUND", "HINT"]);
    for check in checks {
        let status = match check.status {
            Status::Ok => Cell::styled("ok", ui::GOOD),
            Status::Warning => Cell::styled("warning", ui::WARN),
            Status::Bad => Cell::styled("bad", ui::BAD),
        };
        let hint = check.hint.as_deref().unwrap_or_default();
        table.row([
            check.name.into(),
            status,
            (&check.found).into(),
            hint.into(),
        ]);
    }
    table.render(&context.ui)
}

fn check(name: &'static str, status: Status, found: impl Into<String>) -> Check {
    Check {
        name,
        status,
        found: found.into(),
        hint: None,
    }
}

impl Check {
    fn hint(self, hint: impl Into<String>) -> Self {
        Self {
            hint: Some(hint.into()),
            ..self
        }
    }
}

fn kernel() -> Check {
    let name = rustix::system::uname();
    let found = format!(
        "{} {}",
        name.sysname().to_string_lossy(),
        name.release().to_string_lossy()
    );
    check("kernel", Status::Ok, found)
}

/// Starts the process backend as a node would, asks it, and takes it down again.
async fn isolation() -> Result<Vec<Check>, CliError> {
    let dir = std::env::temp_dir().join(format!("volary-doctor-{}", Uid::generate()));
    let checks = probe(&dir).await;
    let _swept_with_the_rest_of_it = fs::remove_dir_all(&dir);
    checks
}

async fn probe(dir: &Path) -> Result<Vec<Check>, CliError> {
    let cannot = |error: &dyn std::error::Error| {
        CliError::new(codes::SYSTEM, "cannot try isolation").because(error)
    };
    let config = ProcessConfig::new(InitCommand::this_program(), dir);
    for folder in [dir, &config.private_root, &config.log_dir] {
        create_private_dir(folder).map_err(|error| cannot(&error))?;
    }
    let shared = Shared {
        clock: SystemClock::shared(),
        redactor: Redactor::default(),
        metrics: Metrics::default(),
        tasks: Supervisor::new(),
    };
    let backend = match ProcessBackend::new(config, shared).await {
        Ok(backend) => backend,
        Err(error) => {
            let hint = "process agents need `isolation: none` here, or another machine";
            return Ok(vec![
                check("isolation", Status::Bad, error.to_string()).hint(hint),
            ]);
        }
    };
    let found = backend.capabilities();
    backend.close().await;
    let mut checks = vec![
        support("isolation", &found.isolation, found.view, Status::Bad),
        support(
            "no orphans",
            &found.no_orphans,
            "by the kernel, with the node",
            Status::Bad,
        ),
        support(
            "other users",
            &found.other_users,
            "replicas may run as other users",
            Status::Warning,
        ),
        match found.landlock {
            Some(version) => check("landlock", Status::Ok, format!("version {version}")),
            None => check("landlock", Status::Warning, "not in this kernel"),
        },
        if found.cgroup.is_empty() {
            check("cgroups", Status::Warning, "none can be made")
                .hint("limits of resources become those of processes")
        } else {
            check("cgroups", Status::Ok, found.cgroup.join(", "))
        },
    ];
    checks.extend(
        found
            .notes
            .into_iter()
            .map(|note| check("note", Status::Warning, note)),
    );
    Ok(checks)
}

fn support(name: &'static str, found: &Support, words: &str, otherwise: Status) -> Check {
    match found {
        Support::Yes => check(name, Status::Ok, words),
        Support::No(why) => check(name, otherwise, why.clone()),
    }
}

/// Whether a Docker engine answers at the usual place. This build runs processes only.
fn docker() -> Check {
    let socket = Path::new("/var/run/docker.sock");
    match std::os::unix::net::UnixStream::connect(socket) {
        Ok(_) => check(
            "docker",
            Status::Ok,
            format!("an engine listens on {}", socket.display()),
        ),
        Err(error) => check(
            "docker",
            Status::Ok,
            format!("no engine on {}: {error}", socket.display()),
        ),
    }
}

fn inotify() -> Vec<Check> {
    let limits = [
        ("inotify watches", "max_user_watches", WATCHES),
        ("inotify instances", "max_user_instances", INSTANCES),
        ("inotify queue", "max_queued_events", QUEUED),
    ];
    limits
        .map(|(name, file, wanted)| limit(name, file, wanted))
        .into()
}

fn limit(name: &'static str, file: &str, wanted: u64) -> Check {
    let path = Path::new("/proc/sys/fs/inotify").join(file);
    match fs::read_to_string(&path)
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok())
    {
        Some(found) if found >= wanted => check(name, Status::Ok, found.to_string()),
        Some(found) => check(name, Status::Warning, found.to_string()).hint(format!(
            "large sources may need more: sysctl fs.inotify.{file}={wanted}"
        )),
        None => check(
            name,
            Status::Warning,
            format!("{} cannot be read", path.display()),
        ),
    }
}

fn open_files() -> Check {
    match getrlimit(Resource::Nofile).current {
        Some(found) if found < FILES => check("open files", Status::Warning, found.to_string())
            .hint(format!("a large fleet may need more: ulimit -n {FILES}")),
        Some(found) => check("open files", Status::Ok, found.to_string()),
        None => check("open files", Status::Ok, "unlimited"),
    }
}

/// A clock that is behind what it has shown before makes messages expire too late, and peers refuse what comes from their
/// future.
fn clock(state: &Path) -> Check {
    let now = SystemClock.wall();
    let seen = [state.join("volary.db-wal"), state.join("volary.db")];
    let written = seen
        .iter()
        .filter_map(|path| fs::metadata(path).ok()?.modified().ok());
    let micros = |time: std::time::SystemTime| {
        let since = time.duration_since(std::time::UNIX_EPOCH).ok()?;
        i64::try_from(since.as_micros()).ok()
    };
    let latest = written.filter_map(micros).max().map(Timestamp::from_micros);
    match latest {
        Some(latest) if latest > now + CLOCK_SKEW => {
            let words = format!("{now}, but the journal was written at {latest}");
            check("clock", Status::Warning, words).hint("set the clock, and keep it with NTP")
        }
        _ => check("clock", Status::Ok, now.to_string()),
    }
}

/// Whether `messaging.listen` of the fleet can be had, or is held by its own node.
fn listen(dir: &Path, state: &Path) -> Result<Option<Check>, CliError> {
    let Some(address) = validate::quiet(dir).and_then(|fleet| fleet.messaging.listen) else {
        return Ok(None);
    };
    const NAME: &str = "messaging.listen";
    if Node::running_on(state)?.is_some() {
        return Ok(Some(check(
            NAME,
            Status::Ok,
            format!("{address}, held by the running node"),
        )));
    }
    Ok(Some(match std::net::TcpListener::bind(address) {
        Ok(_) => check(NAME, Status::Ok, format!("{address} is free")),
        Err(error) => check(NAME, Status::Bad, format!("{address}: {error}"))
            .hint("stop the program that has it, or choose another address"),
    }))
}

fn disk(dir: &Path) -> Check {
    // The folder itself may not be there yet.
    let Some(existing) = dir.ancestors().find(|folder| folder.exists()) else {
        return check(
            "free disk",
            Status::Warning,
            format!("{} is not there", dir.display()),
        );
    };
    match rustix::fs::statvfs(existing) {
        Ok(found) => {
            let free = found.f_bavail.saturating_mul(found.f_frsize);
            let words = format!("{} for {}", format_bytes(free), existing.display());
            if free < DISK {
                let hint = "intake stops below the fleet's `store.minFreeDisk`";
                check("free disk", Status::Warning, words).hint(hint)
            } else {
                check("free disk", Status::Ok, words)
            }
        }
        Err(error) => check(
            "free disk",
            Status::Warning,
            format!("{}: {error}", existing.display()),
        ),
    }
}
