//! `volary replay`: recorded messages, planned (which needs no running node), put into an agent's inbox again, or used to
//! check what an agent does now.

mod live;
mod show;
pub mod source;
mod verify;

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use volary::{
    messaging::replay::Speed,
    ops::api::{ReplayDirection, ReplayQuery},
};
use volary_kernel::{Name, Tenant, Timestamp, TraceId, sign::PublicKey};

use crate::{error::Outcome, settle::Context};

/// `volary replay`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Only plan: deliver nothing. That is what happens without --into and --verify, too.
    #[arg(long, conflicts_with_all = ["into", "verify"])]
    dry_run: bool,
    /// Put the messages into this agent's inbox: marked as replayed, under their own ids and idempotency keys.
    #[arg(long, value_name = "AGENT", conflicts_with = "verify")]
    into: Option<Name>,
    /// With --into: how fast recorded time goes by, `1x`, `10x` or `max`.
    #[arg(long, value_name = "SPEED", default_value_t = Speed::Max, requires = "into")]
    speed: Speed,
    /// Run the handler of --agent on what it handled, carry nothing out, and compare: exit code 1 at the first difference.
    #[arg(long, requires = "agent", conflicts_with_all = ["from_export", "direction"])]
    verify: bool,
    /// Take the messages from this archive (`volary journal export`) instead of the fleet's journal.
    #[arg(long, value_name = "FILE")]
    from_export: Option<PathBuf>,
    /// The public key that has signed the archive, 64 hex digits [default: the node's own].
    #[arg(long, value_name = "HEX", value_parser = public_key, requires = "from_export")]
    key: Option<PublicKey>,
    #[command(flatten)]
    wanted: Wanted,
    /// Only accepted at or after this time, like 2026-11-21T09:30:00Z.
    #[arg(long, value_name = "TIME")]
    from: Option<Timestamp>,
    /// Only accepted at or before this time.
    #[arg(long, value_name = "TIME")]
    to: Option<Timestamp>,
    /// Only journal entries at or after this one: where a plan that was too long, or a replay that stopped, goes on.
    #[arg(long, value_name = "SEQ")]
    from_seq: Option<u64>,
}

/// What `replay` and `journal export` choose messages by.
#[derive(Debug, Clone, Default, Args)]
pub struct Wanted {
    /// Only messages that went this way, seen from the agent.
    #[arg(long, value_name = "WAY")]
    pub direction: Option<Way>,
    /// Only messages to or from this agent.
    #[arg(long, value_name = "AGENT")]
    pub agent: Option<Name>,
    /// Only this tenant.
    #[arg(long, value_name = "TENANT")]
    pub tenant: Option<Tenant>,
    /// Only this trace.
    #[arg(long, value_name = "TRACE")]
    pub trace: Option<TraceId>,
}

/// Which way a message went.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Way {
    Inbound,
    Outbound,
}

/// A public key on the command line.
pub fn public_key(text: &str) -> Result<PublicKey, String> {
    PublicKey::from_hex(text).map_err(|error| error.to_string())
}

/// Plans, feeds or verifies.
pub async fn run(context: &Context, arguments: &Arguments) -> Outcome {
    let query = query(arguments);
    if arguments.verify {
        return verify::run(context, query).await;
    }
    match &arguments.into {
        None => show::run(context, arguments, query).await,
        Some(into) => live::run(context, arguments, query, into).await,
    }
}

fn query(arguments: &Arguments) -> ReplayQuery {
    let Wanted {
        direction,
        agent,
        tenant,
        trace,
    } = arguments.wanted.clone();
    ReplayQuery {
        direction: direction.map(|way| match way {
            Way::Inbound => ReplayDirection::Inbound,
            Way::Outbound => ReplayDirection::Outbound,
        }),
        agent,
        tenant,
        trace,
        from: arguments.from,
        to: arguments.to,
        from_seq: arguments.from_seq,
        ..ReplayQuery::default()
    }
}
