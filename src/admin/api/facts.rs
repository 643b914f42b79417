//! Builds the API's messages from tables and records. No side effects; it only locks what it reads.

use std::{
    fmt,
    str::FromStr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use prost_types::Timestamp;

use super::super::{
    Pool,
    pb::v1::{Backend, Cause, Change, Failure, Member, Owner, Placement, PoolRing, PreviousOwner, State},
};
use crate::{
    endpoint::Endpoint,
    membership::{
        BackendState, build,
        record::{Names, Record, RingChange, Standing},
    },
    ring::Table,
    wall_clock::Moment,
};

/// A valid trace ID: sixteen bytes, not all zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceId([u8; 16]);

/// Why a text is not a trace ID.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TraceIdError {
    /// It has the wrong length, in characters.
    #[error("a trace ID has 32 hex digits, this has {0} characters")]
    Length(usize),
    /// It contains a character that is not a hex digit.
    #[error("a trace ID has 32 hex digits; {0:?} is not a hex digit")]
    Digit(char),
    /// It is all zeros.
    #[error("a trace ID of zeros is invalid: spans with it are spread by a hash of their own bytes")]
    Zero,
    /// It is empty.
    #[error("no trace ID was given; it has 32 hex digits")]
    Missing,
}

/// Describes the ring of a pool that this process runs.
pub(super) fn ring_of_pool(name: &Arc<str>, pool: &Pool) -> PoolRing {
    let record = &pool.membership.record;
    let mut ring = match super::table(pool) {
        Some(table) => ring(name, &table, Some(record)),
        None => PoolRing { pool: name.to_string(), panic: record.is_panicking(), ..PoolRing::default() },
    };
    ring.signals = signals(pool);
    ring
}

/// Describes the ring of `table`, with states and the last change from `record`, if there is a running proxy.
pub fn ring(pool: &str, table: &Table, record: Option<&Record>) -> PoolRing {
    let standings = record.map(Record::standings).unwrap_or_default();
    // Tables that only end the window of a hand-off are no changes.
    let changes = record.into_iter().flat_map(Record::changes);
    let change = changes.take_while(|past| past.generation <= table.generation).last();
    let owned = table.owned_slots();
    let algorithm = table.base().algorithm();
    let members = (0..).zip(table.backends()).zip(owned).map(|((at, backend), owned_slots)| {
        let standing = standings.get(&backend.identity);
        Member {
            identity: backend.identity.to_string(),
            address: backend.address.map(|address| address.to_string()).unwrap_or_default(),
            state: state_in(table, at, standing).into(),
            since: standing.map(|standing| time(standing.since)),
            owned_slots,
            owned_share: f64::from(owned_slots) / f64::from(table.slots()),
            weight: backend.weight,
            exporter_name: backend
                .exporter_name
                .as_deref()
                .filter(|_| algorithm.is_of_exporter())
                .unwrap_or_default()
                .to_owned(),
        }
    });
    PoolRing {
        pool: pool.to_owned(),
        signals: Vec::new(),
        generation: table.generation,
        membership_fingerprint: hex(table.membership_fingerprint()),
        placement_fingerprint: hex(table.placement_fingerprint()),
        algorithm: algorithm.name().to_owned(),
        parameters: algorithm.named_parameters().map(|(name, value)| (name.to_owned(), value)).into(),
        slots: table.slots(),
        built_at: change.as_ref().map(|change| time(change.at)),
        build_seconds: change.as_ref().map_or(0.0, |change| change.took.as_secs_f64()),
        cause: change.as_ref().map_or(Cause::Unspecified, |change| cause(change.cause)).into(),
        moved_share: change.as_ref().map_or(0.0, |change| change.moved),
        overlay_slots: count(table.overlay().substitutes().len()),
        panic: record.is_some_and(Record::is_panicking),
        members: members.collect(),
        handoff_windows: count(table.history().len()),
        handoff_until: table.history().last_end().map(steady_time),
        handoff_mode: table.history().handoff().mode.as_str().to_owned(),
    }
}

/// Describes where `table` places a trace.
pub fn placement(pool: &str, table: &Table, record: Option<&Record>, id: &TraceId) -> Placement {
    let slot = table.slot_of(&id.0);
    Placement {
        pool: pool.to_owned(),
        signals: Vec::new(),
        slot,
        generation: table.generation,
        placement_fingerprint: hex(table.placement_fingerprint()),
        owners: owner(table, record, slot).into_iter().collect(),
        previous_owners: table.previous_owners(&id.0).into_iter().map(previous_owner).collect(),
    }
}

fn previous_owner((backend, until): (&Endpoint, u64)) -> PreviousOwner {
    PreviousOwner {
        identity: backend.identity.to_string(),
        address: backend.address.map(|address| address.to_string()).unwrap_or_default(),
        until: Some(steady_time(until)),
    }
}

/// Describes the state and the load of each backend of a pool.
pub(super) fn backends(pool: &Pool) -> Vec<Backend> {
    let record = &pool.membership.record;
    let (mut loads, panic) = (pool.dispatch.loads(), record.is_panicking());
    let mut backends = Vec::new();
    for (identity, standing) in record.standings() {
        let load = loads.remove(&identity).unwrap_or_default();
        backends.push(Backend {
            state: State::from(standing.state).into(),
            why: why(&standing, panic),
            since: Some(time(standing.since)),
            held_until: standing.held_until.map(time),
            last_failure: standing.last_failure.map(failure),
            ..backend(&identity, &load)
        });
    }
    let left = "it left; its calls are being finished".to_owned();
    backends.extend(loads.iter().map(|(identity, load)| Backend { why: left.clone(), ..backend(identity, load) }));
    backends
}

/// Describes a change of a table.
pub fn change(past: &RingChange) -> Change {
    let RingChange { added, removed, ejected, returned, .. } = past;
    Change {
        generation: past.generation,
        at: Some(time(past.at)),
        cause: cause(past.cause).into(),
        added_count: count(added.count),
        added: names(added),
        removed_count: count(removed.count),
        removed: names(removed),
        ejected_count: count(ejected.count),
        ejected: names(ejected),
        returned_count: count(returned.count),
        returned: names(returned),
        moved_share: past.moved,
        build_seconds: past.took.as_secs_f64(),
        membership_fingerprint_before: past.membership.0.map(hex).unwrap_or_default(),
        membership_fingerprint: hex(past.membership.1),
        placement_fingerprint_before: past.placement.0.map(hex).unwrap_or_default(),
        placement_fingerprint: hex(past.placement.1),
        handoff_until: past.handoff_until.map(time),
    }
}

/// The names of the signals routed to a pool.
pub(super) fn signals(pool: &Pool) -> Vec<String> {
    pool.signals.iter().map(|signal| signal.as_str().to_owned()).collect()
}

/// Describes the owner of a slot and the reason it owns it.
fn owner(table: &Table, record: Option<&Record>, slot: u32) -> Option<Owner> {
    let at = table.owner_of_slot(slot);
    let backend = table.backends().get(at as usize)?;
    let first = table.base().owners().get(slot as usize).map_or(at, |owner| u32::from(*owner));
    let standing = record.and_then(|record| record.standing(&backend.identity));
    let state = state_in(table, at, standing.as_ref());
    let mut owner = Owner {
        identity: backend.identity.to_string(),
        address: backend.address.map(|address| address.to_string()).unwrap_or_default(),
        state: state.into(),
        reason: "owner".to_owned(),
        substitute_for: String::new(),
        until: None,
    };
    if let Some(stands_in_for) = table.backends().get(first as usize).filter(|_| first != at) {
        let identity = &stands_in_for.identity;
        let is_absent = record
            .and_then(|record| record.standing(identity))
            .is_some_and(|standing| standing.state == BackendState::Draining);
        owner.substitute_for = identity.to_string();
        owner.reason = format!("substitute for {identity} ({})", if is_absent { "left discovery" } else { "ejected" });
        return Some(owner);
    }
    let held_until = standing.and_then(|standing| standing.held_until).map(time);
    owner.reason = match (state, held_until) {
        (State::Draining, Some(until)) => format!("owner, held until {until} (left discovery)"),
        (State::Draining, None) => "owner, held for a while (left discovery)".to_owned(),
        (State::Ejected, _) => "owner (ejected, but too many backends fail to replace it)".to_owned(),
        (State::Unresolved, _) => "owner (its name has no address)".to_owned(),
        (State::Active | State::Unspecified, _) => owner.reason,
    };
    owner.until = held_until;
    Some(owner)
}

/// A backend's state: from `standing` if there is one, else derived from the table.
fn state_in(table: &Table, at: u32, standing: Option<&Standing>) -> State {
    let is_away = u16::try_from(at).is_ok_and(|at| table.overlay().away().contains(&at));
    let has_address = table.backends().get(at as usize).is_some_and(|backend| backend.address.is_some());
    match standing {
        Some(standing) => standing.state.into(),
        None if is_away => State::Ejected,
        None if !has_address => State::Unresolved,
        None => State::Active,
    }
}

fn why(standing: &Standing, panic: bool) -> String {
    let reason = standing.ejected_for.unwrap_or("failures");
    match standing.state {
        BackendState::Active => "discovery lists it".to_owned(),
        BackendState::Draining => "it left discovery and is held for a while".to_owned(),
        BackendState::Ejected if panic => {
            format!("it fails ({reason}), but so do too many others, so it keeps its slots")
        }
        BackendState::Ejected => format!("it fails ({reason}): its slots go to substitutes until it answers"),
        BackendState::Unresolved => "its name has no address".to_owned(),
    }
}

fn backend(identity: &str, load: &crate::dispatch::BackendLoad) -> Backend {
    Backend {
        identity: identity.to_owned(),
        address: load.address.map(|address| address.to_string()).unwrap_or_default(),
        queue_bytes: load.queued_bytes as u64,
        in_flight_calls: load.calls as u64,
        in_flight_bytes: load.call_bytes as u64,
        connections: load.connections as u64,
        ..Backend::default()
    }
}

fn failure((reason, at): (&'static str, SystemTime)) -> Failure {
    Failure { reason: reason.to_owned(), at: Some(time(at)) }
}

fn cause(cause: build::Cause) -> Cause {
    match cause {
        build::Cause::Discovery => Cause::Discovery,
        build::Cause::Departure => Cause::Departure,
        build::Cause::Configuration => Cause::Configuration,
        build::Cause::Ejection => Cause::Ejection,
        build::Cause::Return => Cause::Return,
        build::Cause::Panic => Cause::Panic,
        // Not recorded as a change.
        build::Cause::WindowEnd => Cause::Unspecified,
    }
}

/// 48 bits as 12 hex digits.
fn hex(fingerprint: u64) -> String {
    format!("{fingerprint:012x}")
}

/// Truncates a time to whole milliseconds.
fn time(at: SystemTime) -> Timestamp {
    let mut at = Timestamp::from(at);
    at.nanos -= at.nanos % 1_000_000;
    at
}

/// Converts nanoseconds of the steady clock.
fn steady_time(steady: u64) -> Timestamp {
    time(SystemTime::UNIX_EPOCH + Duration::from_nanos(Moment::now().unix_at(steady)))
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn names(names: &Names) -> Vec<String> {
    names.named.iter().map(ToString::to_string).collect()
}

impl From<BackendState> for State {
    fn from(state: BackendState) -> Self {
        match state {
            BackendState::Active => Self::Active,
            BackendState::Draining => Self::Draining,
            BackendState::Ejected => Self::Ejected,
            BackendState::Unresolved => Self::Unresolved,
        }
    }
}

// === impl TraceId ===

impl FromStr for TraceId {
    type Err = TraceIdError;

    fn from_str(text: &str) -> Result<Self, TraceIdError> {
        if text.is_empty() {
            return Err(TraceIdError::Missing);
        }
        let length = text.chars().count();
        if length != 32 {
            return Err(TraceIdError::Length(length));
        }
        if let Some(strange) = text.chars().find(|it| !it.is_ascii_hexdigit()) {
            return Err(TraceIdError::Digit(strange));
        }
        // 32 hex digits always fit a number of 128 bits.
        match u128::from_str_radix(text, 16) {
            Ok(0) | Err(_) => Err(TraceIdError::Zero),
            Ok(number) => Ok(Self(number.to_be_bytes())),
        }
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}
