//! Where a node is found, as people and environment variables write it, and the file that opens it.

use std::{
    fmt,
    io::Read as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

use volary_kernel::secret::Secret;

use super::ClientError;

/// Longest token file, in bytes.
const TOKEN_FILE_MAX: u64 = 4096;

/// Where a node listens. Written `http://127.0.0.1:7070` or `unix:/path/link.sock`; a bare path or address is read too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// The operators' address.
    Tcp(SocketAddr),
    /// The agents' socket.
    Unix(PathBuf),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "http://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl FromStr for Endpoint {
    type Err = ClientError;
    fn from_str(text: &str) -> Result<Self, ClientError> {
        if let Some(path) = text
            .strip_prefix("unix:")
            .or_else(|| text.starts_with('/').then_some(text))
        {
            // `unix:///path` is `unix:/path` with an empty host.
            let path = path
                .strip_prefix("//")
                .filter(|path| path.starts_with('/'))
                .unwrap_or(path);
            return Ok(Self::Unix(path.into()));
        }
        let address = text
            .strip_prefix("http://")
            .unwrap_or(text)
            .trim_end_matches('/');
        let address = address.replacen("localhost:", "127.0.0.1:", 1);
        address.parse().map(Self::Tcp).map_err(|_| {
            ClientError::Request(format!(
                "`{text}` is no address of a node, like http://127.0.0.1:7070 or unix:/path"
            ))
        })
    }
}

/// The token in a file, as the node wrote it.
///
/// # Errors
/// [`ClientError::Request`] with the path when the file cannot be read or is empty.
pub fn read_token(path: &Path) -> Result<Secret, ClientError> {
    let failed = |cause: &dyn fmt::Display| {
        ClientError::Request(format!("token file {}: {cause}", path.display()))
    };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|error| failed(&error))?;
    file.take(TOKEN_FILE_MAX)
        .read_to_string(&mut text)
        .map_err(|error| failed(&error))?;
    match text.trim() {
        "" => Err(failed(&"is empty")),
        token => Ok(Secret::new(token)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_read_back_what_they_print_and_what_people_write() {
        let check = |text: &str, expected: &str| {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!(endpoint.to_string(), expected);
            assert_eq!(expected.parse::<Endpoint>().unwrap(), endpoint);
        };
        check("http://127.0.0.1:7070/", "http://127.0.0.1:7070");
        check("localhost:7070", "http://127.0.0.1:7070");
        check("[::1]:1", "http://[::1]:1");
        check("/run/link.sock", "unix:/run/link.sock");
        check("unix:///run/link.sock", "unix:/run/link.sock");
        check("unix:rel/link.sock", "unix:rel/link.sock");
        assert!("https://example.org".parse::<Endpoint>().is_err());
    }

    #[test]
    fn a_token_is_read_without_its_line_end_and_a_missing_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let missing = read_token(&path).unwrap_err().to_string();
        assert!(missing.contains(path.to_str().unwrap()), "{missing}");
        std::fs::write(&path, "vlk_1_2\n").unwrap();
        assert_eq!(read_token(&path).unwrap().expose(), "vlk_1_2");
        std::fs::write(&path, " \n").unwrap();
        assert!(
            read_token(&path)
                .unwrap_err()
                .to_string()
                .contains("is empty")
        );
    }
}
