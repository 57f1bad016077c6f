//! What the process tests share: a backend in a directory of its own, small programs, reading logs.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;
use volary_deploy::backend::process::{InitCommand, ProcessBackend, ProcessConfig, Shared};
use volary_deploy::backend::{Backend, ProgramSpec, ReplicaId};
use volary_deploy::log::LogQuery;
use volary_kernel::clock::SystemClock;
use volary_kernel::id::Name;
use volary_kernel::metric::Metrics;
use volary_kernel::secret::Redactor;
use volary_kernel::task::Supervisor;

/// The program that can become an init.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_volary-test-init");

/// A backend whose state lives in a directory that goes away with it.
pub struct Fixture {
    pub backend: ProcessBackend,
    pub redactor: Redactor,
    pub metrics: Metrics,
    pub tasks: Supervisor,
    dir: TempDir,
}

impl Fixture {
    pub async fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (redactor, metrics, tasks) =
            (Redactor::default(), Metrics::default(), Supervisor::new());
        let shared = Shared {
            clock: SystemClock::shared(),
            redactor: redactor.clone(),
            metrics: metrics.clone(),
            tasks: tasks.clone(),
        };
        let init = InitCommand {
            program: PROGRAM.into(),
            args: vec!["__init".to_owned()],
        };
        let config = ProcessConfig::new(init, dir.path().join("state"));
        let backend = ProcessBackend::new(config, shared)
            .await
            .expect("a backend");
        Self {
            backend,
            redactor,
            metrics,
            tasks,
            dir,
        }
    }

    pub fn id(&self, agent: &str, ordinal: u32) -> ReplicaId {
        ReplicaId::new(Name::new(agent).expect("a name"), ordinal)
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub fn program<const N: usize>(&self, argv: [&str; N]) -> ProgramSpec {
        ProgramSpec::new(argv, self.dir.path())
    }

    pub fn sh(&self, script: &str) -> ProgramSpec {
        self.program(["/bin/sh", "-c", script])
    }

    /// All that a replica wrote, as text.
    pub async fn log(&self, agent: &str, ordinal: u32) -> String {
        let reader = self
            .backend
            .logs(&self.id(agent, ordinal), LogQuery::default())
            .await;
        let Ok(mut reader) = reader else {
            return String::new();
        };
        let mut text = String::new();
        while let Ok(Some(line)) = reader.next().await {
            text.push_str(&line.text);
            text.push('\n');
        }
        text
    }

    /// Waits until the log contains `wanted`.
    pub async fn log_contains(&self, agent: &str, ordinal: u32, wanted: &str) -> bool {
        let id = self.id(agent, ordinal);
        volary_kernel::clock::timeout(Duration::from_secs(10), async {
            loop {
                let query = LogQuery {
                    tail: None,
                    follow: true,
                };
                if let Ok(mut reader) = self.backend.logs(&id, query).await {
                    while let Ok(Some(line)) = reader.next().await {
                        if line.text.contains(wanted) {
                            return;
                        }
                    }
                }
                tokio::task::yield_now().await;
            }
        })
        .await
        .is_ok()
    }
}

impl Drop for Fixture {
    /// Removes the control groups also when a test failed: a second life of the program closes properly.
    fn drop(&mut self) {
        let mut sweep = std::process::Command::new(PROGRAM);
        sweep
            .arg("sweep")
            .arg(self.state())
            .stdout(std::process::Stdio::null());
        let _left_to_the_next_run = sweep.status();
    }
}

/// Whether the tests run as root.
pub fn is_root() -> bool {
    rustix::process::getuid().is_root()
}

/// Control groups on the machine that belong to a state directory.
pub fn cgroups_of(state: &Path) -> Vec<String> {
    let tag = std::fs::read_to_string(state.join("machine-tag")).expect("a tag");
    let mut find = std::process::Command::new("find");
    let found = find
        .args(["/sys/fs/cgroup", "-name", &format!("volary-{tag}")])
        .output();
    let text = String::from_utf8_lossy(&found.expect("find").stdout).into_owned();
    text.lines().map(str::to_owned).collect()
}
