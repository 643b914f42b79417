//! Backends on loopback that answer as the test tells them to.

use std::net::SocketAddr;

use bytes::Bytes;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
    trace_service_server::{TraceService, TraceServiceServer},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot},
};
use tonic::{Request, Response, Status, codec::CompressionEncoding, metadata::MetadataMap};

use super::{Tasks, names_of, patient};

/// A backend whose every answer is decided by the test.
pub(crate) struct Script {
    pub(crate) address: SocketAddr,
    calls: mpsc::Receiver<Call>,
}

/// A call that waits for its answer.
pub(crate) struct Call {
    pub(crate) spans: Vec<String>,
    pub(crate) metadata: MetadataMap,
    reply: oneshot::Sender<Result<ExportTraceServiceResponse, Status>>,
}

struct Service(mpsc::Sender<Call>);

#[tonic::async_trait]
impl TraceService for Service {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let (reply, answer) = oneshot::channel();
        let metadata = request.metadata().clone();
        let spans = names_of(request.get_ref());
        let call = Call { spans, metadata, reply };
        self.0.send(call).await.map_err(|_| Status::internal("the test is over"))?;
        answer.await.map_err(|_| Status::internal("the test let go of the call"))?.map(Response::new)
    }
}

impl Script {
    /// A backend that takes plain, gzip and zstd, and answers in `reply`.
    pub(crate) async fn start(tasks: &Tasks, reply: Option<CompressionEncoding>, streams: u32) -> Self {
        let (calls, received) = mpsc::channel(64);
        let mut service = TraceServiceServer::new(Service(calls))
            .accept_compressed(CompressionEncoding::Gzip)
            .accept_compressed(CompressionEncoding::Zstd)
            .max_decoding_message_size(64 << 20);
        if let Some(reply) = reply {
            service = service.send_compressed(reply);
        }
        let listener = listen().await;
        let address = listener.local_addr().unwrap();
        let until = tasks.clone();
        let inner = tasks.clone();
        tasks.spawn(async move {
            loop {
                let accepted = tokio::select! {
                    () = until.stopped() => return,
                    accepted = listener.accept() => accepted,
                };
                let Ok((stream, _)) = accepted else { return };
                let service = TowerToHyperService::new(service.clone());
                let until = inner.clone();
                inner.spawn(async move {
                    let mut http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let serving = http.max_concurrent_streams(streams).serve_connection(TokioIo::new(stream), service);
                    tokio::select! {
                        () = until.stopped() => {}
                        _ = serving => {}
                    }
                });
            }
        });
        Self { address, calls: received }
    }

    /// The next call.
    pub(crate) async fn call(&mut self) -> Call {
        patient(self.calls.recv()).await.expect("the backend must run")
    }

    /// Whether no call has come that was not taken.
    pub(crate) fn is_quiet(&mut self) -> bool {
        self.calls.is_empty()
    }
}

impl Call {
    pub(crate) fn accept(self) {
        self.answer(Ok(ExportTraceServiceResponse::default()));
    }

    pub(crate) fn accept_partly(self, rejected: i64, message: &str) {
        let partial = ExportTracePartialSuccess { rejected_spans: rejected, error_message: message.into() };
        self.answer(Ok(ExportTraceServiceResponse { partial_success: Some(partial) }));
    }

    pub(crate) fn refuse(self, status: Status) {
        self.answer(Err(status));
    }

    fn answer(self, answer: Result<ExportTraceServiceResponse, Status>) {
        // A client that gave up meanwhile is what some tests are about.
        drop(self.reply.send(answer));
    }
}

pub(crate) async fn listen() -> TcpListener {
    TcpListener::bind(("127.0.0.1", 0)).await.unwrap()
}

/// Accepts one connection and speaks HTTP/2 on it.
pub(crate) async fn accept_h2(listener: &TcpListener) -> h2::server::Connection<TcpStream, Bytes> {
    let (stream, _) = patient(listener.accept()).await.unwrap();
    patient(h2::server::handshake(stream)).await.unwrap()
}

/// A gRPC answer without a message.
pub(crate) fn trailers_only(status: &str) -> http::Response<()> {
    http::Response::builder().header("content-type", "application/grpc").header("grpc-status", status).body(()).unwrap()
}
