//! The rings are checked against rows that the exporter's own source has written, against the vectors of the exporter's
//! unit tests, and at every size up to 300.

use std::{collections::BTreeSet, fmt::Write as _};

use super::{super::*, *};
use crate::endpoint::{Endpoint, Endpoints};

/// Written by `tests/golden/otelcol/write.sh`.
const GOLDEN: &str = include_str!("../../../tests/golden/otelcol.csv");

const RINGS: [Algorithm; 3] = [Algorithm::OtelcolV1, Algorithm::OtelcolV2, Algorithm::OtelcolV3];

fn members<T: AsRef<str>>(names: &[T]) -> Vec<Member> {
    names.iter().map(|name| Member { identity: name.as_ref().into(), weight: 1, exporter_name: None }).collect()
}

fn numbered(count: usize, name: impl Fn(usize) -> String) -> Vec<Member> {
    members(&(0..count).map(name).collect::<Vec<_>>())
}

fn base(algorithm: Algorithm, members: &[Member]) -> Base {
    Base::build_with(algorithm, members).expect("members must be placeable")
}

/// The name of a key's owner.
fn owner<'a>(base: &'a Base, key: &[u8]) -> &'a str {
    &base.members()[usize::from(base.owners()[base.algorithm().slot_of(key) as usize])].identity
}

// === the exporter's own source ===

/// The memberships of `tests/golden/otelcol/main.go`.
fn golden_memberships() -> Vec<(&'static str, Vec<Member>)> {
    vec![
        ("one", members(&["10.0.0.1:4317"])),
        ("two", members(&["endpoint-1", "endpoint-2"])),
        ("three", members(&["10.0.0.1:4317", "10.0.0.2:4317", "10.0.0.3:4317"])),
        ("bare", members(&["10.0.0.1", "10.0.0.10", "10.0.0.2", "10.0.0.3"])),
        ("ipv6", members(&["[2001:db8::1]", "[2001:db8::a:0:0:2]", "[fd00::3]"])),
        ("names", numbered(7, |n| format!("collector-{n}.collectors.obs.svc:4317"))),
        ("hundred", numbered(100, |n| format!("10.1.{n}.7:4317"))),
        ("300", numbered(300, |n| format!("endpoint-{n}"))),
        ("700", numbered(700, |n| format!("endpoint-{n}"))),
    ]
}

/// One line per case with a CRC-32 over the owners of all positions, then keys with their positions and owners.
fn rows(algorithm: Algorithm) -> String {
    let (ring, mut rows) = (algorithm.name(), String::new());
    for (case, members) in golden_memberships() {
        let base = base(algorithm, &members);
        let mut digest = crc32fast::Hasher::new();
        for owner in base.owners() {
            digest.update(base.members()[usize::from(*owner)].identity.as_bytes());
            digest.update(b"\n");
        }
        writeln!(rows, "{ring},{case},owners,,{:08x}", digest.finalize()).unwrap();
        for step in 0..16_u64 {
            let halves = [step.wrapping_mul(0x9e37_79b9_7f4a_7c15), (step + 1).wrapping_mul(0xf39c_c060_5ced_c835)];
            let key = halves.map(u64::to_be_bytes).concat();
            let hex = key.iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
            writeln!(rows, "{ring},{case},{hex},{},{}", algorithm.slot_of(&key), owner(&base, &key)).unwrap();
        }
    }
    rows
}

#[test]
fn keys_and_positions_have_the_owners_that_the_exporter_gives_them() {
    let text: String = RINGS.map(rows).concat();
    let golden = GOLDEN.lines().skip(1);
    for (line, (ours, theirs)) in text.lines().zip(golden.clone()).enumerate() {
        assert_eq!(ours, theirs, "line {} of tests/golden/otelcol.csv", line + 2);
    }
    assert_eq!(text.lines().count(), golden.count());
}

// === vectors of the exporter's unit tests ===

/// The points on the ring of these names in this order, each with its name.
fn points<'n>(rules: Rules, names: &[&'n str]) -> Vec<(usize, &'n str)> {
    let ring = rules.ring(&members(names), |_| true);
    let taken = ring.into_iter().enumerate().filter(|(_, point)| *point != FREE);
    taken.map(|(position, point)| (position, names[usize::from(point)])).collect()
}

fn positions(rules: Rules, names: &[&str]) -> Vec<usize> {
    points(rules, names).into_iter().map(|(position, _)| position).collect()
}

#[test]
fn keys_of_the_exporters_unit_tests() {
    let endpoints = members(&["endpoint-1", "endpoint-2"]);
    let [first, second] = ["endpoint-1", "endpoint-2"];
    let cases: [(&[u8], [&str; 3]); 4] = [
        (&[1, 2, 0, 0], [first, second, second]),
        (&[128, 128, 0, 0], [second, first, first]),
        (b"ad-service-7", [first, second, second]),
        (b"get-recommendations-1", [second, first, second]),
    ];
    for (algorithm, ring) in RINGS.into_iter().zip(0..) {
        let base = base(algorithm, &endpoints);
        for (key, owners) in &cases {
            assert_eq!(owner(&base, key), owners[ring], "{key:?} in {}", algorithm.name());
        }
    }
    for (rules, count) in [(V1, 200), (V2, 200), (V3, 400)] {
        assert_eq!(points(rules, &[first, second]).len(), count);
    }
}

#[test]
fn points_of_the_exporters_unit_tests() {
    let five = |rules: Rules| Rules { points: 5, ..rules };
    let one = ["endpoint-1"];
    let twice = ["endpoint-1", "endpoint-1"];
    let with_next = |points: &[usize]| -> Vec<usize> { points.iter().flat_map(|at| [*at, at + 1]).collect() };

    let v1 = [1401, 4175, 14133, 17836, 21667];
    assert_eq!(positions(five(V1), &one), v1);
    assert_eq!(positions(five(V1), &twice), v1, "a point whose position is taken is left out");
    let owners = ["1", "1", "2", "1", "2", "1", "2", "1", "2", "2"];
    let both = [1401, 4175, 10240, 14133, 15002, 17836, 21263, 21667, 26806, 27020];
    let named: Vec<(usize, &str)> = points(five(V1), &["endpoint-1", "endpoint-2"]);
    let expected: Vec<(usize, String)> = both.into_iter().zip(owners.map(|it| format!("endpoint-{it}"))).collect();
    assert_eq!(named.iter().map(|(at, name)| (*at, (*name).to_owned())).collect::<Vec<_>>(), expected);

    let v2 = [0x21ca, 0x29d3, 0x3984, 0x5eaf, 0x8bc1];
    assert_eq!(positions(five(V2), &one), v2);
    assert_eq!(positions(five(V2), &twice), with_next(&v2), "or takes the next position");
    let [a, b] = ["endpoint-A", "endpoint-B"];
    assert_eq!(
        points(five(V2), &[a, b]),
        [
            (0xdde, b),
            (0x162e, a),
            (0x21f5, b),
            (0x34e5, a),
            (0x61fb, b),
            (0x6910, b),
            (0x76a0, a),
            (0x7e2b, a),
            (0x7f7c, a),
            (0x85ac, b)
        ]
    );

    let v3 = [0x4be4, 0x666a, 0xad6f, 0x1a4c1, 0x1bae2];
    assert_eq!(positions(five(V3), &one), v3);
    assert_eq!(positions(five(V3), &twice), with_next(&v3));
    assert_eq!(
        points(five(V3), &[a, b]),
        [
            (0x61a4, b),
            (0xca91, a),
            (0x10b72, a),
            (0x11372, b),
            (0x116b1, b),
            (0x11801, a),
            (0x18a36, b),
            (0x1af01, b),
            (0x1af16, a),
            (0x1e723, a)
        ]
    );
    assert_eq!(positions(Rules { points: 2, positions: 1, reach: 1, ..V3 }, &["a", "b", "c"]), [0]);
}

#[test]
fn a_position_belongs_to_the_next_point_and_the_last_ones_to_the_first() {
    let at = [14_usize, 25, 33, 47, 56, 121, 134, 158, 240, 270, 350];
    let mut ring = vec![FREE; 400];
    for (backend, at) in (0..).zip(at) {
        ring[at] = backend;
    }
    let owners = owners(&ring).expect("points");
    for (position, next) in [(85, 121), (14, 14), (351, 14), (270, 270), (271, 350), (0, 14), (399, 14)] {
        assert_eq!(at[usize::from(owners[position])], next, "position {position}");
    }
    assert_eq!(super::owners(&[FREE; 400]), None);
}

#[test]
fn trace_ids_of_an_independent_implementation() {
    let endpoints = members(&["10.0.0.1:4317", "10.0.0.2:4317", "10.0.0.3:4317"]);
    let cases: [(u128, [(u32, u8); 3]); 6] = [
        (0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736, [(4869, 3), (4869, 3), (99_306, 3)]),
        (0, [(33_493, 2), (33_493, 1), (115_122, 3)]),
        (0x0102_0304 << 96, [(30_392, 3), (30_392, 2), (85_854, 1)]),
        (0x8080_8080 << 96, [(28_687, 1), (28_687, 2), (68_571, 1)]),
        (u128::MAX, [(14_266, 1), (14_266, 3), (124_403, 2)]),
        (0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c, [(25_813, 1), (25_813, 1), (58_042, 1)]),
    ];
    for (ring, algorithm) in RINGS.into_iter().enumerate() {
        let base = base(algorithm, &endpoints);
        for (id, placed) in &cases {
            let (slot, owner_number) = placed[ring];
            let key = id.to_be_bytes();
            let name = format!("10.0.0.{owner_number}:4317");
            assert_eq!((algorithm.slot_of(&key), owner(&base, &key)), (slot, &*name), "{id:032x}");
        }
    }
}

// === what must hold at every size ===

/// Checks that every position has an owner, and every backend positions, from 1 to 300 backends.
fn is_whole_at_every_size(algorithm: Algorithm) {
    let all = numbered(300, |n| format!("10.0.{}.{}:4317", n / 250, n % 250 + 1));
    for size in 1..=all.len() {
        let base = base(algorithm, &all[..size]);
        assert_eq!(base.owners().len(), algorithm.slots() as usize);
        let mut owned = vec![0_u32; size];
        base.owners().iter().for_each(|owner| owned[usize::from(*owner)] += 1);
        assert!(owned.iter().all(|slots| *slots > 0), "{size} backends");
    }
}

// A test for each, since they take seconds in a debug build.

#[test]
fn the_first_ring_is_whole_at_every_size() {
    is_whole_at_every_size(Algorithm::OtelcolV1);
}

#[test]
fn the_second_ring_is_whole_at_every_size() {
    is_whole_at_every_size(Algorithm::OtelcolV2);
}

#[test]
fn the_third_ring_is_whole_at_every_size() {
    is_whole_at_every_size(Algorithm::OtelcolV3);
}

#[test]
fn the_most_backends_are_placed_and_one_more_is_refused() {
    let most = usize::try_from(slots_v1::MAX_TOTAL_WEIGHT).expect("small");
    let mut all = numbered(most + 1, |n| format!("collector-{n}"));
    for algorithm in RINGS {
        let refused = Base::build_with(algorithm, &all).err();
        assert_eq!(refused, Some(RingError::TooHeavy { total: most as u64 + 1, most: most as u64 }));
    }
    all.pop();
    for algorithm in RINGS {
        let base = base(algorithm, &all);
        assert!(base.owners().iter().all(|owner| usize::from(*owner) < most), "{}", algorithm.name());
    }
}

// === names ===

/// Backends with a port, which the exporter puts on its ring without one.
fn bare(identities: &[&str]) -> Vec<Member> {
    let member = |identity: &&str| Member {
        identity: (*identity).into(),
        weight: 1,
        exporter_name: Some(identity.trim_end_matches(":4317").into()),
    };
    identities.iter().map(member).collect()
}

#[test]
fn the_exporters_name_is_hashed_and_sorted_by_where_it_differs_from_the_identity() {
    // By bytes, "10.0.0.1" comes before "10.0.0.10", but "10.0.0.1:4317" after "10.0.0.10:4317".
    let with_ports = bare(&["10.0.0.1:4317", "10.0.0.10:4317", "10.0.0.2:4317", "10.0.0.3:4317"]);
    let (_, without) = golden_memberships().into_iter().find(|(case, _)| *case == "bare").expect("a case");
    for algorithm in RINGS {
        let (ours, theirs) = (base(algorithm, &with_ports), base(algorithm, &without));
        let name =
            |base: &Base, slot: usize| base.members()[usize::from(base.owners()[slot])].exporter_name().to_owned();
        assert!((0..ours.owners().len()).all(|slot| name(&ours, slot) == name(&theirs, slot)), "{}", algorithm.name());
        let all_identities: Vec<&str> = with_ports.iter().map(|member| &*member.identity).collect();
        assert_ne!(ours.fingerprint(), base(algorithm, &members(&all_identities)).fingerprint());
    }
    let identities: Vec<&str> = with_ports.iter().map(|member| &*member.identity).collect();
    let (one, other) = (Base::build(&with_ports).unwrap(), Base::build(&members(&identities)).unwrap());
    assert!(one.owners() == other.owners() && one.fingerprint() == other.fingerprint(), "slots_v1 hashes identities");
}

#[test]
fn what_the_exporter_does_not_have_is_refused() {
    let [weighted, mut named] = [members(&["a", "b"]), members(&["a", "b"])].map(|mut it| {
        it[1].weight = 2;
        it
    });
    named[1] = Member { identity: "b".into(), weight: 1, exporter_name: Some("a".into()) };
    for algorithm in RINGS {
        let error = |members: &[Member]| Base::build_with(algorithm, members).expect_err("refused").to_string();
        let name = algorithm.name();
        assert_eq!(
            error(&weighted),
            format!("backend \"b\" has weight 2, but all backends of {name} own alike; give it weight 1")
        );
        assert_eq!(
            error(&named),
            format!("backends [\"a\", \"b\"] are both \"a\" on the ring of {name}; write one of them otherwise")
        );
        assert_eq!(Base::build_with(algorithm, &[]).err(), Some(RingError::Empty));
    }
}

#[test]
fn the_algorithms_differ_in_name_parameters_and_fingerprint() {
    let members = members(&["a", "b"]);
    let all: BTreeSet<u64> = Algorithm::ALL.map(|algorithm| base(algorithm, &members).fingerprint()).into();
    assert_eq!(all.len(), 4);
    for algorithm in Algorithm::ALL {
        assert_eq!(Algorithm::from_name(algorithm.name()), Some(algorithm));
        assert_eq!(algorithm.is_of_exporter(), algorithm != Algorithm::SlotsV1);
    }
    let parameters = [("slots", 36_000), ("points", 100), ("positions_tried", 1)];
    assert_eq!(Algorithm::OtelcolV1.named_parameters(), parameters);
    let parameters = [("slots", 131_071), ("points", 200), ("positions_tried", 10)];
    assert_eq!(Algorithm::OtelcolV3.named_parameters(), parameters);
    // Replicas compare fingerprints across releases, so what enters these stays. The last number says how many bytes of a
    // point's number are hashed, plus 256 if points take positions in the order of their hashes.
    let parameters = [[36_000, 100, 1, 1], [36_000, 100, 10, 4], [131_071, 200, 10, 260]];
    assert_eq!(RINGS.map(Algorithm::parameters), parameters);
}

// === tables ===

fn endpoints(members: &[Member]) -> Endpoints {
    members.iter().map(|member| Endpoint::new(Arc::clone(&member.identity), None)).collect()
}

#[test]
fn slots_of_a_backend_that_is_away_go_where_the_ring_without_it_places_them() {
    let all = members(&["a", "b", "c", "d", "e"]);
    for algorithm in RINGS {
        let full = Table::of(1, algorithm, &endpoints(&all)).unwrap();
        for away in [BTreeSet::from([2]), BTreeSet::from([0, 4]), BTreeSet::from([0, 1, 2, 3])] {
            let rest: Vec<Member> =
                (0..).zip(&all).filter(|(index, _)| !away.contains(index)).map(|(_, it)| it.clone()).collect();
            let without = base(algorithm, &rest);
            let overlay = full.base().overlay(&away);
            let now = Table::new(2, Arc::clone(full.base()), overlay, endpoints(&all));
            for slot in 0..full.slots() {
                let [before, after] = [&full, &now].map(|table| table.owner_of_slot(slot));
                let is_away = away.contains(&u16::try_from(before).unwrap());
                let expected = &without.members()[usize::from(without.owners()[slot as usize])].identity;
                let named = &now.backends()[after as usize].identity;
                assert!(if is_away { named == expected } else { before == after }, "slot {slot}");
            }
        }
        let nobody = full.base().overlay(&(0..5).collect());
        assert_eq!((nobody.away().len(), nobody.substitutes().len()), (5, 0), "then all keep their slots");
    }
}

#[test]
fn memory_is_counted_by_the_size_of_the_ring() {
    let few = endpoints(&members(&["a", "b", "c"]));
    let [v1, v2, v3] = RINGS.map(|algorithm| memory::of_build(algorithm, &few));
    assert!(v1 == v2 && v2 < v3 && v3 < memory::of_build(Algorithm::SlotsV1, &few), "{v1}, {v3}");
    let [v2, v3, ours] = [Algorithm::OtelcolV2, Algorithm::OtelcolV3, Algorithm::SlotsV1]
        .map(|algorithm| memory::of_table(&Table::of(1, algorithm, &few).unwrap()));
    assert!(4 * 36_000 <= v2 && 4 * 131_071 <= v3 && v3 < ours, "{v2}, {v3}, {ours}");
}
