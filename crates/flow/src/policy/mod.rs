//! How a node is run: time, attempts, concurrency, breaker. Pure arithmetic; the engine supplies time and randomness.

pub(crate) mod breaker;
pub(crate) mod budget;
mod check;
pub(crate) mod guard;
pub(crate) mod retry;

use std::time::Duration;

use volary_kernel::retry::Backoff;

pub use check::PolicyProblem;
#[cfg(test)]
pub(crate) use check::wrong_everywhere;

/// How the attempts of a node are run.
///
/// Defaults are conservative: one at a time, no retry, no timeout of its own (the trace's deadline bounds it).
#[derive(Debug, Clone, PartialEq)]
pub struct NodePolicy {
    /// Attempts at once, over all tenants. Default 1: order is kept.
    pub concurrency: usize,
    /// Longest time of one attempt, within the trace's deadline. Default none.
    #[doc(alias = "timeout_s")]
    pub timeout: Option<Duration>,
    /// Attempts after the first. Default 0: a node is assumed to have effects until it is said that it may run again.
    pub max_retries: u32,
    /// Wait before each further attempt, outside the node's slots.
    #[doc(alias = "max_backoff")]
    #[doc(alias = "backoff_base")]
    #[doc(alias = "backoff_mult")]
    pub backoff: Backoff,
    /// Share of attempts that may be retries, over all traces of one tenant. Default: see [`RetryBudget`].
    pub retry_budget: RetryBudget,
    /// Opens after failures in a row and refuses for a while. Default none.
    pub breaker: Option<Breaker>,
}

impl Default for NodePolicy {
    fn default() -> Self {
        Self {
            concurrency: 1,
            timeout: None,
            max_retries: 0,
            backoff: Backoff::default(),
            retry_budget: RetryBudget::default(),
            breaker: None,
        }
    }
}

/// Bounds retry storms: retries are paid from tokens that first attempts earn (the scheme of gRFC A6 and of Finagle).
///
/// Each tenant has its own at each node, so that one tenant's failures do not spend the retries of another.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryBudget {
    /// Retries that each first attempt earns. Default 0.2.
    pub ratio: f64,
    /// Retries that are always there at start, and the most that can be saved up. Default 100.
    pub reserve: u32,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self {
            ratio: 0.2,
            reserve: 100,
        }
    }
}

/// A circuit breaker per node and tenant.
///
/// Errors, timeouts and panics count. A permanent error is an answer of the other side and counts neither way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Breaker {
    /// Failed attempts in a row that open it.
    pub failures: u32,
    /// How long it stays open; then one attempt is let through.
    pub open_for: Duration,
}
