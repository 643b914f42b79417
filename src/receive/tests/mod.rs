//! Tests of the receivers with real clients and a stand-in for the pipeline.

mod admission;
mod connections;
mod exports;
mod frames;
mod http_answers;
mod http_bounds;
mod limits;
mod over_http;
mod overload;
mod side_services;

use std::{
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use http::{HeaderMap, Request as HttpRequest, Response};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTraceServiceRequest, trace_service_client::TraceServiceClient},
    trace::v1::{ResourceSpans, ScopeSpans, Span},
};
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::transport::{Channel, Endpoint};

use super::{Config, GrpcConfig, grpc::OtlpGrpc};
use crate::{
    budget::Budget,
    lifecycle::Tasks,
    listen,
    otlp::{Outcome, Reason, Refusal, Signal},
    pipeline::{Export, Request},
    telemetry::Recorder,
};

type Answer = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// A pipeline that records its requests and answers with a given function.
struct StandIn {
    requests: Mutex<Vec<Request>>,
    answer: Box<dyn Fn() -> Answer + Send + Sync>,
    /// The signal that has no route.
    without: Option<Signal>,
}

impl StandIn {
    fn new<F>(answer: impl Fn() -> F + Send + Sync + 'static) -> Arc<Self>
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let answer = Box::new(move || -> Answer { Box::pin(answer()) });
        Arc::new(Self { requests: Mutex::default(), answer, without: None })
    }

    /// Accepts all signals but one.
    fn without(signal: Signal) -> Arc<Self> {
        let answer = Box::new(|| -> Answer { Box::pin(async { Outcome::OK }) });
        Arc::new(Self { requests: Mutex::default(), answer, without: Some(signal) })
    }

    fn ok() -> Arc<Self> {
        Self::new(|| async { Outcome::OK })
    }

    fn take(&self) -> Vec<Request> {
        std::mem::take(&mut *self.requests.lock().unwrap())
    }
}

impl Export for StandIn {
    fn takes(&self, signal: Signal) -> Result<(), Refusal> {
        if self.without != Some(signal) {
            return Ok(());
        }
        Err(Refusal::permanent(tonic::Code::Unimplemented, Reason::Unimplemented, "no route"))
    }

    async fn export(&self, request: Request) -> Outcome {
        self.requests.lock().unwrap().push(request);
        (self.answer)().await
    }
}

/// A started receiver.
struct Receiver {
    address: SocketAddr,
    budget: Budget,
    tasks: Tasks,
    export: Arc<StandIn>,
}

impl Receiver {
    fn start(export: Arc<StandIn>) -> Self {
        Self::with(export, GrpcConfig::default(), Budget::new(1 << 30))
    }

    fn with(export: Arc<StandIn>, config: GrpcConfig, budget: Budget) -> Self {
        let tasks = Tasks::new();
        let config = GrpcConfig { endpoint: SocketAddr::from(([127, 0, 0, 1], 0)), ..config };
        let listeners =
            super::start(&Config { grpc: Some(config), http: None }, Arc::clone(&export), budget.clone(), &tasks)
                .unwrap();
        Self { address: listeners.grpc.unwrap(), budget, tasks, export }
    }

    async fn client(&self) -> TraceServiceClient<Channel> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).unwrap();
        TraceServiceClient::new(endpoint.connect().await.unwrap())
    }

    async fn h2(&self) -> SendRequest<Bytes> {
        h2_over(tokio::net::TcpStream::connect(self.address).await.unwrap(), &self.tasks).await
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

/// A plain HTTP/2 client, for requests that no gRPC client sends.
async fn h2_over<I>(stream: I, tasks: &Tasks) -> SendRequest<Bytes>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    drop(tasks.spawn(async move {
        // Tests notice the end of the connection on their streams.
        connection.await.ok();
    }));
    client
}

/// Serves an in-memory connection like an accepted one, for tests with a paused clock. Returns the client's end.
fn serve_in_memory(export: Arc<StandIn>, config: &GrpcConfig, tasks: &Tasks) -> tokio::io::DuplexStream {
    serve_service_in_memory(OtlpGrpc::new(export, Budget::new(1 << 30), config, tasks), config, tasks)
}

/// Serves an in-memory connection with an existing service.
fn serve_service_in_memory(service: OtlpGrpc<StandIn>, config: &GrpcConfig, tasks: &Tasks) -> tokio::io::DuplexStream {
    let limits = config.limits("HTTP/1".into(), service.budget(), listen::OpenConnections::default());
    listen::tests::serve_in_memory(limits, service.for_connection(), tasks)
}

fn head(path: &str) -> HttpRequest<()> {
    HttpRequest::post(format!("http://localhost{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap()
}

fn traces() -> HttpRequest<()> {
    head(Signal::Traces.grpc_path())
}

/// Reads a response with its body and trailers. For a trailers-only response, the trailers are its headers.
async fn finish(response: ResponseFuture) -> (Response<()>, Vec<u8>, HeaderMap) {
    let (parts, mut body) = response.await.unwrap().into_parts();
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        bytes.extend_from_slice(&data.unwrap());
    }
    let trailers = body.trailers().await.unwrap().unwrap_or_else(|| parts.headers.clone());
    (Response::from_parts(parts, ()), bytes, trailers)
}

fn grpc_status(trailers: &HeaderMap) -> tonic::Status {
    tonic::Status::from_header_map(trailers).expect("there must be a grpc-status")
}

/// Waits until `state` returns true. Panics after 20 s, which is more than enough even on a busy machine.
async fn until(what: &str, mut state: impl FnMut() -> bool) {
    let looking = async {
        while !state() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(20), looking).await.is_ok(), "did not happen within 20 s: {what}");
}

/// Returns a request of `spans` spans with names of `name_len` bytes.
fn request(spans: usize, name_len: usize) -> ExportTraceServiceRequest {
    let span = |i: usize| Span {
        trace_id: vec![u8::try_from(i % 200 + 1).unwrap(); 16],
        span_id: vec![1; 8],
        name: "n".repeat(name_len),
        ..Span::default()
    };
    let scope_spans = vec![ScopeSpans { spans: (0..spans).map(span).collect(), ..ScopeSpans::default() }];
    ExportTraceServiceRequest { resource_spans: vec![ResourceSpans { scope_spans, ..ResourceSpans::default() }] }
}
