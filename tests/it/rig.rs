//! A proxy process with backends, and clients that see complete replies. Shared by the tests of behaviour.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result};
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Request};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_client::TraceServiceClient,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    trace::v1::{ResourceSpans, ScopeSpans, Span},
};
use spanring::{
    lifecycle::Tasks,
    tools::sink::{Sink, SinkConfig},
};
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Runtime,
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Response, Status, codec::CompressionEncoding, transport::Channel};

/// Path of the gRPC method that exports traces.
pub(crate) const EXPORT: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// Sinks in the process of the test.
pub(crate) struct Sinks {
    pub(crate) runtime: Runtime,
    pub(crate) sinks: Vec<Sink>,
    tasks: Tasks,
}

/// A backend that stores every decoded request with its compression. It accepts messages of up to 4 MiB, like tonic and
/// the Collector.
#[derive(Clone, Debug, Default)]
pub(crate) struct Keeper {
    kept: Arc<Mutex<Vec<Kept>>>,
}

/// The `grpc-encoding` of a request, and the request.
pub(crate) type Kept = (Option<String>, ExportTraceServiceRequest);

/// A complete reply.
#[derive(Debug)]
pub(crate) struct Reply {
    /// `grpc-status`.
    pub(crate) code: i32,
    /// `grpc-message`, with its spaces decoded.
    pub(crate) message: String,
    /// `grpc-encoding`.
    pub(crate) encoding: Option<String>,
    /// The body.
    pub(crate) body: Vec<u8>,
}

// === impl Sinks ===

impl Sinks {
    pub(crate) fn start(count: usize, config: &SinkConfig) -> Result<Self> {
        let runtime = Runtime::new()?;
        let tasks = Tasks::new();
        let sinks = (0..count).map(|_| runtime.block_on(Sink::start(config.clone(), &tasks)));
        let sinks = sinks.collect::<Result<Vec<_>, _>>()?;
        Ok(Self { runtime, sinks, tasks })
    }

    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.sinks.iter().map(|sink| sink.addr).collect()
    }

    /// Returns the number of spans that all sinks accepted.
    pub(crate) fn spans(&self) -> u64 {
        self.sinks.iter().map(|sink| sink.report().spans).sum()
    }
}

impl Drop for Sinks {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

// === impl Keeper ===

impl Keeper {
    /// Serves until the runtime of `tasks` ends.
    pub(crate) async fn start(&self, tasks: &Tasks) -> Result<SocketAddr> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let service = TraceServiceServer::new(self.clone())
            .accept_compressed(CompressionEncoding::Gzip)
            .accept_compressed(CompressionEncoding::Zstd)
            .send_compressed(CompressionEncoding::Gzip)
            .send_compressed(CompressionEncoding::Zstd);
        let server = tonic::transport::Server::builder().add_service(service);
        tasks.spawn(async move { drop(server.serve_with_incoming(TcpListenerStream::new(listener)).await) });
        Ok(address)
    }

    /// Returns the requests received, with their `grpc-encoding`.
    pub(crate) fn kept(&self) -> Vec<Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[tonic::async_trait]
impl TraceService for Keeper {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let encoding = request.metadata().get("grpc-encoding").and_then(|value| value.to_str().ok()).map(str::to_owned);
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).push((encoding, request.into_inner()));
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// Returns a configuration with one pool of these backends. `pool` and `more` are additional lines of the pool and of
/// the file.
pub(crate) fn config(grpc: SocketAddr, admin: SocketAddr, backends: &[SocketAddr], pool: &str, more: &str) -> String {
    let hostnames: Vec<String> = backends.iter().map(|backend| format!("\"{backend}\"")).collect();
    format!(
        "receivers: {{ otlp: {{ protocols: {{ grpc: {{ endpoint: {grpc} }} }} }} }}
pools:
  tail:
    resolver: {{ static: {{ hostnames: [{}] }} }}
    {pool}
routes:
  - {{ signals: [traces], routing_key: trace_id, pool: tail }}
admin: {{ endpoint: {admin} }}
{more}
",
        hostnames.join(", ")
    )
}

/// Returns a span with these IDs.
pub(crate) fn span(trace: u128, id: u64) -> Span {
    Span {
        trace_id: trace.to_be_bytes().to_vec(),
        span_id: id.to_be_bytes().to_vec(),
        name: format!("span {id}"),
        start_time_unix_nano: 1_750_000_000_000_000_000 + id,
        end_time_unix_nano: 1_750_000_000_000_001_000 + id,
        ..Span::default()
    }
}

/// Returns a request with one resource and one scope.
pub(crate) fn request(spans: Vec<Span>) -> ExportTraceServiceRequest {
    let scope_spans = vec![ScopeSpans { spans, ..ScopeSpans::default() }];
    ExportTraceServiceRequest { resource_spans: vec![ResourceSpans { scope_spans, ..ResourceSpans::default() }] }
}

/// Returns a gRPC client like that of an SDK.
pub(crate) async fn client(grpc: SocketAddr) -> Result<TraceServiceClient<Channel>> {
    Ok(TraceServiceClient::connect(format!("http://{grpc}")).await?)
}

/// Returns a message with gRPC's prefix.
pub(crate) fn framed(flag: u8, payload: &[u8]) -> Result<Bytes> {
    let mut bytes = BytesMut::with_capacity(payload.len() + 5);
    bytes.put_u8(flag);
    bytes.put_u32(u32::try_from(payload.len())?);
    bytes.put_slice(payload);
    Ok(bytes.freeze())
}

/// Sends a body unchanged, on a new connection.
pub(crate) async fn send_raw(grpc: SocketAddr, headers: &[(&str, &str)], body: Bytes) -> Result<Reply> {
    let stream = TcpStream::connect(grpc).await?;
    let (sender, connection) = h2::client::handshake(stream).await?;
    let tasks = Tasks::new();
    tasks.spawn(async move { drop(connection.await) });
    let mut sender = sender.ready().await?;
    let (response, mut stream) = sender.send_request(head(grpc, headers)?, false)?;
    // The proxy may answer and reset the stream before it has received everything.
    drop(stream.send_data(body, true));
    let response = response.await?;
    let mut all = response.headers().clone();
    let mut incoming = response.into_body();
    let mut body = Vec::new();
    while let Some(data) = incoming.data().await {
        let data = data?;
        incoming.flow_control().release_capacity(data.len())?;
        body.extend_from_slice(&data);
    }
    all.extend(incoming.trailers().await?.unwrap_or_default());
    reply(&all, body)
}

/// Returns the headers of an export request.
pub(crate) fn head(grpc: SocketAddr, headers: &[(&str, &str)]) -> Result<Request<()>> {
    let mut head = Request::post(format!("http://{grpc}{EXPORT}")).header("content-type", "application/grpc");
    head = head.header("te", "trailers");
    for (name, value) in headers {
        head = head.header(*name, *value);
    }
    Ok(head.body(())?)
}

fn reply(headers: &HeaderMap, body: Vec<u8>) -> Result<Reply> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    Ok(Reply {
        code: text("grpc-status").context("no grpc-status")?.parse()?,
        message: text("grpc-message").unwrap_or_default().replace("%20", " "),
        encoding: text("grpc-encoding"),
        body,
    })
}
