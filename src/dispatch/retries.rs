//! The retry budget of a pool: a share of its traffic, so that retries never multiply an outage.
//!
//! A bucket of tokens: parts that are sent for the first time fill it, each retry takes one token. Parts that move on because
//! their backend was ejected or left take none: that is not the same question asked again.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use metrics::Counter;
use tokio::time::Instant;

/// A token, in the unit that is counted: a hundredth, so that a percentage of one is whole.
const TOKEN: i64 = 100;

/// Most that is saved up: what a moment's trouble (a connection with its calls lost) may take at once.
const MOST: i64 = 1000 * TOKEN;

/// Tokens a second that come without any traffic, so that a quiet pool can retry too.
const FLOOR: i64 = 10;

/// How many retries a pool may make.
#[derive(Debug)]
pub struct RetryBudget {
    /// What one first attempt adds.
    share: AtomicI64,
    tokens: AtomicI64,
    /// When the floor was last added.
    refilled: Mutex<Instant>,
    exhausted: Counter,
}

impl RetryBudget {
    /// A full bucket of which `percent` of first attempts may be retries in the long run.
    pub(super) fn new(percent: u32, exhausted: Counter) -> Self {
        Self {
            share: AtomicI64::new(share_of(percent)),
            tokens: AtomicI64::new(MOST),
            refilled: Mutex::new(Instant::now()),
            exhausted,
        }
    }

    /// Changes the share of first attempts that may be retries.
    pub(super) fn set_percent(&self, percent: u32) {
        self.share.store(share_of(percent), Ordering::Relaxed);
    }

    /// Notes first attempts. One load while the bucket is full, which it is while all is well.
    pub fn earn(&self, parts: usize) {
        if self.tokens.load(Ordering::Relaxed) < MOST {
            let parts = i64::try_from(parts).unwrap_or(MOST).min(MOST);
            self.add(self.share.load(Ordering::Relaxed).saturating_mul(parts));
        }
    }

    /// Takes a token for a retry, if there is one.
    #[cold]
    pub fn spend(&self, now: Instant) -> bool {
        self.refill(now);
        let spent = self
            .tokens
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |tokens| (tokens >= TOKEN).then(|| tokens - TOKEN))
            .is_ok();
        if !spent {
            self.exhausted.increment(1);
        }
        spent
    }

    /// Puts back what was taken for a retry that did not come about.
    #[cold]
    pub fn give_back(&self) {
        self.add(TOKEN);
    }

    fn refill(&self, now: Instant) {
        /// Time that is worth one token.
        const EACH: Duration = Duration::from_millis(1000 / FLOOR.unsigned_abs());
        let mut refilled = self.refilled.lock().unwrap_or_else(PoisonError::into_inner);
        let periods = now.saturating_duration_since(*refilled).as_nanos() / EACH.as_nanos();
        let tokens = i64::try_from(periods).unwrap_or(MOST).min(MOST / TOKEN);
        if tokens > 0 {
            // What is left of a period counts towards the next.
            *refilled += EACH.saturating_mul(u32::try_from(periods).unwrap_or(u32::MAX));
            self.add(tokens * TOKEN);
        }
    }

    fn add(&self, amount: i64) {
        // Concurrent additions may pass the bound by a little: nothing is lost by that.
        if self.tokens.fetch_add(amount, Ordering::Relaxed).saturating_add(amount) > MOST {
            self.tokens.fetch_min(MOST, Ordering::Relaxed);
        }
    }
}

fn share_of(percent: u32) -> i64 {
    TOKEN * i64::from(percent) / 100
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spend_all(budget: &RetryBudget, now: Instant) -> usize {
        std::iter::repeat_with(|| budget.spend(now)).take_while(|spent| *spent).count()
    }

    #[tokio::test(start_paused = true)]
    async fn retries_are_a_share_of_first_attempts() {
        let budget = RetryBudget::new(20, Counter::noop());
        let now = Instant::now();
        assert_eq!(spend_all(&budget, now), 1000, "a full bucket first");
        budget.earn(4);
        assert_eq!(spend_all(&budget, now), 0, "not one whole token yet");
        budget.earn(1);
        assert_eq!(spend_all(&budget, now), 1);
        for _ in 0..100 {
            budget.earn(10);
        }
        assert_eq!(spend_all(&budget, now), 200);
        budget.earn(usize::MAX);
        budget.earn(usize::MAX);
        assert_eq!(spend_all(&budget, now), 1000, "must not be saved up without bound");
        budget.give_back();
        assert_eq!(spend_all(&budget, now), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_pool_has_ten_a_second() {
        let budget = RetryBudget::new(0, Counter::noop());
        let now = Instant::now();
        spend_all(&budget, now);
        assert_eq!(spend_all(&budget, now + Duration::from_millis(250)), 2);
        assert_eq!(spend_all(&budget, now + Duration::from_millis(300)), 1, "fractions must count on");
        assert_eq!(spend_all(&budget, now + Duration::from_secs(3600)), 1000);
    }
}
