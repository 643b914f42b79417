//! Tests of `pools.NAME.protocol`.

use super::{super::*, STATIC, complaint, config};

#[test]
fn backends_without_a_port_have_that_of_the_pools_protocol() {
    let ports = |protocol: &str| {
        let of = |resolver: &str| {
            let text = format!("pools: {{ tail: {{ {protocol} resolver: {{ {resolver} }} }} }}");
            let text = format!("{text}\nroutes: [{{ signals: [traces], routing_key: trace_id, pool: tail }}]\n");
            config(&text).expect(resolver).pools.remove(0)
        };
        let discovery::Config::Static(list) = of("static: { hostnames: [a, \"b:1\", \"10.0.0.1\"] }").discovery else {
            panic!("static")
        };
        let identities: Vec<String> = list.hostnames.iter().map(Backend::identity).collect();
        let discovery::Config::Dns(dns) = of("dns: { hostname: a.test }").discovery else { panic!("dns") };
        (identities.join(" "), dns.port_in_effect())
    };
    assert_eq!(ports(""), ("a:4317 b:1 10.0.0.1:4317".to_owned(), 4317));
    assert_eq!(ports("protocol: { otlp: {} },"), ports(""));
    let http = ("a:4318 b:1 10.0.0.1:4318".to_owned(), 4318);
    assert_eq!(ports("protocol: { otlp_http: {} },"), http);
    assert_eq!(ports("protocol: { otlp_http: },"), http, "a section without keys");
}

#[test]
fn a_pool_has_one_protocol_whose_keys_are_checked() {
    let complaint = |protocol: &str| complaint("compression: none", &format!("protocol: {protocol}"));
    let both = complaint("{ otlp: {}, otlp_http: {} }");
    assert!(both.contains("pools.tail.protocol: has both otlp and otlp_http; a pool has one protocol"), "{both}");
    let path = complaint("{ otlp_http: { logs_url_path: logs } }");
    assert!(path.contains("protocol.otlp_http.logs_url_path: \"logs\" is not a path"), "{path}");
    let none = complaint("{ otlp_http: { max_conns_per_host: 0 } }");
    assert!(none.contains("protocol.otlp_http.max_conns_per_host"), "{none}");
    let key = complaint("{ otlp: { endpoint: a } }");
    assert!(key.contains("endpoint"), "{key}");
    let ring = complaint("{ otlp_http: {} }\n    ring: { algorithm: otelcol_v2 }");
    assert!(ring.contains("it sends OTLP/gRPC only"), "{ring}");
}

#[test]
fn keys_of_the_other_protocol_have_no_effect() {
    let pool =
        |keys: &str| config(&STATIC.replacen("compression: none", keys, 1)).expect(keys).pools.remove(0).dispatch;
    assert_eq!(pool("protocol: { otlp: {} }"), pool("compression: none"));
    assert_eq!(pool("protocol: { otlp_http: {} }\n    connections: 3"), pool("protocol: { otlp_http: {} }"));
    assert_ne!(pool("protocol: { otlp_http: {} }"), pool("compression: none"));
    assert_eq!(pool("protocol: { otlp_http: { max_conns_per_host: 5 } }").keys.max_connections(), 5);
}
