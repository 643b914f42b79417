//! What is observed while a proxy is attacked: a good client, probes of `/livez`, and the memory of the process. The bench
//! `faults` uses this module, too.

use std::{
    fs,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use futures_util::{StreamExt, stream::FuturesUnordered};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTraceServiceRequest, trace_service_client::TraceServiceClient},
    trace::v1::{ResourceSpans, ScopeSpans, Span},
};
use tokio::time::{Instant, MissedTickBehavior};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt;

use crate::harness::http_get;

/// The interval between two requests of the good client.
const PACE: Duration = Duration::from_millis(20);

/// The time after which the good client gives a request up, like an SDK.
const DEADLINE: Duration = Duration::from_secs(10);

/// The number of spans in each request of the good client, each of a trace of its own.
const SPANS: u64 = 20;

/// The interval between two probes, and the time within which a kubelet expects an answer.
const PROBES: Duration = Duration::from_millis(250);
pub(crate) const PROBE_LIMIT: Duration = Duration::from_secs(1);

/// The interval between two looks at the memory of the proxy.
const LOOKS: Duration = Duration::from_millis(20);

/// A good client, probes and a look at the memory of the proxy, each on a thread of its own until [`Beside::end`].
pub(crate) struct Beside {
    stop: Arc<AtomicBool>,
    client: JoinHandle<Result<Served>>,
    probes: JoinHandle<Probes>,
    memory: JoinHandle<Result<Memory>>,
}

/// What was observed.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) served: Served,
    pub(crate) probes: Probes,
    pub(crate) memory: Memory,
}

/// How the good client was served.
#[derive(Debug, Default)]
pub(crate) struct Served {
    /// How long each request took, whatever its answer.
    took: Vec<Duration>,
    /// The number of requests refused with RetryInfo.
    refused: usize,
    /// All other failures.
    pub(crate) lost: Vec<String>,
}

/// How probes were answered.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Probes {
    pub(crate) asked: usize,
    pub(crate) failed: usize,
    pub(crate) late: usize,
    pub(crate) slowest: Duration,
}

/// The memory of a process in KiB.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    /// The resident set.
    pub(crate) resident: u64,
    /// The largest resident set since the process began.
    pub(crate) peak: u64,
    /// The part of the resident set that are pages of files: the binary and its libraries.
    pub(crate) files: u64,
}

// === impl Beside ===

impl Beside {
    /// Starts to observe a proxy.
    pub(crate) fn start(grpc: SocketAddr, admin: SocketAddr, process: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let [for_client, for_probes, for_memory] = [(); 3].map(|()| Arc::clone(&stop));
        Self {
            stop,
            client: std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(export(grpc, &for_client))
            }),
            probes: std::thread::spawn(move || probe(admin, &for_probes)),
            memory: std::thread::spawn(move || watch(process, &for_memory)),
        }
    }

    /// Stops observing, and returns what was seen.
    pub(crate) fn end(self) -> Result<Seen> {
        self.stop.store(true, Relaxed);
        let panicked = |_| anyhow!("a thread beside the attack panicked");
        Ok(Seen {
            served: self.client.join().map_err(panicked)??,
            probes: self.probes.join().map_err(panicked)?,
            memory: self.memory.join().map_err(panicked)??,
        })
    }
}

// === impl Served ===

impl Served {
    pub(crate) fn requests(&self) -> usize {
        self.took.len()
    }

    /// Returns the time within which 99 % of the requests were answered.
    pub(crate) fn p99(&self) -> Duration {
        let mut took = self.took.clone();
        took.sort_unstable();
        took.get(took.len() * 99 / 100).copied().unwrap_or_default()
    }

    /// Returns the percentage of requests that were refused with RetryInfo.
    pub(crate) fn refused_percent(&self) -> f64 {
        let count = |n: usize| f64::from(u32::try_from(n).unwrap_or(u32::MAX));
        100.0 * count(self.refused) / count(self.took.len().max(1))
    }

    fn count(&mut self, took: Duration, answer: Result<(), Status>) {
        self.took.push(took);
        match answer {
            Ok(()) => {}
            Err(status) if status.get_details_retry_info().is_some() => self.refused += 1,
            Err(status) => self.lost.push(format!("{status:?}")),
        }
    }
}

// === impl Memory ===

impl Memory {
    /// Reads the memory of a process.
    pub(crate) fn of(process: u32) -> Result<Self> {
        let status = fs::read_to_string(format!("/proc/{process}/status")).context("the proxy is gone")?;
        let kib = |name| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).context(name)?;
            anyhow::Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()?)
        };
        Ok(Self { resident: kib("VmRSS:")?, peak: kib("VmHWM:")?, files: kib("RssFile:")? })
    }

    /// The resident set in MiB, without pages of files.
    pub(crate) fn own_mib(self) -> u64 {
        self.resident.saturating_sub(self.files) / 1024
    }

    /// The largest resident set in MiB, without pages of files.
    pub(crate) fn own_peak_mib(self) -> u64 {
        self.peak.saturating_sub(self.files) / 1024
    }

    /// The resident set and the largest one, in MiB.
    pub(crate) fn mib(self) -> (u64, u64) {
        (self.resident / 1024, self.peak / 1024)
    }
}

/// Sends a request at each tick, whether or not earlier ones were answered.
async fn export(grpc: SocketAddr, stop: &AtomicBool) -> Result<Served> {
    let client = connect(grpc).await?;
    let (mut served, mut open, mut sent) = (Served::default(), FuturesUnordered::new(), 0);
    let mut ticks = tokio::time::interval(PACE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let ended = stop.load(Relaxed);
        if ended && open.is_empty() {
            return Ok(served);
        }
        tokio::select! {
            _ = ticks.tick() => if !ended {
                open.push(timed(client.clone(), sent));
                sent += SPANS;
            },
            Some((took, answer)) = open.next() => served.count(took, answer),
        }
    }
}

/// Connects a client that gives a request up after [`DEADLINE`].
pub(crate) async fn connect(grpc: SocketAddr) -> Result<TraceServiceClient<Channel>> {
    let endpoint = Endpoint::from_shared(format!("http://{grpc}"))?.timeout(DEADLINE).connect_timeout(DEADLINE);
    Ok(TraceServiceClient::new(endpoint.connect().await?))
}

async fn timed(mut client: TraceServiceClient<Channel>, first: u64) -> (Duration, Result<(), Status>) {
    let begin = Instant::now();
    let answer = client.export(request(first)).await.map(drop);
    (begin.elapsed(), answer)
}

/// Returns a request with [`SPANS`] spans, the first of which has this number.
pub(crate) fn request(first: u64) -> ExportTraceServiceRequest {
    let span = |n: u64| Span {
        trace_id: (u128::from(n) << 64 | u128::from(n + 1)).to_be_bytes().to_vec(),
        span_id: (n + 1).to_be_bytes().to_vec(),
        name: "GET /orders/{id}".to_owned(),
        ..Span::default()
    };
    let scope_spans = vec![ScopeSpans { spans: (first..first + SPANS).map(span).collect(), ..ScopeSpans::default() }];
    ExportTraceServiceRequest { resource_spans: vec![ResourceSpans { scope_spans, ..ResourceSpans::default() }] }
}

/// Requests `/livez` on a new connection each time.
fn probe(admin: SocketAddr, stop: &AtomicBool) -> Probes {
    let (url, mut probes) = (format!("http://{admin}/livez"), Probes::default());
    while !stop.load(Relaxed) {
        let begin = Instant::now();
        let is_well = http_get(&url).is_ok_and(|(status, _)| status == 200);
        let took = begin.elapsed();
        probes.asked += 1;
        probes.failed += usize::from(!is_well);
        probes.late += usize::from(is_well && took > PROBE_LIMIT);
        probes.slowest = probes.slowest.max(took);
        std::thread::sleep(PROBES.saturating_sub(took));
    }
    probes
}

/// Returns the memory of the process at the end, with the largest of what was seen.
fn watch(process: u32, stop: &AtomicBool) -> Result<Memory> {
    let mut largest = 0;
    loop {
        let memory = Memory::of(process)?;
        // The kernel adds to its own peak late, by thread.
        largest = memory.resident.max(memory.peak).max(largest);
        if stop.load(Relaxed) {
            return Ok(Memory { peak: largest, ..memory });
        }
        std::thread::sleep(LOOKS);
    }
}
