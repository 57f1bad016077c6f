//! The node is killed with SIGKILL at random moments under load, again and again; nothing accepted is lost, nothing is
//! done twice at a sink that deduplicates by key, and no process outlives its node.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use volary_testkit::process::{eventually, kill9};

use crate::support::{Agent, Fleet, PATIENCE, full, of_kind};

/// A handler that leaves a daemon behind, and tries to kill its helper before it answers.
const WORKER: &str = r#"doc=$(cat)
n=$(printf '%s' "$doc" | sed -n 's/.*"payload":{"n":\([0-9]*\)}.*/\1/p')
(setsid sh -c '(sleep 600 &) ; sleep 600' >/dev/null 2>&1 </dev/null &)
kill -9 1 $PPID 2>/dev/null
printf '{"send":{"topic":"done","payload":{"n":%s}}}\n' "$n"
"#;

/// Writes down what it was asked for, with the key of the request.
const SINK: &str = r#"doc=$(cat)
n=$(printf '%s' "$doc" | sed -n 's/.*"payload":{"n":\([0-9]*\)}.*/\1/p')
printf '%s %s\n' "$VOLARY_IDEMPOTENCY_KEY" "$n" >> ../sink.txt
"#;

/// A long-lived agent that leaves a daemon behind as well.
const IDLER: &str = r#"(setsid sh -c '(sleep 600 &) ; sleep 600' >/dev/null 2>&1 </dev/null &)
trap '' TERM
while :; do sleep 600; done
"#;

fn fleet() -> Fleet {
    let handler =
        "handler: [sh, ./run.sh]\ndelivery: {concurrency: 4, timeout: 10s, maxAttempts: 100}\n";
    Fleet::new(
        &[
            Agent {
                name: "worker",
                spec: &format!("{handler}topics: [work]\n"),
                script: WORKER,
            },
            Agent {
                name: "sink",
                spec: &format!("{handler}topics: [done]\n"),
                script: SINK,
            },
            Agent {
                name: "idler",
                spec: "command: [sh, ./run.sh]\nstopGracePeriod: 100ms\n",
                script: IDLER,
            },
        ],
        "",
    )
}

/// Most messages of one sender in one round: enough that handlers are busy at every moment, few enough to be worked off.
const PER_SENDER: usize = 20;

/// Loads the node from four threads until it is killed after `moment`; returns the numbers that were accepted.
fn load_and_kill(fleet: &Fleet, next: &AtomicU64, moment: Duration) -> BTreeSet<u64> {
    let (api, pid) = (fleet.api(), fleet.pid());
    let stop = AtomicBool::new(false);
    let sender = || {
        let mut accepted = BTreeSet::new();
        while !stop.load(Ordering::Relaxed) && accepted.len() < PER_SENDER {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if api.send("work", n) {
                accepted.insert(n);
            } else {
                break;
            }
        }
        accepted
    };
    std::thread::scope(|scope| {
        let senders: Vec<_> = (0..4).map(|_| scope.spawn(sender)).collect();
        let _always_passes = eventually(moment, || false);
        kill9(pid);
        stop.store(true, Ordering::Relaxed);
        senders
            .into_iter()
            .flat_map(|sender| sender.join().unwrap())
            .collect()
    })
}

/// Key by number, as the sink saw them.
fn sunk(fleet: &Fleet) -> BTreeMap<u64, BTreeSet<String>> {
    let mut keys = BTreeMap::<u64, BTreeSet<String>>::new();
    let text = std::fs::read_to_string(fleet.path("sink.txt")).unwrap_or_default();
    // The last line may be in the middle of being written.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    for line in whole.lines() {
        let (key, n) = line
            .split_once(' ')
            .unwrap_or_else(|| panic!("the sink has the line `{line}`"));
        let n = n
            .parse()
            .unwrap_or_else(|_| panic!("the sink has the line `{line}`"));
        keys.entry(n).or_default().insert(key.to_owned());
    }
    keys
}

#[test]
fn accepted_work_survives_kills_at_random_moments_and_no_process_does() {
    let rounds = if full() { 50 } else { 4 };
    let fleet = fleet();
    let (next, mut accepted) = (AtomicU64::new(1), BTreeSet::new());
    for round in 0..rounds {
        fleet.up();
        let moment =
            Duration::from_millis(20 + u64::from(std::process::id() + round * 7919) * 31 % 900);
        accepted.extend(load_and_kill(&fleet, &next, moment));
        let gone = eventually(Duration::from_secs(2), || fleet.env.survivors().is_empty());
        assert!(
            gone,
            "round {round}: two seconds after the kill there live\n{}",
            fleet.env.survivors_shown()
        );
        let (good, report) = fleet.verify();
        assert!(good, "round {round}: {report}");
    }
    assert!(
        accepted.len() > rounds as usize,
        "the load was no load: {} accepted",
        accepted.len()
    );
    fleet.up();
    let limit = PATIENCE + Duration::from_millis(accepted.len() as u64 * 50);
    let done = eventually(limit, || {
        accepted.iter().all(|n| sunk(&fleet).contains_key(n))
    });
    let sunk = sunk(&fleet);
    let lost: Vec<_> = accepted.iter().filter(|n| !sunk.contains_key(n)).collect();
    assert!(
        done,
        "{} of {} accepted messages were lost: {lost:?}",
        lost.len(),
        accepted.len()
    );
    let twice: Vec<_> = sunk.iter().filter(|(_, keys)| keys.len() > 1).collect();
    assert!(
        twice.is_empty(),
        "actions of attempts that did not end were sent: {twice:?}"
    );
    each_delivery_is_acknowledged_once(&fleet);
    fleet.down();
    assert!(
        fleet.env.survivors().is_empty(),
        "{}",
        fleet.env.survivors_shown()
    );
    let (good, report) = fleet.verify();
    assert!(good, "{report}");
}

fn each_delivery_is_acknowledged_once(fleet: &Fleet) {
    let settled = |events: &[serde_json::Value]| {
        let accepted: usize = of_kind(events, "message.accepted")
            .iter()
            .map(|event| event["body"]["targets"].as_array().unwrap().len())
            .sum();
        of_kind(events, "delivery.acked").len() == accepted
    };
    let events = fleet.await_events("acknowledgement for every delivery", settled);
    let acked: Vec<_> = of_kind(&events, "delivery.acked")
        .iter()
        .map(|event| event["body"]["id"].to_string())
        .collect();
    let distinct: BTreeSet<_> = acked.iter().collect();
    assert_eq!(
        distinct.len(),
        acked.len(),
        "a delivery was acknowledged twice"
    );
}
