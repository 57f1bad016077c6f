//! What was edited, cut off or put back behind the node's back is found by `journal verify`.

use std::{fs, path::PathBuf, time::Duration};

use volary_testkit::{
    fault::flip_byte,
    process::{eventually, kill9},
};

use crate::support::{Agent, Fleet, PATIENCE, of_kind};

fn fleet() -> Fleet {
    let agent = Agent {
        name: "worker",
        spec: "handler: [sh, -c, 'cat >/dev/null']\ntopics: [work]\n",
        script: "",
    };
    Fleet::new(&[agent], "")
}

/// Runs the node until some messages are handled and kills it, so that its last commits are in the WAL only. At rest: of a commit
/// that nobody was told of yet the head beside the database does not know, and its loss is none.
fn run_and_kill(fleet: &Fleet, messages: u64) {
    fleet.up();
    let (api, pid) = (fleet.api(), fleet.pid());
    for n in 0..messages {
        assert!(api.send("work", n));
    }
    fleet.await_events("all are handled", |events| {
        let handled = of_kind(events, "delivery.acked").len();
        handled as u64 >= messages && handled == of_kind(events, "message.accepted").len()
    });
    kill9(pid);
    assert!(eventually(PATIENCE, || fleet.env.survivors().is_empty()));
}

fn files(fleet: &Fleet) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(fleet.env.state())
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let ours = entries.filter(|path| {
        path.file_name()
            .unwrap()
            .to_string_lossy()
            .starts_with("volary.db")
    });
    ours.map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect()
}

fn put_back(fleet: &Fleet, saved: &[(PathBuf, Vec<u8>)]) {
    for (path, _) in files(fleet) {
        fs::remove_file(path).unwrap();
    }
    for (path, bytes) in saved {
        fs::write(path, bytes).unwrap();
    }
}

fn names_a_sequence_number(report: &str) -> bool {
    report
        .split(|character: char| !character.is_ascii_digit())
        .any(|digits| !digits.is_empty())
}

#[test]
fn a_byte_flipped_in_the_database_or_its_wal_is_found_unless_it_changed_nothing() {
    let fleet = fleet();
    run_and_kill(&fleet, 20);
    assert!(fleet.verify().0, "{}", fleet.verify().1);
    let before = export(&fleet);
    let saved = files(&fleet);
    let mut found = 0;
    for (path, bytes) in &saved {
        if path.to_string_lossy().ends_with("-shm") || bytes.is_empty() {
            continue;
        }
        for step in 0..12u64 {
            let offset = (step * 2 + 1) * bytes.len() as u64 / 24;
            put_back(&fleet, &saved);
            flip_byte(path, offset).unwrap();
            let (good, report) = fleet.verify();
            if good {
                assert_eq!(
                    export(&fleet),
                    before,
                    "a flip at {offset} of {} changed the journal unseen",
                    path.display()
                );
            } else {
                found += 1;
                assert!(names_a_sequence_number(&report), "{report}");
            }
        }
    }
    assert!(found > 0, "no flip of any byte was found");
}

/// The journal's rows as exported, without the signature, which holds the time.
fn export(fleet: &Fleet) -> Vec<String> {
    let output = fleet.env.run(["journal", "export", "-C", "fleet"]).ok();
    output
        .stdout
        .lines()
        .filter(|line| line.contains("\"seq\""))
        .map(str::to_owned)
        .collect()
}

#[test]
fn an_older_copy_of_the_database_put_back_is_found() {
    let fleet = fleet();
    run_and_kill(&fleet, 5);
    let old: Vec<_> = files(&fleet)
        .into_iter()
        .filter(|(path, _)| !path.to_string_lossy().contains("head"))
        .collect();
    run_and_kill(&fleet, 5);
    let head: Vec<_> = files(&fleet)
        .into_iter()
        .filter(|(path, _)| path.to_string_lossy().contains("head"))
        .collect();
    put_back(&fleet, &[old, head].concat());
    let (good, report) = fleet.verify();
    assert!(!good && names_a_sequence_number(&report), "{report}");
    let refused = fleet.env.run_within(
        Duration::from_secs(20),
        fleet.env.command(["up", "fleet", "-d"]),
    );
    assert_ne!(
        refused.code,
        Some(0),
        "the node went on with an older journal: {}{}",
        refused.stdout,
        refused.stderr
    );
}
