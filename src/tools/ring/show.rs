//! Prints rings and placements.

use std::io::{self, Write};

use serde::Serialize;

use super::{json_line, percent, replicas::Placements, source::Rings, table};
use crate::admin::{
    api::{self, json},
    pb::v1::{LookupResponse, Owner, PoolRing, PreviousOwner},
};

/// The JSON of `/api/v1/ring` with its source.
#[derive(Serialize)]
struct RingsLine<'a> {
    from: &'a str,
    api_version: &'static str,
    pools: &'a [PoolRing],
}

/// The JSON of `/api/v1/lookup` with its source.
#[derive(Serialize)]
struct LookupLine<'a> {
    from: &'a str,
    #[serde(flatten)]
    answer: &'a LookupResponse,
}

/// Prints the rings of one source.
pub(super) fn rings(rings: &Rings, as_json: bool, out: &mut (dyn Write + Send)) -> io::Result<()> {
    let Rings { from, pools, .. } = rings;
    if as_json {
        return json_line(&RingsLine { from, api_version: api::VERSION, pools }, out);
    }
    for ring in pools {
        head(from, ring, out)?;
        members(ring, out)?;
        writeln!(out)?;
    }
    Ok(())
}

fn head(from: &str, ring: &PoolRing, out: &mut (dyn Write + Send)) -> io::Result<()> {
    let signals = if ring.signals.is_empty() { String::new() } else { format!(" ({})", ring.signals.join(", ")) };
    writeln!(out, "{from}: pool {}{signals}", ring.pool)?;
    if ring.members.is_empty() {
        return writeln!(out, "no backends yet: discovery has found none");
    }
    let (membership, placement) = (&ring.membership_fingerprint, &ring.placement_fingerprint);
    writeln!(out, "membership {membership}, placement {placement}, {}, {} slots", ring.algorithm, ring.slots)?;
    if let (Some(at), Some(cause)) = (ring.built_at, json::cause_word(ring.cause)) {
        let moved = percent(ring.moved_share);
        writeln!(out, "generation {} of {at} by {cause}: moved {moved}", ring.generation)?;
    }
    if ring.overlay_slots > 0 {
        let share = f64::from(ring.overlay_slots) / f64::from(ring.slots.max(1));
        writeln!(out, "{} of the slots go to substitutes of ejected backends", percent(share))?;
    }
    if let Some(until) = ring.handoff_until.filter(|_| ring.handoff_windows > 0) {
        let (mode, windows) = (&ring.handoff_mode, ring.handoff_windows);
        let tables =
            if windows == 1 { "the table before counts".to_owned() } else { format!("{windows} tables before count") };
        writeln!(out, "hand-off ({mode}): {tables} for traces that began with it, until {until}")?;
    }
    if ring.panic {
        let all = "none is, and all keep their slots, those in state ejected too";
        writeln!(out, "PANIC: more backends fail than may be ejected (max_ejection_percent): {all}")?;
    }
    Ok(())
}

fn members(ring: &PoolRing, out: &mut (dyn Write + Send)) -> io::Result<()> {
    if ring.members.is_empty() {
        return Ok(());
    }
    let mut rows = vec![["BACKEND", "ADDRESS", "STATE", "SINCE", "OWNS", "WEIGHT"].map(str::to_owned)];
    rows.extend(ring.members.iter().map(|member| {
        [
            member.identity.clone(),
            or_dash(member.address.clone()),
            or_dash(json::state_word(member.state).unwrap_or_default()),
            or_dash(member.since.map(|since| since.to_string()).unwrap_or_default()),
            percent(member.owned_share),
            member.weight.to_string(),
        ]
    }));
    table::write(&rows, out)
}

/// Prints placements: one row for each owner in each pool, sorted by trace. If several replicas were asked, each row
/// names its replica.
pub(super) fn placements(
    answers: &[Placements],
    of_several: bool,
    as_json: bool,
    out: &mut (dyn Write + Send),
) -> io::Result<()> {
    let traces = answers.iter().map(|it| it.answers.len()).max().unwrap_or_default();
    let by_trace = (0..traces).flat_map(|n| answers.iter().filter_map(move |it| Some((&*it.from, it.answers.get(n)?))));
    if as_json {
        return by_trace
            .map(|(from, answer)| LookupLine { from, answer })
            .try_for_each(|looked| json_line(&looked, out));
    }
    let mut rows =
        vec![["TRACE", "REPLICA", "POOL", "SLOT", "BACKEND", "ADDRESS", "STATE", "REASON"].map(str::to_owned)];
    for (from, answer) in by_trace {
        for placement in &answer.pools {
            let row = |[identity, address, state, reason]: [String; 4]| {
                let (trace, from, pool) = (answer.trace_id.clone(), from.to_owned(), placement.pool.clone());
                [trace, from, pool, placement.slot.to_string(), identity, or_dash(address), or_dash(state), reason]
            };
            let owner = |owner: &Owner| {
                let state = json::state_word(owner.state).unwrap_or_default();
                row([owner.identity.clone(), owner.address.clone(), state, owner.reason.clone()])
            };
            let previous = |previous: &PreviousOwner| {
                let until = previous.until.map(|until| until.to_string()).unwrap_or_default();
                let reason = format!("previous owner until {until}");
                row([previous.identity.clone(), previous.address.clone(), String::new(), reason])
            };
            rows.extend(placement.owners.iter().map(owner));
            rows.extend(placement.previous_owners.iter().map(previous));
        }
    }
    if of_several {
        return table::write(&rows, out);
    }
    let rows: Vec<Vec<String>> = rows.into_iter().map(without_replica).collect();
    table::write(&rows, out)
}

fn without_replica([trace, _, rest @ ..]: [String; 8]) -> Vec<String> {
    [trace].into_iter().chain(rest).collect()
}

fn or_dash(text: String) -> String {
    if text.is_empty() { "-".to_owned() } else { text }
}
