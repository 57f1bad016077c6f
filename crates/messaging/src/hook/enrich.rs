//! Enrichment: sets and tidies headers of the opened message. Third in the default order, after the rate limiter.

use std::borrow::Cow;

use volary_kernel::clock::SharedClock;

use super::{HookContext, HookError, MessageHook, Stage, Step};
use crate::message::{BuildError, Headers, Message};

/// Most rules of one hook: each walks the headers of every message.
pub const ENRICH_RULES_MAX: usize = 64;

/// What becomes of a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderEdit {
    /// It has this value, whatever the sender said.
    Set(String),
    /// It has this value if the sender said nothing.
    Default(String),
    /// It has the time of receipt, RFC 3339 in UTC, in place of what the sender said. Does nothing on the way out.
    ReceivedAt,
    /// White space around its value goes.
    Trim,
    /// Its value becomes lower case.
    Lowercase,
    /// It goes.
    Remove,
}

/// One edit of one header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnrichRule {
    /// The header.
    pub header: String,
    /// What becomes of it.
    pub edit: HeaderEdit,
    /// Only at this stage; at both if `None`.
    pub stage: Option<Stage>,
}

/// Why an [`EnrichHook`] was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnrichError {
    /// A name or a value that no header may have.
    #[error("rule {rule} for header `{header}`: {cause}")]
    Header {
        /// Which rule, counted from 1.
        rule: usize,
        /// Its header.
        header: String,
        /// What is wrong.
        cause: BuildError,
    },
    /// There are too many rules.
    #[error("{0} enrich rules are more than {ENRICH_RULES_MAX}")]
    TooMany(usize),
}

/// Applies its rules to each message, in order. Sealed bytes are never touched: the edits are of the opened copy, before
/// sealing on the way out and after verification on the way in. Headers that would no longer fit fail this hook.
pub struct EnrichHook {
    rules: Vec<EnrichRule>,
    clock: SharedClock,
}

impl EnrichHook {
    /// A hook with these rules.
    ///
    /// # Errors
    /// [`EnrichError`] for a rule that could never be applied.
    pub fn new(rules: Vec<EnrichRule>, clock: SharedClock) -> Result<Self, EnrichError> {
        if rules.len() > ENRICH_RULES_MAX {
            return Err(EnrichError::TooMany(rules.len()));
        }
        for (index, rule) in rules.iter().enumerate() {
            let value = match &rule.edit {
                HeaderEdit::Set(value) | HeaderEdit::Default(value) => value,
                _ => "",
            };
            let cause = Headers::new().set(&rule.header, value);
            cause.map_err(|cause| EnrichError::Header {
                rule: index + 1,
                header: rule.header.clone(),
                cause,
            })?;
        }
        Ok(Self { rules, clock })
    }

    /// The headers of `message` after the rules, if they change any.
    fn edited(&self, message: &Message, stage: Stage) -> Result<Option<Headers>, BuildError> {
        let mut edited: Option<Headers> = None;
        for rule in &self.rules {
            if rule.stage.is_some_and(|only| only != stage) {
                continue;
            }
            let headers = edited.as_ref().unwrap_or_else(|| message.headers());
            let old = headers.get(&rule.header);
            let new: Option<Cow<'_, str>> = match &rule.edit {
                HeaderEdit::Set(value) => Some(value.into()),
                HeaderEdit::Default(value) => Some(old.unwrap_or(value).into()),
                HeaderEdit::ReceivedAt if stage == Stage::PreSend => continue,
                HeaderEdit::ReceivedAt => Some(self.clock.wall().to_string().into()),
                HeaderEdit::Trim => old.map(|old| old.trim().into()),
                HeaderEdit::Lowercase => old.map(|old| old.to_lowercase().into()),
                HeaderEdit::Remove => None,
            };
            if new.as_deref() == old {
                continue;
            }
            let next = match new {
                Some(new) => {
                    let mut next = headers.clone();
                    next.set(&rule.header, &new)?;
                    next
                }
                None => without(headers, &rule.header)?,
            };
            edited = Some(next);
        }
        Ok(edited)
    }

    fn apply(&self, message: Message, stage: Stage) -> Step<'static> {
        let edited = match self.edited(&message, stage) {
            Ok(None) => return Step::pass(message),
            Ok(Some(headers)) => message.edit().headers(headers).build(message.sent_at()),
            Err(error) => Err(error),
        };
        match edited {
            Ok(message) => Step::pass(message),
            Err(error) => Step::Done(Err(HookError::failed(error))),
        }
    }
}

fn without(headers: &Headers, name: &str) -> Result<Headers, BuildError> {
    let mut rest = Headers::new();
    for (other, value) in headers.iter().filter(|(other, _)| *other != name) {
        rest.set(other, value)?;
    }
    Ok(rest)
}

impl MessageHook for EnrichHook {
    fn name(&self) -> &'static str {
        "enrich"
    }

    fn pre_send<'a>(&'a self, message: Message, _: HookContext<'a>) -> Step<'a> {
        self.apply(message, Stage::PreSend)
    }

    fn post_receive<'a>(&'a self, message: Message, _: HookContext<'a>) -> Step<'a> {
        self.apply(message, Stage::PostReceive)
    }
}

#[cfg(test)]
mod tests {
    use volary_kernel::ManualClock;

    use super::*;
    use crate::{hook::Outcome, test_util};

    fn rule(header: &str, edit: HeaderEdit) -> EnrichRule {
        EnrichRule {
            header: header.into(),
            edit,
            stage: None,
        }
    }

    fn hook(rules: Vec<EnrichRule>) -> EnrichHook {
        EnrichHook::new(rules, ManualClock::default().shared()).unwrap()
    }

    fn message(headers: &[(&str, &str)]) -> Message {
        let plain = test_util::message("a", "t", "");
        let mut builder = plain.edit();
        for (name, value) in headers {
            builder = builder.header(name, value).unwrap();
        }
        builder.build(plain.sent_at()).unwrap()
    }

    fn run(hook: &EnrichHook, message: Message, stage: Stage) -> Vec<(String, String)> {
        let context = HookContext {
            stage,
            receiver: None,
        };
        let step = match stage {
            Stage::PreSend => hook.pre_send(message, context),
            Stage::PostReceive => hook.post_receive(message, context),
        };
        let Step::Done(Ok(Outcome::Continue(message))) = step else {
            panic!("it passes")
        };
        let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        message.headers().iter().map(owned).collect()
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        pairs.iter().map(owned).collect()
    }

    #[test]
    fn headers_are_set_filled_in_tidied_and_removed_in_order() {
        let hook = hook(vec![
            rule("site", HeaderEdit::Set("north".into())),
            rule("lang", HeaderEdit::Default("en".into())),
            rule("kind", HeaderEdit::Trim),
            rule("kind", HeaderEdit::Lowercase),
            rule("debug", HeaderEdit::Remove),
        ]);
        let sent = message(&[
            ("site", "forged"),
            ("lang", "de"),
            ("kind", " Report "),
            ("debug", "1"),
        ]);
        assert_eq!(
            run(&hook, sent, Stage::PreSend),
            pairs(&[("kind", "report"), ("lang", "de"), ("site", "north")])
        );
        assert_eq!(
            run(&hook, message(&[]), Stage::PostReceive),
            pairs(&[("lang", "en"), ("site", "north")])
        );
    }

    #[test]
    fn the_time_of_receipt_is_ours_and_not_the_senders() {
        let hook = hook(vec![rule("received_at", HeaderEdit::ReceivedAt)]);
        let forged = message(&[("received_at", "yesterday")]);
        assert_eq!(
            run(&hook, forged.clone(), Stage::PostReceive),
            pairs(&[("received_at", "2026-01-01T00:00:00.000000Z")])
        );
        assert_eq!(
            run(&hook, forged, Stage::PreSend),
            pairs(&[("received_at", "yesterday")])
        );
    }

    #[test]
    fn a_message_that_nothing_changes_is_not_copied() {
        let hook = hook(vec![
            rule("a", HeaderEdit::Trim),
            rule("b", HeaderEdit::Default("x".into())),
        ]);
        let sent = message(&[("a", "1"), ("b", "2")]);
        assert_eq!(hook.edited(&sent, Stage::PreSend).unwrap(), None);
    }

    #[test]
    fn rules_that_could_never_apply_are_refused_with_their_number() {
        let bad = vec![
            rule("ok", HeaderEdit::Trim),
            rule("Not Ok", HeaderEdit::Set("x".into())),
        ];
        let error = EnrichHook::new(bad, ManualClock::default().shared()).map(drop);
        let text = error.unwrap_err().to_string();
        assert!(text.starts_with("rule 2 for header `Not Ok`"), "{text}");
        let control = vec![rule("ok", HeaderEdit::Set("a\nb".into()))];
        assert!(EnrichHook::new(control, ManualClock::default().shared()).is_err());
    }
}
