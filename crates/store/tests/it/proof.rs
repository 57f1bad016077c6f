//! Exports prove themselves.

use volary_kernel::sign::SigningKey;
use volary_store::{
    Batch, Seq, Store as _,
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
