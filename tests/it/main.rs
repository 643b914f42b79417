//! Tests of whole processes: the binary, real sockets and, where available, other programs.
//!
//! `SPANRING_PEERS` is the directory in which the scripts of `tests/peers/` install other programs. A test whose
//! program is missing prints that it is skipped, and passes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test that fails says where")]

mod age;
mod api;
mod backend;
mod clients;
mod collector;
mod compression;
mod crowds;
mod dns;
mod documents;
mod faults;
mod fixture;
mod floods;
mod grpc;
mod h2spec;
mod handover;
#[allow(dead_code, reason = "the bench of proxies uses the rest")]
mod harness;
mod http;
mod http_backends;
mod interop;
mod kubernetes;
mod layout;
mod many_backends;
mod memory;
mod metadata;
mod nameserver;
mod otelcol;
#[allow(dead_code, reason = "the unit tests of TLS use the rest")]
mod pki;
mod probes;
mod prometheus;
mod random_frames;
mod reload;
mod rig;
mod secrets;
mod series;
mod shutdown;
mod srv;
mod startup;
mod supply;
mod threads;
mod tls;
#[allow(dead_code, reason = "the bench of whole traces uses the rest")]
mod whole;
mod wire;
