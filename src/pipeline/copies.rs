//! Delivers the copies of a request's records while a hand-off is open: to the owners whose answers do not count.
//!
//! Copies neither refuse a request nor delay it. A copy for which there is no room is dropped. One that fails is tried again
//! at its backend while that takes records, then it is given up. Once the request is answered, what is left goes on without
//! the client, until the request's deadline.
//!
//! If the owner that counts is gone, a copy may take its place: `Delivery` asks for the [`Fate`] of a copy then.

use std::{future::pending, sync::Arc};

use tokio::time::{Instant, sleep_until};

use super::{Context, Route};
use crate::{
    budget::Permit,
    dispatch::{Backoff, Cause, Join, Part, PartOutcome, View},
    ring::Table,
    route::Copied,
    wall_clock::Moment,
};

/// The copies of one request.
pub(super) struct Copies {
    route: Arc<Route>,
    join: Join,
    /// The table that the request was cut by.
    table: Arc<Table>,
    /// When the request arrived.
    arrival: Moment,
    sent: Vec<Sent>,
    /// The number of parts that are in a backend's queue or call.
    under_way: usize,
    waiting: Vec<(Part, Instant)>,
}

/// A part of copies.
struct Sent {
    /// The index of its backend among the table's targets.
    target: u16,
    records: u32,
    backoff: Backoff,
    fate: Fate,
}

/// What became of the copies for a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fate {
    /// The backend has accepted all of them.
    Delivered,
    /// They are under way, or wait for another attempt.
    UnderWay,
    /// Some of them are not delivered, and are not tried again.
    GivenUp,
}

impl Copies {
    /// Queues copies at their backends, each for which there is room. `permit` covers them.
    pub(super) fn send(route: Arc<Route>, view: &View, copies: Vec<Part>, permit: Permit, context: Context) -> Self {
        let mut join = Join::carrying(context.deadline, context.connection, context.metadata);
        join.add_cut(copies.len(), permit);
        let backoff = Backoff::new(view.retry());
        let sent = |part: &Part| Sent {
            target: u16::try_from(part.backend).unwrap_or(u16::MAX),
            records: part.records,
            backoff,
            fate: Fate::UnderWay,
        };
        let (table, sent) = (Arc::clone(view.table()), copies.iter().map(sent).collect());
        let arrival = context.arrival;
        let mut this = Self { route, join, table, arrival, sent, under_way: 0, waiting: Vec::new() };
        for part in copies {
            let index = part.index;
            if view.submit_copy(part, &this.join) {
                this.under_way += 1;
            } else {
                this.end(index, Fate::GivenUp, |metrics| &metrics.dropped);
            }
        }
        this
    }

    /// Whether a part has no fate yet.
    pub(super) fn is_unfinished(&self) -> bool {
        self.under_way > 0 || !self.waiting.is_empty()
    }

    /// Returns the targets whose copies were sent and not given up, ascending.
    pub(super) fn targets(&self) -> Vec<u16> {
        let mut targets: Vec<u16> = self.sent.iter().map(|sent| sent.target).collect();
        targets.sort_unstable();
        targets.dedup();
        targets.retain(|target| self.fate(*target) != Fate::GivenUp);
        targets
    }

    /// Returns what a router needs to know of the copies to `targets`.
    pub(super) fn copied<'a>(&'a self, targets: &'a [u16]) -> Copied<'a> {
        Copied { table: &self.table, arrival: self.arrival, sent: targets }
    }

    /// Returns the target, in the table that the request was cut by, that is the same backend as `backend` of `table`.
    pub(super) fn target(&self, table: &Table, backend: u32) -> Option<u16> {
        let endpoint = table.targets().get(backend as usize)?;
        let is_same = |target: &&u16| {
            self.table.targets().get(usize::from(**target)).is_some_and(|other| other.is_same(endpoint))
        };
        self.targets().iter().find(is_same).copied()
    }

    /// Returns what became of the copies for a target.
    pub(super) fn fate(&self, target: u16) -> Fate {
        let fates = self.sent.iter().filter(|sent| sent.target == target).map(|sent| sent.fate);
        fates.max().unwrap_or(Fate::GivenUp)
    }

    /// Waits until something has happened and handles it; for ever once every part has a fate.
    ///
    /// Cancel safety: outcomes stay for the next call.
    pub(super) async fn step(&mut self) {
        let due = self.waiting.iter().map(|(_, due)| *due).min();
        tokio::select! {
            outcomes = self.join.next(), if self.under_way > 0 => self.take_in(outcomes),
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.send_due(Instant::now()),
            else => pending().await,
        }
    }

    /// Takes in the outcomes that have arrived, without waiting.
    pub(super) fn update(&mut self) {
        let arrived = self.join.arrived();
        self.take_in(arrived);
    }

    /// Delivers what is left until `deadline`.
    pub(super) async fn finish(mut self, deadline: Instant) {
        while self.is_unfinished() {
            tokio::select! {
                () = self.step() => {}
                () = sleep_until(deadline) => break,
            }
        }
    }

    fn take_in(&mut self, outcomes: Vec<(u32, PartOutcome)>) {
        for (index, outcome) in outcomes {
            self.under_way = self.under_way.saturating_sub(1);
            match outcome {
                PartOutcome::Accepted { rejected: 0, .. } => {
                    self.end(index, Fate::Delivered, |metrics| &metrics.delivered);
                }
                PartOutcome::Accepted { .. } | PartOutcome::Rejected { .. } => {
                    self.end(index, Fate::GivenUp, |metrics| &metrics.rejected);
                }
                PartOutcome::Retry { owner, after, part, cause, .. } => {
                    let is_over = matches!(cause, Cause::Stopped | Cause::Deadline | Cause::Abandoned);
                    let lives = !is_over && self.route.dispatch.view().is_some_and(|view| view.serves(&owner));
                    match self.sent.get_mut(index as usize) {
                        Some(sent) if lives => {
                            let pause = sent.backoff.pause().max(after.unwrap_or_default());
                            self.waiting.push((part, Instant::now() + pause));
                        }
                        _ => self.end(index, Fate::GivenUp, |metrics| &metrics.given_up),
                    }
                }
            }
        }
    }

    /// Sends the copies again whose next attempt is due. One whose backend takes no records any more is given up.
    #[cold]
    fn send_due(&mut self, now: Instant) {
        let Some(view) = self.route.dispatch.view() else { return };
        let (due, waiting) = std::mem::take(&mut self.waiting).into_iter().partition(|(_, due)| *due <= now);
        self.waiting = waiting;
        let due: Vec<(Part, Instant)> = due;
        for (part, _) in due {
            let index = part.index;
            let target =
                self.sent.get(index as usize).and_then(|sent| self.table.targets().get(usize::from(sent.target)));
            let backend = target.and_then(|target| view.living(&target.identity));
            let spent = backend.is_some() && self.route.dispatch.retries().spend(now);
            match backend {
                Some(backend) if spent && view.submit_copy(Part { backend, ..part }, &self.join) => {
                    self.under_way += 1;
                    self.route.metrics.retried.increment(1);
                }
                _ => self.end(index, Fate::GivenUp, |metrics| &metrics.given_up),
            }
        }
    }

    /// Records what became of a part.
    fn end(&mut self, index: u32, fate: Fate, counter: impl FnOnce(&super::metrics::CopyMetrics) -> &metrics::Counter) {
        let Some(sent) = self.sent.get_mut(index as usize) else { return };
        sent.fate = fate;
        counter(&self.route.metrics.copies).increment(sent.records.into());
        self.join.part_done(0, false);
    }
}

impl Drop for Copies {
    /// Counts the copies that have no fate yet: the deadline has passed, or the request was not acknowledged.
    fn drop(&mut self) {
        self.update();
        let open = self.sent.iter().filter(|sent| sent.fate == Fate::UnderWay);
        self.route.metrics.copies.given_up.increment(open.map(|sent| u64::from(sent.records)).sum());
    }
}
