//! Running hooks in order: bounded in time, panics contained, every outcome counted.

use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use futures_util::FutureExt;
use volary_kernel::{
    clock,
    metric::{Counter, Metrics},
    task::panic_text,
};

use super::{HookContext, HookError, MessageHook, Outcome, Pending, Stage, Step};
use crate::{
    admission::{Admission, Refusal},
    message::Message,
    metrics,
};

/// How long one hook may take for one message: long enough for a local lookup, short enough not to stall a receiver.
pub const DEFAULT_HOOK_TIMEOUT: Duration = Duration::from_secs(1);

/// What is left of a message after the hooks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on.
    Pass(Message),
    /// It ends here; this is what its sender is told.
    Stop(Admission),
}

/// Hooks in order. Clones share them.
#[derive(Clone)]
pub struct HookChain {
    hooks: Arc<[Registered]>,
    timeout: Duration,
    /// Messages that all hooks passed on, by stage.
    passed: [Counter; 2],
}

struct Registered {
    hook: Arc<dyn MessageHook>,
    pre_send: Outcomes,
    post_receive: Outcomes,
}

/// What a hook did other than passing messages on.
struct Outcomes {
    dropped: Counter,
    refused: Counter,
    failed: Counter,
}

impl Outcomes {
    fn new(metrics: &Metrics, hook: &str, stage: Stage) -> Self {
        let family = metrics::hook_outcomes(metrics);
        let of = |outcome| family.with(&[hook, stage.as_str(), outcome]);
        Self {
            dropped: of("dropped"),
            refused: of("refused"),
            failed: of("failed"),
        }
    }
}

/// How far the hooks that decide on the spot got.
enum Progress<'a> {
    Ended(Verdict),
    /// The hook at this place decides later.
    Waits(usize, Pending<'a>),
}

impl std::fmt::Debug for HookChain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}

impl HookChain {
    /// A chain of `hooks` in this order; each gets [`DEFAULT_HOOK_TIMEOUT`] for one message.
    pub fn new(hooks: Vec<Arc<dyn MessageHook>>, metrics: &Metrics) -> Self {
        let register = |hook: Arc<dyn MessageHook>| Registered {
            pre_send: Outcomes::new(metrics, hook.name(), Stage::PreSend),
            post_receive: Outcomes::new(metrics, hook.name(), Stage::PostReceive),
            hook,
        };
        let passed = metrics::hooks_passed(metrics);
        Self {
            hooks: hooks.into_iter().map(register).collect(),
            timeout: DEFAULT_HOOK_TIMEOUT,
            passed: [Stage::PreSend, Stage::PostReceive]
                .map(|stage| passed.with(&[stage.as_str()])),
        }
    }

    /// Gives each hook `timeout` for one message.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The hooks' names, in order.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.hooks.iter().map(|registered| registered.hook.name())
    }

    /// Whether there is no hook.
    pub fn is_empty(&self) -> bool {
        self.hooks.is_empty()
    }

    /// Runs `message` through all hooks of a stage. Cancel-safe if the hooks are.
    #[inline]
    pub async fn run(&self, message: Message, context: HookContext<'_>) -> Verdict {
        let verdict = match self.run_ready(message, 0, context) {
            Progress::Ended(verdict) => verdict,
            Progress::Waits(index, pending) => {
                Box::pin(self.run_waiting(index, pending, context)).await
            }
        };
        if let Verdict::Pass(_) = verdict {
            self.passed[usize::from(context.stage == Stage::PostReceive)].inc();
        }
        verdict
    }

    /// Runs the hooks from `first` on until one ends the message or wants to wait. Nothing is allocated.
    fn run_ready<'a>(
        &'a self,
        message: Message,
        first: usize,
        context: HookContext<'a>,
    ) -> Progress<'a> {
        let at = Cell::new(first);
        let run = || {
            let mut message = message;
            for (index, registered) in self.hooks.iter().enumerate().skip(first) {
                at.set(index);
                let step = match context.stage {
                    Stage::PreSend => registered.hook.pre_send(message, context),
                    Stage::PostReceive => registered.hook.post_receive(message, context),
                };
                match step {
                    Step::Done(Ok(Outcome::Continue(next))) => message = next,
                    Step::Done(decided) => {
                        return Progress::Ended(registered.settle(decided, context));
                    }
                    Step::Wait(pending) => return Progress::Waits(index, pending),
                }
            }
            Progress::Ended(Verdict::Pass(message))
        };
        // One net under all hooks; `at` says which of them fell.
        catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
            let error = HookError::Panicked(panic_text(&*panic).to_owned());
            Progress::Ended(self.hooks[at.get()].settle(Err(error), context))
        })
    }

    async fn run_waiting<'a>(
        &'a self,
        mut index: usize,
        mut pending: Pending<'a>,
        context: HookContext<'a>,
    ) -> Verdict {
        loop {
            let decided = self.wait(pending).await;
            let message = match self.hooks[index].settle(decided, context) {
                Verdict::Pass(message) => message,
                stop @ Verdict::Stop(_) => return stop,
            };
            match self.run_ready(message, index + 1, context) {
                Progress::Ended(verdict) => return verdict,
                Progress::Waits(next, later) => (index, pending) = (next, later),
            }
        }
    }

    async fn wait(&self, pending: Pending<'_>) -> Result<Outcome, HookError> {
        match clock::timeout(self.timeout, AssertUnwindSafe(pending).catch_unwind()).await {
            Ok(Ok(decided)) => decided,
            Ok(Err(panic)) => Err(HookError::Panicked(panic_text(&*panic).to_owned())),
            Err(_) => Err(HookError::TimedOut(self.timeout)),
        }
    }
}

impl Registered {
    fn settle(&self, decided: Result<Outcome, HookError>, context: HookContext<'_>) -> Verdict {
        let counters = match context.stage {
            Stage::PreSend => &self.pre_send,
            Stage::PostReceive => &self.post_receive,
        };
        match decided {
            Ok(Outcome::Continue(message)) => Verdict::Pass(message),
            Ok(Outcome::Drop { reason }) => {
                counters.dropped.inc();
                Verdict::Stop(Admission::Dropped {
                    hook: self.hook.name().to_owned(),
                    reason,
                })
            }
            Ok(Outcome::Refuse(why)) => {
                counters.refused.inc();
                Verdict::Stop(Admission::Refused(why))
            }
            Err(error) => {
                counters.failed.inc();
                Verdict::Stop(Admission::Refused(self.fail(error, context)))
            }
        }
    }

    /// Tells the hook of its own failure; whatever it does then, the first error is what surfaces.
    fn fail(&self, error: HookError, context: HookContext<'_>) -> Refusal {
        let (hook, stage) = (self.hook.name(), context.stage.as_str());
        tracing::warn!(hook, stage, %error, "hook failed");
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.hook.on_error(&error, context))) {
            tracing::error!(
                hook,
                stage,
                panic = panic_text(&*panic),
                "on_error panicked"
            );
        }
        Refusal::Hook {
            hook: hook.to_owned(),
            problem: error.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::test_util::{message, text_of};

    const CONTEXT: HookContext<'static> = HookContext {
        stage: Stage::PreSend,
        receiver: None,
    };

    /// Adds its word to the text of the message, or does what the word says.
    struct Word(&'static str, Arc<AtomicUsize>);

    impl Word {
        fn new(word: &'static str) -> Arc<Self> {
            Arc::new(Self(word, Arc::default()))
        }
    }

    impl MessageHook for Word {
        fn name(&self) -> &'static str {
            self.0
        }
        fn pre_send<'a>(&'a self, message: Message, _: HookContext<'a>) -> Step<'a> {
            match self.0 {
                "drop" => Step::drop("asked to"),
                "refuse" => Step::refuse(Refusal::Secret),
                "fail" => Step::Done(Err(HookError::failed("no luck"))),
                "panic" | "panic-twice" => panic!("boom"),
                "panic-later" => Step::wait(async { panic!("late boom") }),
                "hang" => Step::wait(std::future::pending()),
                word => {
                    let text = format!("{}{word}", text_of(&message));
                    Step::pass(
                        message
                            .edit()
                            .json(&text)
                            .unwrap()
                            .build(message.sent_at())
                            .unwrap(),
                    )
                }
            }
        }
        fn on_error(&self, _: &HookError, _: HookContext<'_>) {
            self.1.fetch_add(1, Ordering::Relaxed);
            assert!(self.0 != "panic-twice", "on_error fails too");
        }
    }

    fn chain(words: &[&'static str]) -> HookChain {
        let hooks = words
            .iter()
            .map(|word| Word::new(word) as Arc<dyn MessageHook>)
            .collect();
        HookChain::new(hooks, &Metrics::default())
    }

    async fn stopped(words: &[&'static str]) -> Admission {
        match chain(words).run(message("a", "t", ""), CONTEXT).await {
            Verdict::Stop(admission) => admission,
            Verdict::Pass(message) => panic!("passed as {message:?}"),
        }
    }

    #[tokio::test]
    async fn hooks_run_in_the_order_of_registration_and_see_each_others_changes() {
        let verdict = chain(&["a", "b", "c"])
            .run(message("x", "t", "-"), CONTEXT)
            .await;
        let Verdict::Pass(message) = verdict else {
            panic!("{verdict:?}")
        };
        assert_eq!(text_of(&message), "-abc");
    }

    #[tokio::test]
    async fn a_drop_or_refusal_stops_later_hooks_and_names_its_reason() {
        let dropped = Admission::Dropped {
            hook: "drop".into(),
            reason: "asked to".into(),
        };
        assert_eq!(stopped(&["a", "drop", "panic"]).await, dropped);
        assert_eq!(
            stopped(&["refuse", "panic"]).await,
            Admission::Refused(Refusal::Secret)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn errors_panics_and_hangs_surface_in_the_admission() {
        for (word, problem) in [
            ("fail", "no luck"),
            ("panic", "panicked: boom"),
            ("panic-twice", "panicked: boom"),
            ("panic-later", "panicked: late boom"),
            ("hang", "did not decide within 1s"),
        ] {
            let refused = Refusal::Hook {
                hook: word.into(),
                problem: problem.into(),
            };
            assert_eq!(stopped(&[word]).await, Admission::Refused(refused));
        }
    }

    #[tokio::test]
    async fn a_failing_hook_is_told_and_counted_once() {
        let metrics = Metrics::default();
        let (good, bad) = (Word::new("a"), Word::new("fail"));
        let chain = HookChain::new(vec![good.clone(), bad.clone()], &metrics);
        chain.run(message("x", "t", ""), CONTEXT).await;
        assert_eq!(
            (
                good.1.load(Ordering::Relaxed),
                bad.1.load(Ordering::Relaxed)
            ),
            (0, 1)
        );
        let outcome = |hook, outcome| {
            metrics::hook_outcomes(&metrics)
                .with(&[hook, "pre_send", outcome])
                .get()
        };
        assert_eq!((outcome("a", "failed"), outcome("fail", "failed")), (0, 1));
        let passed = || metrics::hooks_passed(&metrics).with(&["pre_send"]).get();
        assert_eq!(passed(), 0);
        HookChain::new(vec![good], &metrics)
            .run(message("x", "t", ""), CONTEXT)
            .await;
        assert_eq!(passed(), 1);
    }
}
