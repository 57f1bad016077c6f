//! The transport suite between two instances: over TLS on loopback, over pipes in memory, and with hooks around it.

use std::sync::Arc;

use futures_util::FutureExt;
use volary_kernel::{clock::SystemClock, id::Tenant, metric::Metrics};
use volary_messaging::{
    HookChain, HookedTransport, Identity, Sender,
    hook::{SecretGuard, ValidateHook},
    transport::{
        conformance::{Pair, SENDERS, TENANTS, run_pair},
        tcp::{Net, PeerSpec, Tcp, TcpConfig},
    },
};

use crate::support::{name, pipes};

/// Two instances, connected both ways.
async fn instances(net: Net) -> (Tcp, Tcp, Vec<(&'static str, Identity)>) {
    let (left, right) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    let tenants: Vec<Tenant> = TENANTS.iter().map(|one| Tenant::new(name(one))).collect();
    let spec = |text: &str, identity: &Identity| PeerSpec {
        tenants: tenants.clone(),
        ..PeerSpec::new(name(text), identity.public())
    };
    let config = |identity: &Identity, text: &str| {
        let mut config = TcpConfig::new(identity.clone(), name(text)).listen("127.0.0.1:0");
        config.net = net.clone();
        config
    };
    let receiving = config(&right, "right").peer(spec("left", &left));
    let receiving = Tcp::bind(receiving).await.unwrap();
    let address = receiving.address().unwrap().to_string();
    let mut sending = config(&left, "left").peer(spec("right", &right).at(address));
    let keys: Vec<_> = SENDERS
        .iter()
        .map(|from| (*from, Identity::generate().unwrap()))
        .collect();
    for (from, key) in &keys {
        sending = sending.agent(tenants[0].clone(), name(from), key.clone());
    }
    let sending = Tcp::bind(sending).await.unwrap();
    receiving.believes(&name("left")).await;
    (sending, receiving, keys)
}

fn pair<T>(
    (sending, receiving, keys): (Tcp, Tcp, Vec<(&'static str, Identity)>),
    wrap: impl Fn(Tcp) -> T,
) -> Pair<T, T> {
    let knows = sending.clone();
    Pair {
        sending: wrap(sending),
        receiving: wrap(receiving),
        sender: Box::new(move |from| {
            let (_, key) = keys.iter().find(|(known, _)| *known == from).unwrap();
            Sender::new(key.id(), name(from), Tenant::new(name(TENANTS[0])))
        }),
        known: Box::new(move |tenant, name| {
            let knows = knows.clone();
            async move { knows.reachable(&tenant, &name).await }.boxed()
        }),
    }
}

#[tokio::test]
async fn two_instances_over_tls_are_a_transport() {
    run_pair(async || pair(instances(Net::tokio()).await, |tcp| tcp)).await;
}

#[tokio::test]
async fn two_instances_over_pipes_are_a_transport() {
    run_pair(async || pair(instances(pipes()).await, |tcp| tcp)).await;
}

#[tokio::test]
async fn two_instances_with_hooks_around_them_are_a_transport() {
    let hooked = |tcp| {
        let metrics = Metrics::default();
        let validate = ValidateHook::new(Default::default(), SystemClock::shared());
        let guard = SecretGuard::new(Default::default());
        let hooks = HookChain::new(vec![Arc::new(validate), Arc::new(guard)], &metrics);
        HookedTransport::new(tcp, hooks)
    };
    run_pair(async || pair(instances(pipes()).await, hooked)).await;
}
