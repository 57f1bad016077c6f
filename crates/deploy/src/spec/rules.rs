//! What a text must look like to be a duration, a name, a port… Pure.
//!
//! The shape check asks a rule whether a text is right; afterwards reading it again cannot fail.

use volary_kernel::{
    id::Name,
    sign::PublicKey,
    text::{parse_bytes, parse_duration},
};

use super::{
    address::{self, parse_host_port, parse_url},
    codes::{self, CodeInfo},
    port::{parse_port, parse_short_port},
    quantity,
};

/// A kind of text.
pub(crate) struct Rule {
    /// What is expected, to be read after "must be".
    pub expects: &'static str,
    /// The code of a text that is wrong.
    pub code: &'static CodeInfo,
    /// `Err` says what is wrong.
    pub check: fn(&str) -> Result<(), Bad>,
    /// Whether an unquoted number, true or false is just as good.
    pub scalar: bool,
    /// For the schema: an example.
    pub example: &'static str,
}

/// What is wrong with a text, and what to do about it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Bad {
    pub message: String,
    pub hint: Option<String>,
}

impl From<(String, Option<String>)> for Bad {
    fn from((message, hint): (String, Option<String>)) -> Self {
        Self { message, hint }
    }
}

pub(crate) fn bad<T>(message: impl Into<String>) -> Result<T, Bad> {
    Err(Bad {
        message: message.into(),
        hint: None,
    })
}

/// A text cut to what a message should show.
pub(crate) fn clip(text: &str) -> String {
    const SHOWN: usize = 60;
    let mut short: String = text
        .chars()
        .take(SHOWN)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if text.chars().count() > SHOWN {
        short.push('…');
    }
    short
}

macro_rules! rules {
    ($($(#[doc = $doc:literal])* $name:ident: $expects:literal, $code:ident, $scalar:literal, $example:literal, $check:expr;)*) => {
        $(
            $(#[doc = $doc])*
            pub(crate) static $name: Rule =
                Rule { expects: $expects, code: &codes::$code, check: $check, scalar: $scalar, example: $example };
        )*
    };
}

rules! {
    /// Any text, also none.
    ANY: "text", WRONG_TYPE, true, "", |_| Ok(());
    /// Any text but none.
    TEXT: "text", NO_VALUE, true, "", text;
    NAME: "a name", BAD_NAME, true, "note-indexer", name;
    DURATION: "a duration like 30s", BAD_DURATION, true, "30s", duration;
    BYTES: "a size like 10MiB", BAD_QUANTITY, true, "10MiB", bytes;
    CPU: "a number of CPUs", BAD_QUANTITY, true, "500m", |text| Ok(quantity::parse_cpu(text).map(drop)?);
    MEMORY: "an amount of memory", BAD_QUANTITY, true, "512Mi", |text| Ok(quantity::parse_memory(text).map(drop)?);
    PORT: "a port number", BAD_PORT, true, "8080", |text| Ok(parse_port(text).map(drop)?);
    SHORT_PORT: "a port like 8080 or 80:8080", BAD_PORT, true, "8080:8080", |text| Ok(parse_short_port(text).map(drop)?);
    TOPIC: "a topic", BAD_TOPIC, true, "notes/indexed", topic;
    VARIABLE: "the name of an environment variable", BAD_VARIABLE, false, "LOG_LEVEL", variable;
    /// The name of a secret, which is also the name of its file.
    SECRET: "the name of a secret", BAD_NAME, false, "api-key", file_name;
    /// A key of a table of values.
    ITEM: "a key", BAD_NAME, true, "password", file_name;
    TARGET: "an absolute path", BAD_PATH, false, "/app/data", target;
    PATH: "a path", BAD_PATH, false, "./data", path;
    GLOB: "a pattern", BAD_PATTERN, false, "**/*.md", glob;
    PAGE: "a page like notes:a.md", BAD_PATTERN, false, "notes:todo/a.md", page;
    HEADER: "the value of a header", BAD_ADDRESS, true, "probe", address::header;
    IP: "an IP address", BAD_ADDRESS, false, "8.8.8.8", address::ip;
    HOST: "a host name or IP address", BAD_ADDRESS, false, "127.0.0.1", address::host;
    HOST_RULE: "a host, `*.domain`, address or network", BAD_ADDRESS, false, "api.openai.com", address::host_rule;
    DIAL: "a host with a port", BAD_ADDRESS, false, "node-b.example.org:7400", address::dial;
    PUBLIC_KEY: "a public key", BAD_KEY, true, "43046bfe4092b3e94994eada15dcc20d8aaa07b658fd3954eb8e0efb8bdca5de", public_key;
    HEADER_NAME: "the name of a header", BAD_NAME, false, "region", header_name;
    PATTERN: "a name, in which `*` stands for any text", BAD_PATTERN, true, "notes/*", pattern;
    BIND: "an address with a port", BAD_ADDRESS, false, "127.0.0.1:0", address::bind;
    URL: "a URL like http://127.0.0.1:8080/health", BAD_ADDRESS, false, "http://127.0.0.1:8080/health", |text| parse_url(text).map(drop);
    WEBHOOK_URL: "a URL like https://example.org/hook", BAD_ADDRESS, false, "https://example.org/hook", |text| address::parse_target(text).map(drop);
    HOST_PORT: "a port or host:port", BAD_ADDRESS, true, "5432", |text| parse_host_port(text).map(drop);
    URL_PATH: "a path beginning with /", BAD_ADDRESS, false, "/health", address::url_path;
    CAPABILITY: "a Linux capability", UNKNOWN_VALUE, false, "NET_BIND_SERVICE", |text| capability(text).map(drop);
}

fn text(text: &str) -> Result<(), Bad> {
    if text.trim().is_empty() {
        bad("must not be empty")
    } else {
        Ok(())
    }
}

fn name(text: &str) -> Result<(), Bad> {
    if Name::new(text).is_ok() {
        return Ok(());
    }
    let mut guess: String = text.trim().to_lowercase();
    guess = guess
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') {
                c
            } else {
                '-'
            }
        })
        .collect();
    let guess: String = guess
        .trim_matches(|c: char| !c.is_ascii_alphanumeric())
        .chars()
        .take(63)
        .collect();
    let hint = Name::new(&guess)
        .ok()
        .map(|guess| format!("`{guess}` would do"));
    let rule = "must be 1 to 63 of a-z, 0-9, `-`, `_` and `.`, beginning and ending with a letter or digit";
    Err(Bad {
        message: format!("{rule}, found `{}`", clip(text)),
        hint,
    })
}

fn duration(text: &str) -> Result<(), Bad> {
    if parse_duration(text).is_ok_and(|duration| duration.as_secs() < MAX_DURATION_SECS) {
        return Ok(());
    }
    let bare = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let hint = bare.then(|| format!("did you mean `{text}s`?"));
    let message = format!(
        "must be a duration with a unit like 500ms, 30s, 5m or 1h30m, found `{}`",
        clip(text)
    );
    Err(Bad { message, hint })
}

/// Longest duration of a manifest: ten years, so that sums of durations stay far from the limits of time types.
const MAX_DURATION_SECS: u64 = 10 * 365 * 24 * 3600;

fn bytes(text: &str) -> Result<(), Bad> {
    match parse_bytes(text) {
        Ok(bytes) if i64::try_from(bytes).is_ok() => Ok(()),
        _ => bad(format!(
            "must be a size like 1048576, 512KiB, 10MB or 1GiB, found `{}`",
            clip(text)
        )),
    }
}

fn topic(text: &str) -> Result<(), Bad> {
    let segment = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
    };
    if text.len() <= 256 && text.split('/').all(segment) {
        return Ok(());
    }
    bad(format!(
        "must be segments of A-Z, a-z, 0-9, `_`, `.` and `-` separated by `/`, found `{}`",
        clip(text)
    ))
}

fn variable(text: &str) -> Result<(), Bad> {
    let start = text
        .bytes()
        .next()
        .is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    if start && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        return Ok(());
    }
    let guess: String = text
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '_' {
                c.to_ascii_uppercase()
            } else {
                '_'
            }
        })
        .collect();
    let usable = guess.bytes().next().is_some_and(|b| !b.is_ascii_digit());
    let message = format!(
        "must be A-Z, a-z, 0-9 and `_`, not beginning with a digit, found `{}`",
        clip(text)
    );
    Err(Bad {
        message,
        hint: usable.then(|| format!("`{}` would do", clip(&guess))),
    })
}

fn file_name(text: &str) -> Result<(), Bad> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if (1..=253).contains(&text.len()) && text.bytes().all(fits) && !text.starts_with('.') {
        return Ok(());
    }
    bad(format!(
        "must be letters, digits, `-`, `_` and `.`, not beginning with `.`, found `{}`",
        clip(text)
    ))
}

fn target(text: &str) -> Result<(), Bad> {
    let parts: Vec<_> = text.split('/').filter(|part| !part.is_empty()).collect();
    if text.starts_with('/')
        && !parts.is_empty()
        && parts.iter().all(|part| !matches!(*part, "." | ".."))
    {
        return Ok(());
    }
    bad(format!(
        "must be an absolute path other than `/` and without `..`, found `{}`",
        clip(text)
    ))
}

fn path(text: &str) -> Result<(), Bad> {
    match text {
        "" => bad("must be a path, found nothing"),
        _ => Ok(()),
    }
}

/// A glob as the context engine reads it: like a line of `.gitignore`.
fn glob(text: &str) -> Result<(), Bad> {
    if text.split('/').any(|part| part == "..") {
        return bad(format!(
            "must stay inside the folder, found `{}`",
            clip(text)
        ));
    }
    if text.trim_matches('/').is_empty() || text.len() > GLOB_MAX {
        return bad(format!(
            "must be a pattern like `**/*.md`, found `{}`",
            clip(text)
        ));
    }
    let built = globset::GlobBuilder::new(text)
        .literal_separator(true)
        .build();
    match built {
        Ok(_) => Ok(()),
        Err(error) => bad(format!(
            "must be a pattern like `**/*.md`, found `{}`: {}",
            clip(text),
            error.kind()
        )),
    }
}

/// Longest glob, in bytes: as long as the longest path.
const GLOB_MAX: usize = 4096;

/// A name or topic in which `*` stands for any text, as policies read it.
fn pattern(text: &str) -> Result<(), Bad> {
    let wrong = || {
        bad(format!(
            "must be a name or topic in which `*` stands for any text, found `{}`",
            clip(text)
        ))
    };
    if text.is_empty() || text.len() > PATTERN_MAX || text.contains(char::is_whitespace) {
        return wrong();
    }
    let built = globset::GlobBuilder::new(text)
        .literal_separator(true)
        .backslash_escape(false)
        .build();
    match built {
        Ok(_) => Ok(()),
        Err(_) => wrong(),
    }
}

/// Longest pattern, in bytes: as policies have it.
const PATTERN_MAX: usize = 512;

/// The name of a message's header.
fn header_name(text: &str) -> Result<(), Bad> {
    let fits =
        |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.');
    if (1..=HEADER_NAME_MAX).contains(&text.len()) && text.bytes().all(fits) {
        return Ok(());
    }
    bad(format!(
        "must be the name of a header of a-z, 0-9, `-`, `_` and `.`, found `{}`",
        clip(text)
    ))
}

/// Longest name of a header, in bytes: as messages have it.
const HEADER_NAME_MAX: usize = 64;

/// An Ed25519 public key in lower-case hex.
fn public_key(text: &str) -> Result<(), Bad> {
    let hex = text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
    if hex && PublicKey::from_hex(text).is_ok() {
        return Ok(());
    }
    let hint = match hex {
        true => {
            "the digits are those of no key: copy the entry that `volary identity peer` prints on the other node"
        }
        false => "copy the entry that `volary identity peer` prints on the other node",
    };
    Err(Bad {
        message: format!(
            "must be a public key of 64 hex digits, found `{}`",
            clip(text)
        ),
        hint: Some(hint.to_owned()),
    })
}

/// `source:path`.
fn page(text: &str) -> Result<(), Bad> {
    match text.split_once(':') {
        Some((source, path)) if Name::new(source).is_ok() && !path.is_empty() => Ok(()),
        _ => bad(format!("must be `source:path`, found `{}`", clip(text))),
    }
}

/// Linux capabilities, without `CAP_`.
const CAPABILITIES: &str = "AUDIT_CONTROL AUDIT_READ AUDIT_WRITE BLOCK_SUSPEND BPF CHECKPOINT_RESTORE CHOWN DAC_OVERRIDE \
    DAC_READ_SEARCH FOWNER FSETID IPC_LOCK IPC_OWNER KILL LEASE LINUX_IMMUTABLE MAC_ADMIN MAC_OVERRIDE MKNOD NET_ADMIN \
    NET_BIND_SERVICE NET_BROADCAST NET_RAW PERFMON SETFCAP SETGID SETPCAP SETUID SYS_ADMIN SYS_BOOT SYS_CHROOT SYS_MODULE \
    SYS_NICE SYS_PACCT SYS_PTRACE SYS_RAWIO SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG SYSLOG WAKE_ALARM ALL";

/// A capability in upper case without `CAP_`.
pub(crate) fn capability(text: &str) -> Result<String, Bad> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
    if CAPABILITIES.split_whitespace().any(|known| known == name) {
        return Ok(name.to_owned());
    }
    let hint = super::hint::near(name, CAPABILITIES.split_whitespace())
        .map(|near| format!("did you mean `{near}`?"));
    Err(Bad {
        message: format!("must be a Linux capability or ALL, found `{}`", clip(text)),
        hint,
    })
}
