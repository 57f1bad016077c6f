//! The sealed frame: 1 to [`FRAME_MESSAGES_MAX`] messages of one sender under one signature.
//!
//! ```text
//! u8 version = 2 │ 32 public key │ u16 count │ 64 signature │ count × (u32 length, message as in `codec`)
//! signed: "volary/frame/v2\0" ‖ public key ‖ u16 count ‖ root of the hash tree over the messages' bytes
//! ```
//!
//! What is verified are the bytes that were received; nothing is encoded again. A message taken out of a frame keeps
//! its bytes, its path to the root and the signature ([`SealedMessage`]), so it stays verifiable alone.

mod merkle;
mod sealed;
mod wide;

use std::ops::Range;

use bytes::Bytes;
use volary_kernel::sign::{PUBLIC_KEY_LEN, PublicKey, SIGNATURE_LEN, Signature};

use self::merkle::Hash;
pub use self::sealed::SealedMessage;
use crate::{
    codec::{self, DecodeError, Decoder, ENCODED_MAX},
    identity::{AgentId, Identity, IdentityRegistry, RegistryError},
    message::Message,
    wire::{Reader, put_bytes32},
};

/// Version of the frame's format.
pub const FRAME_VERSION: u8 = 2;
/// Most messages of one frame. Past a few hundred, the signature's share of the cost is lost in the rest.
pub const FRAME_MESSAGES_MAX: usize = 1024;
/// Most bytes of one frame: one largest message and its header always fit.
pub const FRAME_BYTES_MAX: usize = 16 * 1024 * 1024;

const DOMAIN: &[u8; 16] = b"volary/frame/v2\0";
const HEAD: usize = 1 + PUBLIC_KEY_LEN + 2 + SIGNATURE_LEN;
const SIGNATURE_AT: usize = HEAD - SIGNATURE_LEN;
/// Bytes of the length before a message.
const RECORD_HEAD: usize = 4;
const STATEMENT: usize = DOMAIN.len() + PUBLIC_KEY_LEN + 2 + 32;

/// Why messages can not be sealed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// None, or more than [`FRAME_MESSAGES_MAX`].
    #[error("{found} messages do not make a frame; it holds 1 to {FRAME_MESSAGES_MAX}")]
    Count {
        /// Messages given.
        found: usize,
    },
    /// A message has another sender than the identity that seals.
    #[error("message {index} is from {sender}, not from {signer} who seals")]
    ForeignSender {
        /// Its position.
        index: usize,
        /// Its sender.
        sender: AgentId,
        /// Whose key seals.
        signer: AgentId,
    },
    /// The frame would be larger than [`FRAME_BYTES_MAX`].
    #[error("the messages make a frame of more than {FRAME_BYTES_MAX} bytes")]
    TooLarge,
}

/// Why a frame or a sealed message is refused. Nothing of it may be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The bytes have not the form of a frame, or a message in it not the form of a message.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The key in it is no usable key.
    #[error("the frame's public key is not usable")]
    Key,
    /// It is from another key than the one expected.
    #[error("sealed by {found}, expected {expected}")]
    WrongKey {
        /// Whose key sealed.
        found: AgentId,
        /// Whose key was expected.
        expected: AgentId,
    },
    /// The key is not believed here.
    #[error(transparent)]
    Untrusted(#[from] RegistryError),
    /// The signature does not fit the bytes.
    #[error("the signature does not fit the bytes")]
    Signature,
    /// A message in it claims to be from somebody else, or under another name or tenant.
    #[error("message {index} claims to be from {claimed}, its frame is from {signer}")]
    Sender {
        /// Its position.
        index: usize,
        /// Who it claims to be from.
        claimed: String,
        /// Whose key sealed.
        signer: AgentId,
    },
}

/// Whose seals are accepted.
#[derive(Debug, Clone, Copy)]
pub enum Trust<'a> {
    /// Only this key's. Names are taken as the key states them.
    Key(&'a PublicKey),
    /// Those of believed identities; name and tenant of a message must be the registered ones.
    Registry(&'a IdentityRegistry),
}

/// Seals `messages` into one frame.
///
/// # Errors
/// [`SealError`]; nothing was signed.
pub fn seal(identity: &Identity, messages: &[Message]) -> Result<Bytes, SealError> {
    let signer = identity.id();
    let weight = messages.iter().map(|message| message.body().len() + 512);
    let mut sealing = Sealing::begin(identity, messages.len(), weight.sum())?;
    for (index, message) in messages.iter().enumerate() {
        let sender = message.sender().id();
        if sender != signer {
            return Err(SealError::ForeignSender {
                index,
                sender,
                signer,
            });
        }
        let record = push_record(&mut sealing.frame, message);
        sealing.add(record)?;
    }
    Ok(sealing.end(identity))
}

/// Seals messages that are encoded already and whose sender is known to be `identity`: what an outbox holds.
///
/// # Errors
/// [`SealError`]; nothing was signed.
pub(crate) fn seal_encoded<'a>(
    identity: &Identity,
    messages: impl ExactSizeIterator<Item = &'a Bytes> + Clone,
) -> Result<Bytes, SealError> {
    let weight = messages.clone().map(|message| message.len() + RECORD_HEAD);
    let mut sealing = Sealing::begin(identity, messages.len(), weight.sum())?;
    for message in messages {
        let start = sealing.frame.len();
        put_bytes32(&mut sealing.frame, message);
        let record = start..sealing.frame.len();
        sealing.add(record)?;
    }
    Ok(sealing.end(identity))
}

/// A frame that is being made.
struct Sealing {
    frame: Vec<u8>,
    records: Vec<Range<usize>>,
    count: u16,
}

impl Sealing {
    fn begin(identity: &Identity, found: usize, weight: usize) -> Result<Self, SealError> {
        let count = u16::try_from(found)
            .ok()
            .filter(|_| (1..=FRAME_MESSAGES_MAX).contains(&found));
        let count = count.ok_or(SealError::Count { found })?;
        let mut frame = Vec::with_capacity(HEAD + weight.min(FRAME_BYTES_MAX));
        frame.push(FRAME_VERSION);
        frame.extend_from_slice(&identity.public().to_bytes());
        frame.extend_from_slice(&count.to_be_bytes());
        frame.resize(HEAD, 0);
        Ok(Self {
            frame,
            records: Vec::with_capacity(found),
            count,
        })
    }

    fn add(&mut self, record: Range<usize>) -> Result<(), SealError> {
        self.records.push(record);
        if self.frame.len() > FRAME_BYTES_MAX {
            return Err(SealError::TooLarge);
        }
        Ok(())
    }

    fn end(mut self, identity: &Identity) -> Bytes {
        let root = merkle::root(merkle::leaves(&self.frame, &self.records));
        let signature = identity.sign(&statement(&identity.public(), self.count, &root));
        self.frame[SIGNATURE_AT..HEAD].copy_from_slice(&signature);
        self.frame.into()
    }
}

/// Appends one message with its length before it and returns where both lie.
fn push_record(frame: &mut Vec<u8>, message: &Message) -> Range<usize> {
    let start = frame.len();
    frame.extend_from_slice(&[0; RECORD_HEAD]);
    codec::encode_into(message, frame);
    let length = u32::try_from(frame.len() - start - RECORD_HEAD)
        .expect("an encoded message is below 9 MiB by type");
    frame[start..start + RECORD_HEAD].copy_from_slice(&length.to_be_bytes());
    start..frame.len()
}

fn statement(key: &PublicKey, count: u16, root: &Hash) -> [u8; STATEMENT] {
    let mut bytes = [0; STATEMENT];
    let (domain, rest) = bytes.split_at_mut(DOMAIN.len());
    domain.copy_from_slice(DOMAIN);
    let (public, rest) = rest.split_at_mut(PUBLIC_KEY_LEN);
    public.copy_from_slice(&key.to_bytes());
    let (number, top) = rest.split_at_mut(2);
    number.copy_from_slice(&count.to_be_bytes());
    top.copy_from_slice(root);
    bytes
}

/// A verified frame: its messages, and what is needed to keep each of them verifiable.
#[derive(Debug, Clone)]
pub struct OpenFrame {
    key: PublicKey,
    signature: Signature,
    frame: Bytes,
    records: Vec<Range<usize>>,
    leaves: Vec<Hash>,
    messages: Vec<Message>,
}

impl OpenFrame {
    /// The key that sealed it.
    pub fn key(&self) -> &PublicKey {
        &self.key
    }

    /// The messages, in the order in which they were sealed.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// The messages, given away.
    pub fn into_messages(self) -> Vec<Message> {
        self.messages
    }

    /// Hash of the bytes of message `index` as they were sealed; `None` past the end.
    pub fn digest(&self, index: usize) -> Option<[u8; 32]> {
        self.leaves.get(index).copied()
    }

    /// Message `index` in the form that can be stored and verified alone; `None` past the end.
    pub fn sealed(&self, index: usize) -> Option<SealedMessage> {
        let record = self.records.get(index)?;
        let bytes = self.frame.slice(record.start + RECORD_HEAD..record.end);
        let siblings = merkle::path(self.leaves.clone(), index);
        Some(SealedMessage::new(
            self.key,
            self.signature,
            index,
            self.records.len(),
            siblings,
            bytes,
        ))
    }
}

impl OpenFrame {
    /// The messages, each with the form that can be stored and verified alone.
    pub(crate) fn into_sealed(self) -> Vec<(Message, SealedMessage)> {
        let count = self.records.len();
        let parts = self.records.into_iter().zip(merkle::paths(self.leaves));
        let seal = |(index, (record, siblings)): (usize, (Range<usize>, Vec<Hash>))| {
            let bytes = self.frame.slice(record.start + RECORD_HEAD..record.end);
            SealedMessage::new(self.key, self.signature, index, count, siblings, bytes)
        };
        let sealed = parts.enumerate().map(seal);
        self.messages.into_iter().zip(sealed).collect()
    }
}

/// Verifies a frame as it was received, then decodes its messages.
///
/// Nothing is decoded before the signature over all of it was found good.
///
/// # Errors
/// [`OpenError`]; the frame is refused as a whole.
pub fn open(bytes: &Bytes, trust: Trust<'_>) -> Result<OpenFrame, OpenError> {
    let mut reader = Reader::new(bytes);
    let (key, count, signature) = head(&mut reader)?;
    let who = Who::of(key, trust)?;
    let mut records = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        let start = bytes.len() - reader.left();
        reader.skip32("message", ENCODED_MAX)?;
        records.push(start..bytes.len() - reader.left());
    }
    reader.end()?;
    let leaves = merkle::leaves(bytes, &records);
    let statement = statement(&who.key, count, &merkle::root(leaves.clone()));
    who.key
        .verify_strict(&statement, &signature)
        .map_err(|_| OpenError::Signature)?;
    let mut decoder = Decoder::default();
    let mut messages = Vec::with_capacity(records.len());
    for (index, record) in records.iter().enumerate() {
        let message = decoder.decode_at(bytes, record.start + RECORD_HEAD..record.end)?;
        who.check(index, &message)?;
        messages.push(message);
    }
    Ok(OpenFrame {
        key: who.key,
        signature,
        frame: bytes.clone(),
        records,
        leaves,
        messages,
    })
}

fn head(reader: &mut Reader<'_>) -> Result<([u8; PUBLIC_KEY_LEN], u16, Signature), DecodeError> {
    reader.version("frame", FRAME_VERSION)?;
    let key = reader.array("public key")?;
    let count = reader.u16("message count")?;
    if !(1..=FRAME_MESSAGES_MAX).contains(&usize::from(count)) {
        return Err(DecodeError::TooMuch {
            what: "message count",
            found: count.into(),
            limit: FRAME_MESSAGES_MAX,
        });
    }
    Ok((key, count, reader.array("signature")?))
}

/// The key that sealed, its fingerprint, and (from a registry) the name and tenant it may use.
struct Who {
    key: PublicKey,
    id: AgentId,
    speaks_for: Option<crate::identity::Known>,
}

impl Who {
    fn of(key: [u8; PUBLIC_KEY_LEN], trust: Trust<'_>) -> Result<Self, OpenError> {
        match trust {
            Trust::Key(expected) if expected.to_bytes() == key => Ok(Self {
                key: *expected,
                id: AgentId::of(expected),
                speaks_for: None,
            }),
            Trust::Key(expected) => {
                let found = PublicKey::from_bytes(key).map_err(|_| OpenError::Key)?;
                Err(OpenError::WrongKey {
                    found: AgentId::of(&found),
                    expected: AgentId::of(expected),
                })
            }
            Trust::Registry(registry) => {
                let id = AgentId::of_bytes(&key);
                let known = registry.trusted(&id)?;
                Ok(Self {
                    key: known.key,
                    id,
                    speaks_for: Some(known),
                })
            }
        }
    }

    fn check(&self, index: usize, message: &Message) -> Result<(), OpenError> {
        let sender = message.sender();
        let fits = self
            .speaks_for
            .as_ref()
            .is_none_or(|known| known.name == *sender.name() && known.tenant == *sender.tenant());
        if sender.id() == self.id && fits {
            return Ok(());
        }
        Err(OpenError::Sender {
            index,
            claimed: format!("{sender:?}"),
            signer: self.id,
        })
    }
}
