//! The hash chain. Pure; the one place that says which bytes are hashed.
//!
//! ```text
//!   digest(n) = BLAKE3[row key]( node, kind, tenant, agent?, trace?, body )        hashed by whoever commits
//!   link(n)   = BLAKE3[link key]( link(n-1), seq, at, version, cause, digest(n) )  hashed by the one writer
//!   link(0)   = BLAKE3[origin key]( node )
//! ```
//! Every field is covered. Texts carry their length in front, so that no two rows have the same bytes. The keys are
//! derived from names with a version in them: another version or use of BLAKE3 gives other hashes.

use std::sync::LazyLock;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::entry::Seq;

/// A BLAKE3 hash.
pub(crate) type Hash = [u8; 32];

type HashKey = LazyLock<[u8; 32]>;
static ROW: HashKey = LazyLock::new(|| blake3::derive_key("volary journal v1 row digest", &[]));
static LINK: HashKey = LazyLock::new(|| blake3::derive_key("volary journal v1 chain link", &[]));
static ORIGIN: HashKey =
    LazyLock::new(|| blake3::derive_key("volary journal v1 chain origin", &[]));

/// What an entry is made of before it gets its place.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row<'a> {
    pub node: &'a str,
    pub kind: &'a str,
    pub tenant: &'a str,
    pub agent: Option<&'a str>,
    pub trace: Option<[u8; 16]>,
    pub body: &'a [u8],
}

/// An entry's place.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub seq: Seq,
    pub at: i64,
    pub version: u64,
    pub cause: Option<Seq>,
}

/// Where the chain of `node` begins.
pub(crate) fn origin(node: &str) -> Hash {
    *blake3::keyed_hash(&ORIGIN, node.as_bytes()).as_bytes()
}

/// The digest of everything in an entry but its place.
pub(crate) fn digest(row: &Row<'_>) -> Hash {
    let mut bytes = Vec::with_capacity(128 + row.body.len());
    text(&mut bytes, Some(row.node));
    text(&mut bytes, Some(row.kind));
    text(&mut bytes, Some(row.tenant));
    text(&mut bytes, row.agent);
    bytes.push(u8::from(row.trace.is_some()));
    bytes.extend_from_slice(&row.trace.unwrap_or_default());
    bytes.extend_from_slice(&(row.body.len() as u64).to_le_bytes());
    bytes.extend_from_slice(row.body);
    *blake3::keyed_hash(&ROW, &bytes).as_bytes()
}

/// Length (all ones for none), then the text.
fn text(bytes: &mut Vec<u8>, text: Option<&str>) {
    let length = text.map_or(u32::MAX, |text| {
        u32::try_from(text.len()).unwrap_or(u32::MAX - 1)
    });
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(text.unwrap_or_default().as_bytes());
}

/// The chain after an entry.
pub(crate) fn link(previous: &Hash, place: &Place, digest: &Hash) -> Hash {
    let mut bytes = [0; 96];
    bytes[..32].copy_from_slice(previous);
    bytes[32..40].copy_from_slice(&place.seq.0.to_le_bytes());
    bytes[40..48].copy_from_slice(&place.at.to_le_bytes());
    bytes[48..56].copy_from_slice(&place.version.to_le_bytes());
    // Sequence numbers begin at 1.
    bytes[56..64].copy_from_slice(&place.cause.map_or(0, |cause| cause.0).to_le_bytes());
    bytes[64..].copy_from_slice(digest);
    *blake3::keyed_hash(&LINK, &bytes).as_bytes()
}

/// The part of a record's checksum that does not need its version: XXH3, which finds damage as well as a cryptographic hash
/// does, and costs a tenth of it.
pub(crate) fn record_sum(key: &str, value: &[u8], expires: Option<i64>) -> u64 {
    // Each part seeds the next, so that moving a byte from one to another changes the sum.
    let lasting = match expires {
        None => 0,
        Some(expires) => xxh3_64_with_seed(&expires.to_le_bytes(), 1),
    };
    xxh3_64_with_seed(value, xxh3_64_with_seed(key.as_bytes(), lasting))
}

/// A record's checksum: finds damage, not malice (whoever can write the file can compute it).
pub(crate) const fn stamp(sum: u64, version: u64) -> i64 {
    // The finalizer of SplitMix64: a bijection, so no two versions give the same stamp.
    let mut mixed = version.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (sum ^ mixed ^ (mixed >> 31)).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROW: Row<'_> = Row {
        node: "node",
        kind: "a.b",
        tenant: "t",
        agent: Some("x"),
        trace: Some([7; 16]),
        body: b"{}",
    };
    const PLACE: Place = Place {
        seq: Seq(3),
        at: 5,
        version: 9,
        cause: Some(Seq(2)),
    };

    #[test]
    fn every_field_changes_the_digest() {
        let others = [
            Row { node: "nod", ..ROW },
            Row { kind: "a.c", ..ROW },
            Row { tenant: "u", ..ROW },
            Row { agent: None, ..ROW },
            Row {
                agent: Some(""),
                ..ROW
            },
            Row { trace: None, ..ROW },
            Row {
                trace: Some([0; 16]),
                ..ROW
            },
            Row {
                body: b"{} ",
                ..ROW
            },
            Row {
                kind: "a.bt",
                tenant: "",
                ..ROW
            },
        ];
        for other in others {
            assert_ne!(digest(&other), digest(&ROW), "{other:?}");
        }
    }

    #[test]
    fn every_part_of_the_place_changes_the_link() {
        let (previous, digest) = (origin("node"), digest(&ROW));
        let base = link(&previous, &PLACE, &digest);
        let others = [
            Place {
                seq: Seq(4),
                ..PLACE
            },
            Place { at: 6, ..PLACE },
            Place {
                version: 8,
                ..PLACE
            },
            Place {
                cause: None,
                ..PLACE
            },
        ];
        for other in others {
            assert_ne!(link(&previous, &other, &digest), base, "{other:?}");
        }
        assert_ne!(link(&origin("other"), &PLACE, &digest), base);
    }

    #[test]
    fn the_chain_does_not_change_between_builds() {
        let link = link(&origin("node"), &PLACE, &digest(&ROW));
        assert_eq!(
            hex::encode(link),
            "6d8495d586ea213a8f482437280ef74fd1429be70cfbb4a3db09d003c446c45b"
        );
        assert_eq!(
            stamp(record_sum("k", b"v", Some(1)), 2),
            9_151_899_459_602_105_688
        );
    }
}
