//! One manifest from its path to a tree of the right shape.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    check, codes,
    context::LoadOptions,
    files::{FILE_MAX, Found},
    hint::near,
    keys,
    problem::{Problem, Problems},
    source::{Place, SourceFile, Span},
    tree::{self, Node},
    view::View,
};

/// A manifest that was read and checked against its keys.
pub(crate) struct Document {
    pub file: Arc<SourceFile>,
    pub root: Node,
    pub kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Agent,
    Fleet,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Agent => "Agent",
            Self::Fleet => "Fleet",
        }
    }

    const fn api_version(self) -> &'static str {
        match self {
            Self::Agent => "agent.dev/v1",
            Self::Fleet => "volary.dev/v1",
        }
    }
}

/// Reads and checks a manifest. `None` if there is nothing to work with; then an error was pushed.
///
/// `named` is the place that named the file, if a manifest did.
pub(crate) fn open(
    path: &Path,
    named: Option<&Place>,
    options: &LoadOptions<'_>,
    problems: &mut Problems,
) -> Option<Document> {
    let text = match read(path, options) {
        Ok(text) => text,
        Err(problem) => {
            problems.push(match named {
                // A file that another manifest names wrongly is that manifest's problem.
                Some(place) if problem.code.code == codes::UNREADABLE.code => {
                    Problem::at_place(problem.code, place, problem.message)
                }
                _ => *problem,
            });
            return None;
        }
    };
    let file = Arc::new(SourceFile {
        path: path.to_path_buf(),
        text,
    });
    let root = tree::parse(&file, problems)?;
    if is_docker_agent(View::new(&root)) {
        let message = "this is an agent.yaml of Docker Agent, which describes something else under the same file name";
        let problem = Problem::at(&codes::DOCKER_AGENT, &file, root.span, message);
        problems.push(problem.hint(
            "Volary's begins with `apiVersion: agent.dev/v1`; to run this one under Volary, make it the `command` of one",
        ));
        return None;
    }
    let kind = header(&file, View::new(&root), problems);
    let table = match kind {
        Kind::Agent => &keys::AGENT,
        Kind::Fleet => &keys::FLEET,
    };
    check::check(&file, &root, table, problems);
    Some(Document { file, root, kind })
}

fn read(path: &Path, options: &LoadOptions<'_>) -> Result<String, Box<Problem>> {
    let unreadable = |what: String| Box::new(Problem::of_file(&codes::UNREADABLE, path, what));
    let shown = path.display();
    match (options.files.find)(path) {
        None => return Err(unreadable(format!("`{shown}` does not exist"))),
        Some(Found::Folder | Found::Other) => {
            return Err(unreadable(format!("`{shown}` is not a file")));
        }
        Some(Found::File | Found::Executable) => {}
    }
    let bytes = (options.files.read)(path)
        .map_err(|error| unreadable(format!("`{shown}` cannot be read: {error}")))?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(
            Problem::of_file(&codes::TOO_LARGE, path, "the file is larger than 1 MiB").into(),
        );
    }
    let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&bytes);
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(error) => {
            let line = bytes[..error.valid_up_to()]
                .iter()
                .filter(|byte| **byte == b'\n')
                .count()
                + 1;
            let problem = Problem::of_file(
                &codes::NOT_UTF8,
                path,
                "the file is not UTF-8 from this line on",
            );
            let line = u32::try_from(line).unwrap_or(u32::MAX);
            Err(Box::new(Problem { line, ..problem }))
        }
    }
}

/// `agents:` at the top without our header, as Docker's `docker agent` (formerly cagent) writes it.
fn is_docker_agent(root: View<'_>) -> bool {
    let ours = ["apiVersion", "kind", "spec"]
        .iter()
        .any(|key| root.get(key).is_present());
    !ours && root.get("agents").is_map()
}

/// The kind that the manifest says it is, or else the one that its file name or keys speak for.
fn header(file: &SourceFile, root: View<'_>, problems: &mut Problems) -> Kind {
    let stem = file
        .path
        .file_stem()
        .and_then(|stem| stem.to_str())
        .unwrap_or_default();
    let guess = if stem == "fleet" {
        Kind::Fleet
    } else {
        Kind::Agent
    };
    let view = root.get("kind");
    let said = view.text().map(|text| {
        (
            text,
            [Kind::Agent, Kind::Fleet]
                .into_iter()
                .find(|kind| kind.name() == text),
        )
    });
    let kind = match said {
        None => guess,
        Some((_, Some(kind))) => kind,
        Some((text, None)) => {
            let message = format!("`kind` must be `{}`, found `{text}`", guess.name());
            let hint = near(text, ["Agent", "Fleet"]).map(|near| format!("did you mean `{near}`?"));
            problems.push(Problem::at(&codes::KIND, file, view.span(), message).maybe_hint(hint));
            guess
        }
    };
    let version = root.get("apiVersion");
    if let Some(text) = version.text().filter(|text| *text != kind.api_version()) {
        let message = format!(
            "`apiVersion` of kind {} must be `{}`, found `{text}`",
            kind.name(),
            kind.api_version()
        );
        problems.push(Problem::at(
            &codes::API_VERSION,
            file,
            version.span(),
            message,
        ));
    }
    kind
}

/// The manifest that `path` means: itself if it is a file, else the fleet.yaml or agent.yaml in it.
pub(crate) fn locate(path: &Path, options: &LoadOptions<'_>) -> Result<PathBuf, Box<Problem>> {
    match (options.files.find)(path) {
        Some(Found::Folder) => {}
        Some(_) => return Ok(path.to_path_buf()),
        None => {
            let message = format!("`{}` does not exist", path.display());
            return Err(Problem::of_file(&codes::UNREADABLE, path, message).into());
        }
    }
    for stem in ["fleet", "agent"] {
        if let Some(found) = in_folder(path, stem, options)? {
            return Ok(found);
        }
    }
    let agents = agents_below(path, options);
    if agents.is_empty() {
        let message = format!("`{}` has neither fleet.yaml nor agent.yaml", path.display());
        return Err(Problem::of_file(&codes::NO_MANIFEST, path, message)
            .hint("`volary init` makes one")
            .into());
    }
    let message = format!(
        "`{}` has agents but no fleet.yaml that says they belong together",
        path.display()
    );
    let list = agents.join(", ");
    let hint = format!(
        "write fleet.yaml: {{apiVersion: volary.dev/v1, kind: Fleet, metadata: {{name: NAME}}, spec: {{agents: [{list}]}}}}"
    );
    Err(Problem::of_file(&codes::NO_FLEET, path, message)
        .hint(hint)
        .into())
}

/// `stem.yaml` or `stem.yml` in a folder, if there is one; both is an error.
pub(crate) fn in_folder(
    folder: &Path,
    stem: &str,
    options: &LoadOptions<'_>,
) -> Result<Option<PathBuf>, Box<Problem>> {
    let there = |ending: &str| {
        let path = super::files::join(folder, format!("{stem}.{ending}"));
        (options.files.find)(&path).is_some().then_some(path)
    };
    match (there("yaml"), there("yml")) {
        (Some(_), Some(second)) => {
            let message = format!("the folder has both {stem}.yaml and {stem}.yml");
            Err(Problem::of_file(&codes::TWO_MANIFESTS, second, message)
                .hint("remove or rename one")
                .into())
        }
        (first, second) => Ok(first.or(second)),
    }
}

/// Most agents that the hint about a missing fleet.yaml names.
const HINTED_AGENTS: usize = 20;

/// Folders with an agent.yaml in `path` and in its `agents` folder, written relative to it.
fn agents_below(path: &Path, options: &LoadOptions<'_>) -> Vec<String> {
    let mut found = Vec::new();
    for prefix in ["", "agents/"] {
        for name in (options.files.list)(&super::files::join(path, prefix)) {
            let folder = super::files::join(path, format!("{prefix}{name}"));
            if ["agent.yaml", "agent.yml"]
                .iter()
                .any(|file| (options.files.find)(&folder.join(file)).is_some())
            {
                found.push(format!("./{prefix}{name}"));
            }
        }
    }
    found.truncate(HINTED_AGENTS);
    found
}

/// The place of a whole document.
pub(crate) fn top(file: &Arc<SourceFile>) -> Place {
    Place {
        file: file.clone(),
        span: Span {
            line: 1,
            column: 1,
            ..Span::default()
        },
    }
}
