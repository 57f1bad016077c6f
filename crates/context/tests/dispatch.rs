//! The dispatcher over a real store, real queues and real directories.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails here")]

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use volary_context::{
    Criteria, Deliver, DeliverError, Dispatch, Dispatcher, DispatcherConfig, FilesConfig,
    FilesSource, KindName, PageSource, SourceError, Subscription,
    dispatch::{DispatchPayload, MapError, Parts, Place, SourceState},
    source::{ChangeSink, SourceItem, Start},
};
use volary_kernel::{
    Name, SystemClock, Tenant, metric::Metrics, ready::Readiness, retry::Backoff, task::Supervisor,
    testing::eventually,
};
use volary_store::{
    Filter, JournalRow, MemoryConfig, MemoryStore, NewItem, Queue, QueueConfig, Queues, Seq,
    SharedStore,
};

const PATIENCE: Duration = Duration::from_secs(20);

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

// --- a node around the dispatcher ----------------------------------------------------------------

struct Node {
    store: SharedStore,
    tasks: Supervisor,
    readiness: Readiness,
    metrics: Metrics,
    dispatcher: Dispatcher,
    inbox: Queue,
    other: Queue,
}

fn memory() -> SharedStore {
    Arc::new(MemoryStore::new(
        MemoryConfig::new(name("node")),
        SystemClock::shared(),
    ))
}

/// Delivers `agent` and `other` into a queue each, and refuses everybody else.
fn deliver_to(inbox: Queue, other: Queue) -> Deliver {
    Arc::new(move |batch, dispatch: &Dispatch| {
        let queue = match dispatch.subscription.agent.as_str() {
            "agent" => &inbox,
            "other" => &other,
            nobody => {
                return Err(DeliverError::Refused(format!(
                    "there is no agent `{nobody}`"
                )));
            }
        };
        let payload = serde_json::to_vec(&dispatch.payload()).unwrap();
        let mut item = NewItem::new(dispatch.change.page.tenant.clone(), payload);
        item.trace = Some(dispatch.change.trace);
        item.cause = dispatch.cause.into();
        item.coalesce = Some(dispatch.coalesce_key());
        item.base = Some(dispatch.base());
        let enqueued = queue
            .enqueue(batch, item)
            .map_err(|error| DeliverError::Full(error.to_string()))?;
        Ok(enqueued.id.to_string())
    })
}

impl Node {
    async fn start(store: SharedStore, max_items: usize) -> Self {
        let queues = Queues::open(store.clone()).await.unwrap();
        let queue = |name: &str, max_items| {
            queues
                .queue(QueueConfig {
                    max_items,
                    ..QueueConfig::new(name)
                })
                .unwrap()
        };
        let (inbox, other) = (queue("agent", max_items), queue("other", 100_000));
        let (tasks, metrics) = (Supervisor::new(), Metrics::default());
        let readiness = Readiness::new(SystemClock::shared());
        let parts = Parts {
            store: store.clone(),
            deliver: deliver_to(inbox.clone(), other.clone()),
            tasks: tasks.clone(),
            readiness: readiness.clone(),
            metrics: metrics.clone(),
        };
        let quick = Backoff {
            base: Duration::from_millis(5),
            max: Duration::from_millis(20),
            ..Backoff::default()
        };
        let config = DispatcherConfig {
            retry: quick,
            restart: quick,
            max_waiting: 16,
            ..DispatcherConfig::default()
        };
        Self {
            dispatcher: Dispatcher::new(config, parts),
            store,
            tasks,
            readiness,
            metrics,
            inbox,
            other,
        }
    }

    fn subscribe(&self, id: &str, agent: &str, criteria: serde_json::Value) {
        let criteria: Criteria = serde_json::from_value(criteria).unwrap();
        let subscription =
            Subscription::new(id, name(agent), Tenant::default(), &criteria).unwrap();
        self.dispatcher.subscribe(subscription).unwrap();
    }

    async fn ready(&self) {
        let ready = eventually(PATIENCE, || self.readiness.ready().ok).await;
        assert!(
            ready,
            "{:?} {:?}",
            self.readiness.ready(),
            self.dispatcher.status()
        );
    }

    async fn rows(&self, kind: &str) -> Vec<JournalRow> {
        let mut rows = Vec::new();
        let mut from = Seq::FIRST;
        loop {
            let page = self
                .store
                .read(from, &Filter::kind(kind), 4096)
                .await
                .unwrap();
            rows.extend(page.rows);
            if page.end {
                return rows;
            }
            from = page.next;
        }
    }

    /// Kinds and paths of what was journaled, ordered by path.
    async fn changes(&self) -> Vec<(String, String)> {
        let rows = self.rows("page.changed").await;
        let mut changes: Vec<_> = rows
            .iter()
            .map(|row| {
                let body: serde_json::Value = serde_json::from_slice(&row.body).unwrap();
                let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
                (text(&body["extra"]["relative_path"]), text(&body["kind"]))
            })
            .collect();
        changes.sort();
        changes
    }

    /// Waits until the journal tells of as many changes.
    async fn until_changes(&self, count: usize) -> Vec<(String, String)> {
        let mut head = self.store.head();
        let told = volary_kernel::clock::timeout(PATIENCE, async {
            loop {
                let changes = self.changes().await;
                if changes.len() >= count {
                    return changes;
                }
                head.changed().await.unwrap();
            }
        });
        match told.await {
            Ok(changes) => changes,
            Err(_) => panic!("only {:?}", self.changes().await),
        }
    }

    /// Claims and acknowledges everything that is in a queue now, as the agent would see it.
    async fn receive(&self, queue: &Queue) -> Vec<(String, KindName)> {
        let mut received = Vec::new();
        loop {
            let claims = queue.claim("test", 64, Duration::ZERO).await.unwrap();
            if claims.is_empty() {
                return received;
            }
            for claim in claims {
                let payload: DispatchPayload = serde_json::from_slice(&claim.payload).unwrap();
                if let Some(payload) = payload.since(claim.base.as_deref().unwrap()) {
                    let event = payload.page_event;
                    received.push((event.page.id.path().to_owned(), event.kind.name()));
                }
                let mut batch = volary_store::Batch::new();
                queue.ack(&mut batch, &claim).unwrap();
                self.store.commit(batch).await.unwrap();
            }
        }
    }

    async fn stop(self) -> SharedStore {
        let report = self.tasks.drain(Duration::from_secs(5)).await;
        assert!(report.aborted.is_empty(), "{report:?}");
        self.store
    }
}

struct Notes {
    dir: tempfile::TempDir,
}

impl Notes {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn write(&self, path: &str, content: &str) {
        let path = self.at(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn source(&self) -> Arc<FilesSource> {
        let config = FilesConfig::new(name("notes"), self.dir.path());
        Arc::new(FilesSource::new(config, SystemClock::shared()).unwrap())
    }
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected
        .iter()
        .map(|(path, kind)| ((*path).to_owned(), (*kind).to_owned()))
        .collect()
}

fn notes_only() -> serde_json::Value {
    serde_json::json!({"source": "notes", "path": "**/*.md"})
}

// --- the path of a change ------------------------------------------------------------------------

#[tokio::test]
async fn a_change_becomes_journal_rows_and_an_inbox_item_with_one_trace() {
    let (notes, node) = (Notes::new(), Node::start(memory(), 100).await);
    node.subscribe("agent/0", "agent", notes_only());
    node.dispatcher
        .map(notes.source(), Place::default())
        .unwrap();
    node.ready().await;
    notes.write("a.md", "1");
    notes.write("b.txt", "1");
    assert_eq!(
        node.until_changes(2).await,
        pairs(&[("a.md", "added"), ("b.txt", "added")])
    );
    let changed = node.rows("page.changed").await;
    let enqueued = node.rows("dispatch.enqueued").await;
    assert_eq!(enqueued.len(), 1);
    let cause = changed
        .iter()
        .find(|row| row.seq == enqueued[0].cause.unwrap())
        .unwrap();
    assert_eq!(
        (cause.trace, enqueued[0].agent.clone()),
        (enqueued[0].trace, Some(name("agent")))
    );
    assert_eq!(
        node.receive(&node.inbox).await,
        [("a.md".to_owned(), KindName::Added)]
    );
    let metrics = node.metrics.encode_text();
    for line in [
        "volary_context_changes_total{source=\"notes\",kind=\"added\"} 2",
        "volary_context_pages{source=\"notes\"} 2",
        "volary_context_dispatches_total{source=\"notes\",outcome=\"enqueued\"} 1",
        "volary_context_subscriptions 1",
    ] {
        assert!(metrics.contains(line), "{line} not in {metrics}");
    }
    node.stop().await;
}

#[tokio::test]
async fn a_restart_tells_what_changed_meanwhile_and_nothing_twice() {
    let notes = Notes::new();
    for path in ["changed.md", "deleted.md", "same.md"] {
        notes.write(path, "1");
    }
    let node = Node::start(memory(), 100).await;
    node.subscribe("agent/0", "agent", notes_only());
    node.dispatcher
        .map(notes.source(), Place::default())
        .unwrap();
    node.until_changes(3).await;
    node.ready().await;
    let store = node.stop().await;
    notes.write("changed.md", "2");
    notes.write("added.md", "1");
    fs::remove_file(notes.at("deleted.md")).unwrap();
    let node = Node::start(store, 100).await;
    node.subscribe("agent/0", "agent", notes_only());
    node.dispatcher
        .map(notes.source(), Place::default())
        .unwrap();
    node.ready().await;
    let expected = [
        ("added.md", "added"),
        ("changed.md", "added"),
        ("changed.md", "replaced"),
        ("deleted.md", "added"),
        ("deleted.md", "invalidated"),
        ("same.md", "added"),
    ];
    assert_eq!(node.changes().await, pairs(&expected));
    node.stop().await;
}

#[tokio::test]
async fn undelivered_changes_of_a_page_meet_and_tell_the_difference() {
    let (notes, node) = (Notes::new(), Node::start(memory(), 100).await);
    for path in ["known.md", "back.md"] {
        notes.write(path, "1");
    }
    node.subscribe("agent/0", "agent", notes_only());
    node.dispatcher
        .map(notes.source(), Place::default())
        .unwrap();
    node.ready().await;
    assert_eq!(node.receive(&node.inbox).await.len(), 2);
    notes.write("new.md", "1");
    notes.write("gone.md", "1");
    notes.write("known.md", "2");
    fs::remove_file(notes.at("back.md")).unwrap();
    node.until_changes(6).await;
    notes.write("new.md", "2");
    fs::remove_file(notes.at("gone.md")).unwrap();
    notes.write("known.md", "3");
    notes.write("back.md", "other");
    node.until_changes(10).await;
    let mut received = node.receive(&node.inbox).await;
    received.sort();
    let expected = [
        ("back.md", KindName::Replaced),
        ("known.md", KindName::Replaced),
        ("new.md", KindName::Added),
    ];
    assert_eq!(
        received,
        expected.map(|(path, kind)| (path.to_owned(), kind))
    );
    node.stop().await;
}

// --- back-pressure -------------------------------------------------------------------------------

#[tokio::test]
async fn changes_wait_for_a_full_inbox_and_none_is_lost_or_told_twice() {
    let (notes, node) = (Notes::new(), Node::start(memory(), 3).await);
    for n in 0..40 {
        notes.write(&format!("{n}.md"), "1");
    }
    node.subscribe("agent/0", "agent", notes_only());
    node.dispatcher
        .map(notes.source(), Place::default())
        .unwrap();
    let blocked = eventually(PATIENCE, || {
        node.readiness.ready().checks.iter().any(|check| {
            check
                .reason
                .as_deref()
                .is_some_and(|why| why.contains("inbox"))
        })
    });
    assert!(blocked.await, "{:?}", node.readiness.ready());
    assert!(
        node.readiness.health().ok,
        "back-pressure is not ill health"
    );
    assert_eq!(
        node.rows("page.changed").await.len(),
        3,
        "a change is committed with its delivery or not at all"
    );
    let mut received = Vec::new();
    while received.len() < 40 {
        received.extend(node.receive(&node.inbox).await);
        tokio::task::yield_now().await;
    }
    received.sort();
    let mut expected: Vec<_> = (0..40)
        .map(|n| (format!("{n}.md"), KindName::Added))
        .collect();
    expected.sort();
    assert_eq!(received, expected);
    node.ready().await;
    assert!(eventually(PATIENCE, || node.dispatcher.status()[0].waiting == 0).await);
    assert_eq!(node.rows("dispatch.blocked").await.len(), 1);
    assert_eq!(node.rows("dispatch.unblocked").await.len(), 1);
    node.stop().await;
}

#[tokio::test]
async fn a_full_inbox_does_not_hold_up_the_others() {
    let (notes, node) = (Notes::new(), Node::start(memory(), 1).await);
    node.subscribe("agent/0", "agent", serde_json::json!({"path": "slow/*"}));
    node.subscribe("other/0", "other", serde_json::json!({"path": "quick/*"}));
    node.dispatcher
        .map(notes.source(), Place::default())
        .unwrap();
    node.ready().await;
    for n in 0..8 {
        notes.write(&format!("slow/{n}"), "1");
    }
    assert!(
        eventually(PATIENCE, || node.dispatcher.status()[0].waiting == 7).await,
        "{:?}",
        node.dispatcher
    );
    notes.write("quick/a", "1");
    assert!(eventually(PATIENCE, || node.other.len() == 1).await);
    // What waits is brought up to date: the file is gone before anybody heard of it.
    fs::remove_file(notes.at("slow/7")).unwrap();
    fs::remove_file(notes.at("slow/6")).unwrap();
    assert!(eventually(PATIENCE, || node.dispatcher.status()[0].waiting <= 6).await);
    node.stop().await;
}

#[tokio::test]
async fn what_waits_when_the_node_stops_is_told_after_its_restart() {
    let (notes, node) = (Notes::new(), Node::start(memory(), 2).await);
    for n in 0..9 {
        notes.write(&format!("{n}.md"), "1");
    }
    node.subscribe("agent/0", "agent", notes_only());
    node.dispatcher
        .map(notes.source(), Place::default())
        .unwrap();
    assert!(eventually(PATIENCE, || node.dispatcher.status()[0].waiting == 7).await);
    let store = node.stop().await;
    let node = Node::start(store, 100).await;
    node.subscribe("agent/0", "agent", notes_only());
    node.dispatcher
        .map(notes.source(), Place::default())
        .unwrap();
    node.ready().await;
    assert_eq!(node.until_changes(9).await.len(), 9);
    assert_eq!(node.receive(&node.inbox).await.len(), 9);
    node.stop().await;
}

#[tokio::test]
async fn a_delivery_that_is_refused_for_good_is_journaled_and_holds_nothing_up() {
    let (notes, node) = (Notes::new(), Node::start(memory(), 9).await);
    notes.write("a.md", "1");
    node.subscribe("gone/0", "gone", notes_only());
    node.subscribe("agent/0", "agent", notes_only());
    node.dispatcher
        .map(notes.source(), Place::default())
        .unwrap();
    node.ready().await;
    let refused = node.rows("dispatch.refused").await;
    assert!(String::from_utf8_lossy(&refused[0].body).contains("there is no agent `gone`"));
    assert_eq!(node.inbox.len(), 1);
    node.stop().await;
}

// --- watchers that fail --------------------------------------------------------------------------

enum Fault {
    Error,
    Panic,
    End,
}

/// A source that fails twice in some way, then works.
struct Flaky {
    inner: Arc<FilesSource>,
    fault: Fault,
    runs: AtomicUsize,
}

#[async_trait]
impl PageSource for Flaky {
    fn name(&self) -> &Name {
        self.inner.name()
    }

    fn is_static(&self) -> bool {
        false
    }

    async fn scan(
        &self,
        start: Start,
        sink: ChangeSink,
        cancel: CancellationToken,
    ) -> Result<(), SourceError> {
        self.inner.scan(start, sink, cancel).await
    }

    async fn watch(
        &self,
        start: Start,
        sink: ChangeSink,
        cancel: CancellationToken,
    ) -> Result<(), SourceError> {
        if self.runs.fetch_add(1, Ordering::Relaxed) >= 2 {
            return self.inner.watch(start, sink, cancel).await;
        }
        // It tells everything first, so that the next run shows whether anything is told twice.
        self.inner.scan(start, sink, cancel).await?;
        match self.fault {
            Fault::Error => Err(SourceError::Failed("the disk is on fire".into())),
            Fault::Panic => panic!("a defect"),
            Fault::End => Ok(()),
        }
    }
}

async fn a_failing_watcher_is_started_again(fault: Fault) {
    let (notes, node) = (Notes::new(), Node::start(memory(), 100).await);
    notes.write("a.md", "1");
    node.subscribe("agent/0", "agent", notes_only());
    let flaky = Flaky {
        inner: notes.source(),
        fault,
        runs: AtomicUsize::new(0),
    };
    node.dispatcher
        .map(Arc::new(flaky), Place::default())
        .unwrap();
    let third_run_is_live = || {
        let status = &node.dispatcher.status()[0];
        status.restarts == 2 && status.state == SourceState::Live
    };
    assert!(
        eventually(PATIENCE, third_run_is_live).await,
        "{:?}",
        node.dispatcher.status()
    );
    // However a run ended, it was told, and the loops that ended with it were expected to.
    assert_eq!(node.rows("source.failed").await.len(), 2);
    assert!(node.readiness.health().ok, "{:?}", node.readiness.health());
    notes.write("b.md", "1");
    assert_eq!(
        node.until_changes(2).await,
        pairs(&[("a.md", "added"), ("b.md", "added")])
    );
    node.ready().await;
    node.stop().await;
}

#[tokio::test]
async fn a_watcher_that_ends_with_an_error_is_started_again() {
    a_failing_watcher_is_started_again(Fault::Error).await;
}

#[tokio::test]
async fn a_watcher_that_panics_is_started_again() {
    a_failing_watcher_is_started_again(Fault::Panic).await;
}

#[tokio::test]
async fn a_watcher_that_ends_by_itself_is_started_again() {
    a_failing_watcher_is_started_again(Fault::End).await;
}

#[tokio::test]
async fn a_root_that_does_not_exist_shows_in_readiness_and_is_tried_again() {
    let (notes, node) = (Notes::new(), Node::start(memory(), 100).await);
    let missing = FilesConfig::new(name("notes"), notes.at("later"));
    let source = FilesSource::new(missing, SystemClock::shared()).unwrap();
    node.dispatcher
        .map(Arc::new(source), Place::default())
        .unwrap();
    let shown = eventually(PATIENCE, || {
        let reasons = node.readiness.ready().checks;
        reasons.iter().any(|check| {
            check
                .reason
                .as_deref()
                .is_some_and(|why| why.contains("does not exist"))
        })
    });
    assert!(shown.await, "{:?}", node.readiness.ready());
    notes.write("later/a", "1");
    node.ready().await;
    node.stop().await;
}

// --- mapping -------------------------------------------------------------------------------------

struct Archive(Name);

#[async_trait]
impl PageSource for Archive {
    fn name(&self) -> &Name {
        &self.0
    }

    fn is_static(&self) -> bool {
        true
    }

    async fn scan(
        &self,
        _: Start,
        sink: ChangeSink,
        _: CancellationToken,
    ) -> Result<(), SourceError> {
        sink.send(SourceItem::CaughtUp { pages: 0 }).await
    }

    async fn watch(
        &self,
        _: Start,
        _: ChangeSink,
        _: CancellationToken,
    ) -> Result<(), SourceError> {
        Err(SourceError::Static(self.0.clone()))
    }
}

#[tokio::test]
async fn static_sources_and_second_mappings_are_refused() {
    let (notes, node) = (Notes::new(), Node::start(memory(), 100).await);
    let refused = node
        .dispatcher
        .map(Arc::new(Archive(name("archive"))), Place::default());
    assert_eq!(refused, Err(MapError::Static(name("archive"))));
    node.dispatcher
        .map(notes.source(), Place::default())
        .unwrap();
    assert_eq!(
        node.dispatcher.map(notes.source(), Place::default()),
        Err(MapError::Exists(name("notes")))
    );
    node.stop().await;
}

#[tokio::test]
async fn an_unmapped_source_tells_nothing_until_it_is_mapped_again() {
    let (notes, node) = (Notes::new(), Node::start(memory(), 100).await);
    node.dispatcher
        .map(notes.source(), Place::default())
        .unwrap();
    node.ready().await;
    assert!(node.dispatcher.unmap(&name("notes")).await);
    assert!(!node.dispatcher.unmap(&name("notes")).await);
    assert!(node.readiness.ready().ok && node.readiness.health().checks.is_empty());
    notes.write("a.md", "1");
    node.dispatcher
        .map(notes.source(), Place::default())
        .unwrap();
    node.ready().await;
    assert_eq!(node.changes().await, pairs(&[("a.md", "added")]));
    assert_eq!(
        (
            node.rows("source.mapped").await.len(),
            node.rows("source.unmapped").await.len()
        ),
        (2, 1)
    );
    node.stop().await;
}

#[tokio::test]
async fn unsubscribed_agents_are_told_nothing_more() {
    let (notes, node) = (Notes::new(), Node::start(memory(), 100).await);
    node.subscribe("agent/0", "agent", notes_only());
    node.subscribe("agent/1", "agent", notes_only());
    node.dispatcher
        .map(notes.source(), Place::default())
        .unwrap();
    node.ready().await;
    assert!(node.dispatcher.unsubscribe("agent/1") && !node.dispatcher.unsubscribe("agent/1"));
    notes.write("a.md", "1");
    node.until_changes(1).await;
    assert_eq!(node.inbox.len(), 1);
    assert_eq!(node.dispatcher.unsubscribe_agent(&name("agent")), 1);
    notes.write("b.md", "1");
    node.until_changes(2).await;
    assert_eq!(
        (node.inbox.len(), node.dispatcher.subscriptions().len()),
        (1, 0)
    );
    node.stop().await;
}

// --- a real repository ---------------------------------------------------------------------------

fn git(notes: &Notes, arguments: &[&str]) -> String {
    let output = Command::new("git")
        .current_dir(notes.dir.path())
        .args([
            "-c",
            "user.name=t",
            "-c",
            "user.email=t@example.org",
            "-c",
            "core.autocrlf=false",
        ])
        .args(arguments)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "git {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Two commits of about `files` files, about half of which differ: changed, deleted, added, renamed, directories moved.
fn commit_two_states(notes: &Notes, files: usize) {
    git(notes, &["init", "--quiet", "--initial-branch=main"]);
    for n in 0..files {
        notes.write(&format!("src/d{}/f{n}.txt", n % 97), &format!("file {n}\n"));
    }
    git(notes, &["add", "--all"]);
    git(notes, &["commit", "--quiet", "--message", "one"]);
    for n in (0..files).step_by(4) {
        notes.write(
            &format!("src/d{}/f{n}.txt", n % 97),
            &format!("file {n} changed\n"),
        );
    }
    for n in (1..files).step_by(20) {
        fs::remove_file(notes.at(&format!("src/d{}/f{n}.txt", n % 97))).unwrap();
        notes.write(&format!("added/{}/a{n}.txt", n % 7), &format!("new {n}\n"));
    }
    for n in (2..files).step_by(20) {
        let to = format!("src/d{}/renamed{n}.txt", n % 97);
        fs::rename(
            notes.at(&format!("src/d{}/f{n}.txt", n % 97)),
            notes.at(&to),
        )
        .unwrap();
    }
    fs::rename(notes.at("src/d5"), notes.at("moved")).unwrap();
    git(notes, &["add", "--all"]);
    git(notes, &["commit", "--quiet", "--message", "two"]);
}

fn difference(notes: &Notes, from: &str, to: &str) -> Vec<(String, String)> {
    let listed = git(notes, &["diff", "--name-status", "--no-renames", from, to]);
    let kind = |letter: &str| match letter {
        "A" => "added",
        "M" => "replaced",
        _ => "invalidated",
    };
    let lines = listed.lines().map(|line| line.split_once('\t').unwrap());
    let mut difference: Vec<_> = lines
        .map(|(letter, path)| (path.to_owned(), kind(letter).to_owned()))
        .collect();
    difference.sort();
    difference
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkout_of_a_thousand_files_is_told_file_by_file_once_and_right() {
    let (notes, node) = (Notes::new(), Node::start(memory(), 100_000).await);
    commit_two_states(&notes, 2000);
    node.subscribe("agent/0", "agent", serde_json::json!({"source": "notes"}));
    node.dispatcher
        .map(notes.source(), Place::default())
        .unwrap();
    node.ready().await;
    let there = node.changes().await;
    assert_eq!(there.len(), 2000);
    for (from, to) in [("HEAD", "HEAD~1"), ("HEAD", "main"), ("HEAD", "main~1")] {
        let expected = difference(&notes, from, to);
        assert!(expected.len() >= 700, "{}", expected.len());
        node.receive(&node.inbox).await;
        let before: BTreeMap<_, usize> = count(&node.changes().await);
        git(&notes, &["checkout", "--quiet", "--detach", to]);
        node.until_changes(before.values().sum::<usize>() + expected.len())
            .await;
        // A file whose change is certainly seen after all others of the checkout.
        notes.write("marker", to);
        node.until_changes(before.values().sum::<usize>() + expected.len() + 1)
            .await;
        let mut told = count(&node.changes().await);
        for (change, times) in before {
            *told.get_mut(&change).unwrap() -= times;
        }
        told.retain(|(path, _), times| *times > 0 && path != "marker");
        assert_eq!(told.values().copied().max(), Some(1), "none is told twice");
        assert_eq!(told.into_keys().collect::<Vec<_>>(), expected);
        let mut received = node.receive(&node.inbox).await;
        received.retain(|(path, _)| path != "marker");
        received.sort();
        let received: Vec<_> = received
            .into_iter()
            .map(|(path, kind)| (path, kind.to_string()))
            .collect();
        assert_eq!(received, expected);
    }
    node.stop().await;
}

fn count(changes: &[(String, String)]) -> BTreeMap<(String, String), usize> {
    let mut counts = BTreeMap::new();
    for change in changes {
        *counts.entry(change.clone()).or_default() += 1;
    }
    counts
}

// --- pressure and faults of the store --------------------------------------------------------------

#[tokio::test]
async fn a_full_store_holds_changes_back_until_there_is_room() {
    let clock = SystemClock::shared();
    let config = MemoryConfig {
        max_record_bytes: 20_000,
        ..MemoryConfig::new(name("node"))
    };
    let (notes, node) = (
        Notes::new(),
        Node::start(Arc::new(MemoryStore::new(config, clock)), 1000).await,
    );
    node.subscribe("agent/0", "agent", notes_only());
    node.dispatcher
        .map(notes.source(), Place::default())
        .unwrap();
    node.ready().await;
    for n in 0..60 {
        notes.write(&format!("{n:02}.md"), "1");
    }
    let shown = eventually(PATIENCE, || {
        let checks = node.readiness.ready().checks;
        checks.iter().any(|check| {
            check
                .reason
                .as_deref()
                .is_some_and(|why| why.contains("store is full"))
        })
    });
    assert!(shown.await, "{:?}", node.readiness.ready());
    assert!(node.readiness.health().ok);
    let store = node.stop().await;
    assert!(store.head().borrow().0 > 0);
}

/// Deliveries that fail half-way must not leave half of a change behind.
#[tokio::test]
async fn a_change_for_two_agents_is_committed_for_both_or_for_none() {
    let (notes, node) = (Notes::new(), Node::start(memory(), 1).await);
    node.subscribe("0-other", "other", notes_only());
    node.subscribe("1-agent", "agent", notes_only());
    node.dispatcher
        .map(notes.source(), Place::default())
        .unwrap();
    node.ready().await;
    notes.write("a.md", "1");
    notes.write("b.md", "1");
    notes.write("c.md", "1");
    assert!(eventually(PATIENCE, || node.dispatcher.status()[0].waiting == 2).await);
    assert_eq!((node.inbox.len(), node.other.len()), (1, 1));
    let mut received = Mutex::new(Vec::new());
    let all = async {
        while received.lock().len() < 3 {
            let more = node.receive(&node.inbox).await;
            received.lock().extend(more);
            tokio::task::yield_now().await;
        }
    };
    volary_kernel::clock::timeout(PATIENCE, all).await.unwrap();
    assert_eq!(received.get_mut().len(), 3);
    assert_eq!(node.other.len(), 3);
    node.stop().await;
}
