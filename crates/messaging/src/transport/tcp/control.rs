//! The control stream of a link: what stands between two TLS ends (pure).
//!
//! ```text
//! u32 length of the rest │ u8 version = 1 │ u8 kind │ body
//! 1 Hello      32 key, str8 name, u64 incarnation, u32 frame bytes, u32 window frames, u32 window bytes, introduction
//! 2 HelloAck   the same
//! 3 Refuse     u8 code, str16 words                  ends the connection before it began
//! 4 Data       u64 id, u16 count, u8 flags, [durable: u64 low, count × u64 order], sealed frame
//! 5 Answers    u64 id, u16 count, count × answer
//! 6 Introduce  introduction
//! 7 Ping       u64 number        8 Pong  the same number
//! 9 Bye        u8 code, str16 words                  ends the connection
//! ```
//!
//! Every value has one form; a decoder reads all of it or refuses. Lengths are checked against the limit of their kind
//! as soon as length and kind are there, before anything is kept.

use std::time::Duration;

use bytes::Bytes;
use volary_kernel::{
    id::Name,
    sign::{PUBLIC_KEY_LEN, PublicKey},
};

use super::config::INTRODUCTION_MAX;
use crate::{
    admission::{Admission, Refusal},
    codec::DecodeError,
    frame::FRAME_MESSAGES_MAX,
    wire::{Reader, invalid, put_str8, put_str16},
};

/// Version of the control stream that this build speaks.
pub const CONTROL_VERSION: u8 = 1;
/// Bytes before the body: length, version, kind.
pub const HEAD: usize = 6;
/// Longest text in an answer, a refusal or a farewell, in bytes; longer ones are cut when written.
pub const TEXT_MAX: usize = 512;

const LENGTH: usize = 4;
const GREETING_MAX: usize = INTRODUCTION_MAX + 512;
const WORDS_MAX: usize = 1 + 2 + TEXT_MAX;
/// Tag, two numbers, and a refusal with two texts.
const ANSWER_MAX: usize = 1 + 8 + 1 + 1 + 255 + 2 + TEXT_MAX + 16;
const ANSWERS_MAX: usize = 10 + FRAME_MESSAGES_MAX * ANSWER_MAX;
const DATA_HEAD_MAX: usize = 11 + 8 + 8 * FRAME_MESSAGES_MAX;
const DURABLE: u8 = 1;

/// The answer to one message: what became of it at the receiver.
pub type Answer = Admission;

/// What a durable sender says beside its messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Durable {
    /// Every order below this is settled at the sender for good: the receiver may forget it.
    pub low: u64,
    /// The order of each message of the frame.
    pub orders: Vec<u64>,
}

/// Who is at an end of the link, and what it takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Greeting {
    /// Its identity key; must be the one that TLS showed.
    pub key: PublicKey,
    /// What it calls itself: for people, nothing is decided by it.
    pub name: Name,
    /// Larger after each start of the same node: connections of an earlier one are closed.
    pub incarnation: u64,
    /// Most bytes of a sealed frame it takes.
    pub frame_bytes: u32,
    /// Most unanswered frames it takes.
    pub window_frames: u32,
    /// Most unanswered bytes it takes.
    pub window_bytes: u32,
    /// Who its agents are, as whoever is above the link reads it.
    pub introduction: Bytes,
}

/// Why a connection is refused or ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Code {
    /// The other side stops.
    Closing = 0,
    /// The key is not believed (any more).
    Unknown = 1,
    /// Too many connections.
    TooMany = 2,
    /// The control stream broke its rules.
    Protocol = 3,
    /// The introduction was not accepted.
    Introduction = 4,
    /// Nothing was heard for too long.
    Idle = 5,
    /// A newer connection took its place.
    Replaced = 6,
    /// The greeting did not come in time.
    TooSlow = 7,
}

impl Code {
    const ALL: [Self; 8] = [
        Self::Closing,
        Self::Unknown,
        Self::TooMany,
        Self::Protocol,
        Self::Introduction,
        Self::Idle,
        Self::Replaced,
        Self::TooSlow,
    ];

    /// A short, closed word for metric labels.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Closing => "closing",
            Self::Unknown => "unknown",
            Self::TooMany => "too_many",
            Self::Protocol => "protocol",
            Self::Introduction => "introduction",
            Self::Idle => "idle",
            Self::Replaced => "replaced",
            Self::TooSlow => "too_slow",
        }
    }
}

/// One unit of the control stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    /// The dialing side's greeting.
    Hello(Greeting),
    /// The accepting side's greeting.
    HelloAck(Greeting),
    /// No connection comes about.
    Refuse(Code, String),
    /// A sealed frame.
    Data {
        /// 1, 2, 3, … on each connection.
        id: u64,
        /// Messages in the frame.
        count: u16,
        /// For messages that must not be lost.
        durable: Option<Durable>,
        /// The frame, see [`crate::frame`].
        frame: Bytes,
    },
    /// What became of a frame's messages.
    Answers {
        /// The frame's id.
        id: u64,
        /// One per message, in order.
        answers: Vec<Answer>,
    },
    /// A changed introduction.
    Introduce(Bytes),
    /// Asks for a sign of life.
    Ping(u64),
    /// Gives it.
    Pong(u64),
    /// The connection ends.
    Bye(Code, String),
}

const HELLO: u8 = 1;
const HELLO_ACK: u8 = 2;
const REFUSE: u8 = 3;
const DATA: u8 = 4;
const ANSWERS: u8 = 5;
const INTRODUCE: u8 = 6;
const PING: u8 = 7;
const PONG: u8 = 8;
const BYE: u8 = 9;

/// Bytes of the unit at the front of `bytes`, length prefix included; `None` while too few are there to tell.
///
/// `frame_bytes` bounds the frame of a [`Control::Data`].
///
/// # Errors
/// [`DecodeError`] for an unknown version or kind, and for a length that its kind can not have.
pub fn unit_len(bytes: &[u8], frame_bytes: usize) -> Result<Option<usize>, DecodeError> {
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH>() else {
        return Ok(None);
    };
    let found = u32::from_be_bytes(*length) as usize;
    let largest = GREETING_MAX.max(DATA_HEAD_MAX + frame_bytes);
    check(found, 2, largest + 2)?;
    let &[version, kind, ..] = rest else {
        return Ok(None);
    };
    if version != CONTROL_VERSION {
        return Err(DecodeError::Version {
            what: "control stream",
            found: version,
            known: CONTROL_VERSION,
        });
    }
    let limit = match kind {
        HELLO | HELLO_ACK => GREETING_MAX,
        REFUSE | BYE => WORDS_MAX,
        DATA => DATA_HEAD_MAX + frame_bytes,
        ANSWERS => ANSWERS_MAX,
        INTRODUCE => INTRODUCTION_MAX,
        PING | PONG => 8,
        _ => return Err(unknown(kind)),
    };
    check(found, 2, limit + 2)?;
    Ok(Some(LENGTH + found))
}

fn check(found: usize, least: usize, limit: usize) -> Result<(), DecodeError> {
    if found < least {
        return Err(DecodeError::Truncated { what: "head" });
    }
    if found > limit {
        return Err(DecodeError::TooMuch {
            what: "length",
            found,
            limit,
        });
    }
    Ok(())
}

fn unknown(kind: u8) -> DecodeError {
    invalid("kind", format_args!("{kind} is none of 1 to 9"))
}

/// Decodes one unit from exactly `bytes`, length prefix included. A frame in it is a slice of `bytes`.
///
/// # Errors
/// [`DecodeError`] naming the first field that is wrong.
pub fn decode(bytes: &Bytes, frame_bytes: usize) -> Result<Control, DecodeError> {
    match unit_len(bytes, frame_bytes)? {
        None => return Err(DecodeError::Truncated { what: "head" }),
        Some(length) if length > bytes.len() => {
            return Err(DecodeError::Truncated { what: "body" });
        }
        Some(length) if length < bytes.len() => {
            let extra = bytes.len() - length;
            return Err(DecodeError::Trailing { extra });
        }
        Some(_) => {}
    }
    let kind = bytes[LENGTH + 1];
    let body = bytes.slice(HEAD..);
    let mut reader = Reader::new(&body);
    let control = match kind {
        HELLO => Control::Hello(greeting(&mut reader)?),
        HELLO_ACK => Control::HelloAck(greeting(&mut reader)?),
        REFUSE => words(&mut reader).map(|(code, text)| Control::Refuse(code, text))?,
        DATA => data(&mut reader, frame_bytes)?,
        ANSWERS => answers(&mut reader)?,
        INTRODUCE => Control::Introduce(reader.rest()),
        PING => Control::Ping(reader.u64("number")?),
        PONG => Control::Pong(reader.u64("number")?),
        BYE => words(&mut reader).map(|(code, text)| Control::Bye(code, text))?,
        _ => return Err(unknown(kind)),
    };
    reader.end()?;
    Ok(control)
}

fn greeting(reader: &mut Reader<'_>) -> Result<Greeting, DecodeError> {
    let key = reader.array::<PUBLIC_KEY_LEN>("key")?;
    let key = PublicKey::from_bytes(key).map_err(|error| invalid("key", error))?;
    let name = reader.str8("name")?;
    let name = Name::new(name).map_err(|error| invalid("name", error))?;
    Ok(Greeting {
        key,
        name,
        incarnation: reader.u64("incarnation")?,
        frame_bytes: reader.u32("frame bytes")?,
        window_frames: reader.u32("window frames")?,
        window_bytes: reader.u32("window bytes")?,
        introduction: {
            let introduction = reader.rest();
            check(introduction.len(), 0, INTRODUCTION_MAX)?;
            introduction
        },
    })
}

fn words(reader: &mut Reader<'_>) -> Result<(Code, String), DecodeError> {
    let code = reader.u8("code")?;
    let code = Code::ALL
        .get(usize::from(code))
        .ok_or_else(|| invalid("code", format_args!("{code} is not known")))?;
    Ok((*code, text(reader, "words")?.to_owned()))
}

fn text<'a>(reader: &mut Reader<'a>, what: &'static str) -> Result<&'a str, DecodeError> {
    let text = reader.str16(what)?;
    if text.len() > TEXT_MAX {
        return Err(DecodeError::TooMuch {
            what,
            found: text.len(),
            limit: TEXT_MAX,
        });
    }
    Ok(text)
}

fn count(reader: &mut Reader<'_>) -> Result<u16, DecodeError> {
    let count = reader.u16("message count")?;
    if (1..=FRAME_MESSAGES_MAX).contains(&usize::from(count)) {
        return Ok(count);
    }
    Err(DecodeError::TooMuch {
        what: "message count",
        found: count.into(),
        limit: FRAME_MESSAGES_MAX,
    })
}

fn data(reader: &mut Reader<'_>, frame_bytes: usize) -> Result<Control, DecodeError> {
    let id = reader.u64("frame id")?;
    let count = count(reader)?;
    let durable = match reader.u8("flags")? {
        0 => None,
        DURABLE => Some(Durable {
            low: reader.u64("low")?,
            orders: (0..count)
                .map(|_| reader.u64("order"))
                .collect::<Result<_, _>>()?,
        }),
        _ => return Err(DecodeError::NotCanonical { what: "flags" }),
    };
    let frame = reader.rest();
    if frame.len() > frame_bytes {
        return Err(DecodeError::TooMuch {
            what: "frame",
            found: frame.len(),
            limit: frame_bytes,
        });
    }
    Ok(Control::Data {
        id,
        count,
        durable,
        frame,
    })
}

fn answers(reader: &mut Reader<'_>) -> Result<Control, DecodeError> {
    let id = reader.u64("frame id")?;
    let count = count(reader)?;
    let answers = (0..count).map(|_| answer(reader)).collect::<Result<_, _>>();
    Ok(Control::Answers {
        id,
        answers: answers?,
    })
}

/// First tag of the refusals.
const REFUSED: u8 = 5;
/// Behind the refusals.
const SENT: u8 = 14;

fn answer(reader: &mut Reader<'_>) -> Result<Answer, DecodeError> {
    Ok(match reader.u8("answer")? {
        0 => Admission::Delivered,
        1 => Admission::Queued,
        2 => Admission::NoRoute,
        3 => Admission::Partial {
            reached: reader.u32("reached")? as usize,
            refused: reader.u32("refused")? as usize,
            why: {
                let tag = reader.u8("refusal")?;
                refusal(reader, tag)?
            },
        },
        4 => Admission::Dropped {
            hook: reader.str8("hook")?.to_owned(),
            reason: text(reader, "reason")?.to_owned().into(),
        },
        SENT => Admission::Sent,
        tag => Admission::Refused(refusal(reader, tag)?),
    })
}

fn refusal(reader: &mut Reader<'_>, tag: u8) -> Result<Refusal, DecodeError> {
    Ok(match tag.checked_sub(REFUSED) {
        Some(0) => Refusal::Full {
            what: text(reader, "what")?.to_owned().into(),
            retry_after: Duration::from_micros(reader.u64("retry after")?),
        },
        Some(1) => Refusal::RateLimited {
            retry_after: Duration::from_micros(reader.u64("retry after")?),
        },
        Some(2) => Refusal::Replay,
        Some(3) => Refusal::Secret,
        Some(4) => Refusal::TooLarge {
            found: size(reader)?,
            limit: size(reader)?,
        },
        Some(5) => Refusal::Expired,
        Some(6) => Refusal::Invalid {
            problem: text(reader, "problem")?.to_owned().into(),
        },
        Some(7) => Refusal::Hook {
            hook: reader.str8("hook")?.to_owned(),
            problem: text(reader, "problem")?.to_owned(),
        },
        Some(8) => Refusal::Closed,
        // After the tag of `Sent`.
        Some(10) => Refusal::Settled {
            below: reader.u64("below")?,
        },
        _ => return Err(invalid("answer", format_args!("tag {tag} is not known"))),
    })
}

fn size(reader: &mut Reader<'_>) -> Result<usize, DecodeError> {
    let size = reader.u64("size")?;
    usize::try_from(size).map_err(|error| invalid("size", error))
}

// --- writing ---------------------------------------------------------------------------------

/// Appends the bytes of `control`.
pub fn encode(control: &Control, out: &mut Vec<u8>) {
    let start = out.len();
    match control {
        Control::Hello(greeting) => put_greeting(out, HELLO, greeting),
        Control::HelloAck(greeting) => put_greeting(out, HELLO_ACK, greeting),
        Control::Refuse(code, text) => put_words(out, REFUSE, *code, text),
        Control::Bye(code, text) => put_words(out, BYE, *code, text),
        Control::Data {
            id,
            count,
            durable,
            frame,
        } => {
            encode_data_head(*id, *count, durable.as_ref(), frame.len(), out);
            out.extend_from_slice(frame);
            return;
        }
        Control::Answers { id, answers } => {
            head(out, ANSWERS);
            out.extend_from_slice(&id.to_be_bytes());
            let count = u16::try_from(answers.len()).unwrap_or(u16::MAX);
            out.extend_from_slice(&count.to_be_bytes());
            for answer in answers {
                put_answer(out, answer);
            }
        }
        Control::Introduce(introduction) => {
            head(out, INTRODUCE);
            out.extend_from_slice(introduction);
        }
        Control::Ping(number) => {
            head(out, PING);
            out.extend_from_slice(&number.to_be_bytes());
        }
        Control::Pong(number) => {
            head(out, PONG);
            out.extend_from_slice(&number.to_be_bytes());
        }
    }
    let length = out.len() - start - LENGTH;
    put_length(out, start, length);
}

/// Appends everything of a [`Control::Data`] but its frame, of which `frame_len` bytes must follow.
pub fn encode_data_head(
    id: u64,
    count: u16,
    durable: Option<&Durable>,
    frame_len: usize,
    out: &mut Vec<u8>,
) {
    let start = out.len();
    head(out, DATA);
    out.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(&count.to_be_bytes());
    match durable {
        None => out.push(0),
        Some(Durable { low, orders }) => {
            out.push(DURABLE);
            out.extend_from_slice(&low.to_be_bytes());
            for order in orders {
                out.extend_from_slice(&order.to_be_bytes());
            }
        }
    }
    let length = out.len() - start - LENGTH + frame_len;
    put_length(out, start, length);
}

fn head(out: &mut Vec<u8>, kind: u8) {
    out.extend_from_slice(&[0, 0, 0, 0, CONTROL_VERSION, kind]);
}

/// Callers bound what they write to a few MiB; a longer unit is refused by every reader.
fn put_length(out: &mut [u8], start: usize, length: usize) {
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    out[start..start + LENGTH].copy_from_slice(&length.to_be_bytes());
}

fn put_greeting(out: &mut Vec<u8>, kind: u8, greeting: &Greeting) {
    head(out, kind);
    out.extend_from_slice(&greeting.key.to_bytes());
    put_str8(out, greeting.name.as_str());
    out.extend_from_slice(&greeting.incarnation.to_be_bytes());
    for limit in [
        greeting.frame_bytes,
        greeting.window_frames,
        greeting.window_bytes,
    ] {
        out.extend_from_slice(&limit.to_be_bytes());
    }
    out.extend_from_slice(&greeting.introduction);
}

fn put_words(out: &mut Vec<u8>, kind: u8, code: Code, text: &str) {
    head(out, kind);
    out.push(code as u8);
    put_text(out, text);
}

/// The longest beginning of `text` that has at most `limit` bytes.
fn cut(text: &str, limit: usize) -> &str {
    &text[..text.floor_char_boundary(limit)]
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_str16(out, cut(text, TEXT_MAX));
}

fn put_answer(out: &mut Vec<u8>, answer: &Answer) {
    match answer {
        Admission::Delivered => out.push(0),
        Admission::Queued => out.push(1),
        Admission::NoRoute => out.push(2),
        Admission::Sent => out.push(SENT),
        Admission::Partial {
            reached,
            refused,
            why,
        } => {
            out.push(3);
            for number in [reached, refused] {
                let number = u32::try_from(*number).unwrap_or(u32::MAX);
                out.extend_from_slice(&number.to_be_bytes());
            }
            put_refusal(out, why);
        }
        Admission::Dropped { hook, reason } => {
            out.push(4);
            put_str8(out, cut(hook, u8::MAX.into()));
            put_text(out, reason);
        }
        Admission::Refused(why) => put_refusal(out, why),
    }
}

fn put_refusal(out: &mut Vec<u8>, why: &Refusal) {
    let micros = |duration: &Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    match why {
        Refusal::Full { what, retry_after } => {
            out.push(REFUSED);
            put_text(out, what);
            out.extend_from_slice(&micros(retry_after).to_be_bytes());
        }
        Refusal::RateLimited { retry_after } => {
            out.push(REFUSED + 1);
            out.extend_from_slice(&micros(retry_after).to_be_bytes());
        }
        Refusal::Replay => out.push(REFUSED + 2),
        Refusal::Secret => out.push(REFUSED + 3),
        Refusal::TooLarge { found, limit } => {
            out.push(REFUSED + 4);
            for number in [found, limit] {
                out.extend_from_slice(&(*number as u64).to_be_bytes());
            }
        }
        Refusal::Expired => out.push(REFUSED + 5),
        Refusal::Invalid { problem } => {
            out.push(REFUSED + 6);
            put_text(out, problem);
        }
        Refusal::Hook { hook, problem } => {
            out.push(REFUSED + 7);
            put_str8(out, cut(hook, u8::MAX.into()));
            put_text(out, problem);
        }
        Refusal::Closed => out.push(REFUSED + 8),
        Refusal::Settled { below } => {
            out.push(REFUSED + 10);
            out.extend_from_slice(&below.to_be_bytes());
        }
    }
}
