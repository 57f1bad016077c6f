//! What a node tells its peers: the descriptors of its agents (pure).
//!
//! `u8 version = 1   u16 count   each: u8 1, u32 length, descriptor, 64 signature`, ascending by tenant and name.

use bytes::Bytes;

use super::descriptor::{Descriptor, DescriptorError, SignedDescriptor, read_signed, repeats};
use crate::{codec::DecodeError, wire::Reader};

const VERSION: u8 = 1;
/// Most agents of one introduction.
pub const INTRODUCTION_MAX: usize = 10_000;
/// Most bytes of one introduction.
pub const INTRODUCTION_BYTES_MAX: usize = 4 << 20;

/// The descriptors of a node's agents, one for each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Introduction(Vec<SignedDescriptor>);

fn place(signed: &SignedDescriptor) -> (&str, &str) {
    let Descriptor { tenant, name, .. } = signed.claimed();
    (tenant.as_str(), name.as_str())
}

impl Introduction {
    /// Puts descriptors together, one for each agent.
    ///
    /// # Errors
    /// [`DescriptorError::TooMuch`] above [`INTRODUCTION_MAX`] or [`INTRODUCTION_BYTES_MAX`]; a
    /// [`DescriptorError::Decode`] that names an agent with two descriptors.
    pub fn new(mut all: Vec<SignedDescriptor>) -> Result<Self, DescriptorError> {
        let found = all.len();
        if found > INTRODUCTION_MAX {
            let limit = INTRODUCTION_MAX;
            return Err(DescriptorError::TooMuch {
                what: "descriptors",
                found,
                limit,
            });
        }
        if let Some(twice) = repeats(&all) {
            let (tenant, name) = place(twice);
            return Err(DecodeError::Invalid {
                what: "introduction",
                problem: format!("`{tenant}/{name}` has two descriptors"),
            }
            .into());
        }
        all.sort_by(|one, other| place(one).cmp(&place(other)));
        let made = Self(all);
        let found = made.encode().len();
        if found > INTRODUCTION_BYTES_MAX {
            let limit = INTRODUCTION_BYTES_MAX;
            return Err(DescriptorError::TooMuch {
                what: "bytes",
                found,
                limit,
            });
        }
        Ok(made)
    }

    /// The descriptors, ascending by tenant and name; none is proven before it is opened.
    pub fn descriptors(&self) -> &[SignedDescriptor] {
        &self.0
    }

    /// The bytes that travel.
    pub fn encode(&self) -> Bytes {
        let count = u16::try_from(self.0.len()).expect("at most 10,000 descriptors by type");
        let mut out = vec![VERSION];
        out.extend_from_slice(&count.to_be_bytes());
        for signed in &self.0 {
            out.extend_from_slice(&signed.encode());
        }
        out.into()
    }

    /// Reads exactly `bytes`.
    ///
    /// # Errors
    /// [`DecodeError`] naming the first field that is wrong; one bad descriptor refuses the whole.
    pub fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        let (found, limit) = (bytes.len(), INTRODUCTION_BYTES_MAX);
        if found > limit {
            return Err(DecodeError::TooMuch {
                what: "introduction",
                found,
                limit,
            });
        }
        let mut reader = Reader::new(bytes);
        reader.version("introduction", VERSION)?;
        let found = usize::from(reader.u16("count")?);
        if found > INTRODUCTION_MAX {
            let limit = INTRODUCTION_MAX;
            return Err(DecodeError::TooMuch {
                what: "descriptors",
                found,
                limit,
            });
        }
        let mut all: Vec<SignedDescriptor> = Vec::new();
        for _ in 0..found {
            let next = read_signed(&mut reader)?;
            if all.last().is_some_and(|last| place(last) >= place(&next)) {
                return Err(DecodeError::NotCanonical {
                    what: "descriptors",
                });
            }
            all.push(next);
        }
        reader.end()?;
        Ok(Self(all))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use volary_kernel::Tenant;

    use super::*;
    use crate::{
        identity::Identity,
        test_util::{NOW, name},
    };

    fn signed(agent: &str) -> SignedDescriptor {
        let identity = Identity::generate().unwrap();
        let said = Descriptor {
            tenant: Tenant::default(),
            name: name(agent),
            key: identity.public(),
            topics: Vec::new(),
            capabilities: Vec::new(),
            pools: Vec::new(),
            issued_at: NOW,
            expires_at: NOW + Duration::from_secs(60),
            succession: None,
        };
        SignedDescriptor::sign(said, &identity).unwrap()
    }

    #[test]
    fn an_introduction_reads_back_in_one_order() {
        let (a, b) = (signed("a"), signed("b"));
        let one = Introduction::new(vec![b.clone(), a.clone()]).unwrap();
        assert_eq!(one, Introduction::new(vec![a.clone(), b.clone()]).unwrap());
        assert_eq!(Introduction::decode(&one.encode()), Ok(one.clone()));
        let turned = Introduction(vec![b, a]).encode();
        assert!(matches!(
            Introduction::decode(&turned),
            Err(DecodeError::NotCanonical { .. })
        ));
        let cut = one.encode().slice(..40);
        assert!(matches!(
            Introduction::decode(&cut),
            Err(DecodeError::Truncated { .. })
        ));
    }

    #[test]
    fn an_agent_is_introduced_once() {
        let twice = Introduction::new(vec![signed("a"), signed("a")]);
        assert!(twice.unwrap_err().to_string().contains("default/a"));
        assert_eq!(
            Introduction::decode(&Introduction::default().encode()),
            Ok(Introduction::default())
        );
    }
}
