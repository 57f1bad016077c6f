//! The service over real processes: order, restarts, health, stop and drain.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::Fixture;
use tokio_util::sync::CancellationToken;
use volary_deploy::backend::{Backend, Exit, ProgramSpec, ReplicaSpec};
use volary_deploy::event::What;
use volary_deploy::health::{Check, HttpCheck, ProbeSpec};
use volary_deploy::supervise::{
    AgentPlan, Body, Config, EventStream, Feed, Handle, RestartPolicy, Rules, Service,
    SuperviseError, Target,
};
use volary_kernel::clock::{self, SystemClock};
use volary_kernel::id::Name;
use volary_kernel::retry::Backoff;
use volary_kernel::secret::Secret;
use volary_kernel::task::TaskKind;
use volary_kernel::testing::eventually;

const SOON: Duration = Duration::from_secs(10);

fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

fn plan(fixture: &Fixture, agent: &str, programs: Vec<ProgramSpec>) -> AgentPlan {
    let specs = programs
        .into_iter()
        .zip(0..)
        .map(|(program, ordinal)| ReplicaSpec::new(fixture.id(agent, ordinal), program));
    let backoff = Backoff {
        base: Duration::from_millis(10),
        jitter: 0.0,
        ..Backoff::default()
    };
    AgentPlan {
        name: name(agent),
        depends_on: Vec::new(),
        body: Body::Process(specs.collect()),
        rules: Rules {
            backoff,
            grace: Duration::from_millis(500),
            ..Rules::default()
        },
        health: None,
        ports: Vec::new(),
    }
}

fn probe(check: Check) -> ProbeSpec {
    let interval = Duration::from_millis(20);
    ProbeSpec {
        interval,
        retries: 2,
        start_period: SOON,
        timeout: SOON,
        ..ProbeSpec::new(check)
    }
}

fn start(fixture: &Fixture, agents: Vec<AgentPlan>) -> (Handle, EventStream) {
    let config = Config {
        agents,
        redactor: fixture.redactor.clone(),
    };
    let backend = Arc::new(fixture.backend.clone());
    let (service, handle) =
        Service::new(config, backend, SystemClock::shared(), &fixture.metrics).expect("a fleet");
    let events = handle.subscribe();
    fixture.tasks.spawn(TaskKind::new("supervise"), async move {
        service.run(CancellationToken::new()).await;
        Ok(())
    });
    (handle, events)
}

async fn until(events: &mut EventStream, wanted: &str) -> What {
    let seen = clock::timeout(SOON, async {
        while let Some(feed) = events.next().await {
            let Feed::Event(event) = feed else {
                panic!("{feed:?}")
            };
            if format!("{} {}", event.kind(), event.replica) == wanted {
                return Some(event.what);
            }
        }
        None
    });
    seen.await
        .ok()
        .flatten()
        .unwrap_or_else(|| panic!("`{wanted}` did not come"))
}

#[tokio::test]
async fn dependents_start_after_and_stop_before_what_they_need() {
    let fixture = Fixture::new().await;
    let mut db = plan(
        &fixture,
        "db",
        vec![fixture.sh("touch $PWD/up; exec sleep 1000")],
    );
    db.health = Some(probe(Check::File {
        path: fixture.dir().join("up"),
        max_age: None,
    }));
    let mut web = plan(
        &fixture,
        "web",
        vec![fixture.sh("exec sleep 1000"), fixture.sh("exec sleep 1000")],
    );
    web.depends_on = vec![name("db")];
    let mut index = plan(&fixture, "index", Vec::new());
    index.body = Body::Handler;
    let (handle, mut events) = start(&fixture, vec![web, db, index]);
    handle.wait_all_ready(SOON).await.unwrap();
    let shown = serde_json::to_value(&*handle.replicas()).unwrap();
    assert_eq!(shown[0]["replica"], "web-0");
    assert_eq!(shown[3]["agent"], "index");
    assert_eq!(
        (&shown[3]["ready"], &shown[3]["pid"]),
        (&true.into(), &serde_json::Value::Null)
    );
    assert!(shown[2]["pid"].as_u64().is_some_and(|pid| pid > 1));
    let report = handle.drain(SOON).await;
    assert_eq!(report.left, Vec::<String>::new());
    let mut seen = Vec::new();
    while let Some(Feed::Event(event)) = events.next().await {
        seen.push(format!("{} {}", event.kind(), event.replica));
        if seen
            .last()
            .is_some_and(|last| last == "replica.stopped db-0")
        {
            break;
        }
    }
    let at = |wanted: &str| seen.iter().position(|event| event == wanted).expect(wanted);
    assert!(at("replica.waiting web-0") < at("replica.ready db-0"));
    assert!(at("replica.ready db-0") < at("replica.starting web-0"));
    assert!(at("replica.stopped web-0") < at("replica.stopping db-0"));
    assert!(at("replica.stopped web-1") < at("replica.stopping db-0"));
    assert!(handle.start(Target::Agent(name("db"))).await.is_err());
    fixture.backend.close().await;
}

#[tokio::test]
async fn a_crash_loop_is_visible_and_a_person_may_stop_and_start() {
    let fixture = Fixture::new().await;
    let program = fixture.sh("test -e $PWD/fixed && exec sleep 1000; exit 3");
    let (handle, mut events) = start(&fixture, vec![plan(&fixture, "bad", vec![program])]);
    let not_ready = handle.wait_all_ready(SOON).await;
    let Err(SuperviseError::NotReady { waiting }) = not_ready else {
        panic!("{not_ready:?}")
    };
    assert_eq!(waiting, ["bad-0 is crash-loop: exit code 3"]);
    let What::CrashLoop { failures: 5, .. } = until(&mut events, "replica.crashloop bad-0").await
    else {
        panic!("five failures");
    };
    let status = handle.replicas()[0].clone();
    assert_eq!(
        (status.last_exit, status.ready),
        (Some(Exit::Code(3)), false)
    );
    assert!(status.restarts >= 4);
    let restarts = fixture.metrics.encode_text();
    assert!(
        restarts.contains("volary_replica_restarts_total{agent=\"bad\"}"),
        "{restarts}"
    );
    handle.stop(Target::Agent(name("bad"))).await.unwrap();
    assert_eq!(handle.replicas()[0].state.as_str(), "stopped");
    std::fs::write(fixture.dir().join("fixed"), "").unwrap();
    handle
        .start(Target::Replica("bad-0".to_owned()))
        .await
        .unwrap();
    handle.wait_all_ready(SOON).await.unwrap();
    handle.drain(SOON).await;
}

#[tokio::test]
async fn an_unhealthy_replica_is_restarted_and_its_secret_stays_secret() {
    let fixture = Fixture::new().await;
    fixture.redactor.add(&Secret::new("canary-77aa")).unwrap();
    let program = fixture.sh("touch $PWD/well; exec sleep 1000");
    let mut agent = plan(&fixture, "ill", vec![program]);
    let check = "test -e well || { echo canary-77aa is ill; exit 1; }";
    agent.health = Some(probe(Check::Command(
        ["/bin/sh", "-c", check].map(str::to_owned).into(),
    )));
    let (handle, mut events) = start(&fixture, vec![agent]);
    handle.wait_all_ready(SOON).await.unwrap();
    let first = handle.replicas()[0].pid;
    std::fs::remove_file(fixture.dir().join("well")).unwrap();
    let what = until(&mut events, "replica.unhealthy ill-0").await;
    assert_eq!(
        what,
        What::Unhealthy {
            reason: "exit code 1: [redacted] is ill".to_owned()
        }
    );
    until(&mut events, "replica.ready ill-0").await;
    let again = || {
        handle.replicas()[0]
            .pid
            .is_some_and(|pid| Some(pid) != first)
    };
    assert!(eventually(SOON, again).await);
    handle.drain(SOON).await;
}

#[tokio::test]
async fn a_replica_killed_from_outside_comes_back() {
    let fixture = Fixture::new().await;
    let agent = plan(&fixture, "victim", vec![fixture.sh("exec sleep 1000")]);
    let (handle, mut events) = start(&fixture, vec![agent]);
    handle.wait_all_ready(SOON).await.unwrap();
    until(&mut events, "replica.ready victim-0").await;
    let pid = handle.replicas()[0].pid.unwrap().to_string();
    std::process::Command::new("kill")
        .args(["-9", &pid])
        .status()
        .unwrap();
    let what = until(&mut events, "replica.exited victim-0").await;
    assert_eq!(
        what,
        What::Exited {
            exit: Exit::Signal(9)
        }
    );
    until(&mut events, "replica.ready victim-0").await;
    handle.drain(SOON).await;
}

#[tokio::test]
async fn work_that_completes_counts_as_ready_and_is_not_repeated() {
    let fixture = Fixture::new().await;
    let mut once = plan(&fixture, "once", vec![fixture.sh("exit 0")]);
    once.rules.policy = RestartPolicy::OnFailure;
    let mut after = plan(&fixture, "after", vec![fixture.sh("exec sleep 1000")]);
    after.depends_on = vec![name("once")];
    let (handle, _events) = start(&fixture, vec![once, after]);
    handle.wait_all_ready(SOON).await.unwrap();
    handle.drain(SOON).await;
}

#[tokio::test]
async fn http_and_tcp_probes_see_a_server_come_up() {
    let fixture = Fixture::new().await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let serve = move || {
        use std::io::{Read, Write};
        for (number, stream) in listener.incoming().enumerate() {
            let Ok(mut stream) = stream else { return };
            let _request = stream.read(&mut [0; 1024]);
            let status = if number < 2 { "503 Busy" } else { "200 OK" };
            let _answer = write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 2\r\n\r\nok");
            if number >= 4 {
                return;
            }
        }
    };
    std::thread::spawn(serve);
    let mut agent = plan(&fixture, "web", vec![fixture.sh("exec sleep 1000")]);
    let host = "127.0.0.1".to_owned();
    let path = "/health".to_owned();
    let check = HttpCheck {
        host: host.clone(),
        port,
        path,
        headers: Vec::new(),
        expect_status: None,
    };
    agent.health = Some(ProbeSpec {
        interval: SOON,
        ..probe(Check::Http(check))
    });
    let (handle, _events) = start(&fixture, vec![agent]);
    assert!(eventually(SOON, || handle.replicas()[0].reason.is_some()).await);
    handle.wait_all_ready(SOON).await.unwrap();
    handle.drain(SOON).await;
    let look = |check: Check| {
        let backend = fixture.backend.clone();
        let id = fixture.id("web", 0);
        let now = SystemClock::shared().wall();
        async move { volary_deploy::health::run(&probe(check), &backend, &id, now).await }
    };
    assert!(
        look(Check::Tcp {
            host: host.clone(),
            port
        })
        .await
        .is_ok()
    );
    assert!(look(Check::Tcp { host, port: 1 }).await.is_err());
    assert!(
        look(Check::File {
            path: "/no/such".into(),
            max_age: None
        })
        .await
        .is_err()
    );
}

#[tokio::test]
async fn a_drain_cannot_be_delayed_by_deaf_replicas() {
    let fixture = Fixture::new().await;
    let script = "trap '' TERM; (setsid sleep 987641 &); while :; do sleep 1000; done";
    let mut agent = plan(&fixture, "deaf", vec![fixture.sh(script)]);
    agent.rules.grace = Duration::from_secs(1000);
    let (handle, _events) = start(&fixture, vec![agent]);
    handle.wait_all_ready(SOON).await.unwrap();
    let drained = clock::timeout(SOON, handle.drain(Duration::from_millis(300))).await;
    assert!(drained.is_ok());
    fixture.backend.close().await;
    let id = fixture.id("deaf", 0);
    assert!(fixture.backend.stats(&id).await.is_err());
}
