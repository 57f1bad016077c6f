//! Cases 51 to 59: pieces of streams.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use parking_lot::Mutex;
use proptest::prelude::*;
use serde_json::{Map, json};
use volary_flow::{
    ChunkSpec, Context, Envelope, Item, Limits, Meta, NodeError, Outcome, RunConfig, TraceHandle,
    graph::{Flow, FlowBuilder},
    stream::{StreamChunk, Until, emit_stream_events, sse, stream_flow, ws},
};

use crate::seen::{ms, of, soon, until};

/// A flow of one node.
fn flow<F, Fut>(code: F) -> Flow<u64, String>
where
    F: Fn(u64, Context) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<String, NodeError>> + Send + 'static,
{
    let mut b = FlowBuilder::new("stream");
    let node = b.node("speak", code);
    b.ingress(node).egress(node);
    b.build().unwrap()
}

fn piece(text: &str) -> ChunkSpec {
    ChunkSpec {
        text: text.to_owned(),
        ..ChunkSpec::default()
    }
}

fn last(text: &str) -> ChunkSpec {
    ChunkSpec {
        done: true,
        ..piece(text)
    }
}

async fn read(handle: TraceHandle<String>, until: Until) -> Vec<Result<Item<String>, Outcome>> {
    soon("a stream", stream_flow(handle, until).collect()).await
}

fn chunk(item: &Result<Item<String>, Outcome>) -> Option<&StreamChunk> {
    match item {
        Ok(Item::Chunk(chunk)) => Some(chunk),
        _ => None,
    }
}

fn chunks(items: &[Result<Item<String>, Outcome>]) -> Vec<&StreamChunk> {
    items.iter().filter_map(chunk).collect()
}

fn numbers(items: &[Result<Item<String>, Outcome>]) -> Vec<(u64, &str, bool)> {
    let chunks = chunks(items);
    chunks
        .into_iter()
        .map(|chunk| (chunk.seq, chunk.text.as_str(), chunk.done))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn pieces_come_in_order_and_numbers_start_anew_after_the_last() {
    let flow = flow(|_, context| async move {
        for text in ["a", "b"] {
            context.chunk(text).await?;
        }
        context.chunk_of(last("c")).await?;
        context.chunk("d").await?;
        Ok(String::new())
    });
    let running = flow.start(RunConfig::default());
    let handle = running.emit(of("demo", 1)).await.unwrap();
    let trace = handle.trace_id();
    let items = read(handle, Until::End).await;
    let wanted = [
        (0, "a", false),
        (1, "b", false),
        (2, "c", true),
        (0, "d", false),
    ];
    assert_eq!(numbers(&items), wanted);
    assert!(
        chunks(&items)
            .iter()
            .all(|chunk| chunk.stream_id == trace.to_string())
    );
    running.stop(ms(1_000)).await;
}

#[tokio::test(start_paused = true)]
async fn a_piece_waits_while_as_many_as_allowed_are_unread() {
    let sent = Arc::new(Mutex::new(0));
    let count = sent.clone();
    let flow = flow(move |_, context| {
        let count = count.clone();
        async move {
            for text in ["a", "b", "c"] {
                context.chunk(text).await?;
                *count.lock() += 1;
            }
            Ok(String::new())
        }
    });
    let config = RunConfig {
        limits: Limits {
            chunks_per_trace: 1,
            ..Limits::default()
        },
        ..RunConfig::default()
    };
    let running = flow.start(config);
    let mut handle = running.emit(of("demo", 1)).await.unwrap();
    for read in 1..=3 {
        until("a piece", || *sent.lock() >= read).await;
        volary_kernel::clock::timeout(ms(100), std::future::pending::<()>())
            .await
            .unwrap_err();
        assert_eq!(*sent.lock(), read, "one may be unread");
        assert!(matches!(
            soon("a piece", handle.next()).await,
            Some(Item::Chunk(_))
        ));
    }
    assert!(soon("the end", handle.outcome()).await.is_done());
    running.stop(ms(1_000)).await;
}

#[tokio::test(start_paused = true)]
async fn numbers_of_each_trace_are_its_own() {
    let flow = flow(|_, context| async move {
        context.chunk("a").await?;
        context.chunk_of(last("b")).await?;
        Ok(String::new())
    });
    let running = flow.start(RunConfig::default());
    for _ in 0..2 {
        let handle = running.emit(of("demo", 1)).await.unwrap();
        let items = read(handle, Until::Done).await;
        assert_eq!(numbers(&items), [(0, "a", false), (1, "b", true)]);
    }
    running.stop(ms(1_000)).await;
}

#[test]
fn a_piece_as_a_server_sent_event() {
    let chunk = StreamChunk::new("s", 4, "one\ntwo");
    let text = sse::encode(&chunk, Some(Duration::from_millis(1_500)));
    let wanted = "event: chunk\nid: 4\nretry: 1500\ndata: one\ndata: two\n\n";
    assert_eq!(text, wanted);
    let end = StreamChunk::new("s", 5, "").last().with_meta("tokens", 7);
    let wanted = "event: meta\ndata: {\"stream_id\":\"s\",\"seq\":5,\"meta\":{\"tokens\":7}}\n\n\
                  event: done\nid: 5\ndata: \n\n";
    assert_eq!(sse::encode(&end, None), wanted);
}

#[test]
fn a_piece_as_a_web_socket_message() {
    let mut extra = Map::new();
    extra.insert("topic".into(), json!("answers"));
    let text = ws::encode(&StreamChunk::new("s", 0, "a\"b"), &extra).unwrap();
    let wanted = json!({
        "stream_id": "s", "seq": 0, "text": "a\"b", "done": false, "meta": {}, "topic": "answers",
    });
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&text).unwrap(),
        wanted
    );
}

fn facts() -> Meta {
    let facts = [("finish".to_owned(), json!("stop"))];
    Arc::new(facts.into_iter().collect())
}

#[tokio::test(start_paused = true)]
async fn a_source_is_passed_on_and_its_end_is_made_up_if_it_had_none() {
    let flow = flow(|kind, context| async move {
        let tokens: &[&str] = match kind {
            0 => &["a", "skip", "b"],
            1 => &["a", "END"],
            2 => &[],
            _ => &["a", "BAD"],
        };
        let adapt = |token: &&str| match *token {
            "skip" => Ok(None),
            "BAD" => Err(NodeError::permanent("the model went away")),
            "END" => Ok(Some(last("z"))),
            text => Ok(Some(piece(text))),
        };
        let sent = emit_stream_events(stream::iter(tokens), &context, adapt, facts()).await?;
        Ok(sent.to_string())
    });
    let running = flow.start(RunConfig::default());
    let wanted: [&[_]; 4] = [
        &[(0, "a", false), (1, "b", false), (2, "", true)],
        &[(0, "a", false), (1, "z", true)],
        &[(0, "", true)],
        &[(0, "a", false)],
    ];
    for (kind, wanted) in wanted.into_iter().enumerate() {
        let handle = running.emit(of("demo", kind as u64)).await.unwrap();
        let items = read(handle, Until::End).await;
        assert_eq!(numbers(&items), wanted, "{kind}");
        let end = chunks(&items).pop().unwrap();
        let made_up = end.done && end.text.is_empty();
        assert_eq!(end.meta.is_empty(), !made_up, "{kind}");
        let failed = matches!(items.last(), Some(Err(Outcome::Failed(_))));
        assert_eq!(failed, kind == 3, "{items:?}");
    }
    running.stop(ms(1_000)).await;
}

#[tokio::test(start_paused = true)]
async fn reading_ends_with_the_last_piece_or_after_the_value_that_follows() {
    let flow = flow(|_, context| async move {
        context.chunk("a").await?;
        context.chunk_of(last("b")).await?;
        Ok("final".to_owned())
    });
    let running = flow.start(RunConfig::default());
    let handle = running.emit(of("demo", 1)).await.unwrap();
    assert_eq!(read(handle, Until::Done).await.len(), 2);
    let handle = running.emit(of("demo", 1)).await.unwrap();
    let items = read(handle, Until::Final).await;
    assert!(
        matches!(&items[2], Ok(Item::Value(text)) if text == "final"),
        "{items:?}"
    );
    assert_eq!(items.len(), 3);
    running.stop(ms(1_000)).await;
}

#[tokio::test(start_paused = true)]
async fn the_stream_of_a_trace_that_is_cancelled_ends_and_says_so() {
    let flow = flow(|_, context| async move {
        context.chunk("a").await?;
        std::future::pending().await
    });
    let running = flow.start(RunConfig::default());
    let envelope: Envelope<u64> = of("demo", 1);
    let (trace, whose) = (envelope.trace_id, envelope.headers.tenant.clone());
    let handle = running.emit(envelope).await.unwrap();
    let mut items = stream_flow(handle, Until::Done);
    assert!(matches!(
        soon("a piece", items.next()).await,
        Some(Ok(Item::Chunk(_)))
    ));
    assert!(running.cancel(trace, &whose).cancelled);
    assert!(matches!(
        soon("the end", items.next()).await,
        Some(Err(Outcome::Cancelled))
    ));
    assert!(soon("nothing more", items.next()).await.is_none());
    running.stop(ms(1_000)).await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]
    /// Two attempts' worth of pieces over several streams, by nodes that run side by side.
    #[test]
    fn interleaved_streams_stay_in_order_each(
        script in prop::collection::vec((0usize..3, any::<bool>()), 1..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        let items = runtime.block_on(async {
            let mut b = FlowBuilder::new("streams");
            let split = b.node("split", |n: u64, _| async move { Ok(n) });
            b.ingress(split);
            for branch in 0..2 {
                let script = script.clone();
                let node = b.node(format!("branch-{branch}"), move |_: u64, context: Context| {
                    let script = script.clone();
                    async move {
                        for (stream, done) in script {
                            context
                                .chunk_of(ChunkSpec {
                                    stream_id: Some(format!("{stream}-{branch}")),
                                    done,
                                    ..ChunkSpec::default()
                                })
                                .await?;
                            tokio::task::yield_now().await;
                        }
                        Ok(String::new())
                    }
                });
                b.connect(split, node).egress(node);
            }
            let running = b.build().unwrap().start(RunConfig::default());
            let handle = running.emit(of("demo", 1)).await.unwrap();
            let items = read(handle, Until::End).await;
            running.stop(ms(1_000)).await;
            items
        });
        prop_assert_eq!(chunks(&items).len(), 2 * script.len());
        let mut next = std::collections::HashMap::new();
        for chunk in chunks(&items) {
            let seq = next.entry(chunk.stream_id.clone()).or_insert(0);
            prop_assert_eq!(chunk.seq, *seq);
            *seq = if chunk.done { 0 } else { *seq + 1 };
        }
    }
}

#[tokio::test(start_paused = true)]
async fn facts_of_a_trace_and_of_a_piece_are_apart() {
    let flow = flow(|_, context| async move {
        let chunk = ChunkSpec {
            meta: facts(),
            ..last("a")
        };
        context.chunk_of(chunk).await?;
        Ok(context.meta()["customer"].to_string())
    });
    let running = flow.start(RunConfig::default());
    let facts_of_trace = [("customer".to_owned(), json!(7))];
    let meta: Meta = Arc::new(facts_of_trace.into_iter().collect());
    let handle = running.emit(of("demo", 1).meta(meta)).await.unwrap();
    let items = read(handle, Until::Final).await;
    assert_eq!(chunks(&items)[0].meta, facts());
    assert!(matches!(&items[1], Ok(Item::Value(text)) if text == "7"));
    running.stop(ms(1_000)).await;
}
