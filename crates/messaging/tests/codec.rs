//! The codec and the sealed frame against arbitrary, damaged and hostile bytes.
#![expect(clippy::unwrap_used, reason = "a test whose setup fails has failed")]

use bytes::Bytes;
use proptest::{collection::vec, option, prelude::*};
use volary_kernel::{
    clock::Timestamp,
    id::{Name, SpanId, Tenant, TraceId, Uid},
};
use volary_messaging::{
    ContentType, Headers, Identity, IdentityRegistry, Message, Priority, Sender, Topic,
    codec::{self, DecodeError},
    frame::{self, OpenError, SealError, SealedMessage, Trust},
};

fn name() -> impl Strategy<Value = Name> {
    "[a-z0-9]([-a-z0-9_.]{0,40}[a-z0-9])?".prop_map(|text| Name::new(text).unwrap())
}

fn topics() -> impl Strategy<Value = Vec<Topic>> {
    vec(
        "[A-Za-z0-9_-]{1,9}(/[A-Za-z0-9_-]{1,9}){0,3}".prop_map(|text| Topic::new(&text).unwrap()),
        0..5,
    )
}

fn headers() -> impl Strategy<Value = Headers> {
    vec(("[a-z0-9_.-]{1,20}", "[^\\pC]{0,40}"), 0..6).prop_map(|pairs| {
        let mut headers = Headers::new();
        for (name, value) in pairs {
            headers.set(&name, &value).unwrap();
        }
        headers
    })
}

/// Any message of `identity`.
fn message(identity: &Identity) -> impl Strategy<Value = Message> + use<> {
    let id = identity.id();
    let to = (option::of(name()), option::of(name()));
    let who = (name(), name(), to, any::<bool>(), topics());
    let what = (
        headers(),
        vec(any::<u8>(), 0..600),
        "[a-z]{1,9}/[a-z+.-]{1,20}",
    );
    let when = (
        0..i64::MAX / 2,
        option::of(1..1_000_000_000i64),
        any::<u8>(),
    );
    let ids = (
        any::<[u8; 16]>(),
        any::<u128>(),
        option::of(any::<u64>()),
        option::of(any::<[u8; 16]>()),
    );
    (who, what, when, ids).prop_map(move |(who, what, when, ids)| {
        let (sender, tenant, (recipient, pool), broadcast, topics) = who;
        let mut builder = Message::builder(Sender::new(id, sender, Tenant::new(tenant)))
            .id(Uid::from_bytes(ids.0))
            .trace(TraceId::from_bytes((ids.1 | 1).to_be_bytes()).unwrap())
            .priority(Priority(when.2))
            .headers(what.0)
            .bytes(ContentType::new(&what.2).unwrap(), what.1)
            .unwrap();
        if let Some(recipient) = recipient {
            builder = builder.to(recipient);
        }
        if let Some(pool) = pool {
            builder = builder.pool(pool);
        }
        if broadcast || topics.is_empty() {
            builder = builder.broadcast();
        }
        for topic in topics {
            builder = builder.topic(topic);
        }
        if let Some(span) = ids.2 {
            builder = builder.span(SpanId::from_bytes((span | 1).to_be_bytes()).unwrap());
        }
        if let Some(task) = ids.3 {
            builder = builder.task(Uid::from_bytes(task));
        }
        let now = Timestamp::from_micros(when.0);
        if let Some(after) = when.1 {
            builder = builder.deadline(Timestamp::from_micros(when.0 + after));
        }
        builder.build(now).unwrap()
    })
}

fn identity() -> Identity {
    static ONE: std::sync::LazyLock<Identity> =
        std::sync::LazyLock::new(|| Identity::generate().unwrap());
    ONE.clone()
}

fn plain(identity: &Identity, body: &'static str) -> Message {
    let sender = Sender::new(identity.id(), Name::new("a").unwrap(), Tenant::default());
    Message::builder(sender)
        .topic(Topic::new("t").unwrap())
        .json(body)
        .unwrap()
        .build(Timestamp::default())
        .unwrap()
}

fn flip(bytes: &Bytes, bit: usize) -> Bytes {
    let mut copy = bytes.to_vec();
    let bit = bit % (copy.len() * 8);
    copy[bit / 8] ^= 1 << (bit % 8);
    copy.into()
}

proptest! {
    #[test]
    fn a_message_reads_back_as_it_was_written(message in message(&identity())) {
        let bytes = codec::encode(&message);
        let back = codec::decode(&bytes).unwrap();
        prop_assert_eq!(&back, &message);
        prop_assert_eq!(codec::encode(&back), bytes);
    }

    #[test]
    fn whatever_decodes_is_the_canonical_form(message in message(&identity()), bit in any::<usize>()) {
        let damaged = flip(&codec::encode(&message), bit);
        if let Ok(read) = codec::decode(&damaged) {
            prop_assert_eq!(codec::encode(&read), damaged);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..400)) {
        let bytes = Bytes::from(bytes);
        if let Ok(read) = codec::decode(&bytes) {
            prop_assert_eq!(codec::encode(&read), bytes.clone());
        }
        let registry = IdentityRegistry::default();
        prop_assert!(frame::open(&bytes, Trust::Registry(&registry)).is_err());
        let _refused_or_read = SealedMessage::decode(&bytes);
    }

    #[test]
    fn every_truncation_and_every_extension_is_refused(message in message(&identity()), cut in any::<usize>()) {
        let bytes = codec::encode(&message);
        prop_assert!(codec::decode(&bytes.slice(..cut % bytes.len())).is_err());
        let longer = Bytes::from([&bytes[..], &[0]].concat());
        prop_assert_eq!(codec::decode(&longer), Err(DecodeError::Trailing { extra: 1 }));
    }

    #[test]
    fn a_frame_opens_to_what_was_sealed(messages in vec(message(&identity()), 1..20)) {
        let bytes = frame::seal(&identity(), &messages).unwrap();
        let opened = frame::open(&bytes, Trust::Key(&identity().public())).unwrap();
        prop_assert_eq!(opened.messages(), &messages[..]);
        for (index, message) in messages.iter().enumerate() {
            let stored = opened.sealed(index).unwrap().encode();
            let alone = SealedMessage::decode(&stored).unwrap();
            prop_assert_eq!(&alone.open(Trust::Key(&identity().public())).unwrap(), message);
        }
    }

    #[test]
    fn any_flipped_bit_of_a_frame_is_refused(messages in vec(message(&identity()), 1..4), bit in any::<usize>()) {
        let bytes = frame::seal(&identity(), &messages).unwrap();
        prop_assert!(frame::open(&flip(&bytes, bit), Trust::Key(&identity().public())).is_err());
    }

    #[test]
    fn any_flipped_bit_of_a_sealed_message_is_refused(
        messages in vec(message(&identity()), 1..9), index in any::<usize>(), bit in any::<usize>(),
    ) {
        let bytes = frame::seal(&identity(), &messages).unwrap();
        let opened = frame::open(&bytes, Trust::Key(&identity().public())).unwrap();
        let stored = opened.sealed(index % messages.len()).unwrap().encode();
        let damaged = SealedMessage::decode(&flip(&stored, bit));
        prop_assert!(damaged.is_err() || damaged.unwrap().open(Trust::Key(&identity().public())).is_err());
    }

    #[test]
    fn a_truncated_frame_is_refused(messages in vec(message(&identity()), 1..4), cut in any::<usize>()) {
        let bytes = frame::seal(&identity(), &messages).unwrap();
        let cut = bytes.slice(..cut % bytes.len());
        prop_assert!(frame::open(&cut, Trust::Key(&identity().public())).is_err());
    }
}

#[test]
fn a_repeated_last_message_does_not_pass() {
    // In a tree that doubles an odd leaf, [a, b, c] and [a, b, c, c] have one root; here count and shape are signed.
    let identity = identity();
    let messages: Vec<_> = ["1", "2", "3"].map(|body| plain(&identity, body)).into();
    let bytes = frame::seal(&identity, &messages).unwrap();
    let last = codec::encode(&messages[2]);
    let mut doubled = bytes.to_vec();
    doubled.extend_from_slice(&u32::try_from(last.len()).unwrap().to_be_bytes());
    doubled.extend_from_slice(&last);
    assert!(matches!(
        frame::open(&doubled.clone().into(), Trust::Key(&identity.public())),
        Err(OpenError::Decode(DecodeError::Trailing { .. }))
    ));
    doubled[34] = 4;
    let refused = frame::open(&doubled.into(), Trust::Key(&identity.public()));
    assert_eq!(refused.unwrap_err(), OpenError::Signature);
}

#[test]
fn a_frame_of_another_key_is_refused_and_both_are_named() {
    let (one, two) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    let bytes = frame::seal(&one, &[plain(&one, "x")]).unwrap();
    let refused = frame::open(&bytes, Trust::Key(&two.public())).unwrap_err();
    assert_eq!(
        refused,
        OpenError::WrongKey {
            found: one.id(),
            expected: two.id()
        }
    );
    let mut swapped = bytes.to_vec();
    swapped[1..33].copy_from_slice(&two.public().to_bytes());
    assert_eq!(
        frame::open(&swapped.into(), Trust::Key(&two.public())).unwrap_err(),
        OpenError::Signature
    );
}

#[test]
fn nobody_seals_for_somebody_else_and_not_nothing() {
    let (one, two) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    let refused = frame::seal(&one, &[plain(&one, "x"), plain(&two, "x")]);
    assert!(matches!(
        refused,
        Err(SealError::ForeignSender { index: 1, .. })
    ));
    assert_eq!(frame::seal(&one, &[]), Err(SealError::Count { found: 0 }));
}

#[tokio::test]
async fn a_registry_decides_whose_frames_and_which_names_are_believed() {
    let identity = Identity::generate().unwrap();
    let registry = IdentityRegistry::default();
    let bytes = frame::seal(&identity, &[plain(&identity, "x")]).unwrap();
    let open =
        || frame::open(&bytes, Trust::Registry(&registry)).map(frame::OpenFrame::into_messages);
    assert!(matches!(open(), Err(OpenError::Untrusted(_))));
    registry
        .register(
            identity.id(),
            identity.public(),
            Name::new("a").unwrap(),
            Tenant::default(),
        )
        .await
        .unwrap();
    assert_eq!(open().unwrap().len(), 1);
    let other = Sender::new(identity.id(), Name::new("boss").unwrap(), Tenant::default());
    let posing = Message::builder(other)
        .broadcast()
        .build(Timestamp::default())
        .unwrap();
    let posing = frame::seal(&identity, &[posing]).unwrap();
    assert!(matches!(
        frame::open(&posing, Trust::Registry(&registry)),
        Err(OpenError::Sender { .. })
    ));
    registry
        .revoke(identity.id(), Timestamp::default())
        .await
        .unwrap();
    assert!(matches!(open(), Err(OpenError::Untrusted(_))));
}
