//! Limits by control groups, versions 1 and 2, below the group the node itself is in.
//!
//! Groups are named `volary-<tag>/<replica>`; the tag belongs to the state directory, so that a new node finds
//! what its predecessor left. Where nothing is writable, the caller degrades and says so.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use volary_kernel::clock;

use super::super::spec::{DEFAULT_PIDS, Limits};

/// Length of a cpu period, microseconds: the kernel's own default.
const CPU_PERIOD: u64 = 100_000;
/// A group of the kernel's own processes: one more than the replica's for its init.
const INIT_PROCESSES: u64 = 1;
/// Rounds of removal; a group is busy for a moment after its last process.
const REMOVE_ROUNDS: u32 = 50;

/// Where groups can be made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Cgroups {
    /// Parent directories, each with what it controls.
    parents: Vec<Parent>,
    unified: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Parent {
    dir: PathBuf,
    controls: Vec<&'static str>,
}

/// The group of one replica.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    dirs: Vec<PathBuf>,
    /// Memory limit in force, bytes.
    pub(crate) memory: Option<u64>,
    oom_file: Option<PathBuf>,
}

const CONTROLS: [&str; 3] = ["memory", "cpu", "pids"];

impl Cgroups {
    /// Finds what this process may use, and makes the parent groups.
    pub(crate) fn detect(tag: &str) -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let found = locate(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"));
        found.with_parents(tag)
    }

    fn with_parents(mut self, tag: &str) -> Self {
        let unified = self.unified;
        self.parents.retain_mut(|parent| {
            if unified && !delegate(parent) {
                return false;
            }
            parent.dir.push(format!("volary-{tag}"));
            let trial = parent.dir.join("trial");
            let made = fs::create_dir_all(&trial).is_ok() && fs::remove_dir(&trial).is_ok();
            made && (!unified || enable(&parent.dir, &parent.controls))
        });
        self
    }

    /// Which limits work here.
    pub(crate) fn controls(&self) -> Vec<&'static str> {
        self.parents
            .iter()
            .flat_map(|parent| parent.controls.iter().copied())
            .collect()
    }

    /// Makes the group of a replica with its limits.
    pub(crate) fn create(&self, name: &str, limits: &Limits) -> io::Result<Group> {
        let mut group = Group {
            dirs: Vec::new(),
            memory: None,
            oom_file: None,
        };
        for parent in &self.parents {
            // Entering a group waits for the kernel, a millisecond or more: only where it limits something.
            if !parent
                .controls
                .iter()
                .any(|control| limits_by(control, limits))
            {
                continue;
            }
            let dir = parent.dir.join(name);
            match fs::create_dir(&dir) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            group.dirs.push(dir.clone());
            for control in &parent.controls {
                self.limit(&dir, control, limits, &mut group)?;
            }
        }
        Ok(group)
    }

    fn limit(
        &self,
        dir: &Path,
        control: &str,
        limits: &Limits,
        group: &mut Group,
    ) -> io::Result<()> {
        let write = |file: &str, value: String| fs::write(dir.join(file), value);
        match control {
            "pids" => {
                let most = limits.pids.unwrap_or(DEFAULT_PIDS) + INIT_PROCESSES;
                write("pids.max", most.to_string())
            }
            "memory" => {
                let (limit_file, events) = if self.unified {
                    ("memory.max", "memory.events")
                } else {
                    ("memory.limit_in_bytes", "memory.oom_control")
                };
                group.oom_file = Some(dir.join(events));
                let Some(bytes) = limits.memory else {
                    return Ok(());
                };
                group.memory = Some(bytes);
                let swap = if self.unified {
                    "memory.swap.max"
                } else {
                    "memory.swappiness"
                };
                let _no_swap_accounting = write(swap, "0".to_owned());
                write(limit_file, bytes.to_string())
            }
            _ => {
                let Some(cores) = limits.cpu else {
                    return Ok(());
                };
                let quota = quota(cores);
                if self.unified {
                    return write("cpu.max", format!("{quota} {CPU_PERIOD}"));
                }
                write("cpu.cfs_period_us", CPU_PERIOD.to_string())?;
                write("cpu.cfs_quota_us", quota.to_string())
            }
        }
    }

    /// Ends and removes what a dead predecessor left; says what.
    pub(crate) async fn sweep(&self) -> Vec<String> {
        let mut removed = Vec::new();
        for parent in &self.parents {
            for entry in fs::read_dir(&parent.dir).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    kill_all(&entry.path());
                    if remove_dir(&entry.path()).await {
                        removed.push(entry.path().display().to_string());
                    }
                }
            }
        }
        removed
    }

    /// Removes the parent groups, when all replicas' are gone.
    pub(crate) async fn close(&self) {
        for parent in &self.parents {
            remove_dir(&parent.dir).await;
        }
    }
}

impl Group {
    /// Files through which an init enters.
    pub(crate) fn entrances(&self) -> Vec<PathBuf> {
        self.dirs
            .iter()
            .map(|dir| dir.join("cgroup.procs"))
            .collect()
    }

    /// How often the kernel killed for memory in it.
    pub(crate) fn oom_kills(&self) -> u64 {
        let text = self
            .oom_file
            .as_ref()
            .and_then(|file| fs::read_to_string(file).ok());
        text.and_then(|text| {
            text.lines()
                .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
        })
        .unwrap_or(0)
    }

    /// Removes it; its processes must be gone.
    pub(crate) async fn remove(&self) {
        for dir in &self.dirs {
            remove_dir(dir).await;
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a number of cores is small and positive"
)]
fn quota(cores: f64) -> u64 {
    ((cores.max(0.01) * CPU_PERIOD as f64) as u64).max(1000)
}

fn kill_all(dir: &Path) {
    let procs = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    for pid in procs.lines().filter_map(|line| line.parse::<i32>().ok()) {
        let _may_have_ended = super::sys::kill(pid, libc::SIGKILL);
    }
}

async fn remove_dir(dir: &Path) -> bool {
    for _round in 0..REMOVE_ROUNDS {
        match fs::remove_dir(dir) {
            Ok(()) => return true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return false,
            Err(_) => clock::sleep(Duration::from_millis(5)).await,
        }
    }
    false
}

/// Whether a control has something to hold; the number of processes always has.
fn limits_by(control: &str, limits: &Limits) -> bool {
    match control {
        "memory" => limits.memory.is_some(),
        "cpu" => limits.cpu.is_some(),
        _ => true,
    }
}

/// Version 2: a group with processes cannot have controlled children, so a node in a leaf uses its parent.
fn delegate(parent: &mut Parent) -> bool {
    if enable(&parent.dir, &parent.controls) {
        return true;
    }
    parent.dir.pop() && enable(&parent.dir, &parent.controls)
}

fn enable(dir: &Path, controls: &[&str]) -> bool {
    let wanted = controls
        .iter()
        .map(|control| format!("+{control}"))
        .collect::<Vec<_>>()
        .join(" ");
    fs::write(dir.join("cgroup.subtree_control"), wanted).is_ok()
}

/// Finds the node's own group in each hierarchy. Pure but for nothing: two texts in, places out.
fn locate(mountinfo: &str, own: &str) -> Cgroups {
    let mut parents = Vec::new();
    for line in own.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let controls: Vec<_> = CONTROLS
            .into_iter()
            .filter(|name| controllers.split(',').any(|has| has == *name))
            .collect();
        if controls.is_empty() {
            continue;
        }
        if let Some(mount) = mount_of(mountinfo, "cgroup", controls.first().copied()) {
            parents.push(Parent {
                dir: below(&mount, path),
                controls,
            });
        }
    }
    if !parents.is_empty() {
        return Cgroups {
            parents,
            unified: false,
        };
    }
    let path = own.lines().find_map(|line| line.strip_prefix("0::"));
    let unified = path.zip(mount_of(mountinfo, "cgroup2", None));
    let parents = unified
        .map(|(path, mount)| Parent {
            dir: below(&mount, path),
            controls: CONTROLS.to_vec(),
        })
        .into_iter()
        .collect();
    Cgroups {
        parents,
        unified: true,
    }
}

fn below(mount: &Path, path: &str) -> PathBuf {
    mount.join(path.trim_start_matches('/'))
}

/// The mount point of a hierarchy: file system type, and for version 1 a controller among its options.
fn mount_of(mountinfo: &str, kind: &str, control: Option<&str>) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut file_system = file_system.split(' ');
        let options = (file_system.next()? == kind).then(|| file_system.nth(1))??;
        let fits = control.is_none_or(|control| options.split(',').any(|has| has == control));
        fits.then(|| mount.split(' ').nth(4).map(PathBuf::from))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_one_is_found_by_controller() {
        let mounts = "30 25 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      31 25 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n";
        let own = "4:memory:/a/b\n1:cpu,cpuacct:/\n0::/\n";
        let found = locate(mounts, own);
        assert!(!found.unified);
        let dirs: Vec<_> = found
            .parents
            .iter()
            .map(|parent| parent.dir.as_path())
            .collect();
        assert_eq!(
            dirs,
            [
                Path::new("/sys/fs/cgroup/memory/a/b"),
                Path::new("/sys/fs/cgroup/cpu/")
            ]
        );
        assert_eq!(found.controls(), ["memory", "cpu"]);
    }

    #[test]
    fn version_two_is_found_when_no_controller_is_in_version_one() {
        let mounts = "30 25 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
        let found = locate(mounts, "0::/user.slice/app\n");
        assert!(found.unified);
        assert_eq!(
            found.parents[0].dir,
            Path::new("/sys/fs/cgroup/user.slice/app")
        );
    }

    #[test]
    fn half_a_core_is_half_a_period() {
        assert_eq!(quota(0.5), CPU_PERIOD / 2);
        assert_eq!(quota(0.0), 1000);
    }

    #[test]
    fn version_two_limits_are_written_to_its_files() {
        let dir = tempfile::tempdir().unwrap();
        let parent = Parent {
            dir: dir.path().to_owned(),
            controls: CONTROLS.to_vec(),
        };
        let cgroups = Cgroups {
            parents: vec![parent],
            unified: true,
        };
        let limits = Limits {
            memory: Some(1 << 20),
            cpu: Some(1.5),
            ..Limits::default()
        };
        let group = cgroups.create("a-0", &limits).unwrap();
        let read = |file| fs::read_to_string(dir.path().join("a-0").join(file)).unwrap();
        assert_eq!(read("memory.max"), "1048576");
        assert_eq!(read("cpu.max"), "150000 100000");
        assert_eq!(read("pids.max"), (DEFAULT_PIDS + 1).to_string());
        fs::write(dir.path().join("a-0/memory.events"), "oom 3\noom_kill 2\n").unwrap();
        assert_eq!(group.oom_kills(), 2);
    }
}
