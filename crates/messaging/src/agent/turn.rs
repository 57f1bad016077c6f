//! The loop of a runtime: gathers input, asks the agent, has its decisions carried out, and starts over; never waits
//! while there is something to do.

use std::{collections::VecDeque, pin::Pin, sync::Arc, time::Duration};

use futures_util::future::FutureExt as _;
use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;
use volary_kernel::{
    clock::{self, SharedClock},
    ready::Heartbeat,
    retry::random_unit,
};

use super::{
    Agent, Cx, Decision, Observation, RestartPolicy, RuntimeLimits,
    decision::Failure,
    event::RuntimeEvent,
    executor::{Executor, contained, drop_contained},
    runtime::State,
};
use crate::{
    message::{Message, Sender},
    task::{Task, TaskId, TaskState},
    transport::{Closer, Endpoint, Transport},
};

/// Time in which what is still in the inbox is looked at, so that it can be told.
const LAST_LOOK: Duration = Duration::from_millis(500);

// --- inbox -----------------------------------------------------------------------------------

type Receiving = Pin<Box<dyn Future<Output = (Endpoint, Vec<Message>)> + Send>>;

/// The endpoint, received from without losing what a hook is looking at when the loop turns to something else.
pub(super) struct Inbox {
    at: At,
    closer: Closer,
    max: usize,
}

enum At {
    Rest(Endpoint),
    Receiving(Receiving),
    Closed,
}

impl Inbox {
    pub(super) fn new(endpoint: Endpoint, max: usize) -> Self {
        Self {
            closer: endpoint.closer(),
            at: At::Rest(endpoint),
            max: max.max(1),
        }
    }

    fn close(&self) {
        self.closer.close();
    }

    const fn is_closed(&self) -> bool {
        matches!(self.at, At::Closed)
    }

    /// At least one message, and how many more wait; none once it is closed and empty. Cancel-safe.
    async fn recv(&mut self) -> (Vec<Message>, usize) {
        let max = self.max;
        self.at = match std::mem::replace(&mut self.at, At::Closed) {
            At::Rest(mut endpoint) => At::Receiving(Box::pin(async move {
                let mut messages = Vec::with_capacity(max.min(64));
                endpoint.recv_many(&mut messages, max).await;
                (endpoint, messages)
            })),
            other => other,
        };
        let At::Receiving(receiving) = &mut self.at else {
            return (Vec::new(), 0);
        };
        let (endpoint, messages) = receiving.as_mut().await;
        let depth = endpoint.stats().items;
        self.at = if messages.is_empty() {
            At::Closed
        } else {
            At::Rest(endpoint)
        };
        (messages, depth)
    }
}

// --- the loop --------------------------------------------------------------------------------

/// A message on its way to the agent.
pub(super) struct Waiting {
    message: Message,
    failures: u32,
}

/// What a loop leaves.
#[derive(Debug, Default)]
pub(super) struct Ended {
    pub(super) handled: u64,
    pub(super) unhandled: Vec<Message>,
    pub(super) undone: usize,
    pub(super) problems: Vec<String>,
}

/// One start of a runtime.
pub(super) struct Turns<A, T> {
    pub(super) agent: OwnedMutexGuard<A>,
    pub(super) sender: Sender,
    pub(super) executor: Arc<Executor<T>>,
    pub(super) clock: SharedClock,
    pub(super) limits: RuntimeLimits,
    pub(super) restart: RestartPolicy,
    pub(super) state: Arc<State>,
    pub(super) inbox: Inbox,
    pub(super) stop: CancellationToken,
    /// Received, not given to the agent yet, or to be given again.
    pub(super) waiting: VecDeque<Waiting>,
    /// With the agent now.
    pub(super) in_flight: Vec<Waiting>,
    pub(super) observations: Vec<Observation>,
    /// Calls in a row that brought nothing but observations.
    pub(super) passes: u32,
    /// The tasks that the last decide was shown: it is not asked about the same again.
    pub(super) shown: Vec<(TaskId, TaskState, u32)>,
    pub(super) ended: Ended,
}

/// Whether the loop goes on.
#[derive(PartialEq)]
enum Next {
    Turn,
    End,
}

/// The agent failed.
struct AgentFailed {
    stage: &'static str,
    problem: String,
}

impl<A: Agent, T: Transport> Turns<A, T> {
    /// Turns until it is stopped and empty, gives up, or is aborted. Every wait in it is for input or has a limit, so that
    /// the heart may beat meanwhile; an agent that blocks its thread silences it.
    pub(super) async fn run(
        mut self,
        heartbeat: Heartbeat,
        abort: CancellationToken,
    ) -> (Ended, Result<(), String>) {
        let executor = self.executor.clone();
        let renewing = async {
            loop {
                clock::sleep(executor.work.next_renewal()).await;
                executor.work.renew(&executor.listener).await;
            }
        };
        // Claims are renewed by the loop's own task: an agent that blocks it loses them to others.
        let turning = async {
            tokio::select! {
                result = self.turn_on() => result,
                () = renewing => Ok(()),
            }
        };
        let mut turning = Box::pin(heartbeat.while_waiting(turning));
        let turned = abort.run_until_cancelled(turning.as_mut()).await;
        // What the agent was at is dropped here, if it was cut.
        if let Err(words) = drop_contained(turning) {
            let problem = format!("the agent panicked when it was cut: {words}");
            self.ended.problems.push(problem);
        }
        let result = turned.unwrap_or(Ok(()));
        heartbeat.beat();
        heartbeat.while_waiting(self.finish()).await;
        match &result {
            Ok(()) => heartbeat.retire(),
            // A heartbeat that is dropped tells that the loop ended by itself.
            Err(problem) => self.ended.problems.push(problem.clone()),
        }
        (self.ended, result)
    }

    async fn turn_on(&mut self) -> Result<(), String> {
        let mut failures = 0;
        while self.gather().await == Next::Turn {
            match self.turn().await {
                Ok(()) => {
                    if failures > 0 {
                        failures = 0;
                        self.state.well();
                        self.executor.counts.consecutive_failures.set(0.0);
                    }
                }
                Err(failed) => {
                    failures += 1;
                    self.recover(failed, &mut failures).await?;
                }
            }
        }
        Ok(())
    }

    /// Waits until there is something to do, and takes it in.
    async fn gather(&mut self) -> Next {
        if !self.waiting.is_empty() {
            return Next::Turn;
        }
        if self.wants_pass() {
            // Nothing to wait for; what is there already comes along.
            if let Some(received) = self.inbox.recv().now_or_never() {
                self.take_in(received).await;
            }
            return Next::Turn;
        }
        if self.inbox.is_closed() {
            if self.stop.is_cancelled() {
                return Next::End;
            }
            // The transport was shut down: only tasks and ticks are left.
            tokio::select! {
                () = self.stop.cancelled() => {}
                () = self.executor.work.changed() => {}
                () = clock::sleep(self.limits.tick) => {}
            }
            return Next::Turn;
        }
        tokio::select! {
            biased;
            received = self.inbox.recv() => self.take_in(received).await,
            () = self.executor.work.changed() => {}
            () = clock::sleep(self.limits.tick) => {}
        }
        if self.inbox.is_closed() && self.waiting.is_empty() && self.stop.is_cancelled() {
            return Next::End;
        }
        Next::Turn
    }

    fn wants_pass(&self) -> bool {
        self.passes < self.limits.tool_loop
            && self.observations.iter().any(Observation::wants_answer)
    }

    async fn take_in(&mut self, (messages, depth): (Vec<Message>, usize)) {
        let count = u64::try_from(messages.len()).unwrap_or(u64::MAX);
        self.executor.counts.received.inc_by(count);
        #[expect(clippy::cast_precision_loss, reason = "an inbox holds fewer than 2^52")]
        self.executor.counts.inbox_depth.set(depth as f64);
        let waiting = messages.into_iter().map(|message| Waiting {
            message,
            failures: 0,
        });
        let first = self.waiting.len();
        self.waiting.extend(waiting);
        for waiting in self.waiting.iter().skip(first) {
            let (message, name) = (&waiting.message, self.sender.name());
            let listener = &self.executor.listener;
            self.executor
                .work
                .record_received(message, name, listener)
                .await;
        }
    }

    /// One call of the agent and what follows from it.
    async fn turn(&mut self) -> Result<(), AgentFailed> {
        self.fill_batch();
        let messages: Vec<Message> = self
            .in_flight
            .iter()
            .map(|waiting| waiting.message.clone())
            .collect();
        let listener = &self.executor.listener;
        let tasks = self.executor.work.visible(self.limits.tasks, listener);
        let tasks = clock::timeout(self.limits.tool, tasks).await;
        let tasks = tasks.unwrap_or_default();
        let standing = |task: &Task| (task.id, task.state, task.attempts);
        let standings: Vec<_> = tasks.iter().map(standing).collect();
        let new_tasks = standings.iter().any(|task| !self.shown.contains(task));
        let pass = self.wants_pass();
        let decide = !messages.is_empty() || pass || new_tasks;
        let observations = if decide {
            std::mem::take(&mut self.observations)
        } else {
            Vec::new()
        };
        let decisions = match self.ask(&messages, &tasks, &observations, decide).await {
            Ok(decisions) => decisions,
            Err(failed) => {
                if decide {
                    self.observations = observations;
                }
                return Err(failed);
            }
        };
        if decide {
            let alone = messages.is_empty() && !new_tasks;
            self.passes = if alone { self.passes + 1 } else { 0 };
            self.shown = standings;
        }
        self.ended.handled += u64::try_from(self.in_flight.len()).unwrap_or(u64::MAX);
        self.in_flight.clear();
        self.carry_out(decisions).await;
        Ok(())
    }

    /// What has failed before goes to the agent alone, so that it can only harm itself.
    fn fill_batch(&mut self) {
        let alone = self.waiting.front().is_some_and(|first| first.failures > 0);
        let most = if alone { 1 } else { self.limits.batch.max(1) };
        while self.in_flight.len() < most
            && let Some(next) = self.waiting.pop_front()
        {
            if next.failures > 0 && !alone {
                self.waiting.push_front(next);
                break;
            }
            self.in_flight.push(next);
        }
    }

    async fn ask(
        &mut self,
        messages: &[Message],
        tasks: &[Task],
        observations: &[Observation],
        decide: bool,
    ) -> Result<Vec<Decision>, AgentFailed> {
        let cx = Cx {
            now: self.clock.wall(),
            sender: &self.sender,
            observations,
            stopping: self.stop.is_cancelled(),
        };
        let limit = self.limits.decide;
        let agent = &mut self.agent;
        let ticking = async { words(agent.on_tick(messages, tasks, &cx).await) };
        let ticked = contained(limit, ticking).await;
        settle("on_tick", limit, ticked)?;
        if !decide {
            return Ok(Vec::new());
        }
        let begun = self.clock.mono();
        let deciding = async { words(agent.decide(messages, tasks, &cx).await) };
        let decided = contained(limit, deciding).await;
        self.executor.counts.decided_in(self.clock.mono() - begun);
        settle("decide", limit, decided)
    }

    async fn carry_out(&mut self, decisions: Vec<Decision>) {
        self.ended.undone = decisions.len();
        for (index, decision) in decisions.into_iter().enumerate() {
            let observation = if index < self.limits.decisions {
                self.executor.execute(decision).await
            } else {
                let limit = self.limits.decisions;
                let problem = format!("one call may decide on {limit} things");
                Observation {
                    kind: decision.kind(),
                    about: String::new(),
                    result: Err(Failure::Invalid(problem)),
                }
            };
            self.ended.undone -= 1;
            self.observations.push(observation);
        }
    }

    /// Puts back what the agent had, and waits before it is tried again.
    async fn recover(&mut self, failed: AgentFailed, failures: &mut u32) -> Result<(), String> {
        let AgentFailed { stage, problem } = failed;
        self.put_back(stage, &problem);
        loop {
            let given_up = self.restart.give_up.is_some_and(|most| *failures >= most);
            let wait = self.restart.backoff.delay(*failures, random_unit());
            let problem = format!("{stage} {problem}");
            self.tell_failure(stage, &problem, *failures, (!given_up).then_some(wait));
            if given_up {
                return Err(format!("gave up after {failures} failures: {problem}"));
            }
            // A stop does not wait for the back-off: what is left gets its chances at once.
            self.stop.run_until_cancelled(clock::sleep(wait)).await;
            let cx = Cx::new(self.clock.wall(), &self.sender, &[]);
            let agent = &mut self.agent;
            let limit = self.limits.decide;
            let started = contained(limit, async { words(agent.on_start(&cx).await) }).await;
            match settle("on_start", limit, started) {
                Ok(()) => return Ok(()),
                Err(_) if self.stop.is_cancelled() => {
                    return Err(format!("on_start failed while stopping, after: {problem}"));
                }
                Err(_) => *failures += 1,
            }
        }
    }

    fn tell_failure(
        &self,
        stage: &'static str,
        problem: &str,
        failures: u32,
        retry_in: Option<Duration>,
    ) {
        self.executor.counts.failures.inc();
        self.executor
            .counts
            .consecutive_failures
            .set(f64::from(failures));
        self.state.failed(failures, problem);
        tracing::warn!(agent = %self.sender.name(), stage, problem, failures, "the agent failed");
        self.executor.listener.tell(&RuntimeEvent::AgentFailed {
            stage,
            problem: problem.to_owned(),
            failures,
            retry_in,
        });
    }

    fn put_back(&mut self, stage: &'static str, problem: &str) {
        for mut waiting in self.in_flight.drain(..).rev() {
            waiting.failures += 1;
            if waiting.failures < self.limits.attempts.max(1) {
                self.waiting.push_front(waiting);
                continue;
            }
            self.executor.counts.unhandled.inc();
            self.executor.listener.tell(&RuntimeEvent::Unhandled {
                message: waiting.message,
                reason: format!(
                    "given up after {} attempts: {stage} {problem}",
                    waiting.failures
                ),
            });
        }
    }

    /// Takes nothing more, tells what is left, and lets the agent say good-bye.
    async fn finish(&mut self) {
        self.inbox.close();
        let left = self.in_flight.drain(..).chain(self.waiting.drain(..));
        self.ended.unhandled = left.map(|waiting| waiting.message).collect();
        let (inbox, unhandled) = (&mut self.inbox, &mut self.ended.unhandled);
        let look = async {
            while !inbox.is_closed() {
                unhandled.extend(inbox.recv().await.0);
            }
        };
        if clock::timeout(LAST_LOOK, look).await.is_err() {
            let problem = "a hook holds up what was received; it can not be told";
            self.ended.problems.push(problem.to_owned());
        }
        for message in &self.ended.unhandled {
            self.executor.counts.unhandled.inc();
            self.executor.listener.tell(&RuntimeEvent::Unhandled {
                message: message.clone(),
                reason: "the runtime ended before it was handled".to_owned(),
            });
        }
        let cx = Cx {
            now: self.clock.wall(),
            sender: &self.sender,
            observations: &self.observations,
            stopping: true,
        };
        let limit = self.limits.decide.min(self.limits.drain);
        let agent = &mut self.agent;
        let stopped = contained(limit, async { words(agent.on_stop(&cx).await) }).await;
        if let Err(failed) = settle("on_stop", limit, stopped) {
            let problem = format!("{} {}", failed.stage, failed.problem);
            self.ended.problems.push(problem);
        }
        let giving_back = self.executor.work.release_all(&self.executor.listener);
        if clock::timeout(limit, giving_back).await.is_err() {
            let problem = "claims of tasks could not be given back in time; they lapse";
            self.ended.problems.push(problem.to_owned());
        }
    }
}

/// The words of the agent's error: they come from its code, so they are asked for where a panic is contained.
fn words<R>(result: Result<R, super::AgentError>) -> Result<R, String> {
    result.map_err(|error| error.to_string())
}

/// One error for the ways in which a method of the agent can fail.
fn settle<R>(
    stage: &'static str,
    limit: Duration,
    result: Result<Result<R, String>, super::executor::Contained>,
) -> Result<R, AgentFailed> {
    let problem = match result {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => format!("failed: {error}"),
        Err(cut) => cut.words(limit),
    };
    Err(AgentFailed { stage, problem })
}
