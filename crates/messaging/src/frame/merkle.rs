//! The hash tree over the messages of one frame (pure).
//!
//! A leaf and an inner node are hashed under different keys, so neither can pass for the other; an odd node moves up
//! unchanged, never doubled, and the number of leaves is signed with the root, so a tree has one shape and one meaning.

use std::sync::LazyLock;

/// A node of the tree.
pub(super) type Hash = [u8; 32];

static LEAF: LazyLock<Hash> = LazyLock::new(|| blake3::derive_key("volary frame v1 leaf", b""));
static NODE: LazyLock<Hash> = LazyLock::new(|| blake3::derive_key("volary frame v1 node", b""));

/// The leaf of one encoded message.
pub(super) fn leaf(message: &[u8]) -> Hash {
    *blake3::keyed_hash(&LEAF, message).as_bytes()
}

fn node(left: &Hash, right: &Hash) -> Hash {
    let mut both = [0; 64];
    both[..32].copy_from_slice(left);
    both[32..].copy_from_slice(right);
    *blake3::keyed_hash(&NODE, &both).as_bytes()
}

/// The root over `leaves`, which it uses up; all zero for none (a frame has at least one).
pub(super) fn root(mut leaves: Vec<Hash>) -> Hash {
    while leaves.len() > 1 {
        level_up(&mut leaves);
    }
    leaves.pop().unwrap_or_default()
}

/// Replaces one level by the level above it, in place.
fn level_up(level: &mut Vec<Hash>) {
    let pairs = level.len() / 2;
    for pair in 0..pairs {
        level[pair] = node(&level[2 * pair], &level[2 * pair + 1]);
    }
    if !level.len().is_multiple_of(2) {
        level[pairs] = level[2 * pairs];
    }
    level.truncate(level.len().div_ceil(2));
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
