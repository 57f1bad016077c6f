//! The journal: contiguous, complete, filtered, followed.

use futures_util::future::join_all;
use volary_kernel::{
    clock,
    id::{Name, Tenant, TraceId},
};

use super::{DEADLINE, Fixture, entry, key};
use crate::{
    batch::{Batch, Expect},
    entry::{Cause, Entry, Filter, Seq},
    tail::Tail,
};

pub(super) async fn entries_are_contiguous_and_complete(fixture: &Fixture) {
    let store = fixture.store.as_ref();
    let before = *store.head().borrow();
    let commits = (0..50).map(|index| {
        let mut tx = Batch::new();
        tx.put(key(&format!("seq/{index}")), "x", Expect::Any);
        tx.append(entry("test.seq", &format!("{{\"v\":1,\"n\":{index}}}")));
        tx.append(entry("test.seq", "{}"));
        store.commit(tx)
    });
    let mut seqs = Vec::new();
    for end in join_all(commits).await {
        let committed = end.expect("a commit");
        assert_eq!(
            committed.seqs[1],
            committed.seqs[0].next(),
            "entries of a batch lie together"
        );
        seqs.extend(committed.seqs);
    }
    seqs.sort_unstable();
    let wanted: Vec<_> = (1..=100).map(|step| Seq(before.0 + step)).collect();
    assert_eq!(seqs, wanted);
    assert_eq!(*store.head().borrow(), *wanted.last().expect("not empty"));
    let page = store
        .read(before.next(), &Filter::all(), 1000)
        .await
        .expect("a read");
    assert_eq!(
        page.rows.iter().map(|row| row.seq).collect::<Vec<_>>(),
        wanted
    );
    assert!(page.end && page.next == wanted[99].next());
    assert!(
        page.rows
            .iter()
            .all(|row| row.node == *store.node() && row.kind == "test.seq")
    );
}

pub(super) async fn causes_may_be_of_the_same_batch(fixture: &Fixture) {
    let store = fixture.store.as_ref();
    let mut tx = Batch::new();
    let first = tx.append(entry("test.cause", "1"));
    let second = tx.append(entry("test.cause", "2").cause(first));
    tx.append(entry("test.cause", "3").cause(Seq(1)));
    let committed = store.commit(tx).await.expect("a commit");
    let page = store
        .read(committed.seqs[0], &Filter::all(), 3)
        .await
        .expect("a read");
    let causes: Vec<_> = page.rows.iter().map(|row| row.cause).collect();
    assert_eq!(causes, [None, Some(committed.seqs[0]), Some(Seq(1))]);
    let mut tx = Batch::new();
    tx.append(entry("test.cause", "1").cause(Cause::Entry(second)));
    assert!(
        store.commit(tx).await.is_err(),
        "a cause that is not before its effect"
    );
}

pub(super) async fn filters_choose(fixture: &Fixture) {
    let store = fixture.store.as_ref();
    let (agent, trace) = (Name::new("chosen").ok(), TraceId::generate());
    let other: Tenant = "other".parse().expect("a good name");
    let mut tx = Batch::new();
    tx.append(entry("test.filter.one", "1").agent(agent.clone()));
    tx.append(entry("test.filter.two", "2").trace(trace));
    tx.append(Entry::new("test.filter.two", other.clone(), "3").trace(trace));
    let committed = store.commit(tx).await.expect("a commit");
    let check = async |filter: Filter, wanted: &[usize]| {
        let page = store
            .read(committed.seqs[0], &filter, 100)
            .await
            .expect("a read");
        let found: Vec<_> = page
            .rows
            .iter()
            .map(|row| (row.seq.0 - committed.seqs[0].0) as usize)
            .collect();
        assert_eq!(found, wanted, "{filter:?}");
        assert!(
            page.end && page.next > committed.seqs[2],
            "what does not match was looked at too"
        );
    };
    check(Filter::all(), &[0, 1, 2]).await;
    check(Filter::kind("test.filter.one"), &[0]).await;
    check(Filter::kind("test.filter."), &[0, 1, 2]).await;
    check(Filter::kind("test.filter"), &[]).await;
    check(
        Filter {
            kinds: vec!["x".into(), "test.filter.two".into()],
            ..Filter::all()
        },
        &[1, 2],
    )
    .await;
    check(
        Filter {
            agent,
            ..Filter::all()
        },
        &[0],
    )
    .await;
    check(Filter::trace(trace), &[1, 2]).await;
    check(
        Filter {
            tenant: Some(other),
            ..Filter::trace(trace)
        },
        &[2],
    )
    .await;
    check(
        Filter {
            since: Some(committed.at),
            ..Filter::all()
        },
        &[0, 1, 2],
    )
    .await;
    check(
        Filter {
            until: Some(committed.at),
            ..Filter::all()
        },
        &[],
    )
    .await;
}

pub(super) async fn a_tail_misses_nothing(fixture: &Fixture) {
    let store = &fixture.store;
    let from = store.head().borrow().next();
    let mut tail = Tail::new(store.clone(), from, Filter::kind("test.tail"));
    let write = async {
        for index in 0..300 {
            let mut tx = Batch::new();
            tx.append(entry("test.tail", &index.to_string()));
            tx.append(entry("test.noise", "0"));
            store.commit(tx).await.expect("a commit");
        }
    };
    let follow = async {
        for index in 0..300 {
            let row = clock::timeout(DEADLINE, tail.next())
                .await
                .expect("in time")
                .expect("a read")
                .expect("open");
            assert_eq!(row.body, index.to_string());
            assert!(tail.position() > row.seq);
        }
    };
    futures_util::join!(write, follow);
}
