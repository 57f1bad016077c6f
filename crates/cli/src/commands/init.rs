//! `volary init`: a small working fleet in a new folder.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use clap::Args;
use volary_kernel::Name;

use crate::{
    codes,
    error::{CliError, Outcome},
    exit::Exit,
    settle::{Context, absolute},
};

/// `volary init`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Folder to make; it may exist, but nothing is written over.
    #[arg(value_name = "DIR")]
    fleet: PathBuf,
}

/// The files of a new fleet: path, content, mode.
const FILES: [(&str, &str, u32); 6] = [
    (
        "fleet.yaml",
        include_str!("../../template/fleet.yaml"),
        0o644,
    ),
    (
        "greeter/agent.yaml",
        include_str!("../../template/greeter/agent.yaml"),
        0o644,
    ),
    (
        "greeter/handle.sh",
        include_str!("../../template/greeter/handle.sh"),
        0o755,
    ),
    (
        "inbox/hello.txt",
        include_str!("../../template/inbox/hello.txt"),
        0o644,
    ),
    (".gitignore", ".volary/\n", 0o644),
    ("README.md", include_str!("../../template/README.md"), 0o644),
];

/// What stands in the templates for the fleet's name.
const NAME: &str = "FLEET_NAME";

/// Writes the files, or none of them.
pub fn run(context: &Context, arguments: &Arguments) -> Outcome {
    let dir = context.fleet_dir(Some(&arguments.fleet));
    let name = fleet_name(&absolute(&dir)?);
    if let Some((path, ..)) = FILES
        .iter()
        .find(|(path, ..)| dir.join(path).symlink_metadata().is_ok())
    {
        return Err(CliError::new(
            codes::EXISTS,
            format!("{} exists already", dir.join(path).display()),
        ));
    }
    for (path, content, mode) in FILES {
        let path = dir.join(path);
        write(&path, &content.replace(NAME, &name), mode).map_err(|error| {
            CliError::new(codes::OUTPUT, format!("cannot write {}", path.display())).because(&error)
        })?;
    }
    let written: Vec<PathBuf> = FILES.iter().map(|(path, ..)| dir.join(path)).collect();
    if context.ui.json {
        context
            .ui
            .document(&serde_json::json!({ "name": name, "dir": dir, "files": written }))?;
    } else {
        for path in written {
            context.ui.line(path.display())?;
        }
        context
            .ui
            .say(format_args!("start it: volary up {}", dir.display()));
    }
    Ok(Exit::Ok)
}

/// The folder's name if it can name a fleet, with what cannot stand in a name left out.
fn fleet_name(dir: &Path) -> String {
    let folder = dir
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default()
        .to_ascii_lowercase();
    let letters: String = folder
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(63)
        .collect();
    let name = letters.trim_matches('-');
    Name::new(name).map_or_else(|_| "my-fleet".to_owned(), |name| name.to_string())
}

fn write(path: &Path, content: &str, mode: u32) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut file = fs::File::create_new(path)?;
    std::io::Write::write_all(&mut file, content.as_bytes())?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_names_the_fleet_if_it_can() {
        assert_eq!(fleet_name(Path::new("/a/My Fleet")), "my-fleet");
        assert_eq!(fleet_name(Path::new("/a/_notes_")), "notes");
        assert_eq!(fleet_name(Path::new("/")), "my-fleet");
        assert_eq!(fleet_name(Path::new("/a/…")), "my-fleet");
    }
}
