//! `volary tasks`: work that is done once. Operators submit, look, wait and call off; an agent's script claims, renews,
//! reports and fails over its link.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::Value;
use volary::ops::api::{
    CancelReply, CancelRequest, ClaimReply, ClaimRequest, DurationText, FailReply, FailRequest,
    RenewReply, RenewRequest, ReportReply, ReportRequest, SubmitReply, SubmitRequest, TaskList,
    TaskView, TaskWaitQuery, TaskWaitReply, TasksQuery,
};
use volary_kernel::{Clock as _, Name, SystemClock, TraceId};

use crate::{
    args::duration,
    client::{Link, Node, task},
    codes,
    commands::{link, payload},
    error::{CliError, Outcome},
    exit::Exit,
    settle::Context,
    ui::{table::Table, time},
};

/// Longest single question to the node; a longer wait asks again.
const ASK: Duration = Duration::from_secs(30);

/// `volary tasks`.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// Submit a task.
    Submit(Submit),
    /// List tasks: waiting, claimed, parked, then the ones that ended last.
    List(List),
    /// Show one task.
    Show(One),
    /// Call tasks off, whoever works on them.
    Cancel(Cancel),
    /// Wait until a task ends or is parked.
    Wait(Wait),
    /// As an agent: claim tasks, one JSON document per line. Exit code 75 when nothing came in time.
    Claim(Claim),
    /// As an agent: hold a claim for another time.
    Renew(OneClaim),
    /// As an agent: say that a task was done.
    Report(Report),
    /// As an agent: say that an attempt failed.
    Fail(Fail),
}

/// `volary tasks submit`.
#[derive(Debug, Args)]
pub struct Submit {
    /// What is to be reached: JSON, @FILE for a file's content, - for standard input.
    #[arg(value_name = "JSON", allow_hyphen_values = true)]
    objective: String,
    /// What there is to work with, as JSON.
    #[arg(long, value_name = "JSON")]
    inputs: Option<String>,
    /// What holds meanwhile, for the worker, as JSON.
    #[arg(long, value_name = "JSON")]
    constraints: Option<String>,
    /// A UUID: the same task again under it is the same task.
    #[arg(long, value_name = "UUID")]
    id: Option<String>,
    /// Only for members of this pool.
    #[arg(long, value_name = "POOL")]
    pool: Option<Name>,
    /// Only for agents that get this topic.
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
    /// Only for agents that can do this; may be repeated.
    #[arg(long = "capability", value_name = "NAME")]
    capabilities: Vec<String>,
    /// How urgent, 0 to 255 [default: 128].
    #[arg(long, value_name = "NUMBER")]
    priority: Option<u8>,
    /// When nobody wants it any more: a duration like 10m, or an RFC 3339 time.
    #[arg(long, value_name = "WHEN")]
    deadline: Option<String>,
    /// How often it is tried again [default: 4].
    #[arg(long, value_name = "NUMBER")]
    max_retries: Option<u32>,
    /// How long a claim holds without renewal [default: 30s].
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    claim_ttl: Option<Duration>,
    /// Trace that it belongs to [default: a new one].
    #[arg(long, value_name = "TRACE")]
    trace: Option<TraceId>,
}

/// `volary tasks list`.
#[derive(Debug, Args)]
pub struct List {
    /// Only in this state: pending, claimed, completed, failed, cancelled, expired or parked.
    #[arg(long, value_name = "STATE")]
    task_state: Option<String>,
    /// Only of this pool, or of none.
    #[arg(long, value_name = "POOL")]
    pool: Option<Name>,
    /// Only about this topic, or about none.
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
    /// Most tasks, at most 1000 [default: 100].
    #[arg(long, value_name = "N")]
    limit: Option<u32>,
    /// Print only the ids, one per line.
    #[arg(short, long)]
    quiet: bool,
}

/// One task.
#[derive(Debug, Args)]
pub struct One {
    /// Id of the task.
    #[arg(value_name = "ID")]
    id: String,
}

/// `volary tasks cancel`.
#[derive(Debug, Args)]
pub struct Cancel {
    /// Ids of the tasks.
    #[arg(value_name = "ID", required = true)]
    ids: Vec<String>,
    /// Why.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

/// `volary tasks wait`.
#[derive(Debug, Args)]
pub struct Wait {
    /// Id of the task.
    #[arg(value_name = "ID")]
    id: String,
    /// Wait this long at most.
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "60s")]
    timeout: Duration,
}

/// `volary tasks claim`.
#[derive(Debug, Args)]
pub struct Claim {
    /// This task; else the next one.
    #[arg(value_name = "ID")]
    id: Option<String>,
    /// Only of this pool; may be repeated.
    #[arg(long = "pool", value_name = "POOL")]
    pools: Vec<Name>,
    /// What this agent can do; may be repeated.
    #[arg(long = "capability", value_name = "NAME")]
    capabilities: Vec<String>,
    /// Wait this long for the first.
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "30s")]
    wait: Duration,
    /// Most tasks to claim at once.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    max: u32,
}

/// One claim.
#[derive(Debug, Args)]
pub struct OneClaim {
    /// The claim, as `tasks claim` printed it.
    #[arg(value_name = "CLAIM")]
    claim: String,
}

/// `volary tasks report`.
#[derive(Debug, Args)]
pub struct Report {
    /// The claim, as `tasks claim` printed it.
    #[arg(value_name = "CLAIM")]
    claim: String,
    /// What it came to: JSON, @FILE for a file's content, - for standard input.
    #[arg(
        value_name = "JSON",
        default_value = "null",
        allow_hyphen_values = true
    )]
    result: String,
}

/// `volary tasks fail`.
#[derive(Debug, Args)]
pub struct Fail {
    /// The claim, as `tasks claim` printed it.
    #[arg(value_name = "CLAIM")]
    claim: String,
    /// Why.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// When it is tried again [default: after the back-off].
    #[arg(long, value_name = "DURATION", value_parser = duration, conflicts_with = "give_up")]
    delay: Option<Duration>,
    /// Trying again is no use.
    #[arg(long)]
    give_up: bool,
}

/// Asks the node.
pub async fn run(context: &Context, action: &Action) -> Outcome {
    match action {
        Action::Submit(arguments) => submit(context, arguments).await,
        Action::List(arguments) => list(context, arguments).await,
        Action::Show(one) => {
            let node = Node::find(context, None)?;
            show(context, &node.ask::<TaskView>(&task(&one.id)?, &()).await?)
        }
        Action::Cancel(arguments) => cancel(context, arguments).await,
        Action::Wait(arguments) => wait(context, arguments).await,
        Action::Claim(arguments) => claim(context, arguments).await,
        Action::Renew(one) => {
            let request = RenewRequest {
                claim: one.claim.clone(),
            };
            let reply: RenewReply = own_link(context)?.tell("/v1/tasks/renew", &request).await?;
            document_or(context, &reply, |reply| {
                format!("holds for {}", reply.holds_for)
            })
        }
        Action::Report(arguments) => {
            let result = value(&arguments.result)?;
            let request = ReportRequest {
                claim: arguments.claim.clone(),
                result,
            };
            let reply: ReportReply = own_link(context)?
                .tell("/v1/tasks/report", &request)
                .await?;
            document_or(context, &reply, |_| "completed".to_owned())
        }
        Action::Fail(arguments) => {
            let request = FailRequest {
                claim: arguments.claim.clone(),
                reason: arguments.reason.clone(),
                delay: arguments.delay.map(DurationText),
                give_up: arguments.give_up,
            };
            let reply: FailReply = own_link(context)?.tell("/v1/tasks/fail", &request).await?;
            document_or(context, &reply, |reply| reply.state.clone())
        }
    }
}

fn own_link(context: &Context) -> Result<Link, CliError> {
    Link::of_environment(&context.environment)
}

fn value(argument: &str) -> Result<Value, CliError> {
    let text = payload::read(argument)?;
    serde_json::from_str(text.get())
        .map_err(|error| CliError::new(codes::DOCUMENT, "the argument is not JSON").because(&error))
}

fn document_or<T: serde::Serialize>(
    context: &Context,
    reply: &T,
    words: impl Fn(&T) -> String,
) -> Outcome {
    if context.ui.json {
        context.ui.document(reply)?;
    } else {
        context.ui.line(words(reply))?;
    }
    Ok(Exit::Ok)
}

async fn submit(context: &Context, arguments: &Submit) -> Outcome {
    let node = Node::find(context, None)?;
    let maybe = |json: &Option<String>| json.as_deref().map_or(Ok(Value::Null), value);
    let request = SubmitRequest {
        id: arguments.id.clone(),
        pool: arguments.pool.clone(),
        topic: arguments.topic.clone(),
        capabilities: arguments.capabilities.clone(),
        objective: value(&arguments.objective)?,
        inputs: maybe(&arguments.inputs)?,
        constraints: maybe(&arguments.constraints)?,
        priority: arguments.priority,
        deadline: arguments.deadline.clone(),
        max_retries: arguments.max_retries,
        claim_ttl: arguments.claim_ttl.map(DurationText),
        trace: arguments.trace,
    };
    let reply: SubmitReply = node.tell("/v1/tasks", &request).await?;
    document_or(context, &reply, |reply| reply.id.clone())
}

async fn list(context: &Context, arguments: &List) -> Outcome {
    let node = Node::find(context, None)?;
    let query = TasksQuery {
        state: arguments.task_state.clone(),
        pool: arguments.pool.clone(),
        topic: arguments.topic.clone(),
        limit: arguments.limit,
    };
    let list: TaskList = node.ask("/v1/tasks", &query).await?;
    if context.ui.json {
        context.ui.document(&list.tasks)?;
    } else if arguments.quiet {
        for task in &list.tasks {
            context.ui.line(&task.id)?;
        }
    } else {
        let now = SystemClock.wall();
        let mut table = Table::new([
            "ID",
            "STATE",
            "POOL",
            "TOPIC",
            "ATTEMPTS",
            "BY",
            "SUBMITTED",
            "REASON",
        ]);
        for task in &list.tasks {
            table.row([
                (&task.id).into(),
                (&task.state).into(),
                task.pool.as_ref().map_or("-", Name::as_str).into(),
                task.topic.as_deref().unwrap_or("-").into(),
                task.attempts.into(),
                task.assigned_to.as_deref().unwrap_or("-").into(),
                time::ago(now, Some(task.submitted_at)).into(),
                task.reason.as_deref().unwrap_or("-").into(),
            ]);
        }
        context.ui.line(table.render(&context.ui))?;
    }
    Ok(Exit::Ok)
}

fn show(context: &Context, view: &TaskView) -> Outcome {
    document_or(context, view, |view| {
        let document = serde_json::to_value(view).expect("views have text keys");
        format!("{document:#}")
    })
}

async fn cancel(context: &Context, arguments: &Cancel) -> Outcome {
    let node = Node::find(context, None)?;
    let mut exit = Exit::Ok;
    for id in &arguments.ids {
        let request = CancelRequest {
            reason: arguments.reason.clone(),
        };
        let done: Result<CancelReply, CliError> =
            node.tell(&format!("{}/cancel", task(id)?), &request).await;
        match done {
            Ok(reply) if context.ui.json => context.ui.document(&reply)?,
            Ok(reply) if reply.cancelled => context.ui.line(&reply.id)?,
            Ok(reply) => context
                .ui
                .say(format_args!("task {} had ended before", reply.id)),
            Err(error) => {
                context.ui.tell(&error);
                exit = error.exit();
            }
        }
    }
    Ok(exit)
}

async fn wait(context: &Context, arguments: &Wait) -> Outcome {
    let node = Node::find(context, None)?;
    let path = format!("{}/wait", task(&arguments.id)?);
    let until = SystemClock.mono() + arguments.timeout;
    loop {
        let left = until - SystemClock.mono();
        let wait = link::whole_millis(left.min(ASK));
        let query = TaskWaitQuery {
            wait: Some(DurationText(wait)),
        };
        let reply: TaskWaitReply = node.ask_waiting(wait, &path, &query).await?;
        if !reply.done && !left.is_zero() {
            continue;
        }
        show(context, &reply.task)?;
        return match (reply.done, reply.task.state.as_str()) {
            (false, state) => Err(CliError::new(
                codes::NO_OUTCOME,
                format!("the task is still {state}"),
            )),
            (true, "completed") => Ok(Exit::Ok),
            (true, state) => Err(CliError::new(
                codes::WORK_FAILED,
                format!(
                    "the task is {state}: {}",
                    reply.task.reason.as_deref().unwrap_or("no reason")
                ),
            )),
        };
    }
}

async fn claim(context: &Context, arguments: &Claim) -> Outcome {
    let link = own_link(context)?;
    let until = SystemClock.mono() + arguments.wait;
    loop {
        let left = until - SystemClock.mono();
        let wait = link::whole_millis(left.min(ASK));
        let request = ClaimRequest {
            id: arguments.id.clone(),
            pools: (!arguments.pools.is_empty()).then(|| arguments.pools.clone()),
            capabilities: arguments.capabilities.clone(),
            max: Some(arguments.max),
            wait: Some(DurationText(wait)),
        };
        let reply: ClaimReply = link.tell_waiting(wait, "/v1/tasks/claim", &request).await?;
        if reply.claims.is_empty() && !left.is_zero() && arguments.id.is_none() {
            continue;
        }
        for claim in &reply.claims {
            context.ui.document(claim)?;
        }
        return if reply.claims.is_empty() {
            // Not an error: a loop asks again. So it says nothing.
            Err(CliError::Silent(Exit::RetryLater))
        } else {
            Ok(Exit::Ok)
        };
    }
}
