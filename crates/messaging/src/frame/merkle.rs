//! The hash tree over the messages of one frame (pure).
//!
//! A leaf is the keyed BLAKE3 hash of the message with its length before it, filled up with zeros to whole blocks, so
//! that messages of about one size are hashed side by side. A leaf and an inner node are hashed under different keys,
//! so neither can pass for the other; an odd node moves up unchanged, never doubled, and the number of leaves is signed
//! with the root, so a tree has one shape and one meaning.

use std::{ops::Range, sync::LazyLock};

use blake3::BLOCK_LEN;

use super::wide::{BLOCKS_MAX, WIDTH, Wide};

/// A node of the tree.
pub(super) type Hash = [u8; 32];

static LEAF_KEY: LazyLock<Hash> = LazyLock::new(|| blake3::derive_key("volary frame v2 leaf", b""));
static LEAF: LazyLock<Wide> = LazyLock::new(|| Wide::new(&LEAF_KEY));
static NODE: LazyLock<Wide> =
    LazyLock::new(|| Wide::new(&blake3::derive_key("volary frame v2 node", b"")));

/// The leaf of one encoded message that does not lie in a frame.
pub(super) fn leaf(message: &[u8]) -> Hash {
    let length = u32::try_from(message.len()).expect("an encoded message is below 9 MiB by type");
    long_leaf(&[&length.to_be_bytes(), message])
}

/// A leaf from its record (length and message) in parts, of any length.
fn long_leaf(record: &[&[u8]]) -> Hash {
    let mut hasher = blake3::Hasher::new_keyed(&LEAF_KEY);
    for part in record {
        hasher.update(part);
    }
    let tail = hasher.count() as usize % BLOCK_LEN;
    if tail > 0 {
        hasher.update(&[0; BLOCK_LEN][tail..]);
    }
    *hasher.finalize().as_bytes()
}

/// The leaves of the messages whose records (u32 length, message) lie at `records` in `frame`, in that order.
pub(super) fn leaves(frame: &[u8], records: &[Range<usize>]) -> Vec<Hash> {
    let mut leaves = vec![[0; 32]; records.len()];
    let mut order: Vec<(usize, usize)> = Vec::with_capacity(records.len());
    for (index, record) in records.iter().enumerate() {
        let blocks = record.len().div_ceil(BLOCK_LEN);
        if blocks > BLOCKS_MAX {
            leaves[index] = long_leaf(&[&frame[record.clone()]]);
        } else {
            order.push((blocks, index));
        }
    }
    order.sort_unstable();
    let mut rows = Vec::new();
    let mut hashes = [[0; 32]; WIDTH];
    for same in order.chunk_by(|a, b| a.0 == b.0) {
        let blocks = same[0].0;
        for some in same.chunks(WIDTH) {
            rows.clear();
            for (row, (_, index)) in some.iter().enumerate() {
                rows.extend_from_slice(&frame[records[*index].clone()]);
                rows.resize((row + 1) * blocks * BLOCK_LEN, 0);
            }
            LEAF.hash(&rows, blocks, &mut hashes);
            for ((_, index), hash) in some.iter().zip(&hashes) {
                leaves[*index] = *hash;
            }
        }
    }
    leaves
}

fn node(left: &Hash, right: &Hash) -> Hash {
    let mut out = [[0; 32]];
    NODE.hash([*left, *right].as_flattened(), 1, &mut out);
    out[0]
}

/// The root over `leaves`, which it uses up; all zero for none (a frame has at least one).
pub(super) fn root(mut leaves: Vec<Hash>) -> Hash {
    while leaves.len() > 1 {
        level_up(&mut leaves);
    }
    leaves.pop().unwrap_or_default()
}

/// Replaces one level by the level above it.
fn level_up(level: &mut Vec<Hash>) {
    let pairs = level.len() / 2;
    let mut above = vec![[0; 32]; level.len().div_ceil(2)];
    NODE.hash(level[..2 * pairs].as_flattened(), 1, &mut above);
    if let Some(odd) = level.get(2 * pairs) {
        above[pairs] = *odd;
    }
    *level = above;
}

/// The siblings on the way from leaf `index` to the root, lowest first. Levels where the node moves up alone add none.
pub(super) fn path(mut leaves: Vec<Hash>, mut index: usize) -> Vec<Hash> {
    let mut siblings = Vec::new();
    while leaves.len() > 1 {
        if let Some(sibling) = leaves.get(index ^ 1) {
            siblings.push(*sibling);
        }
        level_up(&mut leaves);
        index /= 2;
    }
    siblings
}

/// The paths of all leaves, as [`path`] gives them one by one.
pub(super) fn paths(mut level: Vec<Hash>) -> Vec<Vec<Hash>> {
    let mut paths = vec![Vec::new(); level.len()];
    let mut height = 0;
    while level.len() > 1 {
        for (index, path) in paths.iter_mut().enumerate() {
            path.extend(level.get((index >> height) ^ 1));
        }
        level_up(&mut level);
        height += 1;
    }
    paths
}

/// The root that `leaf` at `index` of `count` leads to; `None` if the path has not exactly the length it must have.
pub(super) fn climb(
    leaf: Hash,
    mut index: usize,
    mut count: usize,
    siblings: &[Hash],
) -> Option<Hash> {
    if index >= count {
        return None;
    }
    let mut siblings = siblings.iter();
    let mut at = leaf;
    while count > 1 {
        if index ^ 1 < count {
            let sibling = siblings.next()?;
            at = if index.is_multiple_of(2) {
                node(&at, sibling)
            } else {
                node(sibling, &at)
            };
        }
        index /= 2;
        count = count.div_ceil(2);
    }
    siblings.next().is_none().then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_in_a_frame_are_those_of_the_messages_alone() {
        let mut frame = vec![0xee; 3];
        let mut records = Vec::new();
        let mut messages = Vec::new();
        for length in [
            0, 1, 59, 60, 61, 150, 276, 277, 1019, 1020, 1021, 5000, 150, 60,
        ] {
            let message = vec![u8::try_from(length % 251).unwrap(); length];
            let start = frame.len();
            frame.extend_from_slice(&u32::try_from(length).unwrap().to_be_bytes());
            frame.extend_from_slice(&message);
            records.push(start..frame.len());
            messages.push(message);
        }
        let alone: Vec<Hash> = messages.iter().map(|message| leaf(message)).collect();
        assert_eq!(super::leaves(&frame, &records), alone);
        for (index, leaf) in alone.iter().enumerate() {
            assert!(!alone[..index].contains(leaf) || [12, 13].contains(&index));
        }
    }

    #[test]
    fn zeros_at_the_end_of_a_message_are_not_filling() {
        assert_ne!(leaf(&[7]), leaf(&[7, 0]));
        assert_ne!(leaf(&[]), leaf(&[0; 60]));
    }

    fn leaves(count: usize) -> Vec<Hash> {
        (0..count).map(|index| leaf(&index.to_be_bytes())).collect()
    }

    #[test]
    fn every_path_of_every_shape_leads_to_the_root() {
        for count in 1..=70 {
            let all = leaves(count);
            let top = root(all.clone());
            for index in 0..count {
                let siblings = path(all.clone(), index);
                assert_eq!(siblings, paths(all.clone())[index]);
                assert_eq!(
                    climb(all[index], index, count, &siblings),
                    Some(top),
                    "{index} of {count}"
                );
                assert_ne!(climb(leaf(b"other"), index, count, &siblings), Some(top));
            }
        }
    }

    #[test]
    fn a_path_of_the_wrong_length_index_or_count_is_refused() {
        let all = leaves(5);
        let top = root(all.clone());
        let siblings = path(all.clone(), 1);
        assert_eq!(climb(all[1], 1, 5, &siblings[1..]), None);
        assert_eq!(
            climb(all[1], 1, 5, &[siblings.clone(), vec![[0; 32]]].concat()),
            None
        );
        assert_ne!(climb(all[1], 0, 5, &siblings), Some(top));
        assert_eq!(climb(all[1], 5, 5, &siblings), None);
    }

    #[test]
    fn a_repeated_last_leaf_and_a_node_passed_off_as_leaf_give_another_root() {
        let three = leaves(3);
        let doubled = [three.clone(), vec![three[2]]].concat();
        assert_ne!(root(three.clone()), root(doubled));
        let upper = node(&three[0], &three[1]);
        let faked = leaf(&[three[0], three[1]].concat());
        assert_ne!(root(vec![faked, three[2]]), root(three));
        assert_ne!(faked, upper);
    }
}
