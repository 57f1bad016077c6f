//! Manifests: `agent.yaml` and `fleet.yaml`, from text to a checked, resolved [`model::FleetSpec`].
//!
//! ```text
//! path --> document: text --granit-parser--> tree (every place kept) --keys--> shape check
//!                                                |                               |
//!                                          agent, fleet: typed reading      all problems
//!                                                |                               |
//!                                          cross: between agents ----------------+--> Ok(Loaded) or Err(Problems)
//! ```
//!
//! Every step pushes its problems and goes on, so that one run reports all of them over all files. The keys, what they
//! take and what they mean stand in one place, [`keys`]; the shape check, the hints and the JSON [`schema`] follow from
//! it. Files are read in `files` alone, the environment through a closure that the program supplies.

mod address;
mod agent;
mod check;
pub mod codes;
mod context;
mod cross;
mod document;
pub mod files;
mod fleet;
mod hint;
mod keys;
mod load;
mod messaging;
pub mod model;
mod order;
mod port;
mod problem;
mod quantity;
mod rules;
pub mod schema;
mod shape;
mod source;
mod tree;
mod view;
mod webhooks;

pub use context::{LoadOptions, Lookup};
pub use load::{BACKENDS, Loaded, load_fleet};
pub use order::{start_order, stop_order};
pub use problem::{
    EXIT_BAD_CONFIG, EXIT_UNAVAILABLE, Problem, Problems, Related, Severity, Snippet,
};
