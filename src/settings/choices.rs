//! Values that are chosen from a few names.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::values::{ValueError, as_serde, as_text};
use crate::otlp::Signal;

/// Which addresses of a name are backends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IpFamily {
    /// A records if there are any, else AAAA: a pod with two addresses is one backend.
    #[default]
    Auto,
    /// A records.
    Ipv4,
    /// AAAA records.
    Ipv6,
    /// Both; each address is a backend.
    Both,
}

/// The compression of messages to backends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// None. As in the Collector, an empty text means the same.
    #[default]
    #[serde(alias = "")]
    None,
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
    /// What came compressed is compressed, with the codec that it came with. No choice of the tools, which receive
    /// nothing.
    #[serde(rename = "as_received")]
    #[value(skip)]
    AsReceived,
}

/// The unit of a queue's size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sizer {
    /// Bytes.
    #[default]
    Bytes,
}

/// A placement algorithm: the slot function, the number of slots and the rule for their owners.
///
/// Its parameters are constants, not settings, so that two replicas with the same algorithm and members agree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Algorithm {
    /// 131,072 slots, 4,096 points per unit of weight, at most 1.05 of the fair share for each backend.
    #[default]
    SlotsV1,
    /// The ring of the Collector's load-balancing exporter up to v0.129.
    OtelcolV1,
    /// The ring of the exporter from July 2025 on, up to v0.156.
    OtelcolV2,
    /// The ring of the exporter since v0.157.
    OtelcolV3,
}

/// What happens to traces whose slot moves to another backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HandoffMode {
    /// A span goes to every backend that owned its key while its trace can have begun.
    #[default]
    Dual,
    /// A span whose trace is known to have begun before the change goes to the old owner, every other to the new one.
    Sticky,
    /// Every span goes to the new owner.
    Immediate,
}

/// The value that is hashed to route a record. The Collector's spellings are accepted too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RoutingKey {
    /// The trace ID.
    #[default]
    #[serde(alias = "traceID")]
    TraceId,
    /// The name of the service.
    Service,
    /// The whole resource.
    Resource,
    /// Chosen attributes.
    Attributes,
    /// The name of the metric.
    Metric,
    /// The identity of the metric's stream.
    #[serde(alias = "streamID")]
    StreamId,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsVersion {
    /// TLS 1.2.
    #[default]
    Tls12,
    /// TLS 1.3.
    Tls13,
}

/// The least severe level that is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// Data was lost, or an operator must act.
    Error,
    /// Something failed, and the proxy recovered.
    Warn,
    /// Start and end of the process, changes of membership.
    #[default]
    Info,
    /// Single requests.
    Debug,
    /// Everything.
    Trace,
}

/// The format of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogEncoding {
    /// Text for people.
    #[default]
    #[serde(alias = "console")]
    Text,
    /// One JSON object a line.
    Json,
}

as_serde! {
    IpFamily,
    Compression,
    Sizer,
    Algorithm,
    HandoffMode,
    Vec<Signal>,
    RoutingKey,
    LogLevel,
    LogEncoding,
}

as_text! {
    TlsVersion: "1.2 or 1.3";
}

impl HandoffMode {
    /// Its name in a file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dual => "dual",
            Self::Sticky => "sticky",
            Self::Immediate => "immediate",
        }
    }
}

impl RoutingKey {
    /// Its name in a file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TraceId => "trace_id",
            Self::Service => "service",
            Self::Resource => "resource",
            Self::Attributes => "attributes",
            Self::Metric => "metric",
            Self::StreamId => "stream_id",
        }
    }
}

impl FromStr for TlsVersion {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text {
            "1.2" => Ok(Self::Tls12),
            "1.3" => Ok(Self::Tls13),
            _ => Err(ValueError::TlsVersion(text.to_owned())),
        }
    }
}

impl fmt::Display for TlsVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tls12 => "1.2",
            Self::Tls13 => "1.3",
        })
    }
}
