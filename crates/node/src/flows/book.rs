//! Which flows the agents of this node run, and what they reported: kept as long as the processes that registered them.
//!
//! Pure. A replica has one run at a time; registering again, or the end of its process, ends the one before. Reports tell
//! what a series has come to since the run began, so one that is lost or repeated changes nothing; the difference to what
//! was reported before goes into the node's own metrics.

use std::{collections::BTreeMap, fmt::Display, sync::Arc};

use serde_json::Value;
use volary_flow::graph::Description;
use volary_kernel::{
    Mono, Name, Tenant, Timestamp,
    metric::Counted,
    rate::{Cell, Quota},
};
use volary_ops::{
    LinkPeer,
    api::{FlowRegistration, FlowSeries, FlowSummary, FlowValue, FlowView},
};

use super::series::{self, BOUNDS, ENDED, IN_FLIGHT, Kind, SERIES};

/// Most flows of one replica.
const FLOWS_MAX: usize = 32;
/// Most flows of all replicas.
const ALL_FLOWS_MAX: usize = 1_000;
/// Most nodes of one flow.
const NODES_MAX: usize = 256;
/// Most bytes of a description: 256 nodes and 1,000 edges fit.
const DESCRIPTION_MAX: usize = 256 << 10;
/// Most series of one run: what 256 nodes have.
const SERIES_MAX: usize = 4_096;
/// Longest value of a label that is no name.
const LABEL_MAX: usize = 32;
/// Events of one replica that the feed shows per second, and at once.
const EVENTS_PER_SECOND: f64 = 50.0;
const EVENTS_AT_ONCE: f64 = 200.0;

/// Why something was not taken. Nothing of it was.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// The run has ended.
    #[error("run `{0}` has ended: register the flows again")]
    Ended(String),
    /// There is no room.
    #[error("{found} {what} are more than {limit}")]
    TooMany {
        what: &'static str,
        found: usize,
        limit: usize,
    },
    /// It makes no sense.
    #[error("{0}")]
    Bad(String),
}

/// Why a flow is not shown.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NotShown {
    /// There is none; these there are, each with its agent.
    Unknown(Vec<(Name, Name)>),
    /// Several agents run one of this name.
    Several(Vec<Name>),
}

/// Which process of a replica it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process {
    pub pid: u32,
    pub started_at: Option<Timestamp>,
}

/// What a series of the node does.
#[derive(Debug, PartialEq)]
pub(crate) struct Change {
    /// Its place in [`SERIES`].
    pub series: usize,
    /// The agent, and the other labels in order.
    pub labels: Vec<String>,
    pub by: By,
}

#[derive(Debug, PartialEq)]
pub(crate) enum By {
    Add(u64),
    Set(i64),
    Count(Counted),
}

type Key = (usize, Vec<String>);

struct Run {
    id: String,
    peer: LinkPeer,
    process: Process,
    at: Timestamp,
    flows: BTreeMap<Name, Flow>,
    series: BTreeMap<Key, FlowValue>,
    shown: Cell,
}

struct Flow {
    description: Arc<Value>,
    nodes: Vec<String>,
}

/// All runs.
pub(crate) struct Book {
    /// By replica.
    runs: BTreeMap<Name, Run>,
    number: u64,
    events: Quota,
}

impl Default for Book {
    fn default() -> Self {
        Self {
            runs: BTreeMap::new(),
            number: 0,
            events: Quota::new(EVENTS_AT_ONCE, EVENTS_PER_SECOND)
                .expect("the constants are numbers of tokens"),
        }
    }
}

impl Book {
    /// Begins a run of `peer`; its run before has ended. Returns the name of the run, and what the node's series do.
    ///
    /// # Errors
    /// [`Refused`]; the run before goes on.
    pub(crate) fn register(
        &mut self,
        peer: &LinkPeer,
        process: Process,
        flows: Vec<FlowRegistration>,
        at: Timestamp,
    ) -> Result<(String, Vec<Change>), Refused> {
        at_most("flows of one replica", flows.len(), FLOWS_MAX)?;
        let others = self.runs.iter().filter(|(name, _)| **name != peer.replica);
        let others: usize = others.map(|(_, run)| run.flows.len()).sum();
        at_most("flows on this node", others + flows.len(), ALL_FLOWS_MAX)?;
        let mut read = BTreeMap::new();
        for registration in flows {
            let name = registration.name.clone();
            if read.insert(name.clone(), flow(registration)?).is_some() {
                return Err(Refused::Bad(format!("flow `{name}` is registered twice")));
            }
        }
        let changes = self.end(&peer.replica);
        self.number += 1;
        let id = self.number.to_string();
        if !read.is_empty() {
            let run = Run {
                id: id.clone(),
                peer: peer.clone(),
                process,
                at,
                flows: read,
                series: BTreeMap::new(),
                shown: Cell::default(),
            };
            self.runs.insert(peer.replica.clone(), run);
        }
        Ok((id, changes))
    }

    /// Takes a report of series in, all of it or nothing.
    ///
    /// # Errors
    /// [`Refused`].
    pub(crate) fn report(
        &mut self,
        peer: &LinkPeer,
        run: &str,
        series: Vec<FlowSeries>,
    ) -> Result<Vec<Change>, Refused> {
        let run = self.run(peer, run)?;
        let read = series.into_iter().map(|series| run.key(series));
        let read = read.collect::<Result<Vec<_>, _>>()?;
        let new = read.iter().filter(|(key, _)| !run.series.contains_key(key));
        let found = run.series.len() + new.count();
        at_most("series of one replica", found, SERIES_MAX)?;
        let agent = run.peer.agent.clone();
        let mut changes = Vec::new();
        for (key, value) in read {
            let before = run.series.get(&key);
            let by = difference(before, &value);
            if before.is_some() && by.is_none() && !matches!(value, FlowValue::Gauge(_)) {
                continue;
            }
            if let Some(by) = by {
                changes.push(change(&agent, &key, by));
            }
            run.series.insert(key, value);
        }
        let gauges = self.gauges(&agent);
        changes.extend(gauges);
        Ok(changes)
    }

    /// How many of so many events of the run may be shown now.
    ///
    /// # Errors
    /// [`Refused::Ended`].
    pub(crate) fn show(
        &mut self,
        peer: &LinkPeer,
        run: &str,
        events: usize,
        now: Mono,
    ) -> Result<usize, Refused> {
        let quota = self.events;
        let run = self.run(peer, run)?;
        let fits = |cell: &mut Cell| cell.check(&quota, now, 1).is_ok();
        let mut shown = 0;
        while shown < events && fits(&mut run.shown) {
            run.shown.take(&quota, now, 1);
            shown += 1;
        }
        Ok(shown)
    }

    /// Whether the run has a flow of this name.
    pub(crate) fn has(&self, peer: &LinkPeer, flow: &Name) -> bool {
        let run = self.runs.get(&peer.replica);
        run.is_some_and(|run| run.flows.contains_key(flow))
    }

    /// Ends the runs whose process is no longer `alive`.
    pub(crate) fn sweep(&mut self, alive: impl Fn(&Name, Process) -> bool) -> Vec<Change> {
        let gone = self
            .runs
            .iter()
            .filter(|(replica, run)| !alive(replica, run.process))
            .map(|(replica, _)| replica.clone());
        let gone: Vec<Name> = gone.collect();
        gone.iter().flat_map(|replica| self.end(replica)).collect()
    }

    /// Every flow, by name, then agent.
    pub(crate) fn list(&self) -> Vec<FlowSummary> {
        let mut flows: BTreeMap<(&Name, &Name), Vec<&Run>> = BTreeMap::new();
        for run in self.runs.values() {
            for flow in run.flows.keys() {
                flows.entry((flow, &run.peer.agent)).or_default().push(run);
            }
        }
        flows
            .into_iter()
            .filter_map(|((flow, _), runs)| summary(flow, &runs))
            .collect()
    }

    /// One flow; `agent` says whose where several have one of this name.
    ///
    /// # Errors
    /// [`NotShown`].
    pub(crate) fn view(&self, name: &Name, agent: Option<&Name>) -> Result<FlowView, NotShown> {
        let wanted = |run: &&Run| {
            run.flows.contains_key(name) && agent.is_none_or(|agent| *agent == run.peer.agent)
        };
        let runs: Vec<&Run> = self.runs.values().filter(wanted).collect();
        let mut agents: Vec<Name> = runs.iter().map(|run| run.peer.agent.clone()).collect();
        agents.dedup();
        if agents.len() > 1 {
            return Err(NotShown::Several(agents));
        }
        let newest = runs.iter().max_by_key(|run| run.at);
        let found = newest.and_then(|run| Some((summary(name, &runs)?, &run.flows[name])));
        let (summary, flow) = found.ok_or_else(|| NotShown::Unknown(self.names()))?;
        Ok(FlowView {
            summary,
            description: (*flow.description).clone(),
        })
    }

    /// The runs that have this flow, or any, of this agent and of this tenant, if they are given.
    pub(crate) fn runs(
        &self,
        flow: Option<&Name>,
        agent: Option<&Name>,
        tenant: Option<&Tenant>,
    ) -> Vec<LinkPeer> {
        let wanted = |run: &&Run| {
            flow.is_none_or(|flow| run.flows.contains_key(flow))
                && agent.is_none_or(|agent| run.peer.agent == *agent)
                && tenant.is_none_or(|tenant| run.peer.tenant == *tenant)
        };
        let runs = self.runs.values().filter(wanted);
        runs.map(|run| run.peer.clone()).collect()
    }

    /// Whether a replica has a run.
    pub(crate) fn has_run(&self, replica: &Name) -> bool {
        self.runs.contains_key(replica)
    }

    /// Every flow and its agent.
    pub(crate) fn names(&self) -> Vec<(Name, Name)> {
        let of = |flow: FlowSummary| (flow.name, flow.agent);
        self.list().into_iter().map(of).collect()
    }

    fn run(&mut self, peer: &LinkPeer, id: &str) -> Result<&mut Run, Refused> {
        let run = self.runs.get_mut(&peer.replica);
        run.filter(|run| run.id == id)
            .ok_or_else(|| Refused::Ended(id.chars().take(LABEL_MAX).collect()))
    }

    /// Ends the run of a replica: what it added to gauges is gone, what it counted stays.
    fn end(&mut self, replica: &Name) -> Vec<Change> {
        let Some(run) = self.runs.remove(replica) else {
            return Vec::new();
        };
        let agent = &run.peer.agent;
        let gauge = |(_, value): &(&Key, &FlowValue)| matches!(value, FlowValue::Gauge(_));
        let own = run.series.iter().filter(gauge);
        let mut changes: Vec<Change> = own.map(|(key, _)| change(agent, key, By::Set(0))).collect();
        changes.extend(self.gauges(agent));
        changes
    }

    /// The gauges of an agent: the sums over its replicas.
    fn gauges(&self, agent: &Name) -> Vec<Change> {
        let mut sums: BTreeMap<&Key, i64> = BTreeMap::new();
        for run in self.runs.values().filter(|run| run.peer.agent == *agent) {
            for (key, value) in &run.series {
                if let FlowValue::Gauge(value) = value {
                    let sum = sums.entry(key).or_default();
                    *sum = sum.saturating_add(*value);
                }
            }
        }
        let set = |(key, sum): (&Key, i64)| change(agent, key, By::Set(sum));
        sums.into_iter().map(set).collect()
    }
}

impl Run {
    /// Where a reported series belongs, if it makes sense.
    fn key(&self, reported: FlowSeries) -> Result<(Key, FlowValue), Refused> {
        let bad = |problem: String| Err(Refused::Bad(problem));
        let name = &reported.name;
        let Some((index, series)) = series::find(name) else {
            let known: Vec<&str> = SERIES.iter().map(|series| series.name).collect();
            return bad(format!(
                "there is no series `{}`; there are: {}",
                cut(name),
                known.join(", ")
            ));
        };
        let fits = match (&reported.value, series.kind) {
            (FlowValue::Counter(_), Kind::Counter) | (FlowValue::Gauge(_), Kind::Gauge) => true,
            (FlowValue::Histogram { counts, sum }, Kind::Histogram) => {
                counts.len() == BOUNDS.len() + 1 && sum.is_finite() && *sum >= 0.0
            }
            _ => false,
        };
        if !fits {
            return bad(format!("series `{name}` has another form of value"));
        }
        let mut labels = reported.labels;
        let mut values = Vec::with_capacity(series.labels.len());
        for label in series.labels {
            let Some(value) = labels.remove(*label) else {
                return bad(format!("series `{name}` needs the label `{label}`"));
            };
            values.push(value);
        }
        if let Some((label, _)) = labels.pop_first() {
            return bad(format!("series `{name}` has no label `{}`", cut(&label)));
        }
        self.check_labels(series.labels, &values)?;
        Ok(((index, values), reported.value))
    }

    /// Flows and nodes are those that were registered; other labels are words.
    fn check_labels(&self, labels: &[&str], values: &[String]) -> Result<(), Refused> {
        let mut flow = None;
        for (label, value) in labels.iter().zip(values) {
            let known = match *label {
                "flow" => {
                    flow = self.flows.iter().find(|(name, _)| name.as_str() == value);
                    flow.is_some()
                }
                "node" => flow.is_some_and(|(_, flow)| flow.nodes.contains(value)),
                _ => is_word(value),
            };
            if !known {
                let problem = format!("there is no {label} `{}` in this run", cut(value));
                return Err(Refused::Bad(problem));
            }
        }
        Ok(())
    }

    /// What a series of the flow comes to; with `outcome`, only the one that has it.
    fn sum_of(&self, (series, outcome): (&str, Option<&str>), flow: &Name) -> i128 {
        let of = |((index, labels), value): (&Key, &FlowValue)| {
            let mine = SERIES[*index].name == series
                && labels[0] == flow.as_str()
                && outcome.is_none_or(|outcome| labels[1] == outcome);
            match value {
                FlowValue::Counter(value) if mine => i128::from(*value),
                FlowValue::Gauge(value) if mine => i128::from(*value),
                _ => 0,
            }
        };
        self.series.iter().map(of).sum()
    }
}

fn summary(name: &Name, runs: &[&Run]) -> Option<FlowSummary> {
    let newest = runs.iter().max_by_key(|run| run.at)?;
    let sum = |series, outcome| {
        let of = |run: &&Run| run.sum_of((series, outcome), name);
        runs.iter().map(of).sum::<i128>()
    };
    let ended = |outcome| u64::try_from(sum(ENDED, Some(outcome))).unwrap_or(u64::MAX);
    Some(FlowSummary {
        name: name.clone(),
        agent: newest.peer.agent.clone(),
        tenant: newest.peer.tenant.clone(),
        replicas: runs.iter().map(|run| run.peer.replica.clone()).collect(),
        nodes: newest.flows.get(name)?.nodes.len(),
        in_flight: i64::try_from(sum(IN_FLIGHT, None)).unwrap_or(i64::MAX),
        done: ended("done"),
        failed: ended("failed"),
        registered_at: newest.at,
    })
}

fn flow(registration: FlowRegistration) -> Result<Flow, Refused> {
    let name = registration.name;
    let bad = |problem: &dyn Display| Refused::Bad(format!("flow `{name}`: {problem}"));
    let text = registration.description.to_string();
    at_most("bytes of a description", text.len(), DESCRIPTION_MAX)?;
    let read = Description::from_json(&text).map_err(|error| bad(&error))?;
    if read.flow != name.as_str() {
        return Err(bad(&format!("it describes `{}`", cut(&read.flow))));
    }
    at_most("nodes of one flow", read.nodes.len(), NODES_MAX)?;
    let named = read
        .nodes
        .iter()
        .find(|node| Name::new(&node.name).is_err());
    if let Some(node) = named {
        return Err(bad(&format!("`{}` is no name of a node", cut(&node.name))));
    }
    Ok(Flow {
        nodes: read.nodes.into_iter().map(|node| node.name).collect(),
        description: Arc::new(registration.description),
    })
}

const fn at_most(what: &'static str, found: usize, limit: usize) -> Result<(), Refused> {
    if found > limit {
        return Err(Refused::TooMany { what, found, limit });
    }
    Ok(())
}

fn is_word(value: &str) -> bool {
    let snake = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_';
    (1..=LABEL_MAX).contains(&value.len()) && value.bytes().all(snake)
}

fn cut(text: &str) -> String {
    text.chars().take(LABEL_MAX).collect()
}

fn change(agent: &Name, (series, labels): &Key, by: By) -> Change {
    let agent = agent.to_string();
    Change {
        series: *series,
        labels: std::iter::once(agent)
            .chain(labels.iter().cloned())
            .collect(),
        by,
    }
}

/// What is new in `now`; nothing for a gauge, whose sum is made anew, and nothing if it has shrunk: reports came out of
/// order, and the later one is known.
fn difference(before: Option<&FlowValue>, now: &FlowValue) -> Option<By> {
    match (before, now) {
        (Some(FlowValue::Counter(before)), FlowValue::Counter(now)) => now
            .checked_sub(*before)
            .filter(|more| *more > 0)
            .map(By::Add),
        (_, FlowValue::Counter(now)) => Some(By::Add(*now)),
        (_, FlowValue::Gauge(_)) => None,
        (before, FlowValue::Histogram { counts, sum }) => {
            let (old, was) = match before {
                Some(FlowValue::Histogram { counts, sum }) => (counts.as_slice(), *sum),
                _ => (&[][..], 0.0),
            };
            let old = old.iter().copied().chain(std::iter::repeat(0));
            let more = counts
                .iter()
                .zip(old)
                .map(|(now, old)| now.checked_sub(old));
            let counts = more.collect::<Option<Vec<u64>>>()?;
            let any = counts.iter().any(|more| *more > 0);
            any.then(|| {
                By::Count(Counted {
                    counts,
                    sum: (sum - was).max(0.0),
                })
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn peer(agent: &str, replica: &str) -> LinkPeer {
        LinkPeer {
            tenant: Tenant::default(),
            agent: name(agent),
            replica: name(replica),
        }
    }

    const FIRST: Process = Process {
        pid: 7,
        started_at: None,
    };

    fn registration(flow: &str) -> FlowRegistration {
        let node = |name: &str| json!({"name": name, "kind": "node", "input": "u64", "output": "u64", "queue": 64});
        FlowRegistration {
            name: name(flow),
            description: json!({
                "version": 1, "flow": flow, "nodes": [node("read"), node("answer")],
                "edges": [{"from": "read", "to": "answer"}], "ingress": ["read"], "egress": ["answer"],
            }),
        }
    }

    fn begin(book: &mut Book, agent: &str, replica: &str) -> String {
        let flows = vec![registration("support")];
        let begun = book.register(&peer(agent, replica), FIRST, flows, Timestamp::default());
        begun.unwrap().0
    }

    fn series(name: &str, node: Option<&str>, value: FlowValue) -> FlowSeries {
        let node = node.map(|node| ("node".to_owned(), node.to_owned()));
        let flow = ("flow".to_owned(), "support".to_owned());
        FlowSeries {
            name: name.to_owned(),
            labels: std::iter::once(flow).chain(node).collect(),
            value,
        }
    }

    fn succeeded(count: u64) -> FlowSeries {
        series("flow_node_success", Some("read"), FlowValue::Counter(count))
    }

    fn in_flight(count: i64) -> FlowSeries {
        series("flow_traces_inflight", None, FlowValue::Gauge(count))
    }

    fn bys(changes: Vec<Change>) -> Vec<By> {
        changes.into_iter().map(|change| change.by).collect()
    }

    #[test]
    fn a_report_that_comes_twice_or_late_changes_nothing() {
        let mut book = Book::default();
        let run = begin(&mut book, "desk", "desk-0");
        let me = peer("desk", "desk-0");
        let mut report = |count| bys(book.report(&me, &run, vec![succeeded(count)]).unwrap());
        assert_eq!(report(5), [By::Add(5)]);
        assert_eq!(report(5), []);
        assert_eq!(report(9), [By::Add(4)]);
        assert_eq!(report(7), [], "an older report");
        assert_eq!(report(10), [By::Add(1)]);
    }

    #[test]
    fn a_new_process_counts_from_nothing_and_the_node_goes_on() {
        let mut book = Book::default();
        let me = peer("desk", "desk-0");
        let first = begin(&mut book, "desk", "desk-0");
        book.report(&me, &first, vec![succeeded(5)]).unwrap();
        let second = begin(&mut book, "desk", "desk-0");
        assert_eq!(
            book.report(&me, &first, vec![succeeded(6)]),
            Err(Refused::Ended(first))
        );
        let changes = book.report(&me, &second, vec![succeeded(2)]).unwrap();
        assert_eq!(bys(changes), [By::Add(2)]);
    }

    #[test]
    fn gauges_are_the_sum_of_the_replicas_that_live() {
        let mut book = Book::default();
        let (one, two) = (peer("desk", "desk-0"), peer("desk", "desk-1"));
        let runs = (
            begin(&mut book, "desk", "desk-0"),
            begin(&mut book, "desk", "desk-1"),
        );
        book.report(&one, &runs.0, vec![in_flight(3)]).unwrap();
        let both = book.report(&two, &runs.1, vec![in_flight(4)]).unwrap();
        assert_eq!(bys(both), [By::Set(7)]);
        let gone = book.sweep(|replica, _| replica.as_str() != "desk-1");
        assert_eq!(bys(gone), [By::Set(0), By::Set(3)]);
        assert_eq!(book.list()[0].in_flight, 3);
        assert!(bys(book.sweep(|_, process| process.pid != 7)) == [By::Set(0)]);
        assert!(book.list().is_empty());
    }

    #[test]
    fn a_report_of_what_was_not_registered_is_refused_whole() {
        let mut book = Book::default();
        let run = begin(&mut book, "desk", "desk-0");
        let me = peer("desk", "desk-0");
        let bad = [
            series("flow_node_success", Some("gone"), FlowValue::Counter(1)),
            series("flow_made_up", Some("read"), FlowValue::Counter(1)),
            series("flow_node_success", None, FlowValue::Counter(1)),
            series("flow_node_success", Some("read"), FlowValue::Gauge(1)),
            series("flow_traces_inflight", Some("read"), FlowValue::Gauge(1)),
        ];
        for bad in bad {
            let refused = book.report(&me, &run, vec![succeeded(1), bad.clone()]);
            assert!(matches!(refused, Err(Refused::Bad(_))), "{bad:?}");
        }
        let changes = book.report(&me, &run, vec![succeeded(1)]).unwrap();
        assert_eq!(bys(changes), [By::Add(1)], "nothing was taken before");
    }

    #[test]
    fn bounds_hold() {
        let mut book = Book::default();
        let flows = (0..=FLOWS_MAX)
            .map(|n| registration(&format!("f{n}")))
            .collect();
        let me = peer("desk", "desk-0");
        let refused = book.register(&me, FIRST, flows, Timestamp::default());
        assert!(matches!(refused, Err(Refused::TooMany { .. })));
        let wide = FlowRegistration {
            description: json!({"version": 1, "flow": "x".repeat(DESCRIPTION_MAX)}),
            ..registration("wide")
        };
        let refused = book.register(&me, FIRST, vec![wide], Timestamp::default());
        assert!(matches!(refused, Err(Refused::TooMany { .. })));
        let mut other = registration("wide");
        other.description["flow"] = json!("another");
        for bad in [
            other,
            FlowRegistration {
                description: json!({}),
                ..registration("bad")
            },
        ] {
            let refused = book.register(&me, FIRST, vec![bad], Timestamp::default());
            assert!(matches!(refused, Err(Refused::Bad(_))), "{refused:?}");
        }
        let run = begin(&mut book, "desk", "desk-0");
        let now = Mono::default();
        assert_eq!(book.show(&me, &run, 1_000, now), Ok(200));
        assert_eq!(book.show(&me, &run, 1_000, now), Ok(0));
        let later = now + std::time::Duration::from_secs(1);
        let more = book.show(&me, &run, 1_000, later).unwrap();
        assert!((49..=50).contains(&more), "{more}");
    }

    #[test]
    fn an_unknown_name_is_answered_with_those_there_are() {
        let mut book = Book::default();
        begin(&mut book, "desk", "desk-0");
        begin(&mut book, "office", "office-0");
        let there = vec![
            (name("support"), name("desk")),
            (name("support"), name("office")),
        ];
        assert_eq!(
            book.view(&name("suport"), None).unwrap_err(),
            NotShown::Unknown(there)
        );
        let several = NotShown::Several(vec![name("desk"), name("office")]);
        assert_eq!(book.view(&name("support"), None).unwrap_err(), several);
        let view = book.view(&name("support"), Some(&name("office"))).unwrap();
        assert_eq!(
            (view.summary.agent, view.summary.nodes),
            (name("office"), 2)
        );
    }
}
