//! Formats of other systems, for those who talk with them or move away from them. Nothing in Volary itself uses these.

pub mod converge;
