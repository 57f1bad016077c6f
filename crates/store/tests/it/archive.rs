//! Archives of chosen entries: whatever is written comes back, and whatever is changed is found.

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::value::RawValue;
use volary_kernel::{Name, TraceId, clock::Timestamp, id::Tenant, sign::SigningKey};
use volary_store::{
    JournalRow, Seq,
    journal::{ArchiveReader, ArchiveRow, ArchiveTrust, ArchiveWriter, ExportError, ExportSummary},
};

fn rows() -> impl Strategy<Value = Vec<ArchiveRow>> {
    let body = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..80),
        Just(b"{\"v\":1,\"text\":\"\xc3\xa4 \\n\"}".to_vec()),
        Just(b"{\"v\": 1}\n".to_vec()),
    ];
    let sealed = prop::option::of(prop::collection::vec(any::<u8>(), 0..40));
    let row = (
        1u64..9,
        any::<i32>(),
        body,
        sealed,
        any::<bool>(),
        prop::option::of(1u64..50),
    );
    prop::collection::vec(row, 0..8).prop_map(|rows| {
        let mut seq = 0;
        let rows = rows
            .into_iter()
            .map(|(gap, at, body, sealed, about, cause)| {
                seq += gap;
                let row = JournalRow {
                    seq: Seq(seq),
                    at: Timestamp::from_micros(i64::from(at)),
                    node: Name::new("node").unwrap(),
                    kind: "a.b".to_owned(),
                    tenant: Tenant::default(),
                    agent: about.then(|| Name::new("agent").unwrap()),
                    trace: about.then(|| TraceId::from_bytes([7; 16]).unwrap()),
                    cause: cause.map(Seq),
                    body: Bytes::from(body),
                };
                let sealed = sealed.map(Bytes::from);
                ArchiveRow { row, sealed }
            });
        rows.collect()
    })
}

fn written(rows: &[ArchiveRow], key: &SigningKey) -> Vec<u8> {
    let filter = RawValue::from_string("{\"agent\":\"a\"}".to_owned()).unwrap();
    let (node, at) = (Name::new("node").unwrap(), Timestamp::from_micros(5));
    let mut writer = ArchiveWriter::begin(Vec::new(), node, key, at, filter).unwrap();
    for row in rows {
        writer.add(row.clone()).unwrap();
    }
    writer.finish(key).unwrap().1
}

fn verify(bytes: &[u8], trust: ArchiveTrust) -> Result<ExportSummary, ExportError> {
    ArchiveReader::open(bytes, trust)?.verify()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_written_comes_back_and_what_is_changed_is_found(
        rows in rows(), at in any::<prop::sample::Index>(), flip in 1u8..,
    ) {
        let key = SigningKey::generate().unwrap();
        let trust = ArchiveTrust::Key(key.public());
        let bytes = written(&rows, &key);
        let mut reader = ArchiveReader::open(bytes.as_slice(), trust).unwrap();
        let mut back = Vec::new();
        while let Some(row) = reader.next_row().unwrap() {
            back.push(row);
        }
        prop_assert_eq!(back, rows);
        let at = at.index(bytes.len());
        let mut changed = bytes.clone();
        changed[at] ^= flip;
        prop_assert!(verify(&changed, trust).is_err(), "a flip at {} was not found", at);
        prop_assert!(verify(&bytes[..at], trust).is_err(), "a cut at {} was not found", at);
    }

    #[test]
    fn any_bytes_are_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(verify(&bytes, ArchiveTrust::Stated).is_err());
    }

    #[test]
    fn lines_left_out_doubled_or_swapped_are_found(rows in rows(), one in any::<prop::sample::Index>()) {
        prop_assume!(rows.len() >= 2);
        let key = SigningKey::generate().unwrap();
        let text = String::from_utf8(written(&rows, &key)).unwrap();
        let lines: Vec<&str> = text.split_inclusive('\n').collect();
        let one = 1 + one.index(rows.len() - 1);
        let (mut without, mut doubled, mut swapped) = (lines.clone(), lines.clone(), lines);
        without.remove(one);
        doubled.insert(one, doubled[one]);
        swapped.swap(one, one + 1);
        for lines in [without, doubled, swapped] {
            prop_assert!(verify(lines.concat().as_bytes(), ArchiveTrust::Stated).is_err());
        }
    }
}
