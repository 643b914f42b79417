//! What is run beside the proxy: `sink` (a counting backend), `load` (a generator), `demo` (both, with proxies between),
//! `ring` (questions about placement) and `convert` (a Collector's configuration to ours).
//!
//! The pieces that they share: [`ids`] says how a generated span names its place in its trace, so that a sink can tell
//! whether a trace is complete; [`otlp_body`] writes the requests; `walk` reads them back without any code of the
//! split's, so that a fault in one is seen by the other; `h2client` and `codec` are the way over the wire.

pub mod convert;
pub mod demo;
pub mod healthcheck;
pub mod ids;
pub mod load;
pub mod otlp_body;
pub mod ring;
pub mod sink;

mod codec;
mod h2client;
mod tls;
mod walk;

use std::time::Duration;

pub use codec::Compression;

/// Resolves when the process is asked to end: SIGINT or SIGTERM.
pub(crate) async fn interrupted() -> std::io::Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        result = tokio::signal::ctrl_c() => result,
        _ = terminate.recv() => Ok(()),
    }
}

/// Reads a duration as the command line takes it: a number with a unit, `20ms`, `5s`, `1.5m`.
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

/// Reads a share: a number from 0 to 1.
pub(crate) fn parse_share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err(format!("\"{text}\" is no share; write a number from 0 to 1")),
    }
}

/// A count with thousands set apart, for reports that people read.
pub(crate) fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `part ÷ whole`, 0 when there is nothing to divide by.
#[expect(clippy::cast_precision_loss, reason = "for reports: 53 bits are more than is printed")]
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
    }
}
