//! For tests of flows: run one input, look at the nodes it went through, inject failures.
