//! What the program says: help, usage errors and explanations, held by snapshots.

use volary_testkit::CliEnv;

const COMMANDS: &[&[&str]] = &[
    &[],
    &["init"],
    &["validate"],
    &["up"],
    &["down"],
    &["ps"],
    &["logs"],
    &["inspect"],
    &["events"],
    &["send"],
    &["health"],
    &["identity"],
    &["identity", "show"],
    &["identity", "peer"],
    &["identity", "peers"],
    &["identity", "list"],
    &["identity", "revoke"],
    &["identity", "rotate"],
    &["identity", "accept"],
    &["tasks"],
    &["tasks", "submit"],
    &["tasks", "list"],
    &["tasks", "show"],
    &["tasks", "cancel"],
    &["tasks", "wait"],
    &["tasks", "claim"],
    &["tasks", "renew"],
    &["tasks", "report"],
    &["tasks", "fail"],
    &["pools"],
    &["pools", "list"],
    &["pools", "show"],
    &["pools", "create"],
    &["pools", "join"],
    &["pools", "leave"],
    &["pools", "delete"],
    &["flow"],
    &["flow", "list"],
    &["flow", "show"],
    &["flow", "graph"],
    &["flow", "traces"],
    &["flow", "cancel"],
    &["flow", "pause"],
    &["flow", "resume"],
    &["parked"],
    &["parked", "list"],
    &["parked", "show"],
    &["parked", "retry"],
    &["parked", "drop"],
    &["journal"],
    &["journal", "verify"],
    &["journal", "export"],
    &["journal", "import"],
    &["replay"],
    &["link"],
    &["link", "next"],
    &["link", "ack"],
    &["link", "nack"],
    &["link", "send"],
    &["explain"],
    &["schema"],
    &["doctor"],
    &["completions"],
];

fn env() -> CliEnv {
    CliEnv::new(env!("CARGO_BIN_EXE_volary"))
}

#[test]
fn help_of_every_command() {
    let env = env();
    for command in COMMANDS {
        let output = env.run(command.iter().chain(&["--help"])).ok();
        assert_eq!(output.stderr, "", "help is data");
        let name = if command.is_empty() {
            "help".to_owned()
        } else {
            format!("help-{}", command.join("-"))
        };
        insta::assert_snapshot!(name, output.stdout);
    }
}

#[test]
fn the_help_names_every_command_and_no_other() {
    let env = env();
    let help = env.run(["--help"]).ok().stdout;
    let listed: Vec<&str> = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.strip_prefix("  ")?.split_whitespace().next())
        .filter(|word| *word != "help")
        .collect();
    let mut known: Vec<&str> = COMMANDS
        .iter()
        .filter(|command| command.len() == 1)
        .map(|command| command[0])
        .collect();
    known.sort_unstable();
    let mut listed = listed;
    listed.sort_unstable();
    assert_eq!(listed, known);
}

#[test]
fn a_wrong_command_line_is_told_on_standard_error() {
    let env = env();
    let cases: &[(&str, &[&str])] = &[
        ("nothing", &[]),
        ("unknown-command", &["upp"]),
        ("unknown-option", &["ps", "--quit"]),
        ("missing-argument", &["send", "{}"]),
        (
            "two-receivers",
            &["send", "--topic", "a", "--to", "b", "{}"],
        ),
        (
            "bad-duration",
            &["send", "--topic", "a", "--wait", "30", "{}"],
        ),
        ("bad-name", &["inspect", "No Such"]),
        ("bad-trace", &["events", "--trace", "xyz"]),
    ];
    for (name, arguments) in cases {
        let output = env.run(*arguments).code(64);
        assert_eq!(output.stdout, "", "{name}");
        insta::assert_snapshot!(format!("usage-{name}"), output.stderr);
    }
}

#[test]
fn errors_have_a_code_a_cause_and_a_hint() {
    let env = env();
    env.write("taken/fleet.yaml", "");
    let cases: &[(&str, i32, &[&str])] = &[
        ("not-running", 69, &["ps"]),
        ("unknown-code", 1, &["explain", "V9999"]),
        ("init-exists", 1, &["init", "taken"]),
        ("not-json", 65, &["send", "--topic", "a", "hello"]),
        ("no-file", 1, &["send", "--topic", "a", "@missing.json"]),
        ("not-linked", 64, &["link", "next"]),
        ("no-journal", 69, &["journal", "verify"]),
    ];
    for (name, code, arguments) in cases {
        let output = env.run(*arguments).code(*code);
        assert_eq!(output.stdout, "", "{name}");
        let said = output
            .stderr
            .replace(&env.root().display().to_string(), "[ROOT]");
        assert!(
            said.starts_with("error[V") && said.contains("hint: "),
            "{said}"
        );
        insta::assert_snapshot!(format!("error-{name}"), said);
    }
}

#[test]
fn with_json_an_error_is_a_document_too() {
    let env = env();
    let output = env.run(["ps", "--json"]).code(69);
    let document: serde_json::Value = serde_json::from_str(&output.stderr).unwrap();
    assert_eq!(document["error"]["code"], "V8003");
    assert!(
        document["error"]["message"]
            .as_str()
            .unwrap()
            .starts_with("no node runs on ")
    );
    assert!(document["error"]["hint"].is_string());
    assert_eq!(output.stdout, "");
}

#[test]
fn every_listed_code_can_be_explained() {
    let env = env();
    let list = env.run(["explain", "--list", "--json"]).ok();
    let pages: Vec<serde_json::Value> = serde_json::from_str(&list.stdout).unwrap();
    assert!(pages.len() > 60, "{}", pages.len());
    for code in ["V8003", "E0101", "V6001", "w0504"] {
        let output = env.run(["explain", code]).ok();
        insta::assert_snapshot!(format!("explain-{}", code.to_lowercase()), output.stdout);
    }
}

#[test]
fn colour_is_only_for_terminals_unless_it_is_asked_for() {
    let env = env();
    let plain = env.run(["ps"]).code(69).stderr;
    assert!(!plain.contains('\u{1b}'), "{plain}");
    let mut forced = env.command(["ps"]);
    forced.env_remove("NO_COLOR").env("CLICOLOR_FORCE", "1");
    let forced = env
        .run_within(std::time::Duration::from_secs(30), forced)
        .code(69)
        .stderr;
    assert!(forced.contains('\u{1b}'), "{forced}");
    let flag = env.run(["ps", "--color", "always"]).code(69).stderr;
    assert!(flag.contains('\u{1b}'), "{flag}");
}
