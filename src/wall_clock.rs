//! The time of day, as span start times have it.

/// Returns the nanoseconds since the Unix epoch (OTLP `start_time_unix_nano`); 0 if the clock is set before it.
#[cfg(not(test))]
pub fn unix_nanos() -> u64 {
    use std::time::SystemTime;

    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// The same in tests, where it stands still and advances with a paused clock.
#[cfg(test)]
pub fn unix_nanos() -> u64 {
    use std::sync::OnceLock;

    use tokio::time::Instant;

    static BEGIN: OnceLock<Instant> = OnceLock::new();
    const BEGIN_NANOS: u64 = 1_800_000_000_000_000_000;
    let now = Instant::now();
    let begin = *BEGIN.get_or_init(|| now);
    // Each paused clock begins when its runtime does, which may be before the first call of another one.
    let (after, before) = (now.saturating_duration_since(begin), begin.saturating_duration_since(now));
    BEGIN_NANOS + u64::try_from(after.as_nanos()).unwrap() - u64::try_from(before.as_nanos()).unwrap()
}
