//! Reads and drops what is left of the body of a request that was answered before it was whole.
//!
//! The answer does not wait for this. If the body were dropped, HTTP/2 would have to reset the stream. h2 knows the last 50
//! streams that it reset, for a second; a frame of the client for any other counts as its error, and after 1,024 of these the
//! connection ends, with all requests that are in flight on it. A client that is refused often, which is what overload is, would
//! lose its connection again and again although it did nothing wrong. That count stays in force: it protects from clients
//! that make us reset streams without end.

use std::{
    future::Future,
    task::{Context, Waker},
    time::Duration,
};

use bytes::Bytes;
use http_body::Body;
use http_body_util::BodyExt;
use tokio::time::timeout;

use crate::lifecycle::Tasks;

/// How long the rest of a body is read. Most clients stop sending, or reset the stream, once they have the answer.
const WITHIN: Duration = Duration::from_secs(10);

/// Reads the rest of `body`, `most` bytes of it at most, and drops it. If it is not here yet, a task waits for it; there are
/// never more of these than streams may be open.
pub(super) fn rest<B>(body: B, most: usize, tasks: &Tasks)
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
{
    if body.is_end_stream() {
        return;
    }
    let mut reading = Box::pin(read(body, most));
    if reading.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
        return;
    }
    let until = tasks.clone();
    drop(tasks.spawn(async move {
        tokio::select! {
            () = until.stopped() => {}
            _ = timeout(WITHIN, reading) => {}
        }
    }));
}

async fn read<B>(mut body: B, mut most: usize)
where
    B: Body<Data = Bytes> + Unpin,
{
    while let Some(Ok(frame)) = body.frame().await {
        let Some(left) = most.checked_sub(frame.data_ref().map_or(0, Bytes::len)) else { return };
        most = left;
    }
}
