//! Who is there and what they can do: descriptors that each agent signs with its own key.
//!
//! ```text
//! Descriptor ──sign──▶ SignedDescriptor ──several──▶ Introduction (what a node tells its peers)
//!                            │ open(now): signature, expiry, succession
//!                            ▼
//!                        Descriptor
//! ```

mod descriptor;
mod directory;
mod introduction;

pub use self::{
    descriptor::{
        CAPABILITIES_MAX, CLOCK_SKEW, Capability, CapabilityError, DESCRIPTOR_BYTES_MAX,
        Descriptor, DescriptorError, POOLS_MAX, SignedDescriptor, TOPICS_MAX,
    },
    directory::{DescriptorQuery, Discovery, DiscoveryError, LEASE, REGISTRATIONS_MAX},
    introduction::{INTRODUCTION_BYTES_MAX, INTRODUCTION_MAX, Introduction},
};
