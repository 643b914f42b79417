//! The section `pools.NAME.protocol`: how calls to backends are made.

use std::time::Duration;

use serde::{Deserializer, Serializer, de::MapAccess, ser::SerializeMap};

#[cfg(test)]
use super::reference::Row;
use super::{
    addresses::{OTLP_GRPC_PORT, OTLP_HTTP_PORT},
    section::{self, IfWritten, Section, Setting, section},
};
use crate::otlp::Signal;

section! {
    /// `pools.NAME.protocol`: at most one of its sections.
    #[derive(Eq)]
    pub struct Protocol {
        /// OTLP/gRPC, which is the default. It has no keys: `otlp: {}`.
        otlp: IfWritten<NoKeys>,
        /// OTLP/HTTP with protobuf, by HTTP/1.1.
        otlp_http: IfWritten<OtlpHttp>,
    }

    /// `pools.NAME.protocol.otlp_http`
    #[derive(Eq)]
    pub struct OtlpHttp {
        /// The path that takes traces. If the section `otlp_http` is written, calls go by OTLP/HTTP (protobuf, HTTP/1.1), and
        /// backends without a port have 4318; `otlp_http: {}` has all defaults. See [OTLP/HTTP towards
        /// backends](#otlphttp-towards-backends).
        traces_url_path: String = "/v1/traces".into(),
        /// The path that takes metrics.
        metrics_url_path: String = "/v1/metrics".into(),
        /// The path that takes logs.
        logs_url_path: String = "/v1/logs".into(),
        /// The path that takes profiles.
        profiles_url_path: String = "/v1development/profiles".into(),
        // A call takes a connection for itself. With 16 of them a backend that takes 40 ms gets a call every 2.5 ms, which is
        // as often as calls begin; under more load they become larger.
        /// The most connections to each backend, per shard. Each carries one call at a time; `connections` has no effect.
        max_conns_per_host: usize = 16,
        // The Collector's HTTP server closes connections after one minute, and its client after 90 s. The side that closes
        // first has no request that the other has just sent.
        /// How long a connection may have no call until it is closed. It should be less than the idle timeout of the
        /// backends (the Collector's is 1m). `0s` switches this off.
        idle_conn_timeout: Option<Duration> = Some(Duration::from_secs(30)),
    }
}

/// A section without keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoKeys;

impl Section for NoKeys {
    fn add_keys(_keys: &mut Vec<&'static str>) {}

    fn read_key<'de, A: MapAccess<'de>>(&mut self, _key: &str, _values: &mut A) -> Result<bool, A::Error> {
        Ok(false)
    }

    fn print_keys<M: SerializeMap>(&self, _to: &mut M) -> Result<(), M::Error> {
        Ok(())
    }

    #[cfg(test)]
    fn document_keys(&self, _path: &str, _rows: &mut Vec<Row>) {}
}

impl Setting for NoKeys {
    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        section::read(from, &[])
    }

    fn print<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        section::print(self, to)
    }

    /// The section itself has a row, since it has no keys.
    #[cfg(test)]
    fn document(_: Option<&Self>, path: &str, help: &str, rows: &mut Vec<Row>) {
        rows.push(Row::new(path, None::<()>, help));
    }
}

impl Protocol {
    /// The keys of OTLP/HTTP, or `None` if the protocol is OTLP/gRPC.
    pub fn http(&self) -> Option<&OtlpHttp> {
        self.otlp_http.as_ref()
    }

    /// The port of backends that are written without one (IANA).
    pub fn port(&self) -> u16 {
        if self.http().is_some() { OTLP_HTTP_PORT } else { OTLP_GRPC_PORT }
    }

    /// The same without sections that say what is the default.
    #[must_use]
    pub(super) fn in_effect(&self) -> Self {
        Self { otlp: IfWritten(None), ..self.clone() }
    }
}

impl OtlpHttp {
    /// Returns the key of a signal's path, and the path.
    pub fn path(&self, signal: Signal) -> (&'static str, &str) {
        let Self { traces_url_path, metrics_url_path, logs_url_path, profiles_url_path, .. } = self;
        url_path(signal, [traces_url_path, metrics_url_path, logs_url_path, profiles_url_path])
    }
}

/// Returns the key of a signal's path, and the path, of a section that has such keys for all signals.
pub(super) fn url_path(signal: Signal, [traces, metrics, logs, profiles]: [&str; 4]) -> (&'static str, &str) {
    match signal {
        Signal::Traces => ("traces_url_path", traces),
        Signal::Metrics => ("metrics_url_path", metrics),
        Signal::Logs => ("logs_url_path", logs),
        Signal::Profiles => ("profiles_url_path", profiles),
    }
}
