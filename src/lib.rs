//! Spanring: a trace-ID-aware load-balancing proxy for OpenTelemetry.
//!
//! Spanring is a stateless front tier. It accepts OTLP, splits every batch by trace ID and sends each trace, whole, to
//! one collector of a discovered pool. Replicas agree without talking to each other: the owner of a trace is a pure
//! function of the pool's membership.
//!
//! # The path of a request
//!
//! ```text
//! client ──► receive ──► split ──► route ──► dispatch ──► backend
//!            admit,       cut by    slot →    group-commit,
//!            inflate,     key at    owner     retry, re-route,
//!            bounds       wire level          classify, join ──► reply
//! ```
//!
//! [`receive`] reads a whole request, decompresses it and enforces its size limits. [`pipeline`] takes one view of the
//! pool (a [`ring::Table`] and the queues of its backends) and calls [`split`], which asks [`route`] for the target of
//! each record. The pipeline then reserves room for all parts in the queues of their backends, or for none of them, and
//! its `delivery` waits for their outcomes. [`dispatch`] merges parts that wait for the same backend into calls, sends
//! the calls and classifies the answers.
//!
//! The other rooms:
//!
//! - [`discovery`] finds the backends; [`membership`] builds tables from them and publishes the tables.
//! - [`settings`] declares the keys of the configuration file; [`config`] reads and checks the file.
//! - [`listen`] accepts connections for the receivers and the admin pages, and limits their number and age.
//! - [`tls`] loads certificates and builds TLS settings; [`access`] holds a pool's TLS settings and headers.
//! - [`telemetry`] has metrics and logs; [`admin`] serves them, the probes and the state of the rings.
//! - [`json`] converts OTLP's JSON to protobuf.
//! - [`tools`] has the demo, the load generator, the counting backend and the other commands.
//! - [`proxy`] assembles everything.
//!
//! # Invariants
//!
//! 1. **Placement:** the same membership gives the same owner in every replica, process, platform and release. A golden
//!    file pins it.
//! 2. **One table per cut:** each cut uses one table. A part that has to be placed again is cut again, whole, by the
//!    table that is current then.
//! 3. **Bytes pass unchanged:** a record's bytes are never decoded and re-encoded, so unknown fields, invalid UTF-8 and
//!    any nesting depth pass unchanged. JSON is converted to protobuf before, once.
//! 4. **Acknowledged means delivered:** a record is acknowledged only when its backend acknowledged it. The reply
//!    counts what was not delivered.
//! 5. **The ring stays:** an empty or failed discovery answer never empties a ring.
//! 6. **Bounds:** every queue, body, buffer, retry and connection has a bound, a metric and a stated behaviour when full.
//! 7. **No panic, no growth:** no input from the network panics the process, and no peer makes memory grow past the
//!    configured limit.
//! 8. **Purity:** [`split`], [`route`] and [`ring`] do no I/O, spawn nothing and read no clock.
//! 9. **Order does not matter:** the order of a pool's addresses, of a hash map or of DNS answers never affects
//!    placement.
//!
//! # Who may import whom
//!
//! A room imports only rooms below it. From the bottom: the vocabulary and small rooms (`otlp`, `settings`,
//! `lifecycle`, ...); `telemetry`, `tls`, `access`, `endpoint` and `health`; `listen`, which knows nothing of OTLP;
//! `split`, `ring` and `route`; `discovery` and `membership`; `dispatch`, which reads tables; `pipeline`, which uses
//! split, route and dispatch; `receive`, which uses only the pipeline's entry point; `admin`; `config`, which no room
//! below imports; `proxy`, `tools` and `cli`. `tests/it/layout.rs` has the complete order and fails on an import that
//! violates it.

// The core, and its assembly.
pub mod pipeline;
pub mod proxy;
// The path of a request: receive → split → route → dispatch.
pub mod dispatch;
pub mod receive;
pub mod ring;
pub mod route;
pub mod split;
// The other rooms.
pub mod admin;
pub mod cli;
pub mod config;
pub mod discovery;
pub mod listen;
pub mod membership;
pub mod signals;
pub mod telemetry;
pub mod tls;
pub mod tools;
// Vocabulary and small rooms: they import few or none of the others.
pub mod access;
pub mod budget;
pub mod codec;
pub mod descriptors;
pub mod endpoint;
pub mod health;
pub mod json;
pub mod lifecycle;
pub mod otlp;
pub mod places;
pub mod settings;
pub mod shortage;
pub mod spare;
pub mod wall_clock;
// What tests of several rooms share.
#[cfg(test)]
mod testing;
