//! Which invocation of which node: ids that every attempt, every life and every branch order agrees on. Pure.
//!
//! A message's step is a hash of the path on which it came: the nodes it went through and which of their outputs it was.
//! It does not depend on time, on attempts or on the order in which branches ran, and nodes go into it by name, so that a
//! flow that gains a node keeps the steps of the paths it already had.

use std::fmt;

use volary_kernel::TraceId;

/// Which invocation of a node within its trace: a message carries the step that its target runs as.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct StepId(u64);

/// A node in steps: a hash of its name, made once per node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NodeHash(u64);

impl NodeHash {
    /// FNV-1a of the name: the same in every build, so that stored steps are found again.
    pub(crate) fn of(name: &str) -> Self {
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        Self(hash)
    }
}

impl StepId {
    /// The step of what was emitted, at an ingress node.
    pub(crate) const fn ingress(node: NodeHash) -> Self {
        Self(mix(node.0 ^ 0x766f_6c61_7279_3131))
    }

    /// The step of output number `output` (from 0, over everything the step handed on, before branching) of this one, at
    /// `node`.
    #[must_use]
    pub(crate) const fn next(self, node: NodeHash, output: u32) -> Self {
        let path = mix(self.0 ^ node.0).wrapping_add(output as u64);
        Self(mix(path))
    }

    /// The step of what a join at `node` puts out as its bundle number `nth` (from 0) of the trace.
    pub(crate) const fn bundle(node: NodeHash, nth: u32) -> Self {
        Self(mix(mix(node.0 ^ 0x6a6f_696e).wrapping_add(nth as u64)))
    }

    /// From its number, as it was stored.
    pub(crate) const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// As a number, to be stored.
    pub(crate) const fn bits(self) -> u64 {
        self.0
    }
}

/// Sixteen hexadecimal digits.
impl fmt::Display for StepId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for StepId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What an effect is known by in every attempt and every life: `trace/node/step`.
pub(crate) fn idempotency_key(trace: TraceId, node: &str, step: StepId) -> String {
    format!("{trace}/{node}/{step}")
}

/// The finalizer of SplitMix64 (Steele, Lea and Flood): every bit of the input reaches every bit of the output.
const fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn paths_that_differ_have_steps_that_differ() {
        let nodes: Vec<_> = ["a", "b", "c", "d"].map(NodeHash::of).to_vec();
        let mut level: Vec<_> = nodes.iter().map(|node| StepId::ingress(*node)).collect();
        let mut seen: HashSet<StepId> = level.iter().copied().collect();
        for _ in 0..4 {
            let next = |step: &StepId| {
                let step = *step;
                nodes
                    .iter()
                    .flat_map(move |node| (0..3).map(move |output| step.next(*node, output)))
                    .collect::<Vec<_>>()
            };
            level = level.iter().flat_map(next).collect();
            seen.extend(&level);
        }
        assert_eq!(seen.len(), 4 * (1 + 12 + 144 + 1_728 + 20_736));
    }

    #[test]
    fn a_step_is_the_same_in_every_build() {
        let step = StepId::ingress(NodeHash::of("parse")).next(NodeHash::of("charge"), 0);
        assert_eq!(step.to_string(), "STEP");
        assert_eq!(StepId::from_bits(step.bits()), step);
        let trace = TraceId::from_bytes([7; 16]).unwrap();
        let key = idempotency_key(trace, "charge", step);
        assert_eq!(key, format!("{}/charge/STEP", "07".repeat(16)));
    }
}
