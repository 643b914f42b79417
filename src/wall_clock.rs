//! The time of day, as span start times have it, beside a clock that nobody sets.
//!
//! The time of day can be set, also back. So it is only compared with the start times of spans. When a table began and how
//! long it is kept is told by the steady clock, and a span's start becomes a time of that clock by its age on arrival.

use std::{sync::OnceLock, time::Duration};

use tokio::time::Instant;

/// What the steady clock says when it is first read, in nanoseconds. That is more than the age of any span.
const STEADY_BEGIN: u64 = 1 << 62;

/// A moment by both clocks, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// The time of day, since the Unix epoch (OTLP `start_time_unix_nano`); 0 if the clock is set before it.
    pub unix: u64,
    /// The time by the steady clock, which begins anywhere.
    pub steady: u64,
}

impl Moment {
    /// Returns the present.
    pub fn now() -> Self {
        let now = Instant::now();
        Self { unix: unix(now), steady: steady(now) }
    }

    /// Returns the steady time of a time of day, as the clocks are set at this moment. The future counts as now.
    pub fn steady_at(self, unix: u64) -> u64 {
        self.steady.saturating_sub(self.unix.saturating_sub(unix))
    }

    /// Returns the time of day of a steady time, as the clocks are set at this moment.
    pub fn unix_at(self, steady: u64) -> u64 {
        let (later, earlier) = (steady.saturating_sub(self.steady), self.steady.saturating_sub(steady));
        self.unix.saturating_add(later).saturating_sub(earlier)
    }
}

/// Returns a duration in nanoseconds, as OTLP has times.
pub fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Returns what the steady clock says at `now`, in nanoseconds.
pub fn steady(now: Instant) -> u64 {
    static BEGIN: OnceLock<Instant> = OnceLock::new();
    let begin = *BEGIN.get_or_init(|| now);
    // The paused clock of a test begins when its runtime does, which may be before the first call of another one.
    let [after, before] = [now.saturating_duration_since(begin), begin.saturating_duration_since(now)].map(nanos);
    STEADY_BEGIN.saturating_add(after).saturating_sub(before)
}

#[cfg(not(test))]
fn unix(_now: Instant) -> u64 {
    use std::time::SystemTime;

    nanos(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

/// In tests the time of day stands still and advances with a paused clock.
#[cfg(test)]
fn unix(now: Instant) -> u64 {
    const BEGIN: u64 = 1_800_000_000_000_000_000;

    BEGIN + steady(now) - STEADY_BEGIN
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn times_of_day_become_steady_times_and_back() {
        let now = Moment { unix: 10_000 * SECOND, steady: 70 * SECOND };
        assert_eq!(now.steady_at(9_995 * SECOND), 65 * SECOND);
        assert_eq!(now.steady_at(20_000 * SECOND), 70 * SECOND, "what is to come counts as now");
        assert_eq!(now.steady_at(1), 0, "older than the clock");
        assert_eq!([65, 70, 75].map(|steady| now.unix_at(steady * SECOND) / SECOND), [9_995, 10_000, 10_005]);
        let set_back = Moment { unix: now.unix - 3_600 * SECOND, ..now };
        assert_eq!(set_back.steady_at(set_back.unix - 5 * SECOND), 65 * SECOND, "the age counts");
    }

    #[tokio::test(start_paused = true)]
    async fn both_clocks_advance_with_time() {
        let before = Moment::now();
        tokio::time::advance(Duration::from_secs(5)).await;
        let after = Moment::now();
        assert_eq!((after.unix - before.unix, after.steady - before.steady), (5 * SECOND, 5 * SECOND));
        assert_eq!(nanos(Duration::MAX), u64::MAX);
    }
}
