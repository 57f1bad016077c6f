//! `idle.agents100`: a node with 100 process agents at rest, measured from outside by what `/proc` says.
//!
//! Counted is everything of ours: the node and the helper that each replica needs. The agents' own processes (`sleep`) are
//! what the user asked for; their memory is reported beside ours and not counted. Memory is proportional (PSS), because the
//! helpers share their program's pages with the node.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use volary_kernel::clock::{Clock as _, SystemClock};
use volary_testkit::CliEnv;
use volary_testkit::process::{self, eventually};

use crate::figure::{Figure, rounded};
use crate::rounds::{ROUNDS, Samples};
use crate::{Failure, Plan, tell};

const AGENTS: usize = 100;
/// Allowance of memory, in MiB.
const MEMORY: f64 = 40.0;
/// Allowance of processor time, as a share of one processor in percent.
const PROCESSOR: f64 = 1.0;
/// How long the fleet may take until all of it is ready.
const PATIENCE: Duration = Duration::from_secs(60);

pub fn measure(plan: &Plan) -> Result<Vec<Figure>, Failure> {
    let env = CliEnv::new(program()?);
    write_fleet(&env);
    let up = env.start(["up", "fleet", "-d"]);
    let result = measure_fleet(&env, plan);
    let _ = env.run(["down"]);
    if result.is_err() {
        tell(&format!("{}{}", up.stdout(), up.stderr()));
    }
    result
}

/// The command, built now unless it is fresh: this program and it are built apart.
fn program() -> Result<PathBuf, Failure> {
    let own = std::env::current_exe()?;
    let program = own.with_file_name("volary");
    let mut build = Command::new("cargo");
    build.args(["build", "--quiet", "--package", "volary-cli"]);
    build.current_dir(env!("CARGO_MANIFEST_DIR"));
    if !cfg!(debug_assertions) {
        build.arg("--release");
    }
    tell("idle: building the volary command");
    let built = build.status()?.success();
    if built && program.is_file() {
        return Ok(program);
    }
    Err(format!("{} is not there and could not be built", program.display()).into())
}

fn write_fleet(env: &CliEnv) {
    let mut agents = String::new();
    for number in 0..AGENTS {
        let name = format!("agent{number:03}");
        let manifest = format!(
            "apiVersion: agent.dev/v1\nkind: Agent\nmetadata:\n  name: {name}\n  version: 1.0.0\n\
             spec:\n  command: [sleep, infinity]\n"
        );
        env.write(format!("fleet/{name}/agent.yaml"), manifest);
        let _ = writeln!(agents, "    - ./{name}");
    }
    let fleet = format!(
        "apiVersion: volary.dev/v1\nkind: Fleet\nmetadata:\n  name: idle\nspec:\n  agents:\n{agents}"
    );
    env.write("fleet/fleet.yaml", fleet);
}

fn measure_fleet(env: &CliEnv, plan: &Plan) -> Result<Vec<Figure>, Failure> {
    let ready = eventually(PATIENCE, || ready(env) == AGENTS);
    if !ready {
        return Err(format!("{} of {AGENTS} agents were ready in time", self::ready(env)).into());
    }
    let window = Duration::from_secs(if plan.quick { 3 } else { 10 });
    // Starting is over, but its last writes and timers are not.
    wait(window);
    let (ours, theirs) = of_fleet(env)?;
    let (mut memory, mut processor) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (start, used) = (SystemClock.mono(), processor_time(&ours));
        wait(window);
        let (passed, now) = (SystemClock.mono() - start, processor_time(&ours));
        processor.push((now - used).as_secs_f64() / passed.as_secs_f64() * 100.0);
        memory.push(mebibytes(&ours));
    }
    let memory: Samples = memory.into_iter().collect();
    // What uses less than a tick in a window still has a cost: half a tick, so that the ratio is a number.
    let least = 0.5 / rustix::param::clock_ticks_per_second() as f64 / window.as_secs_f64() * 100.0;
    let processor: Samples = processor
        .into_iter()
        .map(|share| share.max(least))
        .collect();
    Ok(vec![
        Figure::cost("idle.agents100.pss", "MiB", MEMORY, &memory)
            .with("processes", ours.len())
            .with("agents_pss", rounded(mebibytes(&theirs))),
        Figure::cost("idle.agents100.cpu", "%", PROCESSOR, &processor)
            .with("window_seconds", window.as_secs()),
    ])
}

/// Agents that are ready now.
fn ready(env: &CliEnv) -> usize {
    let listing = env.run(["ps", "--json"]);
    let replicas: Vec<serde_json::Value> =
        serde_json::from_str(&listing.stdout).unwrap_or_default();
    replicas
        .iter()
        .filter(|replica| replica["ready"] == true)
        .count()
}

/// The processes of the fleet: ours, and those of the agents. Helpers carry nothing that names the fleet, so they are found
/// below the node.
fn of_fleet(env: &CliEnv) -> Result<(Vec<u32>, Vec<u32>), Failure> {
    let found: BTreeSet<u32> = env
        .survivors()
        .into_iter()
        .flat_map(process::descendants)
        .collect();
    let (theirs, ours): (Vec<u32>, Vec<u32>) = found
        .into_iter()
        .partition(|pid| process::name(*pid) == "sleep");
    // Each agent has at least one helper: its namespace's first process.
    if theirs.len() == AGENTS && ours.len() > AGENTS {
        return Ok((ours, theirs));
    }
    let (agents, rest) = (theirs.len(), ours.len());
    let shown = env.survivors_shown();
    Err(format!("{agents} agents and {rest} of ours run:\n{shown}").into())
}

fn mebibytes(pids: &[u32]) -> f64 {
    let bytes: u64 = pids
        .iter()
        .filter_map(|pid| process::proportional_memory(*pid))
        .sum();
    bytes as f64 / f64::from(1 << 20)
}

fn processor_time(pids: &[u32]) -> Duration {
    pids.iter()
        .filter_map(|pid| process::processor_time(*pid))
        .sum()
}

/// Lets time pass: rest is what is measured.
fn wait(time: Duration) {
    let _ = eventually(time, || false);
}
