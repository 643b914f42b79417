//! Admits a client's connection and its streams as far as the memory account has room for them.
//!
//! h2 allocates a stream as soon as it reads its headers, before any service can refuse it. Therefore the layer below h2
//! asks here first. A stream without room is passed to the service all the same, with the mark [`NoRoom`], since h2 has
//! to decode its headers and the client is owed an answer. But until that answer is given, nothing more is read from the
//! connection: a client holds at most one stream that is not accounted for.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicBool, AtomicU8, AtomicUsize,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    task::{Context, Poll},
};

use futures_util::task::AtomicWaker;

use crate::budget::{Budget, Permit, Use};

/// The memory of a connection that has no stream: its task, h2's state, and read and write buffers. Measured as the
/// resident memory of 3,000 idle connections that have sent a request: 21.5 KiB each. It is 16 KiB before the first request,
/// 8 of them in the first pages of h2's two buffers.
pub(super) const CONNECTION: usize = 22 << 10;

/// The memory of a stream whose service has its headers: h2's stream, the task and the service's state. Measured as the
/// resident memory of streams whose bodies do not come.
const STREAM: usize = 8 << 10;

/// Connections may hold this part of the clients' share, so that there is always room for streams.
const CONNECTIONS_PART: usize = 2;

/// The streams of one connection may hold this part of the clients' share.
const CONNECTION_PART: usize = 4;

/// The streams that a connection may open while more than half of the share is in use and none of its requests has been
/// answered yet.
const UNPROVEN_STREAMS: usize = 4;

/// The least that is read from a connection before other tasks run, in bytes: what every HTTP/2 client may send in one
/// frame.
const LEAST_TURN: usize = 16 << 10;

/// The most. It is about a batch of 512 spans, so that a batch is cut as soon as it has arrived.
pub(super) const LARGEST_TURN: usize = 192 << 10;

/// The mark of a request whose stream has no room in the account, among the request's extensions. The service has to
/// refuse it at once.
#[derive(Clone, Copy, Debug)]
pub struct NoRoom;

/// Takes the memory of a new connection. Returns `None` if connections hold all that they may.
pub(super) fn connection(account: &Budget, bytes: usize) -> Option<Permit> {
    let most = account.clients_limit() / CONNECTIONS_PART;
    let fits = account.used_for(Use::Connections).saturating_add(bytes) <= most;
    if fits { account.take_for(Use::Connections, bytes) } else { None }
}

/// Returns whether frames that are longer than usual may take `bytes` more. They are not necessary, so half of the share is
/// left to others.
pub(super) fn has_room_for_frame(account: &Budget, bytes: usize) -> bool {
    account.clients_used().saturating_add(bytes) <= account.clients_limit() / 2
}

/// Takes the memory of a stream that was answered before its body had come. Returns `None` while memory is short.
pub fn unfinished_stream(account: &Budget) -> Option<Permit> {
    let is_short = account.clients_used() > account.clients_limit() / 2;
    if is_short { None } else { account.take_for(Use::Streams, STREAM) }
}

/// The admission of one connection's streams.
#[derive(Debug)]
pub(super) struct Admission {
    /// `None` if its streams are not accounted for.
    account: Option<Budget>,
    /// The memory of a stream until its service has the headers, which may have the largest size until then.
    opening: usize,
    /// The streams that are accounted for and have not ended.
    streams: AtomicUsize,
    /// The permits of streams that the service does not have yet, in the order of their headers.
    opened: Mutex<VecDeque<Permit>>,
    /// The number of these permits.
    waiting: AtomicUsize,
    gate: AtomicU8,
    /// The connection's task, when it waits for the gate.
    reader: AtomicWaker,
    /// Whether a request of this connection was answered.
    is_proven: AtomicBool,
}

/// The states of the gate: whether more may be read.
mod gate {
    /// More may be read.
    pub(super) const OPEN: u8 = 0;
    /// A stream without room was passed to h2.
    pub(super) const PASSED: u8 = 1;
    /// The service has it.
    pub(super) const SERVED: u8 = 2;
}

/// A stream that the service has. It is given back on drop.
#[derive(Debug)]
pub(super) struct Stream {
    admission: Arc<Admission>,
    /// `None` if the stream has no room.
    permit: Option<Permit>,
}

// === impl Admission ===

impl Admission {
    /// Creates the admission of a connection. The headers of its requests have at most `max_headers` bytes.
    pub(super) fn new(account: Option<Budget>, max_headers: u32) -> Self {
        Self {
            account,
            opening: STREAM.saturating_add(usize::try_from(max_headers).unwrap_or(usize::MAX)),
            streams: AtomicUsize::new(0),
            opened: Mutex::default(),
            waiting: AtomicUsize::new(0),
            gate: AtomicU8::new(gate::OPEN),
            reader: AtomicWaker::new(),
            is_proven: AtomicBool::new(false),
        }
    }

    /// Returns the account that its connection is taken from, if it is accounted for.
    pub(super) fn account(&self) -> Option<&Budget> {
        self.account.as_ref()
    }

    /// Takes the memory of a stream whose headers h2 reads next. Returns `false` if there is no room for it: then nothing
    /// more may be read behind these headers until the gate is open.
    #[must_use]
    pub(super) fn admit(&self) -> bool {
        let Some(account) = &self.account else { return true };
        let permit = self.may_open(account).then(|| account.take_for(Use::Streams, self.opening)).flatten();
        let Some(permit) = permit else {
            self.gate.store(gate::PASSED, Release);
            return false;
        };
        self.streams.fetch_add(1, Relaxed);
        self.waiting.fetch_add(1, Relaxed);
        self.opened().push_back(permit);
        true
    }

    /// Returns whether the shares allow one more stream: one connection holds at most its part, and while memory is short
    /// the last quarter is for connections whose requests were answered.
    fn may_open(&self, account: &Budget) -> bool {
        let (limit, used) = (account.clients_limit(), account.clients_used());
        let streams = self.streams.load(Relaxed);
        let is_proven = self.is_proven.load(Relaxed);
        (streams + 1).saturating_mul(STREAM) <= limit / CONNECTION_PART
            && (is_proven || streams < UNPROVEN_STREAMS || used <= limit / 2)
            && (is_proven || used <= limit / 4 * 3)
    }

    /// Returns the stream of a request that the service is given next.
    pub(super) fn serve(self: &Arc<Self>) -> Stream {
        let permit = if self.waiting.load(Relaxed) == 0 { None } else { self.opened().pop_front() };
        if permit.is_some() {
            self.waiting.fetch_sub(1, Relaxed);
        } else if self.gate.load(Acquire) == gate::PASSED {
            self.gate.store(gate::SERVED, Release);
        }
        Stream { admission: Arc::clone(self), permit }
    }

    /// Gives back what h2 refused itself. Called after h2 has passed all requests whose headers it has read to the
    /// service. `is_all` says that it has read all.
    pub(super) fn settle(&self, is_all: bool) {
        if !is_all {
            return;
        }
        if self.waiting.load(Relaxed) > 0 {
            let refused = std::mem::take(&mut *self.opened());
            self.waiting.fetch_sub(refused.len(), Relaxed);
            self.streams.fetch_sub(refused.len(), Relaxed);
        }
        if self.gate.load(Acquire) == gate::PASSED {
            self.open();
        }
    }

    /// Is ready when more may be read.
    pub(super) fn poll_open(&self, cx: &Context<'_>) -> Poll<()> {
        if self.gate.load(Acquire) == gate::OPEN {
            return Poll::Ready(());
        }
        self.reader.register(cx.waker());
        // It may have been opened since.
        if self.gate.load(Acquire) == gate::OPEN { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Returns how many bytes may be read from this connection before other tasks run. h2 keeps them outside of the
    /// account until the service takes them. All connections together stay within the free part of the clients' share, or
    /// within [`LEAST_TURN`] each if that is more.
    pub(super) fn turn(&self) -> usize {
        let Some(account) = &self.account else { return LARGEST_TURN };
        let free = account.clients_limit().saturating_sub(account.clients_used());
        let connections = account.used_for(Use::Connections) / CONNECTION;
        (free / connections.max(1)).clamp(LEAST_TURN, LARGEST_TURN)
    }

    fn open(&self) {
        self.gate.store(gate::OPEN, Release);
        self.reader.wake();
    }

    fn opened(&self) -> MutexGuard<'_, VecDeque<Permit>> {
        // The guarded value is always consistent, even if the mutex is poisoned.
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Stream ===

impl Stream {
    /// Returns whether the service has to refuse the request.
    pub(super) fn has_no_room(&self) -> bool {
        self.permit.is_none() && self.admission.gate.load(Acquire) == gate::SERVED
    }

    /// The service has the headers: what was taken for them is given back.
    pub(super) fn headers_are_read(&mut self) {
        if let Some(permit) = &mut self.permit {
            permit.shrink_to(STREAM);
        }
    }

    /// The request was answered and its answer taken.
    pub(super) fn is_answered(&self) {
        if self.permit.is_some() && !self.admission.is_proven.load(Relaxed) {
            self.admission.is_proven.store(true, Relaxed);
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        match self.permit.take() {
            Some(_) => {
                self.admission.streams.fetch_sub(1, Relaxed);
            }
            None if self.admission.gate.load(Acquire) == gate::SERVED => self.admission.open(),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests;
