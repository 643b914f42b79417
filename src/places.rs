//! Places for work that keeps a processor busy for long: inflating and cutting large requests.
//!
//! There are as many places as the runtime has worker threads. While such work runs, another thread serves the
//! connections of its worker, so that the system's scheduler divides the processors between the two. Who waits gets a
//! place in the order of arrival. One connection waits with few requests at a time, so that it cannot fill the queue.

use std::sync::{Arc, OnceLock};

use tokio::{
    runtime::{Handle, RuntimeFlavor},
    sync::{OwnedSemaphorePermit, Semaphore},
};

/// A message of more bytes than this, inflated, is worked on in a place. Shorter work takes about 100 µs at most.
pub const LONG: usize = 256 << 10;

/// All places of a process. Cloning shares them.
#[derive(Clone, Debug)]
pub struct Places {
    all: Arc<Semaphore>,
    /// How many places one connection may have or wait for.
    of_one: usize,
}

/// Where the requests of one connection wait until they may wait for a place.
#[derive(Debug, Default)]
pub struct Queue(OnceLock<Arc<Semaphore>>);

/// A place. It is free again once this is dropped.
#[derive(Debug)]
pub struct Place {
    _of_all: OwnedSemaphorePermit,
    _of_one: OwnedSemaphorePermit,
}

impl Places {
    /// Creates so many places, of which one connection may have half.
    pub fn new(count: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(count.max(1))), of_one: (count / 2).max(1) }
    }

    /// Creates as many places as the current runtime has worker threads.
    pub fn as_many_as_workers() -> Self {
        Self::new(Handle::try_current().map_or(1, |runtime| runtime.metrics().num_workers()))
    }

    /// Waits for a place. `None` if there are none any more, which does not happen.
    ///
    /// Cancel safety: who stops waiting loses its position.
    pub async fn take(&self, queue: &Queue) -> Option<Place> {
        let of_one = Arc::clone(queue.0.get_or_init(|| Arc::new(Semaphore::new(self.of_one))));
        let of_one = of_one.acquire_owned().await.ok()?;
        let of_all = Arc::clone(&self.all).acquire_owned().await.ok()?;
        Some(Place { _of_all: of_all, _of_one: of_one })
    }
}

/// Does the work on this thread. In a place, another thread meanwhile goes on with the tasks of this one's worker,
/// unless the runtime has one thread only.
pub fn run<T>(place: Option<&Place>, work: impl FnOnce() -> T) -> T {
    let is_one_of_many =
        || Handle::try_current().is_ok_and(|runtime| runtime.runtime_flavor() == RuntimeFlavor::MultiThread);
    if place.is_some() && is_one_of_many() { tokio::task::block_in_place(work) } else { work() }
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
        let places = Places::new(2);
        let (many, few) = (Queue::default(), Queue::default());
        let mut context = Context::from_waker(Waker::noop());
        let first = places.take(&many).await;
        let mut second = pin!(places.take(&many));
        assert!(second.as_mut().poll(&mut context).is_pending(), "it has half of the places");
        let other = places.take(&few).await;
        let third = Queue::default();
        let mut waiting = pin!(places.take(&third));
        assert!(waiting.as_mut().poll(&mut context).is_pending(), "there are two");
        drop(first);
        assert!(second.as_mut().poll(&mut context).is_pending(), "another connection was before it");
        assert!(waiting.as_mut().poll(&mut context).is_ready());
        drop(other);
        assert!(second.as_mut().poll(&mut context).is_ready());
    }

    #[test]
    fn while_work_runs_other_tasks_of_its_thread_go_on() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let tasks = Tasks::new();
        runtime.block_on(async {
            let places = Places::as_many_as_workers();
            assert_eq!(places.all.available_permits(), 1);
            let (send, receive) = mpsc::channel();
            let spawner = tasks.clone();
            let working = tasks.spawn(async move {
                let place = places.take(&Queue::default()).await.unwrap();
                drop(spawner.spawn(async move { send.send(()).unwrap() }));
                run(Some(&place), || receive.recv_timeout(Duration::from_secs(20)))
            });
            assert_eq!(working.await.unwrap(), Ok(()), "the other task has the same worker");
        });
    }

    #[tokio::test]
    async fn a_runtime_of_one_thread_does_the_work_itself() {
        let place = Places::as_many_as_workers().take(&Queue::default()).await;
        assert_eq!(run(place.as_ref(), || 7), 7);
    }
}
