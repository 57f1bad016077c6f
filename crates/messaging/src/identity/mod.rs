//! Who speaks: Ed25519 identities, their fingerprints, their key files, and the register of known ones.

mod file;
mod keyring;
mod registry;
mod stored;
mod succession;
mod table;

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use volary_kernel::{
    clock::Timestamp,
    sign::{PUBLIC_KEY_LEN, PublicKey, SIGNATURE_LEN, SignError, Signature, SigningKey},
};

pub use self::{
    file::KeyFileError,
    keyring::Keyring,
    registry::IdentityRegistry,
    succession::SuccessionError,
    table::{Introduced, Known, REGISTRY_MAX, RegistryError, Status, Voucher},
};

/// Fingerprint of an identity: the SHA-256 of its raw public key. Its text form is 64 lowercase hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AgentId([u8; 32]);

/// A text is no [`AgentId`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("agent id must be 64 lowercase hex digits, found `{0}`")]
pub struct AgentIdError(String);

impl AgentId {
    /// The fingerprint of `key`.
    pub fn of(key: &PublicKey) -> Self {
        Self::of_bytes(&key.to_bytes())
    }

    /// The fingerprint of a key's bytes, before anything is known about them.
    pub(crate) fn of_bytes(key: &[u8; PUBLIC_KEY_LEN]) -> Self {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, key);
        let bytes = digest
            .as_ref()
            .try_into()
            .expect("a SHA-256 digest is 32 bytes long");
        Self(bytes)
    }

    /// The fingerprint as bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// A claimed fingerprint, as it stands in a message; it proves nothing until compared with [`AgentId::of`] a key.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl FromStr for AgentId {
    type Err = AgentIdError;
    fn from_str(text: &str) -> Result<Self, AgentIdError> {
        let mut bytes = [0; 32];
        let lower = !text.bytes().any(|byte| byte.is_ascii_uppercase());
        match hex::decode_to_slice(text, &mut bytes) {
            Ok(()) if lower => Ok(Self(bytes)),
            _ => Err(AgentIdError(text.chars().take(80).collect())),
        }
    }
}

impl Serialize for AgentId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AgentId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// A key pair and its fingerprint. One per agent, shared by its replicas. Cheap to clone; Debug shows the fingerprint.
#[derive(Clone)]
pub struct Identity {
    id: AgentId,
    key: Arc<SigningKey>,
}

impl Identity {
    /// A new random identity.
    ///
    /// # Errors
    /// [`SignError`] if the random source or the library fails.
    pub fn generate() -> Result<Self, SignError> {
        SigningKey::generate().map(Self::from_key)
    }

    /// The identity of `key`.
    pub fn from_key(key: SigningKey) -> Self {
        Self {
            id: AgentId::of(&key.public()),
            key: Arc::new(key),
        }
    }

    /// The fingerprint.
    pub fn id(&self) -> AgentId {
        self.id
    }

    /// The public key.
    pub fn public(&self) -> PublicKey {
        self.key.public()
    }

    /// Signs `bytes`, which must begin with a domain that no other format uses.
    pub(crate) fn sign(&self, bytes: &[u8]) -> Signature {
        self.key.sign(bytes)
    }

    /// The key pair, for who signs other formats with it; each begins with a domain of its own.
    pub fn signing_key(&self) -> Arc<SigningKey> {
        self.key.clone()
    }

    pub(crate) fn key(&self) -> &SigningKey {
        &self.key
    }

    /// A statement, signed by this identity, that `next` takes its place.
    pub fn hand_over(&self, next: &Identity, at: Timestamp) -> Succession {
        let (old, new) = (self.public(), next.public());
        let signature = self.sign(&Succession::statement(&old, &new, at));
        Succession {
            old,
            new,
            at,
            signature,
        }
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.id)
    }
}

/// The statement that one key follows another, signed by the old one: how a rotated key becomes known elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Succession {
    old: PublicKey,
    new: PublicKey,
    at: Timestamp,
    signature: Signature,
}

impl Succession {
    const DOMAIN: &'static [u8] = b"volary/succession/v1\0";

    /// Bytes of a succession.
    pub const LEN: usize = 2 * PUBLIC_KEY_LEN + 8 + SIGNATURE_LEN;

    fn statement(old: &PublicKey, new: &PublicKey, at: Timestamp) -> Vec<u8> {
        let at = at.as_micros().to_be_bytes();
        [Self::DOMAIN, &old.to_bytes(), &new.to_bytes(), &at].concat()
    }

    /// The key that is followed.
    pub fn old(&self) -> &PublicKey {
        &self.old
    }

    /// The key that follows.
    pub fn new_key(&self) -> &PublicKey {
        &self.new
    }

    /// When the old key said so.
    pub fn at(&self) -> Timestamp {
        self.at
    }

    /// The statement and its signature as bytes: old key, new key, time in microseconds (big-endian), signature.
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        let at = self.at.as_micros().to_be_bytes();
        let parts: [&[u8]; 4] = [
            &self.old.to_bytes(),
            &self.new.to_bytes(),
            &at,
            &self.signature,
        ];
        let mut rest = &mut out[..];
        for part in parts {
            let (front, after) = rest.split_at_mut(part.len());
            front.copy_from_slice(part);
            rest = after;
        }
        out
    }

    /// Reads what [`Succession::to_bytes`] wrote. Nothing is proven before [`Succession::verify`].
    ///
    /// # Errors
    /// [`SignError`] for bytes that are no key.
    pub fn from_bytes(bytes: &[u8; Self::LEN]) -> Result<Self, SignError> {
        let (mut old, mut new, mut at) = ([0; PUBLIC_KEY_LEN], [0; PUBLIC_KEY_LEN], [0; 8]);
        let mut signature: Signature = [0; SIGNATURE_LEN];
        let mut rest = &bytes[..];
        for part in [&mut old[..], &mut new[..], &mut at[..], &mut signature[..]] {
            let (front, after) = rest.split_at(part.len());
            part.copy_from_slice(front);
            rest = after;
        }
        Ok(Self {
            old: PublicKey::from_bytes(old)?,
            new: PublicKey::from_bytes(new)?,
            at: Timestamp::from_micros(i64::from_be_bytes(at)),
            signature,
        })
    }

    /// Checks the old key's signature.
    ///
    /// # Errors
    /// [`SignError::BadSignature`].
    pub fn verify(&self) -> Result<(), SignError> {
        self.old.verify_strict(
            &Self::statement(&self.old, &self.new, self.at),
            &self.signature,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fingerprint_is_the_sha256_of_the_raw_public_key() {
        let key = "43046bfe4092b3e94994eada15dcc20d8aaa07b658fd3954eb8e0efb8bdca5de";
        let id = AgentId::of(&PublicKey::from_hex(key).unwrap());
        assert_eq!(
            id.to_string(),
            "1f5fe64ec2f8c901be3aad94a41d70c12d2f3a8f43755f902e665c96f41c87e3"
        );
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!(id.to_string().to_uppercase().parse::<AgentId>().is_err());
    }

    #[test]
    fn debug_shows_the_fingerprint_and_no_key() {
        let identity = Identity::generate().unwrap();
        assert_eq!(
            format!("{identity:?}"),
            format!("Identity({})", identity.id())
        );
    }

    #[test]
    fn a_succession_verifies_only_as_the_old_key_made_it() {
        let (old, new, other) = (
            Identity::generate().unwrap(),
            Identity::generate().unwrap(),
            Identity::generate().unwrap(),
        );
        let statement = old.hand_over(&new, Timestamp::from_micros(5));
        assert_eq!(statement.verify(), Ok(()));
        let stolen = Succession {
            new: other.public(),
            ..statement
        };
        assert!(stolen.verify().is_err());
    }
}
