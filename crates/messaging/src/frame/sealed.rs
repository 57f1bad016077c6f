//! One message out of a frame, with all that proves it: its bytes, its path to the signed root, signature and key.

use bytes::Bytes;
use volary_kernel::sign::{PUBLIC_KEY_LEN, PublicKey, SIGNATURE_LEN, Signature};

use super::{FRAME_MESSAGES_MAX, OpenError, Trust, Who, merkle, statement};
use crate::{
    codec::{self, DecodeError, ENCODED_MAX},
    message::Message,
    wire::{Reader, put_bytes32},
};

/// Version of the stored form.
const VERSION: u8 = 2;
/// Longest path of a tree with [`FRAME_MESSAGES_MAX`] leaves.
const PATH_MAX: usize = FRAME_MESSAGES_MAX.ilog2() as usize;

/// A message that proves itself: stored, exported and handed on without its frame.
///
/// ```text
/// u8 version = 2 │ 32 public key │ 64 signature │ u16 index │ u16 count │ u8 n │ n × 32 siblings │ u32 length, message
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedMessage {
    key: [u8; PUBLIC_KEY_LEN],
    signature: Signature,
    index: u16,
    count: u16,
    siblings: Vec<merkle::Hash>,
    bytes: Bytes,
}

impl SealedMessage {
    pub(super) fn new(
        key: PublicKey,
        signature: Signature,
        index: usize,
        count: usize,
        siblings: Vec<merkle::Hash>,
        bytes: Bytes,
    ) -> Self {
        let small =
            |number: usize| u16::try_from(number).expect("a frame holds at most 1024 messages");
        Self {
            key: key.to_bytes(),
            signature,
            index: small(index),
            count: small(count),
            siblings,
            bytes,
        }
    }

    /// The message's bytes as they were sealed.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Position in its frame and number of messages there.
    pub fn position(&self) -> (u16, u16) {
        (self.index, self.count)
    }

    /// Verifies the message and decodes it.
    ///
    /// # Errors
    /// [`OpenError`]; the message must not be used.
    pub fn open(&self, trust: Trust<'_>) -> Result<Message, OpenError> {
        let who = Who::of(self.key, trust)?;
        let leaf = merkle::leaf(&self.bytes);
        let root = merkle::climb(leaf, self.index.into(), self.count.into(), &self.siblings);
        let root = root.ok_or(OpenError::Signature)?;
        let statement = statement(&who.key, self.count, &root);
        who.key
            .verify_strict(&statement, &self.signature)
            .map_err(|_| OpenError::Signature)?;
        let message = codec::decode(&self.bytes)?;
        who.check(self.index.into(), &message)?;
        Ok(message)
    }

    /// The stored form.
    pub fn encode(&self) -> Bytes {
        let head = 2 + PUBLIC_KEY_LEN + SIGNATURE_LEN + 4;
        let mut out = Vec::with_capacity(head + 32 * self.siblings.len() + 4 + self.bytes.len());
        out.push(VERSION);
        out.extend_from_slice(&self.key);
        out.extend_from_slice(&self.signature);
        out.extend_from_slice(&self.index.to_be_bytes());
        out.extend_from_slice(&self.count.to_be_bytes());
        out.push(u8::try_from(self.siblings.len()).expect("a path has at most 10 siblings"));
        for sibling in &self.siblings {
            out.extend_from_slice(sibling);
        }
        put_bytes32(&mut out, &self.bytes);
        out.into()
    }

    /// Reads the stored form from exactly `bytes`. It proves nothing until [`SealedMessage::open`].
    ///
    /// # Errors
    /// [`DecodeError`] naming the first field that is wrong.
    pub fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        reader.version("sealed message", VERSION)?;
        let (key, signature) = (reader.array("public key")?, reader.array("signature")?);
        let (index, count) = (reader.u16("index")?, reader.u16("message count")?);
        let found = usize::from(count);
        if index >= count || found > FRAME_MESSAGES_MAX {
            return Err(DecodeError::TooMuch {
                what: "message count",
                found,
                limit: FRAME_MESSAGES_MAX,
            });
        }
        let found = usize::from(reader.u8("path")?);
        if found > PATH_MAX {
            return Err(DecodeError::TooMuch {
                what: "path",
                found,
                limit: PATH_MAX,
            });
        }
        let siblings = (0..found)
            .map(|_| reader.array("path"))
            .collect::<Result<_, _>>()?;
        let bytes = reader.bytes32("message", ENCODED_MAX)?;
        reader.end()?;
        Ok(Self {
            key,
            signature,
            index,
            count,
            siblings,
            bytes,
        })
    }
}
