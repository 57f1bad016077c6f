//! Several processes that share one limit over one SQLite file, some of which are killed.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use volary_kernel::{
    Clock as _, Name, SystemClock, Tenant, metric::Metrics, sign::SigningKey, task::Supervisor,
    testing::eventually,
};
use volary_messaging::{
    AgentId, Message, RateLimiter, RateLimiterConfig, Sender, TokenBucketConfig, rate::Way,
};
use volary_store::{SharedStore, Sharing, SqliteConfig, SqliteStore, journal::verify};

const DIRECTORY: &str = "VOLARY_TEST_RATE_DIRECTORY";
const SECONDS: &str = "VOLARY_TEST_RATE_SECONDS";
const KEY: &str = "key.pk8";
const PROCESSES: usize = 8;
const CAPACITY: f64 = 200.0;
const REFILL: f64 = 1000.0;

#[expect(
    clippy::disallowed_methods,
    reason = "tests are told by the environment what to do"
)]
fn told(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn machine_nanos() -> u64 {
    SystemClock.machine().unwrap().at.as_nanos()
}

async fn open(directory: &Path, key: SigningKey) -> SqliteStore {
    let node = Name::new("node").unwrap();
    let path = directory.join("volary.db");
    let mut config = SqliteConfig::new(path, node, Arc::new(key));
    config.sharing = Sharing::Shared;
    SqliteStore::open(config, SystemClock::shared())
        .await
        .unwrap()
}

/// Not a test by itself: one of the processes that share a limit. It sends as fast as it may and prints when each passed.
#[test]
fn sends_as_fast_as_it_may() {
    let (Some(directory), Some(seconds)) = (told(DIRECTORY), told(SECONDS)) else {
        return;
    };
    let directory = PathBuf::from(directory);
    let key = SigningKey::from_pkcs8(&std::fs::read(directory.join(KEY)).unwrap()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async move {
        let store = open(&directory, key).await;
        let shared: SharedStore = Arc::new(store.clone());
        let tasks = Supervisor::new();
        let config = RateLimiterConfig {
            global: Some(TokenBucketConfig::new(CAPACITY, REFILL).unwrap()),
            ..RateLimiterConfig::default()
        };
        let name = Name::new("all").unwrap();
        let limiter =
            RateLimiter::shared(&shared, &name, config, &tasks, &Metrics::default()).unwrap();
        let sender = Sender::new(AgentId::from_bytes([1; 32]), name, Tenant::default());
        let message = Message::builder(sender).broadcast();
        let message = message.build(SystemClock.wall()).unwrap();
        let end = SystemClock.mono() + Duration::from_secs(seconds.parse().unwrap());
        loop {
            let mut at = 0;
            let passes = || {
                // The time is taken before: what is printed is never later than what happened.
                at = machine_nanos();
                let now = SystemClock.mono();
                limiter.check_take(&message, Way::Egress, now).is_ok()
            };
            if !eventually(end - SystemClock.mono(), passes).await {
                break;
            }
            let line = format!("passed {at}\n");
            std::io::stdout().write_all(line.as_bytes()).unwrap();
            tokio::task::yield_now().await;
        }
        tasks.drain(Duration::from_secs(5)).await;
        store.close().await;
    });
}

fn start(directory: &Path, seconds: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "rate_processes::sends_as_fast_as_it_may",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(DIRECTORY, directory)
        .env(SECONDS, seconds.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

fn follow(mut child: Child, kill_after: Option<usize>) -> Vec<u64> {
    let lines = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok);
    let mut passed = Vec::new();
    for line in lines {
        if let Some(at) = line.strip_prefix("passed ") {
            passed.push(at.parse().unwrap());
            if Some(passed.len()) == kill_after {
                child.kill().unwrap();
            }
        }
    }
    child.wait().unwrap();
    passed
}

struct Outcome {
    passed: usize,
    span: f64,
    /// The most by which any span had more than the quota says; not above 0.
    worst: f64,
}

fn run(seconds: u64, kills: &[usize]) -> Outcome {
    let directory = tempfile::tempdir().unwrap();
    let key = SigningKey::generate().unwrap();
    std::fs::write(directory.path().join(KEY), key.to_pkcs8().unwrap()).unwrap();
    let followers: Vec<_> = (0..PROCESSES)
        .map(|index| {
            let (child, kill) = (start(directory.path(), seconds), kills.get(index).copied());
            std::thread::spawn(move || follow(child, kill))
        })
        .collect();
    let mut passed = Vec::new();
    for follower in followers {
        passed.extend(follower.join().unwrap());
    }
    let report = verify(&directory.path().join("volary.db"), &key.public()).unwrap();
    assert!(report.is_ok(), "{report:?}");
    passed.sort_unstable();
    let seconds_of = |at: u64| (at - passed[0]) as f64 / 1e9;
    let (mut least, mut worst) = (f64::INFINITY, f64::NEG_INFINITY);
    for (index, at) in passed.iter().enumerate() {
        // Passed from any earlier one up to this one, less what that span allows.
        least = least.min(index as f64 - REFILL * seconds_of(*at));
        worst = f64::max(
            worst,
            (index + 1) as f64 - REFILL * seconds_of(*at) - least - CAPACITY,
        );
    }
    Outcome {
        passed: passed.len(),
        span: seconds_of(*passed.last().unwrap()),
        worst,
    }
}

fn length() -> u64 {
    if told("VOLARY_TEST_FULL").is_some() {
        20
    } else {
        4
    }
}

/// D9 (rate): eight processes under demand together pass what one limiter would: no span has more than capacity + rate ×
/// time, and all of it at least 0.95 of that. The long form (`VOLARY_TEST_FULL=1`) runs 20 s.
#[test]
fn eight_processes_never_pass_more_than_one_would_and_nearly_as_much() {
    let Outcome {
        passed,
        span,
        worst,
    } = run(length(), &[]);
    let most = CAPACITY + REFILL * span;
    let share = passed as f64 / most;
    let words =
        format!("{passed} passed in {span:.2} s, {share:.4} of {most:.0}, worst span {worst:.1}");
    std::io::stderr().write_all(words.as_bytes()).unwrap();
    // A tick of the clock between the printed time and the check.
    assert!(worst <= 1.0, "{words}");
    assert!(share >= 0.95, "{words}");
}

/// The same while some of them are killed: what they had borrowed is lost, never minted again.
#[test]
fn killed_processes_lose_what_they_borrowed_and_mint_nothing() {
    let Outcome {
        passed,
        span,
        worst,
    } = run(length(), &[1, 40, 150, 300]);
    let words = format!("{passed} passed in {span:.2} s, worst span {worst:.1}");
    std::io::stderr().write_all(words.as_bytes()).unwrap();
    assert!(worst <= 1.0, "{words}");
    assert!(passed as f64 >= 0.8 * REFILL * span, "{words}");
}
