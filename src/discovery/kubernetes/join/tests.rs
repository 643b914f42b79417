//! Tests of joining, with EndpointSlices as the API server writes them.

use serde_json::{Value, json};

use super::*;

fn rules() -> Rules {
    Rules { service: "collectors".into(), namespace: "observability".into(), ports: vec![4317], hostnames: None }
}

fn slice(name: &str, family: &str, endpoints: Value) -> Slice {
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name,
            "namespace": "observability",
            "resourceVersion": "7",
            "labels": { "kubernetes.io/service-name": "collectors" },
            "managedFields": [{ "manager": "kube-controller-manager", "fieldsV1": { "f:endpoints": {} } }],
        },
        "addressType": family,
        "ports": [{ "name": "otlp-grpc", "port": 4317, "protocol": "TCP" }],
        "endpoints": endpoints,
    });
    serde_json::from_value(slice).expect("an EndpointSlice")
}

/// An endpoint of the pod `pod` with these conditions.
fn pod(pod: &str, ip: &str, conditions: Value) -> Value {
    let target = json!({ "kind": "Pod", "namespace": "observability", "name": pod, "uid": format!("uid of {pod}") });
    json!({ "addresses": [ip], "conditions": conditions, "targetRef": target, "nodeName": "node-1", "zone": "a" })
}

/// The same for a pod of a StatefulSet.
fn named(name: &str, ip: &str, conditions: Value) -> Value {
    let mut endpoint = pod(name, ip, conditions);
    endpoint["hostname"] = name.into();
    endpoint
}

fn ready() -> Value {
    json!({ "ready": true, "serving": true, "terminating": false })
}

/// Returns each backend as `identity at address`, with `draining` after it where it drains.
fn joined(slices: &[Slice], rules: &Rules) -> Vec<String> {
    let joined = join(slices, rules);
    let mut reversed = join(slices.iter().rev(), rules);
    reversed.left_out = joined.left_out;
    assert_eq!(joined, reversed, "the order of slices must not matter");
    let text = |endpoint: &Endpoint| {
        let draining = if endpoint.is_draining { " draining" } else { "" };
        format!("{} at {}{draining}", endpoint.identity, endpoint.address.expect("an address"))
    };
    joined.endpoints.iter().map(text).collect()
}

/// Joins one slice of IPv4 addresses.
fn one(endpoints: Value) -> Vec<String> {
    joined(&[slice("a", "IPv4", endpoints)], &rules())
}

#[test]
fn all_slices_make_one_set_sorted_by_identity() {
    let slices = [
        slice("b", "IPv4", json!([pod("y", "10.0.0.10", ready()), pod("x", "10.0.0.9", ready())])),
        slice("a", "IPv4", json!([pod("z", "10.0.0.1", ready())])),
        slice("c", "IPv4", Value::Null),
    ];
    let expected =
        ["10.0.0.10:4317 at 10.0.0.10:4317", "10.0.0.1:4317 at 10.0.0.1:4317", "10.0.0.9:4317 at 10.0.0.9:4317"];
    assert_eq!(joined(&slices, &rules()), expected);
    assert_eq!(join([], &rules()), Joined::default());
}

#[test]
fn missing_conditions_have_the_meanings_of_the_api() {
    let present = ["10.0.0.1:4317 at 10.0.0.1:4317"];
    let other = || pod("other", "10.0.0.2", ready());
    let state = |conditions: Value| {
        let mut all = one(json!([pod("a", "10.0.0.1", conditions), other()]));
        assert_eq!(all.pop().as_deref(), Some("10.0.0.2:4317 at 10.0.0.2:4317"));
        all
    };
    for conditions in [json!({}), Value::Null, json!({ "ready": null }), json!({ "ready": true }), ready()] {
        assert_eq!(state(conditions.clone()), present, "{conditions}");
    }
    for conditions in [
        json!({ "ready": false }),
        json!({ "ready": false, "serving": true }),
        json!({ "ready": false, "serving": true, "terminating": false }),
    ] {
        assert_eq!(state(conditions.clone()), [""; 0], "{conditions}");
    }
    for conditions in [
        json!({ "ready": false, "serving": true, "terminating": true }),
        // With publishNotReadyAddresses.
        json!({ "ready": true, "serving": true, "terminating": true }),
        json!({ "ready": true, "terminating": true }),
        json!({ "terminating": true }),
        // It became unready before anybody saw that it ends.
        json!({ "ready": false, "serving": false, "terminating": true }),
        json!({ "ready": true, "serving": false, "terminating": true }),
        json!({ "ready": false, "terminating": true }),
    ] {
        assert_eq!(state(conditions.clone()), ["10.0.0.1:4317 at 10.0.0.1:4317 draining"], "{conditions}");
    }
}

#[test]
fn where_all_are_draining_none_is() {
    let ends = json!({ "ready": false, "serving": true, "terminating": true });
    let both = one(json!([pod("a", "10.0.0.1", ends.clone()), pod("b", "10.0.0.2", ends)]));
    assert_eq!(both, ["10.0.0.1:4317 at 10.0.0.1:4317", "10.0.0.2:4317 at 10.0.0.2:4317"]);
}

#[test]
fn a_pod_in_two_slices_of_one_family_is_one_backend() {
    let (ends, late) = (json!({ "ready": false, "serving": true, "terminating": true }), json!({ "ready": false }));
    let beside = || pod("other", "10.0.0.2", ready());
    let twice = |first: &Value, second: &Value| {
        let slices = [
            slice("a", "IPv4", json!([pod("a", "10.0.0.1", first.clone()), beside()])),
            slice("b", "IPv4", json!([pod("a", "10.0.0.1", second.clone())])),
        ];
        joined(&slices, &rules()).swap_remove(0)
    };
    assert_eq!(twice(&ready(), &ready()), "10.0.0.1:4317 at 10.0.0.1:4317");
    assert_eq!(twice(&ready(), &late), "10.0.0.1:4317 at 10.0.0.1:4317");
    assert_eq!(twice(&ready(), &ends), "10.0.0.1:4317 at 10.0.0.1:4317 draining", "to end is for ever");
}

#[test]
fn a_dual_stack_pod_is_one_backend_by_its_ipv4_address() {
    let both = |name: &str| {
        [
            slice("v6", "IPv6", json!([named(name, "fd00::1", ready()), pod("plain", "fd00::2", ready())])),
            slice("v4", "IPv4", json!([named(name, "10.0.0.1", ready()), pod("plain", "10.0.0.2", ready())])),
        ]
    };
    let slices = both("c-0");
    let host = "c-0.collectors.observability:4317";
    assert_eq!(joined(&slices, &rules()), ["10.0.0.2:4317 at 10.0.0.2:4317", &format!("{host} at 10.0.0.1:4317")]);
    let only_v6 = ["[fd00::2]:4317 at [fd00::2]:4317", &format!("{host} at [fd00::1]:4317")];
    assert_eq!(joined(&slices[..1], &rules()), only_v6, "without any IPv4 address");
}

#[test]
fn a_pod_of_which_only_one_slice_is_written_does_not_change_its_identity() {
    let slices = [
        slice("v4", "IPv4", json!([pod("a", "10.0.0.1", ready())])),
        slice("v6", "IPv6", json!([pod("a", "fd00::1", ready()), pod("new", "fd00::2", ready())])),
    ];
    assert_eq!(joined(&slices, &rules()), ["10.0.0.1:4317 at 10.0.0.1:4317"]);
}

#[test]
fn slices_without_pods_are_joined_by_host_name_or_not_at_all() {
    let host = |ip: &str| json!({ "addresses": [ip], "hostname": "c-0" });
    let slices = [
        slice("v4", "IPv4", json!([host("10.0.0.1"), { "addresses": ["10.0.0.2", "10.0.0.3"] }])),
        slice("v6", "IPv6", json!([host("fd00::1"), { "addresses": ["fd00::2"] }])),
    ];
    let expected = ["10.0.0.2:4317 at 10.0.0.2:4317", "c-0.collectors.observability:4317 at 10.0.0.1:4317"];
    assert_eq!(joined(&slices, &rules()), expected, "only the first address of several is used");
}

#[test]
fn return_hostnames_demands_or_forbids_host_names() {
    let endpoints = json!([named("c-0", "10.0.0.1", ready()), pod("plain", "10.0.0.2", ready())]);
    let slices = [slice("a", "IPv4", endpoints)];
    let by = |hostnames| Rules { hostnames, ..rules() };
    let host = "c-0.collectors.observability:4317 at 10.0.0.1:4317";
    assert_eq!(joined(&slices, &by(None)), ["10.0.0.2:4317 at 10.0.0.2:4317", host]);
    assert_eq!(joined(&slices, &by(Some(true))), [host]);
    assert_eq!(join(&slices, &by(Some(true))).left_out, LeftOut { without_hostname: 1, ..LeftOut::default() });
    let addresses = ["10.0.0.1:4317 at 10.0.0.1:4317", "10.0.0.2:4317 at 10.0.0.2:4317"];
    assert_eq!(joined(&slices, &by(Some(false))), addresses);
}

#[test]
fn each_port_is_a_backend_of_its_own() {
    let slices = [slice("a", "IPv4", json!([named("c-0", "10.0.0.1", ready())]))];
    let host = "c-0.collectors.observability";
    let expected = [format!("{host}:14317 at 10.0.0.1:14317"), format!("{host}:4317 at 10.0.0.1:4317")];
    assert_eq!(joined(&slices, &Rules { ports: vec![4317, 14317], ..rules() }), expected);
}

#[test]
fn a_new_pod_of_a_name_takes_the_place_of_the_one_that_ends() {
    let ends = json!({ "ready": false, "serving": true, "terminating": true });
    let mut old = named("c-0", "10.0.0.1", ends);
    old["targetRef"]["uid"] = "before".into();
    let slices = [
        slice("a", "IPv4", json!([old])),
        slice("b", "IPv4", json!([named("c-0", "10.0.0.2", ready())])),
        slice("c", "IPv4", json!([named("c-1", "10.0.0.3", ready())])),
    ];
    let [first, second] = ["c-0", "c-1"].map(|name| format!("{name}.collectors.observability:4317"));
    assert_eq!(joined(&slices, &rules()), [format!("{first} at 10.0.0.2:4317"), format!("{second} at 10.0.0.3:4317")]);
    let expected = [format!("{first} at 10.0.0.1:4317 draining"), format!("{second} at 10.0.0.3:4317")];
    assert_eq!(joined(&[slices[0].clone(), slices[2].clone()], &rules()), expected, "it is not there yet");
}

#[test]
fn what_cannot_be_dialled_is_left_out_and_counted() {
    let slices = [
        slice("a", "IPv4", json!([pod("a", "0.0.0.0", ready()), pod("b", "fd00::1", ready()), { "addresses": [] }])),
        slice("b", "FQDN", json!([{ "addresses": ["collector.test"] }])),
        slice(
            "c",
            "IPv4",
            json!([named("A b", "10.0.0.1", ready()), pod("late", "10.0.0.2", json!({ "ready": false }))]),
        ),
    ];
    let expected = LeftOut { unusable: 5, not_serving: 1, ..LeftOut::default() };
    assert_eq!(join(&slices, &rules()), Joined { endpoints: Vec::new(), left_out: expected });
    assert_eq!(
        expected.to_string(),
        "1 not ready, 0 without a hostname, 5 without a usable name or address, 0 with the name or address of another one, 0 \
         beyond 65535"
    );
}

#[test]
fn pods_with_the_name_or_the_address_of_another_one_are_counted() {
    let of = |uid: &str, hostname: &str, ip: &str| json!({ "addresses": [ip], "hostname": hostname, "conditions": ready(), "targetRef": { "uid": uid } });
    let pods = json!([of("1", "c-0", "10.0.0.1"), of("2", "c-0", "10.0.0.2"), of("3", "c-1", "10.0.0.1")]);
    let joined = join(&[slice("a", "IPv4", pods)], &rules());
    let identities: Vec<&str> = joined.endpoints.iter().map(|it| &*it.identity).collect();
    assert_eq!(identities, ["c-0.collectors.observability:4317"]);
    assert_eq!(joined.left_out, LeftOut { merged: 2, ..LeftOut::default() });
    assert!(joined.left_out.is_odd());
}

#[test]
fn a_pool_has_no_more_backends_than_a_ring_can_hold() {
    let address = |n: usize| format!("10.{}.{}.1", n / 250, n % 250);
    let endpoints = (0..66).map(|n| pod(&format!("p{n}"), &address(n), ready())).collect();
    let rules = Rules { ports: (1..=1000).collect(), ..rules() };
    let joined = join(&[slice("a", "IPv4", Value::Array(endpoints))], &rules);
    assert_eq!((joined.endpoints.len(), joined.left_out.beyond), (MAX_ENDPOINTS, 66_000 - MAX_ENDPOINTS));
}

#[test]
fn a_thousand_endpoints_in_ten_slices_are_a_thousand_backends() {
    let of = |n: usize| pod(&format!("p{n}"), &format!("10.0.{}.{}", n / 250, n % 250 + 1), ready());
    let slices: Vec<Slice> =
        (0..10).map(|s| slice(&format!("s{s}"), "IPv4", (s * 100..(s + 1) * 100).map(of).collect())).collect();
    let Joined { endpoints, left_out } = join(&slices, &rules());
    assert_eq!((endpoints.len(), left_out), (1000, LeftOut::default()));
    assert!(endpoints.is_sorted(), "as the ring expects them");
}
