//! Sends the requests of [`Bodies`] at the configured pace and records the answer to each.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use indicatif::ProgressBar;
use tokio::time::Instant;
use tonic_types::StatusExt;

use super::{
    LoadConfig, LoadError, LoadRun,
    pace::{Ticket, Tickets},
    report::{Ended, FailureKind, Stats},
};
use crate::{
    lifecycle::Tasks,
    otlp::{Signal, outcome::is_retryable},
    settings::OtlpHttp,
    tls,
    tools::{
        h1client,
        h2client::{self, Answer},
        otlp_body::Bodies,
        sink::now_ns,
    },
};

/// Retries like an SDK: up to five attempts; the delay starts at 1 s and grows by half each time, up to 5 s. These are
/// the values of the OTLP exporter in the Java SDK; other SDKs differ little.
const ATTEMPTS: u64 = 5;
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(5);

/// Delay after a refused connection, so that a closed loop does not spin.
const RECONNECT_PAUSE: Duration = Duration::from_millis(20);

struct Shared {
    config: LoadConfig,
    bodies: Arc<Bodies>,
    clients: Vec<Client>,
    tickets: Mutex<Tickets>,
    stats: Mutex<Stats>,
    accepted: Mutex<Vec<Accepted>>,
    failed: Mutex<Vec<Failed>>,
    start: Instant,
    measured_from: Instant,
    tasks: Tasks,
}

/// A connection.
enum Channel {
    Grpc(h2client::Channel),
    Http(h1client::Channel),
}

/// A connection with its timeout.
struct Client {
    channel: Channel,
    /// Index of the timeout in `LoadConfig::timeouts`.
    timeout: usize,
}

/// An acknowledged request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Ticket of the request.
    pub ticket: u64,
    /// Number of its spans that `partial_success` rejected.
    pub rejected: u64,
    /// Number of attempts.
    pub attempts: u64,
    /// When it was first sent, in nanoseconds since 1970.
    pub sent: u64,
    /// When it was acknowledged, in nanoseconds since 1970.
    pub answered: u64,
}

/// A request that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// Ticket of the request.
    pub ticket: u64,
    /// When it was first sent, in nanoseconds since 1970.
    pub sent: u64,
    /// When it was given up, in nanoseconds since 1970.
    pub answered: u64,
    /// Whether the status allows the client to send the request again (OTLP's retryable codes).
    pub is_retryable: bool,
    /// Timeout of each attempt.
    pub timeout: Duration,
    /// Kind of the last attempt's failure.
    pub kind: FailureKind,
    /// Description of the last attempt's failure.
    pub answer: String,
}

/// Sends load until the run is over or `tasks` drain.
///
/// Cancel safety: if the future is dropped, the workers continue until `tasks` drain, and the report is lost.
pub async fn run(config: LoadConfig, progress: &ProgressBar, tasks: &Tasks) -> Result<LoadRun, LoadError> {
    config.check()?;
    let spec = config.body;
    let bodies = tokio::task::spawn_blocking(move || Bodies::generate(spec)).await??;
    let bodies = Arc::new(bodies);
    let clients = connect(&config, tasks).await?;
    let (start, began) = (Instant::now(), now_ns());
    let shared = Arc::new(Shared {
        tickets: Mutex::new(Tickets::new(config.pace, config.until, spec.spread as u64, start)),
        stats: Mutex::new(Stats::new(&spec, bodies.len(), &config.timeouts)?),
        accepted: Mutex::default(),
        failed: Mutex::default(),
        start,
        measured_from: start + config.warmup,
        bodies: Arc::clone(&bodies),
        clients,
        tasks: tasks.clone(),
        config,
    });
    let workers: Vec<_> = (0..shared.config.in_flight).map(|_| tasks.spawn(work(Arc::clone(&shared)))).collect();
    for worker in workers {
        watch(worker, &shared, progress, start).await?;
    }
    progress.finish_and_clear();
    let report = lock(&shared.stats).finish(shared.measured_from.elapsed());
    let accepted = std::mem::take(&mut *lock(&shared.accepted));
    let sent = lock(&shared.tickets).taken();
    let failed = std::mem::take(&mut *lock(&shared.failed));
    Ok(LoadRun { report, bodies, accepted, failed, sent, began })
}

/// Opens the connections. Each endpoint gets at least one connection for each timeout, so that every endpoint has
/// clients of all timeouts.
async fn connect(config: &LoadConfig, tasks: &Tasks) -> Result<Vec<Client>, LoadError> {
    let tls = config.tls.clone().map(|tls| tls::Client::load("load", tls)).transpose()?;
    let (endpoints, timeouts) = (config.endpoints.len(), config.timeouts.len());
    let mut clients = Vec::new();
    for (n, endpoint) in config.endpoints.iter().cycle().take(config.connections.max(endpoints * timeouts)).enumerate()
    {
        let timeout = n / endpoints % timeouts;
        let channel = Channel::new(config, endpoint, config.timeout(timeout), tls.clone(), tasks)
            .map_err(|source| LoadError::Endpoint { endpoint: endpoint.clone(), source })?;
        channel.connect().await.map_err(LoadError::Connect)?;
        clients.push(Client { channel, timeout });
    }
    Ok(clients)
}

/// Waits for a worker to end and updates the progress bar meanwhile.
async fn watch(
    mut worker: tokio::task::JoinHandle<()>,
    shared: &Shared,
    progress: &ProgressBar,
    start: Instant,
) -> Result<(), LoadError> {
    loop {
        match tokio::time::timeout(Duration::from_millis(200), &mut worker).await {
            Ok(joined) => return joined.map_err(LoadError::from),
            Err(_elapsed) => {
                let seconds = start.elapsed();
                progress.set_position(u64::try_from(seconds.as_millis()).unwrap_or(u64::MAX));
                progress.set_message(format!("{} spans", super::grouped(lock(&shared.stats).spans_acknowledged())));
            }
        }
    }
}

async fn work(shared: Arc<Shared>) {
    while let Some(ticket) = shared.next() {
        if ticket.due > Instant::now() {
            tokio::select! {
                () = tokio::time::sleep_until(ticket.due) => {}
                () = shared.tasks.drained() => return,
            }
        }
        shared.send(ticket).await;
    }
}

impl Channel {
    fn new(
        config: &LoadConfig,
        endpoint: &str,
        timeout: Duration,
        tls: Option<tls::Client>,
        tasks: &Tasks,
    ) -> Result<Self, ::http::Error> {
        let compression = config.body.compression;
        if config.http {
            let paths = OtlpHttp::default();
            let (_, path) = paths.path(Signal::Traces);
            return h1client::Channel::new(endpoint, path, compression, timeout, tasks).map(Self::Http);
        }
        let path = Signal::Traces.grpc_path();
        h2client::Channel::new(endpoint, path, compression, timeout, tls, tasks).map(Self::Grpc)
    }

    async fn connect(&self) -> Result<(), String> {
        match self {
            Self::Grpc(channel) => channel.connect().await,
            Self::Http(channel) => channel.connect().await,
        }
    }

    /// Returns whether a request can be sent at once.
    fn is_free(&self) -> bool {
        match self {
            Self::Grpc(_) => true,
            Self::Http(channel) => channel.is_free(),
        }
    }

    async fn call(&self, message: Bytes) -> Answer {
        match self {
            Self::Grpc(channel) => channel.call(message).await,
            Self::Http(channel) => channel.call(message).await,
        }
    }
}

impl Shared {
    fn next(&self) -> Option<Ticket> {
        let mut tickets = lock(&self.tickets);
        if self.tasks.is_draining() {
            tickets.end();
        }
        tickets.take(Instant::now())
    }

    async fn send(&self, ticket: Ticket) {
        let sent = now_ns();
        let body = self.bodies.compose(ticket.number, Some(Duration::from_nanos(sent)));
        let Some(client) = self.client(ticket.number) else { return };
        let mut attempts = 1;
        let answer = loop {
            let answer = client.channel.call(body.clone()).await;
            match self.config.retry.then(|| backoff(&answer, attempts)).flatten() {
                Some(backoff) if attempts < ATTEMPTS => tokio::time::sleep(backoff).await,
                _ => break answer,
            }
            attempts += 1;
        };
        self.record(ticket, client, &answer, attempts, sent);
        if matches!(answer, Answer::NoConnection(_)) {
            tokio::time::sleep(RECONNECT_PAUSE).await;
        }
    }

    /// Returns the connection for a ticket. Consecutive tickets use different connections, so the batches of a trace do too.
    /// A ticket whose connection is busy takes the next free one, if there is one.
    fn client(&self, ticket: u64) -> Option<&Client> {
        let n = usize::try_from(ticket % (self.clients.len().max(1) as u64)).ok()?;
        let (before, from) = self.clients.split_at_checked(n)?;
        from.iter().chain(before).find(|client| client.channel.is_free()).or(from.first())
    }

    fn record(&self, ticket: Ticket, client: &Client, answer: &Answer, attempts: u64, sent: u64) {
        if ticket.due >= self.measured_from {
            lock(&self.stats).record(Ended {
                answer,
                retries: attempts - 1,
                latency: ticket.due.elapsed(),
                at: self.start.elapsed(),
                timeout: client.timeout,
            });
        }
        match (FailureKind::of(answer), answer) {
            (None, Answer::Accepted { rejected }) if self.config.keep_accepted => {
                let (ticket, rejected, answered) = (ticket.number, *rejected, now_ns());
                lock(&self.accepted).push(Accepted { ticket, rejected, attempts, sent, answered });
            }
            (Some(kind), _) => {
                tracing::debug!(ticket = ticket.number, %answer, "request failed");
                if self.config.keep_accepted {
                    let is_retryable = matches!(answer, Answer::Status(_)) && backoff(answer, attempts).is_some();
                    let timeout = self.config.timeout(client.timeout);
                    let (ticket, answered, answer) = (ticket.number, now_ns(), answer.to_string());
                    lock(&self.failed).push(Failed { ticket, sent, answered, is_retryable, timeout, kind, answer });
                }
            }
            _ => {}
        }
    }
}

/// Returns how long an SDK waits before it retries; `None` if it does not retry.
fn backoff(answer: &Answer, attempt: u64) -> Option<Duration> {
    let after = match answer {
        Answer::Accepted { .. } => return None,
        Answer::Status(status) => {
            let after = status.get_details_retry_info().and_then(|info| info.retry_delay);
            if !is_retryable(status.code(), after.is_some()) {
                return None;
            }
            after
        }
        Answer::NoConnection(_) | Answer::Lost(_) | Answer::TimedOut => None,
    };
    let grown = FIRST_BACKOFF.mul_f64(1.5_f64.powi(i32::try_from(attempt.saturating_sub(1)).unwrap_or(0)));
    Some(after.unwrap_or_else(|| grown.min(MAX_BACKOFF).mul_f64(0.8 + 0.4 * fastrand::f64())))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use tonic::{Code, Status};
    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn an_sdk_retries_what_otlp_calls_retryable() {
        let status = |status: Status| Answer::Status(Box::new(status));
        assert!(backoff(&status(Status::unavailable("")), 1).is_some());
        assert!(backoff(&status(Status::invalid_argument("")), 1).is_none());
        assert!(backoff(&status(Status::resource_exhausted("")), 1).is_none());
        let details = ErrorDetails::with_retry_info(Some(Duration::from_secs(3)));
        let hinted = Status::with_error_details(Code::ResourceExhausted, "", details);
        assert_eq!(backoff(&status(hinted), 1), Some(Duration::from_secs(3)));
        assert!(backoff(&Answer::TimedOut, 1).unwrap() >= Duration::from_millis(800));
        assert!(backoff(&Answer::TimedOut, 40).unwrap() <= Duration::from_secs(6));
    }
}
