//! Tests of the parsing of request headers.

use std::time::Duration;

use super::*;

#[test]
fn grpc_timeouts_are_parsed() {
    assert_eq!(parse_timeout(b"1H"), Some(Duration::from_secs(3600)));
    assert_eq!(parse_timeout(b"2M"), Some(Duration::from_secs(120)));
    assert_eq!(parse_timeout(b"10S"), Some(Duration::from_secs(10)));
    assert_eq!(parse_timeout(b"99999999m"), Some(Duration::from_millis(99_999_999)));
    assert_eq!(parse_timeout(b"5u"), Some(Duration::from_micros(5)));
    assert_eq!(parse_timeout(b"00000000n"), Some(Duration::ZERO));
    for broken in [&b""[..], b"S", b"123456789m", b"-1S", b"1", b"1s", b"1.5S", b" 1S"] {
        assert_eq!(parse_timeout(broken), None, "{broken:?}");
    }
}

#[test]
fn only_content_types_of_grpc_with_protobuf_are_accepted() {
    for yes in ["application/grpc", "application/grpc+proto", "application/grpc;charset=utf-8", "Application/gRPC"] {
        assert!(is_grpc(&HeaderValue::from_static(yes)), "{yes}");
    }
    for no in ["application/grpc+json", "application/grpc-web", "application/grpcx", "application/json", ""] {
        assert!(!is_grpc(&HeaderValue::from_static(no)), "{no}");
    }
}
