//! The bucket that several processes share, and what they have borrowed from it. Pure.
//!
//! ```text
//! pot: tokens ≤ capacity − what is lent      a process borrows a chunk, spends it by itself, and settles when it borrows again
//! ```
//! A loan is for a short time; what is not spent by then is void, also where its holder died. Until then the pot is that
//! much smaller: tokens in the pot and tokens that may still be spent are together never more than the capacity, so over
//! any span of time no more than `capacity + refill × span` messages pass, in however many processes.
//!
//! What the pot could not hold because of a loan that was spent already, as its holder says when it settles, it gets then:
//! under demand nothing is lost to slow settling.
//!
//! Time is the machine's own, which never steps. Where the pot was last changed under another start of the machine (or on
//! another machine), only time that this process has waited itself counts: too few tokens rather than too many.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use volary_kernel::{
    MachineTime, Mono, Uid,
    rate::{Cell, FRACTION, Quota, Wait},
};

/// How long a loan may be spent.
pub(super) const LOAN_LIFE: Duration = Duration::from_millis(1000);
/// Most loans at a time: more processes than that wait for each other.
pub(super) const LOANS_MAX: usize = 256;

/// Tokens that a process may spend until a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Loan {
    id: Uid,
    tokens: u32,
    /// Nanoseconds of the machine's time.
    until: u64,
}

/// Refill that the pot had no room for, at the end of a span; in nanoseconds of refill and of the machine's time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Overflow {
    from: u64,
    to: u64,
    lost: u64,
}

/// Spans of overflow that are remembered.
const OVERFLOWS_MAX: usize = 64;

/// The shared bucket as it is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Pot {
    v: u8,
    boot: [u8; 16],
    at: u64,
    /// A [`Cell`]'s number, as text: it is longer than what JSON readers hold exactly.
    cell: String,
    capacity: f64,
    refill: f64,
    lent: Vec<Loan>,
    #[serde(default)]
    over: Vec<Overflow>,
}

/// What a process asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ask {
    /// Its loan until now.
    pub loan: Option<Uid>,
    /// What it has not spent of it and keeps.
    pub keep: u32,
    /// What it has not spent of it and gives back.
    pub give_back: u32,
    /// When it had spent all of it, if it has.
    pub spent: Option<Mono>,
    /// How much it wants on top.
    pub wanted: u32,
    /// The name of its new loan.
    pub new: Uid,
}

/// What it gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Grant {
    /// New tokens.
    pub tokens: u32,
    /// Whether it may keep what it asked to keep.
    pub kept: bool,
    /// Until when it may spend all that, by the machine's time.
    pub until: Mono,
    /// When there is a token, if it got none.
    pub wait: Option<Wait>,
    /// Whether the pot changed and must be stored for the grant to hold.
    pub changed: bool,
}

impl Pot {
    fn new(quota: &Quota, now: MachineTime) -> Self {
        Self {
            v: 1,
            boot: now.boot,
            at: now.at.as_nanos(),
            cell: Cell::default().to_raw().to_string(),
            capacity: quota.capacity(),
            refill: quota.refill_per_sec(),
            lent: Vec::new(),
            over: Vec::new(),
        }
    }

    /// The pot in these bytes; `None` if they are none.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let pot: Self = serde_json::from_slice(bytes).ok()?;
        (pot.v == 1
            && pot.lent.len() <= LOANS_MAX
            && pot.over.len() <= OVERFLOWS_MAX
            && pot.cell.parse::<u128>().is_ok())
        .then_some(pot)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// The pot and its bucket by this process's clock and quota. `waited` is how long this process has seen the stored pot
    /// unchanged.
    fn here(
        stored: Option<Self>,
        quota: &Quota,
        now: MachineTime,
        waited: Duration,
    ) -> (Self, Cell) {
        let Some(mut pot) = stored else {
            return (Self::new(quota, now), Cell::default());
        };
        let mut cell = Cell::from_raw(pot.cell.parse().unwrap_or(u128::MAX));
        let theirs = Quota::new(pot.capacity, pot.refill).unwrap_or(*quota);
        let then = Mono::from_nanos(pot.at);
        if pot.boot != now.boot {
            cell = cell.moved(&theirs, then + waited, now.at);
            for loan in &mut pot.lent {
                loan.until = (now.at + LOAN_LIFE).as_nanos();
            }
            pot.over.clear();
            pot.at = now.at.as_nanos();
        }
        if theirs != *quota {
            // What is there stays there, as far as it fits.
            let whole = |tokens: f64| tokens.min(f64::from(u32::MAX)) as u32;
            let there = u32::try_from(cell.available(&theirs, now.at)).unwrap_or(u32::MAX);
            cell = Cell::default();
            cell.keep_free(quota, now.at, whole(quota.capacity()).saturating_sub(there));
            (pot.capacity, pot.refill) = (quota.capacity(), quota.refill_per_sec());
        }
        pot.boot = now.boot;
        (pot, cell)
    }

    /// Lets time pass until `now`: loans become void in their order, and what does not fit beside those that are left is
    /// lost.
    fn advance(&mut self, cell: &mut Cell, quota: &Quota, now: u64) {
        self.lent.sort_unstable_by_key(|loan| loan.until);
        loop {
            let void = self.lent.first().map(|loan| loan.until);
            let void = void.filter(|until| *until <= now);
            let to = void.unwrap_or(now);
            let before = cell.to_raw();
            cell.keep_free(quota, Mono::from_nanos(to), self.out());
            let lost = (cell.to_raw() - before) >> FRACTION;
            let lost = u64::try_from(lost).unwrap_or(u64::MAX);
            let lost = lost.min(to.saturating_sub(self.at));
            if lost > 0 && quota.refill_per_sec() > 0.0 {
                let from = self.at;
                self.over.push(Overflow { from, to, lost });
            }
            self.at = to.max(self.at);
            if void.is_none() {
                break;
            }
            self.lent.remove(0);
        }
        let old = now.saturating_sub(u64::try_from(LOAN_LIFE.as_nanos()).unwrap_or(u64::MAX));
        self.over.retain(|over| over.to > old);
        let many = self.over.len().saturating_sub(OVERFLOWS_MAX);
        self.over.drain(..many);
        self.at = now;
    }

    /// Tokens that are lent.
    fn out(&self) -> u32 {
        self.lent
            .iter()
            .fold(0, |sum, loan| sum.saturating_add(loan.tokens))
    }

    /// Gives the pot what it lost since `spent` because of a loan of `tokens`, which was then no more.
    fn make_good(&mut self, cell: &mut Cell, quota: &Quota, tokens: u32, spent: u64) {
        let mut left = quota.time_of(tokens) >> FRACTION;
        for over in self.over.iter_mut().rev() {
            let since = over.to.saturating_sub(spent.max(over.from));
            let good = over.lost.min(since);
            let good = good.min(u64::try_from(left).unwrap_or(u64::MAX));
            // From the end, so that nothing is made good twice.
            (over.lost, over.to) = (over.lost - good, over.to - good);
            left -= u128::from(good);
            *cell = Cell::from_raw(cell.to_raw().saturating_sub(u128::from(good) << FRACTION));
        }
    }

    /// Settles one process's loan and lends to it anew.
    pub(super) fn lend(
        stored: Option<Self>,
        quota: &Quota,
        now: MachineTime,
        waited: Duration,
        ask: Ask,
    ) -> (Self, Grant) {
        let (mut pot, mut cell) = Self::here(stored, quota, now, waited);
        let at = now.at.as_nanos();
        pot.advance(&mut cell, quota, at);
        let mine = pot.lent.iter().position(|loan| Some(loan.id) == ask.loan);
        let mine = mine.map(|place| pot.lent.swap_remove(place));
        let mut keep = 0;
        if let Some(mine) = &mine {
            keep = ask.keep.min(mine.tokens);
            cell.give_back(quota, ask.give_back.min(mine.tokens - keep));
            if let Some(spent) = ask.spent.filter(|_| keep == 0 && ask.give_back == 0) {
                pot.make_good(&mut cell, quota, mine.tokens, spent.as_nanos());
            }
        }
        let out = pot.out().saturating_add(keep);
        cell.keep_free(quota, now.at, out);
        let room = pot.lent.len() < LOANS_MAX;
        let there = u32::try_from(cell.available(quota, now.at)).unwrap_or(u32::MAX);
        let tokens = if room { ask.wanted.min(there) } else { 0 };
        let wait = (ask.wanted > 0 && tokens == 0).then(|| pot.wait(&mut cell, quota, now.at, out));
        cell.take(quota, now.at, tokens);
        let until = now.at + LOAN_LIFE;
        let held = tokens.saturating_add(keep);
        if held > 0 {
            pot.lent.push(Loan {
                id: ask.new,
                tokens: held,
                until: until.as_nanos(),
            });
        }
        pot.cell = cell.to_raw().to_string();
        let grant = Grant {
            tokens,
            kept: mine.is_some(),
            until,
            wait,
            changed: tokens > 0 || mine.is_some(),
        };
        (pot, grant)
    }

    /// When there may be a token: when the bucket has one, and what is lent leaves room for it.
    fn wait(&self, cell: &mut Cell, quota: &Quota, now: Mono, out: u32) -> Wait {
        let full = quota.capacity() - f64::from(out) < 1.0 || self.lent.len() >= LOANS_MAX;
        let soonest = self.lent.iter().map(|loan| loan.until).min();
        match (cell.check(quota, now, 1), soonest) {
            // Even a bucket that never refills gets back what is not spent.
            (_, Some(until)) if full => Wait::For(Mono::from_nanos(until) - now),
            (Err(wait), _) => wait,
            (Ok(()), _) => Wait::For(Duration::from_nanos(1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOOT: [u8; 16] = [3; 16];

    fn at(nanos: u64) -> MachineTime {
        MachineTime {
            boot: BOOT,
            at: Mono::from_nanos(1_000_000_000 + nanos),
        }
    }

    fn ask(wanted: u32) -> Ask {
        Ask {
            loan: None,
            keep: 0,
            give_back: 0,
            spent: None,
            wanted,
            new: Uid::generate(),
        }
    }

    fn lend(pot: &mut Option<Pot>, quota: &Quota, now: MachineTime, ask: Ask) -> Grant {
        let (next, grant) = Pot::lend(pot.take(), quota, now, Duration::ZERO, ask);
        *pot = Some(Pot::decode(&next.encode()).expect("it reads back"));
        grant
    }

    #[test]
    fn what_is_lent_makes_the_pot_smaller_until_it_is_void() {
        let quota = Quota::new(10.0, 1000.0).unwrap();
        let mut pot = None;
        assert_eq!(lend(&mut pot, &quota, at(0), ask(6)).tokens, 6);
        let later = at(500_000_000);
        assert_eq!(lend(&mut pot, &quota, later, ask(100)).tokens, 4);
        let none = lend(&mut pot, &quota, later, ask(1));
        let left = Duration::from_millis(500);
        assert_eq!((none.tokens, none.wait), (0, Some(Wait::For(left))));
        let void = at(1_000_000_000);
        assert_eq!(
            lend(&mut pot, &quota, void, ask(100)).tokens,
            0,
            "it may have been spent until now"
        );
        let refilled = at(1_007_000_000);
        assert_eq!(lend(&mut pot, &quota, refilled, ask(100)).tokens, 6);
    }

    #[test]
    fn what_is_given_back_is_there_for_others_at_once() {
        let quota = Quota::new(10.0, 0.001).unwrap();
        let mut pot = None;
        let first = ask(10);
        assert_eq!(lend(&mut pot, &quota, at(0), first).tokens, 10);
        let back = Ask {
            loan: Some(first.new),
            give_back: 7,
            ..ask(0)
        };
        assert!(lend(&mut pot, &quota, at(1), back).changed);
        assert!(!lend(&mut pot, &quota, at(1), back).kept, "once");
        assert_eq!(lend(&mut pot, &quota, at(2), ask(10)).tokens, 7);
    }

    #[test]
    fn under_another_boot_only_what_was_waited_here_counts() {
        let quota = Quota::new(100.0, 100.0).unwrap();
        let mut pot = None;
        assert_eq!(lend(&mut pot, &quota, at(0), ask(100)).tokens, 100);
        let elsewhere = |nanos| MachineTime {
            boot: [4; 16],
            at: Mono::from_nanos(nanos),
        };
        let stored = pot.clone();
        let late = elsewhere(u64::MAX / 2);
        let (_, grant) = Pot::lend(stored, &quota, late, Duration::ZERO, ask(9));
        assert_eq!(grant.tokens, 0);
        let mut pot = pot.unwrap();
        pot.lent.clear();
        let half = Duration::from_millis(500);
        let (_, grant) = Pot::lend(Some(pot), &quota, elsewhere(5), half, ask(99));
        assert!((49..=50).contains(&grant.tokens), "{grant:?}");
    }

    #[test]
    fn another_quota_brings_no_tokens() {
        let small = Quota::new(10.0, 1.0).unwrap();
        let large = Quota::new(1000.0, 1.0).unwrap();
        let mut pot = None;
        assert_eq!(lend(&mut pot, &small, at(0), ask(4)).tokens, 4);
        assert_eq!(lend(&mut pot, &large, at(0), ask(500)).tokens, 6);
    }

    #[test]
    fn what_a_spent_loan_kept_out_is_made_good_when_it_is_settled() {
        let quota = Quota::new(10.0, 100.0).unwrap();
        let mut pot = None;
        let first = ask(10);
        assert_eq!(lend(&mut pot, &quota, at(0), first).tokens, 10);
        let half = at(500_000_000);
        assert_eq!(lend(&mut pot, &quota, half, ask(9)).tokens, 0);
        let again = Ask {
            loan: Some(first.new),
            spent: Some(at(1_000_000).at),
            ..ask(10)
        };
        let mut unspent = pot.clone();
        let silent = Ask {
            spent: None,
            ..again
        };
        assert_eq!(lend(&mut unspent, &quota, half, silent).tokens, 0);
        assert!(lend(&mut pot, &quota, half, again).tokens >= 9);
    }

    /// A process: what it holds by its own reckoning.
    #[derive(Default, Clone)]
    struct Holder {
        loan: Option<Uid>,
        tokens: u32,
        until: u64,
        spent: Option<Mono>,
    }

    #[derive(Debug, Clone)]
    enum Step {
        Borrow(usize, u32),
        GiveBack(usize),
        Spend(usize, u32),
        Die(usize),
        Pass(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let who = 0..5usize;
        prop_oneof![
            3 => (who.clone(), 1..40u32).prop_map(|(who, wanted)| Step::Borrow(who, wanted)),
            1 => who.clone().prop_map(Step::GiveBack),
            4 => (who.clone(), 1..40u32).prop_map(|(who, count)| Step::Spend(who, count)),
            1 => who.prop_map(Step::Die),
            3 => prop_oneof![0..1_000_000u64, 0..400_000_000u64, Just(999_999_999u64), Just(1u64), 1..3_000_000_000u64].prop_map(Step::Pass),
        ]
    }

    proptest! {
        /// Whatever the processes do, and whichever die, over no span more is spent than the quota says.
        #[test]
        fn no_span_has_more_than_capacity_and_refill(
            capacity in 0.0..60.0f64,
            refill in prop_oneof![Just(0.0), 0.5..2000.0f64],
            steps in prop::collection::vec(step(), 1..120),
        ) {
            let quota = Quota::new(capacity, refill).unwrap();
            let (mut pot, mut now) = (None, 0u64);
            let mut holders = vec![Holder::default(); 5];
            let mut spent: Vec<(u64, u32)> = Vec::new();
            for step in steps {
                match step {
                    Step::Pass(nanos) => now += nanos,
                    Step::Die(who) => holders[who] = Holder::default(),
                    Step::Spend(who, count) => {
                        let holder = &mut holders[who];
                        if at(now).at.as_nanos() < holder.until {
                            let count = count.min(holder.tokens);
                            if count > 0 && holder.tokens == count {
                                holder.spent = Some(at(now).at);
                            }
                            holder.tokens -= count;
                            spent.push((now, count));
                        }
                    }
                    Step::Borrow(who, wanted) => {
                        let holder = &mut holders[who];
                        let ask = Ask { loan: holder.loan, keep: holder.tokens, spent: holder.spent, ..ask(wanted) };
                        let grant = lend(&mut pot, &quota, at(now), ask);
                        let kept = if grant.kept { holder.tokens } else { 0 };
                        *holder = Holder {
                            loan: Some(ask.new), tokens: kept + grant.tokens, until: grant.until.as_nanos(),
                            spent: None,
                        };
                    }
                    Step::GiveBack(who) => {
                        let holder = std::mem::take(&mut holders[who]);
                        let ask = Ask { loan: holder.loan, give_back: holder.tokens, ..ask(0) };
                        lend(&mut pot, &quota, at(now), ask);
                    }
                }
                for (first, (start, _)) in spent.iter().enumerate() {
                    let count: u32 = spent[first..].iter().map(|(_, count)| count).sum();
                    let most = capacity + refill * (now - start) as f64 / 1e9;
                    prop_assert!(f64::from(count) <= most + 1e-6, "{count} since {start} at {now}, most {most}");
                }
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), raw in any::<u128>(), when in any::<u64>()) {
            let _ = Pot::decode(&bytes);
            let quota = Quota::new(5.0, 5.0).unwrap();
            let mut pot = Pot::new(&quota, at(0));
            (pot.cell, pot.at) = (raw.to_string(), when);
            let stored = Pot::decode(&pot.encode());
            Pot::lend(stored, &quota, at(7), Duration::MAX, ask(u32::MAX));
        }
    }
}
