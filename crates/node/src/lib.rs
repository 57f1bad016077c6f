//! A Volary node: every domain wired together, and the facade that Rust users import.
