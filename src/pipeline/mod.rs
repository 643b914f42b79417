//! The core of the proxy: cuts each request into parts, dispatches them and joins their outcomes. Read this first.
//!
//! A [`Request`] arrives complete. The cut uses one view of the pool, which is a table and its queues: every record
//! goes into the part of its owner. Either all parts get room in their owners' queues, or none does. Then `delivery`
//! waits for the outcomes of the parts, places failed parts again if that can help, and joins the outcomes into one
//! [`Outcome`].

mod copies;
mod cut;
mod delivery;
mod metrics;
mod tally;
#[cfg(test)]
mod tests;

use std::{future::Future, sync::Arc};

use arc_swap::ArcSwap;
use tokio::time::Instant;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tonic::Code;

use self::{
    copies::Copies,
    cut::{Arrived, By, Cut},
    delivery::Delivery,
    metrics::SignalMetrics,
    tally::Tally,
};
use crate::{
    budget::Permit,
    codec::{Encoding, Original},
    dispatch::{Dispatch, Join, WhyNotQueued},
    otlp::{ClientConnection, Framed, Metadata, Outcome, Reason, Refusal, Signal},
    places::{self, Place, Places},
    ring::Table,
    route::Moved,
    settings::InvalidTraceIds,
    telemetry::LogLimit,
    wall_clock::Moment,
};

/// An export request from a receiver: complete, inflated and framed, but not parsed.
#[derive(Debug)]
pub struct Request {
    /// The signal, from the request's method or path.
    pub signal: Signal,
    /// The message.
    pub message: Framed,
    /// How it came compressed.
    pub encoding: Option<Encoding>,
    /// The message as it came, if it came compressed and can be passed on.
    pub original: Option<Original>,
    /// The budget share of the message and of its original.
    pub permit: Permit,
    /// The place for its cut, if it is larger than [`places::LONG`].
    pub place: Option<Place>,
    /// The time at which the client must have an answer. The margin is already taken off.
    pub deadline: Instant,
    /// The client connection that it arrived on.
    pub connection: Arc<ClientConnection>,
    /// The headers that are forwarded to backends.
    pub metadata: Option<Arc<Metadata>>,
}

/// The interface that receivers call: implemented by the pipeline, and by tests' stand-ins.
pub trait Export: Send + Sync + 'static {
    /// Returns why requests of this signal are refused, whatever they hold. It is asked before a body is read, so that a
    /// refusal of that kind costs neither memory nor time, and is never hidden by one that invites to try again.
    fn takes(&self, signal: Signal) -> Result<(), Refusal> {
        let _any = signal;
        Ok(())
    }

    /// Delivers a request and returns its outcome.
    ///
    /// Cancel safety: a receiver drops the future when the client is gone. Parts that were not sent yet are then
    /// dropped and counted.
    fn export(&self, request: Request) -> impl Future<Output = Outcome> + Send;
}

/// Turns requests into outcomes, with the current routes.
#[derive(Debug)]
pub struct Pipeline {
    /// The places for cutting large parts again. They are not those of requests, since a part that has to go elsewhere must
    /// not wait behind new requests.
    places: Places,
    /// Replaced as a whole. A request uses the routes that were current when it arrived.
    routes: ArcSwap<Routes>,
    /// Bounds the log lines about defects.
    defects: LogLimit,
}

/// The routes of all signals, as one snapshot.
#[derive(Debug)]
pub struct Routes {
    invalid_trace_id: InvalidTraceIds,
    by_signal: [Option<Arc<Route>>; Signal::ALL.len()],
}

/// The route of one signal.
#[derive(Debug)]
struct Route {
    /// How records are handled whose trace ID is invalid.
    invalid_trace_id: InvalidTraceIds,
    pool: String,
    dispatch: Arc<Dispatch>,
    metrics: SignalMetrics,
    /// Marks the pool as in use as long as it lives.
    _user: Option<TaskTrackerToken>,
}

impl Routes {
    /// Creates an empty set of routes: every signal is answered with `UNIMPLEMENTED`.
    pub fn new(invalid_trace_id: InvalidTraceIds) -> Self {
        Self { invalid_trace_id, by_signal: Default::default() }
    }

    /// Routes `signal` to `pool`, which `dispatch` delivers to.
    #[must_use]
    pub fn with(mut self, signal: Signal, pool: &str, dispatch: Arc<Dispatch>) -> Self {
        self.add(signal, pool, dispatch, None);
        self
    }

    /// Routes `signal` to `pool`. `user` is kept until these routes are replaced and the last request that used them is
    /// answered.
    pub fn add(&mut self, signal: Signal, pool: &str, dispatch: Arc<Dispatch>, user: Option<TaskTrackerToken>) {
        if let Some(route) = self.by_signal.get_mut(signal.index()) {
            let metrics = SignalMetrics::new(pool, signal);
            *route = Some(Arc::new(Route {
                invalid_trace_id: self.invalid_trace_id,
                pool: pool.to_owned(),
                dispatch,
                metrics,
                _user: user,
            }));
        }
    }

    fn of(&self, signal: Signal) -> Option<&Arc<Route>> {
        self.by_signal.get(signal.index())?.as_ref()
    }
}

impl Pipeline {
    /// Creates a pipeline with these routes. There are as many places for cutting large parts again as the runtime has worker
    /// threads.
    pub fn new(routes: Routes) -> Self {
        let places = Places::as_many_as_workers();
        Self { places, routes: ArcSwap::from_pointee(routes), defects: LogLimit::few() }
    }

    /// Replaces the routes for all requests from now on. Requests in progress keep the previous ones.
    pub fn replace(&self, routes: Routes) {
        self.routes.store(Arc::new(routes));
    }

    fn route(&self, signal: Signal) -> Result<Arc<Route>, Refusal> {
        self.routes.load().of(signal).map_or_else(|| Err(not_routed(signal)), |route| Ok(Arc::clone(route)))
    }

    async fn deliver(&self, request: Request) -> Result<Outcome, Refusal> {
        let route = self.route(request.signal)?;
        let view = route.dispatch.view().ok_or_else(|| not_ready(&route.pool))?;
        let (max, table) = (view.max_request_size(), view.table());
        let Request { signal, message, encoding, original, permit, place, deadline, connection, metadata } = request;
        let arrived = Arrived { signal, message, encoding, original, permit }.passed_on_by(&view);
        let arrival = hands_off(signal, table).then(Moment::now);
        let moved = arrival.map_or(Moved::Immediate, Moved::ByStart);
        let by = By { table, invalid: route.invalid_trace_id.of(signal), moved };
        let cut = || cut::cut(arrived, by, max, &route.metrics);
        let (Cut { parts, copies, records, rejected, permit }, copies_permit) = places::run(place.as_ref(), cut)?;
        drop(place);
        if parts.is_empty() {
            let outcome = Ok(tally::nothing_to_send(rejected));
            route.metrics.note_outcome(records, &outcome);
            return outcome;
        }
        let sent = parts.len();
        let context = Context { deadline, connection, metadata, arrival: arrival.unwrap_or_default() };
        let mut join = Join::carrying(deadline, Arc::clone(&context.connection), context.metadata.clone());
        join.add_cut(sent, permit);
        let tally = Tally::new(records, rejected);
        let mut delivery = Delivery::new(self, &route, join, &parts, &view, tally);
        let outcome = match view.submit(parts, delivery.join()) {
            Ok(()) => {
                let send = |permit| Copies::send(Arc::clone(&route), &view, copies, permit, context);
                delivery.copies = copies_permit.map(send);
                drop(view);
                route.dispatch.retries().earn(sent);
                delivery.finish(deadline).await
            }
            Err(error) => Err(not_queued(view.table(), error.why)),
        };
        route.metrics.note_outcome(records, &outcome);
        outcome
    }
}

/// The facts about a request that its copies need.
struct Context {
    deadline: Instant,
    connection: Arc<ClientConnection>,
    metadata: Option<Arc<Metadata>>,
    /// When it arrived; not set if no hand-off is open.
    arrival: Moment,
}

/// Whether records of this signal may go to previous owners. Only spans have a start that tells where a trace began.
fn hands_off(signal: Signal, table: &Table) -> bool {
    signal == Signal::Traces && !table.history().is_empty()
}

impl Export for Pipeline {
    fn takes(&self, signal: Signal) -> Result<(), Refusal> {
        self.routes.load().of(signal).map_or_else(|| Err(not_routed(signal)), |_route| Ok(()))
    }

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

#[cold]
fn not_routed(signal: Signal) -> Refusal {
    let name = signal.as_str();
    let message = if signal.record_fields().id == 0 {
        format!("{name} are not taken here: they have no trace ID, and only traces and logs can be routed yet")
    } else {
        format!("no route for {name}; add one with signals: [{name}]")
    };
    Refusal::permanent(Code::Unimplemented, Reason::Unimplemented, message)
}

fn not_ready(pool: &str) -> Refusal {
    let message = format!("pool {pool} has no backends yet: discovery has found none");
    Refusal::retryable(Reason::NotReady, message)
}

#[cold]
fn not_queued(table: &Table, why: WhyNotQueued) -> Refusal {
    match why {
        WhyNotQueued::Full(backend) => {
            let backend = table.targets().get(backend as usize).map_or("?", |backend| &*backend.identity);
            Refusal::retryable(Reason::QueueFull, format!("the queue of backend {backend} is full"))
        }
        WhyNotQueued::NoSuchBackend => defect("a part is for a backend that is not in its table"),
    }
}

/// Returns the refusal of a request that met a defect of this program. It is uncertain which records were delivered, so
/// nothing is acknowledged and the client sends the request again.
#[cold]
fn defect(what: &str) -> Refusal {
    Refusal::retryable(Reason::Internal, format!("a defect of the proxy: {what}"))
}
