//! Passing the pieces of a source on to whoever reads the trace.

use std::{collections::BTreeSet, pin::pin};

use futures_util::{Stream, StreamExt as _};

use crate::{
    context::{ChunkSpec, Context},
    envelope::Meta,
    error::NodeError,
};

/// Yields what `adapt` makes of each item of a source as a piece, waiting where the reader is slow; how many pieces it were.
///
/// Every stream is ended: where the source is over and its last piece was not the last of its stream, an empty last piece
/// with the facts `last` follows, as it does for a source without any piece. Cancel-safe as `Context::chunk_of` is: dropped
/// means that nothing more is yielded.
///
/// # Errors
/// What `adapt` returned, and as `Context::chunk_of`; the stream is not ended then, as the next attempt goes on with it.
///
/// # Examples
/// ```no_run
/// # use futures_util::stream;
/// # use volary_flow::{ChunkSpec, Context, Meta, NodeError, stream::emit_stream_events};
/// async fn answer(question: String, context: Context) -> Result<String, NodeError> {
///     let tokens = stream::iter(["to", "kens"]); // of a model
///     let piece = |text: &str| Ok(Some(ChunkSpec { text: text.to_owned(), ..ChunkSpec::default() }));
///     emit_stream_events(tokens, &context, piece, Meta::default()).await?;
///     Ok(question)
/// }
/// ```
pub async fn emit_stream_events<S, F>(
    source: S,
    context: &Context,
    mut adapt: F,
    last: Meta,
) -> Result<u64, NodeError>
where
    S: Stream,
    F: FnMut(S::Item) -> Result<Option<ChunkSpec>, NodeError>,
{
    let mut source = pin!(source);
    let mut pieces = 0;
    let mut open = BTreeSet::new();
    while let Some(item) = source.next().await {
        let Some(chunk) = adapt(item)? else {
            continue;
        };
        if chunk.done {
            open.remove(&chunk.stream_id);
        } else {
            open.insert(chunk.stream_id.clone());
        }
        context.chunk_of(chunk).await?;
        pieces += 1;
    }
    if pieces == 0 {
        open.insert(None);
    }
    for stream_id in open {
        let chunk = ChunkSpec {
            stream_id,
            done: true,
            meta: last.clone(),
            ..ChunkSpec::default()
        };
        context.chunk_of(chunk).await?;
        pieces += 1;
    }
    Ok(pieces)
}
