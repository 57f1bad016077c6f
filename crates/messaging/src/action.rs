//! What an agent asks for: the JSON lines of a handler's stdout, and the actions of a link acknowledgement.
//!
//! ```text
//! {"send":{"topic":"…" | "to":"…" | "pool":"…", "payload":… | "payload_base64":"…", "content_type"?, "headers"?, "priority"?, "deadline"?}}
//! {"report":{…}}
//! ```
//! Strict: an unknown key, a second action in one line or output that is no action is an error with its line number, and
//! then none of the actions count. Lines are read as they come, within bounds, so that a flood costs no memory.

use std::{borrow::Cow, collections::BTreeMap, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::Deserialize;
use serde_json::value::RawValue;
use volary_kernel::{
    clock::Timestamp,
    id::{Name, TraceId},
    text,
};

use crate::{
    message::{BuildError, ContentType, Headers, Message, Payload, Priority, Sender},
    topic::Topic,
};

/// What one attempt may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ActionLimits {
    /// Most actions. Default 1000.
    pub max_actions: usize,
    /// Most bytes of all lines together. Default 4 MiB: they are held in memory until the handler ends.
    pub max_bytes: usize,
}

impl Default for ActionLimits {
    fn default() -> Self {
        Self {
            max_actions: 1000,
            max_bytes: 4 * 1024 * 1024,
        }
    }
}

/// Something an agent asks for.
#[derive(Debug, Clone)]
pub enum Action {
    /// Send a message.
    Send(SendAction),
    /// Report a result.
    Report(Box<RawValue>),
}

/// A message to be sent. Sender, tenant and trace are added by the node.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SendAction {
    /// For the subscribers of this topic.
    pub topic: Option<Topic>,
    /// For this agent.
    pub to: Option<Name>,
    /// For one member of this pool.
    pub pool: Option<Name>,
    /// JSON content.
    pub payload: Option<Box<RawValue>>,
    /// Content as bytes, in base64.
    pub payload_base64: Option<String>,
    /// What the bytes are; default `application/json` for `payload`, else `application/octet-stream`.
    pub content_type: Option<String>,
    /// Headers.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// How urgent, 0 to 255.
    #[serde(default)]
    pub priority: Priority,
    /// From when on nobody wants it: a time (RFC 3339) or a duration from now (`30s`).
    pub deadline: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Send(SendAction),
    Report(Box<RawValue>),
}

/// Why what an agent asked for is refused as a whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ActionError {
    /// A line is no JSON.
    #[error(
        "line {line} of the output is not JSON: {problem}; write logs to stderr, actions to stdout"
    )]
    NotJson {
        /// Line number, from 1.
        line: usize,
        /// The parser's words.
        problem: String,
    },
    /// A line is JSON but no action.
    #[error("line {line} of the output is no action: {problem}")]
    NotAnAction {
        /// Line number, from 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },
    /// A line asks for something that can not be.
    #[error("action {line}: {problem}")]
    Invalid {
        /// Line number, from 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },
    /// More actions than allowed.
    #[error("more than {limit} actions in one attempt")]
    TooMany {
        /// Actions allowed.
        limit: usize,
    },
    /// More output than allowed.
    #[error("more than {} of output in one attempt; only actions go to stdout", text::format_bytes(*limit as u64))]
    TooLong {
        /// Bytes allowed.
        limit: usize,
    },
}

/// Reads actions from output as it comes.
#[derive(Debug)]
pub struct ActionParser {
    limits: ActionLimits,
    bytes: usize,
    line: usize,
    partial: Vec<u8>,
    result: Result<Vec<Action>, ActionError>,
}

impl ActionParser {
    /// A parser for one attempt.
    pub const fn new(limits: ActionLimits) -> Self {
        Self {
            limits,
            bytes: 0,
            line: 0,
            partial: Vec::new(),
            result: Ok(Vec::new()),
        }
    }

    /// Takes the next piece of output, cut anywhere. After the first error nothing more is kept.
    ///
    /// # Errors
    /// The first error so far: a caller may stop the handler then.
    pub fn push(&mut self, output: &[u8]) -> Result<(), ActionError> {
        self.bytes = self.bytes.saturating_add(output.len());
        if self.result.is_ok() && self.bytes > self.limits.max_bytes {
            self.fail(ActionError::TooLong {
                limit: self.limits.max_bytes,
            });
        }
        if self.result.is_ok() {
            for piece in output.split_inclusive(|byte| *byte == b'\n') {
                self.partial.extend_from_slice(piece);
                if piece.ends_with(b"\n") {
                    self.end_line();
                }
            }
        }
        self.result.as_ref().map(|_| ()).map_err(Clone::clone)
    }

    /// Ends the output; a last line need not end with a line feed.
    ///
    /// # Errors
    /// The first error of the whole output.
    pub fn finish(mut self) -> Result<Vec<Action>, ActionError> {
        if !self.partial.is_empty() {
            self.end_line();
        }
        self.result
    }

    fn fail(&mut self, error: ActionError) {
        self.partial = Vec::new();
        self.result = Err(error);
    }

    fn end_line(&mut self) {
        self.line += 1;
        let line = std::mem::take(&mut self.partial);
        let text = line.trim_ascii();
        let Ok(actions) = &mut self.result else {
            return;
        };
        if text.is_empty() {
            return;
        }
        if actions.len() >= self.limits.max_actions {
            return self.fail(ActionError::TooMany {
                limit: self.limits.max_actions,
            });
        }
        match parse_line(text, self.line) {
            Ok(action) => actions.push(action),
            Err(error) => self.fail(error),
        }
    }
}

/// Reads actions from a JSON array, as a link acknowledgement has them. Positions count as line numbers.
///
/// # Errors
/// The first error; then none of the actions count.
pub fn parse_all(
    actions: &[Box<RawValue>],
    limits: ActionLimits,
) -> Result<Vec<Action>, ActionError> {
    if actions.len() > limits.max_actions {
        return Err(ActionError::TooMany {
            limit: limits.max_actions,
        });
    }
    if actions
        .iter()
        .map(|action| action.get().len())
        .sum::<usize>()
        > limits.max_bytes
    {
        return Err(ActionError::TooLong {
            limit: limits.max_bytes,
        });
    }
    let numbered = actions.iter().enumerate();
    numbered
        .map(|(index, action)| parse_line(action.get().as_bytes(), index + 1))
        .collect()
}

fn parse_line(text: &[u8], line: usize) -> Result<Action, ActionError> {
    let action = match serde_json::from_slice(text) {
        Ok(Line::Send(send)) => Action::Send(send),
        Ok(Line::Report(report)) => Action::Report(report),
        Err(error) if error.is_data() => {
            return Err(ActionError::NotAnAction {
                line,
                problem: explain(text, &error),
            });
        }
        // What the action's form does not allow may still be JSON: a second key beside the first, say.
        Err(error) => {
            let json = serde_json::from_slice::<serde::de::IgnoredAny>(text);
            return Err(match json {
                Ok(_) => ActionError::NotAnAction {
                    line,
                    problem: explain(text, &error),
                },
                Err(error) => ActionError::NotJson {
                    line,
                    problem: error.to_string(),
                },
            });
        }
    };
    match &action {
        Action::Send(send) => send
            .check()
            .map_err(|problem| ActionError::Invalid { line, problem })?,
        Action::Report(_) => {}
    }
    Ok(action)
}

/// The parser's words, and what an action looks like where they do not say it.
fn explain(text: &[u8], error: &serde_json::Error) -> String {
    match serde_json::from_slice::<serde_json::Value>(text) {
        Ok(serde_json::Value::Object(map)) if map.len() == 1 => error.to_string(),
        _ => "an action is an object with exactly one of `send` and `report`".to_owned(),
    }
}

impl SendAction {
    /// What is wrong with it in itself, whoever sends it.
    ///
    /// # Errors
    /// The rule it breaks.
    pub fn check(&self) -> Result<(), String> {
        let named = [self.topic.is_some(), self.to.is_some(), self.pool.is_some()];
        if named.into_iter().filter(|named| *named).count() != 1 {
            return Err("`send` needs exactly one of `topic`, `to` and `pool`".to_owned());
        }
        if self.payload.is_some() && self.payload_base64.is_some() {
            return Err("`send` takes `payload` or `payload_base64`, not both".to_owned());
        }
        self.content().map(drop)?;
        self.labels().map_err(|error| error.to_string())?;
        self.deadline_after(Timestamp::default()).map(drop)
    }

    fn content(&self) -> Result<Payload, String> {
        let stated = self
            .content_type
            .as_deref()
            .map(ContentType::new)
            .transpose();
        let stated = stated.map_err(|error| error.to_string())?;
        let bytes = match (&self.payload, &self.payload_base64) {
            (Some(json), _) => {
                if stated.as_ref().is_some_and(|stated| !stated.is_json()) {
                    return Err(
                        "a `payload` is JSON; for another `content_type` use `payload_base64`"
                            .to_owned(),
                    );
                }
                json.get().as_bytes().to_vec()
            }
            (None, Some(text)) => BASE64_STANDARD
                .decode(text)
                .map_err(|error| format!("`payload_base64` is not base64: {error}"))?,
            (None, None) => Vec::new(),
        };
        let default = if self.payload.is_some() {
            ContentType::JSON
        } else {
            ContentType::BYTES
        };
        Payload::new(stated.unwrap_or(default), bytes).map_err(|error| error.to_string())
    }

    fn labels(&self) -> Result<Headers, BuildError> {
        let mut headers = Headers::new();
        self.headers
            .iter()
            .try_for_each(|(name, value)| headers.set(name, value))?;
        Ok(headers)
    }

    fn deadline_after(&self, now: Timestamp) -> Result<Option<Timestamp>, String> {
        let Some(words) = &self.deadline else {
            return Ok(None);
        };
        let after: Result<Duration, _> = text::parse_duration(words);
        let at = after
            .map(|after| now + after)
            .or_else(|_| words.parse::<Timestamp>());
        at.map(Some).map_err(|_| {
            format!("`deadline` must be a duration like `30s` or an RFC 3339 time, found `{words}`")
        })
    }

    /// The message, from `sender`, as part of `trace`.
    ///
    /// # Errors
    /// What [`SendAction::check`] finds, or a deadline that has passed.
    pub fn into_message(
        self,
        sender: &Sender,
        trace: TraceId,
        now: Timestamp,
    ) -> Result<Message, ActionError> {
        let invalid = |problem: Cow<'_, str>| ActionError::Invalid {
            line: 1,
            problem: problem.into_owned(),
        };
        self.check().map_err(|problem| invalid(problem.into()))?;
        let payload = self.content().map_err(|problem| invalid(problem.into()))?;
        let headers = self
            .labels()
            .map_err(|error| invalid(error.to_string().into()))?;
        let deadline = self
            .deadline_after(now)
            .map_err(|problem| invalid(problem.into()))?;
        let mut builder = Message::builder(sender.clone())
            .trace(trace)
            .payload(payload)
            .headers(headers)
            .priority(self.priority);
        if let Some(to) = self.to {
            builder = builder.to(to);
        }
        if let Some(pool) = self.pool {
            builder = builder.pool(pool);
        }
        if let Some(topic) = self.topic {
            builder = builder.topic(topic);
        }
        if let Some(deadline) = deadline {
            builder = builder.deadline(deadline);
        }
        builder
            .build(now)
            .map_err(|error| invalid(error.to_string().into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_util::{NOW, sender};

    fn parse(output: &str) -> Result<Vec<Action>, ActionError> {
        let mut parser = ActionParser::new(ActionLimits::default());
        let _first_error_comes_again = parser.push(output.as_bytes());
        parser.finish()
    }

    fn check_error(output: &str, expected: &str) {
        let error = parse(output).unwrap_err().to_string();
        assert!(
            error.contains(expected),
            "`{error}` does not contain `{expected}`"
        );
    }

    #[test]
    fn actions_are_read_in_order() {
        let actions = parse(
            "{\"send\":{\"topic\":\"notes/indexed\",\"payload\":{\"n\":1.50}}}\n\n  {\"report\":{\"ok\":true}}\r\n",
        );
        let actions = actions.unwrap();
        let [Action::Send(send), Action::Report(report)] = &actions[..] else {
            panic!("{actions:?}")
        };
        assert_eq!(send.payload.as_ref().unwrap().get(), "{\"n\":1.50}");
        assert_eq!(report.get(), "{\"ok\":true}");
    }

    #[test]
    fn output_may_be_cut_anywhere() {
        let line = b"{\"send\":{\"to\":\"b\",\"payload\":\"\xc3\xa9\"}}\n";
        let mut parser = ActionParser::new(ActionLimits::default());
        for byte in line.iter().chain(line) {
            parser.push(&[*byte]).unwrap();
        }
        assert_eq!(parser.finish().unwrap().len(), 2);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        check_error(
            "{\"report\":{}}\nhello\n",
            "line 2 of the output is not JSON",
        );
        check_error("hello\n", "logs to stderr");
        check_error("{\"send\":{\"topik\":\"t\"}}", "unknown field `topik`");
        check_error(
            "{\"sned\":{}}",
            "unknown variant `sned`, expected `send` or `report`",
        );
        check_error(
            "{\"send\":{\"to\":\"b\"},\"report\":{}}",
            "exactly one of `send` and `report`",
        );
        check_error("[1]", "exactly one of");
        check_error("17", "exactly one of");
        check_error(
            "{\"send\":{\"to\":\"b\",\"topic\":\"t\"}}",
            "exactly one of `topic`, `to` and `pool`",
        );
        check_error("{\"send\":{}}", "exactly one of `topic`, `to` and `pool`");
        check_error(
            "{\"send\":{\"to\":\"b\",\"to\":\"c\"}}",
            "duplicate field `to`",
        );
        check_error(
            "{\"send\":{\"to\":\"b\",\"payload_base64\":\"!\"}}",
            "not base64",
        );
        check_error(
            "{\"send\":{\"to\":\"b\",\"payload\":1,\"payload_base64\":\"\"}}",
            "not both",
        );
        check_error(
            "{\"send\":{\"to\":\"b\",\"payload\":1,\"content_type\":\"text/plain\"}}",
            "use `payload_base64`",
        );
        check_error(
            "{\"send\":{\"to\":\"b\",\"headers\":{\"A B\":\"\"}}}",
            "header `A B`",
        );
        check_error(
            "{\"send\":{\"to\":\"b\",\"deadline\":\"soon\"}}",
            "`deadline` must be",
        );
        check_error("{\"send\":{\"topic\":\"a b\"}}", "topic must be segments");
        check_error(
            "{\"send\":{\"to\":\"b\",\"priority\":300}}",
            "invalid value",
        );
    }

    #[test]
    fn a_flood_is_bounded_in_count_and_bytes_and_keeps_nothing() {
        let mut parser = ActionParser::new(ActionLimits {
            max_actions: 2,
            max_bytes: 100,
        });
        assert_eq!(
            parser.push(&b"{\"report\":1}\n".repeat(3)),
            Err(ActionError::TooMany { limit: 2 })
        );
        let mut parser = ActionParser::new(ActionLimits {
            max_actions: 2,
            max_bytes: 100,
        });
        for _ in 0..1000 {
            let _kept_as_result = parser.push(&[b'x'; 90]);
        }
        assert!(parser.partial.is_empty());
        assert_eq!(
            parser.finish().unwrap_err(),
            ActionError::TooLong { limit: 100 }
        );
    }

    #[test]
    fn a_send_becomes_a_message_of_the_stamped_sender() {
        let actions = parse(
            "{\"send\":{\"to\":\"b\",\"payload_base64\":\"/wA=\",\"headers\":{\"k\":\"v\"},\"priority\":9,\"deadline\":\"30s\"}}",
        );
        let Some(Action::Send(send)) = actions.unwrap().pop() else {
            panic!("no send")
        };
        let trace = TraceId::generate();
        let message = send.into_message(&sender("a"), trace, NOW).unwrap();
        assert_eq!(
            (message.sender(), message.trace(), message.priority()),
            (&sender("a"), trace, Priority(9))
        );
        assert_eq!(message.deadline(), Some(NOW + Duration::from_secs(30)));
        assert_eq!(
            (&message.body()[..], message.payload().content_type()),
            (&b"\xff\0"[..], &ContentType::BYTES)
        );
        assert_eq!(message.headers().get("k"), Some("v"));
    }

    #[test]
    fn an_array_of_actions_is_read_like_lines() {
        let raw = |text: &str| RawValue::from_string(text.into()).unwrap();
        let limits = ActionLimits {
            max_actions: 2,
            max_bytes: 1000,
        };
        assert_eq!(
            parse_all(&[raw("{\"report\":1}"), raw("{\"report\":2}")], limits)
                .unwrap()
                .len(),
            2
        );
        assert!(matches!(
            parse_all(&[raw("{\"repot\":1}")], limits),
            Err(ActionError::NotAnAction { line: 1, .. })
        ));
        let three = ["{\"report\":1}"; 3].map(raw);
        assert_eq!(
            parse_all(&three, limits).unwrap_err(),
            ActionError::TooMany { limit: 2 }
        );
    }
}
