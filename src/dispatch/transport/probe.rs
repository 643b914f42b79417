//! Probes of a backend on a separate connection: by gRPC's health service, by `HEAD`, or by a PING.

use std::{
    future::{Future, poll_fn},
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
};

use arc_swap::ArcSwapOption;
use bytes::{Bytes, BytesMut};
use h2::{
    Ping,
    client::{Connection, SendRequest},
};
use http::{Method, Request, StatusCode, Uri, Version, uri::Scheme};
use prost::Message;
use tokio::time::timeout;

use super::{
    Failure,
    client::{self, Connected},
    http1,
    silence::SILENCE,
    stream::Stream,
    wire::{Outlet, Wire},
};
use crate::{
    access::Access,
    health::Prober,
    otlp::{Chunk, Signal, framed::PREFIX_LEN},
    settings::Delivery,
    shortage::Shortage,
};

/// The path of the health check.
const PATH: &str = "/grpc.health.v1.Health/Check";

/// `ServingStatus.NOT_SERVING` of `grpc.health.v1`.
const NOT_SERVING: i32 = 2;

/// Maximum length of an answer's message. A status has two bytes.
const MAX_ANSWER: usize = 1 << 10;

/// Probes a backend by `grpc.health.v1.Health/Check`, or by `HEAD` if it is called by OTLP/HTTP. Every answer of the backend
/// counts as success, except `NOT_SERVING`. In particular, most Collectors answer that they do not have the service. Clones
/// share the protocol.
#[derive(Clone, Debug, Default)]
pub struct HealthCheck {
    /// The path of `HEAD`; `None` for gRPC.
    path: Arc<ArcSwapOption<Uri>>,
}

impl HealthCheck {
    /// Creates a probe by the protocol of `keys`.
    pub fn new(keys: &Delivery) -> Self {
        let check = Self::default();
        check.follow(keys);
        check
    }

    /// Probes by the protocol of `keys` from now on.
    pub fn follow(&self, keys: &Delivery) {
        self.path.store(keys.protocol.http().map(|http| Arc::new(http1::path_of(http, Signal::Traces))));
    }
}

/// `HealthCheckResponse`
#[derive(Clone, PartialEq, Message)]
struct Answer {
    #[prost(int32, tag = "1")]
    status: i32,
}

impl Prober for HealthCheck {
    async fn probe(&self, identity: &str, address: SocketAddr, access: &Access) -> Result<bool, Shortage> {
        if let Some(path) = self.path.load_full() {
            return match http1::head(access, identity, address, Uri::clone(&path)).await {
                Ok(status) => Ok(!is_gateway(status)),
                Err(Failure::Local(shortage)) => Err(shortage),
                Err(_) => Ok(false),
            };
        }
        let Connected { sender, mut connection, outlet } = match client::connect(access, identity, address).await {
            Ok(connected) => connected,
            Err(Failure::Local(shortage)) => return Err(shortage),
            Err(_) => return Ok(false),
        };
        let scheme = if access.tls().is_some() { Scheme::HTTPS } else { Scheme::HTTP };
        Ok(drive(ask(sender, scheme, address), &mut connection, &outlet).await.unwrap_or(false))
    }
}

/// Whether the backend with this identity accepts a new connection and answers a PING on it in time. Also true if this process
/// lacks the resources to connect, since that says nothing about the backend.
pub(super) async fn is_alive(access: &Access, identity: &str, address: SocketAddr) -> bool {
    // Connecting has its own timeout.
    let mut connected = match client::connect(access, identity, address).await {
        Ok(connected) => connected,
        Err(failure) => return matches!(failure, Failure::Local(_)),
    };
    let Some(mut pinger) = connected.connection.ping_pong() else { return false };
    let answer = async { pinger.ping(Ping::opaque()).await.is_ok().then_some(true) };
    let answered = drive(answer, &mut connected.connection, &connected.outlet);
    timeout(SILENCE, answered).await.is_ok_and(|answered| answered.unwrap_or(false))
}

/// Drives a connection until `answer` is ready. Returns `None` if the connection ends before.
async fn drive(
    answer: impl Future<Output = Option<bool>>,
    connection: &mut Connection<Wire<Stream>, Chunk>,
    outlet: &Outlet<Stream>,
) -> Option<bool> {
    let mut answer = pin!(answer);
    let over = poll_fn(|cx| {
        // Flushes after each poll, when h2 has handed over all that it has to write.
        let over = Pin::new(&mut *connection).poll(cx).is_ready();
        let flushed = outlet.poll_flush(cx);
        if matches!(flushed, Poll::Ready(Ok(false))) {
            cx.waker().wake_by_ref();
        }
        let broken = matches!(flushed, Poll::Ready(Err(_)));
        if over || broken { Poll::Ready(()) } else { Poll::Pending }
    });
    tokio::select! {
        biased;
        heard = &mut answer => heard,
        // The answer may have arrived before the connection ended.
        () = over => poll_fn(|cx| match answer.as_mut().poll(cx) {
            Poll::Ready(heard) => Poll::Ready(heard),
            Poll::Pending => Poll::Ready(None),
        }).await,
    }
}

/// Whether a proxy between us and the backend says that it cannot reach it.
fn is_gateway(status: StatusCode) -> bool {
    matches!(status, StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT)
}

/// Whether the peer serves. Returns `None` if there was no answer.
async fn ask(sender: SendRequest<Chunk>, scheme: Scheme, address: SocketAddr) -> Option<bool> {
    let request = Request::builder()
        .method(Method::POST)
        .version(Version::HTTP_2)
        .uri(format!("{scheme}://{address}{PATH}"))
        .header("te", "trailers")
        .header("content-type", "application/grpc")
        .header("user-agent", concat!("spanring/", env!("CARGO_PKG_VERSION")))
        .body(())
        .ok()?;
    let mut sender = sender.ready().await.ok()?;
    let (response, mut body) = sender.send_request(request, false).ok()?;
    // A message without fields asks for the server as a whole.
    body.send_data(Bytes::from_static(&[0; PREFIX_LEN]).into(), true).ok()?;
    let response = response.await.ok()?;
    if is_gateway(response.status()) {
        return Some(false);
    }
    let is_grpc = response.headers().contains_key("grpc-status")
        || response.headers().get("content-type").is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    if !is_grpc {
        return Some(true);
    }
    let mut message = BytesMut::new();
    let mut stream = response.into_body();
    while let Some(Ok(chunk)) = stream.data().await {
        drop(stream.flow_control().release_capacity(chunk.len()));
        if message.len() + chunk.len() > MAX_ANSWER {
            return Some(true);
        }
        message.extend_from_slice(&chunk);
    }
    let answer = message.get(PREFIX_LEN..).and_then(|message| Answer::decode(message).ok()).unwrap_or_default();
    Some(answer.status != NOT_SERVING)
}
