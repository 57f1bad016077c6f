//! Attempts of durable flows: answered from receipts where there are some, written down where there are none.
//!
//! ```text
//!   step known?  done      ─▶ its receipt is what it returns; the node does not run
//!                in doubt  ─▶ probe, run again, or fail: as its node says
//!                new       ─▶ [intent] ─▶ run ─▶ receipt ─▶ hand on
//! ```

use std::sync::Arc;

use volary_store::StoreError;

use super::{
    book::{Book, Known, StepAt},
    ledger::Ledger,
    once::Settle,
};
use crate::{
    context::Context,
    error::{FlowErrorCode, NodeError},
    graph::{
        plan::{Call, NodeIx, Payload, Plan, Returned, Slot, Step, Work},
        slot,
    },
};

/// Why an attempt of a durable flow failed that is not the node's fault.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Trouble {
    /// What has to be on disk is not.
    #[error("the step could not be stored: {0}")]
    Store(StoreError),
    /// Its effect may have happened, and nothing can tell.
    #[error("the effect {key} may have happened{}", .why.as_ref().map(|why| format!(": {why}")).unwrap_or_default())]
    InDoubt { key: String, why: Option<String> },
}

impl Trouble {
    fn into_error(self) -> NodeError {
        let mut error = NodeError::from(self);
        error.retryable = false;
        error
    }
}

fn boxed(error: StoreError) -> Box<NodeError> {
    Box::new(Trouble::Store(error).into_error())
}

/// The code of a failure that is not the node's fault.
pub(crate) fn code_of(error: &NodeError) -> Option<FlowErrorCode> {
    match error.source.as_ref()?.downcast_ref::<Trouble>()? {
        Trouble::Store(_) => Some(FlowErrorCode::Store),
        Trouble::InDoubt { .. } => Some(FlowErrorCode::InDoubt),
    }
}

/// The plan whose steps are written down.
pub(crate) fn durable_plan(plan: &Plan, ledger: &Arc<Ledger>) -> Plan {
    let mut plan = plan.clone();
    for (ix, node) in plan.nodes.iter_mut().enumerate() {
        let (Ok(ix), Work::Call(call)) = (NodeIx::try_from(ix), &node.work) else {
            continue;
        };
        let stored = &ledger.durable.nodes[usize::from(ix)];
        if !stored.pure {
            node.work = Work::Call(Arc::new(DurableCall(Arc::new(Inner {
                call: call.clone(),
                node: ix,
                once: stored.once.clone(),
                ledger: ledger.clone(),
            }))));
        }
    }
    plan
}

struct DurableCall(Arc<Inner>);

struct Inner {
    call: Arc<dyn Call>,
    node: NodeIx,
    once: Option<Settle>,
    ledger: Arc<Ledger>,
}

impl Call for DurableCall {
    fn slot(self: Arc<Self>) -> Box<dyn Slot> {
        slot::of(move |input, context| self.0.clone().attempt(input, context))
    }
}

impl Inner {
    async fn attempt(self: Arc<Self>, input: Payload, context: Context) -> Returned {
        let Some(book) = context.trace().book.clone() else {
            return slot::attempt(self.call.clone(), input, context).await;
        };
        let at = (self.node, context.step());
        match book.known(at) {
            Known::Done(record) => {
                return self.ledger.replay(self.node, &record).map_err(boxed);
            }
            Known::InDoubt => {
                if let Some(step) = self.settle(&book, at).await? {
                    return self.receipt(&book, at, step).await;
                }
            }
            Known::New if self.once.is_some() => {
                let intended = self.ledger.intend(&book, at).await;
                intended.map_err(|error| {
                    // It was not begun.
                    book.wrote(at);
                    boxed(error)
                })?;
            }
            Known::New => {}
        }
        let step = slot::attempt(self.call.clone(), input, context).await?;
        self.receipt(&book, at, step).await
    }

    async fn receipt(&self, book: &Book, at: StepAt, step: Step) -> Returned {
        let record = self.ledger.record_of(self.node, &step).map_err(boxed)?;
        if let Some(record) = record {
            let written = self.ledger.receipt(book, at, &record).await;
            written.map_err(boxed)?;
        }
        Ok(step)
    }

    /// Finds out about an effect that is in doubt: what it brought if it happened, none if it is to be run (again).
    async fn settle(&self, book: &Book, at: StepAt) -> Result<Option<Step>, NodeError> {
        let key = self.ledger.key_of(book, at);
        match &self.once {
            Some(Settle::Again) => Ok(None),
            Some(Settle::Probe(probe)) => match probe(key.clone()).await {
                Ok(found) => Ok(found.map(Step::Next)),
                Err(error) => {
                    // As retryable as the probe says; when no attempt is left the trace ends in doubt.
                    let why = Some(error.message.to_string());
                    Err(NodeError {
                        retryable: error.retryable,
                        retry_after: error.retry_after,
                        ..Trouble::InDoubt { key, why }.into_error()
                    })
                }
            },
            Some(Settle::Park) | None => Err(Trouble::InDoubt { key, why: None }.into_error()),
        }
    }
}
