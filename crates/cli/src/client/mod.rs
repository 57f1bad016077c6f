//! Nodes and links as commands see them: found by state folder or environment, spoken with over HTTP, and every
//! failure put into the words and exit codes of the command line.

mod link;
mod presence;

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::{
    StreamExt,
    stream::{self, BoxStream},
};
use serde::{Serialize, de::DeserializeOwned};
use volary::ops::{
    api::{
        AcceptRequest, AgentView, DownReply, DownRequest, Event, EventsQuery, HealthDocument,
        IdentityList, IdentityView, LogsQuery, ParkedList, ParkedQuery, ParkedView, PeerList,
        ReplayPlan, ReplayQuery, ReplayReply, ReplayRequest, ReplicaView, RetryReply, RotateReply,
        RotateRequest, SendReply, SendRequest, VerifyReply, VerifyRequest,
    },
    client::{Client, ClientError, EventStream, Lines},
};
use volary_kernel::{Name, secret::Secret};

pub use self::link::Link;
use self::presence::Presence;
use crate::{codes, error::CliError, exit::Exit, settle::Context, ui};

/// What comes bit by bit.
pub type Feed<T> = BoxStream<'static, Result<T, CliError>>;

/// What comes over the live feed.
#[derive(Debug)]
pub enum Heard {
    /// An event.
    Event(Event),
    /// The node's word that something is missing here. Told, not mixed into the data.
    Gap(String),
}

/// A running node.
#[derive(Debug)]
pub struct Node {
    presence: Presence,
    client: Client,
    base: String,
    token: Secret,
    state: PathBuf,
}

impl Node {
    /// The node that the user means.
    ///
    /// # Errors
    /// When none runs there, or its state folder cannot be read.
    pub fn find(context: &Context, fleet: Option<&Path>) -> Result<Self, CliError> {
        let state = context.running_state(fleet)?;
        Self::running_on(&state)?.ok_or_else(|| {
            CliError::new(
                codes::NOT_RUNNING,
                format!("no node runs on {}", state.display()),
            )
        })
    }

    /// The same, where none is no error.
    ///
    /// # Errors
    /// When its state folder cannot be read.
    pub fn find_running(context: &Context, fleet: Option<&Path>) -> Result<Option<Self>, CliError> {
        Self::running_on(&context.running_state(fleet)?)
    }

    /// The node that runs on a state folder.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn running_on(state: &Path) -> Result<Option<Self>, CliError> {
        let Some(presence) = Presence::read(state)? else {
            return Ok(None);
        };
        let path = state.join("operator.token");
        let token = read(&path).map_err(|error| {
            let code = if error.kind() == io::ErrorKind::PermissionDenied {
                Exit::Denied
            } else {
                Exit::Failure
            };
            let message = format!("cannot read the operator token {}", path.display());
            CliError::foreign(
                codes::STATE.id,
                message,
                Some(codes::STATE.hint.into()),
                code,
            )
            .because(&error)
        })?;
        let token = Secret::new(token.trim());
        let client = Client::tcp(presence.ops).token(token.clone());
        let base = format!("http://{}", presence.ops);
        Ok(Some(Self {
            presence,
            client,
            base,
            token,
            state: state.to_owned(),
        }))
    }

    /// Process id of the node.
    pub fn pid(&self) -> u32 {
        self.presence.pid
    }

    /// Whether its process is still there.
    pub fn lives(&self) -> bool {
        self.presence.lives()
    }

    /// Address of the operators' server, like `http://127.0.0.1:4000`.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// The live feed as a link for a browser or curl, token included.
    pub fn events_url(&self) -> String {
        format!("{}/events?token={}", self.base, self.token.expose())
    }

    /// Its state folder.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Its replicas.
    pub async fn replicas(&self) -> Result<Vec<ReplicaView>, CliError> {
        self.client.get("/v1/replicas", &()).await.map_err(failure)
    }

    /// All about one agent.
    pub async fn agent(&self, name: &Name) -> Result<AgentView, CliError> {
        self.client
            .get(&format!("/v1/agents/{name}"), &())
            .await
            .map_err(failure)
    }

    /// What agents wrote, line by line.
    pub async fn logs(&self, query: &LogsQuery) -> Result<Feed<String>, CliError> {
        Ok(by_line(
            self.client
                .lines("/v1/logs", query)
                .await
                .map_err(failure)?,
        ))
    }

    /// What the journal holds.
    pub async fn events(&self, query: &EventsQuery) -> Result<Feed<Event>, CliError> {
        let lines = by_line(
            self.client
                .lines("/v1/events", query)
                .await
                .map_err(failure)?,
        );
        Ok(lines.map(|line| line.and_then(|line| event(&line))).boxed())
    }

    /// What happens, as it happens, until the node stops.
    pub async fn follow(&self, query: &EventsQuery) -> Result<Feed<Heard>, CliError> {
        Ok(by_event(
            self.client
                .events("/events", query, None)
                .await
                .map_err(failure)?,
        ))
    }

    /// Asks for a document.
    pub async fn ask<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &impl Serialize,
    ) -> Result<T, CliError> {
        self.client.get(path, query).await.map_err(failure)
    }

    /// Asks for a document that the node may take `wait` to give.
    pub async fn ask_waiting<T: DeserializeOwned>(
        &self,
        wait: Duration,
        path: &str,
        query: &impl Serialize,
    ) -> Result<T, CliError> {
        let client = self.client.clone().waiting(wait);
        client.get(path, query).await.map_err(failure)
    }

    /// Has something done.
    pub async fn tell<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, CliError> {
        self.client.post(path, body).await.map_err(failure)
    }

    /// Has something removed.
    pub async fn remove<T: DeserializeOwned>(&self, path: &str) -> Result<T, CliError> {
        self.client.delete(path).await.map_err(failure)
    }

    /// Sends a message.
    pub async fn send(&self, request: &SendRequest) -> Result<SendReply, CliError> {
        send(&self.client, request).await
    }

    /// `/health` or `/ready`: the document, whatever it says.
    pub async fn health(&self, path: &str) -> Result<HealthDocument, CliError> {
        self.client
            .probe(path)
            .await
            .map(|(_well, document)| document)
            .map_err(failure)
    }

    /// What is parked.
    pub async fn parked(&self, query: &ParkedQuery) -> Result<ParkedList, CliError> {
        self.client.get("/v1/parked", query).await.map_err(failure)
    }

    /// One parked item.
    pub async fn parked_show(&self, id: &str) -> Result<ParkedView, CliError> {
        self.client.get(&parked(id)?, &()).await.map_err(failure)
    }

    /// Tries a parked item again.
    pub async fn parked_retry(&self, id: &str) -> Result<RetryReply, CliError> {
        self.client
            .post(&format!("{}/retry", parked(id)?), &serde_json::json!({}))
            .await
            .map_err(failure)
    }

    /// Gives a parked item up.
    pub async fn parked_drop(&self, id: &str) -> Result<RetryReply, CliError> {
        self.client.delete(&parked(id)?).await.map_err(failure)
    }

    /// Its peers, and itself as they know it.
    pub async fn peers(&self) -> Result<PeerList, CliError> {
        self.client.get("/v1/peers", &()).await.map_err(failure)
    }

    /// Makes it believe that a peer's key has changed.
    pub async fn accept(&self, request: &AcceptRequest) -> Result<RotateReply, CliError> {
        self.client
            .post("/v1/peers/accept", request)
            .await
            .map_err(failure)
    }

    /// The identities it knows.
    pub async fn identities(&self) -> Result<IdentityList, CliError> {
        self.client
            .get("/v1/identities", &())
            .await
            .map_err(failure)
    }

    /// Makes it believe a key no longer.
    pub async fn revoke(&self, id: &str) -> Result<IdentityView, CliError> {
        let path = format!("{}/revoke", identity(id)?);
        self.client
            .post(&path, &serde_json::json!({}))
            .await
            .map_err(failure)
    }

    /// Makes it give an agent a new key.
    pub async fn rotate(&self, request: &RotateRequest) -> Result<RotateReply, CliError> {
        self.client
            .post("/v1/identities/rotate", request)
            .await
            .map_err(failure)
    }

    /// What a replay would feed.
    pub async fn replay(&self, query: &ReplayQuery) -> Result<ReplayPlan, CliError> {
        self.client.get("/v1/replay", query).await.map_err(failure)
    }

    /// Feeds recorded messages to an inbox.
    pub async fn feed(&self, request: &ReplayRequest) -> Result<ReplayReply, CliError> {
        self.client
            .post("/v1/replay", request)
            .await
            .map_err(failure)
    }

    /// Runs a handler on what it handled. Handlers may take long.
    pub async fn verify_replay(&self, request: &VerifyRequest) -> Result<VerifyReply, CliError> {
        self.client
            .clone()
            .waiting(Duration::from_secs(3600))
            .post("/v1/replay/verify", request)
            .await
            .map_err(failure)
    }

    /// Asks it to drain and end.
    pub async fn down(&self, request: &DownRequest) -> Result<DownReply, CliError> {
        self.client.post("/v1/down", request).await.map_err(failure)
    }
}

/// Ids are made of letters, digits and a few marks; anything else would change the path of the request.
fn parked(id: &str) -> Result<String, CliError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':' | '~');
    if id.is_empty() || !id.chars().all(fits) {
        let message = format!("`{}` cannot be the id of a parked item", ui::tame(id));
        return Err(
            CliError::new(codes::USAGE, message).hint("`volary parked list` prints the ids")
        );
    }
    Ok(format!("/v1/parked/{id}"))
}

/// The path of a task, whose id is a UUID.
///
/// # Errors
/// When it can not be one.
pub fn task(id: &str) -> Result<String, CliError> {
    if id.parse::<volary_kernel::Uid>().is_err() {
        let message = format!("`{}` cannot be the id of a task", ui::tame(id));
        return Err(CliError::new(codes::USAGE, message).hint("`volary tasks list` prints the ids"));
    }
    Ok(format!("/v1/tasks/{id}"))
}

/// Ids of identities are hex digits.
fn identity(id: &str) -> Result<String, CliError> {
    if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        let message = format!("`{}` cannot be the id of an identity", ui::tame(id));
        return Err(
            CliError::new(codes::USAGE, message).hint("`volary identity list` prints the ids")
        );
    }
    Ok(format!("/v1/identities/{id}"))
}

async fn send(client: &Client, request: &SendRequest) -> Result<SendReply, CliError> {
    let wait = request.wait.map_or(Duration::ZERO, |wait| wait.0);
    client
        .clone()
        .waiting(wait)
        .post("/v1/messages", request)
        .await
        .map_err(failure)
}

/// A small file of text. A folder of state may be anything: never more than a token or a node's card is read.
fn read(path: &Path) -> io::Result<String> {
    const LIMIT: u64 = 64 << 10;
    let mut text = String::new();
    io::Read::read_to_string(&mut io::Read::take(fs::File::open(path)?, LIMIT), &mut text)?;
    Ok(text)
}

// --- streams ---------------------------------------------------------------------------------

fn by_line(lines: Lines) -> Feed<String> {
    let lines = stream::unfold(Some(lines), |lines| async {
        let mut lines = lines?;
        match lines.next().await {
            Ok(Some(line)) => Some((Ok(line), Some(lines))),
            Ok(None) => None,
            Err(error) => Some((Err(failure(error)), None)),
        }
    });
    lines.boxed()
}

fn by_event(events: EventStream) -> Feed<Heard> {
    let heard = stream::unfold(Some(events), |events| async {
        let mut events = events?;
        match events.next().await {
            Ok(Some(next)) if next.kind == "stream.stopping" => None,
            Ok(Some(next)) if next.kind.starts_with("stream.") => {
                let gap = format!(
                    "the feed is not whole: {} {}",
                    next.kind,
                    ui::tame(&next.data)
                );
                Some((Ok(Heard::Gap(gap)), Some(events)))
            }
            Ok(Some(next)) => Some((event(&next.data).map(Heard::Event), Some(events))),
            Ok(None) => None,
            Err(error) => Some((Err(failure(error)), None)),
        }
    });
    heard.boxed()
}

fn event(json: &str) -> Result<Event, CliError> {
    serde_json::from_str(json)
        .map_err(|error| CliError::new(codes::VERSION, "an event cannot be read").because(&error))
}

// --- failures --------------------------------------------------------------------------------

/// A failed call in the words and exit codes of the command line.
fn failure(error: ClientError) -> CliError {
    match &error {
        ClientError::Api {
            status,
            code,
            message,
            hint,
        }
        | ClientError::Unauthorised {
            status,
            code,
            message,
            hint,
        } => CliError::foreign(code.clone(), message.clone(), hint.clone(), exit(*status)),
        ClientError::Unreachable { .. }
        | ClientError::TimedOut { .. }
        | ClientError::Broken { .. } => CliError::new(codes::NO_ANSWER, error.to_string()),
        ClientError::Protocol(_) => CliError::new(codes::VERSION, error.to_string()),
        ClientError::Request(_) => CliError::new(codes::USAGE, error.to_string()),
    }
}

const fn exit(status: u16) -> Exit {
    match status {
        400 | 408 | 413 | 422 => Exit::BadData,
        401 | 403 | 421 => Exit::Denied,
        429 | 503 => Exit::RetryLater,
        504 => Exit::Deadline,
        _ => Exit::Failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_keeps_the_nodes_code_and_gets_an_exit_code() {
        for (status, wanted) in [
            (400, 65),
            (401, 77),
            (403, 77),
            (404, 1),
            (429, 75),
            (503, 75),
            (504, 124),
        ] {
            let error = ClientError::Api {
                status,
                code: "V6015".into(),
                message: "no".into(),
                hint: None,
            };
            let error = failure(error);
            assert_eq!(error.exit().code(), wanted, "{status}");
            assert!(matches!(error, CliError::Told(told) if told.code == "V6015"));
        }
    }

    #[test]
    fn an_id_cannot_lead_elsewhere() {
        assert_eq!(parked("0198-ab").unwrap(), "/v1/parked/0198-ab");
        for id in ["", "a/retry", "a?x", "a b", "%2e"] {
            assert!(parked(id).is_err(), "{id}");
        }
    }
}
