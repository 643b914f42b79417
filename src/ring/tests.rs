//! Placement is checked against a golden file, a naive implementation and its guarantees.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    sync::Arc,
};

use proptest::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

use super::{
    slots_v1::{Probes, SLOTS},
    *,
};
use crate::{
    endpoint::{Endpoint, Endpoints},
    settings::{Handoff, HandoffMode},
};

const GOLDEN: &str = include_str!("../../tests/golden/slots_v1.csv");

/// If this variable is set to a path, the golden test writes its result there: `SPANRING_WRITE_GOLDEN=new.csv cargo
/// test golden`. The committed file is replaced by hand, and only before an algorithm's first release: a later change
/// of placement would move the traces of every operator.
const WRITE_GOLDEN: &str = "SPANRING_WRITE_GOLDEN";

/// Sizes that are cheap enough in a debug build; `cargo bench --bench ring -- --quality` measures every size up to 200.
const SIZES: [usize; 20] = [2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 20, 25, 32, 40, 50, 64, 100, 140, 200];

fn member(identity: impl Into<Arc<str>>, weight: u32) -> Member {
    Member { identity: identity.into(), weight, exporter_name: None }
}

/// `count` backends with addresses in a /16.
fn members(count: usize) -> Vec<Member> {
    (0..count).map(|index| member(format!("10.0.{}.{}:4317", index / 250, index % 250 + 1), 1)).collect()
}

fn endpoints(members: &[Member]) -> Endpoints {
    let endpoint =
        |member: &Member| Endpoint { weight: member.weight, ..Endpoint::new(Arc::clone(&member.identity), None) };
    let mut endpoints: Vec<Endpoint> = members.iter().map(endpoint).collect();
    endpoints.sort();
    endpoints.into()
}

fn base(members: &[Member]) -> Base {
    Base::build(members).expect("members must be placeable")
}

fn table(members: &[Member]) -> Table {
    Table::of(1, Algorithm::SlotsV1, &endpoints(members)).expect("members must be placeable")
}

fn owner_names(table: &Table) -> Vec<&str> {
    (0..table.slots()).map(|slot| &*table.backends()[table.owner_of_slot(slot) as usize].identity).collect()
}

// === the golden file ===

fn golden_memberships() -> Vec<(&'static str, Vec<Member>)> {
    vec![
        ("one", vec![member("10.0.0.1:4317", 1)]),
        ("four", members(4)),
        ("weights", vec![member("collector-a:4317", 1), member("collector-b:4317", 2), member("collector-c:4317", 5)]),
        (
            "ipv6",
            vec![member("[2001:db8::1]:4317", 1), member("[2001:db8::a:0:0:2]:4317", 1), member("[fd00::3]:14317", 1)],
        ),
        ("names", (0..7).map(|index| member(format!("collector-{index}.collectors.obs.svc:4317"), 1)).collect()),
        ("crowd", (0..60).map(|index| member(format!("10.1.{index}.7:4317"), 1 + index % 3)).collect()),
    ]
}

/// Two lines per case with fingerprints over all slots, then keys with their slots and owners.
fn golden_text() -> String {
    let mut text = String::from("case,key,slot,owner\n");
    for (case, members) in golden_memberships() {
        let table = table(&members);
        let fingerprints = (table.membership_fingerprint(), table.placement_fingerprint());
        writeln!(text, "{case},membership,,{:012x}", fingerprints.0).expect("writing to a string cannot fail");
        writeln!(text, "{case},placement,,{:012x}", fingerprints.1).expect("writing to a string cannot fail");
        for step in 0_u128..32 {
            let key = step.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835).to_be_bytes();
            let hex = key.iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
            let owner = &table.backends()[table.owner(&key) as usize].identity;
            writeln!(text, "{case},{hex},{},{owner}", slot_of(&key)).expect("writing to a string cannot fail");
        }
    }
    text
}

#[test]
fn placements_equal_the_golden_file() {
    let text = golden_text();
    if let Ok(path) = std::env::var(WRITE_GOLDEN) {
        std::fs::write(path, &text).expect("the path must be writable");
    }
    for (line, (now, golden)) in text.lines().zip(GOLDEN.lines()).enumerate() {
        assert_eq!(now, golden, "line {} of tests/golden/slots_v1.csv", line + 1);
    }
    assert_eq!(text.lines().count(), GOLDEN.lines().count(), "lines of tests/golden/slots_v1.csv");
}

#[test]
fn fingerprints_have_48_bits() {
    let table = table(&members(3));
    assert!(table.membership_fingerprint() < 1 << 48 && table.placement_fingerprint() < 1 << 48);
}

// === a naive way to place ===

/// The points of the backends that `includes` accepts, in a sorted map.
fn points_of(members: &[Member], includes: impl Fn(u16) -> bool) -> BTreeMap<u64, u16> {
    let mut points = BTreeMap::new();
    for (backend, member) in (0_u16..).zip(members).filter(|(backend, _)| includes(*backend)) {
        for node in 0..4096 * member.weight {
            let mut bytes = member.identity.as_bytes().to_vec();
            bytes.extend(node.to_le_bytes());
            points.insert(xxh3_64(&bytes), backend);
        }
    }
    points
}

/// The backend that a slot asks with this probe.
fn answer(points: &BTreeMap<u64, u16>, slot: u32, probe: u32) -> u16 {
    let mut key = slot.to_le_bytes().to_vec();
    key.extend(probe.to_le_bytes());
    let middle = u64::from(slot) * (1 << 47) + (1 << 46);
    let at = if probe == 0 { middle } else { xxh3_64(&key) };
    let next = points.range(at..).next().or_else(|| points.first_key_value());
    *next.expect("there are points").1
}

/// Places slots one after the other, from the last to the first, with points in a sorted map. A slot that a full
/// backend gives up is placed again immediately.
fn placed_naively(members: &[Member]) -> Vec<u16> {
    let points = points_of(members, |_| true);
    let mut rooms = Vec::new();
    let total: u64 = members.iter().map(|member| u64::from(member.weight)).sum();
    for member in members {
        let fair = u64::from(SLOTS) * u64::from(member.weight);
        rooms.push(usize::try_from((fair * 21 / (20 * total)).max(fair.div_ceil(total))).expect("slots are few"));
    }
    let mut kept: Vec<BTreeSet<(u64, u32)>> = vec![BTreeSet::new(); members.len()];
    for slot in (0..SLOTS).rev() {
        let (mut slot, mut asked) = (slot, BTreeSet::new());
        loop {
            // A displaced slot starts again from probe 0; backends that refused it once would refuse it again.
            let fresh = (0_u32..).map(|probe| answer(&points, slot, probe));
            let backend = fresh.into_iter().find(|backend| !asked.contains(&(slot, *backend))).expect("one has room");
            asked.insert((slot, backend));
            let index = usize::from(backend);
            let mut bytes = xxh3_64(members[index].identity.as_bytes()).to_le_bytes().to_vec();
            bytes.extend(slot.to_le_bytes());
            kept[index].insert((xxh3_64(&bytes), slot));
            if kept[index].len() <= rooms[index] {
                break;
            }
            slot = kept[index].pop_last().expect("it holds one").1;
        }
    }
    let mut owners = vec![0; SLOTS as usize];
    for (backend, slots) in (0_u16..).zip(&kept) {
        slots.iter().for_each(|(_, slot)| owners[*slot as usize] = backend);
    }
    owners
}

#[test]
fn placement_equals_one_made_slot_by_slot_in_another_order() {
    let mut crowd: Vec<Member> = members(30);
    crowd[3].weight = 3;
    crowd.sort();
    assert!(*base(&crowd).owners() == placed_naively(&crowd), "the order of work must not matter");
}

#[test]
fn a_substitute_is_asked_with_the_probe_that_the_backend_had_accepted() {
    // Of so many, some are overfull, so that others have slots that asked more than once.
    let full = base(&members(120));
    let probe = |slot: u32| u32::from(full.probes().of(slot));
    let later = (0..SLOTS).find(|slot| probe(*slot) > 0).expect("a slot that asked again");
    let away = BTreeSet::from([7, full.owners()[later as usize]]);
    let [whole, rest] = [false, true].map(|lacks| points_of(full.members(), |it| !lacks || !away.contains(&it)));
    for (slot, substitute) in full.overlay(&away).substitutes() {
        let [before, now] = [&whole, &rest].map(|points| answer(points, *slot, probe(*slot)));
        assert_eq!((before, now), (full.owners()[*slot as usize], *substitute), "slot {slot}");
    }
}

// === promises ===

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 50, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn order_of_members_never_reaches_placement(
        (sorted, shuffled) in proptest::collection::btree_map("[a-z0-9.:-]{1,30}", 1_u32..4, 1..8)
            .prop_map(|set| set.into_iter().map(|(identity, weight)| member(identity, weight)).collect::<Vec<_>>())
            .prop_flat_map(|sorted| (Just(sorted.clone()), Just(sorted).prop_shuffle()))
    ) {
        let mut doubled = shuffled.clone();
        doubled.extend(shuffled.first().cloned());
        let (one, other) = (base(&sorted), base(&doubled));
        prop_assert_eq!(one.members(), other.members());
        prop_assert_eq!(one.owners(), other.owners());
        prop_assert_eq!(one.fingerprint(), other.fingerprint());
    }
}

#[test]
fn shares_are_even_and_an_ejected_backend_that_leaves_moves_little_more() {
    for size in SIZES {
        let larger = members(size + 1);
        let full = table(&larger);
        let leavers = if size < 50 { &[size / 2, 0, size][..] } else { &[size / 2] };
        leavers.iter().for_each(|leaver| departs(&larger, &full, *leaver));
    }
}

/// Takes one backend away and checks the effects: shares stay even and few slots move. If it was ejected before it left,
/// few of its slots move a second time, and few of the others'. With two backends left, one departure changes nearly
/// everything, so the others' slots are checked from three on.
fn departs(larger: &[Member], full: &Table, leaver: usize) {
    let size = larger.len() - 1;
    let gone = table(&[&larger[..leaver], &larger[leaver + 1..]].concat());
    let busiest = gone.ownership().into_iter().fold(0.0, f64::max) * size as f64;
    assert!(busiest <= 1.05, "busiest of {size} has {busiest} of the mean");
    let moved = gone.moved_share(full) * larger.len() as f64;
    assert!(moved <= 1.3, "{size} backends: ±1 moves {moved} of the ideal");
    assert_eq!(gone.moved_share(full), full.moved_share(&gone), "moves must be the same there and back");

    let index = full.position(&larger[leaver].identity).expect("it is a member");
    let overlay = full.base().overlay(&BTreeSet::from([index]));
    let dead = Table::new(2, Arc::clone(full.base()), overlay, endpoints(larger));
    let (mut again, mut others, mut own) = (0.0, 0.0, 0.0);
    for (slot, (now, later)) in (0..).zip(owner_names(&dead).into_iter().zip(owner_names(&gone))) {
        let was_its = full.owner_of_slot(slot) == u32::from(index);
        own += f64::from(was_its);
        *(if was_its { &mut again } else { &mut others }) += f64::from(now != later);
    }
    let rest = f64::from(SLOTS) - own;
    assert!(again / own <= 0.01, "{size} backends: {} of the leaver's slots move twice", again / own);
    assert!(size < 3 || others / rest <= 0.001, "{size} backends: {} of the others' slots move", others / rest);
}

#[test]
fn shares_follow_weights() {
    let weighted = vec![member("a", 1), member("b", 2), member("c", 5)];
    let ownership = table(&weighted).ownership();
    assert_eq!(ownership.len(), 3);
    for (share, weight) in ownership.into_iter().zip([1.0, 2.0, 5.0]) {
        let fair = weight / 8.0;
        assert!(share <= fair * 1.05 && share >= fair * 0.9, "weight {weight} owns {share}");
    }
}

#[test]
fn shares_add_up_to_one_when_slots_are_few() {
    let heavy: Vec<Member> = (0..8).map(|index| member(format!("b{index}"), 256)).collect();
    let ownership = table(&heavy).ownership();
    assert!((ownership.iter().sum::<f64>() - 1.0).abs() < 1e-9);
}

#[test]
fn overlay_moves_only_slots_of_who_is_away_and_gives_them_back() {
    let all = members(6);
    let full = table(&all);
    for away in [BTreeSet::from([2]), BTreeSet::from([0, 3, 5]), (0..5).collect()] {
        let overlay = full.base().overlay(&away);
        let now = Table::new(2, Arc::clone(full.base()), overlay.clone(), endpoints(&all));
        for slot in 0..full.slots() {
            let (before, after) = (full.owner_of_slot(slot), now.owner_of_slot(slot));
            let was_away = away.contains(&u16::try_from(before).expect("few backends"));
            assert_eq!(before != after, was_away, "slot {slot}");
            assert!(!away.contains(&u16::try_from(after).expect("few backends")), "a substitute must be there");
        }
        let substitute = |slot| (slot, u16::try_from(now.owner_of_slot(slot)).expect("few backends"));
        let moved = (0..SLOTS).filter(|slot| full.owner_of_slot(*slot) != now.owner_of_slot(*slot)).map(substitute);
        assert!(overlay.substitutes() == moved.collect::<Vec<_>>(), "substitutes must be the moved slots, ascending");
        assert_eq!((overlay.away(), now.overlay().away()), (&away, &away));
        let share: f64 = away.iter().map(|backend| full.ownership()[usize::from(*backend)]).sum();
        assert!((now.moved_share(&full) - share).abs() < 1e-9);
        assert_eq!(now.membership_fingerprint(), full.membership_fingerprint());
        assert_ne!(now.placement_fingerprint(), full.placement_fingerprint());
        let back = full.base().overlay(&BTreeSet::new());
        let later = Table::new(3, Arc::clone(full.base()), back, endpoints(&all));
        assert_eq!(later.placement_fingerprint(), full.placement_fingerprint(), "slots must return");
    }
}

#[test]
fn probes_of_slots_that_asked_often_are_kept() {
    let probes = [0, 254, 255, 256, 0, 16_384, 1];
    let kept = Probes::new(&probes);
    assert_eq!((0..).zip(probes).map(|(slot, _)| kept.of(slot)).collect::<Vec<_>>(), probes);
    assert_eq!(kept.of(7), 0, "a slot that is not there has no probe");
}

#[test]
fn when_all_are_away_everybody_keeps_its_slots() {
    let full = table(&members(3));
    let overlay = full.base().overlay(&(0..9).collect());
    assert_eq!(
        (overlay.away().len(), overlay.substitutes().len()),
        (3, 0),
        "indexes beyond the members must not count"
    );
}

#[test]
fn fingerprints_tell_memberships_apart() {
    let of = |members: &[Member]| base(members).fingerprint();
    let all = [
        of(&[member("a", 1), member("b", 1)]),
        of(&[member("a", 1), member("b", 2)]),
        of(&[member("a", 2), member("b", 1)]),
        of(&[member("ab", 1)]),
        of(&[member("a", 1)]),
    ];
    assert_eq!(BTreeSet::from(all).len(), all.len());
}

#[test]
fn what_has_no_placement_is_refused() {
    let refused = |members: &[Member]| Base::build(members).err();
    assert_eq!(refused(&[]), Some(RingError::Empty));
    assert_eq!(refused(&[member("a", 0)]), Some(RingError::Weightless { identity: "a".into() }));
    assert_eq!(refused(&[member("a", 1), member("a", 2)]), Some(RingError::Duplicate { identity: "a".into() }));
    let most = slots_v1::MAX_TOTAL_WEIGHT;
    assert_eq!(refused(&[member("a", 2048), member("b", 1)]), Some(RingError::TooHeavy { total: most + 1, most }));
}

#[test]
fn table_takes_addresses_by_identity() {
    let all = members(3);
    let full = table(&all);
    let mut listed = endpoints(&all).to_vec();
    listed.remove(1);
    listed[1].address = Some(([10, 0, 0, 3], 4317).into());
    let other = Table::new(2, Arc::clone(full.base()), Overlay::default(), listed.into());
    let addresses: Vec<bool> = other.backends().iter().map(|backend| backend.address.is_some()).collect();
    assert_eq!(addresses, [false, false, true], "backends must stay in the members' order");
}

#[test]
fn endpoints_are_aligned_with_the_members() {
    let full = table(&[member("a", 1), member("b", 2), member("c", 1)]);
    let aligned = |listed: &[(&str, u32, u16)]| -> Vec<(String, u32, Option<u16>)> {
        let endpoint = |(identity, weight, port): &(&str, u32, u16)| Endpoint {
            weight: *weight,
            ..Endpoint::new(*identity, Some(([127, 0, 0, 1], *port).into()))
        };
        let endpoints: Endpoints = listed.iter().map(endpoint).collect();
        let other = Table::new(2, Arc::clone(full.base()), Overlay::default(), endpoints);
        let shown = |backend: &Endpoint| {
            let port = backend.address.map(|address| address.port());
            (backend.identity.to_string(), backend.weight, port)
        };
        other.backends().iter().map(shown).collect()
    };
    let expected =
        |[a, b, c]: [Option<u16>; 3]| vec![("a".to_owned(), 1_u32, a), ("b".to_owned(), 2, b), ("c".to_owned(), 1, c)];
    let all = [Some(1), Some(2), Some(3)];
    assert_eq!(aligned(&[("a", 1, 1), ("b", 2, 2), ("c", 1, 3)]), expected(all));
    assert_eq!(aligned(&[("a", 2, 1), ("b", 1, 2), ("c", 2, 3)]), expected(all), "the base's weights count");
    assert_eq!(aligned(&[("a", 1, 1), ("b", 2, 2)]), expected([Some(1), Some(2), None]));
    assert_eq!(aligned(&[("a", 1, 1), ("c", 1, 3)]), expected([Some(1), None, Some(3)]));
    let shifted = [("b", 1, 2), ("c", 2, 3), ("d", 1, 4)];
    assert_eq!(aligned(&shifted), expected([None, Some(2), Some(3)]), "who is no member is left out");
}

#[test]
fn an_algorithm_is_found_by_its_name_and_states_its_parameters() {
    assert_eq!(Algorithm::from_name("slots_v1"), Some(Algorithm::SlotsV1));
    assert_eq!(["", "slots_v", "slots_v2"].map(Algorithm::from_name), [None; 3]);
    let algorithm = Algorithm::SlotsV1;
    assert_eq!((algorithm.name(), algorithm.slots()), ("slots_v1", 131_072));
    let parameters: [(&str, u64); 3] = [("slots", 131_072), ("points_per_weight", 4_096), ("bound_percent", 105)];
    assert_eq!(algorithm.named_parameters(), parameters);
    for key in [&b""[..], b"key", &[0; 16], &[0xff; 16]] {
        assert_eq!(algorithm.slot_of(key), slot_of(key));
        assert!(slot_of(key) < algorithm.slots());
    }
}

#[test]
fn a_base_has_its_members_sorted_and_once() {
    let [a, b, c] = [member("a", 1), member("b", 2), member("c", 1)];
    let base = base(&[c.clone(), a.clone(), b.clone(), a.clone()]);
    assert_eq!(base.members(), [a, b, c]);
    assert_eq!((base.algorithm(), base.owners().len()), (Algorithm::SlotsV1, SLOTS as usize));
}

#[test]
fn a_table_answers_by_slot_by_key_and_by_backend() {
    let all = members(5);
    let full = table(&all);
    assert_eq!((full.slots(), full.generation, full.backends().len()), (SLOTS, 1, 5));
    for key in [&b""[..], b"key", &[0; 16], &[0xff; 16]] {
        assert_eq!(full.slot_of(key), slot_of(key));
        assert_eq!(full.owner(key), full.owner_of_slot(slot_of(key)));
    }
    let counts = full.owned_slots();
    assert_eq!((counts.len(), counts.iter().sum::<u32>()), (5, SLOTS));
    for (backend, count) in (0..).zip(counts) {
        let owned = (0..SLOTS).filter(|slot| full.owner_of_slot(*slot) == backend).count();
        assert_eq!(owned, count as usize, "backend {backend}");
    }
    for (index, member) in (0..).zip(&all) {
        assert_eq!(full.position(&member.identity), Some(index));
    }
    assert_eq!(full.position("10.0.0.1"), None);
    assert_eq!(full.moved_share(&full), 0.0);
    assert_eq!((full.overlay().away().len(), full.overlay().substitutes().len()), (0, 0));
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "slot 131072 does not exist")]
fn a_slot_beyond_the_last_is_found_in_debug_builds() {
    let owner = table(&members(2)).owner_of_slot(SLOTS);
    panic!("backend {owner} owns it");
}

#[test]
fn a_table_is_shown_with_its_fingerprints() {
    let full = table(&members(2));
    let shown = format!("{full:?}");
    let fingerprints = [full.membership_fingerprint(), full.placement_fingerprint()].map(|it| format!("{it:012x}"));
    let [membership, placement] = &fingerprints;
    for part in ["generation: 1", "slots_v1", "10.0.0.2:4317", membership.as_str(), placement.as_str()] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
}

#[test]
fn a_backend_that_left_is_one_target_at_its_last_address() {
    let at = |name: &str, port: u16| Endpoint::new(name, Some(([127, 0, 0, 1], port).into()));
    let table = |endpoints: Vec<Endpoint>| Table::of(1, Algorithm::SlotsV1, &endpoints.into()).expect("placeable");
    let handoff = Handoff { mode: HandoffMode::Dual, ..Handoff::default() };
    let others = || vec![at("a", 1), at("b", 2)];
    let all = |port: u16| [others(), vec![at("c", port), at("d", 4)]].concat();
    let steps = [
        [others(), vec![at("c", 3)]].concat(),
        all(3),
        // Its name is resolved anew, so that no slot moves.
        all(7),
        [others(), vec![at("d", 4)]].concat(),
    ];
    let mut tables = steps.into_iter().zip(1..).map(|(endpoints, second)| (table(endpoints), second * 1_000_000_000));
    let (first, _) = tables.next().expect("the first");
    let last = tables.fold(first.with_handoff(handoff), |before, (after, at)| {
        after.replacing(&before, at, handoff, &BTreeSet::new())
    });
    assert_eq!(last.history().len(), 2, "it is in two of the tables before");
    assert_eq!(last.targets()[3..], [at("c", 7)]);
    assert_eq!(last.target("c"), Some(3));
}
