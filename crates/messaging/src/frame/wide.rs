//! Keyed BLAKE3 of many short inputs at once (pure).
//!
//! The result is [`blake3::keyed_hash`] of each input, and a test compares the two. What is gained is width: a processor
//! with AVX-512 hashes sixteen inputs of equal length in the time of one. The library's stable interface has that only
//! for the chunks of one input, so this file calls the part of it that is public without a promise of stability; if it
//! ever goes away, `keyed_hash` in a loop takes its place and only the figure changes.

use blake3::{
    BLOCK_LEN, CHUNK_LEN, IncrementCounter, OUT_LEN,
    platform::{MAX_SIMD_DEGREE, Platform, words_from_le_bytes_32},
};

use super::merkle::Hash;

/// The most blocks of an input that can be hashed side by side with others: those of one BLAKE3 chunk.
pub(super) const BLOCKS_MAX: usize = CHUNK_LEN / BLOCK_LEN;
/// Inputs that are worth handing over together.
pub(super) const WIDTH: usize = if MAX_SIMD_DEGREE > 16 {
    MAX_SIMD_DEGREE
} else {
    16
};

const _: () = assert!(OUT_LEN == size_of::<Hash>());

// Flags of the BLAKE3 paper, table 3: a keyed hash whose only chunk is the root.
const CHUNK_START: u8 = 1;
const CHUNK_END: u8 = 1 << 1;
const ROOT: u8 = 1 << 3;
const KEYED_HASH: u8 = 1 << 4;

/// A key, and how this processor hashes under it.
pub(super) struct Wide {
    key: [u32; 8],
    platform: Platform,
}

impl Wide {
    pub(super) fn new(key: &Hash) -> Self {
        Self {
            key: words_from_le_bytes_32(key),
            platform: Platform::detect(),
        }
    }

    /// The keyed hashes of `rows`, each of whole blocks and all of one length, written over the front of `out`.
    ///
    /// `rows` is their concatenation; `blocks` (1 to [`BLOCKS_MAX`]) is the length of each.
    pub(super) fn hash(&self, rows: &[u8], blocks: usize, out: &mut [Hash]) {
        match blocks {
            1 => self.rows::<64>(rows, out),
            2 => self.rows::<128>(rows, out),
            3 => self.rows::<192>(rows, out),
            4 => self.rows::<256>(rows, out),
            5 => self.rows::<320>(rows, out),
            6 => self.rows::<384>(rows, out),
            7 => self.rows::<448>(rows, out),
            8 => self.rows::<512>(rows, out),
            9 => self.rows::<576>(rows, out),
            10 => self.rows::<640>(rows, out),
            11 => self.rows::<704>(rows, out),
            12 => self.rows::<768>(rows, out),
            13 => self.rows::<832>(rows, out),
            14 => self.rows::<896>(rows, out),
            15 => self.rows::<960>(rows, out),
            _ => self.rows::<1024>(rows, out),
        }
    }

    fn rows<const N: usize>(&self, rows: &[u8], out: &mut [Hash]) {
        let (rows, rest) = rows.as_chunks::<N>();
        debug_assert!(rest.is_empty() && rows.len() <= out.len());
        for (rows, out) in rows.chunks(WIDTH).zip(out.chunks_mut(WIDTH)) {
            let mut inputs = [&rows[0]; WIDTH];
            for (input, row) in inputs.iter_mut().zip(rows) {
                *input = row;
            }
            self.platform.hash_many(
                &inputs[..rows.len()],
                &self.key,
                0,
                IncrementCounter::No,
                KEYED_HASH,
                CHUNK_START,
                CHUNK_END | ROOT,
                out.as_flattened_mut(),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_at_once_hash_as_each_alone() {
        let key = [9; 32];
        let wide = Wide::new(&key);
        for blocks in 1..=BLOCKS_MAX {
            for count in [1, 2, 3, 7, 8, 15, 16, 17, 40] {
                let length = blocks * BLOCK_LEN;
                let rows: Vec<u8> = (0..count * length)
                    .map(|at| u8::try_from(at * 31 % 251).unwrap())
                    .collect();
                let mut out = vec![[0; 32]; count];
                wide.hash(&rows, blocks, &mut out);
                for (row, hash) in rows.chunks(length).zip(&out) {
                    let alone = blake3::keyed_hash(&key, row);
                    assert_eq!(hash, alone.as_bytes(), "{blocks} blocks, {count} rows");
                }
            }
        }
    }
}
