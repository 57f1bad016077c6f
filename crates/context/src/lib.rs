//! Live context: sources, pages, subscriptions and dispatch of what changed.
//!
//! | module | what it owns |
//! |---|---|
//! | [`page`] | pages and their changes, as they travel |
//! | [`source`] | the seam to where pages come from |
//! | [`files`] | the source of files below a directory |
//! | [`pattern`] | path globs, and which files are pages |
//! | [`path`] | file names as page paths |
//! | [`subscription`] | who wants to hear of which changes, and the index that finds them |
//! | [`dispatch`] | carries changes into journal, page records and inboxes, in one commit |
//! | [`event`] | what happens in this domain |
//! | [`conformance`] | the suite that every source runs |

pub mod conformance;
pub mod dispatch;
pub mod event;
pub mod files;
mod metric;
pub mod page;
pub mod path;
pub mod pattern;
pub mod source;
pub mod subscription;

pub use dispatch::{
    Deliver, DeliverError, Dispatch, DispatchPayload, Dispatcher, DispatcherConfig,
};
pub use event::Event;
pub use files::{FilesConfig, FilesSource};
pub use page::{ChangeKind, ContentHash, Cursor, KindName, Page, PageChange, PageId, Scope};
pub use source::{PageSource, SourceError};
pub use subscription::{Criteria, Subscription, SubscriptionIndex};
