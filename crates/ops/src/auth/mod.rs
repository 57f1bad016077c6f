//! Who may do what: the operator's token, the replicas' link tokens, and the pure rule that decides.

mod check;
mod table;
mod token;

pub(crate) use check::{authenticate, present, strip_token};
pub use table::{TableFull, TokenTable};
pub(crate) use token::load_or_create;
