//! Manifests: `agent.yaml` and `fleet.yaml`, from text to a checked, resolved [`model::FleetSpec`].

pub mod model;
