//! Metrics of a listener's connections.

use metrics::{Counter, Gauge, counter, gauge};

use crate::telemetry::metrics::{
    RECEIVER_CLOSED_CONNECTIONS_TOTAL, RECEIVER_CONNECTIONS, RECEIVER_CONNECTIONS_TOTAL, RECEIVER_REFUSED_STREAMS_TOTAL,
};

/// The metric handles of one listener, resolved once.
#[derive(Clone)]
pub(super) struct ListenerMetrics {
    open: Gauge,
    accepted: Counter,
    refused: Counter,
    failed: Counter,
    refused_streams: Counter,
    closed_for_another: Counter,
    closed_idle: Counter,
    closed_unread: Counter,
}

/// An open connection, counted until it is dropped.
pub(super) struct OpenConnection(Gauge);

// === impl ListenerMetrics ===

impl ListenerMetrics {
    pub(super) fn new(listener: &'static str) -> Self {
        let came =
            |result: &'static str| counter!(RECEIVER_CONNECTIONS_TOTAL, "listener" => listener, "result" => result);
        let closed = |reason: &'static str| counter!(RECEIVER_CLOSED_CONNECTIONS_TOTAL, "listener" => listener, "reason" => reason);
        Self {
            open: gauge!(RECEIVER_CONNECTIONS, "listener" => listener),
            accepted: came("accepted"),
            refused: came("refused"),
            failed: came("failed"),
            refused_streams: counter!(RECEIVER_REFUSED_STREAMS_TOTAL, "listener" => listener),
            closed_for_another: closed("room"),
            closed_idle: closed("idle"),
            closed_unread: closed("unread"),
        }
    }

    /// Counts an open connection until the returned value is dropped.
    pub(super) fn opened(&self) -> OpenConnection {
        self.open.increment(1.0);
        OpenConnection(self.open.clone())
    }

    /// Counts a connection whose client uses the port's protocol.
    pub(super) fn accepted(&self) {
        self.accepted.increment(1);
    }

    pub(super) fn refused(&self) {
        self.refused.increment(1);
    }

    pub(super) fn failed(&self) {
        self.failed.increment(1);
    }

    /// Counts a connection that was closed to make room for another one.
    pub(super) fn closed_for_another(&self) {
        self.closed_for_another.increment(1);
    }

    /// Counts a connection whose client was told to finish because it had no request in progress for too long.
    pub(super) fn closed_idle(&self) {
        self.closed_idle.increment(1);
    }

    /// Counts a connection that was closed because its client did not take an answer.
    pub(super) fn closed_unread(&self) {
        self.closed_unread.increment(1);
    }

    /// Returns the counter of streams that are refused before a service sees them.
    pub(super) fn refused_streams(&self) -> Counter {
        self.refused_streams.clone()
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}
