//! What becomes of a request's parts: waits, places again what can be helped, joins the rest into one outcome.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::Instant};

use super::{Pipeline, Route, cut, defect, held::Held, retry_delay, tally::Tally};
use crate::{
    dispatch::{Backoff, Cause, Join, NotQueued, Part, PartOutcome, View, WhyNotQueued},
    otlp::{Outcome, Reason, Refusal},
    ring::Table,
};

/// Backends that the message of a late request names.
const NAMED: usize = 3;

/// One request on its way: what is owed, what is known, what waits to be placed again.
pub(super) struct Delivery<'a> {
    pipeline: &'a Pipeline,
    route: &'a Route,
    join: Join,
    /// Every part that was ever placed, by its index.
    placed: Vec<Placed>,
    /// The tables that placed them.
    tables: Vec<Arc<Table>>,
    /// The cuts that they are of.
    held: Held,
    /// Parts with a backend or in its queue.
    under_way: usize,
    /// Parts that failed and wait for their next attempt.
    waiting: Vec<Waiting>,
    /// Says that a table took over, once a part has failed: what waits may have another owner by it.
    changes: Option<watch::Receiver<u64>>,
    tally: Tally,
    /// What went wrong that cannot go wrong unless this program has a defect. Nothing is then acknowledged.
    defect: Option<&'static str>,
}

#[derive(Clone, Copy)]
struct Placed {
    records: u32,
    backoff: Backoff,
    /// Generation of the table that placed it.
    generation: u64,
    /// Index of its owner in that table's backends.
    backend: u32,
    /// Number of the cut that made it.
    cut: usize,
    /// Whether its records still wait for an answer.
    owed: bool,
    /// Whether an attempt that failed may have delivered its records.
    may_be_there: bool,
    /// Whether its last attempt took a token of the retry budget.
    paid: bool,
}

struct Waiting {
    failed: Failed,
    due: Instant,
}

/// A part that its owner could not take or did not answer for.
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
            owed: true,
            may_be_there: false,
            paid: false,
        };
        Self {
            pipeline,
            route,
            join,
            placed: parts.iter().map(placed).collect(),
            tables: vec![Arc::clone(view.table())],
            held: Held::new(parts.len()),
            under_way: 0,
            waiting: Vec::new(),
            changes: None,
            tally,
            defect: None,
        }
    }

    /// Where outcomes arrive.
    pub(super) fn join(&self) -> &Join {
        &self.join
    }

    /// All parts were queued: waits until nothing is owed any more or `deadline` has come.
    pub(super) async fn finish(mut self, deadline: Instant) -> Result<Outcome, Refusal> {
        self.under_way = self.placed.len();
        while self.owes() && self.defect.is_none() {
            let wake = self.next_due().map_or(deadline, |due| due.min(deadline));
            if self.under_way == 0 && wake >= deadline {
                break;
            }
            tokio::select! {
                // Results first: what is known must not be answered as late.
                biased;
                results = self.join.next(), if self.under_way > 0 => self.take_in(results),
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
        self.conclude()
    }

    /// What the client is answered. A request is acknowledged only if every part has an outcome and every record is accounted
    /// for.
    fn conclude(&mut self) -> Result<Outcome, Refusal> {
        if !self.owes() {
            if self.placed.iter().any(|placed| placed.owed) {
                self.defect.get_or_insert("a part was lost on its way");
            } else if !self.tally.is_complete() {
                self.defect.get_or_insert("the parts of a request do not have all of its records");
            }
        }
        match self.defect {
            Some(what) => Err(defect(what)),
            None if self.owes() => Err(self.late()),
            None => std::mem::take(&mut self.tally).outcome(),
        }
    }

    fn owes(&self) -> bool {
        self.under_way > 0 || !self.waiting.is_empty()
    }

    fn next_due(&self) -> Option<Instant> {
        self.waiting.iter().map(|waiting| waiting.due).min()
    }

    fn take_in(&mut self, results: Vec<(u32, PartOutcome)>) {
        for (index, outcome) in results {
            if let Some((failed, after)) = self.take(index, outcome) {
                self.failed(failed, after);
            }
        }
    }

    /// Takes note of what has arrived when nothing more is placed.
    #[cold]
    fn take_last(&mut self) {
        for (index, outcome) in self.join.arrived() {
            if let Some((failed, after)) = self.take(index, outcome) {
                self.wait_for(failed, after);
            }
        }
    }

    /// Takes note of one outcome. Returns the part if it is still owed, and the pause that its backend asked for.
    fn take(&mut self, index: u32, outcome: PartOutcome) -> Option<(Failed, Option<Duration>)> {
        self.under_way = self.under_way.saturating_sub(1);
        if !self.placed.get(index as usize).is_some_and(|placed| placed.owed) {
            self.defect = Some("a part has more outcomes than one");
            return None;
        }
        match outcome {
            PartOutcome::Accepted { rejected, message } => {
                self.note_repeat(index);
                self.tally.accepted(self.records_of(index), rejected, message);
                self.settled(index);
                None
            }
            PartOutcome::Rejected { code, message } => {
                self.tally.refused(self.records_of(index), code, message);
                self.settled(index);
                None
            }
            PartOutcome::Retry { owner, after, reached, cause, part } => {
                if reached {
                    self.note_repeat(index);
                    self.note_reached(index);
                }
                self.tally.last_failure = Some((Arc::clone(&owner), cause));
                self.settle_retry(&part, cause.was_no_attempt() && !reached);
                Some((Failed { part, owner, cause }, after))
            }
        }
    }

    /// An attempt was sent: if an earlier one may have arrived, a backend may have its records twice.
    fn note_repeat(&self, index: u32) {
        if let Some(placed) = self.placed.get(index as usize)
            && placed.may_be_there
        {
            self.route.metrics.possible_duplicates.increment(placed.records.into());
        }
    }

    /// An attempt failed that may have arrived.
    fn note_reached(&mut self, index: u32) {
        if let Some(placed) = self.placed.get_mut(index as usize) {
            placed.may_be_there = true;
        }
    }

    /// A part is done with. What its cut holds of the budget is given back with the last of that cut, unless the request is
    /// over anyway.
    fn settled(&mut self, index: u32) {
        let Some(Placed { owed, cut, .. }) = self.placed.get_mut(index as usize) else { return };
        *owed = false;
        let cut = *cut;
        if self.held.settle(cut) && self.owes() {
            self.join.release(cut);
        }
    }

    /// Ends an attempt; a retry that nobody heard of costs nothing.
    #[cold]
    fn settle_retry(&mut self, part: &Part, unheard: bool) {
        let Some(placed) = self.placed.get_mut(part.index as usize) else { return };
        if std::mem::take(&mut placed.paid) && unheard {
            self.route.dispatch.retries().give_back();
        }
    }

    /// Places a failed part at once if its slots have gone elsewhere; else it waits for its next attempt.
    #[cold]
    fn failed(&mut self, failed: Failed, after: Option<Duration>) {
        // Before the view is looked at: a table that comes in between is heard of.
        let dispatch = &self.route.dispatch;
        self.changes.get_or_insert_with(|| dispatch.changes());
        match dispatch.view() {
            Some(view) if self.has_moved(&failed, &view) => {
                self.place(failed, &view);
            }
            _ => self.wait_for(failed, after),
        }
    }

    /// Whether `view` is of a newer table than the one that placed the part, and its owner has lost it by that.
    fn has_moved(&self, Failed { part, owner, cause }: &Failed, view: &View) -> bool {
        self.placed.get(part.index as usize).is_some_and(|placed| placed.generation < view.table().generation)
            && (matches!(cause, Cause::Ejected | Cause::Departed) || !view.serves(owner))
    }

    fn records_of(&self, index: u32) -> u32 {
        self.placed.get(index as usize).map_or(0, |placed| placed.records)
    }

    /// Keeps a failed part for its next attempt, no sooner than its backend asked for.
    #[cold]
    fn wait_for(&mut self, failed: Failed, after: Option<Duration>) {
        let Some(placed) = self.placed.get_mut(failed.part.index as usize) else {
            self.defect = Some("a part is unknown");
            return;
        };
        let pause = placed.backoff.pause().max(after.unwrap_or_default());
        self.waiting.push(Waiting { failed, due: Instant::now() + pause });
    }

    /// Places every part whose time has come.
    #[cold]
    fn place_due(&mut self, now: Instant) {
        let Some(view) = self.route.dispatch.view() else { return };
        for Waiting { failed, .. } in self.take_waiting(|_, waiting| waiting.due <= now) {
            let (retries, index) = (self.route.dispatch.retries(), failed.part.index as usize);
            if self.has_moved(&failed, &view) {
                // Another backend is asked: that is no retry.
                self.place(failed, &view);
            } else if !retries.spend(now) {
                self.wait_for(failed, None);
            } else if !self.place(failed, &view) {
                retries.give_back();
            } else if let Some(placed) = self.placed.get_mut(index) {
                placed.paid = true;
            }
        }
    }

    /// Places every part that waits for a backend that has lost it: it need not wait any longer.
    #[cold]
    fn place_moved(&mut self) {
        let Some(view) = self.route.dispatch.view() else { return };
        for Waiting { failed, .. } in self.take_waiting(|delivery, waiting| delivery.has_moved(&waiting.failed, &view))
        {
            self.place(failed, &view);
        }
    }

    fn take_waiting(&mut self, which: impl Fn(&Self, &Waiting) -> bool) -> Vec<Waiting> {
        let (taken, waiting) = std::mem::take(&mut self.waiting).into_iter().partition(|waiting| which(self, waiting));
        self.waiting = waiting;
        taken
    }

    /// Sends a part to its owner by the table of this moment, cut again when that is another table. Whether it was queued;
    /// if not, it waits again.
    fn place(&mut self, failed: Failed, view: &View) -> bool {
        let Some(placed) = self.placed.get(failed.part.index as usize).copied() else {
            self.defect = Some("a part is unknown");
            return false;
        };
        let generation = view.table().generation;
        if placed.generation == generation {
            self.route.metrics.retried.increment(1);
            return self.submit(view, vec![failed.part]);
        }
        let Some(permit) = self.pipeline.budget.take(failed.part.message.framed_len()) else {
            self.wait_for(failed, None);
            return false;
        };
        let max = view.max_request_size();
        let Part { signal, records, index, ref message, .. } = failed.part;
        match cut::again(signal, message, permit, view.table(), max) {
            Ok(again) if again.records != u64::from(records) => {
                self.defect = Some("a part does not have the records that it was counted with");
                false
            }
            Ok(again) => {
                drop(failed);
                if self.tables.iter().all(|table| table.generation != generation) {
                    self.tables.push(Arc::clone(view.table()));
                }
                self.route.metrics.replaced.increment(1);
                self.join.hold(again.permit);
                let cut = self.held.add(again.parts.len());
                let parts = self.adopt(again.parts, Placed { generation, cut, ..placed });
                let is_queued = self.submit(view, parts);
                self.settled(index);
                is_queued
            }
            // The bytes were walked before: only the budget can be in the way.
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

    /// Gives parts of a part indices of their own.
    fn adopt(&mut self, mut parts: Vec<Part>, like: Placed) -> Vec<Part> {
        for part in &mut parts {
            part.index = u32::try_from(self.placed.len()).unwrap_or(u32::MAX);
            self.placed.push(Placed { records: part.records, backend: part.backend, ..like });
        }
        parts
    }

    /// Queues parts; if a queue is full they wait again.
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

    #[cold]
    fn late(&self) -> Refusal {
        let message =
            format!("not all of {} records were acknowledged in time; {}", self.tally.records, self.who_owes());
        Refusal::retryable(Reason::Deadline, retry_delay(), message)
    }

    /// Names the backends whose answer is missing, and what failed last.
    #[cold]
    fn who_owes(&self) -> String {
        let waiting = self.waiting();
        let under_way = |(index, placed): &(u32, &Placed)| placed.owed && !waiting.contains(index);
        let mut silent: Vec<Arc<str>> =
            (0..).zip(&self.placed).filter(under_way).map(|(_, placed)| self.owner_of(placed)).collect();
        let failed_last = self.tally.last_failure.as_ref().map(|(owner, _)| owner);
        silent.retain(|owner| Some(owner) != failed_last);
        silent.sort_unstable();
        silent.dedup();
        let more = silent.len().saturating_sub(NAMED);
        silent.truncate(NAMED);
        let mut said = Vec::new();
        if !silent.is_empty() {
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            said.push(format!("no answer yet from backend {}{more}", silent.join(", ")));
        }
        if let Some((owner, cause)) = &self.tally.last_failure {
            said.push(format!("backend {owner}: {cause}"));
        }
        said.join("; ")
    }

    /// Indices of the parts that wait for their next attempt.
    fn waiting(&self) -> Vec<u32> {
        self.waiting.iter().map(|waiting| waiting.failed.part.index).collect()
    }

    fn owner_of(&self, placed: &Placed) -> Arc<str> {
        let table = self.tables.iter().find(|table| table.generation == placed.generation);
        let backend = table.and_then(|table| table.backends().get(placed.backend as usize));
        backend.map_or_else(|| "?".into(), |backend| Arc::clone(&backend.identity))
    }
}

impl Drop for Delivery<'_> {
    /// A client that has no answer, or is told to come again, sends all of its request again: counts what backends then may get
    /// twice.
    fn drop(&mut self) {
        self.take_last();
        if self.owes() || self.defect.is_some() {
            let waiting = self.waiting();
            let is_under_way = |index: &u32| !waiting.contains(index) && self.join.may_have_begun(*index);
            let may_be_there =
                |(index, placed): &(u32, &Placed)| placed.owed && (placed.may_be_there || is_under_way(index));
            let owed = (0..).zip(&self.placed).filter(may_be_there).map(|(_, placed)| u64::from(placed.records));
            self.route.metrics.possible_duplicates.increment(self.tally.accepted + owed.sum::<u64>());
        }
    }
}

/// Resolves when another table has taken over; never without a subscription.
///
/// Cancel safety: a change that was not answered is answered by the next call.
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
