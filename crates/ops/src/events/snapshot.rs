//! `GET /v1/events`: what the journal holds at the moment of asking, page by page.

use std::io;

use bytes::Bytes;
use futures_util::stream;
use volary_kernel::secret::Redactor;
use volary_store::{Filter, JournalPage, Seq, SharedStore, StoreError};

use super::{Parts, document};
use crate::{ApiError, api::EventsQuery, code};

/// JSON lines.
pub(super) const MEDIA_TYPE: &str = "application/jsonl";

/// Entries read at a time: what one snapshot holds in memory.
const PAGE: usize = 256;

/// The lines of one snapshot.
pub(super) struct Lines {
    store: SharedStore,
    filter: Filter,
    redactor: Redactor,
    with_body: bool,
    left: u64,
    last: Seq,
    page: Option<JournalPage>,
}

impl Lines {
    /// Reads the first page, so that errors still have a status.
    ///
    /// # Errors
    /// 410 when retention removed entries that were asked for by number; 503 when the journal cannot be read.
    pub(super) async fn begin(
        parts: &Parts,
        filter: Filter,
        query: &EventsQuery,
    ) -> Result<Self, ApiError> {
        let last = *parts.store.head().borrow();
        let from = Seq(query.from.unwrap_or(0));
        let page = parts
            .store
            .read(from, &filter, PAGE)
            .await
            .map_err(|error| unreadable(&error))?;
        if from > Seq(0) && from < page.first {
            let message = format!(
                "journal entries before {} were removed by retention, {from} was asked for",
                page.first
            );
            return Err(ApiError::new(code::TRIMMED, message));
        }
        Ok(Self {
            store: parts.store.clone(),
            filter,
            redactor: parts.redactor.clone(),
            with_body: query.body.unwrap_or(true),
            left: query.limit.unwrap_or(u64::MAX),
            last,
            page: Some(page),
        })
    }

    /// The lines in pieces of a page each.
    pub(super) fn into_chunks(self) -> impl futures_util::Stream<Item = io::Result<Bytes>> {
        stream::unfold(self, async |mut lines| {
            let chunk = lines
                .next_chunk()
                .await
                .map_err(io::Error::other)
                .transpose()?;
            Some((chunk, lines))
        })
    }

    async fn next_chunk(&mut self) -> Result<Option<Bytes>, StoreError> {
        while let Some(page) = self.page.take() {
            let mut chunk = Vec::new();
            for row in page.rows.iter().take_while(|row| row.seq <= self.last) {
                if self.left == 0 {
                    break;
                }
                self.left -= 1;
                chunk.extend_from_slice(&document::of_row(row, self.with_body, &self.redactor));
                chunk.push(b'\n');
            }
            if self.left > 0 && !page.end && page.next <= self.last {
                self.page = Some(self.store.read(page.next, &self.filter, PAGE).await?);
            }
            if !chunk.is_empty() {
                return Ok(Some(chunk.into()));
            }
        }
        Ok(None)
    }
}

fn unreadable(error: &StoreError) -> ApiError {
    tracing::error!(%error, "the journal cannot be read");
    ApiError::new(code::JOURNAL, "the journal cannot be read")
}
