//! Tasks: claims that hold for a time, reports that count once, and who may see what.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "a test stands outside of every supervisor, asks the environment for its size, and tells what it measured"
)]

use std::{collections::HashSet, sync::Arc, time::Duration};

use serde_json::json;
use volary_kernel::{
    ManualClock, SystemClock,
    clock::{Clock, SharedClock},
    id::{Name, Tenant},
    metric::Metrics,
    secret::{Redactor, Secret},
    sign::SigningKey,
};
use volary_messaging::task::{
    ClaimToken, Failing, NewTask, Reported, Submitted, TaskClaim, TaskConfig, TaskError,
    TaskFilter, TaskId, TaskManager, TaskQuery, TaskState, Waited, Worker,
};
use volary_store::{
    Filter, MemoryConfig, MemoryStore, Queues, Seq, SharedStore, SqliteConfig, SqliteStore,
};

const NOW: Duration = Duration::ZERO;
const TTL: Duration = Duration::from_millis(100);

struct World {
    clock: ManualClock,
    store: SharedStore,
    queues: Queues,
    tasks: TaskManager,
    metrics: Metrics,
    redactor: Redactor,
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn tenant() -> Tenant {
    Tenant::default()
}

fn worker(text: &str) -> Worker {
    Worker::new(tenant(), name(text))
}

fn memory(clock: SharedClock) -> SharedStore {
    Arc::new(MemoryStore::new(MemoryConfig::new(name("node")), clock))
}

impl World {
    async fn new() -> Self {
        let clock = ManualClock::default();
        Self::over(memory(clock.shared()), clock).await
    }

    async fn over(store: SharedStore, clock: ManualClock) -> Self {
        let (metrics, redactor) = (Metrics::default(), Redactor::default());
        let queues = Queues::open(store.clone()).await.unwrap();
        let config = TaskConfig {
            max_ended: 3,
            ..TaskConfig::default()
        };
        let tasks = TaskManager::open(
            queues.clone(),
            store.clone(),
            config,
            redactor.clone(),
            &metrics,
        );
        Self {
            clock,
            store,
            queues,
            tasks: tasks.await.unwrap(),
            metrics,
            redactor,
        }
    }

    async fn submit(&self, new: NewTask) -> TaskId {
        self.tasks
            .submit(&tenant(), &name("boss"), new)
            .await
            .unwrap()
            .id()
    }

    async fn claim(&self, who: &str) -> Option<TaskClaim> {
        let claims = self
            .tasks
            .claim(&worker(who), &TaskFilter::all(), 1, NOW)
            .await;
        claims.unwrap().pop()
    }

    async fn state(&self, id: TaskId) -> TaskState {
        self.tasks.get(&tenant(), id).await.unwrap().state
    }

    /// Lets time pass as the node does.
    async fn pass(&self, time: Duration) {
        self.clock.advance(time);
        self.queues.sweep().await.unwrap();
    }

    async fn journal(&self) -> Vec<String> {
        let page = self
            .store
            .read(Seq::FIRST, &Filter::kind("task."), 4000)
            .await
            .unwrap();
        page.rows.into_iter().map(|row| row.kind).collect()
    }

    async fn list(&self, filter: TaskFilter) -> Vec<TaskId> {
        let page = self
            .tasks
            .list_pending(&tenant(), &filter, None, 100)
            .await
            .unwrap();
        page.tasks.into_iter().map(|task| task.id).collect()
    }
}

fn short() -> NewTask {
    NewTask {
        objective: json!("index the notes"),
        claim_ttl: Some(TTL),
        ..NewTask::default()
    }
}

/// T1 (task claim TTL): after the time of a claim the task is pending again, belongs to nobody, and is listed.
#[tokio::test]
async fn a_claim_that_is_not_renewed_ends_after_its_time() {
    let world = World::new().await;
    let id = world.submit(short()).await;
    let claimed = world.claim("a").await.unwrap();
    assert_eq!(
        (claimed.task.id, claimed.task.state),
        (id, TaskState::Claimed)
    );
    world.pass(Duration::from_millis(99)).await;
    assert_eq!(world.state(id).await, TaskState::Claimed);
    world.pass(Duration::from_millis(51)).await;
    let task = world.tasks.get(&tenant(), id).await.unwrap();
    assert_eq!(
        (task.state, task.assigned_to, task.epoch),
        (TaskState::Pending, None, None)
    );
    assert_eq!(world.list(TaskFilter::all()).await, [id]);
    assert_eq!(
        world.journal().await,
        ["task.submitted", "task.claimed", "task.lapsed"]
    );
}

/// A claim is for a length of time: a wall clock that steps neither ends it nor makes it longer, and the time of a task
/// that waits for another try passes all the same.
#[tokio::test]
async fn a_wall_clock_that_steps_neither_ends_a_claim_nor_lengthens_it() {
    let day = Duration::from_secs(86_400);
    let millis = Duration::from_millis;
    for forward in [true, false] {
        let world = World::new().await;
        let step = |world: &World| {
            let now = world.clock.wall();
            world
                .clock
                .jump_wall(if forward { now + day } else { now - day });
        };
        let id = world.submit(short()).await;
        let claimed = world.claim("a").await.unwrap();
        world.pass(millis(40)).await;
        step(&world);
        world.pass(millis(40)).await;
        assert_eq!(world.state(id).await, TaskState::Claimed, "{forward}");
        assert!(world.claim("b").await.is_none(), "{forward}");
        let renewed = world.tasks.renew(&worker("a"), claimed.token).await;
        assert_eq!(renewed.unwrap(), TTL, "{forward}");
        step(&world);
        world.pass(millis(90)).await;
        assert_eq!(world.state(id).await, TaskState::Claimed, "{forward}");
        world.pass(TTL).await;
        let again = world.claim("b").await.unwrap();
        assert_eq!(again.task.attempts, 2, "{forward}");
        let late = world
            .tasks
            .report(&worker("a"), claimed.token, json!(1))
            .await;
        assert!(matches!(late, Err(TaskError::Lapsed { .. })), "{late:?}");
        // Back for another try, with a clock that steps while it waits.
        let failing = Failing::Again(Some(Duration::from_secs(5)));
        world
            .tasks
            .fail(&worker("b"), again.token, "not now", failing)
            .await
            .unwrap();
        step(&world);
        world.pass(Duration::from_secs(4)).await;
        assert!(world.claim("c").await.is_none(), "{forward}");
        world.pass(Duration::from_secs(2)).await;
        let third = world.claim("c").await.unwrap();
        let reported = world
            .tasks
            .report(&worker("c"), third.token, json!(3))
            .await;
        assert!(reported.is_ok(), "{reported:?}");
    }
}

/// T2 (task claim TTL): what one worker left, another one finishes.
#[tokio::test]
async fn a_second_worker_finishes_what_the_first_left() {
    let world = World::new().await;
    let id = world.submit(short()).await;
    let lost = world.claim("a").await.unwrap();
    world.pass(TTL).await;
    let claimed = world.claim("b").await.unwrap();
    assert_eq!(
        (claimed.task.attempts, claimed.task.assigned_to.as_deref()),
        (2, Some("b"))
    );
    assert!(claimed.token.epoch > lost.token.epoch);
    let done = world
        .tasks
        .report(&worker("b"), claimed.token, json!("recovered"))
        .await;
    assert_eq!(done.unwrap(), Reported::Now);
    let task = world.tasks.get(&tenant(), id).await.unwrap();
    assert_eq!(
        (task.state, task.result),
        (TaskState::Completed, Some(json!("recovered")))
    );
}

/// T3 (task claim TTL): claims are taken back without anybody asking for it.
#[tokio::test(start_paused = true)]
async fn claims_are_taken_back_by_themselves() {
    let clock: SharedClock = Arc::new(SystemClock);
    let tasks = TaskManager::in_memory(clock).await.unwrap();
    let stop = tokio_util::sync::CancellationToken::new();
    let reaper = tokio::spawn({
        let (tasks, stop) = (tasks.clone(), stop.clone());
        async move { tasks.run(stop).await }
    });
    let by = name("boss");
    let new = NewTask {
        claim_ttl: Some(Duration::from_secs(5)),
        ..NewTask::default()
    };
    let id = tasks.submit(&tenant(), &by, new).await.unwrap().id();
    assert!(
        tasks
            .claim_id(&worker("a"), &TaskFilter::all(), id)
            .await
            .unwrap()
            .is_some()
    );
    let begun = tokio::time::Instant::now();
    let mut news = tasks.news(&tenant()).unwrap();
    while tasks.get(&tenant(), id).await.unwrap().state == TaskState::Claimed {
        tokio::time::timeout(Duration::from_secs(60), news.changed())
            .await
            .unwrap()
            .unwrap();
    }
    assert!(
        begun.elapsed() <= Duration::from_secs(6),
        "{:?}",
        begun.elapsed()
    );
    stop.cancel();
    reaper.await.unwrap();
}

/// T4 (task claim TTL): a second claim gets nothing; a stranger's report is not authorized; what is not known is said so.
#[tokio::test]
async fn only_who_claimed_reports() {
    let world = World::new().await;
    let id = world.submit(short()).await;
    let claimed = world.claim("a").await.unwrap();
    assert!(world.claim("b").await.is_none());
    assert!(
        world
            .tasks
            .claim_id(&worker("b"), &TaskFilter::all(), id)
            .await
            .unwrap()
            .is_none()
    );
    let stranger = world
        .tasks
        .report(&worker("b"), claimed.token, json!(1))
        .await
        .unwrap_err();
    assert!(
        stranger.to_string().contains("not authorized"),
        "{stranger}"
    );
    let unknown = ClaimToken {
        task: TaskId::generate(),
        epoch: 1,
    };
    assert!(
        world
            .tasks
            .claim_id(&worker("a"), &TaskFilter::all(), unknown.task)
            .await
            .unwrap()
            .is_none()
    );
    let refused = world.tasks.report(&worker("a"), unknown, json!(1)).await;
    assert!(matches!(refused, Err(TaskError::Unknown(_))), "{refused:?}");
    let elsewhere = Worker::new("other".parse().unwrap(), name("a"));
    let refused = world
        .tasks
        .report(&elsewhere, claimed.token, json!(1))
        .await;
    assert!(
        matches!(refused, Err(TaskError::Unknown(_))),
        "another tenant sees nothing"
    );
    assert!(
        world
            .tasks
            .claim(&elsewhere, &TaskFilter::all(), 9, NOW)
            .await
            .unwrap()
            .is_empty()
    );
    assert!(world.tasks.get(&elsewhere.tenant, id).await.is_err());
    assert_eq!(world.state(id).await, TaskState::Claimed);
}

/// T5 (task claim TTL): a task is cancelled once, and what has ended is not cancelled.
#[tokio::test]
async fn a_task_is_cancelled_once() {
    let world = World::new().await;
    let (waiting, claimed) = (world.submit(short()).await, world.submit(short()).await);
    let claim = world
        .tasks
        .claim_id(&worker("a"), &TaskFilter::all(), claimed)
        .await
        .unwrap()
        .unwrap();
    for id in [waiting, claimed] {
        assert!(world.tasks.cancel(&tenant(), id, "enough").await.unwrap());
        assert!(!world.tasks.cancel(&tenant(), id, "enough").await.unwrap());
        let task = world.tasks.get(&tenant(), id).await.unwrap();
        assert_eq!(
            (task.state, task.reason.as_deref()),
            (TaskState::Cancelled, Some("enough"))
        );
    }
    let late = world
        .tasks
        .report(&worker("a"), claim.token, json!("too late"))
        .await;
    let cancelled = matches!(
        late,
        Err(TaskError::Lapsed {
            state: TaskState::Cancelled,
            ..
        })
    );
    assert!(cancelled, "{late:?}");
    let unknown = world.tasks.cancel(&tenant(), TaskId::generate(), "").await;
    assert!(matches!(unknown, Err(TaskError::Unknown(_))));
    assert!(world.claim("b").await.is_none());
}

/// T6 (task claim TTL): who has the claim may fail it, a stranger may not; failed attempts come again until they are used
/// up, then the task is parked and a person lets it go on.
#[tokio::test]
async fn a_failed_attempt_comes_again_until_it_is_parked() {
    let world = World::new().await;
    let new = NewTask {
        max_retries: Some(1),
        ..short()
    };
    let id = world.submit(new).await;
    let claim = world.claim("a").await.unwrap();
    let fail = |who: &str, token, then| {
        let (tasks, worker) = (world.tasks.clone(), worker(who));
        async move { tasks.fail(&worker, token, "no luck", then).await }
    };
    let stranger = fail("b", claim.token, Failing::GiveUp).await;
    assert!(matches!(stranger, Err(TaskError::NotAuthorized { .. })));
    let wait = Some(Duration::from_secs(3));
    let again = fail("a", claim.token, Failing::Again(wait)).await;
    assert_eq!(again.unwrap(), TaskState::Pending);
    assert!(world.claim("a").await.is_none(), "it waits");
    world.pass(Duration::from_secs(3)).await;
    let claim = world.claim("a").await.unwrap();
    assert_eq!(claim.task.reason.as_deref(), Some("no luck"));
    let last = fail("a", claim.token, Failing::Again(None)).await;
    assert_eq!(last.unwrap(), TaskState::Parked);
    let parked = world.queues.parked(None, 9).await.unwrap();
    assert_eq!(parked.len(), 1);
    let waited = world
        .tasks
        .wait_until_done(&tenant(), id, Duration::from_secs(9))
        .await;
    assert!(matches!(waited.unwrap(), Waited::Done(task) if task.state == TaskState::Parked));
    world.queues.retry_parked(parked[0].id).await.unwrap();
    let claim = world.claim("a").await.unwrap();
    let over = fail("a", claim.token, Failing::GiveUp).await;
    assert_eq!(over.unwrap(), TaskState::Failed);
    assert_eq!(world.state(id).await, TaskState::Failed);
    let again = world
        .tasks
        .report(&worker("a"), claim.token, json!("yes"))
        .await;
    assert!(again.is_err(), "what failed does not become completed");
    assert_eq!(world.state(id).await, TaskState::Failed);
}

/// T6 (task claim TTL): the system may give up what nobody claimed: a parked task that is dropped ends as cancelled.
#[tokio::test]
async fn a_parked_task_that_is_dropped_has_ended() {
    let world = World::new().await;
    let id = world
        .submit(NewTask {
            max_retries: Some(0),
            ..short()
        })
        .await;
    world.claim("a").await.unwrap();
    world.pass(TTL).await;
    assert_eq!(world.state(id).await, TaskState::Parked);
    let parked = world.queues.parked(None, 9).await.unwrap();
    world
        .queues
        .drop_parked(parked[0].id, "nobody wants it")
        .await
        .unwrap();
    let task = world.tasks.get(&tenant(), id).await.unwrap();
    assert_eq!(task.state, TaskState::Cancelled);
    assert_eq!(task.reason.as_deref(), Some("nobody wants it"));
}

/// T7 (task claim TTL): pool, topic and capabilities decide alone and together who sees a task.
#[tokio::test]
async fn filters_decide_who_sees_a_task() {
    let world = World::new().await;
    let can = |word: &str| volary_messaging::Capability::new(word).unwrap();
    let free = world.submit(NewTask::default()).await;
    let pooled = world
        .submit(NewTask {
            pool: Some(name("p")),
            ..NewTask::default()
        })
        .await;
    let able = NewTask {
        pool: Some(name("p")),
        required_capabilities: [can("gpu"), can("read")].into(),
        ..NewTask::default()
    };
    let able = world.submit(able).await;
    let topic = volary_messaging::Topic::new("notes").unwrap();
    let about = world
        .submit(NewTask {
            topic: Some(topic.clone()),
            ..NewTask::default()
        })
        .await;
    let filter = |pools: Option<&[&str]>, words: Option<&[&str]>| TaskFilter {
        pools: pools.map(|pools| pools.iter().map(|pool| name(pool)).collect()),
        topics: Some(Vec::new()),
        capabilities: words.map(|words| words.iter().map(|word| can(word)).collect()),
    };
    assert_eq!(world.list(filter(Some(&[]), None)).await, [free]);
    assert_eq!(
        world.list(filter(Some(&["p"]), Some(&[]))).await,
        [free, pooled]
    );
    assert_eq!(
        world.list(filter(Some(&["p"]), Some(&["gpu"]))).await,
        [free, pooled]
    );
    let all = filter(Some(&["p", "q"]), Some(&["gpu", "read", "x"]));
    assert_eq!(world.list(all).await, [free, pooled, able]);
    assert_eq!(world.list(filter(None, None)).await, [free, pooled, able]);
    let topics = TaskFilter {
        topics: Some(vec![topic]),
        pools: Some(vec![]),
        ..TaskFilter::all()
    };
    assert_eq!(world.list(topics.clone()).await, [free, about]);
    let claims = world
        .tasks
        .claim(&worker("a"), &topics, 9, NOW)
        .await
        .unwrap();
    let claimed: Vec<_> = claims.iter().map(|claim| claim.task.id).collect();
    assert_eq!(claimed, [free, about]);
}

/// T8 (task claim TTL): what was submitted is claimable after a restart on the same store, and completed there.
#[tokio::test]
async fn tasks_outlive_their_manager() {
    let world = World::new().await;
    let (one, two) = (world.submit(short()).await, world.submit(short()).await);
    let before = world
        .tasks
        .claim_id(&worker("a"), &TaskFilter::all(), one)
        .await
        .unwrap()
        .unwrap();
    let World { store, clock, .. } = world;
    let world = World::over(store, clock).await;
    world.queues.sweep().await.unwrap();
    assert_eq!(world.list(TaskFilter::all()).await, [one, two]);
    let late = world
        .tasks
        .report(&worker("a"), before.token, json!("from before"))
        .await;
    assert!(matches!(late, Err(TaskError::Lapsed { .. })), "{late:?}");
    let claim = world.claim("b").await.unwrap();
    assert_eq!((claim.task.id, claim.task.attempts), (one, 2));
    world
        .tasks
        .report(&worker("b"), claim.token, json!(1))
        .await
        .unwrap();
    let World { store, clock, .. } = world;
    let world = World::over(store, clock).await;
    assert_eq!(world.state(one).await, TaskState::Completed);
    let done = TaskQuery {
        state: Some(TaskState::Completed),
        ..TaskQuery::default()
    };
    assert_eq!(world.tasks.list(&tenant(), &done).await.unwrap().len(), 1);
}

/// D10 and D11 (task claim TTL): a claim whose time is not over is not touched, and one that is renewed never ends.
#[tokio::test]
async fn a_claim_that_is_renewed_holds() {
    let world = World::new().await;
    let id = world.submit(short()).await;
    let claim = world.claim("a").await.unwrap();
    for _ in 0..50 {
        world.pass(Duration::from_millis(80)).await;
        assert_eq!(
            world.tasks.renew(&worker("a"), claim.token).await.unwrap(),
            TTL
        );
    }
    assert_eq!(world.state(id).await, TaskState::Claimed);
    assert!(world.tasks.renew(&worker("b"), claim.token).await.is_err());
    world.pass(TTL).await;
    let late = world.tasks.renew(&worker("a"), claim.token).await;
    assert!(matches!(
        late,
        Err(TaskError::Lapsed {
            state: TaskState::Pending,
            ..
        })
    ));
}

/// D12 (task claim TTL): a report that comes after its claim has ended is refused, the result that counts stays, and the
/// one that came late is in the journal.
#[tokio::test]
async fn a_late_report_changes_nothing_and_is_kept() {
    let world = World::new().await;
    let id = world.submit(short()).await;
    let first = world.claim("a").await.unwrap();
    world.pass(TTL).await;
    let late = world
        .tasks
        .report(&worker("a"), first.token, json!("late 1"))
        .await;
    assert!(
        matches!(
            late,
            Err(TaskError::Lapsed {
                state: TaskState::Pending,
                ..
            })
        ),
        "{late:?}"
    );
    let second = world.claim("b").await.unwrap();
    let late = world
        .tasks
        .report(&worker("a"), first.token, json!("late 2"))
        .await;
    assert!(
        matches!(
            late,
            Err(TaskError::Lapsed {
                state: TaskState::Claimed,
                ..
            })
        ),
        "{late:?}"
    );
    world
        .tasks
        .report(&worker("b"), second.token, json!("in time"))
        .await
        .unwrap();
    let late = world
        .tasks
        .report(&worker("a"), first.token, json!("late 3"))
        .await;
    assert!(
        matches!(
            late,
            Err(TaskError::Lapsed {
                state: TaskState::Completed,
                ..
            })
        ),
        "{late:?}"
    );
    let task = world.tasks.get(&tenant(), id).await.unwrap();
    assert_eq!(task.result, Some(json!("in time")));
    let page = world
        .store
        .read(Seq::FIRST, &Filter::kind("task.late"), 9)
        .await
        .unwrap();
    let kept = page
        .rows
        .iter()
        .filter(|row| String::from_utf8_lossy(&row.body).contains("late "));
    assert_eq!(kept.count(), 3);
}

/// D12 (task claim TTL): the same report twice is harmless, another one under the same claim is refused.
#[tokio::test]
async fn a_report_counts_once() {
    let world = World::new().await;
    let id = world.submit(short()).await;
    let claim = world.claim("a").await.unwrap();
    let me = worker("a");
    let report = |result| world.tasks.report(&me, claim.token, result);
    assert_eq!(report(json!({"n": 1})).await.unwrap(), Reported::Now);
    assert_eq!(report(json!({"n": 1})).await.unwrap(), Reported::Before);
    assert!(report(json!({"n": 2})).await.is_err());
    let failed = world
        .tasks
        .fail(&worker("a"), claim.token, "no", Failing::GiveUp)
        .await;
    assert!(matches!(
        failed,
        Err(TaskError::Lapsed {
            state: TaskState::Completed,
            ..
        })
    ));
    assert_eq!(
        world.tasks.get(&tenant(), id).await.unwrap().result,
        Some(json!({"n": 1}))
    );
    let done = world
        .journal()
        .await
        .iter()
        .filter(|kind| *kind == "task.completed")
        .count();
    assert_eq!(done, 1);
}

/// D13 (task claim TTL): many race for many tasks; each is claimed by one. Ten thousand tasks with `VOLARY_TEST_FULL=1`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn racing_claimers_claim_each_task_once() {
    let full = std::env::var_os("VOLARY_TEST_FULL").is_some();
    let count = if full { 10_000 } else { 1_000 };
    let folder = tempfile::tempdir().unwrap();
    let key = Arc::new(SigningKey::generate().unwrap());
    let config = SqliteConfig::new(folder.path().join("db"), name("node"), key);
    let clock: SharedClock = Arc::new(SystemClock);
    let store: SharedStore = Arc::new(SqliteStore::open(config, clock).await.unwrap());
    let queues = Queues::open(store.clone()).await.unwrap();
    let metrics = Metrics::default();
    let config = TaskConfig::default();
    let tasks =
        TaskManager::open(queues, store.clone(), config, Redactor::default(), &metrics).await;
    let tasks = tasks.unwrap();
    let boss = name("boss");
    let of = tenant();
    let submits = (0..count).map(|_| tasks.submit(&of, &boss, NewTask::default()));
    for submitted in futures_util::future::join_all(submits).await {
        submitted.unwrap();
    }
    let racers = ["a", "b"]
        .into_iter()
        .flat_map(|who| (0..8).map(move |_| who))
        .map(|who| {
            let (tasks, worker) = (tasks.clone(), worker(who));
            tokio::spawn(async move {
                let mut mine = Vec::new();
                loop {
                    let claims = tasks
                        .claim(&worker, &TaskFilter::all(), 2, NOW)
                        .await
                        .unwrap();
                    if claims.is_empty() {
                        return mine;
                    }
                    for claim in claims {
                        tasks
                            .report(&worker, claim.token, json!(who))
                            .await
                            .unwrap();
                        mine.push(claim.task.id);
                    }
                }
            })
        });
    let racers: Vec<_> = racers.collect();
    let (mut claimed, mut unique) = (0, HashSet::new());
    for racer in racers {
        for id in racer.await.unwrap() {
            (claimed, _) = (claimed + 1, unique.insert(id));
        }
    }
    assert_eq!((claimed, unique.len()), (count, count));
}

/// D13 (task claim TTL): two who want the same task: one gets it.
#[tokio::test]
async fn of_two_who_want_one_task_one_gets_it() {
    let world = World::new().await;
    let id = world.submit(short()).await;
    let (a, b, all) = (worker("a"), worker("b"), TaskFilter::all());
    let both = tokio::join!(
        world.tasks.claim_id(&a, &all, id),
        world.tasks.claim_id(&b, &all, id)
    );
    let winners = [both.0.unwrap(), both.1.unwrap()]
        .into_iter()
        .flatten()
        .count();
    assert_eq!(winners, 1);
}

/// Submitting (improve): the same task again is the same task; another content under its id is refused.
#[tokio::test]
async fn the_same_submit_again_is_the_first_and_another_is_refused() {
    let world = World::new().await;
    let id = TaskId::generate();
    let new = NewTask {
        id: Some(id),
        ..short()
    };
    let submit = |new: NewTask| {
        let (tasks, boss) = (world.tasks.clone(), name("boss"));
        async move { tasks.submit(&tenant(), &boss, new).await }
    };
    assert_eq!(submit(new.clone()).await.unwrap(), Submitted::New(id));
    let claim = world.claim("a").await.unwrap();
    world
        .tasks
        .report(&worker("a"), claim.token, json!(7))
        .await
        .unwrap();
    match submit(new.clone()).await.unwrap() {
        Submitted::Before(task) => assert_eq!(task.result, Some(json!(7))),
        other @ Submitted::New(_) => panic!("{other:?}"),
    }
    let other = NewTask {
        inputs: json!({"x": 1}),
        ..new
    };
    assert!(matches!(submit(other).await, Err(TaskError::Conflict(_))));
    assert!(world.claim("a").await.is_none(), "it is done once");
}

/// Deadlines (improve): a task that nobody took in time is expired, and whoever waits for it learns it.
#[tokio::test]
async fn a_deadline_ends_what_waits() {
    let world = World::new().await;
    let deadline = Some(world.clock.wall() + Duration::from_secs(5));
    let id = world
        .submit(NewTask {
            deadline,
            ..short()
        })
        .await;
    let tasks = world.tasks.clone();
    let waiter = tokio::spawn(async move {
        tasks
            .wait_until_done(&tenant(), id, Duration::from_secs(3600))
            .await
            .unwrap()
    });
    tokio::task::yield_now().await;
    world.pass(Duration::from_secs(6)).await;
    let waited = tokio::time::timeout(Duration::from_secs(10), waiter)
        .await
        .unwrap()
        .unwrap();
    assert!(matches!(waited, Waited::Done(task) if task.state == TaskState::Expired));
    let past = NewTask {
        deadline,
        ..short()
    };
    let refused = world.tasks.submit(&tenant(), &name("boss"), past).await;
    assert!(matches!(refused, Err(TaskError::Invalid(_))));
}

/// Waiting (improve): the answer says whether the task ended or time did.
#[tokio::test]
async fn a_wait_says_whether_the_task_ended() {
    let world = World::new().await;
    let id = world.submit(short()).await;
    let waited = world
        .tasks
        .wait_until_done(&tenant(), id, NOW)
        .await
        .unwrap();
    assert!(matches!(waited, Waited::TimedOut(task) if task.state == TaskState::Pending));
    let claim = world.claim("a").await.unwrap();
    world
        .tasks
        .report(&worker("a"), claim.token, json!(1))
        .await
        .unwrap();
    let waited = world
        .tasks
        .wait_until_done(&tenant(), id, NOW)
        .await
        .unwrap();
    assert!(matches!(waited, Waited::Done(task) if task.state == TaskState::Completed));
}

/// Priority (improve): the most urgent goes first, then the oldest.
#[tokio::test]
async fn the_most_urgent_is_claimed_first() {
    let world = World::new().await;
    let with = |priority| NewTask {
        priority: volary_messaging::Priority(priority),
        ..short()
    };
    let (low, high, low2) = (
        world.submit(with(1)).await,
        world.submit(with(200)).await,
        world.submit(with(1)).await,
    );
    for id in [high, low, low2] {
        assert_eq!(world.claim("a").await.unwrap().task.id, id);
    }
}

/// Bounds (improve): ended tasks are kept for a time and up to a number; the oldest goes first.
#[tokio::test]
async fn ended_tasks_are_kept_within_bounds() {
    let world = World::new().await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(world.submit(short()).await);
        let claim = world.claim("a").await.unwrap();
        world
            .tasks
            .report(&worker("a"), claim.token, json!(1))
            .await
            .unwrap();
    }
    let listed = world
        .tasks
        .list(&tenant(), &TaskQuery::default())
        .await
        .unwrap();
    let listed: Vec<_> = listed.into_iter().map(|task| task.id).collect();
    assert_eq!(listed, [ids[4], ids[3], ids[2]]);
    assert!(matches!(
        world.tasks.get(&tenant(), ids[0]).await,
        Err(TaskError::Unknown(_))
    ));
    world.clock.advance(Duration::from_secs(25 * 3600));
    assert!(matches!(
        world.tasks.get(&tenant(), ids[4]).await,
        Err(TaskError::Unknown(_))
    ));
}

/// Secrets (promise 10): a task that contains one is refused, a result is cleaned of it.
#[tokio::test]
async fn secrets_do_not_stay_in_tasks() {
    let world = World::new().await;
    world.redactor.add(&Secret::new("canary-4711")).unwrap();
    let bad = NewTask {
        inputs: json!({"key": "canary-4711"}),
        ..short()
    };
    let refused = world.tasks.submit(&tenant(), &name("boss"), bad).await;
    assert!(matches!(refused, Err(TaskError::Secret(_))));
    let id = world.submit(short()).await;
    let claim = world.claim("a").await.unwrap();
    let result = json!({"said": "canary-4711"});
    world
        .tasks
        .report(&worker("a"), claim.token, result)
        .await
        .unwrap();
    let task = world.tasks.get(&tenant(), id).await.unwrap();
    assert!(!serde_json::to_string(&task).unwrap().contains("canary"));
    let page = world
        .store
        .read(Seq::FIRST, &Filter::all(), 99)
        .await
        .unwrap();
    assert!(
        page.rows
            .iter()
            .all(|row| !String::from_utf8_lossy(&row.body).contains("canary"))
    );
}

/// Metrics (improve): what happens to tasks is counted, and how many are in which state is told.
#[tokio::test]
async fn tasks_are_counted() {
    let world = World::new().await;
    world.submit(short()).await;
    world.submit(short()).await;
    let claim = world.claim("a").await.unwrap();
    world
        .tasks
        .report(&worker("a"), claim.token, json!(1))
        .await
        .unwrap();
    let text = world.metrics.encode_text();
    for line in [
        "tasks_total{event=\"submitted\"} 2",
        "tasks_total{event=\"claimed\"} 1",
        "tasks_total{event=\"completed\"} 1",
        "tasks_current{state=\"pending\"} 1",
        "tasks_current{state=\"claimed\"} 0",
        "task_claim_wait_seconds_count 1",
    ] {
        assert!(text.contains(line), "`{line}` is not in\n{text}");
    }
}

/// Listing (improve): a page of a hundred thousand tasks is looked at in milliseconds, not scanned for.
#[tokio::test]
async fn a_page_of_a_hundred_thousand_tasks_is_fast() {
    let world = World::new().await;
    let mut tx = volary_store::Batch::new();
    for index in 0..100_000 {
        let pool = Some(name(&format!("p{}", index % 100)));
        let new = NewTask {
            pool,
            ..NewTask::default()
        };
        world
            .tasks
            .submit_in(&mut tx, &tenant(), &name("boss"), new)
            .unwrap();
        if index % 1000 == 999 {
            world.store.commit(std::mem::take(&mut tx)).await.unwrap();
        }
    }
    let filter = TaskFilter {
        pools: Some(vec![name("p7")]),
        ..TaskFilter::all()
    };
    let begun = SystemClock.mono();
    for _ in 0..10 {
        let page = world
            .tasks
            .list_pending(&tenant(), &filter, None, 100)
            .await
            .unwrap();
        assert_eq!((page.tasks.len(), page.next.is_some()), (100, true));
    }
    let each = (SystemClock.mono() - begun) / 10;
    assert!(each < Duration::from_millis(60), "a page took {each:?}");
    eprintln!("a page of 100 of 100,000 tasks in 100 pools: {each:?}");
    let full = world
        .tasks
        .submit(&tenant(), &name("boss"), NewTask::default())
        .await;
    assert!(
        full.is_err_and(|error| error.is_transient()),
        "the queue is bounded"
    );
}
