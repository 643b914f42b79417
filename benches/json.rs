//! Compares the conversion of OTLP/JSON with `opentelemetry-proto`'s reader (serde) and prost's encoder, by time and
//! allocations.
//!
//! `cargo bench --bench json`. Both run in one process with one counting allocator. Documents of traces have 512 spans;
//! `items/s` are spans, points or log records per second, and `B/s` are bytes of JSON per second. The numbers of
//! allocations of the conversion have to be the same for any number of attributes.

#![expect(clippy::expect_used, reason = "a bench that fails may say so by a panic")]

use std::{fmt, hint::black_box};

use divan::{
    AllocProfiler, Bencher,
    counter::{BytesCount, ItemsCount},
};
use opentelemetry_proto::tonic::collector::{
    logs::v1::ExportLogsServiceRequest, metrics::v1::ExportMetricsServiceRequest, trace::v1::ExportTraceServiceRequest,
};
use prost::Message;
use serde::de::DeserializeOwned;
use spanring::{json::to_protobuf, otlp::Signal};

#[global_allocator]
static ALLOC: AllocProfiler = AllocProfiler::system();

const RECORDS: usize = 512;

const DOCUMENTS: [Document; 7] = [
    Document::Traces { attributes: 0 },
    Document::Traces { attributes: 8 },
    Document::Traces { attributes: 32 },
    Document::PrettyTraces,
    Document::Metrics,
    Document::Histograms,
    Document::Logs,
];

fn main() {
    divan::main();
}

/// What is converted.
#[derive(Clone, Copy, Debug)]
enum Document {
    Traces { attributes: usize },
    PrettyTraces,
    Metrics,
    Histograms,
    Logs,
}

impl fmt::Display for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Traces { attributes } => write!(f, "traces, {attributes} attributes"),
            Self::PrettyTraces => write!(f, "traces, 8 attributes, indented"),
            Self::Metrics => write!(f, "metrics, numbers"),
            Self::Histograms => write!(f, "metrics, histograms"),
            Self::Logs => write!(f, "logs, with escapes"),
        }
    }
}

#[divan::bench(args = DOCUMENTS)]
fn spanring_json(bencher: Bencher<'_, '_>, document: Document) {
    let (signal, json) = (document.signal(), document.json());
    let bencher = bencher.counter(ItemsCount::new(RECORDS)).counter(BytesCount::new(json.len()));
    bencher.bench_local(|| to_protobuf(signal, black_box(json.as_bytes()), usize::MAX).expect("well-formed"));
}

#[divan::bench(args = DOCUMENTS)]
fn serde_and_prost(bencher: Bencher<'_, '_>, document: Document) {
    fn convert<M: DeserializeOwned + Message>(json: &str) -> Vec<u8> {
        serde_json::from_slice::<M>(black_box(json.as_bytes())).expect("well-formed").encode_to_vec()
    }
    let json = document.json();
    let bencher = bencher.counter(ItemsCount::new(RECORDS)).counter(BytesCount::new(json.len()));
    match document.signal() {
        Signal::Metrics => bencher.bench_local(|| convert::<ExportMetricsServiceRequest>(&json)),
        Signal::Logs => bencher.bench_local(|| convert::<ExportLogsServiceRequest>(&json)),
        _ => bencher.bench_local(|| convert::<ExportTraceServiceRequest>(&json)),
    }
}

impl Document {
    fn signal(self) -> Signal {
        match self {
            Self::Traces { .. } | Self::PrettyTraces => Signal::Traces,
            Self::Metrics | Self::Histograms => Signal::Metrics,
            Self::Logs => Signal::Logs,
        }
    }

    /// Writes it as JavaScript's and other SDKs do.
    fn json(self) -> String {
        let mut random = fastrand::Rng::with_seed(1);
        let records: Vec<_> = (0..RECORDS).map(|number| self.record(number, &mut random)).collect();
        let (resource, scope, scopes, records_name) = match self.signal() {
            Signal::Metrics => ("resourceMetrics", "scopeMetrics", "metrics", metric(&records.join(","), self)),
            Signal::Logs => ("resourceLogs", "scopeLogs", "logRecords", records.join(",")),
            _ => ("resourceSpans", "scopeSpans", "spans", records.join(",")),
        };
        let json = format!(
            r#"{{"{resource}":[{{"resource":{{"attributes":[{}],"droppedAttributesCount":0}},"{scope}":[{{"scope":{{"name":"io.opentelemetry.tomcat-10.0","version":"2.6.0"}},"{scopes}":[{records_name}]}}]}}]}}"#,
            attributes(10)
        );
        match self {
            Self::PrettyTraces => {
                let value: serde_json::Value = serde_json::from_str(&json).expect("well-formed");
                serde_json::to_string_pretty(&value).expect("well-formed")
            }
            _ => json,
        }
    }

    fn record(self, number: usize, random: &mut fastrand::Rng) -> String {
        let time = 1_753_000_000_000_000_000 + random.u64(..1 << 40);
        let (trace, span) = (format!("{:016x}{:016x}", number / 8 + 7, time), random.u64(..));
        let attributes = match self {
            Self::Traces { attributes: count } => attributes(count),
            Self::PrettyTraces => attributes(8),
            _ => attributes(4),
        };
        match self {
            Self::Traces { .. } | Self::PrettyTraces => format!(
                r#"{{"traceId":"{trace}","spanId":"{span:016x}","parentSpanId":"{span:016x}","name":"GET /api/v1/orders/{{id}}","kind":2,"startTimeUnixNano":"{time}","endTimeUnixNano":"{time}","attributes":[{attributes}],"droppedAttributesCount":0,"events":[],"droppedEventsCount":0,"status":{{"code":1}},"links":[],"droppedLinksCount":0,"flags":257}}"#
            ),
            Self::Metrics => format!(
                r#"{{"attributes":[{attributes}],"startTimeUnixNano":"{time}","timeUnixNano":"{time}","asDouble":{}}}"#,
                random.f64()
            ),
            Self::Histograms => format!(
                r#"{{"attributes":[{attributes}],"startTimeUnixNano":"{time}","timeUnixNano":"{time}","count":"60","sum":{},"bucketCounts":["0","1","5","12","20","11","7","3","1","0","0","0","0","0","0"],"explicitBounds":[0,5,10,25,50,75,100,250,500,750,1000,2500,5000,7500],"min":1.5,"max":490.25}}"#,
                random.f64()
            ),
            Self::Logs => format!(
                r#"{{"timeUnixNano":"{time}","observedTimeUnixNano":"{time}","severityNumber":9,"severityText":"INFO","body":{{"stringValue":"order \"{number}\" was paid\n\tby card"}},"attributes":[{attributes}],"droppedAttributesCount":0,"flags":1,"traceId":"{trace}","spanId":"{span:016x}"}}"#
            ),
        }
    }
}

/// Puts points into a metric.
fn metric(points: &str, document: Document) -> String {
    let kind = if matches!(document, Document::Histograms) { "histogram" } else { "gauge" };
    format!(r#"{{"name":"http.server.request.duration","unit":"s","{kind}":{{"dataPoints":[{points}]}}}}"#)
}

/// Returns attributes of the usual lengths, a fourth of them integers.
fn attributes(count: usize) -> String {
    let strings = [
        ("http.request.method", "GET"),
        ("http.route", "/api/v1/orders/{id}"),
        ("url.path", "/api/v1/orders/3735928559"),
        ("server.address", "orders.shop.svc.cluster.local"),
        ("network.protocol.version", "1.1"),
        ("user_agent.original", "okhttp/4.12.0"),
    ];
    let attribute = |(key, value): (&str, &str)| format!(r#"{{"key":"{key}","value":{{"stringValue":"{value}"}}}}"#);
    let number = r#"{"key":"http.response.status_code","value":{"intValue":200}}"#;
    let all = strings.iter().copied().cycle().enumerate();
    let all = all.map(|(nth, pair)| if nth % 4 == 3 { number.to_owned() } else { attribute(pair) });
    all.take(count).collect::<Vec<_>>().join(",")
}
