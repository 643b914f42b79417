//! Tests of plans and comparisons of lists of backends, and of the notation of sources.

use clap::Parser;

use super::*;
use crate::admin::pb::v1::{self as pb, PoolRing};

/// A command line of this subcommand alone.
#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: Args,
}

/// Runs a command; returns its output and its exit code.
async fn ring(line: &str) -> Result<(String, ExitCode), RingToolError> {
    let words = ["ring"].into_iter().chain(line.split_whitespace());
    let line = Line::try_parse_from(words).unwrap_or_else(|error| panic!("{error}"));
    let mut out = Vec::new();
    let code = run(line.args, &mut out, &mut io::sink()).await?;
    Ok((String::from_utf8(out).expect("text"), code))
}

async fn json(line: &str) -> serde_json::Value {
    let text = ring(&format!("{line} --json")).await.expect(line).0;
    serde_json::from_str(&text).expect(line)
}

async fn refused(line: &str) -> String {
    ring(line).await.expect_err(line).to_string()
}

#[tokio::test]
async fn a_list_is_shown_as_a_ring() {
    let (text, _) = ring("show --members b,a:4317,10.0.0.1:1,a").await.expect("a ring");
    let rows: Vec<Vec<&str>> = text.lines().skip(2).map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["BACKEND", "ADDRESS", "STATE", "SINCE", "OWNS", "WEIGHT"]);
    let names: Vec<&str> = rows[1..4].iter().map(|row| row[0]).collect();
    assert_eq!(names, ["10.0.0.1:1", "a:4317", "b:4317"], "canonical, sorted, each once: {text}");
    assert_eq!(rows[2][1..4], ["-", "unresolved", "-"], "names are not resolved: {text}");
    let shown = json("show --members a,b").await;
    let other = json("show --members b,a").await;
    assert_eq!(shown["pools"][0]["membership_fingerprint"], other["pools"][0]["membership_fingerprint"]);
    assert_eq!(shown["pools"][0]["slots"], 131_072);
}

#[tokio::test]
async fn a_plan_shows_the_shares_that_would_move() {
    let plan = json("plan --members a,b,c,d --add e").await;
    let (moved, expected) =
        (plan["moved_share"].as_f64().expect("a share"), plan["expected_share"].as_f64().expect("one"));
    assert!((expected - 0.2).abs() < 1e-9 && (0.19..0.26).contains(&moved), "{plan}");
    let backends = plan["backends"].as_array().expect("backends");
    let sum = |key: &str| backends.iter().filter_map(|backend| backend[key].as_f64()).sum::<f64>();
    assert!((sum("gained_share") - moved).abs() < 1e-9 && (sum("lost_share") - moved).abs() < 1e-9, "{plan}");
    assert!((sum("share") - 1.0).abs() < 1e-9 && (sum("share_before") - 1.0).abs() < 1e-9);
    assert_eq!(backends[4]["identity"], "e:4317");
    assert_eq!(backends[4]["gained_share"], backends[4]["share"], "all that a new one owns is gained");
    assert_eq!(
        plan["membership_fingerprint"],
        json("show --members a,b,c,d,e").await["pools"][0]["membership_fingerprint"]
    );
    let swap = json("plan --members a,b,c --add d --remove a").await;
    assert!((swap["expected_share"].as_f64().expect("a share") - 1.0 / 3.0).abs() < 1e-9, "{swap}");
    let (text, _) = ring("plan --members a,b,c --remove a").await.expect("a plan");
    assert!(text.contains("0 added, 1 removed") && text.contains("the fair shares change by 33.33 %"), "{text}");
}

#[tokio::test]
async fn a_plan_that_makes_no_sense_is_refused() {
    assert_eq!(refused("plan --members a,b").await, "nothing to plan; write --add or --remove, or both");
    assert_eq!(refused("plan --members a,b --add a").await, "a:4317 is in pool default of --members already");
    assert!(refused("plan --members a,b --remove c").await.starts_with("c:4317 is not in pool default of --members"));
    assert_eq!(refused("plan --members a --remove a").await, "pool default has no ring");
}

/// The members of the ring in a JSON answer: identity, and the text that is hashed if that is another.
fn named(rings: &serde_json::Value) -> Vec<(&str, Option<&str>)> {
    let members = rings["pools"][0]["members"].as_array().expect("members");
    members
        .iter()
        .map(|member| (member["identity"].as_str().expect("an identity"), member["exporter_name"].as_str()))
        .collect()
}

#[tokio::test]
async fn rings_of_the_exporter_are_shown_planned_and_looked_up() {
    let id = "80808080000000000000000000000000";
    let members = "--members 10.0.0.1:4317,10.0.0.2:4317,10.0.0.3:4317";
    for (algorithm, slots, slot, owner) in
        [("otelcol_v1", 36_000, 28_687, 1), ("otelcol_v2", 36_000, 28_687, 2), ("otelcol_v3", 131_071, 68_571, 1)]
    {
        let shown = json(&format!("show {members} --algorithm {algorithm}")).await;
        let ring = &shown["pools"][0];
        assert_eq!((&ring["algorithm"], &ring["slots"]), (&algorithm.into(), &slots.into()));
        assert_eq!(ring["parameters"]["slots"], slots);
        let found = json(&format!("lookup {id} {members} --algorithm {algorithm}")).await;
        let placed = &found["pools"][0];
        assert_eq!(
            (&placed["slot"], &placed["owners"][0]["identity"]),
            (&slot.into(), &format!("10.0.0.{owner}:4317").into())
        );
        let plan = json(&format!("plan {members} --algorithm {algorithm} --add 10.0.0.4:4317")).await;
        let moved = plan["moved_share"].as_f64().expect("a share");
        assert!((0.2..0.3).contains(&moved), "one of four takes a quarter: {plan}");
    }
    let with = json("show --members 10.0.0.1:4317,b:4317 --algorithm otelcol_v2").await;
    let without = json("show --members 10.0.0.1,b:4317 --algorithm otelcol_v2").await;
    assert_eq!(named(&with), [("10.0.0.1:4317", None), ("b:4317", None)]);
    assert_eq!(named(&without), [("10.0.0.1:4317", Some("10.0.0.1")), ("b:4317", None)]);
    let fingerprint = |rings: &serde_json::Value| rings["pools"][0]["membership_fingerprint"].clone();
    assert_ne!(fingerprint(&with), fingerprint(&without), "the exporter hashes what is written");
    let ours = json("show --members 10.0.0.1,b:4317").await;
    assert_eq!(named(&ours), [("10.0.0.1:4317", None), ("b:4317", None)], "slots_v1 hashes identities");
    let plan = json("plan --members 10.0.0.1,b:4317 --algorithm otelcol_v2 --add c").await;
    assert_eq!(plan["membership_fingerprint_before"], fingerprint(&without), "a plan keeps the names");
    let words = ["ring", "show", "--config", "a.yaml", "--algorithm", "otelcol_v1"];
    assert!(Line::try_parse_from(words).is_err(), "a file says the algorithm itself");
}

#[tokio::test]
async fn the_algorithm_of_a_file_is_used() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("spanring.yaml");
    let hostnames = "[\"10.0.0.1\", \"10.0.0.2\", \"10.0.0.3\"]";
    let text = format!(
        "pools: {{ tail: {{ resolver: {{ static: {{ hostnames: {hostnames} }} }}, ring: {{ algorithm: otelcol_v2 }} }} }}\n\
         routes: [{{ signals: [traces], pool: tail }}]\n"
    );
    std::fs::write(&path, text).expect("written");
    let of_file = json(&format!("show --config {}", path.display())).await;
    let of_list = json("show --members 10.0.0.1,10.0.0.2,10.0.0.3 --algorithm otelcol_v2").await;
    for key in ["algorithm", "membership_fingerprint", "placement_fingerprint"] {
        assert_eq!(of_file["pools"][0][key], of_list["pools"][0][key], "{key}");
    }
    assert_eq!(named(&of_file)[0], ("10.0.0.1:4317", Some("10.0.0.1")));
}

#[tokio::test]
async fn rings_with_different_members_differ_by_name() {
    let (text, code) =
        ring("diff static://127.0.0.1:1,127.0.0.1:2 static://127.0.0.1:2,127.0.0.1:3").await.expect("a diff");
    assert!(text.contains("pool default: DIFFER"), "{text}");
    assert!(text.contains("\n  only in A: 127.0.0.1:1\n  only in B: 127.0.0.1:3\n"), "{text}");
    assert_eq!(code, ExitCode::from(1));
    let same = "diff static://127.0.0.1:1,127.0.0.1:2 static://127.0.0.1:2,127.0.0.1:1";
    let (text, code) = ring(same).await.expect("a diff");
    assert!(text.contains("pool default: agree") && text.contains(" in both\n"), "{text}");
    assert_eq!(code, ExitCode::SUCCESS);
    let diff = json(same).await;
    assert_eq!((&diff["agree"], &diff["pools"][0]["only_in_a"]), (&true.into(), &serde_json::json!([])));
}

/// Compares two sources, each with pools by name and placement fingerprint; returns the text.
fn compared(live: [bool; 2], pools: [&[(&str, &str)]; 2]) -> String {
    let ring = |(name, placement): &(&str, &str)| PoolRing {
        pool: (*name).to_owned(),
        membership_fingerprint: "aaa".to_owned(),
        placement_fingerprint: (*placement).to_owned(),
        members: vec![pb::Member { identity: "a:4317".to_owned(), ..pb::Member::default() }],
        ..PoolRing::default()
    };
    let rings = |at: usize, from: &str| source::Rings {
        from: from.to_owned(),
        live: live[at],
        pools: pools[at].iter().map(ring).collect(),
    };
    let mut out = Vec::new();
    diff::print(&diff::of(&rings(0, "one"), &rings(1, "two")), false, &mut out).expect("a text");
    String::from_utf8(out).expect("text")
}

#[test]
fn a_pool_that_one_side_lacks_is_named() {
    let text = compared([true; 2], [&[("both", "bbb"), ("x", "ccc")], &[("both", "bbb"), ("y", "ddd")]]);
    let expected = "A: one\nB: two\n\
                    pool both: agree\n  membership aaa in both\n  placement bbb in both\n\
                    pool x: DIFFER\n  B has no pool x\n  only in A: a:4317\n  membership aaa in A\n  placement ccc in A\n\
                    pool y: DIFFER\n  A has no pool y\n  only in B: a:4317\n  membership aaa in B\n  placement ddd in B\n";
    assert_eq!(text, expected);
}

#[tokio::test]
async fn a_list_is_compared_with_the_only_pool_or_the_named_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str, pools: &[&str]| {
        let pool =
            |name: &&str| format!("  {name}: {{ resolver: {{ static: {{ hostnames: [\"127.0.0.1:1\"] }} }} }}\n");
        let pools: String = pools.iter().map(pool).collect();
        let text = format!("pools:\n{pools}routes: [{{ signals: [traces], pool: tail }}]\n");
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.display().to_string()
    };
    let (one, two) = (file("one.yaml", &["tail"]), file("two.yaml", &["other", "tail"]));
    let list = "static://127.0.0.1:1";
    let (text, code) = ring(&format!("diff {one} {list}")).await.expect("a diff");
    assert!(text.contains("\npool tail in A, default in B: agree\n"), "{text}");
    assert_eq!(code, ExitCode::SUCCESS);
    assert_eq!(json(&format!("diff {one} {list}")).await["pools"][0]["pool_in_b"], "default");
    let expected = format!("{two} has the pools other, tail; write --pool NAME to compare one of them with {list}");
    assert_eq!(refused(&format!("diff {two} {list}")).await, expected);
    assert_eq!(refused(&format!("diff {list} {two}")).await, expected);
    let (text, _) = ring(&format!("diff {list} {two} --pool tail")).await.expect("a diff");
    assert!(text.contains("\npool default in A, tail in B: agree\n"), "{text}");
}

#[test]
fn panic_is_explained() {
    let ring = PoolRing { panic: true, members: vec![pb::Member::default()], ..PoolRing::default() };
    let mut out = Vec::new();
    let rings = source::Rings { from: "one".to_owned(), live: true, pools: vec![ring] };
    show::rings(&rings, false, &mut out).expect("a text");
    let text = String::from_utf8(out).expect("text");
    let expected = "PANIC: more backends fail than may be ejected (max_ejection_percent): none is, and all keep their slots, \
                    those in state ejected too";
    assert!(text.lines().any(|line| line == expected), "{text}");
}

#[test]
fn an_open_hand_off_is_told() {
    let until = Some("2026-01-02T03:04:05Z".parse().expect("a time"));
    let ring = |windows| PoolRing {
        handoff_windows: windows,
        handoff_until: until,
        handoff_mode: "dual".to_owned(),
        members: vec![pb::Member::default()],
        ..PoolRing::default()
    };
    for (windows, expected) in [
        (0, ""),
        (1, "hand-off (dual): the table before counts for traces that began with it, until 2026-01-02T03:04:05Z\n"),
        (2, "hand-off (dual): 2 tables before count for traces that began with it, until 2026-01-02T03:04:05Z\n"),
    ] {
        let mut out = Vec::new();
        let rings = source::Rings { from: "one".to_owned(), live: true, pools: vec![ring(windows)] };
        show::rings(&rings, false, &mut out).expect("a text");
        let text = String::from_utf8(out).expect("text");
        assert!(text.contains(expected) && text.contains("hand-off") != expected.is_empty(), "{text}");
    }
}

#[test]
fn only_two_running_proxies_differ_by_ejections() {
    let pools: [&[_]; 2] = [&[("tail", "bbb")], &[("tail", "ccc")]];
    assert!(compared([true; 2], pools).contains("pool tail: DIFFER\n"));
    let text = compared([true, false], pools);
    let expected = "pool tail: agree (memberships are compared; placements differ by ejections)\n";
    assert!(text.contains(expected) && text.contains("  placement bbb in A, ccc in B\n"), "{text}");
    assert!(compared([true, false], [&[("tail", "bbb")], &[("tail", "bbb")]]).contains("pool tail: agree\n"));
}

#[tokio::test]
async fn a_trace_is_looked_up_in_a_list() {
    let id = "4bf92f3577b34da6a3ce929d0e0e4736";
    let answer = json(&format!("lookup {id} --members a,b,c")).await;
    let owner = answer["pools"][0]["owners"][0]["identity"].as_str().expect("an owner").to_owned();
    let (text, _) = ring(&format!("lookup {id} --members c,b,a")).await.expect("an owner");
    assert!(text.lines().nth(1).is_some_and(|row| row.starts_with(id) && row.contains(&owner)), "{text}");
    // Refused before a proxy is asked.
    assert_eq!(
        refused("lookup 12 --admin 127.0.0.1:1").await,
        "\"12\": a trace ID has 32 hex digits, this has 2 characters"
    );
    assert_eq!(refused("lookup 12 --members a").await, "\"12\": a trace ID has 32 hex digits, this has 2 characters");
    let said = refused(&format!("lookup {id} --backends static://127.0.0.1:1 --signal logs")).await;
    assert_eq!(said, "logs are routed to no pool of static://127.0.0.1:1");
    assert!(refused(&format!("lookup {id} --members a --pool b")).await.contains("no pool is named \"b\""));
}

#[test]
fn the_error_about_a_signal_says_which_one_is_meant() {
    let said = |signal: &str| {
        let line = ["ring", "lookup", "4bf92f3577b34da6a3ce929d0e0e4736", "--members", "a", "--signal", signal];
        Line::try_parse_from(line).err().map(|error| error.to_string())
    };
    for (signal, meant) in [("trace", "traces"), ("span", "traces"), ("Traces", "traces"), ("log", "logs")] {
        let expected =
            format!("invalid value '{signal}' for '--signal <SIGNAL>': \"{signal}\" is no signal; write {meant}\n");
        assert!(said(signal).is_some_and(|said| said.contains(&expected)), "{:?}", said(signal));
    }
    assert!(said("x").is_some_and(|said| said.contains("write traces, metrics, logs or profiles")));
    assert_eq!(said("metrics"), None);
}

#[tokio::test]
async fn errors_name_the_source_that_failed() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    drop(listener);
    let said = refused(&format!("show --admin http://{address}/")).await;
    assert!(said.starts_with(&format!("cannot reach the admin listener at {address}; ")), "{said}");
    let missing = refused("show --config /nonexistent.yaml").await;
    assert!(missing.starts_with("cannot read /nonexistent.yaml"), "{missing}");
}

#[test]
fn the_kind_of_a_source_follows_from_its_notation() {
    let source = |text: &str| text.parse::<Source>().map(|source| source.to_string());
    for text in ["static://a:1,b:2", "dns://collectors.test:4317", "a.yaml", "/etc/x.yml", "spanring-0:8888", "[::1]:1"]
    {
        assert_eq!(source(text), Ok(text.to_owned()));
    }
    assert_eq!(source("http://spanring-0:8888/"), Ok("spanring-0:8888".to_owned()));
    for text in ["spanring-0", "https://a:1", "static://", "", "a:b"] {
        assert!(source(text).is_err(), "{text}");
    }
}

#[test]
fn every_example_of_the_help_parses() {
    let mut command = <Line as clap::CommandFactory>::command();
    command.build();
    let mut examples = 0;
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        let help = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
        for line in help.lines().filter_map(|line| line.trim().strip_prefix("spanring ")) {
            let words = line.split("  ").next().unwrap_or_default();
            assert!(Line::try_parse_from(words.split_whitespace()).is_ok(), "{words}");
            examples += 1;
        }
    }
    assert!(examples >= 12, "{examples}");
}
