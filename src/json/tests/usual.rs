//! Spellings that are read faster than others become the same message.

use opentelemetry_proto::tonic::{collector::metrics::v1::ExportMetricsServiceRequest, metrics::v1::metric::Data};

use super::{MOST, convert, traces, with_span};
use crate::{json::to_protobuf, otlp::Signal};

#[test]
fn attributes_in_the_usual_spelling_are_read_as_in_any_other() {
    let texts: Vec<String> =
        [1, 2, 30, 58, 59, 60, 110, 115, 116, 117, 118, 119, 127, 128, 200].map(|len| "k".repeat(len)).into();
    let mut keys = texts.clone();
    keys.extend(["", "é", "a\\n", "a\\u0041"].map(str::to_owned));
    let mut values: Vec<String> = texts.iter().map(|text| format!(r#"{{"stringValue":"{text}"}}"#)).collect();
    for int in [0, 1, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152, 9_999_999, 12_345_678, -1, i64::MAX, i64::MIN] {
        values.push(format!(r#"{{"intValue":{int}}}"#));
        values.push(format!(r#"{{"intValue":"{int}"}}"#));
    }
    for other in [
        r#"{"stringValue":""}"#,
        r#"{"stringValue":"\""}"#,
        r#"{"stringValue":null}"#,
        r#"{"boolValue":true}"#,
        r#"{"boolValue":false}"#,
        r#"{"boolValue":null}"#,
        r#"{"intValue":5.0}"#,
        r#"{"intValue":"007"}"#,
        r#"{"intValue":1e3}"#,
        r#"{"intValue":1,"intValue":2}"#,
        r#"{"doubleValue":1.5}"#,
        r#"{"arrayValue":{"values":[{"stringValue":"a"}]}}"#,
        r#"{"s":"a"}"#,
        "{}",
    ] {
        values.push(other.to_owned());
    }
    let converted = |attributes: &str| {
        let json = with_span(&format!(r#","attributes":[{attributes}]"#));
        to_protobuf(Signal::Traces, json.as_bytes(), MOST).unwrap_or_else(|error| panic!("{attributes}: {error}"))
    };
    for key in &keys {
        for value in &values {
            let usual = format!(r#"{{"key":"{key}","value":{value}}}"#);
            let other = format!(r#"{{ "key":"{key}","value":{value}}}"#);
            assert!(converted(&usual) == converted(&other), "{usual}");
            assert!(
                converted(&format!("{usual},{usual}")) == converted(&format!("{other} , {other}")),
                "{usual} twice"
            );
        }
    }
    let more = with_span(r#","attributes":[{"key":"a","value":{"intValue":1},"keyStrindex":7}]"#);
    assert_eq!(traces(&more).unwrap().resource_spans[0].scope_spans[0].spans[0].attributes[0].key_strindex, 7);
    for broken in [r#"{"key":"a","value":{"boolValue":truE}}"#, r#"{"key":"a","value":{"intValue":01}}"#] {
        let json = with_span(&format!(r#","attributes":[{{"key":"b","value":{{"boolValue":true}}}},{broken}]"#));
        let error = to_protobuf(Signal::Traces, json.as_bytes(), MOST).unwrap_err();
        assert!(error.path.starts_with("resourceSpans[0].scopeSpans[0].spans[0].attributes[1].value."), "{error}");
    }
}

#[test]
fn numbers_of_histograms_are_read_in_any_mixture() {
    let numbers = ["0", "7", "\"7\"", "9999999", "10000000", "\"18446744073709551615\"", "5.0", "1e3"];
    for first in numbers {
        for second in numbers {
            let json = format!(
                r#"{{"resourceMetrics":[{{"scopeMetrics":[{{"metrics":[{{"histogram":{{"dataPoints":[{{"bucketCounts":[{first},{second},{first}],"explicitBounds":[{second}, {first} ,{second}]}}]}}}}]}}]}}]}}"#
            );
            let message: ExportMetricsServiceRequest = convert(Signal::Metrics, &json).unwrap();
            let Some(Data::Histogram(histogram)) = &message.resource_metrics[0].scope_metrics[0].metrics[0].data else {
                panic!("a histogram")
            };
            let value = |text: &str| {
                let text = text.trim_matches('"');
                text.parse().unwrap_or_else(|_| if text == "5.0" { 5 } else { 1_000 })
            };
            let (first, second): (u64, u64) = (value(first), value(second));
            assert_eq!(histogram.data_points[0].bucket_counts, [first, second, first]);
            assert_eq!(histogram.data_points[0].explicit_bounds, [second, first, second].map(|number| number as f64));
        }
    }
}
