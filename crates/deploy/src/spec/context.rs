//! What reading a manifest needs beside its tree: the file, the outside world, and where problems go.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use volary_kernel::secret::{MIN_SECRET_LEN, Secret};

use super::{
    codes::{self, CodeInfo},
    files::{FILE_MAX, Files, Found, join},
    model::Execution,
    problem::{Problem, Problems},
    source::{Place, SourceFile, Span},
};

/// Looks an environment variable up where Volary runs.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// What the outside world is, and what the build can do.
pub struct LoadOptions<'a> {
    /// The file system.
    pub files: Files<'a>,
    /// The environment that secrets and `from: env` refer to; also `PATH`.
    pub env: Lookup<'a>,
    /// The backends of this build.
    pub backends: &'a [Execution],
    /// Whether the operators' server may listen beyond loopback without TLS.
    pub insecure_bind: bool,
}

/// What agents may refer to: the `secrets` and `config` of a fleet.
#[derive(Default)]
pub(crate) struct Definitions {
    pub secrets: BTreeMap<String, BTreeMap<String, SecretDef>>,
    pub values: BTreeMap<String, String>,
    pub groups: BTreeMap<String, BTreeMap<String, String>>,
}

/// Where a secret's value is.
pub(crate) struct SecretDef {
    pub from: SecretFrom,
    pub place: Place,
}

pub(crate) enum SecretFrom {
    Env(String),
    File(PathBuf),
}

/// One manifest being read.
pub(crate) struct Cx<'a> {
    pub options: &'a LoadOptions<'a>,
    pub definitions: &'a Definitions,
    pub file: Arc<SourceFile>,
    /// The manifest's folder, absolute.
    pub dir: PathBuf,
    pub problems: &'a mut Problems,
}

impl<'a> Cx<'a> {
    pub fn new(
        options: &'a LoadOptions<'a>,
        definitions: &'a Definitions,
        file: Arc<SourceFile>,
        problems: &'a mut Problems,
    ) -> Self {
        let dir = join(&(options.files.absolute)(file.dir()), "");
        Self {
            options,
            definitions,
            file,
            dir,
            problems,
        }
    }

    pub fn place(&self, span: Span) -> Place {
        Place {
            file: self.file.clone(),
            span,
        }
    }

    pub fn at(&self, code: &'static CodeInfo, span: Span, message: impl Into<String>) -> Problem {
        Problem::at(code, &self.file, span, message)
    }

    pub fn push(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    pub fn report(&mut self, code: &'static CodeInfo, span: Span, message: impl Into<String>) {
        let problem = self.at(code, span, message);
        self.push(problem);
    }

    /// `path` of this manifest, absolute.
    pub fn resolve(&self, path: &str) -> PathBuf {
        join(&self.dir, path)
    }

    pub fn find(&self, path: &Path) -> Option<Found> {
        (self.options.files.find)(path)
    }

    /// A path that must be a folder.
    pub fn folder(&mut self, path: &str, span: Span) -> PathBuf {
        let full = self.resolve(path);
        match self.find(&full) {
            Some(Found::Folder) => {}
            Some(_) => self.report(&codes::BAD_PATH, span, format!("`{path}` is not a folder")),
            None => self.report(
                &codes::UNREADABLE,
                span,
                format!("folder `{path}` does not exist"),
            ),
        }
        full
    }

    /// The text of a file that holds one value, without the line end at its end.
    pub fn value_of_file(&mut self, path: &Path, shown: &str, span: Span) -> Option<String> {
        let value = read_value(&self.options.files, path);
        value
            .map_err(|why| self.report(&codes::UNREADABLE, span, format!("file `{shown}` {why}")))
            .ok()
    }

    /// Warns of a secret that cannot be guarded.
    pub fn guard(&mut self, secret: Secret, span: Span) -> Secret {
        if secret.expose().len() < MIN_SECRET_LEN {
            let message = format!(
                "the secret is shorter than {MIN_SECRET_LEN} bytes and cannot be removed from logs"
            );
            self.report(&codes::SECRET_SHORT, span, message);
        }
        secret
    }

    /// The secret `name`/`key` of the fleet. Reports what is missing at `span`.
    pub fn fleet_secret(&mut self, name: &str, key: &str, span: Span) -> Option<Secret> {
        let definitions = self.definitions;
        let Some(def) = definitions.secrets.get(name).and_then(|keys| keys.get(key)) else {
            let hint = format!(
                "add to fleet.yaml: spec.secrets: {{{name}: {{{key}: {{fromEnv: NAME}}}}}}"
            );
            let problem = self.at(
                &codes::SECRET_MISSING,
                span,
                format!("secret `{name}/{key}` is not declared"),
            );
            self.push(problem.hint(hint));
            return None;
        };
        let (declared, value) = match &def.from {
            SecretFrom::Env(variable) => {
                let value = (self.options.env)(variable);
                (
                    format!("environment variable {variable}, which is not set"),
                    value,
                )
            }
            SecretFrom::File(path) => match read_value(&self.options.files, path) {
                Ok(value) => ("a file, which is empty".to_owned(), Some(value)),
                Err(why) => (format!("a file, which {why}"), None),
            },
        };
        match value.filter(|value| !value.is_empty()) {
            Some(value) => Some(self.guard(Secret::new(value), span)),
            None => {
                let problem = self.at(
                    &codes::SECRET_MISSING,
                    span,
                    format!("secret `{name}/{key}` has no value"),
                );
                self.push(problem.related(
                    &def.place.file,
                    def.place.span,
                    format!("it is declared as {declared}"),
                ));
                None
            }
        }
    }
}

/// The text of a file that holds one value, without the line end at its end; or why not, to be read after its name.
fn read_value(files: &Files<'_>, path: &Path) -> Result<String, String> {
    match (files.find)(path) {
        None => return Err("does not exist".into()),
        Some(Found::Folder | Found::Other) => return Err("is not a file".into()),
        Some(Found::File | Found::Executable) => {}
    }
    let bytes = (files.read)(path).map_err(|error| format!("cannot be read: {error}"))?;
    if bytes.len() as u64 > FILE_MAX {
        return Err("is larger than 1 MiB".into());
    }
    // The error would carry the bytes, which may be a secret.
    let mut text = String::from_utf8(bytes).map_err(|_| "is not UTF-8".to_owned())?;
    if text.ends_with('\n') {
        text.pop();
    }
    if text.ends_with('\r') {
        text.pop();
    }
    Ok(text)
}
