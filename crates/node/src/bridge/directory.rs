//! Says in the directory which agents of this node live: registered while they do, gone when they or the node are not.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;
use volary_deploy::spec::model::{AgentSpec, Body};
use volary_kernel::{clock, task::TaskResult};
use volary_messaging::{
    Descriptor, SignedDescriptor, Topic,
    discovery::{DescriptorError, DiscoveryError, LEASE},
};

use crate::core::Core;

/// A registration is renewed when a third of its time has passed.
const RENEW: Duration = Duration::from_secs(LEASE.as_secs() / 3);
/// How long a descriptor means what it says; it is made anew at every renewal.
const VALID: Duration = Duration::from_secs(3600);

/// Registers the agents that live, until `stop`; then takes them out.
pub(crate) async fn run(core: Arc<Core>, stop: CancellationToken) -> TaskResult {
    let mut changes = core.replicas.watch();
    let following = core.discovery.run(stop.clone());
    let registering = async {
        loop {
            if let Err(error) = register(&core).await {
                tracing::warn!(%error, "agents could not be registered");
            }
            tokio::select! {
                () = stop.cancelled() => break,
                changed = changes.changed() => if changed.is_err() { break },
                () = clock::sleep(RENEW) => {}
            }
        }
        for spec in &core.fleet.agents {
            let gone = core.discovery.unregister(&spec.tenant, &spec.name).await;
            let _lapses_by_itself =
                gone.inspect_err(|error| tracing::debug!(%error, "still registered"));
        }
    };
    tokio::join!(following, registering);
    Ok(())
}

async fn register(core: &Core) -> Result<(), DiscoveryError> {
    let ready = core.replica_views();
    let lives = |spec: &AgentSpec| {
        matches!(spec.body, Body::Handler(_))
            || ready
                .iter()
                .any(|replica| replica.agent == spec.name && replica.ready)
    };
    let mut all = Vec::new();
    for spec in &core.fleet.agents {
        if lives(spec) {
            all.extend(described(core, spec)?);
        } else {
            core.discovery.unregister(&spec.tenant, &spec.name).await?;
        }
    }
    match core.discovery.register(&all).await {
        // Its key was replaced: this node decides about its agents.
        Err(DiscoveryError::Taken(name)) => {
            if let Some(spec) = core.fleet.agents.iter().find(|spec| spec.name == name) {
                core.discovery.unregister(&spec.tenant, &name).await?;
            }
            core.discovery.register(&all).await
        }
        registered => registered,
    }
}

/// What an agent's manifest says about it, signed by its key.
fn described(core: &Core, spec: &AgentSpec) -> Result<Option<SignedDescriptor>, DescriptorError> {
    let Some(speaker) = core.agents.get(&spec.name) else {
        return Ok(None);
    };
    let (identity, now) = (speaker.voice.identity(), core.clock.wall());
    let descriptor = Descriptor {
        tenant: spec.tenant.clone(),
        name: spec.name.clone(),
        key: identity.public(),
        topics: spec
            .topics
            .iter()
            .filter_map(|topic| Topic::new(topic).ok())
            .collect(),
        capabilities: Vec::new(),
        pools: core.pools.of_agent(&spec.tenant, &spec.name),
        issued_at: now,
        expires_at: now + VALID,
        succession: None,
    };
    SignedDescriptor::sign(descriptor, &identity).map(Some)
}
