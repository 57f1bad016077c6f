//! How pages and sources look in the store. One place for writer and reader.
//!
//! | key | value |
//! |---|---|
//! | `context.page/<source>/p/<path>` | a [`PageRecord`] as JSON |
//! | `context.page/<source>/h/<hash of the path>` | the same, where the path is too long for a key |
//! | `context.source/<source>` | a [`SourceRecord`] as JSON |

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use volary_kernel::Name;
use volary_store::{KEY_MAX, Key, PAGE_MAX, Store, StoreError};

use crate::{
    page::{ContentHash, Cursor, PageId},
    source::{PageState, Start},
};

const RECORD_VERSION: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
struct PageRecord {
    v: u32,
    path: Arc<str>,
    data_type: Arc<str>,
    version: u64,
    hash: ContentHash,
    #[serde(default, skip_serializing_if = "str::is_empty")]
    stamp: Arc<str>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, Value>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    links: Vec<PageId>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SourceRecord {
    v: u32,
    cursor: Cursor,
    caught_up: bool,
}

fn pages_of(source: &Name) -> String {
    format!("context.page/{source}/")
}

pub(super) fn page_key(source: &Name, path: &str) -> Key {
    let mut text = format!("{}p/{path}", pages_of(source));
    if text.len() > KEY_MAX {
        text = format!("{}h/{}", pages_of(source), ContentHash::of(path.as_bytes()));
    }
    Key::new(&text).expect("a page path holds no control characters, and a long one is hashed")
}

pub(super) fn page_value(state: &PageState) -> Vec<u8> {
    let record = PageRecord {
        v: RECORD_VERSION,
        path: state.path.clone(),
        data_type: state.data_type.clone(),
        version: state.version,
        hash: state.content_hash,
        stamp: state.stamp.clone(),
        metadata: state.metadata.clone(),
        links: state.links.clone(),
    };
    serde_json::to_vec(&record).expect("a page record is JSON: its maps have text keys")
}

pub(super) fn source_key(source: &Name) -> Key {
    Key::new(format!("context.source/{source}")).expect("a name is short and plain")
}

pub(super) fn source_value(cursor: Cursor, caught_up: bool) -> Vec<u8> {
    let record = SourceRecord {
        v: RECORD_VERSION,
        cursor,
        caught_up,
    };
    serde_json::to_vec(&record).expect("a source record is JSON")
}

/// Reads what is known of a source.
pub(super) async fn load(store: &dyn Store, source: &Name) -> Result<Start, StoreError> {
    let mut start = Start::default();
    if let Some(record) = store.get(&source_key(source)).await? {
        let known: SourceRecord = read(&record.key, &record.value)?;
        (start.cursor, start.caught_up) = (known.cursor, known.caught_up);
    }
    let prefix = pages_of(source);
    let mut after = None;
    loop {
        let records = store.scan(&prefix, after.as_ref(), PAGE_MAX).await?;
        for record in &records {
            let page: PageRecord = read(&record.key, &record.value)?;
            start.known.insert(page.path.clone(), state_of(page));
        }
        if records.len() < PAGE_MAX {
            return Ok(start);
        }
        after = records.last().map(|record| record.key.clone());
    }
}

fn state_of(page: PageRecord) -> PageState {
    PageState {
        path: page.path,
        data_type: page.data_type,
        version: page.version,
        content_hash: page.hash,
        metadata: page.metadata,
        links: page.links,
        stamp: page.stamp,
    }
}

fn read<T: for<'de> Deserialize<'de>>(key: &Key, value: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(value).map_err(|error| StoreError::Corrupt {
        what: format!("record `{key}` cannot be read: {error}"),
        seq: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_paths_become_short_keys_and_stay_apart() {
        let source = Name::new("s").unwrap();
        let long = "x".repeat(4000);
        let (a, b) = (
            page_key(&source, &format!("{long}a")),
            page_key(&source, &format!("{long}b")),
        );
        assert!(a.len() <= KEY_MAX && a != b);
        assert_eq!(page_key(&source, "a/b").as_str(), "context.page/s/p/a/b");
    }
}
