//! Converts files as operators write them; checks what becomes of each key and that the result is valid.

use std::time::Duration;

use super::*;
use crate::{
    config::Draft,
    discovery,
    otlp::Signal,
    settings::{Algorithm, Compression, DnsResolver, SendingQueue},
};

/// A typical front tier that uses most keys of the exporter.
const TRACES: &str = r#"receivers:
  otlp:
    protocols:
      grpc:
        endpoint: ${env:MY_POD_IP}:4317
        max_recv_msg_size_mib: 16
        keepalive: { server_parameters: { max_connection_age: 60s, max_connection_idle: 90s, time: 30s } }
      http: { endpoint: 0.0.0.0:4318, cors: { allowed_origins: ["https://a.test"] }, write_timeout: 30s }
  zipkin: {}
processors:
  memory_limiter: { check_interval: 1s, limit_percentage: 80, spike_limit_percentage: 20 }
  batch: {}
exporters:
  debug: {}
  loadbalancing:
    routing_key: traceID
    timeout: 10s
    retry_on_failure: { enabled: true }
    protocol:
      otlp:
        endpoint: ignored:4317
        timeout: 1s
        compression: zstd
        keepalive: { time: 10s }
        sending_queue: { num_consumers: 20, queue_size: 5000 }
        retry_on_failure: { initial_interval: 100ms, max_interval: 30s, multiplier: 2, max_elapsed_time: 300s }
    resolver:
      dns: { hostname: collectors.observability.svc.cluster.local, port: "4317", interval: 10s, timeout: 2s }
extensions:
  health_check: { endpoint: "127.0.0.1:13133", path: /healthy, response_body: { healthy: ok } }
  pprof: {}
service:
  extensions: [health_check, pprof]
  telemetry:
    logs: { level: INFO, encoding: json }
    metrics:
      readers: [{ pull: { exporter: { prometheus: { host: 0.0.0.0, port: 8888 } } } }]
  pipelines:
    traces:
      receivers: [otlp]
      processors: [memory_limiter, batch]
      exporters: [loadbalancing]
    metrics:
      receivers: [otlp]
      exporters: [debug]
"#;

fn environment(name: &str) -> Option<String> {
    (name == "MY_POD_IP").then(|| "127.0.0.1".to_owned())
}

fn converted(text: &str) -> Converted {
    convert("collector.yaml", text).expect("converted")
}

/// Parses and checks the converted configuration, which must be valid.
fn checked(converted: &Converted) -> crate::config::Config {
    let draft = Draft::parse("spanring.yaml", &converted.yaml, &environment);
    let config = draft.and_then(|draft| draft.check());
    config.unwrap_or_else(|error| panic!("{error}\n{}", converted.yaml))
}

/// The hostnames of the first pool, whose resolver is static.
fn hostnames(config: &crate::config::Config) -> Vec<String> {
    let discovery::Config::Static(list) = &config.pools[0].discovery else { panic!("static") };
    list.hostnames.iter().map(ToString::to_string).collect()
}

fn notes(converted: &Converted) -> Vec<String> {
    converted.notes.iter().map(ToString::to_string).collect()
}

/// Converts a file with one exporter, whose settings are `exporter`.
fn with_exporter(exporter: &str, pipelines: &str) -> Converted {
    converted(&format!("exporters:\n  load_balancing: {exporter}\nservice: {{ pipelines: {pipelines} }}\n"))
}

const TO_IT: &str = "{ traces: { receivers: [otlp], exporters: [load_balancing] } }";

#[test]
fn a_front_tier_becomes_a_valid_configuration() {
    let converted = converted(TRACES);
    assert_eq!((converted.pools, converted.routes), (1, 1));
    let config = checked(&converted);
    let grpc = config.receive.grpc.expect("gRPC");
    assert_eq!(grpc.endpoint, "127.0.0.1:4317".parse().expect("ok"));
    let ages = &grpc.keys.keepalive.server_parameters;
    let seconds = (ages.max_connection_age, ages.max_connection_idle);
    assert_eq!(seconds, (Some(Duration::from_secs(60)), Some(Duration::from_secs(90))));
    assert_eq!(grpc.keys.max_recv_msg_size_mib.bytes, 16 << 20);
    let http = config.receive.http.expect("HTTP");
    assert_eq!(http.endpoint, "0.0.0.0:4318".parse().expect("ok"));
    assert!(http.cors.is_some() && http.keys.max_request_body_size.0 == 20 << 20);
    let pool = &config.pools[0];
    assert_eq!(pool.name, "default");
    let dns = DnsResolver {
        hostname: "collectors.observability.svc.cluster.local".into(),
        port: Some(4317),
        interval: Duration::from_secs(10),
        timeout: Duration::from_secs(2),
        ..DnsResolver::default()
    };
    assert_eq!(pool.discovery, discovery::Config::Dns(dns));
    assert_eq!(pool.dispatch.keys.compression, Compression::Zstd);
    assert_eq!(pool.dispatch.keys.timeout, Duration::from_secs(1));
    assert!((pool.dispatch.keys.retry_on_failure.multiplier - 2.0).abs() < f64::EPSILON);
    assert_eq!(config.routes[0].signals, [Signal::Traces]);
    assert_eq!(config.admin.expect("admin").endpoint, "0.0.0.0:8888".parse().expect("ok"));
    let health_check = config.health_check.expect("probes");
    assert_eq!(
        (health_check.endpoint.to_string(), health_check.keys.path),
        ("127.0.0.1:13133".into(), "/healthy".into())
    );
    assert_eq!(config.logs.encoding, crate::telemetry::logs::Encoding::Json);
}

#[test]
fn the_result_says_how_to_place_as_the_exporter_does() {
    let converted = converted(TRACES);
    let config = checked(&converted);
    assert_eq!(config.pools[0].membership.ring.algorithm, Algorithm::SlotsV1, "by default, its ring is not used");
    let advice: Vec<&str> = converted.yaml.lines().filter_map(|line| line.strip_prefix("#   ring: ")).collect();
    for (line, algorithm) in advice.iter().zip([Algorithm::OtelcolV1, Algorithm::OtelcolV2, Algorithm::OtelcolV3]) {
        let pool = format!("  default:\n    ring: {line}\n");
        let with_ring = converted.yaml.replace("  default:\n", &pool);
        let config = checked(&Converted { yaml: with_ring, ..converted.clone() });
        assert_eq!(config.pools[0].membership.ring.algorithm, algorithm, "{line}");
    }
    assert_eq!(advice.len(), 3);
    let nothing = with_exporter("{ routing_key: service, resolver: { dns: { hostname: a } } }", TO_IT);
    assert!(!nothing.yaml.contains("otelcol_v"), "{}", nothing.yaml);
}

#[test]
fn names_on_the_exporters_ring_are_kept() {
    let written = with_exporter("{ resolver: { static: { hostnames: [collector-0, \"10.0.0.1:4317\"] } } }", TO_IT);
    assert_eq!(hostnames(&checked(&written)), ["collector-0", "10.0.0.1:4317"]);
}

#[test]
fn every_key_without_an_equivalent_is_reported_with_its_path_and_line() {
    let converted = converted(TRACES);
    let paths: Vec<&str> = converted.notes.iter().map(|note| note.path.as_str()).collect();
    let expected = [
        "receivers.otlp.protocols.grpc.keepalive.server_parameters.time",
        "receivers.otlp.protocols.http.write_timeout",
        "receivers.zipkin",
        "processors.memory_limiter.check_interval",
        "processors.memory_limiter.limit_percentage",
        "processors.memory_limiter.spike_limit_percentage",
        "processors.batch",
        "exporters.debug",
        "exporters.loadbalancing.timeout",
        "exporters.loadbalancing.retry_on_failure",
        "exporters.loadbalancing.protocol.otlp.timeout",
        "exporters.loadbalancing.protocol.otlp.keepalive",
        "exporters.loadbalancing.protocol.otlp.sending_queue.queue_size",
        "exporters.loadbalancing.protocol.otlp.sending_queue.num_consumers",
        "exporters.loadbalancing.protocol.otlp.retry_on_failure.max_interval",
        "exporters.loadbalancing.protocol.otlp.retry_on_failure.max_elapsed_time",
        "extensions.health_check.response_body",
        "extensions.pprof",
        "service.pipelines.metrics",
    ];
    let (mut found, mut wanted) = (paths.clone(), expected.to_vec());
    found.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(found, wanted);
    assert!(converted.notes.is_sorted_by_key(|note| (note.cost, note.line)));
    assert!(
        notes(&converted).contains(&"receivers.zipkin (line 9): is left out: Spanring receives OTLP".to_owned()),
        "{:?}",
        notes(&converted)
    );
    for note in notes(&converted) {
        assert!(converted.yaml.contains(&format!("#   {note}\n")), "{note} in\n{}", converted.yaml);
    }
}

#[test]
fn what_a_receiver_decides_by_headers_is_among_the_first_findings() {
    let text = "receivers:
  otlp:
    protocols:
      grpc: { auth: { authenticator: basicauth/server }, include_metadata: true }
      http: { auth: { authenticator: basicauth/server }, include_metadata: false }
exporters: { loadbalancing: { resolver: { k8s: { service: a.b } } } }
service: { pipelines: { traces: { receivers: [otlp], exporters: [loadbalancing] } } }";
    let found = converted(text).notes;
    let found: Vec<(Cost, &str)> = found.iter().map(|note| (note.cost, note.path.as_str())).collect();
    let expected = [
        (Cost::Access, "receivers.otlp.protocols.grpc.auth"),
        (Cost::Access, "receivers.otlp.protocols.http.auth"),
        (Cost::Data, "receivers.otlp.protocols.grpc.include_metadata"),
        (Cost::Setting, "exporters.loadbalancing.resolver.k8s"),
    ];
    assert_eq!(found, expected);
}

#[test]
fn a_timeout_that_may_eject_slow_backends_is_told() {
    for (timeout, is_told) in [("1s", true), ("4999ms", true), ("5s", false)] {
        let text =
            format!("{{ protocol: {{ otlp: {{ timeout: {timeout} }} }}, resolver: {{ dns: {{ hostname: a }} }} }}");
        let converted = with_exporter(&text, TO_IT);
        assert_eq!(converted.notes.iter().any(|note| note.message.contains("ejected")), is_told, "{timeout}");
    }
}

#[test]
fn defaults_of_the_exporter_are_written_explicitly() {
    let converted = with_exporter("{ resolver: { static: { hostnames: [a, \"b:4317\"] } } }", TO_IT);
    let config = checked(&converted);
    // Its own default is gzip, ours is none.
    assert_eq!(config.pools[0].dispatch.keys.compression, Compression::Gzip);
    assert_eq!(hostnames(&config), ["a", "b:4317"]);
    assert_eq!(converted.notes, []);
    let none = "{ protocol: { otlp: { compression: none } }, resolver: { dns: { hostname: a } } }";
    assert_eq!(checked(&with_exporter(none, TO_IT)).pools[0].dispatch.keys.compression, Compression::None);
}

#[test]
fn tls_settings_are_preserved() {
    let tls = |written: &str| {
        let exporter = format!("{{ protocol: {{ otlp: {{ {written} }} }}, resolver: {{ dns: {{ hostname: a }} }} }}");
        let converted = with_exporter(&exporter, TO_IT);
        let draft = Draft::parse("spanring.yaml", &converted.yaml, &environment).expect("read");
        (draft.settings.pools["default"].tls.0.clone(), notes(&converted).join("\n"))
    };
    assert_eq!(tls("tls: { insecure: true }").0, None);
    // The exporter uses TLS unless it is turned off.
    for unasked in ["timeout: 1s", "tls: {}", "tls: { insecure: false }"] {
        let section = tls(unasked).0.expect(unasked);
        assert!(!section.insecure && section.ca_file.is_none(), "{unasked}: {section:?}");
    }
    let empty = tls("tls: { ca_file: \"\", cert_file: , key_file: '' }").0.expect("TLS");
    assert!(!empty.insecure && empty.ca_file.is_none() && empty.cert_file.is_none(), "{empty:?}");
    let (section, told) = tls("tls: { ca_file: ca.crt, server_name_override: a.b, min_version: \"1.3\", ca_pem: x }");
    let section = section.expect("TLS");
    assert_eq!(
        (section.ca_file.as_ref().and_then(|path| path.0.to_str()), section.server_name_override.as_str()),
        (Some("ca.crt"), "a.b")
    );
    assert_eq!(
        told,
        "exporters.load_balancing.protocol.otlp.tls.ca_pem (line 2): is left out: Spanring has no equivalent"
    );
    let text = "receivers:\n  otlp: { protocols: { grpc: { tls: { cert_file: c, key_file: k, client_ca_file: a } } } }\n\
                exporters:\n  loadbalancing: { resolver: { dns: { hostname: a } } }\n";
    let draft = Draft::parse("spanring.yaml", &converted(text).yaml, &environment).expect("read");
    let section = draft.settings.receivers.otlp.protocols.grpc.tls.0.expect("TLS");
    assert_eq!(section.client_ca_file.as_ref().and_then(|path| path.0.to_str()), Some("a"));
}

#[test]
fn each_exporter_becomes_a_pool() {
    let text = "exporters:
  loadbalancing/spans: { resolver: { dns: { hostname: a } } }
  load_balancing/spans: { resolver: { dns: { hostname: b } } }
  loadbalancing/third: { resolver: { dns: { hostname: c } } }
  loadbalancing/idle: { resolver: { dns: { hostname: d } } }
service:
  pipelines:
    traces/in: { receivers: [otlp], exporters: [loadbalancing/spans] }
    traces/more: { receivers: [otlp], exporters: [loadbalancing/third] }
    logs: { receivers: [otlp], exporters: [load_balancing/spans] }
";
    let converted = converted(text);
    let config = checked(&converted);
    let routes: Vec<_> = config.routes.iter().map(|route| (route.signals[0], route.pool.as_str())).collect();
    assert_eq!(routes, [(Signal::Traces, "spans"), (Signal::Logs, "load_balancing_spans")]);
    let notes = notes(&converted).join("\n");
    assert!(notes.contains("exporters.loadbalancing/third (line 4): traces go to one pool only"), "{notes}");
    assert!(notes.contains("exporters.loadbalancing/idle (line 5): is in no pipeline"), "{notes}");
    assert!(notes.contains("exporters.load_balancing/spans (line 3): logs go by trace ID"), "{notes}");
}

#[test]
fn unsupported_routing_keys_are_reported() {
    for (key, signal) in [
        ("routing_key: service, ", "traces"),
        ("routing_key: attributes, routing_attributes: [a], ", "traces"),
        ("routing_key: resource, ", "metrics"),
        ("routing_key: metric, ", "metrics"),
        ("routing_key: streamID, ", "metrics"),
        ("", "metrics"),
    ] {
        let exporter = format!("{{ {key}resolver: {{ dns: {{ hostname: a }} }} }}");
        let converted = with_exporter(&exporter, &TO_IT.replace("traces", signal));
        assert_eq!((converted.pools, converted.routes), (0, 0), "{key}");
        let notes = notes(&converted).join("\n");
        assert!(notes.contains("cannot be routed yet, only by trace ID; left out"), "{notes}");
    }
}

#[test]
fn a_service_becomes_its_dns_name() {
    let dns = |resolver: &str| {
        let converted = with_exporter(&format!("{{ resolver: {{ {resolver} }} }}"), TO_IT);
        let config = checked(&converted);
        let discovery::Config::Dns(dns) = &config.pools[0].discovery else { panic!("dns") };
        (dns.hostname.clone(), dns.port, notes(&converted).join("\n"))
    };
    let (name, _, told) = dns("aws_cloud_map: { namespace: obs.local, service_name: tail, health_status: HEALTHY }");
    assert_eq!(name, "tail.obs.local");
    assert!(told.contains("aws_cloud_map.health_status (line 2): is left out"), "{told}");
}

#[cfg(feature = "kubernetes")]
#[test]
fn the_kubernetes_resolver_keeps_its_keys() {
    let resolver = "k8s: { service: lb.ns, ports: [15317, \"16317\"], timeout: 2s, return_hostnames: true }";
    let converted = with_exporter(&format!("{{ resolver: {{ {resolver} }} }}"), TO_IT);
    let discovery::Config::Kubernetes(keys) = &checked(&converted).pools[0].discovery else { panic!("k8s") };
    assert_eq!((keys.service.as_str(), keys.ports_in_effect()), ("lb.ns", &[15317, 16317][..]));
    assert_eq!((keys.timeout.as_secs(), *keys.return_hostnames), (2, Some(true)));
    assert_eq!(notes(&converted), [""; 0]);
}

#[test]
fn headers_are_copied_to_the_pool() {
    let headers = |written: &str| {
        let exporter =
            format!("{{ protocol: {{ otlp: {{ headers: {written} }} }}, resolver: {{ dns: {{ hostname: a }} }} }}");
        let converted = with_exporter(&exporter, TO_IT);
        let mut sent = checked(&converted).pools[0].headers.clone();
        sent.sort_by_key(|(name, _)| name.to_string());
        let sent: Vec<String> =
            sent.iter().map(|(name, value)| format!("{name}={}", value.to_str().expect("text"))).collect();
        assert!(!notes(&converted).join("").contains("hunter2"), "{converted:?}");
        (sent, notes(&converted).join("\n"))
    };
    let (sent, told) = headers("{ X-Scope-OrgID: tenant, x-token: hunter2, x-number: 7 }");
    assert_eq!(sent, ["x-number=7", "x-scope-orgid=tenant", "x-token=hunter2"]);
    assert_eq!(told, "");
    // Newer Collectors also accept a list.
    assert_eq!(headers("[{ name: x-token, value: hunter2 }]").0, ["x-token=hunter2"]);
    assert_eq!(headers("{ authorization: \"Bearer ${env:MY_POD_IP}\" }").0, ["authorization=Bearer 127.0.0.1"]);
    // Headers that `validate` would refuse.
    let (sent, told) =
        headers("{ te: hunter2, x-a: \"hunter2\\n\", x-b: [hunter2], X-C: one, x-c: hunter2, \"x d\": hunter2 }");
    assert_eq!(sent, ["x-c=one"]);
    assert!(told.contains("otlp.headers (line 2): 5 of 6 headers are left out"), "{told}");
}

#[test]
fn the_timeout_is_lowered_to_the_deadline() {
    let timeout = |written: &str| {
        let exporter =
            format!("{{ protocol: {{ otlp: {{ timeout: {written} }} }}, resolver: {{ dns: {{ hostname: a }} }} }}");
        let converted = with_exporter(&exporter, TO_IT);
        (checked(&converted).pools[0].dispatch.keys.timeout.as_secs(), notes(&converted).join("\n"))
    };
    assert_eq!(timeout("6s"), (6, String::new()));
    for long in ["30s", "0s"] {
        let (seconds, told) = timeout(long);
        assert_eq!(seconds, 8, "the deadline");
        let expected =
            "exporters.load_balancing.protocol.otlp.timeout (line 2): becomes 8s, since an attempt cannot outlast";
        assert!(told.starts_with(expected), "{told}");
    }
}

#[test]
fn duplicate_backends_are_removed() {
    let converted = with_exporter(
        "{ resolver: { static: { hostnames: [a, \"a:4317\", b, \"[10.0.0.1]:4317\", 10.0.0.1] } } }",
        TO_IT,
    );
    assert_eq!(hostnames(&checked(&converted)), ["a", "b", "[10.0.0.1]:4317"]);
    let told = notes(&converted).join("\n");
    assert!(told.contains("static.hostnames (line 2): names a backend twice"), "{told}");
}

#[test]
fn findings_are_sorted_by_cost() {
    let exporter = "{ resolver: { aws_cloud_map: { service_name: a, namespace: b } }, protocol: { otlp: { keepalive: { time: 1s } } } }";
    let pipelines =
        "{ traces: { receivers: [otlp, zipkin], processors: [filter], exporters: [load_balancing, debug] } }";
    let converted = converted(&format!(
        "receivers: {{ zipkin: {{}}, otlp: {{}} }}\nprocessors: {{ filter: {{}} }}\n\
         exporters:\n  debug: {{}}\n  load_balancing: {exporter}\nservice: {{ pipelines: {pipelines} }}\n"
    ));
    checked(&converted);
    let found: Vec<(Cost, &str)> = converted.notes.iter().map(|note| (note.cost, note.path.as_str())).collect();
    assert_eq!(
        found,
        [
            (Cost::Routing, "exporters.load_balancing.resolver.aws_cloud_map"),
            (Cost::Data, "receivers.zipkin"),
            (Cost::Data, "processors.filter"),
            (Cost::Data, "exporters.debug"),
            (Cost::Setting, "exporters.load_balancing.protocol.otlp.keepalive"),
        ]
    );
    let report = converted.report();
    assert_eq!(report[0], "Data is routed differently:");
    assert_eq!(report[2], "Data is dropped, or not treated as before:");
    assert_eq!(report[6], "Settings that are left out or mean something else:");
}

#[test]
fn values_that_validate_would_refuse_are_left_out_and_reported() {
    let text = "receivers:\n  otlp: { protocols: { grpc: { endpoint: localhost, max_recv_msg_size_mib: 0 } } }\n\
                exporters:\n  loadbalancing:\n    resolver: { static: { hostnames: [a, \"b c\", 0.0.0.0] } }\n    \
                protocol: { otlp: { timeout: soon, compression_params: { level: 99 }, tls: { insecure: true } } }\n";
    let converted = converted(text);
    let config = checked(&converted);
    assert_eq!(config.receive.grpc.expect("gRPC").endpoint, "127.0.0.1:4317".parse().expect("ok"));
    let told = notes(&converted).join("\n");
    for key in [
        "hostnames[1] (line 5): is left",
        "hostnames[2] (line 5): is left out, since Spanring would refuse it: 0.0.0.0",
        "endpoint (line 2): is left",
        "max_recv_msg_size_mib (line 2): is left",
        "timeout (line 6): is left",
        "level (line 6): is left",
    ] {
        assert!(told.contains(key), "{key}: {told}");
    }
}

#[test]
fn tls_never_becomes_plaintext() {
    let text = "receivers:\n  otlp: { protocols: { grpc: { tls: { cert_pem: x, key_pem: y } } } }\n\
                exporters:\n  loadbalancing: { resolver: { dns: { hostname: a } } }\n";
    let error = convert("collector.yaml", text).expect_err("no certificate").to_string();
    assert!(
        error.starts_with("collector.yaml:2:32: receivers.otlp.protocols.grpc.tls: cert_file is missing"),
        "{error}"
    );
}

#[test]
fn a_queue_in_bytes_is_copied() {
    let queue = |queue: &str| {
        let exporter = format!(
            "{{ protocol: {{ otlp: {{ sending_queue: {{ {queue} }} }} }}, resolver: {{ dns: {{ hostname: a }} }} }}"
        );
        checked(&with_exporter(&exporter, TO_IT)).pools[0].dispatch.keys.sending_queue.queue_size.0
    };
    assert_eq!(queue("sizer: bytes, queue_size: 33554432"), 32 << 20);
    assert_eq!(queue("sizer: items, queue_size: 33554432"), SendingQueue::default().queue_size.0);
}

#[test]
fn addresses_without_a_host_become_all_interfaces() {
    let text = "receivers:\n  otlp: { protocols: { grpc: { endpoint: \":14317\" } } }\n\
                exporters:\n  loadbalancing: { resolver: { dns: { hostname: a } } }\n";
    let config = checked(&converted(text));
    assert_eq!(config.receive.grpc.expect("gRPC").endpoint, "0.0.0.0:14317".parse().expect("ok"));
}

#[test]
fn the_error_for_an_invalid_file_says_why() {
    let error = convert("collector.yaml", "a: [").expect_err("no YAML").to_string();
    assert!(error.starts_with("collector.yaml:1:"), "{error}");
    assert_eq!(converted("receivers: { otlp: {} }\n").routes, 0);
    for odd in
        ["[]", "exporters: 3\n", "exporters:\n  loadbalancing:\n", "service: []\nexporters: { loadbalancing: [1] }\n"]
    {
        let _ = converted(odd);
    }
}
