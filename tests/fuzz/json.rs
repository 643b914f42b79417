//! Fuzz targets for the conversion of OTLP/JSON.

use std::time::Duration;

use bolero::check;
use opentelemetry_proto::tonic::collector::{
    logs::v1::ExportLogsServiceRequest, metrics::v1::ExportMetricsServiceRequest,
    profiles::v1development::ExportProfilesServiceRequest, trace::v1::ExportTraceServiceRequest,
};
use prost::Message;
use spanring::{json::to_protobuf, otlp::Signal};

use crate::documents::{Documents, REQUESTS, Types};

/// Duration of each target under `cargo test`.
const SHORT: Duration = Duration::from_secs(4);

/// More than any message here has.
const MOST: usize = 1 << 20;

/// prost reads no message that nests deeper, but the conversion does. Each level has a brace or a bracket.
const PROST_DEPTH: usize = 90;

/// Returns the encoding that prost has for a message, or `None` if it cannot read it.
fn by_prost(signal: Signal, message: &[u8]) -> Option<Vec<u8>> {
    match signal {
        Signal::Traces => ExportTraceServiceRequest::decode(message).ok().map(|read| read.encode_to_vec()),
        Signal::Metrics => ExportMetricsServiceRequest::decode(message).ok().map(|read| read.encode_to_vec()),
        Signal::Logs => ExportLogsServiceRequest::decode(message).ok().map(|read| read.encode_to_vec()),
        Signal::Profiles => ExportProfilesServiceRequest::decode(message).ok().map(|read| read.encode_to_vec()),
    }
}

#[test]
fn any_bytes_are_refused_or_become_a_message() {
    check!().with_test_time(SHORT).for_each(|json: &[u8]| {
        for signal in Signal::ALL {
            let Ok(message) = to_protobuf(signal, json, MOST) else { continue };
            let braces = json.iter().filter(|byte| matches!(byte, b'{' | b'[')).count();
            assert!(by_prost(signal, &message).is_some() || braces > PROST_DEPTH);
            assert!(message.len() <= 4 * json.len(), "no value of JSON grows more");
        }
    });
}

#[test]
fn documents_become_the_messages_that_they_stand_for() {
    let types = Types::load();
    check!().with_test_time(SHORT).for_each(|seed: &[u8]| {
        // When the seed ends, all choices are the first ones, so that documents end.
        let mut bytes = seed.iter();
        let below = |bound: usize| bytes.next().map_or(0, |byte| usize::from(*byte) % bound);
        let mut documents = Documents::new(&types, false, below);
        for signal in Signal::ALL {
            let (json, expected) = documents.request(REQUESTS[signal.index()]);
            let found = to_protobuf(signal, json.as_bytes(), MOST).expect("well-formed");
            assert!(by_prost(signal, &found) == by_prost(signal, &expected), "{json}");
        }
    });
}
