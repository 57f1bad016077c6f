//! How durable traces look in the store. One place for writer and reader. Pure.
//!
//! | key | value |
//! |---|---|
//! | `flow.live/<flow>/<uid>` | [`LiveRecord`]: what was accepted |
//! | `flow.step/<flow>/<uid>/<node>/<step>` | [`StepRecord`]: an intent, or the receipt that takes its place |
//! | `flow.kept/<flow>/<uid>` | [`KeptRecord`]: how it ended and what it yielded; has a time to live |
//! | `flow.pause/<flow>/<trace>` | [`PauseRecord`] |
//!
//! A trace has a time-ordered `uid` beside its own id, which is random: so what is written together lies together.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use volary_kernel::{Name, Tenant, Timestamp, TraceId, Uid};
use volary_store::{Key, StoreError};

use crate::{
    envelope::{Headers, Meta},
    outcome::Outcome,
};

/// Version of all these records.
pub(crate) const VERSION: u8 = 1;

/// An accepted trace that has not ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LiveRecord {
    pub v: u8,
    pub trace: TraceId,
    pub tenant: Tenant,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: u8,
    /// By the wall clock, so that it means the same after a restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "no_meta")]
    pub meta: Meta,
    pub at: Timestamp,
    pub payload: Box<RawValue>,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature serde asks for"
)]
const fn is_zero(value: &u8) -> bool {
    *value == 0
}

fn no_meta(meta: &Meta) -> bool {
    meta.is_empty()
}

impl LiveRecord {
    pub(crate) fn headers(&self) -> Headers {
        Headers {
            tenant: self.tenant.clone(),
            topic: self.topic.clone(),
            priority: self.priority,
        }
    }
}

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Deed {
    /// It was about to have its effect.
    Intent,
    /// It handed on one value.
    Next,
    /// Several.
    Each,
    /// Each to one target.
    To,
    /// None.
    Nothing,
    /// The final answer.
    Finish,
}

/// What is known of a step.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct StepRecord {
    pub v: u8,
    pub deed: Deed,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<Box<RawValue>>,
    /// Of [`Deed::To`]: where each value went, by node; none is out of the flow.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<Option<Name>>,
}

impl StepRecord {
    pub(crate) const fn new(deed: Deed) -> Self {
        Self {
            v: VERSION,
            deed,
            values: Vec::new(),
            targets: Vec::new(),
        }
    }
}

/// A trace that ended, until somebody has read how.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct KeptRecord {
    pub v: u8,
    pub trace: TraceId,
    pub tenant: Tenant,
    pub at: Timestamp,
    pub outcome: Outcome,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<Box<RawValue>>,
}

/// A trace that is to start no further step.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PauseRecord {
    pub v: u8,
    pub tenant: Tenant,
    pub at: Timestamp,
}

/// A trace that is parked: all that is needed to take it up again.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ParkedRecord {
    pub v: u8,
    /// What is in doubt.
    pub key: String,
    pub live: LiveRecord,
    pub steps: Vec<ParkedStep>,
}

/// A step of a parked trace.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ParkedStep {
    pub node: Name,
    pub step: u64,
    pub record: StepRecord,
}

/// Where the records of a flow are.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    pub live: String,
    pub steps: String,
    pub kept: String,
    pub pauses: String,
}

impl Keys {
    pub(crate) fn of(flow: &Name) -> Self {
        Self {
            live: format!("flow.live/{flow}/"),
            steps: format!("flow.step/{flow}/"),
            kept: format!("flow.kept/{flow}/"),
            pauses: format!("flow.pause/{flow}/"),
        }
    }

    pub(crate) fn live(&self, uid: Uid) -> Result<Key, StoreError> {
        Key::new(format!("{}{uid}", self.live))
    }

    pub(crate) fn step(&self, uid: Uid, node: &Name, step: u64) -> Result<Key, StoreError> {
        Key::new(format!("{}{uid}/{node}/{step:x}", self.steps))
    }

    pub(crate) fn kept(&self, uid: Uid) -> Result<Key, StoreError> {
        Key::new(format!("{}{uid}", self.kept))
    }

    pub(crate) fn pause(&self, trace: TraceId) -> Result<Key, StoreError> {
        Key::new(format!("{}{trace}", self.pauses))
    }

    /// The trace and the step that a key of [`Keys::step`] names.
    pub(crate) fn of_step(&self, key: &Key) -> Option<(Uid, Name, u64)> {
        let mut parts = key.strip_prefix(&self.steps)?.split('/');
        let (uid, node, step) = (parts.next()?, parts.next()?, parts.next()?);
        let step = u64::from_str_radix(step, 16).ok()?;
        let rest = parts.next();
        rest.is_none()
            .then_some((uid.parse().ok()?, node.parse().ok()?, step))
    }
}

/// The end of a key, as what it names.
pub(crate) fn end_of<T: std::str::FromStr>(key: &Key, prefix: &str) -> Option<T> {
    key.strip_prefix(prefix)?.parse().ok()
}

/// A record of this version as JSON.
pub(crate) fn encode<T: Serialize>(record: &T) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(record)
        .map_err(|error| StoreError::Invalid(format!("record of a flow is not JSON: {error}")))
}

/// The record that `value` is.
pub(crate) fn decode<'a, T: Deserialize<'a>>(key: &Key, value: &'a [u8]) -> Result<T, StoreError> {
    /// Read first, so that a newer layout is told from damage.
    #[derive(Deserialize)]
    struct Version {
        v: u8,
    }
    let bad = |cause: String| StoreError::Corrupt {
        what: format!("record `{key}` is not what this version of flows writes: {cause}"),
        seq: None,
    };
    let found: Version = serde_json::from_slice(value).map_err(|error| bad(error.to_string()))?;
    if found.v != VERSION {
        return Err(bad(format!("version {}", found.v)));
    }
    serde_json::from_slice(value).map_err(|error| bad(error.to_string()))
}

/// JSON that was made by a codec, to stand in a record as it is.
pub(crate) fn raw(json: Vec<u8>) -> Result<Box<RawValue>, StoreError> {
    let text = String::from_utf8(json)
        .map_err(|error| StoreError::Invalid(format!("a value is not text: {error}")))?;
    RawValue::from_string(text)
        .map_err(|error| StoreError::Invalid(format!("a value is not JSON: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_steps_read_back_and_others_are_refused() {
        let keys = Keys::of(&Name::new("orders").unwrap());
        let (uid, node) = (Uid::generate(), Name::new("charge").unwrap());
        let step = u64::MAX - 7;
        let key = keys.step(uid, &node, step).unwrap();
        assert_eq!(keys.of_step(&key), Some((uid, node, step)));
        for bad in [
            "flow.step/other/x",
            "flow.step/orders/x/y/z",
            &format!("{key}/more"),
        ] {
            assert_eq!(keys.of_step(&Key::new(bad).unwrap()), None, "{bad}");
        }
    }

    #[test]
    fn records_of_another_version_are_errors_that_say_so() {
        let key = Key::new("flow.step/a").unwrap();
        let mut record = StepRecord::new(Deed::Next);
        record.values.push(raw(b"{\"a\":[1]}".to_vec()).unwrap());
        let read: StepRecord = decode(&key, &encode(&record).unwrap()).unwrap();
        assert_eq!(read.values[0].get(), "{\"a\":[1]}");
        record.v = 9;
        let error = decode::<StepRecord>(&key, &encode(&record).unwrap()).unwrap_err();
        assert!(error.to_string().contains("version 9"), "{error}");
        assert!(decode::<StepRecord>(&key, b"{").is_err());
    }
}
