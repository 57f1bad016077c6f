//! Every key of every manifest, with what it takes and what it means.

mod agent;
mod fleet;
mod parts;
mod place;

pub(crate) use agent::{AGENT, SPEC as AGENT_SPEC};
pub(crate) use fleet::FLEET;

use super::shape::{Field, Shape, Table};
