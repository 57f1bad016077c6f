//! The rate limiter as a hook: second in the default order, after validation.

use std::sync::Arc;

use volary_kernel::{
    clock::SharedClock,
    collector::{CollectError, MetricsCollector},
    metric::{Counter, CounterFamily, Metrics},
};

use super::{Bucket, Limited, RateLimiter, Way};
use crate::{
    admission::Refusal,
    hook::{HookContext, HookError, MessageHook, Outcome, Step},
    message::Message,
    metrics,
};

/// Told of every message that was turned back.
type OnDrop = Arc<dyn Fn(Way, Bucket) + Send + Sync>;

/// Limits sends (egress) in `pre_send` and receives (ingress) in `post_receive`.
///
/// What does not pass is `Refused{RateLimited{retry_after}}` and counted in
/// `volary_rate_limit_{ingress,egress}_dropped_total{bucket}`.
pub struct RateLimitHook {
    limiter: RateLimiter,
    clock: SharedClock,
    ingress: [Counter; 4],
    egress: [Counter; 4],
    on_drop: Option<OnDrop>,
}

impl RateLimitHook {
    /// A hook over `limiter`. Hooks of one limiter share its buckets; use one of them for a message.
    pub fn new(limiter: RateLimiter, clock: SharedClock, metrics: &Metrics) -> Self {
        let counters =
            |family: CounterFamily| Bucket::ALL.map(|bucket| family.with(&[bucket.as_str()]));
        Self {
            limiter,
            clock,
            ingress: counters(metrics::rate_limit_ingress_dropped(metrics)),
            egress: counters(metrics::rate_limit_egress_dropped(metrics)),
            on_drop: None,
        }
    }

    /// Also calls `on_drop` for every message that is turned back, for counters under other names.
    #[must_use]
    pub fn on_drop(mut self, on_drop: impl Fn(Way, Bucket) + Send + Sync + 'static) -> Self {
        self.on_drop = Some(Arc::new(on_drop));
        self
    }

    /// Also counts in `rate_limit_ingress_dropped_total` and `rate_limit_egress_dropped_total` of a user's own collector,
    /// which both begin at zero here. Replaces [`RateLimitHook::on_drop`].
    ///
    /// # Errors
    /// [`CollectError`] if one of the names is in use otherwise.
    pub fn metrics_collector(self, metrics: &MetricsCollector) -> Result<Self, CollectError> {
        let [ingress, egress] = ["ingress", "egress"].map(|way| {
            let name = format!("rate_limit_{way}_dropped_total");
            metrics.describe(
                &name,
                &format!("Messages that the rate limit turned back, {way}"),
            );
            metrics.counter(&name, &[])
        });
        let (ingress, egress) = (ingress?, egress?);
        Ok(self.on_drop(move |way, _| {
            match way {
                Way::Ingress => ingress.inc(),
                Way::Egress => egress.inc(),
            };
        }))
    }

    /// The limiter.
    pub const fn limiter(&self) -> &RateLimiter {
        &self.limiter
    }

    #[inline]
    fn limit(&self, message: Message, way: Way) -> Step<'_> {
        match self.limiter.try_take(&message, way, self.clock.mono()) {
            Ok(()) => Step::pass(message),
            Err(stop) if stop.pending => Step::wait(self.limit_soon(message, way)),
            Err(stop) => Step::refuse(self.refusal(way, stop.limited)),
        }
    }

    /// The purse of a shared bucket is empty and about to be filled.
    async fn limit_soon(&self, message: Message, way: Way) -> Result<Outcome, HookError> {
        Ok(match self.limiter.admit(&message, way, &self.clock).await {
            Ok(()) => Outcome::Continue(message),
            Err(limited) => Outcome::Refuse(self.refusal(way, limited)),
        })
    }

    #[cold]
    fn refusal(&self, way: Way, limited: Limited) -> Refusal {
        let counters = match way {
            Way::Ingress => &self.ingress,
            Way::Egress => &self.egress,
        };
        counters[limited.bucket as usize].inc();
        if let Some(on_drop) = &self.on_drop {
            on_drop(way, limited.bucket);
        }
        Refusal::RateLimited {
            retry_after: limited.retry_after,
        }
    }
}

impl MessageHook for RateLimitHook {
    fn name(&self) -> &'static str {
        "rate-limit"
    }

    fn pre_send<'a>(&'a self, message: Message, _: HookContext<'a>) -> Step<'a> {
        self.limit(message, Way::Egress)
    }

    fn post_receive<'a>(&'a self, message: Message, _: HookContext<'a>) -> Step<'a> {
        self.limit(message, Way::Ingress)
    }
}
