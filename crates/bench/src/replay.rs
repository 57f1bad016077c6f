//! `replay.plan` and `replay.callback`: recorded messages planned, and fed to a callback that does nothing, from a journal on
//! SQLite.
//!
//! The limit reads the same rows of the same store in the same pages and decodes each message, and does nothing else with
//! them. A plan holds all of its messages; a callback gets one after the other.

use std::{hint::black_box, sync::Arc};

use bytes::Bytes;
use volary_kernel::{
    Name,
    clock::{Clock as _, SystemClock},
    sign::SigningKey,
};
use volary_messaging::{
    AgentId, ContentType, Message, Replay, ReplayLog, ReplayQuery, Sender, Topic,
    event::{kind, message_in},
    replay::ReplayError,
};
use volary_store::{Filter, PAGE_MAX, Seq, SharedStore, SqliteConfig, SqliteStore};

use crate::figure::Figure;
use crate::rounds::interleaved;
use crate::{Failure, Plan};

/// Bytes of one payload.
const BODY: usize = 150;
/// Messages that are recorded at the same time.
const AT_ONCE: usize = 512;

pub fn measure(plan: &Plan) -> Result<Vec<Figure>, Failure> {
    let messages = AT_ONCE * if plan.quick { 40 } else { 160 };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let folder = crate::scratch()?;
    let key = Arc::new(SigningKey::generate()?);
    let sender = Sender::new(
        AgentId::of(&key.public()),
        "sender".parse()?,
        Default::default(),
    );
    let config = SqliteConfig::new(folder.path().join("journal.db"), Name::new("bench")?, key);
    let store = runtime.block_on(SqliteStore::open(config, SystemClock::shared()))?;
    let log = ReplayLog::over(Arc::new(store.clone()));
    runtime.block_on(record(&log, &sender, messages))?;
    let shared = log.store().clone();
    let per_second = |work: &mut dyn FnMut() -> Result<u64, Failure>| {
        let start = SystemClock.mono();
        let done = work()?;
        if done != messages as u64 {
            return Err(format!("{done} of {messages} messages were seen").into());
        }
        Ok(done as f64 / (SystemClock.mono() - start).as_secs_f64())
    };
    let mut raw = || runtime.block_on(raw(&shared));
    let mut planned = || runtime.block_on(planned(&log));
    let mut called = || runtime.block_on(called(&log));
    let [plan_rate, call_rate, limit] = interleaved([
        &mut || per_second(&mut planned),
        &mut || per_second(&mut called),
        &mut || per_second(&mut raw),
    ])?;
    runtime.block_on(store.close());
    let figure = |id, ours| {
        Figure::rate(id, "msg/s", 0.8, ours)
            .against_limit(&limit)
            .with(
                "note",
                "150 B payloads, SQLite; limit: read and decode the same rows",
            )
    };
    Ok(vec![
        figure("replay.plan", &plan_rate),
        figure("replay.callback", &call_rate),
    ])
}

async fn record(log: &ReplayLog, sender: &Sender, messages: usize) -> Result<(), Failure> {
    let topic = Topic::new("work")?;
    for _ in 0..messages / AT_ONCE {
        let mut pending = Vec::with_capacity(AT_ONCE);
        for _ in 0..AT_ONCE {
            let builder = Message::builder(sender.clone()).topic(topic.clone());
            let builder = builder.bytes(ContentType::BYTES, Bytes::from_static(&[7; BODY]))?;
            let message = builder.build(SystemClock.wall())?;
            let log = log.clone();
            pending.push(async move { log.record_outbound(&message).await });
        }
        let _seqs = futures_util::future::try_join_all(pending).await?;
    }
    Ok(())
}

async fn raw(store: &SharedStore) -> Result<u64, Failure> {
    let filter = Filter {
        kinds: [kind::ACCEPTED, kind::SENT, kind::RECEIVED]
            .map(str::to_owned)
            .into(),
        ..Filter::default()
    };
    let (mut from, mut seen) = (Seq::FIRST, 0);
    loop {
        let page = store.read(from, &filter, PAGE_MAX).await?;
        for row in &page.rows {
            black_box(message_in(&row.body)?);
            seen += 1;
        }
        if page.end {
            return Ok(seen);
        }
        from = page.next;
    }
}

async fn planned(log: &ReplayLog) -> Result<u64, Failure> {
    let plan = log.runner().plan(&ReplayQuery::default()).await?;
    Ok(black_box(plan).messages.len() as u64)
}

async fn called(log: &ReplayLog) -> Result<u64, Failure> {
    let replay = Replay::new().callback(|message| {
        black_box(message);
        std::future::ready(Ok::<_, ReplayError>(()))
    });
    Ok(log.runner().replay(replay).await?.fed)
}
