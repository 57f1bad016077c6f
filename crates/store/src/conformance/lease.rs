//! Leases.

use std::time::Duration;

use super::{Fixture, key};
use crate::{
    batch::{Batch, Expect},
    error::StoreError,
    lease::{Lease, LeaseError},
};

const TTL: Duration = Duration::from_secs(10);

pub(super) async fn one_holder_at_a_time(fixture: &Fixture) {
    let acquire = |holder| Lease::acquire(fixture.store.clone(), "one", holder, TTL);
    let mut first = acquire("first").await.expect("a free lease");
    let Err(LeaseError::Held { holder, until, .. }) = acquire("second").await else {
        panic!("it is held")
    };
    assert_eq!((holder.as_str(), until), ("first", first.until()));
    let epoch = first.epoch();
    fixture.clock.advance(TTL / 2);
    first.renew().await.expect("a renewal");
    fixture.clock.advance(TTL * 3 / 4);
    assert!(
        matches!(acquire("second").await, Err(LeaseError::Held { .. })),
        "it was renewed"
    );
    assert_eq!(first.epoch(), epoch, "a renewal keeps the epoch");
    first.release().await.expect("a release");
    let second = acquire("second").await.expect("a free lease");
    assert!(second.epoch() > epoch, "a new holder has a higher epoch");
    second.release().await.expect("a release");
}

pub(super) async fn a_lapsed_lease_is_lost(fixture: &Fixture) {
    let acquire = |holder| Lease::acquire(fixture.store.clone(), "lapse", holder, TTL);
    let mut first = acquire("first").await.expect("a free lease");
    fixture.clock.advance(TTL);
    let second = acquire("second").await.expect("it lapsed");
    assert!(matches!(first.renew().await, Err(LeaseError::Lost(_))));
    assert!(matches!(first.release().await, Err(LeaseError::Lost(_))));
    second
        .release()
        .await
        .expect("the second holder is not disturbed");
}

pub(super) async fn a_fence_refuses_work_under_an_old_lease(fixture: &Fixture) {
    let acquire = |holder| Lease::acquire(fixture.store.clone(), "fence", holder, TTL);
    let write = async |lease: &Lease| {
        let mut tx = Batch::new();
        lease.fence(&mut tx);
        tx.put(key("fence/data"), "x", Expect::Any);
        fixture.store.commit(tx).await
    };
    let first = acquire("first").await.expect("a free lease");
    write(&first).await.expect("the lease is held");
    fixture.clock.advance(TTL);
    assert!(
        matches!(write(&first).await, Err(StoreError::Conflict { .. })),
        "lapsed"
    );
    let second = acquire("second").await.expect("it lapsed");
    assert!(
        matches!(write(&first).await, Err(StoreError::Conflict { .. })),
        "taken over"
    );
    write(&second).await.expect("the lease is held");
    second.release().await.expect("a release");
}
