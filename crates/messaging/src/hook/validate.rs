//! The first hook: limits of this place, below the hard limits of the message type.

use std::{
    borrow::Cow,
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

use serde::de::IgnoredAny;
use volary_kernel::clock::{SharedClock, Timestamp};

use super::{HookContext, MessageHook, Step};
use crate::{admission::Refusal, message::Message};

/// What a message may be here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageLimits {
    /// Most bytes of payload. Default 1 MiB: an inbox of a thousand such messages is still within reason.
    pub max_payload: usize,
    /// How far `sent_at` may lie in the future. Default 5 min: clocks differ, but not by more.
    pub max_skew: Duration,
}

impl Default for MessageLimits {
    fn default() -> Self {
        Self {
            max_payload: 1024 * 1024,
            max_skew: Duration::from_secs(300),
        }
    }
}

/// Refuses messages that are too large, expired, from the future, or JSON by name but not by content.
pub struct ValidateHook {
    limits: MessageLimits,
    clock: SharedClock,
    /// The last reading of the clock, in microseconds.
    seen: AtomicI64,
}

impl ValidateHook {
    /// A validator with these limits.
    pub const fn new(limits: MessageLimits, clock: SharedClock) -> Self {
        Self {
            limits,
            clock,
            seen: AtomicI64::new(i64::MIN),
        }
    }

    /// What is wrong with `message`, if anything.
    pub fn problem(&self, message: &Message) -> Option<Refusal> {
        let (found, limit) = (message.body().len(), self.limits.max_payload);
        if found > limit {
            return Some(Refusal::TooLarge { found, limit });
        }
        let now = || self.clock.wall();
        if message.deadline().is_some_and(|deadline| deadline <= now()) {
            return Some(Refusal::Expired);
        }
        let invalid = |problem: Cow<'static, str>| Some(Refusal::Invalid { problem });
        if self.is_from_the_future(message.sent_at()) {
            return invalid("it was sent in the future: the sender's clock is ahead".into());
        }
        if message.payload().content_type().is_json()
            && let Err(error) = message.payload().parse_json::<IgnoredAny>()
        {
            return invalid(format!("its payload is not JSON: {error}").into());
        }
        None
    }

    /// Reads the clock only when an earlier reading does not decide: nearly all messages were sent before that or shortly
    /// after.
    fn is_from_the_future(&self, sent_at: Timestamp) -> bool {
        let beyond = |seen: i64| sent_at > Timestamp::from_micros(seen) + self.limits.max_skew;
        beyond(self.seen.load(Ordering::Relaxed)) && {
            let now = self.clock.wall().as_micros();
            self.seen.store(now, Ordering::Relaxed);
            beyond(now)
        }
    }

    fn check(&self, message: Message) -> Step<'static> {
        match self.problem(&message) {
            Some(why) => Step::refuse(why),
            None => Step::pass(message),
        }
    }
}

impl MessageHook for ValidateHook {
    fn name(&self) -> &'static str {
        "validate"
    }

    fn pre_send<'a>(&'a self, message: Message, _: HookContext<'a>) -> Step<'a> {
        self.check(message)
    }

    fn post_receive<'a>(&'a self, message: Message, _: HookContext<'a>) -> Step<'a> {
        self.check(message)
    }
}

#[cfg(test)]
mod tests {
    use volary_kernel::clock::{Clock, ManualClock};

    use super::*;
    use crate::{
        message::ContentType,
        test_util::{NOW, message, sender, topic},
    };

    fn check(edit: impl FnOnce(Message) -> Message, max_payload: usize) -> Option<Refusal> {
        let limits = MessageLimits {
            max_payload,
            ..MessageLimits::default()
        };
        let clock = ManualClock::new(NOW);
        let message = edit(message("a", "t", "four"));
        clock.advance(Duration::from_secs(10));
        ValidateHook::new(limits, clock.shared()).problem(&message)
    }

    #[test]
    fn a_plain_message_passes_and_a_large_one_does_not() {
        assert_eq!(check(|message| message, 6), None);
        assert_eq!(
            check(|message| message, 5),
            Some(Refusal::TooLarge { found: 6, limit: 5 })
        );
    }

    #[test]
    fn a_message_past_its_deadline_or_from_the_future_is_refused() {
        let expired = |message: Message| {
            message
                .edit()
                .deadline(NOW + Duration::from_secs(9))
                .build(NOW)
                .unwrap()
        };
        assert_eq!(check(expired, 100), Some(Refusal::Expired));
        let later = NOW + Duration::from_secs(400);
        let future = |_| {
            Message::builder(sender("a"))
                .topic(topic("t"))
                .build(later)
                .unwrap()
        };
        assert!(matches!(check(future, 100), Some(Refusal::Invalid { .. })));
        assert_eq!(ManualClock::new(NOW).wall(), NOW);
    }

    #[test]
    fn a_payload_that_only_claims_to_be_json_is_refused() {
        let fake = |message: Message| {
            message
                .edit()
                .bytes(ContentType::JSON, &b"{\"a\":"[..])
                .unwrap()
                .build(NOW)
                .unwrap()
        };
        assert!(matches!(check(fake, 100), Some(Refusal::Invalid { .. })));
    }
}
