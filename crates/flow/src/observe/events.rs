//! Events that are to be told, in memory that is used again.

use std::slice::IterMut;

use volary_kernel::{Mono, Name, Tenant, Timestamp, TraceId};

use super::{
    event::{FlowEvent, FlowEventKind},
    record::{Record, Told},
    times::Times,
};
use crate::graph::plan::NodeIx;

/// While nothing happens, so many slots are kept.
const KEPT: usize = 64;

/// Events that are to be told. They are written over those that were told before: most have the same names.
#[derive(Default)]
pub(super) struct Events {
    slots: Vec<FlowEvent>,
    len: usize,
}

/// What all events of one record have in common.
pub(super) struct Whose<'a> {
    /// The same for all events that are kept together.
    pub flow: &'a Name,
    /// All that there are.
    pub nodes: &'a [Name],
    pub times: Times,
    pub tenant: &'a Tenant,
    pub trace_id: TraceId,
}

impl Events {
    pub(super) fn all(&self) -> &[FlowEvent] {
        self.slots.get(..self.len).unwrap_or_default()
    }

    /// Gives back what a flood took, and the texts of what was told.
    pub(super) fn rest(&mut self) {
        self.slots.truncate(KEPT);
        self.slots.shrink_to(KEPT);
        for slot in &mut self.slots {
            slot.kind = FlowEventKind::TraceStart;
        }
    }

    /// All were told.
    pub(super) const fn clear(&mut self) {
        self.len = 0;
    }

    /// What a record stands for. Room is looked for once, not for each event.
    #[inline]
    pub(super) fn add(&mut self, whose: Whose<'_>, record: &mut Record, chains: &[Vec<NodeIx>]) {
        let most = usize::try_from(record.events()).unwrap_or(usize::MAX);
        let end = self.len + most;
        if end > self.slots.len() {
            self.grow(&whose, end);
        }
        let mut adding = Adding {
            slots: self.slots[self.len..end].iter_mut(),
            whose,
        };
        record.tell(chains, &mut adding);
        self.len = end - adding.slots.len();
    }

    #[cold]
    #[inline(never)]
    fn grow(&mut self, whose: &Whose<'_>, len: usize) {
        self.slots.resize_with(len, || FlowEvent {
            at: Timestamp::default(),
            flow: whose.flow.clone(),
            node: None,
            trace_id: whose.trace_id,
            tenant: whose.tenant.clone(),
            attempt: 0,
            kind: FlowEventKind::TraceStart,
        });
    }
}

/// Writes the events of one record into slots.
struct Adding<'a> {
    slots: IterMut<'a, FlowEvent>,
    whose: Whose<'a>,
}

impl Told for Adding<'_> {
    // Each of its few callers knows what kind it tells: what is left of this there is a few instructions.
    #[inline(always)]
    fn told(
        &mut self,
        node: Option<NodeIx>,
        attempt: u32,
        at: Mono,
        kind: impl FnOnce() -> FlowEventKind,
    ) {
        let Some(event) = self.slots.next() else {
            return;
        };
        let whose = &self.whose;
        let node = node.and_then(|node| whose.nodes.get(usize::from(node)));
        let old = event.node.as_ref().map(place);
        if old != node.map(place) || text(event.tenant.as_str()) != text(whose.tenant.as_str()) {
            name(event, node, whose.tenant);
        }
        event.at = whose.times.wall(at);
        event.trace_id = whose.trace_id;
        event.attempt = attempt;
        event.kind = kind();
    }
}

fn text(text: &str) -> *const u8 {
    text.as_ptr()
}

fn place(name: &Name) -> *const u8 {
    text(name.as_str())
}

#[cold]
#[inline(never)]
fn name(event: &mut FlowEvent, node: Option<&Name>, tenant: &Tenant) {
    if event.node.as_ref().map(place) != node.map(place) {
        event.node = node.cloned();
    }
    if text(event.tenant.as_str()) != text(tenant.as_str()) {
        event.tenant = tenant.clone();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use volary_kernel::ManualClock;

    use super::{
        super::record::{ChainRun, TraceTag},
        *,
    };
    use crate::outcome::Outcome;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn at(millis: u64) -> Mono {
        Mono::from_nanos(millis * 1_000_000)
    }

    fn tag() -> TraceTag {
        TraceTag {
            id: TraceId::generate(),
            tenant: 0,
            hops: 0,
        }
    }

    /// Tells records of one tenant, and gives what observers would see of each event.
    fn told(
        events: &mut Events,
        tenant: &Tenant,
        records: Vec<(TraceTag, Record)>,
    ) -> Vec<FlowEvent> {
        let (flow, nodes) = (name("orders"), [name("a"), name("b")]);
        for (tag, mut record) in records {
            let whose = Whose {
                flow: &flow,
                nodes: &nodes,
                times: Times::read(&ManualClock::default().shared()),
                tenant,
                trace_id: tag.id,
            };
            events.add(whose, &mut record, &[vec![0, 1]]);
        }
        let all = events.all().to_vec();
        events.clear();
        all
    }

    fn of_node(node: NodeIx, kind: FlowEventKind) -> (TraceTag, Record) {
        let tag = tag();
        (tag, Record::event(&tag, Some(node), 7, at(3), kind))
    }

    fn chain(begins: bool, ends: bool, count: u16) -> (TraceTag, Record) {
        let tag = tag();
        let run = ChainRun {
            first: 0,
            count,
            begins,
            ends,
            accepted: at(10),
            started: at(11),
            ended: at(14),
        };
        (tag, Record::chain(&tag, 0, run))
    }

    /// What each record shows, told into memory that is used for the first time.
    fn fresh(tenant: &Tenant, records: Vec<(TraceTag, Record)>) -> Vec<FlowEvent> {
        told(&mut Events::default(), tenant, records)
    }

    fn without_ids(events: &[FlowEvent]) -> Vec<String> {
        let shown = |event: &FlowEvent| {
            let (id, mut event) = (event.trace_id, format!("{event:?}"));
            event = event.replace(&id.to_string(), "id");
            event
        };
        events.iter().map(shown).collect()
    }

    #[test]
    fn what_is_written_over_shows_nothing_of_what_was_there() {
        let (red, blue): (Tenant, Tenant) = ("red".parse().unwrap(), "blue".parse().unwrap());
        let failed = || {
            let error = "secret of red".to_owned();
            let latency = Duration::from_secs(9);
            of_node(1, FlowEventKind::NodeError { error, latency })
        };
        let ended = || {
            let tag = tag();
            let latency = Duration::from_secs(8);
            let outcome = Outcome::Cancelled;
            let kind = FlowEventKind::TraceEnd { outcome, latency };
            (tag, Record::event(&tag, None, 0, at(4), kind))
        };
        for sort in 0..3 {
            let round = || match sort {
                0 => vec![chain(true, true, 2)],
                1 => vec![chain(false, true, 1), chain(true, false, 2)],
                _ => vec![of_node(0, FlowEventKind::NodeCancelled)],
            };
            let mut events = Events::default();
            let first = told(
                &mut events,
                &red,
                vec![failed(), failed(), ended(), failed()],
            );
            assert_eq!(first.len(), 4);
            for tenant in [&blue, &blue, &red] {
                let again = told(&mut events, tenant, round());
                assert_eq!(
                    without_ids(&again),
                    without_ids(&fresh(tenant, round())),
                    "whatever was told before"
                );
            }
        }
    }

    #[test]
    fn each_event_has_the_trace_of_its_record_and_its_own_attempt() {
        let mut events = Events::default();
        let tenant = Tenant::default();
        for _ in 0..2 {
            let records = vec![chain(true, false, 2), chain(false, true, 2)];
            let ids: Vec<TraceId> = records.iter().map(|(tag, _)| tag.id).collect();
            let told = told(&mut events, &tenant, records);
            let of: Vec<TraceId> = told.iter().map(|event| event.trace_id).collect();
            assert_eq!(of, [[ids[0]; 5], [ids[1]; 5]].concat());
            let attempts: Vec<u32> = told.iter().map(|event| event.attempt).collect();
            assert_eq!(attempts, [0, 1, 1, 1, 1, 1, 1, 1, 1, 0]);
        }
    }

    #[test]
    fn nodes_that_a_chain_has_not_got_leave_no_event_of_another() {
        let mut events = Events::default();
        let tenant = Tenant::default();
        let whole = told(&mut events, &tenant, vec![chain(true, true, 2)]);
        assert_eq!(whole.len(), 6);
        let beyond = told(&mut events, &tenant, vec![chain(false, true, 9)]);
        let kinds: Vec<_> = beyond.iter().map(|event| event.kind.as_str()).collect();
        let node = ["node_start", "node_success"];
        assert_eq!(kinds, [&node[..], &node, &["trace_end"]].concat());
    }

    #[test]
    fn at_rest_neither_texts_nor_the_room_of_a_flood_are_kept() {
        let mut events = Events::default();
        let failed = |_| {
            let error = "x".repeat(4_096);
            let latency = Duration::ZERO;
            of_node(0, FlowEventKind::NodeError { error, latency })
        };
        told(
            &mut events,
            &Tenant::default(),
            (0..1_000).map(failed).collect(),
        );
        events.rest();
        assert!(events.slots.capacity() <= KEPT);
        let mut kinds = events.slots.iter().map(|slot| &slot.kind);
        assert!(kinds.all(|kind| matches!(kind, FlowEventKind::TraceStart)));
    }
}
