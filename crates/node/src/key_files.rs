//! The keys of a state directory, for who looks at them or replaces them from outside of a running node.

use volary_kernel::{Name, Timestamp, file};
use volary_messaging::{
    Identity,
    identity::{KeyFileError, Succession},
};

use crate::{
    error::NodeError,
    state::{NodeLock, StateDir},
};

/// The keys of one state directory. Missing ones are made, unless a node runs there: then it has made all that it needs.
#[derive(Debug)]
pub struct KeyFiles {
    state: StateDir,
    /// Held while no node runs, so that none starts meanwhile and makes other keys.
    lock: Option<NodeLock>,
}

impl KeyFiles {
    /// The keys in `state`, which is made if it is not there.
    ///
    /// # Errors
    /// [`NodeError::State`], [`NodeError::SocketPath`].
    pub fn open(state: StateDir) -> Result<Self, NodeError> {
        state.create()?;
        let lock = match NodeLock::acquire(&state) {
            Ok(lock) => Some(lock),
            Err(NodeError::Running { .. }) => None,
            Err(error) => return Err(error),
        };
        Ok(Self { state, lock })
    }

    /// Whether a node runs on these keys.
    pub const fn in_use(&self) -> bool {
        self.lock.is_none()
    }

    /// The node's own identity.
    ///
    /// # Errors
    /// [`NodeError::Identity`].
    pub fn node(&self) -> Result<Identity, NodeError> {
        self.load(&self.state.node_key())
    }

    /// The identity of an agent.
    ///
    /// # Errors
    /// [`NodeError::Identity`]; also when a node runs that has no such agent.
    pub fn agent(&self, name: &Name) -> Result<Identity, NodeError> {
        self.load(&self.state.agent_key(name.as_str()))
    }

    fn load(&self, path: &std::path::Path) -> Result<Identity, NodeError> {
        let loaded = match self.lock {
            Some(_) => Identity::load_or_generate(path),
            None => Identity::load(path),
        };
        Ok(loaded?)
    }

    /// Names of the agents that have a key, sorted.
    ///
    /// # Errors
    /// [`NodeError::State`].
    pub fn agents(&self) -> Result<Vec<Name>, NodeError> {
        let folder = self.state.root().join("keys/agents");
        let mut names = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(NodeError::State)? {
            let file = entry.map_err(NodeError::State)?.file_name();
            let name = file.to_str().and_then(|file| file.strip_suffix(".key"));
            names.extend(name.and_then(|name| Name::new(name).ok()));
        }
        names.sort();
        Ok(names)
    }

    /// Gives an agent a new key. For when no node runs: a running one is asked to do it itself.
    ///
    /// # Errors
    /// [`NodeError::Identity`]; [`KeyFileError::Missing`] when the agent has no key yet.
    pub fn rotate_agent(
        &self,
        name: &Name,
        at: Timestamp,
    ) -> Result<(Identity, Succession), NodeError> {
        Ok(Identity::rotate(&self.state.agent_key(name.as_str()), at)?)
    }

    /// Gives the node a new key, which it uses from its next start on, and leaves the statement beside it. The journal
    /// goes on with the key that it began with.
    ///
    /// # Errors
    /// [`NodeError::Identity`], [`NodeError::State`].
    pub fn rotate_node(&self, at: Timestamp) -> Result<(Identity, Succession), NodeError> {
        let path = self.state.node_key();
        let journal = self.state.own_journal_key();
        // First, so that no crash leaves a journal without its key.
        match Identity::load(&journal) {
            Err(KeyFileError::Missing { .. }) => Identity::load(&path)?.save(&journal)?,
            found => drop(found?),
        }
        let (new, statement) = Identity::rotate(&path, at)?;
        let text = format!("{statement}\n");
        file::write_atomic(&self.state.succession(&new.id()), text.as_bytes(), 0o600)
            .map_err(NodeError::State)?;
        Ok((new, statement))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Timestamp = Timestamp::from_micros(7);

    fn keys() -> (tempfile::TempDir, KeyFiles) {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::new(folder.path().join("state"));
        (folder, KeyFiles::open(state).unwrap())
    }

    #[test]
    fn keys_are_made_once_and_not_beside_a_running_node() {
        let (_folder, keys) = keys();
        let name = Name::new("worker").unwrap();
        let (node, agent) = (keys.node().unwrap(), keys.agent(&name).unwrap());
        let beside = KeyFiles::open(keys.state.clone()).unwrap();
        assert!(beside.in_use() && !keys.in_use());
        assert_eq!(beside.node().unwrap().id(), node.id());
        assert_eq!(beside.agent(&name).unwrap().id(), agent.id());
        assert_eq!(beside.agents().unwrap(), [name]);
        assert!(beside.agent(&Name::new("other").unwrap()).is_err());
    }

    #[test]
    fn the_journal_keeps_its_first_key_however_often_the_node_gets_another() {
        let (_folder, keys) = keys();
        let first = keys.node().unwrap();
        for _ in 0..2 {
            let old = keys.node().unwrap();
            let (new, statement) = keys.rotate_node(AT).unwrap();
            assert_eq!(keys.node().unwrap().id(), new.id());
            assert_eq!(
                (statement.old(), statement.new_key()),
                (&old.public(), &new.public())
            );
            let left = std::fs::read_to_string(keys.state.succession(&new.id())).unwrap();
            assert_eq!(left.parse::<Succession>(), Ok(statement));
            let journal = Identity::load(&keys.state.journal_key()).unwrap();
            assert_eq!(journal.id(), first.id());
        }
    }
}
