//! A proxy process with scripted backends and clients, and a comparison of the spans acknowledged with the spans
//! received.

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTraceServiceRequest, trace_service_client::TraceServiceClient},
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::{ResourceSpans, ScopeSpans, Span},
};
use prost::Message;
use spanring::{
    endpoint::Endpoint,
    lifecycle::Tasks,
    ring::{Algorithm, Table},
};
use tokio::{task::JoinHandle, time::Instant};
use tonic::{
    Code, Status,
    transport::{self, Channel, ClientTlsConfig},
};
use tonic_types::StatusExt;

use super::{
    backend::{Backend, SpanKey},
    harness::{self, Process, Ready},
    reload::reloads,
};

/// Further configuration of a proxy, in addition to its addresses: YAML to insert, and a limit of the process.
#[derive(Clone, Copy, Default)]
pub(crate) struct ExtraConfig {
    /// Additional keys of `receivers.otlp.protocols.grpc`, each followed by a comma.
    pub(crate) grpc: &'static str,
    /// Keys of `receivers.otlp.protocols.http`, each followed by a comma; its endpoint is added. Without them, OTLP/HTTP is
    /// not served.
    pub(crate) http: Option<&'static str>,
    /// `receivers.otlp.deadline`; 4 s if empty.
    pub(crate) deadline: &'static str,
    /// Additional keys of the pool, each followed by a comma.
    pub(crate) pool: &'static str,
    /// Additional lines at the top level.
    pub(crate) top: &'static str,
    /// Limit for the open file descriptors of the process.
    pub(crate) descriptors: Option<u32>,
}

/// A proxy with its backends.
pub(crate) struct Fixture {
    pub(crate) grpc: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) process: Process,
    pub(crate) backends: Vec<Backend>,
    pub(crate) tasks: Tasks,
    /// TLS configuration of its clients.
    pub(crate) tls: Option<ClientTlsConfig>,
    table: Table,
    numbers: AtomicU64,
    dir: tempfile::TempDir,
}

/// A client with one connection.
#[derive(Clone)]
pub(crate) struct Client(TraceServiceClient<Channel>);

/// The reply to an export.
#[derive(Debug)]
pub(crate) enum Reply {
    Accepted { rejected: i64, message: String },
    Refused(Status),
}

/// Comparison of the spans acknowledged to clients with those that backends received.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Account {
    /// Number of acknowledged spans that no backend received.
    pub(crate) missing: usize,
    /// Number of spans received more than once.
    pub(crate) duplicates: u64,
    /// Number of traces whose spans came to more than one backend.
    pub(crate) split: usize,
}

/// Clients that send requests while a test runs.
pub(crate) struct Load {
    workers: Vec<JoinHandle<(BTreeSet<SpanKey>, Vec<Status>)>>,
    over: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
}

impl Fixture {
    /// Starts a proxy with `backends` backends that accept everything.
    pub(crate) async fn start(backends: usize, extra: ExtraConfig) -> Result<Self> {
        let mut started = Vec::new();
        for _ in 0..backends {
            started.push(Backend::start().await?);
        }
        let addresses: Vec<SocketAddr> = started.iter().map(|backend| backend.address).collect();
        Self::before(&addresses, started, extra)
    }

    /// Starts a proxy whose pool consists of the proxy itself and one other backend.
    pub(crate) fn before_itself(other: Backend, extra: ExtraConfig) -> Result<Self> {
        let address = other.address;
        Self::run(|grpc| vec![address, grpc], vec![other], extra)
    }

    /// Starts a proxy whose pool has these addresses. They may belong to processes or to anything else that listens.
    pub(crate) fn before(addresses: &[SocketAddr], backends: Vec<Backend>, extra: ExtraConfig) -> Result<Self> {
        Self::run(|_| addresses.to_vec(), backends, extra)
    }

    fn run(pool: impl Fn(SocketAddr) -> Vec<SocketAddr>, backends: Vec<Backend>, extra: ExtraConfig) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let (process, [grpc, admin]) = harness::on_free_ports(|[grpc, admin]| {
            let file = dir.path().join("spanring.yaml");
            fs::write(&file, config(grpc, admin, &pool(grpc), extra))?;
            // The shell sets the limit, which the proxy inherits.
            let limit = extra.descriptors.map(|limit| format!("ulimit -n {limit} && ")).unwrap_or_default();
            let mut command = Command::new("sh");
            command.args(["-c", &format!("{limit}exec \"$0\" run --config \"$1\"")]);
            command.arg(env!("CARGO_BIN_EXE_spanring")).arg(file);
            Ok((Process::start("spanring", &mut command)?, Ready::Page(format!("http://{admin}/readyz"))))
        })?;
        let table = Table::of(1, Algorithm::SlotsV1, &endpoints(&pool(grpc)))?;
        let (tasks, numbers) = (Tasks::new(), AtomicU64::new(1));
        Ok(Self { grpc, admin, process, backends, tasks, tls: None, table, numbers, dir })
    }

    /// Reloads the proxy with another configuration, which has the same backends.
    pub(crate) fn reload(&self, extra: ExtraConfig) -> Result<()> {
        let backends: Vec<SocketAddr> = self.backends.iter().map(|backend| backend.address).collect();
        self.reload_before(&backends, extra)
    }

    /// Reloads the proxy with a pool of these addresses.
    pub(crate) fn reload_before(&self, addresses: &[SocketAddr], extra: ExtraConfig) -> Result<()> {
        let before = reloads(self.admin, "success")?;
        fs::write(self.dir.path().join("spanring.yaml"), config(self.grpc, self.admin, addresses, extra))?;
        self.process.signal("HUP")?;
        harness::until("it is reloaded", || Ok((reloads(self.admin, "success")? > before).then_some(())))
    }

    /// Returns a new trace ID whose owner is the backend at `address`.
    pub(crate) fn trace_of(&self, address: SocketAddr) -> [u8; 16] {
        loop {
            let trace = self.trace();
            let owner = self.table.backends().get(self.table.owner(&trace) as usize);
            if owner.is_some_and(|owner| owner.address == Some(address)) {
                return trace;
            }
        }
    }

    /// Returns a new trace ID that backend `n` owns.
    pub(crate) fn trace_at(&self, n: usize) -> Result<[u8; 16]> {
        Ok(self.trace_of(self.backends.get(n).context("no such backend")?.address))
    }

    /// Returns a new trace ID.
    pub(crate) fn trace(&self) -> [u8; 16] {
        let number = self.numbers.fetch_add(1, Relaxed);
        ((u128::from(number) << 64) | u128::from(number.wrapping_mul(0x9e37_79b9_7f4a_7c15))).to_be_bytes()
    }

    /// Returns which backend owns a trace while no backend is ejected.
    pub(crate) fn owner_of(&self, trace: &[u8]) -> Result<usize> {
        self.place(&self.table, trace)
    }

    /// Returns which backend receives a trace while only backend `n` is ejected.
    pub(crate) fn substitute(&self, n: usize, trace: &[u8]) -> Result<usize> {
        let identity = self.backends.get(n).context("no such backend")?.address.to_string();
        let overlay = self.table.base().overlay(&self.table.position(&identity).into_iter().collect());
        let table = Table::new(2, Arc::clone(self.table.base()), overlay, self.table.backends().into());
        self.place(&table, trace)
    }

    fn place(&self, table: &Table, trace: &[u8]) -> Result<usize> {
        let owner = table.backends().get(table.owner(trace) as usize).and_then(|owner| owner.address);
        self.backends.iter().position(|backend| Some(backend.address) == owner).context("an owner")
    }

    /// Returns `count` spans of a new trace that backend `n` owns.
    pub(crate) fn spans_at(&self, n: usize, count: u64) -> Result<Vec<Span>> {
        let trace = self.trace_at(n)?;
        Ok((0..count).map(|number| span(&trace, number)).collect())
    }

    /// Returns the address of OTLP/HTTP, on a port that the system chose.
    pub(crate) fn http(&self) -> Result<SocketAddr> {
        listens(&self.process, "otlp_http")
    }

    /// Returns the endpoint for clients, with TLS if it is configured.
    pub(crate) fn endpoint(&self) -> Result<transport::Endpoint> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let mut endpoint = Channel::from_shared(format!("{scheme}://{}", self.grpc))?;
        if let Some(tls) = &self.tls {
            endpoint = endpoint.tls_config(tls.clone())?;
        }
        Ok(endpoint)
    }

    pub(crate) async fn client(&self) -> Result<Client> {
        Client::connect(&self.endpoint()?).await
    }

    /// Returns the sum of a metric's series that have these labels.
    pub(crate) fn metric(&self, name: &str, labels: &[&str]) -> Result<f64> {
        harness::metric(self.admin, name, labels)
    }

    /// Returns the value of a metric without labels.
    pub(crate) fn bare_metric(&self, name: &str) -> Result<f64> {
        let (_, page) = harness::http_get(&format!("http://{}/metrics", self.admin))?;
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(value.with_context(|| format!("no {name}"))?.parse()?)
    }

    /// Waits until a metric has the value that is expected.
    pub(crate) fn until_metric(&self, name: &str, labels: &[&str], wanted: impl Fn(f64) -> bool) -> Result<f64> {
        let mut last = 0.0;
        harness::until(&format!("{name} is as expected"), || {
            last = self.metric(name, labels)?;
            Ok(wanted(last).then_some(last))
        })
    }

    /// Returns the peak resident memory of the proxy, in MiB.
    pub(crate) fn peak_mib(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
        let kib: u64 = line.split_whitespace().next().context("no number")?.parse()?;
        Ok(kib >> 10)
    }

    /// Waits until no request holds memory.
    pub(crate) fn memory_is_given_back(&self) -> Result<()> {
        self.until_metric("spanring_memory_used_bytes", &["requests"], |bytes| bytes == 0.0).map(drop)
    }

    /// Checks that an ordinary client is served: it sends spans for every backend, and all of them must arrive. Tests
    /// call it after a fault.
    pub(crate) async fn serves(&self) -> Result<()> {
        let spans = (0..self.backends.len()).map(|n| self.spans_at(n, 2)).collect::<Result<Vec<_>>>()?.concat();
        let keys = keys_of(&spans);
        let reply = self.client().await?.export(spans).await;
        ensure!(matches!(reply, Reply::Accepted { rejected: 0, .. }), "an ordinary request was answered {reply:?}");
        let account = self.account(&keys);
        ensure!(account.missing == 0, "an ordinary request is not where it should be: {account:?}");
        Ok(())
    }

    /// Waits until ordinary requests are delivered again.
    pub(crate) async fn serves_again(&self) -> Result<()> {
        let end = Instant::now() + harness::TIME_LIMIT;
        while let Err(error) = self.serves().await {
            ensure!(Instant::now() < end, "the backends are back, but are not used: {error:#}");
        }
        Ok(())
    }

    /// Compares the acknowledged spans with those that the backends received.
    pub(crate) fn account<'a>(&self, acknowledged: impl IntoIterator<Item = &'a SpanKey>) -> Account {
        let delivered: Vec<_> = self.backends.iter().map(Backend::delivered).collect();
        let is_there = |key: &SpanKey| delivered.iter().any(|spans| spans.contains_key(key));
        let missing = acknowledged.into_iter().filter(|key| !is_there(key)).count();
        let mut times = std::collections::BTreeMap::<&SpanKey, u64>::new();
        let mut places = std::collections::BTreeMap::<&[u8], BTreeSet<usize>>::new();
        for (n, spans) in delivered.iter().enumerate() {
            for (key, count) in spans {
                *times.entry(key).or_default() += count;
                places.entry(&key.0).or_default().insert(n);
            }
        }
        let duplicates = times.values().map(|count| count - 1).sum();
        let split = places.values().filter(|places| places.len() > 1).count();
        Account { missing, duplicates, split }
    }

    /// Starts clients that send one request after another, each on its own connection. Every request has four spans for
    /// each backend on average, of twice as many traces as there are backends.
    pub(crate) async fn load(&self, clients: u64) -> Result<Load> {
        let (over, answered) = (Arc::new(AtomicBool::default()), Arc::<AtomicU64>::default());
        let mut workers = Vec::new();
        let backends = self.backends.len() as u64;
        for client in 0..clients {
            let (mut connection, is_over, count) = (self.client().await?, Arc::clone(&over), Arc::clone(&answered));
            workers.push(self.tasks.spawn(async move {
                let (mut acknowledged, mut refused) = (BTreeSet::new(), Vec::new());
                for number in 0.. {
                    if is_over.load(Relaxed) {
                        break;
                    }
                    let spans =
                        (0..4 * backends).map(|n| span(&load_trace(client, number, n), ((number % 4) << 8) | n));
                    let spans: Vec<Span> = spans.collect();
                    let keys = keys_of(&spans);
                    match connection.export(spans).await {
                        Reply::Accepted { .. } => acknowledged.extend(keys),
                        Reply::Refused(status) => refused.push(status),
                    }
                    count.fetch_add(1, Relaxed);
                }
                (acknowledged, refused)
            }));
        }
        Ok(Load { workers, over, answered })
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

impl Load {
    /// Waits until `requests` further requests were answered.
    pub(crate) fn goes_on(&self, requests: u64) -> Result<()> {
        let wanted = self.answered.load(Relaxed) + requests;
        harness::until("load is answered", || Ok((self.answered.load(Relaxed) >= wanted).then_some(())))
    }

    /// Stops the clients; returns the acknowledged spans and the refusals.
    pub(crate) async fn stop(self) -> Result<(BTreeSet<SpanKey>, Vec<Status>)> {
        self.over.store(true, Relaxed);
        let (mut acknowledged, mut refused) = (BTreeSet::new(), Vec::new());
        for worker in self.workers {
            let (spans, statuses) = worker.await?;
            acknowledged.extend(spans);
            refused.extend(statuses);
        }
        Ok((acknowledged, refused))
    }
}

impl Client {
    pub(crate) async fn connect(endpoint: &transport::Endpoint) -> Result<Self> {
        Ok(Self(TraceServiceClient::new(endpoint.connect().await?)))
    }

    pub(crate) async fn export(&mut self, spans: Vec<Span>) -> Reply {
        match self.0.export(request(spans)).await {
            Ok(response) => {
                let partial = response.into_inner().partial_success.unwrap_or_default();
                Reply::Accepted { rejected: partial.rejected_spans, message: partial.error_message }
            }
            Err(status) => Reply::Refused(status),
        }
    }

    /// Exports spans; returns the time until the reply, and the reply.
    pub(crate) async fn timed(&mut self, spans: Vec<Span>) -> (Duration, Reply) {
        let start = Instant::now();
        let reply = self.export(spans).await;
        (start.elapsed(), reply)
    }
}

impl Reply {
    /// Checks that all spans were accepted.
    pub(crate) fn ok(&self) -> Result<()> {
        let fine = matches!(self, Self::Accepted { rejected: 0, .. });
        ensure!(fine, "it should have been accepted: {self:?}");
        Ok(())
    }

    /// Checks that the reply is `UNAVAILABLE` with `RetryInfo`, so that the client may send the request again.
    pub(crate) fn retryable(&self) -> Result<()> {
        let Self::Refused(status) = self else { anyhow::bail!("it should have been refused: {self:?}") };
        is_retryable(status)
    }

    /// Checks that the reply is an error without `RetryInfo`; returns its code and message.
    pub(crate) fn permanent(&self) -> Result<(Code, &str)> {
        let Self::Refused(status) = self else { anyhow::bail!("it should have been refused: {self:?}") };
        ensure!(status.get_details_retry_info().is_none(), "a permanent refusal with RetryInfo: {status:?}");
        Ok((status.code(), status.message()))
    }
}

/// Returns the address that a listener of the process logs.
pub(crate) fn listens(process: &Process, listener: &str) -> Result<SocketAddr> {
    harness::until(&format!("{listener} listens"), || {
        let (log, name) = (process.log(), format!("listener=\"{listener}\""));
        let line = log.lines().rfind(|line| line.contains("listening") && line.contains(&name));
        let address = line.and_then(|line| line.split("address=").nth(1)?.split_whitespace().next());
        Ok(address.map(str::parse).transpose()?)
    })
}

/// Checks that a client may send the request again.
pub(crate) fn is_retryable(status: &Status) -> Result<()> {
    let after = status.get_details_retry_info().and_then(|info| info.retry_delay);
    ensure!(status.code() == Code::Unavailable && after.is_some(), "not UNAVAILABLE with RetryInfo: {status:?}");
    Ok(())
}

/// Returns span `number` of a trace.
pub(crate) fn span(trace: &[u8], number: u64) -> Span {
    Span {
        trace_id: trace.to_vec(),
        span_id: (number + 1).to_be_bytes().to_vec(),
        name: format!("span {number}"),
        start_time_unix_nano: 1_750_000_000_000_000_000 + number,
        end_time_unix_nano: 1_750_000_000_000_001_000 + number,
        ..Span::default()
    }
}

pub(crate) fn keys_of(spans: &[Span]) -> Vec<SpanKey> {
    spans.iter().map(|span| (span.trace_id.clone(), span.span_id.clone())).collect()
}

/// Returns a trace ID for load. Four consecutive requests share it, so that the spans of a trace come in several
/// requests.
fn load_trace(client: u64, number: u64, n: u64) -> [u8; 16] {
    let trace = ((((client << 32) | (number / 4)) << 8) | (n / 2)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((u128::from(trace) << 64) | u128::from((client << 48) | ((number / 4) << 16) | ((n / 2 + 1) << 8) | 1))
        .to_be_bytes()
}

/// Adds an attribute of `bytes` bytes to a span.
pub(crate) fn padded(mut span: Span, bytes: usize) -> Span {
    let value = Some(AnyValue { value: Some(Value::BytesValue(vec![7; bytes])) });
    span.attributes = vec![KeyValue { key: "padding".to_owned(), value, ..KeyValue::default() }];
    span
}

/// Returns an encoded request with these spans.
pub(crate) fn encoded(spans: Vec<Span>) -> Vec<u8> {
    request(spans).encode_to_vec()
}

fn request(spans: Vec<Span>) -> ExportTraceServiceRequest {
    let scope_spans = vec![ScopeSpans { spans, ..ScopeSpans::default() }];
    ExportTraceServiceRequest { resource_spans: vec![ResourceSpans { scope_spans, ..ResourceSpans::default() }] }
}

fn endpoints(addresses: &[SocketAddr]) -> Arc<[Endpoint]> {
    let endpoint = |address: &SocketAddr| Endpoint::new(address.to_string(), Some(*address));
    let mut endpoints: Vec<Endpoint> = addresses.iter().map(endpoint).collect();
    endpoints.sort_by(|a, b| a.identity.cmp(&b.identity));
    endpoints.into()
}

fn config(grpc: SocketAddr, admin: SocketAddr, backends: &[SocketAddr], extra: ExtraConfig) -> String {
    let hostnames: Vec<String> = backends.iter().map(|backend| format!("\"{backend}\"")).collect();
    let ExtraConfig { grpc: more_grpc, pool, top, http, .. } = extra;
    let http = http.map(|keys| format!(", http: {{ {keys} endpoint: \"127.0.0.1:0\" }}")).unwrap_or_default();
    let deadline = if extra.deadline.is_empty() { "4s" } else { extra.deadline };
    format!(
        "receivers:
  otlp:
    protocols: {{ grpc: {{ {more_grpc} endpoint: \"{grpc}\" }}{http} }}
    deadline: {deadline}
pools:
  tail: {{ {pool} resolver: {{ static: {{ hostnames: [{}] }} }} }}
routes:
  - {{ signals: [traces, logs], routing_key: trace_id, pool: tail }}
admin: {{ endpoint: \"{admin}\" }}
shutdown: {{ delay: 0s, timeout: 5s }}
{top}
",
        hostnames.join(", ")
    )
}
