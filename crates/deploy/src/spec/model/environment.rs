//! Environment variables and secrets, with their values already looked up.

use serde::{Serialize, Serializer};
use volary_kernel::secret::{REDACTED, Secret};

/// One variable of an agent's environment.
#[derive(Debug, Clone, Serialize)]
pub struct EnvVar {
    /// A legal variable name.
    pub name: String,
    /// Its value.
    #[serde(flatten)]
    pub value: EnvValue,
}

/// A value that may be shown, or one that may not.
#[derive(Debug, Clone)]
pub enum EnvValue {
    /// Shown as it is.
    Plain(String),
    /// Shown as `[redacted]`; register it with the redactor before the agent starts.
    Secret(Secret),
}

impl EnvValue {
    /// The text to give to the process.
    pub fn expose(&self) -> &str {
        match self {
            Self::Plain(text) => text,
            Self::Secret(secret) => secret.expose(),
        }
    }
}

impl Serialize for EnvValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        let mut map = serializer.serialize_map(Some(1))?;
        match self {
            Self::Plain(text) => map.serialize_entry("value", text)?,
            Self::Secret(_) => map.serialize_entry("secret", REDACTED)?,
        }
        map.end()
    }
}

/// One secret of an agent.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretSpec {
    /// The name it goes by, unique in its agent, such as `api-key`.
    pub name: String,
    /// The value.
    #[serde(serialize_with = "redacted")]
    pub value: Secret,
    /// How the agent gets it.
    pub target: SecretTarget,
}

/// How an agent gets a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "as")]
pub enum SecretTarget {
    /// A file only its user can read (mode 0400), called after the secret; the variable holds the file's path. Default.
    File {
        /// `API_KEY_FILE` for the secret `api-key`.
        variable: String,
    },
    /// A variable of the environment: visible to whoever may read the process's environment.
    Env {
        /// `API_KEY` for the secret `api-key`.
        variable: String,
    },
}

pub(super) fn redacted<S: Serializer>(_: &Secret, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(REDACTED)
}
