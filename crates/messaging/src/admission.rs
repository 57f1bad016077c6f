//! What becomes of a send, told to the sender every time: there is no silent nothing.

use std::{borrow::Cow, fmt, time::Duration};

use serde::{Deserialize, Serialize};
use volary_kernel::text;
use volary_store::StoreError;

/// How long a sender should wait before it tries a full inbox again, if nothing better is known.
pub const FULL_RETRY: Duration = Duration::from_secs(1);

/// The answer to a send.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Admission {
    /// It is in the inbox of every agent it is for, in memory: at most once.
    Delivered,
    /// It is stored for every agent it is for, once the batch it went into is committed: at least once.
    Queued,
    /// It was handed to the link to a peer, once: what becomes of it is counted, not told. Only messages of at-most-once
    /// topics that nobody here gets end so.
    Sent,
    /// Nobody it is for is there: no such agent, or no subscriber of its topics.
    NoRoute,
    /// Some of those it is for have it, some refused it. Only at-most-once sends to several agents end so.
    Partial {
        /// Inboxes that took it.
        reached: usize,
        /// Inboxes that did not.
        refused: usize,
        /// Why the first of them did not.
        why: Refusal,
    },
    /// Nobody has it; the sender may try again or give up.
    Refused(Refusal),
    /// It was taken out on the way, on purpose.
    Dropped {
        /// The hook (or `inbox`) that took it out.
        hook: String,
        /// Why.
        reason: Cow<'static, str>,
    },
}

/// Why a message was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "why")]
pub enum Refusal {
    /// An inbox, or the store, is at its bound.
    Full {
        /// What is full.
        what: Cow<'static, str>,
        /// When to try again.
        #[serde(with = "duration_text")]
        retry_after: Duration,
    },
    /// Too many in too short a time.
    RateLimited {
        /// When there is room again.
        #[serde(with = "duration_text")]
        retry_after: Duration,
    },
    /// Another message of this sender had the same id.
    Replay,
    /// It contains a declared secret. Which one is not said.
    Secret,
    /// It is larger than allowed here.
    TooLarge {
        /// Its size in bytes.
        found: usize,
        /// The size allowed.
        limit: usize,
    },
    /// Its deadline had passed.
    Expired,
    /// It breaks a rule.
    Invalid {
        /// Which.
        problem: Cow<'static, str>,
    },
    /// A hook failed, panicked or took too long.
    Hook {
        /// The hook.
        hook: String,
        /// What happened to it.
        problem: String,
    },
    /// The transport or inbox is shutting down.
    Closed,
    /// Its sender has said that it is done with everything up to this message, and nothing is known of it here: an old one
    /// is played again, or the sender's clock or store is behind what it was.
    Settled {
        /// The sender is done with every number below this one.
        below: u64,
    },
}

impl Admission {
    /// Whether everybody it is for has it.
    pub const fn is_taken(&self) -> bool {
        matches!(self, Self::Delivered | Self::Queued)
    }

    /// A short, closed word for metric labels.
    pub const fn label(&self) -> &'static str {
        Self::LABELS[self.index()]
    }

    /// The place of [`Admission::label`] in [`Admission::LABELS`].
    pub(crate) const fn index(&self) -> usize {
        match self {
            Self::Delivered => 0,
            Self::Queued => 1,
            Self::NoRoute => 2,
            Self::Partial { .. } => 3,
            Self::Dropped { .. } => 4,
            Self::Refused(why) => 5 + why.index(),
            Self::Sent => 14,
        }
    }

    /// All words of [`Admission::label`].
    pub const LABELS: [&'static str; 16] = [
        "delivered",
        "queued",
        "no_route",
        "partial",
        "dropped",
        "full",
        "rate_limited",
        "replay",
        "secret",
        "too_large",
        "expired",
        "invalid",
        "hook",
        "closed",
        "sent",
        "settled",
    ];
}

impl Refusal {
    /// A short, closed word for metric labels.
    pub const fn label(&self) -> &'static str {
        Admission::LABELS[5 + self.index()]
    }

    const fn index(&self) -> usize {
        match self {
            Self::Full { .. } => 0,
            Self::RateLimited { .. } => 1,
            Self::Replay => 2,
            Self::Secret => 3,
            Self::TooLarge { .. } => 4,
            Self::Expired => 5,
            Self::Invalid { .. } => 6,
            Self::Hook { .. } => 7,
            Self::Closed => 8,
            // After `sent`, which is none of these.
            Self::Settled { .. } => 10,
        }
    }

    /// Whether the same message may be taken later.
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::RateLimited { .. })
    }

    /// The refusal that a failed commit means for those whose messages were in it, if it is one.
    pub fn of_store(error: &StoreError) -> Option<Self> {
        match error {
            StoreError::Full { what, .. } => Some(Self::Full {
                what: what.to_string().into(),
                retry_after: FULL_RETRY,
            }),
            StoreError::TooLarge { size, limit, .. } => Some(Self::TooLarge {
                found: *size,
                limit: *limit,
            }),
            StoreError::Closed => Some(Self::Closed),
            _ => None,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full { what, retry_after } => {
                write!(
                    f,
                    "{what} is full, try again in {}",
                    text::brief_duration(*retry_after)
                )
            }
            Self::RateLimited { retry_after } => {
                write!(
                    f,
                    "too many messages, try again in {}",
                    text::brief_duration(*retry_after)
                )
            }
            Self::Replay => f.write_str("another message of this sender had the same id"),
            Self::Secret => f.write_str("it contains a declared secret"),
            Self::TooLarge { found, limit } => write!(f, "{found} bytes are more than {limit}"),
            Self::Expired => f.write_str("its deadline had passed"),
            Self::Invalid { problem } => f.write_str(problem),
            Self::Hook { hook, problem } => write!(f, "hook `{hook}` failed: {problem}"),
            Self::Closed => f.write_str("the receiver is shutting down"),
            Self::Settled { .. } => f.write_str(
                "its sender was done with everything up to it, so it is not new; if it is, the clock or the state of the sender's node was set back",
            ),
        }
    }
}

impl fmt::Display for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Delivered => f.write_str("delivered"),
            Self::Queued => f.write_str("queued"),
            Self::Sent => f.write_str("sent at most once"),
            Self::NoRoute => f.write_str("no route"),
            Self::Partial {
                reached,
                refused,
                why,
            } => write!(f, "taken by {reached}, refused by {refused}: {why}"),
            Self::Refused(why) => write!(f, "refused: {why}"),
            Self::Dropped { hook, reason } => write!(f, "dropped by `{hook}`: {reason}"),
        }
    }
}

/// Durations in JSON as people write them: `"1s"`.
mod duration_text {
    use std::{borrow::Cow, time::Duration};

    use serde::{Deserialize, Deserializer, Serializer, de};
    use volary_kernel::text;

    pub(super) fn serialize<S: Serializer>(
        duration: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&text::format_duration(*duration))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        let text = <Cow<'de, str>>::deserialize(deserializer)?;
        text::parse_duration(&text).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(admission: Admission, json: &str) {
        assert_eq!(serde_json::to_string(&admission).unwrap(), json);
        assert_eq!(serde_json::from_str::<Admission>(json).unwrap(), admission);
    }

    #[test]
    fn plain_answers_are_words_in_json_and_the_others_say_why() {
        check(Admission::Queued, "\"queued\"");
        check(Admission::NoRoute, "\"no_route\"");
        check(
            Admission::Refused(Refusal::Replay),
            r#"{"refused":{"why":"replay"}}"#,
        );
        check(
            Admission::Refused(Refusal::Settled { below: 7 }),
            r#"{"refused":{"why":"settled","below":7}}"#,
        );
        let full = Refusal::Full {
            what: "inbox of `a`".into(),
            retry_after: Duration::from_secs(1),
        };
        check(
            Admission::Refused(full),
            r#"{"refused":{"why":"full","what":"inbox of `a`","retry_after":"1s"}}"#,
        );
        let dropped = Admission::Dropped {
            hook: "policy".into(),
            reason: "not allowed".into(),
        };
        check(
            dropped,
            r#"{"dropped":{"hook":"policy","reason":"not allowed"}}"#,
        );
    }

    #[test]
    fn every_answer_has_its_own_word() {
        let full = Refusal::Full {
            what: "".into(),
            retry_after: Duration::ZERO,
        };
        let hook = Refusal::Hook {
            hook: String::new(),
            problem: String::new(),
        };
        for (answer, word) in [
            (Admission::Delivered, "delivered"),
            (Admission::NoRoute, "no_route"),
            (Admission::Sent, "sent"),
            (
                Admission::Dropped {
                    hook: String::new(),
                    reason: "".into(),
                },
                "dropped",
            ),
            (Admission::Refused(full), "full"),
            (Admission::Refused(Refusal::Secret), "secret"),
            (Admission::Refused(hook), "hook"),
            (Admission::Refused(Refusal::Closed), "closed"),
            (Admission::Sent, "sent"),
            (Admission::Refused(Refusal::Settled { below: 7 }), "settled"),
        ] {
            assert_eq!(answer.label(), word);
        }
    }
}
