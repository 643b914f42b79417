//! Scripted backends on loopback, and a dispatch in front of them.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    trace::v1::{ResourceSpans, ScopeSpans, Span},
};
use prost::Message;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use tonic::{Request, Response, Status, codec::CompressionEncoding, metadata::MetadataMap};

use crate::{
    dispatch::{Config, Dispatch, Join, Part, PartOutcome},
    endpoint::Endpoint,
    health::{self, Inbox},
    otlp::{ClientConnection, Framed, Signal},
    ring::{Algorithm, Base, Table, members_of},
    settings::Delivery,
};

pub(crate) use crate::{health::HealthKind, lifecycle::Tasks};

/// Nothing here takes longer, unless it is broken.
const PATIENCE: Duration = Duration::from_secs(20);

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

/// A dispatch in front of backends.
pub(crate) struct Rig {
    pub(crate) dispatch: Arc<Dispatch>,
    pub(crate) tasks: Tasks,
    pub(crate) events: Inbox,
    tables: watch::Sender<Option<Arc<Table>>>,
}

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

/// A configuration in which some keys of the pool are not at their defaults.
pub(crate) fn with_keys(change: impl FnOnce(&mut Delivery)) -> Config {
    let mut keys = Delivery::default();
    change(&mut keys);
    keys.into()
}

impl Rig {
    /// A dispatch to `backends`.
    pub(crate) fn start(config: Config, backends: &[SocketAddr]) -> Self {
        let tasks = Tasks::new();
        Self::start_with(config, backends, tasks)
    }

    pub(crate) fn start_with(config: Config, backends: &[SocketAddr], tasks: Tasks) -> Self {
        let (tables, receiver) = watch::channel(Some(table(1, backends, &[])));
        let (sender, events) = health::channel("test");
        let dispatch = Dispatch::start("test", config, receiver, &tasks, sender);
        Self { dispatch, tasks, events, tables }
    }

    /// Publishes a table of other backends and waits until it is in force.
    pub(crate) async fn change(&self, generation: u64, backends: &[SocketAddr]) {
        self.publish(generation, backends, &[]).await;
    }

    /// The same, with the slots of those that are `away` served by others.
    pub(crate) async fn publish(&self, generation: u64, backends: &[SocketAddr], away: &[SocketAddr]) {
        self.tables.send_replace(Some(table(generation, backends, away)));
        wait_until(|| self.dispatch.view().is_some_and(|view| view.table().generation == generation)).await;
    }

    /// The next thing that is said about a backend's health.
    pub(crate) async fn event(&mut self) -> HealthKind {
        patient(self.events.recv()).await.expect("the dispatch must run").kind
    }

    /// Whether nothing more was said about a backend's health.
    pub(crate) fn events_are_quiet(&mut self) -> bool {
        use futures_util::FutureExt;
        self.events.recv().now_or_never().is_none()
    }

    /// The index of a backend in the table.
    pub(crate) fn index_of(&self, address: SocketAddr) -> u32 {
        let view = self.dispatch.view().unwrap();
        let at = view.table().backends().iter().position(|backend| backend.address == Some(address));
        u32::try_from(at.expect("the backend must be in the table")).unwrap()
    }

    /// Submits parts of one new request.
    pub(crate) fn submit(&self, parts: Vec<Part>) -> Join {
        self.submit_from(parts, &Arc::default())
    }

    pub(crate) fn submit_from(&self, parts: Vec<Part>, connection: &Arc<ClientConnection>) -> Join {
        let join = Join::new(Instant::now() + PATIENCE, Arc::clone(connection));
        self.dispatch.view().unwrap().submit(parts, &join).expect("there must be room");
        join
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

/// The only outcome of a request of one part.
pub(crate) async fn outcome(join: &Join) -> PartOutcome {
    let mut outcomes = patient(join.next()).await;
    assert_eq!(outcomes.len(), 1, "must be one outcome: {outcomes:?}");
    outcomes.remove(0).1
}

pub(crate) async fn patient<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("must not take that long")
}

/// Waits for a state that other tasks bring about.
pub(crate) async fn wait_until(state: impl Fn() -> bool) {
    patient(async {
        while !state() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

pub(crate) fn accepted() -> PartOutcome {
    PartOutcome::Accepted { rejected: 0, message: None }
}

/// A part of spans with these names, for the backend of that index.
pub(crate) fn part(names: &[&str], backend: u32) -> Part {
    let spans: Vec<_> = names.iter().map(|name| span(name, 0)).collect();
    part_of(spans, backend)
}

/// A part of `count` spans with about `size` bytes each.
pub(crate) fn large_part(count: usize, size: usize, backend: u32) -> Part {
    part_of((0..count).map(|at| span(&format!("span {at}"), size)).collect(), backend)
}

fn span(name: &str, size: usize) -> Span {
    Span { name: name.into(), trace_state: "x".repeat(size), trace_id: vec![7; 16], ..Span::default() }
}

fn part_of(spans: Vec<Span>, backend: u32) -> Part {
    let records = u32::try_from(spans.len()).unwrap();
    let scope_spans = vec![ScopeSpans { spans, ..ScopeSpans::default() }];
    let resource_spans = vec![ResourceSpans { scope_spans, ..ResourceSpans::default() }];
    let payload = ExportTraceServiceRequest { resource_spans }.encode_to_vec();
    let message = Framed::copy_from_payload(&payload).unwrap();
    Part { message, records, signal: Signal::Traces, backend, alone: false, index: 0 }
}

/// A request of `count` spans with about `size` bytes each, of a trace each.
pub(crate) fn many_traces(count: usize, size: usize) -> Framed {
    let trace = |at: usize| Span { trace_id: (at as u128 + 1).to_be_bytes().to_vec(), ..span("span", size) };
    part_of((0..count).map(trace).collect(), 0).message
}

/// The names of a request's spans, in their order.
pub(crate) fn names_of(request: &ExportTraceServiceRequest) -> Vec<String> {
    let scopes = request.resource_spans.iter().flat_map(|resource| &resource.scope_spans);
    scopes.flat_map(|scope| &scope.spans).map(|span| span.name.clone()).collect()
}

pub(crate) fn table(generation: u64, backends: &[SocketAddr], away: &[SocketAddr]) -> Arc<Table> {
    let mut endpoints: Vec<_> =
        backends.iter().map(|address| Endpoint::new(address.to_string(), Some(*address))).collect();
    endpoints.sort();
    let base = Base::build_with(Algorithm::SlotsV1, &members_of(&endpoints)).unwrap();
    let is_away = |endpoint: &Endpoint| away.iter().any(|address| endpoint.address == Some(*address));
    let away = (0..).zip(&endpoints).filter(|(_, endpoint)| is_away(endpoint)).map(|(at, _)| at).collect();
    let overlay = base.overlay(&away);
    Arc::new(Table::new(generation, Arc::new(base), overlay, endpoints.into()))
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
