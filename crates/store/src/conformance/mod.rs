//! What every [`Store`] must do, as checks that each implementation runs on itself (feature `test-util`).
//!
//! ```text
//! conformance::records(&fixture).await;
//! ```
//! Each check panics with what it found. They share one store: every check keeps to keys of its own.

mod journal;
mod lease;
mod queue;
mod queue_ends;
mod queue_lanes;
mod queue_parked;
mod records;
mod watch;

use std::{future::Future, pin::Pin, time::Duration};

use volary_kernel::{ManualClock, id::Tenant};

use crate::{
    batch::{Batch, Committed, Expect},
    entry::Entry,
    error::StoreError,
    key::{Key, Record},
    store::{SharedStore, Store},
};

/// A store to check, and the clock it lives by.
pub struct Fixture {
    /// The store.
    pub store: SharedStore,
    /// Its clock.
    pub clock: ManualClock,
}

/// Longest wait for anything in a check.
const DEADLINE: Duration = Duration::from_secs(10);

type Check = for<'a> fn(&'a Fixture) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

macro_rules! checks {
    ($($path:path),+ $(,)?) => {
        [$((stringify!($path), (|fixture| Box::pin($path(fixture))) as Check)),+]
    };
}

/// Runs every check, in order. `name` is printed nowhere; a failing check panics with its own words.
pub async fn all(fixture: &Fixture) {
    let checks = checks![
        records::put_get_and_delete,
        records::of_two_writers_one_wins,
        records::a_conflict_leaves_no_part_of_its_batch,
        records::a_conflict_disturbs_no_other_batch,
        records::checks_guard_without_writing,
        records::the_later_of_two_puts_stays,
        records::time_to_live_ends_at_once,
        records::scan_pages_in_key_order,
        records::scan_under_writes_sees_each_lasting_record_once,
        records::large_values_come_back_whole,
        records::what_is_too_large_or_malformed_is_refused,
        records::hooks_run_once_in_commit_order,
        journal::entries_are_contiguous_and_complete,
        journal::causes_may_be_of_the_same_batch,
        journal::filters_choose,
        journal::a_tail_misses_nothing,
        watch::changes_arrive_in_order,
        watch::a_slow_watcher_is_told_that_it_lagged,
        lease::one_holder_at_a_time,
        lease::a_lapsed_lease_is_lost,
        lease::a_fence_refuses_work_under_an_old_lease,
        queue::an_item_is_handed_out_once_and_acknowledged,
        queue::ack_and_send_are_one_commit,
        queue::an_uncommitted_enqueue_leaves_no_trace,
        queue::what_is_rolled_back_is_not_committed_and_its_room_is_free,
        queue::claims_are_journaled_under_the_queues_subject_if_asked,
        queue::a_lapsed_claim_is_handed_out_again_and_its_ack_refused,
        queue::a_renewed_claim_does_not_lapse,
        queue_ends::a_failed_attempt_waits_and_the_last_is_parked,
        queue_ends::a_lapsed_last_attempt_is_parked,
        queue::coalescing_keeps_the_newest_payload_and_the_first_place,
        queue::tenants_take_turns_and_priority_goes_first_within_one,
        queue::bounds_refuse_and_give_back,
        queue_ends::deadlines_and_delays_hold,
        queue_ends::parked_items_are_listed_retried_and_dropped,
        queue_parked::what_is_parked_from_the_start_is_a_persons_to_settle,
        queue_parked::parking_from_the_start_happens_with_its_batch_or_not_at_all,
        queue_parked::no_bound_and_no_restart_loses_what_was_parked_from_the_start,
        queue_ends::after_a_restart_claims_are_free_and_attempts_remembered,
        queue::a_dropped_claim_future_strands_nothing,
        queue_ends::outcomes_reach_those_who_wait,
        queue_lanes::items_are_chosen_by_their_lane,
        queue_lanes::one_who_chooses_is_woken_by_what_he_means,
        queue_lanes::an_item_may_have_bounds_of_its_own,
        queue_lanes::what_is_removed_meanwhile_conflicts,
        queue_lanes::a_follower_is_told_in_the_commit_that_does_it,
    ];
    for (_, check) in checks {
        check(fixture).await;
    }
}

/// Runs the checks that also hold for a store whose calls go to two handles of one shared database in turns: all but
/// those of commit hooks and watchers, which belong to one handle, and what is built on those.
pub async fn two_handles(fixture: &Fixture) {
    let checks = checks![
        records::put_get_and_delete,
        records::of_two_writers_one_wins,
        records::a_conflict_leaves_no_part_of_its_batch,
        records::a_conflict_disturbs_no_other_batch,
        records::checks_guard_without_writing,
        records::the_later_of_two_puts_stays,
        records::time_to_live_ends_at_once,
        records::scan_pages_in_key_order,
        records::scan_under_writes_sees_each_lasting_record_once,
        records::large_values_come_back_whole,
        records::what_is_too_large_or_malformed_is_refused,
        journal::entries_are_contiguous_and_complete,
        journal::causes_may_be_of_the_same_batch,
        journal::filters_choose,
        journal::a_tail_misses_nothing,
        lease::one_holder_at_a_time,
        lease::a_lapsed_lease_is_lost,
        lease::a_fence_refuses_work_under_an_old_lease,
    ];
    for (_, check) in checks {
        check(fixture).await;
    }
}

fn key(text: &str) -> Key {
    Key::new(text).expect("the keys of these checks are good")
}

fn entry(kind: &'static str, body: &str) -> Entry {
    Entry::new(kind, Tenant::default(), body.to_owned())
}

async fn put(
    store: &dyn Store,
    at: &str,
    value: &str,
    expect: Expect,
) -> Result<Committed, StoreError> {
    let mut tx = Batch::new();
    tx.put(key(at), value.to_owned(), expect);
    store.commit(tx).await
}

async fn get(store: &dyn Store, at: &str) -> Option<Record> {
    store.get(&key(at)).await.expect("reading works")
}

async fn text(store: &dyn Store, at: &str) -> Option<String> {
    get(store, at)
        .await
        .map(|record| String::from_utf8_lossy(&record.value).into_owned())
}
