//! Wakers of one connection's task: which of its calls has something to hear, whether its socket does,
//! whether anything waits to be sent.
//!
//! A connection and its calls are one task, so that a request costs two wake-ups here (parts queued, answer read) instead of
//! two for each call on top. [`Wakers`] say what a wake-up was for, so that only that is polled, and swallow those that come
//! from inside a poll.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Wake, Waker},
};

use futures_util::task::AtomicWaker;

/// Places of one connection: the bits below those that mean something else.
pub(in crate::dispatch) const MAX_PLACES: usize = 48;
/// The socket, or something to write to it.
pub(super) const SOCKET: u64 = 1 << 63;
/// Something waits to be sent, or nothing more will.
pub(in crate::dispatch) const QUEUE: u64 = 1 << 62;
/// The timer.
pub(super) const TIMER: u64 = 1 << 61;
/// The end of all tasks.
pub(super) const STOP: u64 = 1 << 60;
/// Calls are to be given up.
pub(in crate::dispatch) const AWAY: u64 = 1 << 58;
/// The call that outlives its clients.
pub(super) const WITNESS: u64 = 1 << 57;
/// The question on a fresh connection.
pub(super) const ASKED: u64 = 1 << 56;
/// The task is running: it will look again before it rests.
const RUNNING: u64 = 1 << 59;

/// What there is to look at.
#[derive(Debug, Default)]
pub(in crate::dispatch) struct Wakers {
    bits: AtomicU64,
    task: AtomicWaker,
}

/// A waker for one of the bits.
struct Bit {
    wakers: Arc<Wakers>,
    bit: u64,
}

impl Wakers {
    /// A waker that sets `bit`.
    pub(super) fn waker(self: &Arc<Self>, bit: u64) -> Waker {
        Waker::from(Arc::new(Bit { wakers: Arc::clone(self), bit }))
    }

    /// Sets `bit` and wakes the task, unless it is running or has been woken.
    pub(in crate::dispatch) fn wake(&self, bit: u64) {
        if self.bits.fetch_or(bit, Ordering::AcqRel) == 0 {
            self.task.wake();
        }
    }

    /// Begins a poll: takes what there is to look at.
    pub(super) fn begin(&self, cx: &Context<'_>) -> u64 {
        self.task.register(cx.waker());
        self.again()
    }

    /// Takes what came since.
    pub(super) fn again(&self) -> u64 {
        self.bits.swap(RUNNING, Ordering::AcqRel) & !RUNNING
    }

    /// Ends a poll, unless something came since.
    pub(super) fn rest(&self) -> bool {
        self.bits.compare_exchange(RUNNING, 0, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// What it was woken for since this was asked last, while no task polls it.
    #[cfg(test)]
    pub(in crate::dispatch) fn woken_for(&self) -> u64 {
        self.bits.swap(0, Ordering::AcqRel)
    }

    /// Ends a poll although something came: the task lets others run first.
    pub(super) fn give_way(&self, cx: &Context<'_>) {
        self.bits.fetch_and(!RUNNING, Ordering::AcqRel);
        cx.waker().wake_by_ref();
    }
}

impl Wake for Bit {
    fn wake(self: Arc<Self>) {
        self.wakers.wake(self.bit);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.wakers.wake(self.bit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wake_from_inside_a_poll_is_seen_before_rest() {
        let wakers = Arc::new(Wakers::default());
        let waker = Waker::noop();
        let cx = Context::from_waker(waker);
        wakers.waker(QUEUE).wake();
        assert_eq!(wakers.begin(&cx), QUEUE);
        wakers.waker(1).wake();
        assert!(!wakers.rest(), "must not rest with a call to hear");
        assert_eq!(wakers.again(), 1);
        assert!(wakers.rest());
    }
}
