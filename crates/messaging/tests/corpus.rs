//! Every file of the fuzz corpus goes through the function that its fuzz target runs, without a fuzzer.
//!
//! The files named `made-*` are written by this test (`VOLARY_TEST_BLESS=1`) and compared with what is made today: they are
//! vectors of the formats, too, and change only when a format does.
#![expect(clippy::unwrap_used, reason = "a test whose setup fails has failed")]

use std::{fs, path::PathBuf, time::Duration};

use bytes::Bytes;
use serde_json::value::RawValue;
use volary_kernel::{
    clock::Timestamp,
    id::{Name, SpanId, Tenant, TraceId, Uid},
};
use volary_messaging::{
    Admission, Capability, ContentType, Descriptor, Introduction, Message, Priority, Refusal,
    Sender, SignedDescriptor, Topic, codec,
    frame::{self, Trust},
    transport::tcp::control::{self, Code, Control, Durable, Greeting},
};
use volary_store::{
    JournalRow, Seq,
    journal::{ArchiveReader, ArchiveRow, ArchiveTrust, ArchiveWriter},
};

#[path = "../../../fuzz/src/lib.rs"]
mod properties;

type Target = (&'static str, fn(&[u8]));

const TARGETS: [Target; 8] = [
    ("message", properties::message),
    ("frame", properties::frame),
    ("sealed", properties::sealed),
    ("control", properties::control),
    ("descriptor", properties::descriptor),
    ("introduction", properties::introduction),
    ("actions", properties::actions),
    ("archive", properties::archive),
];

const NOW: Timestamp = Timestamp::from_micros(1_700_000_000_000_000);

fn corpus(target: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/corpus")
        .join(target)
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn message(number: u8) -> Message {
    let sender = Sender::new(
        properties::identity().id(),
        name("writer"),
        Tenant::default(),
    );
    let builder = Message::builder(sender)
        .id(Uid::from_bytes([number; 16]))
        .trace(TraceId::from_bytes([7; 16]).unwrap())
        .topic(Topic::new("notes/indexed").unwrap());
    let builder = match number {
        0 => builder,
        1 => builder
            .to(name("reader"))
            .span(SpanId::from_bytes([5; 8]).unwrap())
            .task(Uid::from_bytes([6; 16]))
            .deadline(NOW + Duration::from_secs(60))
            .priority(Priority(200))
            .header("kind", "vector")
            .unwrap(),
        2 => builder.pool(name("workers")),
        _ => builder.broadcast().topic(Topic::new("work").unwrap()),
    };
    let payload = vec![number; usize::from(number) * 40];
    let builder = builder.bytes(ContentType::BYTES, payload).unwrap();
    builder.build(NOW).unwrap()
}

fn descriptor(agent: &str) -> SignedDescriptor {
    let identity = properties::identity();
    let descriptor = Descriptor {
        tenant: Tenant::default(),
        name: name(agent),
        key: identity.public(),
        topics: vec![Topic::new("work").unwrap()],
        capabilities: vec![Capability::new("summarise").unwrap()],
        pools: vec![name("workers")],
        issued_at: NOW,
        expires_at: NOW + Duration::from_secs(3600),
        succession: None,
    };
    SignedDescriptor::sign(descriptor, &identity).unwrap()
}

fn units(frame: &Bytes) -> Vec<(&'static str, Control)> {
    let introduction = Introduction::new(vec![descriptor("a")]).unwrap().encode();
    let greeting = Greeting {
        key: properties::identity().public(),
        name: name("north"),
        incarnation: 3,
        frame_bytes: 1 << 16,
        window_frames: 64,
        window_bytes: 1 << 20,
        introduction: introduction.clone(),
    };
    let durable = Durable {
        low: 4,
        orders: vec![4, 5, 6, 7],
    };
    let data = |durable| Control::Data {
        id: 9,
        count: 4,
        durable,
        frame: frame.clone(),
    };
    let retry_after = Duration::from_millis(250);
    let answers = vec![
        Admission::Queued,
        Admission::NoRoute,
        Admission::Refused(Refusal::RateLimited { retry_after }),
        Admission::Refused(Refusal::Invalid {
            problem: "no".into(),
        }),
    ];
    vec![
        ("hello", Control::Hello(greeting.clone())),
        ("hello-ack", Control::HelloAck(greeting)),
        ("refuse", Control::Refuse(Code::Unknown, "who?".into())),
        ("data", data(None)),
        ("data-durable", data(Some(durable))),
        ("answers", Control::Answers { id: 9, answers }),
        ("introduce", Control::Introduce(introduction)),
        ("ping", Control::Ping(1)),
        ("pong", Control::Pong(1)),
        ("bye", Control::Bye(Code::Closing, String::new())),
    ]
}

/// An archive of as many entries; the second has a seal and a body that is no line of JSON.
fn archive(count: u8) -> Bytes {
    let (key, node) = (properties::key(), name("north"));
    let filter = RawValue::from_string("{\"agent\":\"a\"}".to_owned()).unwrap();
    let mut writer = ArchiveWriter::begin(Vec::new(), node.clone(), &key, NOW, filter).unwrap();
    for number in 0..count {
        let odd = number % 2 == 1;
        let row = JournalRow {
            seq: Seq(u64::from(number) * 3 + 1),
            at: NOW + Duration::from_millis(number.into()),
            node: node.clone(),
            kind: "message.received".to_owned(),
            tenant: Tenant::default(),
            agent: odd.then(|| name("a")),
            trace: Some(TraceId::from_bytes([7; 16]).unwrap()),
            cause: odd.then_some(Seq(1)),
            body: match odd {
                true => Bytes::from_static(&[0, 255, 10]),
                false => Bytes::from_static(b"{\"v\":1, \"n\" :2}"),
            },
        };
        let sealed = odd.then(|| Bytes::from_static(b"seal"));
        writer.add(ArchiveRow { row, sealed }).unwrap();
    }
    writer.finish(&key).unwrap().1.into()
}

/// The inputs that decode: target, name, bytes.
fn made() -> Vec<(&'static str, String, Bytes)> {
    let identity = properties::identity();
    let messages: Vec<Message> = (0..4).map(message).collect();
    let mut made = Vec::new();
    for (number, message) in messages.iter().enumerate() {
        made.push(("message", number.to_string(), codec::encode(message)));
    }
    for count in [1, 3, 4] {
        let frame = frame::seal(&identity, &messages[..count]).unwrap();
        let opened = frame::open(&frame, Trust::Key(&identity.public())).unwrap();
        let last = opened.sealed(count - 1).unwrap().encode();
        made.push(("sealed", format!("last-of-{count}"), last));
        made.push(("frame", format!("of-{count}"), frame));
    }
    let frame = frame::seal(&identity, &messages).unwrap();
    for (what, unit) in units(&frame) {
        let mut bytes = Vec::new();
        control::encode(&unit, &mut bytes);
        made.push(("control", what.into(), bytes.into()));
    }
    made.push(("descriptor", "one".into(), descriptor("a").encode()));
    for agents in [vec![], vec!["a"], vec!["a", "b", "c"]] {
        let what = format!("of-{}", agents.len());
        let all = agents.into_iter().map(descriptor).collect();
        let bytes = Introduction::new(all).unwrap().encode();
        made.push(("introduction", what, bytes));
    }
    for count in [0, 1, 3] {
        made.push(("archive", format!("of-{count}"), archive(count)));
    }
    let lines: [(&str, &str); 3] = [
        (
            "send",
            "{\"send\":{\"topic\":\"a/b\",\"payload\":{\"n\":1},\"headers\":{\"k\":\"v\"},\"deadline\":\"30s\"}}\n",
        ),
        (
            "two",
            "{\"report\":{\"done\":true}}\n\n{\"send\":{\"to\":\"a\",\"payload_base64\":\"AAE=\",\"priority\":9}}",
        ),
        (
            "no-action",
            "{\"send\":{\"topic\":\"a\",\"to\":\"b\"}}\nnot json\n",
        ),
    ];
    for (what, text) in lines {
        made.push(("actions", what.into(), Bytes::from_static(text.as_bytes())));
    }
    made
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "a test may ask whether to write its vectors"
)]
fn what_is_made_today_is_what_the_corpus_holds() {
    let bless = std::env::var_os("VOLARY_TEST_BLESS").is_some();
    for (target, what, bytes) in made() {
        let path = corpus(target).join(format!("made-{what}"));
        if bless {
            fs::create_dir_all(corpus(target)).unwrap();
            fs::write(&path, &bytes).unwrap();
        }
        let held = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(held, bytes, "{} has another form now", path.display());
    }
}

#[test]
fn every_file_of_the_corpus_passes_its_target() {
    for (target, check) in TARGETS {
        let mut files = 0;
        for entry in fs::read_dir(corpus(target)).unwrap() {
            check(&fs::read(entry.unwrap().path()).unwrap());
            files += 1;
        }
        assert!(files > 0, "{target} has no corpus");
    }
}

#[test]
fn every_made_input_decodes_so_that_the_targets_reach_their_assertions() {
    let key = properties::identity().public();
    for (target, what, bytes) in made() {
        let decodes = match target {
            "message" => codec::decode(&bytes).is_ok(),
            "frame" => frame::open(&bytes, Trust::Key(&key)).is_ok(),
            "sealed" => frame::SealedMessage::decode(&bytes)
                .is_ok_and(|sealed| sealed.open(Trust::Key(&key)).is_ok()),
            "control" => control::decode(&bytes, properties::FRAME_BYTES).is_ok(),
            "descriptor" => {
                SignedDescriptor::decode(&bytes).is_ok_and(|signed| signed.open(NOW).is_ok())
            }
            "introduction" => Introduction::decode(&bytes).is_ok(),
            "archive" => {
                let trust = ArchiveTrust::Key(properties::key().public());
                ArchiveReader::open(&*bytes, trust).is_ok_and(|reader| reader.verify().is_ok())
            }
            _ => true,
        };
        assert!(decodes, "{target} {what}");
    }
}

/// Every single bit of every made input flipped, and every cut: the neighbourhood a fuzzer looks at first.
#[test]
fn the_neighbourhood_of_the_corpus_passes_too() {
    for (target, what, bytes) in made() {
        let (_, check) = TARGETS.iter().find(|(name, _)| *name == target).unwrap();
        // A frame's checks cost a signature each; its smallest one stands for the rest.
        let step = if matches!(target, "frame" | "sealed" | "descriptor" | "introduction") {
            61
        } else {
            1
        };
        let mut copy = bytes.to_vec();
        for bit in (0..copy.len() * 8).step_by(step) {
            copy[bit / 8] ^= 1 << (bit % 8);
            check(&copy);
            copy[bit / 8] ^= 1 << (bit % 8);
        }
        for cut in (0..copy.len()).step_by(step) {
            check(&copy[..cut]);
        }
        assert!(!what.is_empty());
    }
}
