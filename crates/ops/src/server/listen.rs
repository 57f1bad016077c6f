//! Binding: the loopback rule for TCP; path, owner and permissions for the agents' socket.

use std::{
    fs, io,
    net::{SocketAddr, TcpListener},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{FileTypeExt as _, MetadataExt as _},
        net::UnixListener,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Mode, fchmod},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with},
};

use super::config::{Exposure, SocketConfig, TcpConfig};
use crate::OpsError;

/// Longest socket path in bytes: `sockaddr_un` has 108 with the final zero.
pub const SOCKET_PATH_MAX: usize = 107;

/// Connections the system queues before we accept them.
const BACKLOG: i32 = 1024;

/// The operators' listener and the address it got.
pub(super) fn tcp(config: &TcpConfig) -> Result<(TcpListener, SocketAddr), OpsError> {
    let address = config.address;
    if !address.ip().to_canonical().is_loopback() && config.exposure == Exposure::LoopbackOnly {
        return Err(OpsError::NotLoopback { address });
    }
    let failed = |source| OpsError::Bind { address, source };
    let listener = TcpListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

/// A bound agents' socket; removes its file when dropped, if it is still the one it made.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    device_inode: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path)
            .is_ok_and(|meta| (meta.dev(), meta.ino()) == self.device_inode)
        {
            let _gone_already = fs::remove_file(&self.path);
        }
    }
}

/// The agents' listener.
pub(super) fn unix(config: &SocketConfig) -> Result<(UnixListener, SocketFile), OpsError> {
    let path = config.path.as_path();
    let length = path.as_os_str().as_bytes().len();
    if length > SOCKET_PATH_MAX {
        return Err(OpsError::SocketPath {
            path: path.to_owned(),
            length,
            limit: SOCKET_PATH_MAX,
        });
    }
    remove_stale(path)?;
    let failed = |source| OpsError::Socket {
        path: path.to_owned(),
        source,
    };
    let listener = bind_private(path, config.mode).map_err(failed)?;
    let meta = fs::symlink_metadata(path).map_err(failed)?;
    Ok((
        listener,
        SocketFile {
            path: path.to_owned(),
            device_inode: (meta.dev(), meta.ino()),
        },
    ))
}

/// Removes a socket that nobody answers on; anything else stays.
fn remove_stale(path: &Path) -> Result<(), OpsError> {
    let failed = |source| OpsError::Socket {
        path: path.to_owned(),
        source,
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(OpsError::SocketTaken {
                path: path.to_owned(),
            });
        }
        Ok(_) => {}
    }
    match connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // A full backlog or no permission also means that somebody is there.
        Ok(_) | Err(_) => Err(OpsError::SocketInUse {
            path: path.to_owned(),
        }),
    }
}

/// Whether somebody listens; does not wait in a full backlog.
fn connect(path: &Path) -> io::Result<()> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    Ok(rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?)
}

/// Binds so that the file never has more permissions than `mode`, not even for a moment.
fn bind_private(path: &Path, mode: u32) -> io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // The file gets the socket's own permission bits, minus the umask's.
    fchmod(&socket, Mode::from_raw_mode(mode))?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode))?;
    listen(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn code(result: Result<(UnixListener, SocketFile), OpsError>) -> &'static str {
        result.unwrap_err().code().id
    }

    #[test]
    fn only_loopback_is_bound_unless_insecure_is_asked_for() {
        let address = "0.0.0.0:0".parse().unwrap();
        let config = TcpConfig {
            address,
            ..TcpConfig::default()
        };
        let refused = tcp(&config).unwrap_err();
        assert!(matches!(refused, OpsError::NotLoopback { .. }), "{refused}");
        assert_eq!(refused.code().id, "V6101");
        tcp(&TcpConfig {
            exposure: Exposure::Insecure,
            ..config
        })
        .unwrap();
        let (_first, taken) = tcp(&TcpConfig::default()).unwrap();
        let again = tcp(&TcpConfig {
            address: taken,
            ..TcpConfig::default()
        })
        .unwrap_err();
        assert!(matches!(again, OpsError::Bind { .. }), "{again}");
    }

    #[test]
    fn a_socket_is_private_and_leaves_with_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("link.sock");
        let (listener, file) = unix(&SocketConfig::new(&path)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(code(unix(&SocketConfig::new(&path))), "V6104");
        drop((listener, file));
        assert!(!path.exists());
        let (_listener, _file) = unix(&SocketConfig {
            path: path.clone(),
            mode: 0o660,
        })
        .unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o660);
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_file_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("link.sock");
        drop(UnixListener::bind(&path).unwrap());
        let (listener, file) = unix(&SocketConfig::new(&path)).unwrap();
        UnixStream::connect(&path).unwrap();
        // Another node replaced the file: it is not ours to remove.
        fs::remove_file(&path).unwrap();
        fs::write(&path, b"mine").unwrap();
        drop((listener, file));
        assert_eq!(fs::read(&path).unwrap(), b"mine");
        assert_eq!(code(unix(&SocketConfig::new(&path))), "V6105");
    }

    #[test]
    fn a_path_that_the_system_cannot_take_is_named() {
        let path = PathBuf::from(format!("/tmp/{}/link.sock", "long".repeat(30)));
        let error = unix(&SocketConfig::new(&path)).unwrap_err();
        assert_eq!(error.code().id, "V6103");
        assert!(
            error
                .to_string()
                .contains("has 135 bytes, the system takes 107"),
            "{error}"
        );
    }
}
