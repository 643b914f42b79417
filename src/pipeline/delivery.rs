//! Delivers the parts of a request: waits for their outcomes, places failed parts again if that can help, and joins the
//! outcomes into one.

mod adopted;
mod late;
mod waiting;

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::Instant};

use self::{
    adopted::{Adopted, step},
    waiting::Waiting,
};
use super::{Pipeline, Route, copies::Copies, cut, defect, tally::Tally};
use crate::{
    dispatch::{Backoff, Cause, Failure, Join, NotQueued, Part, PartOutcome, View, WhyNotQueued},
    otlp::{Outcome, Refusal, Signal},
    places::{self, LONG},
    ring::Table,
    settings::HandoffMode,
};

/// How often a backend that owns no slots any more may refuse a part of the traces that began with it. A Collector that
/// ends refuses everything until it has ended, and nothing else shows that it will not come back.
const FORMER_OWNER_ATTEMPTS: u32 = 3;

/// The state of one request in delivery.
pub(super) struct Delivery<'a> {
    pipeline: &'a Pipeline,
    route: &'a Route,
    join: Join,
    /// All parts that were ever placed, by their index.
    placed: Vec<Placed>,
    /// The tables that they were placed by.
    tables: Vec<Arc<Table>>,
    /// The number of parts that are in a backend's queue or call.
    under_way: usize,
    /// Failed parts that wait for their next attempt.
    waiting: Waiting,
    /// Reports new tables: a waiting part may have another owner by then. `None` until a part has failed.
    changes: Option<watch::Receiver<u64>>,
    tally: Tally,
    /// Copies for further owners, if a hand-off is open.
    pub(super) copies: Option<Copies>,
    /// Parts whose records their owner has as copies already. They count as soon as the copies are delivered.
    adopted: Vec<Adopted>,
    /// An inconsistency that only a defect of this program can cause. Nothing is acknowledged then.
    defect: Option<&'static str>,
}

#[derive(Clone, Copy)]
struct Placed {
    records: u32,
    backoff: Backoff,
    /// The generation of the table that it was placed by.
    generation: u64,
    /// The index of its owner among that table's backends.
    backend: u32,
    /// The number of the cut that made it.
    cut: usize,
    /// Whether its records still have no outcome.
    open: bool,
    /// Whether a failed attempt may have delivered its records.
    may_be_delivered: bool,
    /// Whether its last attempt took a token from the retry budget.
    took_token: bool,
    /// Whether a backend has reset a connection or stream that carried its records.
    was_reset: bool,
}

/// A part that its owner did not accept or did not answer for.
struct Failed {
    part: Part,
    owner: Arc<str>,
    cause: Cause,
}

impl<'a> Delivery<'a> {
    pub(super) fn new(
        pipeline: &'a Pipeline,
        route: &'a Route,
        join: Join,
        parts: &[Part],
        view: &View,
        tally: Tally,
    ) -> Self {
        let (backoff, generation) = (Backoff::new(view.retry()), view.table().generation);
        let placed = |part: &Part| Placed {
            records: part.records,
            backoff,
            generation,
            backend: part.backend,
            cut: 0,
            open: true,
            may_be_delivered: false,
            took_token: false,
            was_reset: false,
        };
        Self {
            pipeline,
            route,
            join,
            placed: parts.iter().map(placed).collect(),
            tables: vec![Arc::clone(view.table())],
            under_way: parts.len(),
            waiting: Waiting::default(),
            changes: None,
            tally,
            copies: None,
            adopted: Vec::new(),
            defect: None,
        }
    }

    /// Returns the join that collects the outcomes.
    pub(super) fn join(&self) -> &Join {
        &self.join
    }

    /// Waits until all parts have an outcome, or until `deadline`. Called once all parts are queued.
    pub(super) async fn finish(mut self, deadline: Instant) -> Result<Outcome, Refusal> {
        while self.is_unfinished() && self.defect.is_none() {
            let wake = self.waiting.next_due().map_or(deadline, |due| due.min(deadline));
            if self.under_way == 0 && self.adopted.is_empty() && wake >= deadline {
                break;
            }
            tokio::select! {
                // Take results first: an outcome that has arrived must not be reported as late.
                biased;
                results = self.join.next(), if self.under_way > 0 => self.take_in(results),
                () = step(&mut self.copies), if self.copies.is_some() => self.settle_adopted(),
                () = changed(&mut self.changes), if !self.waiting.is_empty() => self.place_moved(),
                () = tokio::time::sleep_until(wake) => {
                    if wake >= deadline {
                        break;
                    }
                    self.place_due(Instant::now());
                }
            }
        }
        self.take_last();
        let answer = self.conclude();
        if let Some(copies) = self.copies.take_if(|copies| answer.is_ok() && copies.is_unfinished()) {
            self.route.dispatch.spawn(copies.finish(deadline));
        }
        answer
    }

    /// Returns the answer for the client. A request is acknowledged only if every part has an outcome and every record
    /// is accounted for.
    fn conclude(&mut self) -> Result<Outcome, Refusal> {
        if !self.is_unfinished() {
            if self.placed.iter().any(|placed| placed.open) {
                self.defect.get_or_insert("a part was lost on its way");
            } else if !self.tally.is_complete() {
                self.defect.get_or_insert("the parts of a request do not have all of its records");
            }
        }
        match self.defect {
            Some(what) => Err(defect(what)),
            None if self.is_unfinished() => Err(self.late_refusal()),
            None => std::mem::take(&mut self.tally).outcome(),
        }
    }

    fn is_unfinished(&self) -> bool {
        self.under_way > 0 || !self.waiting.is_empty() || !self.adopted.is_empty()
    }

    fn take_in(&mut self, results: Vec<(u32, PartOutcome)>) {
        for (index, outcome) in results {
            if let Some((failed, after)) = self.take(index, outcome) {
                self.failed(failed, after);
            }
        }
    }

    /// Records the outcomes that have arrived, without placing anything again.
    #[cold]
    fn take_last(&mut self) {
        for (index, outcome) in self.join.arrived() {
            if let Some((failed, after)) = self.take(index, outcome) {
                self.wait_for(failed, after);
            }
        }
    }

    /// Records one outcome. If the part has to be retried, returns it with the pause that its backend asked for.
    fn take(&mut self, index: u32, outcome: PartOutcome) -> Option<(Failed, Option<Duration>)> {
        self.under_way = self.under_way.saturating_sub(1);
        let records = match self.placed.get(index as usize) {
            Some(placed) if placed.open => placed.records,
            known => {
                let unknown = "an outcome is of a part that is unknown";
                self.defect = Some(known.map_or(unknown, |_| "a part has more outcomes than one"));
                return None;
            }
        };
        match outcome {
            PartOutcome::Accepted { rejected, message } => {
                self.note_repeat(index);
                self.tally.accepted(records, rejected, message);
                self.settled(index);
                None
            }
            PartOutcome::Rejected { code, message } => {
                self.tally.refused(records, code, message);
                self.settled(index);
                None
            }
            PartOutcome::Retry { owner, after, reached, cause, part } => {
                if reached {
                    self.note_repeat(index);
                    self.note_reached(index);
                }
                if let Some(placed) = self.placed.get_mut(index as usize) {
                    placed.was_reset |= reached && cause == Cause::Transport(Failure::Reset);
                }
                self.tally.last_failure = Some((Arc::clone(&owner), cause));
                self.settle_retry(&part, cause.was_no_attempt() && !reached);
                Some((Failed { part, owner, cause }, after))
            }
        }
    }

    /// Counts possible duplicates after an attempt that was sent: if an earlier attempt may have been delivered, a
    /// backend may have the records twice.
    fn note_repeat(&self, index: u32) {
        if let Some(placed) = self.placed.get(index as usize)
            && placed.may_be_delivered
        {
            self.route.metrics.possible_duplicates.increment(placed.records.into());
        }
    }

    /// Records that a failed attempt may have been delivered.
    fn note_reached(&mut self, index: u32) {
        if let Some(placed) = self.placed.get_mut(index as usize) {
            placed.may_be_delivered = true;
        }
    }

    /// Records that a part needs no further attempt. With the last part of a cut, the cut's share of the budget is
    /// given back, unless the whole request is done and gives back everything anyway.
    fn settled(&mut self, index: u32) {
        let Some(Placed { open, cut, .. }) = self.placed.get_mut(index as usize) else { return };
        *open = false;
        let (cut, is_over) = (*cut, !self.is_unfinished());
        self.join.part_done(cut, is_over);
    }

    /// Ends an attempt. If it was a retry that no backend has seen, gives its token back.
    #[cold]
    fn settle_retry(&mut self, part: &Part, unseen: bool) {
        let Some(placed) = self.placed.get_mut(part.index as usize) else { return };
        if std::mem::take(&mut placed.took_token) && unseen {
            self.route.dispatch.retries().give_back();
        }
    }

    /// Places a failed part again at once if its slots have a new owner. Otherwise the part waits for its next attempt.
    #[cold]
    fn failed(&mut self, failed: Failed, after: Option<Duration>) {
        // Subscribe before reading the view, so that a table which is published in between is noticed.
        let dispatch = &self.route.dispatch;
        self.changes.get_or_insert_with(|| dispatch.changes());
        match dispatch.view() {
            Some(view) if self.has_moved(&failed, &view) => {
                self.place(failed, &view);
            }
            _ => self.wait_for(failed, after),
        }
    }

    /// Returns whether `view` has a newer table than the one that placed the part, in which the part's owner has lost
    /// its slots, or whether an owner that has none any more refuses the part.
    fn has_moved(&self, failed: &Failed, view: &View) -> bool {
        let Failed { part, owner, cause } = failed;
        self.placed.get(part.index as usize).is_some_and(|placed| placed.generation < view.table().generation)
            && (matches!(cause, Cause::Ejected | Cause::Departed) || !view.serves(owner))
            || self.is_refused_by_former_owner(failed, view)
    }

    /// Returns whether a backend that owns no slots any more has refused a part several times. The part then goes to the
    /// current owner: a trace that is split is better than a request that fails.
    fn is_refused_by_former_owner(&self, Failed { part, owner, cause }: &Failed, view: &View) -> bool {
        let placed = self.placed.get(part.index as usize);
        matches!(cause, Cause::Status(_))
            && placed.is_some_and(|placed| placed.backoff.failures() >= FORMER_OWNER_ATTEMPTS)
            && !view.owns_slots(owner)
    }

    /// Keeps a failed part for its next attempt, which is no sooner than its backend asked for.
    #[cold]
    fn wait_for(&mut self, failed: Failed, after: Option<Duration>) {
        let Some(placed) = self.placed.get_mut(failed.part.index as usize) else {
            self.defect = Some("a part is unknown");
            return;
        };
        let pause = placed.backoff.pause().max(after.unwrap_or_default());
        self.waiting.push(failed, Instant::now() + pause);
    }

    /// Places every part whose next attempt is due.
    #[cold]
    fn place_due(&mut self, now: Instant) {
        let Some(view) = self.route.dispatch.view() else { return };
        for failed in self.waiting.take_due(now) {
            let (retries, index) = (self.route.dispatch.retries(), failed.part.index as usize);
            if self.has_moved(&failed, &view) {
                // The part goes to another backend, so this is not a retry.
                self.place(failed, &view);
            } else if !retries.spend(now) {
                self.wait_for(failed, None);
            } else if !self.place(failed, &view) {
                retries.give_back();
            } else if let Some(placed) = self.placed.get_mut(index) {
                placed.took_token = true;
            }
        }
    }

    /// Places every waiting part whose slots have a new owner, without waiting any longer.
    #[cold]
    fn place_moved(&mut self) {
        let Some(view) = self.route.dispatch.view() else { return };
        let mut waiting = std::mem::take(&mut self.waiting);
        let moved = waiting.take_if(|failed| self.has_moved(failed, &view));
        self.waiting = waiting;
        for failed in moved {
            self.place(failed, &view);
        }
    }

    /// Sends a part to its owner in the current table. If that table is not the one that placed the part, the part is
    /// cut again. Returns whether it was queued; if not, it waits again.
    fn place(&mut self, failed: Failed, view: &View) -> bool {
        let Some(placed) = self.placed.get(failed.part.index as usize).copied() else {
            self.defect = Some("a part is unknown");
            return false;
        };
        let generation = view.table().generation;
        let leaves = self.is_refused_by_former_owner(&failed, view);
        if placed.generation == generation && !leaves {
            self.route.metrics.retried.increment(1);
            return self.submit(view, vec![failed.part]);
        }
        if let Some(backend) = self.stays_at(&failed, view).filter(|_| !leaves) {
            self.remember(view);
            if let Some(placed) = self.placed.get_mut(failed.part.index as usize) {
                (placed.generation, placed.backend) = (generation, backend);
            }
            self.route.metrics.retried.increment(1);
            return self.submit(view, vec![Part { backend, ..failed.part }]);
        }
        let is_long = failed.part.message.payload_len() > LONG;
        let place = if is_long { self.pipeline.places.take_now() } else { None };
        let len = failed.part.message.framed_len();
        let permit = if is_long && place.is_none() { None } else { self.join.take_again(len) };
        let Some(permit) = permit else {
            self.wait_for(failed, None);
            return false;
        };
        let max = view.max_request_size();
        let Part { signal, records, index, encoding, ref message, .. } = failed.part;
        let targets = self.copies.as_ref().map(Copies::targets).unwrap_or_default();
        let copied = self.copies.as_ref().map(|copies| copies.copied(&targets));
        let cut = || cut::again(signal, message, encoding, permit, view.table(), copied, max);
        match places::run(place.as_ref(), cut) {
            Ok(again) if again.records != u64::from(records) => {
                self.defect = Some("a part does not have the records that it was counted with");
                false
            }
            Ok(again) => {
                self.remember(view);
                self.route.metrics.replaced.increment(1);
                let cut = self.join.add_cut(again.parts.len() + again.copies.len(), again.permit);
                let like = Placed { generation, cut, ..placed };
                let (mut parts, adopted) = (self.enter(again.parts, like), self.enter(again.copies, like));
                for part in &mut parts {
                    let is_elsewhere = view.identity_of(part.backend) != failed.owner;
                    part.reset_elsewhere = failed.part.reset_elsewhere || placed.was_reset && is_elsewhere;
                }
                self.adopt(adopted, view);
                let is_queued = parts.is_empty() || self.submit(view, parts);
                self.settled(index);
                self.settle_adopted();
                is_queued
            }
            // The same bytes were parsed before, so only the budget can cause this.
            Err(refusal) if refusal.retry_after.is_some() => {
                self.wait_for(failed, None);
                false
            }
            Err(refusal) => {
                self.tally.refused(records, refusal.code, refusal.message);
                self.settled(index);
                false
            }
        }
    }

    /// Returns the index of the backend that a failed part goes to again: its own, while that takes records, if a hand-off
    /// may have sent the part there on purpose.
    fn stays_at(&self, Failed { part, owner, .. }: &Failed, view: &View) -> Option<u32> {
        let is_immediate = view.table().history().handoff().mode == HandoffMode::Immediate;
        if is_immediate || part.signal != Signal::Traces { None } else { view.living(owner) }
    }

    /// Keeps the table of a part that is placed again.
    fn remember(&mut self, view: &View) {
        if self.tables.iter().all(|table| table.generation != view.table().generation) {
            self.tables.push(Arc::clone(view.table()));
        }
    }

    /// Assigns new indices to the parts that a part was cut into.
    fn enter(&mut self, mut parts: Vec<Part>, like: Placed) -> Vec<Part> {
        for part in &mut parts {
            part.index = u32::try_from(self.placed.len()).unwrap_or(u32::MAX);
            self.placed.push(Placed { records: part.records, backend: part.backend, ..like });
        }
        parts
    }

    /// Queues parts. If a queue is full, all of them wait again. Returns whether they were queued.
    fn submit(&mut self, view: &View, parts: Vec<Part>) -> bool {
        let count = parts.len();
        match view.submit(parts, &self.join) {
            Ok(()) => {
                self.under_way += count;
                true
            }
            Err(NotQueued { why, parts }) => {
                if why == WhyNotQueued::NoSuchBackend {
                    self.defect = Some("a part is for a backend that is not in its table");
                }
                for part in parts {
                    let owner = view.identity_of(part.backend);
                    self.tally.last_failure = Some((Arc::clone(&owner), Cause::Full));
                    self.wait_for(Failed { part, owner, cause: Cause::Full }, None);
                }
                false
            }
        }
    }

    fn owner_of(&self, placed: &Placed) -> Arc<str> {
        let table = self.tables.iter().find(|table| table.generation == placed.generation);
        let backend = table.and_then(|table| table.targets().get(placed.backend as usize));
        backend.map_or_else(|| "?".into(), |backend| Arc::clone(&backend.identity))
    }
}

impl Drop for Delivery<'_> {
    /// Counts possible duplicates. A client that gets no answer, or is asked to retry, sends the whole request again,
    /// so backends may get the delivered records twice. Of a request that was answered for good nothing is left to
    /// count: no part is open, and the answer took the tally.
    fn drop(&mut self) {
        self.take_last();
        let waiting = self.waiting.indices();
        let is_under_way = |index: &u32| waiting.binary_search(index).is_err() && self.join.may_have_begun(*index);
        let may_be_delivered =
            |(index, placed): &(u32, &Placed)| placed.open && (placed.may_be_delivered || is_under_way(index));
        let open = (0..).zip(&self.placed).filter(may_be_delivered).map(|(_, placed)| u64::from(placed.records));
        self.route.metrics.possible_duplicates.increment(self.tally.accepted + open.sum::<u64>());
    }
}

/// Resolves when a new table has been published. Without a subscription it never resolves.
///
/// Cancel safety: a change that was not returned is returned by the next call.
async fn changed(changes: &mut Option<watch::Receiver<u64>>) {
    let over = match changes {
        Some(changes) => changes.changed().await.is_err(),
        None => true,
    };
    if over {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests;
