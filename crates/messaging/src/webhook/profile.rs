//! Who may say what, and how it is proven (pure).
//!
//! The signature is checked over the bytes as they came, in constant time, before anything in them is read. What makes two
//! requests the same event is only ever taken from what was signed: an id in an unsigned header could be chosen anew for a
//! recorded body.

use std::time::Duration;

use aws_lc_rs::{constant_time, hmac};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use serde_json::{Map, Value};
use volary_kernel::{clock::Timestamp, id::Name, secret::Secret};

use super::BODY_MAX;

/// How far a signed time may be from now, both ways. Default 5 minutes.
const SKEW: Duration = Duration::from_secs(300);
/// How long an event is remembered when its time is signed: longer than a request stays fresh.
const SEEN_STAMPED: Duration = Duration::from_secs(3600);
/// How long it is remembered when nothing says how old a request is. Default 7 days.
const SEEN_UNSTAMPED: Duration = Duration::from_secs(7 * 24 * 3600);

/// How a sender proves itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scheme {
    /// HMAC-SHA-256 in hex over `timestamp.body`; the timestamp (seconds) stands in a header of its own.
    Stamped {
        /// Header of the signature.
        signature: String,
        /// Header of the timestamp.
        timestamp: String,
    },
    /// Standard Webhooks: HMAC-SHA-256 in base64 over `webhook-id.webhook-timestamp.body`, in `webhook-signature`.
    Standard,
    /// HMAC-SHA-256 in hex over the body alone, after a fixed word.
    Body {
        /// Header of the signature.
        signature: String,
        /// What stands before the digits, such as `sha256=`.
        prefix: String,
    },
    /// The secret itself in a header. Nothing is bound to it: only over TLS, and only where a sender knows no better.
    Token {
        /// The header.
        header: String,
    },
}

/// Where the name of an event stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventIn {
    /// In a field of the JSON body, which is signed.
    Field(String),
    /// In a header. It counts only where headers prove as much as the body ([`Scheme::Token`]) or are signed
    /// ([`Scheme::Standard`]); elsewhere it is a label, and the digest of what was signed decides.
    Header(String),
}

/// The answer to an event that was accepted before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Duplicates {
    /// 401, as for anything that is not to be believed.
    Refuse,
    /// 202, and nothing happens: for senders that repeat on purpose and count a refusal as an outage.
    Accept,
}

/// One sender of webhooks.
#[derive(Debug, Clone)]
pub struct ProviderProfile {
    /// Its name: the last segment of the route.
    pub name: Name,
    /// The shared secret.
    pub secret: Secret,
    /// How it proves itself.
    pub scheme: Scheme,
    /// Where an event's name stands.
    pub event: EventIn,
    /// Header that says what kind of event it is.
    pub kind: Option<String>,
    /// Fields that the JSON body must have.
    pub required: Vec<String>,
    /// How far a signed time may be from now.
    pub skew: Duration,
    /// How long events are remembered.
    pub seen_for: Duration,
    /// Most bytes of a body.
    pub max_bytes: usize,
    /// What an event that was accepted before is answered.
    pub duplicates: Duplicates,
}

impl ProviderProfile {
    fn with(
        name: Name,
        secret: Secret,
        scheme: Scheme,
        event: EventIn,
        kind: Option<&str>,
    ) -> Self {
        let stamped = matches!(scheme, Scheme::Stamped { .. } | Scheme::Standard);
        Self {
            name,
            secret,
            scheme,
            event,
            kind: kind.map(str::to_owned),
            required: Vec::new(),
            skew: SKEW,
            seen_for: if stamped {
                SEEN_STAMPED
            } else {
                SEEN_UNSTAMPED
            },
            max_bytes: BODY_MAX,
            duplicates: Duplicates::Accept,
        }
    }

    /// `X-Webhook-Signature` over `X-Webhook-Timestamp` and body; the event's name is the body's `id`. A repeat is refused.
    pub fn signed(name: Name, secret: Secret) -> Self {
        let scheme = Scheme::Stamped {
            signature: "x-webhook-signature".into(),
            timestamp: "x-webhook-timestamp".into(),
        };
        Self {
            duplicates: Duplicates::Refuse,
            ..Self::with(name, secret, scheme, EventIn::Field("id".into()), None)
        }
    }

    /// Standard Webhooks (`webhook-id`, `webhook-timestamp`, `webhook-signature`).
    pub fn standard(name: Name, secret: Secret) -> Self {
        let event = EventIn::Header("webhook-id".into());
        Self::with(name, secret, Scheme::Standard, event, None)
    }

    /// GitHub: `X-Hub-Signature-256`, `X-GitHub-Delivery`, `X-GitHub-Event`.
    pub fn github(name: Name, secret: Secret) -> Self {
        let scheme = Scheme::Body {
            signature: "x-hub-signature-256".into(),
            prefix: "sha256=".into(),
        };
        let event = EventIn::Header("x-github-delivery".into());
        Self::with(name, secret, scheme, event, Some("x-github-event"))
    }

    /// Gitea and Forgejo: `X-Gitea-Signature`, `X-Gitea-Delivery`, `X-Gitea-Event`.
    pub fn gitea(name: Name, secret: Secret) -> Self {
        let scheme = Scheme::Body {
            signature: "x-gitea-signature".into(),
            prefix: String::new(),
        };
        let event = EventIn::Header("x-gitea-delivery".into());
        Self::with(name, secret, scheme, event, Some("x-gitea-event"))
    }

    /// GitLab: `X-Gitlab-Token`, `X-Gitlab-Event-UUID`, `X-Gitlab-Event`.
    pub fn gitlab(name: Name, secret: Secret) -> Self {
        let scheme = Scheme::Token {
            header: "x-gitlab-token".into(),
        };
        let event = EventIn::Header("x-gitlab-event-uuid".into());
        Self::with(name, secret, scheme, event, Some("x-gitlab-event"))
    }

    /// Looks at one request. Nothing in the body is read before its signature was found good.
    ///
    /// # Errors
    /// [`Rejection`]: the first check that fails, in the order of the module's picture.
    pub fn check(&self, arrived: &Arrived<'_>, now: Timestamp) -> Result<WebhookEvent, Rejection> {
        if arrived.body.len() > self.max_bytes {
            return Err(Rejection::TooLarge {
                limit: self.max_bytes,
            });
        }
        let content_type = arrived.header("content-type")?.unwrap_or_default();
        let essence = content_type.split(';').next().unwrap_or_default().trim();
        if !essence.eq_ignore_ascii_case("application/json") {
            return Err(Rejection::ContentType);
        }
        let signed = self.prove(arrived, now)?;
        let Ok(body) = serde_json::from_slice::<Map<String, Value>>(&arrived.body) else {
            return Err(Rejection::NotAnObject);
        };
        if let Some(field) = self
            .required
            .iter()
            .find(|field| !body.contains_key(*field))
        {
            return Err(Rejection::MissingField(field.clone()));
        }
        let (id, counts) = match &self.event {
            EventIn::Field(field) => match body.get(field) {
                Some(Value::String(id)) => (Some(id.clone()), true),
                Some(Value::Number(id)) => (Some(id.to_string()), true),
                _ => return Err(Rejection::MissingField(field.clone())),
            },
            EventIn::Header(header) => {
                let id = arrived.header(header)?.map(str::to_owned);
                let counts = matches!(self.scheme, Scheme::Token { .. } | Scheme::Standard);
                (id, counts)
            }
        };
        let same = match (&id, counts) {
            (Some(id), true) => blake3::hash(id.as_bytes()),
            _ => signed,
        };
        let kind = self.kind.as_deref().map(|header| arrived.header(header));
        Ok(WebhookEvent {
            same: same.to_hex().to_string(),
            id,
            kind: kind.transpose()?.flatten().map(str::to_owned),
            body: arrived.body.clone(),
        })
    }

    /// Checks signature and time; returns the digest of what was signed.
    fn prove(&self, arrived: &Arrived<'_>, now: Timestamp) -> Result<blake3::Hash, Rejection> {
        let key = || hmac::Key::new(hmac::HMAC_SHA256, self.secret.expose().as_bytes());
        let fits = |key: &hmac::Key, signed: &[u8], tag: &[u8]| {
            hmac::verify(key, signed, tag).map_err(|_| Rejection::Signature)
        };
        let hex = |text: &str| hex::decode(text).map_err(|_| Rejection::Signature);
        match &self.scheme {
            Scheme::Stamped {
                signature,
                timestamp,
            } => {
                let (tag, stamp) = (arrived.needed(signature)?, arrived.needed(timestamp)?);
                let signed = [stamp.as_bytes(), b".", &arrived.body].concat();
                fits(&key(), &signed, &hex(tag)?)?;
                self.fresh(stamp, now)?;
                Ok(blake3::hash(&signed))
            }
            Scheme::Standard => {
                let (id, stamp) = (
                    arrived.needed("webhook-id")?,
                    arrived.needed("webhook-timestamp")?,
                );
                let tags = arrived.needed("webhook-signature")?;
                let signed = [id.as_bytes(), b".", stamp.as_bytes(), b".", &arrived.body].concat();
                let key = hmac::Key::new(hmac::HMAC_SHA256, &standard_key(&self.secret)?);
                // Several signatures, one for each secret in force at the sender. The body is gone through once, however
                // many there are: who asks has proven nothing yet.
                let own = hmac::sign(&key, &signed);
                let mut tags = tags.split(' ').filter_map(|tag| tag.strip_prefix("v1,"));
                let good = tags.any(|tag| {
                    let is_own = |tag: Vec<u8>| {
                        constant_time::verify_slices_are_equal(&tag, own.as_ref()).is_ok()
                    };
                    BASE64_STANDARD.decode(tag).is_ok_and(is_own)
                });
                if !good {
                    return Err(Rejection::Signature);
                }
                self.fresh(stamp, now)?;
                Ok(blake3::hash(&signed))
            }
            Scheme::Body { signature, prefix } => {
                let tag = arrived.needed(signature)?;
                let tag = tag
                    .strip_prefix(prefix.as_str())
                    .ok_or(Rejection::Signature)?;
                fits(&key(), &arrived.body, &hex(tag)?)?;
                Ok(blake3::hash(&arrived.body))
            }
            Scheme::Token { header } => {
                // Digests are compared, so that not even the length is told.
                let of = |text: &str| *blake3::hash(text.as_bytes()).as_bytes();
                let (given, own) = (of(arrived.needed(header)?), of(self.secret.expose()));
                constant_time::verify_slices_are_equal(&given, &own)
                    .map_err(|_| Rejection::Signature)?;
                Ok(blake3::hash(&arrived.body))
            }
        }
    }

    fn fresh(&self, stamp: &str, now: Timestamp) -> Result<(), Rejection> {
        let skew = i64::try_from(self.skew.as_micros()).unwrap_or(i64::MAX);
        let stamp: i64 = stamp.parse().map_err(|_| Rejection::Stale)?;
        let off = stamp
            .checked_mul(1_000_000)
            .and_then(|stamp| stamp.checked_sub(now.as_micros()));
        match off {
            Some(off) if off.unsigned_abs() <= skew.unsigned_abs() => Ok(()),
            _ => Err(Rejection::Stale),
        }
    }
}

/// The key of Standard Webhooks: base64 after `whsec_`, else the text itself.
pub(super) fn standard_key(secret: &Secret) -> Result<Vec<u8>, Rejection> {
    match secret.expose().strip_prefix("whsec_") {
        None => Ok(secret.expose().as_bytes().to_vec()),
        Some(key) => BASE64_STANDARD
            .decode(key)
            .map_err(|_| Rejection::Signature),
    }
}

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Arrived<'a> {
    /// Names in lower case, values.
    pub headers: Vec<(&'a str, &'a str)>,
    /// The body, untouched.
    pub body: Bytes,
}

impl<'a> Arrived<'a> {
    /// The only value of a header.
    fn header(&self, name: &str) -> Result<Option<&'a str>, Rejection> {
        let mut values = self.headers.iter().filter(|(key, _)| *key == name);
        match (values.next(), values.next()) {
            (_, Some(_)) => Err(Rejection::Header(name.to_owned())),
            (first, None) => Ok(first.map(|(_, value)| *value)),
        }
    }

    fn needed(&self, name: &str) -> Result<&'a str, Rejection> {
        let value = self.header(name)?;
        value.ok_or_else(|| Rejection::Header(name.to_owned()))
    }
}

/// A request that is believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookEvent {
    /// Digest of what makes it this event and no other.
    pub same: String,
    /// Its name, as the sender gives it.
    pub id: Option<String>,
    /// Its kind, as the sender gives it.
    pub kind: Option<String>,
    /// The JSON object, byte for byte.
    pub body: Bytes,
}

/// Why a request is not accepted. The texts are for the sender and tell nothing of the secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// There is no such provider.
    #[error("unknown provider")]
    Provider,
    /// The body is too large.
    #[error("the body is larger than {limit} bytes")]
    TooLarge {
        /// Bytes allowed.
        limit: usize,
    },
    /// It is not said to be JSON.
    #[error("the content type is not application/json")]
    ContentType,
    /// A header is missing, or there twice.
    #[error("the header `{0}` must be there once")]
    Header(String),
    /// The signature does not fit.
    #[error("the signature does not fit")]
    Signature,
    /// The signed time is too far from now.
    #[error("the timestamp is stale")]
    Stale,
    /// The body is no JSON object.
    #[error("the body is not a JSON object")]
    NotAnObject,
    /// A field is missing.
    #[error("the field `{0}` is missing")]
    MissingField(String),
    /// It was accepted before.
    #[error("this event was accepted before")]
    Duplicate,
}

impl Rejection {
    /// A short, closed word for metric labels.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Provider => "provider",
            Self::TooLarge { .. } => "too_large",
            Self::ContentType => "content_type",
            Self::Header(_) => "header",
            Self::Signature => "signature",
            Self::Stale => "stale",
            Self::NotAnObject => "not_an_object",
            Self::MissingField(_) => "missing_field",
            Self::Duplicate => "duplicate",
        }
    }
}
