//! A hermetic home for tests of the `volary` program.
//!
//! Its commands see a cleared environment, their own home, state and temporary folders, a fixed width and no colour. Every
//! wait has a limit. Everything that was started, and everything that those started, is killed when it is dropped: such
//! processes are known by the unique name of the folder, which stands in their environment, arguments or working folder.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::process::{self, eventually};

/// How long one command may take before it counts as hung.
const PATIENCE: Duration = Duration::from_secs(30);

/// The environment variable that carries the marker of its [`CliEnv`].
const MARKER: &str = "VOLARY_TEST_MARK";

/// See the module.
#[derive(Debug)]
pub struct CliEnv {
    root: tempfile::TempDir,
    program: PathBuf,
    marker: String,
    started: AtomicU32,
}

/// What a finished command said.
#[derive(Debug)]
pub struct Output {
    /// The exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Standard output, with invalid UTF-8 replaced.
    pub stdout: String,
    /// Standard error, likewise.
    pub stderr: String,
}

/// A command that goes on in the background; it is killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl CliEnv {
    /// An empty environment for the program at that path. Tests of `volary-cli` pass `env!("CARGO_BIN_EXE_volary")`; others
    /// use [`CliEnv::built`].
    #[must_use]
    pub fn new(program: impl Into<PathBuf>) -> Self {
        let root = tempfile::Builder::new()
            .prefix("volary-test-")
            .tempdir()
            .expect("a temporary folder can be made");
        for folder in ["home", "tmp", "out"] {
            std::fs::create_dir(root.path().join(folder)).expect("the new folder is ours");
        }
        let marker = root
            .path()
            .file_name()
            .and_then(OsStr::to_str)
            .expect("its name is ASCII")
            .to_owned();
        Self {
            root,
            program: program.into(),
            marker,
            started: AtomicU32::new(0),
        }
    }

    /// An environment for the `volary` program that stands beside the running test or benchmark in the target folder, or
    /// `None` when it has not been built.
    #[must_use]
    pub fn built() -> Option<Self> {
        let own = std::env::current_exe().expect("this program has a path");
        let folders = own.ancestors().skip(1).take(2);
        let mut candidates = folders.map(|folder| folder.join("volary"));
        candidates
            .find(|candidate| candidate.is_file())
            .map(Self::new)
    }

    /// The folder that holds everything of this environment.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// Where the node keeps its state (`VOLARY_STATE`).
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.root().join("state")
    }

    /// The text that marks every process of this environment.
    #[must_use]
    pub fn marker(&self) -> &str {
        &self.marker
    }

    /// Writes a file below the root, its folders too, and tells where it is.
    pub fn write(&self, path: impl AsRef<Path>, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.root().join(path);
        let folder = path.parent().expect("a file has a folder");
        std::fs::create_dir_all(folder).expect("the folder is ours");
        std::fs::write(&path, text).expect("the folder is ours");
        path
    }

    /// Reads a file below the root.
    #[must_use]
    pub fn read(&self, path: impl AsRef<Path>) -> String {
        let path = self.root().join(path);
        std::fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()))
    }

    /// The command as it would be run, to add to.
    pub fn command(&self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .current_dir(self.root())
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
            .env("HOME", self.root().join("home"))
            .env("TMPDIR", self.root().join("tmp"))
            .env("VOLARY_STATE", self.state())
            .env("LANG", "C.UTF-8")
            .env("TZ", "UTC")
            .env("COLUMNS", "100")
            .env("NO_COLOR", "1")
            .env(MARKER, &self.marker)
            .stdin(Stdio::null());
        command
    }

    /// Runs a command to its end, which must come within 30 seconds.
    #[must_use]
    pub fn run(&self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Output {
        self.run_within(PATIENCE, self.command(arguments))
    }

    /// Runs a prepared command to its end within a limit; a command that hangs is killed and the test fails with what it said.
    #[must_use]
    pub fn run_within(&self, limit: Duration, command: Command) -> Output {
        let shown = format!("{command:?}");
        let mut running = self.start_command(command);
        match running.wait(limit) {
            Some(status) => running.output(status),
            None => {
                process::kill9(running.pid());
                panic!(
                    "{shown} did not end within {limit:?}\n{}\n{}",
                    running.stdout(),
                    running.stderr()
                );
            }
        }
    }

    /// Starts a command in the background.
    #[must_use]
    pub fn start(&self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Running {
        self.start_command(self.command(arguments))
    }

    /// Starts a prepared command in the background. Its output goes to files, so that neither it nor what it leaves behind
    /// can block on a full pipe.
    #[must_use]
    pub fn start_command(&self, mut command: Command) -> Running {
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let path = |name: &str| self.root().join("out").join(format!("{number}.{name}"));
        let (stdout, stderr) = (path("out"), path("err"));
        let open = |path: &Path| File::create(path).expect("the folder is ours");
        command.stdout(open(&stdout)).stderr(open(&stderr));
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        Running {
            child,
            stdout,
            stderr,
        }
    }

    /// Living processes of this environment, this test itself not counted.
    #[must_use]
    pub fn survivors(&self) -> Vec<u32> {
        let own = std::process::id();
        process::processes_touching(&self.marker)
            .into_iter()
            .filter(|pid| *pid != own)
            .collect()
    }

    /// The same as lines of `pid name arguments`, for the text of a failure.
    #[must_use]
    pub fn survivors_shown(&self) -> String {
        let show = |pid: u32| format!("{pid} {} {}", process::name(pid), process::arguments(pid));
        self.survivors()
            .into_iter()
            .map(show)
            .collect::<Vec<_>>()
            .join("\n")
    }
}

impl Drop for CliEnv {
    fn drop(&mut self) {
        let gone = eventually(Duration::from_secs(5), || {
            let survivors = self.survivors();
            survivors.iter().for_each(|pid| process::kill9(*pid));
            survivors.is_empty()
        });
        if !gone && !std::thread::panicking() {
            panic!("cannot kill:\n{}", self.survivors_shown());
        }
    }
}

impl Output {
    /// Fails the test unless the exit code is 0.
    pub fn ok(self) -> Self {
        self.code(0)
    }

    /// Fails the test unless the exit code is this one.
    pub fn code(self, wanted: i32) -> Self {
        assert_eq!(
            self.code,
            Some(wanted),
            "stdout:\n{}\nstderr:\n{}",
            self.stdout,
            self.stderr
        );
        self
    }
}

impl Running {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to standard output so far.
    #[must_use]
    pub fn stdout(&self) -> String {
        read_lossy(&self.stdout)
    }

    /// What it has written to standard error so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        read_lossy(&self.stderr)
    }

    /// Waits for its end; `None` when the limit has passed.
    #[must_use]
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let mut status = None;
        let _ = eventually(limit, || {
            status = self.child.try_wait().expect("it is our child");
            status.is_some()
        });
        status
    }

    /// Asks it to end by SIGTERM, and waits.
    pub fn stop(mut self, limit: Duration) -> Output {
        process::terminate(self.pid());
        let status = self
            .wait(limit)
            .unwrap_or_else(|| panic!("did not end within {limit:?}\n{}", self.stderr()));
        self.output(status)
    }

    fn output(&self, status: ExitStatus) -> Output {
        Output {
            code: status.code(),
            stdout: self.stdout(),
            stderr: self.stderr(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn read_lossy(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_sees_only_what_it_is_given() {
        let env = CliEnv::new("/bin/sh");
        let output = env
            .run([
                "-c",
                "echo out; echo err >&2; env | cut -d= -f1 | sort | tr '\\n' ' '; exit 3",
            ])
            .code(3);
        assert!(output.stdout.starts_with("out\n"));
        assert_eq!(output.stderr, "err\n");
        assert!(!output.stdout.contains("CARGO"), "{}", output.stdout);
    }

    #[test]
    fn a_daemon_that_cleared_its_environment_does_not_survive() {
        let env = CliEnv::new("/bin/sh");
        env.run(["-c", "env -i setsid sh -c 'read line < fifo' & mkfifo fifo"])
            .ok();
        assert!(eventually(Duration::from_secs(5), || !env
            .survivors()
            .is_empty()));
        let survivors = env.survivors();
        drop(env);
        assert!(survivors.iter().all(|pid| !process::is_alive(*pid)));
    }

    #[test]
    #[should_panic(expected = "did not end within")]
    fn a_command_that_hangs_fails_the_test_in_time() {
        let env = CliEnv::new("/bin/sh");
        let _ = env.run_within(
            Duration::from_millis(50),
            env.command(["-c", "mkfifo fifo; read line < fifo"]),
        );
    }
}
