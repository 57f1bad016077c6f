//! `rate.levels3`: a message that is checked at three levels (global, sender, topic) and takes a token of each, beside one
//! keyed check of `governor`, each with its reading of the clock.
//!
//! 10,000 senders and as many topics, of which each message has the next; everybody's keys are strings or hashes that are
//! there already, and nothing is refused. `hook` is ours as messages meet it, message moved through; `levels1` is ours with
//! the sender's level alone.

use std::num::NonZeroU32;
use std::time::Duration;

use governor::{DefaultKeyedRateLimiter, Quota};
use volary_kernel::clock::{Clock as _, SystemClock};
use volary_kernel::metric::Metrics;
use volary_messaging::hook::{HookContext, MessageHook as _, Outcome, Stage, Step};
use volary_messaging::rate::Way;
use volary_messaging::{
    AgentId, Message, RateLimitHook, RateLimiter, RateLimiterConfig, Sender, TokenBucketConfig,
};

use crate::figure::{Figure, rounded};
use crate::rounds::interleaved;
use crate::{Failure, Plan};

/// Senders, and topics.
const KEYS: usize = 10_000;
/// Checks between two looks at the time of the round.
const STRIDE: usize = 1000;

pub fn measure(plan: &Plan) -> Result<Vec<Figure>, Failure> {
    let time = Duration::from_millis(if plan.quick { 300 } else { 2_000 });
    let messages = messages()?;
    let names: Vec<String> = (0..KEYS).map(|key| format!("agent-{key}")).collect();
    let much = Some(TokenBucketConfig::new(1e12, 1e9)?);
    let sender_only = RateLimiterConfig {
        sender: much,
        max_keys: 2 * KEYS,
        ..RateLimiterConfig::default()
    };
    let all = RateLimiterConfig {
        global: much,
        topic: much,
        ..sender_only
    };
    let (three, one) = (RateLimiter::new(all), RateLimiter::new(sender_only));
    let hook = RateLimitHook::new(
        RateLimiter::new(all),
        SystemClock::shared(),
        &Metrics::default(),
    );
    let quota = Quota::per_second(NonZeroU32::MAX).allow_burst(NonZeroU32::MAX);
    let governor = DefaultKeyedRateLimiter::<String>::keyed(quota);
    let check = |limiter: &RateLimiter, index: usize| {
        let now = SystemClock.mono();
        let end = limiter.check_take(&messages[index], Way::Egress, now);
        end.map_err(Failure::from)
    };
    let [ours, levels1, hooked, peer] = interleaved([
        &mut || rate(time, |index| check(&three, index)),
        &mut || rate(time, |index| check(&one, index)),
        &mut || rate(time, |index| through(&hook, messages[index].clone())),
        &mut || {
            rate(time, |index| {
                let end = governor.check_key(&names[index]);
                end.map_err(|_| "the peer refused".into())
            })
        },
    ])?;
    let figure = Figure::rate("rate.levels3", "msg/s", 0.7, &ours)
        .against_peer(&peer)
        .with("levels1", rounded(levels1.median()))
        .with("hook", rounded(hooked.median()))
        .with("note", "one core, 10,000 keys a level");
    Ok(vec![figure])
}

fn messages() -> Result<Vec<Message>, Failure> {
    let message = |key: usize| {
        let id = AgentId::from_bytes(*blake3::hash(&key.to_le_bytes()).as_bytes());
        let sender = Sender::new(id, format!("agent-{key}").parse()?, Default::default());
        let builder = Message::builder(sender).topic(format!("work/{key}").parse()?);
        Ok(builder.build(SystemClock.wall())?)
    };
    (0..KEYS).map(message).collect()
}

fn through(hook: &RateLimitHook, message: Message) -> Result<(), Failure> {
    let context = HookContext {
        stage: Stage::PreSend,
        receiver: None,
    };
    match hook.pre_send(message, context) {
        Step::Done(Ok(Outcome::Continue(_))) => Ok(()),
        _ => Err("the hook refused".into()),
    }
}

/// Checks per second, the keys in turns.
fn rate(
    time: Duration,
    mut check: impl FnMut(usize) -> Result<(), Failure>,
) -> Result<f64, Failure> {
    let start = SystemClock.mono();
    let mut checks = 0;
    loop {
        for step in 0..STRIDE {
            check((checks + step) % KEYS)?;
        }
        checks += STRIDE;
        let passed = SystemClock.mono() - start;
        if passed >= time {
            return Ok(checks as f64 / passed.as_secs_f64());
        }
    }
}
