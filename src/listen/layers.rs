//! Stream layers between a client's socket and HTTP. Each changes some reads or writes and passes the rest through.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The behaviour of a layer. Operations that a layer does not implement pass through unchanged.
pub(super) trait Layer<I> {
    /// Reads from the stream below.
    fn poll_read(&mut self, stream: &mut I, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>>;
}

/// The bytes that a layer has read and will read again.
#[derive(Debug, Default)]
pub(super) struct Backlog(Vec<u8>);

impl Backlog {
    /// Puts bytes before those that wait already.
    pub(super) fn put_back(&mut self, bytes: &[u8]) {
        self.0.splice(..0, bytes.iter().copied());
    }

    /// Returns whether no bytes wait.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Reads the bytes that wait, or else from the stream.
    pub(super) fn poll_read<I: AsyncRead + Unpin>(
        &mut self,
        stream: &mut I,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.0.is_empty() {
            return Pin::new(stream).poll_read(cx, buf);
        }
        let len = self.0.len().min(buf.remaining());
        buf.put_slice(self.0.get(..len).unwrap_or_default());
        self.0.drain(..len);
        if self.0.is_empty() {
            self.0 = Vec::new();
        }
        Poll::Ready(Ok(()))
    }
}

/// A stream with a layer over it.
#[derive(Debug)]
pub(super) struct Layered<I, L> {
    stream: I,
    layer: L,
}

impl<I, L> Layered<I, L> {
    pub(super) fn new(stream: I, layer: L) -> Self {
        Self { stream, layer }
    }
}

impl<I: Unpin, L: Layer<I> + Unpin> AsyncRead for Layered<I, L> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { stream, layer } = &mut *self;
        layer.poll_read(stream, cx, buf)
    }
}

impl<I: AsyncWrite + Unpin, L: Layer<I> + Unpin> AsyncWrite for Layered<I, L> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
