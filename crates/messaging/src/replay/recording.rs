//! Where recorded entries come from: a store's journal, an archive, or pages that somebody else reads.

use std::{
    fs::File,
    io::{BufReader, Seek as _},
    path::Path,
    sync::Arc,
};

use parking_lot::Mutex;
use volary_kernel::id::Name;
use volary_store::{
    Filter, JournalPage, PAGE_MAX, Seq, SharedStore, StoreError,
    journal::{ArchiveHeader, ArchiveReader, ArchiveRow, ArchiveTrust, ExportError, ExportSummary},
};

use super::ReplayError;

/// Reads a page of a journal, as [`volary_store::Store::read`]; may block.
pub type PageFn = dyn Fn(Seq, &Filter, usize) -> Result<JournalPage, StoreError> + Send + Sync;

/// Bytes of bodies after which a page of an archive ends early.
const PAGE_BYTES: usize = 16 << 20;

/// Recorded entries, wherever they are. Clones share it.
#[derive(Clone)]
pub struct Recording(Source);

#[derive(Clone)]
enum Source {
    Store(SharedStore),
    Pages(Name, Arc<PageFn>),
    Archive(Arc<Archive>),
}

struct Archive {
    file: File,
    header: ArchiveHeader,
    /// Goes on where the last page ended.
    reader: Mutex<Option<Reader>>,
}

type Reader = ArchiveReader<BufReader<File>>;

/// Some entries, and where to go on.
#[derive(Debug, Clone, Default)]
pub struct RecordedPage {
    /// The entries, in order.
    pub rows: Vec<ArchiveRow>,
    /// Where the next page begins.
    pub next: Seq,
    /// The first entry that is there.
    pub first: Seq,
    /// Whether that was all.
    pub end: bool,
}

impl std::fmt::Debug for Recording {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Recording of {}", self.node())
    }
}

impl From<SharedStore> for Recording {
    fn from(store: SharedStore) -> Self {
        Self(Source::Store(store))
    }
}

impl Recording {
    /// The journal of `store`.
    pub fn journal(store: SharedStore) -> Self {
        store.into()
    }

    /// Pages of the journal of `node` that `read` reads on a thread that may block: a database without a node.
    pub fn pages(node: Name, read: Arc<PageFn>) -> Self {
        Self(Source::Pages(node, read))
    }

    /// An archive, once it was verified from beginning to end. What is read later is checked against its chain again.
    ///
    /// # Errors
    /// [`ReplayError::Archive`].
    pub async fn archive(
        path: &Path,
        trust: ArchiveTrust,
    ) -> Result<(Self, ExportSummary), ReplayError> {
        let path = path.to_owned();
        blocking(move || {
            let file = File::open(&path)?;
            let reader = ArchiveReader::open(BufReader::new(file.try_clone()?), trust)?;
            let header = reader.header().clone();
            let summary = reader.verify()?;
            let archive = Archive {
                file,
                header,
                reader: Mutex::default(),
            };
            Ok((Self(Source::Archive(Arc::new(archive))), summary))
        })
        .await?
        .map_err(|error: ExportError| error.into())
    }

    /// The node that recorded.
    pub fn node(&self) -> &Name {
        match &self.0 {
            Source::Store(store) => store.node(),
            Source::Pages(node, _) => node,
            Source::Archive(archive) => &archive.header.node,
        }
    }

    /// What an archive says about itself; `None` for a journal.
    pub fn header(&self) -> Option<&ArchiveHeader> {
        match &self.0 {
            Source::Archive(archive) => Some(&archive.header),
            _ => None,
        }
    }

    /// Up to `limit` entries at or after `from` that `filter` means.
    ///
    /// # Errors
    /// [`ReplayError`] of reading.
    pub async fn page(
        &self,
        from: Seq,
        filter: &Filter,
        limit: usize,
    ) -> Result<RecordedPage, ReplayError> {
        let page = match &self.0 {
            Source::Store(store) => store.read(from, filter, limit).await,
            Source::Pages(_, read) => {
                let (read, filter) = (read.clone(), filter.clone());
                blocking(move || read(from, &filter, limit)).await?
            }
            Source::Archive(archive) => {
                let (archive, filter) = (archive.clone(), filter.clone());
                let page = blocking(move || archive.page(from, &filter, limit)).await?;
                return Ok(page?);
            }
        };
        match page {
            Ok(page) => Ok(page.into()),
            // What retention took is skipped, and told by `first`.
            Err(StoreError::Trimmed { first, .. }) if first > from => Ok(RecordedPage {
                next: first,
                first,
                ..RecordedPage::default()
            }),
            Err(error) => Err(error.into()),
        }
    }
}

impl From<JournalPage> for RecordedPage {
    fn from(page: JournalPage) -> Self {
        let entry = |row| ArchiveRow { row, sealed: None };
        Self {
            rows: page.rows.into_iter().map(entry).collect(),
            next: page.next,
            first: page.first,
            end: page.end,
        }
    }
}

impl Archive {
    fn page(&self, from: Seq, filter: &Filter, limit: usize) -> Result<RecordedPage, ExportError> {
        let mut kept = self.reader.lock();
        let fits = |reader: &Reader| reader.summary().last.is_none_or(|last| last < from);
        let mut reader = match kept.take().filter(fits) {
            Some(reader) => reader,
            None => {
                let mut file = self.file.try_clone()?;
                file.rewind()?;
                ArchiveReader::open(BufReader::new(file), ArchiveTrust::Key(self.header.key))?
            }
        };
        let mut page = RecordedPage {
            next: from,
            first: Seq::FIRST,
            ..RecordedPage::default()
        };
        let mut bytes = 0;
        while page.rows.len() < limit.min(PAGE_MAX) && bytes < PAGE_BYTES {
            let Some(entry) = reader.next_row()? else {
                page.end = true;
                break;
            };
            page.next = entry.row.seq.next();
            if entry.row.seq >= from && filter.matches(&entry.row) {
                bytes += entry.row.body.len();
                page.rows.push(entry);
            }
        }
        *kept = Some(reader);
        Ok(page)
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ReplayError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| ReplayError::Reader(error.to_string()))
}
