//! Arguments and environment, settled once into what commands work with. The one place that reads the environment.

use std::{
    collections::BTreeMap,
    env,
    path::{Path, PathBuf},
};

use clap::ColorChoice;

use crate::{args::Global, codes, error::CliError, ui::Ui};

/// Name of the state folder beside a fleet.
pub const STATE_FOLDER: &str = ".volary";

/// What the environment says. Nothing else of it is used.
#[derive(Debug, Default)]
pub struct Environment {
    /// `VOLARY_STATE`: the state folder.
    pub state: Option<PathBuf>,
    /// `VOLARY_LINK`: how an agent reaches its node.
    pub link: Option<String>,
    /// `VOLARY_TOKEN_FILE`: an agent's token.
    pub token_file: Option<PathBuf>,
    /// `VOLARY_LOG`: which of the node's own log lines are shown.
    pub log: Option<String>,
    /// `PATH`, `HOME`, `LANG` and `TZ`: what every agent gets of it.
    pub base: BTreeMap<String, String>,
}

impl Environment {
    #[expect(
        clippy::disallowed_methods,
        reason = "the command reads its environment here and nowhere else"
    )]
    fn read() -> Self {
        let text = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        let path = |name: &str| {
            env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        Self {
            state: path("VOLARY_STATE"),
            link: text("VOLARY_LINK"),
            token_file: path("VOLARY_TOKEN_FILE"),
            log: text("VOLARY_LOG"),
            base: ["PATH", "HOME", "LANG", "TZ"]
                .into_iter()
                .filter_map(|name| Some((name.to_owned(), text(name)?)))
                .collect(),
        }
    }
}

/// One variable of the environment, for manifests that take values from it.
#[expect(
    clippy::disallowed_methods,
    reason = "manifests name the variables they want (`from: env`)"
)]
pub fn variable(name: &str) -> Option<String> {
    env::var(name).ok()
}

/// What every command gets.
#[derive(Debug)]
pub struct Context {
    /// Where output goes.
    pub ui: Ui,
    /// What the environment says.
    pub environment: Environment,
    /// `--state`.
    state: Option<PathBuf>,
    /// `--dir`.
    dir: Option<PathBuf>,
}

impl Context {
    /// Settles the options that all commands share.
    pub fn new(global: &Global) -> Self {
        Self {
            ui: Ui::new(global.json, ColorChoice::from(global.color)),
            environment: Environment::read(),
            state: global.state.clone(),
            dir: global.dir.clone(),
        }
    }

    /// The fleet's folder: the one named, else `-C DIR`, else the current one.
    pub fn fleet_dir(&self, named: Option<&Path>) -> PathBuf {
        let inside = named.unwrap_or(Path::new("."));
        match &self.dir {
            Some(dir) => dir.join(inside),
            None => inside.to_owned(),
        }
    }

    /// The state folder to start a fleet with: `--state`, else `VOLARY_STATE`, else `.volary` beside the fleet.
    ///
    /// # Errors
    /// When the current folder is gone.
    pub fn own_state(&self, fleet_dir: &Path) -> Result<PathBuf, CliError> {
        let beside = if fleet_dir.is_file() {
            fleet_dir.parent().unwrap_or(fleet_dir)
        } else {
            fleet_dir
        };
        absolute(
            &self
                .chosen_state()
                .unwrap_or_else(|| beside.join(STATE_FOLDER)),
        )
    }

    /// The state folder of a fleet that runs: as [`Context::own_state`], but without a fleet named, the nearest
    /// `.volary` of the current folder and those above it.
    ///
    /// # Errors
    /// When the current folder is gone.
    pub fn running_state(&self, named: Option<&Path>) -> Result<PathBuf, CliError> {
        if named.is_some() || self.dir.is_some() {
            return self.own_state(&self.fleet_dir(named));
        }
        if let Some(chosen) = self.chosen_state() {
            return absolute(&chosen);
        }
        let here = absolute(Path::new("."))?;
        let found = here
            .ancestors()
            .map(|folder| folder.join(STATE_FOLDER))
            .find(|state| state.is_dir());
        Ok(found.unwrap_or_else(|| here.join(STATE_FOLDER)))
    }

    fn chosen_state(&self) -> Option<PathBuf> {
        self.state
            .clone()
            .or_else(|| self.environment.state.clone())
    }
}

/// A path that stays true when the current folder changes.
///
/// # Errors
/// When the current folder is gone.
pub fn absolute(path: &Path) -> Result<PathBuf, CliError> {
    std::path::absolute(path)
        .map(|path| path.components().collect())
        .map_err(|error| {
            CliError::new(codes::SYSTEM, "the current folder cannot be told").because(&error)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(state: Option<&str>, variable: Option<&str>, dir: Option<&str>) -> Context {
        Context {
            ui: Ui::new(false, ColorChoice::Never),
            environment: Environment {
                state: variable.map(Into::into),
                ..Environment::default()
            },
            state: state.map(Into::into),
            dir: dir.map(Into::into),
        }
    }

    #[test]
    fn the_flag_goes_before_the_variable_before_the_folder_beside_the_fleet() {
        let state = |context: Context| context.own_state(Path::new("/fleet")).unwrap();
        assert_eq!(
            state(context(Some("/flag"), Some("/var"), None)),
            Path::new("/flag")
        );
        assert_eq!(state(context(None, Some("/var"), None)), Path::new("/var"));
        assert_eq!(
            state(context(None, None, None)),
            Path::new("/fleet/.volary")
        );
    }

    #[test]
    fn a_running_fleet_is_found_from_a_folder_inside_it() {
        let fleet = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(fleet.path().join(".volary")).unwrap();
        let inside = fleet.path().join("notes/deep");
        let found = inside
            .ancestors()
            .map(|folder| folder.join(STATE_FOLDER))
            .find(|state| state.is_dir());
        assert_eq!(found, Some(fleet.path().join(".volary")));
        let named = context(None, None, fleet.path().to_str());
        assert_eq!(
            named.running_state(None).unwrap(),
            fleet.path().join(".volary")
        );
    }
}
