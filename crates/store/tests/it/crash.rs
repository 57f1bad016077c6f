//! A process killed while it commits: what it acknowledged is there, and the journal proves it.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Arc,
};

use volary_kernel::sign::SigningKey;
use volary_store::{Filter, Key, Seq, SqliteStore, Store as _, journal::verify};

use crate::common::{Numbers, batch, config_at, thorough};

const DIRECTORY: &str = "VOLARY_TEST_CRASH_DIRECTORY";
const KEY: &str = "key.pk8";

/// Not a test by itself: what the process does that is killed. Run by name, with a directory in the environment.
#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "the only way to tell this process what to do"
)]
fn writes_until_it_is_killed() {
    let Some(directory) = std::env::var_os(DIRECTORY) else {
        return;
    };
    let directory = PathBuf::from(directory);
    let key = SigningKey::from_pkcs8(&std::fs::read(directory.join(KEY)).unwrap()).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async move {
        let config = config_at(&directory.join("volary.db"), Arc::new(key));
        let store = SqliteStore::open(config, volary_kernel::SystemClock::shared())
            .await
            .unwrap();
        let round = store.head().borrow().0;
        let write = async |writer: u64| {
            for index in 0.. {
                let key = format!("acked/{round:08}-{writer}-{index:08}");
                let committed = store
                    .commit(batch(&key, &"x".repeat(index % 3000)))
                    .await
                    .unwrap();
                // One write call: a line is there whole or not at all.
                let line = format!("{key} {}\n", committed.seqs[0]);
                std::io::stdout().write_all(line.as_bytes()).unwrap();
                std::io::stdout().flush().unwrap();
            }
        };
        futures_util::future::join_all((0..8).map(write)).await;
    });
}

fn start(directory: &std::path::Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "crash::writes_until_it_is_killed",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(DIRECTORY, directory)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

#[tokio::test]
async fn what_was_acknowledged_survives_kill_9_at_any_moment() {
    let rounds = if thorough() { 50 } else { 8 };
    let directory = tempfile::tempdir().unwrap();
    let key = Arc::new(SigningKey::generate().unwrap());
    std::fs::write(directory.path().join(KEY), key.to_pkcs8().unwrap()).unwrap();
    let database = directory.path().join("volary.db");
    let mut numbers = Numbers(0xdead_beef_1234_5678);
    let mut acked = Vec::new();
    for round in 0..rounds {
        let mut child = start(directory.path());
        let lines = BufReader::new(child.stdout.take().unwrap())
            .lines()
            .map_while(Result::ok);
        let mut left = 1 + numbers.below(if round % 2 == 0 { 30 } else { 2000 });
        for line in lines {
            if let Some((key, seq)) = line
                .rsplit_once(' ')
                .filter(|(key, _)| key.starts_with("acked/"))
            {
                acked.push((key.to_owned(), Seq(seq.parse().unwrap())));
                left = left.saturating_sub(1);
            }
            if left == 0 {
                // What is in the pipe already was acknowledged too, and is read on.
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        let report = verify(&database, &key.public()).unwrap();
        assert!(report.is_ok(), "round {round}: {report:?}");
    }
    let store = SqliteStore::open(
        config_at(&database, key.clone()),
        volary_kernel::SystemClock::shared(),
    )
    .await
    .unwrap();
    assert!(acked.len() > rounds);
    for (key, seq) in acked {
        assert!(
            store.get(&Key::new(&key).unwrap()).await.unwrap().is_some(),
            "{key} was acknowledged"
        );
        let page = store.read(seq, &Filter::all(), 1).await.unwrap();
        assert_eq!(page.rows[0].seq, seq);
    }
    store.close().await;
    assert!(verify(&database, &key.public()).unwrap().is_ok());
}
