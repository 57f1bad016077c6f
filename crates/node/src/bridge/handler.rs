//! Handler agents: one process for each delivery.
//!
//! ```text
//! claim ──▶ run (document on stdin) ──exit 0──▶ parse stdout ──▶ settle: ack and actions in one commit
//!              │ other exit, signal, timeout, too much output, bad actions ──▶ nack: again after a back-off, or parked
//!              └ could not be started ──▶ nack
//! ```
//! Each agent has as many workers as its concurrency. A worker stops claiming when told to stop and finishes what it
//! has; what it cannot finish within the drain is killed and comes again after the next start.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;
use volary_deploy::backend::{
    Backend, EnvValue, HandlerExit, HandlerOutcome, HandlerRun, ProgramSpec, ReplicaId,
};
use volary_kernel::{
    Timestamp, TraceId, clock,
    ready::Heartbeat,
    task::TaskResult,
    text::{format_bytes, format_duration},
};
use volary_messaging::{
    action::{Action, ActionLimits, ActionParser},
    delivery::Delivery,
    inbox::{Claimed, Mailbox},
    replay::verify::{RecordedDelivery, ReplayContext},
    task::TaskClaim,
};

use super::{
    settle::{SettleError, Settler},
    task::TaskWork,
};
use crate::core::Voice;

/// Longest a worker waits for a delivery before it looks around.
const IDLE_WAIT: Duration = Duration::from_secs(60);

/// Wait before actions are offered again to receivers that had no room: back-pressure, without running the handler again.
pub(super) const ROOM_WAIT: Duration = Duration::from_secs(1);
/// How often actions are offered again to full inboxes before the attempt counts as failed: two agents that wait for each
/// other's inboxes must not wait for ever. A full store is waited for without limit.
pub(super) const ROOM_TRIES: u32 = 30;
/// How often actions are offered again to a limit. What some of them took of it is spent when another finds too little, so
/// each wait is twice as long as the one before: at last there is enough for all of them, if the limit ever holds as many.
pub(super) const LIMIT_TRIES: u32 = 10;
/// The longest of these waits.
const LIMIT_WAIT: Duration = Duration::from_secs(30);

/// The wait before the `tries`th of these offers.
pub(super) fn limit_wait(retry_after: Duration, tries: u32) -> Duration {
    let wait = retry_after.saturating_mul(1 << tries.min(LIMIT_TRIES));
    wait.min(LIMIT_WAIT)
}

/// What an attempt is told beside its document.
fn attempt_env(
    key: &str,
    attempt: u32,
    trace: TraceId,
    context: &ReplayContext,
) -> [(&'static str, String); 5] {
    [
        ("VOLARY_IDEMPOTENCY_KEY", key.to_owned()),
        ("VOLARY_ATTEMPT", attempt.to_string()),
        ("VOLARY_TRACE", trace.to_string()),
        ("VOLARY_NOW", context.now().to_string()),
        ("VOLARY_SEED", format!("{:016x}", context.seed())),
    ]
}

fn set(program: &mut ProgramSpec, own: impl IntoIterator<Item = (&'static str, String)>) {
    let plain = |(name, value): (&str, String)| (name.to_owned(), EnvValue::Plain(value));
    program.env.extend(own.into_iter().map(plain));
}

/// What the workers of one handler agent share.
pub(crate) struct HandlerAgent {
    pub mailbox: Mailbox,
    pub voice: Voice,
    pub settler: Settler,
    pub backend: Arc<dyn Backend>,
    /// What to run, by the replica in whose name it runs.
    pub programs: BTreeMap<ReplicaId, ProgramSpec>,
    pub timeout: Duration,
    pub max_output: usize,
    /// Where its tasks come from, if it is to work any.
    pub tasks: Option<TaskWork>,
}

/// What a worker gets.
enum Work {
    Deliveries(Vec<Claimed>),
    Task(Box<TaskClaim>),
}

/// One worker's loop, until `stop`.
///
/// # Errors
/// When the store cannot hand out deliveries: the supervisor begins again after a back-off.
pub(crate) async fn work(
    agent: Arc<HandlerAgent>,
    replica: ReplicaId,
    beat: Heartbeat,
    stop: CancellationToken,
) -> TaskResult {
    loop {
        let next = agent.next(&replica);
        let Some(next) = beat.while_waiting(stop.run_until_cancelled(next)).await else {
            break;
        };
        let claims = match (next?, &agent.tasks) {
            (Work::Task(claim), Some(tasks)) => {
                agent.work_task(tasks, &replica, *claim, &beat).await?;
                beat.beat();
                continue;
            }
            (Work::Task(_), None) => continue,
            (Work::Deliveries(claims), _) => claims,
        };
        for claimed in claims {
            let Some(claimed) = agent.open(claimed).await? else {
                continue;
            };
            let run = agent.run(&replica, &claimed.delivery, claimed.began());
            let outcome = beat.while_waiting(run).await;
            agent.settle(&claimed, outcome, &beat).await?;
            beat.beat();
        }
    }
    beat.retire();
    Ok(())
}

impl HandlerAgent {
    /// The delivery as it is now; nothing if there is nothing to be told any more.
    async fn open(&self, claimed: Claimed) -> Result<Option<Claimed>, SettleError> {
        let sender = self.voice.sender();
        let opened = self.settler.open(&self.mailbox, &sender, claimed);
        match opened.await {
            // Somebody else has it by now.
            Err(SettleError::Lapsed) => Ok(None),
            opened => opened,
        }
    }

    /// What is to be done next: a delivery, else a task of one of the agent's pools. Nothing after a while is no error.
    async fn next(
        &self,
        replica: &ReplicaId,
    ) -> Result<Work, Box<dyn std::error::Error + Send + Sync>> {
        let owner = replica.to_string();
        let Some(line) = &self.tasks else {
            let claims = self.mailbox.claim(&owner, 1, IDLE_WAIT).await?;
            return Ok(Work::Deliveries(claims));
        };
        let sender = self.voice.sender();
        let (mut mail, mut tasks) = (self.mailbox.news(), line.news(&sender)?);
        mail.borrow_and_update();
        tasks.borrow_and_update();
        let claims = self.mailbox.claim(&owner, 1, Duration::ZERO).await?;
        if !claims.is_empty() {
            return Ok(Work::Deliveries(claims));
        }
        if let Some(claim) = line.next(&sender, replica).await? {
            return Ok(Work::Task(Box::new(claim)));
        }
        // Whatever comes first, the caller looks again.
        tokio::select! {
            _ = mail.changed() => {}
            _ = tasks.changed() => {}
            () = clock::sleep(IDLE_WAIT) => {}
        }
        Ok(Work::Deliveries(Vec::new()))
    }

    pub(super) async fn run(
        &self,
        replica: &ReplicaId,
        delivery: &Delivery,
        began: Timestamp,
    ) -> HandlerOutcome {
        let mut program = self.programs[replica].clone();
        let key = &delivery.idempotency_key;
        let context = ReplayContext::new(began, key, delivery.attempt);
        set(
            &mut program,
            attempt_env(key, delivery.attempt, delivery.trace, &context),
        );
        self.run_program(replica, program, delivery.to_json()).await
    }

    /// Runs the program on a recorded delivery, with the recorded time and seed. Nothing that it asks for is carried out, and
    /// it cannot reach the node: it gets neither link nor token. Files and the network are as they are.
    ///
    /// # Errors
    /// Why the run has no actions.
    pub(crate) async fn rehearse(
        &self,
        recorded: &RecordedDelivery,
        context: ReplayContext,
    ) -> Result<Vec<Action>, String> {
        let Some((replica, program)) = self.programs.first_key_value() else {
            return Err("the agent has no program".to_owned());
        };
        let mut program = program.clone();
        program.files.clear();
        program.binds.clear();
        program.env.remove("VOLARY_LINK");
        program.env.remove("VOLARY_TOKEN_FILE");
        let (key, attempt) = (&recorded.idempotency_key, recorded.attempt);
        set(
            &mut program,
            attempt_env(key, attempt, recorded.trace, &context),
        );
        set(&mut program, [("VOLARY_REPLAY", "1".to_owned())]);
        let document = recorded.document.clone();
        let outcome = self.run_program(replica, program, document).await;
        self.actions(&outcome)
    }

    async fn run_program(
        &self,
        replica: &ReplicaId,
        program: ProgramSpec,
        mut document: String,
    ) -> HandlerOutcome {
        document.push('\n');
        let run = HandlerRun {
            timeout: self.timeout,
            max_output: self.max_output,
            ..HandlerRun::new(replica.clone(), program, document)
        };
        self.backend.run_handler(run).await
    }

    async fn settle(
        &self,
        claimed: &Claimed,
        outcome: HandlerOutcome,
        beat: &Heartbeat,
    ) -> TaskResult {
        let actions = match self.actions(&outcome) {
            Ok(actions) => actions,
            Err(reason) => return self.fail(claimed, &reason).await,
        };
        match self.offer(claimed, actions, beat).await {
            Ok(()) => Ok(()),
            Err(SettleError::Lapsed) => {
                tracing::warn!(agent = %self.mailbox.name(), delivery = %claimed.item(), "an attempt ended after its claim");
                Ok(())
            }
            Err(
                error @ (SettleError::Action(_)
                | SettleError::TooLarge(_)
                | SettleError::Later(_)
                | SettleError::Limited { .. }
                | SettleError::Task(_)
                | SettleError::StoreFull(_)),
            ) => self.fail(claimed, &error.to_string()).await,
            Err(SettleError::Inbox(error)) => Err(error.into()),
        }
    }

    /// Settles, and while receivers have no room keeps the claim and offers again.
    async fn offer(
        &self,
        claimed: &Claimed,
        actions: Vec<Action>,
        beat: &Heartbeat,
    ) -> Result<(), SettleError> {
        let claims = std::slice::from_ref(claimed);
        let mut tries = 0;
        loop {
            let settled = self
                .settler
                .ack(&self.mailbox, &self.voice.sender(), claims, actions.clone())
                .await;
            let wait = match settled {
                // Everybody waits for the disk; failing attempts would only park what was done well.
                Err(SettleError::StoreFull(_)) => ROOM_WAIT,
                Err(SettleError::Later(_)) if tries < ROOM_TRIES => {
                    tries += 1;
                    ROOM_WAIT
                }
                Err(SettleError::Limited { retry_after, .. }) if tries < LIMIT_TRIES => {
                    tries += 1;
                    limit_wait(retry_after, tries)
                }
                settled => return settled.map(drop),
            };
            self.mailbox.renew(claimed)?;
            beat.while_waiting(clock::sleep(wait)).await;
        }
    }

    async fn fail(&self, claimed: &Claimed, reason: &str) -> TaskResult {
        match self
            .settler
            .nack(&self.mailbox, claimed, None, reason)
            .await
        {
            Ok(_) | Err(SettleError::Lapsed) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The actions of a run that may be acknowledged, or why it may not.
    pub(super) fn actions(&self, outcome: &HandlerOutcome) -> Result<Vec<Action>, String> {
        if !outcome.is_ack() {
            return Err(self.why(&outcome.exit));
        }
        let limits = ActionLimits {
            max_bytes: self.max_output,
            ..ActionLimits::default()
        };
        let mut parser = ActionParser::new(limits);
        let _first_error_comes_again = parser.push(&outcome.stdout);
        parser.finish().map_err(|error| error.to_string())
    }

    fn why(&self, exit: &HandlerExit) -> String {
        match exit {
            HandlerExit::Exited(code) => format!("handler ended with exit code {code}"),
            HandlerExit::Signaled(signal) => format!("handler was ended by signal {signal}"),
            HandlerExit::TimedOut => format!(
                "handler was killed at its timeout of {}",
                format_duration(self.timeout)
            ),
            HandlerExit::OutputTooLarge => {
                format!(
                    "handler was killed: its output passed {}",
                    format_bytes(self.max_output as u64)
                )
            }
            HandlerExit::OutOfMemory(limit) => {
                format!("handler ran out of memory (limit {})", format_bytes(*limit))
            }
            HandlerExit::Lost => "handler was killed from outside".to_owned(),
            HandlerExit::SpawnFailed(why) => format!("handler could not be started: {why}"),
        }
    }
}
