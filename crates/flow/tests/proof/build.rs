//! Flows of random graphs.

use std::sync::Arc;

use volary_flow::{
    Context, Emit,
    graph::{Flow, FlowBuilder, JoinPolicy, NodeRef, Route},
    policy::{NodePolicy, RetryBudget},
};
use volary_kernel::retry::Backoff;

use crate::{
    act::{End, Item, Way, way},
    spec::{Kind, NodeSpec, Spec},
    support::{WANTED, ms},
    world::World,
};

type Builder = FlowBuilder<Item, Item>;

/// A node of a random graph, with its types.
#[derive(Clone, Copy)]
enum Ref {
    One(NodeRef<Item, Item>),
    /// A join, and the node that makes one item of what it gathered.
    Join(NodeRef<Item, Vec<Item>>, NodeRef<Vec<Item>, Item>),
}

impl Ref {
    fn connect_from(self, b: &mut Builder, from: Self, back: bool) {
        match (from, self) {
            (Self::One(from), Self::One(to)) if back => b.connect_back(from, to),
            (Self::One(from), Self::One(to)) => b.connect(from, to),
            (Self::One(from), Self::Join(to, _)) => b.connect(from, to),
            (Self::Join(_, from), Self::One(to)) => b.connect(from, to),
            (Self::Join(_, from), Self::Join(to, _)) => b.connect(from, to),
        };
    }
}

/// The flow of a specification; its nodes report to `world`.
pub fn build(world: &Arc<World>) -> Flow<Item, Item> {
    let spec = &world.spec;
    let mut b = Builder::new("random");
    let nodes = spec.nodes.iter().enumerate();
    let refs: Vec<Ref> = nodes
        .map(|(at, part)| node(&mut b, world, at, part))
        .collect();
    for (at, part) in spec.nodes.iter().enumerate() {
        for to in &part.next {
            refs[*to].connect_from(&mut b, refs[at], false);
        }
        if let Some(to) = part.back {
            refs[to].connect_from(&mut b, refs[at], true);
        }
        if part.egress {
            egress(&mut b, refs[at]);
        }
        if at < spec.ingress
            && let Ref::One(node) = refs[at]
        {
            b.ingress(node);
        }
    }
    match b.build() {
        Ok(flow) => flow,
        Err(errors) => panic!("{errors}\n{spec:#?}"),
    }
}

fn egress(b: &mut Builder, node: Ref) {
    match node {
        Ref::One(node) => b.egress(node),
        Ref::Join(_, node) => b.egress(node),
    };
}

/// The flow that sub-flow nodes call: it takes a while.
pub fn child() -> Flow<Item, Item> {
    let mut b = Builder::new("child");
    let pass = b.node("pass", |item: Item, _: Context| async move {
        volary_kernel::clock::sleep(ms(item.value % 5)).await;
        Ok(item)
    });
    b.policy(
        pass,
        NodePolicy {
            concurrency: 8,
            ..NodePolicy::default()
        },
    );
    b.ingress(pass).egress(pass);
    b.build().expect("it is a good graph")
}

fn policy(part: &NodeSpec) -> NodePolicy {
    NodePolicy {
        concurrency: part.concurrency,
        timeout: part.timeout,
        max_retries: part.retries,
        backoff: Backoff {
            base: ms(5),
            jitter: 0.0,
            ..Backoff::default()
        },
        retry_budget: RetryBudget {
            ratio: 1.0,
            reserve: 100_000,
        },
        breaker: None,
    }
}

fn node(b: &mut Builder, world: &Arc<World>, at: usize, part: &NodeSpec) -> Ref {
    let name = Spec::name(at);
    let world = world.clone();
    let made = match part.kind {
        Kind::JoinAll { partial } => return join(b, &name, None, partial, part.queue),
        Kind::JoinK { k, partial } => return join(b, &name, Some(k), partial, part.queue),
        Kind::Router => {
            let node = b.route(name, move |item: &Item, _: &Context| {
                route(&world, at, item)
            });
            b.queue(node, part.queue);
            return Ref::One(node);
        }
        Kind::Plain => b.node(name, move |item: Item, context: Context| {
            let world = world.clone();
            async move {
                let end = world.attempt(at, &item, &context).await?;
                Ok(one(end))
            }
        }),
        Kind::Sub => b.node(name, move |item: Item, context: Context| {
            let world = world.clone();
            async move {
                let out = one(world.attempt(at, &item, &context).await?);
                let child = world.child.get().expect("it is set before the flow starts");
                context.call(child, out).await
            }
        }),
        Kind::Filter => b.filter_map(name, move |item: Item, context: Context| {
            let world = world.clone();
            async move { Ok(many(world.attempt(at, &item, &context).await?).pop()) }
        }),
        Kind::Flat => b.flat_map(name, move |item: Item, context: Context| {
            let world = world.clone();
            async move { Ok(many(world.attempt(at, &item, &context).await?)) }
        }),
        Kind::Step => b.step(name, move |item: Item, context: Context| {
            let world = world.clone();
            async move { Ok(emit(world.attempt(at, &item, &context).await?)) }
        }),
    };
    b.policy(made, policy(part));
    b.queue(made, part.queue);
    Ref::One(made)
}

fn many(end: End) -> Vec<Item> {
    match end {
        End::Items(items) => items,
        other => panic!("{other:?} from a node that hands on items"),
    }
}

fn one(end: End) -> Item {
    many(end).pop().expect("it makes one of one")
}

fn emit(end: End) -> Emit<Item, Item> {
    match end {
        End::Finish(item) => Emit::Finish(item),
        end => {
            let mut items = many(end);
            match items.len() {
                0 => Emit::Nothing,
                1 => Emit::Next(items.remove(0)),
                _ => Emit::Each(items),
            }
        }
    }
}

fn route(world: &World, at: usize, item: &Item) -> Route<Item> {
    world.check_bounds();
    match way(&world.spec, at, item) {
        Way::Missing => Route::named("nowhere"),
        Way::Panic => panic!("{WANTED}"),
        Way::To { next, back, egress } => {
            let back = world.spec.nodes[at].back.filter(|_| back);
            let names = next.into_iter().chain(back).map(Spec::name);
            let out = egress.then(|| "egress".to_owned());
            Route::names(names.chain(out))
        }
    }
}

fn join(b: &mut Builder, name: &str, k: Option<usize>, partial: bool, queue: usize) -> Ref {
    let join = match k {
        Some(k) => b.join_k(name, k),
        None => b.join_all(name),
    };
    let policy = JoinPolicy {
        timeout: None,
        partial,
    };
    b.join_policy(join, policy).queue(join, queue);
    let merge = b.node(
        format!("{name}-merge"),
        |items: Vec<Item>, _: Context| async move { Ok(Item::merged(&items)) },
    );
    b.connect(join, merge);
    Ref::Join(join, merge)
}
