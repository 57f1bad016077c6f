//! Doing something to each element of a list, several at once.

use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::{
    builder::{FlowBuilder, Pending},
    code::{self, Code, Value},
    describe::NodeKind,
    refs::NodeRef,
};
use crate::{context::Context, error::NodeError};

/// Runs `work` on each item, at most `max_concurrency` at once; the results stand in the order of the items.
///
/// The first failure is returned at once, and what still runs is dropped, as it is when this is dropped.
///
/// # Errors
/// The first failure in time; [`NodeError::permanent`] for a `max_concurrency` of 0.
///
/// # Examples
/// ```
/// use volary_flow::graph::{FlowBuilder, map_concurrent};
/// let mut b = FlowBuilder::new("lengths");
/// let lengths = b.node("lengths", |pages: Vec<String>, _| async move {
///     map_concurrent(pages, 8, |page| async move { Ok(page.len()) }).await
/// });
/// b.ingress(lengths).egress(lengths);
/// let flow = b.build()?;
/// # Ok::<(), volary_flow::graph::BuildErrors>(())
/// ```
pub async fn map_concurrent<T, O, F, Fut>(
    items: impl IntoIterator<Item = T>,
    max_concurrency: usize,
    work: F,
) -> Result<Vec<O>, NodeError>
where
    F: Fn(T) -> Fut,
    Fut: Future<Output = Result<O, NodeError>>,
{
    if max_concurrency == 0 {
        return Err(NodeError::permanent(
            "map_concurrent: max_concurrency must be at least 1",
        ));
    }
    let numbered = items.into_iter().enumerate().map(|(number, item)| {
        let work = work(item);
        async move { Ok::<_, NodeError>((number, work.await?)) }
    });
    let running = stream::iter(numbered).buffer_unordered(max_concurrency);
    let mut results: Vec<(usize, O)> = running.try_collect().await?;
    results.sort_unstable_by_key(|(number, _)| *number);
    Ok(results.into_iter().map(|(_, result)| result).collect())
}

impl<In: Value, Out: Value> FlowBuilder<In, Out> {
    /// Adds a node that runs `work` on each element of a list, at most `max_concurrency` at once, and hands on the list of
    /// results in the same order. See [`map_concurrent`].
    ///
    /// # Examples
    /// ```
    /// use volary_flow::graph::FlowBuilder;
    /// let mut b = FlowBuilder::new("lengths");
    /// let lengths = b.map_concurrent("lengths", 8, |page: String, _| async move { Ok(page.len()) });
    /// b.ingress(lengths).egress(lengths);
    /// let flow = b.build()?;
    /// # Ok::<(), volary_flow::graph::BuildErrors>(())
    /// ```
    pub fn map_concurrent<T: Value, O: Value, F, Fut>(
        &mut self,
        name: impl Into<String>,
        max_concurrency: usize,
        work: F,
    ) -> NodeRef<Vec<T>, Vec<O>>
    where
        F: Fn(T, Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<O, NodeError>> + Send + 'static,
    {
        let work = Arc::new(work);
        let code = move |items: Vec<T>, context: Context| {
            let work = work.clone();
            async move {
                map_concurrent(items, max_concurrency, |item| work(item, context.clone())).await
            }
        };
        let call = Code::<_, Vec<T>, _>::new(code, code::one::<Vec<O>>);
        let node = self.add_part(
            name.into(),
            NodeKind::MapConcurrent,
            Pending::Call(Arc::new(call)),
        );
        if let Some(sketch) = self.sketch.nodes.last_mut() {
            sketch.width = Some(max_concurrency);
        }
        node
    }
}
