//! Two network namespaces with a cable between them, which can be cut in several ways. Gone when dropped.

use std::process::Command;

/// The two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    West,
    East,
}

/// How the cable is cut.
#[derive(Debug, Clone, Copy)]
pub enum Cut {
    /// The interface is down: sends fail at once, or queue.
    Down,
    /// Packets vanish: nobody hears anything.
    BlackHole,
    /// Connections are reset.
    Reset,
}

/// Names begin with it, then the process that made them, so that what a killed test left is known.
const PREFIX: &str = "volary-t";

/// See the module.
pub struct Wires {
    process: u32,
}

impl Wires {
    /// Makes both namespaces and the cable.
    pub fn new() -> Self {
        sweep();
        let wires = Self {
            process: std::process::id(),
        };
        for end in [End::West, End::East] {
            ip(&["netns", "add", &wires.namespace(end)]);
        }
        let (west, east) = (wires.device(End::West), wires.device(End::East));
        ip(&["link", "add", &west, "type", "veth", "peer", "name", &east]);
        for end in [End::West, End::East] {
            let (namespace, device) = (wires.namespace(end), wires.device(end));
            ip(&["link", "set", &device, "netns", &namespace]);
            let address = format!("{}/24", wires.address(end));
            ip(&["-n", &namespace, "addr", "add", &address, "dev", &device]);
            ip(&["-n", &namespace, "link", "set", "lo", "up"]);
            ip(&["-n", &namespace, "link", "set", &device, "up"]);
        }
        wires
    }

    /// The namespace of an end.
    pub fn namespace(&self, end: End) -> String {
        let side = match end {
            End::West => "w",
            End::East => "e",
        };
        format!("{PREFIX}{}-{side}", self.process)
    }

    /// At most 15 characters.
    fn device(&self, end: End) -> String {
        let side = match end {
            End::West => "w",
            End::East => "e",
        };
        format!("vt{}{side}", self.process)
    }

    /// Where an end is reached from the other.
    pub fn address(&self, end: End) -> &'static str {
        match end {
            End::West => "10.213.77.1",
            End::East => "10.213.77.2",
        }
    }

    /// Cuts the cable.
    pub fn cut(&self, cut: Cut) {
        match cut {
            Cut::Down => self.switch("down"),
            Cut::BlackHole => self.rule("-A", &["-j", "DROP"]),
            Cut::Reset => self.rule(
                "-A",
                &["-p", "tcp", "-j", "REJECT", "--reject-with", "tcp-reset"],
            ),
        }
    }

    /// Mends what [`Wires::cut`] did.
    pub fn mend(&self, cut: Cut) {
        match cut {
            Cut::Down => self.switch("up"),
            Cut::BlackHole => self.rule("-D", &["-j", "DROP"]),
            Cut::Reset => self.rule(
                "-D",
                &["-p", "tcp", "-j", "REJECT", "--reject-with", "tcp-reset"],
            ),
        }
    }

    fn switch(&self, way: &str) {
        let (namespace, device) = (self.namespace(End::West), self.device(End::West));
        ip(&["-n", &namespace, "link", "set", &device, way]);
    }

    fn rule(&self, what: &str, rule: &[&str]) {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.namespace(End::East)))
            .args([
                "iptables",
                "-w",
                what,
                "INPUT",
                "-i",
                &self.device(End::East),
            ])
            .args(rule);
        run(command);
    }
}

impl Drop for Wires {
    fn drop(&mut self) {
        for end in [End::West, End::East] {
            let deleted = Command::new("ip")
                .args(["netns", "del", &self.namespace(end)])
                .status();
            if !deleted.is_ok_and(|status| status.success()) && !std::thread::panicking() {
                panic!("network namespace {} is left", self.namespace(end));
            }
        }
    }
}

/// Removes what tests left that were killed.
fn sweep() {
    let list = Command::new("ip").args(["netns", "list"]).output();
    let list = list.unwrap_or_else(|error| panic!("{NEEDED}: cannot run `ip`: {error}"));
    for line in String::from_utf8_lossy(&list.stdout).lines() {
        let name = line.split_whitespace().next().unwrap_or_default();
        let process = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next());
        let gone = process
            .and_then(|process| process.parse().ok())
            .is_some_and(|process| !volary_testkit::process::is_alive(process));
        if gone {
            let _another_test_did_it = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

const NEEDED: &str = "this test makes network namespaces, so it needs root, iproute2, iptables and util-linux \
                      (`.ci/run tools` installs them)";

fn ip(arguments: &[&str]) {
    let mut command = Command::new("ip");
    command.args(arguments);
    run(command);
}

fn run(mut command: Command) {
    let output = command.output();
    let output = output.unwrap_or_else(|error| panic!("{NEEDED}: cannot run {command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{NEEDED}: {command:?}: {said}");
}
