//! What goes out: the request for a delivery, and what its answer means (pure).

use std::time::Duration;

use aws_lc_rs::hmac;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use volary_kernel::{clock::Timestamp, secret::Secret};

use super::profile::standard_key;
use crate::delivery::Delivery;

/// Where deliveries of a topic are posted to. The URL is the operator's; nothing in a message can change it.
#[derive(Debug, Clone)]
pub struct Target {
    /// The whole URL, `https://…`.
    pub url: String,
    /// Key to sign requests with, as Standard Webhooks has it.
    pub secret: Option<Secret>,
    /// Headers of every request; credentials come by reference.
    pub headers: Vec<(String, Secret)>,
}

/// A request to be posted.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// Names in lower case, values. Values may be secret.
    pub headers: Vec<(String, String)>,
    /// The content, byte for byte.
    pub body: Bytes,
}

impl Target {
    /// The request for `delivery`, made at `now`. Its `idempotency-key` and `webhook-id` are the same in every attempt.
    pub fn request(&self, delivery: &Delivery, now: Timestamp) -> Outgoing {
        let body = delivery.payload.bytes().clone();
        let id = &delivery.idempotency_key;
        let content_type = delivery.payload.content_type().to_string();
        let mut headers = vec![
            ("content-type".to_owned(), content_type),
            ("idempotency-key".to_owned(), id.clone()),
            ("webhook-id".to_owned(), id.clone()),
            ("traceparent".to_owned(), traceparent(delivery)),
        ];
        if let Some(topic) = &delivery.topic {
            headers.push(("webhook-topic".to_owned(), topic.to_string()));
        }
        let stamp = now.as_micros().div_euclid(1_000_000).to_string();
        if let Some(secret) = &self.secret
            && let Ok(key) = standard_key(secret)
        {
            let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
            let signed = [id.as_bytes(), b".", stamp.as_bytes(), b".", &body].concat();
            let tag = BASE64_STANDARD.encode(hmac::sign(&key, &signed));
            headers.push(("webhook-signature".to_owned(), format!("v1,{tag}")));
        }
        headers.push(("webhook-timestamp".to_owned(), stamp));
        for (name, value) in &self.headers {
            headers.retain(|(known, _)| known != name);
            headers.push((name.clone(), value.expose().to_owned()));
        }
        Outgoing { headers, body }
    }
}

fn traceparent(delivery: &Delivery) -> String {
    let span = &delivery.id.as_bytes()[8..];
    format!("00-{}-{}-01", delivery.trace, hex::encode(span))
}

/// What an answer means for the delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The target has it.
    Done,
    /// It may have it later.
    Again {
        /// When, if the target said so.
        after: Option<Duration>,
        /// Why not now.
        reason: String,
    },
    /// It never will: a person should look.
    Never {
        /// Why.
        reason: String,
    },
}

/// Longest wait that a target may ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

/// What `status` means, with the answer's `retry-after` in seconds.
///
/// 2xx is success. What says "not now" (408, 425, 429, 5xx) is tried again. Everything else would be answered the same next
/// time, so it is not asked again; redirects are among it, because a target is where the operator said it is.
pub fn judge(status: u16, retry_after: Option<&str>) -> Verdict {
    let reason = format!("the target answered {status}");
    match status {
        200..=299 => Verdict::Done,
        408 | 425 | 429 | 500..=599 => Verdict::Again {
            after: retry_after
                .and_then(|text| text.trim().parse().ok())
                .map(|seconds| Duration::from_secs(seconds).min(RETRY_AFTER_MAX)),
            reason,
        },
        300..=399 => Verdict::Never {
            reason: format!("{reason}: redirects are not followed"),
        },
        _ => Verdict::Never { reason },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_pass_is_tried_again() {
        for good in [200, 202, 204] {
            assert_eq!(judge(good, None), Verdict::Done);
        }
        for again in [408, 425, 429, 500, 502, 503, 504] {
            assert!(matches!(
                judge(again, None),
                Verdict::Again { after: None, .. }
            ));
        }
        for never in [100, 301, 302, 307, 400, 401, 403, 404, 410, 422] {
            assert!(
                matches!(judge(never, Some("1")), Verdict::Never { .. }),
                "{never}"
            );
        }
        let asked = |text| match judge(503, Some(text)) {
            Verdict::Again { after, .. } => after,
            other => panic!("{other:?}"),
        };
        assert_eq!(asked("7"), Some(Duration::from_secs(7)));
        assert_eq!(asked("999999999"), Some(RETRY_AFTER_MAX));
        assert_eq!(asked("Wed, 21 Oct 2015 07:28:00 GMT"), None);
    }
}
