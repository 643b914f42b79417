//! The mailbox of one request: collects the outcomes of its parts, and tells queued parts that their request was abandoned.

use std::{
    fmt,
    future::poll_fn,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Poll, Waker},
};

use tokio::time::Instant;

use super::PartOutcome;
use crate::{
    budget::Permit,
    otlp::{ClientConnection, Metadata},
};

/// The mailbox of one request. Dropping it abandons the request: waiting parts are dropped and counted, calls in flight are
/// awaited.
pub struct Join {
    inbox: Arc<Inbox>,
    /// The number of unfinished parts of each cut.
    cuts: Cuts,
}

/// The number of unfinished parts of each cut of a request. There are several cuts only if a part had to be placed again.
#[derive(Default)]
struct Cuts {
    first: Option<usize>,
    further: Vec<usize>,
}

/// The side of the mailbox that queued parts hold.
pub(super) struct Inbox {
    state: Mutex<State>,
    abandoned: AtomicBool,
    /// A bit for each part, by its index: whether a call has begun with it. The parts from 63 on share one bit.
    begun: AtomicU64,
    /// The time after which no part is sent.
    pub(super) deadline: Instant,
    /// The client connection that the request arrived on.
    pub(super) connection: Arc<ClientConnection>,
    /// The headers of the request that are forwarded. All its parts carry them, including those that are cut again.
    pub(super) metadata: Option<Arc<Metadata>>,
}

#[derive(Default)]
struct State {
    outcomes: Vec<(u32, PartOutcome)>,
    outstanding: usize,
    /// Whether an outcome has arrived that the request has to act on before the others arrive.
    urgent: bool,
    waker: Option<Waker>,
    /// The budget share of the first cut.
    permit: Option<Permit>,
    /// The budget shares of the further cuts.
    further: Vec<Permit>,
}

impl Join {
    /// Creates a mailbox for a request whose client must have an answer by `deadline`.
    pub fn new(deadline: Instant, connection: Arc<ClientConnection>) -> Self {
        Self::carrying(deadline, connection, None)
    }

    /// Creates a mailbox for a request with headers that are forwarded.
    pub fn carrying(deadline: Instant, connection: Arc<ClientConnection>, metadata: Option<Arc<Metadata>>) -> Self {
        let (state, abandoned, begun) = (Mutex::default(), AtomicBool::new(false), AtomicU64::new(0));
        let inbox = Inbox { state, abandoned, begun, deadline, connection, metadata };
        Self { inbox: Arc::new(inbox), cuts: Cuts::default() }
    }

    /// Adds a cut of the request, and keeps the budget share of its parts. The share is given back when all of them are finished
    /// ([`Join::part_done`]), or when the last part of the request is dropped. Returns the number of the cut.
    pub fn add_cut(&mut self, parts: usize, permit: Permit) -> usize {
        let mut state = self.inbox.lock();
        match self.cuts.add(parts) {
            0 => state.permit = Some(permit),
            _ => state.further.push(permit),
        }
        self.cuts.further.len()
    }

    /// Takes `bytes` of the budget for a copy of one of the parts, in the portion of the request's connection.
    pub fn take_again(&self, bytes: usize) -> Option<Permit> {
        self.inbox.lock().permit.as_ref().and_then(|permit| permit.take_again(bytes))
    }

    /// Notes that a part of a cut is finished. After the last part of the cut its budget share is given back, unless `is_over`
    /// says that the request is finished too: then all shares are given back together when it is dropped.
    pub fn part_done(&mut self, cut: usize, is_over: bool) {
        if self.cuts.part_done(cut) && !is_over {
            self.give_back(cut);
        }
    }

    #[cold]
    fn give_back(&self, cut: usize) {
        let mut state = self.inbox.lock();
        let permit = match cut.checked_sub(1) {
            None => state.permit.as_mut(),
            Some(further) => state.further.get_mut(further),
        };
        if let Some(permit) = permit {
            permit.shrink_to(0);
        }
    }

    /// Waits until a part has to be placed again, or until every submitted part has its outcome. Returns the outcomes that have
    /// arrived, as `(index, outcome)`. If no outcome is outstanding, this returns at once.
    ///
    /// Outcomes that need no action do not wake the task before the last one. So a request whose parts are all accepted has one
    /// wake-up.
    /// Cancel safety: outcomes stay for the next call.
    pub async fn next(&self) -> Vec<(u32, PartOutcome)> {
        poll_fn(|cx| {
            let mut state = self.inbox.lock();
            if state.urgent || state.outstanding == 0 {
                state.urgent = false;
                return Poll::Ready(std::mem::take(&mut state.outcomes));
            }
            match &mut state.waker {
                Some(waker) => waker.clone_from(cx.waker()),
                none => *none = Some(cx.waker().clone()),
            }
            Poll::Pending
        })
        .await
    }

    /// Takes the outcomes that have arrived, without waiting.
    pub fn arrived(&self) -> Vec<(u32, PartOutcome)> {
        std::mem::take(&mut self.inbox.lock().outcomes)
    }

    /// Whether a call may have begun with the part with this index. The answer is exact for the first 63 parts.
    pub fn may_have_begun(&self, index: u32) -> bool {
        self.inbox.begun.load(Ordering::Relaxed) & bit_of(index) != 0
    }

    pub(super) fn inbox(&self) -> &Arc<Inbox> {
        &self.inbox
    }
}

impl Cuts {
    /// Adds a cut with this number of parts. Returns the number of the cut.
    fn add(&mut self, parts: usize) -> usize {
        match self.first {
            None => self.first = Some(parts),
            Some(_) => self.further.push(parts),
        }
        self.further.len()
    }

    /// Notes that a part of a cut is finished. Returns whether it was the last one.
    fn part_done(&mut self, cut: usize) -> bool {
        let left = match cut.checked_sub(1) {
            None => self.first.as_mut(),
            Some(further) => self.further.get_mut(further),
        };
        left.is_some_and(|left| {
            *left = left.saturating_sub(1);
            *left == 0
        })
    }
}

impl Drop for Join {
    fn drop(&mut self) {
        self.inbox.abandoned.store(true, Ordering::Relaxed);
    }
}

impl fmt::Debug for Join {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Join").field("deadline", &self.inbox.deadline).finish_non_exhaustive()
    }
}

/// The bit of a part in [`Inbox::begun`].
fn bit_of(index: u32) -> u64 {
    1 << index.min(63)
}

impl Inbox {
    /// Notes that `parts` more outcomes will be delivered.
    pub(super) fn expect(&self, parts: usize) {
        self.lock().outstanding += parts;
    }

    /// Delivers one outcome.
    pub(super) fn push(&self, index: u32, outcome: PartOutcome) {
        let waker = {
            let mut state = self.lock();
            state.outstanding = state.outstanding.saturating_sub(1);
            state.urgent |= matches!(outcome, PartOutcome::Retry { .. });
            state.outcomes.push((index, outcome));
            if state.urgent || state.outstanding == 0 { state.waker.take() } else { None }
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Notes that a call begins with the part with this index.
    pub(super) fn begin(&self, index: u32) {
        self.begun.fetch_or(bit_of(index), Ordering::Relaxed);
    }

    /// Whether the request was abandoned.
    pub(super) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is consistent wherever the code could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::Future,
        pin::pin,
        task::{Context, Wake},
    };

    use super::*;
    use crate::budget::Budget;

    #[derive(Default)]
    struct Flag(AtomicBool);

    impl Wake for Flag {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    fn join() -> Join {
        Join::new(Instant::now(), Arc::default())
    }

    fn accepted() -> PartOutcome {
        PartOutcome::Accepted { rejected: 0, message: None }
    }

    #[test]
    fn accepted_parts_do_not_wake_the_request_before_the_last() {
        let join = join();
        join.inbox().expect(2);
        let flag = Arc::new(Flag::default());
        let waker = Waker::from(Arc::clone(&flag));
        let mut cx = Context::from_waker(&waker);
        let mut next = pin!(join.next());
        assert!(next.as_mut().poll(&mut cx).is_pending());
        join.inbox().push(0, accepted());
        assert!(!flag.0.load(Ordering::Relaxed), "the first of two must not wake");
        join.inbox().push(1, accepted());
        assert!(flag.0.load(Ordering::Relaxed), "the last must wake");
        let Poll::Ready(outcomes) = next.as_mut().poll(&mut cx) else { panic!("must be ready") };
        assert_eq!(outcomes.len(), 2);
    }

    #[test]
    fn the_budget_share_of_a_cut_is_given_back_after_its_last_part_or_with_the_request() {
        let budget = Budget::new(1_000);
        let mut join = join();
        assert_eq!(join.add_cut(2, budget.take(100).unwrap()), 0);
        assert_eq!(join.add_cut(1, budget.take(10).unwrap()), 1);
        assert_eq!(join.add_cut(1, budget.take(1).unwrap()), 2);
        join.part_done(1, false);
        assert_eq!(budget.used(), 101, "the second cut had one part");
        join.part_done(0, false);
        assert_eq!(budget.used(), 101, "the first cut has one part left");
        join.part_done(0, false);
        assert_eq!(budget.used(), 1);
        join.part_done(2, true);
        assert_eq!(budget.used(), 1, "the other shares must be kept until the request is dropped");
        drop(join);
        assert_eq!(budget.used(), 0);
    }

    #[tokio::test]
    async fn without_outstanding_parts_next_returns_at_once() {
        assert!(join().next().await.is_empty());
    }
}
