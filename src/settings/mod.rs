//! The keys of the configuration file. Each key is declared only here, with its name, its type, its default and its
//! documentation (see `section!`).
//!
//! The names are the Collector's if the meaning is the same. Every key has a default, except for a pool's resolver and
//! the routes. `config` reads, checks and prints the file; other modules use these sections directly. To add a key,
//! declare it here, check it in `config::check` and use it in the module that it concerns.

pub mod addresses;
mod choices;
pub(crate) mod headers;
mod invalid_trace_id;
mod pools;
mod protocol;
mod receivers;
#[cfg(test)]
pub(crate) mod reference;
pub(crate) mod section;
mod tls;
pub mod values;

use std::{collections::BTreeMap, time::Duration};

use self::{
    addresses::{ADMIN_PORT, ListenAddress, PROBES_PORT},
    section::section,
    values::{Mebibytes, WorkerThreads},
};
pub use self::{
    choices::{Algorithm, Compression, HandoffMode, IpFamily, LogEncoding, LogLevel, RoutingKey, Sizer, TlsVersion},
    headers::{Headers, Secret},
    invalid_trace_id::{InvalidTraceId, InvalidTraceIds},
    pools::{
        CompressionParams, Delivery, DnsResolver, Handoff, KubernetesResolver, OutlierDetection, Placement, Pool,
        Resolver, RetryOnFailure, Ring, SendingQueue, SrvResolver, StaticResolver, USUAL_DELAY,
    },
    protocol::{OtlpHttp, Protocol},
    receivers::{Cors, Grpc, Http, Keepalive, Otlp, Protocols, Receivers, ServerParameters},
    section::IfWritten,
    tls::{ClientTls, RELOAD_INTERVAL, ServerTls},
};
use crate::otlp::Signal;

section! {
    /// A whole file.
    pub struct Settings {
        /// Where OTLP comes in.
        receivers: Receivers,
        /// Sets of backends, by name.
        pools: BTreeMap<String, Pool>,
        /// Which signals go to which pool, by which key.
        routes: Vec<Route>,
        /// How to treat records whose trace ID is empty, all zero or of a wrong length: `forward` sends them on,
        /// `reject` rejects them by `partial_success`. It can be set per signal: `{ traces: reject, logs: forward }`.
        /// Log records outside of any trace have no ID. A signal that is left out is forwarded.
        invalid_trace_id: InvalidTraceIds,
        /// The limit of the memory that requests may hold.
        memory_limiter: MemoryLimiter,
        /// Number of threads that serve connections. `auto` is one per CPU that the cgroup grants.
        worker_threads: WorkerThreads,
        /// The listener for metrics, probes and the ring's state.
        admin: Admin,
        /// The listener for probes alone, if there is one.
        health_check: IfWritten<HealthCheck>,
        /// How the process ends.
        shutdown: Shutdown,
        /// The logs of the process.
        telemetry: Telemetry,
    }

    /// One of `routes`
    #[derive(Eq)]
    pub struct Route {
        /// The signals of the route: `traces`, `logs`. A signal may appear in one route only.
        signals: Vec<Signal>,
        /// The key that is hashed. `trace_id` (or `traceID`) is the only value so far.
        routing_key: RoutingKey,
        /// The pool that the signals are sent to.
        pool: String,
    }

    /// `memory_limiter`
    #[derive(Eq)]
    pub struct MemoryLimiter {
        /// The most memory, in MiB, that requests may hold. Above it requests are refused with `UNAVAILABLE` and
        /// `RetryInfo`. It takes precedence over `limit_percentage`.
        limit_mib: Option<Mebibytes>,
        /// The same limit, in percent of the cgroup's memory limit or, without one, of the machine's memory.
        limit_percentage: u8 = 75,
    }

    /// `admin`
    #[derive(Eq)]
    pub struct Admin {
        /// The address that serves metrics, probes and the ring's state.
        endpoint: ListenAddress<ADMIN_PORT> = ListenAddress::local(),
        /// Host names under which pages may be asked for: names, `*.example.com` for all names below a domain, or `*` for
        /// every name. Always allowed are IP addresses, the host of `endpoint`, names without a dot (`localhost`,
        /// `spanring`), and names that end in `.internal`, `.local` (also `.cluster.local`), `.localhost`, `.svc` or
        /// `.test`. Others get 421, because a web page can make a browser resolve its own name to this address (DNS
        /// rebinding). `/livez`, `/readyz` and `grpc.health.v1` answer under every name.
        allowed_hosts: Vec<String>,
    }

    /// `health_check`: the Collector's extension.
    #[derive(Eq)]
    pub struct HealthCheck {
        /// An address that serves probes only, like the Collector's extension. It is open only if the `health_check`
        /// section is there: `health_check: { endpoint: 0.0.0.0:13133 }`.
        endpoint: ListenAddress<PROBES_PORT> = ListenAddress::local(),
        /// The path that answers like `/readyz`. `/readyz` and `/livez` are served as well.
        path: String = "/".into(),
    }

    /// `shutdown`
    #[derive(Copy, Eq)]
    pub struct Shutdown {
        /// How long the process goes on serving after SIGTERM, reported as not ready, so that load balancers and
        /// clients can stop using it.
        delay: Duration = Duration::from_secs(5),
        /// How long unanswered requests then have before their connections are closed.
        timeout: Duration = Duration::from_secs(25),
    }

    /// `telemetry`
    #[derive(Eq)]
    pub struct Telemetry {
        /// Logs, on stderr.
        logs: Logs,
    }

    /// `telemetry.logs`: keys and values are those of the Collector's `service.telemetry.logs`.
    #[derive(Copy, Eq)]
    pub struct Logs {
        /// The least severe level that is logged: `off`, `error`, `warn`, `info`, `debug` or `trace`. At `info` and
        /// above nothing is logged per request.
        level: LogLevel,
        /// The format of the log: `text` (or `console`), or `json` with one object per line.
        encoding: LogEncoding,
    }
}

impl Settings {
    /// The same with the default of each key that has no effect: the level of a compression that is not used, and a
    /// percentage of the memory beside `limit_mib`.
    #[must_use]
    pub fn in_effect(&self) -> Self {
        let mut settings = self.clone();
        for pool in settings.pools.values_mut() {
            pool.delivery = pool.delivery.in_effect();
        }
        if settings.memory_limiter.limit_mib.is_some() {
            settings.memory_limiter.limit_percentage = MemoryLimiter::default().limit_percentage;
        }
        settings
    }
}
