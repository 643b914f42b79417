//! The pending wake-ups of a connection's task, as a set of bits: one for each call, and one for each other source.
//!
//! A connection and all its calls are one task, so that a call needs no wake-ups besides those of the connection: one when
//! parts are queued, and one when the answer is read. [`Wakeups`] tells the task what it was woken for, so that it polls only
//! that. A wake-up from inside a poll of the task sets its bit and does not wake the task.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Wake, Waker},
};

use futures_util::task::AtomicWaker;

/// The maximum number of calls in flight on one connection. Their bits are the lowest ones.
pub(in crate::dispatch) const MAX_PLACES: usize = 48;
/// The socket is ready, or HTTP/2 has something to write.
pub(super) const SOCKET: u64 = 1 << 63;
/// Something waits to be sent, or nothing more will come.
pub(in crate::dispatch) const QUEUE: u64 = 1 << 62;
/// The timer has fired.
pub(super) const TIMER: u64 = 1 << 61;
/// The process is stopping.
pub(super) const STOP: u64 = 1 << 60;
/// Calls may have to be given up.
pub(in crate::dispatch) const GIVE_UP: u64 = 1 << 58;
/// The reply to the orphan has made progress.
pub(super) const ORPHAN: u64 = 1 << 57;
/// The probe of the peer has made progress.
pub(super) const PROBE: u64 = 1 << 56;
/// The task is running. It checks for new wake-ups before its poll ends.
const RUNNING: u64 = 1 << 59;

/// The pending wake-ups of one task.
#[derive(Debug, Default)]
pub(in crate::dispatch) struct Wakeups {
    bits: AtomicU64,
    task: AtomicWaker,
}

/// A waker for one of the bits.
struct Bit {
    wakeups: Arc<Wakeups>,
    bit: u64,
}

impl Wakeups {
    /// A waker that sets `bit`.
    pub(super) fn waker(self: &Arc<Self>, bit: u64) -> Waker {
        Waker::from(Arc::new(Bit { wakeups: Arc::clone(self), bit }))
    }

    /// Sets `bit` and wakes the task, unless it is running or has been woken.
    pub(in crate::dispatch) fn wake(&self, bit: u64) {
        if self.bits.fetch_or(bit, Ordering::AcqRel) == 0 {
            self.task.wake();
        }
    }

    /// Begins a poll. Takes the bits that are set.
    pub(super) fn begin(&self, cx: &Context<'_>) -> u64 {
        self.task.register(cx.waker());
        self.again()
    }

    /// Takes the bits that were set since.
    pub(super) fn again(&self) -> u64 {
        self.bits.swap(RUNNING, Ordering::AcqRel) & !RUNNING
    }

    /// Ends a poll. Returns false, and does not end it, if bits were set since.
    pub(super) fn rest(&self) -> bool {
        self.bits.compare_exchange(RUNNING, 0, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Takes the bits that are set, while no task polls.
    pub(in crate::dispatch) fn woken_for(&self) -> u64 {
        self.bits.swap(0, Ordering::AcqRel)
    }

    /// Waits until bits are set, and takes them, for tasks that do not poll by bits.
    ///
    /// Cancel safety: bits that were not returned stay.
    pub(in crate::dispatch) async fn woken(&self) -> u64 {
        std::future::poll_fn(|cx| {
            self.task.register(cx.waker());
            match self.woken_for() {
                0 => std::task::Poll::Pending,
                bits => std::task::Poll::Ready(bits),
            }
        })
        .await
    }

    /// Ends a poll although work is left, so that other tasks run first. The task is woken again at once.
    pub(super) fn give_way(&self, cx: &Context<'_>) {
        self.bits.fetch_and(!RUNNING, Ordering::AcqRel);
        cx.waker().wake_by_ref();
    }
}

impl Wake for Bit {
    fn wake(self: Arc<Self>) {
        self.wakeups.wake(self.bit);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.wakeups.wake(self.bit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wake_from_inside_a_poll_is_seen_before_rest() {
        let wakeups = Arc::new(Wakeups::default());
        let waker = Waker::noop();
        let cx = Context::from_waker(waker);
        wakeups.waker(QUEUE).wake();
        assert_eq!(wakeups.begin(&cx), QUEUE);
        wakeups.waker(1).wake();
        assert!(!wakeups.rest(), "must not end the poll while a call has to be polled");
        assert_eq!(wakeups.again(), 1);
        assert!(wakeups.rest());
    }
}
