//! Spanring: a trace-ID-aware load-balancing proxy for OpenTelemetry.
//!
//! Stateless front proxies accept OTLP, cut every batch by trace ID and send each trace, whole, to one collector of a
//! discovered pool. Replicas agree without talking: the owner of a trace is a pure function of the pool's membership.
//!
//! # The way of the data
//!
//! ```text
//! client ──► receive ──► split ──► route ──► dispatch ──► backend
//!            admit,       cut by    slot →    group-commit,
//!            inflate,     key at    owner     retry, re-route,
//!            bounds       wire level          classify, join ──► reply
//! ```
//!
//! [`receive`] reads a request whole, inflates and bounds it. [`pipeline`] takes one view of the pool (a
//! [`ring::Table`] and the queues of its backends), has [`split`] cut the message by what [`route`] says of each record,
//! gives every part room in its owner's queue or none at all, and waits in [`pipeline`]'s delivery for what becomes of
//! them. [`dispatch`] merges what waits for one backend into calls, sends them and classifies the answers.
//!
//! Beside that way: [`discovery`] says who the backends are, [`membership`] turns that into tables and publishes them,
//! [`settings`] are the keys of the configuration file, [`config`] reads and checks it, [`tls`] is what certificates say,
//! [`access`] how a backend is spoken to, [`listen`] accepts connections for receivers and admin pages and ages them,
//! [`telemetry`] is what the process says about itself, [`admin`] where it
//! answers, [`tools`] the demo, the load generator and the counting backend, [`proxy`] wires all of it.
//!
//! # Invariants
//!
//! 1. **Placement:** the same membership gives the same owner in every replica, process, platform and release. A golden
//!    file pins it.
//! 2. **One table a cut:** each cut uses one table. A part that has to be placed again is cut again, whole, by the table of
//!    that moment.
//! 3. **Bytes pass:** a record's bytes are never decoded and encoded again: unknown fields, invalid UTF-8 and any nesting
//!    depth pass unchanged.
//! 4. **Acknowledged means delivered:** a record is acknowledged only when its backend acknowledged it. What was not
//!    delivered is said in the reply.
//! 5. **The ring stays:** an empty or failed discovery answer never empties a ring.
//! 6. **Bounds:** every queue, body, buffer, retry and connection has a bound, a metric and a stated behaviour when full.
//! 7. **No panic, no growth:** nothing that comes from the network panics the process, and no peer makes memory grow past
//!    the configured limit.
//! 8. **Purity:** [`split`], [`route`] and [`ring`] do no I/O, spawn nothing and read no clock.
//! 9. **Order is nothing:** the order of a pool's addresses, of a hash map or of DNS answers never reaches placement.
//!
//! # Who may import whom
//!
//! No room imports one above it. From the bottom: the vocabulary and small rooms (`otlp`, `lifecycle`, `budget`, ...);
//! `telemetry`, `tls`, `access`, `endpoint` and `health`; `listen`, which knows nothing of OTLP; `split`, `ring` and `route`;
//! `discovery` and `membership`; `dispatch`, which reads tables; `pipeline`, which knows split, route and dispatch;
//! `receive`, which knows the pipeline's entry only; `admin`; `config`, which no room below imports; `proxy`, `tools` and
//! `cli`. `tests/it/layout.rs` has the whole order and fails on an import against it.

// The heart, and its assembly.
pub mod pipeline;
pub mod proxy;
// The way of the data: receive → split → route → dispatch.
pub mod dispatch;
pub mod receive;
pub mod ring;
pub mod route;
pub mod split;
// Side rooms.
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
// Vocabulary: depends on nothing of ours, or on little.
pub mod access;
pub mod allocator;
pub mod budget;
pub mod buffers;
pub mod descriptors;
pub mod endpoint;
pub mod health;
pub mod lifecycle;
pub mod otlp;
pub mod settings;
pub mod shortage;
