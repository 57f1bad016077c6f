//! Live context: sources, pages, subscriptions and dispatch of what changed.
