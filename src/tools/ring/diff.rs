//! Compares the rings of two sources.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use serde::Serialize;

use super::{json_line, source::Rings};
use crate::admin::{
    api::json,
    pb::v1::{Member, PoolRing},
};

/// Comparison of two sources, pool by pool.
#[derive(Debug, Serialize)]
pub(super) struct Diff {
    a: String,
    b: String,
    pub(super) agree: bool,
    pub(super) pools: Vec<PoolDiff>,
}

/// Comparison of two rings.
#[derive(Debug, Serialize)]
pub(super) struct PoolDiff {
    pub(super) pool: String,
    /// The name of the pool in B if it is another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pool_in_b: Option<String>,
    pub(super) agree: bool,
    /// Differences other than those of backends.
    pub(super) why: Vec<String>,
    membership_fingerprints: [String; 2],
    placement_fingerprints: [String; 2],
    pub(super) only_in_a: Vec<String>,
    pub(super) only_in_b: Vec<String>,
    /// Members of both rings whose states differ.
    pub(super) states: Vec<Differing>,
    /// Members of both rings whose weights differ.
    pub(super) weights: Vec<Differing>,
}

/// A member of both rings with different values.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Differing {
    pub(super) identity: String,
    pub(super) in_a: String,
    pub(super) in_b: String,
}

/// Compares the pools with the same name. If each side has only one pool, compares these two, whatever their names.
pub(super) fn of(a: &Rings, b: &Rings) -> Diff {
    let live = a.live && b.live;
    let mut pools = Vec::new();
    if let ([of_a], [of_b]) = (&*a.pools, &*b.pools) {
        pools.push(compared(of_a, of_b, live));
    } else {
        let by_name = |rings: &Rings| -> BTreeMap<String, PoolRing> {
            rings.pools.iter().map(|ring| (ring.pool.clone(), ring.clone())).collect()
        };
        let (of_a, mut of_b, none) = (by_name(a), by_name(b), PoolRing::default());
        for (name, ring) in of_a {
            pools.push(match of_b.remove(&name) {
                Some(other) => compared(&ring, &other, live),
                None => PoolDiff { why: vec![format!("B has no pool {name}")], ..compared(&ring, &none, live) },
            });
        }
        pools.extend(of_b.into_iter().map(|(name, ring)| PoolDiff {
            why: vec![format!("A has no pool {name}")],
            ..compared(&none, &ring, live)
        }));
    }
    Diff { a: a.from.clone(), b: b.from.clone(), agree: pools.iter().all(|pool| pool.agree), pools }
}

/// Compares two rings. They agree if they send every trace to the same backend. If one of them does not belong to a
/// running proxy, only memberships are compared, since the states of its backends are not known.
fn compared(a: &PoolRing, b: &PoolRing, live: bool) -> PoolDiff {
    let (of_a, of_b) = (by_identity(a), by_identity(b));
    let only = |these: &BTreeMap<&str, &Member>, those: &BTreeMap<&str, &Member>| -> Vec<String> {
        these.keys().filter(|identity| !those.contains_key(*identity)).map(ToString::to_string).collect()
    };
    let differing = |what: &dyn Fn(&Member) -> String| -> Vec<Differing> {
        let both = of_a.iter().filter_map(|(identity, a)| Some((*identity, what(a), what(of_b.get(identity)?))));
        let differ = both.filter(|(_, a, b)| a != b);
        differ.map(|(identity, in_a, in_b)| Differing { identity: identity.to_owned(), in_a, in_b }).collect()
    };
    let state = |member: &Member| json::state_word(member.state).unwrap_or_else(|| "unknown".to_owned());
    let mut why = Vec::new();
    for (ring, side) in [(a, "A"), (b, "B")] {
        if ring.members.is_empty() {
            why.push(format!("no ring in {side}"));
        }
    }
    if a.algorithm != b.algorithm && why.is_empty() {
        why.push(format!("algorithm {} in A and {} in B", a.algorithm, b.algorithm));
    }
    let same_members = a.membership_fingerprint == b.membership_fingerprint;
    let same_placement = a.placement_fingerprint == b.placement_fingerprint || !live;
    PoolDiff {
        pool: if a.pool.is_empty() { b.pool.clone() } else { a.pool.clone() },
        pool_in_b: (!a.pool.is_empty() && !b.pool.is_empty() && a.pool != b.pool).then(|| b.pool.clone()),
        agree: why.is_empty() && same_members && same_placement,
        why,
        membership_fingerprints: [a, b].map(|ring| ring.membership_fingerprint.clone()),
        placement_fingerprints: [a, b].map(|ring| ring.placement_fingerprint.clone()),
        only_in_a: only(&of_a, &of_b),
        only_in_b: only(&of_b, &of_a),
        states: if live { differing(&state) } else { Vec::new() },
        weights: differing(&|member| member.weight.to_string()),
    }
}

fn by_identity(ring: &PoolRing) -> BTreeMap<&str, &Member> {
    ring.members.iter().map(|member| (&*member.identity, member)).collect()
}

impl PoolDiff {
    /// The result in words. Rings that agree have different placements only if one of them belongs to no running proxy,
    /// and the other one has ejected backends.
    fn result(&self) -> &'static str {
        let [a, b] = &self.placement_fingerprints;
        match self.agree {
            true if a == b => "agree",
            true => "agree (memberships are compared; placements differ by ejections)",
            false => "DIFFER",
        }
    }
}

/// Prints the comparison.
pub(super) fn print(diff: &Diff, as_json: bool, out: &mut (dyn Write + Send)) -> io::Result<()> {
    if as_json {
        return json_line(diff, out);
    }
    writeln!(out, "A: {}\nB: {}", diff.a, diff.b)?;
    for pool in &diff.pools {
        match &pool.pool_in_b {
            None => writeln!(out, "pool {}: {}", pool.pool, pool.result())?,
            Some(in_b) => writeln!(out, "pool {} in A, {in_b} in B: {}", pool.pool, pool.result())?,
        }
        for why in &pool.why {
            writeln!(out, "  {why}")?;
        }
        for (side, identities) in [("A", &pool.only_in_a), ("B", &pool.only_in_b)] {
            for identity in identities {
                writeln!(out, "  only in {side}: {identity}")?;
            }
        }
        for (what, differing) in [("", &pool.states), ("weight ", &pool.weights)] {
            for Differing { identity, in_a, in_b } in differing {
                writeln!(out, "  {identity} is {what}{in_a} in A and {what}{in_b} in B")?;
            }
        }
        let fingerprints = [("membership", &pool.membership_fingerprints), ("placement", &pool.placement_fingerprints)];
        for (what, [a, b]) in fingerprints {
            match (a.as_str(), b.as_str()) {
                ("", "") => {}
                (a, "") => writeln!(out, "  {what} {a} in A")?,
                ("", b) => writeln!(out, "  {what} {b} in B")?,
                (a, b) if a == b => writeln!(out, "  {what} {a} in both")?,
                (a, b) => writeln!(out, "  {what} {a} in A, {b} in B")?,
            }
        }
    }
    Ok(())
}
