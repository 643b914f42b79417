//! What becomes of a request's parts: waits, places again what can be helped, joins the rest into one outcome.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::Instant};
use tonic::Code;

use super::{Pipeline, Route, cut, held::Held, retry_delay};
use crate::{
    dispatch::{Backoff, Cause, Full, Join, Part, PartOutcome, View},
    otlp::{Outcome, Reason, Refusal},
};

/// Longest `partial_success.error_message` that is passed on, in bytes (design 3).
const MAX_MESSAGE: usize = 256;

/// One request on its way: what is owed, what is known, what waits to be placed again.
pub(super) struct Delivery<'a> {
    pipeline: &'a Pipeline,
    route: &'a Route,
    join: Join,
    /// Every part that was ever placed, by its index.
    placed: Vec<Placed>,
    /// The cuts that they are of.
    held: Held,
    /// Parts with a backend or in its queue.
    under_way: usize,
    /// Parts that failed and wait for their next attempt.
    waiting: Vec<Waiting>,
    /// Says that a table took over, once a part has failed: what waits may have another owner by it.
    changes: Option<watch::Receiver<u64>>,
    tally: Tally,
}

#[derive(Clone, Copy)]
struct Placed {
    records: u32,
    backoff: Backoff,
    /// Generation of the table that placed it.
    generation: u64,
    /// Number of the cut that made it.
    cut: usize,
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

/// What is known of a request's records by now.
#[derive(Default)]
pub(super) struct Tally {
    records: u64,
    /// Refused for good: at the door, in a backend's `partial_success`, or with their whole part.
    rejected: u64,
    /// Of these, those whose whole part was refused.
    refused: u64,
    message: Option<String>,
    /// The code of the refused parts, while they agree.
    code: Option<Code>,
    last_failure: Option<(Arc<str>, Cause)>,
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
        let placed = |part: &Part| Placed { records: part.records, backoff, generation, cut: 0, paid: false };
        Self {
            pipeline,
            route,
            join,
            placed: parts.iter().map(placed).collect(),
            held: Held::new(parts.len()),
            under_way: parts.len(),
            waiting: Vec::new(),
            changes: None,
            tally,
        }
    }

    /// Where outcomes arrive.
    pub(super) fn join(&self) -> &Join {
        &self.join
    }

    /// Waits until nothing is owed any more or `deadline` has come.
    pub(super) async fn finish(mut self, deadline: Instant) -> Result<Outcome, Refusal> {
        while self.owes() {
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
        if self.owes() { Err(self.late()) } else { self.tally.outcome() }
    }

    fn owes(&self) -> bool {
        self.under_way > 0 || !self.waiting.is_empty()
    }

    fn next_due(&self) -> Option<Instant> {
        self.waiting.iter().map(|waiting| waiting.due).min()
    }

    fn take_in(&mut self, results: Vec<(u32, PartOutcome)>) {
        for (index, outcome) in results {
            self.under_way = self.under_way.saturating_sub(1);
            match outcome {
                PartOutcome::Accepted { rejected, message } => {
                    self.tally.accepted(rejected, message);
                    self.settled(index);
                }
                PartOutcome::Rejected { code, message } => {
                    self.tally.refused(self.records_of(index), code, message);
                    self.settled(index);
                }
                PartOutcome::Retry { owner, after, reached, cause, part } => {
                    if reached {
                        self.route.metrics.possible_duplicates.increment(part.records.into());
                    }
                    self.tally.last_failure = Some((Arc::clone(&owner), cause));
                    self.settle_retry(&part, cause.was_no_attempt() && !reached);
                    self.failed(Failed { part, owner, cause }, after);
                }
            }
        }
    }

    /// A part is done with. What its cut holds of the budget is given back with the last of that cut, unless the request is
    /// over anyway.
    fn settled(&mut self, index: u32) {
        let Some(cut) = self.placed.get(index as usize).map(|placed| placed.cut) else { return };
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
        let Some(placed) = self.placed.get_mut(failed.part.index as usize) else { return };
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
        let Some(placed) = self.placed.get(failed.part.index as usize).copied() else { return false };
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
            Ok(again) => {
                drop(failed);
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
            self.placed.push(Placed { records: part.records, ..like });
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
            Err(Full { parts, .. }) => {
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
    fn late(self) -> Refusal {
        let why = self.tally.last_failure.map(|(owner, cause)| format!("backend {owner}: {cause}"));
        let why = why.as_deref().unwrap_or("no answer yet");
        let message = format!("not all of {} records were acknowledged in time; {why}", self.tally.records);
        Refusal::retryable(Reason::Deadline, retry_delay(), message)
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

impl Tally {
    /// What is known of a request that was just cut.
    pub(super) fn new(records: u64, rejected: u64) -> Self {
        Self { records, rejected, message: refused_at_the_door(rejected), ..Self::default() }
    }

    fn accepted(&mut self, rejected: u64, message: Option<String>) {
        self.rejected += rejected;
        if self.message.is_none() {
            self.message = message;
        }
    }

    #[cold]
    fn refused(&mut self, records: u32, code: Code, message: String) {
        let records = u64::from(records);
        self.code = match self.code {
            None if self.refused == 0 => Some(code),
            Some(before) if before == code => Some(code),
            // Codes that differ stay forgotten: `refused` is no longer 0.
            _ => None,
        };
        self.refused += records;
        self.rejected += records;
        if self.message.is_none() {
            self.message = Some(message);
        }
    }

    fn outcome(self) -> Result<Outcome, Refusal> {
        let message = self.message.map(shortened);
        if self.refused > 0 && self.refused == self.records {
            let code = self.code.unwrap_or(Code::InvalidArgument);
            return Err(Refusal::permanent(code, Reason::Backend, message.unwrap_or_default()));
        }
        Ok(Outcome::Accepted { rejected: self.rejected, message })
    }
}

/// The outcome of a request of which nothing was to be sent.
pub(super) fn nothing_to_send(rejected: u64) -> Outcome {
    Outcome::Accepted { rejected, message: refused_at_the_door(rejected) }
}

fn refused_at_the_door(rejected: u64) -> Option<String> {
    (rejected > 0).then(|| "records with an invalid trace ID were refused: invalid_trace_id is reject".to_owned())
}

fn shortened(mut message: String) -> String {
    let end = (0..=MAX_MESSAGE.min(message.len())).rev().find(|end| message.is_char_boundary(*end));
    message.truncate(end.unwrap_or(0));
    message
}
