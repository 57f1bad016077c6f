//! For tests only: a program that can become an init, and a small node to be killed.
//!
//! - `volary-test-init __init …` is the starter of replicas.
//! - `volary-test-init node STATE COUNT MARKER ISOLATION SCRIPT` starts COUNT replicas of a shell script, says
//!   `ready`, and waits to be killed.
//! - `volary-test-init sweep STATE` does what a next node does with what the killed one left, and ends.

use std::io::Write;

use volary_deploy::backend::process::{
    InitCommand, ProcessBackend, ProcessConfig, Shared, init_main,
};
use volary_deploy::backend::{Backend, Isolation, ProgramSpec, ReplicaId, ReplicaSpec};
use volary_kernel::clock::SystemClock;
use volary_kernel::id::Name;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("__init") => init_main(),
        Some("node") => node(&args[2..]),
        Some("sweep") => node(&[args[2].as_str(), "0", "sweep", "none", ""].map(str::to_owned)),
        _ => {
            Err("usage: volary-test-init __init | node STATE COUNT MARKER ISOLATION SCRIPT".into())
        }
    }
}

fn node(args: &[String]) -> Result<(), Box<dyn std::error::Error>> {
    let [state, count, marker, isolation, script] = args else {
        return Err("five arguments".into());
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let init = InitCommand {
            program: "/proc/self/exe".into(),
            args: vec!["__init".to_owned(), marker.clone()],
        };
        let shared = Shared {
            clock: SystemClock::shared(),
            redactor: Default::default(),
            metrics: Default::default(),
            tasks: Default::default(),
        };
        let backend = ProcessBackend::new(ProcessConfig::new(init, state), shared).await?;
        backend.recover().await?;
        for ordinal in 0..count.parse()? {
            let mut program =
                ProgramSpec::new(["sh", "-c", script], "/").with_env("MARKER", marker.as_str());
            if isolation == "none" {
                program.isolation = Isolation::None;
            }
            let id = ReplicaId::new(Name::new("victim")?, ordinal);
            backend.start(&ReplicaSpec::new(id, program)).await?;
            // Progress, so that a test may kill in the middle.
            writeln!(std::io::stdout(), "started {ordinal}")?;
        }
        writeln!(std::io::stdout(), "ready")?;
        if marker == "sweep" {
            backend.close().await;
            return Ok(());
        }
        std::future::pending::<()>().await;
        Ok(())
    })
}
