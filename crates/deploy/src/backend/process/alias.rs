//! Other places where a hidden directory can be seen: the same file system mounted twice. Pure.

use std::path::{Path, PathBuf};

struct Mount {
    device: String,
    /// Which part of the file system is mounted.
    root: PathBuf,
    at: PathBuf,
}

/// `directory` and every other path that leads to it, by the text of `/proc/self/mountinfo`.
pub(crate) fn all_paths(directory: &Path, mountinfo: &str) -> Vec<PathBuf> {
    let mounts: Vec<Mount> = mountinfo.lines().filter_map(parse).collect();
    let mut paths = vec![directory.to_owned()];
    // The last mount at the longest prefix is the one that is seen.
    let home = mounts
        .iter()
        .filter(|mount| directory.starts_with(&mount.at))
        .max_by_key(|mount| mount.at.as_os_str().len());
    let Some(home) = home else { return paths };
    let Ok(below) = directory.strip_prefix(&home.at) else {
        return paths;
    };
    let inside = home.root.join(below);
    for mount in mounts.iter().filter(|mount| mount.device == home.device) {
        if let Ok(below) = inside.strip_prefix(&mount.root) {
            let path = mount.at.join(below);
            if !paths.contains(&path) {
                paths.push(path);
            }
        }
    }
    paths
}

fn parse(line: &str) -> Option<Mount> {
    let mut fields = line.split(' ').skip(2);
    Some(Mount {
        device: fields.next()?.to_owned(),
        root: unescape(fields.next()?).into(),
        at: unescape(fields.next()?).into(),
    })
}

/// The kernel writes blanks and backslashes in octal.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_mount_of_the_same_file_system_is_found() {
        let mounts = "1 0 8:1 / / rw - ext4 /dev/a rw\n\
                      2 1 8:1 /var/lib /host/li\\040b rw - ext4 /dev/a rw\n\
                      3 1 8:2 / /other rw - ext4 /dev/b rw\n";
        assert_eq!(
            all_paths(Path::new("/var/lib/v/state"), mounts),
            [
                PathBuf::from("/var/lib/v/state"),
                PathBuf::from("/host/li b/v/state")
            ]
        );
        assert_eq!(
            all_paths(Path::new("/srv/x"), mounts),
            [PathBuf::from("/srv/x")]
        );
    }
}
