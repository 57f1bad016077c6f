//! Several handles, and several processes, on one file.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::watch as latest;
use volary_kernel::{Name, SharedClock, SystemClock, sign::SigningKey, testing::eventually};
use volary_store::{
    Batch, ChangeKind, Committed, Expect, Filter, JournalPage, Key, Queues, Record, Seq, Sharing,
    SqliteConfig, SqliteStore, Store, StoreError, Watch, WatchEvent,
    conformance::{self, Fixture},
    journal::verify,
};

use crate::common::{Bench, Numbers, batch, config_at, entry, thorough, write};

const DIRECTORY: &str = "VOLARY_TEST_SHARED_DIRECTORY";
const KEY: &str = "key.pk8";
const COUNTER: &str = "counter";

fn shared(bench: &Bench) -> SqliteConfig {
    SqliteConfig {
        sharing: Sharing::Shared,
        ..bench.config()
    }
}

async fn open(bench: &Bench) -> SqliteStore {
    bench.open_with(shared(bench)).await.unwrap()
}

/// One store over two handles of the same file, used in turns.
struct Both {
    handles: [SqliteStore; 2],
    calls: AtomicUsize,
}

impl Both {
    fn next(&self) -> &SqliteStore {
        &self.handles[self.calls.fetch_add(1, Ordering::Relaxed) % 2]
    }
}

#[async_trait]
impl Store for Both {
    /// Returns when both handles know of it: that a head is a little late elsewhere has a test of its own.
    async fn commit(&self, batch: Batch) -> Result<Committed, StoreError> {
        let committed = self.next().commit(batch).await?;
        if let Some(last) = committed.seqs.last() {
            for handle in &self.handles {
                let mut head = handle.head();
                let known = head.wait_for(|head| head >= last).await;
                known.map_err(|_| StoreError::Closed)?;
            }
        }
        Ok(committed)
    }

    async fn get_many(&self, keys: &[Key]) -> Result<Vec<Option<Record>>, StoreError> {
        self.next().get_many(keys).await
    }

    async fn scan(
        &self,
        prefix: &str,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Vec<Record>, StoreError> {
        self.next().scan(prefix, after, limit).await
    }

    async fn read(
        &self,
        from: Seq,
        filter: &Filter,
        limit: usize,
    ) -> Result<JournalPage, StoreError> {
        self.next().read(from, filter, limit).await
    }

    fn watch(&self, prefix: &str) -> Watch {
        self.next().watch(prefix)
    }

    async fn own_queues(&self) -> Result<(), StoreError> {
        self.handles[0].own_queues().await
    }

    fn head(&self) -> latest::Receiver<Seq> {
        self.next().head()
    }

    fn node(&self) -> &Name {
        self.handles[0].node()
    }

    fn clock(&self) -> &SharedClock {
        self.handles[0].clock()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shared_store_conforms_over_one_handle_and_over_two_and_leaves_nothing_behind() {
    let bench = Bench::new();
    let [one, two] = [open(&bench).await, open(&bench).await];
    let clock = bench.clock.clone();
    let store = Arc::new(one.clone());
    conformance::all(&Fixture {
        store,
        clock: clock.clone(),
    })
    .await;
    one.close().await;
    let report = bench.verify();
    assert!(report.is_ok(), "beside the other: {report:?}");
    two.close().await;
    let bench = Bench::new();
    let handles = [open(&bench).await, open(&bench).await];
    let store = Arc::new(Both {
        handles: handles.clone(),
        calls: AtomicUsize::new(0),
    });
    let clock = bench.clock.clone();
    conformance::two_handles(&Fixture { store, clock }).await;
    for store in handles {
        store.close().await;
    }
    let report = bench.verify();
    assert!(report.is_ok() && report.entries > 100, "{report:?}");
    let files = std::fs::read_dir(bench.dir.path()).unwrap();
    let mut left: Vec<_> = files.map(|file| file.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["volary.db", "volary.db.head"]);
}

#[tokio::test]
async fn of_two_handles_that_expect_the_same_one_wins() {
    let bench = Bench::new();
    let [one, two] = [open(&bench).await, open(&bench).await];
    let key = Key::new("race").unwrap();
    for round in 0..50 {
        let put = |store: &SqliteStore, expect| {
            let mut tx = Batch::new();
            tx.put(key.clone(), round.to_string(), expect);
            let store = store.clone();
            async move { store.commit(tx).await }
        };
        let found = one.get(&key).await.unwrap();
        let expect = found.map_or(Expect::Absent, |record| Expect::Version(record.version));
        let ends = futures_util::future::join(put(&one, expect), put(&two, expect)).await;
        let won = usize::from(ends.0.is_ok()) + usize::from(ends.1.is_ok());
        assert_eq!(won, 1, "{ends:?}");
        for end in [ends.0, ends.1] {
            assert!(matches!(end, Ok(_) | Err(StoreError::Conflict { .. })));
        }
    }
}

#[tokio::test]
async fn exclusive_and_shared_openers_do_not_mix() {
    let bench = Bench::new();
    let exclusive = bench.open().await;
    let end = bench.open_with(shared(&bench)).await.map(drop);
    let Err(StoreError::Mixed { pid, wanted, .. }) = &end else {
        panic!("{end:?}")
    };
    assert_eq!((*pid, *wanted), (Some(std::process::id()), "shared"));
    let text = end.unwrap_err().to_string();
    assert!(text.contains("open in exclusive mode"), "{text}");
    exclusive.close().await;
    let one = open(&bench).await;
    let text = bench.open_with(bench.config()).await.map(drop).unwrap_err();
    assert!(text.to_string().contains("open in shared mode"), "{text}");
    let two = open(&bench).await;
    one.close().await;
    assert!(bench.open_with(bench.config()).await.is_err());
    two.close().await;
    bench.open().await.close().await;
}

#[tokio::test]
async fn queues_of_a_shared_store_stay_with_the_first_that_opens_them() {
    let bench = Bench::new();
    let [one, two] = [open(&bench).await, open(&bench).await];
    let queues = Queues::open(Arc::new(one.clone())).await.unwrap();
    let again = Queues::open(Arc::new(one.clone())).await;
    assert!(again.is_ok(), "the same process may");
    let end = Queues::open(Arc::new(two.clone())).await.map(drop);
    let text = end.unwrap_err().to_string();
    assert!(text.contains("run by another process"), "{text}");
    drop(queues);
    one.close().await;
    assert!(Queues::open(Arc::new(two.clone())).await.is_ok());
    two.close().await;
}

#[tokio::test]
async fn what_others_commit_is_watched_and_followed() {
    let bench = Bench::new();
    let [one, two] = [open(&bench).await, open(&bench).await];
    let (mut watch, mut head) = (one.watch("seen/"), one.head());
    write(&two, "seen/a", "1").await.unwrap();
    write(&two, "other", "1").await.unwrap();
    let mut tx = Batch::new();
    tx.delete(Key::new("seen/a").unwrap(), Expect::Any);
    let deleted = two.commit(tx).await.unwrap();
    let mut changes = Vec::new();
    for _ in 0..2 {
        let event = tokio::time::timeout(Duration::from_secs(10), watch.next());
        let Ok(Some(WatchEvent::Changed(change))) = event.await else {
            panic!("after {changes:?}")
        };
        changes.push((change.key.to_string(), change.kind));
        if change.kind == ChangeKind::Delete {
            assert_eq!(change.version, deleted.version);
        }
    }
    let wanted = [ChangeKind::Put, ChangeKind::Delete].map(|kind| ("seen/a".to_owned(), kind));
    assert_eq!(changes, wanted);
    let last = *two.head().borrow();
    let followed = head.wait_for(|seq| *seq == last);
    tokio::time::timeout(Duration::from_secs(10), followed)
        .await
        .unwrap()
        .unwrap();
    // One's own commits are told once, and in between those of others.
    write(&one, "seen/b", "1").await.unwrap();
    write(&two, "seen/c", "1").await.unwrap();
    for wanted in ["seen/b", "seen/c"] {
        let event = tokio::time::timeout(Duration::from_secs(10), watch.next());
        let Ok(Some(WatchEvent::Changed(change))) = event.await else {
            panic!("{wanted}")
        };
        assert_eq!(change.key.as_str(), wanted);
    }
    assert_eq!(watch.try_next(), None);
}

#[tokio::test]
async fn one_that_missed_too_much_is_told_to_scan_again() {
    let bench = Bench::new();
    let [one, two] = [open(&bench).await, open(&bench).await];
    let mut watch = one.watch("many/");
    let mut tx = Batch::new();
    for index in 0..5000 {
        tx.put(
            Key::new(format!("many/{index:060}")).unwrap(),
            "x",
            Expect::Any,
        );
    }
    two.commit(tx).await.unwrap();
    let event = tokio::time::timeout(Duration::from_secs(10), watch.next());
    assert_eq!(event.await.unwrap(), Some(WatchEvent::Lagged));
    write(&two, "many/after", "x").await.unwrap();
    let event = tokio::time::timeout(Duration::from_secs(10), watch.next());
    let Ok(Some(WatchEvent::Changed(change))) = event.await else {
        panic!("what comes after is complete again")
    };
    assert_eq!(change.key.as_str(), "many/after");
}

#[tokio::test]
async fn records_past_their_time_are_told_of_to_all() {
    let bench = Bench::new();
    let [one, two] = [open(&bench).await, open(&bench).await];
    let mut watch = one.watch("short/");
    let mut tx = Batch::new();
    let key = Key::new("short/lived").unwrap();
    tx.put_ttl(key, "x", Expect::Any, Duration::from_secs(5));
    two.commit(tx).await.unwrap();
    bench.clock.advance(Duration::from_secs(6));
    two.housekeep().await.unwrap();
    for wanted in [ChangeKind::Put, ChangeKind::Expired] {
        let event = tokio::time::timeout(Duration::from_secs(10), watch.next());
        let Ok(Some(WatchEvent::Changed(change))) = event.await else {
            panic!("{wanted:?}")
        };
        assert_eq!(change.kind, wanted);
    }
    let before = one.commit(batch("x", "y")).await.unwrap().version;
    assert!(two.commit(batch("x", "y")).await.unwrap().version > before);
}

#[tokio::test]
async fn who_waits_too_long_for_its_turn_is_told_whose_it_is() {
    let bench = Bench::new();
    let mut config = shared(&bench);
    config.busy = Duration::from_millis(50);
    let store = bench.open_with(config).await.unwrap();
    write(&store, "a", "1").await.unwrap();
    let path = bench.dir.path().join("volary.db.turn");
    let file = std::fs::File::open(path).unwrap();
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let end = write(&store, "a", "2").await;
    let Err(error @ StoreError::Busy { pid, .. }) = end else {
        panic!("{end:?}")
    };
    assert_eq!(pid, Some(std::process::id()));
    assert!(error.is_transient());
    drop(file);
    write(&store, "a", "3").await.unwrap();
    store.close().await;
}

// --- processes -------------------------------------------------------------------------------

/// Not a test by itself: what the processes do that are killed. Run by name, with a directory in the environment.
#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "the only way to tell this process what to do"
)]
fn counts_until_it_is_killed() {
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
        let mut config = config_at(&directory.join("volary.db"), Arc::new(key));
        config.sharing = Sharing::Shared;
        let store = SqliteStore::open(config, SystemClock::shared())
            .await
            .unwrap();
        let count = async |writer: u64| {
            for index in 0u64.. {
                let size = (index * 37 + writer) % 3000;
                let (key, committed) = add_one(&store, size).await;
                // One write call: a line is there whole or not at all.
                let line = format!("acked {key} {}\n", committed.seqs[0]);
                std::io::stdout().write_all(line.as_bytes()).unwrap();
                std::io::stdout().flush().unwrap();
            }
        };
        futures_util::future::join_all((0..3).map(count)).await;
    });
}

/// Raises the counter by one, with a record and an entry of the new number.
async fn add_one(store: &SqliteStore, size: u64) -> (String, Committed) {
    loop {
        let counter = Key::new(COUNTER).unwrap();
        let found = store.get(&counter).await.unwrap();
        let (count, expect) = match found {
            None => (0, Expect::Absent),
            Some(record) => {
                let text = std::str::from_utf8(&record.value).unwrap();
                (
                    text.parse::<u64>().unwrap(),
                    Expect::Version(record.version),
                )
            }
        };
        let key = format!("count/{:08}", count + 1);
        let mut tx = Batch::new();
        tx.put(counter, (count + 1).to_string(), expect);
        tx.put(
            Key::new(&key).unwrap(),
            "x".repeat(size as usize),
            Expect::Absent,
        );
        tx.append(entry(format!("{{\"v\":1,\"count\":{}}}", count + 1)));
        match store.commit(tx).await {
            Ok(committed) => return (key, committed),
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

fn start(directory: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "shared::counts_until_it_is_killed",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(DIRECTORY, directory)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

/// Reads what a process acknowledged, and kills it after `left` of that.
fn follow(mut child: Child, mut left: u64) -> Vec<(String, Seq)> {
    let lines = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok);
    let mut acked = Vec::new();
    for line in lines {
        let mut words = line.split(' ');
        if words.next() == Some("acked") {
            let key = words.next().unwrap().to_owned();
            acked.push((key, Seq(words.next().unwrap().parse().unwrap())));
            left = left.saturating_sub(1);
        }
        if left == 0 {
            // What is in the pipe already was acknowledged too, and is read on.
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    acked
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_are_killed_harm_no_other_and_lose_nothing_acknowledged() {
    let rounds = if thorough() { 25 } else { 3 };
    let directory = tempfile::tempdir().unwrap();
    let key = Arc::new(SigningKey::generate().unwrap());
    std::fs::write(directory.path().join(KEY), key.to_pkcs8().unwrap()).unwrap();
    let database = directory.path().join("volary.db");
    let mut numbers = Numbers(0x5eed_cafe_1234_5678);
    let mut acked = Vec::new();
    let mut killed = 0;
    for round in 0..rounds {
        let followers: Vec<_> = (0..4)
            .map(|_| {
                let (child, left) = (start(directory.path()), 1 + numbers.below(120));
                killed += 1;
                std::thread::spawn(move || follow(child, left))
            })
            .collect();
        // Beside the running ones: what they signed is what is there.
        assert!(eventually(Duration::from_secs(20), || database.exists()).await);
        for follower in followers {
            acked.extend(follower.join().unwrap());
            let report = verify(&database, &key.public()).unwrap();
            assert!(report.is_ok(), "round {round}: {report:?}");
        }
    }
    let mut config = config_at(&database, key.clone());
    config.sharing = Sharing::Shared;
    let store = SqliteStore::open(config, SystemClock::shared())
        .await
        .unwrap();
    let count = store.get(&Key::new(COUNTER).unwrap()).await.unwrap();
    let count: usize = std::str::from_utf8(&count.unwrap().value)
        .unwrap()
        .parse()
        .unwrap();
    let in_doubt = 3 * killed;
    assert!(
        (acked.len()..=acked.len() + in_doubt).contains(&count),
        "{count} counted, {} acknowledged",
        acked.len()
    );
    let mut seen = std::collections::HashSet::new();
    for (key, seq) in acked {
        assert!(seen.insert(seq), "{seq} was given twice");
        let found = store.get(&Key::new(&key).unwrap()).await.unwrap();
        assert!(found.is_some(), "{key} was acknowledged");
    }
    store.close().await;
    assert!(verify(&database, &key.public()).unwrap().is_ok());
}

/// Who is killed in the middle of a head write leaves a torn slot, the newer one, in a file that others go on with.
#[tokio::test]
async fn a_head_that_was_torn_by_who_was_killed_is_written_anew_by_the_others() {
    let bench = Bench::new();
    let (one, other) = (open(&bench).await, open(&bench).await);
    let head = bench.dir.path().join("volary.db.head");
    for round in 0..6 {
        let dying = if round % 2 == 0 { &one } else { &other };
        let living = if round % 2 == 0 { &other } else { &one };
        let before = std::fs::read(&head).unwrap();
        write(dying, "dying", &round.to_string()).await.unwrap();
        let mut torn = std::fs::read(&head).unwrap();
        // What changed is the slot that was written; its second half does not arrive.
        let changed = |at: &usize| torn[*at] != before[*at];
        let places: Vec<usize> = (0..torn.len()).filter(changed).collect();
        let first = *places.first().unwrap();
        for place in places.iter().filter(|place| **place > first + 100) {
            torn[*place] = before[*place];
        }
        let file = std::fs::OpenOptions::new().write(true).open(&head).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &torn, 0).unwrap();
        let key = bench.key.public();
        let report = verify(&bench.database(), &key).unwrap();
        assert!(report.is_ok() && report.unacknowledged == 1, "{report:?}");
        write(living, "living", &round.to_string()).await.unwrap();
        let report = verify(&bench.database(), &key).unwrap();
        assert!(report.is_ok() && report.unacknowledged == 0, "{report:?}");
    }
    one.close().await;
    other.close().await;
    let store = open(&bench).await;
    assert_eq!(*store.head().borrow(), Seq(12));
    store.close().await;
}
