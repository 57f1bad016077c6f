//! Building a flow: typed nodes and edges, checked as a whole.

pub(crate) mod plan;
