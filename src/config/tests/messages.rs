//! Tests of messages that were once misleading.

use super::super::{Draft, discovery};

fn complaint(text: &str) -> String {
    let environment = |name: &str| match name {
        "LIST" => Some("[one, \"two:1\"]".to_owned()),
        "LINES" => Some("- one\n- two:1\n".to_owned()),
        "COMMAS" => Some("one, two:1,[::1]:2".to_owned()),
        "BAD" => Some("one,hunter2 x".to_owned()),
        _ => None,
    };
    let checked = Draft::parse("f", text, &environment).and_then(|draft| draft.check());
    checked.map_or_else(
        |error| error.to_string(),
        |config| match &config.pools[0].discovery {
            discovery::Config::Static(list) => {
                let hostnames: Vec<String> = list.hostnames.iter().map(ToString::to_string).collect();
                format!("{hostnames:?}")
            }
            discovery::Config::Dns(dns) => dns.hostname.clone(),
            discovery::Config::Srv(srv) => srv.hostname.clone(),
            discovery::Config::Kubernetes(keys) => keys.service.clone(),
        },
    )
}

fn pool(more: &str) -> String {
    complaint(&format!("pools:\n  a: {{ {more} }}\nroutes: [{{ signals: [traces], pool: a }}]\n"))
}

#[test]
fn the_message_about_off_says_that_yaml_reads_it_as_a_boolean() {
    assert_eq!(
        pool("resolver: { dns: { hostname: a } }, compression: off"),
        "f:2:57: pools.a.compression: expected one of none, gzip, zstd, as_received, found false, as YAML reads off, no and false; write none"
    );
    let level = "pools: { a: { resolver: { dns: { hostname: a } } } }\nroutes: [{ signals: [traces], pool: a }]\n\
                 telemetry: { logs: { level: off } }\n";
    let draft = Draft::parse("f", level, &|_| None).expect("off is a level");
    assert_eq!(draft.settings.telemetry.logs.level, crate::settings::LogLevel::Off);
}

#[test]
fn the_error_for_a_collectors_file_names_convert() {
    let text = "receivers: { otlp: { protocols: { http: {} } } }\nexporters: { load_balancing: {} }\nservice: {}\n";
    assert_eq!(
        complaint(text),
        "f:2:1: \"exporters\" is a key of a Collector's configuration; spanring convert FILE converts it"
    );
}

#[test]
fn resolvers_of_the_exporter_lead_to_advice() {
    assert_eq!(
        pool("resolver: { aws_cloud_map: { namespace: n } }"),
        "f:2:20: pools.a.resolver: \"aws_cloud_map\" is not supported yet; a namespace of a DNS kind gives its services names: \
         write dns: { hostname: SERVICE_NAME.NAMESPACE }"
    );
}

#[cfg(feature = "kubernetes")]
#[test]
fn the_kubernetes_resolver_has_two_names_and_its_keys_are_checked() {
    for name in ["k8s", "kubernetes"] {
        let written = |keys: &str| pool(&format!("resolver: {{ {name}: {{ {keys} }} }}"));
        let at = |keys: &str| written(keys).split_once(": pools.a.resolver").map(|(_, rest)| rest.to_owned());
        assert_eq!(written("service: a.b, ports: [1, 2], timeout: 2s, return_hostnames: true"), "a.b");
        assert_eq!(at(""), Some(".k8s.service: is missing; write service: NAME.NAMESPACE".into()));
        let zone = ".k8s.service: \"a.b.svc\" is no Service: a Service is written NAME.NAMESPACE, without the zone of its \
                    name in DNS";
        assert_eq!(at("service: a.b.svc"), Some(zone.into()));
        let none = ".k8s.ports: names no port; write ports: [4317]";
        assert_eq!(at("service: a, ports: []"), Some(none.into()));
        assert_eq!(at("service: a, ports: [1, 2, 1]"), Some(".k8s.ports: 1 is listed twice".into()));
        assert!(at("service: a, ports: [1, 0]").is_some_and(|error| error.starts_with(".k8s.ports[1]: ")), "{name}");
        assert_eq!(at("service: a, timeout: 0s"), Some(".k8s.timeout: must be longer than 0s".into()));
        assert!(written("service: a, port: 1").contains("did you mean \"ports\"?"), "{name}");
    }
    assert_eq!(
        pool("resolver: { k8s: { service: a }, kubernetes: { service: b } }"),
        "f:2:41: pools.a.resolver: k8s and kubernetes are two names of one resolver; write one of them"
    );
    assert_eq!(
        pool("resolver: { kubernetes: { service: a }, dns: { hostname: b } }"),
        "f:2:8: pools.a.resolver: has both dns and k8s; a pool has one resolver"
    );
}

#[cfg(feature = "kubernetes")]
#[test]
fn a_ring_of_the_exporter_needs_a_resolver_that_yields_the_names_that_it_hashes() {
    let refused = |resolver: &str| {
        let keys = format!("resolver: {{ {resolver} }}, ring: {{ algorithm: otelcol_v2 }}");
        let text = format!("pools: {{ a: {{ {keys} }} }}\nroutes: [{{ signals: [traces], pool: a }}]\n");
        let checked = Draft::parse("f", &text, &|_| None).and_then(|draft| draft.check());
        checked.err().map(|error| error.to_string())
    };
    let why = |resolver: &str| {
        let said = refused(resolver).expect(resolver);
        let (key, because) =
            said.split_once(": otelcol_v2 would not place traces as the exporter does: ").expect(&said);
        (key.rsplit_once(": ").expect(key).1.to_owned(), because.to_owned())
    };
    let srv = why("srv: { hostname: _otlp._tcp.a.example }");
    assert_eq!(srv.0, "pools.a.resolver.srv");
    assert!(
        srv.1.starts_with(
            "it has no resolver for SRV records, and hashes no names of their targets; write dns or static"
        )
    );
    let names = why("k8s: { service: a, ports: [4317] }");
    assert_eq!(names.0, "pools.a.resolver.k8s");
    assert!(names.1.ends_with("write return_hostnames as it has it, or false"), "{}", names.1);
    let ports = why("k8s: { service: a, return_hostnames: true }").1;
    assert!(ports.starts_with("without ports it hashes names without a port; write ports as it has them"), "{ports}");
    for taken in [
        "k8s: { service: a, ports: [4317], return_hostnames: false }",
        "k8s: { service: a, ports: [4317, 4318], return_hostnames: true }",
        "dns: { hostname: a }",
        "static: { hostnames: [a, b] }",
    ] {
        assert_eq!(refused(taken), None, "{taken}");
    }
}

#[test]
fn the_check_finds_what_a_resolver_would_refuse_at_its_start() {
    let dns = |keys: &str| pool(&format!("resolver: {{ dns: {{ hostname: {keys} }} }}"));
    assert_eq!(dns("a, interval: 99ms"), "f:2:50: pools.a.resolver.dns.interval: must be at least 100ms");
    assert_eq!(dns("a, interval: 25h"), "f:2:50: pools.a.resolver.dns.interval: is longer than 24h");
    assert_eq!(dns("a, timeout: 0s"), "f:2:49: pools.a.resolver.dns.timeout: must be longer than 0s");
    assert_eq!(
        pool("resolver: { static: { hostnames: [a], timeout: 25h } }"),
        "f:2:55: pools.a.resolver.static.timeout: is longer than 24h"
    );
    assert_eq!(
        dns("10.0.0.1"),
        "f:2:37: pools.a.resolver.dns.hostname: \"10.0.0.1\" is not a host name: an address is not looked up; the static \
         resolver takes addresses"
    );
    assert!(
        dns("\"a:4317\"")
            .contains("\"a:4317\" is not a host name: write the name alone; the port has a key of its own")
    );
    assert!(dns("a..b").contains("\"a..b\" is not a host name: a host name has"));
}

#[test]
fn errors_suggest_the_missing_address_or_port() {
    let with = |section: &str| {
        complaint(&format!("pools: {{ a: {{ resolver: {{ dns: {{ hostname: a }} }} }} }}\n{section}\n"))
    };
    assert_eq!(
        with("receivers: { otlp: { protocols: { grpc: { endpoint: 4317 } } } }"),
        "f:2:53: receivers.otlp.protocols.grpc.endpoint: \"4317\" is a port without an address; write 127.0.0.1:4317 (this \
         machine) or 0.0.0.0:4317 (all IPv4 interfaces)"
    );
    assert!(with("admin: { endpoint: 127.0.0.1 }").ends_with("\"127.0.0.1\" has no port; write 127.0.0.1:8888"));
    assert!(with("health_check: { endpoint: 0.0.0.0 }").ends_with("\"0.0.0.0\" has no port; write 0.0.0.0:13133"));
}

#[test]
fn a_tab_in_the_indentation_is_named_with_its_position() {
    let tab = "a tab in the indentation of this line: YAML allows only spaces there; replace it by spaces";
    let routes = "routes: [{ signals: [traces], pool: a }]\n";
    for (text, place) in [
        ("pools:\n\ta:\n\t\tresolver: { dns: { hostname: a } }\n", "2:1"),
        ("pools:\n  a:\n  \tresolver: { dns: { hostname: a } }\n", "3:3"),
        ("pools:\n  a:\n    resolver: {\n\tdns: { hostname: a } }\n", "4:1"),
        ("pools:\n  a:\n    resolver:\n      dns:\n        hostname: a\n\t\tport: 4317\n", "6:1"),
        ("\tpools:\n  a:\n    resolver: { dns: { hostname: a } }\n", "1:1"),
    ] {
        assert_eq!(complaint(&format!("{text}{routes}")), format!("f:{place}: {tab}"), "{text:?}");
    }
    let list = "pools: { a: { resolver: { dns: { hostname: a } } } }\nroutes:\n-\tsignals: [traces]\n\tpool: a\n";
    assert!(complaint(list).ends_with(tab), "{}", complaint(list));
    // Between a key and its value a tab is allowed.
    assert_eq!(complaint(&format!("pools: {{ a: {{ resolver:\t{{ dns: {{ hostname: a }} }} }} }}\n{routes}")), "a");
    let bracket = complaint(&format!("pools: {{ a: {{ resolver: {{ dns: {{ hostname: a }} }}\n{routes}"));
    assert!(bracket.contains("this is not valid YAML") || bracket.contains("the file ends"), "{bracket}");
}

#[test]
fn sizes_with_a_wrong_unit_and_counts_with_a_unit_lead_to_what_to_write() {
    let queue =
        |size: &str| pool(&format!("resolver: {{ dns: {{ hostname: a }} }}, sending_queue: {{ queue_size: {size} }}"));
    assert_eq!(queue("16MB"), "a");
    assert_eq!(queue("16Mi"), "f:2:73: pools.a.sending_queue.queue_size: \"16Mi\" has an unknown unit; write 16MiB");
    assert!(queue("1000").ends_with(
        "1000B is less than one call may hold (max_request_size_mib: 4); it counts bytes, not requests: write 16MiB, for example"
    ));
    assert_eq!(
        pool("resolver: { dns: { hostname: a } }, max_request_size_mib: 4MiB"),
        "f:2:66: pools.a.max_request_size_mib: \"4MiB\" has a unit; the key is a number of MiB: write 4"
    );
    let limit = |size: &str| {
        let text = format!(
            "pools: {{ a: {{ resolver: {{ dns: {{ hostname: a }} }} }} }}\nmemory_limiter: {{ limit_mib: {size} }}\n"
        );
        complaint(&format!("{text}routes: [{{ signals: [traces], pool: a }}]\n"))
    };
    assert_eq!(limit("512"), "a");
    assert_eq!(limit(""), "a", "a key without a value is missing");
    let said = "f:2:30: memory_limiter.limit_mib: \"2GiB\" has a unit; the key is a number of MiB: write 2048";
    assert_eq!(limit("2GiB"), said);
}

#[test]
fn a_pool_without_a_route_is_a_warning_with_its_position() {
    let text = "pools:\n  a: { resolver: { dns: { hostname: a } } }\n  spare: { resolver: { dns: { hostname: b } } }\n\
                routes: [{ signals: [traces], pool: a }]\n";
    let config = Draft::parse("f", text, &|_| None).and_then(|draft| draft.check()).expect("valid");
    assert_eq!(
        config.warnings,
        [
            "f:3:3: pools.spare: no route names this pool, so it gets no records; add a route with its name as pool, or remove it"
        ]
    );
}

#[test]
fn one_variable_may_hold_all_backends() {
    let list = |hostnames: &str| pool(&format!("resolver: {{ static: {{ hostnames: \"{hostnames}\" }} }}"));
    assert!(list("${env:LIST}").contains("[\"one\", \"two:1\"]"), "{}", list("${env:LIST}"));
    assert!(list("${env:LINES}").contains("[\"one\", \"two:1\"]"), "{}", list("${env:LINES}"));
    assert!(list("${env:COMMAS}").contains("[\"one\", \"two:1\", \"[::1]:2\"]"), "{}", list("${env:COMMAS}"));
    assert!(list("[::1]:4317").contains("[\"[::1]:4317\"]"), "{}", list("[::1]:4317"));
    assert_eq!(
        list("${env:BAD}"),
        "f:2:41: pools.a.resolver.static.hostnames: this value does not fit (it is not shown); expected a list of backends \
         such as [collector-0:4317, collector-1:4317]"
    );
    // The same backend in two spellings, and one that cannot be connected to.
    assert!(list("10.0.0.1,[10.0.0.1]:4317").ends_with("hostnames: 10.0.0.1:4317 is listed twice"));
    let dialled = pool("resolver: { static: { hostnames: [a, 0.0.0.0] } }");
    assert!(
        dialled.starts_with("f:2:45: pools.a.resolver.static.hostnames[1]: 0.0.0.0:4317: an unspecified"),
        "{dialled}"
    );
}

/// Returns the error about a file without routes, in which the variable LATE is set.
fn late(text: &str) -> String {
    let environment = |name: &str| (name == "LATE").then(|| "20s".to_owned());
    let text = format!("{text}\nroutes: [{{ signals: [traces], pool: a }}]\n");
    let checked = Draft::parse("f", &text, &environment).and_then(|draft| draft.check());
    checked.expect_err(&text).to_string()
}

#[test]
fn a_timeout_above_the_deadline_is_refused_with_both_keys() {
    let pool = |more: &str| format!("pools: {{ a: {{ resolver: {{ dns: {{ hostname: a }} }}, {more} }} }}");
    assert_eq!(
        late(&pool("timeout: 20s")),
        "f:1:60: pools.a.timeout: 20s is longer than receivers.otlp.deadline, 8s: an attempt cannot outlast its \
         request; lower timeout, or raise the deadline"
    );
    // Neither of the two values is shown if it comes from a reference.
    assert_eq!(
        late(&pool("timeout: \"${env:LATE}\"")),
        "f:1:60: pools.a.timeout: is longer than receivers.otlp.deadline: an attempt cannot outlast its request; \
         lower timeout, or raise the deadline"
    );
    let deadline = "receivers: { otlp: { deadline: 3s } }\n";
    let hidden = "receivers: { otlp: { deadline: \"${env:SHORT:-3s}\" } }\n";
    assert!(late(&format!("{deadline}{}", pool("timeout: 5s"))).contains("receivers.otlp.deadline, 3s"));
    assert!(!late(&format!("{hidden}{}", pool("timeout: 5s"))).contains("3s"));
}

#[test]
fn a_skew_above_the_window_is_refused_and_its_default_depends_on_the_resolver() {
    let of = |resolver: &str, handoff: &str| {
        format!("pools: {{ a: {{ resolver: {{ {resolver} }}, ring: {{ handoff: {{ {handoff} }} }} }} }}")
    };
    let pool = |handoff: &str| of("dns: { hostname: a }", handoff);
    assert_eq!(
        late(&pool("window: 20s, skew: 30s")),
        "f:1:89: pools.a.ring.handoff.skew: 30s is longer than window, 20s: no trace would be sure to stay whole; lower \
         skew, or raise the window"
    );
    assert!(late(&pool("window: 48h")).contains("pools.a.ring.handoff.window: is longer than 24h"));
    let skew = |pool: String| {
        let text = format!("{pool}\nroutes: [{{ signals: [traces], pool: a }}]\n");
        let draft = Draft::parse("f", &text, &|_| None).expect("read");
        draft.check().expect("valid").pools[0].membership.ring.handoff.skew.as_secs()
    };
    let handoffs = ["window: 6s", "window: 30s", "window: 20s, skew: 7s"];
    assert_eq!(handoffs.map(|handoff| skew(pool(handoff))), [6, 30, 7]);
    assert_eq!(handoffs.map(|handoff| skew(of("k8s: { service: a.b }", handoff))), [6, 10, 7]);
    let warnings = |handoff: &str| {
        let text = format!("{}\nroutes: [{{ signals: [traces], pool: a }}]\n", pool(handoff));
        Draft::parse("f", &text, &|_| None).expect("read").check().expect("valid").warnings
    };
    let nothing_whole = "f:1:78: pools.a.ring.handoff.window: keeps no trace whole that is longer than 0s; set it to the longest \
                         trace, or write mode: immediate";
    assert_eq!(warnings("window: 0s"), [nothing_whole]);
    assert_eq!(warnings("window: 0s, mode: immediate"), [""; 0]);
    assert_eq!(warnings("window: 1s"), [""; 0]);
    let by_flag = Draft::of_backends("dns://a".parse().expect("backends"));
    assert_eq!(by_flag.check().expect("valid").pools[0].membership.ring.handoff.skew.as_secs(), 30);
}

#[test]
fn the_default_timeout_is_lowered_to_a_shorter_deadline() {
    let text = "receivers: { otlp: { deadline: 3s } }\npools: { a: { resolver: { dns: { hostname: a } } } }\n\
                routes: [{ signals: [traces], pool: a }]\n";
    let draft = Draft::parse("f", text, &|_| None).expect("read");
    assert_eq!(draft.check().expect("valid").pools[0].dispatch.keys.timeout.as_secs(), 3);
    assert!(draft.print().expect("printed").contains("    timeout: 3s\n"), "the effective timeout must be printed");
}
