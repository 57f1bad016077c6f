//! Writing down what durable traces do: accepted, steps, ends. Knows the store and the plan, and nothing of running. It is
//! read in [`super::load`].
//!
//! ```text
//!   accept ─▶ live + journal ─────┐
//!   intent, receipt ─▶ step ──────┼─▶ Store::commit, each waits for its own (the writer groups them)
//!   end, read ─▶ closer (groups) ─┘
//! ```

use std::{collections::HashMap, sync::Arc, time::Duration};

use serde::Serialize;
use serde_json::value::RawValue;
use volary_kernel::{Name, Timestamp, Uid};
use volary_store::{
    Batch, Entry, Expect, Key, NewItem, QueueError, Record, SharedStore, StoreError,
};

use super::{
    DurableConfig,
    book::{Book, StepAt},
    record::{
        self, Deed, KeptRecord, Keys, LiveRecord, ParkedRecord, ParkedStep, StepRecord, VERSION,
    },
};
use crate::{
    envelope::{Headers, Meta},
    graph::plan::{Durable, NodeIx, Payload, Plan, Step, Target},
    outcome::Outcome,
};

/// Records fetched at once.
const PAGE: usize = 512;
/// Attempts to write to a store that is busy or full, and the wait between them.
const TRIES: u32 = 5;
const BETWEEN: Duration = Duration::from_millis(200);

/// Writes for one flow.
pub(crate) struct Ledger {
    pub plan: Arc<Plan>,
    pub durable: Arc<Durable>,
    pub config: DurableConfig,
    pub keys: Keys,
    pub(super) nodes: HashMap<Name, NodeIx>,
}

/// What is emitted, as it is to be written.
pub(crate) struct Intake<'a> {
    pub headers: &'a Headers,
    pub deadline: Option<Duration>,
    pub meta: &'a Meta,
    pub payload: &'a Payload,
}

impl Ledger {
    pub(crate) fn new(plan: Arc<Plan>, durable: Arc<Durable>, config: DurableConfig) -> Self {
        let named = |(ix, node): (usize, &crate::graph::plan::PlanNode)| {
            Some((node.name.clone(), NodeIx::try_from(ix).ok()?))
        };
        let nodes = plan.nodes.iter().enumerate().filter_map(named).collect();
        Self {
            keys: Keys::of(&plan.name),
            nodes,
            plan,
            durable,
            config,
        }
    }

    pub(crate) fn store(&self) -> &SharedStore {
        self.config.queues.store()
    }

    pub(super) fn node(&self, node: NodeIx) -> &Name {
        &self.plan.nodes[usize::from(node)].name
    }

    /// What the effect of a step is known by.
    pub(crate) fn key_of(&self, book: &Book, (node, step): StepAt) -> String {
        format!("{}/{}/{step:x}", book.trace, self.node(node))
    }

    /// The first node that gets what is emitted: where a failure belongs that is of none.
    pub(crate) fn ingress(&self) -> Name {
        let first = self.plan.ingress.first().copied();
        first.map_or_else(|| self.plan.name.clone(), |node| self.node(node).clone())
    }

    pub(super) fn wall(&self) -> Timestamp {
        self.store().clock().wall()
    }

    // --- accepting ---------------------------------------------------------------------------

    /// What is written when an envelope is accepted. Committing it may be dropped half-way: then it is to be revoked.
    pub(crate) fn accept(&self, book: &Book, intake: &Intake<'_>) -> Result<Batch, StoreError> {
        let at = self.wall();
        let mut json = Vec::new();
        self.durable
            .input
            .encode(intake.payload, &mut json)
            .map_err(|error| StoreError::Invalid(error.to_string()))?;
        let live = LiveRecord {
            v: VERSION,
            trace: book.trace,
            tenant: book.tenant.clone(),
            topic: intake.headers.topic.clone(),
            priority: intake.headers.priority,
            deadline: intake.deadline.map(|left| at + left),
            meta: intake.meta.clone(),
            at,
            payload: record::raw(json)?,
        };
        let mut tx = Batch::new();
        tx.intake();
        tx.put(
            self.keys.live(book.uid)?,
            record::encode(&live)?,
            // Its id is new: there is none.
            Expect::Any,
        );
        tx.append(self.entry("flow.accepted", book, None, &[])?);
        Ok(tx)
    }

    // --- steps -------------------------------------------------------------------------------

    /// Writes that a step is about to have its effect.
    pub(crate) async fn intend(&self, book: &Book, at: StepAt) -> Result<(), StoreError> {
        self.write(book, at, &StepRecord::new(Deed::Intent)).await
    }

    /// Writes what a step did. It is done when this returns.
    pub(crate) async fn receipt(
        &self,
        book: &Book,
        at: StepAt,
        record: &StepRecord,
    ) -> Result<(), StoreError> {
        self.write(book, at, record).await?;
        book.wrote(at);
        Ok(())
    }

    async fn write(&self, book: &Book, at: StepAt, record: &StepRecord) -> Result<(), StoreError> {
        let key = self.keys.step(book.uid, self.node(at.0), at.1)?;
        let value = bytes::Bytes::from(record::encode(record)?);
        book.writes(at, record.deed);
        let make = || {
            let mut tx = Batch::new();
            tx.put(key.clone(), value.clone(), Expect::Any);
            Ok(tx)
        };
        self.persist(make).await
    }

    /// Commits, again while the store is busy or full.
    pub(crate) async fn persist(
        &self,
        make: impl Fn() -> Result<Batch, StoreError>,
    ) -> Result<(), StoreError> {
        let mut tries = 1;
        loop {
            match self.store().commit(make()?).await {
                Ok(_) => return Ok(()),
                Err(error) if error.is_transient() && tries < TRIES => {
                    tracing::warn!(flow = %self.plan.name, %error, tries, "a durable trace waits for its store");
                    tries += 1;
                    volary_kernel::clock::sleep(BETWEEN).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// What a step did, as it is written; none where that is an error that ends the trace anyway.
    pub(crate) fn record_of(
        &self,
        node: NodeIx,
        step: &Step,
    ) -> Result<Option<StepRecord>, StoreError> {
        let output = self.durable.nodes[usize::from(node)].output;
        let codec = |finish: bool| {
            let codec = if finish {
                Some(self.durable.output)
            } else {
                output
            };
            codec.ok_or_else(|| {
                StoreError::Invalid(format!("node {} has no codec", self.node(node)))
            })
        };
        let value = |value: &Payload, finish: bool| {
            let mut json = Vec::new();
            codec(finish)?
                .encode(value, &mut json)
                .map_err(|error| StoreError::Invalid(error.to_string()))?;
            record::raw(json)
        };
        let mut record = StepRecord::new(Deed::Nothing);
        match step {
            Step::Next(payload) => {
                record.deed = Deed::Next;
                record.values.push(value(payload, false)?);
            }
            Step::Each(payloads) => {
                record.deed = Deed::Each;
                for payload in payloads {
                    record.values.push(value(payload, false)?);
                }
            }
            Step::One(edge, payload) => {
                record.deed = Deed::To;
                record.values.push(value(payload, false)?);
                record.targets.push(self.target(node, *edge));
            }
            Step::To(routed) => {
                record.deed = Deed::To;
                for (edge, payload) in routed {
                    record.values.push(value(payload, false)?);
                    record.targets.push(self.target(node, *edge));
                }
            }
            Step::Nothing => {}
            Step::NoSuchTarget(_) => return Ok(None),
            Step::Finish(payload) => {
                record.deed = Deed::Finish;
                record.values.push(value(payload, true)?);
            }
        }
        Ok(Some(record))
    }

    fn target(&self, node: NodeIx, edge: u16) -> Option<Name> {
        let edge = self.plan.nodes[usize::from(node)]
            .out
            .get(usize::from(edge))?;
        match edge.to {
            Target::Node(to) => Some(self.node(to).clone()),
            Target::Egress => None,
        }
    }

    /// What a step of an earlier life did, to be handed on again.
    pub(crate) fn replay(&self, node: NodeIx, record: &StepRecord) -> Result<Step, StoreError> {
        let bad = |cause: String| StoreError::Corrupt {
            what: format!("receipt of node {}: {cause}", self.node(node)),
            seq: None,
        };
        let finish = record.deed == Deed::Finish;
        let codec = match self.durable.nodes[usize::from(node)].output {
            _ if finish => self.durable.output,
            Some(codec) => codec,
            None => return Err(bad("the node has no codec any more".into())),
        };
        let decode = |value: &RawValue| {
            codec
                .decode(value.get().as_bytes())
                .map_err(|error| bad(error.to_string()))
        };
        let mut values = record
            .values
            .iter()
            .map(|value| decode(value))
            .collect::<Result<Vec<_>, _>>()?;
        let mut one = || values.pop().ok_or_else(|| bad("it has no value".into()));
        Ok(match record.deed {
            Deed::Next => Step::Next(one()?),
            Deed::Finish => Step::Finish(one()?),
            Deed::Each => Step::Each(values),
            Deed::Nothing => Step::Nothing,
            Deed::To => {
                let out = &self.plan.nodes[usize::from(node)].out;
                let edge = |target: &Option<Name>| {
                    let wanted = target.as_ref().map(|name| self.nodes.get(name).copied());
                    let fits = |to: Target| match (to, wanted) {
                        (Target::Egress, None) => true,
                        (Target::Node(to), Some(Some(wanted))) => to == wanted,
                        _ => false,
                    };
                    let at = out.iter().position(|edge| fits(edge.to));
                    at.and_then(|at| u16::try_from(at).ok()).ok_or_else(|| {
                        bad("it went to a node that the flow no longer leads to".into())
                    })
                };
                let edges = record
                    .targets
                    .iter()
                    .map(edge)
                    .collect::<Result<Vec<_>, _>>()?;
                Step::To(edges.into_iter().zip(values).collect())
            }
            Deed::Intent => return Err(bad("it is no receipt".into())),
        })
    }

    // --- ends --------------------------------------------------------------------------------

    /// A value that is yielded, to be kept for the end.
    pub(crate) fn output(&self, value: &Payload) -> Result<Box<RawValue>, StoreError> {
        let mut json = Vec::new();
        self.durable
            .output
            .encode(value, &mut json)
            .map_err(|error| StoreError::Invalid(error.to_string()))?;
        record::raw(json)
    }

    /// Adds the end of a trace to `tx`: what it ran with goes, how it ended stays until it is read.
    pub(crate) fn add_end(
        &self,
        tx: &mut Batch,
        book: &Book,
        outcome: &Outcome,
        parked: Option<&ParkedRecord>,
    ) -> Result<(), StoreError> {
        let kept = KeptRecord {
            v: VERSION,
            trace: book.trace,
            tenant: book.tenant.clone(),
            at: self.wall(),
            outcome: outcome.clone(),
            values: book.values(),
        };
        let ttl = self.config.result_ttl;
        tx.put_ttl(
            self.keys.kept(book.uid)?,
            record::encode(&kept)?,
            Expect::Any,
            ttl,
        );
        tx.delete(self.keys.live(book.uid)?, Expect::Any);
        for (node, step) in book.steps() {
            let key = self.keys.step(book.uid, self.node(node), step)?;
            tx.delete(key, Expect::Any);
        }
        for key in &book.orphans {
            tx.delete(key.clone(), Expect::Any);
        }
        if book.ends() {
            tx.delete(self.keys.pause(book.trace)?, Expect::Any);
        }
        if let Some(parked) = parked {
            let mut item = NewItem::new(book.tenant.clone(), record::encode(parked)?);
            item.trace = Some(book.trace);
            let reason = format!("in doubt: {}", parked.key);
            let queue = self.queue();
            let parked = self.config.queues.park_new(tx, &queue, item, &reason);
            parked.map_err(of_queue)?;
        }
        let open: Vec<_> = book
            .open()
            .into_iter()
            .map(|at| self.key_of(book, at))
            .collect();
        tx.append(self.entry("flow.ended", book, Some(outcome), &open)?);
        Ok(())
    }

    /// Adds to `tx` that the end of a trace was read, or that nobody reads it any more.
    pub(crate) fn add_read(&self, tx: &mut Batch, uid: Uid) -> Result<(), StoreError> {
        tx.delete(self.keys.kept(uid)?, Expect::Any);
        Ok(())
    }

    /// Adds to `tx` that a trace was not accepted after all.
    pub(crate) fn add_revoke(&self, tx: &mut Batch, book: &Book) -> Result<(), StoreError> {
        tx.delete(self.keys.live(book.uid)?, Expect::Any);
        tx.append(self.entry("flow.revoked", book, None, &[])?);
        Ok(())
    }

    /// Where what is in doubt waits for a person, and comes back from.
    pub(crate) fn queue(&self) -> String {
        format!("flow/{}", self.plan.name)
    }

    /// All that is needed to take the trace up again, for a person to decide.
    pub(crate) async fn parked_of(&self, book: &Book) -> Result<Option<ParkedRecord>, StoreError> {
        let Some(doubt) = book.open().first().copied() else {
            return Ok(None);
        };
        let key = self.keys.live(book.uid)?;
        let Some(live) = self.store().get(&key).await? else {
            return Ok(None);
        };
        let mut steps = Vec::new();
        let prefix = format!("{}{}/", self.keys.steps, book.uid);
        each(self.store(), &prefix, |record| {
            let Some((_, node, step)) = self.keys.of_step(&record.key) else {
                return Ok(());
            };
            let record: StepRecord = record::decode(&record.key, &record.value)?;
            // What is in doubt is left out: a retry runs it again.
            if record.deed != Deed::Intent {
                steps.push(ParkedStep { node, step, record });
            }
            Ok(())
        })
        .await?;
        Ok(Some(ParkedRecord {
            v: VERSION,
            key: self.key_of(book, doubt),
            live: record::decode(&key, &live.value)?,
            steps,
        }))
    }

    /// Adds to `tx` that a parked trace lives again, as `uid`.
    pub(crate) fn add_again(
        &self,
        tx: &mut Batch,
        uid: Uid,
        parked: &ParkedRecord,
    ) -> Result<(), StoreError> {
        tx.put(
            self.keys.live(uid)?,
            record::encode(&parked.live)?,
            Expect::Absent,
        );
        for step in &parked.steps {
            let key = self.keys.step(uid, &step.node, step.step)?;
            tx.put(key, record::encode(&step.record)?, Expect::Any);
        }
        Ok(())
    }

    pub(super) fn entry(
        &self,
        kind: &'static str,
        book: &Book,
        outcome: Option<&Outcome>,
        in_doubt: &[String],
    ) -> Result<Entry, StoreError> {
        #[derive(Serialize)]
        struct Body<'a> {
            v: u8,
            flow: &'a Name,
            #[serde(skip_serializing_if = "Option::is_none")]
            outcome: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            error: Option<String>,
            #[serde(skip_serializing_if = "<[String]>::is_empty")]
            in_doubt: &'a [String],
        }
        let error = match outcome {
            Some(Outcome::Failed(error)) => Some(error.to_string()),
            _ => None,
        };
        let body = Body {
            v: VERSION,
            flow: &self.plan.name,
            outcome: outcome.map(Outcome::as_str),
            error,
            in_doubt,
        };
        Ok(Entry::json(kind, book.tenant.clone(), &body)?.trace(book.trace))
    }
}

/// What the queues say, as the store's word.
pub(crate) fn of_queue(error: QueueError) -> StoreError {
    match error {
        QueueError::Store(error) => error,
        other => StoreError::Invalid(other.to_string()),
    }
}

pub(super) fn corrupt(key: &Key) -> StoreError {
    StoreError::Corrupt {
        what: format!("record `{key}` is no record of a flow"),
        seq: None,
    }
}

/// Every record under `prefix`, page by page.
pub(crate) async fn each(
    store: &SharedStore,
    prefix: &str,
    mut take: impl FnMut(Record) -> Result<(), StoreError> + Send,
) -> Result<(), StoreError> {
    let mut after = None;
    loop {
        let page = store.scan(prefix, after.as_ref(), PAGE).await?;
        let full = page.len() == PAGE;
        after = page.last().map(|record| record.key.clone());
        page.into_iter().try_for_each(&mut take)?;
        if !full {
            return Ok(());
        }
    }
}
