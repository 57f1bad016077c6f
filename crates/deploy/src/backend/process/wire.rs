//! What the node tells an init to do, as bytes: the plan of one namespace, further commands in it, and the
//! small messages both ends exchange. Pure: no system call is made here.
//!
//! The two ends are always the same program file, so the format carries no version. A plan travels in an
//! anonymous memory file, because it may hold secrets and may be larger than a socket message.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// How the replica sees the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum View {
    /// Own mount namespace: hidden directories are covered, the replica's own directory is in memory.
    Mounts = 0,
    /// No mounts can be made: Landlock allows everything but the hidden directories.
    Landlock = 1,
    /// The machine as it is (`isolation: none`).
    Host = 2,
}

/// A directory or file made visible at another place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WireBind {
    pub(crate) source: PathBuf,
    pub(crate) target: PathBuf,
    pub(crate) writable: bool,
}

/// A file in the replica's own directory.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct WireFile {
    pub(crate) name: OsString,
    pub(crate) mode: u32,
    pub(crate) content: Vec<u8>,
}

/// The replica's own directory.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct WirePrivate {
    pub(crate) dir: PathBuf,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Upper bound of the directory in memory, bytes.
    pub(crate) size: u64,
    pub(crate) files: Vec<WireFile>,
}

/// A resource limit: number of the resource, soft and hard value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WireLimit {
    pub(crate) resource: u32,
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

/// A program to run.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct WireCommand {
    pub(crate) argv: Vec<OsString>,
    /// `NAME=value`, complete: nothing is inherited.
    pub(crate) env: Vec<OsString>,
    pub(crate) cwd: PathBuf,
    /// Present when the process is to run as somebody else.
    pub(crate) user: Option<(u32, u32)>,
    pub(crate) limits: Vec<WireLimit>,
    /// Bit set of the capabilities that may remain.
    pub(crate) capabilities: u64,
    /// Whether privileges are given up at all (not with `isolation: none`).
    pub(crate) confine: bool,
}

/// Everything an init needs.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Shown as the init's name in process listings, 15 bytes at most.
    pub(crate) label: OsString,
    pub(crate) view: View,
    /// Enter a Landlock domain before the first command.
    pub(crate) landlock: bool,
    pub(crate) hide: Vec<PathBuf>,
    pub(crate) private: Option<WirePrivate>,
    pub(crate) binds: Vec<WireBind>,
    /// `Some`: a fresh `/dev` with copies of these nodes.
    pub(crate) devices: Option<Vec<PathBuf>>,
    /// Directories made read-only.
    pub(crate) read_only: Vec<PathBuf>,
    /// Files covered by `/dev/null`.
    pub(crate) masked: Vec<PathBuf>,
    pub(crate) read_only_root: bool,
    /// `cgroup.procs` files the init enters.
    pub(crate) cgroups: Vec<PathBuf>,
    /// `None`: only try the set-up and end (a probe).
    pub(crate) command: Option<WireCommand>,
}

/// What the node asks of a running init. Each is one datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Send a signal to the main process.
    Signal(i32),
    /// Run a further command; its [`WireCommand`] and three standard streams come as descriptors.
    Exec(u32),
    /// Kill the session of that command.
    KillExec(u32),
}

/// What an init reports. Each is one datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Report {
    /// Sent by the main process just before its program replaces it: its credentials carry the host pid.
    Starting,
    /// The program runs.
    Running,
    /// A step before the program ran failed.
    Failed { step: String, errno: i32 },
    /// The main process ended, with its wait status.
    Exited(i32),
    /// A further command ended, with its wait status.
    ExecExited { id: u32, status: i32 },
    /// A further command could not be started.
    ExecFailed { id: u32, errno: i32 },
}

/// Bytes that do not follow the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed message between node and init")]
pub(crate) struct Malformed;

// ---- encoding -------------------------------------------------------------------------------------------

#[derive(Default)]
struct Encoder(Vec<u8>);

impl Encoder {
    fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn bytes(&mut self, value: &[u8]) {
        self.u32(u32::try_from(value.len()).expect("no part of a plan reaches 4 GiB"));
        self.0.extend_from_slice(value);
    }

    fn list<T>(&mut self, items: &[T], mut each: impl FnMut(&mut Self, &T)) {
        self.u32(u32::try_from(items.len()).expect("no list of a plan has 4 Gi items"));
        for item in items {
            each(self, item);
        }
    }

    fn option<T>(&mut self, item: Option<&T>, each: impl FnOnce(&mut Self, &T)) {
        self.u8(u8::from(item.is_some()));
        if let Some(item) = item {
            each(self, item);
        }
    }

    fn path(&mut self, path: &Path) {
        self.bytes(path.as_os_str().as_bytes());
    }

    fn paths(&mut self, paths: &[PathBuf]) {
        self.list(paths, |out, path| out.path(path));
    }

    fn texts(&mut self, texts: &[OsString]) {
        self.list(texts, |out, text| out.bytes(text.as_bytes()));
    }
}

// ---- decoding -------------------------------------------------------------------------------------------

struct Decoder<'a>(&'a [u8]);

impl<'a> Decoder<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (head, tail) = self.0.split_at_checked(count).ok_or(Malformed)?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.take(N)?.try_into().map_err(|_| Malformed)
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.array::<1>()?[0])
    }

    fn flag(&mut self) -> Result<bool, Malformed> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed),
        }
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    fn i32(&mut self) -> Result<i32, Malformed> {
        self.array().map(i32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let count = self.u32()? as usize;
        self.take(count)
    }

    fn text(&mut self) -> Result<OsString, Malformed> {
        Ok(OsString::from_vec(self.bytes()?.to_vec()))
    }

    fn path(&mut self) -> Result<PathBuf, Malformed> {
        Ok(PathBuf::from(self.text()?))
    }

    fn list<T>(
        &mut self,
        mut each: impl FnMut(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Vec<T>, Malformed> {
        let count = self.u32()?;
        (0..count).map(|_| each(self)).collect()
    }

    fn option<T>(
        &mut self,
        each: impl FnOnce(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Option<T>, Malformed> {
        if self.flag()? {
            each(self).map(Some)
        } else {
            Ok(None)
        }
    }

    fn end(&self) -> Result<(), Malformed> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(Malformed)
        }
    }
}

// ---- plan and command -----------------------------------------------------------------------------------

impl Plan {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Encoder::default();
        out.bytes(self.label.as_bytes());
        out.u8(self.view as u8);
        out.u8(u8::from(self.landlock));
        out.paths(&self.hide);
        out.option(self.private.as_ref(), put_private);
        out.list(&self.binds, |out, bind| {
            out.path(&bind.source);
            out.path(&bind.target);
            out.u8(u8::from(bind.writable));
        });
        out.option(self.devices.as_ref(), |out, devices| out.paths(devices));
        out.paths(&self.read_only);
        out.paths(&self.masked);
        out.u8(u8::from(self.read_only_root));
        out.paths(&self.cgroups);
        out.option(self.command.as_ref(), put_command);
        out.0
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut from = Decoder(bytes);
        let plan = Self {
            label: from.text()?,
            view: match from.u8()? {
                0 => View::Mounts,
                1 => View::Landlock,
                2 => View::Host,
                _ => return Err(Malformed),
            },
            landlock: from.flag()?,
            hide: from.list(Decoder::path)?,
            private: from.option(get_private)?,
            binds: from.list(|from| {
                Ok(WireBind {
                    source: from.path()?,
                    target: from.path()?,
                    writable: from.flag()?,
                })
            })?,
            devices: from.option(|from| from.list(Decoder::path))?,
            read_only: from.list(Decoder::path)?,
            masked: from.list(Decoder::path)?,
            read_only_root: from.flag()?,
            cgroups: from.list(Decoder::path)?,
            command: from.option(get_command)?,
        };
        from.end()?;
        Ok(plan)
    }
}

impl WireCommand {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Encoder::default();
        put_command(&mut out, self);
        out.0
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut from = Decoder(bytes);
        let command = get_command(&mut from)?;
        from.end()?;
        Ok(command)
    }
}

fn put_private(out: &mut Encoder, private: &WirePrivate) {
    out.path(&private.dir);
    out.u32(private.uid);
    out.u32(private.gid);
    out.u64(private.size);
    out.list(&private.files, |out, file| {
        out.bytes(file.name.as_bytes());
        out.u32(file.mode);
        out.bytes(&file.content);
    });
}

fn get_private(from: &mut Decoder<'_>) -> Result<WirePrivate, Malformed> {
    Ok(WirePrivate {
        dir: from.path()?,
        uid: from.u32()?,
        gid: from.u32()?,
        size: from.u64()?,
        files: from.list(|from| {
            Ok(WireFile {
                name: from.text()?,
                mode: from.u32()?,
                content: from.bytes()?.to_vec(),
            })
        })?,
    })
}

fn put_command(out: &mut Encoder, command: &WireCommand) {
    out.texts(&command.argv);
    out.texts(&command.env);
    out.path(&command.cwd);
    out.option(command.user.as_ref(), |out, (uid, gid)| {
        out.u32(*uid);
        out.u32(*gid);
    });
    out.list(&command.limits, |out, limit| {
        out.u32(limit.resource);
        out.u64(limit.soft);
        out.u64(limit.hard);
    });
    out.u64(command.capabilities);
    out.u8(u8::from(command.confine));
}

fn get_command(from: &mut Decoder<'_>) -> Result<WireCommand, Malformed> {
    Ok(WireCommand {
        argv: from.list(Decoder::text)?,
        env: from.list(Decoder::text)?,
        cwd: from.path()?,
        user: from.option(|from| Ok((from.u32()?, from.u32()?)))?,
        limits: from.list(|from| {
            Ok(WireLimit {
                resource: from.u32()?,
                soft: from.u64()?,
                hard: from.u64()?,
            })
        })?,
        capabilities: from.u64()?,
        confine: from.flag()?,
    })
}

// ---- messages -------------------------------------------------------------------------------------------

/// No message of either direction is longer, bytes.
pub(crate) const MAX_MESSAGE: usize = 512;

impl Order {
    pub(crate) fn encode(self) -> [u8; 5] {
        let (kind, value) = match self {
            Self::Signal(number) => (0, number.to_le_bytes()),
            Self::Exec(id) => (1, id.to_le_bytes()),
            Self::KillExec(id) => (2, id.to_le_bytes()),
        };
        [kind, value[0], value[1], value[2], value[3]]
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut from = Decoder(bytes);
        let order = match from.u8()? {
            0 => Self::Signal(from.i32()?),
            1 => Self::Exec(from.u32()?),
            2 => Self::KillExec(from.u32()?),
            _ => return Err(Malformed),
        };
        from.end()?;
        Ok(order)
    }
}

impl Report {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Encoder::default();
        match self {
            Self::Starting => out.u8(0),
            Self::Running => out.u8(1),
            Self::Failed { step, errno } => {
                out.u8(2);
                out.0.extend_from_slice(&errno.to_le_bytes());
                let cut = step.floor_char_boundary(MAX_MESSAGE / 2);
                out.bytes(&step.as_bytes()[..cut]);
            }
            Self::Exited(status) => {
                out.u8(3);
                out.0.extend_from_slice(&status.to_le_bytes());
            }
            Self::ExecExited { id, status } => {
                out.u8(4);
                out.u32(*id);
                out.0.extend_from_slice(&status.to_le_bytes());
            }
            Self::ExecFailed { id, errno } => {
                out.u8(5);
                out.u32(*id);
                out.0.extend_from_slice(&errno.to_le_bytes());
            }
        }
        out.0
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut from = Decoder(bytes);
        let report = match from.u8()? {
            0 => Self::Starting,
            1 => Self::Running,
            2 => Self::Failed {
                errno: from.i32()?,
                step: String::from_utf8_lossy(from.bytes()?).into_owned(),
            },
            3 => Self::Exited(from.i32()?),
            4 => Self::ExecExited {
                id: from.u32()?,
                status: from.i32()?,
            },
            5 => Self::ExecFailed {
                id: from.u32()?,
                errno: from.i32()?,
            },
            _ => return Err(Malformed),
        };
        from.end()?;
        Ok(report)
    }
}
