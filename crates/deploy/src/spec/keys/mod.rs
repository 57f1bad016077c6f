//! Every key of every manifest, with what it takes and what it means.

mod agent;
mod fleet;
mod messaging;
mod parts;
mod place;
mod webhooks;

pub(crate) use agent::{AGENT, SPEC as AGENT_SPEC};
pub(crate) use fleet::FLEET;
use messaging::MESSAGING;

use super::shape::{Field, Shape, Table};
