//! A Volary node: every domain wired together, and the facade that Rust users import.

pub use volary_context as context;
pub use volary_deploy as deploy;
pub use volary_kernel as kernel;
pub use volary_messaging as messaging;
pub use volary_ops as ops;
pub use volary_store as store;
