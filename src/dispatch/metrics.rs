//! Metrics of dispatch. The handles are resolved once for each pool and once for each backend.

use std::sync::Arc;

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

use super::{Config, Failure, backend::Load, transport::Verdict};
use crate::{
    otlp::Signal,
    telemetry::{LogLimit, metrics as names},
};

/// The handles of one pool.
pub(super) struct PoolMetrics {
    pub(super) pool: Arc<str>,
    queue_limit: Gauge,
    /// Bounds the log lines about failures and returns of backends.
    backends: LogLimit,
    /// Bounds the log lines about sockets that this process could not open.
    pub(super) shortages: LogLimit,
    /// Bounds the log lines about records that a backend refuses for good.
    pub(super) refusals: LogLimit,
    pub(super) call_duration: Histogram,
    pub(super) call_parts: Histogram,
    pub(super) dropped_abandoned: Counter,
    pub(super) dropped_deadline: Counter,
    pub(super) dropped_stopped: Counter,
    pub(super) taken_apart: Counter,
    pub(super) crowded: Counter,
    pub(super) retry_budget_exhausted: Counter,
    pub(super) unattributed: Counter,
}

/// The handles of one backend.
pub(super) struct BackendMetrics {
    accepted: Counter,
    partial: Counter,
    rejected: Counter,
    retryable: Counter,
    transport: Counter,
    timeout: Counter,
    records_accepted: [Counter; Signal::ALL.len()],
    records_rejected: [Counter; Signal::ALL.len()],
    pub(super) bytes: Counter,
    queue_bytes: Gauge,
    /// Counts requests that found no room in the queue.
    pub(super) queue_full: Counter,
    in_flight: Gauge,
    in_flight_bytes: Gauge,
    connections: Gauge,
    connects_ok: Counter,
    connects_refused: Counter,
    connects_timeout: Counter,
    connects_tls: Counter,
    connects_error: Counter,
    connects_local: Counter,
}

impl PoolMetrics {
    pub(super) fn new(pool: &str) -> Self {
        let pool: Arc<str> = pool.into();
        let label = || Arc::clone(&pool);
        let dropped =
            |reason: &'static str| counter!(names::DISPATCH_DROPPED_PARTS_TOTAL, "pool" => label(), "reason" => reason);
        Self {
            backends: LogLimit::many(),
            shortages: LogLimit::few(),
            refusals: LogLimit::few(),
            queue_limit: gauge!(names::DISPATCH_QUEUE_LIMIT_BYTES, "pool" => label()),
            call_duration: histogram!(names::DISPATCH_CALL_DURATION_SECONDS, "pool" => label()),
            call_parts: histogram!(names::DISPATCH_CALL_PARTS, "pool" => label()),
            dropped_abandoned: dropped("abandoned"),
            dropped_deadline: dropped("deadline"),
            dropped_stopped: dropped("stopped"),
            retry_budget_exhausted: counter!(names::DISPATCH_RETRY_BUDGET_EXHAUSTED_TOTAL, "pool" => label()),
            taken_apart: counter!(names::DISPATCH_TAKEN_APART_TOTAL, "pool" => label()),
            crowded: counter!(names::DISPATCH_CROWDED_PARTS_TOTAL, "pool" => label()),
            unattributed: counter!(names::DISPATCH_UNATTRIBUTED_REJECTIONS_TOTAL, "pool" => label()),
            pool,
        }
    }

    /// Sets the gauge of the queue limit.
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float; queue sizes are far below 2^52")]
    pub(super) fn show_limit(&self, config: &Config) {
        let keys = &config.keys;
        self.queue_limit.set(keys.sending_queue.queue_size.0.saturating_mul(keys.shards.max(1)) as f64);
    }

    /// Whether one more line about a backend may be logged now.
    pub(super) fn may_log(&self) -> bool {
        let pool = &*self.pool;
        self.backends
            .admit_or_report(|lines| tracing::warn!(pool, lines, "more failures and returns than the log takes"))
    }

    /// Registers the handles of one backend with value 0.
    pub(super) fn of_backend(&self, identity: &Arc<str>) -> BackendMetrics {
        let pool = || Arc::clone(&self.pool);
        let backend = || Arc::clone(identity);
        let calls = |outcome: &'static str| {
            counter!(names::DISPATCH_CALLS_TOTAL,
                "pool" => pool(), "backend" => backend(), "outcome" => outcome)
        };
        let records = |outcome: &'static str| {
            Signal::ALL.map(|signal| {
                counter!(names::DISPATCH_RECORDS_TOTAL, "pool" => pool(), "backend" => backend(),
                    "signal" => signal.as_str(), "outcome" => outcome)
            })
        };
        let connects = |result: &'static str| {
            counter!(names::DISPATCH_CONNECTS_TOTAL,
                "pool" => pool(), "backend" => backend(), "result" => result)
        };
        BackendMetrics {
            accepted: calls("accepted"),
            partial: calls("partial"),
            rejected: calls("rejected"),
            retryable: calls("retryable"),
            transport: calls("transport"),
            timeout: calls("timeout"),
            records_accepted: records("accepted"),
            records_rejected: records("rejected"),
            bytes: counter!(names::DISPATCH_BYTES_TOTAL, "pool" => pool(), "backend" => backend()),
            queue_full: counter!(names::DISPATCH_QUEUE_FULL_TOTAL, "pool" => pool(), "backend" => backend()),
            queue_bytes: gauge!(names::DISPATCH_QUEUE_BYTES, "pool" => pool(), "backend" => backend()),
            in_flight: gauge!(names::DISPATCH_IN_FLIGHT_CALLS, "pool" => pool(), "backend" => backend()),
            in_flight_bytes: gauge!(names::DISPATCH_IN_FLIGHT_BYTES, "pool" => pool(), "backend" => backend()),
            connections: gauge!(names::DISPATCH_CONNECTIONS, "pool" => pool(), "backend" => backend()),
            connects_ok: connects("ok"),
            connects_refused: connects("refused"),
            connects_timeout: connects("timeout"),
            connects_tls: connects("tls"),
            connects_error: connects("error"),
            connects_local: connects("local"),
        }
    }
}

impl BackendMetrics {
    /// Counts a call by its result.
    pub(super) fn call(&self, verdict: &Verdict) {
        match verdict {
            Verdict::Accepted(None) => &self.accepted,
            Verdict::Accepted(Some(_)) => &self.partial,
            Verdict::Busy { .. } | Verdict::Unprocessed { .. } => &self.retryable,
            Verdict::Failed { failure: Failure::Timeout, .. } => &self.timeout,
            Verdict::Failed { .. } | Verdict::GivenUp | Verdict::Stopped => &self.transport,
            Verdict::Refused { .. } => &self.rejected,
        }
        .increment(1);
    }

    /// Counts records that the backend has accepted or rejected.
    pub(super) fn records(&self, signal: Signal, accepted: u64, rejected: u64) {
        if let Some(counter) = self.records_accepted.get(signal.index()) {
            counter.increment(accepted);
        }
        if rejected > 0
            && let Some(counter) = self.records_rejected.get(signal.index())
        {
            counter.increment(rejected);
        }
    }

    /// Counts an attempt to connect.
    pub(super) fn connect(&self, result: Result<(), Failure>) {
        match result {
            Ok(()) => &self.connects_ok,
            Err(Failure::ConnectRefused) => &self.connects_refused,
            Err(Failure::ConnectTimeout) => &self.connects_timeout,
            Err(Failure::Local(_)) => &self.connects_local,
            Err(Failure::Tls(_)) => &self.connects_tls,
            Err(_) => &self.connects_error,
        }
        .increment(1);
    }

    /// Counts a connection that was opened.
    pub(super) fn open(&self) {
        self.connections.increment(1.0);
    }

    /// Counts off a connection that has closed.
    pub(super) fn closed(&self) {
        self.connections.decrement(1.0);
    }

    /// Sets the gauges of the load.
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float; all are far below 2^52")]
    pub(super) fn set(&self, load: Load) {
        self.queue_bytes.set(load.waiting_bytes as f64);
        self.in_flight.set(load.calls as f64);
        self.in_flight_bytes.set(load.call_bytes as f64);
    }
}
