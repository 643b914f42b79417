//! The exchange of a request for its outcome, which is the same at every door: the body is read within the limits and
//! the memory account, inflated, and delivered by the pipeline.
//!
//! A door (`grpc` or `http`) parses the headers into an [`Order`], passes it here, and writes the outcome as its protocol
//! has it. So limits, deadlines, counts and refusals do not differ between the doors.

use std::{
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use http_body::Body;
use tokio::time::{Instant, timeout_at};
use tonic::Code;

use super::{
    body::{self, BodyError, Framing, Received},
    connection::Connection,
    discard,
    metrics::ReceiverMetrics,
    refusal::{Bound, refusal_of_body},
    transcode::transcode,
    unpack::{Unpacked, Waiting, unpack},
};
use crate::{
    budget::{Budget, Permit},
    codec::Encoding,
    lifecycle::{INSTANCE_HEADER, Tasks, instance},
    otlp::{
        ClientConnection, Metadata, Outcome, Reason, Refusal, Signal,
        metadata::{TooMuch, hops},
    },
    pipeline::{Export, Request},
    places::Places,
};

/// The least margin that is taken off a deadline so that the answer still arrives in time. The margin is 5 %, but at
/// least this.
const LEAST_MARGIN: Duration = Duration::from_millis(100);

/// What the doors share.
pub(super) struct Exchange<E> {
    export: Arc<E>,
    budget: Budget,
    metrics: ReceiverMetrics,
    places: Places,
    tasks: Tasks,
}

/// The limits of a door that apply to a new request.
#[derive(Clone, Debug)]
pub(super) struct Limits {
    /// The largest message, in bytes, before and after it is inflated.
    pub(super) max_size: usize,
    /// The key that sets it.
    pub(super) max_size_key: &'static str,
    /// The time within which a request is answered.
    pub(super) deadline: Duration,
    /// The names of the headers that are forwarded to backends; `None` if there are none.
    pub(super) include_metadata: Option<Arc<[HeaderName]>>,
}

/// The parsed headers of a request.
pub(super) struct Order {
    /// How the message lies in the body.
    pub(super) framing: Framing,
    /// How it is compressed.
    pub(super) encoding: Option<Encoding>,
    /// Whether the message is JSON.
    pub(super) is_json: bool,
    /// When the client must have an answer.
    pub(super) deadline: Instant,
    /// The headers that are forwarded to backends.
    pub(super) metadata: Option<Arc<Metadata>>,
}

// === impl Limits ===

impl Limits {
    /// Returns the limits of a door. `names` are the headers that are forwarded.
    pub(super) fn new(max_size: usize, max_size_key: &'static str, deadline: Duration, names: &[HeaderName]) -> Self {
        Self { max_size, max_size_key, deadline, include_metadata: (!names.is_empty()).then(|| names.into()) }
    }

    /// Returns the deadline of a request that came at `now`. `timeout` is what its client sets.
    pub(super) fn deadline(&self, now: Instant, timeout: Option<Duration>) -> Instant {
        now + less_margin(timeout.map_or(self.deadline, |timeout| timeout.min(self.deadline)))
    }

    /// Returns the headers that are forwarded.
    pub(super) fn metadata(
        &self,
        headers: &HeaderMap,
        connection: &Connection,
    ) -> Result<Option<Arc<Metadata>>, Refusal> {
        match &self.include_metadata {
            None if hops(headers) == 0 => Ok(None),
            names => connection.client.metadata(names.as_deref().unwrap_or_default(), headers).map_err(too_much),
        }
    }
}

/// Takes the margin off a time limit. The margin is at most half of it, so that a short limit stays usable.
fn less_margin(time: Duration) -> Duration {
    time - (time / 20).max(LEAST_MARGIN).min(time / 2)
}

#[cold]
fn too_much(error: TooMuch) -> Refusal {
    Refusal::permanent(Code::ResourceExhausted, Reason::TooLarge, error.to_string())
}

/// The number of proxies of this kind that a request may have passed through: enough for sidecar, agent, gateway and front
/// tier. Proxies that are in each other's pools pass a request on until this number is reached.
const MOST_HOPS: u8 = 4;

/// Refuses a request that this process sent itself, and one that proxies of this kind pass on to each other.
pub(super) fn check_loop(headers: &HeaderMap) -> Result<(), Refusal> {
    let refused = |message: &str| Err(Refusal::permanent(Code::FailedPrecondition, Reason::Loop, message));
    if headers.get(INSTANCE_HEADER).is_some_and(|caller| caller.as_bytes() == instance().as_bytes()) {
        return refused(
            "this proxy sent the request to itself: its pool contains its own address; remove that address from the pool",
        );
    }
    if hops(headers) >= MOST_HOPS {
        return refused(
            "the request passed through 4 other Spanrings: some have each other in their pools; let the pools contain \
             collectors only",
        );
    }
    Ok(())
}

// === impl Exchange ===

impl<E: Export> Exchange<E> {
    /// Creates an exchange that delivers to `export` and takes memory from `budget`. The rest of a refused request's body
    /// is read on `tasks`.
    pub(super) fn new(export: Arc<E>, budget: Budget, tasks: &Tasks) -> Self {
        Self {
            export,
            budget,
            metrics: ReceiverMetrics::new(),
            places: Places::as_many_as_workers(),
            tasks: tasks.clone(),
        }
    }

    /// Returns the account that requests are taken from.
    pub(super) fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Returns the places of large requests.
    pub(super) fn places(&self) -> Places {
        self.places.clone()
    }

    /// Returns the state of a new client connection.
    pub(super) fn connection(&self) -> Arc<Connection> {
        Arc::new(Connection::new(&self.budget))
    }

    /// Reads and delivers a request that arrived at `started`. Returns `None` if the client left before its body had
    /// ended, so that nobody waits for the answer.
    ///
    /// Cancel safety: HTTP drops the future when the client is gone. This drops the export future too.
    pub(super) async fn outcome<B>(
        &self,
        signal: Signal,
        started: Instant,
        order: Result<Order, Refusal>,
        limits: &Limits,
        body: &mut B,
        connection: &Connection,
    ) -> Option<Outcome>
    where
        B: Body<Data = Bytes> + Send + Unpin,
    {
        let in_flight = self.metrics.of(signal).begin(started);
        let outcome = match self.export.takes(signal).and(order) {
            Ok(order) => CatchPanic(pin!(self.deliver(signal, order, limits, body, connection))).await?,
            Err(refusal) => Outcome::Refused(refusal),
        };
        in_flight.answered(&outcome);
        Some(outcome)
    }

    /// Returns the outcome of a request whose stream or connection there is no memory for. If it could never be taken, that
    /// is its outcome. The signal is `None` if the request names none.
    pub(super) fn without_room(&self, signal: Option<Signal>) -> Outcome {
        let refusal =
            Refusal::retryable(Reason::Budget, "no memory is left for further requests of clients; retry later");
        match signal {
            Some(signal) => {
                let outcome = Outcome::Refused(self.export.takes(signal).err().unwrap_or(refusal));
                self.metrics.of(signal).begin(Instant::now()).answered(&outcome);
                outcome
            }
            None => {
                self.note_unrouted(&refusal);
                Outcome::Refused(refusal)
            }
        }
    }

    /// Counts a refused request whose signal is unknown.
    pub(super) fn note_unrouted(&self, refusal: &Refusal) {
        self.metrics.refused_unrouted(refusal.reason);
    }

    /// Returns the refusal of a request whose client left before its body had ended.
    pub(super) fn gone(&self, limits: &Limits) -> Refusal {
        refusal_of_body(BodyError::Gone, Bound::of(limits, &self.budget))
    }

    /// Reads and drops the rest of a body that was answered before its end.
    pub(super) fn discard<B>(&self, body: B, limits: &Limits)
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
    {
        discard::rest(body, limits.max_size, &self.budget, &self.tasks);
    }

    /// Reads, inflates and exports one request. Returns `None` if the client left before its body had ended.
    async fn deliver<B>(
        &self,
        signal: Signal,
        order: Order,
        limits: &Limits,
        body: &mut B,
        connection: &Connection,
    ) -> Option<Outcome>
    where
        B: Body<Data = Bytes> + Send + Unpin,
    {
        let bound = Bound::of(limits, &self.budget);
        let received = match self.read(body, &order, bound, connection.portion.permit()).await {
            Ok(Ok(received)) => received,
            Ok(Err(BodyError::Gone)) => return None,
            Ok(Err(error)) => return Some(Outcome::Refused(refusal_of_body(error, bound))),
            Err(refusal) => return Some(Outcome::Refused(refusal)),
        };
        let wire = received.chunks.iter().map(Bytes::len).sum();
        let waiting = Waiting { places: &self.places, connection, deadline: order.deadline };
        let unpacked = match unpack(received, order.encoding, bound, waiting).await {
            Ok(unpacked) => unpacked,
            Err(refusal) => return Some(Outcome::Refused(refusal)),
        };
        self.metrics.of(signal).read(wire, unpacked.message.payload_len());
        let Unpacked { message, encoding, original, permit, place } = if order.is_json {
            let waiting = Waiting { places: &self.places, connection, deadline: order.deadline };
            // It is boxed, so that it does not make the futures of other requests larger.
            match Box::pin(transcode(signal, unpacked, bound, waiting)).await {
                Ok(converted) => converted,
                Err(refusal) => return Some(Outcome::Refused(refusal)),
            }
        } else {
            unpacked
        };
        let Order { deadline, metadata, .. } = order;
        let connection: Arc<ClientConnection> = Arc::clone(&connection.client);
        let request = Request { signal, message, encoding, original, permit, place, deadline, connection, metadata };
        Some(self.export.export(request).await)
    }

    /// Reads the message. A timer is created only if the body did not arrive together with the headers, as it usually
    /// does.
    async fn read<B>(
        &self,
        body: &mut B,
        order: &Order,
        bound: Bound,
        permit: Permit,
    ) -> Result<Result<Received, BodyError>, Refusal>
    where
        B: Body<Data = Bytes> + Send + Unpin,
    {
        let mut reading = pin!(body::read(body, order.framing, bound.bytes, permit));
        let at_once = poll_fn(|context| Poll::Ready(reading.as_mut().poll(context))).await;
        if let Poll::Ready(received) = at_once {
            return Ok(received);
        }
        timeout_at(order.deadline, reading)
            .await
            .map_err(|_| Refusal::retryable(Reason::Deadline, "the request did not arrive within its deadline"))
    }
}

/// Turns a panic in a delivery into a refusal that the client may retry, so that the process and its other requests are
/// not affected.
struct CatchPanic<'a, F>(Pin<&'a mut F>);

impl<F: Future<Output = Option<Outcome>>> Future for CatchPanic<'_, F> {
    type Output = Option<Outcome>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // A future that panicked is not polled again, so its inconsistent state cannot be observed.
        catch_unwind(AssertUnwindSafe(|| self.0.as_mut().poll(context))).unwrap_or_else(|_| {
            let message = "internal error of the proxy; the request may be sent again";
            Poll::Ready(Some(Outcome::Refused(Refusal::retryable(Reason::Internal, message))))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_margin_is_taken_off_every_deadline() {
        assert_eq!(less_margin(Duration::from_secs(8)), Duration::from_millis(7_600));
        assert_eq!(less_margin(Duration::from_secs(1)), Duration::from_millis(900));
        assert_eq!(less_margin(Duration::from_millis(100)), Duration::from_millis(50));
        assert_eq!(less_margin(Duration::ZERO), Duration::ZERO);
    }
}
