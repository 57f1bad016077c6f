//! A full disk stops intake with a clear error, and intake recovers when there is room again.

use std::{io::ErrorKind, time::Duration};

use serde_json::json;
use volary_testkit::{fault::SmallDisk, process::eventually};

use crate::support::{Agent, Fleet, PATIENCE};

#[test]
fn a_full_disk_refuses_new_work_and_takes_it_again_when_there_is_room() {
    let agent = Agent {
        name: "worker",
        spec: "handler: [sh, -c, 'cat >/dev/null']\ntopics: [work]\n",
        script: "",
    };
    let fleet = Fleet::new(&[agent], "store: {minFreeDisk: 4MiB}");
    std::fs::create_dir_all(fleet.env.state()).unwrap();
    let disk = match SmallDisk::mount(&fleet.env.state(), 24 << 20) {
        Ok(disk) => disk,
        // Whoever may not mount has no small disk; the store's own tests fill one by other means.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => return,
        Err(error) => panic!("{error}"),
    };
    fleet.up();
    let api = fleet.api();
    assert!(api.send("work", 1));
    let filler = disk.fill(1 << 20).unwrap();
    let send = || {
        api.request(
            "POST",
            "/v1/messages",
            &json!({"topic": "work", "payload": {"n": 2}}).to_string(),
        )
    };
    let refused = |reply: Option<(u16, String)>| {
        reply.is_some_and(|(_, body)| body.contains("full") || body.contains("watermark"))
    };
    assert!(
        eventually(PATIENCE, || refused(send())),
        "a full disk was not told: {:?}",
        send()
    );
    let health = api.request("GET", "/health", "").unwrap();
    assert_eq!(
        health.0, 200,
        "a full disk is not a wedged loop: {}",
        health.1
    );
    std::fs::remove_file(filler).unwrap();
    assert!(
        eventually(Duration::from_secs(20), || api.send("work", 3)),
        "intake did not recover: {:?}",
        send()
    );
    fleet.down();
    assert!(fleet.verify().0, "{}", fleet.verify().1);
}
