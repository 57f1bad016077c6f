//! The written contract of [`PageSource`], as a suite that every source runs in its tests.
//!
//! [`Ledger`] folds what a source sends and notes each break of the contract; [`Running`] keeps a source going beside
//! a test; [`check_source`] is the suite.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use volary_kernel::{
    task::{Supervisor, TaskKind},
    testing::eventually,
};

use crate::{
    page::{ChangeKind, ContentHash, Cursor, KindName},
    source::{BATCH_MAX, Notice, PageSource, PageState, SourceChange, SourceItem, Start, channel},
};

/// How long the suite waits for anything before it takes it for lost.
pub const PATIENCE: Duration = Duration::from_secs(20);

// --- folding -------------------------------------------------------------------------------------

/// What a source has sent, folded; survives its restarts.
#[derive(Debug, Default)]
pub struct Ledger {
    known: BTreeMap<Arc<str>, PageState>,
    cursor: Cursor,
    ever_caught_up: bool,
    /// Every change, in order.
    pub changes: Vec<SourceChange>,
    /// Everything it reported.
    pub notices: Vec<Notice>,
    /// How often it caught up in its current run.
    pub caught_up: usize,
    /// Breaks of the contract.
    pub faults: Vec<String>,
    /// How the last run ended, if it did.
    pub ended: Option<Result<(), String>>,
}

impl Ledger {
    /// The pages that exist, with their content hashes.
    pub fn pages(&self) -> BTreeMap<String, ContentHash> {
        self.known
            .iter()
            .map(|(path, state)| (path.to_string(), state.content_hash))
            .collect()
    }

    /// Where the next run begins.
    pub fn start(&self) -> Start {
        Start {
            cursor: self.cursor,
            caught_up: self.ever_caught_up,
            known: self.known.clone(),
        }
    }

    /// Kinds and paths of the changes from the `from`th on, ordered by path.
    pub fn told(&self, from: usize) -> Vec<(String, KindName)> {
        let mut told: Vec<_> = self.changes[from..]
            .iter()
            .map(|change| (change.state.path.to_string(), change.kind.name()))
            .collect();
        told.sort();
        told
    }

    /// Takes in one item.
    pub fn take(&mut self, item: SourceItem) {
        match item {
            SourceItem::Changes(changes) => {
                if changes.is_empty() || changes.len() > BATCH_MAX {
                    self.faults
                        .push(format!("{} changes in one item", changes.len()));
                }
                for change in changes {
                    self.take_change(change);
                }
            }
            SourceItem::States(states) => {
                for state in states {
                    self.known.insert(state.path.clone(), state);
                }
            }
            SourceItem::CaughtUp { pages } => {
                if pages != self.known.len() {
                    self.faults.push(format!(
                        "caught up with {pages} pages, {} are known",
                        self.known.len()
                    ));
                }
                self.ever_caught_up = true;
                self.caught_up += 1;
            }
            SourceItem::Notice(notice) => self.notices.push(notice),
        }
    }

    fn take_change(&mut self, change: SourceChange) {
        let SourceChange {
            cursor,
            kind,
            state,
            previous,
            ..
        } = &change;
        let before = self.known.get(&state.path).map(|known| known.content_hash);
        let sense = match kind {
            ChangeKind::Added => before.is_none() && state.version == 1,
            ChangeKind::Replaced { .. } => {
                before.is_some_and(|before| before != state.content_hash)
            }
            ChangeKind::Invalidated { .. } => before.is_some(),
        };
        if !sense || *previous != before {
            self.faults.push(format!(
                "{} of `{}` is no change of {before:?}",
                kind.name(),
                state.path
            ));
        }
        if *cursor <= self.cursor {
            self.faults
                .push(format!("cursor {cursor:?} after {:?}", self.cursor));
        }
        self.cursor = *cursor;
        match kind {
            ChangeKind::Invalidated { .. } => self.known.remove(&state.path),
            _ => self.known.insert(state.path.clone(), state.clone()),
        };
        self.changes.push(change);
    }
}

// --- running -------------------------------------------------------------------------------------

/// A source that runs beside a test and is folded into a ledger.
#[derive(Debug)]
pub struct Running {
    tasks: Supervisor,
    ledger: Arc<Mutex<Ledger>>,
}

impl Running {
    /// Starts `source` from where `ledger` ends.
    pub fn start(source: Arc<dyn PageSource>, ledger: Ledger) -> Self {
        let tasks = Supervisor::new();
        let start = ledger.start();
        let ledger = Arc::new(Mutex::new(Ledger {
            ended: None,
            caught_up: 0,
            ..ledger
        }));
        let (sink, mut stream) = channel(|| {});
        let (cancel, ended) = (tasks.token(), ledger.clone());
        tasks.spawn(TaskKind::new("source-under-test"), async move {
            let result = source.watch(start, sink, cancel).await;
            ended.lock().ended = Some(result.map_err(|error| error.to_string()));
            Ok(())
        });
        let folded = ledger.clone();
        tasks.spawn(TaskKind::new("ledger"), async move {
            while let Some(item) = stream.next().await {
                folded.lock().take(item);
            }
            Ok(())
        });
        Self { tasks, ledger }
    }

    /// Asks the ledger something.
    pub fn ask<T>(&self, question: impl FnOnce(&Ledger) -> T) -> T {
        question(&self.ledger.lock())
    }

    /// Waits until the ledger is as wanted.
    ///
    /// # Panics
    /// After [`PATIENCE`], showing the ledger.
    pub async fn until(&self, what: &str, mut wanted: impl FnMut(&Ledger) -> bool) {
        let came = eventually(PATIENCE, || wanted(&self.ledger.lock())).await;
        let ledger = self.ledger.lock();
        assert!(
            came,
            "never came: {what}; pages {:?}, told {:?}, notices {:?}, ended {:?}",
            ledger.pages().keys(),
            ledger.told(ledger.changes.len().saturating_sub(20)),
            ledger.notices,
            ledger.ended,
        );
    }

    /// Waits until the source has caught up in this run.
    pub async fn until_caught_up(&self) {
        self.until("caught up", |ledger| ledger.caught_up > 0).await;
    }

    /// Waits until the folded pages are exactly these.
    pub async fn until_pages(&self, pages: &BTreeMap<String, ContentHash>) {
        self.until("the pages", |ledger| ledger.pages() == *pages)
            .await;
    }

    /// Cancels the run and gives back the ledger.
    ///
    /// # Panics
    /// If the source does not end in time and well, or broke its contract.
    pub async fn stop(self) -> Ledger {
        let report = self.tasks.drain(Duration::from_secs(5)).await;
        assert!(
            report.aborted.is_empty(),
            "a cancelled source ends within a second: {report:?}"
        );
        let ledger = std::mem::take(&mut *self.ledger.lock());
        assert_eq!(ledger.faults, Vec::<String>::new());
        assert_eq!(ledger.ended, Some(Ok(())));
        ledger
    }
}

// --- the suite -----------------------------------------------------------------------------------

/// Gives the page at a path this content, or none.
pub type Put = Box<dyn Fn(&str, Option<&[u8]>) + Send + Sync>;

/// A source and the outside that it tells of.
pub struct World {
    /// The source, configured to dispatch what exists at its first start.
    pub source: Arc<dyn PageSource>,
    /// Changes the outside.
    pub put: Put,
    /// Keeps what the source needs alive.
    pub keep: Box<dyn std::any::Any + Send + Sync>,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World")
            .field("source", self.source.name())
            .finish_non_exhaustive()
    }
}

type Pages = BTreeMap<String, ContentHash>;

fn pages(content: &[(&str, &str)]) -> Pages {
    content
        .iter()
        .map(|(path, content)| ((*path).to_owned(), ContentHash::of(content.as_bytes())))
        .collect()
}

impl World {
    fn set(&self, path: &str, content: &str) {
        (self.put)(path, Some(content.as_bytes()));
    }

    fn delete(&self, path: &str) {
        (self.put)(path, None);
    }

    fn run(&self, ledger: Ledger) -> Running {
        Running::start(self.source.clone(), ledger)
    }
}

/// Runs every case of the contract, each in a world of its own.
///
/// # Panics
/// On the first break of the contract.
pub async fn check_source(make: impl Fn() -> World) {
    assert!(!make().source.is_static(), "the suite is for live sources");
    tells_what_exists_then_catches_up(make()).await;
    scan_tells_the_same_once(make()).await;
    tells_what_changes_live(make()).await;
    takes_identical_content_for_no_change(make()).await;
    tells_after_a_restart_what_changed_meanwhile(make()).await;
    loses_nothing_while_the_consumer_is_away(make()).await;
    folds_random_changes_to_the_truth(make()).await;
}

async fn tells_what_exists_then_catches_up(world: World) {
    world.set("a", "1");
    world.set("d/b", "2");
    let run = world.run(Ledger::default());
    run.until_caught_up().await;
    assert_eq!(run.ask(Ledger::pages), pages(&[("a", "1"), ("d/b", "2")]));
    assert_eq!(run.stop().await.caught_up, 1);
}

async fn scan_tells_the_same_once(world: World) {
    world.set("a", "1");
    let (sink, mut stream) = channel(|| {});
    let cancel = Supervisor::new().token();
    let (ended, ledger) =
        futures_util::join!(world.source.scan(Start::default(), sink, cancel), async {
            let mut ledger = Ledger::default();
            while let Some(item) = stream.next().await {
                ledger.take(item);
            }
            ledger
        });
    ended.expect("a scan of what exists succeeds");
    assert_eq!(
        (ledger.pages(), ledger.caught_up, ledger.faults),
        (pages(&[("a", "1")]), 1, Vec::new())
    );
}

async fn tells_what_changes_live(world: World) {
    world.set("a", "1");
    world.set("b", "1");
    let run = world.run(Ledger::default());
    run.until_caught_up().await;
    let before = run.ask(|ledger| ledger.changes.len());
    world.set("a", "2");
    world.delete("b");
    world.set("new/deep/c", "3");
    run.until_pages(&pages(&[("a", "2"), ("new/deep/c", "3")]))
        .await;
    let told = run.stop().await.told(before);
    let expected = [
        ("a", KindName::Replaced),
        ("b", KindName::Invalidated),
        ("new/deep/c", KindName::Added),
    ];
    assert_eq!(told, expected.map(|(path, kind)| (path.to_owned(), kind)));
}

async fn takes_identical_content_for_no_change(world: World) {
    world.set("a", "1");
    let run = world.run(Ledger::default());
    run.until_caught_up().await;
    world.set("a", "1");
    // The marker is seen after the rewrite was.
    world.set("marker", "x");
    run.until_pages(&pages(&[("a", "1"), ("marker", "x")]))
        .await;
    assert_eq!(run.stop().await.changes.len(), 2);
}

async fn tells_after_a_restart_what_changed_meanwhile(world: World) {
    for path in ["changed", "deleted", "same", "rewritten"] {
        world.set(path, "1");
    }
    let run = world.run(Ledger::default());
    run.until_caught_up().await;
    let ledger = run.stop().await;
    let before = ledger.changes.len();
    world.set("changed", "2");
    world.delete("deleted");
    world.set("added", "3");
    world.set("rewritten", "1");
    let run = world.run(ledger);
    run.until_caught_up().await;
    let ledger = run.stop().await;
    let expected = [
        ("added", KindName::Added),
        ("changed", KindName::Replaced),
        ("deleted", KindName::Invalidated),
    ];
    assert_eq!(
        ledger.told(before),
        expected.map(|(path, kind)| (path.to_owned(), kind))
    );
    let run = world.run(ledger);
    run.until_caught_up().await;
    assert_eq!(
        run.stop().await.changes.len(),
        before + 3,
        "a quiet restart tells nothing"
    );
}

async fn loses_nothing_while_the_consumer_is_away(world: World) {
    let tasks = Supervisor::new();
    let (sink, mut stream) = channel(|| {});
    let (source, cancel) = (world.source.clone(), tasks.token());
    tasks.spawn(TaskKind::new("source-under-test"), async move {
        Ok(source.watch(Start::default(), sink, cancel).await?)
    });
    let mut ledger = Ledger::default();
    while ledger.caught_up == 0 {
        ledger.take(stream.next().await.expect("the source runs"));
    }
    let mut truth = Pages::new();
    for round in 0..3 {
        for page in 0..400 {
            let (path, content) = (format!("{}/{page}", page % 7), format!("{round}"));
            world.set(&path, &content);
            truth.insert(path, ContentHash::of(content.as_bytes()));
        }
    }
    while ledger.pages() != truth {
        let item = volary_kernel::clock::timeout(PATIENCE, stream.next()).await;
        ledger.take(item.expect("nothing is lost").expect("the source runs"));
    }
    drop(stream);
    assert!(tasks.drain(PATIENCE).await.aborted.is_empty());
    assert_eq!(ledger.faults, Vec::<String>::new());
}

async fn folds_random_changes_to_the_truth(world: World) {
    let mut seed = 0x5eed_u64;
    let mut random = |below: u64| {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    let mut truth = Pages::new();
    let mut ledger = Ledger::default();
    for _life in 0..3 {
        let run = world.run(ledger);
        for step in 0..150 {
            let path = format!("{}/{}", random(4), random(6));
            let content = format!("{}", random(3));
            if random(4) == 0 {
                world.delete(&path);
                truth.remove(&path);
            } else {
                world.set(&path, &content);
                truth.insert(path, ContentHash::of(content.as_bytes()));
            }
            if step % 50 == 49 {
                run.until_pages(&truth).await;
            }
        }
        run.until_pages(&truth).await;
        ledger = run.stop().await;
        world.set("meanwhile", &format!("{}", random(9)));
        world.delete("0/0");
        truth.remove("0/0");
        let content = format!("{}", random(9));
        world.set("meanwhile", &content);
        truth.insert("meanwhile".to_owned(), ContentHash::of(content.as_bytes()));
    }
}
