//! Replicas try to leave their walls. Each attempt that works prints `BROKE`.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

mod common;

use std::time::Duration;

use common::{Fixture, PROGRAM};
use volary_deploy::backend::{
    Backend, Bind, BindTarget, DirAccess, EnvValue, ExecRequest, HandlerExit, HandlerRun, Limits,
    PrivateFile, ProgramSpec, ReplicaSpec, RootAccess, User,
};
use volary_kernel::secret::Secret;

const CANARY: &str = "canary-5f3a9c";

/// Runs a script as a handler and gives back what it wrote.
async fn try_in(fixture: &Fixture, program: ProgramSpec) -> String {
    let mut run = HandlerRun::new(fixture.id("thief", 0), program, "");
    run.timeout = Duration::from_secs(20);
    let outcome = fixture.backend.run_handler(run).await;
    let text = String::from_utf8_lossy(&outcome.stdout).into_owned();
    assert_eq!(
        outcome.exit,
        HandlerExit::Exited(0),
        "{text}\n{}",
        fixture.log("thief", 0).await
    );
    assert!(text.contains("tried all"), "{text}");
    text
}

fn with_script(fixture: &Fixture, script: &str) -> ProgramSpec {
    let node = std::process::id().to_string();
    fixture
        .sh(&format!("exec 2>/dev/null\n{script}\necho tried all\n"))
        .with_env("STATE", fixture.state().to_str().unwrap())
        .with_env("NODE", node.as_str())
}

async fn fixture() -> Fixture {
    let fixture = Fixture::new().await;
    std::fs::write(fixture.state().join("store.db"), CANARY).unwrap();
    fixture
}

#[tokio::test]
async fn the_nodes_state_cannot_be_read() {
    let fixture = fixture().await;
    let script = format!(
        "for way in '' /proc/1/root /proc/self/root /proc/$NODE/root /proc/1/cwd /host; do
             cat $way$STATE/store.db && echo BROKE cat $way
         done
         ls -A $STATE | grep -v replicas && echo BROKE listing
         grep -rs {CANARY} $STATE && echo BROKE grep
         cat /proc/*/environ | grep -a {CANARY} && echo BROKE proc
         ln $STATE/store.db /tmp/volary-link && echo BROKE link
         touch $STATE/junk && echo BROKE write"
    );
    let text = try_in(&fixture, with_script(&fixture, &script)).await;
    assert!(!text.contains("BROKE") && !text.contains(CANARY), "{text}");
}

#[tokio::test]
async fn mounts_cannot_be_changed() {
    let fixture = fixture().await;
    let script = "umount $STATE && echo BROKE umount
        umount -l $STATE && echo BROKE lazy umount
        umount $STATE/replicas/thief-0 && echo BROKE own umount
        mount -t tmpfs none /mnt && echo BROKE mount
        mount --bind / /mnt && echo BROKE bind
        mount -o remount,rw $STATE && echo BROKE remount
        unshare -m true && echo BROKE unshare
        unshare -Urm umount $STATE && echo BROKE user namespace
        nsenter -t 1 -m true && echo BROKE nsenter
        nsenter -t $NODE -m -p true && echo BROKE nsenter node
        chroot / true && echo BROKE chroot";
    let text = try_in(&fixture, with_script(&fixture, script)).await;
    assert!(!text.contains("BROKE"), "{text}");
}

#[tokio::test]
async fn other_processes_cannot_be_touched() {
    let fixture = fixture().await;
    let other = ReplicaSpec::new(fixture.id("other", 0), fixture.sh("exec sleep 1000"));
    let started = fixture.backend.start(&other).await.unwrap();
    let script = "for pid in $NODE $OTHER; do
            kill -9 $pid && echo BROKE kill $pid
            kill -0 $pid && echo BROKE see $pid
        done
        test -r /proc/1/mem && head -c 1 /proc/1/mem && echo BROKE mem
        cat /proc/1/environ && echo BROKE environ
        readlink /proc/1/fd/3 && echo BROKE fds
        ls /proc/1/root/ | grep . && echo BROKE root
        kill -9 1; kill -STOP 1; kill -TERM 1; kill -0 1 || echo BROKE init
        test $(ls -d /proc/[0-9]* | wc -l) -lt 12 || echo BROKE others visible";
    let program =
        with_script(&fixture, script).with_env("OTHER", started.pid.unwrap().to_string().as_str());
    let text = try_in(&fixture, program).await;
    assert!(!text.contains("BROKE"), "{text}");
    let outcome = fixture
        .backend
        .exec(&other.id, ExecRequest::new(["true"]))
        .await;
    assert!(outcome.is_ok_and(|outcome| outcome.exit.is_some_and(|exit| exit.is_success())));
    fixture.backend.close().await;
}

#[tokio::test]
async fn devices_and_kernel_settings_are_out_of_reach_of_root() {
    let fixture = fixture().await;
    let script = "find /dev -type b | grep . && echo BROKE block device
        mknod /tmp/volary-mem c 1 1 && echo BROKE mknod
        echo x >/proc/sys/kernel/core_pattern && echo BROKE core_pattern
        test -e /proc/sysrq-trigger && echo h >/proc/sysrq-trigger && echo BROKE sysrq
        touch /etc/volary-junk && echo BROKE etc
        touch /usr/bin/volary-junk && echo BROKE usr
        for group in /sys/fs/cgroup/*/cgroup.procs /sys/fs/cgroup/cgroup.procs; do
            echo 0 >$group && echo BROKE $group
        done
        echo ok >/dev/null || echo BROKE null
        head -c 4 /dev/urandom >/tmp/$$ && rm /tmp/$$ || echo BROKE urandom";
    let text = try_in(&fixture, with_script(&fixture, script)).await;
    assert!(!text.contains("BROKE"), "{text}");
}

#[tokio::test]
async fn another_replicas_token_cannot_be_read_and_ones_own_can() {
    let fixture = fixture().await;
    let mut owner = fixture.sh("cat $TOKEN_FILE && stat -c %a $TOKEN_FILE && exec sleep 1000");
    owner
        .files
        .push(PrivateFile::new("token", Secret::new(CANARY)));
    owner.env.insert(
        "TOKEN_FILE".to_owned(),
        EnvValue::PrivatePath("token".to_owned()),
    );
    let owner = ReplicaSpec::new(fixture.id("owner", 0), owner);
    fixture.backend.start(&owner).await.unwrap();
    assert!(fixture.log_contains("owner", 0, "400").await);
    assert!(fixture.log("owner", 0).await.contains(CANARY));
    let script = "cat $STATE/replicas/owner-0/token && echo BROKE
        cat $STATE/replicas/*/token && echo BROKE glob
        ls $STATE/replicas | grep -v thief-0 && echo BROKE list";
    let text = try_in(&fixture, with_script(&fixture, script)).await;
    assert!(!text.contains("BROKE") && !text.contains(CANARY), "{text}");
    // Nor is it on the machine's disk.
    let mut grep = std::process::Command::new("grep");
    let found = grep
        .args(["-rlsF", CANARY])
        .arg(fixture.state().join("replicas"))
        .output();
    assert!(found.unwrap().stdout.is_empty());
    fixture.backend.close().await;
}

#[tokio::test]
async fn the_environment_holds_only_what_was_declared() {
    let fixture = fixture().await;
    let text = try_in(
        &fixture,
        fixture
            .sh("env; echo tried all")
            .with_env("DECLARED", "yes"),
    )
    .await;
    let mut names: Vec<_> = text
        .lines()
        .filter_map(|line| Some(line.split_once('=')?.0))
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["DECLARED", "HOME", "LANG", "PATH", "PWD"], "{text}");
}

#[tokio::test]
async fn a_bind_appears_with_its_access_and_nothing_else_is_writable_with_a_read_only_root() {
    let fixture = fixture().await;
    let (rw, ro) = (fixture.dir().join("rw"), fixture.dir().join("ro"));
    for dir in [&rw, &ro] {
        std::fs::create_dir(dir).unwrap();
        std::fs::write(dir.join("note"), "note").unwrap();
    }
    let script = format!(
        "cat {ro}/note {rw}/note >/dev/null || echo BROKE read
         cat $STATE/replicas/thief-0/shared/note >/dev/null || echo BROKE private bind
         echo x >{rw}/new || echo BROKE write
         echo x >{ro}/new && echo BROKE read-only
         echo x >$STATE/replicas/thief-0/own || echo BROKE own
         echo x >/var/tmp/volary-junk && echo BROKE root
         echo x >/tmp/volary-own || echo BROKE tmp",
        rw = rw.display(),
        ro = ro.display()
    );
    let mut program = with_script(&fixture, &script);
    program.cwd = rw.clone();
    program.root = RootAccess::ReadOnly;
    let bind = |source: &std::path::Path, target, access| Bind {
        source: source.to_owned(),
        target,
        access,
    };
    program.binds = vec![
        bind(&rw, BindTarget::Path(rw.clone()), DirAccess::ReadWrite),
        bind(&ro, BindTarget::Path(ro.clone()), DirAccess::ReadOnly),
        bind(
            &ro,
            BindTarget::Private("shared".to_owned()),
            DirAccess::ReadOnly,
        ),
    ];
    let text = try_in(&fixture, program).await;
    assert!(!text.contains("BROKE"), "{text}");
    assert!(rw.join("new").exists() && !std::path::Path::new("/tmp/volary-own").exists());
}

#[tokio::test]
async fn another_user_has_no_powers_and_its_own_files() {
    if !common::is_root() {
        return;
    }
    let fixture = fixture().await;
    let script = "id -u; id -g
        grep CapEff /proc/self/status
        cat $TOKEN || echo BROKE own token
        cat /etc/shadow && echo BROKE shadow";
    let mut program = with_script(&fixture, script);
    program.cwd = "/".into();
    program.user = Some(User {
        uid: 4711,
        gid: 4712,
    });
    program
        .files
        .push(PrivateFile::new("token", Secret::new("token-of-4711")));
    program.env.insert(
        "TOKEN".to_owned(),
        EnvValue::PrivatePath("token".to_owned()),
    );
    let text = try_in(&fixture, program).await;
    assert!(!text.contains("BROKE"), "{text}");
    assert!(
        text.starts_with("4711\n4712\n") && text.contains("token-of-4711"),
        "{text}"
    );
    assert!(text.contains("CapEff:\t0000000000000000"), "{text}");
}

#[tokio::test]
async fn limits_hold() {
    let fixture = fixture().await;
    let mut program = fixture.sh("ulimit -n; ulimit -c; tail /dev/zero; echo survived");
    program.limits = Limits {
        memory: Some(32 << 20),
        open_files: Some(77),
        ..Limits::default()
    };
    let has_cgroup = fixture.backend.capabilities().cgroup.contains(&"memory");
    let run = HandlerRun::new(fixture.id("eater", 0), program, "");
    let outcome = fixture.backend.run_handler(run).await;
    let text = String::from_utf8_lossy(&outcome.stdout);
    assert!(text.starts_with("77\n0\n"), "{text}");
    if has_cgroup {
        // The kernel may choose the shell or its child; either way the replica is told of it or goes on.
        assert!(
            text.contains("survived") || outcome.exit == HandlerExit::OutOfMemory(32 << 20),
            "{outcome:?}"
        );
    }
    let mut program =
        fixture.sh("for i in 1 2 3 4 5 6 7 8 9 10; do sleep 5 & done; echo all; kill 0");
    program.limits.pids = Some(5);
    if fixture.backend.capabilities().cgroup.contains(&"pids") {
        let run = HandlerRun::new(fixture.id("forker", 0), program, "");
        let outcome = fixture.backend.run_handler(run).await;
        assert!(
            !String::from_utf8_lossy(&outcome.stdout).contains("all"),
            "{outcome:?}"
        );
    }
    fixture.backend.close().await;
}

/// An ordinary user gets the same walls by a user namespace.
#[tokio::test]
async fn an_ordinary_users_node_hides_its_state_too() {
    if !common::is_root() {
        return; // every test above did this
    }
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(dir.path(), Some(65_534), Some(65_534)).unwrap();
    let state = dir.path().join("state");
    let script = format!(
        "exec 2>&1; id -u; cat {state}/store.db && echo BROKE; touch {state}/replicas/victim-0/own || echo BROKE own;
         umount {state} && echo BROKE umount; grep CapEff /proc/self/status; ls {state}; echo tried all; exec sleep 1000",
        state = state.display()
    );
    let mut node = std::process::Command::new("setpriv")
        .args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            PROGRAM,
            "node",
        ])
        .arg(&state)
        .args(["1", "marker", "namespace", &script])
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let log = state.join("logs/victim-0.log");
    let read = || std::fs::read_to_string(&log).unwrap_or_default();
    let done = volary_kernel::testing::eventually(Duration::from_secs(10), || {
        read().contains("tried all")
    })
    .await;
    node.kill().unwrap();
    node.wait().unwrap();
    let text = read();
    assert!(done && !text.contains("BROKE"), "{text}");
    assert!(
        text.contains(" F 65534") && text.contains("CapEff:\t0000000000000000"),
        "{text}"
    );
}
