//! A fleet in a temporary folder, and a client that talks to its node without going through our own.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};
use volary_testkit::{CliEnv, Output, process::eventually};

/// How long a fleet may take to become ready or to stop.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A fleet and the environment it lives in.
pub struct Fleet {
    pub env: CliEnv,
    /// The network namespace that its commands run in, if it is not the test's own.
    pub netns: Option<String>,
}

/// One agent of a test fleet.
pub struct Agent<'a> {
    pub name: &'a str,
    /// The lines below `spec:`, without indentation.
    pub spec: &'a str,
    /// The text of `run.sh`.
    pub script: &'a str,
}

impl Fleet {
    /// Writes a fleet with a source `notes` and these agents; `extra` goes below the fleet's `spec:`.
    pub fn new(agents: &[Agent<'_>], extra: &str) -> Self {
        Self::named("e2e", agents, extra)
    }

    /// The same under another name.
    pub fn named(name: &str, agents: &[Agent<'_>], extra: &str) -> Self {
        let env = CliEnv::new(env!("CARGO_BIN_EXE_volary"));
        std::fs::create_dir_all(env.root().join("fleet/notes")).unwrap();
        for agent in agents {
            env.write(
                format!("fleet/{}/agent.yaml", agent.name),
                format!(
                    "apiVersion: agent.dev/v1\nkind: Agent\nmetadata:\n  name: {}\nspec:\n{}",
                    agent.name,
                    indent(agent.spec, 2)
                ),
            );
            env.write(format!("fleet/{}/run.sh", agent.name), agent.script);
        }
        let names: Vec<&str> = agents.iter().map(|agent| agent.name).collect();
        let fleet = Self { env, netns: None };
        fleet.manifest(name, &names, extra);
        fleet
    }

    /// Writes its fleet.yaml anew.
    pub fn manifest(&self, name: &str, agents: &[&str], extra: &str) {
        let list: String = agents
            .iter()
            .map(|agent| format!("    - ./{agent}\n"))
            .collect();
        self.env.write(
            "fleet/fleet.yaml",
            format!(
                "apiVersion: volary.dev/v1\nkind: Fleet\nmetadata:\n  name: {name}\nspec:\n  agents:\n{list}  sources:\n    \
                 notes: {{type: files, path: ./notes}}\n{}",
                indent(extra, 2)
            ),
        );
    }

    /// A command of the program, where this fleet is.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let plain = self.env.command(arguments);
        let Some(netns) = &self.netns else {
            return plain;
        };
        let mut inside = Command::new("nsenter");
        inside
            .arg(format!("--net=/run/netns/{netns}"))
            .arg(plain.get_program())
            .args(plain.get_args())
            .env_clear()
            .current_dir(self.env.root())
            .stdin(Stdio::null());
        let set = plain.get_envs();
        inside.envs(set.filter_map(|(name, value)| Some((name, value?))));
        inside
    }

    /// Runs it to its end.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.env.run_within(PATIENCE, self.command(arguments))
    }

    /// Starts the node in the background and waits until everything is ready.
    pub fn up(&self) {
        let up = self.run(&["up", "fleet", "-d"]);
        assert_eq!(
            up.code,
            Some(0),
            "stdout:\n{}\nstderr:\n{}\nlog:\n{}",
            up.stdout,
            up.stderr,
            self.node_log()
        );
    }

    /// Stops the node.
    pub fn down(&self) {
        let _stopped = self.run(&["down", "-C", "fleet"]).ok();
    }

    /// What the node wrote to its log.
    pub fn node_log(&self) -> String {
        std::fs::read_to_string(self.env.state().join("logs/node.log")).unwrap_or_default()
    }

    /// The node's address card.
    pub fn card(&self) -> Value {
        serde_json::from_str(&self.env.read("state/node.json")).unwrap()
    }

    /// The node's process id.
    pub fn pid(&self) -> u32 {
        u32::try_from(self.card()["pid"].as_u64().unwrap()).unwrap()
    }

    /// The operators' API.
    pub fn api(&self) -> Api {
        let address = self.card()["ops"].as_str().unwrap().parse().unwrap();
        Api {
            address,
            token: self.env.read("state/operator.token").trim().to_owned(),
        }
    }

    /// The journal so far.
    pub fn events(&self) -> Vec<Value> {
        let output = self.run(&["events", "--json", "-C", "fleet"]).ok();
        output
            .stdout
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// Waits until the journal holds what `wanted` looks for, and returns the journal.
    pub fn await_events(&self, what: &str, mut wanted: impl FnMut(&[Value]) -> bool) -> Vec<Value> {
        let mut events = Vec::new();
        let found = eventually(PATIENCE, || {
            events = self.events();
            wanted(&events)
        });
        let tail: Vec<_> = events.iter().rev().take(30).map(Value::to_string).collect();
        assert!(
            found,
            "no {what} in\n{}\nlog:\n{}",
            tail.join("\n"),
            self.node_log()
        );
        events
    }

    /// Whether `journal verify` finds nothing wrong; its output either way.
    pub fn verify(&self) -> (bool, String) {
        // A long run leaves millions of entries.
        let limit = if full() { PATIENCE * 60 } else { PATIENCE };
        let verify = self.command(&["journal", "verify", "-C", "fleet"]);
        let output = self.env.run_within(limit, verify);
        (
            output.code == Some(0),
            format!("{}{}", output.stdout, output.stderr),
        )
    }

    /// A path in the fleet's folder.
    pub fn path(&self, path: &str) -> PathBuf {
        self.env.root().join("fleet").join(path)
    }
}

fn indent(text: &str, by: usize) -> String {
    let pad = " ".repeat(by);
    text.lines().map(|line| format!("{pad}{line}\n")).collect()
}

/// Events of a kind.
pub fn of_kind<'a>(events: &'a [Value], kind: &str) -> Vec<&'a Value> {
    events
        .iter()
        .filter(|event| event["kind"] == kind)
        .collect()
}

/// A client of the operators' API over a bare socket.
#[derive(Debug, Clone)]
pub struct Api {
    address: SocketAddr,
    token: String,
}

impl Api {
    /// The same with another token.
    pub fn with_token(&self, token: &str) -> Self {
        Self {
            token: token.to_owned(),
            ..self.clone()
        }
    }

    /// Sends `{"n": n}` to a topic; whether the node said that it has it.
    pub fn send(&self, topic: &str, n: u64) -> bool {
        let body = json!({"topic": topic, "payload": {"n": n}});
        let Some((status, reply)) = self.request("POST", "/v1/messages", &body.to_string()) else {
            return false;
        };
        let reply: Value = serde_json::from_str(&reply).unwrap_or_default();
        status == 200 && (reply["admission"] == "queued" || reply["admission"] == "delivered")
    }

    /// One request on a connection of its own; `None` when the node is gone before it answered in full.
    pub fn request(&self, method: &str, path: &str, body: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect_timeout(&self.address, Duration::from_secs(2)).ok()?;
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .ok()?;
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{body}",
            self.address,
            self.token,
            body.len()
        );
        stream.write_all(request.as_bytes()).ok()?;
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply).ok()?;
        let reply = String::from_utf8_lossy(&reply).into_owned();
        let (head, body) = reply.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length")
                .then(|| value.trim().parse::<usize>().ok())?
        });
        // A reply that was cut off is no reply.
        match length {
            Some(length) if body.len() < length => None,
            _ => Some((status, body.to_owned())),
        }
    }
}

/// Whether the tests run at full size.
#[expect(
    clippy::disallowed_methods,
    reason = "tests are told their size by the environment"
)]
pub fn full() -> bool {
    std::env::var_os("VOLARY_TEST_FULL").is_some_and(|value| value == "1")
}
