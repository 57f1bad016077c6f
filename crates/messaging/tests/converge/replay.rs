//! §3 Replay: T1–T7, D8–D11, and what Volary promises beyond them.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use volary_kernel::{
    Name, Tenant, Timestamp,
    clock::{Clock as _, ManualClock, SystemClock},
    metric::Metrics,
    secret::{Redactor, Secret},
};
use volary_messaging::{
    Direction, EndpointSpec, Identity, InboxSpec, Inboxes, Local, Mailbox, Message, Replay,
    ReplayLog, ReplayQuery, Sender, Transport as _,
    agent::{Agent, AgentError, AgentRuntime, Cx, Decision, Rehearsal},
    frame::{self, SealedMessage, Trust},
    message::ContentType,
    replay::{
        Imports, PlannedMessage, Position, Recording, ReplayError, ReplayRunner, Signers, Speed,
        verify::{Act, Added, verify_messages},
    },
    task::Task,
};
use volary_store::{
    Filter, MemoryConfig, MemoryStore, Queues, Seq, SharedStore,
    journal::{ArchiveTrust, ExportError, verify_export},
};

const NOW: Timestamp = Timestamp::from_micros(1_767_225_600_000_000);

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn second(n: u64) -> Timestamp {
    NOW + Duration::from_secs(n)
}

/// A log on a clock that tests move.
fn log() -> (ReplayLog, ManualClock) {
    let clock = ManualClock::new(NOW);
    (ReplayLog::in_memory(clock.shared()), clock)
}

struct Speaker(Identity, Sender);

impl Speaker {
    fn new(who: &str) -> Self {
        let identity = Identity::generate().unwrap();
        let sender = Sender::new(identity.id(), name(who), Tenant::default());
        Self(identity, sender)
    }

    fn says(&self, bytes: &[u8], sent_at: Timestamp) -> Message {
        Message::builder(self.1.clone())
            .topic("t".parse().unwrap())
            .bytes(ContentType::BYTES, bytes.to_vec())
            .unwrap()
            .build(sent_at)
            .unwrap()
    }
}

fn text(planned: &PlannedMessage) -> String {
    String::from_utf8_lossy(planned.message.body()).into_owned()
}

/// What a callback was fed with.
type Fed = Arc<Mutex<Vec<String>>>;

fn keep(fed: &Fed) -> impl FnMut(PlannedMessage) -> std::future::Ready<Result<(), ReplayError>> {
    let fed = fed.clone();
    move |planned| {
        fed.lock().push(text(&planned));
        std::future::ready(Ok(()))
    }
}

fn words(fed: &Fed) -> Vec<String> {
    fed.lock().clone()
}

struct Node {
    store: SharedStore,
    inboxes: Inboxes,
    mailbox: Mailbox,
}

async fn node(secrets: Redactor) -> Node {
    let memory = MemoryStore::new(MemoryConfig::new(name("node")), SystemClock::shared());
    let store: SharedStore = Arc::new(memory);
    let queues = Queues::open(store.clone()).await.unwrap();
    let inboxes = Inboxes::new(queues, store.clone(), secrets, &Metrics::default());
    let spec = InboxSpec::new(Tenant::default(), name("worker"), Vec::new());
    let mailbox = inboxes.open(spec).unwrap();
    Node {
        store,
        inboxes,
        mailbox,
    }
}

impl Node {
    fn fed<'a>(&self, replay: Replay<'a>) -> Replay<'a> {
        replay.inbox(self.inboxes.clone(), self.store.clone(), name("worker"))
    }

    async fn claim(&self) -> Vec<volary_messaging::Claimed> {
        let claimed = self.mailbox.claim("test", 100, Duration::ZERO).await;
        claimed.unwrap()
    }
}

/// T1 (replay): inbound, outbound and plain records are three events with the right directions.
#[tokio::test]
async fn three_ways_of_recording_are_three_events_with_their_directions() {
    let (log, _) = log();
    let a = Speaker::new("a");
    log.record_inbound(&a.says(b"in", NOW), &name("b"))
        .await
        .unwrap();
    log.record_outbound(&a.says(b"out", NOW)).await.unwrap();
    log.record_message(&a.says(b"plain", NOW)).await.unwrap();
    let planned = log.messages().await.unwrap();
    let seen: Vec<_> = planned
        .iter()
        .map(|one| (text(one), one.direction, one.agent.as_str()))
        .collect();
    assert_eq!(
        seen,
        [
            ("in".into(), Direction::Inbound, "b"),
            ("out".into(), Direction::Outbound, "a"),
            ("plain".into(), Direction::Outbound, "a"),
        ]
    );
    assert_eq!(log.count().await.unwrap(), 3);
}

/// T2 (replay): export and load keep the count and the ids; binary content too.
#[tokio::test]
async fn an_exported_log_comes_back_with_every_id_and_byte() {
    let (log, _) = log();
    let a = Speaker::new("a");
    for n in 0..300u32 {
        let bytes = [&[0xff, 0, 0x80], &n.to_be_bytes()[..]].concat();
        log.record_outbound(&a.says(&bytes, NOW)).await.unwrap();
    }
    let (dir, key) = (tempfile::tempdir().unwrap(), Identity::generate().unwrap());
    let path = dir.path().join("log");
    let file = std::fs::File::create(&path).unwrap();
    let query = ReplayQuery::default();
    let summary = log
        .export(&query, &key.signing_key(), &Signers::default(), file)
        .await
        .unwrap();
    assert_eq!(summary.entries, 300);
    let trust = ArchiveTrust::Key(key.public());
    let loaded = ReplayLog::import(&path, trust).await.unwrap();
    let plan = ReplayRunner::new(loaded).plan(&query).await.unwrap();
    let of = |list: &[PlannedMessage]| -> Vec<_> {
        let one = |one: &PlannedMessage| (one.seq, one.at, one.message.clone());
        list.iter().map(one).collect()
    };
    assert_eq!(of(&plan.messages), of(&log.messages().await.unwrap()));
    assert!(plan.unreadable.is_empty());
}

/// T3 (replay): a dry run with direction and agent returns only the match.
#[tokio::test]
async fn a_dry_run_returns_only_what_direction_and_agent_mean() {
    let (log, _) = log();
    let (a, b) = (Speaker::new("a"), Speaker::new("b"));
    log.record_inbound(&a.says(b"to b", NOW), &name("b"))
        .await
        .unwrap();
    log.record_inbound(&b.says(b"to a", NOW), &name("a"))
        .await
        .unwrap();
    log.record_outbound(&b.says(b"from b", NOW)).await.unwrap();
    let query = ReplayQuery {
        direction: Some(Direction::Inbound),
        agent: Some(name("b")),
        ..ReplayQuery::default()
    };
    let plan = log.runner().plan(&query).await.unwrap();
    let seen: Vec<_> = plan.messages.iter().map(text).collect();
    assert_eq!(seen, ["to b"]);
    let report = log
        .runner()
        .replay(Replay::of(query).dry_run())
        .await
        .unwrap();
    assert_eq!((report.messages, report.fed), (1, 0));
}

/// T4 (replay): an unsorted log reaches the callback in order of time, and the plan is sorted. The time is when the node
/// accepted a message, not what its sender claims: a peer cannot put its messages first.
#[tokio::test]
async fn messages_come_in_the_order_of_acceptance_whatever_their_senders_claim() {
    let (log, clock) = log();
    let a = Speaker::new("a");
    for (word, claim) in [("first", 30), ("second", 10), ("third", 20)] {
        log.record_outbound(&a.says(word.as_bytes(), second(claim)))
            .await
            .unwrap();
        clock.advance(Duration::from_secs(1));
    }
    let fed = Fed::default();
    let report = log
        .runner()
        .replay(Replay::new().callback(keep(&fed)))
        .await
        .unwrap();
    assert_eq!(words(&fed), ["first", "second", "third"]);
    assert_eq!(report.fed, 3);
    let planned = log.messages().await.unwrap();
    assert!(planned.is_sorted_by_key(|one| (one.at, one.seq)));
}

/// T5 (replay): what is no message is skipped.
#[tokio::test]
async fn entries_that_are_no_messages_are_skipped() {
    let (log, _) = log();
    let a = Speaker::new("a");
    log.record_outbound(&a.says(b"x", NOW)).await.unwrap();
    let mut batch = volary_store::Batch::new();
    batch.append(volary_store::Entry::new(
        "page.changed",
        Tenant::default(),
        "{\"v\":1}",
    ));
    log.store().commit(batch).await.unwrap();
    let plan = log.runner().plan(&ReplayQuery::default()).await.unwrap();
    assert_eq!((plan.messages.len(), plan.unreadable.len()), (1, 0));
}

/// T6 (replay): replay into an inbox delivers; marked, under the recorded id and key, for the agent and in the journal.
#[tokio::test]
async fn replay_into_an_inbox_delivers_marked_messages_under_their_own_ids_and_keys() {
    let (log, _) = log();
    let message = Speaker::new("a").says(b"\xff\0", NOW);
    log.record_inbound(&message, &name("old-worker"))
        .await
        .unwrap();
    let node = node(Redactor::default()).await;
    let report = log.runner().replay(node.fed(Replay::new())).await.unwrap();
    assert_eq!(report.fed, 1);
    let claimed = node.claim().await;
    let delivery = &claimed[0].delivery;
    assert_eq!(delivery.message, Some(message.id()));
    assert_eq!(
        delivery.idempotency_key,
        format!("{}/old-worker", message.id())
    );
    assert_eq!(delivery.payload.bytes(), message.body());
    let shown: serde_json::Value = serde_json::from_str(&delivery.to_json()).unwrap();
    assert_eq!(shown["replayed"], true);
    assert_eq!(shown["recorded"]["node"], "replay-log");
    let filter = Filter::kind("message.replayed");
    let rows = node.store.read(Seq::FIRST, &filter, 10).await.unwrap().rows;
    let body: serde_json::Value = serde_json::from_slice(&rows[0].body).unwrap();
    assert_eq!(rows[0].agent, Some(name("worker")));
    assert_eq!(body["idempotency_key"], delivery.idempotency_key);
    // What was replayed is not taken for what was recorded.
    let again = ReplayRunner::new(node.store.clone());
    let plan = again.plan(&ReplayQuery::default()).await.unwrap();
    assert!(plan.messages.is_empty());
}

/// T6, improved: replayed twice while it waits, a message is delivered once; after it was handled, again under the same key.
#[tokio::test]
async fn replay_into_an_inbox_twice_does_not_double_an_effect() {
    let (log, _) = log();
    let a = Speaker::new("a");
    for n in 0..5u8 {
        log.record_inbound(&a.says(&[n], NOW), &name("worker"))
            .await
            .unwrap();
    }
    let node = node(Redactor::default()).await;
    for _ in 0..2 {
        log.runner().replay(node.fed(Replay::new())).await.unwrap();
    }
    let first = node.claim().await;
    assert_eq!(first.len(), 5, "one delivery for each message");
    let mut tx = volary_store::Batch::new();
    for claimed in &first {
        node.mailbox.ack(&mut tx, claimed, 0).unwrap();
    }
    node.store.commit(tx).await.unwrap();
    log.runner().replay(node.fed(Replay::new())).await.unwrap();
    let keys = |claims: &[volary_messaging::Claimed]| -> Vec<String> {
        let key = |claimed: &volary_messaging::Claimed| claimed.delivery.idempotency_key.clone();
        claims.iter().map(key).collect()
    };
    assert_eq!(keys(&node.claim().await), keys(&first));
}

/// T7 (replay), the log by itself: what is recorded keeps its sender. That a runtime with a log records what it receives
/// is `runtime::a_runtime_with_a_log_records_what_it_receives_and_sends`.
#[tokio::test]
async fn a_recorded_message_keeps_its_sender() {
    let (log, _) = log();
    let a = Speaker::new("a");
    log.record_inbound(&a.says(b"x", NOW), &name("b"))
        .await
        .unwrap();
    let planned = log.messages().await.unwrap();
    assert_eq!(planned[0].message.sender(), &a.1);
}

/// D8 (replay): the bounds of time are inclusive.
#[tokio::test]
async fn both_ends_of_a_time_range_are_inclusive() {
    let (log, clock) = log();
    let a = Speaker::new("a");
    for n in 0..5u8 {
        log.record_outbound(&a.says(&[b'0' + n], NOW))
            .await
            .unwrap();
        clock.advance(Duration::from_secs(1));
    }
    let fed = Fed::default();
    let replay = Replay::new().from(second(1)).to(second(3));
    let replay = replay.callback(keep(&fed));
    log.runner().replay(replay).await.unwrap();
    assert_eq!(words(&fed), ["1", "2", "3"]);
}

/// D9 (replay): messages of the same time keep the order in which they were recorded; a clock that is set back does not
/// change it.
#[tokio::test]
async fn equal_times_and_a_clock_set_back_keep_the_recorded_order() {
    let (log, clock) = log();
    let a = Speaker::new("a");
    for n in 0..4u8 {
        if n == 2 {
            clock.jump_wall(NOW - Duration::from_secs(3600));
        }
        log.record_outbound(&a.says(&[b'0' + n], NOW))
            .await
            .unwrap();
    }
    let fed = Fed::default();
    let replay = Replay::new().speed(Speed::Times(1.0)).callback(keep(&fed));
    log.runner().replay(replay).await.unwrap();
    assert_eq!(words(&fed), ["0", "1", "2", "3"]);
}

/// D10 (replay): a dry run calls nothing and puts nothing into an inbox.
#[tokio::test]
async fn a_dry_run_calls_nothing() {
    let (log, _) = log();
    log.record_outbound(&Speaker::new("a").says(b"x", NOW))
        .await
        .unwrap();
    let (fed, node) = (Fed::default(), node(Redactor::default()).await);
    let dry = Replay::new().callback(keep(&fed)).dry_run();
    assert_eq!(log.runner().replay(dry).await.unwrap().messages, 1);
    let dry = node.fed(Replay::new()).dry_run();
    assert_eq!(log.runner().replay(dry).await.unwrap().fed, 0);
    assert!(words(&fed).is_empty() && node.claim().await.is_empty());
}

/// D11 (replay): a signature survives export and load and verifies, alone, against the sender's key and no other. One that
/// was recorded is kept; one whose key the exporter holds is made.
#[tokio::test]
async fn a_signature_survives_export_and_load_and_verifies_alone() {
    let (log, _) = log();
    let (far, own) = (Speaker::new("far"), Speaker::new("own"));
    let messages = [far.says(b"1", NOW), far.says(b"2", NOW)];
    let frame = frame::seal(&far.0, &messages).unwrap();
    let opened = frame::open(&frame, Trust::Key(&far.0.public())).unwrap();
    let sealed = opened.sealed(1).unwrap();
    log.record_sealed(&sealed, &messages[1], &name("own"))
        .await
        .unwrap();
    for n in 0..70u8 {
        log.record_outbound(&own.says(&[n], NOW)).await.unwrap();
    }
    let (dir, key) = (tempfile::tempdir().unwrap(), Identity::generate().unwrap());
    let path = dir.path().join("log");
    let signers: Signers = [own.0.clone()].into_iter().collect();
    let file = std::fs::File::create(&path).unwrap();
    let query = ReplayQuery::default();
    log.export(&query, &key.signing_key(), &signers, file)
        .await
        .unwrap();
    let loaded = ReplayLog::import(&path, ArchiveTrust::Key(key.public()));
    let runner = ReplayRunner::new(loaded.await.unwrap());
    let planned = runner.plan(&query).await.unwrap().messages;
    assert_eq!(planned.len(), 71);
    for one in &planned {
        let (mine, other) = if one.message.sender() == &far.1 {
            (&far, &own)
        } else {
            (&own, &far)
        };
        let opened = one.open_seal(Trust::Key(&mine.0.public())).unwrap();
        assert_eq!(opened.unwrap(), one.message);
        let refused = one.open_seal(Trust::Key(&other.0.public())).unwrap();
        assert!(refused.is_err());
    }
}

/// Beyond the cases: a callback's error stops the replay, which says where, and a second one goes on there.
#[tokio::test]
async fn a_failed_callback_stops_with_its_place_and_can_be_resumed() {
    let (log, _) = log();
    let a = Speaker::new("a");
    for n in 0..6u8 {
        log.record_outbound(&a.says(&[b'0' + n], NOW))
            .await
            .unwrap();
    }
    let fed = Fed::default();
    let mut keep_all = keep(&fed);
    let replay = Replay::new().callback(move |planned: PlannedMessage| {
        let breaks = text(&planned) == "3";
        let kept = (!breaks).then(|| keep_all(planned));
        std::future::ready(match kept {
            Some(_) => Ok(()),
            None => Err(std::io::Error::other("no")),
        })
    });
    let stopped = log.runner().replay(replay).await.unwrap_err();
    assert_eq!(stopped.fed, 3);
    assert!(matches!(stopped.cause, ReplayError::Callback(_)));
    let at: Position = stopped.position.unwrap().to_string().parse().unwrap();
    let rest = Replay::new().after(at).callback(keep(&fed));
    log.runner().replay(rest).await.unwrap();
    assert_eq!(words(&fed), ["0", "1", "2", "3", "4", "5"]);
}

/// Beyond the cases: recorded distances are kept, divided by the speed, in paused time.
#[tokio::test(start_paused = true)]
async fn messages_are_paced_by_their_recorded_distances() {
    let (log, clock) = log();
    let a = Speaker::new("a");
    for gap in [0, 10, 0, 50] {
        clock.advance(Duration::from_secs(gap));
        log.record_outbound(&a.says(b"x", NOW)).await.unwrap();
    }
    let times = Arc::new(Mutex::new(Vec::new()));
    let start = SystemClock.mono();
    let seen = times.clone();
    let replay = Replay::new()
        .speed("10x".parse().unwrap())
        .callback(move |_| {
            seen.lock().push((SystemClock.mono() - start).as_secs());
            std::future::ready(Ok::<_, ReplayError>(()))
        });
    let runner = log.runner().clock(SystemClock::shared());
    runner.replay(replay).await.unwrap();
    assert_eq!(*times.lock(), [0, 1, 1, 6]);
}

/// Beyond the cases: a log longer than any page is replayed whole, in pages, with progress and a limit to go on from.
#[tokio::test]
async fn a_long_log_is_replayed_in_pages_and_in_pieces() {
    let (log, _) = log();
    let a = Speaker::new("a");
    let mut pending = Vec::new();
    for n in 0..9_000u32 {
        let (log, message) = (log.clone(), a.says(&n.to_be_bytes(), NOW));
        pending.push(async move { log.record_outbound(&message).await.map(drop) });
    }
    for pending in pending {
        pending.await.unwrap();
    }
    let (mut from, mut fed, mut told) = (None, 0, 0);
    loop {
        let mut replay = Replay::new().limit(4_000).progress(|_| told += 1);
        if let Some(from) = from {
            replay = replay.after(from);
        }
        let replay = replay.callback(|_| std::future::ready(Ok::<_, ReplayError>(())));
        let report = log.runner().replay(replay).await.unwrap();
        fed += report.fed;
        from = report.next;
        if from.is_none() {
            break;
        }
    }
    assert_eq!((fed, told), (9_000, 9_000));
    let (runner, query) = (log.runner(), ReplayQuery::default());
    let plan = runner.plan_up_to(&query, 100).await.unwrap();
    assert_eq!((plan.messages.len(), plan.next), (100, Some(Seq(101))));
}

/// Beyond the cases: a message with a declared secret is not replayed into an inbox; an unknown agent is an error.
#[tokio::test]
async fn a_secret_and_an_unknown_agent_stop_a_replay_into_an_inbox() {
    let (log, _) = log();
    let a = Speaker::new("a");
    log.record_outbound(&a.says(b"the canary-value-1 sings", NOW))
        .await
        .unwrap();
    let secrets = Redactor::default();
    secrets.add(&Secret::new("canary-value-1")).unwrap();
    let guarded = node(secrets).await;
    let stopped = log.runner().replay(guarded.fed(Replay::new())).await;
    assert!(matches!(stopped.unwrap_err().cause, ReplayError::Secret));
    let open = node(Redactor::default()).await;
    let (inboxes, store) = (open.inboxes.clone(), open.store.clone());
    let nobody = Replay::new().inbox(inboxes, store, name("nobody"));
    let stopped = log.runner().replay(nobody).await.unwrap_err();
    assert!(stopped.to_string().contains("nobody"), "{stopped}");
    assert!(open.claim().await.is_empty());
}

/// Beyond the cases: what an agent said under keys that were replaced since is sealed at export, each with its own key, and
/// proves itself after the import; the first, those in the middle, and the present one.
#[tokio::test]
async fn what_was_said_under_a_replaced_key_is_sealed_at_export_and_proven_after_import() {
    let (log, _) = log();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.key");
    let mut keys = vec![Identity::load_or_generate(&file).unwrap()];
    let mut statements = Vec::new();
    for n in 0..4u8 {
        if n > 0 {
            let (next, statement) = Identity::rotate(&file, second(n.into())).unwrap();
            keys.push(next);
            statements.push(statement);
        }
        let now = keys[usize::from(n)].clone();
        let sender = Sender::new(now.id(), name("a"), Tenant::default());
        let says = Speaker(now, sender).says(&[n], NOW);
        log.record_outbound(&says).await.unwrap();
    }
    let (path, key) = (dir.path().join("log"), Identity::generate().unwrap());
    let export = async |signers: Signers| {
        let file = std::fs::File::create(&path).unwrap();
        let query = ReplayQuery::default();
        let key = key.signing_key();
        log.export(&query, &key, &signers, file).await.unwrap();
        std::fs::read_to_string(&path).unwrap()
    };
    let present = Identity::load(&file).unwrap();
    let alone = export([present.clone()].into_iter().collect()).await;
    assert_eq!(alone.matches("sealed_hex").count(), 1);
    let all = Identity::former(&file).unwrap().into_iter();
    let sealed = export(all.chain([present]).collect()).await;
    assert_eq!(sealed.matches("sealed_hex").count(), 4);

    let input = std::io::BufReader::new(std::fs::File::open(&path).unwrap());
    let verified = verify_export(input, &key.public()).unwrap();
    assert_eq!(verified.entries, 4);
    let imports = Imports::new(dir.path().join("imports"));
    let trust = ArchiveTrust::Key(key.public());
    let imported = imports.import(&path, trust).unwrap();
    let recording = imports.open(&imported.name).await.unwrap();
    let page = recording.page(Seq::FIRST, &Filter::all(), 10).await;
    let rows = page.unwrap().rows;
    assert_eq!(rows.len(), 4);
    // One who knows the first key only follows the statements to each of the others.
    let mut known = keys[0].public();
    for (n, row) in rows.iter().enumerate() {
        if n > 0 {
            let statement = &statements[n - 1];
            statement.verify().unwrap();
            assert_eq!(*statement.old(), known);
            known = *statement.new_key();
        }
        let seal = SealedMessage::decode(row.sealed.as_ref().unwrap()).unwrap();
        let message = seal.open(Trust::Key(&known)).unwrap();
        assert_eq!(message.body()[..], [n as u8]);
        let other = keys[(n + 1) % 4].public();
        assert!(seal.open(Trust::Key(&other)).is_err());
    }
}

/// Beyond the cases: an archive with any byte changed, cut off, or signed by another key is refused.
#[tokio::test]
async fn an_archive_that_was_edited_cut_or_signed_by_another_is_refused() {
    let (log, _) = log();
    let a = Speaker::new("a");
    for n in 0..3u8 {
        log.record_outbound(&a.says(&[n], NOW)).await.unwrap();
    }
    let (key, other) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    let signers: Signers = [a.0.clone()].into_iter().collect();
    let mut good = Vec::new();
    log.export(
        &ReplayQuery::default(),
        &key.signing_key(),
        &signers,
        &mut good,
    )
    .await
    .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let import = async |bytes: &[u8], trust| {
        std::fs::write(&path, bytes).unwrap();
        ReplayLog::import(&path, trust).await.map(drop)
    };
    let ours = ArchiveTrust::Key(key.public());
    import(&good, ours).await.unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        assert!(import(&bad, ours).await.is_err(), "byte {at}");
    }
    for cut in [0, 1, good.len() / 2, good.len() - 1] {
        assert!(import(&good[..cut], ours).await.is_err(), "cut at {cut}");
    }
    let foreign = import(&good, ArchiveTrust::Key(other.public())).await;
    assert!(matches!(
        foreign,
        Err(ReplayError::Archive(ExportError::WrongKey { .. }))
    ));
    let newer = String::from_utf8(good).unwrap();
    let newer = newer.replacen("\"volary_journal\":2", "\"volary_journal\":9", 1);
    let unknown = import(newer.as_bytes(), ArchiveTrust::Stated).await;
    assert!(matches!(
        unknown,
        Err(ReplayError::Archive(ExportError::Format { found: 9 }))
    ));
}

// --- verify ----------------------------------------------------------------------------------

/// Answers each message with its text, a number and the time; `turns` says from which message on it answers otherwise.
struct Echo {
    identity: Identity,
    turns: Option<usize>,
    answered: usize,
}

impl Echo {
    fn new(identity: &Identity, turns: Option<usize>) -> Self {
        Self {
            identity: identity.clone(),
            turns,
            answered: 0,
        }
    }
}

impl Agent for Echo {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    async fn decide(
        &mut self,
        messages: &[Message],
        _: &[Task],
        cx: &Cx<'_>,
    ) -> Result<Vec<Decision>, AgentError> {
        let mut sends = Vec::new();
        for message in messages {
            self.answered += 1;
            let word = String::from_utf8_lossy(message.body()).into_owned();
            let word = match self.turns {
                Some(at) if at == self.answered => format!("not {word}"),
                _ => word,
            };
            let answer = serde_json::json!({
                "word": word,
                "at": cx.now().to_string(),
                "die": cx.random(message).next_u64() % 6,
                "before": cx.observations().len(),
            });
            let answer = cx.reply(message).json(&answer)?.build(cx.now())?;
            sends.push(Decision::SendMessage(answer));
        }
        Ok(sends)
    }
}

/// What an [`Echo`] in a real runtime received and sent, one message every second.
async fn recorded_echo() -> (ReplayLog, Identity, Sender) {
    let (log, clock) = log();
    let bus = Local::new(clock.shared(), &Metrics::default());
    let a = Speaker::new("a");
    let spec = EndpointSpec::new(Tenant::default(), name("a"), Vec::new());
    let mut answers = bus.open(spec).unwrap();
    let identity = Identity::generate().unwrap();
    let runtime = AgentRuntime::builder(Echo::new(&identity, None), bus.clone())
        .name(name("echo"))
        .clock(clock.shared())
        .replay_log(log.clone())
        .build()
        .unwrap();
    runtime.start().await.unwrap();
    for n in 0..5u8 {
        clock.advance(Duration::from_secs(1));
        let question = Message::builder(a.1.clone())
            .to(name("echo"))
            .bytes(ContentType::BYTES, vec![b'0' + n])
            .unwrap()
            .build(clock.wall())
            .unwrap();
        assert!(bus.send(question).await.is_taken());
        answers.recv().await.unwrap();
    }
    assert!(runtime.stop().await.is_clean());
    (log, identity, runtime.sender().clone())
}

/// Beyond the cases: an agent that decides as it did, with the recorded time and random numbers, has no divergence.
#[tokio::test]
async fn an_agent_that_decides_as_it_did_verifies_clean() {
    let (log, identity, sender) = recorded_echo().await;
    let mut again = Echo::new(&identity, None);
    let recording = Recording::journal(log.store().clone());
    let report = Rehearsal::new(&mut again, sender)
        .verify(&recording, Added::Refused)
        .await
        .unwrap();
    assert_eq!((report.checked, report.same), (5, 5), "{report:?}");
    assert!(report.is_clean() && again.answered == 5);
}

/// Beyond the cases: the first difference is told, expected beside actual, and nothing after it is asked.
#[tokio::test]
async fn an_agent_that_decides_otherwise_is_told_with_expected_beside_actual() {
    let (log, identity, sender) = recorded_echo().await;
    let mut other = Echo::new(&identity, Some(3));
    let recording = Recording::journal(log.store().clone());
    let report = Rehearsal::new(&mut other, sender.clone())
        .verify(&recording, Added::Refused)
        .await
        .unwrap();
    assert_eq!((report.checked, report.same, other.answered), (3, 2, 3));
    let found = report.divergence.unwrap();
    let told: Vec<_> = found
        .differences
        .iter()
        .map(|one| (&*one.at, &*one.expected, &*one.actual))
        .collect();
    assert_eq!(told, [("payload/word", "\"2\"", "\"not 2\"")]);
    let word = |act: Option<Act>| act.unwrap().payload.unwrap()["word"].clone();
    assert_eq!(
        (word(found.expected), word(found.actual)),
        ("2".into(), "not 2".into())
    );
    // Less than it did is a difference, too; and so is a failure.
    let silent = verify_messages(&recording, sender.name(), Added::Refused, |_, _| {
        std::future::ready(Ok(Vec::new()))
    });
    let found = silent.await.unwrap().divergence.unwrap();
    assert!(found.expected.is_some() && found.actual.is_none());
    let broken = verify_messages(&recording, sender.name(), Added::Refused, |_, _| {
        std::future::ready(Err("no".to_owned()))
    });
    let found = broken.await.unwrap().divergence.unwrap();
    assert_eq!((found.failure.as_deref(), found.action), (Some("no"), 1));
}
