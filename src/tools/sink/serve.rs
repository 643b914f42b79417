//! The server of a sink: HTTP/2 with the `h2` crate, one task per connection. Bodies are parsed frame by frame. Connections
//! that begin with an HTTP/1.1 request are left to `http`.

use std::{
    pin::pin,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use ::http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::{StreamExt, stream::FuturesUnordered};
use h2::{Reason, RecvStream, server::SendResponse};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTracePartialSuccess, ExportTraceServiceResponse};
use prost::Message;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::{
    Inner,
    behaviour::{Behaviour, FailureCode, Refusal},
    count::{Batch, Detail},
    http,
};
use crate::{
    codec::{Encoding, InflateError, inflate_uncounted},
    lifecycle::Tasks,
    otlp::{
        Signal,
        framed::{PREFIX_LEN, prefix_of},
    },
    tools::{
        ids::mix,
        walk::{SpanIds, Walker},
    },
};

/// Flow-control windows that are large enough never to make a client wait: a message of the usual limit on each stream,
/// and 16 of them at once on a connection.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 64 << 20;

/// Accepts connections until `tasks` drain.
pub(super) async fn accept(listener: TcpListener, inner: Arc<Inner>, tasks: Tasks) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = tasks.drained() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                inner.counters.connections.fetch_add(1, Relaxed);
                let (inner, of_connection) = (Arc::clone(&inner), tasks.clone());
                tasks.spawn(async move {
                    if let Err(error) = handshake(stream, &inner, &of_connection).await {
                        tracing::debug!(%error, "connection ended");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept; trying again in 100 ms");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

async fn handshake(stream: TcpStream, inner: &Inner, tasks: &Tasks) -> anyhow::Result<()> {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    let Some(tls) = &inner.tls else {
        let is_http1 = tokio::select! {
            is_http1 = begins_with_http1(&stream) => is_http1?,
            () = tasks.stopped() => return Ok(()),
        };
        return if is_http1 {
            Ok(http::connection(stream, inner, tasks).await?)
        } else {
            Ok(connection(stream, inner, tasks).await?)
        };
    };
    let stream = tokio::select! {
        stream = TlsAcceptor::from(tls.current()).accept(stream) => stream?,
        () = tasks.stopped() => return Ok(()),
    };
    if stream.get_ref().1.alpn_protocol() == Some(b"http/1.1") {
        return Ok(http::connection(stream, inner, tasks).await?);
    }
    Ok(connection(stream, inner, tasks).await?)
}

/// Whether a plaintext connection begins with `POST` or `HEAD`, which HTTP/2's preface does not.
async fn begins_with_http1(stream: &TcpStream) -> std::io::Result<bool> {
    let mut first = [0; 2];
    let read = stream.peek(&mut first).await?;
    Ok(read > 0 && (first == *b"PO" || first == *b"HE"))
}

async fn connection<S>(stream: S, inner: &Inner, tasks: &Tasks) -> Result<(), h2::Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(inner.config.max_frame_size)
        .max_concurrent_streams(inner.config.max_concurrent_streams)
        // The sink may reset any number of streams on a connection.
        .max_local_error_reset_streams(None);
    let mut connection = builder.handshake::<_, Bytes>(stream).await?;
    let mut calls = FuturesUnordered::new();
    let (mut drained, mut stopped) = (pin!(tasks.drained()), pin!(tasks.stopped()));
    let mut is_draining = false;
    loop {
        tokio::select! {
            biased;
            accepted = connection.accept() => match accepted {
                Some(call) => {
                    let (request, respond) = call?;
                    calls.push(answer(request, respond, inner));
                }
                None => return Ok(()),
            },
            Some(()) = calls.next(), if !calls.is_empty() => {}
            () = &mut drained, if !is_draining => {
                is_draining = true;
                connection.graceful_shutdown();
            }
            () = &mut stopped => return Ok(()),
        }
    }
}

async fn answer(request: Request<RecvStream>, mut respond: SendResponse<Bytes>, inner: &Inner) {
    inner.counters.requests.fetch_add(1, Relaxed);
    let behaviour = inner.behaviour.load();
    let number = inner.sequence.next();
    let failure = behaviour.failure(number).map(FailureCode::refusal);
    if failure == Some(Refusal::Reset) {
        inner.counters.failed.fetch_add(1, Relaxed);
        respond.send_reset(Reason::REFUSED_STREAM);
        return;
    }
    let reply = match receive(request, number, &behaviour, inner).await {
        Ok(batch) => {
            if !behaviour.delay().is_zero() {
                tokio::time::sleep(behaviour.delay()).await;
            }
            if failure.is_some() {
                inner.counters.failed.fetch_add(1, Relaxed);
            }
            let keeps = failure.is_none() || behaviour.failure_keeps_spans;
            match (if keeps { keep(&batch, inner) } else { Ok(()) }, failure) {
                (Err(unwritten), _) => refuse(respond, &unwritten),
                (Ok(()), Some(Refusal::Page(status))) => page(respond, status),
                (Ok(()), Some(Refusal::Status(code))) => refuse(respond, &refusal_status(code, &behaviour)),
                (Ok(()), None | Some(Refusal::Reset)) => accept_all_but(respond, batch.rejected()),
            }
        }
        Err(ReceiveError::Gone) => {
            inner.counters.broken.fetch_add(1, Relaxed);
            return;
        }
        Err(ReceiveError::Invalid(status)) => {
            inner.counters.invalid_requests.fetch_add(1, Relaxed);
            refuse(respond, &status)
        }
    };
    if let Err(error) = reply {
        tracing::debug!(%error, "reply not sent");
    }
}

/// Counts the records after writing them to the journal. If the journal cannot be written, the request must not be
/// acknowledged, or the journal would be incomplete.
pub(super) fn keep(batch: &Batch, inner: &Inner) -> Result<(), Status> {
    if let Some(journal) = &inner.journal {
        journal.append(batch.journal_entries()).map_err(|error| {
            tracing::error!(%error, "cannot write the journal");
            // Nothing was stored, so the client may send the request again.
            Status::unavailable("cannot write the journal")
        })?;
    }
    inner.counters.commit(batch);
    Ok(())
}

enum ReceiveError {
    /// The client's stream or connection ended.
    Gone,
    /// The request is refused with this status.
    Invalid(Box<Status>),
}

impl From<h2::Error> for ReceiveError {
    fn from(_: h2::Error) -> Self {
        Self::Gone
    }
}

impl From<Status> for ReceiveError {
    fn from(status: Status) -> Self {
        Self::Invalid(Box::new(status))
    }
}

async fn receive(
    request: Request<RecvStream>,
    number: u64,
    behaviour: &Behaviour,
    inner: &Inner,
) -> Result<Batch, ReceiveError> {
    let (head, mut body) = request.into_parts();
    let Some(signal) = Signal::from_grpc_path(head.uri.path()) else {
        return Err(Status::unimplemented(format!("no such method: {}", head.uri.path())).into());
    };
    let encoding = head.headers.get("grpc-encoding").and_then(|name| Encoding::from_name(name.as_bytes()));
    let mut reader = Reader::new(signal, number, encoding, behaviour, inner);
    while let Some(piece) = body.data().await {
        let piece = piece?;
        inner.counters.wire_bytes.fetch_add(piece.len() as u64, Relaxed);
        body.flow_control().release_capacity(piece.len())?;
        reader.take(piece)?;
    }
    body.trailers().await?;
    reader.finish().map_err(Into::into)
}

/// Reads the body of a request. An uncompressed message is parsed as it arrives; a compressed one is buffered first.
pub(super) struct Reader<'a> {
    signal: Signal,
    /// Number of the request.
    number: u64,
    behaviour: &'a Behaviour,
    encoding: Option<Encoding>,
    max_message: usize,
    prefix: BytesMut,
    /// Whether the message is compressed, and the number of its bytes still to come; `None` until the prefix is
    /// complete.
    message: Option<(bool, usize)>,
    /// Whether the message has gRPC's prefix, which tells its length. It ends with the body otherwise.
    is_framed: bool,
    packed: BytesMut,
    walker: Walker,
    batch: Batch,
}

impl<'a> Reader<'a> {
    fn new(signal: Signal, number: u64, encoding: Option<Encoding>, behaviour: &'a Behaviour, inner: &Inner) -> Self {
        let detail = inner.counters.detail(behaviour.reject_rate > 0.0);
        Self {
            signal,
            number,
            behaviour,
            encoding,
            max_message: inner.config.max_recv_msg_size,
            prefix: BytesMut::new(),
            message: None,
            is_framed: true,
            packed: BytesMut::new(),
            walker: Walker::new(signal, detail != Detail::Count),
            batch: Batch::new(signal, detail, inner.journal.is_some()),
        }
    }

    /// Reads a body that is the message, without a prefix.
    pub(super) fn of_body(
        signal: Signal,
        number: u64,
        encoding: Option<Encoding>,
        behaviour: &'a Behaviour,
        inner: &Inner,
    ) -> Self {
        let message = Some((encoding.is_some(), inner.config.max_recv_msg_size));
        Self { message, is_framed: false, ..Self::new(signal, number, encoding, behaviour, inner) }
    }

    pub(super) fn take(&mut self, mut piece: Bytes) -> Result<(), Status> {
        if self.message.is_none() {
            let missing = PREFIX_LEN.saturating_sub(self.prefix.len()).min(piece.len());
            self.prefix.extend_from_slice(&piece.split_to(missing));
            if self.prefix.len() < PREFIX_LEN {
                return Ok(());
            }
            let flag = self.prefix.get_u8();
            let len = self.prefix.get_u32() as usize;
            self.check_size(len)?;
            self.message = Some((flag == 1, len));
        }
        let Some((is_compressed, left)) = &mut self.message else { return Ok(()) };
        *left = left.checked_sub(piece.len()).ok_or_else(|| match self.is_framed {
            true => Status::internal("more than one message in a call"),
            false => Status::invalid_argument("the body is too large"),
        })?;
        if *is_compressed {
            self.packed.extend_from_slice(&piece);
            return Ok(());
        }
        self.walk(&piece)
    }

    fn walk(&mut self, piece: &[u8]) -> Result<(), Status> {
        let Self { signal, number, walker, batch, behaviour, .. } = self;
        let found = |ids: &SpanIds| match *signal {
            Signal::Traces => batch.add(ids, |span| behaviour.rejects(span)),
            _ => batch.count(|place| behaviour.rejects(mix(*number) ^ place)),
        };
        walker
            .feed(piece, found)
            .map_err(|error| Status::internal(format!("grpc: error unmarshalling request: {error}")))
    }

    fn check_size(&self, len: usize) -> Result<(), Status> {
        if len <= self.max_message {
            return Ok(());
        }
        let message = format!("grpc: received message larger than max ({len} vs. {})", self.max_message);
        Err(Status::resource_exhausted(message))
    }

    pub(super) fn finish(mut self) -> Result<Batch, Status> {
        match self.message {
            Some((_, 0)) => {}
            Some(_) if !self.is_framed => {}
            _ => return Err(Status::internal("the message ended early")),
        }
        if !self.packed.is_empty() {
            self.inflate()?;
        }
        self.walker
            .finish()
            .map_err(|error| Status::internal(format!("grpc: error unmarshalling request: {error}")))?;
        Ok(self.batch)
    }

    fn inflate(&mut self) -> Result<(), Status> {
        let encoding = self.encoding.filter(|encoding| *encoding != Encoding::Snappy);
        let encoding =
            encoding.ok_or_else(|| Status::unimplemented("no decompressor installed for this grpc-encoding"))?;
        let packed = self.packed.split().freeze();
        match inflate_uncounted(encoding, &packed, self.max_message) {
            Ok(message) => self.walk(&message.payload()),
            Err(InflateError::TooLarge) => self.check_size(self.max_message.saturating_add(1)),
            Err(_) => Err(Status::internal("grpc: failed to decompress the received message")),
        }
    }
}

/// Returns the status of a refusal that the behaviour asks for.
pub(super) fn refusal_status(code: Code, behaviour: &Behaviour) -> Status {
    let message = "the sink was told to fail";
    match behaviour.failure_retry_after_ms {
        Some(after) => {
            let after = std::time::Duration::from_millis(after);
            Status::with_error_details(code, message, ErrorDetails::with_retry_info(Some(after)))
        }
        None => Status::new(code, message),
    }
}

/// Returns the headers of a gRPC response.
fn head() -> Response<()> {
    let mut response = Response::new(());
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    response
}

fn refuse(mut respond: SendResponse<Bytes>, status: &Status) -> Result<(), h2::Error> {
    let mut response = head();
    if let Err(error) = status.add_header(response.headers_mut()) {
        tracing::debug!(%error, "status without its message");
    }
    respond.send_response(response, true).map(drop)
}

/// Sends an HTML page, like a proxy that cannot reach the server behind it.
fn page(mut respond: SendResponse<Bytes>, status: StatusCode) -> Result<(), h2::Error> {
    let mut response = Response::new(());
    *response.status_mut() = status;
    response.headers_mut().insert("content-type", HeaderValue::from_static("text/html"));
    let mut stream = respond.send_response(response, false)?;
    stream.send_data(Bytes::from(format!("<html><h1>{status}</h1></html>")), true)
}

fn accept_all_but(mut respond: SendResponse<Bytes>, rejected: u64) -> Result<(), h2::Error> {
    let mut stream = respond.send_response(head(), false)?;
    stream.send_data(message(rejected), false)?;
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    stream.send_trailers(trailers)
}

/// Returns the message of the reply; empty if nothing was rejected. `partial_success` has the same fields for every signal.
pub(super) fn partial(rejected: u64) -> Vec<u8> {
    if rejected == 0 {
        return Vec::new();
    }
    let partial_success = Some(ExportTracePartialSuccess {
        rejected_spans: i64::try_from(rejected).unwrap_or(i64::MAX),
        error_message: "the sink was told to reject these".to_owned(),
    });
    ExportTraceServiceResponse { partial_success }.encode_to_vec()
}

/// Returns the framed reply.
fn message(rejected: u64) -> Bytes {
    let message = partial(rejected);
    let mut framed = BytesMut::with_capacity(PREFIX_LEN + message.len());
    framed.put_slice(&prefix_of(u32::try_from(message.len()).unwrap_or(0)));
    framed.put_slice(&message);
    framed.freeze()
}
