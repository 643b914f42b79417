//! The memory of answers that are large: how many are written at a time, and how many bytes clients may leave untaken.
//!
//! An answer's bytes are taken from the account before HTTP gets them, and given back when HTTP has written the last of
//! them. Pages of metrics may have [`MOST_BYTES`] together, and all other answers as many. A page of metrics is counted
//! once for all who ask at the same time.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::StatusCode;
use tokio::{sync::Semaphore, task::spawn_blocking, time::Instant};

use super::{Answer, State};
use crate::budget::{Budget, Permit, Use};

/// The most bytes of pages of metrics together, and of all other answers. The metrics of 2,048 backends have 6 MiB.
const MOST_BYTES: usize = 16 << 20;

/// The most answers that are written at a time. Each takes a thread, and twice its bytes until it is complete.
const WRITERS: usize = 2;

/// How old a page of metrics may be when it is given to another client.
const SHARED_FOR: Duration = Duration::from_secs(1);

/// Answers up to this many bytes are not counted: connections and streams bound them.
const SMALL: usize = 4 << 10;

/// The answers of one listener.
#[derive(Debug)]
pub(super) struct Answers {
    account: Budget,
    /// The bound on pages of metrics.
    metrics: Budget,
    /// The bound on all other answers.
    others: Budget,
    writers: Arc<Semaphore>,
    /// Whoever has this lock may write a page of metrics.
    turn: tokio::sync::Mutex<()>,
    /// The last page of metrics, and when it was written.
    last: Mutex<Option<(Instant, Arc<Kept>)>>,
}

/// Bytes that answers have taken. They are given back when the last clone is dropped.
#[derive(Clone, Debug)]
pub(super) struct Held(#[expect(dead_code, reason = "held until it is dropped")] Arc<[Permit; 2]>);

/// Bytes of an answer, and what they have taken.
#[derive(Debug)]
struct Kept {
    bytes: Bytes,
    _held: Held,
}

/// A reference to bytes that other answers refer to too.
struct Shared(Arc<Kept>);

impl Answers {
    pub(super) fn new(account: Budget) -> Self {
        Self {
            account,
            metrics: Budget::new(MOST_BYTES),
            others: Budget::new(MOST_BYTES),
            writers: Arc::new(Semaphore::new(WRITERS)),
            turn: tokio::sync::Mutex::default(),
            last: Mutex::default(),
        }
    }

    /// Takes bytes for an answer; `None` if clients have left too many untaken.
    pub(super) fn hold(&self, bytes: usize) -> Option<Held> {
        self.hold_of(&self.others, bytes)
    }

    fn hold_of(&self, bound: &Budget, bytes: usize) -> Option<Held> {
        let own = bound.take(bytes)?;
        // The account is full when operators need an answer most, so it only counts these bytes.
        Some(Held(Arc::new([own, self.account.count_for(Use::Admin, bytes)])))
    }

    /// Writes an answer on a thread for blocking work: the metrics of 200 backends take milliseconds, in which a worker
    /// thread would serve no request.
    pub(super) async fn write(&self, page: impl FnOnce() -> Answer + Send + 'static) -> Answer {
        let answer = self.written(page).await;
        if answer.body.len() <= SMALL {
            return answer;
        }
        match self.hold(answer.body.len()) {
            Some(held) => Answer { body: kept(answer.body, held), ..answer },
            None => no_room(),
        }
    }

    /// Returns the page of metrics. While another client takes one that is less than a second old, it is shared, so that many
    /// clients who take none of it hold one page for each second. If there is no room for another page, it is an older one.
    pub(super) async fn metrics(&self, state: Arc<State>) -> Answer {
        let _turn = self.turn.lock().await;
        let is_recent =
            |(written, page): &(Instant, Arc<Kept>)| written.elapsed() < SHARED_FOR && Arc::strong_count(page) > 1;
        if let Some((_, page)) = self.last().as_ref().filter(|last| is_recent(last)) {
            return shared(page);
        }
        let answer = self.written(move || super::metrics(&state, None)).await;
        if answer.status != StatusCode::OK {
            return answer;
        }
        let mut last = self.last();
        // If nobody takes the last page any more, it makes room for this one.
        last.take_if(|(_, page)| Arc::strong_count(page) == 1);
        if let Some(held) = self.hold_of(&self.metrics, answer.body.len()) {
            let page = Arc::new(Kept { bytes: answer.body, _held: held });
            return shared(&last.insert((Instant::now(), page)).1);
        }
        last.as_ref().map_or_else(no_room, |(_, page)| shared(page))
    }

    async fn written(&self, page: impl FnOnce() -> Answer + Send + 'static) -> Answer {
        // The permit belongs to the thread, which goes on when the client is gone.
        let permit = Arc::clone(&self.writers).acquire_owned().await;
        let written = spawn_blocking(move || {
            let answer = page();
            drop(permit);
            answer
        });
        written.await.unwrap_or_else(|_panicked| Answer::text(StatusCode::INTERNAL_SERVER_ERROR, ""))
    }

    fn last(&self) -> MutexGuard<'_, Option<(Instant, Arc<Kept>)>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the bytes, which give back what they have taken when HTTP has written them.
pub(super) fn kept(bytes: Bytes, held: Held) -> Bytes {
    Bytes::from_owner(Kept { bytes, _held: held })
}

fn shared(page: &Arc<Kept>) -> Answer {
    Answer { status: StatusCode::OK, content_type: super::METRICS, body: Bytes::from_owner(Shared(Arc::clone(page))) }
}

/// The text of an answer for which there is no room.
pub(super) const NO_ROOM: &str =
    "clients have not taken earlier answers, and there is no room for more; ask again in 10 s";

fn no_room() -> Answer {
    Answer::text(StatusCode::SERVICE_UNAVAILABLE, format!("{NO_ROOM}\n"))
}

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        admin::{Hosts, Pools, Readiness},
        telemetry::Recorder,
    };

    fn state() -> Arc<State> {
        let recorder = Recorder::scoped(Clone::clone);
        let (budget, hosts) = (Budget::new(usize::MAX), Hosts::default());
        Arc::new(State { recorder, readiness: Readiness::new(), pools: Pools::new(), budget, hosts })
    }

    fn large(bytes: usize) -> impl FnOnce() -> Answer + Send + 'static {
        move || Answer::text(StatusCode::OK, "x".repeat(bytes))
    }

    /// Whether both are the same bytes in memory.
    fn are_one(one: &Answer, other: &Answer) -> bool {
        one.body.as_ptr() == other.body.as_ptr()
    }

    #[tokio::test(start_paused = true)]
    async fn clients_who_ask_for_metrics_within_a_second_share_a_page() {
        let (state, account) = (state(), Budget::new(usize::MAX));
        let answers = Answers::new(account.clone());
        let first = answers.metrics(Arc::clone(&state)).await;
        let used = account.used_for(Use::Admin);
        assert_eq!(used, first.body.len());
        for _ in 0..100 {
            let other = answers.metrics(Arc::clone(&state)).await;
            assert!(are_one(&first, &other));
            std::mem::forget(other);
        }
        assert_eq!(account.used_for(Use::Admin), used);
        tokio::time::advance(SHARED_FOR).await;
        let later = answers.metrics(Arc::clone(&state)).await;
        assert!(!are_one(&first, &later), "it would be too old");
    }

    #[tokio::test(start_paused = true)]
    async fn a_page_of_metrics_that_was_taken_is_not_given_again() {
        let (state, account) = (state(), Budget::new(usize::MAX));
        let answers = Answers::new(account.clone());
        for _ in 0..10 {
            tokio::time::advance(SHARED_FOR / 100).await;
            let page = answers.metrics(Arc::clone(&state)).await;
            assert_eq!(answers.last().as_ref().map(|(written, _)| *written), Some(Instant::now()));
            assert_eq!(account.used_for(Use::Admin), page.body.len(), "only the last page is held");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn answers_that_are_not_taken_are_bounded_and_metrics_are_still_answered() {
        let (state, account) = (state(), Budget::new(usize::MAX));
        let answers = Answers::new(account.clone());
        drop(answers.metrics(Arc::clone(&state)).await);
        let untaken: Vec<Answer> = futures_util::future::join_all((0..20).map(|_| answers.write(large(1 << 20)))).await;
        let whole = untaken.iter().filter(|answer| answer.status == StatusCode::OK).count();
        assert_eq!(whole, MOST_BYTES >> 20);
        assert!(account.used_for(Use::Admin) <= 2 * MOST_BYTES);
        assert_eq!(answers.write(large(SMALL)).await.status, StatusCode::OK);
        assert_eq!(answers.write(large(SMALL + 1)).await.status, StatusCode::SERVICE_UNAVAILABLE);
        let (one, other) = (answers.metrics(Arc::clone(&state)).await, answers.metrics(Arc::clone(&state)).await);
        assert_eq!((one.status, other.status), (StatusCode::OK, StatusCode::OK));
        drop((untaken, one, other));
        assert_eq!(answers.write(large(1 << 20)).await.status, StatusCode::OK);
    }
}
