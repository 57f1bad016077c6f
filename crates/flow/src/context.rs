//! What an attempt may ask and do besides returning a value.

/// The surroundings of one attempt of a node. Cheap to clone; outliving the attempt is harmless.
#[derive(Debug, Clone)]
pub struct Context {}
