//! How values are stored: as JSON, by functions picked where the types were known. Pure.

use serde::{Serialize, de::DeserializeOwned};

use crate::graph::plan::Payload;

/// Writes and reads values of one type.
#[derive(Clone, Copy)]
pub(crate) struct Codec {
    encode: fn(&Payload, &mut Vec<u8>) -> Result<(), CodecError>,
    decode: fn(&[u8]) -> Result<Payload, CodecError>,
}

/// A value could not be stored, or what was stored is no such value.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CodecError {
    /// The type's own `Serialize` or `Deserialize` refused.
    #[error("a value of type {name} {verb}: {cause}", verb = if *.reading { "cannot be read back" } else { "is not JSON" })]
    Json {
        name: &'static str,
        reading: bool,
        cause: serde_json::Error,
    },
    /// A value of another type came here: a mistake of this crate.
    #[error("a value is not of type {0}")]
    Type(&'static str),
}

impl Codec {
    /// For values of `T`.
    pub(crate) fn of<T: Serialize + DeserializeOwned + Send + 'static>() -> Self {
        Self {
            encode: encode::<T>,
            decode: decode::<T>,
        }
    }

    /// Adds `value` as JSON to `to`.
    pub(crate) fn encode(&self, value: &Payload, to: &mut Vec<u8>) -> Result<(), CodecError> {
        (self.encode)(value, to)
    }

    /// The value that `json` is.
    pub(crate) fn decode(&self, json: &[u8]) -> Result<Payload, CodecError> {
        (self.decode)(json)
    }
}

fn encode<T: Serialize + 'static>(value: &Payload, to: &mut Vec<u8>) -> Result<(), CodecError> {
    let name = std::any::type_name::<T>();
    let value = value.get::<T>().ok_or(CodecError::Type(name))?;
    serde_json::to_writer(to, value).map_err(|cause| CodecError::Json {
        name,
        reading: false,
        cause,
    })
}

fn decode<T: DeserializeOwned + Send + 'static>(json: &[u8]) -> Result<Payload, CodecError> {
    match serde_json::from_slice::<T>(json) {
        Ok(value) => Ok(Payload::new(value)),
        Err(cause) => Err(CodecError::Json {
            name: std::any::type_name::<T>(),
            reading: true,
            cause,
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn values_come_back_as_they_were() {
        let codec = Codec::of::<Vec<Option<u8>>>();
        let mut json = Vec::new();
        codec
            .encode(&Payload::new(vec![Some(1u8), None]), &mut json)
            .unwrap();
        assert_eq!(json, b"[1,null]");
        let value = codec
            .decode(&json)
            .unwrap()
            .into_value::<Vec<Option<u8>>>()
            .unwrap();
        assert_eq!(value, [Some(1), None]);
    }

    #[test]
    fn what_json_cannot_hold_is_an_error_and_so_is_another_type() {
        let map = BTreeMap::from([(vec![1u8], 1u8)]);
        let error =
            Codec::of::<BTreeMap<Vec<u8>, u8>>().encode(&Payload::new(map), &mut Vec::new());
        assert!(
            matches!(error, Err(CodecError::Json { reading: false, .. })),
            "{error:?}"
        );
        let error = Codec::of::<u8>().encode(&Payload::new("one"), &mut Vec::new());
        assert!(matches!(error, Err(CodecError::Type("u8"))), "{error:?}");
        let error = Codec::of::<u8>().decode(b"300").map(drop);
        let text = error.unwrap_err().to_string();
        assert!(text.contains("u8 cannot be read back"), "{text}");
    }
}
