//! What the conversion refuses, and how its errors tell the place.

use super::{MOST, traces, with_span};
use crate::{
    budget::Budget,
    json::{JsonError, JsonErrorKind, Malformed, to_framed, to_protobuf},
    otlp::{Signal, framed::PREFIX_LEN},
};

fn refusal(json: &str) -> JsonError {
    traces(json).expect_err(json)
}

fn malformed(json: &str) -> Malformed {
    match refusal(json).kind {
        JsonErrorKind::Malformed(what) => what,
        other => panic!("{json}: {other:?}"),
    }
}

#[test]
fn values_of_a_wrong_kind_are_refused() {
    let expected = |what| Malformed::Expected(what);
    for (members, what) in [
        (r#","name":5"#, expected("a string")),
        (r#","name":{}"#, expected("a string")),
        (r#","traceId":7"#, expected("a string")),
        (r#","attributes":{}"#, expected("an array")),
        (r#","attributes":"a""#, expected("an array")),
        (r#","attributes":[1]"#, expected("an object")),
        (r#","status":[]"#, expected("an object")),
        (r#","flags":true"#, expected("a number")),
        (r#","flags":"""#, Malformed::Number),
        (r#","flags":"x""#, Malformed::Number),
        (r#","flags":"1x""#, Malformed::Number),
        (r#","flags":" 1""#, Malformed::Number),
        (r#","flags":"1e""#, Malformed::Number),
        (r#","flags":".5""#, Malformed::Number),
        (r#","flags":1.5"#, Malformed::Integer),
        (r#","flags":1e-1"#, Malformed::Integer),
        (r#","flags":1e-99999999999999999999"#, Malformed::Integer),
        (r#","flags":1.00000000000000000000000000000000000000000001"#, Malformed::Integer),
        (r#","flags":-1"#, Malformed::Range),
        (r#","flags":4294967296"#, Malformed::Range),
        (r#","startTimeUnixNano":18446744073709551616"#, Malformed::Range),
        (r#","startTimeUnixNano":1e20"#, Malformed::Range),
        (r#","startTimeUnixNano":1e99999999999999999999"#, Malformed::Range),
        (r#","startTimeUnixNano":"-1""#, Malformed::Range),
        (r#","kind":2147483648"#, Malformed::Range),
        (r#","kind":"SERVER""#, Malformed::EnumName),
        (r#","kind":"span_kind_server""#, Malformed::EnumName),
        (r#","kind":"""#, Malformed::EnumName),
        (r#","attributes":[{"value":{"intValue":9223372036854775808}}]"#, Malformed::Range),
        (r#","attributes":[{"value":{"intValue":"-9223372036854775809"}}]"#, Malformed::Range),
        (r#","attributes":[{"value":{"doubleValue":1e999}}]"#, Malformed::Range),
        (r#","attributes":[{"value":{"doubleValue":"1e999"}}]"#, Malformed::Range),
        (r#","attributes":[{"value":{"doubleValue":"one"}}]"#, Malformed::Number),
        (r#","attributes":[{"value":{"boolValue":"true"}}]"#, expected("true or false")),
        (r#","attributes":[{"value":{"boolValue":1}}]"#, expected("true or false")),
        (r#","attributes":[{"value":{"bytesValue":"YQ="}}]"#, Malformed::Base64),
        (r#","attributes":[{"value":{"bytesValue":"Y"}}]"#, Malformed::Base64),
        (r#","attributes":[{"value":{"bytesValue":"YQ==YQ=="}}]"#, Malformed::Base64),
        (r#","attributes":[{"value":{"bytesValue":"YWJj="}}]"#, Malformed::Base64),
        (r#","attributes":[{"value":{"bytesValue":"Y Q=="}}]"#, Malformed::Base64),
    ] {
        assert_eq!(malformed(&with_span(members)), what, "{members}");
    }
}

#[test]
fn ids_of_a_wrong_length_or_alphabet_are_refused() {
    let with_id = |id: &str| with_span("").replace("5B8EFFF798038103D269B633813FC60C", id);
    for (id, found) in [
        ("0x5B8EFFF798038103D269B633813FC60C", 34),
        ("B8EFFF798038103D269B633813FC60C", 31),
        ("W47/95gDgQPSabYzgT/GDA==", 24),
        ("éé", 2),
        (&"a".repeat(500), 500),
        (&"\\n".repeat(500), 1_000),
    ] {
        assert_eq!(malformed(&with_id(id)), Malformed::IdLength { bytes: 16, found }, "{id}");
    }
    for wrong in [r"/", ":", "@", "G", "`", "g", "é"] {
        let id = format!("{wrong:0>0$}", 32 + 1 - wrong.len());
        assert_eq!(malformed(&with_id(&id)), Malformed::Hex, "{id}");
    }
    let span_id = with_span("").replace("EEE19B7EC3C1B174", "EEE19B7EC3C1B1");
    assert_eq!(malformed(&span_id), Malformed::IdLength { bytes: 8, found: 14 });
}

#[test]
fn what_is_no_json_is_refused() {
    let expected = |what| Malformed::Expected(what);
    for (json, what) in [
        ("", Malformed::Truncated),
        (" ", Malformed::Truncated),
        ("[]", expected("an object")),
        ("5", expected("an object")),
        ("\u{feff}{}", expected("an object")),
        ("{", Malformed::Truncated),
        ("{} x", Malformed::Trailing),
        ("{}{}", Malformed::Trailing),
        ("{}\0", Malformed::Trailing),
        ("null null", Malformed::Trailing),
        ("{,}", expected("a name in quotes")),
        (r#"{"a":1,}"#, expected("a name in quotes")),
        (r#"{"a"}"#, expected("a colon")),
        (r#"{"a":}"#, expected("a value")),
        (r#"{"a":1 "b":2}"#, expected("a comma or }")),
        (r#"{a:1}"#, expected("a name in quotes")),
        (r#"{'a':1}"#, expected("a name in quotes")),
        (r#"{"a":[1,]}"#, expected("a value")),
        (r#"{"a":[1 2]}"#, expected("a comma or ]")),
        (r#"{"a":[1}}"#, expected("a comma or ]")),
        (r#"{"a":{"b":1]}"#, expected("a comma or }")),
        (r#"{"a":NaN}"#, expected("a value")),
        (r#"{"a":tru}"#, expected("a value")),
        (r#"{"a":+1}"#, expected("a value")),
        (r#"{"a":01}"#, Malformed::Number),
        (r#"{"a":-}"#, Malformed::Number),
        (r#"{"a":1.}"#, Malformed::Number),
        (r#"{"a":1e}"#, Malformed::Number),
        (r#"{"a":"\x"}"#, Malformed::Escape),
        (r#"{"a":"\u12G4"}"#, Malformed::Escape),
        (r#"{"a":"\u12"#, Malformed::Truncated),
        ("{\"a\":\"\n\"}", Malformed::Control),
        (r#"{"a":"b"#, Malformed::Truncated),
        (r#"{"resourceSpans":[{},]}"#, expected("an object")),
        (r#"{"resourceSpans":[{}"#, Malformed::Truncated),
        (r#"{"resourceSpans":[{} {}]}"#, expected("a comma or ]")),
        (r#"{"resourceSpans":[{"schemaUrl":"a",}]}"#, expected("a name in quotes")),
    ] {
        assert_eq!(malformed(json), what, "{json}");
    }
    let not_utf8 = to_protobuf(Signal::Traces, b"{\"a\":\"\n\xff\"}", MOST).unwrap_err();
    assert_eq!((not_utf8.kind, not_utf8.line, not_utf8.column), (JsonErrorKind::Malformed(Malformed::Utf8), 2, 1));
}

#[test]
fn a_document_that_ends_anywhere_is_refused() {
    let json = with_span(
        r#","attributes":[{"key":"a\n","value":{"bytesValue":"YQ=="}}],"kind":"SPAN_KIND_SERVER","zzz":{"a":[null,true]}"#,
    );
    traces(&json).unwrap();
    for len in 0..json.len() {
        traces(&json[..len]).expect_err(&json[..len]);
    }
}

#[test]
fn errors_tell_line_column_and_path() {
    let json = "{\"resourceSpans\": [{}, {\n  \"scopeSpans\": [{\"spans\": [{}, {}, {\"name\": \"é\", \"traceId\": \"abc\"}]}]\n}]}";
    let error = refusal(json);
    assert_eq!(
        error.to_string(),
        "malformed JSON: the ID has 3 characters instead of 32 at line 2, column 62, in \
         resourceSpans[1].scopeSpans[0].spans[2].traceId"
    );
    assert_eq!(refusal("[").to_string(), "malformed JSON: expected an object at line 1, column 1");
    let list = r#"{"resourceSpans":[{"resource":{"entityRefs":[{"idKeys":["a",5]}]}}]}"#;
    assert_eq!(refusal(list).path, "resourceSpans[0].resource.entityRefs[0].idKeys[1]");
    assert_eq!(refusal(r#"{"resourceSpans":[{"schemaUrl":"a","b":}]}"#).path, "resourceSpans[0]");
    let deep = with_span(&format!(r#","attributes":[{{"value":{}5"#, r#"{"arrayValue":{"values":[null,"#.repeat(100)));
    let path = refusal(&deep).path;
    assert!(path.starts_with("resourceSpans[0].scopeSpans[0].spans[0].attributes[0]"), "{path}");
    assert!(path.contains("....") && path.ends_with("arrayValue.values[1]") && path.len() < 200, "{path}");
}

#[test]
fn nesting_has_a_limit() {
    let limit = Malformed::Depth(super::super::lexer::MAX_DEPTH);
    for begin in [r#"{"arrayValue":{"values":["#, r#"{"kvlistValue":{"values":[{"value":"#] {
        assert_eq!(malformed(&with_span(&format!(r#","attributes":[{{"value":{}"#, begin.repeat(20_000)))), limit);
    }
    for begin in ["[", r#"{"a":"#] {
        assert_eq!(malformed(&with_span(&format!(r#","zzz":{}"#, begin.repeat(20_000)))), limit);
        assert_eq!(malformed(&format!(r#"{{"zzz":{}"#, begin.repeat(9_000))), Malformed::Truncated);
    }
}

#[test]
fn a_message_may_be_as_long_as_the_limit_and_no_longer() {
    for json in [
        with_span(r#","attributes":[{"key":"a","value":{"stringValue":"b\n"}}]"#),
        with_span(&format!(r#","name":"{}""#, "n".repeat(5_000))),
        format!(r#"{{"resourceSpans":[{}{{}}]}}"#, "{},".repeat(5_000)),
    ] {
        let whole = to_protobuf(Signal::Traces, json.as_bytes(), MOST).unwrap();
        assert_eq!(to_protobuf(Signal::Traces, json.as_bytes(), whole.len()), Ok(whole.clone()));
        for most in [whole.len() - 1, whole.len() / 2, 1, 0] {
            let error = to_protobuf(Signal::Traces, json.as_bytes(), most).unwrap_err();
            assert_eq!(error.kind, JsonErrorKind::TooLarge(most));
        }
    }
}

#[test]
fn memory_is_taken_from_the_budget_before_it_is_used() {
    let json = format!(r#"{{"resourceSpans":[{}{{}}]}}"#, "{},".repeat(50_000));
    let budget = Budget::new(1 << 20);
    let mut permit = budget.permit();
    assert!(permit.grow(json.len()));
    let (message, held) = to_framed(Signal::Traces, json.as_bytes(), MOST, &mut permit).unwrap();
    assert_eq!(message.payload_len(), 2 * 50_001);
    assert_eq!(permit.bytes(), json.len() + held);
    assert!(held >= message.framed_len() && message.framed_len() == message.payload_len() + PREFIX_LEN);
    drop((permit, message));
    let mut permit = budget.permit();
    assert!(permit.grow((1 << 20) - 100_000));
    let error = to_framed(Signal::Traces, json.as_bytes(), MOST, &mut permit).unwrap_err();
    assert!(matches!(error.kind, JsonErrorKind::NoRoom(_)), "{error}");
}
