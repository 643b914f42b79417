//! The tables that a table replaced a short time ago, and the owners that a key had in them.
//!
//! A trace is whole only if all its spans reach one backend, also if its key moves in between. So for a while after a
//! change, a span goes to every backend that owned its key while its trace can have begun. This is the hand-off; its
//! rules are those of [`HandoffMode`].
//!
//! **Why a trace stays whole in `dual`:** let a trace begin at `b`, and let O be the owner of its key at `b`. Each of its
//! spans starts at some `s` ≥ `b`. If the trace is not longer than the window, then `s` − window ≤ `b` ≤ `s`, so O is
//! among the owners that the key had in [`s` − window, `s`]. This holds whatever changed in between, and whenever the
//! span arrives. Replicas that learn of a change at different times take that time off the window.
//!
//! If O fails meanwhile, the next owner takes its place, for spans of before the failure, too, and also once O is back: O
//! may have restarted with nothing in its memory, and other replicas have sent spans of the trace to the next owner.
//!
//! That replica must have had O. One that learns of two changes at once never has the table between them. A key that moves
//! twice within the time by which replicas learn apart then has another common owner, the first or the last one, if the
//! trace is shorter than the window less twice that time.
//!
//! **Why root spans may be spared:** a root span starts at `b`. Let every replica learn of a change within `skew` ÷ 2. Then
//! a replica in which an owner was replaced before `b` − `skew` knows that by `b` all others have replaced it, too, and each
//! of them by an owner that this replica had in [`b` − `skew`, `b`] as well: one that skipped a table did so within
//! `skew` ÷ 2 of the change, and its next owner is known here another `skew` ÷ 2 later. So the root span need not go to
//! those that ceased to be owners before `b` − `skew`. This holds for changes by discovery. Ejections and returns are
//! noticed by each replica for itself, maybe much later, so no span is spared after those.

mod layer;

use std::{cell::LazyCell, sync::Arc};

use self::layer::{Layer, NO_TARGET, united};
use super::{Algorithm, begun::Begun};
use crate::{
    endpoint::{Endpoint, Endpoints},
    settings::{Handoff, HandoffMode, USUAL_DELAY},
    wall_clock::{Moment, nanos},
};

/// The greatest number of tables that are kept. Beyond it, the two whose ends are closest are merged.
pub const MOST_KEPT: usize = 16;

/// The greatest number of backends that get the same record.
pub const MOST_TARGETS: usize = 4;

/// The tables that were replaced and are still needed, oldest first.
#[derive(Clone, Debug, Default)]
pub struct History {
    handoff: Handoff,
    kept: Vec<Predecessor>,
}

/// A table that was replaced, or several that were merged.
#[derive(Clone, Debug)]
struct Predecessor {
    /// When it was published, in nanoseconds by the steady clock.
    began: u64,
    /// When it was replaced.
    ended: u64,
    /// Whether all replicas learn of its end at nearly the same time: discovery told of it.
    by_discovery: bool,
    /// Its placement. Merged tables have one for each owner that a slot can have had, the latest owners first.
    layers: Vec<Layer>,
    /// The keys whose traces are known to have begun before its end; only in [`HandoffMode::Sticky`].
    begun: Option<Arc<Begun>>,
}

/// The backends that get a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owners {
    targets: [u16; MOST_TARGETS],
    len: u8,
    /// Which owners these are.
    pub decision: Decision,
    /// The number of owners that were left out, since there were more than [`MOST_TARGETS`].
    pub left_out: u8,
}

/// Which owners of its key a record goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The key has the same owner in all tables.
    Unmoved,
    /// Only to the current owner.
    Current,
    /// Only to one or more previous owners.
    Previous,
    /// To the current owner and to previous ones.
    Both,
}

/// Whether slots change their owners by a change, and what told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moves {
    /// No slot changes its owner.
    None,
    /// Slots do, since discovery reports other members.
    ByDiscovery,
    /// Slots do for another reason: backends fail or return, or the algorithm is another one.
    Otherwise,
}

/// A span's times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// When it started, in nanoseconds since the Unix epoch; 0 if unknown.
    pub start: u64,
    /// When it arrived here.
    pub arrival: Moment,
}

// === impl Times ===

impl Times {
    /// Returns the start by the steady clock, if it is known.
    fn started(self) -> Option<u64> {
        (self.start > 0).then(|| self.arrival.steady_at(self.start))
    }
}

// === impl Owners ===

impl Owners {
    fn none() -> Self {
        Self { targets: [0; MOST_TARGETS], len: 0, decision: Decision::Unmoved, left_out: 0 }
    }

    pub(super) fn only(target: u16) -> Self {
        let mut only = Self::none();
        only.add(target);
        only
    }

    /// Returns the owner whose answer counts, and the owners that get a copy, as indexes of targets.
    pub fn split(&self) -> (u16, &[u16]) {
        let [counting, ..] = self.targets;
        (counting, self.targets.get(1..usize::from(self.len)).unwrap_or_default())
    }

    fn as_slice(&self) -> &[u16] {
        self.targets.get(..usize::from(self.len)).unwrap_or_default()
    }

    fn lacks(&self, target: u16) -> bool {
        target != NO_TARGET && !self.as_slice().contains(&target)
    }

    /// Returns the owners of which no two are the same backend by `first`, which names the first of the same ones.
    pub(super) fn distinct(self, first: impl Fn(u16) -> Option<u16>) -> Self {
        let mut distinct = Self { decision: self.decision, left_out: self.left_out, ..Self::none() };
        for target in self.as_slice() {
            if distinct.as_slice().iter().all(|other| first(*other) != first(*target)) {
                distinct.add(*target);
            }
        }
        distinct
    }

    /// Makes this owner the one whose answer counts, if it is among them.
    fn count_on(&mut self, target: u16) {
        if let Some(at) = self.as_slice().iter().position(|it| *it == target)
            && let Some(until) = self.targets.get_mut(..=at)
        {
            until.rotate_right(1);
        }
    }

    fn add(&mut self, target: u16) {
        if !self.lacks(target) {
            return;
        }
        match self.targets.get_mut(usize::from(self.len)) {
            Some(free) => {
                *free = target;
                self.len += 1;
            }
            None => self.left_out = self.left_out.saturating_add(1),
        }
    }
}

// === impl History ===

impl History {
    /// Returns the history of a table that replaces no other.
    pub(super) fn none(handoff: Handoff) -> Self {
        Self { handoff, ..Self::default() }
    }

    /// Returns the history of a table that replaces `before` at the time `at`, by the steady clock.
    pub(super) fn after(before: Before<'_>, at: u64, handoff: Handoff, moved: Moves) -> Self {
        if handoff.mode == HandoffMode::Immediate {
            return Self::none(handoff);
        }
        let mut kept = before.history.kept.clone();
        if moved != Moves::None {
            let layer = Layer {
                algorithm: before.algorithm,
                owners: Arc::clone(before.owners),
                endpoints: Arc::clone(before.endpoints),
                targets: Box::default(),
                failed: before.endpoints.iter().map(|_| false).collect(),
            };
            kept.push(Predecessor {
                began: before.began,
                ended: at.max(before.began),
                by_discovery: moved == Moves::ByDiscovery,
                layers: vec![layer],
                begun: None,
            });
        }
        let mut history = Self { handoff, kept };
        history.kept.retain(|kept| kept.forgotten(handoff) > at);
        while history.kept.len() > MOST_KEPT {
            history.merge_closest();
        }
        let is_sticky = handoff.mode == HandoffMode::Sticky;
        for kept in &mut history.kept {
            kept.begun = is_sticky.then(|| kept.begun.take().unwrap_or_default());
        }
        history
    }

    /// Merges tables until they take at most `room` bytes or only one is left. If that one is too large, too, it loses the
    /// keys whose traces are known to have begun before its end, and owners beyond the number that a record can go to.
    pub(super) fn shrink_to(&mut self, room: usize) {
        while self.memory() > room && self.kept.len() > 1 {
            self.merge_closest();
        }
        if self.memory() > room {
            for kept in &mut self.kept {
                kept.begun = None;
                kept.layers.truncate(MOST_TARGETS);
            }
        }
    }

    /// The mode and the window.
    pub fn handoff(&self) -> Handoff {
        self.handoff
    }

    /// Whether no table is kept, so that all records go to their current owners.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// The number of tables that are kept.
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// Returns when the next table is forgotten, in nanoseconds by the steady clock.
    pub fn next_end(&self) -> Option<u64> {
        self.kept.iter().map(|kept| kept.forgotten(self.handoff)).min()
    }

    /// Returns when the last table is forgotten, in nanoseconds by the steady clock.
    pub fn last_end(&self) -> Option<u64> {
        self.kept.iter().map(|kept| kept.forgotten(self.handoff)).max()
    }

    /// Returns about how many bytes it takes.
    pub(super) fn memory(&self) -> usize {
        let layers = self.kept.iter().flat_map(|kept| &kept.layers).map(|layer| size_of_val(&*layer.owners));
        layers.sum::<usize>() + self.kept.iter().filter(|kept| kept.begun.is_some()).count() * Begun::BYTES
    }

    /// Returns the backends that own slots in the kept tables. Later tables come first.
    pub(super) fn owning(&self) -> Vec<Endpoint> {
        let layers = self.kept.iter().rev().flat_map(|kept| &kept.layers);
        layers.flat_map(Layer::owning).collect()
    }

    /// Notes which of the backends fail now. Their slots, and the records of the traces that began with them, go to others.
    pub(super) fn note_failed(&mut self, fails: impl Fn(&Endpoint) -> bool) {
        self.kept.iter_mut().flat_map(|kept| &mut kept.layers).for_each(|layer| layer.note_failed(&fails));
    }

    /// Sets which target each previous owner is now; `None` for one that takes no records.
    pub(super) fn aim(&mut self, target_of: impl Fn(&Endpoint) -> Option<u16>) {
        for layer in self.kept.iter_mut().flat_map(|kept| &mut kept.layers) {
            layer.targets = layer.endpoints.iter().map(|it| target_of(it).unwrap_or(NO_TARGET)).collect();
        }
    }

    /// Returns the owners that get a record. `current` is the owner of its key in the current table, which began at
    /// `began` by the steady clock. `is_root` says whether the record is the root span of its trace; it is asked only if
    /// that matters.
    pub(super) fn owners(
        &self,
        key: &[u8],
        times: Times,
        current: u16,
        began: u64,
        is_root: impl FnOnce() -> bool,
    ) -> Owners {
        let owners = match self.handoff.mode {
            HandoffMode::Immediate => Owners::only(current),
            HandoffMode::Dual => self.at_any_instant(key, times, current, began, is_root),
            HandoffMode::Sticky => self.where_begun(key, times, current),
        };
        Owners { decision: self.decision(key, current, &owners), ..owners }
    }

    /// Returns the owners that a key had at any instant while the span's trace can have begun: the current one first if it is
    /// among them, then the latest first.
    fn at_any_instant(
        &self,
        key: &[u8],
        times: Times,
        current: u16,
        began: u64,
        is_root: impl FnOnce() -> bool,
    ) -> Owners {
        let (from, to) = self.instants(times);
        let to = self.lasts_until(key, from, to);
        let known_since = times.started().map_or(0, |start| start.saturating_sub(nanos(self.handoff.skew)));
        let is_root = LazyCell::new(is_root);
        let mut owners = Owners::none();
        if began <= to {
            owners.add(current);
        }
        // A span older than all kept tables began with the oldest that is known.
        for (at, kept) in self.kept.iter().enumerate().rev() {
            if kept.ended > from && (kept.began <= to || at == 0) {
                let is_known = kept.by_discovery && kept.ended <= known_since;
                for target in kept.layers.iter().map(|layer| layer.target(key)) {
                    if owners.lacks(target) && !(is_known && *is_root) {
                        owners.add(target);
                    }
                }
            }
        }
        if owners.len == 0 {
            return Owners::only(current);
        }
        owners.count_on(current);
        owners
    }

    /// Returns the last instant at which the owners of a key count. If an owner has failed since, the next one got what began
    /// with it, and goes on to get that when the failed one is back.
    fn lasts_until(&self, key: &[u8], from: u64, to: u64) -> u64 {
        let mut until = to;
        for (at, kept) in self.kept.iter().enumerate() {
            let counts = kept.ended > from && (kept.began <= until || at == 0);
            if counts && kept.layers.iter().any(|layer| layer.has_failed(key)) {
                until = until.max(kept.ended);
            }
        }
        until
    }

    /// Returns the first and the last instant at which the owners of a key count for a span.
    fn instants(&self, times: Times) -> (u64, u64) {
        let arrival = times.arrival.steady;
        let Some(start) = times.started() else { return (0, arrival) };
        let is_late = arrival - start > nanos(USUAL_DELAY);
        (start.saturating_sub(nanos(self.handoff.window)), if is_late { arrival } else { start })
    }

    /// Returns the owner that the trace of a span began with.
    fn where_begun(&self, key: &[u8], times: Times, current: u16) -> Owners {
        let start = times.started().unwrap_or_default();
        let with_target = |kept| Some((kept, Predecessor::target(kept, key)?));
        let previous = || self.kept.iter().filter_map(with_target);
        // Traces of keys that stayed where they were need not be noted.
        if previous().all(|(_, target)| target == current) {
            return Owners::only(current);
        }
        for (kept, target) in previous() {
            if start < kept.ended {
                kept.note(key);
                return Owners::only(target);
            }
            if kept.begun.as_ref().is_some_and(|begun| begun.contains(key)) {
                return Owners::only(target);
            }
        }
        Owners::only(current)
    }

    /// Returns the previous owners of a key that still take records, latest first, and when each is forgotten, in
    /// nanoseconds by the steady clock.
    pub(super) fn previous(&self, key: &[u8], current: u16) -> Vec<(u16, u64)> {
        let mut previous: Vec<(u16, u64)> = Vec::new();
        for kept in self.kept.iter().rev() {
            for target in kept.layers.iter().map(|layer| layer.target(key)) {
                let is_known = target == current || target == NO_TARGET || previous.iter().any(|(it, _)| *it == target);
                if !is_known {
                    previous.push((target, kept.forgotten(self.handoff)));
                }
            }
        }
        previous
    }

    fn decision(&self, key: &[u8], current: u16, owners: &Owners) -> Decision {
        let mut layers = self.kept.iter().flat_map(|kept| &kept.layers);
        match owners.as_slice() {
            [only] if *only != current => Decision::Previous,
            [_] if layers.all(|layer| layer.target(key) == current) => Decision::Unmoved,
            [_] => Decision::Current,
            several if several.contains(&current) => Decision::Both,
            _ => Decision::Previous,
        }
    }

    /// Merges the two neighbours whose ends are closest. Both their owners count then for the time of both. Tables of
    /// different algorithms cannot be merged; if there are no others, the oldest is dropped.
    fn merge_closest(&mut self) {
        let pairs = self.kept.iter().zip(self.kept.iter().skip(1)).enumerate();
        let alike = pairs.filter(|(_, (older, newer))| older.algorithm() == newer.algorithm());
        let Some((at, _)) = alike.min_by_key(|(_, (older, newer))| newer.ended.saturating_sub(older.ended)) else {
            self.kept.remove(0);
            return;
        };
        let newer = self.kept.remove(at + 1);
        if let Some(older) = self.kept.get_mut(at) {
            older.absorb(newer);
        }
    }
}

/// The table before, as a history needs it.
pub(super) struct Before<'a> {
    pub(super) began: u64,
    pub(super) algorithm: Algorithm,
    pub(super) owners: &'a Arc<[u16]>,
    pub(super) endpoints: &'a Endpoints,
    pub(super) history: &'a History,
}

// === impl Predecessor ===

impl Predecessor {
    fn algorithm(&self) -> Option<Algorithm> {
        self.layers.first().map(|layer| layer.algorithm)
    }

    /// Returns the target that owned a key; `None` if it takes no records, or has failed since.
    fn target(&self, key: &[u8]) -> Option<u16> {
        let layer = self.layers.first().filter(|layer| !layer.has_failed(key))?;
        Some(layer.target(key)).filter(|target| *target != NO_TARGET)
    }

    /// Returns when it is forgotten, in nanoseconds by the steady clock.
    fn forgotten(&self, handoff: Handoff) -> u64 {
        self.ended.saturating_add(nanos(handoff.kept_for()))
    }

    /// Notes that the trace of `key` began before the end of this table.
    fn note(&self, key: &[u8]) {
        if let Some(begun) = &self.begun {
            begun.insert(key);
        }
    }

    /// Takes in the table that came after it.
    fn absorb(&mut self, newer: Self) {
        self.ended = newer.ended;
        self.by_discovery &= newer.by_discovery;
        self.layers = united(newer.layers.into_iter().chain(std::mem::take(&mut self.layers)).collect());
        self.begun = match (self.begun.take(), newer.begun) {
            (Some(older), Some(newer)) => {
                newer.insert_all(&older);
                Some(newer)
            }
            (older, newer) => newer.or(older),
        };
    }
}

#[cfg(test)]
mod tests;
