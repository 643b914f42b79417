//! The heart: admit → split → route → dispatch → join. Read this first.
//!
//! A [`Request`] comes in whole. One view of the pool, a table and its queues, serves the cut: every record meets its
//! owner's part. All parts get room in their owners' queues, or none does. Then `delivery` waits for what becomes of
//! them, places again what failed and can be helped, and joins the rest into one [`Outcome`].

mod cut;
mod delivery;
mod held;
mod metrics;
mod tally;
#[cfg(test)]
mod tests;

use std::{future::Future, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use tokio::time::Instant;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tonic::Code;

use self::{cut::Cut, delivery::Delivery, metrics::SignalMetrics, tally::Tally};
use crate::{
    budget::{Budget, Permit},
    dispatch::{Dispatch, Join, WhyNotQueued},
    otlp::{ClientConnection, Framed, Metadata, Outcome, Reason, Refusal, Signal},
    ring::Table,
    settings::InvalidTraceIds,
    telemetry::LogLimit,
};

/// An export request as a receiver hands it over: read whole, inflated, framed, not looked at.
#[derive(Debug)]
pub struct Request {
    /// The signal of the method or path that it came by.
    pub signal: Signal,
    /// The message.
    pub message: Framed,
    /// What its bytes hold of the memory budget.
    pub permit: Permit,
    /// When its client is to have an answer: the margin is already taken off.
    pub deadline: Instant,
    /// The connection it came by.
    pub connection: Arc<ClientConnection>,
    /// What of its headers goes on to backends.
    pub metadata: Option<Arc<Metadata>>,
}

/// What receivers call: the pipeline, or a test's stand-in.
pub trait Export: Send + Sync + 'static {
    /// Delivers a request and says what became of it.
    ///
    /// Cancel safety: dropping the future is how a receiver says that its client is gone; what was not sent yet is then
    /// dropped and counted.
    fn export(&self, request: Request) -> impl Future<Output = Outcome> + Send;
}

/// How requests are treated, whatever their route.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// What happens to records whose trace ID no backend can hold.
    pub invalid_trace_id: InvalidTraceIds,
}

/// Routes and bounds: what turns a request into an outcome.
#[derive(Debug)]
pub struct Pipeline {
    budget: Budget,
    /// Replaced whole: a request goes by the routes that it met.
    routes: ArcSwap<Routes>,
    /// When a defect was logged last.
    defects: LogLimit,
}

/// The ways of all signals at one moment.
#[derive(Debug)]
pub struct Routes {
    config: Config,
    by_signal: [Option<Arc<Route>>; Signal::ALL.len()],
}

/// The way of one signal.
#[derive(Debug)]
struct Route {
    config: Config,
    pool: String,
    dispatch: Arc<Dispatch>,
    metrics: SignalMetrics,
    /// Says for as long as it lives that the pool is in use.
    _user: Option<TaskTrackerToken>,
}

impl Routes {
    /// No routes: every signal is answered `UNIMPLEMENTED`.
    pub fn new(config: Config) -> Self {
        Self { config, by_signal: Default::default() }
    }

    /// Sends `signal` to `pool`, which `dispatch` delivers to.
    #[must_use]
    pub fn with(mut self, signal: Signal, pool: &str, dispatch: Arc<Dispatch>) -> Self {
        self.add(signal, pool, dispatch, None);
        self
    }

    /// The same; `user` is kept until these routes were replaced and the last request that went this way is answered.
    pub fn add(&mut self, signal: Signal, pool: &str, dispatch: Arc<Dispatch>, user: Option<TaskTrackerToken>) {
        if let Some(route) = self.by_signal.get_mut(signal.index()) {
            let metrics = SignalMetrics::new(pool, signal);
            *route = Some(Arc::new(Route {
                config: self.config.clone(),
                pool: pool.to_owned(),
                dispatch,
                metrics,
                _user: user,
            }));
        }
    }
}

impl Pipeline {
    /// A pipeline that takes memory from `budget`.
    pub fn new(routes: Routes, budget: Budget) -> Self {
        Self { budget, routes: ArcSwap::from_pointee(routes), defects: LogLimit::few() }
    }

    /// Routes that hold for every request from now on; those in hand go on as they began.
    pub fn replace(&self, routes: Routes) {
        self.routes.store(Arc::new(routes));
    }

    fn route(&self, signal: Signal) -> Result<Arc<Route>, Refusal> {
        self.routes.load().by_signal.get(signal.index()).and_then(Clone::clone).ok_or_else(|| {
            let name = signal.as_str();
            let message = if signal.record_fields().id == 0 {
                format!("{name} are not taken here: they have no trace ID, and only traces and logs can be routed yet")
            } else {
                format!("no route for {name}; add one with signals: [{name}]")
            };
            Refusal::permanent(Code::Unimplemented, Reason::Unimplemented, message)
        })
    }

    async fn deliver(&self, request: Request) -> Result<Outcome, Refusal> {
        let route = self.route(request.signal)?;
        let view = route.dispatch.view().ok_or_else(|| not_ready(&route.pool))?;
        let (max, table) = (view.max_request_size(), view.table());
        let Cut { parts, records, rejected, permit } =
            cut::cut(request.signal, request.message, request.permit, table, max, &route.config, &route.metrics)?;
        if parts.is_empty() {
            let outcome = Ok(tally::nothing_to_send(rejected));
            route.metrics.note_outcome(records, &outcome);
            return outcome;
        }
        let join = Join::carrying(request.deadline, request.connection, request.metadata);
        join.hold(permit);
        let tally = Tally::new(records, rejected);
        let sent = parts.len();
        let delivery = Delivery::new(self, &route, join, &parts, &view, tally);
        let outcome = match view.submit(parts, delivery.join()) {
            Ok(()) => {
                drop(view);
                route.dispatch.retries().earn(sent);
                delivery.finish(request.deadline).await
            }
            Err(error) => Err(not_queued(view.table(), error.why)),
        };
        route.metrics.note_outcome(records, &outcome);
        outcome
    }
}

impl Export for Pipeline {
    async fn export(&self, request: Request) -> Outcome {
        let outcome = self.deliver(request).await.unwrap_or_else(Outcome::Refused);
        if let Outcome::Refused(refusal) = &outcome
            && refusal.reason == Reason::Internal
            && let Some(unlogged) = self.defects.admit()
        {
            let message = &*refusal.message;
            tracing::error!(message, unlogged, "a request was refused instead of acknowledged; please report this");
        }
        outcome
    }
}

fn not_ready(pool: &str) -> Refusal {
    let message = format!("pool {pool} has no backends yet: discovery has found none");
    Refusal::retryable(Reason::NotReady, retry_delay(), message)
}

#[cold]
fn not_queued(table: &Table, why: WhyNotQueued) -> Refusal {
    match why {
        WhyNotQueued::Full(backend) => {
            let backend = table.backends().get(backend as usize).map_or("?", |backend| &*backend.identity);
            Refusal::retryable(Reason::QueueFull, retry_delay(), format!("the queue of backend {backend} is full"))
        }
        WhyNotQueued::NoSuchBackend => defect("a part is for a backend that is not in its table"),
    }
}

/// The refusal of a request that met a defect of ours. It is not certain what was delivered of it and what was not, so that
/// nothing is acknowledged, and the client is to send it again.
#[cold]
fn defect(what: &str) -> Refusal {
    Refusal::retryable(Reason::Internal, retry_delay(), format!("a defect of the proxy: {what}"))
}

/// When a refused client should come again: 1 to 5 s, jittered so that clients do not come back together.
pub fn retry_delay() -> Duration {
    Duration::from_millis(fastrand::u64(1_000..=5_000))
}
