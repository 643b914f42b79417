//! Configurations as in the exporter's documentation and as users write them. The conversion of each must pass
//! `validate`.

use super::{
    convert,
    unusable::{UNSAFE, UNUSABLE},
};
use crate::config::Draft;

/// A configuration, the expected number of routes, and words of the expected findings.
pub(super) type Row = (&'static str, usize, &'static [&'static str]);

/// Adapted from the exporter's documentation and its test files.
const DOCUMENTED: [Row; 15] = [
    // Two tiers in one process; the pipelines of the second tier have no load-balancing exporter.
    (
        "receivers:
  otlp/in: { protocols: { grpc: { endpoint: \"localhost:4317\" } } }
  otlp/one: { protocols: { grpc: { endpoint: \"localhost:15501\" } } }
exporters:
  debug:
  load_balancing:
    protocol: { otlp: { timeout: 1s, tls: { insecure: true } } }
    resolver: { static: { hostnames: [\"localhost:15501\", \"localhost:15502\"] } }
service:
  pipelines:
    traces/in: { receivers: [otlp/in], processors: [], exporters: [load_balancing] }
    traces/one: { receivers: [otlp/one], processors: [], exporters: [debug] }
    logs/in: { receivers: [otlp/in], processors: [], exporters: [load_balancing] }
    logs/one: { receivers: [otlp/one], processors: [], exporters: [debug] }",
        2,
        &["leads to no load-balancing exporter", "logs go by trace ID"],
    ),
    // Routing by service, which is not supported yet.
    (
        "receivers: { otlp: { protocols: { grpc: { endpoint: \"localhost:4317\" } } } }
processors:
exporters:
  debug:
  loadbalancing:
    routing_key: \"service\"
    protocol: { otlp: { timeout: 1s } }
    resolver: { static: { hostnames: [\"one:4317\", \"two:4317\"] } }
service:
  pipelines:
    traces: { receivers: [otlp], processors: [], exporters: [loadbalancing] }
    logs: { receivers: [otlp], processors: [], exporters: [loadbalancing] }",
        0,
        &["traces by \"service\" cannot be routed yet"],
    ),
    (
        "receivers: { otlp: { protocols: { grpc: } } }
exporters:
  load_balancing:
    protocol: { otlp: { timeout: 1s } }
    resolver: { k8s: { service: lb.public, ports: [15317, 16317] } }
service: { pipelines: { traces: { receivers: [otlp], exporters: [load_balancing] } } }",
        1,
        &[],
    ),
    (
        "receivers: { otlp: { protocols: { grpc: { endpoint: \"localhost:4317\" } } } }
exporters:
  load_balancing:
    protocol: { otlp: { timeout: 3s } }
    resolver: { aws_cloud_map: { namespace: mesh, service_name: tail, interval: 30s, timeout: 5s, port: 4317 } }
service: { pipelines: { traces: { receivers: [otlp], exporters: [load_balancing] } } }",
        1,
        &["only namespaces of a DNS kind"],
    ),
    // A queue on disk and retries in front of the backends.
    (
        "receivers: { otlp: { protocols: { grpc: , http: } } }
extensions: { file_storage/q: { directory: /var/lib/q, create_directory: true } }
exporters:
  load_balancing:
    timeout: 10s
    retry_on_failure: { enabled: true, initial_interval: 5s, max_interval: 30s, max_elapsed_time: 300s }
    sending_queue: { enabled: true, num_consumers: 2, queue_size: 1000, storage: file_storage/q }
    protocol: { otlp: { timeout: 1s } }
    resolver: { static: { hostnames: [one, two] } }
service:
  extensions: [file_storage/q]
  pipelines: { traces: { receivers: [otlp], exporters: [load_balancing] } }",
        1,
        &["acknowledged when its backends have it"],
    ),
    // From the exporter's test file: only required keys.
    ("exporters: { loadbalancing: { protocol: { otlp: { timeout: 1s } }, resolver: { static: { hostnames: [one, \"two:55678\"] } } } }", 1, &[]),
    ("exporters: { loadbalancing/2: { protocol: { otlp: }, resolver: { dns: { hostname: service-1 } } } }", 1, &[]),
    ("exporters: { loadbalancing/3: { protocol: { otlp: }, resolver: { dns: { hostname: service-1, port: 55690 } } } }", 1, &[]),
    (
        "exporters: { loadbalancing/4: { protocol: { otlp: }, resolver: { dns: { hostname: service-1, port: 55690 } }, routing_key: traceID } }",
        1,
        &[],
    ),
    (
        "exporters: { loadbalancing/5: { protocol: { otlp: }, resolver: { dns: { hostname: service-1 } }, routing_key: service } }",
        0,
        &["cannot be routed yet"],
    ),
    (
        "exporters: { loadbalancing/6: { protocol: { otlp: }, resolver: { dns: { hostname: s } }, routing_key: attributes, routing_attributes: [a, b] } }",
        0,
        &["cannot be routed yet"],
    ),
    // Metrics routed by stream, besides traces.
    (
        "receivers: { otlp: { protocols: { grpc: } } }
exporters:
  load_balancing/m: { routing_key: streamID, protocol: { otlp: }, resolver: { dns: { hostname: m } } }
  load_balancing/t: { routing_key: traceID, protocol: { otlp: }, resolver: { dns: { hostname: t, interval: 5s, timeout: 1s } } }
service:
  pipelines:
    traces: { receivers: [otlp], exporters: [load_balancing/t] }
    metrics: { receivers: [otlp], exporters: [load_balancing/m] }",
        1,
        &["metrics by \"streamID\" cannot be routed yet"],
    ),
    // Kubernetes resolver with the pods' host names.
    (
        "exporters: { load_balancing: { protocol: { otlp: { tls: { insecure: true } } }, resolver: { k8s: { service: \"lb.ns\", return_hostnames: true, timeout: 2s } } } }",
        1,
        &[],
    ),
    // The agent of the exporter's example.
    (
        "receivers: { otlp: { protocols: { grpc: { endpoint: \"0.0.0.0:4317\" } } } }
processors: { batch: }
exporters:
  debug: { verbosity: detailed }
  load_balancing: { protocol: { otlp: { tls: { insecure: true } } }, resolver: { static: { hostnames: [\"collector-1:4317\", \"collector-2:4317\"] } } }
service: { pipelines: { traces: { receivers: [otlp], processors: [batch], exporters: [debug, load_balancing] } } }",
        1,
        &["it is no load-balancing exporter", "not needed"],
    ),
    // A queue that counts bytes and batches.
    (
        "exporters:
  load_balancing:
    protocol:
      otlp:
        sending_queue: { enabled: true, sizer: bytes, queue_size: 67108864, batch: { flush_timeout: 200ms, min_size: 8192 } }
    resolver: { dns: { hostname: a } }",
        1,
        &["merged anyway"],
    ),
];

/// Further configurations as users write them.
const OWN: [Row; 22] = [
    ("exporters: { loadbalancing: { resolver: { static: { hostnames: \"${env:BACKENDS}\" } } } }", 1, &[]),
    ("exporters: { loadbalancing: { resolver: { static: { hostnames: \"${env:YAML}\" } } } }", 1, &[]),
    ("exporters: { loadbalancing: { resolver: { static: { hostnames: [\"${env:HOST}:4317\", \"${env:IP}\"] } } } }", 1, &[]),
    ("exporters: { loadbalancing: { resolver: { static: { hostnames: [\"[::1]:4317\", \"[10.0.0.1]:4317\", 10.0.0.1] } } } }", 1, &["twice"]),
    ("exporters: { loadbalancing: { resolver: { static: { hostnames: a } } } }", 1, &[]),
    ("exporters: { loadbalancing: { resolver: { static: { hostnames: [] } } } }", 0, &["the pool is left out"]),
    ("exporters: { loadbalancing: { resolver: { static: { hostnames: [\"http://a:1\"] } } } }", 0, &["is a URL"]),
    ("exporters: { loadbalancing: { protocol: { otlp: { timeout: 60s } } } }", 0, &["has no resolver; left out"]),
    ("exporters: { loadbalancing: { resolver: { dns: { hostname: \"${env:HOST}\", port: \"${env:PORT}\" } } } }", 1, &[]),
    ("exporters: { loadbalancing: { resolver: { dns: { hostname: a, interval: 10ms } } } }", 1, &["interval (line 1): is left out"]),
    ("exporters: { loadbalancing: { resolver: { dns: { hostname: \"a:4317\" } } } }", 0, &["is not a host name"]),
    ("receivers: { otlp: { protocols: { grpc: { endpoint: \"[${env:IP}]:4317\" } } } }
exporters: { loadbalancing: { resolver: { dns: { hostname: a } } } }", 1, &[]),
    ("receivers: { otlp: { protocols: { grpc: { endpoint: /run/otlp.sock, transport: unix } } } }
exporters: { loadbalancing: { resolver: { dns: { hostname: a } } } }", 1, &["grpc.endpoint (line 1): is left out"]),
    ("exporters: { \"loadbalancing/my pool\": { resolver: { dns: { hostname: a } } } }", 1, &[]),
    ("exporters: { loadbalancing/1: { resolver: { dns: { hostname: a } } } }", 1, &[]),
    ("exporters: { loadbalancing: { protocol: { otlp: { compression: snappy, timeout: \"${env:LONG:-5s}\" } }, resolver: { dns: { hostname: a } } } }", 1, &["\"snappy\" is not known"]),
    ("exporters: { loadbalancing: { protocol: { otlp: { compression: \"${vault:x}\", timeout: \"${env:X\" } }, resolver: { dns: { hostname: a } } } }", 1, &["${ without its }", "SCHEME"]),
    ("exporters: { loadbalancing: { protocol: { otlp: { auth: { authenticator: oauth2client }, headers: { x-a: b } } }, resolver: { dns: { hostname: a } } } }", 1, &["write what it sends under headers"]),
    ("exporters: { loadbalancing: { protocol: { otlp: { retry_on_failure: { initial_interval: 900ms, max_interval: 100ms, multiplier: 0.1 } } }, resolver: { dns: { hostname: a } } } }", 1, &["max_interval (line 1): is left out", "multiplier (line 1): is left out"]),
    ("exporters: { loadbalancing: { resolver: { dns: { hostname: a } } } }
service: { telemetry: { logs: { level: fatal, encoding: console }, metrics: { level: detailed, address: \":8888\" } }, pipelines: { traces: { exporters: [loadbalancing] } } }", 1, &["level (line 2): is left out"]),
    ("processors: { memory_limiter: { limit_mib: 0, limit_percentage: 80, check_interval: 1s }, tail_sampling: {} }
exporters: { loadbalancing: { resolver: { dns: { hostname: a } } } }
service: { pipelines: { traces: { processors: [memory_limiter, tail_sampling], exporters: [loadbalancing] } } }", 1, &["limit_mib (line 1): is left out", "Spanring changes no data"]),
    ("extensions: { health_check: { endpoint: \"localhost:8888\" } }
exporters: { loadbalancing: { resolver: { dns: { hostname: a } } } }
service: { extensions: [health_check], pipelines: { traces: { exporters: [loadbalancing] } } }", 1, &["health_check.endpoint (line 1): is left out"]),
];

fn environment(name: &str) -> Option<String> {
    let value = match name {
        "BACKENDS" => "one:4317, two,[::1]:1",
        "YAML" => "[one, \"two:4317\"]",
        "HOST" => "collectors.test",
        "IP" => "10.0.0.7",
        "PORT" => "5317",
        _ => return None,
    };
    Some(value.to_owned())
}

#[test]
fn converted_configurations_always_pass_validate() {
    for (text, routes, findings) in DOCUMENTED.into_iter().chain(OWN).chain(UNUSABLE) {
        let converted = convert("collector.yaml", text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        assert_eq!(converted.routes, routes, "{text}\n{converted:?}");
        let report = converted.report().join("\n");
        for finding in findings {
            assert!(report.contains(finding), "{finding} in {report}\n{text}");
        }
        if routes > 0 {
            let checked = Draft::parse("f", &converted.yaml, &environment).and_then(|draft| draft.check());
            // The files that the configuration names need not exist.
            if let Err(error) = checked {
                let is_about_a_file = error.to_string().lines().all(|line| line.contains("cannot read "));
                assert!(is_about_a_file, "{error}\n{text}\n{}", converted.yaml);
            }
        }
    }
}

#[test]
fn a_less_secure_conversion_is_an_error_with_its_position() {
    for (text, words) in UNSAFE {
        let error = convert("collector.yaml", text).expect_err(text).to_string();
        assert!(error.starts_with("collector.yaml:") && error.contains(words), "{words} in {error}\n{text}");
    }
}
