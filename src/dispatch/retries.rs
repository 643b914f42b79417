//! The retry budget of a pool: limits retries to a share of the traffic, so that they do not make an outage worse.
//!
//! It is a token bucket. Parts that are sent for the first time fill it, and each retry takes one token. A part that goes to
//! another backend, because its own was ejected or has left, takes none.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use metrics::Counter;
use tokio::time::Instant;

/// The value of a token. The bucket counts hundredths, so that a percentage of a token is an integer.
const TOKEN: i64 = 100;

/// The capacity of the bucket. It covers a burst of retries, for example after a connection was lost with its calls.
const MOST: i64 = 1000 * TOKEN;

/// Tokens that are added each second regardless of traffic, so that a pool with little traffic can retry too.
const FLOOR: i64 = 10;

/// The retry budget of a pool.
#[derive(Debug)]
pub struct RetryBudget {
    /// The hundredths of a token that one first attempt adds.
    share: AtomicI64,
    tokens: AtomicI64,
    /// The time up to which the regular tokens were added.
    refilled: Mutex<Instant>,
    exhausted: Counter,
}

impl RetryBudget {
    /// Creates a full bucket. In the long run, the number of retries is at most `percent` of the number of first attempts.
    pub(super) fn new(percent: u32, exhausted: Counter) -> Self {
        Self {
            share: AtomicI64::new(share_of(percent)),
            tokens: AtomicI64::new(MOST),
            refilled: Mutex::new(Instant::now()),
            exhausted,
        }
    }

    /// Changes the allowed percentage of retries.
    pub(super) fn set_percent(&self, percent: u32) {
        self.share.store(share_of(percent), Ordering::Relaxed);
    }

    /// Notes first attempts. While the bucket is full, this costs one load.
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

    /// Gives back the token of a retry that was not made.
    #[cold]
    pub fn give_back(&self) {
        self.add(TOKEN);
    }

    fn refill(&self, now: Instant) {
        /// The time in which one regular token is added.
        const EACH: Duration = Duration::from_millis(1000 / FLOOR.unsigned_abs());
        let mut refilled = self.refilled.lock().unwrap_or_else(PoisonError::into_inner);
        let periods = now.saturating_duration_since(*refilled).as_nanos() / EACH.as_nanos();
        let tokens = i64::try_from(periods).unwrap_or(MOST).min(MOST / TOKEN);
        if tokens > 0 {
            // The rest of an incomplete period counts for the next token.
            *refilled += EACH.saturating_mul(u32::try_from(periods).unwrap_or(u32::MAX));
            self.add(tokens * TOKEN);
        }
    }

    fn add(&self, amount: i64) {
        // Concurrent additions may exceed the bound a little for a moment, which does no harm.
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
    async fn a_pool_without_traffic_gets_ten_tokens_a_second() {
        let budget = RetryBudget::new(0, Counter::noop());
        let now = Instant::now();
        spend_all(&budget, now);
        assert_eq!(spend_all(&budget, now + Duration::from_millis(250)), 2);
        assert_eq!(spend_all(&budget, now + Duration::from_millis(300)), 1, "fractions of a period must be kept");
        assert_eq!(spend_all(&budget, now + Duration::from_secs(3600)), 1000);
    }
}
