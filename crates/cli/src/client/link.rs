//! An agent's link to its node: the Unix socket and the token that its environment names.

use std::time::Duration;

use serde::{Serialize, de::DeserializeOwned};
use volary::ops::{
    api::{
        AckReply, AckRequest, InboxQuery, InboxReply, NackReply, NackRequest, SendReply,
        SendRequest,
    },
    client::{Client, ClientError, Endpoint, read_token},
};

use super::failure;
use crate::{codes, error::CliError, settle::Environment};

/// See the module.
#[derive(Debug)]
pub struct Link(Client);

impl Link {
    /// The link of the replica whose environment this is.
    ///
    /// # Errors
    /// When the environment is not that of a replica.
    pub fn of_environment(environment: &Environment) -> Result<Self, CliError> {
        let missing = |name: &str| CliError::new(codes::NOT_LINKED, format!("{name} is not set"));
        let link = environment
            .link
            .as_deref()
            .ok_or_else(|| missing("VOLARY_LINK"))?;
        let file = environment
            .token_file
            .as_deref()
            .ok_or_else(|| missing("VOLARY_TOKEN_FILE"))?;
        let unusable = |error: ClientError| CliError::new(codes::NOT_LINKED, error.to_string());
        let endpoint: Endpoint = link.parse().map_err(unusable)?;
        let token = read_token(file).map_err(unusable)?;
        Ok(Self(Client::new(endpoint).token(token)))
    }

    /// Claims work.
    pub async fn next(&self, query: &InboxQuery) -> Result<InboxReply, CliError> {
        let wait = query.wait.map_or(Duration::ZERO, |wait| wait.0);
        self.0
            .clone()
            .waiting(wait)
            .get("/v1/inbox", query)
            .await
            .map_err(failure)
    }

    /// Acknowledges, with actions.
    pub async fn ack(&self, request: &AckRequest) -> Result<AckReply, CliError> {
        self.0.post("/v1/inbox/ack", request).await.map_err(failure)
    }

    /// Gives a claim back.
    pub async fn nack(&self, request: &NackRequest) -> Result<NackReply, CliError> {
        self.0
            .post("/v1/inbox/nack", request)
            .await
            .map_err(failure)
    }

    /// Has something done.
    pub async fn tell<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, CliError> {
        self.0.post(path, body).await.map_err(failure)
    }

    /// Has something done that the node may take `wait` for.
    pub async fn tell_waiting<T: DeserializeOwned>(
        &self,
        wait: Duration,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, CliError> {
        self.0
            .clone()
            .waiting(wait)
            .post(path, body)
            .await
            .map_err(failure)
    }

    /// Sends a message.
    pub async fn send(&self, request: &SendRequest) -> Result<SendReply, CliError> {
        super::send(&self.0, request).await
    }
}
