//! Odd documents of JSON, for the table of odd requests.

use super::{
    bodies::{gzip, zlib, zstd},
    odd::{EMPTY, TAKEN, TRACES, Table, effect, trace},
    wire::Request,
};

const JSON: &str = "application/json";

impl Table {
    /// Returns the ID of the next row's trace.
    fn hex(&self) -> String {
        trace(self.0.len()).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Returns a document with one span, which has these members beside its IDs.
    fn document(&self, members: &str) -> String {
        let trace = self.hex();
        format!(
            r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{{"traceId":"{trace}","spanId":"00000000000000b1"{members}}}]}}]}}]}}"#
        )
    }

    fn post_json(&self, body: impl Into<Vec<u8>>) -> Request {
        Request::post(TRACES, JSON, body)
    }

    pub(super) fn json(&mut self) {
        self.json_types();
        self.json_values();
        self.json_documents();
    }

    fn json_types(&mut self) {
        let request = |table: &Self, content_type| Request::post(TRACES, content_type, table.document(""));
        self.row("JSON", &request(self, JSON), TAKEN);
        for (name, content_type) in [
            ("JSON with a charset", "application/json; charset=utf-8"),
            ("JSON in capitals", "APPLICATION/JSON"),
            ("JSON with an empty parameter", "application/json;"),
        ] {
            self.row(name, &request(self, content_type), TAKEN);
        }
        self.row("JSON by another name", &request(self, "text/json"), effect(415));
        self.row("JSON of a kind", &request(self, "application/vnd.api+json"), effect(415));
        self.row("protobuf that says it is JSON", &self.post_json(self.body()), effect(400));
        self.collector(effect(500));
        let encoded = |table: &Self, encoding: &str, encode: fn(&[u8]) -> Vec<u8>| {
            table.post_json(encode(table.document("").as_bytes())).with("content-encoding", encoding)
        };
        self.row("JSON in gzip", &encoded(self, "gzip", gzip), TAKEN);
        self.row("JSON in zstd", &encoded(self, "zstd", zstd), TAKEN);
        self.row("JSON in zlib", &encoded(self, "deflate", zlib), TAKEN);
        let document = self.document("");
        let chunks: String = document.split_inclusive(':').map(|it| format!("{:x}\r\n{it}\r\n", it.len())).collect();
        let request = self.post_json(chunks + "0\r\n\r\n").without_length().with("transfer-encoding", "chunked");
        self.row("JSON in chunks", &request, TAKEN);
    }

    fn json_values(&mut self) {
        for (name, members, expected, collector) in [
            ("an enumeration by its number", r#","kind":2"#, TAKEN, None),
            ("an enumeration by its name", r#","kind":"SPAN_KIND_SERVER""#, TAKEN, None),
            ("an enumeration's number as text", r#","kind":"2""#, TAKEN, Some(effect(400))),
            ("an unknown number of an enumeration", r#","kind":99"#, TAKEN, None),
            ("an unknown name of an enumeration", r#","kind":"SERVER""#, effect(400), None),
            ("a time as text", r#","startTimeUnixNano":"1700000000000000000""#, TAKEN, None),
            ("a time as a number", r#","startTimeUnixNano":1700000000000000000"#, TAKEN, None),
            ("a time with an exponent", r#","startTimeUnixNano":1.7e18"#, TAKEN, Some(effect(400))),
            ("a count as text", r#","droppedEventsCount":"3""#, TAKEN, None),
            ("a count with a fraction of zero", r#","droppedEventsCount":3.0"#, TAKEN, Some(effect(400))),
            ("a count with a fraction", r#","droppedEventsCount":3.5"#, effect(400), None),
            ("a negative count", r#","droppedEventsCount":-1"#, effect(400), Some(effect(500))),
            ("a count that is too large", r#","droppedEventsCount":4294967296"#, effect(400), None),
            ("a list that is null", r#","attributes":null"#, TAKEN, None),
            ("an ID that is null", r#","parentSpanId":null"#, TAKEN, Some(effect(400))),
            ("an empty ID", r#","parentSpanId":"""#, TAKEN, None),
            ("an enumeration that is null", r#","kind":null"#, TAKEN, Some(effect(400))),
            ("a time that is null", r#","endTimeUnixNano":null"#, TAKEN, Some(effect(400))),
            ("an unknown field", r#","new":{"a":[1,{"b":null}]}"#, TAKEN, None),
            ("a field in snake_case", r#","start_time_unix_nano":"x""#, TAKEN, Some(effect(400))),
            ("text instead of a list", r#","attributes":"a""#, effect(400), None),
            ("a number instead of text", r#","name":7"#, effect(400), None),
            ("an escaped name and text", r#","n\u0061me":"\ud83d\ude00\n""#, TAKEN, None),
            ("half of a surrogate pair", r#","name":"\ud800""#, TAKEN, None),
            ("a name twice", r#","name":"a","name":"b""#, TAKEN, None),
            ("a line end in text", ",\"name\":\"a\nb\"", effect(400), None),
            ("an unknown escape", r#","name":"\x41""#, effect(400), None),
            ("an ID in base64", r#","parentSpanId":"AAAAAAAAALE=""#, effect(400), None),
            ("an ID that is too short", r#","parentSpanId":"0000b1""#, effect(400), None),
            ("an ID that is not hexadecimal", r#","parentSpanId":"00000000000000zz""#, effect(400), None),
        ] {
            self.row(name, &self.post_json(self.document(members)), expected);
            collector.into_iter().for_each(|effect| self.collector(effect));
        }
        for (name, value, expected, collector) in [
            ("no value", "", TAKEN, None),
            ("a list of values without values", r#""arrayValue":{}"#, TAKEN, None),
            ("an integer as text", r#""intValue":"-5""#, TAKEN, None),
            ("an integer as a number", r#""intValue":5"#, TAKEN, None),
            ("an integer with a fraction of zero", r#""intValue":5.0"#, TAKEN, Some(effect(400))),
            ("an integer beyond 64 bits", r#""intValue":9223372036854775808"#, effect(400), None),
            ("no number", r#""doubleValue":"NaN""#, TAKEN, None),
            ("an infinity", r#""doubleValue":"-Infinity""#, TAKEN, None),
            ("a floating-point number as text", r#""doubleValue":"1.5""#, TAKEN, None),
            ("a bare word for no number", r#""doubleValue":NaN"#, effect(400), None),
            ("a truth as text", r#""boolValue":"true""#, effect(400), None),
            ("base64", r#""bytesValue":"+/8=""#, TAKEN, None),
            ("base64 without padding", r#""bytesValue":"+/8""#, TAKEN, Some(effect(400))),
            ("base64 for URLs", r#""bytesValue":"-_8=""#, TAKEN, Some(effect(400))),
            ("what is not base64", r#""bytesValue":"+/8=8""#, effect(400), None),
            ("a value of a kind that is not known", r#""newValue":1"#, TAKEN, None),
        ] {
            let members = format!(r#","attributes":[{{"key":"a","value":{{{value}}}}}]"#);
            self.row(name, &self.post_json(self.document(&members)), expected);
            collector.into_iter().for_each(|effect| self.collector(effect));
        }
    }

    fn json_documents(&mut self) {
        let whole = self.document("");
        let torn = whole[..whole.len() - 3].to_owned();
        let bytes = |text: &str| text.as_bytes().to_vec();
        for (name, body, expected, collector) in [
            ("a document without content", bytes("{}"), EMPTY, None),
            ("null", bytes("null"), EMPTY, None),
            ("no document", bytes(""), effect(400), None),
            ("spaces only", bytes(" \n"), effect(400), None),
            ("a list", bytes("[]"), effect(400), None),
            ("a number", bytes("5"), effect(400), None),
            ("half of a document", bytes(&torn), effect(400), None),
            ("a comma at the end of an object", bytes("{\"resourceSpans\":[],}"), effect(400), None),
            ("a comma at the end of a list", bytes("{\"resourceSpans\":[{},]}"), effect(400), None),
            ("a byte order mark", bytes("\u{feff}{}"), effect(400), Some(effect(500))),
            ("single quotes", bytes("{'resourceSpans':[]}"), effect(400), None),
            ("a comment", bytes("{/* */}"), effect(400), None),
            ("text behind the document", bytes("{} x"), effect(400), Some(EMPTY)),
            ("two documents", bytes("{}{}"), effect(400), Some(EMPTY)),
            ("a document in UTF-16", b"{\0}\0".to_vec(), effect(400), None),
            ("what is not UTF-8", b"{\"a\":\"\xff\"}".to_vec(), effect(400), Some(EMPTY)),
            ("spans of another signal", bytes("{\"resourceLogs\":[{}]}"), EMPTY, None),
            (
                "lists within lists without end",
                bytes("{\"a\":").into_iter().chain([b'['; 50_000]).collect(),
                effect(400),
                None,
            ),
        ] {
            self.row(name, &self.post_json(body), expected);
            collector.into_iter().for_each(|effect: super::odd::Effect| self.collector(effect));
        }
        // The specification has no such names; Collectors read them.
        let snake = self.document("").replace("traceId", "trace_id");
        self.row("a trace ID in snake_case", &self.post_json(snake), EMPTY);
        self.collector(TAKEN);
        let spaced: Vec<u8> = [vec![b' '; 21 << 20], bytes("{}")].concat();
        self.row("a document of 21 MiB", &self.post_json(spaced.clone()), effect(413));
        self.collector(effect(400));
        self.row(
            "gzip of 21 MiB of JSON",
            &self.post_json(gzip(&spaced)).with("content-encoding", "gzip"),
            effect(413),
        );
        self.collector(effect(400));
    }
}
