//! Metrics of the receivers.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use tokio::time::{Instant, MissedTickBehavior};
use tonic::Code;

use crate::{
    budget::{Budget, Use},
    lifecycle::Tasks,
    otlp::{Outcome, Reason, Signal},
    places::Places,
    telemetry::metrics as page,
};

/// How often gauges are written: more often than any usual scrape interval.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// The names of gRPC's status codes, by number, as label values.
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// The metric handles of all signals, resolved once.
pub(super) struct ReceiverMetrics {
    signals: [SignalMetrics; 4],
    unrouted: [Counter; Reason::ALL.len()],
}

/// The metric handles of one signal.
pub(super) struct SignalMetrics {
    requests: [Counter; CODES.len()],
    refused: [Counter; Reason::ALL.len()],
    bytes: Counter,
    wire_bytes: Counter,
    abandoned: Counter,
    in_flight: Gauge,
    duration: Histogram,
}

/// A request that is being handled. If it is dropped without an answer, it counts as abandoned.
pub(super) struct InFlight<'a> {
    metrics: &'a SignalMetrics,
    started: Instant,
    answered: bool,
}

/// Writes the gauges of the memory account until the drain begins.
pub(super) fn report_budget(budget: Budget, tasks: &Tasks) {
    let limit = gauge!(page::MEMORY_BUDGET_LIMIT_BYTES);
    let used = gauge!(page::MEMORY_BUDGET_USED_BYTES);
    let clients_limit = gauge!(page::MEMORY_CLIENTS_LIMIT_BYTES);
    let used_for = Use::ALL.map(|purpose| (purpose, gauge!(page::MEMORY_USED_BYTES, "use" => purpose.as_str())));
    report(tasks, move || {
        limit.set(as_gauge(budget.limit()));
        used.set(as_gauge(budget.used()));
        clients_limit.set(as_gauge(budget.clients_limit()));
        used_for.iter().for_each(|(purpose, gauge)| gauge.set(as_gauge(budget.used_for(*purpose))));
    });
}

/// Writes the gauge of the requests that wait for `places` until the drain begins.
pub(super) fn report_waiting(places: Places, tasks: &Tasks) {
    let waiting = gauge!(page::RECEIVER_WAITING_REQUESTS);
    report(tasks, move || waiting.set(as_gauge(places.waiting())));
}

/// Writes gauges from time to time until the drain begins. The drain waits for every task of the receivers, so this one has
/// to end when it begins.
fn report(tasks: &Tasks, write: impl Fn() + Send + 'static) {
    let watch = tasks.clone();
    drop(tasks.spawn(async move {
        let mut ticks = tokio::time::interval(REPORT_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = watch.drained() => break,
                _ = ticks.tick() => write(),
            }
        }
    }));
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a gauge is a float; 2^53 bytes or requests are more than a machine has"
)]
fn as_gauge(count: usize) -> f64 {
    count as f64
}

fn refusals(signal: &'static str) -> [Counter; Reason::ALL.len()] {
    Reason::ALL
        .map(|reason| counter!(page::RECEIVER_REFUSED_REQUESTS_TOTAL, "signal" => signal, "reason" => reason.as_str()))
}

fn count_refusal(counters: &[Counter; Reason::ALL.len()], reason: Reason) {
    if let Some(position) = Reason::ALL.iter().position(|known| *known == reason)
        && let Some(counter) = counters.get(position)
    {
        counter.increment(1);
    }
}

// === impl ReceiverMetrics ===

impl ReceiverMetrics {
    pub(super) fn new() -> Self {
        Self { signals: Signal::ALL.map(SignalMetrics::new), unrouted: refusals("none") }
    }

    pub(super) fn of(&self, signal: Signal) -> &SignalMetrics {
        let [traces, metrics, logs, profiles] = &self.signals;
        match signal {
            Signal::Traces => traces,
            Signal::Metrics => metrics,
            Signal::Logs => logs,
            Signal::Profiles => profiles,
        }
    }

    /// Counts a refused request whose signal is unknown.
    pub(super) fn refused_unrouted(&self, reason: Reason) {
        count_refusal(&self.unrouted, reason);
    }
}

// === impl SignalMetrics ===

impl SignalMetrics {
    fn new(signal: Signal) -> Self {
        let signal = signal.as_str();
        Self {
            requests: CODES.map(|code| counter!(page::RECEIVER_REQUESTS_TOTAL, "signal" => signal, "code" => code)),
            refused: refusals(signal),
            bytes: counter!(page::RECEIVER_BYTES_TOTAL, "signal" => signal),
            wire_bytes: counter!(page::RECEIVER_WIRE_BYTES_TOTAL, "signal" => signal),
            abandoned: counter!(page::RECEIVER_ABANDONED_REQUESTS_TOTAL, "signal" => signal),
            in_flight: gauge!(page::RECEIVER_IN_FLIGHT_REQUESTS, "signal" => signal),
            duration: histogram!(page::RECEIVER_REQUEST_DURATION_SECONDS, "signal" => signal),
        }
    }

    pub(super) fn begin(&self, started: Instant) -> InFlight<'_> {
        self.in_flight.increment(1.0);
        InFlight { metrics: self, started, answered: false }
    }

    pub(super) fn read(&self, wire: usize, inflated: usize) {
        self.wire_bytes.increment(wire as u64);
        self.bytes.increment(inflated as u64);
    }
}

// === impl InFlight ===

impl InFlight<'_> {
    pub(super) fn answered(mut self, outcome: &Outcome) {
        self.answered = true;
        let code = match outcome {
            Outcome::Accepted { .. } => Code::Ok,
            Outcome::Refused(refusal) => {
                count_refusal(&self.metrics.refused, refusal.reason);
                refusal.code
            }
        };
        if let Some(counter) = self.metrics.requests.get(code as usize) {
            counter.increment(1);
        }
        self.metrics.duration.record(self.started.elapsed().as_secs_f64());
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.metrics.in_flight.decrement(1.0);
        if !self.answered {
            self.metrics.abandoned.increment(1);
        }
    }
}
