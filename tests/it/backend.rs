//! Scripted backends, by gRPC or OTLP/HTTP as they are called: they accept, refuse, hang, reset streams, send GOAWAY, answer without gRPC, crash and come back.
//!
//! A backend keeps a list of the spans that it acknowledged, which also survives its crashes. Tests compare it with
//! what clients were acknowledged.

mod http1;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read as _,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream::FuturesUnordered};
use h2::{Reason, RecvStream, server::SendResponse};
use http::{HeaderMap, HeaderValue, Request, Response};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use prost::Message;
use socket2::SockRef;
use spanring::lifecycle::Tasks;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;
use tonic::Status;

use super::wire;

/// A trace ID and a span ID, of any length.
pub(crate) type SpanKey = (Vec<u8>, Vec<u8>);

/// A call as received.
pub(crate) struct Call {
    /// Number of the call, from 1, since the backend was created.
    pub(crate) number: u64,
    /// Path of the gRPC method.
    pub(crate) path: String,
    /// Spans of the request; empty if it is not a request for traces.
    pub(crate) spans: Vec<SpanKey>,
}

/// Answer of a backend to a call.
#[derive(Clone)]
pub(crate) enum Answer {
    Accept,
    Partial(i64, &'static str),
    Status(Status),
    /// No answer.
    Hang,
    ResetStream(Reason),
    /// Close the connection with RST.
    Rst,
    /// Close the connection with FIN.
    Fin,
    /// Accept the call, then send GOAWAY.
    AcceptAndGo,
    /// An HTTP response that is not gRPC: status, content type, body.
    Http(u16, &'static str, &'static str),
    /// A gRPC reply without trailers.
    NoTrailers,
    After(Duration, Box<Self>),
}

/// Behaviour of a backend on a new connection.
#[derive(Clone)]
pub(crate) enum Welcome {
    Serve,
    /// Speak HTTP/2 up to the first HEADERS, then send these bytes and hang.
    Raw(Vec<u8>),
    /// Send this text at once and close the connection.
    Says(&'static str),
    /// Send nothing.
    Mute,
}

type Script = Arc<dyn Fn(&Call) -> Answer + Send + Sync>;
type Greeter = Arc<dyn Fn(u64) -> Welcome + Send + Sync>;

/// A scripted backend. It stops when it is dropped.
pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    inner: Arc<Inner>,
    life: Tasks,
}

/// TLS configuration of a backend.
pub(crate) type Tls = Arc<rustls::ServerConfig>;

struct Inner {
    tls: Mutex<Option<Tls>>,
    script: Mutex<Script>,
    greeter: Mutex<Greeter>,
    calls: AtomicU64,
    http_calls: AtomicU64,
    connections: AtomicU64,
    delivered: Mutex<BTreeMap<SpanKey, u64>>,
    messages: Mutex<Vec<Bytes>>,
    encodings: Mutex<Vec<String>>,
    authorizations: Mutex<BTreeSet<String>>,
    plaintext: AtomicU64,
}

impl Backend {
    /// Starts a backend on a free port; it accepts everything.
    pub(crate) async fn start() -> Result<Self> {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0))).await
    }

    /// Starts a backend at this address; it accepts everything.
    pub(crate) async fn start_at(address: SocketAddr) -> Result<Self> {
        let accept: Script = Arc::new(|_: &Call| Answer::Accept);
        let serve: Greeter = Arc::new(|_| Welcome::Serve);
        let inner = Arc::new(Inner {
            tls: Mutex::default(),
            script: Mutex::new(accept),
            greeter: Mutex::new(serve),
            calls: AtomicU64::default(),
            http_calls: AtomicU64::default(),
            connections: AtomicU64::default(),
            delivered: Mutex::default(),
            messages: Mutex::default(),
            encodings: Mutex::default(),
            authorizations: Mutex::default(),
            plaintext: AtomicU64::default(),
        });
        let mut backend = Self { address, inner, life: Tasks::new() };
        backend.come_back().await?;
        Ok(backend)
    }

    /// Uses TLS, or plaintext, on connections from now on.
    pub(crate) fn speak(&self, tls: Option<Tls>) {
        *lock(&self.inner.tls) = tls;
    }

    /// Sets the answers to calls from now on.
    pub(crate) fn answer(&self, script: impl Fn(&Call) -> Answer + Send + Sync + 'static) {
        *lock(&self.inner.script) = Arc::new(script);
    }

    /// Sets the behaviour on connections from now on.
    pub(crate) fn welcome(&self, greeter: impl Fn(u64) -> Welcome + Send + Sync + 'static) {
        *lock(&self.inner.greeter) = Arc::new(greeter);
    }

    /// Closes the port and resets all connections, like a process that was killed.
    pub(crate) async fn crash(&mut self) {
        self.life.stop();
        self.life.wait().await;
    }

    /// Listens (again) on its port.
    pub(crate) async fn come_back(&mut self) -> Result<()> {
        let listener = TcpListener::bind(self.address).await.with_context(|| self.address.to_string())?;
        self.address = listener.local_addr()?;
        self.life = Tasks::new();
        let (inner, life) = (Arc::clone(&self.inner), self.life.clone());
        drop(self.life.spawn(accept(listener, inner, life)));
        Ok(())
    }

    /// Returns the number of calls received completely.
    pub(crate) fn calls(&self) -> u64 {
        self.inner.calls.load(Relaxed)
    }

    /// Returns how many of the calls came by OTLP/HTTP.
    pub(crate) fn http_calls(&self) -> u64 {
        self.inner.http_calls.load(Relaxed)
    }

    pub(crate) fn connections(&self) -> u64 {
        self.inner.connections.load(Relaxed)
    }

    /// Returns how often each span was acknowledged.
    pub(crate) fn delivered(&self) -> BTreeMap<SpanKey, u64> {
        lock(&self.inner.delivered).clone()
    }

    /// Returns the values of `authorization` in calls and probes; an empty text stands for those without.
    pub(crate) fn authorizations(&self) -> BTreeSet<String> {
        lock(&self.inner.authorizations).clone()
    }

    /// Returns the number of connections that did not begin with a TLS handshake.
    pub(crate) fn plaintext(&self) -> u64 {
        self.inner.plaintext.load(Relaxed)
    }

    /// Returns the encoding of each message that was acknowledged, as its call named it; empty for none.
    pub(crate) fn encodings(&self) -> Vec<String> {
        lock(&self.inner.encodings).clone()
    }

    /// Returns the messages that were acknowledged as they came, without gRPC's prefix.
    pub(crate) fn messages(&self) -> Vec<Bytes> {
        lock(&self.inner.messages).clone()
    }
}

impl Inner {
    /// Keeps what was acknowledged.
    fn keep(&self, spans: Vec<SpanKey>, message: Bytes) {
        let mut delivered = lock(&self.delivered);
        for span in spans {
            *delivered.entry(span).or_default() += 1;
        }
        lock(&self.messages).push(message);
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.life.stop();
    }
}

/// The action on the connection after a call was answered.
enum AfterAnswer {
    Fin,
    Goaway,
    Continue,
    Rst,
}

async fn accept(listener: TcpListener, inner: Arc<Inner>, life: Tasks) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = life.stopped() => return,
        };
        let Ok((stream, _)) = accepted else { continue };
        let number = inner.connections.fetch_add(1, Relaxed) + 1;
        let welcome = Arc::clone(&lock(&inner.greeter))(number);
        let (inner, of_connection) = (Arc::clone(&inner), life.clone());
        drop(life.spawn(async move {
            // The test checks the end of the connection on the other side.
            drop(greet(stream, welcome, &inner, &of_connection).await);
        }));
    }
}

async fn greet(stream: TcpStream, welcome: Welcome, inner: &Inner, life: &Tasks) -> Result<()> {
    match welcome {
        Welcome::Serve => serve(stream, inner, life).await,
        Welcome::Raw(bytes) => {
            tokio::select! {
                result = raw(stream, &bytes) => result,
                () = life.stopped() => Ok(()),
            }
        }
        Welcome::Says(text) => {
            let mut stream = stream;
            stream.write_all(text.as_bytes()).await?;
            stream.shutdown().await?;
            // Read what the client sends, so that it sees a FIN and not an RST.
            let mut nothing = [0; 1024];
            while stream.read(&mut nothing).await? > 0 {}
            Ok(())
        }
        Welcome::Mute => {
            life.stopped().await;
            drop(stream);
            Ok(())
        }
    }
}

/// Reads up to the first HEADERS, sends `reply`, and continues reading.
async fn raw(mut stream: TcpStream, reply: &[u8]) -> Result<()> {
    let mut preface = [0; wire::PREFACE.len()];
    stream.read_exact(&mut preface).await?;
    stream.write_all(&wire::frame(wire::SETTINGS, 0, 0, &[])).await?;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await?;
        let mut payload = vec![0; wire::length_of(&head)];
        stream.read_exact(&mut payload).await?;
        if head.get(3) == Some(&wire::HEADERS) {
            stream.write_all(reply).await?;
        }
    }
}

async fn serve(stream: TcpStream, inner: &Inner, life: &Tasks) -> Result<()> {
    stream.set_nodelay(true)?;
    let stream = stream.into_std()?;
    let duplicate = stream.try_clone()?;
    let stream = TcpStream::from_std(stream)?;
    let mut first = [0; 2];
    if stream.peek(&mut first).await? > 0 && first[0] != 0x16 {
        inner.plaintext.fetch_add(1, Relaxed);
    }
    let tls = lock(&inner.tls).clone();
    let Some(tls) = tls else {
        return match &first {
            b"PO" | b"HE" => http1::serve(stream, &duplicate, inner, life).await,
            _ => serve_on(stream, &duplicate, inner, life).await,
        };
    };
    let stream = TlsAcceptor::from(tls).accept(stream).await?;
    match stream.get_ref().1.alpn_protocol() {
        Some(b"http/1.1") => http1::serve(stream, &duplicate, inner, life).await,
        _ => serve_on(stream, &duplicate, inner, life).await,
    }
}

async fn serve_on<S>(stream: S, duplicate: &std::net::TcpStream, inner: &Inner, life: &Tasks) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut connection = h2::server::Builder::new()
        .initial_window_size(1 << 20)
        .initial_connection_window_size(16 << 20)
        .handshake::<_, Bytes>(stream)
        .await?;
    let mut calls = FuturesUnordered::new();
    loop {
        tokio::select! {
            accepted = connection.accept() => match accepted {
                Some(call) => {
                    let (request, respond) = call?;
                    calls.push(answer(request, respond, inner));
                }
                None => return Ok(()),
            },
            Some(then) = calls.next(), if !calls.is_empty() => match then {
                AfterAnswer::Continue => {}
                AfterAnswer::Goaway => connection.graceful_shutdown(),
                AfterAnswer::Fin => return Ok(()),
                AfterAnswer::Rst => break,
            },
            () = life.stopped() => break,
        }
    }
    // Without lingering, closing the socket sends RST.
    SockRef::from(duplicate).set_linger(Some(Duration::ZERO))?;
    Ok(())
}

async fn answer(request: Request<RecvStream>, mut respond: SendResponse<Bytes>, inner: &Inner) -> AfterAnswer {
    let path = request.uri().path().to_owned();
    let authorization = request.headers().get("authorization").map(|value| String::from_utf8_lossy(value.as_bytes()));
    lock(&inner.authorizations).insert(authorization.unwrap_or_default().into_owned());
    let encoding = request.headers().get("grpc-encoding").map(|value| String::from_utf8_lossy(value.as_bytes()));
    let encoding = encoding.unwrap_or_default().into_owned();
    let Ok(message) = receive(request).await else { return AfterAnswer::Continue };
    let spans = if path.contains("TraceService") { spans_of(&inflated(&encoding, &message)) } else { Vec::new() };
    let call = Call { number: inner.calls.fetch_add(1, Relaxed) + 1, path, spans };
    let mut answer = Arc::clone(&lock(&inner.script))(&call);
    if call.path.contains("Health") && matches!(answer, Answer::Accept) {
        answer = Answer::Status(Status::unimplemented("unknown service grpc.health.v1.Health"));
    }
    while let Answer::After(pause, then) = answer {
        tokio::time::sleep(pause).await;
        answer = *then;
    }
    if matches!(answer, Answer::Accept | Answer::Partial(..) | Answer::AcceptAndGo) {
        inner.keep(call.spans, message);
        lock(&inner.encodings).push(encoding);
    }
    let sent = match &answer {
        Answer::Accept | Answer::AcceptAndGo => reply(&mut respond, 0, ""),
        Answer::Partial(rejected, message) => reply(&mut respond, *rejected, message),
        Answer::Status(status) => refuse(&mut respond, status),
        Answer::Hang | Answer::After(..) => std::future::pending().await,
        Answer::ResetStream(reason) => {
            respond.send_reset(*reason);
            Ok(())
        }
        Answer::Rst => return AfterAnswer::Rst,
        Answer::Fin => return AfterAnswer::Fin,
        Answer::Http(status, content_type, body) => page(&mut respond, *status, content_type, body),
        Answer::NoTrailers => respond
            .send_response(head(), false)
            .and_then(|mut stream| stream.send_data(Bytes::from_static(&[0; 5]), true)),
    };
    match (sent, answer) {
        (Ok(()), Answer::AcceptAndGo) => AfterAnswer::Goaway,
        _ => AfterAnswer::Continue,
    }
}

async fn receive(request: Request<RecvStream>) -> Result<Bytes> {
    let mut body = request.into_body();
    let mut message = BytesMut::new();
    while let Some(piece) = body.data().await {
        let piece = piece?;
        body.flow_control().release_capacity(piece.len())?;
        message.extend_from_slice(&piece);
    }
    Ok(message.freeze().slice(5..))
}

/// Inflates a message with other libraries than the proxy's. It reads one member of gzip only, as many servers do. What is
/// broken becomes an empty message.
fn inflated(encoding: &str, message: &[u8]) -> Vec<u8> {
    let mut inflated = Vec::new();
    let read = match encoding {
        "gzip" => flate2::bufread::GzDecoder::new(message).read_to_end(&mut inflated),
        "zstd" => zstd::stream::read::Decoder::new(message).and_then(|mut zstd| zstd.read_to_end(&mut inflated)),
        _ => return message.to_vec(),
    };
    if read.is_ok() { inflated } else { Vec::new() }
}

fn spans_of(message: &[u8]) -> Vec<SpanKey> {
    let request = ExportTraceServiceRequest::decode(message).unwrap_or_default();
    let scopes = request.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
    scopes.flat_map(|scope| scope.spans).map(|span| (span.trace_id, span.span_id)).collect()
}

fn head() -> Response<()> {
    let mut response = Response::new(());
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    response
}

fn reply(respond: &mut SendResponse<Bytes>, rejected: i64, message: &str) -> Result<(), h2::Error> {
    let said = rejected > 0 || !message.is_empty();
    let partial = ExportTracePartialSuccess { rejected_spans: rejected, error_message: message.to_owned() };
    let body = ExportTraceServiceResponse { partial_success: said.then_some(partial) }.encode_to_vec();
    let mut stream = respond.send_response(head(), false)?;
    stream.send_data(wire::grpc(&body).into(), false)?;
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    stream.send_trailers(trailers)
}

fn refuse(respond: &mut SendResponse<Bytes>, status: &Status) -> Result<(), h2::Error> {
    let mut response = head();
    // A status made by a test can always be written into headers.
    drop(status.add_header(response.headers_mut()));
    respond.send_response(response, true).map(drop)
}

fn page(
    respond: &mut SendResponse<Bytes>,
    status: u16,
    content_type: &'static str,
    body: &'static str,
) -> Result<(), h2::Error> {
    let mut response = Response::new(());
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap_or_default();
    response.headers_mut().insert("content-type", HeaderValue::from_static(content_type));
    respond.send_response(response, false)?.send_data(Bytes::from_static(body.as_bytes()), true)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
