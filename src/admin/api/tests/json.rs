//! The shapes of JSON answers, and the errors for invalid questions.

use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::json;

use super::*;
use crate::admin::respond;

fn get(rig: &Rig, uri: &str) -> (StatusCode, Value) {
    let request = Request::builder().method(Method::GET).uri(uri).body(()).expect("a request");
    let (head, body) = respond(&rig.state, &request).into_parts();
    assert_eq!(head.headers["content-type"], "application/json", "{uri}");
    let body = futures_util::FutureExt::now_or_never(body.collect()).expect("a whole body").expect("a body");
    (head.status, serde_json::from_slice(&body.to_bytes()).expect(uri))
}

fn ok(rig: &Rig, uri: &str) -> Value {
    let (status, value) = get(rig, uri);
    assert_eq!(status, StatusCode::OK, "{uri}: {value}");
    timeless(value)
}

/// Status, code and message of an error.
fn error(rig: &Rig, uri: &str) -> (u16, String, String) {
    let (status, value) = get(rig, uri);
    let text = |key: &str| value["error"][key].as_str().expect(uri).to_owned();
    assert_eq!(value["api_version"], "v1");
    (status.as_u16(), text("code"), text("message"))
}

#[tokio::test]
async fn the_ring_has_this_shape() {
    let rig = Rig::of_three().await;
    let table = rig.table();
    let (owned, shares) = (table.owned_slots(), table.ownership());
    let member = |n: usize, name: &str| {
        json!({
            "identity": name, "address": "127.0.0.1:1", "state": "active", "since": "TIME",
            "owned_slots": owned[n], "owned_share": shares[n], "weight": 1
        })
    };
    let expected = json!({
        "api_version": "v1",
        "pools": [{
            "pool": "tail", "signals": ["traces", "logs"], "generation": 1,
            "membership_fingerprint": format!("{:012x}", table.membership_fingerprint()),
            "placement_fingerprint": format!("{:012x}", table.placement_fingerprint()),
            "algorithm": "slots_v1",
            "parameters": { "bound_percent": 105, "points_per_weight": 4096, "slots": 131_072 },
            "slots": 131_072, "built_at": "TIME", "build_seconds": 0, "cause": "discovery", "moved_share": 0.0,
            "overlay_slots": 0, "panic": false, "handoff_windows": 0, "handoff_until": null,
            "handoff_mode": "dual",
            "members": [member(0, "a"), member(1, "b"), member(2, "c")]
        }]
    });
    assert_eq!(ok(&rig, "/api/v1/ring"), expected);
    assert_eq!(ok(&rig, "/api/v1/ring?pool=tail"), expected);
}

#[tokio::test]
async fn backends_have_this_shape() {
    let mut rig = Rig::of_three().await;
    rig.feeds[0].refuse("b").await;
    let backend = |name: &str| {
        json!({
            "identity": name, "address": "127.0.0.1:1", "state": "active", "why": "discovery lists it", "since": "TIME",
            "held_until": null, "last_failure": null, "queue_bytes": 0, "in_flight_calls": 0, "in_flight_bytes": 0,
            "connections": 0
        })
    };
    let mut ejected = backend("b");
    ejected["state"] = "ejected".into();
    ejected["why"] = "it fails (refused): its slots go to substitutes until it answers".into();
    ejected["last_failure"] = json!({ "reason": "refused", "at": "TIME" });
    let expected = json!({
        "api_version": "v1",
        "pools": [{ "pool": "tail", "backends": [backend("a"), ejected, backend("c")] }]
    });
    assert_eq!(ok(&rig, "/api/v1/backends"), expected);
}

#[tokio::test]
async fn changes_have_this_shape() {
    let mut rig = Rig::of_three().await;
    let first = rig.table();
    rig.feeds[0].refuse("b").await;
    let second = rig.table();
    let hex = |fingerprint: u64| format!("{fingerprint:012x}");
    let expected = json!({
        "api_version": "v1",
        "pools": [{ "pool": "tail", "changes": [{
            "generation": 1, "at": "TIME", "cause": "discovery", "added_count": 3, "added": ["a", "b", "c"],
            "removed_count": 0, "removed": [], "ejected_count": 0, "ejected": [], "returned_count": 0, "returned": [],
            "moved_share": 0.0, "build_seconds": 0,
            "membership_fingerprint_before": "", "membership_fingerprint": hex(first.membership_fingerprint()),
            "placement_fingerprint_before": "", "placement_fingerprint": hex(first.placement_fingerprint()),
            "handoff_until": null
        }, {
            "generation": 2, "at": "TIME", "cause": "ejection", "added_count": 0, "added": [],
            "removed_count": 0, "removed": [], "ejected_count": 1, "ejected": ["b"], "returned_count": 0, "returned": [],
            "moved_share": second.moved_share(&first), "build_seconds": 0,
            "membership_fingerprint_before": hex(first.membership_fingerprint()),
            "membership_fingerprint": hex(first.membership_fingerprint()),
            "placement_fingerprint_before": hex(first.placement_fingerprint()),
            "placement_fingerprint": hex(second.placement_fingerprint()), "handoff_until": "TIME"
        }] }]
    });
    assert_eq!(ok(&rig, "/api/v1/changes"), expected);
}

#[tokio::test]
async fn a_look_up_names_the_owner_and_the_reason() {
    let mut rig = Rig::of_three().await;
    let id = rig.trace_of("b");
    let uri = format!("/api/v1/lookup?trace_id={}", id.to_uppercase());
    let slot = rig.table().slot_of(&u128::from_str_radix(&id, 16).expect("hex").to_be_bytes());
    let expected = json!({
        "api_version": "v1", "trace_id": id,
        "pools": [{
            "pool": "tail", "signals": ["traces", "logs"], "slot": slot, "generation": 1,
            "placement_fingerprint": format!("{:012x}", rig.table().placement_fingerprint()),
            "owners": [{
                "identity": "b", "address": "127.0.0.1:1", "state": "active", "reason": "owner", "substitute_for": "",
                "until": null
            }],
            "previous_owners": []
        }]
    });
    assert_eq!(ok(&rig, &uri), expected);
    rig.feeds[0].refuse("b").await;
    let answer = ok(&rig, &uri);
    let owner = &answer["pools"][0]["owners"][0];
    assert_ne!(owner["identity"], "b");
    assert_eq!((&owner["reason"], &owner["substitute_for"]), (&"substitute for b (ejected)".into(), &"b".into()));
    assert_eq!(answer["pools"][0]["generation"], 2);
}

#[tokio::test]
async fn a_look_up_of_a_backend_that_is_held_says_until_when() {
    let mut rig = Rig::of_three().await;
    // Another backend joins at the same time, so that the test can wait for a new table.
    rig.feeds[0].discover(&["a", "b", "d"]).await;
    let id = rig.trace_of("c");
    let (_, answer) = get(&rig, &format!("/api/v1/lookup?trace_id={id}"));
    let owner = &answer["pools"][0]["owners"][0];
    let until = owner["until"].as_str().expect("a time");
    assert_eq!(owner["reason"], format!("owner, held until {until} (left discovery)"));
    assert_eq!(owner["state"], "draining");
}

#[tokio::test]
async fn a_look_up_names_previous_owners_and_changes_say_until_when_they_count() {
    let mut rig = Rig::of_three().await;
    let before = rig.table();
    rig.feeds[0].discover(&["a", "b", "c", "d"]).await;
    let id = rig.trace_of("d");
    let old = before.owner(&u128::from_str_radix(&id, 16).expect("hex").to_be_bytes());
    let (_, answer) = get(&rig, &format!("/api/v1/lookup?trace_id={id}"));
    let placement = &answer["pools"][0];
    assert_eq!(
        (&placement["owners"][0]["identity"], &placement["owners"][0]["reason"]),
        (&"d".into(), &"owner".into())
    );
    let until = placement["previous_owners"][0]["until"].as_str().expect("a time");
    let previous = json!([{
        "identity": before.backends()[old as usize].identity.to_string(), "address": "127.0.0.1:1", "until": until
    }]);
    assert_eq!(placement["previous_owners"], previous);
    let (_, of_logs) = get(&rig, &format!("/api/v1/lookup?trace_id={id}&signal=logs"));
    assert_eq!(of_logs["pools"][0]["previous_owners"], json!([]), "logs go to the new owner at once");
    let (_, changes) = get(&rig, "/api/v1/changes");
    assert_eq!(changes["pools"][0]["changes"][1]["handoff_until"], until);
    let (_, ring) = get(&rig, "/api/v1/ring");
    let ring = &ring["pools"][0];
    assert_eq!((&ring["handoff_windows"], &ring["handoff_until"]), (&1.into(), &until.into()));
}

#[tokio::test]
async fn pools_and_signals_are_chosen() {
    let mut rig = Rig::new(&["tail", "idle & new"]);
    rig.feeds[0].discover(&["a", "b"]).await;
    let pools = |uri: &str| -> Vec<String> {
        let answer = ok(&rig, uri);
        let names = answer["pools"].as_array().expect("pools").iter();
        names.map(|pool| pool["pool"].as_str().expect("a name").to_owned()).collect()
    };
    assert_eq!(pools("/api/v1/ring"), ["idle & new", "tail"]);
    assert_eq!(pools("/api/v1/ring?pool=idle+%26%20new"), ["idle & new"]);
    assert_eq!(pools(&format!("/api/v1/lookup?trace_id={TRACE}&signal=logs")), ["tail"]);
    assert_eq!(pools(&format!("/api/v1/lookup?trace_id={TRACE}&pool=tail&signal=traces")), ["tail"]);
    let ring = ok(&rig, "/api/v1/ring?pool=idle+%26%20new");
    assert_eq!((&ring["pools"][0]["generation"], &ring["pools"][0]["cause"]), (&0.into(), &Value::Null));
    let lookup = |rest: &str| error(&rig, &format!("/api/v1/lookup?trace_id={TRACE}{rest}"));
    assert_eq!(lookup("").0, 503, "a pool without a table is not passed over");
    let expected = "pool idle & new has no backends yet: discovery has found none".to_owned();
    assert_eq!(lookup("&pool=idle+%26+new"), (503, "unavailable".to_owned(), expected));
    let expected = "metrics are routed to no pool that was asked for".to_owned();
    assert_eq!(lookup("&signal=metrics"), (404, "not_found".to_owned(), expected));
    rig.state.pools.remove("idle & new");
    assert_eq!(lookup("&pool=idle+%26+new").0, 404);
}

#[tokio::test]
async fn questions_that_make_no_sense_are_refused_with_the_reason() {
    let rig = Rig::of_three().await;
    let zeros = "0".repeat(32);
    let long = format!("/api/v1/lookup?trace_id={}", "a".repeat(2000));
    for (uri, status, message) in [
        ("/api/v1/lookup", 400, "no trace ID was given; it has 32 hex digits"),
        ("/api/v1/lookup?trace_id=", 400, "no trace ID was given; it has 32 hex digits"),
        ("/api/v1/lookup?trace_id=abc", 400, "a trace ID has 32 hex digits, this has 3 characters"),
        (
            "/api/v1/lookup?trace_id=0000000000000000000000000000000g",
            400,
            "a trace ID has 32 hex digits; 'g' is not a hex digit",
        ),
        (
            "/api/v1/lookup?trace_id=%2B0000000000000000000000000000001",
            400,
            "a trace ID has 32 hex digits; '+' is not a hex digit",
        ),
        ("/api/v1/lookup?trace_id=%FF%FE", 400, "a trace ID has 32 hex digits, this has 2 characters"),
        ("/api/v1/lookup?trace_id=%00", 400, "a trace ID has 32 hex digits, this has 1 characters"),
        (&*format!("/api/v1/lookup?trace_id={zeros}"), 400, "a trace ID of zeros is invalid"),
        (&long, 414, "the query is longer than 1024 bytes"),
        ("/api/v1/lookup?traceid=1", 400, "\"traceid\" can't be asked for here; write trace_id, pool, signal"),
        ("/api/v1/lookup?trace_id=1&trace_id=2", 400, "trace_id occurs twice in the query"),
        (&*format!("/api/v1/lookup?trace_id={TRACE}&signal=span"), 400, "\"span\" is no signal; there are: traces, "),
        (&*format!("/api/v1/lookup?trace_id={TRACE}&pool=head"), 404, "no pool is named \"head\"; there are: tail"),
        ("/api/v1/ring?pool=%3Cscript%3E", 404, "no pool is named \"<script>\"; there are: tail"),
        ("/api/v1/changes?pool=head", 404, "no pool is named \"head\"; there are: tail"),
        ("/api/v1/backends?limit=1", 400, "\"limit\" can't be asked for here; write pool"),
        ("/api/v1/ring?&&==&", 400, "\"\" can't be asked for here"),
        ("/api/v2/ring", 404, "no such page; there are: /api/v1/ring, "),
    ] {
        let (is, _, said) = error(&rig, uri);
        assert!(is == status && said.starts_with(message), "{uri}: {is} {said}");
    }
    let name = "x".repeat(900);
    let said = error(&rig, &format!("/api/v1/ring?pool={name}")).2;
    assert!(said.len() < 200, "what a client wrote is not repeated at length: {said}");
}

#[tokio::test]
async fn pages_of_the_api_are_only_read() {
    let rig = Rig::of_three().await;
    for method in [Method::POST, Method::PUT, Method::DELETE, Method::PATCH] {
        let request = Request::builder().method(method).uri("/api/v1/ring").body(()).expect("a request");
        let head = respond(&rig.state, &request).into_parts().0;
        assert_eq!(
            (head.status.as_u16(), &head.headers["allow"]),
            (405, &"GET, HEAD, OPTIONS".parse().expect("a value"))
        );
        assert_eq!(head.headers["content-type"], "application/json");
    }
    let request = Request::builder().method(Method::HEAD).uri("/api/v1/ring").body(()).expect("a request");
    let head = respond(&rig.state, &request).into_parts().0;
    assert_eq!(head.status, StatusCode::OK);
    for (name, value) in [
        ("cache-control", "no-store"),
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("referrer-policy", "no-referrer"),
        ("content-security-policy", "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"),
    ] {
        assert_eq!(head.headers[name], value, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_ring_tells_of_its_last_change_after_the_window_has_ended() {
    let mut rig = Rig::of_three().await;
    rig.feeds[0].discover(&["a", "b", "c", "d"]).await;
    let facts = |rig: &Rig| {
        let ring = &ok(rig, "/api/v1/ring")["pools"][0];
        ["generation", "built_at", "cause", "handoff_windows"].map(|key| ring[key].clone())
    };
    assert_eq!(facts(&rig), [json!(2), json!("TIME"), json!("discovery"), json!(1)]);
    let moved = ok(&rig, "/api/v1/ring")["pools"][0]["moved_share"].clone();
    assert!(moved.as_f64().is_some_and(|moved| moved > 0.2), "{moved}");
    rig.feeds[0].published.tables.mark_unchanged();
    rig.feeds[0].published.tables.changed().await.expect("the window ends");
    assert_eq!(facts(&rig), [json!(3), json!("TIME"), json!("discovery"), json!(0)]);
    assert_eq!(ok(&rig, "/api/v1/ring")["pools"][0]["moved_share"], moved);
}
