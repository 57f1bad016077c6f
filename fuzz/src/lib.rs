//! What must hold for any bytes that come from outside: one function per fuzz target.
//!
//! `scripts/fuzz` runs them under libFuzzer, and `crates/messaging/tests/corpus.rs` runs them as a normal test over every file of
//! `fuzz/corpus`. Each says the same three things of one format: nothing panics; what decodes is exactly what the encoder
//! writes; memory stays in proportion to the input (the script bounds it).

use bytes::Bytes;
use volary_kernel::sign::SigningKey;
use volary_messaging::{
    Identity, IdentityRegistry, Introduction, SignedDescriptor,
    action::{ActionLimits, ActionParser},
    codec,
    frame::{self, SealedMessage, Trust},
    transport::tcp::control,
};
use volary_store::journal::{ArchiveReader, ArchiveTrust, ArchiveWriter};

/// PKCS#8 of the private key of RFC 8032, section 7.1, test 1: known to everybody, and so good for a corpus.
const KEY: [u8; 48] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
    0x9d, 0x61, 0xb1, 0x9d, 0xef, 0xfd, 0x5a, 0x60, 0xba, 0x84, 0x4a, 0xf4, 0x92, 0xec, 0x2c, 0xc4,
    0x44, 0x49, 0xc5, 0x69, 0x7b, 0x32, 0x69, 0x19, 0x70, 0x3b, 0xac, 0x03, 0x1c, 0xae, 0x7f, 0x60,
];
/// Largest frame that the control stream may carry here.
pub const FRAME_BYTES: usize = 1 << 16;

/// The key that signed what is in the corpus.
pub fn key() -> SigningKey {
    SigningKey::from_pkcs8(&KEY).expect("the key of the RFC")
}

/// The identity that sealed what is in the corpus.
pub fn identity() -> Identity {
    Identity::from_key(key())
}

/// A message: what decodes is canonical, and reads back as the same.
pub fn message(input: &[u8]) {
    let bytes = Bytes::copy_from_slice(input);
    if let Ok(message) = codec::decode(&bytes) {
        assert_eq!(codec::encode(&message), bytes);
        assert_eq!(codec::decode(&bytes).as_ref(), Ok(&message));
    }
}

/// A frame: what opens was sealed so, bit for bit, and each of its messages can be verified alone. A stranger's never opens.
pub fn frame(input: &[u8]) {
    let bytes = Bytes::copy_from_slice(input);
    let stranger = IdentityRegistry::default();
    assert!(frame::open(&bytes, Trust::Registry(&stranger)).is_err());
    let identity = identity();
    let key = identity.public();
    let Ok(opened) = frame::open(&bytes, Trust::Key(&key)) else {
        return;
    };
    assert_eq!(
        frame::seal(&identity, opened.messages()).as_ref(),
        Ok(&bytes)
    );
    for (index, message) in opened.messages().iter().enumerate() {
        let sealed = opened.sealed(index).expect("as many as messages");
        assert_eq!(sealed.open(Trust::Key(&key)).as_ref(), Ok(message));
    }
    assert!(opened.sealed(opened.messages().len()).is_none());
}

/// A single sealed message: what decodes is canonical; what opens is the message in it.
pub fn sealed(input: &[u8]) {
    let bytes = Bytes::copy_from_slice(input);
    let Ok(sealed) = SealedMessage::decode(&bytes) else {
        return;
    };
    assert_eq!(sealed.encode(), bytes);
    if let Ok(message) = sealed.open(Trust::Key(&identity().public())) {
        assert_eq!(codec::encode(&message), *sealed.bytes());
    }
}

/// A unit of a link's control stream: its length is known before its body; what decodes is canonical.
pub fn control(input: &[u8]) {
    let bytes = Bytes::copy_from_slice(input);
    if let Ok(Some(length)) = control::unit_len(&bytes, FRAME_BYTES) {
        assert!(length >= control::HEAD);
    }
    if let Ok(unit) = control::decode(&bytes, FRAME_BYTES) {
        assert_eq!(
            control::unit_len(&bytes, FRAME_BYTES),
            Ok(Some(bytes.len()))
        );
        let mut again = Vec::new();
        control::encode(&unit, &mut again);
        assert_eq!(again, bytes, "{unit:?}");
    }
}

/// A signed descriptor.
pub fn descriptor(input: &[u8]) {
    let bytes = Bytes::copy_from_slice(input);
    if let Ok(signed) = SignedDescriptor::decode(&bytes) {
        assert_eq!(signed.encode(), bytes);
        let issued = signed.claimed().issued_at;
        if let Ok(descriptor) = signed.open(issued) {
            assert_eq!(&descriptor, signed.claimed());
        }
    }
}

/// A node's introduction: what decodes is canonical, and could have been made here.
pub fn introduction(input: &[u8]) {
    let bytes = Bytes::copy_from_slice(input);
    if let Ok(introduction) = Introduction::decode(&bytes) {
        assert_eq!(introduction.encode(), bytes);
        let made = Introduction::new(introduction.descriptors().to_vec());
        assert_eq!(made.as_ref(), Ok(&introduction));
    }
}

/// A handler's output: where it is cut makes no difference, and no more actions come out than may.
pub fn actions(input: &[u8]) {
    let limits = ActionLimits {
        max_actions: 8,
        max_bytes: 2048,
    };
    let whole = {
        let mut parser = ActionParser::new(limits);
        let _first_error = parser.push(input);
        parser.finish()
    };
    let cut = {
        let mut parser = ActionParser::new(limits);
        for piece in input.chunks(7) {
            let _first_error = parser.push(piece);
        }
        parser.finish()
    };
    assert_eq!(format!("{cut:?}"), format!("{whole:?}"));
    if let Ok(actions) = whole {
        assert!(actions.len() <= limits.max_actions && input.len() <= limits.max_bytes);
    }
}

/// An exported journal: it is found good only as a whole, and what is good under our key is what we write.
pub fn archive(input: &[u8]) {
    // Whoever signed it: nothing panics.
    if let Ok(reader) = ArchiveReader::open(input, ArchiveTrust::Stated) {
        let _whether_it_is_whole = reader.verify();
    }
    let key = key();
    let Ok(mut reader) = ArchiveReader::open(input, ArchiveTrust::Key(key.public())) else {
        return;
    };
    let header = reader.header().clone();
    let mut rows = Vec::new();
    loop {
        match reader.next_row() {
            Ok(Some(row)) => rows.push(row),
            Ok(None) => break,
            Err(_) => return,
        }
    }
    assert_eq!(reader.summary().entries, rows.len() as u64);
    if let (Some(at), Some(filter)) = (header.at, header.filter) {
        let mut writer = ArchiveWriter::begin(Vec::new(), header.node, &key, at, filter)
            .expect("a vector takes everything");
        for row in rows {
            writer.add(row).expect("it was read in this order");
        }
        let (summary, written) = writer.finish(&key).expect("a vector takes everything");
        assert_eq!((&summary, &*written), (reader.summary(), input));
    }
}
