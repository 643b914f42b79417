//! Commands other than the proxy itself: `sink` (a counting backend), `load` (a load generator), `demo` (both, with
//! proxies in between), `ring` (questions about placement), `convert` (a Collector's configuration to ours) and
//! `healthcheck`.
//!
//! Shared modules: [`ids`] generates trace and span IDs from which a sink can tell whether a trace is complete.
//! [`otlp_body`] writes the requests. `walk` parses them again; it shares no code with `split`, so that a defect in one
//! is noticed by the other. `h2client` and `h1client` send requests. `admin_address` reads the address of a running proxy.

pub mod convert;
pub mod demo;
pub mod healthcheck;
pub mod ids;
pub mod load;
pub mod otlp_body;
pub mod ring;
pub mod sink;

mod admin_address;
mod h1client;
mod h2client;
mod tls;
mod walk;

use std::time::Duration;

pub use crate::settings::Compression;

/// Resolves when the process receives SIGINT or SIGTERM.
pub(crate) async fn interrupted() -> std::io::Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        result = tokio::signal::ctrl_c() => result,
        _ = terminate.recv() => Ok(()),
    }
}

/// Parses a duration given on the command line: a number with a unit, such as `20ms`, `5s` or `1.5m`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let unit_at = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let scale = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "" => return Err(format!("\"{text}\" has no unit; write {text}s or {text}ms")),
        _ => return Err(format!("\"{unit}\" is no unit; write us, ms, s, m or h")),
    };
    let number: f64 = number.parse().map_err(|_| format!("\"{number}\" is no number"))?;
    Duration::try_from_secs_f64(number * scale).map_err(|error| error.to_string())
}

/// Parses a share, which is a number from 0 to 1.
pub(crate) fn parse_share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err(format!("\"{text}\" is no share; write a number from 0 to 1")),
    }
}

/// Formats a count with a comma between thousands.
pub(crate) fn grouped(count: u64) -> String {
    with_commas(&count.to_string())
}

/// Formats a rate, rounded to a whole number, with a comma between thousands.
pub(crate) fn grouped_rate(rate: f64) -> String {
    with_commas(&format!("{rate:.0}"))
}

fn with_commas(digits: &str) -> String {
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Returns `part ÷ whole`, or 0 if `whole` is 0.
#[expect(clippy::cast_precision_loss, reason = "only used in reports, which print fewer than 53 bits")]
pub(crate) fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(parse_duration("20ms").unwrap(), Duration::from_millis(20));
        assert_eq!(parse_duration("1.5m").unwrap(), Duration::from_secs(90));
        assert!(parse_duration("5").unwrap_err().contains("write 5s"));
        assert!(parse_duration("5 parsecs").is_err());
        assert!(parse_duration("-1s").is_err());
    }

    #[test]
    fn counts_are_grouped_by_thousands() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!([0.4, 1999.5, 1e6].map(grouped_rate), ["0", "2,000", "1,000,000"]);
    }
}
