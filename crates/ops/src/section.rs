//! The [`Section`] seam: a named part of the node that adds routes and shows its state.
//!
//! The server knows sections, not domains: what a route does is the section's affair, who may call it is ours.

use axum::{
    handler::Handler,
    http::Method,
    routing::{self, MethodFilter, MethodRouter},
};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;

/// Which of the two APIs a route belongs to, and thereby which token opens it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Surface {
    /// The operator API: TCP, operator token.
    Operator,
    /// The link API: the agents' socket, link tokens.
    Link,
}

impl Surface {
    /// Its name in metrics and documents.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Link => "link",
        }
    }
}

/// A named part of the HTTP API.
///
/// Contract:
/// - [`Section::name`] is unique, short and stable: it tags the section's routes and keys its snapshot.
/// - [`Section::routes`] is called once, before the first request. Paths begin with `/v1/` and are written as axum
///   writes them (`/v1/parked/{id}`); no two sections claim one method and path of one surface.
/// - Handlers run on the node's main runtime, already authenticated; they find who asks with the extractors
///   [`crate::Principal`], [`crate::Operator`] and [`crate::LinkPeer`]. They may be slow, up to the request timeout. A `GET` is
///   dropped when its client goes away; any other method runs to its end. A panic costs the one request.
/// - A handler that waits or streams also ends when [`crate::Stopping`] resolves.
/// - [`Section::snapshot`] returns at once from what is at hand: no I/O, no lock that a request may hold for long. It
///   never holds the value of a secret.
pub trait Section: Send + Sync + 'static {
    /// Unique short name, like `inbox`.
    fn name(&self) -> &'static str;

    /// The routes that this section adds.
    fn routes(&self) -> Vec<Route>;

    /// The section's state for `GET /v1/inspect`; null when there is nothing to show.
    fn snapshot(&self) -> serde_json::Value {
        serde_json::Value::Null
    }
}

pub(crate) type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// What a route answers with.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Reply {
    /// Nothing was said.
    Unsaid,
    /// A JSON document.
    Json(SchemaOf),
    /// A stream or text of this media type.
    Media(&'static str),
}

/// One route: method, path, surface, handler, and what the API document says about it.
#[derive(Debug, Clone)]
pub struct Route {
    pub(crate) method: Method,
    pub(crate) path: &'static str,
    pub(crate) surface: Surface,
    pub(crate) handler: MethodRouter,
    pub(crate) summary: &'static str,
    pub(crate) body: Option<SchemaOf>,
    pub(crate) query: Option<SchemaOf>,
    pub(crate) reply: Reply,
    /// For a route that proves its callers itself: most bytes of a body.
    pub(crate) open: Option<usize>,
}

impl Route {
    /// A route from a ready-made router, which must serve `method` (with its state given, see
    /// [`MethodRouter::with_state`]). It belongs to the operator API until [`Route::link`] says otherwise.
    pub fn new(method: Method, path: &'static str, handler: MethodRouter) -> Self {
        Self {
            method,
            path,
            surface: Surface::Operator,
            handler,
            summary: "",
            body: None,
            query: None,
            reply: Reply::Unsaid,
            open: None,
        }
    }

    /// A `GET` route.
    pub fn get<H: Handler<T, ()>, T: 'static>(path: &'static str, handler: H) -> Self {
        Self::new(Method::GET, path, routing::get(handler))
    }

    /// A `POST` route.
    pub fn post<H: Handler<T, ()>, T: 'static>(path: &'static str, handler: H) -> Self {
        Self::new(Method::POST, path, routing::post(handler))
    }

    /// A `PUT` route.
    pub fn put<H: Handler<T, ()>, T: 'static>(path: &'static str, handler: H) -> Self {
        Self::new(Method::PUT, path, routing::on(MethodFilter::PUT, handler))
    }

    /// A `DELETE` route.
    pub fn delete<H: Handler<T, ()>, T: 'static>(path: &'static str, handler: H) -> Self {
        Self::new(Method::DELETE, path, routing::delete(handler))
    }

    /// The same, on the link API.
    #[must_use]
    pub fn link(mut self) -> Self {
        self.surface = Surface::Link;
        self
    }

    /// Opened without a token, for callers that have none and whom the handler itself makes prove who they are, from the
    /// bytes of the body; such as webhooks. All of them together have no more requests open than one replica may.
    ///
    /// `body_bytes` is all that is read of a body. A route of the operator API only; elsewhere it says nothing.
    #[must_use]
    pub fn open(mut self, body_bytes: usize) -> Self {
        self.open = Some(body_bytes);
        self
    }

    /// Whether a request is for this route, as far as method and path tell.
    pub(crate) fn fits(&self, method: &Method, path: &str) -> bool {
        let (mut own, mut asked) = (self.path.split('/'), path.split('/'));
        *method == self.method
            && loop {
                match (own.next(), asked.next()) {
                    (None, None) => break true,
                    (Some(own), Some(part)) if own == part => {}
                    (Some(own), Some(part)) if own.starts_with('{') && !part.is_empty() => {}
                    _ => break false,
                }
            }
    }

    /// What it does, in a line.
    #[must_use]
    pub fn summary(mut self, summary: &'static str) -> Self {
        self.summary = summary;
        self
    }

    /// The JSON document it takes.
    #[must_use]
    pub fn takes<T: JsonSchema>(mut self) -> Self {
        self.body = Some(SchemaGenerator::subschema_for::<T>);
        self
    }

    /// The query parameters it takes: the fields of `T`.
    #[must_use]
    pub fn query<T: JsonSchema>(mut self) -> Self {
        self.query = Some(T::json_schema);
        self
    }

    /// The JSON document it gives.
    #[must_use]
    pub fn gives<T: JsonSchema>(mut self) -> Self {
        self.reply = Reply::Json(SchemaGenerator::subschema_for::<T>);
        self
    }

    /// The media type of the stream or text it gives.
    #[must_use]
    pub fn streams(mut self, media_type: &'static str) -> Self {
        self.reply = Reply::Media(media_type);
        self
    }
}
