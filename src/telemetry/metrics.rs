//! The declarations of all metrics. A room uses their constants as names, and takes its handles once, when it starts.
//!
//! Rules:
//!
//! - A name starts with `spanring_`. The metrics of the process are named as every Prometheus client names them.
//! - A name ends with its unit, which is a base unit, and with `_total` if it is a counter.
//! - The values of labels come from the configuration or from a list in the help text, never from a client.
//! - A series with the label `pool` or `owner` is deleted some time after its last handle was dropped. A room keeps such a
//!   handle for as long as the series is to stay.
//!
//! The table of `deploy/docs/metrics.md` says the same, and a test compares the two.

use super::buckets::{DURATION, PARTS};

/// What a metric measures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// A number that only grows.
    Counter,
    /// A number that goes up and down.
    Gauge,
    /// A distribution of values, counted in buckets with these upper bounds.
    Histogram(&'static [f64]),
}

impl Kind {
    /// The name in Prometheus' text format.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram(_) => "histogram",
        }
    }
}

/// The declaration of a metric.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Metric {
    /// The whole name, with its unit.
    pub name: &'static str,
    /// What it measures.
    pub kind: Kind,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// What it counts, in a sentence, and the values of labels that have a fixed list.
    pub help: &'static str,
}

/// The metric of that name.
pub fn find(name: &str) -> Option<&'static Metric> {
    ALL.iter().find(|metric| metric.name == name)
}

/// Makes a constant with the name of each metric, and [`ALL`].
macro_rules! declare {
    ($($constant:ident = $name:literal, $kind:ident $(($bounds:ident))?, [$($label:literal),*], $help:literal;)*) => {
        $(#[doc = $help] pub const $constant: &str = $name;)*

        /// Every metric, in the order in which a request passes the rooms.
        pub const ALL: &[Metric] = &[
            $(Metric { name: $constant, kind: Kind::$kind $(($bounds))?, labels: &[$($label),*], help: $help },)*
        ];
    };
}

declare! {
    RECEIVER_REQUESTS_TOTAL = "spanring_receiver_requests_total", Counter, ["signal", "code"],
        "Requests answered, by the gRPC status code of the answer. OTLP/HTTP has the same codes, and in its answers the HTTP statuses that stand for them.";
    RECEIVER_RECORDS_TOTAL = "spanring_receiver_records_total", Counter, ["signal", "outcome"],
        "Records of answered requests: accepted, rejected (for good, by partial_success) or refused (the client is to send them again).";
    RECEIVER_BYTES_TOTAL = "spanring_receiver_bytes_total", Counter, ["signal"],
        "Bytes of requests, after decompression.";
    RECEIVER_WIRE_BYTES_TOTAL = "spanring_receiver_wire_bytes_total", Counter, ["signal"],
        "Bytes of requests, as they were received.";
    RECEIVER_REFUSED_REQUESTS_TOTAL = "spanring_receiver_refused_requests_total", Counter, ["signal", "reason"],
        "Requests that were refused whole, by reason.";
    RECEIVER_ABANDONED_REQUESTS_TOTAL = "spanring_receiver_abandoned_requests_total", Counter, ["signal"],
        "Requests whose client went away before the answer.";
    RECEIVER_IN_FLIGHT_REQUESTS = "spanring_receiver_in_flight_requests", Gauge, ["signal"],
        "Requests that are not answered yet.";
    RECEIVER_REQUEST_DURATION_SECONDS = "spanring_receiver_request_duration_seconds", Histogram(DURATION), ["signal"],
        "Time from a request's headers to its answer.";
    RECEIVER_CONNECTIONS = "spanring_receiver_connections", Gauge, ["listener"],
        "Connections that are open.";
    RECEIVER_CONNECTIONS_TOTAL = "spanring_receiver_connections_total", Counter, ["listener", "result"],
        "Connections by result: accepted, refused (no place or descriptor was left, also those that were closed for another because they were silent) or failed (the TLS handshake failed, or it was not the protocol of the port).";
    RECEIVER_CLOSED_CONNECTIONS_TOTAL = "spanring_receiver_closed_connections_total", Counter, ["listener", "reason"],
        "Connections closed by the listener, by reason: idle (no request for max_connection_idle or idle_timeout), room (all places were taken, and a new connection got this one's) or unread (the client did not take an answer in time).";
    RECEIVER_FOREIGN_CONNECTIONS_TOTAL = "spanring_receiver_foreign_connections_total", Counter, ["listener", "kind"],
        "Connections that began with another protocol than that of their port: http1 (on a gRPC port, answered with an explanation), tls, proxy (PROXY protocol) or garbage.";
    RECEIVER_WAITING_REQUESTS = "spanring_receiver_waiting_requests", Gauge, [],
        "Large requests that wait until they may be inflated or cut; one is refused at once if its turn would come after its deadline.";
    RECEIVER_REFUSED_STREAMS_TOTAL = "spanring_receiver_refused_streams_total", Counter, ["listener"],
        "HTTP/2 streams that were refused before a service saw them: headers malformed or too large, or too many streams at once.";
    RECEIVER_TLS_HANDSHAKE_FAILURES_TOTAL = "spanring_receiver_tls_handshake_failures_total", Counter, ["listener", "reason"],
        "TLS handshakes with clients that failed: bad_name, closed, expired, no_certificate, not_tls, protocol_version, revoked, timeout, unknown_ca or other.";

    MEMORY_BUDGET_LIMIT_BYTES = "spanring_memory_budget_limit_bytes", Gauge, [],
        "Bytes that requests may hold in memory: two thirds of memory_limiter, less the process's own memory.";
    MEMORY_BUDGET_USED_BYTES = "spanring_memory_budget_used_bytes", Gauge, [],
        "Bytes that requests hold in memory.";
    MEMORY_CLIENTS_LIMIT_BYTES = "spanring_memory_clients_limit_bytes", Gauge, [],
        "Bytes that clients' connections and streams and the admin port may hold in memory: a third of memory_limiter, less the process's own memory.";
    MEMORY_USED_BYTES = "spanring_memory_used_bytes", Gauge, ["use"],
        "Bytes that are accounted for, by use: connections, frames (longer ones than 16 KiB, and buffers that headers keep), streams, requests, admin, tables, kept_tables (that were replaced and are needed by a hand-off), builds (of tables) or backends (connections by OTLP/HTTP).";

    SPLIT_REQUESTS_TOTAL = "spanring_split_requests_total", Counter, ["signal", "kind"],
        "Requests by what the cut made of them: whole (one backend owns all of it), cut or empty.";
    SPLIT_RECORDS_TOTAL = "spanring_split_records_total", Counter, ["signal"],
        "Records that were cut.";
    SPLIT_PARTS_TOTAL = "spanring_split_parts_total", Counter, ["signal"],
        "Parts that the cut made.";
    SPLIT_INVALID_IDS_TOTAL = "spanring_split_invalid_ids_total", Counter, ["signal", "kind"],
        "Records whose trace ID is empty, zero or of a wrong length.";

    RING_MEMBERS = "spanring_ring_members", Gauge, ["pool", "state"],
        "Backends by state: active, draining (it has left discovery and keeps its slots for hold_down), ejected (it fails; during a panic it still gets its records) or unresolved (it has no address).";
    RING_GENERATION = "spanring_ring_generation", Gauge, ["pool"],
        "Number of tables that this process has published.";
    RING_FINGERPRINT = "spanring_ring_fingerprint", Gauge, ["pool"],
        "Fingerprint of the membership, 48 bits as a number: equal on all replicas that have the same backends.";
    RING_PLACEMENT_FINGERPRINT = "spanring_ring_placement_fingerprint", Gauge, ["pool"],
        "Fingerprint of the table, ejections included, 48 bits as a number: equal on all replicas that send every trace to the same backend.";
    RING_OWNERSHIP_RATIO = "spanring_ring_ownership_ratio", Gauge, ["pool", "backend"],
        "Share of the ring's slots that the backend owns.";
    RING_MOVED_RATIO = "spanring_ring_moved_ratio", Gauge, ["pool"],
        "Share of the ring's slots that the last change moved.";
    RING_BUILD_DURATION_SECONDS = "spanring_ring_build_duration_seconds", Gauge, ["pool"],
        "Time that the last build of the ring took.";
    RING_CHANGES_TOTAL = "spanring_ring_changes_total", Counter, ["pool"],
        "Changes of the table after the first.";
    ADMIN_WATCHERS = "spanring_admin_watchers", Gauge, [],
        "Clients that watch rings (spanring.admin.v1.Ring/WatchRing); a 17th is refused.";

    HANDOFF_WINDOWS = "spanring_handoff_windows", Gauge, ["pool"],
        "Tables that were replaced and still count for traces that began with them.";
    HANDOFF_RECORDS_TOTAL = "spanring_handoff_records_total", Counter, ["pool", "decision"],
        "Records whose slot moved within the window, by decision: current (only to the new owner), previous (only to old ones) or both.";
    HANDOFF_COPIES_TOTAL = "spanring_handoff_copies_total", Counter, ["pool", "outcome"],
        "Records that were sent to a further owner on purpose, by outcome: delivered, rejected (by the backend, for good), dropped (its queue was full, or there was no memory for it), or given_up (the owner is gone or did not answer in time, or the request was refused). Copies that took the place of the part that counts, whose owner is gone, are delivered and, once more, counted.";
    HANDOFF_LEFT_OUT_TOTAL = "spanring_handoff_left_out_total", Counter, ["pool"],
        "Records that were not sent to their oldest owners, since they had more than four.";

    MEMBERSHIP_BACKEND_STATE = "spanring_membership_backend_state", Gauge, ["pool", "backend", "state"],
        "1 for the state that the backend is in (active, draining, ejected or unresolved), 0 for the others.";
    MEMBERSHIP_EJECTIONS_TOTAL = "spanring_membership_ejections_total", Counter, ["pool", "reason"],
        "Ejections by reason: refused, ping (silence), timeout (no call was answered), unresolved or another transport failure.";
    MEMBERSHIP_RETURNS_TOTAL = "spanring_membership_returns_total", Counter, ["pool"],
        "Ejected backends that answered and got their slots back.";
    MEMBERSHIP_PROBES_TOTAL = "spanring_membership_probes_total", Counter, ["pool", "result"],
        "Probes of ejected backends: answered or failed.";
    MEMBERSHIP_PANIC = "spanring_membership_panic", Gauge, ["pool"],
        "1 while more backends fail than may be ejected (max_ejection_percent): then none is, and all keep their slots.";
    HEALTH_EVENTS_DROPPED_TOTAL = "spanring_health_events_dropped_total", Counter, ["pool"],
        "Reports of failures and recoveries that were dropped because the queue of reports was full.";

    DISCOVERY_LAST_SUCCESS_TIMESTAMP_SECONDS = "spanring_discovery_last_success_timestamp_seconds", Gauge, ["pool"],
        "When discovery last had a good answer, in Unix time.";
    DISCOVERY_LOOKUPS_TOTAL = "spanring_discovery_lookups_total", Counter, ["pool", "family", "result"],
        "Look-ups by family (ipv4, ipv6, static, srv, srv_target) and result (success, empty, nxdomain, refused, servfail, timeout, error); answers of a Kubernetes API server by family kubernetes and result (success, empty, denied, expired, timeout, error).";
    DISCOVERY_ENDPOINTS = "spanring_discovery_endpoints", Gauge, ["pool"],
        "Backends that discovery reports.";
    DISCOVERY_CHANGE_PENDING = "spanring_discovery_change_pending", Gauge, ["pool"],
        "1 while the resolver of a reload has no good answer yet: backends, TLS and headers are still the old ones.";
    DISCOVERY_PARTIAL_ANSWERS = "spanring_discovery_partial_answers", Gauge, ["pool"],
        "1 while the name server answers with changing parts of a larger set, and the answers are joined.";

    DISPATCH_CALLS_TOTAL = "spanring_dispatch_calls_total", Counter, ["pool", "backend", "outcome"],
        "Calls to backends: accepted, partial, rejected, retryable, transport or timeout.";
    DISPATCH_CALL_DURATION_SECONDS = "spanring_dispatch_call_duration_seconds", Histogram(DURATION), ["pool"],
        "Time from the start of a call to its answer.";
    DISPATCH_CALL_PARTS = "spanring_dispatch_call_parts", Histogram(PARTS), ["pool"],
        "Parts that were merged in a call.";
    DISPATCH_RECORDS_TOTAL = "spanring_dispatch_records_total", Counter, ["pool", "backend", "signal", "outcome"],
        "Records that a backend accepted or rejected.";
    DISPATCH_BYTES_TOTAL = "spanring_dispatch_bytes_total", Counter, ["pool", "backend"],
        "Bytes of calls, before compression.";
    DISPATCH_QUEUE_BYTES = "spanring_dispatch_queue_bytes", Gauge, ["pool", "backend"],
        "Bytes that wait for the backend.";
    DISPATCH_QUEUE_LIMIT_BYTES = "spanring_dispatch_queue_limit_bytes", Gauge, ["pool"],
        "Bytes that may wait for one backend: sending_queue.queue_size times shards.";
    DISPATCH_QUEUE_FULL_TOTAL = "spanring_dispatch_queue_full_total", Counter, ["pool", "backend"],
        "Times that the backend's queue had no room for a part, so that a whole request was refused or a retry waited.";
    DISPATCH_IN_FLIGHT_CALLS = "spanring_dispatch_in_flight_calls", Gauge, ["pool", "backend"],
        "Calls that the backend has not answered yet.";
    DISPATCH_IN_FLIGHT_BYTES = "spanring_dispatch_in_flight_bytes", Gauge, ["pool", "backend"],
        "Payload bytes of calls that the backend has not answered yet.";
    DISPATCH_CONNECTIONS = "spanring_dispatch_connections", Gauge, ["pool", "backend"],
        "Connections to the backend.";
    DISPATCH_CONNECTS_TOTAL = "spanring_dispatch_connects_total", Counter, ["pool", "backend", "result"],
        "Attempts to connect: ok, refused, timeout, tls (the handshake failed), local (this process had no descriptor, port or memory left) or error.";
    DISPATCH_TLS_HANDSHAKE_FAILURES_TOTAL = "spanring_dispatch_tls_handshake_failures_total", Counter, ["pool", "reason"],
        "TLS handshakes with backends that failed, by the same reasons as those with clients.";
    DISPATCH_RETRIED_PARTS_TOTAL = "spanring_dispatch_retried_parts_total", Counter, ["pool", "signal"],
        "Parts that were tried again.";
    DISPATCH_REPLACED_PARTS_TOTAL = "spanring_dispatch_replaced_parts_total", Counter, ["pool", "signal"],
        "Parts that were cut again because the table had changed.";
    DISPATCH_RETRY_BUDGET_EXHAUSTED_TOTAL = "spanring_dispatch_retry_budget_exhausted_total", Counter, ["pool"],
        "Retries that waited longer because the budget was used up (retry_on_failure.budget_percent).";
    DISPATCH_DROPPED_PARTS_TOTAL = "spanring_dispatch_dropped_parts_total", Counter, ["pool", "reason"],
        "Parts dropped before they were sent: abandoned (the client is gone), deadline or stopped.";
    DISPATCH_POSSIBLE_DUPLICATE_RECORDS_TOTAL = "spanring_dispatch_possible_duplicate_records_total", Counter, ["pool"],
        "Records that backends may get twice: sent again after an attempt that may have arrived, or part of a request whose client is to send it again.";
    DISPATCH_TAKEN_APART_TOTAL = "spanring_dispatch_taken_apart_total", Counter, ["pool"],
        "Merged calls that were refused and sent again part by part.";
    DISPATCH_CROWDED_PARTS_TOTAL = "spanring_dispatch_crowded_parts_total", Counter, ["pool"],
        "Parts sent alone, because too many parts with different forwarded headers (64 sets) were already waiting for the backend.";
    DISPATCH_UNATTRIBUTED_REJECTIONS_TOTAL = "spanring_dispatch_unattributed_rejections_total", Counter, ["pool"],
        "Records that backends rejected in merged calls, so that no client could be told its count.";

    TLS_CERTIFICATE_EXPIRY_TIMESTAMP_SECONDS = "spanring_tls_certificate_expiry_timestamp_seconds", Gauge, ["owner", "role"],
        "When certificates in use expire, in Unix time, by listener or pool. The role is server (the listener's own), client_ca, client (the pool's own) or ca.";
    TLS_RELOADS_TOTAL = "spanring_tls_reloads_total", Counter, ["owner", "result"],
        "Changes of a listener's or pool's TLS files: taken, or refused (they cannot be used, and the old ones stay in use).";

    CONFIG_RELOADS_TOTAL = "spanring_config_reloads_total", Counter, ["result"],
        "Reloads of the configuration: success, unchanged or failed (the old one stays in use).";
    CONFIG_LAST_RELOAD_SUCCESSFUL = "spanring_config_last_reload_successful", Gauge, [],
        "1 if the last reload of the configuration was accepted, 0 if it was refused.";
    CONFIG_LAST_RELOAD_SUCCESS_TIMESTAMP_SECONDS = "spanring_config_last_reload_success_timestamp_seconds", Gauge, [],
        "When a configuration was last accepted, in Unix time.";
    CONFIG_RESTART_REQUIRED = "spanring_config_restart_required", Gauge, ["key"],
        "1 for a key whose value in the file takes effect only after a restart.";

    BUILD_INFO = "spanring_build_info", Gauge, ["version"],
        "Always 1; the version is the label.";
    RUNTIME_TASKS = "spanring_runtime_tasks", Gauge, [],
        "Tasks of the runtime that have not ended.";
    PROCESS_START_TIME_SECONDS = "process_start_time_seconds", Gauge, [],
        "When the process started, in Unix time.";
    PROCESS_CPU_SECONDS_TOTAL = "process_cpu_seconds_total", Counter, [],
        "CPU time of the process, user and system.";
    PROCESS_RESIDENT_MEMORY_BYTES = "process_resident_memory_bytes", Gauge, [],
        "Resident memory of the process.";
    PROCESS_VIRTUAL_MEMORY_BYTES = "process_virtual_memory_bytes", Gauge, [],
        "Virtual memory of the process.";
    PROCESS_OPEN_FDS = "process_open_fds", Gauge, [],
        "File descriptors that are open.";
    PROCESS_MAX_FDS = "process_max_fds", Gauge, [],
        "File descriptors that may be open.";
    PROCESS_THREADS = "process_threads", Gauge, [],
        "Threads of the process.";
    PROCESS_PANICS_TOTAL = "process_panics_total", Counter, [],
        "Panics, including those that were caught. Each is a defect of Spanring: please report it.";
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    #[test]
    fn names_follow_the_rules_of_prometheus() {
        let mut seen = BTreeSet::new();
        for metric in ALL {
            let name = metric.name;
            assert!(seen.insert(name), "{name} stands there twice");
            assert!(name.starts_with("spanring_") || name.starts_with("process_"), "{name}");
            assert_eq!(name.ends_with("_total"), metric.kind == Kind::Counter, "{name}: counters end with _total");
            assert!(name.bytes().all(|b| b == b'_' || b.is_ascii_lowercase()), "{name}");
            assert!(!name.contains("milli") && !name.contains("_ms"), "{name}: base units");
            let subject = name.trim_end_matches("_total");
            for unit in ["_bytes", "_ratio", "_seconds"] {
                assert_eq!(name.contains(unit), subject.ends_with(unit), "{name}: the unit is the end of the name");
            }
            for label in metric.labels {
                assert!(!subject.ends_with(&format!("_by_{label}")), "{name}: labels are no part of names");
            }
            assert!(metric.help.ends_with('.'), "{name}: help is a sentence");
        }
    }

    #[test]
    fn rooms_take_names_from_here() {
        let literals: Vec<String> = ALL.iter().map(|metric| format!("\"{}\"", metric.name)).collect();
        let (mut folders, mut wrong) = (vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")], Vec::new());
        while let Some(folder) = folders.pop() {
            for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
                if path.is_dir() {
                    folders.push(path);
                } else if !path.ends_with("src/telemetry/metrics.rs") {
                    let text = fs::read_to_string(&path).unwrap();
                    let found = literals.iter().filter(|literal| text.contains(*literal));
                    wrong.extend(found.map(|literal| format!("{} writes {literal}", path.display())));
                }
            }
        }
        assert!(wrong.is_empty(), "use the constant of `telemetry::metrics`:\n{}", wrong.join("\n"));
    }
}
