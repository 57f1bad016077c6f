//! Joins: gathering the values of one trace.

use std::time::Duration;

use super::{
    builder::{FlowBuilder, Pending},
    code::Value,
    describe::NodeKind,
    plan::Payload,
    refs::NodeRef,
    sketch::JoinSketch,
};

/// How long a join waits, and what it does with what is there.
///
/// The default waits as long as something can still come, and fails the trace (`JoinIncomplete`) when not all came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct JoinPolicy {
    /// Longest wait after the first value. Default none: the trace's deadline bounds it.
    pub timeout: Option<Duration>,
    /// Whether it goes on with what is there, at least one value, when no more can come or the wait is over. Default false.
    pub partial: bool,
}

impl<In: Value, Out: Value> FlowBuilder<In, Out> {
    /// Gathers `k` values of a trace, and hands them on in the order they arrived. With more than `k`, it begins again.
    ///
    /// When no more can come and some are there, the trace fails (`JoinIncomplete`), unless [`FlowBuilder::join_policy`]
    /// says otherwise; a join cannot hang.
    ///
    /// # Examples
    /// ```
    /// use volary_flow::graph::FlowBuilder;
    /// let mut b = FlowBuilder::new("sum-of-squares");
    /// let split = b.flat_map("split", |n: u64, _| async move { Ok((1..=n).collect()) });
    /// let square = b.node("square", |n: u64, _| async move { Ok(n * n) });
    /// let gather = b.join_k("gather", 3);
    /// let sum = b.node("sum", |squares: Vec<u64>, _| async move { Ok(squares.iter().sum::<u64>()) });
    /// b.connect(split, square).connect(square, gather).connect(gather, sum);
    /// b.ingress(split).egress(sum);
    /// let flow = b.build()?;
    /// # Ok::<(), volary_flow::graph::BuildErrors>(())
    /// ```
    pub fn join_k<T: Value>(&mut self, name: impl Into<String>, k: usize) -> NodeRef<T, Vec<T>> {
        self.add_join(name.into(), Some(k))
    }

    /// Gathers one value of a trace for each edge into it, and hands them on in the order they arrived.
    ///
    /// As [`FlowBuilder::join_k`] otherwise.
    pub fn join_all<T: Value>(&mut self, name: impl Into<String>) -> NodeRef<T, Vec<T>> {
        self.add_join(name.into(), None)
    }

    /// Sets how long a join waits and whether it takes what is there. On another node it is a problem of the graph.
    ///
    /// # Examples
    /// ```
    /// use std::time::Duration;
    /// use volary_flow::graph::{FlowBuilder, JoinPolicy};
    /// let mut b = FlowBuilder::new("search");
    /// let ask = b.node("ask", |words: String, _| async move { Ok(words) });
    /// let (near, far) = (
    ///     b.node("near", |words: String, _| async move { Ok(words.len()) }),
    ///     b.node("far", |words: String, _| async move { Ok(words.len() * 2) }),
    /// );
    /// let found = b.join_all("found");
    /// b.join_policy(found, JoinPolicy { timeout: Some(Duration::from_millis(200)), partial: true });
    /// b.connect(ask, near).connect(ask, far).connect(near, found).connect(far, found);
    /// b.ingress(ask).egress(found);
    /// let flow = b.build()?;
    /// # Ok::<(), volary_flow::graph::BuildErrors>(())
    /// ```
    pub fn join_policy<T>(&mut self, join: NodeRef<T, Vec<T>>, policy: JoinPolicy) -> &mut Self {
        let Some(ix) = self.place(join, "set the policy of") else {
            return self;
        };
        let node = &mut self.sketch.nodes[ix];
        match &mut node.join {
            None => {
                let name = node.name.clone();
                self.no_effect(&name, "is no join and has a join policy", "use b.policy");
            }
            Some(join) if join.policy_set => {
                let name = node.name.clone();
                self.twice(&name, "its join policy");
            }
            Some(join) => {
                join.timeout = policy.timeout;
                join.partial = policy.partial;
                join.policy_set = true;
            }
        }
        self
    }

    fn add_join<T: Value>(&mut self, name: String, count: Option<usize>) -> NodeRef<T, Vec<T>> {
        let join = self.add_part(name, NodeKind::Join, Pending::Join(gather::<T>));
        let last = self.sketch.nodes.last_mut();
        if let Some(node) = last {
            node.join = Some(JoinSketch {
                count,
                ..JoinSketch::default()
            });
        }
        join
    }
}

/// A list of values from values; all are `T`, as the types were checked when the graph was built.
fn gather<T: Send + 'static>(values: Vec<Payload>) -> Payload {
    let typed = values.into_iter().filter_map(Payload::into_value);
    Payload::new(typed.collect::<Vec<T>>())
}
