//! Reads and drops the rest of a body whose request was answered before the body had ended.
//!
//! The answer does not wait for this. If the body were dropped instead, HTTP/2 would have to reset the stream. h2
//! remembers the last 50 streams that it reset, for one second. It counts every client frame for another reset stream
//! as an error, and after 1,024 of these it closes the connection, with all requests in flight on it. A client that is
//! refused often, as under overload, would lose its connection again and again without any fault of its own. h2's limit
//! itself stays in place: it protects against clients that make the server reset one stream after the other.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http_body::Body;
use http_body_util::BodyExt;
use tokio::{task::yield_now, time::timeout};

use crate::{budget::Budget, lifecycle::Tasks, listen};

/// How long the rest of a body is read. Most clients stop sending, or reset the stream, once they have the answer.
const TIME_LIMIT: Duration = Duration::from_secs(10);

/// Reads and drops up to `most` further bytes of `body`. If they have not all arrived, a task waits for them, unless
/// memory is short: then the stream is reset.
pub(super) fn rest<B>(body: B, most: usize, budget: &Budget, tasks: &Tasks)
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
    let Some(permit) = listen::unfinished_stream(budget) else { return };
    let until = tasks.clone();
    drop(tasks.spawn(async move {
        tokio::select! {
            () = until.stopped() => {}
            _ = timeout(TIME_LIMIT, reading) => {}
        }
        drop(permit);
    }));
}

/// Reads and drops what has arrived of `body`. For this it lets the connection run once: over HTTP/1, hyper passes on what it
/// has buffered only after the body was polled. So a short request that is refused while memory is short does not cost its
/// client the connection.
pub(super) async fn arrived<B>(body: &mut B)
where
    B: Body<Data = Bytes> + Unpin,
{
    for is_last in [false, true] {
        while let Poll::Ready(frame) = poll_fn(|context| Poll::Ready(Pin::new(&mut *body).poll_frame(context))).await {
            if body.is_end_stream() || !matches!(frame, Some(Ok(_))) {
                return;
            }
        }
        if !is_last {
            yield_now().await;
        }
    }
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
