//! Spans that have everything which OTLP gives to a span.

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue, KeyValueList, any_value::Value},
    resource::v1::Resource,
    trace::v1::{
        ResourceSpans, ScopeSpans, Span, Status,
        span::{Event, Link},
        status::StatusCode,
    },
};

const TRACES: usize = 12;
/// Spans of a trace: one for each scope of each resource.
const RESOURCES: usize = 3;
const SCOPES: usize = 2;
/// The greatest time, in nanoseconds, is far beyond what a double can tell apart.
const START: u64 = 1_750_000_000_123_456_789;

/// Returns traces whose spans are spread over resources and scopes; every second one failed. `has_special` adds numbers
/// that JSON has no way to write as numbers.
pub(super) fn traces(cell: usize, has_special: bool) -> Vec<ResourceSpans> {
    let resource = |number| ResourceSpans {
        resource: Some(Resource {
            attributes: [vec![string("service.name", &format!("service-{number}"))], attributes(has_special)].concat(),
            dropped_attributes_count: 7,
            ..Resource::default()
        }),
        scope_spans: (0..SCOPES).map(|scope| spans(cell, number, scope, has_special)).collect(),
        schema_url: "https://opentelemetry.io/schemas/1.21.0".to_owned(),
    };
    (0..RESOURCES).map(resource).collect()
}

fn spans(cell: usize, resource: usize, scope: usize, has_special: bool) -> ScopeSpans {
    ScopeSpans {
        scope: Some(InstrumentationScope {
            name: format!("scope {scope}"),
            version: "1.2.3-größer".to_owned(),
            attributes: attributes(has_special),
            dropped_attributes_count: 3,
        }),
        spans: (0..TRACES).map(|trace| span(cell, trace, resource * SCOPES + scope, has_special)).collect(),
        schema_url: "https://example.com/schema".to_owned(),
    }
}

fn span(cell: usize, trace: usize, number: usize, has_special: bool) -> Span {
    let trace_id = (0xcafe_0000_0000_0000_u128 + (cell * 1000 + trace) as u128).to_be_bytes().to_vec();
    let span_id = |number: usize| (1 + number as u64).to_be_bytes().to_vec();
    if number == 2 {
        // Nothing but IDs.
        return Span { trace_id, span_id: span_id(number), ..Span::default() };
    }
    let is_failed = trace.is_multiple_of(2) && number == 3;
    let status = match number {
        0 => None,
        _ if is_failed => Some(Status { message: "as it was told to: ß".to_owned(), code: StatusCode::Error.into() }),
        _ => Some(Status { message: String::new(), code: StatusCode::Ok.into() }),
    };
    Span {
        trace_id,
        span_id: span_id(number),
        trace_state: "vendor=t61rcWkgMzE,other=1".to_owned(),
        parent_span_id: if number == 0 { Vec::new() } else { span_id(number - 1) },
        flags: 0x301,
        name: format!("größer als nötig \"{number}\"\n\t\u{1}\u{1f600}"),
        kind: i32::try_from(number % 6).unwrap(),
        start_time_unix_nano: START + number as u64,
        end_time_unix_nano: u64::MAX,
        attributes: attributes(has_special),
        dropped_attributes_count: u32::MAX,
        events: vec![
            Event {
                time_unix_nano: START + 1,
                name: "arrived".to_owned(),
                attributes: attributes(has_special),
                dropped_attributes_count: 1,
            },
            Event::default(),
        ],
        dropped_events_count: 2,
        links: vec![Link {
            trace_id: vec![0xab; 16],
            span_id: vec![0xcd; 8],
            trace_state: "other=1".to_owned(),
            attributes: attributes(has_special),
            dropped_attributes_count: 4,
            flags: 0x101,
        }],
        dropped_links_count: 5,
        status,
    }
}

fn string(key: &str, value: &str) -> KeyValue {
    attribute(key, Some(Value::StringValue(value.to_owned())))
}

fn attribute(key: &str, value: Option<Value>) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value }), ..KeyValue::default() }
}

/// Returns attributes of all kinds.
fn attributes(has_special: bool) -> Vec<KeyValue> {
    let value = |value| AnyValue { value: Some(value) };
    let list = |values| Value::ArrayValue(ArrayValue { values });
    let map = |values| Value::KvlistValue(KeyValueList { values });
    let mut all = vec![
        string("string", "größer als nötig \u{1f600} \"\\/\u{8}\u{c}\n\r\t\u{1}\u{2028}"),
        string("string.empty", ""),
        string("string.long", &"0123456789".repeat(30)),
        string("", "a key without a name"),
        string("string", "the same key again"),
    ];
    let more = [
        ("bool", Value::BoolValue(true)),
        ("bool.false", Value::BoolValue(false)),
        ("int", Value::IntValue(-42)),
        ("int.zero", Value::IntValue(0)),
        ("int.largest", Value::IntValue(i64::MAX)),
        ("int.smallest", Value::IntValue(i64::MIN)),
        ("double", Value::DoubleValue(0.1)),
        ("double.whole", Value::DoubleValue(3.0)),
        ("double.zero", Value::DoubleValue(0.0)),
        ("double.largest", Value::DoubleValue(f64::MAX)),
        ("double.smallest", Value::DoubleValue(5e-324)),
        ("bytes", Value::BytesValue((0..=255).collect())),
        ("bytes.empty", Value::BytesValue(Vec::new())),
        ("list.empty", list(Vec::new())),
        (
            "list",
            list(vec![
                value(Value::StringValue("mixed".to_owned())),
                value(Value::IntValue(1)),
                value(Value::DoubleValue(1.5)),
                value(Value::BytesValue(vec![0])),
                value(list(vec![value(Value::BoolValue(true))])),
                value(map(vec![string("deep", "er")])),
            ]),
        ),
        ("map.empty", map(Vec::new())),
        (
            "map",
            map(vec![attribute("inner", Some(map(vec![attribute("list", Some(list(Vec::new())))]))), string("a", "")]),
        ),
    ];
    all.extend(more.map(|(key, value)| attribute(key, Some(value))));
    all.push(attribute("empty", None));
    if has_special {
        let special =
            [("double.nan", f64::NAN), ("double.infinite", f64::INFINITY), ("double.smaller", f64::NEG_INFINITY)];
        all.extend(special.map(|(key, value)| attribute(key, Some(Value::DoubleValue(value)))));
    }
    all
}
