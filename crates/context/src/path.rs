//! File names as page paths, and back. Pure.
//!
//! A page path is text; a Unix file name is bytes. The mapping loses nothing and never sends two names to one path:
//! `/` stays, a backslash becomes `\\`, and each control character and each byte that is not part of valid UTF-8
//! becomes `\xNN`.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Component, Path, PathBuf},
};

/// The page path of a relative file path, or `None` for a path with `..`, a root, or nothing in it.
pub fn page_path(relative: &Path) -> Option<String> {
    let mut text = String::with_capacity(relative.as_os_str().len());
    for part in relative.components() {
        match part {
            Component::Normal(name) => {
                if !text.is_empty() {
                    text.push('/');
                }
                push_name(&mut text, name);
            }
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    (!text.is_empty()).then_some(text)
}

/// Appends one file name to a page path.
pub fn push_name(path: &mut String, name: &OsStr) {
    for chunk in name.as_bytes().utf8_chunks() {
        for part in chunk
            .valid()
            .split_inclusive(|part: char| part == '\\' || part.is_ascii_control())
        {
            match part.as_bytes().split_last() {
                Some((b'\\', _)) => {
                    path.push_str(part);
                    path.push('\\');
                }
                Some((control, rest)) if control.is_ascii_control() => {
                    path.push_str(&part[..rest.len()]);
                    escape(path, *control);
                }
                _ => path.push_str(part),
            }
        }
        for byte in chunk.invalid() {
            escape(path, *byte);
        }
    }
}

fn escape(path: &mut String, byte: u8) {
    path.push_str("\\x");
    path.extend(
        [byte >> 4, byte & 15].map(|digit| char::from_digit(digit.into(), 16).unwrap_or('0')),
    );
}

/// The file path that `page_path` was made from.
pub fn file_path(page_path: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(page_path.len());
    let mut rest = page_path.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let (byte, left) = match (first, tail) {
            (b'\\', [b'\\', left @ ..]) => (b'\\', left),
            (b'\\', [b'x', high, low, left @ ..]) => (hex_pair(*high, *low).unwrap_or(b'?'), left),
            _ => (first, tail),
        };
        bytes.push(byte);
        rest = left;
    }
    PathBuf::from(OsString::from_vec(bytes))
}

fn hex_pair(high: u8, low: u8) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    u8::try_from(digit(high)? * 16 + digit(low)?).ok()
}

/// Whether the name behind this page path holds what is no plain text.
pub fn is_escaped(page_path: &str) -> bool {
    let mut bytes = page_path.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'\\' && bytes.next() == Some(b'x') {
            return true;
        }
    }
    false
}

/// The path and each directory above it, nearest last: `a/b/c` gives `a`, `a/b`, `a/b/c`.
pub fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/')
        .map(|(at, _)| &path[..at])
        .chain(std::iter::once(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn plain_names_stay_as_they_are() {
        assert_eq!(page_path(Path::new("a/b c.md")).unwrap(), "a/b c.md");
        assert_eq!(page_path(Path::new("./a")).unwrap(), "a");
    }

    #[test]
    fn paths_that_leave_the_root_have_no_page_path() {
        for bad in ["", ".", "..", "a/../b", "/etc"] {
            assert_eq!(page_path(Path::new(bad)), None, "{bad}");
        }
    }

    #[test]
    fn a_name_that_is_not_utf8_is_escaped_and_found_again() {
        let name = OsStr::from_bytes(b"caf\xe9\\x.md");
        let path = page_path(Path::new(name)).unwrap();
        assert_eq!(path, "caf\\xe9\\\\x.md");
        assert!(is_escaped(&path));
        assert_eq!(file_path(&path).as_os_str(), name);
    }

    #[test]
    fn control_characters_are_escaped_because_keys_and_terminals_cannot_take_them() {
        let path = page_path(Path::new("a\nb\u{7f}")).unwrap();
        assert_eq!(path, "a\\x0ab\\x7f");
        assert!(is_escaped(&path));
    }

    #[test]
    fn a_backslash_alone_is_not_an_escape() {
        let path = page_path(Path::new("a\\xe9")).unwrap();
        assert_eq!(path, "a\\\\xe9");
        assert!(!is_escaped(&path));
    }

    #[test]
    fn ancestors_end_with_the_path_itself() {
        assert_eq!(
            ancestors("a/b/c").collect::<Vec<_>>(),
            ["a", "a/b", "a/b/c"]
        );
        assert_eq!(ancestors("a").collect::<Vec<_>>(), ["a"]);
    }

    proptest! {
        #[test]
        fn every_name_comes_back(parts in prop::collection::vec(prop::collection::vec(1..=255u8, 1..12), 1..4)) {
            let parts: Vec<OsString> = parts.into_iter()
                .map(|part| part.into_iter().filter(|byte| *byte != b'/').collect::<Vec<u8>>())
                .filter(|part| !part.is_empty() && part != b"." && part != b"..")
                .map(OsString::from_vec).collect();
            prop_assume!(!parts.is_empty());
            let path: PathBuf = parts.iter().collect();
            let text = page_path(&path).unwrap();
            prop_assert_eq!(file_path(&text), path);
        }
    }
}
