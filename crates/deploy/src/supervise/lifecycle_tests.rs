//! Tests of the life of one replica: each path by name, and a model of everything that can come.

use proptest::prelude::*;

use super::*;

fn moment(millis: u64) -> Moment {
    Moment {
        mono: Mono::default() + Duration::from_millis(millis),
        wall: Timestamp::from_micros(0),
        random: 0.0,
    }
}

fn launched(probed: bool) -> Input {
    Input::Launched {
        pid: Some(7),
        warnings: Vec::new(),
        probed,
    }
}

fn with(policy: RestartPolicy) -> Lifecycle {
    let rules = Rules {
        policy,
        settle: Duration::ZERO,
        ..Rules::default()
    };
    let mut life = Lifecycle::new(rules, false);
    life.step(Input::Start, moment(0));
    life.step(Input::DependenciesReady, moment(0));
    life
}

fn running(policy: RestartPolicy) -> Lifecycle {
    let mut life = with(policy);
    life.step(launched(false), moment(0));
    assert_eq!(life.state(), State::Ready);
    life
}

/// From any wait back to Ready at once.
fn run_again(life: &mut Lifecycle, millis: u64) {
    life.step(Input::Tick, moment(millis));
    life.step(Input::DependenciesReady, moment(millis));
    life.step(launched(false), moment(millis));
}

#[test]
fn it_waits_for_what_it_depends_on_at_every_start() {
    let mut life = running(RestartPolicy::Always);
    life.step(Input::Exited(Exit::Code(1)), moment(0));
    life.step(Input::Tick, moment(10_000));
    assert_eq!(life.state(), State::Pending);
    let actions = life.step(Input::DependenciesReady, moment(10_000));
    assert_eq!(actions.last(), Some(&Action::Launch));
}

#[test]
fn without_a_probe_it_is_ready_once_it_has_run_for_a_while() {
    let mut life = Lifecycle::new(Rules::default(), false);
    life.step(Input::Start, moment(0));
    life.step(Input::DependenciesReady, moment(0));
    life.step(launched(false), moment(0));
    assert_eq!(life.step(Input::Tick, moment(99)), []);
    assert_eq!(life.due(), Some(moment(100).mono));
    assert_eq!(
        life.step(Input::Tick, moment(100)),
        [Action::Emit(What::Ready)]
    );
}

#[test]
fn with_a_probe_it_is_ready_when_healthy() {
    let mut life = with(RestartPolicy::Always);
    life.step(launched(true), moment(0));
    assert_eq!(life.state(), State::Starting);
    assert_eq!(
        life.step(Input::Healthy, moment(5)),
        [Action::Emit(What::Ready)]
    );
}

#[test]
fn backoff_grows_with_failures_in_a_row_and_becomes_a_crash_loop() {
    let mut life = running(RestartPolicy::Always);
    let (mut now, mut waits) = (0, Vec::new());
    for failure in 1..=6 {
        life.step(Input::Exited(Exit::Code(1)), moment(now));
        let due = life.due().unwrap() - moment(now).mono;
        waits.push(due.as_millis());
        assert_eq!(
            matches!(life.state(), State::CrashLoop { .. }),
            failure >= 5,
            "{failure}"
        );
        now += u64::try_from(due.as_millis()).unwrap();
        run_again(&mut life, now);
    }
    assert_eq!(waits, [200, 400, 800, 1600, 3200, 6400]);
    assert_eq!(life.restarts(), 6);
}

#[test]
fn backoff_starts_anew_after_a_healthy_period() {
    let mut life = running(RestartPolicy::Always);
    life.step(Input::Exited(Exit::Code(1)), moment(0));
    run_again(&mut life, 1000);
    life.step(Input::Exited(Exit::Code(1)), moment(1000 + 10_000));
    assert_eq!(
        life.due().unwrap() - moment(11_000).mono,
        Duration::from_millis(200)
    );
}

#[test]
fn success_is_not_restarted_on_failure_and_failure_is() {
    let policy = RestartPolicy::OnFailure;
    let mut life = running(policy);
    life.step(Input::Exited(Exit::Code(0)), moment(0));
    assert_eq!(
        (life.state(), life.reason()),
        (State::Stopped, Some("completed"))
    );
    let mut life = running(policy);
    life.step(Input::Exited(Exit::Signal(9)), moment(0));
    assert!(matches!(life.state(), State::BackingOff { .. }));
}

#[test]
fn after_the_allowed_restarts_it_is_given_up_and_a_person_may_start_it() {
    let mut life = running(RestartPolicy::OnFailure);
    life.rules.max_restarts = Some(1);
    life.step(Input::Exited(Exit::Code(2)), moment(0));
    run_again(&mut life, 1000);
    life.step(Input::Exited(Exit::Code(2)), moment(1000));
    assert_eq!(life.state(), State::Failed);
    assert_eq!(life.reason(), Some("failed after 1 restarts: exit code 2"));
    life.step(Input::Start, moment(1000));
    assert_eq!(
        life.step(Input::DependenciesReady, moment(1000)).last(),
        Some(&Action::Launch)
    );
}

#[test]
fn a_start_by_a_person_cuts_the_backoff_short_and_forgets_failures() {
    let mut life = running(RestartPolicy::Always);
    life.step(Input::Exited(Exit::Code(1)), moment(0));
    life.step(Input::Start, moment(1));
    assert_eq!(life.state(), State::Pending);
    run_again(&mut life, 1);
    life.step(Input::Exited(Exit::Code(1)), moment(2));
    assert_eq!(
        life.due().unwrap() - moment(2).mono,
        Duration::from_millis(200)
    );
}

#[test]
fn a_stop_by_a_person_sticks() {
    let mut life = running(RestartPolicy::Always);
    assert_eq!(
        life.step(Input::Stop, moment(0)),
        [Action::Emit(What::Stopping), Action::Terminate]
    );
    life.step(Input::Exited(Exit::Code(1)), moment(1));
    assert_eq!(life.state(), State::Stopped);
    for input in [
        Input::Tick,
        Input::DependenciesReady,
        Input::Healthy,
        Input::Exited(Exit::Lost),
    ] {
        assert_eq!(life.step(input, moment(100_000)), []);
    }
    assert_eq!(life.state(), State::Stopped);
}

#[test]
fn a_stop_while_it_is_being_launched_ends_it_as_soon_as_it_runs() {
    let mut life = with(RestartPolicy::Always);
    assert_eq!(
        life.step(Input::Stop, moment(0)),
        [Action::Emit(What::Stopping)]
    );
    assert_eq!(
        life.step(launched(false), moment(1)).last(),
        Some(&Action::Terminate)
    );
    life.step(Input::Exited(Exit::Signal(15)), moment(2));
    assert_eq!(life.state(), State::Stopped);
}

#[test]
fn a_restart_ends_it_and_starts_it_again() {
    let mut life = running(RestartPolicy::Never);
    assert_eq!(
        life.step(Input::Restart, moment(0)).last(),
        Some(&Action::Terminate)
    );
    life.step(Input::Exited(Exit::Signal(15)), moment(1));
    assert_eq!((life.state(), life.restarts()), (State::Pending, 1));
}

#[test]
fn unhealthy_is_restarted_after_a_backoff() {
    let mut life = running(RestartPolicy::Always);
    let actions = life.step(
        Input::Unhealthy {
            reason: "status 500".to_owned(),
        },
        moment(0),
    );
    assert_eq!(actions.last(), Some(&Action::Terminate));
    assert_eq!(life.state(), State::Unhealthy);
    life.step(Input::Exited(Exit::Code(0)), moment(1));
    assert!(matches!(life.state(), State::BackingOff { .. }));
    assert_eq!(life.reason(), Some("unhealthy: status 500"));
}

#[test]
fn what_is_never_restarted_may_recover_from_being_unhealthy() {
    let mut life = running(RestartPolicy::Never);
    let actions = life.step(
        Input::Unhealthy {
            reason: "slow".to_owned(),
        },
        moment(0),
    );
    assert!(!actions.contains(&Action::Terminate));
    life.step(Input::Healthy, moment(1));
    assert_eq!(life.state(), State::Ready);
}

#[test]
fn a_start_that_cannot_succeed_is_given_up_at_once() {
    let mut life = with(RestartPolicy::Always);
    let reason = "cannot be isolated".to_owned();
    life.step(
        Input::LaunchFailed {
            transient: false,
            reason,
        },
        moment(0),
    );
    assert_eq!(life.state(), State::Failed);
}

#[test]
fn a_handler_is_ready_without_a_process() {
    let mut life = Lifecycle::new(Rules::default(), true);
    life.step(Input::Start, moment(0));
    assert_eq!(
        life.step(Input::DependenciesReady, moment(0)),
        [Action::Emit(What::Ready)]
    );
    assert!(!life.has_process());
    assert_eq!(
        life.step(Input::Stop, moment(0)),
        [Action::Emit(What::Stopped)]
    );
}

// ---- model ----------------------------------------------------------------------------------------------

/// What may come from outside at any time.
fn any_input() -> impl Strategy<Value = Input> {
    let text = || "x".to_owned();
    prop_oneof![
        Just(Input::Start),
        Just(Input::Stop),
        Just(Input::Restart),
        Just(Input::DependenciesReady),
        any::<bool>().prop_map(launched),
        any::<bool>().prop_map(move |transient| Input::LaunchFailed {
            transient,
            reason: text()
        }),
        Just(Input::Healthy),
        Just(Input::Unhealthy { reason: text() }),
        (0..2i32).prop_map(|code| Input::Exited(Exit::Code(code))),
        Just(Input::Tick),
    ]
}

fn any_policy() -> impl Strategy<Value = RestartPolicy> {
    prop_oneof![
        Just(RestartPolicy::Always),
        Just(RestartPolicy::Never),
        Just(RestartPolicy::OnFailure),
    ]
}

proptest! {
    #[test]
    fn there_is_one_process_at_most_and_it_is_asked_to_end_once(
        policy in any_policy(),
        max_restarts in proptest::option::of(0..3u32),
        inputs in proptest::collection::vec((any_input(), 0..20_000u64), 0..80),
    ) {
        let mut life = Lifecycle::new(Rules { policy, max_restarts, ..Rules::default() }, false);
        let (mut process, mut asked, mut now) = (Process::None, false, 0);
        for (input, passed) in inputs {
            now += passed;
            match (&input, process) {
                (Input::Launched { .. }, Process::Launching) => process = Process::Running,
                (Input::LaunchFailed { .. }, Process::Launching) => process = Process::None,
                // An exit that comes before its launch was told does not happen: skip it.
                (Input::Exited(_), Process::Launching) => continue,
                (Input::Exited(_), Process::Running) => { process = Process::None; asked = false; }
                _ => {}
            }
            for action in life.step(input, moment(now)) {
                match action {
                    Action::Launch => {
                        prop_assert_eq!(process, Process::None);
                        process = Process::Launching;
                    }
                    Action::Terminate => {
                        prop_assert_eq!(process, Process::Running);
                        prop_assert!(!asked);
                        asked = true;
                    }
                    Action::Emit(_) => {}
                }
            }
            prop_assert_eq!(life.process, process);
            let waits = life.due().map(|due| due - moment(now).mono);
            prop_assert!(waits.is_none_or(|wait| wait <= Duration::from_secs(60)));
            let idle = matches!(
                life.state(),
                State::Pending | State::Stopped | State::Failed
                    | State::BackingOff { .. } | State::CrashLoop { .. }
            );
            prop_assert_eq!(idle, process == Process::None);
        }
        // Whatever came before: a stop ends at rest, and a start by a person leads to a launch.
        life.step(Input::Stop, moment(now));
        if process == Process::Launching { life.step(launched(false), moment(now)); }
        life.step(Input::Exited(Exit::Code(1)), moment(now));
        prop_assert_eq!(life.state(), State::Stopped);
        life.step(Input::Start, moment(now));
        let actions = life.step(Input::DependenciesReady, moment(now));
        prop_assert_eq!(actions.last(), Some(&Action::Launch));
    }
}
