//! From what is asked for to the plan of an init: environment, private files, what is hidden, what remains of
//! a root replica's powers. Decides; the init does.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::super::report::BackendError;
use super::super::spec::{
    Bind, BindTarget, CapabilityChange, DirAccess, EnvValue, Isolation, Limits, ProgramSpec,
    ReplicaId, RootAccess,
};
use super::sys;
use super::wire::{Plan, View, WireBind, WireCommand, WireFile, WireLimit, WirePrivate};

/// Search path of a replica unless the caller gives one.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Bound of a replica's own directory in memory, bytes: secrets, tokens and small scratch.
const PRIVATE_SIZE: u64 = 16 << 20;
/// Most files and binds of one replica.
const MAX_PLACES: usize = 256;

/// Nodes of a fresh `/dev`; those that do not exist are left out. The last ones are for computation on
/// graphics cards, which agents rightly use.
pub(crate) const DEVICES: [&str; 9] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
    "/dev/kfd",
    "/dev/dri/card0",
    "/dev/dri/renderD128",
];

/// Directories of the system: a root replica must not change programs that others run.
const SYSTEM_DIRS: [&str; 9] = [
    "/usr", "/etc", "/boot", "/sys", "/bin", "/sbin", "/lib", "/lib64", "/efi",
];

/// Sockets through which root could have others act for it.
const CONTROL_SOCKETS: [&str; 9] = [
    "/run/docker.sock",
    "/var/run/docker.sock",
    "/run/containerd/containerd.sock",
    "/run/podman/podman.sock",
    "/run/crio/crio.sock",
    "/run/systemd/private",
    "/run/systemd/io.systemd.PID1",
    "/run/dbus/system_bus_socket",
    "/run/snapd.socket",
];

/// What all plans of one backend share.
#[derive(Debug, Clone)]
pub(crate) struct Ground {
    pub(crate) view: View,
    pub(crate) landlock: bool,
    pub(crate) root: bool,
    /// Directories to hide, with every other place where the same directory is mounted.
    pub(crate) hidden: Vec<PathBuf>,
    pub(crate) private_root: PathBuf,
    pub(crate) base_env: BTreeMap<String, String>,
    /// Limit of open files that the node was started with, soft and hard.
    pub(crate) open_files: (u64, u64),
}

/// A plan, and what could not be honoured.
pub(crate) struct Planned {
    pub(crate) plan: Plan,
    pub(crate) warnings: Vec<String>,
}

impl Ground {
    /// The replica's own directory, as it sees it.
    pub(crate) fn private_dir(&self, id: &ReplicaId) -> PathBuf {
        self.private_root.join(id.to_string())
    }

    /// A plan without a command: tries the set-up.
    pub(crate) fn probe(&self) -> Plan {
        let mut plan = self.empty(OsString::from("volary-probe"), self.view);
        plan.private = Some(self.private(&self.private_root.join("probe"), (0, 0), Vec::new()));
        if let Some(private) = &mut plan.private {
            (private.uid, private.gid) = own_ids();
        }
        plan
    }

    /// The plan of a replica. `controls` are the cgroup limits that work here, `cgroups` the group's entrances.
    pub(crate) fn plan(
        &self,
        id: &ReplicaId,
        program: &ProgramSpec,
        controls: &[&str],
        cgroups: Vec<PathBuf>,
    ) -> Result<Planned, BackendError> {
        let invalid = |why: String| BackendError::Invalid {
            replica: id.clone(),
            why,
        };
        self.check(program).map_err(invalid)?;
        let view = if program.isolation == Isolation::None {
            View::Host
        } else {
            self.view
        };
        let mut warnings = Vec::new();
        let command = self
            .command(id, program, &program.argv, controls, &mut warnings)
            .map_err(invalid)?;
        let dir = self.private_dir(id);
        let owner = program
            .user
            .map_or_else(own_ids, |user| (user.uid, user.gid));
        let files = program.files.iter().map(|file| WireFile {
            name: file.name.clone().into(),
            mode: file.mode,
            content: file.content.expose().as_bytes().to_vec(),
        });
        let mut plan = self.empty(id.to_string().into(), view);
        plan.private = Some(self.private(&dir, owner, files.collect()));
        plan.binds = program
            .binds
            .iter()
            .map(|bind| wire_bind(bind, &dir))
            .collect();
        plan.read_only_root = view == View::Mounts && program.root == RootAccess::ReadOnly;
        if view != View::Mounts {
            unhonoured(program, &mut warnings);
        }
        plan.cgroups = cgroups;
        plan.command = Some(command);
        Ok(Planned { plan, warnings })
    }

    /// A command inside a replica: the main one or a further one.
    pub(crate) fn command(
        &self,
        id: &ReplicaId,
        program: &ProgramSpec,
        argv: &[String],
        controls: &[&str],
        warnings: &mut Vec<String>,
    ) -> Result<WireCommand, String> {
        let confine = program.isolation == Isolation::Namespace;
        Ok(WireCommand {
            argv: argv.iter().map(OsString::from).collect(),
            env: self.environment(id, program),
            cwd: program.cwd.clone(),
            user: program.user.map(|user| (user.uid, user.gid)),
            limits: self.limits(&program.limits, controls, warnings),
            capabilities: if self.root && confine {
                capabilities(&program.capabilities)?
            } else {
                0
            },
            confine,
        })
    }

    fn empty(&self, label: OsString, view: View) -> Plan {
        let mounts = view == View::Mounts;
        let paths = |all: &[&str]| all.iter().map(PathBuf::from).collect::<Vec<_>>();
        let existing = |all: &[&str]| {
            let real = |path: &PathBuf| {
                path.symlink_metadata()
                    .is_ok_and(|found| !found.is_symlink())
            };
            paths(all).into_iter().filter(real).collect::<Vec<_>>()
        };
        let as_root = mounts && self.root;
        Plan {
            label,
            view,
            landlock: self.landlock && view != View::Host,
            hide: if view == View::Host {
                Vec::new()
            } else {
                self.hidden.clone()
            },
            private: None,
            binds: Vec::new(),
            devices: as_root.then(|| paths(&DEVICES)),
            read_only: if as_root {
                existing(&SYSTEM_DIRS)
            } else {
                Vec::new()
            },
            masked: if as_root {
                existing(&CONTROL_SOCKETS)
            } else {
                Vec::new()
            },
            read_only_root: false,
            cgroups: Vec::new(),
            command: None,
        }
    }

    fn private(&self, dir: &Path, (uid, gid): (u32, u32), files: Vec<WireFile>) -> WirePrivate {
        WirePrivate {
            dir: dir.to_owned(),
            uid,
            gid,
            size: PRIVATE_SIZE,
            files,
        }
    }

    fn check(&self, program: &ProgramSpec) -> Result<(), String> {
        if program.argv.first().is_none_or(String::is_empty) {
            return Err("there is no program to run".to_owned());
        }
        if program.files.len() + program.binds.len() > MAX_PLACES {
            return Err(format!("more than {MAX_PLACES} files and binds"));
        }
        let plain =
            |name: &str| !name.is_empty() && !name.contains('/') && name != "." && name != "..";
        if let Some(file) = program.files.iter().find(|file| !plain(&file.name)) {
            return Err(format!("`{}` is not a plain file name", file.name));
        }
        if let Some(name) = program
            .env
            .keys()
            .find(|name| name.is_empty() || name.contains('='))
        {
            return Err(format!("`{name}` is not a name of a variable"));
        }
        match program.user {
            Some(user) if !self.root && (user.uid, user.gid) != own_ids() => Err(format!(
                "running as user {}:{} needs a root node",
                user.uid, user.gid
            )),
            _ => Ok(()),
        }
    }

    fn environment(&self, id: &ReplicaId, program: &ProgramSpec) -> Vec<OsString> {
        let dir = self.private_dir(id);
        let mut env: BTreeMap<&str, OsString> = BTreeMap::from([
            ("PATH", DEFAULT_PATH.into()),
            ("HOME", dir.clone().into_os_string()),
            ("LANG", "C.UTF-8".into()),
        ]);
        for (name, value) in &self.base_env {
            // Another user must not be sent to the node's own home.
            if name != "HOME" || program.user.is_none() {
                env.insert(name, value.into());
            }
        }
        for (name, value) in &program.env {
            let value = match value {
                EnvValue::Plain(text) => text.into(),
                EnvValue::Secret(secret) => secret.expose().into(),
                EnvValue::PrivatePath(file) => dir.join(file).into_os_string(),
            };
            env.insert(name, value);
        }
        env.into_iter()
            .map(|(name, value)| {
                let mut entry = OsString::from(name);
                entry.push("=");
                entry.push(value);
                entry
            })
            .collect()
    }

    fn limits(
        &self,
        limits: &Limits,
        controls: &[&str],
        warnings: &mut Vec<String>,
    ) -> Vec<WireLimit> {
        let (soft, hard) = self.open_files;
        let (soft, hard) = limits.open_files.map_or((soft, hard), |most| (most, most));
        let same = |resource: u32, value: u64| WireLimit {
            resource,
            soft: value,
            hard: value,
        };
        let mut out = vec![
            WireLimit {
                resource: libc::RLIMIT_NOFILE,
                soft: soft.min(hard),
                hard,
            },
            same(libc::RLIMIT_CORE, 0),
        ];
        out.extend(
            limits
                .file_size
                .map(|bytes| same(libc::RLIMIT_FSIZE, bytes)),
        );
        out.extend(
            limits
                .cpu_seconds
                .map(|seconds| same(libc::RLIMIT_CPU, seconds)),
        );
        if let Some(bytes) = limits.memory.filter(|_| !controls.contains(&"memory")) {
            warnings
                .push("memory limit holds per process: no writable memory cgroup here".to_owned());
            out.push(same(libc::RLIMIT_DATA, bytes));
        }
        if limits.cpu.is_some() && !controls.contains(&"cpu") {
            warnings.push("cpu limit is not enforced: no writable cpu cgroup here".to_owned());
        }
        if limits.pids.is_some() && !controls.contains(&"pids") {
            warnings.push("process limit is not enforced: no writable pids cgroup here".to_owned());
        }
        out
    }
}

fn unhonoured(program: &ProgramSpec, warnings: &mut Vec<String>) {
    if program.root == RootAccess::ReadOnly {
        warnings.push("a read-only root needs a mount namespace: not enforced".to_owned());
    }
    if program
        .binds
        .iter()
        .any(|bind| bind.target != BindTarget::Path(bind.source.clone()))
    {
        warnings.push("binds to another path need a mount namespace: not made".to_owned());
    }
}

fn wire_bind(bind: &Bind, private: &Path) -> WireBind {
    WireBind {
        source: bind.source.clone(),
        target: match &bind.target {
            BindTarget::Path(path) => path.clone(),
            BindTarget::Private(name) => private.join(name),
        },
        writable: bind.access == DirAccess::ReadWrite,
    }
}

/// User and group of the node.
pub(crate) fn own_ids() -> (u32, u32) {
    (
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    )
}

/// What the node was started with, before it may raise it for itself.
pub(crate) fn open_files() -> (u64, u64) {
    sys::open_files_limit()
}

// ---- capabilities ---------------------------------------------------------------------------------------

/// Names by number, from the kernel's list.
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What a root replica keeps: enough to manage its own files and children and to bind low ports.
const DEFAULT_CAPABILITIES: [&str; 10] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "AUDIT_WRITE",
];

/// With one of these a replica could leave its walls, so they are never given.
const BREAKING: [&str; 15] = [
    "SYS_ADMIN",
    "SYS_PTRACE",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_BOOT",
    "SYS_CHROOT",
    "MKNOD",
    "DAC_READ_SEARCH",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
    "SETFCAP",
    "SYSLOG",
];

fn capabilities(change: &CapabilityChange) -> Result<u64, String> {
    let mut keep = DEFAULT_CAPABILITIES
        .iter()
        .try_fold(0, |keep, name| Ok::<_, String>(keep | bit(name)?))?;
    for name in &change.drop {
        keep = if normal(name) == "ALL" {
            0
        } else {
            keep & !bit(&normal(name))?
        };
    }
    for name in &change.add {
        let name = normal(name);
        if BREAKING.contains(&name.as_str()) {
            return Err(format!(
                "capability `{name}` would break the isolation; use `isolation: none`"
            ));
        }
        keep |= bit(&name)?;
    }
    Ok(keep)
}

fn normal(name: &str) -> String {
    let upper = name.to_ascii_uppercase();
    upper.strip_prefix("CAP_").unwrap_or(&upper).to_owned()
}

fn bit(name: &str) -> Result<u64, String> {
    let number = CAPABILITIES.iter().position(|known| *known == name);
    number
        .map(|number| 1 << number)
        .ok_or_else(|| format!("unknown capability `{name}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drop_all_then_add_keeps_only_what_is_added() {
        let change = CapabilityChange {
            drop: vec!["ALL".to_owned()],
            add: vec!["cap_net_bind_service".to_owned()],
        };
        assert_eq!(capabilities(&change), Ok(1 << 10));
    }

    #[test]
    fn a_capability_that_breaks_the_walls_is_refused() {
        let add = |name: &str| CapabilityChange {
            drop: Vec::new(),
            add: vec![name.to_owned()],
        };
        assert!(
            capabilities(&add("SYS_ADMIN"))
                .unwrap_err()
                .contains("isolation")
        );
        assert!(
            capabilities(&add("CAP_NOPE"))
                .unwrap_err()
                .contains("unknown capability `NOPE`")
        );
    }
}
