//! Pauses between attempts, which grow exponentially up to a bound and have jitter.

use std::time::Duration;

use crate::settings::RetryOnFailure;

/// A growing pause. Dispatch uses it between connection attempts, the pipeline between the attempts of a part.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    keys: RetryOnFailure,
    failures: u32,
}

impl Backoff {
    /// Creates a backoff that begins with the first pause.
    pub fn new(keys: RetryOnFailure) -> Self {
        Self { keys, failures: 0 }
    }

    /// Returns the next pause.
    pub fn pause(&mut self) -> Duration {
        let RetryOnFailure { initial_interval, max_interval, multiplier, randomization_factor, .. } = self.keys;
        // After 64 steps every sensible multiplier has reached the bound.
        let exponent = i32::try_from(self.failures.min(64)).unwrap_or(64);
        self.failures = self.failures.saturating_add(1);
        let grown = initial_interval.as_secs_f64() * multiplier.max(1.0).powi(exponent);
        let bounded = grown.min(max_interval.as_secs_f64()).max(0.0);
        let spread = randomization_factor.clamp(0.0, 1.0) * (2.0 * fastrand::f64() - 1.0);
        Duration::try_from_secs_f64(bounded * (1.0 + spread)).unwrap_or(max_interval)
    }

    /// Returns the number of pauses since the last success.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Starts over after a success. Returns whether there was a pause since the last success.
    pub fn reset(&mut self) -> bool {
        std::mem::take(&mut self.failures) > 0
    }

    /// Whether the next pause is the first.
    pub fn is_fresh(&self) -> bool {
        self.failures == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_bound_and_start_over() {
        let keys = RetryOnFailure { randomization_factor: 0.0, ..RetryOnFailure::default() };
        let mut backoff = Backoff::new(keys);
        assert_eq!(backoff.pause(), Duration::from_millis(50));
        assert_eq!(backoff.pause(), Duration::from_millis(75));
        for _ in 0..1000 {
            assert!(backoff.pause() <= keys.max_interval);
        }
        assert_eq!(backoff.pause(), keys.max_interval, "must stay at the bound");
        assert!(backoff.reset());
        assert!(backoff.is_fresh());
        assert_eq!(backoff.pause(), Duration::from_millis(50));
    }

    #[test]
    fn jitter_stays_within_its_share() {
        for _ in 0..1000 {
            let pause = Backoff::new(RetryOnFailure::default()).pause();
            assert!((Duration::from_millis(25)..=Duration::from_millis(75)).contains(&pause), "{pause:?}");
        }
    }
}
