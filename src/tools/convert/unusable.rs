//! Configurations with unusable values and the expected findings: test data of `examples`.

use super::examples::Row;

/// For every key of TLS, resolvers and the receiver, a value that cannot be used.
pub(super) const UNUSABLE: [Row; 33] = [
    (
        "exporters:
  loadbalancing:
    resolver: { dns: { hostname: a } }
    protocol: { otlp: { tls: { server_name_override: \"a b\" } } }",
        1,
        &["loadbalancing.protocol.otlp.tls.server_name_override (line 4): is left out", "\"a b\" is not a host name; certificates"],
    ),
    (
        "exporters:
  loadbalancing:
    resolver: { dns: { hostname: a } }
    protocol: { otlp: { tls: { server_name_override: \"a b\", cert_file: \"${env:HOST}\", key_file: \"${env:IP}\" } } }",
        1,
        &["server_name_override (line 4): is left out"],
    ),
    (
        "exporters:
  loadbalancing:
    resolver: { dns: { hostname: a } }
    protocol: { otlp: { tls: { min_version: \"1.1\" } } }",
        1,
        &["loadbalancing.protocol.otlp.tls.min_version (line 4): is left out"],
    ),
    (
        "exporters:
  loadbalancing:
    resolver: { dns: { hostname: a } }
    protocol: { otlp: { tls: { min_version: [1] } } }",
        1,
        &["loadbalancing.protocol.otlp.tls.min_version (line 4): is left out"],
    ),
    (
        "exporters:
  loadbalancing:
    resolver: { dns: { hostname: a } }
    protocol: { otlp: { tls: { reload_interval: 1ms, key_file: \"${env:HOST}\", cert_file: \"${env:IP}\" } } }",
        1,
        &["reload_interval (line 4): is left out"],
    ),
    (
        "exporters:
  loadbalancing:
    resolver: { dns: { hostname: a } }
    protocol: { otlp: { tls: { reload_interval: soon } } }",
        1,
        &["reload_interval (line 4): is left out"],
    ),
    (
        "exporters:
  loadbalancing:
    resolver: { dns: { hostname: a } }
    protocol: { otlp: { tls: { insecure: maybe } } }",
        1,
        &["loadbalancing.protocol.otlp.tls.insecure (line 4): is left out", "backends have to speak TLS"],
    ),
    (
        "exporters:
  loadbalancing:
    resolver: { dns: { hostname: a } }
    protocol: { otlp: { tls: { insecure: [true] } } }",
        1,
        &["loadbalancing.protocol.otlp.tls.insecure (line 4): is left out"],
    ),
    (
        "exporters:
  loadbalancing:
    resolver: { dns: { hostname: a } }
    protocol: { otlp: { tls: { insecure_skip_verify: maybe } } }",
        1,
        &["insecure_skip_verify (line 4): is left out", "are verified"],
    ),
    (
        "exporters:
  loadbalancing:
    resolver: { dns: { hostname: a } }
    protocol: { otlp: { tls: { cert_file: a.crt } } }",
        1,
        &["loadbalancing.protocol.otlp.tls.cert_file (line 4): is left out: key_file is missing", "NO CLIENT CERTIFICATE IS SHOWN"],
    ),
    (
        "exporters:
  loadbalancing:
    resolver: { dns: { hostname: a } }
    protocol: { otlp: { tls: { cert_file: \"${env:HOST}\", key_pem: x } } }",
        1,
        &["loadbalancing.protocol.otlp.tls.cert_file (line 4): is left out: key_file is missing", "key_pem (line 4)"],
    ),
    (
        "exporters:
  loadbalancing:
    resolver: { dns: { hostname: a } }
    protocol: { otlp: { tls: { key_file: a.key, cert_file: \"\" } } }",
        1,
        &["loadbalancing.protocol.otlp.tls.key_file (line 4): is left out: cert_file is missing"],
    ),
    (
        "exporters:
  loadbalancing:
    resolver: { dns: { hostname: -a } }
    protocol: { otlp: { tls: { server_name_override: a } } }",
        1,
        &[],
    ),
    (
        "exporters:
  loadbalancing:
    resolver: { dns: { hostname: -a } }
    protocol: { otlp: { tls: { insecure: false } } }",
        0,
        &["resolver.dns.hostname (line 3): cannot be used: \"-a\" is not a host name; the pool is left out"],
    ),
    (
        "exporters:
  loadbalancing:
    resolver: { dns: { hostname: \"${env:HOST}\" } }
    protocol: { otlp: { tls: { insecure: false } } }",
        1,
        &[],
    ),
    (
        "receivers: { otlp/in: { protocols: { grpc: { tls: { cert_file: \"${env:HOST}\", key_file: k, min_version: \"1.0\", reload_interval: 1ms } } } } }
exporters: { loadbalancing: { resolver: { dns: { hostname: a } } } }",
        1,
        &["receivers.otlp/in.protocols.grpc.tls.min_version (line 1): is left out", "tls.reload_interval (line 1): is left out"],
    ),
    (
        "receivers: { otlp/in: { protocols: { grpc: { endpoint: [a] } } } }
exporters: { loadbalancing: { resolver: { dns: { hostname: a } } } }",
        1,
        &["receivers.otlp/in.protocols.grpc.endpoint (line 1): is left out"],
    ),
    (
        "receivers: { otlp/in: { protocols: { grpc: { endpoint: \"a b:1\", max_recv_msg_size_mib: many, max_concurrent_streams: 0 } } } }
exporters: { loadbalancing: { resolver: { dns: { hostname: a } } } }",
        1,
        &["grpc.endpoint (line 1): is left out", "max_recv_msg_size_mib (line 1)", "max_concurrent_streams (line 1)"],
    ),
    (
        "receivers: { otlp/in: { protocols: { grpc: { keepalive: { server_parameters: { max_connection_age: old, max_connection_age_grace: [1] } } } } } }
exporters: { loadbalancing: { resolver: { dns: { hostname: a } } } }",
        1,
        &["server_parameters.max_connection_age (line 1): is left out", "max_connection_age_grace (line 1)"],
    ),
    (
        "exporters:
  loadbalancing:
    resolver: { static: { hostnames: [\"${env:HOST}:4317\", \"${env:IP}\", \"$C\"] } }",
        1,
        &["loadbalancing.resolver.static.hostnames[2] (line 3): is left out"],
    ),
    (
        "exporters:
  loadbalancing:
    resolver: { static: { hostnames: [a, \"b c\", \"a:4317\", 0.0.0.0, \"${env:IP}\", [x]] } }",
        1,
        &["hostnames[1] (line 3): is left out", "hostnames[3] (line 3): is left out", "hostnames[5] (line 3): is left out"],
    ),
    (
        "exporters:
  loadbalancing:
    resolver: { static: { hostnames: { a: b } } }",
        0,
        &["static.hostnames (line 3): "],
    ),
    (
        "exporters:
  loadbalancing:
    resolver: { static: {} }",
        0,
        &["resolver.static (line 3): hostnames names no backend"],
    ),
    (
        "exporters:
  loadbalancing:
    resolver: { dns: {} }",
        0,
        &["loadbalancing.resolver.dns (line 3): hostname is missing; the pool is left out"],
    ),
    (
        "exporters:
  loadbalancing:
    resolver: { dns: collectors }",
        0,
        &["resolver.dns (line 3): hostname is missing; the pool is left out"],
    ),
    (
        "exporters:
  loadbalancing:
    resolver: { dns: { hostname: [a] } }",
        0,
        &["resolver.dns.hostname (line 3): "],
    ),
    (
        "exporters:
  loadbalancing:
    resolver: { dns: { hostname: a, port: http, interval: [1], timeout: 0s } }",
        1,
        &["dns.port (line 3): is left out", "dns.interval (line 3)", "dns.timeout (line 3)"],
    ),
    (
        "exporters:
  loadbalancing:
    resolver: { k8s: {} }",
        0,
        &["resolver.k8s (line 3): service is missing; the pool is left out"],
    ),
    (
        "exporters:
  loadbalancing:
    resolver: { k8s: { service: \"a b\" } }",
        0,
        &["resolver.k8s.service (line 3): "],
    ),
    (
        "exporters:
  loadbalancing:
    resolver: { k8s: { service: a, ports: [0] } }",
        0,
        &["resolver.k8s.ports[0] (line 3): is left out", "resolver.k8s.ports (line 3): names no port"],
    ),
    (
        "exporters:
  loadbalancing:
    resolver: { aws_cloud_map: { service_name: a } }",
        0,
        &["resolver.aws_cloud_map (line 3): namespace is missing; the pool is left out"],
    ),
    (
        "exporters:
  loadbalancing:
    resolver: { aws_cloud_map: { service_name: a, namespace: b, port: 0, interval: 1ms } }",
        1,
        &["aws_cloud_map.port (line 3): is left out", "aws_cloud_map.interval (line 3)"],
    ),
    (
        "exporters:
  loadbalancing:
    resolver: { consul: { service: a } }",
        0,
        &["loadbalancing.resolver (line 3): names none of static, dns, k8s and aws_cloud_map; the pool"],
    ),
];

/// Configurations that must not be converted, because removing the unusable value would change what is encrypted or who
/// is trusted; and words of the expected error.
pub(super) const UNSAFE: [(&str, &str); 8] = [
    (
        "receivers: { otlp/in: { protocols: { grpc: { tls: {} } } } }
exporters: { loadbalancing: { resolver: { dns: { hostname: a } } } }",
        "1:46: receivers.otlp/in.protocols.grpc.tls: cert_file is missing",
    ),
    (
        "receivers: { otlp/in: { protocols: { grpc: { tls: { cert_pem: x, key_pem: y } } } } }
exporters: { loadbalancing: { resolver: { dns: { hostname: a } } } }",
        "1:46: receivers.otlp/in.protocols.grpc.tls: cert_file is missing",
    ),
    (
        "receivers: { otlp/in: { protocols: { grpc: { tls: { min_version: \"1.1\" } } } } }
exporters: { loadbalancing: { resolver: { dns: { hostname: a } } } }",
        "1:46: receivers.otlp/in.protocols.grpc.tls: cert_file is missing",
    ),
    (
        "receivers: { otlp/in: { protocols: { grpc: { tls: { cert_file: \"${env:HOST}\" } } } } }
exporters: { loadbalancing: { resolver: { dns: { hostname: a } } } }",
        "1:46: receivers.otlp/in.protocols.grpc.tls: key_file is missing",
    ),
    (
        "receivers: { otlp/in: { protocols: { grpc: { tls: { cert_file: c, key_file: k, client_ca_file: [a] } } } } }
exporters: { loadbalancing: { resolver: { dns: { hostname: a } } } }",
        "receivers.otlp/in.protocols.grpc.tls.client_ca_file: ",
    ),
    (
        "receivers: { otlp/in: { protocols: { grpc: { tls: { cert_file: c, key_file: \" \" } } } } }
exporters: { loadbalancing: { resolver: { dns: { hostname: a } } } }",
        "receivers.otlp/in.protocols.grpc.tls.key_file: ",
    ),
    (
        "exporters:
  loadbalancing:
    resolver: { dns: { hostname: a } }
    protocol: { otlp: { tls: { ca_file: [a] } } }",
        "exporters.loadbalancing.protocol.otlp.tls.ca_file: ",
    ),
    (
        "exporters:
  loadbalancing:
    resolver: { dns: { hostname: a } }
    protocol: { otlp: { tls: { cert_file: c, key_file: [k] } } }",
        "exporters.loadbalancing.protocol.otlp.tls.key_file: ",
    ),
];
