//! Tests of the parts of the HTTP door: headers, answers, and what browsers are told.

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER, VARY, X_CONTENT_TYPE_OPTIONS},
};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message;

use super::{head::Format, *};
use crate::{codec::Encoding, settings};

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())).collect()
}

#[test]
fn formats_are_named_in_any_case_with_any_parameters() {
    let format =
        |value: &str| format_of(&[(CONTENT_TYPE, HeaderValue::from_str(value).unwrap())].into_iter().collect());
    for value in ["application/json", "Application/JSON; charset=utf-8", " application/json ;", "application/json;x"] {
        assert_eq!(format(value), Some(Format::Json), "{value}");
    }
    assert_eq!(format("application/x-protobuf"), Some(Format::Protobuf));
    for value in ["", ";", "application/x-protobuf2", "application/jso", "text/json", "application/json, text/plain"] {
        assert_eq!(format(value), None, "{value}");
    }
}

#[test]
fn paths_are_those_of_the_file() {
    let paths = Paths::of(&settings::Http { logs_url_path: "/logs".into(), ..settings::Http::default() });
    assert_eq!(paths.signal("/logs"), Some(Signal::Logs));
    assert_eq!(paths.signal("/v1/traces"), Some(Signal::Traces));
    assert_eq!(paths.signal("/v1/logs"), None);
    assert_eq!(paths.to_string(), "/v1/traces, /v1/metrics, /logs, /v1development/profiles");
}

/// Returns the status, the content type and the body of an answer.
fn parts(response: Response<Bytes>) -> (u16, String, Bytes) {
    let content_type = response.headers()[CONTENT_TYPE].to_str().unwrap().to_owned();
    (response.status().as_u16(), content_type, response.into_body())
}

#[test]
fn answers_have_the_format_of_the_request() {
    let (protobuf, json) = (Format::Protobuf, Format::Json);
    let answer = |outcome: Outcome, format| parts(answer::outcome(outcome, Signal::Logs, format));
    let decoded = |body: Bytes| ExportTraceServiceResponse::decode(body).unwrap().partial_success.unwrap();
    let whole = |text: &'static str| (200, "application/json".to_owned(), Bytes::from_static(text.as_bytes()));
    assert_eq!(answer(Outcome::OK, protobuf), (200, "application/x-protobuf".to_owned(), Bytes::new()));
    assert_eq!(answer(Outcome::OK, json), whole("{}"));
    let partly = || Outcome::Accepted { rejected: 7, message: Some("se\"ven".into()) };
    assert_eq!(
        answer(partly(), json),
        whole(r#"{"partialSuccess":{"errorMessage":"se\"ven","rejectedLogRecords":"7"}}"#)
    );
    let (status, _, body) = answer(partly(), protobuf);
    assert_eq!((status, decoded(body).rejected_spans), (200, 7));
    let warned = || Outcome::Accepted { rejected: 0, message: Some("slow".into()) };
    assert_eq!(answer(warned(), json), whole(r#"{"partialSuccess":{"errorMessage":"slow","rejectedLogRecords":"0"}}"#));
    let (status, _, body) = answer(warned(), protobuf);
    assert_eq!((status, decoded(body).error_message.as_str()), (200, "slow"));
    let refused = || Outcome::Refused(Refusal::permanent(Code::Internal, Reason::Framing, "x".repeat(300)));
    let (status, content_type, body) = answer(refused(), protobuf);
    let shown = tonic_types::Status::decode(body).unwrap();
    assert_eq!((status, content_type.as_str(), shown.code), (400, "application/x-protobuf", 3));
    assert_eq!(shown.message.len(), 256, "it is shortened");
    let (status, content_type, body) = answer(refused(), json);
    assert_eq!((status, content_type.as_str()), (400, "application/json"));
    assert!(body.starts_with(br#"{"code":3,"message":"xxx"#), "{body:?}");
}

#[test]
fn a_refusal_that_may_be_retried_says_when_in_whole_seconds() {
    let refusal = Refusal::retryable(Reason::Budget, "later");
    let delay = refusal.retry_after.unwrap();
    let response = answer::outcome(Outcome::Refused(refusal), Signal::Traces, Format::Protobuf);
    assert_eq!(response.status(), 503);
    let seconds: u64 = response.headers()[RETRY_AFTER].to_str().unwrap().parse().unwrap();
    assert!((1..=5).contains(&seconds) && std::time::Duration::from_secs(seconds) >= delay, "{seconds} for {delay:?}");
    let refusal = Refusal::permanent(Code::ResourceExhausted, Reason::TooLarge, "never");
    let response = answer::outcome(Outcome::Refused(refusal), Signal::Traces, Format::Protobuf);
    assert!(response.status() == 413 && !response.headers().contains_key(RETRY_AFTER));
}

fn cors(origins: &[&str], allowed_headers: &[&str]) -> Cors {
    let owned = |list: &[&str]| list.iter().map(|item| (*item).to_owned()).collect();
    let keys = settings::Cors {
        allowed_origins: owned(origins),
        allowed_headers: owned(allowed_headers),
        exposed_headers: owned(&["X-One"]),
        max_age: 600,
    };
    Cors::new(&keys).unwrap()
}

/// Returns the origin, the headers and the age that a preflight is told; `None` if nothing is allowed.
fn asked(cors: &Cors, pairs: &[(&'static str, &str)]) -> Option<[String; 3]> {
    let response = cors.preflight(&headers(pairs));
    assert_eq!(response.status(), 204);
    assert!(response.headers()[VARY].to_str().unwrap().starts_with("Origin, Access-Control-Request-Method"));
    let text = |name: &str| response.headers().get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
    let names = ["access-control-allow-origin", "access-control-allow-headers", "access-control-max-age"];
    let told = names.map(text);
    let is_allowed = text("access-control-allow-methods") == "POST";
    assert_eq!(is_allowed, !told[0].is_empty());
    is_allowed.then_some(told)
}

#[test]
fn browsers_are_told_what_pages_may_do() {
    let by_name = cors(&["https://a.test", "https://*.b.test"], &["x-token"]);
    let ask = |origin: &'static str, wanted: &'static str| {
        asked(
            &by_name,
            &[
                ("origin", origin),
                ("access-control-request-method", "POST"),
                ("access-control-request-headers", wanted),
            ],
        )
    };
    let told = |origin: &str, wanted: &str| Some([origin.to_owned(), wanted.to_owned(), "600".to_owned()]);
    assert_eq!(ask("https://a.test", "content-type"), told("https://a.test", "content-type"));
    assert_eq!(ask("HTTPS://A.TEST", "X-Token, Content-Encoding"), told("HTTPS://A.TEST", "X-Token, Content-Encoding"));
    assert_eq!(ask("https://x.b.test", ""), told("https://x.b.test", ""));
    for (origin, wanted) in [
        ("https://c.test", "content-type"),
        ("http://a.test", ""),
        ("https://a.test.evil.test", ""),
        ("https://b.test", ""),
        ("https://a.test", "x-other"),
        ("https://a.test", "content-type, x-other"),
    ] {
        assert_eq!(ask(origin, wanted), None, "{origin} with {wanted}");
    }
    assert_eq!(asked(&by_name, &[("origin", "https://a.test"), ("access-control-request-method", "DELETE")]), None);
    assert_eq!(asked(&by_name, &[("access-control-request-method", "POST")]), None, "no origin");
    let between = cors(&["http://ab*b.test"], &[]);
    let ask = |origin| asked(&between, &[("origin", origin), ("access-control-request-method", "POST")]);
    assert_eq!((ask("http://ab.test"), ask("http://abb.test")), (None, told("http://abb.test", "")));
    let any = cors(&["*"], &["*"]);
    let pairs = [
        ("origin", "https://c.test"),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "x-any"),
    ];
    assert_eq!(asked(&any, &pairs), told("*", "x-any"));
}

#[test]
fn pages_may_read_answers_if_they_may_send() {
    let answer = |cors: &Cors, origin: Option<&str>| {
        let mut answer = HeaderMap::new();
        cors.allow(origin.map(|origin| HeaderValue::from_str(origin).unwrap()).as_ref(), &mut answer);
        let text = |name: &str| answer.get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
        let names = [
            "access-control-allow-origin",
            "access-control-allow-credentials",
            "access-control-expose-headers",
            "vary",
        ];
        names.map(text)
    };
    let by_name = cors(&["https://a.test"], &[]);
    assert_eq!(answer(&by_name, Some("https://a.test")), ["https://a.test", "true", "x-one", "Origin"]);
    assert_eq!(answer(&by_name, Some("https://b.test")), ["", "", "", "Origin"]);
    assert_eq!(answer(&by_name, None), ["", "", "", "Origin"]);
    assert_eq!(answer(&cors(&["*"], &[]), Some("https://b.test")), ["*", "", "x-one", "Origin"]);
}

#[test]
fn origins_and_headers_that_cannot_be_are_refused() {
    let unusable = |origin: &str, header: &str| {
        let list = |item: &str| vec![item.to_owned()];
        let keys = settings::Cors {
            allowed_origins: list(origin),
            allowed_headers: list(header),
            ..settings::Cors::default()
        };
        Cors::new(&keys).err().map(|errors| errors.iter().map(|error| error.key).collect::<Vec<_>>())
    };
    for origin in ["https://a.test", "https://*.a.test", "*", "null", "http://localhost:3000", "app://x"] {
        assert_eq!(unusable(origin, "x-a"), None, "{origin}");
    }
    for origin in ["a.test", "https://a.test/", "", "https://*.*.test", "https://a.test/path"] {
        assert_eq!(unusable(origin, "x-a"), Some(vec!["allowed_origins"]), "{origin}");
    }
    assert_eq!(unusable("*", "a b"), Some(vec!["allowed_headers"]));
}

#[test]
fn only_one_known_encoding_is_taken() {
    let has = |values: &[&str]| {
        let values = values.iter().map(|value| (CONTENT_ENCODING, HeaderValue::from_str(value).unwrap()));
        head::encoding(&values.collect()).ok()
    };
    assert_eq!(has(&[]), Some(None));
    assert_eq!((has(&["identity"]), has(&[""]), has(&["Identity"])), (Some(None), Some(None), Some(None)));
    assert_eq!((has(&["GZIP"]), has(&["x-gzip"])), (Some(Some(Encoding::Gzip)), Some(Some(Encoding::Gzip))));
    assert_eq!((has(&["deflate"]), has(&["zlib"])), (Some(Some(Encoding::Deflate)), Some(Some(Encoding::Deflate))));
    for snappy in ["snappy", "x-snappy-framed"] {
        assert_eq!(has(&[snappy]), Some(Some(Encoding::Snappy)));
    }
    for unknown in [&["br"][..], &["gzip, zstd"], &["gzip", "gzip"], &["identity", "gzip"]] {
        assert_eq!(has(unknown), None, "{unknown:?}");
    }
}

fn accepted(values: &[&str]) -> (Option<Encoding>, bool) {
    let values = values.iter().map(|value| (ACCEPT_ENCODING, HeaderValue::from_str(value).unwrap()));
    let Accepted { encoding, is_needed } = Accepted::of(&values.collect());
    (encoding, is_needed)
}

#[test]
fn answers_have_the_encoding_that_the_client_likes_best() {
    let (gzip, zstd, deflate) = (Some(Encoding::Gzip), Some(Encoding::Zstd), Some(Encoding::Deflate));
    for (values, encoding, is_needed) in [
        (&[][..], None, false),
        (&[""], None, false),
        (&["identity"], None, false),
        (&["br"], None, false),
        (&["gzip"], gzip, false),
        (&["GZip ; q=1"], gzip, false),
        (&["deflate"], deflate, false),
        (&["gzip, deflate, br, zstd"], gzip, false),
        (&["zstd;q=0.9, gzip;q=0.8"], zstd, false),
        (&["gzip;q=0.001", "zstd"], zstd, false),
        (&["*"], gzip, false),
        (&["gzip;q=0, *"], zstd, false),
        (&["gzip;q=0"], None, false),
        (&["gzip;q=0.5, identity"], None, false),
        (&["gzip, identity;q=0.5"], gzip, false),
        (&["gzip, identity;q=0"], gzip, true),
        (&["identity;q=0"], None, true),
        (&["identity;q=0, *"], gzip, true),
        (&["*;q=0"], None, true),
        (&["zstd, *;q=0"], zstd, true),
        (&["identity, *;q=0"], None, false),
        (&["gzip;q=nan", "gzip;q=2", "gzip;q="], None, false),
    ] {
        assert_eq!(accepted(values), (encoding, is_needed), "{values:?}");
    }
}

#[test]
fn answers_are_compressed_if_that_is_of_use_or_needed() {
    let compressed = |accepted: &str, body: &str| {
        let accepted = Accepted::of(&headers(&[("accept-encoding", accepted)]));
        let answer = accepted.compress(Response::new(Bytes::copy_from_slice(body.as_bytes())));
        let name = answer.headers().get(CONTENT_ENCODING).map(|value| value.to_str().unwrap().to_owned());
        let (body, len) = (answer.into_body(), body.len());
        let encoding = name.as_deref().map(|name| Encoding::from_content_encoding(name.as_bytes()).unwrap());
        match encoding {
            Some(encoding) => (name, crate::codec::inflate_uncounted(encoding, &body, len).unwrap().payload().to_vec()),
            None => (None, body.to_vec()),
        }
    };
    let long = "a message of an error ".repeat(12);
    for name in ["gzip", "zstd", "deflate"] {
        assert_eq!(compressed(name, &long), (Some(name.to_owned()), long.clone().into_bytes()));
        for short in ["{}", &"short ".repeat(20)] {
            assert_eq!(compressed(name, short), (None, short.as_bytes().to_vec()), "it is short");
        }
        let needed = format!("{name}, identity;q=0");
        assert_eq!(compressed(&needed, "{}"), (Some(name.to_owned()), b"{}".to_vec()));
        assert_eq!(compressed(&needed, ""), (None, Vec::new()), "there is nothing to compress");
    }
    let random: String = std::iter::repeat_with(fastrand::alphanumeric).take(130).collect();
    assert_eq!(compressed("gzip", &random), (None, random.clone().into_bytes()), "it would be longer");
    assert_eq!(compressed("identity;q=0", &long), (None, long.into_bytes()), "there is no other");
}

#[test]
fn a_request_that_is_none_of_ours_is_answered_in_its_own_format() {
    let answer = |status, format| parts(answer::not_ours(status, "no", format));
    let (status, content_type, body) = answer(StatusCode::NOT_FOUND, Some(Format::Protobuf));
    let shown = tonic_types::Status::decode(body).unwrap();
    assert_eq!((status, content_type.as_str(), shown.code), (404, "application/x-protobuf", 12));
    assert_eq!(shown.message, "no");
    let (status, content_type, body) = answer(StatusCode::METHOD_NOT_ALLOWED, Some(Format::Json));
    assert_eq!(
        (status, content_type.as_str(), &body[..]),
        (405, "application/json", &br#"{"code":12,"message":"no"}"#[..])
    );
    let (status, content_type, body) = answer(StatusCode::UNSUPPORTED_MEDIA_TYPE, None);
    assert_eq!((status, content_type.as_str(), &body[..]), (415, "text/plain; charset=utf-8", &b"no\n"[..]));
    for format in [None, Some(Format::Json)] {
        let response = answer::not_ours(StatusCode::METHOD_NOT_ALLOWED, "no", format);
        assert_eq!(response.headers()["allow"], "POST");
        let is_text = response.headers().get(X_CONTENT_TYPE_OPTIONS).is_some_and(|value| value == "nosniff");
        assert_eq!(is_text, format.is_none(), "browsers must not guess what a text is");
    }
}
