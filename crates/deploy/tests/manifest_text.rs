//! Manifests that exist only as text: the seed's fragments, odd encodings, secrets, mutations.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use proptest::prelude::*;
use volary_deploy::spec::{
    BACKENDS, LoadOptions, Loaded, Problems, Severity, codes,
    files::{FILE_MAX, Files, Found},
    load_fleet,
    model::{EnvValue, Execution},
    schema,
};

const HEAD: &str = "apiVersion: agent.dev/v1\nkind: Agent\nmetadata: {name: worker}\n";
const ALL: &[Execution] = &[Execution::Process, Execution::Docker, Execution::Kubernetes];

/// A fleet around `/fleet/agent.yaml` that declares what the seed's fragments refer to.
const FLEET: &str = "apiVersion: volary.dev/v1
kind: Fleet
metadata: {name: seed}
spec:
  agents: [agent.yaml]
  config: {MODEL_NAME: gpt-4}
  secrets:
    db-secret: {password: {fromEnv: CANARY}}
    agent-secrets: {openai-api-key: {fromFile: key}}
";

/// Files in memory.
struct Memory(BTreeMap<PathBuf, Vec<u8>>);

impl Memory {
    fn new<'a>(files: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Self {
        Self(
            files
                .into_iter()
                .map(|(path, bytes)| (path.into(), bytes.to_vec()))
                .collect(),
        )
    }

    fn find(&self, path: &Path) -> Option<Found> {
        match self.0.contains_key(path) {
            true => Some(Found::Executable),
            false => self
                .0
                .keys()
                .any(|file| file.starts_with(path))
                .then_some(Found::Folder),
        }
    }

    fn load(&self, path: &str, backends: &[Execution], canary: &str) -> Result<Loaded, Problems> {
        let read = |path: &Path| {
            self.0
                .get(path)
                .cloned()
                .ok_or(io::ErrorKind::NotFound.into())
        };
        let options = LoadOptions {
            files: Files {
                read: &read,
                find: &|path| self.find(path),
                list: &|_| Vec::new(),
                absolute: &|path| path.to_path_buf(),
            },
            env: &|name| (name == "CANARY").then(|| canary.to_owned()),
            backends,
            insecure_bind: false,
        };
        load_fleet(Path::new(path), &options)
    }
}

/// Loads one agent in the fleet above.
fn load(agent: &str, backends: &[Execution]) -> Result<Loaded, Problems> {
    load_with(agent, backends, "canary-5f0c2b", "canary-9d1e\n")
}

fn load_with(
    agent: &str,
    backends: &[Execution],
    env: &str,
    file: &str,
) -> Result<Loaded, Problems> {
    let files = [
        ("/fleet/fleet.yaml", FLEET),
        ("/fleet/agent.yaml", agent),
        ("/fleet/key", file),
        ("/fleet/data/a", ""),
    ];
    let files = files.map(|(path, text)| (path, text.as_bytes()));
    Memory::new(files).load("/fleet", backends, env)
}

/// Codes of the problems, each once.
fn codes_of(loaded: &Result<Loaded, Problems>) -> Vec<&'static str> {
    let problems = match loaded {
        Ok(loaded) => &loaded.warnings,
        Err(problems) => problems,
    };
    let codes: BTreeSet<_> = problems.iter().map(|problem| problem.code.code).collect();
    codes.into_iter().collect()
}

// --- The seed --------------------------------------------------------------------------------

/// Every YAML fragment of the seed, unchanged, with something to run put after it.
fn seed(body: &str) -> Vec<(String, String)> {
    let folder = fs::read_dir("tests/manifests/seed").expect("the folder is there");
    let mut fragments: Vec<_> = folder
        .map(|entry| {
            let path = entry.expect("it can be read").path();
            let text = fs::read_to_string(&path).expect("it is text");
            let name = path
                .file_stem()
                .expect("it has a name")
                .to_string_lossy()
                .into_owned();
            (name, format!("{HEAD}{text}  {body}\n"))
        })
        .collect();
    fragments.sort();
    fragments
}

#[test]
fn every_fragment_of_the_seed_parses_unchanged_for_a_container() {
    let fragments = seed("image: my-agent:latest");
    assert_eq!(fragments.len(), 14);
    for (name, text) in fragments {
        let loaded = load(&text, ALL);
        // All there is to say is that this build has no autoscaler.
        let problems = loaded.as_ref().err().cloned().unwrap_or_default();
        assert!(
            matches!(problems.exit_code(), 0 | 69),
            "{name}:\n{problems}"
        );
    }
}

#[test]
fn a_process_honours_a_fragment_of_the_seed_or_says_that_it_does_not() {
    let said = seed("command: [/fleet/data/a]")
        .into_iter()
        .map(|(name, text)| {
            let loaded = load(&text, BACKENDS);
            (name, codes_of(&loaded))
        });
    let said: BTreeMap<String, Vec<&str>> = said.collect();
    let expected: [(&str, &[&str]); 14] = [
        ("autoscaling", &["E0305"]),
        ("environment", &["W0505"]),
        ("health-check", &[]),
        ("network", &["E0303"]),
        ("network-security", &["E0303"]),
        ("ports", &[]),
        ("resources", &["W0306"]),
        ("resources-vertical", &["W0306"]),
        ("scaling", &["E0305"]),
        ("secret", &["W0504"]),
        ("secrets", &[]),
        ("security", &[]),
        ("services", &[]),
        ("volumes", &["E0303"]),
    ];
    let expected = expected.map(|(name, codes)| (name.to_owned(), codes.to_vec()));
    assert_eq!(said, BTreeMap::from(expected));
}

// --- Text ------------------------------------------------------------------------------------

#[test]
fn line_ends_of_windows_and_a_byte_order_mark_change_nothing() {
    let plain = format!("{HEAD}spec:\n  handler: cat\n  topics: [work]\n  colour: red\n");
    let windows = format!("\u{feff}{}", plain.replace('\n', "\r\n"));
    let shown = |text: &str| {
        load(text, BACKENDS)
            .expect_err("`colour` is unknown")
            .to_string()
    };
    assert_eq!(shown(&plain), shown(&windows));
    assert!(shown(&plain).contains("agent.yaml:7:3: unknown key `colour`"));
}

#[test]
fn a_file_beyond_the_limit_is_refused_unread() {
    let large = format!(
        "{HEAD}spec: {{handler: cat}}\n#{}",
        "x".repeat(FILE_MAX as usize)
    );
    assert_eq!(codes_of(&load(&large, BACKENDS)), ["E0003"]);
}

#[test]
fn words_that_old_yaml_took_for_booleans_and_numbers_stay_text() {
    let text = format!(
        "{HEAD}spec:\n  handler: cat\n  environment:\n    - {{name: A, value: no}}\n    - {{name: B, value: 1.10}}\n    \
         - {{name: C, value: 010}}\n    - {{name: D, value: 12:30:45}}\n    - {{name: E, value: 1e3}}\n"
    );
    let loaded = load(&text, BACKENDS).expect("it is good");
    let values: Vec<_> = loaded.fleet.agents[0]
        .environment
        .iter()
        .map(|variable| variable.value.expose())
        .collect();
    assert_eq!(values, ["no", "1.10", "010", "12:30:45", "1e3"]);
}

#[test]
fn an_alias_stands_for_its_value() {
    let text = format!(
        "{HEAD}spec:\n  handler: cat\n  topics: &list [work, other]\n  pools: *list\n  delivery: {{timeout: 5s}}\n"
    );
    let agent = &load(&text, BACKENDS).expect("it is good").fleet.agents[0];
    assert_eq!(agent.topics, ["work", "other"]);
    assert_eq!(
        agent
            .pools
            .iter()
            .map(|name| name.as_str())
            .collect::<Vec<_>>(),
        ["work", "other"]
    );
}

#[test]
fn a_port_that_is_taken_is_pointed_at() {
    let text = format!("{HEAD}spec:\n  command: cat\n  ports: [8080, 9090]\n");
    let loaded = load(&text, BACKENDS).expect("it is good");
    assert!(loaded.check_ports(&|_| true).is_empty());
    let problems = loaded.check_ports(&|port| port.host != 9090);
    insta::assert_snapshot!(problems, @r"
    /fleet/agent.yaml:6:17: port 9090 is already in use [E0405]
      6 |   ports: [8080, 9090]
        |                 ^^^^
      hint: agent `worker` wants it: stop the program that has it, or choose another
    ");
}

/// A file of the largest size on one line, wrong in as many places as fit: bounded work, bounded answer.
#[test]
fn a_file_made_to_be_slow_is_given_up_soon() {
    let many = |item: &str, count: usize| vec![item; count].join(", ");
    let wide = format!("{HEAD}spec: {{topics: [{}]}}\n", many("\"a b\"", 5_000));
    assert!(codes_of(&load(&wide, BACKENDS)).contains(&"E0008"));
    let unknown: Vec<_> = (0..900).map(|n| format!("helthChek{n}: 1")).collect();
    let unknown = format!(
        "{HEAD}spec: {{{}}}\n{}",
        unknown.join(", "),
        "#".repeat(900_000)
    );
    let problems = load(&unknown, BACKENDS).expect_err("nothing in it is known");
    assert!((200..=300).contains(&problems.len()), "{}", problems.len());
    let nested = format!("{}{}", "&a [".repeat(60), "]".repeat(60));
    let nested = format!("{HEAD}spec: {{topics: {nested}, pools: {nested}}}\n");
    assert!(load(&nested, BACKENDS).is_err());
    let rows = format!("[{}]", many("x", 900));
    let rows: Vec<_> = (0..40).map(|n| format!("&r{n} {rows}")).collect();
    let anchored = format!("{HEAD}spec: {{topics: [{}]}}\n", rows.join(", "));
    assert_eq!(codes_of(&load(&anchored, BACKENDS)), ["E0008"]);
}

#[test]
fn a_nul_character_is_refused_wherever_a_text_stands() {
    let spec =
        "spec:\n  handler: [cat, \"a\\0b\"]\n  environment:\n    - {name: A, value: \"\\0\"}\n";
    let problems = load(&format!("{HEAD}{spec}"), BACKENDS).expect_err("two of them");
    assert_eq!(
        problems.to_string().matches("must not hold a NUL").count(),
        2,
        "{problems}"
    );
    let from_env =
        "spec:\n  handler: cat\n  environment:\n    - {name: A, from: env, envKey: CANARY}\n";
    let loaded = load_with(&format!("{HEAD}{from_env}"), BACKENDS, "a\0b", "x");
    assert_eq!(codes_of(&loaded), ["E0207"]);
}

// --- Secrets ---------------------------------------------------------------------------------

const SECRETS: &str = "spec:
  handler: cat
  environment:
    - {name: DB, from: secret, secretName: db-secret, secretKey: password}
  secrets:
    - {name: key, from: secret, secretName: agent-secrets, secretKey: openai-api-key}
    - {name: env, from: env, envKey: CANARY, as: env}
";

#[test]
fn a_secret_is_in_no_debug_text_json_or_problem() {
    let loaded = load(&format!("{HEAD}{SECRETS}"), BACKENDS).expect("it is good");
    let agent = &loaded.fleet.agents[0];
    assert!(
        matches!(&agent.environment[0].value, EnvValue::Secret(s) if s.expose() == "canary-5f0c2b")
    );
    assert_eq!(agent.secrets[0].value.expose(), "canary-9d1e");
    let broken = load(&format!("{HEAD}{SECRETS}  colour: red\n"), BACKENDS).expect_err("`colour`");
    let all = [
        format!("{:?}", loaded.fleet),
        serde_json::to_string(&loaded.fleet).expect("it is JSON"),
        loaded.warnings.to_string(),
        format!("{broken:?} {broken}"),
    ];
    assert!(all.iter().all(|text| !text.contains("canary")), "{all:?}");
}

#[test]
fn a_secret_file_that_is_not_text_is_not_quoted() {
    let agent = format!("{HEAD}{SECRETS}");
    let files: [(&str, &[u8]); 3] = [
        ("/fleet/fleet.yaml", FLEET.as_bytes()),
        ("/fleet/agent.yaml", agent.as_bytes()),
        ("/fleet/key", b"canary-\xff\xfe"),
    ];
    let problems = Memory::new(files)
        .load("/fleet", BACKENDS, "canary-5f0c2b")
        .expect_err("bad key");
    assert!(problems.to_string().contains("a file, which is not UTF-8"));
    assert!(!format!("{problems:?}").contains("canary"));
}

#[test]
fn a_rotated_secret_changes_the_keyed_digest_and_only_that() {
    let load = |env| load_with(&format!("{HEAD}{SECRETS}"), BACKENDS, env, "canary-9d1e");
    let [one, same, other] =
        ["canary-1", "canary-1", "canary-2"].map(|env| load(env).expect("it is good").fleet);
    let [one, same, other] = [&one, &same, &other].map(|fleet| &fleet.agents[0]);
    assert_eq!(
        (one.digest(), one.secrets_digest(&[7; 32])),
        (same.digest(), same.secrets_digest(&[7; 32]))
    );
    assert_eq!(one.digest(), other.digest());
    assert_ne!(one.secrets_digest(&[7; 32]), other.secrets_digest(&[7; 32]));
    assert_ne!(one.secrets_digest(&[7; 32]), one.secrets_digest(&[8; 32]));
}

#[test]
fn any_change_of_a_setting_changes_the_digest() {
    let digest = |spec: &str| {
        let loaded = load(&format!("{HEAD}spec:\n  command: cat\n{spec}"), BACKENDS);
        loaded.expect("it is good").fleet.agents[0].digest()
    };
    let specs = [
        "",
        "  topics: [a]\n",
        "  topics: [b]\n",
        "  stopGracePeriod: 11s\n",
        "  restart: never\n",
    ];
    let digests: BTreeSet<_> = specs.iter().map(|spec| digest(spec).to_string()).collect();
    assert_eq!(digests.len(), specs.len());
    assert_eq!(digest("  stopGracePeriod: 10s\n"), digest(""));
}

// --- Keys ------------------------------------------------------------------------------------

#[test]
fn the_parser_knows_exactly_the_keys_of_the_schema() {
    let agent = schema::agent_schema();
    let keys = agent["$defs"]["AgentSpec"]["properties"]
        .as_object()
        .expect("an object");
    assert!(keys.len() > 25);
    for key in keys.keys() {
        let known = load(&format!("{HEAD}spec:\n  {key}: ~\n"), BACKENDS);
        assert!(!codes_of(&known).contains(&"E0101"), "{key}");
        let unknown = load(&format!("{HEAD}spec:\n  {key}x: ~\n"), BACKENDS);
        assert!(codes_of(&unknown).contains(&"E0101"), "{key}x");
    }
}

#[test]
fn the_published_schemas_are_those_of_the_parser() {
    for (name, schema) in [
        ("agent", schema::agent_schema()),
        ("fleet", schema::fleet_schema()),
    ] {
        let path = format!("../../docs/reference/{name}.schema.json");
        let published = fs::read_to_string(&path).unwrap_or_default();
        let text = serde_json::to_string_pretty(&schema).expect("it is JSON") + "\n";
        assert!(
            published == text,
            "{path} is not current: volary schema {name} > {path}"
        );
    }
}

#[test]
fn every_code_is_unique_explained_and_of_the_form_that_its_severity_has() {
    let mut seen = BTreeSet::new();
    for info in codes::ALL {
        assert!(seen.insert(info.code), "{}", info.code);
        let letter = if info.severity == Severity::Error {
            'E'
        } else {
            'W'
        };
        assert!(
            info.code.starts_with(letter) && info.code.len() == 5,
            "{}",
            info.code
        );
        assert!(
            [info.title, info.cause, info.fix]
                .iter()
                .all(|text| !text.is_empty())
        );
        assert!(codes::find(&info.code.to_lowercase()) == Some(info));
    }
}

// --- Mutations -------------------------------------------------------------------------------

fn good() -> Vec<String> {
    let paths = [
        "fleet/indexer/agent.yaml",
        "fleet/digest/agent.yml",
        "fleet/fleet.yaml",
        "one/agent.yaml",
    ];
    paths
        .map(|path| {
            fs::read_to_string(format!("tests/manifests/good/{path}")).expect("it is there")
        })
        .into()
}

/// One change to a line of a manifest.
fn mutate(text: &str, line: usize, kind: u8, other: usize, garbage: &str) -> String {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let (line, other) = (line % lines.len(), other % lines.len());
    match kind {
        0 => drop(lines.remove(line)),
        1 => lines.insert(line, lines[other].clone()),
        2 => lines.swap(line, other),
        3 => lines[line].push_str(garbage),
        4 => lines[line].insert_str(0, "  "),
        5 => lines[line] = lines[line].replacen(':', ": [", 1),
        6 => lines[line] = lines[line].chars().rev().collect(),
        _ => lines[line] = garbage.to_owned(),
    }
    lines.join("\n")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever is done to a manifest, it is either good or its errors are named at places that exist.
    #[test]
    fn a_mutated_manifest_never_panics_and_points_into_its_text(
        which in 0usize..4,
        changes in proptest::collection::vec((any::<usize>(), 0u8..8, any::<usize>(), "[-a-z:&*!|>{}\\[\\]\"'#%@ ,0-9\t]{0,12}"), 1..4),
    ) {
        let mut text = good()[which].clone();
        for (line, kind, other, garbage) in &changes {
            if !text.is_empty() {
                text = mutate(&text, *line, *kind, *other, garbage);
            }
        }
        if let Err(problems) = load(&text, ALL) {
            prop_assert!(problems.has_errors());
            let lines = text.lines().count().max(FLEET.lines().count());
            for problem in &problems {
                prop_assert!(problem.line >= 1 && problem.line as usize <= lines + 1, "{problem}");
                prop_assert!(problem.column >= 1, "{problem}");
            }
        }
    }

    /// Any text at all.
    #[test]
    fn any_text_is_read_without_panic(text in "\\PC{0,200}") {
        let _ = load(&text, ALL);
    }
}
