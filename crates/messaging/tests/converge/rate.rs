//! Rate limiting: cases T1–T3 and D4–D10 of the reference, and limits that several processes share.

use std::{sync::Arc, time::Duration};

use volary_kernel::{
    Clock as _, ManualClock, Mono, Name, Tenant, metric::Metrics, task::Supervisor,
    testing::eventually,
};
use volary_messaging::{
    Admission, AgentId, HookChain, Message, MessageHook, RateLimitHook, RateLimiter,
    RateLimiterConfig, Refusal, Sender, TokenBucketConfig,
    hook::{HookContext, Stage, Verdict},
    rate::{Bucket, StoreTrouble, Way, WhenBusy},
};
use volary_store::{MemoryConfig, MemoryStore, SharedStore};

const START: Mono = Mono::from_nanos(1_000_000_000);

fn bucket(capacity: f64, refill: f64) -> Option<TokenBucketConfig> {
    Some(TokenBucketConfig::new(capacity, refill).unwrap())
}

fn id(sender: u8) -> AgentId {
    AgentId::from_bytes([sender; 32])
}

fn message(sender: u8, topics: &[&str]) -> Message {
    let name = Name::new(format!("agent-{sender}")).unwrap();
    let sender = Sender::new(id(sender), name, Tenant::default());
    let builder = Message::builder(sender).to(Name::new("receiver").unwrap());
    let builder = topics.iter().fold(builder, |builder, topic| {
        builder.topic(topic.parse().unwrap())
    });
    builder.build(ManualClock::default().wall()).unwrap()
}

fn passes(limiter: &RateLimiter, message: &Message) -> bool {
    limiter.check_take(message, Way::Egress, START).is_ok()
}

/// T1 (rate): capacity 1, refill 0: the first passes, the second does not, then or ever.
#[test]
fn capacity_one_without_refill_passes_one() {
    let limiter = RateLimiter::new(RateLimiterConfig {
        global: bucket(1.0, 0.0),
        ..RateLimiterConfig::default()
    });
    assert!(passes(&limiter, &message(1, &["t"])));
    let later = START + Duration::from_secs(1 << 30);
    let limited = limiter.check_take(&message(1, &["t"]), Way::Egress, later);
    assert_eq!(limited.unwrap_err().bucket, Bucket::Global);
}

/// T2 (rate): with sender and topic buckets of one token, a sender passes once, and another one not on the same topic.
#[test]
fn sender_and_topic_are_limited_each() {
    let limiter = RateLimiter::new(RateLimiterConfig {
        sender: bucket(1.0, 0.001),
        topic: bucket(1.0, 0.001),
        ..RateLimiterConfig::default()
    });
    assert!(passes(&limiter, &message(1, &["t"])));
    let refused = |sender, topic| {
        let end = limiter.check_take(&message(sender, &[topic]), Way::Egress, START);
        end.unwrap_err().bucket
    };
    assert_eq!(refused(1, "other"), Bucket::Sender);
    assert_eq!(refused(2, "t"), Bucket::Topic);
    assert!(passes(&limiter, &message(2, &["other"])));
}

/// T3 (rate): capacity 0: the hook refuses in both directions, and each counter is exactly 1.
#[tokio::test]
async fn no_capacity_refuses_both_directions_and_counts_each_once() {
    let metrics = Metrics::default();
    let limiter = RateLimiter::new(RateLimiterConfig {
        global: bucket(0.0, 1.0),
        ..RateLimiterConfig::default()
    });
    let told = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let tell = told.clone();
    let hook = RateLimitHook::new(limiter, ManualClock::default().shared(), &metrics)
        .on_drop(move |way, bucket| tell.lock().push((way.as_str(), bucket.as_str())));
    let chain = HookChain::new(vec![Arc::new(hook)], &metrics);
    for stage in [Stage::PreSend, Stage::PostReceive] {
        let context = HookContext {
            stage,
            receiver: None,
        };
        let end = chain.run(message(1, &["t"]), context).await;
        let Verdict::Stop(Admission::Refused(Refusal::RateLimited { retry_after })) = end else {
            panic!("{end:?}")
        };
        assert_eq!(retry_after, volary_messaging::rate::LONGEST_WAIT);
    }
    let text = metrics.encode_text();
    for way in ["ingress", "egress"] {
        let line = format!("volary_rate_limit_{way}_dropped_total{{bucket=\"global\"}} 1\n");
        assert!(text.contains(&line), "{text}");
    }
    assert_eq!(*told.lock(), [("egress", "global"), ("ingress", "global")]);
}

/// D4 (rate): the directions have buckets of their own.
#[test]
fn directions_are_independent() {
    let limiter = RateLimiter::new(RateLimiterConfig {
        global: bucket(1.0, 0.001),
        sender: bucket(1.0, 0.001),
        ..RateLimiterConfig::default()
    });
    let message = message(1, &["t"]);
    for way in [Way::Egress, Way::Ingress] {
        assert!(limiter.check_take(&message, way, START).is_ok());
        assert!(limiter.check_take(&message, way, START).is_err());
    }
}

/// D5 (rate): a bucket refills to its capacity and no further, and the wait that is told is the wait.
#[test]
fn refill_stops_at_capacity_and_the_wait_is_exact() {
    let limiter = RateLimiter::new(RateLimiterConfig {
        sender: bucket(2.0, 4.0),
        ..RateLimiterConfig::default()
    });
    let message = message(1, &["t"]);
    let take = |now| limiter.check_take(&message, Way::Egress, now);
    let mut now = START;
    for _ in 0..3 {
        assert!(take(now).is_ok() && take(now).is_ok());
        let wait = take(now).unwrap_err().retry_after;
        assert_eq!(wait, Duration::from_nanos(250_000_001));
        assert!(take(now + (wait - Duration::from_nanos(1))).is_err());
        assert!(take(now + wait).is_ok());
        now = now + Duration::from_secs(3600);
    }
}

/// D6 (rate): what is not configured does not limit.
#[test]
fn without_configuration_everything_passes() {
    let limiter = RateLimiter::new(RateLimiterConfig::default());
    assert!((0..10_000).all(|_| passes(&limiter, &message(1, &["t"]))));
    assert_eq!(limiter.keys(Way::Egress), 0);
}

/// D7 (rate): a refusal costs no other bucket a token: a spammer cannot use up what is everybody's.
#[test]
fn a_refusal_costs_nobody_a_token() {
    let limiter = RateLimiter::new(RateLimiterConfig {
        global: bucket(10.0, 0.001),
        sender: bucket(1.0, 0.001),
        topic: bucket(3.0, 0.001),
        ..RateLimiterConfig::default()
    });
    assert!(passes(&limiter, &message(1, &["t"])));
    for _ in 0..100 {
        assert!(!passes(&limiter, &message(1, &["t", "u", "v"])));
    }
    // Two of `t` are left, three of `u` and `v`, nine of all.
    assert!(passes(&limiter, &message(2, &["t", "u", "v"])));
    assert!(passes(&limiter, &message(3, &["t", "u", "v"])));
    for sender in 4..8 {
        assert!(
            !passes(&limiter, &message(sender, &["u", "t"])),
            "`t` is empty"
        );
    }
    assert!(passes(&limiter, &message(8, &["u"])));
    for sender in 9..15 {
        assert!(passes(&limiter, &message(sender, &["fresh"])) == (sender < 12));
    }
    for sender in 20..23 {
        assert!(passes(&limiter, &message(sender, &["other"])));
    }
    assert!(!passes(&limiter, &message(30, &["last"])), "ten in all");
}

/// Two topics of one message cost one token each, and one that it names twice costs one.
#[test]
fn each_topic_of_a_message_pays_once() {
    let limiter = RateLimiter::new(RateLimiterConfig {
        topic: bucket(2.0, 0.001),
        ..RateLimiterConfig::default()
    });
    assert!(passes(&limiter, &message(1, &["a", "b", "a"])));
    assert!(passes(&limiter, &message(1, &["a"])));
    assert!(!passes(&limiter, &message(1, &["a"])));
    assert!(!passes(&limiter, &message(1, &["a", "b"])));
    assert!(passes(&limiter, &message(1, &["b"])), "it lost nothing");
    assert!(
        passes(&limiter, &message(1, &[])),
        "no topic, no topic's limit"
    );
}

/// Topics of the same name are two tenants' own.
#[test]
fn tenants_do_not_use_up_each_others_topics() {
    let limiter = RateLimiter::new(RateLimiterConfig {
        topic: bucket(1.0, 0.001),
        ..RateLimiterConfig::default()
    });
    let of = |tenant: &str| {
        let tenant = Tenant::new(Name::new(tenant).unwrap());
        let sender = Sender::new(id(1), Name::new("a").unwrap(), tenant);
        let message = Message::builder(sender).topic("t".parse().unwrap());
        message.build(ManualClock::default().wall()).unwrap()
    };
    assert!(passes(&limiter, &of("one")));
    assert!(passes(&limiter, &of("two")));
    assert!(!passes(&limiter, &of("one")));
}

/// D8 (rate): idle senders are forgotten, so that a flood of names stays bounded; busy ones are not.
#[test]
fn idle_senders_make_room_and_the_table_stays_bounded() {
    let config = RateLimiterConfig {
        sender: bucket(1.0, 1.0),
        max_keys: 16,
        ..RateLimiterConfig::default()
    };
    let limiter = RateLimiter::new(config);
    let take = |limiter: &RateLimiter, sender, now| {
        limiter.check_take(&message(sender, &["t"]), Way::Egress, now)
    };
    for sender in 1..=16 {
        assert!(take(&limiter, sender, START).is_ok());
    }
    let limited = take(&limiter, 17, START).unwrap_err();
    assert_eq!(limited.bucket, Bucket::Sender);
    let then = START + limited.retry_after;
    for sender in 17..=200 {
        let end = take(&limiter, sender, then);
        assert_eq!(end.is_ok(), sender <= 32, "{sender}");
    }
    assert_eq!(limiter.keys(Way::Egress), 16);
    let forgiving = RateLimiter::new(RateLimiterConfig {
        when_busy: WhenBusy::ForgetSoonest,
        ..config
    });
    assert!((1..=200).all(|sender| take(&forgiving, sender, START).is_ok()));
    assert_eq!(forgiving.keys(Way::Egress), 16);
}

/// D10 (rate): a message without a sender (an id of zeros is no key's) is not limited by sender.
#[test]
fn an_empty_sender_has_no_sender_bucket() {
    let limiter = RateLimiter::new(RateLimiterConfig {
        global: bucket(5.0, 0.001),
        sender: bucket(1.0, 0.001),
        ..RateLimiterConfig::default()
    });
    assert!((0..5).all(|_| passes(&limiter, &message(0, &["t"]))));
    assert!(!passes(&limiter, &message(0, &["t"])), "but by all else");
}

// --- shared ----------------------------------------------------------------------------------

fn memory(clock: &ManualClock) -> SharedStore {
    let config = MemoryConfig::new(Name::new("node").unwrap());
    Arc::new(MemoryStore::new(config, clock.shared()))
}

fn sharing(store: &SharedStore, config: RateLimiterConfig, tasks: &Supervisor) -> RateLimiter {
    let name = Name::new("all").unwrap();
    RateLimiter::shared(store, &name, config, tasks, &Metrics::default()).unwrap()
}

/// Sends until nothing passes any more; how many did.
async fn drain(limiter: &RateLimiter, clock: &ManualClock, most: usize) -> usize {
    let (mut passed, mut refused, clock) = (0, 0, clock.shared());
    while refused < 30 && passed < most {
        match limiter
            .admit(&message(1, &["t"]), Way::Egress, &clock)
            .await
        {
            Ok(()) => (passed, refused) = (passed + 1, 0),
            Err(_) => {
                refused += 1;
                volary_kernel::clock::sleep(Duration::from_millis(5)).await;
            }
        }
    }
    passed
}

/// D9 (rate), in one process: two limiters over one store never pass more than one would.
#[tokio::test(start_paused = true)]
async fn two_limiters_over_one_store_never_pass_more_than_one_would() {
    let (clock, tasks) = (ManualClock::default(), Supervisor::new());
    let store = memory(&clock);
    let config = RateLimiterConfig {
        global: bucket(40.0, 0.001),
        ..RateLimiterConfig::default()
    };
    let [one, two] = [(); 2].map(|()| sharing(&store, config, &tasks));
    let first = drain(&one, &clock, 13).await;
    assert_eq!(first, 13);
    let second = drain(&two, &clock, 1000).await;
    let third = drain(&one, &clock, 1000).await;
    assert_eq!(first + second + third, 40);
    tasks.drain(Duration::from_secs(5)).await;
}

/// What a limiter holds when it is stopped goes back to the others at once.
#[tokio::test(start_paused = true)]
async fn what_is_not_spent_goes_back() {
    let clock = ManualClock::default();
    let store = memory(&clock);
    let config = RateLimiterConfig {
        global: bucket(40.0, 0.0),
        ..RateLimiterConfig::default()
    };
    let tasks = Supervisor::new();
    let one = sharing(&store, config, &tasks);
    assert_eq!(drain(&one, &clock, 3).await, 3);
    tasks.drain(Duration::from_secs(5)).await;
    let tasks = Supervisor::new();
    let two = sharing(&store, config, &tasks);
    assert_eq!(drain(&two, &clock, 1000).await, 37);
    tasks.drain(Duration::from_secs(5)).await;
}

/// The hook waits for the first chunk instead of refusing the first message.
#[tokio::test(start_paused = true)]
async fn the_first_message_waits_for_the_first_chunk() {
    let (clock, tasks) = (ManualClock::default(), Supervisor::new());
    let config = RateLimiterConfig {
        global: bucket(10.0, 1.0),
        ..RateLimiterConfig::default()
    };
    let limiter = sharing(&memory(&clock), config, &tasks);
    let hook = RateLimitHook::new(limiter, clock.shared(), &Metrics::default());
    assert_eq!(hook.name(), "rate-limit");
    let chain = HookChain::new(vec![Arc::new(hook)], &Metrics::default());
    let context = HookContext {
        stage: Stage::PostReceive,
        receiver: None,
    };
    let end = chain.run(message(1, &["t"]), context).await;
    assert!(matches!(end, Verdict::Pass(_)), "{end:?}");
    tasks.drain(Duration::from_secs(5)).await;
}

/// A store that fails refuses everything, by its own name; or, if asked to, each process limits alone.
#[tokio::test(start_paused = true)]
async fn a_store_in_trouble_refuses_or_lets_each_limit_alone() {
    for (policy, passed) in [(StoreTrouble::Refuse, 0), (StoreTrouble::LimitAlone, 7)] {
        let (clock, tasks) = (ManualClock::default(), Supervisor::new());
        let directory = tempfile::tempdir().unwrap();
        let key = volary_kernel::sign::SigningKey::generate().unwrap();
        let path = directory.path().join("volary.db");
        let config =
            volary_store::SqliteConfig::new(path, Name::new("node").unwrap(), Arc::new(key));
        let store = volary_store::SqliteStore::open(config, clock.shared())
            .await
            .unwrap();
        store.close().await;
        let metrics = Metrics::default();
        let config = RateLimiterConfig {
            global: bucket(7.0, 0.001),
            when_store_fails: policy,
            ..RateLimiterConfig::default()
        };
        let store: SharedStore = Arc::new(store);
        let name = Name::new("all").unwrap();
        let limiter = RateLimiter::shared(&store, &name, config, &tasks, &metrics).unwrap();
        assert_eq!(drain(&limiter, &clock, 1000).await, passed);
        let counted = || {
            metrics
                .encode_text()
                .contains("rate_limit_store_errors_total")
        };
        assert!(eventually(Duration::from_secs(5), counted).await);
        if policy == StoreTrouble::Refuse {
            let end = limiter.check_take(&message(1, &["t"]), Way::Egress, clock.mono());
            assert_eq!(end.unwrap_err().bucket, Bucket::Store);
        }
        tasks.drain(Duration::from_secs(5)).await;
    }
}
