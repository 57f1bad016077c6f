//! Exports prove themselves.

use volary_kernel::sign::SigningKey;
use volary_store::{
    Batch, Filter, Seq, Store as _,
    journal::{ExportError, export, verify_export},
};

use crate::common::{Bench, entry, write};

async fn exported(from: Seq) -> (Bench, Vec<u8>) {
    let bench = Bench::new();
    let store = bench.open().await;
    for index in 0..5 {
        write(&store, "a", &index.to_string()).await.unwrap();
    }
    let mut tx = Batch::new();
    for body in [
        "{\n \"pretty\": 1}",
        "not json",
        " {} ",
        "",
        "{\"spaces\" : [ 1 , 2.50 ]}",
    ] {
        tx.append(
            entry(body)
                .trace(volary_kernel::TraceId::generate())
                .cause(Seq(2)),
        );
    }
    store.commit(tx).await.unwrap();
    let mut out = Vec::new();
    let summary = export(&bench.database(), &bench.key, from, &mut out).unwrap();
    assert_eq!(
        (summary.first, summary.last, summary.entries),
        (Some(from.max(Seq(1))), Some(Seq(10)), 11 - from.0.max(1))
    );
    store.close().await;
    (bench, out)
}

#[tokio::test]
async fn an_export_verifies_from_any_entry_on() {
    for from in [0, 1, 4, 10] {
        let (bench, out) = exported(Seq(from)).await;
        let summary = verify_export(out.as_slice(), &bench.key.public()).unwrap();
        assert_eq!(
            (summary.node.as_str(), summary.last),
            ("node", Some(Seq(10)))
        );
        let text = String::from_utf8(out).unwrap();
        assert!(
            text.contains("\"body\":{\"spaces\" : [ 1 , 2.50 ]}"),
            "JSON stands as it is: {text}"
        );
    }
}

#[tokio::test]
async fn an_export_from_where_the_journal_has_no_entry_is_empty_or_refused_in_words() {
    let (bench, _) = exported(Seq(1)).await;
    let (database, key) = (bench.database(), &bench.key);
    let mut out = Vec::new();
    let summary = export(&database, key, Seq(11), &mut out).unwrap();
    assert_eq!((summary.entries, summary.last), (0, None));
    let read = verify_export(out.as_slice(), &key.public()).unwrap();
    assert_eq!(read, summary);
    for from in [12, i64::MAX as u64, 1 << 63, u64::MAX] {
        let mut out: Vec<u8> = Vec::new();
        let refused = export(&database, key, Seq(from), &mut out).unwrap_err();
        let words = refused.to_string();
        assert!(
            words.contains("the journal ends with 10"),
            "{from}: {words}"
        );
        assert!(out.is_empty(), "{from}");
    }
    let store = bench.open().await;
    for from in [11, i64::MAX as u64, 1 << 63, u64::MAX] {
        let page = store.read(Seq(from), &Filter::default(), 10).await.unwrap();
        assert_eq!((page.rows.len(), page.end), (0, true), "{from}");
    }
    store.close().await;
}

#[tokio::test]
async fn any_change_of_an_export_is_found() {
    let (bench, out) = exported(Seq(1)).await;
    let key = bench.key.public();
    let text = String::from_utf8(out).unwrap();
    let lines: Vec<_> = text.lines().collect();
    let check = |lines: &[&str]| verify_export((lines.join("\n") + "\n").as_bytes(), &key);
    check(&lines).unwrap();
    for at in 0..lines.len() {
        let mut fewer = lines.clone();
        fewer.remove(at);
        assert!(check(&fewer).is_err(), "without line {at}");
        for (old, new) in [("1", "2"), ("a", "b"), ("0", "7")] {
            let edited = lines[at].replacen(old, new, 1);
            if edited != lines[at] {
                let mut changed = lines.clone();
                changed[at] = &edited;
                assert!(check(&changed).is_err(), "{old} for {new} in line {at}");
            }
        }
    }
    let mut swapped = lines.clone();
    swapped.swap(3, 4);
    assert!(matches!(
        check(&swapped),
        Err(ExportError::Bad { line: 4, .. })
    ));
    assert!(matches!(check(&lines[..4]), Err(ExportError::CutOff)));
    let other = SigningKey::generate().unwrap();
    assert!(matches!(
        verify_export(text.as_bytes(), &other.public()),
        Err(ExportError::WrongKey { .. })
    ));
}
