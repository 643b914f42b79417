//! A body that knows whether it was polled. With `Expect: 100-continue`, the first poll gives the client leave to send the
//! body; without it, the client keeps the body.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use http_body::{Body, Frame, SizeHint};

#[derive(Debug)]
pub(super) struct Polled<B> {
    body: B,
    was_polled: bool,
}

impl<B> Polled<B> {
    pub(super) fn new(body: B) -> Self {
        Self { body, was_polled: false }
    }

    pub(super) fn was_polled(&self) -> bool {
        self.was_polled
    }
}

impl<B: Body + Unpin> Body for Polled<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        self.was_polled = true;
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
