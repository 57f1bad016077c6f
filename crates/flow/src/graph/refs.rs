//! What the builder hands out for a node: a copyable reference that carries the node's types.

use std::{
    fmt,
    marker::PhantomData,
    sync::atomic::{AtomicU32, Ordering},
};

/// A node of one builder, by its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NodeKey {
    /// Which builder made it.
    pub builder: u32,
    /// Its place in that builder.
    pub ix: usize,
}

/// A node that takes `I` and hands on `O`: what edges are made of.
///
/// Copyable and valid for the builder that made it; another builder reports it as a problem.
pub struct NodeRef<I, O> {
    pub(crate) key: NodeKey,
    types: PhantomData<fn(I) -> O>,
}

impl<I, O> NodeRef<I, O> {
    pub(crate) const fn new(key: NodeKey) -> Self {
        Self {
            key,
            types: PhantomData,
        }
    }
}

impl<I, O> Clone for NodeRef<I, O> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<I, O> Copy for NodeRef<I, O> {}

impl<I, O> fmt::Debug for NodeRef<I, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeRef({})", self.key.ix)
    }
}

/// A number for a new builder; wraps around after four billion of them, which no process builds at once.
pub(crate) fn next_builder() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
