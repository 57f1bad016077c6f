//! The pages that a `files` source knows, and what a look at a file means for them. Pure.

use std::{collections::BTreeMap, ops::Bound, sync::Arc};

use crate::page::{ChangeKind, ContentHash, reason};

/// A file's outer signs: while they stay the same, and can be trusted, its content need not be read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stamp {
    /// Length in bytes.
    pub size: u64,
    /// Modification time in nanoseconds since 1970.
    pub modified: i64,
    /// Time of the last change of content or attributes, in nanoseconds since 1970. Programs cannot set it back.
    pub changed: i64,
    /// Inode number: another file renamed into place shows here.
    pub inode: u64,
    /// Whether the look was late enough after the last change that a later one must show in the times.
    pub trusted: bool,
}

impl Stamp {
    /// Whether a file with these signs now surely has the content it had at this stamp.
    pub fn proves_same(&self, now: &Self) -> bool {
        self.trusted
            && Self {
                trusted: true,
                ..*now
            } == *self
    }
}

/// `size.modified.changed.inode.trusted`, as stored with a page.
impl std::fmt::Display for Stamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            size,
            modified,
            changed,
            inode,
            trusted,
        } = self;
        write!(
            f,
            "{size}.{modified}.{changed}.{inode}.{}",
            u8::from(*trusted)
        )
    }
}

/// A stored stamp that cannot be read only costs a look at the file.
impl From<&str> for Stamp {
    fn from(text: &str) -> Self {
        let mut parts = text.split('.');
        let mut next = || parts.next().and_then(|part| part.parse::<i128>().ok());
        let all = (|| {
            Some(Self {
                size: u64::try_from(next()?).ok()?,
                modified: i64::try_from(next()?).ok()?,
                changed: i64::try_from(next()?).ok()?,
                inode: u64::try_from(next()?).ok()?,
                trusted: next()? == 1,
            })
        })();
        all.unwrap_or_default()
    }
}

/// What is known of one page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// See [`crate::Page::version`].
    pub version: u64,
    /// Hash of the content last told of.
    pub hash: ContentHash,
    /// Signs of the file when it was last looked at.
    pub stamp: Stamp,
    /// The scan that last met the file.
    pub met: u32,
}

/// What a look at a page's place in the file system found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// A file with this content.
    File {
        /// Hash of all of it.
        hash: ContentHash,
        /// Its outer signs.
        stamp: Stamp,
    },
    /// A file whose outer signs prove that its content is the known one.
    Same,
    /// No page there, for this [`reason`].
    Gone(&'static str),
}

/// What a look means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing to tell and nothing to keep.
    Nothing,
    /// Nothing to tell, but the stamp is a new one.
    Restamped,
    /// To be told.
    Changed(ChangeKind),
    /// A new page for which there is no room.
    NoRoom,
}

/// The known pages by path.
#[derive(Debug, Default)]
pub struct Table {
    pages: BTreeMap<Arc<str>, Entry>,
    max: usize,
}

impl Table {
    /// A table for at most `max` pages. More may be put in with [`Table::load`].
    pub fn new(max: usize) -> Self {
        Self {
            pages: BTreeMap::new(),
            max,
        }
    }

    /// Takes over a page that was known before.
    pub fn load(&mut self, path: Arc<str>, entry: Entry) {
        self.pages.insert(path, entry);
    }

    /// Number of pages.
    pub fn len(&self) -> usize {
        self.pages.len()
    }

    /// What is known of `path`.
    pub fn get(&self, path: &str) -> Option<&Entry> {
        self.pages.get(path)
    }

    /// Compares a look with what is known and takes it over. Returns what to tell.
    pub fn take(&mut self, path: &Arc<str>, seen: Seen, met: u32) -> Verdict {
        let room = self.pages.len() < self.max;
        match (self.pages.get_mut(path), seen) {
            (None, Seen::Gone(_) | Seen::Same) => Verdict::Nothing,
            (None, Seen::File { .. }) if !room => Verdict::NoRoom,
            (None, Seen::File { hash, stamp }) => {
                self.pages.insert(
                    path.clone(),
                    Entry {
                        version: 1,
                        hash,
                        stamp,
                        met,
                    },
                );
                Verdict::Changed(ChangeKind::Added)
            }
            (Some(known), Seen::Same) => {
                known.met = met;
                Verdict::Nothing
            }
            (Some(known), Seen::File { hash, stamp }) if known.hash == hash => {
                let new = known.stamp != stamp;
                *known = Entry {
                    stamp,
                    met,
                    ..*known
                };
                if new {
                    Verdict::Restamped
                } else {
                    Verdict::Nothing
                }
            }
            (Some(known), Seen::File { hash, stamp }) => {
                *known = Entry {
                    version: known.version.saturating_add(1),
                    hash,
                    stamp,
                    met,
                };
                Verdict::Changed(ChangeKind::Replaced { edit_diff: None })
            }
            (Some(_), Seen::Gone(reason)) => {
                self.pages.remove(path);
                Verdict::Changed(ChangeKind::Invalidated {
                    reason: reason.into(),
                })
            }
        }
    }

    /// Notes that the scan `met` came by this page. `false` if it is not known.
    pub fn meet(&mut self, path: &str, met: u32) -> bool {
        self.pages
            .get_mut(path)
            .map(|entry| entry.met = met)
            .is_some()
    }

    /// Pages in the directory `path`, at any depth.
    pub fn under<'a>(
        &'a self,
        path: &str,
    ) -> impl Iterator<Item = (&'a Arc<str>, &'a Entry)> + use<'a> {
        let (from, prefix) = if path.is_empty() {
            (Bound::Unbounded, String::new())
        } else {
            let prefix = format!("{path}/");
            (Bound::Included(prefix.clone()), prefix)
        };
        let from = match &from {
            Bound::Included(text) => Bound::Included(text.as_str()),
            _ => Bound::Unbounded,
        };
        self.pages
            .range::<str, _>((from, Bound::Unbounded))
            .take_while(move |(path, _)| path.starts_with(&prefix))
    }
}

/// What a page left out by the settings has become.
pub const EXCLUDED: Seen = Seen::Gone(reason::EXCLUDED);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(content: &[u8]) -> Seen {
        Seen::File {
            hash: ContentHash::of(content),
            stamp: Stamp {
                size: content.len() as u64,
                ..Stamp::default()
            },
        }
    }

    #[test]
    fn looks_become_the_kinds_of_change() {
        let mut table = Table::new(9);
        let path: Arc<str> = "a".into();
        let gone = Seen::Gone(reason::DELETED);
        assert_eq!(table.take(&path, gone, 0), Verdict::Nothing);
        assert_eq!(
            table.take(&path, file(b"1"), 0),
            Verdict::Changed(ChangeKind::Added)
        );
        assert_eq!(table.take(&path, file(b"1"), 0), Verdict::Nothing);
        assert_eq!(
            table.take(&path, file(b"2"), 0),
            Verdict::Changed(ChangeKind::Replaced { edit_diff: None })
        );
        assert_eq!(table.get("a").unwrap().version, 2);
        let deleted = ChangeKind::Invalidated {
            reason: "deleted".into(),
        };
        assert_eq!(table.take(&path, gone, 0), Verdict::Changed(deleted));
        assert_eq!(table.take(&path, gone, 0), Verdict::Nothing);
    }

    #[test]
    fn a_touched_file_with_the_same_content_is_only_stamped_anew() {
        let mut table = Table::new(9);
        let path: Arc<str> = "a".into();
        table.take(&path, file(b"1"), 0);
        let touched = Seen::File {
            hash: ContentHash::of(b"1"),
            stamp: Stamp {
                modified: 5,
                ..Stamp::default()
            },
        };
        assert_eq!(table.take(&path, touched, 0), Verdict::Restamped);
        assert_eq!(table.get("a").unwrap().version, 1);
    }

    #[test]
    fn a_full_table_refuses_new_pages_and_still_follows_known_ones() {
        let mut table = Table::new(1);
        table.take(&"a".into(), file(b"1"), 0);
        assert_eq!(table.take(&"b".into(), file(b"1"), 0), Verdict::NoRoom);
        assert!(matches!(
            table.take(&"a".into(), file(b"2"), 0),
            Verdict::Changed(_)
        ));
    }

    #[test]
    fn pages_under_a_directory_are_those_behind_its_slash() {
        let mut table = Table::new(9);
        for path in ["a", "a-b", "a/x", "a/y/z", "a0", "b/x"] {
            table.take(&path.into(), file(b"1"), 0);
        }
        assert_eq!(
            table
                .under("a")
                .map(|(path, _)| &**path)
                .collect::<Vec<_>>(),
            ["a/x", "a/y/z"]
        );
        assert_eq!(table.under("").count(), 6);
    }

    #[test]
    fn an_unreadable_stored_stamp_is_never_trusted() {
        for text in ["", "1.2", "x.1.1.1.1", "-1.1.1.1.1"] {
            assert!(!Stamp::from(text).trusted, "{text}");
        }
    }

    proptest! {
        #[test]
        fn stamps_keep_their_text(size: u64, modified: i64, changed: i64, inode: u64, trusted: bool) {
            let stamp = Stamp { size, modified, changed, inode, trusted };
            prop_assert_eq!(Stamp::from(stamp.to_string().as_str()), stamp);
            prop_assert_eq!(stamp.proves_same(&stamp), trusted);
            let other = Stamp { inode: inode.wrapping_add(1), ..stamp };
            prop_assert!(!stamp.proves_same(&other));
        }

        /// Folding what was told gives what is there, and nothing told is without effect.
        #[test]
        fn the_told_changes_fold_to_the_truth(looks in prop::collection::vec((0..4u8, 0..4u8), 0..60)) {
            let mut table = Table::new(99);
            let (mut truth, mut told) = (BTreeMap::new(), BTreeMap::new());
            for (page, content) in looks {
                let path: Arc<str> = page.to_string().into();
                let seen = if content == 0 { Seen::Gone(reason::DELETED) } else { file(&[content]) };
                match content { 0 => truth.remove(&page), _ => truth.insert(page, content) };
                match table.take(&path, seen, 0) {
                    Verdict::Changed(ChangeKind::Added) => prop_assert!(told.insert(page, content).is_none()),
                    Verdict::Changed(ChangeKind::Replaced { .. }) => {
                        prop_assert!(told.insert(page, content).is_some_and(|old| old != content));
                    }
                    Verdict::Changed(ChangeKind::Invalidated { .. }) => prop_assert!(told.remove(&page).is_some()),
                    _ => {}
                }
                prop_assert_eq!(&told, &truth);
            }
        }
    }
}
