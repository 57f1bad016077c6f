//! The codes of manifest problems. A code, once published, keeps its meaning; texts may be improved.
//!
//! `E00..` reading, `E01..` shape, `E02..` values, `E03..` what a backend can do, `E04..` between agents,
//! `E05..` environment and secrets. A `W` code warns and never stops anything.

use std::fmt;

use super::problem::{EXIT_BAD_CONFIG, EXIT_UNAVAILABLE, Severity};

/// One kind of problem.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CodeInfo {
    /// The stable code, such as `E0101`.
    pub code: &'static str,
    /// Its name in a few words.
    pub title: &'static str,
    /// How it comes about.
    pub cause: &'static str,
    /// What to do about it.
    pub fix: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// Exit code of the program if there are only problems like it.
    pub exit: u8,
}

impl fmt::Debug for CodeInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code)
    }
}

/// The code called `code`, in any case.
pub fn find(code: &str) -> Option<&'static CodeInfo> {
    ALL.iter()
        .copied()
        .find(|info| info.code.eq_ignore_ascii_case(code))
}

const fn info(
    code: &'static str,
    title: &'static str,
    cause: &'static str,
    fix: &'static str,
) -> CodeInfo {
    CodeInfo {
        code,
        title,
        cause,
        fix,
        severity: Severity::Error,
        exit: EXIT_BAD_CONFIG,
    }
}

macro_rules! codes {
    ($($(#[$kind:ident])? $name:ident = $code:literal $title:literal, $cause:literal, $fix:literal;)*) => {
        $(
            #[doc = concat!("`", $code, "`: ", $title, ".")]
            pub static $name: CodeInfo = $($kind)? (info($code, $title, $cause, $fix));
        )*
        /// Every code, in order.
        pub static ALL: &[&CodeInfo] = &[$(&$name),*];
    };
}

const fn unavailable(info: CodeInfo) -> CodeInfo {
    CodeInfo {
        exit: EXIT_UNAVAILABLE,
        ..info
    }
}

const fn warning(info: CodeInfo) -> CodeInfo {
    CodeInfo {
        severity: Severity::Warning,
        exit: 0,
        ..info
    }
}

codes! {
    UNREADABLE = "E0001" "file cannot be read",
        "A manifest, or a file that a manifest names, does not exist or may not be read.",
        "Correct the path, which is relative to the folder of the manifest that names it, or the file's permissions.";
    NOT_UTF8 = "E0002" "file is not UTF-8",
        "YAML manifests are read as UTF-8. The file holds other bytes, often because it was saved as UTF-16 or Latin-1.",
        "Save the file as UTF-8.";
    TOO_LARGE = "E0003" "file is too large",
        "Manifests and the files they name are read up to 1 MiB.",
        "Move data out of the manifest into files of its own.";
    SYNTAX = "E0004" "not valid YAML",
        "The text does not follow YAML's grammar, so nothing after this place could be read. Other files were still checked.",
        "Look at the marked line and the one before it: a missing colon, quote, bracket or indentation.";
    TAB = "E0005" "tab in indentation",
        "YAML forbids tabs for indentation.",
        "Indent with spaces; most editors can convert.";
    MANY_DOCUMENTS = "E0006" "more than one YAML document",
        "A manifest is one document. A second one, after `---`, would be ignored by many tools and is refused here.",
        "Put each agent in its own agent.yaml and list them in a fleet.yaml.";
    EMPTY = "E0007" "file is empty",
        "The file holds no YAML, or comments only.",
        "Write a manifest; `volary init` makes one to begin with.";
    LIMIT = "E0008" "YAML beyond its limits",
        "The document nests deeper than 64 levels, has more than 50,000 nodes once its aliases are put in, or more than 1,000 entries in one list or mapping. Small files that unfold to huge ones are an attack.",
        "Write the values out, or nest less.";
    YAML_FEATURE = "E0009" "YAML feature that manifests do not use",
        "Merge keys (`<<`), tags (`!x`), keys that are not text and aliases without an anchor are refused: tools disagree about what they mean.",
        "Write the values out. Anchors and aliases for whole values are fine.";
    DOCKER_AGENT = "E0010" "agent.yaml of Docker Agent",
        "The file has the `version:` and `agents:` of Docker Agent (formerly cagent), which shares the file name with Volary but describes something else: models and tools of one program.",
        "Keep that file for Docker, and write a Volary manifest beginning with `apiVersion: agent.dev/v1` elsewhere; to run Docker Agent under Volary, start it as the `command` of such a manifest.";
    NO_MANIFEST = "E0011" "no manifest",
        "The folder has neither fleet.yaml nor agent.yaml.",
        "Name the folder that has one, or make one with `volary init`.";
    NO_FLEET = "E0012" "agents without a fleet",
        "The folder has several agents below it but no fleet.yaml that says which belong together.",
        "Write the fleet.yaml that the hint shows.";
    TWO_MANIFESTS = "E0013" "two manifests of one kind",
        "The folder has the same manifest with both endings, .yaml and .yml, and one of them would be ignored.",
        "Remove or rename one.";
    UNKNOWN_KEY = "E0101" "unknown key",
        "The manifest has a key that Volary does not know at this place. It is refused, since a key with a typing error would otherwise be a setting silently lost.",
        "Correct the key; `volary schema` prints every key with its place.";
    DUPLICATE_KEY = "E0102" "duplicate key",
        "A key stands twice in one mapping, so one of its values would be lost.",
        "Remove or rename one of them.";
    WRONG_TYPE = "E0103" "wrong type",
        "A value is of another type than the key takes: text, number, true or false, list, or mapping.",
        "Write the value in the form that the message names.";
    MISSING_KEY = "E0104" "missing key",
        "A key that is needed is not there.",
        "Add it.";
    API_VERSION = "E0105" "unknown apiVersion",
        "Agents are `agent.dev/v1`, fleets `volary.dev/v1`.",
        "Write the apiVersion that the message names.";
    KIND = "E0106" "unknown kind",
        "Manifests are of kind Agent (agent.yaml) or Fleet (fleet.yaml).",
        "Write the kind that the message names.";
    CHOICE = "E0107" "keys that exclude each other",
        "Exactly one of several keys is allowed, and there are more, or none.",
        "Keep one of the keys that the message names.";
    UNKNOWN_VALUE = "E0108" "unknown value",
        "The key takes one of a few words, and the value is none of them.",
        "Use one of the words that the message lists.";
    NO_VALUE = "E0109" "key without a value",
        "A key stands there with nothing behind it, or with an empty list or text where something is needed.",
        "Give it a value, or remove the key.";
    BAD_NAME = "E0201" "invalid name",
        "Names of agents, fleets, sources, pools and tenants are used as host names, file names and labels: 1 to 63 of a-z, 0-9, '-', '_' and '.', beginning and ending with a letter or digit.",
        "Choose a name like `note-indexer`.";
    BAD_DURATION = "E0202" "invalid duration",
        "A duration is a number with a unit: 500ms, 30s, 5m, 1h30m. A bare number is refused since its unit would be a guess.",
        "Add the unit.";
    BAD_QUANTITY = "E0203" "invalid quantity",
        "CPU is counted in CPUs (`2`, `0.5`) or thousandths (`500m`); memory in bytes with a unit (`512Mi`, `2Gi`, `1GB`).",
        "Write the quantity in that form.";
    BAD_PORT = "E0204" "invalid port",
        "A port is a number from 1 to 65535; in short form `8080`, `80:8080`, `127.0.0.1:80:8080`, each with `/tcp` or `/udp` behind it or not.",
        "Correct the port.";
    OUT_OF_RANGE = "E0205" "number out of range",
        "The number is smaller or larger than the key takes.",
        "Use a number in the range that the message names.";
    BAD_TOPIC = "E0206" "invalid topic",
        "A topic is made of segments of A-Z, a-z, 0-9, '_', '.' and '-', separated by '/', at most 256 bytes.",
        "Choose a topic like `notes/indexed`.";
    BAD_VARIABLE = "E0207" "invalid variable name",
        "Environment variables are called A-Z, a-z, 0-9 and '_', not beginning with a digit.",
        "Rename the variable.";
    BAD_PATH = "E0208" "invalid path",
        "The path does not fit its purpose: mount targets are absolute and not `/`, a folder was expected where a file is, or the other way round.",
        "Correct the path.";
    BAD_ADDRESS = "E0209" "invalid address",
        "An IP address, host name, host with port or URL was expected.",
        "Write it in the form that the message names.";
    BAD_PATTERN = "E0210" "invalid pattern",
        "A glob pattern is empty, absolute, or steps out of its folder with `..`.",
        "Write the pattern relative to the source's folder, such as `**/*.md`.";
    CONTRADICTION = "E0211" "values that contradict each other",
        "Two settings cannot both hold, such as a request above its limit or replicas outside their bounds.",
        "Change one of the two values that the message names.";
    BAD_KEY = "E0212" "invalid public key",
        "A peer is known by its Ed25519 public key, 64 hex digits, which `volary identity peer` prints on that node.",
        "Copy the entry that it prints, whole.";
    NO_BODY = "E0301" "nothing to run",
        "An agent runs exactly one of `command`, `handler`, `image`, or `model` with `instructions`, and this one has none of them.",
        "Add one of them under `spec`.";
    MANY_BODIES = "E0302" "more than one thing to run",
        "An agent runs exactly one of `command`, `handler`, `image`, or `model` with `instructions`.",
        "Keep one of them.";
    NOT_HONOURED = "E0303" "setting that the backend cannot honour",
        "The setting is known, but the chosen backend has no way to make it true, and Volary does not run an agent with less than it asks for.",
        "Remove the setting, or choose a backend that has it with `spec.execution`.";
    #[unavailable]
    NO_BACKEND = "E0304" "backend is not available",
        "This build has no such backend.",
        "Use `execution: process`, or a build that has the backend.";
    #[unavailable]
    NO_FEATURE = "E0305" "feature is not available",
        "The manifest is right, but this build cannot do what it asks for.",
        "Remove the setting, or use a build that has it.";
    #[warning]
    NOT_FULLY_HONOURED = "W0306" "setting without effect here",
        "The setting is known and harmless, but has no effect on the chosen backend.",
        "Nothing has to be done; remove the setting if the warning is unwanted.";
    #[warning]
    PROGRAM_NOT_FOUND = "W0307" "program not found",
        "The program is on none of the folders of PATH where the manifest was checked. Starting it will fail on this machine.",
        "Install the program, or name it by its path.";
    NOT_EXECUTABLE = "E0308" "program may not be executed",
        "The file that is to be run exists but has no execute permission.",
        "Run `chmod +x` on it, or name the interpreter first: `[sh, ./run.sh]`.";
    DUPLICATE_AGENT = "E0401" "duplicate agent",
        "Two agents of a fleet have the same name.",
        "Rename one in its agent.yaml, or give it another `name` in the fleet.yaml.";
    UNKNOWN_AGENT = "E0402" "unknown agent",
        "`dependsOn` names an agent that the fleet does not have.",
        "Correct the name, or add the agent to the fleet.";
    DEPENDENCY_CYCLE = "E0403" "dependency cycle",
        "Agents wait for each other in a circle, so none of them could start first.",
        "Remove one of the dependencies along the path that the message prints.";
    DUPLICATE_PORT = "E0404" "port used twice",
        "Two agents, or two ports of one agent, want the same port of the host.",
        "Give one of them another host port.";
    PORT_TAKEN = "E0405" "port is already in use",
        "Another program on this machine has the port.",
        "Stop that program, or choose another port.";
    UNKNOWN_SOURCE = "E0406" "unknown source",
        "A subscription or output names a source that the fleet does not have.",
        "Add it under `spec.sources` of the fleet.yaml, or correct the name.";
    REPLICA_PORT = "E0407" "one port for several replicas",
        "Every replica of an agent would bind the same fixed port of the host; only the first could.",
        "Use one replica, or remove the port.";
    DUPLICATE_ITEM = "E0408" "duplicate item",
        "A list names the same thing twice where each may stand once.",
        "Remove one.";
    QUOTA = "E0409" "quota exceeded",
        "The fleet asks for more than its own `spec.quota` allows.",
        "Raise the quota or ask for less.";
    OPEN_BIND = "E0410" "operators' server open to other machines",
        "The address can be reached from other machines, and this build does not encrypt the operators' server.",
        "Bind to 127.0.0.1 and use a tunnel, or start with `--insecure` where the network is trusted.";
    OPEN_LINK = "E0411" "link without encryption to another machine",
        "`messaging.insecure` sends messages in the clear and checks nobody, so it is for trying things out within one machine.",
        "Remove `insecure`, or use addresses of this machine such as 127.0.0.1.";
    NO_LINK = "E0412" "peer that can never be reached",
        "A peer without an `address` calls this node, and this node has no `messaging.listen` that it could call.",
        "Give the peer an `address`, or this node a `listen`.";
    #[warning]
    NO_CALLER = "W0413" "nobody may connect",
        "The node listens for other nodes, but has no `peers`: everybody who calls is turned away.",
        "Add the peers that `volary identity peer` prints on the other nodes, or remove `listen`.";
    #[warning]
    HOOK_ORDER = "W0414" "hooks in an unusual order",
        "Hooks run in the order of the list. The order that holds for most is validate, rateLimit, enrich, policy, record: what is no proper message should cost no tokens, what is over the limit no work, policy should see what enrich made, and the record what really goes on.",
        "Put them in that order, unless the other one is meant.";
    #[warning]
    NO_RECEIVER = "W0415" "nobody gets it",
        "What a webhook brings goes to a topic that no agent of this fleet has and no target: its sender is told that there is no route.",
        "Add the topic to the `topics` of an agent, or correct it.";
    SECRET_MISSING = "E0501" "secret not found",
        "A secret that an agent needs is not declared in the fleet, or what its declaration points at does not exist.",
        "Declare it under `spec.secrets` of the fleet.yaml and set the variable or file that the declaration names.";
    CONFIG_MISSING = "E0502" "configuration value not found",
        "A value that an agent takes `from: config` is declared neither in its own `spec.config` nor in the fleet's.",
        "Declare it under `spec.config` of the fleet.yaml.";
    VARIABLE_MISSING = "E0503" "environment variable not set",
        "A value is taken `from: env`, and the variable is not set where Volary runs.",
        "Set the variable, or give a `defaultValue`.";
    #[warning]
    SECRET_IN_ENVIRONMENT = "W0504" "secret in the environment",
        "The secret is handed over as an environment variable, which every process of the agent inherits and can be read by whoever may read the process's environment.",
        "Use `spec.secrets`, which hands it over as a file that only the agent's user can read.";
    #[warning]
    SECRET_IN_TEXT = "W0505" "secret that is not declared as one",
        "A variable whose name speaks of a secret has its value in the manifest, or copied from the environment as ordinary text, and is shown like any other value.",
        "Take it `from: secret`.";
    #[warning]
    SECRET_SHORT = "W0506" "secret too short to be guarded",
        "A secret of fewer than 4 bytes cannot be told from ordinary text, so it cannot be removed from logs and messages.",
        "Use a longer secret.";
    #[warning]
    NOT_EXPANDED = "W0507" "reference that is not expanded",
        "`${NAME}` in a manifest is ordinary text; Volary does not put the variable's value in its place.",
        "Take the value `from: env`; to keep the text as it is, nothing has to be done.";
}
