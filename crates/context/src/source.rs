//! The seam to where pages come from.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use volary_kernel::Name;

use crate::page::{ChangeKind, ContentHash, Cursor, Extra, PageId};

/// Most changes in one [`SourceItem::Changes`]: one durable commit of some milliseconds.
pub const BATCH_MAX: usize = 512;
/// Items between a source and its consumer. With [`BATCH_MAX`] it bounds what is in flight to 2,048 changes.
pub const IN_FLIGHT: usize = 4;
/// A source calls [`ChangeSink::beat`] at least this often while it runs.
pub const BEAT_EVERY: Duration = Duration::from_secs(1);

/// Where pages come from.
///
/// # Contract of [`PageSource::watch`]
/// - **From where it was.** First it compares what is there with `start.known` and sends every difference: what changed
///   while nobody watched. Then it sends [`SourceItem::CaughtUp`] once. Then it sends what happens, without a gap.
/// - **Truth over hints.** Folding the changes over `start.known` gives exactly what is there once the source rests:
///   nothing is lost when the operating system drops notifications (the source looks at everything again), and new
///   pages, deletions, moves of whole directories and the source's disappearance and return are all seen.
/// - **No duplicates, no non-changes.** Each change differs from the state before it: `Added` only for an unknown page,
///   `Replaced` only with another content hash, `Invalidated` only for a known page. Identical content is no change. A
///   move is an `Added` and an `Invalidated`, in either order.
/// - **Cursors grow.** Each change has a cursor greater than `start.cursor` and than every cursor sent before.
/// - **Bounded.** At most [`BATCH_MAX`] changes per item. [`ChangeSink::send`] waits while the consumer is behind; the
///   source then keeps what it must remember in bounded space, and coalesces what happens meanwhile.
/// - **Cancellable.** After `cancel` it ends with `Ok` within a second, and leaves no thread, watch or handle behind.
///   What was sent stands; what was not is found again from the state that the next `start` carries.
/// - **Alive.** It calls [`ChangeSink::beat`] at least every [`BEAT_EVERY`], also while it waits.
/// - **Errors** end the run and may be retried after a back-off with a fresh `start`.
///
/// # Contract of [`PageSource::scan`]
/// As the first phase of `watch`: it sends the differences and one `CaughtUp`, and ends.
#[async_trait]
#[doc(alias = "ContextPageSource")]
pub trait PageSource: Send + Sync + 'static {
    /// The source's name: the first part of its page ids.
    fn name(&self) -> &Name;

    /// Whether it never changes by itself. A static source can be scanned, but is refused as live input.
    #[doc(alias = "static")]
    fn is_static(&self) -> bool;

    /// Sends the differences from `start`, once.
    async fn scan(
        &self,
        start: Start,
        sink: ChangeSink,
        cancel: CancellationToken,
    ) -> Result<(), SourceError>;

    /// Sends the differences from `start`, and from then on whatever changes, until `cancel`.
    async fn watch(
        &self,
        start: Start,
        sink: ChangeSink,
        cancel: CancellationToken,
    ) -> Result<(), SourceError>;
}

/// What was durably known of a source when it was last heard of.
#[derive(Debug, Clone, Default)]
pub struct Start {
    /// The greatest cursor that was committed; zero before the first.
    pub cursor: Cursor,
    /// Whether the source has caught up before, in any run.
    pub caught_up: bool,
    /// The pages that exist, by path.
    pub known: BTreeMap<Arc<str>, PageState>,
}

/// A page as its source describes it; scope, tenant and identity are added by the consumer.
#[derive(Debug, Clone, PartialEq)]
pub struct PageState {
    /// Path within the source: the second part of the page id.
    pub path: Arc<str>,
    /// See [`crate::Page::data_type`].
    pub data_type: Arc<str>,
    /// See [`crate::Page::version`].
    pub version: u64,
    /// Hash of its content.
    pub content_hash: ContentHash,
    /// See [`crate::Page::metadata`].
    pub metadata: BTreeMap<String, Value>,
    /// See [`crate::Page::links`].
    pub links: Vec<PageId>,
    /// The source's own note, given back to it in [`Start`]: for files, the outer signs. At most 256 bytes.
    pub stamp: Arc<str>,
}

/// One change as its source tells it.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceChange {
    /// Place in the source's history.
    pub cursor: Cursor,
    /// What happened.
    pub kind: ChangeKind,
    /// The page afterwards; of an invalidated page, as it was last.
    pub state: PageState,
    /// Content hash before; `None` if the page did not exist.
    pub previous: Option<ContentHash>,
    /// What else is known.
    pub extra: Extra,
    /// How long the change was held to let the page come to rest.
    pub settled_for: Duration,
}

/// What a source tells.
#[derive(Debug, Clone, PartialEq)]
pub enum SourceItem {
    /// At least one change, in order.
    Changes(Vec<SourceChange>),
    /// States to remember although nothing changed: a baseline, or new stamps of the same content.
    States(Vec<PageState>),
    /// Everything that differed from [`Start`] has been sent.
    CaughtUp {
        /// The number of pages there are.
        pages: usize,
    },
    /// Something that does not stop the source and should be seen.
    Notice(Notice),
}

/// What a source reports beside changes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    /// Everything is looked at again, for this reason.
    Rescan(&'static str),
    /// Notifications cannot be had; the source looks at intervals instead.
    FellBack {
        /// Why.
        reason: String,
        /// The interval.
        every: Duration,
    },
    /// A page is left out or seen late.
    Page {
        /// Its path.
        path: Arc<str>,
        /// Why.
        problem: PageProblem,
    },
    /// The source is away: its root does not exist.
    Away(String),
    /// The source is there again.
    Back,
}

/// Why a page is left out, or stands under another name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, thiserror::Error)]
#[non_exhaustive]
pub enum PageProblem {
    /// It is larger than a page may be.
    #[error("{bytes} bytes, the limit is {limit}")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The bound.
        limit: u64,
    },
    /// The source holds as many pages as it may.
    #[error("the source has {limit} pages already, which is its limit")]
    NoRoom {
        /// The bound.
        limit: usize,
    },
    /// It cannot be read; what was known of it stays until it can.
    #[error("cannot be read: {0}")]
    Unreadable(String),
    /// Its name is not UTF-8, or holds control characters, and stands escaped in the page id.
    #[error("its name is not plain text: each byte that is not is written as \\xNN")]
    EscapedName,
    /// Its name holds a declared secret. It is no page: nothing that is stored or told may hold one.
    #[error("its name holds a declared secret")]
    SecretName,
}

impl PageProblem {
    /// A short fixed word for metrics and filters.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "too_large",
            Self::NoRoom { .. } => "no_room",
            Self::Unreadable(_) => "unreadable",
            Self::EscapedName => "escaped_name",
            Self::SecretName => "secret_name",
        }
    }
}

/// Why a source's run ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The root does not exist, and nothing is known of an earlier one.
    #[error("root `{root}` does not exist or is not a directory: {problem}")]
    RootMissing {
        /// The root.
        root: String,
        /// What the operating system said.
        problem: String,
    },
    /// The operating system has no more notification watches, and another way was not allowed.
    #[error("cannot watch `{root}`: {problem}")]
    WatchLimit {
        /// The root.
        root: String,
        /// Which limit.
        problem: String,
    },
    /// The source was asked for what it cannot do.
    #[error("source `{0}` is static: it can be scanned but not watched")]
    Static(Name),
    /// The consumer is gone.
    #[error("nobody takes the changes any more")]
    SinkClosed,
    /// Anything the operating system refused.
    #[error("{doing}: {problem}")]
    Io {
        /// What was tried.
        doing: String,
        /// What it said.
        problem: String,
    },
    /// A fault in the source itself.
    #[error("the source failed: {0}")]
    Failed(String),
}

// --- the channel -------------------------------------------------------------------------------

/// Where a source sends to. Cheap to clone.
#[derive(Clone)]
pub struct ChangeSink {
    items: mpsc::Sender<SourceItem>,
    beat: Arc<dyn Fn() + Send + Sync>,
}

impl std::fmt::Debug for ChangeSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChangeSink")
            .field("free", &self.items.capacity())
            .finish_non_exhaustive()
    }
}

/// Where a consumer takes from: the other end of a [`ChangeSink`].
#[derive(Debug)]
pub struct ChangeStream(mpsc::Receiver<SourceItem>);

/// A sink and its stream, [`IN_FLIGHT`] items long; `beat` is called when the source shows that it is alive.
pub fn channel(beat: impl Fn() + Send + Sync + 'static) -> (ChangeSink, ChangeStream) {
    let (items, stream) = mpsc::channel(IN_FLIGHT);
    (
        ChangeSink {
            items,
            beat: Arc::new(beat),
        },
        ChangeStream(stream),
    )
}

impl ChangeSink {
    /// Sends one item, waiting for room and beating meanwhile. Not cancel-safe: a dropped call may lose the item.
    ///
    /// # Errors
    /// [`SourceError::SinkClosed`] when the consumer is gone.
    pub async fn send(&self, item: SourceItem) -> Result<(), SourceError> {
        loop {
            match volary_kernel::clock::timeout(BEAT_EVERY, self.items.reserve()).await {
                Ok(Ok(room)) => {
                    room.send(item);
                    return Ok(());
                }
                Ok(Err(_)) => return Err(SourceError::SinkClosed),
                Err(_) => self.beat(),
            }
        }
    }

    /// Shows that the source is alive.
    pub fn beat(&self) {
        (self.beat)();
    }

    /// Whether the consumer is gone.
    pub fn is_closed(&self) -> bool {
        self.items.is_closed()
    }
}

impl ChangeStream {
    /// The next item; `None` when every sink is gone. Cancel-safe.
    pub async fn next(&mut self) -> Option<SourceItem> {
        self.0.recv().await
    }

    /// An item that is there already.
    pub fn try_next(&mut self) -> Option<SourceItem> {
        self.0.try_recv().ok()
    }
}
