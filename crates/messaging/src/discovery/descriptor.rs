//! What an agent says about itself, and the signed bytes in which it says it (pure).
//!
//! All numbers are big-endian:
//! ```text
//! signed:   u8 version = 1   u32 length, descriptor   64 signature over DOMAIN and the descriptor's bytes
//! descriptor:
//!   u8  version = 1   u8 flags (SUCCESSION; others 0)   32 public key   i64 issued_at   i64 expires_at (µs)
//!   str8 tenant       str8 name
//!   u8  topics, each str16         strictly ascending, so are
//!   u8  capabilities, each str8
//!   u8  pools, each str8
//!   32 old key  32 new key  i64 at  64 signature of the old key  [SUCCESSION]
//! ```
//! Decoding accepts exactly what encoding writes, so what was signed has one form.

use std::{borrow::Borrow, collections::BTreeSet, fmt, str::FromStr, sync::Arc, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use volary_kernel::{
    clock::Timestamp,
    id::{Name, Tenant},
    sign::{PUBLIC_KEY_LEN, PublicKey, SIGNATURE_LEN, Signature},
};

use crate::{
    codec::DecodeError,
    identity::{AgentId, Identity, Succession},
    topic::{Topic, is_segment},
    wire::{Reader, invalid, put_bytes32, put_str8, put_str16},
};

const VERSION: u8 = 1;
const DOMAIN: &[u8] = b"volary/descriptor/v1\0";
const SUCCESSION: u8 = 1;

/// Most topics of one descriptor.
pub const TOPICS_MAX: usize = 255;
/// Most capabilities of one descriptor.
pub const CAPABILITIES_MAX: usize = 255;
/// Most pools of one descriptor.
pub const POOLS_MAX: usize = 64;
/// Most bytes of one signed descriptor: a few long topics, or many short ones.
pub const DESCRIPTOR_BYTES_MAX: usize = 16 * 1024;
/// How far in the future a descriptor may have been issued: clocks of two machines differ.
pub const CLOCK_SKEW: Duration = Duration::from_secs(300);
/// Longest capability, in bytes.
const CAPABILITY_MAX: usize = 64;

/// Something an agent can do: `translate` or `code/review`. Written as a topic is, at most 64 bytes. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Capability(Arc<str>);

/// A text is no [`Capability`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "capability must be 1 to {CAPABILITY_MAX} bytes, segments of A-Z a-z 0-9 _ . - separated by '/', found `{0}`"
)]
pub struct CapabilityError(String);

impl Capability {
    /// Checks and takes `text`.
    ///
    /// # Errors
    /// [`CapabilityError`] with the text that was found.
    pub fn new(text: &str) -> Result<Self, CapabilityError> {
        if text.len() > CAPABILITY_MAX || !text.split('/').all(is_segment) {
            return Err(CapabilityError(text.chars().take(80).collect()));
        }
        Ok(Self(text.into()))
    }

    /// The capability as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Capability {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Capability {
    type Err = CapabilityError;
    fn from_str(text: &str) -> Result<Self, CapabilityError> {
        Self::new(text)
    }
}

impl Serialize for Capability {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Capability {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        Self::new(&text).map_err(de::Error::custom)
    }
}

/// What an agent says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// The tenant it belongs to.
    pub tenant: Tenant,
    /// Its name there.
    pub name: Name,
    /// The key that speaks for it.
    pub key: PublicKey,
    /// Topics it gets. Sorted and without repeats once it is signed.
    pub topics: Vec<Topic>,
    /// What it can do. Sorted and without repeats once it is signed.
    pub capabilities: Vec<Capability>,
    /// Pools it works in. Sorted and without repeats once it is signed.
    pub pools: Vec<Name>,
    /// When it said so.
    pub issued_at: Timestamp,
    /// Until when it means it.
    pub expires_at: Timestamp,
    /// The statement of its last key that this one follows, if it was rotated.
    pub succession: Option<Succession>,
}

/// Why a descriptor is not believed, or can not be signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DescriptorError {
    /// The bytes are no descriptor.
    #[error("descriptor can not be read: {0}")]
    Decode(#[from] DecodeError),
    /// More of something than a descriptor holds.
    #[error("{found} {what} in one descriptor are more than {limit}")]
    TooMuch {
        /// What there is too much of.
        what: &'static str,
        /// How many.
        found: usize,
        /// How many there may be.
        limit: usize,
    },
    /// The signing identity is not the one described.
    #[error("descriptor of `{name}` names key {claimed}, it is to be signed by {actual}")]
    OtherKey {
        /// The agent.
        name: Name,
        /// Fingerprint of the key in the descriptor.
        claimed: AgentId,
        /// Fingerprint of the signer.
        actual: AgentId,
    },
    /// The signature is not that of the key in it.
    #[error("descriptor of `{name}` is not signed by its own key {id}")]
    BadSignature {
        /// The agent it claims to be about.
        name: Name,
        /// Fingerprint of the key in it.
        id: AgentId,
    },
    /// It ends before it begins, has ended, or begins too far in the future.
    #[error("descriptor of `{name}` holds from {issued_at} to {expires_at}, now is {now}")]
    Expired {
        /// The agent.
        name: Name,
        /// Its beginning.
        issued_at: Timestamp,
        /// Its end.
        expires_at: Timestamp,
        /// The time at which it was looked at.
        now: Timestamp,
    },
    /// The statement that its key follows another is forged, or about another key.
    #[error("descriptor of `{name}` carries a succession that does not lead to its key {id}")]
    BadSuccession {
        /// The agent.
        name: Name,
        /// Fingerprint of the key in it.
        id: AgentId,
    },
}

impl Descriptor {
    /// Fingerprint of its key: its identity.
    pub fn id(&self) -> AgentId {
        AgentId::of(&self.key)
    }

    fn sort(&mut self) {
        fn tidy<T: Ord>(list: &mut Vec<T>) {
            list.sort_unstable();
            list.dedup();
        }
        tidy(&mut self.topics);
        tidy(&mut self.capabilities);
        tidy(&mut self.pools);
    }

    fn encode(&self) -> Result<Vec<u8>, DescriptorError> {
        let checked = |what, found: usize, limit: usize| {
            u8::try_from(found)
                .ok()
                .filter(|_| found <= limit)
                .ok_or(DescriptorError::TooMuch { what, found, limit })
        };
        let topics = checked("topics", self.topics.len(), TOPICS_MAX)?;
        let capabilities = checked("capabilities", self.capabilities.len(), CAPABILITIES_MAX)?;
        let pools = checked("pools", self.pools.len(), POOLS_MAX)?;
        let mut out = Vec::with_capacity(256);
        let flags = if self.succession.is_some() {
            SUCCESSION
        } else {
            0
        };
        out.extend_from_slice(&[VERSION, flags]);
        out.extend_from_slice(&self.key.to_bytes());
        out.extend_from_slice(&self.issued_at.as_micros().to_be_bytes());
        out.extend_from_slice(&self.expires_at.as_micros().to_be_bytes());
        put_str8(&mut out, self.tenant.as_str());
        put_str8(&mut out, self.name.as_str());
        out.push(topics);
        self.topics
            .iter()
            .for_each(|topic| put_str16(&mut out, topic.as_str()));
        out.push(capabilities);
        self.capabilities
            .iter()
            .for_each(|capability| put_str8(&mut out, capability.as_str()));
        out.push(pools);
        self.pools
            .iter()
            .for_each(|pool| put_str8(&mut out, pool.as_str()));
        if let Some(succession) = &self.succession {
            out.extend_from_slice(&succession.to_bytes());
        }
        let found = out.len() + OUTER;
        if found > DESCRIPTOR_BYTES_MAX {
            let limit = DESCRIPTOR_BYTES_MAX;
            return Err(DescriptorError::TooMuch {
                what: "bytes",
                found,
                limit,
            });
        }
        Ok(out)
    }

    fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        reader.version("descriptor", VERSION)?;
        let flags = reader.u8("flags")?;
        if flags & !SUCCESSION != 0 {
            return Err(DecodeError::NotCanonical { what: "flags" });
        }
        let key: [u8; PUBLIC_KEY_LEN] = reader.array("key")?;
        let key = PublicKey::from_bytes(key).map_err(|error| invalid("key", error))?;
        let issued_at = Timestamp::from_micros(reader.i64("issued_at")?);
        let expires_at = Timestamp::from_micros(reader.i64("expires_at")?);
        let tenant = reader.str8("tenant")?;
        let tenant = tenant.parse().map_err(|error| invalid("tenant", error))?;
        let name = Name::new(reader.str8("name")?).map_err(|error| invalid("name", error))?;
        let topics = list(&mut reader, "topics", TOPICS_MAX, |reader| {
            Topic::new(reader.str16("topic")?).map_err(|error| invalid("topic", error))
        })?;
        let capabilities = list(&mut reader, "capabilities", CAPABILITIES_MAX, |reader| {
            let text = reader.str8("capability")?;
            Capability::new(text).map_err(|error| invalid("capability", error))
        })?;
        let pools = list(&mut reader, "pools", POOLS_MAX, |reader| {
            Name::new(reader.str8("pool")?).map_err(|error| invalid("pool", error))
        })?;
        let succession = match flags & SUCCESSION {
            0 => None,
            _ => {
                let bytes = reader.array("succession")?;
                let read = Succession::from_bytes(&bytes);
                Some(read.map_err(|error| invalid("succession", error))?)
            }
        };
        reader.end()?;
        Ok(Self {
            tenant,
            name,
            key,
            topics,
            capabilities,
            pools,
            issued_at,
            expires_at,
            succession,
        })
    }
}

/// A list whose items come in strictly ascending order.
fn list<T: Ord>(
    reader: &mut Reader<'_>,
    what: &'static str,
    limit: usize,
    read: impl Fn(&mut Reader<'_>) -> Result<T, DecodeError>,
) -> Result<Vec<T>, DecodeError> {
    let found = usize::from(reader.u8(what)?);
    if found > limit {
        return Err(DecodeError::TooMuch { what, found, limit });
    }
    let mut items: Vec<T> = Vec::with_capacity(found);
    for _ in 0..found {
        let item = read(reader)?;
        if items.last().is_some_and(|last| *last >= item) {
            return Err(DecodeError::NotCanonical { what });
        }
        items.push(item);
    }
    Ok(items)
}

/// Bytes of a signed descriptor beside the descriptor.
const OUTER: usize = 1 + 4 + SIGNATURE_LEN;

/// A descriptor with the signature of the agent's own key. Cheap to clone. It says nothing reliable before
/// [`SignedDescriptor::open`].
#[derive(Clone, PartialEq, Eq)]
pub struct SignedDescriptor {
    said: Arc<Descriptor>,
    bytes: Bytes,
    signature: Signature,
}

impl SignedDescriptor {
    /// Signs `descriptor` with the key it names.
    ///
    /// # Errors
    /// [`DescriptorError::OtherKey`], [`DescriptorError::TooMuch`].
    pub fn sign(mut descriptor: Descriptor, identity: &Identity) -> Result<Self, DescriptorError> {
        if descriptor.key != identity.public() {
            return Err(DescriptorError::OtherKey {
                claimed: descriptor.id(),
                actual: identity.id(),
                name: descriptor.name,
            });
        }
        descriptor.sort();
        let bytes = descriptor.encode()?;
        let signature = identity.sign(&[DOMAIN, &bytes].concat());
        Ok(Self {
            said: Arc::new(descriptor),
            bytes: bytes.into(),
            signature,
        })
    }

    /// The bytes that travel and are stored.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(OUTER + self.bytes.len());
        out.push(VERSION);
        put_bytes32(&mut out, &self.bytes);
        out.extend_from_slice(&self.signature);
        out.into()
    }

    /// Reads exactly `bytes`. Nothing is proven yet.
    ///
    /// # Errors
    /// [`DecodeError`] naming the first field that is wrong.
    pub fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let read = Self::read(&mut reader)?;
        reader.end()?;
        Ok(read)
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        reader.version("signed descriptor", VERSION)?;
        let bytes = reader.bytes32("descriptor", DESCRIPTOR_BYTES_MAX - OUTER)?;
        let signature: Signature = reader.array("signature")?;
        Ok(Self {
            said: Arc::new(Descriptor::decode(&bytes)?),
            bytes,
            signature,
        })
    }

    /// What it says, if its own key signed it and it holds at `now`.
    ///
    /// # Errors
    /// [`DescriptorError::BadSignature`], [`DescriptorError::Expired`], [`DescriptorError::BadSuccession`].
    pub fn open(&self, now: Timestamp) -> Result<Descriptor, DescriptorError> {
        let Descriptor {
            name,
            key,
            issued_at,
            expires_at,
            ..
        } = &*self.said;
        let (name, id) = (name.clone(), self.said.id());
        let statement = [DOMAIN, &self.bytes].concat();
        if key.verify_strict(&statement, &self.signature).is_err() {
            return Err(DescriptorError::BadSignature { name, id });
        }
        if expires_at <= issued_at || *expires_at <= now || *issued_at > now + CLOCK_SKEW {
            let (issued_at, expires_at) = (*issued_at, *expires_at);
            return Err(DescriptorError::Expired {
                name,
                issued_at,
                expires_at,
                now,
            });
        }
        if let Some(succession) = &self.said.succession
            && (succession.new_key() != key || succession.verify().is_err())
        {
            return Err(DescriptorError::BadSuccession { name, id });
        }
        Ok(Descriptor::clone(&self.said))
    }

    /// What it claims to say, unproven: for errors and lists of what was refused.
    pub fn claimed(&self) -> &Descriptor {
        &self.said
    }
}

impl fmt::Debug for SignedDescriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Descriptor { tenant, name, .. } = &*self.said;
        write!(f, "SignedDescriptor({tenant}/{name}, {})", self.said.id())
    }
}

/// Reads one signed descriptor from the front of more.
pub(super) fn read_signed(reader: &mut Reader<'_>) -> Result<SignedDescriptor, DecodeError> {
    SignedDescriptor::read(reader)
}

/// Whether two of them speak for the same agent.
pub(super) fn repeats(all: &[SignedDescriptor]) -> Option<&SignedDescriptor> {
    let mut seen = BTreeSet::new();
    all.iter()
        .find(|one| !seen.insert((one.said.tenant.as_str(), one.said.name.as_str())))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::test_util::{NOW, name, topic};

    pub(crate) fn descriptor(identity: &Identity, agent: &str) -> Descriptor {
        Descriptor {
            tenant: Tenant::default(),
            name: name(agent),
            key: identity.public(),
            topics: vec![topic("work"), topic("notes/a"), topic("work")],
            capabilities: vec![Capability::new("translate").unwrap()],
            pools: vec![name("crew")],
            issued_at: NOW,
            expires_at: NOW + Duration::from_secs(60),
            succession: None,
        }
    }

    #[test]
    fn what_was_signed_is_read_back_sorted_and_proven() {
        let identity = Identity::generate().unwrap();
        let signed = SignedDescriptor::sign(descriptor(&identity, "a"), &identity).unwrap();
        let read = SignedDescriptor::decode(&signed.encode()).unwrap();
        assert_eq!(read, signed);
        let said = read.open(NOW).unwrap();
        assert_eq!(said.topics, [topic("notes/a"), topic("work")]);
        assert_eq!(said.id(), identity.id());
    }

    #[test]
    fn it_holds_only_in_its_time() {
        let identity = Identity::generate().unwrap();
        let signed = SignedDescriptor::sign(descriptor(&identity, "a"), &identity).unwrap();
        let early = Timestamp::from_micros(NOW.as_micros() - 301_000_000);
        for (now, good) in [
            (NOW, true),
            (NOW + Duration::from_secs(59), true),
            (NOW + Duration::from_secs(60), false),
            (early, false),
        ] {
            let opened = signed.open(now);
            assert_eq!(opened.is_ok(), good, "{now}: {opened:?}");
        }
    }

    #[test]
    fn only_the_own_key_signs() {
        let (one, two) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        assert!(matches!(
            SignedDescriptor::sign(descriptor(&one, "a"), &two),
            Err(DescriptorError::OtherKey { .. })
        ));
        let mut stolen = SignedDescriptor::sign(descriptor(&one, "a"), &one).unwrap();
        let other = SignedDescriptor::sign(descriptor(&one, "b"), &one).unwrap();
        stolen.signature = other.signature;
        assert!(matches!(
            stolen.open(NOW),
            Err(DescriptorError::BadSignature { .. })
        ));
    }

    #[test]
    fn a_succession_must_lead_to_its_key() {
        let (old, new) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        let mut said = descriptor(&new, "a");
        said.succession = Some(old.hand_over(&new, NOW));
        let good = SignedDescriptor::sign(said.clone(), &new).unwrap();
        let good = SignedDescriptor::decode(&good.encode())
            .unwrap()
            .open(NOW)
            .unwrap();
        assert_eq!(good.succession.unwrap().old(), &old.public());
        said.succession = Some(new.hand_over(&old, NOW));
        let bad = SignedDescriptor::sign(said, &new).unwrap();
        assert!(matches!(
            bad.open(NOW),
            Err(DescriptorError::BadSuccession { .. })
        ));
    }

    #[test]
    fn bounds_hold() {
        let identity = Identity::generate().unwrap();
        let mut said = descriptor(&identity, "a");
        said.topics = (0..=TOPICS_MAX)
            .map(|index| topic(&format!("t{index}")))
            .collect();
        assert!(matches!(
            SignedDescriptor::sign(said.clone(), &identity),
            Err(DescriptorError::TooMuch { what: "topics", .. })
        ));
        said.topics = (0..100)
            .map(|index| topic(&format!("{index:0>255}")))
            .collect();
        assert!(matches!(
            SignedDescriptor::sign(said, &identity),
            Err(DescriptorError::TooMuch { what: "bytes", .. })
        ));
    }

    proptest! {
        #[test]
        fn a_changed_byte_is_noticed(at in 0usize..400, flip in 1u8..) {
            let identity = Identity::generate().unwrap();
            let signed = SignedDescriptor::sign(descriptor(&identity, "a"), &identity).unwrap();
            let mut bytes = signed.encode().to_vec();
            let at = at % bytes.len();
            bytes[at] ^= flip;
            let opened = SignedDescriptor::decode(&bytes.into())
                .map_err(DescriptorError::from)
                .and_then(|read| read.open(NOW));
            prop_assert!(opened.is_err());
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _read_or_refused = SignedDescriptor::decode(&bytes.into());
        }
    }
}
