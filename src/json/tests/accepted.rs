//! What the conversion takes that some readers of OTLP/JSON refuse or lose.

use opentelemetry_proto::tonic::{
    collector::{
        logs::v1::ExportLogsServiceRequest, metrics::v1::ExportMetricsServiceRequest,
        profiles::v1development::ExportProfilesServiceRequest, trace::v1::ExportTraceServiceRequest,
    },
    common::v1::{AnyValue, ArrayValue, KeyValue, KeyValueList, any_value::Value},
    metrics::v1::{metric::Data, number_data_point},
    trace::v1::Span,
};
use prost::Message;

use super::{MOST, any, convert, span, traces, value, with_span};
use crate::{json::to_protobuf, otlp::Signal};

fn usual() -> Span {
    span("").unwrap()
}

#[test]
fn null_is_no_value_for_any_field() {
    for name in [
        "attributes",
        "name",
        "kind",
        "parentSpanId",
        "startTimeUnixNano",
        "droppedAttributesCount",
        "events",
        "links",
        "status",
        "flags",
        "traceState",
    ] {
        assert_eq!(span(&format!(r#","{name}":null"#)), Ok(usual()), "{name}");
    }
    let nothing = ExportTraceServiceRequest::default();
    assert_eq!(traces(r#"{"resourceSpans":null}"#), Ok(nothing.clone()));
    assert_eq!(traces("{}"), Ok(nothing.clone()));
    assert_eq!(traces(" \r\n\t null "), Ok(nothing));
    assert_eq!(value(r#""stringValue":null"#), Ok(None));
    assert_eq!(value(r#""arrayValue":null"#), Ok(None));
    // Elements of a list keep their places.
    let list = value(r#""arrayValue":{"values":[null,{"intValue":1},null]}"#).unwrap();
    let values = vec![AnyValue::default(), any(Value::IntValue(1)), AnyValue::default()];
    assert_eq!(list, Some(Value::ArrayValue(ArrayValue { values })));
}

#[test]
fn lists_of_values_may_be_empty() {
    assert_eq!(value(r#""arrayValue":{}"#), Ok(Some(Value::ArrayValue(ArrayValue::default()))));
    assert_eq!(value(r#""kvlistValue":{}"#), Ok(Some(Value::KvlistValue(KeyValueList::default()))));
    assert_eq!(value(r#""arrayValue":{"values":[]}"#), Ok(Some(Value::ArrayValue(ArrayValue::default()))));
    assert_eq!(value(r#""kvlistValue":{"values":null}"#), Ok(Some(Value::KvlistValue(KeyValueList::default()))));
}

#[test]
fn fields_may_be_missing() {
    let keyless = span(r#","attributes":[{"value":{"stringValue":"s"}},{}]"#).unwrap().attributes;
    let value = Some(any(Value::StringValue("s".to_owned())));
    assert_eq!(keyless, [KeyValue { value, ..KeyValue::default() }, KeyValue::default()]);
    let resource = r#"{"resourceSpans":[{"resource":{"entityRefs":[{"type":"a","idKeys":["k"]},{}]}}]}"#;
    let refs = traces(resource).unwrap().resource_spans.remove(0).resource.unwrap().entity_refs;
    assert_eq!((refs.len(), refs[0].r#type.as_str(), &refs[0].id_keys[..]), (2, "a", &["k".to_owned()][..]));
    let empty = traces(r#"{"resourceSpans":[{"resource":{},"scopeSpans":[{"scope":{},"spans":[{}]}]},{}]}"#).unwrap();
    assert_eq!(empty.resource_spans.len(), 2);
    assert_eq!(empty.resource_spans[0].resource, Some(Default::default()), "an empty message is there");
    assert_eq!(empty.resource_spans[0].scope_spans[0].spans, [Span::default()]);
}

#[test]
fn empty_and_unknown_values_are_values_without_content() {
    assert_eq!(value(""), Ok(None));
    assert_eq!(value(r#""newValue":{"x":1}"#), Ok(None));
    assert_eq!(value(r#""newValue":"k","stringValue":"s""#), Ok(Some(Value::StringValue("s".to_owned()))));
    assert_eq!(span(r#","attributes":[{"key":"a"},{"key":"a","value":null}]"#).unwrap().attributes.len(), 2);
}

#[test]
fn doubles_are_numbers_or_strings_with_infinities() {
    let double = |text: &str| match value(&format!(r#""doubleValue":{text}"#)) {
        Ok(Some(Value::DoubleValue(value))) => value,
        other => panic!("{text}: {other:?}"),
    };
    for (text, expected) in [
        ("1.5", 1.5),
        (r#""1.5""#, 1.5),
        ("1", 1.0),
        ("-0.25e-2", -0.0025),
        ("0", 0.0),
        (r#""Infinity""#, f64::INFINITY),
        (r#""-Infinity""#, f64::NEG_INFINITY),
        (r#""+Inf""#, f64::INFINITY),
        ("1.7976931348623157e308", f64::MAX),
        ("1e-400", 0.0),
        ("100000000000000000000000000000000000000000000000000", 1e50),
    ] {
        assert!(double(text) == expected, "{text}");
    }
    assert!(double(r#""NaN""#).is_nan() && double(r#""nan""#).is_nan());
}

#[test]
fn points_of_metrics_may_be_no_number() {
    let metrics: ExportMetricsServiceRequest = convert(
        Signal::Metrics,
        r#"{"resourceMetrics":[{"scopeMetrics":[{"metrics":[
            {"name":"b","sum":{"aggregationTemporality":"AGGREGATION_TEMPORALITY_CUMULATIVE","isMonotonic":true,
             "dataPoints":[{"asDouble":"NaN"},{"asInt":"-5"},{"asInt":7,"exemplars":[{"asInt":0,"spanId":"eee19b7ec3c1b174"}]}]}},
            {"name":"h","histogram":{"aggregationTemporality":1,"dataPoints":[
             {"count":"2","sum":0,"bucketCounts":["1",1,1.0,null],"explicitBounds":[1,"2.5",-1e3]}]}},
            {"name":"e","exponentialHistogram":{"dataPoints":[{"scale":-3,"positive":{"offset":"-2","bucketCounts":[3,"300"]}}]}}
        ]}]}]}"#,
    )
    .unwrap();
    let metrics = &metrics.resource_metrics[0].scope_metrics[0].metrics;
    let Some(Data::Sum(sum)) = &metrics[0].data else { panic!("{metrics:?}") };
    assert!((sum.aggregation_temporality, sum.is_monotonic) == (2, true));
    let Some(number_data_point::Value::AsDouble(value)) = sum.data_points[0].value else { panic!("{sum:?}") };
    assert!(value.is_nan());
    assert_eq!(sum.data_points[1].value, Some(number_data_point::Value::AsInt(-5)));
    assert_eq!(sum.data_points[2].exemplars[0].span_id.len(), 8);
    assert!(sum.data_points[2].exemplars[0].value.is_some(), "0 is a value");
    let Some(Data::Histogram(histogram)) = &metrics[1].data else { panic!("{metrics:?}") };
    let point = &histogram.data_points[0];
    assert_eq!((point.count, point.sum, point.min), (2, Some(0.0), None));
    assert_eq!((&point.bucket_counts[..], &point.explicit_bounds[..]), (&[1, 1, 1, 0][..], &[1.0, 2.5, -1000.0][..]));
    let Some(Data::ExponentialHistogram(histogram)) = &metrics[2].data else { panic!("{metrics:?}") };
    let point = &histogram.data_points[0];
    let positive = point.positive.as_ref().unwrap();
    assert_eq!((point.scale, positive.offset, &positive.bucket_counts[..]), (-3, -2, &[3, 300][..]));
}

#[test]
fn integers_are_written_in_any_way_that_has_no_fraction() {
    for (text, expected) in [
        ("5", 5),
        (r#""5""#, 5),
        ("5.0", 5),
        ("5e0", 5),
        ("0.5e1", 5),
        ("50000E-4", 5),
        (r#""5.000""#, 5),
        (r#""+005""#, 5),
        ("-7", -7),
        (r#""-7""#, -7),
        ("-0", 0),
        ("0e99999999999999999999", 0),
        ("9223372036854775807", i64::MAX),
        (r#""-9223372036854775808""#, i64::MIN),
        ("9223372036854775807.000000000000000000000000000000000", i64::MAX),
        (r#""\u0031\u0032""#, 12),
    ] {
        assert_eq!(value(&format!(r#""intValue":{text}"#)), Ok(Some(Value::IntValue(expected))), "{text}");
    }
    for text in ["1.7e18", "1700000000000000000", r#""1700000000000000000""#, "17e17", "1700000000000000000.0"] {
        let span = span(&format!(r#","startTimeUnixNano":{text}"#)).unwrap();
        assert_eq!(span.start_time_unix_nano, 1_700_000_000_000_000_000, "{text}");
    }
    let span = span(r#","droppedAttributesCount":"3","flags":257,"endTimeUnixNano":18446744073709551615"#).unwrap();
    assert_eq!((span.dropped_attributes_count, span.flags, span.end_time_unix_nano), (3, 257, u64::MAX));
}

#[test]
fn enumerations_are_names_or_numbers() {
    for text in ["2", r#""SPAN_KIND_SERVER""#, r#""2""#, "2.0", r#""SPAN_KIND_\u0053ERVER""#] {
        assert_eq!(span(&format!(r#","kind":{text}"#)).unwrap().kind, 2, "{text}");
    }
    assert_eq!(span(r#","kind":77"#).unwrap().kind, 77, "later versions have more");
    assert_eq!(span(r#","kind":-1"#).unwrap().kind, -1);
    assert_eq!(span(r#","status":{"code":"STATUS_CODE_ERROR"}"#).unwrap().status.unwrap().code, 2);
    let logs: ExportLogsServiceRequest = convert(
        Signal::Logs,
        r#"{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"severityNumber":"SEVERITY_NUMBER_WARN2","body":{"stringValue":""},
            "traceId":"5b8efff798038103d269b633813fc60c","eventName":"e","observedTimeUnixNano":"9"}]}]}]}"#,
    )
    .unwrap();
    let record = &logs.resource_logs[0].scope_logs[0].log_records[0];
    assert_eq!((record.severity_number, record.event_name.as_str(), record.observed_time_unix_nano), (14, "e", 9));
    assert_eq!((record.trace_id.len(), &record.body), (16, &Some(any(Value::StringValue(String::new())))));
}

#[test]
fn base64_has_both_alphabets_with_and_without_padding() {
    for text in ["+/8=", "-_8=", "+/8", "-_8", r"+\/8=", r"\u002b/8", r"+/\n8="] {
        assert_eq!(
            value(&format!(r#""bytesValue":"{text}""#)),
            Ok(Some(Value::BytesValue(vec![0xfb, 0xff]))),
            "{text}"
        );
    }
    for (text, expected) in [("", ""), ("YQ==", "a"), ("YQ", "a"), ("YWI=", "ab"), ("YWJj", "abc"), ("YWJjZA", "abcd")]
    {
        assert_eq!(value(&format!(r#""bytesValue":"{text}""#)), Ok(Some(Value::BytesValue(expected.into()))), "{text}");
    }
}

#[test]
fn ids_are_hexadecimal_in_any_case() {
    let id = [0x5b, 0x8e, 0xff, 0xf7, 0x98, 0x03, 0x81, 0x03, 0xd2, 0x69, 0xb6, 0x33, 0x81, 0x3f, 0xc6, 0x0c];
    assert_eq!(usual().trace_id, id);
    let json = with_span(
        r#","parentSpanId":"","links":[{"traceId":"5b8efff798038103d269b633813fc60c","spanId":"EEE19b7ec3c1b174"}]"#,
    );
    for json in [json.clone(), json.replace("5B8E", r"\u0035B8E")] {
        let span = traces(&json).unwrap().resource_spans.remove(0).scope_spans.remove(0).spans.remove(0);
        assert_eq!((&span.trace_id[..], &span.links[0].trace_id[..]), (&id[..], &id[..]));
        assert_eq!((&span.parent_span_id[..], &span.links[0].span_id[..]), (&[][..], &span.span_id[..]));
    }
}

#[test]
fn the_id_of_a_profile_is_hexadecimal_or_base64() {
    for id in [
        "5b8efff798038103d269b633813fc60c",
        r"\u0035b8efff798038103d269b633813fc60c",
        "W47/95gDgQPSabYzgT/GDA==",
        r"W47\/95gDgQPSabYzgT\/GDA=\u003d",
        "W47_95gDgQPSabYzgT_GDA",
    ] {
        let json = format!(
            r#"{{"dictionary":{{"stringTable":["","a",null],"linkTable":[{{"spanId":"eee19b7ec3c1b174"}}]}},
                "resourceProfiles":[{{"scopeProfiles":[{{"profiles":[{{"profileId":"{id}","originalPayload":"YQ==",
                "samples":[{{"values":["1",-2],"attributeIndices":[1,300]}}],"durationNano":"5"}}]}}]}}]}}"#
        );
        let profiles: ExportProfilesServiceRequest = convert(Signal::Profiles, &json).unwrap();
        let dictionary = profiles.dictionary.as_ref().unwrap();
        assert_eq!(
            (&dictionary.string_table[..], dictionary.link_table[0].span_id.len()),
            (&["", "a", ""].map(str::to_owned)[..], 8)
        );
        let profile = &profiles.resource_profiles[0].scope_profiles[0].profiles[0];
        assert_eq!((profile.profile_id[..2].to_vec(), profile.profile_id.len()), (vec![0x5b, 0x8e], 16));
        let sample = &profile.samples[0];
        assert_eq!((&sample.values[..], &sample.attribute_indices[..]), (&[1, -2][..], &[1, 300][..]));
        assert_eq!((&profile.original_payload[..], profile.duration_nano), (&b"a"[..], 5));
    }
}

#[test]
fn unknown_fields_are_skipped_whatever_they_hold() {
    for unknown in [
        "1",
        "-0.5e+3",
        r#""s\u00e9\\\"""#,
        "true",
        "false",
        "null",
        "[]",
        "{}",
        r#"{"a":[1,{"b":[[],{}]},"x"],"c":{"d":null}}"#,
    ] {
        assert_eq!(span(&format!(r#","zzz": {unknown} "#)), Ok(usual()), "{unknown}");
        assert_eq!(span(&format!(r#", "start_time_unix_nano" : {unknown}"#)), Ok(usual()), "names in snake_case");
    }
    let snake = r#"{"resource_spans":[{"scope_spans":[{"spans":[{"trace_id":"5B8EFFF798038103D269B633813FC60C"}]}]}]}"#;
    assert_eq!(traces(snake), Ok(ExportTraceServiceRequest::default()));
    let other_case = r#"{"ResourceSpans":[{}],"instrumentationLibrarySpans":[{"spans":[{}]}]}"#;
    assert_eq!(traces(other_case), Ok(ExportTraceServiceRequest::default()));
    assert_eq!(span(r#","\u006eame":"n","na\u006de\u0000":"no","":1"#).unwrap().name, "n", "names may have escapes");
}

#[test]
fn escapes_become_what_they_stand_for() {
    let name = |text: &str| span(&format!(r#","name":"{text}""#)).unwrap().name;
    assert_eq!(name(r#"\"\\\/\b\f\n\r\t\u00e9\u20AC\ud83d\ude00\u0000z"#), "\"\\/\u{8}\u{c}\n\r\té€😀\0z");
    assert_eq!(name("é€😀\u{7f}"), "é€😀\u{7f}");
    for (half, expected) in [
        (r"\ud800", "\u{fffd}"),
        (r"\ud800x", "\u{fffd}x"),
        (r"\ude00\ud83d", "\u{fffd}\u{fffd}"),
        (r"\ud83d\u0041", "\u{fffd}A"),
        (r"\ud83d\ud83d\ude00", "\u{fffd}😀"),
        (r"\ud83d\n", "\u{fffd}\n"),
    ] {
        assert_eq!(name(half), expected, "half of a pair");
    }
    for len in 0..300 {
        let text = format!("{}\\n{}", "a".repeat(len), "b".repeat(300 - len));
        assert_eq!(name(&text), text.replace("\\n", "\n"), "a length that shrinks across a width");
        assert_eq!(name(&"c".repeat(len)).len(), len);
    }
}

#[test]
fn doubled_names_are_read_as_protobuf_reads_doubled_fields() {
    assert_eq!(span(r#","name":"a","name":"b""#).unwrap().name, "b");
    assert_eq!(span(r#","name":"a","name":"","flags":1,"flags":0"#), Ok(usual()), "also the value of zero counts");
    assert_eq!(span(r#","name":"a","name":null"#).unwrap().name, "a", "null is no value");
    let joined = span(r#","attributes":[{"key":"a"}],"attributes":[{"key":"b"}]"#).unwrap().attributes;
    assert_eq!(joined.iter().map(|attribute| attribute.key.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    let merged = span(r#","status":{"code":2},"status":{"message":"m"}"#).unwrap().status.unwrap();
    assert_eq!((merged.code, merged.message.as_str()), (2, "m"));
    assert_eq!(value(r#""intValue":1,"stringValue":"s""#), Ok(Some(Value::StringValue("s".to_owned()))));
}

#[test]
fn values_nest_as_deep_as_collectors_read() {
    let nested = |depth: usize| {
        let (begin, end) = (r#"{"arrayValue":{"values":["#, "]}}");
        let text =
            format!("{}{}{}", begin.repeat(depth), r#"{"kvlistValue":{"values":[{"key":"k"}]}}"#, end.repeat(depth));
        with_span(&format!(r#","attributes":[{{"key":"a","value":{text}}}]"#))
    };
    for depth in [1, 33, 45] {
        let mut value = span_of(&nested(depth)).attributes.remove(0).value;
        for _ in 0..depth {
            let Some(AnyValue { value: Some(Value::ArrayValue(mut list)) }) = value else { panic!("{depth}") };
            value = list.values.pop();
        }
        assert!(matches!(value, Some(AnyValue { value: Some(Value::KvlistValue(list)) }) if list.values.len() == 1));
    }
    // prost reads no deeper, but others do.
    let deep = to_protobuf(Signal::Traces, nested(3_000).as_bytes(), MOST).unwrap();
    assert!(deep.len() > 3_000 * 4 && ExportTraceServiceRequest::decode(deep).is_err());
}

fn span_of(json: &str) -> Span {
    traces(json).unwrap().resource_spans.remove(0).scope_spans.remove(0).spans.remove(0)
}

#[test]
fn lengths_are_the_shortest_for_any_content_at_any_depth() {
    let wide = [0, 1, 90, 120, 127, 128, 16_300, 16_383, 16_384, 2_097_100, 2_097_152];
    for (len, depth) in wide.into_iter().flat_map(|len| [0, 1, 4, 20].map(|depth| (len, depth))) {
        let around =
            |text: String| format!(r#"{{"arrayValue":{{"values":[{{"intValue":1}},{text},{{"boolValue":true}}]}}}}"#);
        let text = (0..depth).fold(format!(r#"{{"stringValue":"{}"}}"#, "s".repeat(len)), |text, _| around(text));
        let attribute = format!(r#"{{"key":"a","value":{text}}}"#);
        // The second of each finds gaps as wide as the first had, the last one gaps that are too wide.
        let json =
            with_span(&format!(r#","attributes":[{attribute},{attribute},{{"key":"b","value":{{"intValue":1}}}}]"#));
        let bytes = to_protobuf(Signal::Traces, json.as_bytes(), 16 << 20).unwrap();
        let found = ExportTraceServiceRequest::decode(bytes.clone()).unwrap();
        assert_eq!(found.encoded_len(), bytes.len(), "{len} bytes, {depth} levels");
        let mut value = found.resource_spans[0].scope_spans[0].spans[0].attributes[1].value.clone();
        for _ in 0..depth {
            let Some(Value::ArrayValue(mut list)) = value.and_then(|value| value.value) else { panic!("{depth}") };
            value = Some(list.values.swap_remove(1));
        }
        assert_eq!(value, Some(any(Value::StringValue("s".repeat(len)))));
    }
}

#[test]
fn whitespace_may_be_anywhere_between() {
    let json =
        with_span(r#","attributes":[{"key":"a","value":{"arrayValue":{"values":[]}}},{}],"flags":1,"zzz":[1,{"a":2}]"#);
    let spaced: String = {
        let mut in_string = false;
        json.chars()
            .map(|c| {
                in_string ^= c == '"';
                if !in_string && "{}[]:,".contains(c) { format!(" \n{c}\r\t ") } else { c.to_string() }
            })
            .collect()
    };
    assert_eq!(traces(&spaced), traces(&json));
    assert_eq!(span_of(&json).attributes.len(), 2);
}
