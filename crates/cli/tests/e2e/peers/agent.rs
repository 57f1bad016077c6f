//! An agent that lives in the test: it speaks the link API with the token of a replica that only idles and hands it out.

use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};
use volary::ops::client::{Client, ClientError, read_token};
use volary_testkit::process::eventually;

use crate::support::Fleet;

/// One agent. It finds its node again after each start.
pub struct TestAgent<'a> {
    fleet: &'a Fleet,
    client: Option<Client>,
    runtime: tokio::runtime::Runtime,
}

impl<'a> TestAgent<'a> {
    pub fn new(fleet: &'a Fleet) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        Self {
            fleet,
            client: None,
            runtime,
        }
    }

    /// Tokens and sockets change with each start of the node.
    fn client(&mut self) -> Option<Client> {
        if self.client.is_none() {
            let token = read_token(&self.fleet.path("token")).ok()?;
            let socket = self.fleet.env.state().join("link/link.sock");
            self.client = Some(Client::unix(socket).token(token));
        }
        self.client.clone()
    }

    fn call<T>(&mut self, call: impl AsyncFnOnce(Client) -> Result<T, ClientError>) -> Option<T> {
        let answer = self
            .client()
            .map(|client| self.runtime.block_on(call(client)));
        match answer {
            Some(Ok(answer)) => Some(answer),
            _ => {
                self.client = None;
                let _always_passes = eventually(Duration::from_millis(20), || false);
                None
            }
        }
    }

    /// Posts `{"n": n}` for each number; what the node answered to each, or nothing if it did not answer.
    pub fn post(&mut self, topic: &str, numbers: &[u64]) -> Option<Vec<String>> {
        let messages: Vec<Value> = numbers
            .iter()
            .map(|n| json!({"topic": topic, "payload": {"n": n}}))
            .collect();
        let body = json!({ "messages": messages });
        let reply: Value =
            self.call(async |client| client.post("/v1/messages/batch", &body).await)?;
        let sent = reply["sent"].as_array().unwrap().iter();
        Some(
            sent.map(|one| one["admission"].as_str().unwrap().to_owned())
                .collect(),
        )
    }

    /// Receives; `(claim, idempotency key, topic, n)` of each.
    pub fn receive(&mut self) -> Vec<(String, String, String, u64)> {
        #[derive(Serialize)]
        struct Query {
            max: u32,
            wait: &'static str,
        }
        let query = Query {
            max: 100,
            wait: "500ms",
        };
        let wait = Duration::from_secs(1);
        let reply: Option<Value> =
            self.call(async |client| client.waiting(wait).get("/v1/inbox", &query).await);
        let reply = reply.unwrap_or_default();
        let items = reply["items"].as_array().cloned().unwrap_or_default();
        let text = |item: &Value, key: &str| item[key].as_str().unwrap_or_default().to_owned();
        let item = |item: &Value| {
            let n = item["payload"]["n"].as_u64().unwrap();
            (
                text(item, "id"),
                text(item, "idempotency_key"),
                text(item, "topic"),
                n,
            )
        };
        items.iter().map(item).collect()
    }

    /// Acknowledges.
    pub fn ack(&mut self, claims: &[String]) {
        let body = json!({ "ids": claims });
        let _comes_again: Option<Value> =
            self.call(async |client| client.post("/v1/inbox/ack", &body).await);
    }
}
