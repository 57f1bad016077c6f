//! Finds out what this machine gives: by trying it, once, with the real set-up.

use std::path::PathBuf;

use super::super::report::{Capabilities, Support};
use super::cgroup::Cgroups;
use super::launcher::Launcher;
use super::namespace::{self, Input, LaunchError};
use super::plan::Ground;
use super::sys::Namespaces;
use super::wire::View;

/// What was found.
pub(crate) struct Found {
    pub(crate) view: View,
    pub(crate) namespaces: Namespaces,
    pub(crate) capabilities: Capabilities,
    /// Why there is no isolation, if there is none.
    pub(crate) refused: Option<String>,
}

/// Tries mounts, then Landlock alone, then says why neither works.
pub(crate) async fn probe(launcher: &Launcher, ground: &Ground, cgroups: &Cgroups) -> Found {
    let landlock = landlock_version();
    let mut tried = Vec::new();
    let both = Namespaces {
        pid: true,
        mount: true,
        user: !ground.root,
    };
    for (view, namespaces, word) in [
        (View::Mounts, both, "mounts"),
        (
            View::Landlock,
            Namespaces {
                mount: false,
                ..both
            },
            "landlock",
        ),
    ] {
        if view == View::Landlock && landlock.is_none() {
            tried.push("landlock: the kernel has none".to_owned());
            continue;
        }
        let ground = Ground {
            view,
            landlock: landlock.is_some(),
            ..ground.clone()
        };
        match namespace::launch(launcher, namespaces, &ground.probe(), Input::Null).await {
            Ok(_ended_by_itself) => {
                let notes = notes(ground.root, landlock, &tried);
                let capabilities = describe(word, Support::Yes, landlock, cgroups, &ground, notes);
                return Found {
                    view,
                    namespaces,
                    capabilities,
                    refused: None,
                };
            }
            Err(error) => tried.push(format!("{word}: {}", text(&error))),
        }
    }
    let why = tried.join("; ");
    let capabilities = describe(
        "none",
        Support::No(why.clone()),
        landlock,
        cgroups,
        ground,
        Vec::new(),
    );
    Found {
        view: View::Host,
        namespaces: Namespaces::NONE,
        capabilities,
        refused: Some(why),
    }
}

fn describe(
    view: &'static str,
    isolation: Support,
    landlock: Option<u32>,
    cgroups: &Cgroups,
    ground: &Ground,
    notes: Vec<String>,
) -> Capabilities {
    let no_orphans = match &isolation {
        Support::Yes => Support::Yes,
        Support::No(_) => Support::No("a guardian process instead of a PID namespace".to_owned()),
    };
    let other_users = if ground.root {
        Support::Yes
    } else {
        Support::No("the node does not run as root".to_owned())
    };
    Capabilities {
        backend: "process",
        isolation,
        view,
        no_orphans,
        landlock,
        cgroup: cgroups.controls(),
        other_users,
        notes,
    }
}

fn notes(root: bool, landlock: Option<u32>, tried: &[String]) -> Vec<String> {
    let mut notes = tried.to_vec();
    if landlock.is_none() {
        notes.push("no Landlock: walls are namespaces and capabilities only".to_owned());
    }
    if root {
        let text = "replicas of a root node run as root unless `runAsUser` is set, and may write \
                    where root may, system directories excepted";
        notes.push(text.to_owned());
    }
    notes
}

/// Words for a launch that failed.
pub(crate) fn text(error: &LaunchError) -> String {
    match error {
        LaunchError::NoNamespace(error) => format!("no namespace: {error}"),
        LaunchError::Step { step, error } => format!("{step}: {error}"),
    }
}

/// Landlock version of the running kernel.
fn landlock_version() -> Option<u32> {
    super::sys::landlock_version()
}

/// A directory without symbolic links, made if need be.
pub(crate) fn real_dir(dir: &std::path::Path) -> std::io::Result<PathBuf> {
    volary_kernel::file::create_private_dir(dir)?;
    dir.canonicalize()
}
