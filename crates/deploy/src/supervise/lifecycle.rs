//! One replica's life. Pure: `(state, input, now) → actions`.
//!
//! ```text
//!           start                deps ready           runs [healthy]
//! Stopped ────────▶ Pending ───────────────▶ Starting ─────────────▶ Ready
//!    ▲  Failed ─────▶  ▲                       │  │                  │  │ unhealthy
//!    │                 │ time is up            │  │ unhealthy        │  ▼
//!    │                 │                       │  └──────────────▶ Unhealthy ──(restart policy: terminate)
//!    │            BackingOff ◀── exit, start failed, policy restarts ◀──┴──┘
//!    │            CrashLoop  ◀── the same, `crash_loop_after` failures in a row
//!    │                                         │ exit, policy does not restart
//!    │◀──────────── success ◀──────────────────┴──────────── failure ──▶ Failed
//!    │
//!    └── exit ── Stopping ◀── stop, restart (any state with a process); without one `stop` is Stopped at once
//!                   └── exit, when it was a restart or a start came meanwhile ──▶ Pending
//! ```
//!
//! - A start by a person is always allowed and forgets past failures; a stop by a person sticks.
//! - Back-off grows with failures in a row and starts anew once a replica was ready for `reset_after`.
//! - CrashLoop is a name for "back-off, again and again": it is still tried, at the longest wait.
//! - Without a probe it is ready once it has run for `settle`: what cannot work is never called ready.
//! - A handler body has no process: Pending goes to Ready, and nothing is launched.

use std::time::Duration;

use volary_kernel::clock::{Mono, Timestamp};
use volary_kernel::retry::Backoff;

use crate::backend::Exit;
use crate::event::What;

/// When a replica that ended is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartPolicy {
    /// Whatever the exit.
    Always,
    /// After a failure.
    OnFailure,
    /// Never.
    Never,
}

/// The rules of one agent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rules {
    /// When it is started again.
    pub policy: RestartPolicy,
    /// Restarts in a row, without a healthy period, before it is given up; `None`: never.
    pub max_restarts: Option<u32>,
    /// How long to wait before.
    pub backoff: Backoff,
    /// Ready for so long, past failures are forgotten.
    pub reset_after: Duration,
    /// Failures in a row that are called a crash loop.
    pub crash_loop_after: u32,
    /// From SIGTERM to SIGKILL.
    pub grace: Duration,
    /// Without a probe: time it must have run to be called ready.
    pub settle: Duration,
}

/// Ten seconds of health, as container engines have it.
pub const DEFAULT_RESET_AFTER: Duration = Duration::from_secs(10);
/// Five in a row: with the default back-off that is about six seconds of trying.
pub const DEFAULT_CRASH_LOOP_AFTER: u32 = 5;
/// A program that cannot work mostly ends within this time; it was then never ready.
pub const DEFAULT_SETTLE: Duration = Duration::from_millis(100);
/// Ten seconds to end, as container engines have it.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(10);

impl Default for Rules {
    fn default() -> Self {
        Self {
            policy: RestartPolicy::Always,
            max_restarts: None,
            backoff: Backoff {
                max: Duration::from_secs(60),
                ..Backoff::default()
            },
            reset_after: DEFAULT_RESET_AFTER,
            crash_loop_after: DEFAULT_CRASH_LOOP_AFTER,
            grace: DEFAULT_GRACE,
            settle: DEFAULT_SETTLE,
        }
    }
}

/// Where a replica is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Wanted; waits for what it depends on.
    Pending,
    /// Its program is being started, or runs and was not healthy yet.
    Starting,
    /// It can be given work.
    Ready,
    /// Its health check failed too often.
    Unhealthy,
    /// It is started again at a time.
    BackingOff {
        /// When.
        until: Mono,
    },
    /// The same after too many failures in a row.
    CrashLoop {
        /// When.
        until: Mono,
    },
    /// It was asked to end.
    Stopping,
    /// It ended by wish, or with success and no reason to restart.
    Stopped,
    /// It is given up.
    Failed,
}

impl State {
    /// The word for `ps`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Unhealthy => "unhealthy",
            Self::BackingOff { .. } => "backing-off",
            Self::CrashLoop { .. } => "crash-loop",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }

    /// All words, for metrics.
    pub const ALL: [&'static str; 9] = [
        "pending",
        "starting",
        "ready",
        "unhealthy",
        "backing-off",
        "crash-loop",
        "stopping",
        "stopped",
        "failed",
    ];

    /// Whether nothing will happen until somebody asks.
    pub fn is_at_rest(self) -> bool {
        matches!(self, Self::Stopped | Self::Failed)
    }
}

/// What the machine is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// The node or a person wants it to run.
    Start,
    /// A person or the drain wants it to end, and to stay so.
    Stop,
    /// A person wants it to end and start again.
    Restart,
    /// All that it depends on is ready.
    DependenciesReady,
    /// Its program runs.
    Launched {
        /// Process id on the machine.
        pid: Option<u32>,
        /// What cannot be had here.
        warnings: Vec<String>,
        /// Whether health decides when it is ready.
        probed: bool,
    },
    /// Its program could not be started.
    LaunchFailed {
        /// Whether trying again can help.
        transient: bool,
        /// Why.
        reason: String,
    },
    /// Its probe passes.
    Healthy,
    /// Its probe failed too often.
    Unhealthy {
        /// The last probe's words.
        reason: String,
    },
    /// Everything of it has ended.
    Exited(Exit),
    /// Time has passed.
    Tick,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Start its program; answered by `Launched` or `LaunchFailed`.
    Launch,
    /// Ask it to end, kill it after the grace; answered by `Exited`.
    Terminate,
    /// Tell that this happened.
    Emit(What),
}

/// The moment of a step.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// For waits.
    pub mono: Mono,
    /// For people.
    pub wall: Timestamp,
    /// For jitter, 0 to 1.
    pub random: f64,
}

/// What there is of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Process {
    None,
    Launching,
    Running,
}

/// The life of one replica.
#[derive(Debug, Clone, PartialEq)]
pub struct Lifecycle {
    rules: Rules,
    handler: bool,
    state: State,
    process: Process,
    /// After Stopping: start again.
    again: bool,
    failures: u32,
    restarts: u64,
    ready_since: Option<Mono>,
    /// Starting, without a probe: when it is ready if it still runs.
    settled_at: Option<Mono>,
    last_exit: Option<Exit>,
    reason: Option<String>,
}

impl Lifecycle {
    /// A replica that nobody has asked for yet.
    pub fn new(rules: Rules, handler: bool) -> Self {
        Self {
            rules,
            handler,
            state: State::Stopped,
            process: Process::None,
            again: false,
            failures: 0,
            restarts: 0,
            ready_since: None,
            settled_at: None,
            last_exit: None,
            reason: None,
        }
    }

    /// Where it is.
    pub fn state(&self) -> State {
        self.state
    }

    /// Starts after the first one.
    pub fn restarts(&self) -> u64 {
        self.restarts
    }

    /// How it ended last.
    pub fn last_exit(&self) -> Option<&Exit> {
        self.last_exit.as_ref()
    }

    /// Why it is not ready, in words.
    pub fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// Its rules.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Whether a process of it is there or being made.
    pub fn has_process(&self) -> bool {
        self.process != Process::None
    }

    /// When the next tick is wanted.
    pub fn due(&self) -> Option<Mono> {
        match self.state {
            State::BackingOff { until } | State::CrashLoop { until } => Some(until),
            State::Starting => self.settled_at,
            _ => None,
        }
    }

    /// Takes an input. Inputs that do not fit the state are ignored.
    pub fn step(&mut self, input: Input, now: Moment) -> Vec<Action> {
        match input {
            Input::Start => self.start(),
            Input::Stop => self.stop(),
            Input::Restart => self.restart(),
            Input::DependenciesReady => self.dependencies_ready(now),
            Input::Launched {
                pid,
                warnings,
                probed,
            } => self.launched(pid, warnings, probed, now),
            Input::LaunchFailed { transient, reason } => self.launch_failed(transient, reason, now),
            Input::Healthy => self.healthy(now),
            Input::Unhealthy { reason } => self.unhealthy(reason),
            Input::Exited(exit) => self.exited(exit, now),
            Input::Tick => self.tick(now),
        }
    }

    // ---- wishes ----

    fn start(&mut self) -> Vec<Action> {
        match self.state {
            State::Stopped | State::Failed | State::BackingOff { .. } | State::CrashLoop { .. } => {
                self.failures = 0;
                self.reason = None;
                self.state = State::Pending;
            }
            State::Stopping => self.again = true,
            State::Pending | State::Starting | State::Ready | State::Unhealthy => {}
        }
        Vec::new()
    }

    fn stop(&mut self) -> Vec<Action> {
        self.again = false;
        match self.state {
            State::Stopped | State::Stopping => Vec::new(),
            _ if self.process == Process::None => self.rest(State::Stopped, What::Stopped),
            _ => self.end(),
        }
    }

    fn restart(&mut self) -> Vec<Action> {
        if self.handler && self.state == State::Ready {
            self.again_pending();
            return Vec::new();
        }
        if self.process == Process::None {
            return self.start();
        }
        self.failures = 0;
        self.again = true;
        if self.state == State::Stopping {
            Vec::new()
        } else {
            self.end()
        }
    }

    /// Running, being launched or ill → Stopping.
    fn end(&mut self) -> Vec<Action> {
        // An unhealthy one whose policy restarts was asked to end already.
        let asked = self.state == State::Unhealthy && self.rules.policy != RestartPolicy::Never;
        self.state = State::Stopping;
        self.reason = None;
        let mut actions = vec![Action::Emit(What::Stopping)];
        // One that is being launched is ended as soon as it runs.
        if self.process == Process::Running && !asked {
            actions.push(Action::Terminate);
        }
        actions
    }

    // ---- what happens ----

    fn dependencies_ready(&mut self, now: Moment) -> Vec<Action> {
        if self.state != State::Pending {
            return Vec::new();
        }
        self.reason = None;
        if self.handler {
            return self.become_ready(now);
        }
        self.state = State::Starting;
        self.process = Process::Launching;
        vec![
            Action::Emit(What::Starting {
                restarts: self.restarts,
            }),
            Action::Launch,
        ]
    }

    fn launched(
        &mut self,
        pid: Option<u32>,
        warnings: Vec<String>,
        probed: bool,
        now: Moment,
    ) -> Vec<Action> {
        if self.process != Process::Launching {
            return Vec::new();
        }
        self.process = Process::Running;
        let mut actions = vec![Action::Emit(What::Started { pid, warnings })];
        match self.state {
            State::Stopping => actions.push(Action::Terminate),
            State::Starting if !probed && self.rules.settle.is_zero() => {
                actions.extend(self.become_ready(now));
            }
            State::Starting if !probed => self.settled_at = Some(now.mono + self.rules.settle),
            _ => {}
        }
        actions
    }

    fn launch_failed(&mut self, transient: bool, reason: String, now: Moment) -> Vec<Action> {
        if self.process != Process::Launching {
            return Vec::new();
        }
        self.process = Process::None;
        let mut actions = vec![Action::Emit(What::StartFailed {
            reason: reason.clone(),
        })];
        actions.extend(match self.state {
            State::Stopping => self.stopped(),
            _ if transient && self.rules.policy != RestartPolicy::Never => {
                self.failed_once(reason, now)
            }
            _ => self.give_up(reason),
        });
        actions
    }

    fn healthy(&mut self, now: Moment) -> Vec<Action> {
        let asked_to_end = self.rules.policy != RestartPolicy::Never;
        match self.state {
            State::Starting if self.process == Process::Running => self.become_ready(now),
            // Only one that nobody restarts can recover in place.
            State::Unhealthy if !asked_to_end => self.become_ready(now),
            _ => Vec::new(),
        }
    }

    fn unhealthy(&mut self, reason: String) -> Vec<Action> {
        let ill = matches!(self.state, State::Starting | State::Ready);
        if !ill || self.process != Process::Running {
            return Vec::new();
        }
        self.state = State::Unhealthy;
        self.reason = Some(format!("unhealthy: {reason}"));
        let mut actions = vec![Action::Emit(What::Unhealthy { reason })];
        if self.rules.policy != RestartPolicy::Never {
            actions.push(Action::Terminate);
        }
        actions
    }

    fn exited(&mut self, exit: Exit, now: Moment) -> Vec<Action> {
        if self.process == Process::None {
            return Vec::new();
        }
        self.process = Process::None;
        self.settled_at = None;
        self.last_exit = Some(exit.clone());
        let ill = self.state == State::Unhealthy;
        let stopping = self.state == State::Stopping;
        let mut actions = vec![Action::Emit(What::Exited { exit: exit.clone() })];
        let why = if ill {
            self.reason.clone().unwrap_or_default()
        } else {
            exit.to_string()
        };
        let success = exit.is_success() && !ill;
        if self
            .ready_since
            .take()
            .is_some_and(|since| now.mono - since >= self.rules.reset_after)
        {
            self.failures = 0;
        }
        actions.extend(match self.rules.policy {
            _ if stopping => self.stopped(),
            RestartPolicy::Always => self.failed_once(why, now),
            RestartPolicy::OnFailure if !success => self.failed_once(why, now),
            RestartPolicy::Never if !success => self.give_up(why),
            RestartPolicy::OnFailure | RestartPolicy::Never => {
                self.reason = Some("completed".to_owned());
                self.rest(State::Stopped, What::Stopped)
            }
        });
        actions
    }

    fn tick(&mut self, now: Moment) -> Vec<Action> {
        if self.due().is_none_or(|due| now.mono < due) {
            return Vec::new();
        }
        if self.state == State::Starting {
            return self.become_ready(now);
        }
        self.again_pending();
        Vec::new()
    }

    // ---- where that leads ----

    fn become_ready(&mut self, now: Moment) -> Vec<Action> {
        self.state = State::Ready;
        self.settled_at = None;
        self.reason = None;
        self.ready_since = Some(now.mono);
        vec![Action::Emit(What::Ready)]
    }

    fn failed_once(&mut self, why: String, now: Moment) -> Vec<Action> {
        self.failures = self.failures.saturating_add(1);
        if let Some(max) = self.rules.max_restarts
            && self.failures > max
        {
            return self.give_up(format!("failed after {max} restarts: {why}"));
        }
        let wait = self.rules.backoff.delay(self.failures, now.random);
        let (until, shown) = (now.mono + wait, now.wall + wait);
        self.reason = Some(why);
        let what = if self.failures >= self.rules.crash_loop_after {
            self.state = State::CrashLoop { until };
            What::CrashLoop {
                until: shown,
                failures: self.failures,
            }
        } else {
            self.state = State::BackingOff { until };
            What::BackingOff { until: shown }
        };
        vec![Action::Emit(what)]
    }

    fn give_up(&mut self, reason: String) -> Vec<Action> {
        self.reason = Some(reason.clone());
        self.rest(State::Failed, What::Failed { reason })
    }

    fn stopped(&mut self) -> Vec<Action> {
        if std::mem::take(&mut self.again) {
            self.again_pending();
            return Vec::new();
        }
        self.rest(State::Stopped, What::Stopped)
    }

    fn rest(&mut self, state: State, what: What) -> Vec<Action> {
        self.state = state;
        self.ready_since = None;
        if what == What::Stopped && self.reason.as_deref() != Some("completed") {
            self.reason = None;
        }
        vec![Action::Emit(what)]
    }

    fn again_pending(&mut self) {
        self.restarts += 1;
        self.ready_since = None;
        self.state = State::Pending;
    }
}

#[cfg(test)]
#[path = "lifecycle_tests.rs"]
mod tests;
