//! Services that export spans as SDKs do, over OTLP/gRPC: a service gathers the spans that have ended, exports them at
//! fixed intervals, one request after the other, and repeats what was refused with a retryable code.
//!
//! A load balancer gives each connection of a service one of the replicas. The service keeps the connection until it
//! fails.

use std::{
    collections::BTreeMap,
    error::Error as _,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTraceServiceRequest, trace_service_client::TraceServiceClient},
    common::v1::{AnyValue, KeyValue, any_value::Value},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span as OtlpSpan},
};
use spanring::tools::ids::SpanPosition;
use tokio::time::{Instant, sleep, sleep_until};
use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint},
};

use super::traces::{Spec, Trace};

/// How long SDKs wait for an answer by default.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// The defaults of the SDKs' retries: five attempts, the pauses of which grow from 1 s by 1.5 up to 5 s.
const ATTEMPTS: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const PAUSE_GROWTH: f64 = 1.5;
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The replicas that take new connections. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Balancer(Arc<Mutex<Vec<Replica>>>);

#[derive(Clone, Copy, Debug)]
struct Replica {
    address: SocketAddr,
    is_ready: bool,
}

/// The beginning of a run by both clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Beginning {
    pub(crate) instant: Instant,
    since_1970: Duration,
}

/// A span of this trace (an index into the run's traces), and when it ends.
#[derive(Clone, Copy, Debug)]
struct Queued {
    end: Duration,
    trace: usize,
    position: SpanPosition,
}

/// One service.
pub(crate) struct Service {
    number: usize,
    spec: Arc<Spec>,
    traces: Arc<Vec<Trace>>,
    /// Its spans by their ends.
    spans: Vec<Queued>,
    balancer: Balancer,
    client: Option<(usize, TraceServiceClient<Channel>)>,
}

/// What became of the spans of a service.
#[derive(Debug, Default)]
pub(crate) struct Exported {
    /// The acknowledged spans of each trace, as bit sets.
    pub(crate) acknowledged: BTreeMap<usize, u64>,
    /// The errors that were answered, with their numbers.
    pub(crate) errors: BTreeMap<String, u64>,
}

// === impl Balancer ===

impl Balancer {
    /// Adds a replica that takes connections.
    pub(crate) fn add(&self, address: SocketAddr) {
        self.replicas(|replicas| replicas.push(Replica { address, is_ready: true }));
    }

    /// Sets whether a replica gets new connections.
    pub(crate) fn set_ready(&self, replica: usize, is_ready: bool) {
        self.replicas(|replicas| {
            if let Some(replica) = replicas.get_mut(replica) {
                replica.is_ready = is_ready;
            }
        });
    }

    /// Returns the replica for a connection of a service: its turn at first, any other one after that has failed.
    fn choose(&self, service: usize, failed: Option<usize>) -> Option<(usize, SocketAddr)> {
        self.replicas(|replicas| {
            let usual = service.checked_rem(replicas.len()).filter(|_| failed.is_none());
            let is_usable = |(n, replica): &(usize, &Replica)| replica.is_ready && Some(*n) != failed;
            let usable: Vec<_> = replicas.iter().enumerate().filter(is_usable).map(|(n, r)| (n, r.address)).collect();
            let found = usable.iter().find(|(n, _)| Some(*n) == usual).copied();
            found.or_else(|| fastrand::choice(usable))
        })
    }

    fn replicas<T>(&self, act: impl FnOnce(&mut Vec<Replica>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

// === impl Beginning ===

impl Beginning {
    /// A run that begins at `instant`, which may be in the future.
    pub(crate) fn at(instant: Instant) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { instant, since_1970: now + instant.saturating_duration_since(Instant::now()) }
    }

    fn unix_nanos(&self, at: Duration) -> u64 {
        u64::try_from((self.since_1970 + at).as_nanos()).unwrap_or(u64::MAX)
    }
}

// === impl Service ===

impl Service {
    /// Returns all services of a run.
    pub(crate) fn all(spec: &Arc<Spec>, traces: &Arc<Vec<Trace>>, balancer: &Balancer) -> Vec<Self> {
        let mut spans = vec![Vec::new(); spec.services];
        for (trace, of) in traces.iter().enumerate() {
            for (position, span) in of.positions() {
                if let Some(of_service) = spans.get_mut(span.service) {
                    of_service.push(Queued { end: span.end, trace, position });
                }
            }
        }
        let service = |(number, mut spans): (usize, Vec<Queued>)| {
            spans.sort_by_key(|span| span.end);
            let (spec, traces) = (Arc::clone(spec), Arc::clone(traces));
            Self { number, spec, traces, spans, balancer: balancer.clone(), client: None }
        };
        spans.into_iter().enumerate().map(service).collect()
    }

    /// Exports all spans, each after its end.
    pub(crate) async fn run(mut self, beginning: Beginning) -> Exported {
        let mut exported = Exported::default();
        let mut tick = self.spec.first_export(self.number);
        let spans = std::mem::take(&mut self.spans);
        let mut rest = spans.as_slice();
        while !rest.is_empty() {
            sleep_until(beginning.instant + tick).await;
            // The clock is read again, since the last export may have taken longer than the interval.
            let now = beginning.instant.elapsed().max(tick);
            let (batch, later) = rest.split_at(rest.partition_point(|span| span.end <= now));
            rest = later;
            if !batch.is_empty() && self.export(batch, beginning, &mut exported).await {
                for span in batch {
                    *exported.acknowledged.entry(span.trace).or_default() |= span.position.bit();
                }
            }
            let interval = self.spec.batch(self.number);
            while beginning.instant + tick <= Instant::now() {
                tick += interval;
            }
        }
        exported
    }

    /// Exports one batch. Returns whether it was acknowledged.
    async fn export(&mut self, batch: &[Queued], beginning: Beginning, exported: &mut Exported) -> bool {
        let request = self.request(batch, beginning);
        let mut pause = FIRST_PAUSE;
        let mut failed = None;
        for attempt in 1..=ATTEMPTS {
            let error = match self.attempt(&request, failed).await {
                Ok(()) => return true,
                Err(error) => error,
            };
            *exported.errors.entry(format!("{error:#}")).or_default() += 1;
            let is_from_server = match error.downcast_ref::<Status>() {
                Some(status) if status.source().is_none() && !is_retryable(status.code()) => return false,
                Some(status) => status.source().is_none() && status.code() == Code::Unavailable,
                None => false,
            };
            if !is_from_server {
                failed = self.client.take().map(|(replica, _)| replica).or(failed);
            }
            if attempt < ATTEMPTS {
                // Half to all of the pause.
                sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
                pause = pause.mul_f64(PAUSE_GROWTH).min(LONGEST_PAUSE);
            }
        }
        false
    }

    /// Sends a request once, over a new connection if there is none. A new connection goes to another replica than
    /// `failed`.
    async fn attempt(&mut self, request: &ExportTraceServiceRequest, failed: Option<usize>) -> Result<()> {
        if self.client.is_none() {
            let (replica, address) = self.balancer.choose(self.number, failed).context("no replica is ready")?;
            let endpoint = Endpoint::from_shared(format!("http://{address}"))?.connect_timeout(CONNECT_TIMEOUT);
            // Kept before it is connected, so that a failure counts against this replica.
            self.client = Some((replica, TraceServiceClient::new(endpoint.connect_lazy())));
        }
        let (_, client) = self.client.as_mut().context("there is a client")?;
        let mut request = Request::new(request.clone());
        request.set_timeout(TIMEOUT);
        let reply = client.export(request).await?.into_inner();
        let rejected = reply.partial_success.map_or(0, |partial| partial.rejected_spans);
        anyhow::ensure!(rejected == 0, Status::invalid_argument(format!("{rejected} spans were rejected")));
        Ok(())
    }

    fn request(&self, batch: &[Queued], beginning: Beginning) -> ExportTraceServiceRequest {
        let spans = batch.iter().filter_map(|span| self.span(span, beginning)).collect();
        let name = Value::StringValue(format!("service-{}", self.number));
        let value = Some(AnyValue { value: Some(name) });
        let attributes = vec![KeyValue { key: "service.name".to_owned(), value, ..KeyValue::default() }];
        let resource = Some(Resource { attributes, ..Resource::default() });
        let scope_spans = vec![ScopeSpans { spans, ..ScopeSpans::default() }];
        ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans { resource, scope_spans, ..ResourceSpans::default() }],
        }
    }

    fn span(&self, queued: &Queued, beginning: Beginning) -> Option<OtlpSpan> {
        let trace = self.traces.get(queued.trace)?;
        let span = trace.spans.get(usize::from(queued.position.index))?;
        let root = SpanPosition { index: 0, ..queued.position };
        let parent = if queued.position == root { Vec::new() } else { trace.key.span_id(root).to_vec() };
        Some(OtlpSpan {
            trace_id: trace.key.to_bytes().to_vec(),
            span_id: trace.key.span_id(queued.position).to_vec(),
            parent_span_id: parent,
            name: format!("operation {}", queued.position.index),
            start_time_unix_nano: beginning.unix_nanos(span.start),
            end_time_unix_nano: beginning.unix_nanos(span.end),
            ..OtlpSpan::default()
        })
    }
}

/// Whether clients may repeat a request with this code (OTLP/gRPC, "failures").
fn is_retryable(code: Code) -> bool {
    matches!(
        code,
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss
            | Code::ResourceExhausted
    )
}
