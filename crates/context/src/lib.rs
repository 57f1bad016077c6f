//! Live context: sources, pages, subscriptions and dispatch of what changed.
//!
//! | module | what it owns |
//! |---|---|
//! | [`page`] | pages and their changes, as they travel |
//! | [`source`] | the seam to where pages come from |
//! | [`files`] | the source of files below a directory |
//! | [`pattern`] | path globs, and which files are pages |
//! | [`path`] | file names as page paths |
//! | [`conformance`] | the suite that every source runs |

pub mod conformance;
pub mod files;
pub mod page;
pub mod path;
pub mod pattern;
pub mod source;

pub use files::{FilesConfig, FilesSource};
pub use page::{ChangeKind, ContentHash, Cursor, KindName, Page, PageChange, PageId, Scope};
pub use source::{PageSource, SourceError};
