//! `volary identity`: who this node and its agents are, whom it knows, and how keys are replaced.

use std::{fs, io::Read as _, path::PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;
use volary::{
    KeyFiles, StateDir,
    deploy::spec::model::FleetSpec,
    messaging::{Identity, identity::Succession},
    ops::api::{AcceptRequest, IdentityStatus, IdentityView, PeerList, RotateReply, RotateRequest},
};
use volary_kernel::{Clock as _, Name, SystemClock};

use super::{up, validate};
use crate::{
    client::Node,
    codes,
    error::{CliError, Outcome},
    exit::Exit,
    settle::Context,
    ui::{self, table::Cell, table::Table, time},
};

/// `volary identity`.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(subcommand)]
    action: Option<Action>,
}

/// What to do with identities.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// Show who this node and its agents are; makes their keys if they have none yet. The default.
    Show(Show),
    /// Print the entry that makes this node a peer in another node's fleet.yaml.
    Peer(Peer),
    /// List the peers of a running node and how the links to them are.
    Peers,
    /// List the identities that a running node knows.
    List,
    /// Believe a key no longer, for good.
    Revoke(Revoke),
    /// Give an agent, or the node itself, a new key.
    Rotate(Rotate),
    /// Believe a peer's statement that its key has changed.
    Accept(Accept),
}

/// `volary identity show`.
#[derive(Debug, Default, Args)]
pub struct Show {
    /// Folder of the fleet.
    #[arg(value_name = "DIR")]
    fleet: Option<PathBuf>,
}

/// `volary identity peer`.
#[derive(Debug, Args)]
pub struct Peer {
    /// Folder of the fleet.
    #[arg(value_name = "DIR")]
    fleet: Option<PathBuf>,
    /// Where the other node reaches this one [default: what `messaging.listen` says, if others can use it].
    #[arg(long, value_name = "HOST:PORT")]
    address: Option<String>,
}

/// `volary identity revoke`.
#[derive(Debug, Args)]
pub struct Revoke {
    /// Id of the identity, as `identity list` prints it.
    #[arg(value_name = "ID")]
    id: String,
}

/// `volary identity rotate`.
#[derive(Debug, Args)]
pub struct Rotate {
    /// Agent that gets a new key.
    #[arg(value_name = "AGENT", required_unless_present = "node")]
    agent: Option<Name>,
    /// The node itself: prints the statement that its peers accept; used from the next start on.
    #[arg(long, conflicts_with = "agent")]
    node: bool,
}

/// `volary identity accept`.
#[derive(Debug, Args)]
pub struct Accept {
    /// File with the statement, as `identity rotate --node` printed it on the peer; - for standard input.
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Looks at keys, or asks the node.
pub fn run(context: &Context, arguments: &Arguments) -> Outcome {
    match &arguments.action {
        None => show(context, &Show::default()),
        Some(Action::Show(arguments)) => show(context, arguments),
        Some(Action::Peer(arguments)) => peer(context, arguments),
        Some(Action::Peers) => super::blocking(peers(context)),
        Some(Action::List) => super::blocking(list(context)),
        Some(Action::Revoke(arguments)) => super::blocking(revoke(context, arguments)),
        Some(Action::Rotate(arguments)) => rotate(context, arguments),
        Some(Action::Accept(arguments)) => super::blocking(accept(context, arguments)),
    }
}

// --- keys ------------------------------------------------------------------------------------

/// A fleet's keys, and its manifest where it can be read.
struct Own {
    keys: KeyFiles,
    fleet: Option<FleetSpec>,
    state: PathBuf,
    dir: PathBuf,
}

impl Own {
    /// Keys are needed to write the manifests of both sides, so they can be had before those are right.
    fn open(context: &Context, named: Option<&std::path::Path>) -> Result<Self, CliError> {
        let state = context.running_state(named)?;
        let beside = state.parent().map(std::path::Path::to_owned);
        let dir = match (named, beside) {
            (None, Some(beside)) if state.ends_with(crate::settle::STATE_FOLDER) => beside,
            _ => context.fleet_dir(named),
        };
        let fleet = validate::glance(context, &dir);
        up::prepare(&state)?;
        let keys =
            KeyFiles::open(StateDir::new(&state)).map_err(|error| CliError::of_node(&error))?;
        Ok(Self {
            keys,
            fleet,
            state,
            dir,
        })
    }

    fn node(&self) -> Result<Identity, CliError> {
        self.keys.node().map_err(|error| CliError::of_node(&error))
    }

    /// The agents of the manifest; where that cannot be read, those that have keys.
    fn agents(&self) -> Result<Vec<(Name, Identity)>, CliError> {
        let names: Vec<Name> = match &self.fleet {
            Some(fleet) => fleet
                .agents
                .iter()
                .map(|agent| agent.name.clone())
                .collect(),
            None => self
                .keys
                .agents()
                .map_err(|error| CliError::of_node(&error))?,
        };
        let agent = |name: Name| {
            let identity = self
                .keys
                .agent(&name)
                .map_err(|error| CliError::of_node(&error))?;
            Ok((name, identity))
        };
        names.into_iter().map(agent).collect()
    }
}

#[derive(Serialize)]
struct Shown {
    name: Option<Name>,
    id: String,
    key: String,
    state: PathBuf,
    agents: Vec<ShownAgent>,
}

#[derive(Serialize)]
struct ShownAgent {
    name: Name,
    id: String,
    key: String,
}

fn show(context: &Context, arguments: &Show) -> Outcome {
    let own = Own::open(context, arguments.fleet.as_deref())?;
    let node = own.node()?;
    let agents = own
        .agents()?
        .into_iter()
        .map(|(name, identity)| ShownAgent {
            name,
            id: identity.id().to_string(),
            key: identity.public().to_string(),
        });
    let shown = Shown {
        name: own.fleet.as_ref().map(|fleet| fleet.name.clone()),
        id: node.id().to_string(),
        key: node.public().to_string(),
        agents: agents.collect(),
        state: own.state,
    };
    if context.ui.json {
        context.ui.document(&shown)?;
        return Ok(Exit::Ok);
    }
    let mut table = Table::new(["WHO", "NAME", "ID", "PUBLIC KEY"]);
    let name = shown.name.as_ref().map_or("-", Name::as_str);
    table.row([
        "node".into(),
        name.into(),
        (&shown.id).into(),
        (&shown.key).into(),
    ]);
    for agent in &shown.agents {
        table.row([
            "agent".into(),
            (&agent.name).into(),
            (&agent.id).into(),
            (&agent.key).into(),
        ]);
    }
    context.ui.line(table.render(&context.ui))?;
    Ok(Exit::Ok)
}

#[derive(Serialize)]
struct Entry {
    name: Name,
    key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
}

fn peer(context: &Context, arguments: &Peer) -> Outcome {
    let own = Own::open(context, arguments.fleet.as_deref())?;
    let name = own.fleet.as_ref().map(|fleet| fleet.name.clone());
    let running = Node::running_on(&own.state)?;
    let asked = match &running {
        Some(node) => Some(super::blocking_value(node.peers())??.node),
        None => None,
    };
    let listen = asked
        .as_ref()
        .and_then(|node| node.listen.clone())
        .or_else(|| {
            let listen = own.fleet.as_ref()?.messaging.listen?;
            (listen.port() != 0).then(|| listen.to_string())
        });
    let is_open = |address: &String| {
        let address = address.parse::<std::net::SocketAddr>();
        address.is_ok_and(|address| !address.ip().is_unspecified())
    };
    let entry = Entry {
        name: name
            .or(asked.map(|node| node.name))
            .ok_or_else(|| nameless(&own.dir))?,
        key: own.node()?.public().to_string(),
        address: arguments.address.clone().or(listen.filter(is_open)),
    };
    if context.ui.json {
        context.ui.document(&entry)?;
    } else {
        // JSON texts are YAML texts; names and keys need no quotes.
        context.ui.line(format_args!("- name: {}", entry.name))?;
        context.ui.line(format_args!("  key: {}", entry.key))?;
        if let Some(address) = &entry.address {
            let quoted = serde_json::to_string(address).expect("a text is always JSON");
            context.ui.line(format_args!("  address: {quoted}"))?;
        }
    }
    if entry.address.is_none() {
        context.ui.say(
            "without an address, this node calls and is not called; name one with --address HOST:PORT if it listens",
        );
    }
    Ok(Exit::Ok)
}

/// The other side must not come to know the node by a name that it does not have.
fn nameless(dir: &std::path::Path) -> CliError {
    let message = format!(
        "the name of the fleet in {} is not known: its manifests cannot be read",
        dir.display()
    );
    let hint = "`volary validate` says what is wrong with them; `volary identity show` prints the key alone";
    CliError::new(codes::MANIFEST, message).hint(hint)
}

// --- what a running node knows ---------------------------------------------------------------

async fn peers(context: &Context) -> Outcome {
    let PeerList {
        peers, stranded, ..
    } = {
        let list = Node::find(context, None)?.peers().await?;
        if context.ui.json {
            context.ui.document(&list)?;
            return Ok(Exit::Ok);
        }
        list
    };
    let now = SystemClock.wall();
    let mut table = Table::new([
        "PEER",
        "STATE",
        "SINCE",
        "WAITING",
        "PARKED",
        "AGENTS",
        "ADDRESS",
        "LAST ERROR",
    ]);
    for peer in &peers {
        let state = match peer.state.as_str() {
            "connected" => Cell::styled(&peer.state, ui::GOOD),
            "failed" => Cell::styled(&peer.state, ui::BAD),
            _ => Cell::styled(&peer.state, ui::WARN),
        };
        let waiting = peer.outbox.ready + peer.outbox.delayed + peer.outbox.claimed;
        table.row([
            (&peer.name).into(),
            state,
            time::ago(now, peer.since).into(),
            waiting.into(),
            peer.outbox.parked.into(),
            peer.agents.into(),
            peer.address.as_deref().unwrap_or("-").into(),
            peer.last_error.as_deref().unwrap_or_default().into(),
        ]);
    }
    for gone in &stranded {
        let why = "not in messaging.peers any more; its messages go out once it is there again";
        table.row([
            (&gone.peer).into(),
            Cell::styled("stranded", ui::BAD),
            "-".into(),
            gone.items.into(),
            "-".into(),
            "-".into(),
            "-".into(),
            why.into(),
        ]);
    }
    context.ui.line(table.render(&context.ui))?;
    Ok(Exit::Ok)
}

async fn list(context: &Context) -> Outcome {
    let list = Node::find(context, None)?.identities().await?;
    if context.ui.json {
        context.ui.document(&list.identities)?;
        return Ok(Exit::Ok);
    }
    let mut table = Table::new(["NAME", "TENANT", "STATUS", "INTRODUCED BY", "ID"]);
    for identity in &list.identities {
        let by = identity.introduced_by.as_ref();
        table.row([
            (&identity.name).into(),
            (&identity.tenant).into(),
            status(identity),
            by.map_or("this node", Name::as_str).into(),
            (&identity.id).into(),
        ]);
    }
    context.ui.line(table.render(&context.ui))?;
    Ok(Exit::Ok)
}

fn status(identity: &IdentityView) -> Cell {
    match identity.status {
        IdentityStatus::Active => Cell::styled("active", ui::GOOD),
        IdentityStatus::Revoked => Cell::styled("revoked", ui::BAD),
    }
}

async fn revoke(context: &Context, arguments: &Revoke) -> Outcome {
    let view = Node::find(context, None)?.revoke(&arguments.id).await?;
    if context.ui.json {
        context.ui.document(&view)?;
    } else {
        context
            .ui
            .line(format_args!("{} of {} is revoked", view.id, view.name))?;
    }
    Ok(Exit::Ok)
}

// --- other keys ------------------------------------------------------------------------------

#[derive(Serialize)]
struct Rotated {
    #[serde(flatten)]
    reply: RotateReply,
    /// What the peers accept; only a node has to be accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    statement: Option<String>,
}

fn rotate(context: &Context, arguments: &Rotate) -> Outcome {
    let rotated = match &arguments.agent {
        None => rotate_node(context)?,
        Some(agent) => Rotated {
            reply: rotate_agent(context, agent)?,
            statement: None,
        },
    };
    if context.ui.json {
        context.ui.document(&rotated)?;
    } else {
        match &rotated.statement {
            Some(statement) => context.ui.line(statement)?,
            None => context.ui.line(format_args!(
                "{} is now {}",
                rotated.reply.name, rotated.reply.id
            ))?,
        }
    }
    Ok(Exit::Ok)
}

fn rotate_agent(context: &Context, agent: &Name) -> Result<RotateReply, CliError> {
    if let Some(node) = Node::find_running(context, None)? {
        let request = RotateRequest {
            agent: agent.clone(),
        };
        return super::blocking_value(node.rotate(&request))?;
    }
    let own = Own::open(context, None)?;
    if !own
        .keys
        .agents()
        .map_err(|error| CliError::of_node(&error))?
        .contains(agent)
    {
        let message = format!("no agent with a key is called `{agent}`");
        return Err(CliError::new(codes::NO_AGENT, message)
            .hint("`volary identity` lists those that have one"));
    }
    let rotated = own.keys.rotate_agent(agent, SystemClock.wall());
    let (new, statement) = rotated.map_err(|error| CliError::of_node(&error))?;
    Ok(reply(agent.clone(), &new, &statement))
}

fn rotate_node(context: &Context) -> Result<Rotated, CliError> {
    let own = Own::open(context, None)?;
    let _made_if_new = own.node()?;
    let (new, statement) = own
        .keys
        .rotate_node(SystemClock.wall())
        .map_err(|error| CliError::of_node(&error))?;
    let name = own.fleet.map(|fleet| fleet.name);
    let file = StateDir::new(&own.state).succession(&new.id());
    context.ui.say(format!(
        "the statement is also in {}: let every peer run `volary identity accept FILE`",
        file.display()
    ));
    if own.keys.in_use() {
        context
            .ui
            .say("the running node has the old key until it is started again");
    }
    Ok(Rotated {
        reply: reply(
            name.unwrap_or_else(|| Name::new("node").expect("the word keeps the rules of names")),
            &new,
            &statement,
        ),
        statement: Some(statement.to_string()),
    })
}

fn reply(name: Name, new: &Identity, statement: &Succession) -> RotateReply {
    RotateReply {
        name,
        old: volary::messaging::AgentId::of(statement.old()).to_string(),
        id: new.id().to_string(),
        key: new.public().to_string(),
    }
}

async fn accept(context: &Context, arguments: &Accept) -> Outcome {
    let file = &arguments.file;
    let unreadable = |error: std::io::Error| {
        CliError::new(codes::READ, format!("cannot read {}", file.display())).because(&error)
    };
    let source: Box<dyn std::io::Read> = if file.as_os_str() == "-" {
        Box::new(std::io::stdin())
    } else {
        Box::new(fs::File::open(file).map_err(unreadable)?)
    };
    // Somebody else's file: no more of it is read than a statement can have.
    let text = std::io::read_to_string(source.take(STATEMENT_MAX)).map_err(unreadable)?;
    let read = text.trim().parse::<Succession>();
    read.map_err(|error| {
        let message = format!("{} holds no statement of a node", file.display());
        CliError::new(codes::DOCUMENT, message)
            .because(&error)
            .hint("`volary identity rotate --node` prints one on the peer")
    })?;
    let request = AcceptRequest {
        statement: text.trim().to_owned(),
    };
    let reply = Node::find(context, None)?.accept(&request).await?;
    if context.ui.json {
        context.ui.document(&reply)?;
    } else {
        context
            .ui
            .line(format_args!("peer {} is now {}", reply.name, reply.id))?;
        context.ui.say(format!(
            "put the new key into fleet.yaml too, under the peer `{}`: key: {}",
            reply.name, reply.key
        ));
    }
    Ok(Exit::Ok)
}

/// More than any statement has, in bytes.
const STATEMENT_MAX: u64 = 4096;
