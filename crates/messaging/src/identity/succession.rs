//! The text form of a [`Succession`]: one line, to be copied from one node's operator to another's.

use std::{fmt, str::FromStr};

use volary_kernel::{
    clock::Timestamp,
    sign::{PUBLIC_KEY_LEN, PublicKey, SIGNATURE_LEN},
};

use super::Succession;

/// What the line begins with; another version is another word.
const PREFIX: &str = "volary-succession-v1:";
/// Old key, new key, time, signature.
const LEN: usize = 2 * PUBLIC_KEY_LEN + 8 + SIGNATURE_LEN;

/// A text is no statement that one key follows another.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a statement begins with `{PREFIX}` and goes on with {} hex digits", 2 * LEN)]
pub struct SuccessionError;

impl fmt::Display for Succession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.at.as_micros().to_be_bytes();
        let bytes = [
            &self.old.to_bytes()[..],
            &self.new.to_bytes(),
            &at,
            &self.signature,
        ]
        .concat();
        write!(f, "{PREFIX}{}", hex::encode(bytes))
    }
}

impl FromStr for Succession {
    type Err = SuccessionError;

    /// Reads a statement; whether it is signed by the old key is asked of [`Succession::verify`].
    fn from_str(text: &str) -> Result<Self, SuccessionError> {
        let digits = text.trim().strip_prefix(PREFIX).ok_or(SuccessionError)?;
        let mut bytes = [0; LEN];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| SuccessionError)?;
        let part = |from: usize| bytes[from..].first_chunk().copied().ok_or(SuccessionError);
        let key = |from: usize| PublicKey::from_bytes(part(from)?).map_err(|_| SuccessionError);
        let at = bytes[2 * PUBLIC_KEY_LEN..]
            .first_chunk()
            .copied()
            .ok_or(SuccessionError)?;
        Ok(Self {
            old: key(0)?,
            new: key(PUBLIC_KEY_LEN)?,
            at: Timestamp::from_micros(i64::from_be_bytes(at)),
            signature: *bytes.last_chunk().ok_or(SuccessionError)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;

    #[test]
    fn a_statement_survives_its_text_and_no_change_of_it() {
        let (old, new) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        let statement = old.hand_over(&new, Timestamp::from_micros(1_700_000_000_000_000));
        let text = statement.to_string();
        let read: Succession = format!("{text}\n").parse().unwrap();
        assert_eq!(read, statement);
        read.verify().unwrap();
        for (at, digit) in text.char_indices().skip(PREFIX.len()) {
            let mut other = text.clone();
            other.replace_range(at..=at, if digit == '0' { "1" } else { "0" });
            let believed = other
                .parse::<Succession>()
                .map(|statement| statement.verify());
            assert!(!matches!(believed, Ok(Ok(()))), "{at}");
        }
        assert_eq!(
            text[..text.len() - 1].parse::<Succession>(),
            Err(SuccessionError)
        );
        assert_eq!("".parse::<Succession>(), Err(SuccessionError));
    }
}
