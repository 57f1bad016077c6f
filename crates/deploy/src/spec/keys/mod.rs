//! Every key of every manifest, with what it takes and what it means.

mod agent;
mod fleet;
mod parts;

pub(crate) use agent::AGENT;
pub(crate) use fleet::FLEET;

use super::shape::{Field, Shape, Table};
