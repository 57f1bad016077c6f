//! Keeps declared secrets out of messages: one that contains any is refused, whole.

use volary_kernel::secret::Redactor;

use super::{HookContext, MessageHook, Step};
use crate::{admission::Refusal, message::Message};

/// Refuses every message whose payload, headers, topics, recipient or content type contain a declared secret. What matched is not said.
#[derive(Debug, Clone)]
pub struct SecretGuard {
    secrets: Redactor,
}

impl SecretGuard {
    /// A guard over these secrets, including ones declared later.
    pub const fn new(secrets: Redactor) -> Self {
        Self { secrets }
    }

    /// Whether `message` contains a declared secret.
    pub fn is_tainted(&self, message: &Message) -> bool {
        contains_secret(&self.secrets, message)
    }

    fn check(&self, message: Message) -> Step<'static> {
        if self.is_tainted(&message) {
            Step::refuse(Refusal::Secret)
        } else {
            Step::pass(message)
        }
    }
}

/// Whether any part of `message` that its sender wrote contains a declared secret.
pub(crate) fn contains_secret(secrets: &Redactor, message: &Message) -> bool {
    let found = |text: &str| secrets.contains(text.as_bytes());
    secrets.contains(message.body())
        || message
            .headers()
            .iter()
            .any(|(name, value)| found(name) || found(value))
        || message.topics().iter().any(|topic| found(topic.as_str()))
        || message
            .recipient()
            .is_some_and(|recipient| found(recipient.as_str()))
        || found(message.payload().content_type().as_str())
}

impl MessageHook for SecretGuard {
    fn name(&self) -> &'static str {
        "secret"
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
    use volary_kernel::secret::Secret;

    use super::*;
    use crate::test_util::message;

    #[test]
    fn a_secret_in_payload_or_header_is_found_also_as_json_escapes_it() {
        let secrets = Redactor::default();
        secrets.add(&Secret::new("pass\"word")).unwrap();
        let guard = SecretGuard::new(secrets);
        assert!(!guard.is_tainted(&message("a", "t", "password")));
        assert!(guard.is_tainted(&message("a", "t", "my pass\"word!")));
        let clean = message("a", "t", "");
        let header = clean
            .edit()
            .header("note", "pass\"word")
            .unwrap()
            .build(clean.sent_at())
            .unwrap();
        assert!(guard.is_tainted(&header));
        let address = clean
            .edit()
            .topic("my/pass_word".parse().unwrap())
            .build(clean.sent_at())
            .unwrap();
        assert!(!guard.is_tainted(&address));
        guard.secrets.add(&Secret::new("pass_word")).unwrap();
        assert!(guard.is_tainted(&address));
    }
}
