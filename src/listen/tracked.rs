//! A service whose requests and answers are counted as a connection's activity.
//!
//! A request is counted until the body of its answer is dropped. The pieces of the body are counted until HTTP drops
//! them, which it does when it has written them to the socket.

use std::{
    cell::Cell,
    io::IoSlice,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes};
use futures_util::future::TryFutureExt;
use http::Request;
use http_body::{Body, Frame, SizeHint};
use hyper::service::service_fn;

use super::{
    idle::{Activity, InProgress, Unwritten},
    service::{HttpService, RequestBody},
};

thread_local! {
    /// Whether the body that this thread polled last had nothing to send yet.
    static WAITS: Cell<bool> = const { Cell::new(false) };
}

/// The body of an answer.
struct Tracked<B> {
    body: B,
    /// Set if pieces are counted too.
    pieces: Option<Arc<Activity>>,
    _request: InProgress,
}

/// A piece of an answer.
struct Piece<D> {
    data: D,
    _unwritten: Option<Unwritten>,
}

/// Counts the requests of a connection, and with `pieces` the pieces of their answers until they are written.
pub(super) fn tracked<S: HttpService>(service: S, activity: Arc<Activity>, pieces: bool) -> impl HttpService {
    service_fn(move |request: Request<RequestBody>| {
        let counted = activity.request();
        let pieces = pieces.then(|| Arc::clone(&activity));
        let tracked = |body| Tracked { body, pieces, _request: counted };
        service.call(request).map_ok(|answer| answer.map(tracked))
    })
}

/// Calls `poll`, which may poll the body of one answer. Returns what it returns, and whether that body waits for the service
/// and not for the client: an endless answer does so most of the time.
pub(super) fn noting_waits<T>(poll: impl FnOnce() -> T) -> (T, bool) {
    WAITS.set(false);
    let polled = poll();
    (polled, WAITS.get())
}

impl<B: Body + Unpin> Body for Tracked<B> {
    type Data = Piece<B::Data>;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let Self { body, pieces, .. } = &mut *self;
        let piece = |data| Piece { data, _unwritten: pieces.as_ref().map(Activity::piece) };
        let polled = Pin::new(body).poll_frame(cx).map_ok(|frame| frame.map_data(piece));
        WAITS.set(polled.is_pending());
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<D: Buf> Buf for Piece<D> {
    fn remaining(&self) -> usize {
        self.data.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.data.chunk()
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        self.data.chunks_vectored(slices)
    }

    fn advance(&mut self, count: usize) {
        self.data.advance(count);
    }

    fn copy_to_bytes(&mut self, len: usize) -> Bytes {
        self.data.copy_to_bytes(len)
    }
}
