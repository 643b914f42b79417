//! The signals, and how their messages nest records.

use super::{
    shortcuts::{ShortTag, Skips},
    wire::Value,
};

/// A signal of OTLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Signal {
    /// Spans.
    Traces,
    /// Metrics.
    Metrics,
    /// Log records.
    Logs,
    /// Profiles (in development in OTLP).
    Profiles,
}

impl Signal {
    /// All signals.
    pub const ALL: [Self; 4] = [Self::Traces, Self::Metrics, Self::Logs, Self::Profiles];

    /// The name used in the configuration, in metric labels and in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Traces => "traces",
            Self::Metrics => "metrics",
            Self::Logs => "logs",
            Self::Profiles => "profiles",
        }
    }

    /// The path of the signal's gRPC method.
    pub fn grpc_path(self) -> &'static str {
        match self {
            Self::Traces => "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
            Self::Metrics => "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
            Self::Logs => "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
            Self::Profiles => "/opentelemetry.proto.collector.profiles.v1development.ProfilesService/Export",
        }
    }

    /// Returns the signal of a gRPC path.
    pub fn from_grpc_path(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|signal| signal.grpc_path() == path)
    }

    /// A small number, for tables indexed by signal.
    pub fn index(self) -> usize {
        match self {
            Self::Traces => 0,
            Self::Metrics => 1,
            Self::Logs => 2,
            Self::Profiles => 3,
        }
    }
}

/// One level of nesting between a request and its records: the fields of a message that hold its children.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    /// Field numbers of the children; all other fields are the message's envelope.
    pub children: &'static [u32],
}

impl Level {
    /// The tag of the first field in `children`.
    pub(crate) fn usual_tag(&self) -> ShortTag {
        self.children.first().map_or(ShortTag::NONE, |number| ShortTag::new(*number, Value::LEN))
    }
}

/// The fields of a record that the router needs.
#[derive(Debug)]
pub struct RecordFields {
    /// Field number of the record's trace ID (bytes), 0 if it has none.
    pub id: u32,
    /// Field number of the record's start time (`fixed64`, nanoseconds since 1970), 0 if it has none.
    pub start: u32,
    /// Whether the ID is in field 1, as in a span, and field 2 may be skipped.
    pub(crate) has_ids_of_span: bool,
    /// The tag of the start time.
    pub(crate) start_tag: ShortTag,
    /// How to skip all other fields.
    pub(super) skips: Skips,
}

static OF_SPANS: RecordFields = RecordFields::new(1, 7);
static OF_LOG_RECORDS: RecordFields = RecordFields::new(9, 1);
static OF_OTHERS: RecordFields = RecordFields::new(0, 0);

impl RecordFields {
    /// Creates the set for these field numbers; 0 for none.
    pub const fn new(id: u32, start: u32) -> Self {
        let has_ids_of_span = id == 1 && start != 2;
        Self {
            id,
            start,
            has_ids_of_span,
            start_tag: ShortTag::new(start, Value::FIXED64),
            skips: Skips::all_but(id, start),
        }
    }
}

impl Signal {
    /// The levels from the request down to the record.
    ///
    /// Field numbers are those of opentelemetry-proto 1.11: `Export*ServiceRequest` 1 → `Resource*` 2 → `Scope*` 2.
    pub fn levels(self) -> &'static [Level] {
        &[Level { children: &[1] }, Level { children: &[2] }, Level { children: &[2] }]
    }

    /// The fields of a record that routing looks at: `Span` 1 and 7, `LogRecord` 9 and 1 (opentelemetry-proto 1.11).
    pub fn record_fields(self) -> &'static RecordFields {
        match self {
            Self::Traces => &OF_SPANS,
            Self::Logs => &OF_LOG_RECORDS,
            Self::Metrics | Self::Profiles => &OF_OTHERS,
        }
    }
}
