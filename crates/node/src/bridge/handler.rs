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
    clock,
    ready::Heartbeat,
    task::TaskResult,
    text::{format_bytes, format_duration},
};
use volary_messaging::{
    Sender,
    action::{Action, ActionLimits, ActionParser},
    inbox::{Claimed, Mailbox},
};

use super::settle::{SettleError, Settler};

/// Longest a worker waits for a delivery before it looks around.
const IDLE_WAIT: Duration = Duration::from_secs(60);

/// Wait before actions are offered again to receivers that had no room: back-pressure, without running the handler again.
const ROOM_WAIT: Duration = Duration::from_secs(1);
/// How often actions are offered again to full inboxes before the attempt counts as failed: two agents that wait for each
/// other's inboxes must not wait for ever. A full store is waited for without limit.
const ROOM_TRIES: u32 = 30;

/// What the workers of one handler agent share.
pub(crate) struct HandlerAgent {
    pub mailbox: Mailbox,
    pub sender: Sender,
    pub settler: Settler,
    pub backend: Arc<dyn Backend>,
    /// What to run, by the replica in whose name it runs.
    pub programs: BTreeMap<ReplicaId, ProgramSpec>,
    pub timeout: Duration,
    pub max_output: usize,
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
    let owner = replica.to_string();
    loop {
        let claim = agent.mailbox.claim(&owner, 1, IDLE_WAIT);
        let Some(claims) = beat.while_waiting(stop.run_until_cancelled(claim)).await else {
            break;
        };
        for claimed in claims? {
            let Some(claimed) = agent.open(claimed).await? else {
                continue;
            };
            let outcome = beat.while_waiting(agent.run(&replica, &claimed)).await;
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
        let opened = self.settler.open(&self.mailbox, &self.sender, claimed);
        match opened.await {
            // Somebody else has it by now.
            Err(SettleError::Lapsed) => Ok(None),
            opened => opened,
        }
    }

    async fn run(&self, replica: &ReplicaId, claimed: &Claimed) -> HandlerOutcome {
        let delivery = &claimed.delivery;
        let mut program = self.programs[replica].clone();
        let own = [
            ("VOLARY_IDEMPOTENCY_KEY", delivery.idempotency_key.clone()),
            ("VOLARY_ATTEMPT", delivery.attempt.to_string()),
            ("VOLARY_TRACE", delivery.trace.to_string()),
        ];
        program
            .env
            .extend(own.map(|(name, value)| (name.to_owned(), EnvValue::Plain(value))));
        let mut document = delivery.to_json();
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
                error
                @ (SettleError::Action(_) | SettleError::Later(_) | SettleError::StoreFull(_)),
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
                .ack(&self.mailbox, &self.sender, claims, actions.clone())
                .await;
            match settled {
                // Everybody waits for the disk; failing attempts would only park what was done well.
                Err(SettleError::StoreFull(_)) => {}
                Err(SettleError::Later(_)) if tries < ROOM_TRIES => tries += 1,
                settled => return settled.map(drop),
            }
            self.mailbox.renew(claimed)?;
            beat.while_waiting(clock::sleep(ROOM_WAIT)).await;
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
    fn actions(&self, outcome: &HandlerOutcome) -> Result<Vec<Action>, String> {
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
