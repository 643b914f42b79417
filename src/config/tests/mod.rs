//! Tests with files as operators write them: their meaning, and the errors of invalid ones. They also test that
//! `deploy/docs/` has every key, metric and flag.

use std::{path::Path, time::Duration};

mod messages;
mod protocol;

use super::*;
use crate::{
    settings::{
        Algorithm, Compression, DnsResolver, Grpc, InvalidTraceId, LogEncoding, LogLevel, OutlierDetection, Pool,
        Secret, Settings, TlsVersion,
        section::{Section, keys_of},
    },
    tls::CheckedName,
};

/// A small file that must always stay valid.
const STATIC: &str = r#"receivers:
  otlp: { protocols: { grpc: { endpoint: 127.0.0.1:14317 } } }
pools:
  tail:
    resolver: { static: { hostnames: ["127.0.0.1:15001", "127.0.0.1:15002", "127.0.0.1:15003", "127.0.0.1:15004"] } }
    compression: none
routes:
  - { signals: [traces], routing_key: trace_id, pool: tail }
admin: { endpoint: 127.0.0.1:18888 }
"#;

fn environment(name: &str) -> Option<String> {
    let value = match name {
        "PORT" => "5317",
        "LEVEL" => "debug",
        "PKI" => crate::tls::tests::folder().to_str()?,
        "WORD" => "word",
        _ => return None,
    };
    Some(value.to_owned())
}

fn draft(text: &str) -> Result<Draft, String> {
    Draft::parse("spanring.yaml", text, &environment).map_err(|error| error.to_string())
}

fn config(text: &str) -> Result<Config, String> {
    draft(text)?.check().map_err(|error| error.to_string())
}

/// Returns the error for `STATIC` with `from` replaced by `to`.
fn complaint(from: &str, to: &str) -> String {
    assert!(STATIC.contains(from), "{from}");
    config(&STATIC.replacen(from, to, 1)).expect_err(to)
}

#[test]
fn the_static_example_is_valid() {
    let config = config(STATIC).expect("valid");
    let grpc = config.receive.grpc.expect("gRPC");
    let keys = Grpc { endpoint: "127.0.0.1:14317".parse().expect("ok"), ..Grpc::default() };
    let endpoint = "127.0.0.1:14317".parse().expect("ok");
    assert_eq!(grpc, receive::GrpcConfig { keys, endpoint, ..Default::default() });
    assert_eq!(config.admin.map(|admin| admin.endpoint), Some("127.0.0.1:18888".parse().expect("ok")));
    assert_eq!(config.routes, [RouteConfig { signals: vec![Signal::Traces], pool: "tail".into() }]);
    let [pool] = config.pools.as_slice() else { panic!("one pool") };
    assert_eq!(pool.name, "tail");
    assert_eq!(pool.dispatch, dispatch::Config::default());
    let discovery::Config::Static(list) = &pool.discovery else { panic!("static") };
    let hostnames: Vec<String> = list.hostnames.iter().map(ToString::to_string).collect();
    assert_eq!(hostnames, ["127.0.0.1:15001", "127.0.0.1:15002", "127.0.0.1:15003", "127.0.0.1:15004"]);
    assert_eq!(config.invalid_trace_id, InvalidTraceIds::default());
    assert_eq!(config.shutdown, Shutdown { delay: Duration::from_secs(5), timeout: Duration::from_secs(25) });
    assert!(config.memory_limit > 0 && config.worker_threads > 0);
    assert_eq!(config.logs, Logs::default());
    assert_eq!(config.health_check, None);
}

#[test]
fn a_health_check_without_a_value_is_one_with_its_defaults() {
    let text = "health_check:\npools: { a: { resolver: { dns: { hostname: a } } } }\nroutes: [{ signals: [traces], pool: a }]\n";
    let config = Draft::parse("f", text, &|_| None).expect("read").check().expect("valid");
    assert_eq!(config.health_check.expect("a listener").endpoint, "127.0.0.1:13133".parse().expect("an address"));
}

#[test]
fn the_dns_example_is_valid() {
    let text = STATIC.replace(
        r#"{ static: { hostnames: ["127.0.0.1:15001", "127.0.0.1:15002", "127.0.0.1:15003", "127.0.0.1:15004"] } }"#,
        "{ dns: { hostname: collectors.test, port: 4317, interval: 5s, timeout: 1s } }",
    );
    let config = config(&text).expect("valid");
    let expected = DnsResolver { hostname: "collectors.test".into(), port: Some(4317), ..DnsResolver::default() };
    assert_eq!(config.pools[0].discovery, discovery::Config::Dns(expected));
}

#[test]
fn what_the_exporters_ring_hashes_is_printed_as_it_is_written() {
    let printed = |resolver: &str| {
        let pool = format!("{{ resolver: {resolver}, ring: {{ algorithm: otelcol_v2 }} }}");
        let text = format!("pools: {{ tail: {pool} }}\nroutes: [{{ signals: [traces], pool: tail }}]\n");
        let draft = draft(&text).expect("read");
        let printed = draft.print().expect("printed");
        let again = self::draft(&printed).expect("read again");
        assert_eq!(again.settings, draft.settings, "{printed}");
        assert_eq!(draft.check().expect("valid").pools[0].membership.ring.algorithm, Algorithm::OtelcolV2);
        printed
    };
    let list = printed("{ static: { hostnames: [collector-0, \"10.0.0.1:4317\", \"[::1]\"] } }");
    assert!(list.contains("collector-0\n") && list.contains("10.0.0.1:4317") && !list.contains("[::1]:4317"), "{list}");
    assert!(printed("{ dns: { hostname: collectors.test } }").contains("port: null"), "no port is filled in");
    assert!(printed("{ dns: { hostname: collectors.test, port: 4317 } }").contains("port: 4317"));
}

#[test]
fn keys_reach_the_modules_that_they_concern() {
    let config = config(SAMPLE).expect("valid");
    let grpc = config.receive.grpc.expect("gRPC");
    assert_eq!(grpc.endpoint, "127.0.0.1:5317".parse().expect("ok"));
    assert_eq!((grpc.keys.max_recv_msg_size_mib.bytes, grpc.keys.max_concurrent_streams), (32 << 20, 50));
    assert_eq!((grpc.keys.max_header_list_size.0, grpc.keys.max_connections), (8 << 10, 500));
    assert_eq!((grpc.keys.read_header_timeout, grpc.deadline), (Duration::from_secs(3), Duration::from_secs(7)));
    let ages = &grpc.keys.keepalive.server_parameters;
    let minutes = (ages.max_connection_age, ages.max_connection_age_grace);
    assert_eq!(minutes, (Some(Duration::from_secs(300)), Some(Duration::from_secs(30))));
    let pool = config.pools.iter().find(|pool| pool.name == "tail").expect("tail");
    let keys = &pool.dispatch.keys;
    assert_eq!((keys.compression, keys.compression_params.level), (Compression::Zstd, 3));
    assert_eq!((keys.timeout, keys.max_request_size_mib.bytes), (Duration::from_secs(4), 8 << 20));
    assert_eq!((keys.connections, keys.shards, keys.sending_queue.queue_size.0), (2, 3, 32 << 20));
    let retry = &keys.retry_on_failure;
    assert_eq!((retry.initial_interval, retry.max_interval), (Duration::from_millis(20), Duration::from_millis(500)));
    assert!((retry.multiplier, retry.randomization_factor, retry.budget_percent) == (2.0, 0.25, 30));
    let detection = OutlierDetection {
        consecutive_failures: 5,
        base_ejection_time: Duration::from_secs(2),
        max_ejection_time: Duration::from_secs(60),
        max_ejection_percent: 30,
    };
    assert_eq!((&pool.membership.outlier_detection, pool.membership.hold_down), (&detection, Duration::from_secs(10)));
    assert_tls_reaches_its_modules(grpc.tls.expect("tls"), pool.tls.as_ref().expect("tls"));
    assert_eq!(config.routes[0].signals, [Signal::Traces, Signal::Logs]);
    let reject = InvalidTraceId::Reject;
    assert_eq!([Signal::Traces, Signal::Logs].map(|signal| config.invalid_trace_id.of(signal)), [reject; 2]);
    assert_eq!((config.memory_limit, config.worker_threads), (512 << 20, 2));
    assert_eq!(config.shutdown, Shutdown { delay: Duration::from_secs(1), timeout: Duration::from_secs(10) });
    let probes = config.health_check.expect("probes");
    assert_eq!((probes.endpoint, probes.keys.path.as_str()), ("127.0.0.1:23133".parse().expect("ok"), "/health"));
    assert_eq!(config.logs, Logs { level: LogLevel::Debug, encoding: LogEncoding::Json });
    let insecure = "spanring.yaml:36:5: pools.tail.tls: insecure_skip_verify is true: anyone can impersonate a backend";
    let unused = "spanring.yaml:69:3: pools.written: no route names this pool, so it gets no records; add a route with its name \
                  as pool, or remove it";
    assert_eq!(config.warnings, [insecure, unused]);
}

fn assert_tls_reaches_its_modules(server: crate::tls::ServerConfig, client: &crate::tls::ClientConfig) {
    let pki = crate::tls::tests::folder();
    assert_eq!(server.identity.cert_file, pki.join("server.crt"));
    assert_eq!(server.identity.key_file, pki.join("server.key"));
    assert_eq!(server.client_ca_file, Some(pki.join("ca.crt")));
    assert_eq!((server.min_version, server.reload_interval), (TlsVersion::Tls13, Some(Duration::from_secs(5))));
    assert_eq!(client.ca_file, Some(pki.join("ca.crt")));
    let identity = client.identity.clone().expect("an identity");
    assert_eq!((identity.cert_file, identity.key_file), (pki.join("client.crt"), pki.join("client.key")));
    assert_eq!(client.name, CheckedName::Is("collector.test".into()));
    assert!(client.insecure_skip_verify);
    assert_eq!((client.min_version, client.reload_interval), (TlsVersion::Tls13, Some(Duration::from_secs(10))));
}

#[test]
fn missing_and_empty_keys_have_their_defaults() {
    let text = "receivers:\n  otlp:\n    protocols:\n      grpc:\npools:\n  tail:\n    resolver:\n      dns: { hostname: c }\n\
                routes:\n  - signals: [traces]\n    pool: tail\nadmin:\n";
    let config = config(text).expect("valid");
    assert_eq!(config.receive, receive::Config::default());
    assert_eq!(config.admin, Some(admin::Config::default()));
}

#[test]
fn the_collectors_spellings_are_accepted() {
    let text = STATIC
        .replace("routing_key: trace_id", "routing_key: traceID")
        .replace("compression: none", "compression: \"\"");
    assert!(config(&format!("{text}telemetry: {{ logs: {{ encoding: console }} }}\n")).is_ok());
}

#[test]
fn several_pools_have_their_routes() {
    let text = "pools:\n  a: { resolver: { dns: { hostname: a } } }\n  b: { resolver: { dns: { hostname: b } } }\n\
                routes:\n  - { signals: [logs], pool: b }\n  - { signals: [traces], pool: a }\n";
    let config = config(text).expect("valid");
    let routes: Vec<_> = config.routes.iter().map(|route| (route.signals[0], route.pool.as_str())).collect();
    assert_eq!(routes, [(Signal::Logs, "b"), (Signal::Traces, "a")]);
}

/// Returns the keys of a section as an error lists them. They begin with `first`.
fn known_keys<T: Section>(first: &str) -> String {
    let keys = keys_of::<T>().join(", ");
    assert!(keys.starts_with(first), "{keys}");
    keys
}

#[test]
fn the_error_for_an_unknown_key_has_its_position_and_the_most_similar_one() {
    assert_eq!(
        complaint("endpoint: 127.0.0.1:14317", "endpiont: 127.0.0.1:14317"),
        format!(
            "spanring.yaml:2:32: receivers.otlp.protocols.grpc: unknown key \"endpiont\", did you mean \"endpoint\"? known \
             keys: {}",
            known_keys::<Grpc>("endpoint, max_recv_msg_size_mib, ")
        )
    );
    assert_eq!(
        complaint("    compression: none", "    compresion: none"),
        format!(
            "spanring.yaml:6:5: pools.tail: unknown key \"compresion\", did you mean \"compression\"? known keys: {}",
            known_keys::<Pool>("resolver, tls, headers, compression, ")
        )
    );
    assert_eq!(
        complaint("admin:", "zzz:"),
        format!(
            "spanring.yaml:9:1: unknown key \"zzz\"; known keys: {}",
            known_keys::<Settings>("receivers, pools, routes, ")
        )
    );
    let elsewhere = complaint("    compression: none", "    protocol: { otlp: { tls: {} } }");
    assert!(elsewhere.contains("pools.tail.protocol.otlp: unknown key \"tls\""), "{elsewhere}");
    assert!(elsewhere.ends_with("belong in the pool itself"), "{elsewhere}");
}

#[test]
fn the_error_for_an_invalid_value_has_its_position() {
    let with = |line: &str| complaint("    compression: none", &format!("    {line}"));
    assert_eq!(with("timeout: 5"), "spanring.yaml:6:14: pools.tail.timeout: \"5\" has no unit; write 5s or 5ms");
    assert_eq!(
        with("timeout: soon"),
        "spanring.yaml:6:14: pools.tail.timeout: \"soon\" is not a duration; write 200ms, 5s or 1m30s"
    );
    assert_eq!(
        with("connections: many"),
        "spanring.yaml:6:18: pools.tail.connections: expected a whole number, found \"many\""
    );
    assert_eq!(
        with("connections: -1"),
        "spanring.yaml:6:18: pools.tail.connections: -1 is not possible, expected a whole number"
    );
    assert_eq!(
        with("connections: 0"),
        "spanring.yaml:6:18: pools.tail.connections: 0 is out of range; it must be from 1 to 64"
    );
    assert_eq!(
        with("compression: snappy"),
        "spanring.yaml:6:18: pools.tail.compression: unknown value \"snappy\"; known values: none, gzip, zstd, as_received"
    );
    assert_eq!(
        with("compression: gzp"),
        "spanring.yaml:6:18: pools.tail.compression: unknown value \"gzp\", did you mean \"gzip\"? known values: none, gzip, zstd, as_received"
    );
    assert_eq!(
        with("sending_queue: { queue_size: 1000 }"),
        "spanring.yaml:6:34: pools.tail.sending_queue.queue_size: 1000B is less than one call may hold (max_request_size_mib: 4); \
         it counts bytes, not requests: write 16MiB, for example"
    );
    assert_eq!(
        with("outlier_detection: { base_ejection_time: 40s }"),
        "spanring.yaml:6:5: pools.tail.outlier_detection.max_ejection_time: 30s is less than base_ejection_time, 40s"
    );
    assert_eq!(
        with("outlier_detection: { max_ejection_percent: 101 }"),
        "spanring.yaml:6:48: pools.tail.outlier_detection.max_ejection_percent: 101 is out of range; it must be from 0 to 100"
    );
    assert_eq!(with("hold_down: 25h"), "spanring.yaml:6:16: pools.tail.hold_down: is longer than 24h");
    assert_eq!(with("ring: []"), "spanring.yaml:6:11: pools.tail.ring: expected a section of keys, found a list");
    assert_eq!(
        complaint("127.0.0.1:14317", "127.0.0.1"),
        "spanring.yaml:2:42: receivers.otlp.protocols.grpc.endpoint: \"127.0.0.1\" has no port; write 127.0.0.1:4317"
    );
    assert_eq!(
        complaint("[traces]", "[traces, trace]"),
        "spanring.yaml:8:25: routes[0].signals[1]: unknown value \"trace\", did you mean \"traces\"? known values: traces, \
         metrics, logs, profiles"
    );
}

#[test]
fn the_error_for_contradicting_values_has_its_position() {
    assert_eq!(
        complaint("pool: tail }", "pool: tial }"),
        "spanring.yaml:8:55: routes[0].pool: unknown pool \"tial\", did you mean \"tail\"? known pools: tail"
    );
    assert_eq!(
        complaint("routing_key: trace_id", "routing_key: service"),
        "spanring.yaml:8:39: routes[0].routing_key: \"service\" is not supported yet; write trace_id"
    );
    assert_eq!(
        complaint("[traces]", "[metrics]"),
        "spanring.yaml:8:7: routes[0].signals: metrics have no trace ID; routing them is not supported yet, traces and logs are"
    );
    assert_eq!(
        complaint("127.0.0.1:18888", "0.0.0.0:14317"),
        "spanring.yaml:9:20: admin.endpoint: receivers.otlp.protocols.grpc.endpoint has port 14317 already"
    );
    assert_eq!(
        complaint("127.0.0.1:18888 }", "127.0.0.1:18888 }\nhealth_check: { endpoint: 127.0.0.1:18888 }"),
        "spanring.yaml:10:27: health_check.endpoint: admin.endpoint has port 18888 already"
    );
    assert_eq!(
        complaint("\"127.0.0.1:15002\"", "\"127.0.0.1:15001\""),
        "spanring.yaml:5:27: pools.tail.resolver.static.hostnames: 127.0.0.1:15001 is listed twice"
    );
    assert_eq!(
        complaint("{ static:", "{ dns: { hostname: a }, static:"),
        "spanring.yaml:5:5: pools.tail.resolver: has both static and dns; a pool has one resolver"
    );
}

#[test]
fn all_errors_are_reported_at_once() {
    let text = "receivers:\n  otlp: { deadline: 0s }\npools:\n  a:\n    timeout: 0s\n";
    assert_eq!(
        config(text).expect_err("invalid"),
        "spanring.yaml:2:21: receivers.otlp.deadline: must be longer than 0s\n\
         spanring.yaml:4:3: pools.a.resolver: is missing; write static, dns, srv or k8s\n\
         spanring.yaml:5:14: pools.a.timeout: must be longer than 0s\n\
         spanring.yaml:1:1: routes: no route is defined; write routes: [{ signals: [traces], routing_key: trace_id, pool: NAME }]"
    );
}

#[test]
fn the_error_for_invalid_yaml_has_its_position() {
    let message = complaint("admin: { endpoint: 127.0.0.1:18888 }", "pools: {}");
    assert_eq!(message, "spanring.yaml:9:1: the key \"pools\" is written twice");
    let message = config(&format!("{STATIC}---\na: 1\n")).expect_err("two documents");
    assert_eq!(message, "spanring.yaml:11:1: a second document begins here; a configuration is a single document");
    let message = complaint("[traces]", "[traces");
    assert!(message.starts_with("spanring.yaml:8:"), "{message}");
    assert!(!message.contains('\n'), "{message}");
}

#[test]
fn the_error_for_an_empty_file_names_the_required_keys() {
    for text in ["", "# nothing\n\n", "{}"] {
        let message = config(text).expect_err("invalid");
        assert!(
            message.contains(": pools: no pool is named") && message.contains(": routes: no route is defined"),
            "{message}"
        );
    }
}

#[test]
fn variables_keep_their_types_and_positions() {
    let with = |line: &str| config(&STATIC.replacen("    compression: none", &format!("    {line}"), 1));
    assert!(
        with("connections: ${env:CONNECTIONS:-2}").is_ok_and(|config| config.pools[0].dispatch.keys.connections == 2)
    );
    assert!(with("timeout: ${env:TIMEOUT:-3s}").is_ok());
    assert_eq!(
        with("connections: ${env:WORD}").expect_err("a word"),
        "spanring.yaml:6:18: pools.tail.connections: this value does not fit (it is not shown); expected a whole number"
    );
    assert_eq!(
        with("timeout: ${env:UNSET}s").expect_err("unset"),
        "spanring.yaml:6:14: pools.tail.timeout: environment variable UNSET is not set; set it, or give a default: \
         ${env:UNSET:-default}"
    );
}

#[test]
fn a_small_memory_limit_bounds_messages() {
    let config = config(&format!("{STATIC}memory_limiter: {{ limit_mib: 60 }}\n")).expect("valid");
    assert_eq!(config.receive.grpc.expect("gRPC").keys.max_recv_msg_size_mib.bytes, (60 << 20) / 3 * 2);
    assert_eq!(
        config.warnings,
        ["max_recv_msg_size_mib is 64 MiB, but memory_limiter leaves 40 MiB for requests: the smaller of them applies"]
    );
}

#[test]
fn the_error_for_a_missing_file_names_it() {
    let error = Draft::read(Path::new("/nowhere/spanring.yaml")).expect_err("no file");
    assert_eq!(error.to_string(), "cannot read /nowhere/spanring.yaml");
}

#[test]
fn a_printed_configuration_is_read_back() {
    for text in [STATIC, SAMPLE] {
        let first = draft(text).expect("valid");
        let printed = first.print().expect("printed");
        let mut shown = first.settings;
        for pool in shown.pools.values_mut() {
            pool.headers.0.values_mut().for_each(|value| *value = Secret("[REDACTED]".into()));
        }
        assert_eq!(draft(&printed).map(|draft| draft.settings), Ok(shown), "{printed}");
    }
    let printed = draft(STATIC).and_then(|draft| draft.print().map_err(|e| e.to_string())).expect("printed");
    for line in [
        "max_recv_msg_size_mib: 64",
        "deadline: 8s",
        "queue_size: 16MiB",
        "worker_threads: auto",
        "limit_percentage: 75",
    ] {
        assert!(printed.contains(line), "{line} in\n{printed}");
    }
}

#[test]
fn backends_on_the_command_line_are_like_a_file() {
    let draft = Draft::of_backends("static://a:1,b".parse().expect("backends"));
    let config = draft.check().expect("valid");
    let http = Some(receive::HttpConfig::default());
    assert_eq!(config.receive, receive::Config { http, ..receive::Config::default() }, "OTLP/HTTP is on");
    assert_eq!((config.pools[0].name.as_str(), config.routes[0].pool.as_str()), ("default", "default"));
    assert_eq!(draft.settings.routes[0].signals, [Signal::Traces]);
}

/// A file with most keys, none at its default.
const SAMPLE: &str = include_str!("sample.yaml");

/// Returns the rows of the first table below the heading `heading` of a document, as cells without code marks.
fn table(document: &str, heading: &str) -> Vec<Vec<String>> {
    let section = document.split(&format!("\n## {heading}\n")).nth(1).unwrap_or_else(|| panic!("no heading {heading}"));
    let rows = section.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    rows.skip(2)
        .map(|row| row.trim_matches('|').split(" | ").map(|cell| cell.trim().replace('`', "")).collect())
        .collect()
}

const COMMAND_LINE: &str = include_str!("../../../deploy/docs/command-line.md");
const METRICS: &str = include_str!("../../../deploy/docs/metrics.md");

#[test]
fn the_reference_has_every_metric() {
    let kept: Vec<Vec<String>> = table(METRICS, "All metrics");
    let page: Vec<Vec<String>> = crate::telemetry::metrics::ALL
        .iter()
        .map(|metric| {
            vec![
                metric.name.to_owned(),
                metric.kind.as_str().to_owned(),
                metric.labels.join(", "),
                metric.help.to_owned(),
            ]
        })
        .collect();
    assert_eq!(kept, page);
}

#[test]
fn the_reference_has_every_flag() {
    use clap::CommandFactory;

    let command = crate::cli::Cli::command();
    let own = |argument: &&clap::Arg| !matches!(argument.get_id().as_str(), "help" | "version");
    let flags: Vec<Vec<String>> = command
        .get_arguments()
        .filter(own)
        .map(|argument| {
            let value = match argument.get_value_names().and_then(<[_]>::first) {
                Some(name) if argument.get_num_args().is_some_and(|count| count.min_values() == 0) => {
                    format!(" [{name}]")
                }
                Some(name) => format!(" {name}"),
                None => String::new(),
            };
            let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
            vec![format!("--{}{value}", argument.get_long().expect("a long name")), help]
        })
        .collect();
    assert_eq!(table(COMMAND_LINE, "Commands and flags"), flags);
    for sub in command.get_subcommands() {
        let shown = COMMAND_LINE.contains(&format!("spanring {}", sub.get_name()));
        assert!(shown, "the reference does not show {}", sub.get_name());
    }
}
