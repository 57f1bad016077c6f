//! The node in this process: start, progress, feed, drain.

use std::{convert::Infallible, pin::pin, time::Duration};

use volary::{
    Node as Served, NodeConfig, deploy::backend::process::InitCommand, ops::api::EventsQuery,
};
use volary_kernel::{SystemClock, clock, task::Supervisor};

use super::{
    Plan, WAIT, announce, log,
    progress::Progress,
    record,
    signals::{Asked, Signals},
};
use crate::{
    client::Node,
    codes,
    commands::events,
    error::{CliError, Outcome},
    exit::Exit,
};

/// How often progress is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// What a drain may take beyond the longest grace period of the agents: the last commits, sockets, threads.
const MARGIN: Duration = Duration::from_secs(10);

/// Why the fleet stops.
#[derive(Debug)]
enum Stop {
    /// A signal.
    Asked(Asked),
    /// `volary down`, or a vital part that failed.
    Requested(String),
    /// Not ready in time.
    NotReady(CliError),
}

/// Runs the node until it has drained.
pub fn run(plan: &Plan<'_>) -> Outcome {
    let background = plan.arguments.background;
    if background {
        // Out of the terminal's session: its Ctrl-C and its end are not for us. A leader already is out.
        let _already_leader = rustix::process::setsid();
    }
    let redactor = log::redactor(&plan.spec);
    let level = if background { "info" } else { "warn" };
    log::start(plan.context.environment.log.as_deref(), level, redactor)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("volary-worker")
        .build()
        .map_err(|error| {
            CliError::new(codes::SYSTEM, "cannot start the async runtime").because(&error)
        })?;
    let outcome = runtime.block_on(serve(plan));
    // What blocks for ever (a terminal that takes no output) must not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

async fn serve(plan: &Plan<'_>) -> Outcome {
    let tasks = Supervisor::new();
    let mut signals = Signals::listen(&tasks, plan.context.ui).map_err(|error| {
        CliError::new(codes::SYSTEM, "cannot listen to signals").because(&error)
    })?;
    let node = tokio::select! {
        started = Box::pin(Served::start(config(plan)?)) => started.map_err(|error| CliError::of_node(&error))?,
        asked = signals.first() => return Ok(asked.drained()),
    };
    record::write(&plan.state, &plan.spec)?;
    let stop = live(plan, &node, &mut signals).await;
    let ended = drain(plan, node, stop).await;
    tasks.drain(Duration::from_secs(1)).await;
    ended
}

fn config(plan: &Plan<'_>) -> Result<NodeConfig, CliError> {
    let program = std::env::current_exe().map_err(|error| {
        CliError::new(codes::SYSTEM, "cannot find this program's own file").because(&error)
    })?;
    Ok(NodeConfig {
        fleet: plan.spec.clone(),
        state_dir: plan.state.clone(),
        init: InitCommand::this_program(),
        program,
        base_env: plan.context.environment.base.clone(),
        ops_bind: plan.arguments.ops,
        insecure: plan.arguments.insecure,
        clock: SystemClock::shared(),
        store: None,
    })
}

/// From the start to the reason to stop.
async fn live(plan: &Plan<'_>, node: &Served, signals: &mut Signals) -> Stop {
    let shown = async {
        let all_ready = ready(plan, node).await?;
        match show(plan, all_ready).await {
            // The feed's reader may leave, and the feed may break: the fleet goes on.
            Ok(()) | Err(CliError::BrokenPipe) => {}
            Err(error) => plan.context.ui.tell(&error),
        }
        Ok(())
    };
    let mut shown = pin!(shown);
    let mut showing = true;
    loop {
        tokio::select! {
            biased;
            asked = signals.first() => return Stop::Asked(asked),
            why = node.shutdown_requested() => return Stop::Requested(why),
            ended = &mut shown, if showing => match ended {
                Ok(()) => showing = false,
                Err(error) => return Stop::NotReady(error),
            },
        }
    }
}

/// Where the fleet is reached, then the feed. In the background whoever started it tells.
async fn show(plan: &Plan<'_>, all_ready: bool) -> Result<(), CliError> {
    if plan.arguments.background {
        return Ok(());
    }
    let node = Node::running_on(&plan.state)?.ok_or_else(|| {
        CliError::new(
            codes::STATE,
            format!("{} does not say where the node is", plan.state.display()),
        )
    })?;
    announce(plan.context, &node, &plan.spec, all_ready)?;
    if plan.arguments.no_feed {
        return Ok(());
    }
    events::print(
        &plan.context.ui,
        node.follow(&EventsQuery::default()).await?,
    )
    .await
}

/// Shows progress until all is ready. Not being ready in time ends the fleet only where somebody asked for that: one
/// broken agent must not keep the others from their work. Whether all is ready.
async fn ready(plan: &Plan<'_>, node: &Served) -> Result<bool, CliError> {
    if plan.arguments.background {
        return Ok(true);
    }
    let limit = plan.arguments.wait_timeout.unwrap_or(WAIT);
    let mut progress = Progress::new(plan.context.ui);
    let mut ready = pin!(node.wait_ready(limit));
    let ended = loop {
        progress.show(&node.replicas());
        tokio::select! {
            ended = &mut ready => break ended,
            () = clock::sleep(LOOK) => {}
        }
    };
    progress.show(&node.replicas());
    match ended {
        Ok(()) => Ok(true),
        Err(error) if plan.arguments.wait_timeout.is_some() => {
            Err(CliError::new(codes::NOT_READY, "the fleet is not ready").because(&error))
        }
        Err(error) => {
            plan.context
                .ui
                .say(format_args!("going on, though not all is ready: {error}"));
            Ok(false)
        }
    }
}

/// Stops the node, and tells by the exit code why it stopped and how.
async fn drain(plan: &Plan<'_>, node: Served, stop: Stop) -> Outcome {
    let ui = plan.context.ui;
    let mut progress = Progress::new(ui);
    let again = if matches!(stop, Stop::Asked(Asked::Interrupt)) {
        " (Ctrl-C again: at once)"
    } else {
        ""
    };
    ui.say(format_args!("draining{again}"));
    progress.begin(&node.replicas());
    let grace = plan
        .spec
        .agents
        .iter()
        .map(|agent| agent.stop_grace)
        .max()
        .unwrap_or_default();
    let report = tokio::select! {
        report = node.stop(grace + MARGIN) => report,
        never = follow_drain(plan, progress) => match never {},
    };
    if !report.is_clean() {
        let left = report.left.join(", ");
        return Err(CliError::new(
            codes::UNCLEAN,
            format!("not everything stopped in time: {left}"),
        ));
    }
    ui.say("stopped");
    match stop {
        Stop::Asked(asked) => Ok(asked.drained()),
        // `volary down` asks with these words; any other reason is a part that failed.
        Stop::Requested(why) if why == volary::STOP_REQUESTED => Ok(Exit::Ok),
        Stop::Requested(why) => Err(CliError::new(codes::NODE_FAILED, why)),
        Stop::NotReady(error) => Err(error),
    }
}

/// Shows the replicas as they end, as long as the node tells. Never ends.
async fn follow_drain(plan: &Plan<'_>, mut progress: Progress) -> Infallible {
    while let Ok(Some(node)) = Node::running_on(&plan.state) {
        match node.replicas().await {
            Ok(replicas) => progress.show(&replicas),
            Err(_) => break,
        }
        clock::sleep(LOOK).await;
    }
    std::future::pending().await
}
