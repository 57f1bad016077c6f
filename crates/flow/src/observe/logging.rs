//! Log lines of a program that runs flows: JSON or text, with secrets taken out.
//!
//! This library installs nothing and prints nothing by itself: [`configure_logging`] makes a layer, and the program
//! installs it, alone or beside others.

use std::{fmt, io, str::FromStr};

use serde_json::{Map, Value};
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
};
use tracing_subscriber::{
    Layer, Registry,
    filter::Filtered,
    fmt::MakeWriter,
    layer::{Context, SubscriberExt as _},
    registry::LookupSpan,
};
use volary_kernel::{
    SharedClock, SystemClock, Timestamp,
    secret::{REDACTED, Redactor},
};

/// A level, as text (`debug`, `INFO`, `warning`) or as the number that many logging systems use (10 debug, 20 info,
/// 30 warning, 40 error, 50 critical; 0 all).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogLevel(pub LevelFilter);

/// A text or number is no level.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("level must be trace, debug, info, warn, error, off, or 10, 20, 30, 40, 50, found `{0}`")]
pub struct LogLevelError(String);

impl FromStr for LogLevel {
    type Err = LogLevelError;
    fn from_str(text: &str) -> Result<Self, LogLevelError> {
        let level = match text.trim().to_ascii_lowercase().as_str() {
            "trace" | "notset" => LevelFilter::TRACE,
            "debug" => LevelFilter::DEBUG,
            "info" => LevelFilter::INFO,
            "warn" | "warning" => LevelFilter::WARN,
            "error" | "critical" | "fatal" => LevelFilter::ERROR,
            "off" => LevelFilter::OFF,
            other => {
                let number = other.parse::<u32>().ok();
                return number
                    .and_then(|number| Self::try_from(number).ok())
                    .ok_or_else(|| LogLevelError(text.chars().take(40).collect()));
            }
        };
        Ok(Self(level))
    }
}

impl TryFrom<u32> for LogLevel {
    type Error = LogLevelError;
    fn try_from(number: u32) -> Result<Self, LogLevelError> {
        let level = match number {
            0 | 5 => LevelFilter::TRACE,
            10 => LevelFilter::DEBUG,
            20 => LevelFilter::INFO,
            30 => LevelFilter::WARN,
            40 | 50 => LevelFilter::ERROR,
            _ => return Err(LogLevelError(number.to_string())),
        };
        Ok(Self(level))
    }
}

impl From<Level> for LogLevel {
    fn from(level: Level) -> Self {
        Self(LevelFilter::from_level(level))
    }
}

/// How log lines look and where they go; made by [`configure_logging`].
pub struct Logging<W = fn() -> io::Stderr> {
    level: LevelFilter,
    structured: bool,
    extras: bool,
    redact: bool,
    redactor: Redactor,
    clock: SharedClock,
    writer: W,
}

/// Logging at INFO, as text to standard error, with extras and with redaction.
///
/// # Examples
/// ```
/// use volary_flow::observe::{LogLevel, configure_logging};
/// let logging = configure_logging().structured(true).level("debug".parse::<LogLevel>()?);
/// // tracing::subscriber::set_global_default(logging.subscriber())
/// # let _guard = tracing::subscriber::set_default(logging.subscriber());
/// # Ok::<(), volary_flow::observe::LogLevelError>(())
/// ```
pub fn configure_logging() -> Logging {
    Logging {
        level: LevelFilter::INFO,
        structured: false,
        extras: true,
        redact: true,
        redactor: Redactor::default(),
        clock: SystemClock::shared(),
        writer: io::stderr,
    }
}

impl<W> Logging<W> {
    /// Lines less severe are not written. Default INFO.
    #[must_use]
    pub fn level(mut self, level: impl Into<LogLevel>) -> Self {
        self.level = level.into().0;
        self
    }

    /// One JSON object per line: `timestamp`, `level`, `logger`, `message`, and the extras in `extra`. Default text.
    #[must_use]
    pub fn structured(mut self, structured: bool) -> Self {
        self.structured = structured;
        self
    }

    /// Whether fields besides the message are written. Default true.
    #[must_use]
    pub fn include_extras(mut self, extras: bool) -> Self {
        self.extras = extras;
        self
    }

    /// Whether values are hidden whose field is named like a secret (`password`, `api_key`, `authorization`, …) or like
    /// a payload (`payload`, `body`, `input`, `output`). Default true. Declared secrets are hidden in any case.
    #[must_use]
    pub fn redact_fields(mut self, redact: bool) -> Self {
        self.redact = redact;
        self
    }

    /// Knows the declared secrets, which are taken out of every line.
    #[must_use]
    pub fn redactor(mut self, redactor: Redactor) -> Self {
        self.redactor = redactor;
        self
    }

    /// Where times come from. Default the machine's clock.
    #[must_use]
    pub fn clock(mut self, clock: SharedClock) -> Self {
        self.clock = clock;
        self
    }

    /// Where lines go. Default standard error.
    #[must_use]
    pub fn writer<V>(self, writer: V) -> Logging<V> {
        Logging {
            level: self.level,
            structured: self.structured,
            extras: self.extras,
            redact: self.redact,
            redactor: self.redactor,
            clock: self.clock,
            writer,
        }
    }

    /// As a layer, for a program that has others.
    pub fn layer<S>(self) -> Filtered<Self, LevelFilter, S>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
        W: for<'a> MakeWriter<'a> + 'static,
    {
        let level = self.level;
        self.with_filter(level)
    }

    /// As all there is: what was installed before is replaced, not added to.
    pub fn subscriber(self) -> impl Subscriber + Send + Sync
    where
        W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
    {
        Registry::default().with(self.layer())
    }

    fn line(&self, at: Timestamp, meta: &Metadata<'_>, said: Said) -> String {
        let Said { message, mut extra } = said;
        if !self.extras {
            extra.clear();
        }
        let mut line = if self.structured {
            let mut all = Map::new();
            all.insert("timestamp".into(), at.to_string().into());
            all.insert("level".into(), meta.level().as_str().into());
            all.insert("logger".into(), meta.target().into());
            all.insert("message".into(), message.into());
            if !extra.is_empty() {
                all.insert("extra".into(), Value::Object(extra));
            }
            Value::Object(all).to_string()
        } else {
            let mut line = format!("{at} {:>5} {}: {message}", meta.level(), meta.target());
            for (key, value) in extra {
                line.push_str(&format!(" {key}={value}"));
            }
            // One event, one line.
            line.replace('\r', "\\r").replace('\n', "\\n")
        };
        line.push('\n');
        line
    }
}

impl<W: fmt::Debug> fmt::Debug for Logging<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Logging")
            .field("level", &self.level)
            .field("structured", &self.structured)
            .field("writer", &self.writer)
            .finish_non_exhaustive()
    }
}

impl<S, W> Layer<S> for Logging<W>
where
    S: Subscriber,
    W: for<'a> MakeWriter<'a> + 'static,
{
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut visitor = Fields {
            redact: self.redact,
            said: Said::default(),
        };
        event.record(&mut visitor);
        let line = self.line(self.clock.wall(), event.metadata(), visitor.said);
        let mut writer = self.writer.make_writer_for(event.metadata());
        // A log that cannot be written has nowhere to say so.
        let _lost = io::Write::write_all(&mut writer, &self.redactor.redact_bytes(line.as_bytes()));
    }
}

#[derive(Default)]
struct Said {
    message: String,
    extra: Map<String, Value>,
}

struct Fields {
    redact: bool,
    said: Said,
}

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        let name = field.name();
        if name == "message" {
            self.said.message = match value {
                Value::String(text) => text,
                other => other.to_string(),
            };
            return;
        }
        // Numbers and truth values give nothing away: a count of tokens is no token.
        let hidden = self.redact && value.is_string() && is_private(name);
        let value = if hidden { REDACTED.into() } else { value };
        self.said.extra.insert(name.to_owned(), value);
    }
}

/// Parts of field names that mark a value as a secret or as a payload.
const SECRETS: [&str; 10] = [
    "password",
    "passwd",
    "secret",
    "token",
    "authorization",
    "api_key",
    "apikey",
    "cookie",
    "credential",
    "private_key",
];
const PAYLOADS: [&str; 4] = ["payload", "body", "input", "output"];

fn is_private(name: &str) -> bool {
    let name = name.to_ascii_lowercase().replace(['-', '.'], "_");
    SECRETS.iter().any(|part| name.contains(part)) || PAYLOADS.contains(&name.as_str())
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}").into());
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }
    /// What JSON has no number for (NaN, infinities) is written as text.
    fn record_f64(&mut self, field: &Field, value: f64) {
        let number = serde_json::Number::from_f64(value).map(Value::Number);
        self.put(field, number.unwrap_or_else(|| value.to_string().into()));
    }
    /// An error with all that caused it.
    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut text = value.to_string();
        let mut cause = value.source();
        while let Some(error) = cause {
            text.push_str(&format!(": {error}"));
            cause = error.source();
        }
        self.put(field, text.into());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;
    use serde_json::json;
    use volary_kernel::{ManualClock, secret::Secret};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(
        set: impl FnOnce(
            Logging<Box<dyn Fn() -> Lines + Send + Sync>>,
        ) -> Logging<Box<dyn Fn() -> Lines + Send + Sync>>,
        body: impl FnOnce(),
    ) -> Vec<String> {
        let lines = Lines::default();
        let kept = lines.clone();
        let writer: Box<dyn Fn() -> Lines + Send + Sync> = Box::new(move || lines.clone());
        let clock = ManualClock::default().shared();
        let logging = configure_logging().clock(clock).writer(writer);
        tracing::subscriber::with_default(set(logging).subscriber(), body);
        let text = String::from_utf8(kept.0.lock().clone()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_line_is_json_with_extras_error_texts_and_values_that_json_cannot_hold_as_text() {
        let lines = logged(
            |logging| logging.structured(true),
            || {
                let cause = io::Error::other("disk on fire");
                let error = crate::EmitError::Store("no room".into());
                let error: &(dyn std::error::Error + 'static) = &error;
                tracing::warn!(
                    target: "t", error, cause = ?cause, nan = f64::NAN, n = 3, ok = true,
                    name = "extra named as a core key", "it \"said\""
                );
            },
        );
        let line: Value = serde_json::from_str(&lines[0]).unwrap();
        let wanted = json!({
            "timestamp": "2026-01-01T00:00:00.000000Z", "level": "WARN", "logger": "t", "message": "it \"said\"",
            "extra": {
                "error": "the envelope could not be stored: no room", "nan": "NaN", "n": 3, "ok": true,
                "cause": "Custom { kind: Other, error: \"disk on fire\" }", "name": "extra named as a core key",
            },
        });
        assert_eq!(line, wanted);
        assert_eq!(lines.len(), 1);
    }

    #[test]
    fn secrets_and_payloads_are_hidden_by_default_and_declared_ones_always() {
        let say = || {
            tracing::info!(api_key = "k-1", payload = ?["ping"], tokens = 12, "canary-1234 \"quoted\ncanary\"");
        };
        let declare = |logging: Logging<_>| {
            let redactor = Redactor::default();
            redactor.add(&Secret::new("canary-1234")).unwrap();
            redactor.add(&Secret::new("quoted\ncanary")).unwrap();
            logging.structured(true).redactor(redactor)
        };
        let lines = logged(declare, say);
        let line: Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!(line["message"], "[redacted] \"[redacted]\"");
        let hidden = json!({"api_key": "[redacted]", "payload": "[redacted]", "tokens": 12});
        assert_eq!(line["extra"], hidden);
        let lines = logged(|logging| declare(logging).redact_fields(false), say);
        let line: Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!(line["extra"]["api_key"], "k-1");
        assert_eq!(line["message"], "[redacted] \"[redacted]\"");
    }

    #[test]
    fn text_stays_on_one_line_and_can_do_without_extras() {
        let say = || tracing::info!(target: "t", n = 1, "two\nlines");
        let lines = logged(|logging| logging, say);
        assert_eq!(
            lines,
            ["2026-01-01T00:00:00.000000Z  INFO t: two\\nlines n=1"]
        );
        let lines = logged(|logging| logging.include_extras(false), say);
        assert_eq!(lines, ["2026-01-01T00:00:00.000000Z  INFO t: two\\nlines"]);
    }

    #[test]
    fn levels_are_texts_or_numbers_and_all_else_is_refused() {
        for (text, level) in [
            ("debug", LevelFilter::DEBUG),
            ("WARNING", LevelFilter::WARN),
            ("40", LevelFilter::ERROR),
            ("0", LevelFilter::TRACE),
            ("off", LevelFilter::OFF),
        ] {
            assert_eq!(text.parse(), Ok(LogLevel(level)), "{text}");
        }
        assert_eq!(LogLevel::try_from(20), Ok(LogLevel(LevelFilter::INFO)));
        let refused = "loud".parse::<LogLevel>().unwrap_err();
        assert!(refused.to_string().ends_with("found `loud`"), "{refused}");
        assert!("3".parse::<LogLevel>().is_err());
        let say = || {
            tracing::info!("quiet");
            tracing::error!("heard");
        };
        let lines = logged(|logging| logging.level(Level::WARN).structured(true), say);
        assert_eq!(lines.len(), 1);
    }

    #[test]
    fn installing_again_replaces_and_does_not_add() {
        let lines = logged(
            |logging| logging,
            || {
                let inner = logged(|logging| logging, || tracing::info!("inner"));
                assert_eq!(inner.len(), 1);
                tracing::info!("outer");
            },
        );
        assert_eq!(lines.len(), 1);
        assert!(lines[0].ends_with("outer"), "{lines:?}");
    }
}
