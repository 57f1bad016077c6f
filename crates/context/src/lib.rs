//! Live context: sources, pages, subscriptions and dispatch of what changed.

pub mod files;
pub mod page;
pub mod path;
pub mod pattern;
pub mod source;
