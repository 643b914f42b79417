//! Computes what a change of the membership would move.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    sync::Arc,
};

use serde::Serialize;

use super::{
    RingToolError, json_line, percent,
    source::{self, Member, Rings},
    table,
};
use crate::{admin::pb::v1::PoolRing, endpoint::Endpoint, ring::Table};

/// Effect of a change on one pool.
#[derive(Debug, Serialize)]
pub(super) struct Plan {
    from: String,
    pool: String,
    added: Vec<String>,
    removed: Vec<String>,
    slots: u32,
    moved_slots: u32,
    pub(super) moved_share: f64,
    /// Change of the backends' fair shares: the share of slots that an ideal placement would move.
    pub(super) expected_share: f64,
    membership_fingerprint_before: String,
    membership_fingerprint: String,
    pub(super) backends: Vec<Moves>,
}

/// Effect of a change on one backend, in shares of all slots.
#[derive(Debug, Serialize)]
pub(super) struct Moves {
    pub(super) identity: String,
    pub(super) share_before: f64,
    pub(super) share: f64,
    pub(super) gained_share: f64,
    pub(super) lost_share: f64,
}

/// Returns the effect of adding and removing backends on the only pool of `rings`, if all backends are healthy.
pub(super) fn of(rings: &Rings, add: &[Member], remove: &[Member]) -> Result<Plan, RingToolError> {
    let ring = match &*rings.pools {
        [ring] => ring,
        [] => return Err(RingToolError::Usage(format!("{} has no pool", rings.from))),
        several => {
            let names: Vec<&str> = several.iter().map(|ring| &*ring.pool).collect();
            let names = names.join(", ");
            return Err(RingToolError::Usage(format!(
                "{} has several pools; choose one by --pool: {names}",
                rings.from
            )));
        }
    };
    let before = source::table(&rings.from, ring)?;
    let endpoints = changed(&rings.from, ring, &before, add, remove)?;
    let after = source::built(&ring.pool, 0, before.base().algorithm(), &endpoints.into())?;
    let names = |members: &[Member]| members.iter().map(|member| member.identity().to_string()).collect();
    let (moved_slots, backends) = moves(&before, &after);
    Ok(Plan {
        from: rings.from.clone(),
        pool: ring.pool.clone(),
        added: names(add),
        removed: names(remove),
        slots: after.slots(),
        moved_slots,
        moved_share: after.moved_share(&before),
        expected_share: expected(&before, &after),
        membership_fingerprint_before: format!("{:012x}", before.membership_fingerprint()),
        membership_fingerprint: format!("{:012x}", after.membership_fingerprint()),
        backends,
    })
}

fn changed(
    from: &str,
    ring: &PoolRing,
    before: &Table,
    add: &[Member],
    remove: &[Member],
) -> Result<Vec<Endpoint>, RingToolError> {
    let is_member = |member: &Member| before.position(&member.identity()).is_some();
    if let Some(there) = add.iter().find(|member| is_member(member)) {
        let (pool, identity) = (&ring.pool, there.identity());
        return Err(RingToolError::Usage(format!("{identity} is in pool {pool} of {from} already")));
    }
    if let Some(missing) = remove.iter().find(|member| !is_member(member)) {
        let (pool, identity) = (&ring.pool, missing.identity());
        let known: Vec<&str> = ring.members.iter().map(|member| &*member.identity).take(10).collect();
        let more = if known.len() < ring.members.len() { ", …" } else { "" };
        let known = known.join(", ");
        return Err(RingToolError::Usage(format!("{identity} is not in pool {pool} of {from}: {known}{more}")));
    }
    let removed: Vec<Arc<str>> = remove.iter().map(Member::identity).collect();
    let stay = before.backends().iter().filter(|backend| !removed.contains(&backend.identity)).cloned();
    let mut endpoints: Vec<Endpoint> = stay.chain(add.iter().map(Member::endpoint)).collect();
    endpoints.sort();
    endpoints.dedup_by(|a, b| a.identity == b.identity);
    Ok(endpoints)
}

/// Returns the number of slots that move, and for each backend the shares it gains and loses.
fn moves(before: &Table, after: &Table) -> (u32, Vec<Moves>) {
    #[derive(Default)]
    struct Counts {
        before: u32,
        after: u32,
        gained: u32,
        lost: u32,
    }
    let identity = |table: &Table, slot: u32| {
        table.backends().get(table.owner_of_slot(slot) as usize).map(|backend| Arc::clone(&backend.identity))
    };
    let mut counts = BTreeMap::<Arc<str>, Counts>::new();
    for slot in 0..after.slots() {
        let (Some(old), Some(new)) = (identity(before, slot), identity(after, slot)) else { continue };
        let moved = u32::from(old != new);
        let of_new = counts.entry(new).or_default();
        of_new.after += 1;
        of_new.gained += moved;
        let of_old = counts.entry(old).or_default();
        of_old.before += 1;
        of_old.lost += moved;
    }
    let share = |count: u32| f64::from(count) / f64::from(after.slots());
    let moves = |(identity, counts): (Arc<str>, Counts)| Moves {
        identity: identity.to_string(),
        share_before: share(counts.before),
        share: share(counts.after),
        gained_share: share(counts.gained),
        lost_share: share(counts.lost),
    };
    (counts.values().map(|counts| counts.lost).sum(), counts.into_iter().map(moves).collect())
}

/// Returns the sum of the gains of fair shares by weight.
fn expected(before: &Table, after: &Table) -> f64 {
    let fair = |table: &Table| -> BTreeMap<Arc<str>, f64> {
        let total: f64 = table.backends().iter().map(|backend| f64::from(backend.weight)).sum();
        let share = |backend: &Endpoint| (Arc::clone(&backend.identity), f64::from(backend.weight) / total);
        table.backends().iter().map(share).collect()
    };
    let (before, after) = (fair(before), fair(after));
    after.iter().map(|(identity, share)| (share - before.get(identity).copied().unwrap_or(0.0)).max(0.0)).sum()
}

/// Prints a plan.
pub(super) fn print(plan: &Plan, as_json: bool, out: &mut (dyn Write + Send)) -> io::Result<()> {
    if as_json {
        return json_line(plan, out);
    }
    let Plan { from, pool, slots, moved_slots, .. } = plan;
    writeln!(out, "{from}: pool {pool}, {} added, {} removed", plan.added.len(), plan.removed.len())?;
    let (moved, expected) = (percent(plan.moved_share), percent(plan.expected_share));
    writeln!(out, "would move {moved} of the slots ({moved_slots} of {slots}); the fair shares change by {expected}")?;
    writeln!(out, "membership {} becomes {}", plan.membership_fingerprint_before, plan.membership_fingerprint)?;
    let mut rows = vec![["BACKEND", "OWNS", "WOULD OWN", "GAINS", "LOSES"].map(str::to_owned)];
    rows.extend(plan.backends.iter().map(|moves| {
        let shares = [moves.share_before, moves.share, moves.gained_share, moves.lost_share];
        let [before, after, gained, lost] = shares.map(percent);
        [moves.identity.clone(), before, after, gained, lost]
    }));
    table::write(&rows, out)
}
