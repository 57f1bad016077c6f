//! What a frame is before anybody sees it: verified, or opaque for who brings an own format.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use volary_kernel::sign::PUBLIC_KEY_LEN;

use super::{
    Arrival, Reception,
    lanes::{Lane, Work},
};
use crate::{
    frame::{self, OpenError, OpenFrame, Trust},
    transport::tcp::{Answer, PeerSpec, control::Durable},
};

/// A frame whose bytes were not looked at.
#[derive(Debug)]
pub struct OpaqueArrival {
    /// Who brought it.
    pub peer: PeerSpec,
    /// Messages in it, as the peer says.
    pub count: usize,
    /// Its bytes.
    pub frame: Bytes,
    /// What a durable sender said beside them.
    pub durable: Option<Durable>,
}

/// Takes an opaque frame and answers each of its messages.
pub type OpaqueArrived =
    Arc<dyn Fn(OpaqueArrival) -> BoxFuture<'static, Vec<Answer>> + Send + Sync>;

/// Opens frames and makes the work that they are.
pub(super) struct Handler {
    reception: Reception,
    opaque: Option<OpaqueArrived>,
}

impl Handler {
    pub(super) fn new(reception: &Reception, opaque: Option<OpaqueArrived>) -> Self {
        Self {
            reception: reception.clone(),
            opaque,
        }
    }

    /// Verifies a frame and says whose it is and what is to be done; or a word for the counter, and what is wrong.
    pub(super) fn open(
        &self,
        peer: &PeerSpec,
        count: usize,
        durable: Option<Durable>,
        frame: Bytes,
    ) -> Result<(Lane, Work), (&'static str, String)> {
        let peer = peer.clone();
        if let Some(opaque) = &self.opaque {
            let opaque = opaque.clone();
            let work = async move {
                opaque(OpaqueArrival {
                    peer,
                    count,
                    frame,
                    durable,
                })
                .await
            };
            return Ok(([0; PUBLIC_KEY_LEN], Box::pin(work)));
        }
        let frame = self.verify(&peer, &frame)?;
        let found = frame.messages().len();
        if found != count {
            let problem = format!("a frame of {found} messages is announced as one of {count}");
            return Err(("count", problem));
        }
        let (arrived, lane) = (self.reception.arrived.clone(), frame.key().to_bytes());
        // The function is called when its turn comes, not before.
        let work = async move {
            arrived(Arrival {
                peer,
                frame,
                durable,
            })
            .await
        };
        Ok((lane, Box::pin(work)))
    }

    fn verify(&self, peer: &PeerSpec, frame: &Bytes) -> Result<OpenFrame, (&'static str, String)> {
        let registry = (self.reception.trust)(peer);
        frame::open(frame, Trust::Registry(&registry))
            .map_err(|error| (word(&error), error.to_string()))
    }
}

fn word(error: &OpenError) -> &'static str {
    match error {
        OpenError::Decode(_) => "undecodable",
        OpenError::Key => "bad_key",
        OpenError::WrongKey { .. } | OpenError::Untrusted(_) => "unknown_sender",
        OpenError::Signature => "bad_signature",
        OpenError::Sender { .. } => "foreign_sender",
    }
}
