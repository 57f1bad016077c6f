//! Messages of converge (the Python project): its signing bytes, its wire bytes, its TCP frames (pure).
//!
//! Bytes are as converge writes them since it sorts payloads by key. Three of its weaknesses are not taken over:
//! a message is signed only by the sender that it names, it verifies only with the key whose fingerprint that sender is,
//! and a topic whose text form could stand for another topic too is neither signed nor verified.

use std::{collections::BTreeMap, fmt::Write as _};

pub use rmpv::Value;
use volary_kernel::sign::{PublicKey, SIGNATURE_LEN};

use crate::identity::{AgentId, Identity};

/// Most bytes of one message on the wire, as converge has it.
pub const MESSAGE_MAX: usize = 10 * 1024 * 1024;
/// Deepest nesting that is read.
const DEPTH_MAX: u16 = 64;
/// Bytes of the length before a message in a TCP stream.
const HEAD: usize = 4;

/// A topic: a namespace, attributes, and a version.
#[derive(Debug, Clone, PartialEq)]
pub struct Topic {
    /// The name.
    pub namespace: String,
    /// What narrows it.
    pub attributes: BTreeMap<String, Value>,
    /// `1.0` unless said otherwise.
    pub version: String,
}

/// A message. `signature` is empty until it is signed.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// Its id.
    pub id: String,
    /// The sender's fingerprint, 64 hex digits.
    pub sender: String,
    /// The receiver's.
    pub recipient: Option<String>,
    /// Its topics.
    pub topics: Vec<Topic>,
    /// The content; maps in it are written sorted by key.
    pub payload: BTreeMap<String, Value>,
    /// The task it belongs to.
    pub task_id: Option<String>,
    /// When it was made, in milliseconds since 1970.
    pub timestamp: i64,
    /// The signature's 64 bytes, or none.
    pub signature: Vec<u8>,
}

/// Why a message is not written, read, signed or believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConvergeError {
    /// The bytes are no message.
    #[error("not a converge message: {problem}")]
    Malformed {
        /// What is wrong.
        problem: String,
    },
    /// Larger than [`MESSAGE_MAX`].
    #[error("message of {found} bytes is larger than {MESSAGE_MAX}")]
    TooLarge {
        /// Its size.
        found: usize,
    },
    /// The topic's text form is not its own.
    #[error("topic `{namespace}` can not be signed: {problem}")]
    AmbiguousTopic {
        /// Its namespace.
        namespace: String,
        /// Why.
        problem: &'static str,
    },
    /// It names another sender than the one who signs, or whose key is given.
    #[error("the message is from `{sender}`, the key is that of {key}")]
    OtherSender {
        /// The sender in it.
        sender: String,
        /// Fingerprint of the key.
        key: AgentId,
    },
    /// It has no signature, or one that does not fit.
    #[error("the message is not signed by its sender")]
    Unsigned,
}

fn malformed(problem: impl ToString) -> ConvergeError {
    ConvergeError::Malformed {
        problem: problem.to_string(),
    }
}

impl Topic {
    /// `namespace[key=value,…]vVERSION`.
    ///
    /// # Errors
    /// [`ConvergeError::AmbiguousTopic`] where another topic has the same text, or Python's text of a value is its own.
    pub fn text(&self) -> Result<String, ConvergeError> {
        let refuse = |problem| ConvergeError::AmbiguousTopic {
            namespace: self.namespace.clone(),
            problem,
        };
        let plain = |text: &str| !text.contains([',', '=', '[', ']']);
        let mut text = format!("{}[", self.namespace);
        if !plain(&self.namespace) {
            return Err(refuse("its namespace contains one of , = [ ]"));
        }
        for (index, (key, value)) in self.attributes.iter().enumerate() {
            let value = match value {
                Value::Integer(number) => number.to_string(),
                // A string that reads like a number, a truth value or nothing would stand for that, too.
                Value::String(value) => match value.as_str() {
                    Some(value)
                        if value.parse::<f64>().is_err()
                            && !matches!(value, "True" | "False" | "None") =>
                    {
                        value.to_owned()
                    }
                    _ => return Err(refuse("a text attribute looks like another type's")),
                },
                Value::Boolean(true) => "True".to_owned(),
                Value::Boolean(false) => "False".to_owned(),
                Value::Nil => "None".to_owned(),
                _ => {
                    return Err(refuse(
                        "an attribute is neither text, integer, truth value nor nil",
                    ));
                }
            };
            if !plain(key) || !plain(&value) {
                return Err(refuse("an attribute contains one of , = [ ]"));
            }
            let comma = if index > 0 { "," } else { "" };
            let _infallible = write!(text, "{comma}{key}={value}");
        }
        let _infallible = write!(text, "]v{}", self.version);
        Ok(text)
    }

    fn value(&self) -> Value {
        let attributes = Value::Map(sorted(&self.attributes));
        Value::Map(vec![
            ("namespace".into(), self.namespace.as_str().into()),
            ("attributes".into(), attributes),
            ("version".into(), self.version.as_str().into()),
        ])
    }
}

impl Message {
    /// The bytes that are signed.
    ///
    /// # Errors
    /// [`ConvergeError::AmbiguousTopic`].
    pub fn signing_bytes(&self) -> Result<Vec<u8>, ConvergeError> {
        let topics = self
            .topics
            .iter()
            .map(|topic| topic.text().map(Value::from));
        let topics = topics.collect::<Result<Vec<_>, _>>()?;
        Ok(bytes(&Value::Map(self.fields(topics))))
    }

    fn fields(&self, topics: Vec<Value>) -> Vec<(Value, Value)> {
        let optional = |text: &Option<String>| text.as_deref().map_or(Value::Nil, Value::from);
        vec![
            ("id".into(), self.id.as_str().into()),
            ("sender".into(), self.sender.as_str().into()),
            ("recipient".into(), optional(&self.recipient)),
            ("topics".into(), Value::Array(topics)),
            ("payload".into(), Value::Map(sorted(&self.payload))),
            ("task_id".into(), optional(&self.task_id)),
            ("timestamp".into(), self.timestamp.into()),
        ]
    }

    /// Signs it with the key of the sender it names.
    ///
    /// # Errors
    /// [`ConvergeError::OtherSender`], [`ConvergeError::AmbiguousTopic`]; it is then unchanged.
    pub fn sign(&mut self, identity: &Identity) -> Result<(), ConvergeError> {
        self.belongs_to(identity.id())?;
        self.signature = identity.sign(&self.signing_bytes()?).to_vec();
        Ok(())
    }

    /// Whether the sender it names signed it, whose key is `key`.
    ///
    /// # Errors
    /// [`ConvergeError`]; it must not be used.
    pub fn verify(&self, key: &PublicKey) -> Result<(), ConvergeError> {
        self.belongs_to(AgentId::of(key))?;
        let signature: &[u8; SIGNATURE_LEN] = self
            .signature
            .as_slice()
            .try_into()
            .map_err(|_| ConvergeError::Unsigned)?;
        key.verify_strict(&self.signing_bytes()?, signature)
            .map_err(|_| ConvergeError::Unsigned)
    }

    fn belongs_to(&self, key: AgentId) -> Result<(), ConvergeError> {
        if self.sender == key.to_string() {
            return Ok(());
        }
        let sender = self.sender.chars().take(80).collect();
        Err(ConvergeError::OtherSender { sender, key })
    }

    /// The bytes on the wire.
    pub fn encode(&self) -> Vec<u8> {
        let topics = self.topics.iter().map(Topic::value).collect();
        let mut fields = self.fields(topics);
        fields.push(("signature".into(), Value::Binary(self.signature.clone())));
        bytes(&Value::Map(fields))
    }

    /// Reads exactly `wire`. Keys that a message has not are passed over, as converge does; those of a topic are not.
    ///
    /// # Errors
    /// [`ConvergeError::Malformed`], [`ConvergeError::TooLarge`].
    pub fn decode(wire: &[u8]) -> Result<Self, ConvergeError> {
        if wire.len() > MESSAGE_MAX {
            return Err(ConvergeError::TooLarge { found: wire.len() });
        }
        let mut rest = wire;
        let value = rmpv::decode::read_value_with_max_depth(&mut rest, DEPTH_MAX.into());
        let mut fields = map("message", value.map_err(malformed)?)?;
        if !rest.is_empty() {
            return Err(malformed(format_args!("{} bytes too many", rest.len())));
        }
        let mut take = |key: &str| fields.remove(key).unwrap_or(Value::Nil);
        Ok(Self {
            id: text("id", take("id"))?.ok_or_else(|| malformed("no id"))?,
            sender: text("sender", take("sender"))?.unwrap_or_default(),
            recipient: text("recipient", take("recipient"))?,
            topics: match take("topics") {
                Value::Array(topics) => topics.into_iter().map(topic).collect::<Result<_, _>>()?,
                Value::Nil => Vec::new(),
                _ => return Err(malformed("topics is no array")),
            },
            payload: map("payload", take("payload"))?,
            task_id: text("task_id", take("task_id"))?,
            timestamp: take("timestamp")
                .as_i64()
                .ok_or_else(|| malformed("timestamp is no integer"))?,
            signature: match take("signature") {
                Value::Binary(signature) => signature,
                Value::Nil => Vec::new(),
                _ => return Err(malformed("signature is not binary")),
            },
        })
    }

    /// The message as it goes through a TCP connection: its length, then its bytes.
    ///
    /// # Errors
    /// [`ConvergeError::TooLarge`].
    pub fn frame(&self) -> Result<Vec<u8>, ConvergeError> {
        let message = self.encode();
        let found = message.len();
        let length = u32::try_from(found).ok().filter(|_| found <= MESSAGE_MAX);
        let length = length.ok_or(ConvergeError::TooLarge { found })?;
        Ok([&length.to_be_bytes(), message.as_slice()].concat())
    }

    /// Takes the message at the front of what was received so far, and says how many bytes it had; `None` while some are
    /// missing, of the length too.
    ///
    /// # Errors
    /// As [`Message::decode`]; a length above the limit is refused before its bytes come.
    pub fn unframe(received: &[u8]) -> Result<Option<(Self, usize)>, ConvergeError> {
        let Some((length, rest)) = received.split_first_chunk::<HEAD>() else {
            return Ok(None);
        };
        let found = u32::from_be_bytes(*length) as usize;
        if found > MESSAGE_MAX {
            return Err(ConvergeError::TooLarge { found });
        }
        match rest.get(..found) {
            None => Ok(None),
            Some(message) => Self::decode(message).map(|message| Some((message, HEAD + found))),
        }
    }
}

fn bytes(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    rmpv::encode::write_value(&mut out, value).expect("memory takes every write");
    out
}

/// Pairs sorted by key, in everything below, too.
fn sorted(map: &BTreeMap<String, Value>) -> Vec<(Value, Value)> {
    let pair = |(key, value): (&String, &Value)| (key.as_str().into(), deep(value));
    map.iter().map(pair).collect()
}

fn deep(value: &Value) -> Value {
    match value {
        Value::Map(pairs) => {
            let mut pairs: Vec<_> = pairs
                .iter()
                .map(|(key, value)| (key.clone(), deep(value)))
                .collect();
            pairs.sort_by(|(one, _), (other, _)| one.as_str().cmp(&other.as_str()));
            Value::Map(pairs)
        }
        Value::Array(items) => Value::Array(items.iter().map(deep).collect()),
        other => other.clone(),
    }
}

fn text(what: &str, value: Value) -> Result<Option<String>, ConvergeError> {
    match value {
        Value::Nil => Ok(None),
        Value::String(text) => text
            .into_str()
            .map(Some)
            .ok_or_else(|| malformed(format_args!("{what} is not UTF-8"))),
        _ => Err(malformed(format_args!("{what} is no text"))),
    }
}

/// A map of text keys, each once; nothing else may be a key in anything below, either.
fn map(what: &str, value: Value) -> Result<BTreeMap<String, Value>, ConvergeError> {
    let pairs = match value {
        Value::Map(pairs) => pairs,
        Value::Nil => Vec::new(),
        _ => return Err(malformed(format_args!("{what} is no map"))),
    };
    let mut map = BTreeMap::new();
    for (key, value) in pairs {
        let key = text("a key", key)?.ok_or_else(|| malformed("a key is nil"))?;
        check(&value)?;
        if map.insert(key, value).is_some() {
            return Err(malformed(format_args!("{what} has a key twice")));
        }
    }
    Ok(map)
}

fn check(value: &Value) -> Result<(), ConvergeError> {
    match value {
        Value::Map(pairs) => {
            let mut keys: Vec<_> = pairs.iter().map(|(key, _)| key.as_str()).collect();
            keys.sort_unstable();
            if keys.first().is_some_and(Option::is_none)
                || keys.windows(2).any(|two| two[0] == two[1])
            {
                return Err(malformed("a key is no text, or stands twice"));
            }
            pairs.iter().try_for_each(|(_, value)| check(value))
        }
        Value::Array(items) => items.iter().try_for_each(check),
        Value::Ext(..) => Err(malformed("an extension type")),
        _ => Ok(()),
    }
}

fn topic(value: Value) -> Result<Topic, ConvergeError> {
    let mut fields = map("topic", value)?;
    let mut take = |key: &str| fields.remove(key).unwrap_or(Value::Nil);
    let topic = Topic {
        namespace: text("namespace", take("namespace"))?
            .ok_or_else(|| malformed("no namespace"))?,
        attributes: map("attributes", take("attributes"))?,
        version: text("version", take("version"))?.unwrap_or_else(|| "1.0".to_owned()),
    };
    match fields.keys().next() {
        None => Ok(topic),
        Some(key) => Err(malformed(format_args!("unknown key `{key}` in a topic"))),
    }
}
