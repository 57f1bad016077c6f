//! The stable error codes of this crate: what an operator or an agent can look up, script against and search for.
//!
//! A code never changes its meaning and is never reused. `V60xx` answer a request, `V61xx` stop the server from
//! starting. Domain sections bring their own codes (see [`crate::ApiError::domain`]).

/// One stable error code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code {
    /// What is printed and matched on, like `V6001`.
    pub id: &'static str,
    /// HTTP status that goes with it; 0 for errors that never travel over HTTP.
    pub status: u16,
    /// What went wrong, in general.
    pub title: &'static str,
    /// What to do about it, in general.
    pub hint: &'static str,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $id:literal, $status:literal, $title:literal, $hint:literal;)*) => {
        $($(#[$doc])* pub const $name: Code = Code { id: $id, status: $status, title: $title, hint: $hint };)*
        /// Every code of this crate, in order.
        pub const ALL: &[Code] = &[$($name),*];
    };
}

codes! {
    /// No token came with the request.
    TOKEN_MISSING = "V6001", 401, "a token is needed",
        "send `Authorization: Bearer TOKEN`; operators find theirs in the token file that `volary up` names, agents in $VOLARY_TOKEN_FILE";
    /// The token is not (or no longer) valid.
    TOKEN_UNKNOWN = "V6002", 401, "the token is not valid",
        "read the token file again: tokens end with the replica or the node state they were made for";
    /// A valid token of the other kind.
    TOKEN_KIND = "V6003", 403, "this kind of token does not open this route",
        "operator tokens open the operator API (TCP), link tokens open the link API (socket in $VOLARY_LINK)";
    /// The `Host` header names somebody else.
    HOST_REFUSED = "V6004", 421, "the Host header does not name this server",
        "use 127.0.0.1 or localhost, or list the name in the allowed hosts of the ops server";
    /// The request cannot be understood.
    BAD_REQUEST = "V6005", 400, "the request is malformed", "the message says what is expected; GET /v1/openapi.json describes every route";
    /// No such route.
    NO_ROUTE = "V6006", 404, "there is no such route", "see GET /v1/openapi.json for the routes there are";
    /// The route does not take this method.
    METHOD = "V6007", 405, "the route does not take this method", "see GET /v1/openapi.json for the methods it takes";
    /// The body is over the limit.
    BODY_TOO_LARGE = "V6008", 413, "the request body is too large",
        "send less, or raise `messaging.maxPayload` of the fleet";
    /// Connections, streams or requests are at their bound.
    OVERLOADED = "V6009", 503, "the server is at one of its bounds", "try again after the time in Retry-After";
    /// The node's main runtime does not take requests.
    UNRESPONSIVE = "V6010", 503, "the node does not respond", "GET /health names the loop that is stuck";
    /// A handler did not finish in time.
    HANDLER_TIMEOUT = "V6011", 504, "the request took too long",
        "the work may still have been done: look before you repeat it";
    /// A bug in a handler.
    INTERNAL = "V6012", 500, "something went wrong inside the node", "the node's log says what";
    /// The node is stopping.
    DRAINING = "V6013", 503, "the node is stopping", "try again when it is back";
    /// The body did not arrive in time.
    BODY_TIMEOUT = "V6014", 408, "the request body did not arrive in time", "send the body without long pauses";
    /// The thing that a path names is not there.
    NOT_FOUND = "V6015", 404, "there is no such thing", "list what there is first";
    /// The journal cannot be read.
    JOURNAL = "V6016", 503, "the journal cannot be read",
        "`volary journal verify` tells whether it is damaged; the node's log says more";
    /// The request cannot be done in the present state.
    CONFLICT = "V6017", 409, "the request does not fit the present state", "look at the state and ask again";
    /// Retention removed what was asked for.
    TRIMMED = "V6018", 410, "retention removed these journal entries",
        "ask again from the first entry that is kept, which the message names";
    /// One replica (or the operator) asks for too much at a time.
    TOO_MANY_OPEN = "V6019", 429, "too many requests are open under this token",
        "wait for answers before asking on; one long poll at a time is enough";
    /// The bind address is reachable from other machines.
    NOT_LOOPBACK = "V6101", 0, "the ops server must not listen beyond this machine without protection",
        "bind 127.0.0.1, or accept plain HTTP for every host that can reach it with the insecure setting";
    /// The address cannot be bound.
    BIND = "V6102", 0, "the ops address cannot be bound", "choose another port (0 takes a free one) or stop who has it";
    /// The socket path is longer than the kernel takes.
    SOCKET_PATH = "V6103", 0, "the path of the agents' socket is too long",
        "use a shorter state directory (--state DIR): the system takes 107 bytes";
    /// Another process answers on the socket.
    SOCKET_IN_USE = "V6104", 0, "another node answers on the agents' socket", "stop it, or use another state directory";
    /// Something that is no socket has the path.
    SOCKET_TAKEN = "V6105", 0, "the path of the agents' socket belongs to something else", "move that file away";
    /// The token file cannot be used as it is.
    TOKEN_FILE = "V6106", 0, "the operator token file cannot be used",
        "it must be a plain file of yours with mode 0600; remove it to get a new token";
    /// Two sections claim one route.
    ROUTE_CLASH = "V6107", 0, "two sections claim the same route", "this is a bug in the program that assembles the node";
    /// A thread or runtime cannot be had.
    RESOURCES = "V6108", 0, "the system refuses what the ops server needs", "look at the limits of the process";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_unique_and_has_words() {
        let mut ids: Vec<_> = ALL.iter().map(|code| code.id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), ALL.len());
        assert!(
            ALL.iter()
                .all(|code| !code.title.is_empty() && !code.hint.is_empty())
        );
        assert!(
            ALL.iter()
                .all(|code| code.status == 0 || (400..600).contains(&code.status))
        );
    }
}
