//! Ed25519 keys (RFC 8032): signing by aws-lc-rs, which signs fastest, and strict verification by ed25519-dalek.
//!
//! Verification is always `verify_strict`: two nodes, or a node and a later replay, must agree on every signature.

use std::fmt;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use thiserror::Error;
use zeroize::Zeroizing;

/// Length of a public key in bytes.
pub const PUBLIC_KEY_LEN: usize = 32;
/// Length of a signature in bytes.
pub const SIGNATURE_LEN: usize = 64;

/// A signature.
pub type Signature = [u8; SIGNATURE_LEN];

/// Why a key or a signature was not taken.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SignError {
    /// The bytes are not a PKCS#8 Ed25519 private key.
    #[error("not an Ed25519 private key in PKCS#8 form")]
    BadPrivateKey,
    /// The bytes are not a point on the curve, or a weak one.
    #[error("not an Ed25519 public key")]
    BadPublicKey,
    /// The signature does not fit key and message.
    #[error("signature does not match")]
    BadSignature,
    /// The operating system gave no randomness.
    #[error("no randomness to make a key with")]
    NoRandomness,
}

/// A private key. Debug shows only its public half.
pub struct SigningKey {
    pair: Ed25519KeyPair,
    public: PublicKey,
}

impl SigningKey {
    /// A new random key.
    ///
    /// # Errors
    /// [`SignError::NoRandomness`].
    pub fn generate() -> Result<Self, SignError> {
        let pair = Ed25519KeyPair::generate().map_err(|_| SignError::NoRandomness)?;
        Self::from_pair(pair)
    }

    /// A key from its PKCS#8 form, version 1 or 2 (RFC 5958).
    ///
    /// # Errors
    /// [`SignError::BadPrivateKey`].
    pub fn from_pkcs8(bytes: &[u8]) -> Result<Self, SignError> {
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(bytes)
            .map_err(|_| SignError::BadPrivateKey)?;
        Self::from_pair(pair)
    }

    fn from_pair(pair: Ed25519KeyPair) -> Result<Self, SignError> {
        let bytes = pair
            .public_key()
            .as_ref()
            .try_into()
            .map_err(|_| SignError::BadPrivateKey)?;
        Ok(Self {
            public: PublicKey::from_bytes(bytes)?,
            pair,
        })
    }

    /// The PKCS#8 form (version 1), wiped from memory when dropped.
    ///
    /// # Errors
    /// [`SignError::BadPrivateKey`] if the library cannot encode it.
    pub fn to_pkcs8(&self) -> Result<Zeroizing<Vec<u8>>, SignError> {
        let document = self
            .pair
            .to_pkcs8v1()
            .map_err(|_| SignError::BadPrivateKey)?;
        Ok(Zeroizing::new(document.as_ref().to_vec()))
    }

    /// The public half.
    pub const fn public(&self) -> PublicKey {
        self.public
    }

    /// Signs `message`.
    pub fn sign(&self, message: &[u8]) -> Signature {
        let mut signature = [0; SIGNATURE_LEN];
        signature.copy_from_slice(self.pair.sign(message).as_ref());
        signature
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey")
            .field("public", &self.public)
            .finish_non_exhaustive()
    }
}

/// A public key. Its text form is 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey(ed25519_dalek::VerifyingKey);

impl PublicKey {
    /// A key from its bytes.
    ///
    /// # Errors
    /// [`SignError::BadPublicKey`] if they are no point on the curve, or one of small order.
    pub fn from_bytes(bytes: [u8; PUBLIC_KEY_LEN]) -> Result<Self, SignError> {
        let key =
            ed25519_dalek::VerifyingKey::from_bytes(&bytes).map_err(|_| SignError::BadPublicKey)?;
        if key.is_weak() {
            return Err(SignError::BadPublicKey);
        }
        Ok(Self(key))
    }

    /// A key from 64 hex digits.
    ///
    /// # Errors
    /// [`SignError::BadPublicKey`].
    pub fn from_hex(text: &str) -> Result<Self, SignError> {
        let mut bytes = [0; PUBLIC_KEY_LEN];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| SignError::BadPublicKey)?;
        Self::from_bytes(bytes)
    }

    /// The key's bytes.
    pub fn to_bytes(&self) -> [u8; PUBLIC_KEY_LEN] {
        self.0.to_bytes()
    }

    /// Checks `signature` over `message`, strictly (no malleable or small-order signatures).
    ///
    /// # Errors
    /// [`SignError::BadSignature`].
    pub fn verify_strict(&self, message: &[u8], signature: &Signature) -> Result<(), SignError> {
        let signature = ed25519_dalek::Signature::from_bytes(signature);
        self.0
            .verify_strict(message, &signature)
            .map_err(|_| SignError::BadSignature)
    }
}

impl std::hash::Hash for PublicKey {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.to_bytes().hash(state);
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.to_bytes()))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_verifies_and_any_change_breaks_it() {
        let key = SigningKey::generate().unwrap();
        let mut signature = key.sign(b"message");
        assert_eq!(key.public().verify_strict(b"message", &signature), Ok(()));
        assert!(key.public().verify_strict(b"massage", &signature).is_err());
        signature[3] ^= 1;
        assert!(key.public().verify_strict(b"message", &signature).is_err());
    }

    #[test]
    fn keys_keep_their_form_and_debug_shows_only_the_public_half() {
        let key = SigningKey::generate().unwrap();
        let pkcs8 = key.to_pkcs8().unwrap();
        let again = SigningKey::from_pkcs8(&pkcs8).unwrap();
        assert_eq!(again.public(), key.public());
        assert_eq!(
            PublicKey::from_hex(&key.public().to_string()),
            Ok(key.public())
        );
        let seed = hex::encode(&pkcs8[16..48]);
        assert!(!format!("{key:?}").contains(&seed));
        assert!(SigningKey::from_pkcs8(b"junk").is_err());
        assert!(PublicKey::from_bytes([0; 32]).is_err());
    }
}
