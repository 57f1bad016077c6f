//! Tokens: 256 random bits behind a prefix that says what kind they are, and the operator's token file.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
};

use volary_kernel::{Uid, file::write_atomic, secret::Secret};

use crate::OpsError;

/// Beginning of operator tokens, so that people and secret scanners know one when they see it.
pub(crate) const OPERATOR_PREFIX: &str = "vop_";
/// Beginning of link tokens.
pub(crate) const LINK_PREFIX: &str = "vlk_";
/// Hex digits of randomness: 256 bits.
const DIGITS: usize = 64;

/// 256 random bits in hex.
pub(super) fn random_hex() -> String {
    // Trace ids are 128 random bits each.
    let (a, b) = (
        volary_kernel::TraceId::generate(),
        volary_kernel::TraceId::generate(),
    );
    format!("{a}{b}")
}

/// Whether `text` has the form of an operator token.
fn well_formed(text: &str) -> bool {
    let digits = text.strip_prefix(OPERATOR_PREFIX).unwrap_or_default();
    digits.len() == DIGITS
        && digits
            .bytes()
            .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// The operator token in `path`, made anew (0600) if there is none.
///
/// # Errors
/// [`OpsError::TokenFile`] if the file is not a plain file of ours that only we can read, holds something else, or
/// cannot be read or written.
pub(crate) fn load_or_create(path: &Path) -> Result<Secret, OpsError> {
    let problem = |problem: String| OpsError::TokenFile {
        path: path.to_owned(),
        problem,
    };
    match read(path) {
        Ok(text) if well_formed(text.trim()) => Ok(Secret::new(text.trim())),
        Ok(_) => Err(problem("does not hold an operator token".to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            create(path).map_err(|error| problem(error.to_string()))
        }
        Err(error) => Err(problem(error.to_string())),
    }
}

fn create(path: &Path) -> io::Result<Secret> {
    let token = Secret::new(format!("{OPERATOR_PREFIX}{}", random_hex()));
    write_atomic(path, format!("{}\n", token.expose()).as_bytes(), 0o600)?;
    Ok(token)
}

fn read(path: &Path) -> io::Result<String> {
    let no_follow =
        i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits() | rustix::fs::OFlags::NONBLOCK.bits());
    let flags = no_follow.map_err(io::Error::other)?;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)?;
    check_owner(&file)?;
    let mut text = String::new();
    file.take(1024).read_to_string(&mut text)?;
    Ok(text)
}

fn check_owner(file: &File) -> io::Result<()> {
    let meta = file.metadata()?;
    let problem = if !meta.is_file() {
        "is not a plain file".to_owned()
    } else if meta.uid() != rustix::process::geteuid().as_raw() {
        format!("belongs to user {}, not to the node's", meta.uid())
    } else if meta.mode() & 0o077 != 0 {
        format!(
            "has mode {:04o}, which others can use",
            meta.mode() & 0o7777
        )
    } else {
        return Ok(());
    };
    Err(io::Error::other(problem))
}

/// A new id that names a link token without giving it away.
pub(super) fn link_id() -> String {
    Uid::generate().to_string().replace('-', "")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_token_is_made_once_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("operator.token");
        let token = load_or_create(&path).unwrap();
        assert!(well_formed(token.expose()));
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(load_or_create(&path).unwrap().expose(), token.expose());
        assert_ne!(random_hex(), random_hex());
    }

    #[test]
    fn a_file_that_others_can_read_or_that_is_a_link_or_holds_something_else_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("operator.token");
        load_or_create(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(
            load_or_create(&path)
                .unwrap_err()
                .to_string()
                .contains("mode 0640")
        );
        let link = folder.path().join("link.token");
        symlink(&path, &link).unwrap();
        assert!(load_or_create(&link).is_err());
        let other = folder.path().join("other.token");
        write_atomic(&other, b"hunter2", 0o600).unwrap();
        let error = load_or_create(&other).unwrap_err();
        assert!(error.to_string().contains("does not hold"), "{error}");
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
}
