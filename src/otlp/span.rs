//! What a span says of its place in its trace.

use super::wire::{Reader, Value};

/// The field number of `Span.parent_span_id` (opentelemetry-proto 1.11).
const PARENT_SPAN_ID: u32 = 4;

/// Returns whether a span, without its tag and length, is the root of its trace: OTLP leaves the ID of the parent empty
/// then. A span that cannot be read is none.
pub fn is_root_span(span: &[u8]) -> bool {
    let mut reader = Reader::new(span);
    while let Ok(Some(field)) = reader.field() {
        if field.number == PARENT_SPAN_ID && !matches!(field.value, Value::Len([])) {
            return false;
        }
    }
    reader.left() == 0
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::trace::v1::Span;
    use prost::Message;

    use super::*;

    #[test]
    fn a_root_span_is_one_without_a_parent() {
        let span = |parent: &[u8]| {
            let (trace_id, name) = (vec![1; 16], "name".to_owned());
            Span { trace_id, parent_span_id: parent.to_vec(), name, end_time_unix_nano: 9, ..Span::default() }
        };
        let is_root = |parent: &[u8]| is_root_span(&span(parent).encode_to_vec());
        assert!(is_root(&[]) && is_root_span(&[]));
        assert!(!is_root(&[7; 8]) && !is_root(&[0]));
        let with = |more: &[u8]| is_root_span(&[&span(&[]).encode_to_vec(), more].concat());
        assert!(with(&[0x22, 0]), "the field is there and empty");
        assert!(!with(&[0x22, 1, 7]) && !with(&[0x20, 0]), "the field has a value, or a wrong type");
        assert!(!with(&[0x22, 5, 7]), "it cannot be read");
    }
}
