//! Tests of the conversion.

mod accepted;
pub(crate) mod documents;
mod reference;
mod refused;
mod tables;
mod usual;

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::Span,
};
use prost::Message;

use super::{JsonError, to_protobuf};
use crate::otlp::Signal;

/// More than any message here has.
const MOST: usize = 1 << 20;

/// A span's IDs, and the members that are tested.
fn with_span(members: &str) -> String {
    format!(
        r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{{"traceId":"5B8EFFF798038103D269B633813FC60C","spanId":"EEE19B7EC3C1B174"{members}}}]}}]}}]}}"#
    )
}

fn convert<M: Message + Default>(signal: Signal, json: &str) -> Result<M, JsonError> {
    let bytes = to_protobuf(signal, json.as_bytes(), MOST)?;
    Ok(M::decode(bytes).expect("what was written is a message"))
}

fn traces(json: &str) -> Result<ExportTraceServiceRequest, JsonError> {
    convert(Signal::Traces, json)
}

/// Converts a document with one span that has these members.
fn span(members: &str) -> Result<Span, JsonError> {
    let mut traces = traces(&with_span(members))?;
    Ok(traces.resource_spans.remove(0).scope_spans.remove(0).spans.remove(0))
}

/// Converts a span with one attribute whose value has these members.
fn value(members: &str) -> Result<Option<Value>, JsonError> {
    let mut span = span(&format!(r#","attributes":[{{"key":"a","value":{{{members}}}}}]"#))?;
    let KeyValue { key, value, .. } = span.attributes.remove(0);
    assert_eq!(key, "a");
    Ok(value.expect("a value").value)
}

fn any(value: Value) -> AnyValue {
    AnyValue { value: Some(value) }
}
