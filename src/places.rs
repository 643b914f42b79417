//! Places for work that keeps a processor busy for long: inflating and cutting large requests.
//!
//! There are as many places as the runtime has worker threads. While such work runs, another thread serves the
//! connections of its worker, so that the system's scheduler divides the processors between the two. Who waits gets a
//! place in the order of arrival. One connection waits with few requests at a time, so that it cannot fill the queue.
//!
//! The queue is bounded by time: it takes no more than can have its turn in time, by how long places were held of late.
//! More would only wait in vain, and hold memory meanwhile.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    runtime::{Handle, RuntimeFlavor},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

/// A message of more bytes than this, inflated, is worked on in a place. Shorter work takes about 100 µs at most.
pub const LONG: usize = 256 << 10;

/// The weight of the last place that was held in the average: one in so many.
const AVERAGED_OVER: u64 = 8;

/// All places of a process. Cloning shares them.
#[derive(Clone, Debug)]
pub struct Places(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    all: Arc<Semaphore>,
    count: u32,
    /// How many places one connection may have or wait for.
    of_one: usize,
    /// The requests that wait, those in the queues of their connections included.
    waiting: AtomicUsize,
    /// Those of them that no other request of their connection keeps from a place.
    in_line: AtomicUsize,
    /// For how long a place is held, on average, in nanoseconds; 0 before the first one.
    held_for: AtomicU64,
}

/// Where the requests of one connection wait until they may wait for a place.
#[derive(Debug, Default)]
pub struct Queue {
    of_one: OnceLock<Arc<Semaphore>>,
    waiting: AtomicUsize,
}

/// A place. It is free again once this is dropped.
#[derive(Debug)]
pub struct Place {
    shared: Arc<Shared>,
    since: Instant,
    _of_all: OwnedSemaphorePermit,
    /// `None` if it was taken for no connection.
    _of_one: Option<OwnedSemaphorePermit>,
}

/// No place is free in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no place is free in time")]
pub struct Busy;

impl Places {
    /// Creates so many places, of which one connection may have half.
    pub fn new(count: usize) -> Self {
        let count = count.max(1);
        Self(Arc::new(Shared {
            all: Arc::new(Semaphore::new(count)),
            count: u32::try_from(count).unwrap_or(u32::MAX),
            of_one: (count / 2).max(1),
            waiting: AtomicUsize::new(0),
            in_line: AtomicUsize::new(0),
            held_for: AtomicU64::new(0),
        }))
    }

    /// Creates as many places as the current runtime has worker threads.
    pub fn as_many_as_workers() -> Self {
        Self::new(Handle::try_current().map_or(1, |runtime| runtime.metrics().num_workers()))
    }

    /// Waits for a place until `deadline`. If so many wait already that its turn would come later, it fails at once.
    ///
    /// Cancel safety: who stops waiting loses its position.
    pub async fn take(&self, queue: &Queue, deadline: Instant) -> Result<Place, Busy> {
        let Self(shared) = self;
        let of_one = Arc::clone(queue.of_one.get_or_init(|| Arc::new(Semaphore::new(shared.of_one))));
        if let Ok(of_one) = Arc::clone(&of_one).try_acquire_owned()
            && let Ok(of_all) = Arc::clone(&shared.all).try_acquire_owned()
        {
            return Ok(Place::new(shared, of_all, Some(of_one)));
        }
        let ahead = shared.in_line.load(Relaxed) + queue.waiting.load(Relaxed);
        if shared.turn_after(ahead) > deadline.saturating_duration_since(Instant::now()) {
            return Err(Busy);
        }
        let waiting = async {
            let _counted = (Counted::new(&shared.waiting), Counted::new(&queue.waiting));
            let of_one = of_one.acquire_owned().await.map_err(|_| Busy)?;
            let _in_line = Counted::new(&shared.in_line);
            let of_all = Arc::clone(&shared.all).acquire_owned().await.map_err(|_| Busy)?;
            Ok(Place::new(shared, of_all, Some(of_one)))
        };
        timeout_at(deadline, waiting).await.unwrap_or(Err(Busy))
    }

    /// Returns a place if one is free and nobody waits for it.
    pub fn take_now(&self) -> Option<Place> {
        let of_all = Arc::clone(&self.0.all).try_acquire_owned().ok()?;
        Some(Place::new(&self.0, of_all, None))
    }

    /// Returns how many requests wait for a place.
    pub fn waiting(&self) -> usize {
        self.0.waiting.load(Relaxed)
    }
}

impl Shared {
    /// Returns when the turn of a request comes that has so many ahead of it.
    fn turn_after(&self, ahead: usize) -> Duration {
        let held_for = Duration::from_nanos(self.held_for.load(Relaxed));
        held_for.saturating_mul(u32::try_from(ahead + 1).unwrap_or(u32::MAX)) / self.count
    }

    /// Notes for how long a place was held. If two are given back at the same moment, one may be missed.
    fn note(&self, held_for: Duration) {
        let now = u64::try_from(held_for.as_nanos()).unwrap_or(u64::MAX);
        let average = match self.held_for.load(Relaxed) {
            0 => now,
            before => before - before / AVERAGED_OVER + now / AVERAGED_OVER,
        };
        self.held_for.store(average, Relaxed);
    }
}

impl Place {
    fn new(shared: &Arc<Shared>, of_all: OwnedSemaphorePermit, of_one: Option<OwnedSemaphorePermit>) -> Self {
        Self { shared: Arc::clone(shared), since: Instant::now(), _of_all: of_all, _of_one: of_one }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.note(self.since.elapsed());
    }
}

/// Counts one more until it is dropped.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(counter: &'a AtomicUsize) -> Self {
        counter.fetch_add(1, Relaxed);
        Self(counter)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// Does the work on this thread. In a place, another thread meanwhile goes on with the tasks of this one's worker,
/// unless the runtime has one thread only.
pub fn run<T>(place: Option<&Place>, work: impl FnOnce() -> T) -> T {
    if place.is_some() { off_worker(work) } else { work() }
}

/// Does the work on this thread, while another one goes on with the tasks of its worker, unless the runtime has one
/// thread only. Nothing here bounds how many do so at a time.
pub fn off_worker<T>(work: impl FnOnce() -> T) -> T {
    let is_one_of_many =
        Handle::try_current().is_ok_and(|runtime| runtime.runtime_flavor() == RuntimeFlavor::MultiThread);
    if is_one_of_many { tokio::task::block_in_place(work) } else { work() }
}

#[cfg(test)]
mod tests {
    use std::{
        future::Future,
        pin::pin,
        sync::mpsc,
        task::{Context, Waker},
        time::Duration,
    };

    use super::*;
    use crate::lifecycle::Tasks;

    #[tokio::test]
    async fn a_connection_with_many_requests_waits_with_one_of_them_only() {
        let (places, by) = (Places::new(2), Instant::now() + Duration::from_secs(60));
        let (many, few) = (Queue::default(), Queue::default());
        let mut context = Context::from_waker(Waker::noop());
        let first = places.take(&many, by).await;
        let mut second = pin!(places.take(&many, by));
        assert!(second.as_mut().poll(&mut context).is_pending(), "it has half of the places");
        let other = places.take(&few, by).await;
        let third = Queue::default();
        let mut waiting = pin!(places.take(&third, by));
        assert!(waiting.as_mut().poll(&mut context).is_pending(), "there are two");
        drop(first);
        assert!(second.as_mut().poll(&mut context).is_pending(), "another connection was before it");
        assert!(waiting.as_mut().poll(&mut context).is_ready());
        drop(other);
        assert!(second.as_mut().poll(&mut context).is_ready());
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_wait_than_can_have_their_turn_in_time() {
        let places = Places::new(2);
        let by = |seconds| Instant::now() + Duration::from_secs(seconds);
        let [first, second] = [(); 2].map(|()| places.take_now().expect("nobody waits"));
        assert_eq!(places.take_now().map(drop), None, "there are two");
        tokio::time::advance(Duration::from_secs(2)).await;
        drop((first, second));
        let queues: Vec<Queue> = (0..8).map(|_| Queue::default()).collect();
        let _working = [places.take(&queues[0], by(8)).await.unwrap(), places.take(&queues[1], by(8)).await.unwrap()];
        let mut context = Context::from_waker(Waker::noop());
        let mut waiting = Vec::new();
        for queue in &queues[2..5] {
            let mut take = Box::pin(places.take(queue, by(3)));
            assert!(take.as_mut().poll(&mut context).is_pending(), "the turn of the third comes after 3 s");
            waiting.push(take);
        }
        assert_eq!(places.waiting(), 3);
        assert_eq!(places.take(&queues[5], by(3)).await.map(drop), Err(Busy), "that of the fourth after 4 s");
        let mut patient = Box::pin(places.take(&queues[6], by(8)));
        assert!(patient.as_mut().poll(&mut context).is_pending(), "who has more time may wait");
        // Nothing moves, and each gives up at its deadline.
        for take in waiting {
            assert_eq!(take.await.map(drop), Err(Busy));
        }
        assert_eq!(places.waiting(), 1);
        drop(patient);
        assert_eq!((places.waiting(), places.0.in_line.load(Relaxed)), (0, 0));
    }

    #[test]
    fn while_work_runs_other_tasks_of_its_thread_go_on() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let tasks = Tasks::new();
        runtime.block_on(async {
            let places = Places::as_many_as_workers();
            assert_eq!(places.0.all.available_permits(), 1);
            let (send, receive) = mpsc::channel();
            let spawner = tasks.clone();
            let working = tasks.spawn(async move {
                let by = Instant::now() + Duration::from_secs(60);
                let place = places.take(&Queue::default(), by).await.unwrap();
                drop(spawner.spawn(async move { send.send(()).unwrap() }));
                run(Some(&place), || receive.recv_timeout(Duration::from_secs(20)))
            });
            assert_eq!(working.await.unwrap(), Ok(()), "the other task has the same worker");
        });
    }

    #[tokio::test]
    async fn a_runtime_of_one_thread_does_the_work_itself() {
        let place = Places::as_many_as_workers().take_now();
        assert_eq!(run(place.as_ref(), || 7), 7);
    }
}
