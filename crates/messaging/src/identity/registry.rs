//! The register of known identities: whose key is whose, and which keys are no longer believed.
//!
//! ```text
//! (unknown) ──register──▶ Active ──revoke──▶ Revoked (kept, so that the key can not come back)
//!                           └──succeed──▶ Revoked, and the new key Active under the same name
//! ```

use std::{collections::HashMap, sync::Arc};

use parking_lot::RwLock;
use volary_kernel::{
    clock::Timestamp,
    id::{Name, Tenant},
    sign::PublicKey,
};

use super::{AgentId, Succession};

/// Most identities of one registry, revoked ones included.
pub const REGISTRY_MAX: usize = 100_000;

/// Whether a key is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It is.
    Active,
    /// It is not, since this time.
    Revoked(Timestamp),
}

/// One known identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Its public key.
    pub key: PublicKey,
    /// The agent it speaks for.
    pub name: Name,
    /// The tenant it belongs to.
    pub tenant: Tenant,
    /// Whether it is believed.
    pub status: Status,
}

/// Why the registry refuses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// The id is not the fingerprint of the key.
    #[error("agent id {claimed} is not the fingerprint of its key, which is {actual}")]
    Mismatch {
        /// The id that was claimed.
        claimed: AgentId,
        /// The id of the key.
        actual: AgentId,
    },
    /// The id was never registered.
    #[error("agent id {0} is not known here")]
    Unknown(AgentId),
    /// The key was revoked.
    #[error("the key of agent id {id} was revoked at {at}")]
    Revoked {
        /// The id.
        id: AgentId,
        /// When.
        at: Timestamp,
    },
    /// The id is registered for another agent.
    #[error("agent id {id} already speaks for `{name}`")]
    Taken {
        /// The id.
        id: AgentId,
        /// The agent it speaks for.
        name: Name,
    },
    /// The statement that one key follows another is not signed by the old key.
    #[error("the statement that a key follows {0} is not signed by that key")]
    Forged(AgentId),
    /// No room.
    #[error("{REGISTRY_MAX} identities are known, which is the limit")]
    Full,
}

/// Known identities; clones share them. Bounded by [`REGISTRY_MAX`], refusing when full.
#[derive(Debug, Clone, Default)]
pub struct IdentityRegistry(Arc<RwLock<HashMap<AgentId, Known>>>);

impl IdentityRegistry {
    /// Registers a key under the id that is claimed for it. Doing it twice is harmless.
    ///
    /// # Errors
    /// [`RegistryError`]: a wrong id, a revoked key, an id of another agent, or no room.
    pub fn register(
        &self,
        id: AgentId,
        key: PublicKey,
        name: Name,
        tenant: Tenant,
    ) -> Result<(), RegistryError> {
        let actual = AgentId::of(&key);
        if actual != id {
            return Err(RegistryError::Mismatch {
                claimed: id,
                actual,
            });
        }
        let mut known = self.0.write();
        match known.get(&id) {
            Some(Known {
                status: Status::Revoked(at),
                ..
            }) => Err(RegistryError::Revoked { id, at: *at }),
            Some(found) if found.name == name && found.tenant == tenant => Ok(()),
            Some(found) => Err(RegistryError::Taken {
                id,
                name: found.name.clone(),
            }),
            None if known.len() >= REGISTRY_MAX => Err(RegistryError::Full),
            None => {
                known.insert(
                    id,
                    Known {
                        key,
                        name,
                        tenant,
                        status: Status::Active,
                    },
                );
                Ok(())
            }
        }
    }

    /// No longer believes the key of `id`, from now on and for good.
    ///
    /// # Errors
    /// [`RegistryError::Unknown`].
    pub fn revoke(&self, id: AgentId, at: Timestamp) -> Result<(), RegistryError> {
        let mut known = self.0.write();
        let found = known.get_mut(&id).ok_or(RegistryError::Unknown(id))?;
        if found.status == Status::Active {
            found.status = Status::Revoked(at);
        }
        Ok(())
    }

    /// Believes the new key of `statement` in the old one's place, and revokes the old one.
    ///
    /// # Errors
    /// [`RegistryError`]: the old key is unknown or revoked, the statement is forged, the new key is known already.
    pub fn succeed(&self, statement: &Succession) -> Result<AgentId, RegistryError> {
        let (old, new) = (
            AgentId::of(statement.old()),
            AgentId::of(statement.new_key()),
        );
        statement.verify().map_err(|_| RegistryError::Forged(old))?;
        let mut known = self.0.write();
        let Known {
            name,
            tenant,
            status,
            ..
        } = known
            .get(&old)
            .cloned()
            .ok_or(RegistryError::Unknown(old))?;
        if let Status::Revoked(at) = status {
            return Err(RegistryError::Revoked { id: old, at });
        }
        if let Some(found) = known.get(&new) {
            return Err(RegistryError::Taken {
                id: new,
                name: found.name.clone(),
            });
        }
        if known.len() >= REGISTRY_MAX {
            return Err(RegistryError::Full);
        }
        known.insert(
            new,
            Known {
                key: *statement.new_key(),
                name,
                tenant,
                status: Status::Active,
            },
        );
        if let Some(followed) = known.get_mut(&old) {
            followed.status = Status::Revoked(statement.at());
        }
        Ok(new)
    }

    /// The identity of `id`, if it is believed.
    ///
    /// # Errors
    /// [`RegistryError::Unknown`], [`RegistryError::Revoked`].
    pub fn trusted(&self, id: &AgentId) -> Result<Known, RegistryError> {
        let known = self.0.read();
        let found = known.get(id).ok_or(RegistryError::Unknown(*id))?;
        match found.status {
            Status::Active => Ok(found.clone()),
            Status::Revoked(at) => Err(RegistryError::Revoked { id: *id, at }),
        }
    }

    /// Number of identities, revoked ones included.
    pub fn len(&self) -> usize {
        self.0.read().len()
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.0.read().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{identity::Identity, test_util::name};

    const AT: Timestamp = Timestamp::from_micros(7);

    fn register(
        registry: &IdentityRegistry,
        identity: &Identity,
        agent: &str,
    ) -> Result<(), RegistryError> {
        registry.register(
            identity.id(),
            identity.public(),
            name(agent),
            Tenant::default(),
        )
    }

    #[test]
    fn an_id_that_is_not_the_hash_of_its_key_is_refused() {
        let registry = IdentityRegistry::default();
        let (one, two) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        let refused = registry.register(one.id(), two.public(), name("a"), Tenant::default());
        assert_eq!(
            refused,
            Err(RegistryError::Mismatch {
                claimed: one.id(),
                actual: two.id()
            })
        );
        assert!(registry.is_empty());
    }

    #[test]
    fn a_revoked_key_is_not_believed_and_can_not_be_registered_again() {
        let registry = IdentityRegistry::default();
        let identity = Identity::generate().unwrap();
        register(&registry, &identity, "a").unwrap();
        assert_eq!(
            registry.trusted(&identity.id()).unwrap().key,
            identity.public()
        );
        registry.revoke(identity.id(), AT).unwrap();
        let revoked = RegistryError::Revoked {
            id: identity.id(),
            at: AT,
        };
        assert_eq!(registry.trusted(&identity.id()), Err(revoked.clone()));
        assert_eq!(register(&registry, &identity, "a"), Err(revoked));
    }

    #[test]
    fn one_key_speaks_for_one_agent() {
        let registry = IdentityRegistry::default();
        let identity = Identity::generate().unwrap();
        register(&registry, &identity, "a").unwrap();
        assert_eq!(register(&registry, &identity, "a"), Ok(()));
        assert!(matches!(
            register(&registry, &identity, "b"),
            Err(RegistryError::Taken { .. })
        ));
    }

    #[test]
    fn a_successor_takes_the_name_and_the_old_key_is_revoked() {
        let registry = IdentityRegistry::default();
        let (old, new) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        register(&registry, &old, "a").unwrap();
        let statement = old.hand_over(&new, AT);
        assert_eq!(registry.succeed(&statement), Ok(new.id()));
        assert_eq!(registry.trusted(&new.id()).unwrap().name, name("a"));
        assert!(matches!(
            registry.trusted(&old.id()),
            Err(RegistryError::Revoked { .. })
        ));
        assert!(matches!(
            registry.succeed(&statement),
            Err(RegistryError::Revoked { .. })
        ));
    }
}
