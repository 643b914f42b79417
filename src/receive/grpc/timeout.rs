//! The time limit of a request: `grpc-timeout`, and the margin that is taken off so that the answer still arrives in time.

use std::time::Duration;

/// The least margin that is taken off a deadline so that the answer still arrives in time. The margin is 5 %, but at
/// least this.
const LEAST_MARGIN: Duration = Duration::from_millis(100);

/// Takes the margin off a time limit. The margin is at most half of it, so that a short limit stays usable.
pub(super) fn less_margin(time: Duration) -> Duration {
    time - (time / 20).max(LEAST_MARGIN).min(time / 2)
}

/// Parses `grpc-timeout`: one to eight digits and a unit. An invalid value is ignored.
pub(super) fn parse_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if !(1..=8).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let count = digits.iter().fold(0_u64, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(count * 3600),
        b'M' => Duration::from_secs(count * 60),
        b'S' => Duration::from_secs(count),
        b'm' => Duration::from_millis(count),
        b'u' => Duration::from_micros(count),
        b'n' => Duration::from_nanos(count),
        _ => return None,
    })
}
