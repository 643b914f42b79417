//! Export requests that are written once, before the load begins, so that sending them is cheap.
//!
//! Batches form *groups*. The batches of a group share their traces: each batch has some spans of every trace, like the
//! batches of several services that took part in the same traces. With `unique`, a request is copied before it is sent
//! and its IDs and times are overwritten in place, so that no span is sent twice.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

use super::ids::{MAX_SPANS_PER_TRACE, SpanPosition, TraceKey};
use crate::{
    codec::{self, Encoding},
    otlp::framed::PREFIX_LEN,
    settings::Compression,
};

/// The compression level of requests.
const LEVEL: u32 = 1;

/// Shape and number of the requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BodySpec {
    /// Seed; equal seeds give equal requests.
    pub seed: u64,
    /// Spans in a batch.
    pub spans: usize,
    /// Traces in a batch.
    pub traces: usize,
    /// Number of batches over which the spans of a trace are spread.
    pub spread: usize,
    /// Number of distinct requests to write, if `max_bytes` allows.
    pub bodies: usize,
    /// Upper limit for the memory of all requests together, in bytes.
    pub max_bytes: usize,
    /// Compression of the requests.
    pub compression: Compression,
    /// Whether each request gets new trace IDs on each pass.
    pub unique: bool,
}

impl Default for BodySpec {
    fn default() -> Self {
        Self {
            seed: 1,
            spans: 100,
            traces: default_traces(100),
            spread: 4,
            bodies: 1000,
            max_bytes: 512 << 20,
            compression: Compression::None,
            unique: false,
        }
    }
}

/// Returns the default number of traces in a batch: one for 8 spans and at least 5, but no more than there are spans.
pub fn default_traces(spans: usize) -> usize {
    (spans / 8).max(5).min(spans)
}

/// Reason why no requests could be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// A number that must be at least 1 is 0.
    #[error("spans, traces and spread must be at least 1")]
    Zero,
    /// A batch has more traces than spans.
    #[error("{traces} traces do not fit into {spans} spans a batch; ask for fewer traces")]
    TooManyTraces {
        /// Traces requested.
        traces: usize,
        /// Spans requested.
        spans: usize,
    },
    /// A trace has more spans than a sink can tell apart.
    #[error("{0} spans a trace are more than {MAX_SPANS_PER_TRACE}; ask for more traces a batch or a smaller spread")]
    LongTraces(usize),
    /// A message is too large for a gRPC frame, or cannot be compressed.
    #[error("a request of {0} bytes cannot be framed; ask for fewer spans a batch")]
    TooLarge(usize),
}

/// Position of a span in its request, and its IDs.
#[derive(Clone, Copy, Debug)]
struct Slot {
    offset: u32,
    trace: u32,
    place: SpanPosition,
}

#[derive(Debug)]
struct Body {
    /// The message with gRPC's prefix; compressed unless the run is unique.
    message: Bytes,
    slots: Box<[Slot]>,
}

/// The requests of a run. A *ticket* is the number of a request sent: 0, 1, 2, …; the requests are sent in turn.
#[derive(Debug)]
pub struct Bodies {
    spec: BodySpec,
    bodies: Vec<Body>,
}

impl Bodies {
    /// Writes the requests.
    pub fn generate(spec: BodySpec) -> Result<Self, SpecError> {
        check(&spec)?;
        let mut bodies = Vec::new();
        let mut bytes = 0;
        // Only whole groups, so that each trace is complete after each pass; at least one group.
        let wanted = spec.bodies.max(1).next_multiple_of(spec.spread);
        while bodies.len() < wanted {
            for batch in 0..spec.spread {
                let body = write_body(&spec, bodies.len(), batch)?;
                bytes += body.message.len() + body.slots.len() * size_of::<Slot>();
                bodies.push(body);
            }
            let group = bytes / (bodies.len() / spec.spread);
            if bytes + group > spec.max_bytes {
                break;
            }
        }
        Ok(Self { spec, bodies })
    }

    /// Returns the number of distinct requests.
    pub fn len(&self) -> usize {
        self.bodies.len()
    }

    /// Returns whether there are no requests, which never happens.
    pub fn is_empty(&self) -> bool {
        self.bodies.is_empty()
    }

    /// Returns the specification of the requests.
    pub fn spec(&self) -> &BodySpec {
        &self.spec
    }

    /// Returns the request of a ticket in wire format. In a unique run, `now` (time since 1970) becomes the end time of
    /// each span.
    pub fn compose(&self, ticket: u64, now: Option<Duration>) -> Bytes {
        let (pass, index) = self.split(ticket);
        let Some(body) = self.bodies.get(index) else {
            return Bytes::new();
        };
        if !self.spec.unique {
            return body.message.clone();
        }
        let mut message = BytesMut::from(body.message.as_ref());
        for slot in &body.slots {
            self.patch(&mut message, slot, pass, index, now);
        }
        match self.spec.compression.encoding() {
            None => message.freeze(),
            Some(encoding) => compressed(encoding, &message).unwrap_or_default(),
        }
    }

    /// Returns the trace and the place of each span in the request of a ticket.
    pub fn spans(&self, ticket: u64) -> impl Iterator<Item = (TraceKey, SpanPosition)> + '_ {
        let (pass, index) = self.split(ticket);
        let slots = self.bodies.get(index).map(|body| body.slots.as_ref()).unwrap_or_default();
        slots.iter().map(move |slot| (self.key(pass, index, slot.trace), slot.place))
    }

    fn split(&self, ticket: u64) -> (u64, usize) {
        let n = self.bodies.len().max(1) as u64;
        let pass = if self.spec.unique { ticket / n } else { 0 };
        (pass, usize::try_from(ticket % n).unwrap_or(0))
    }

    fn key(&self, pass: u64, index: usize, trace: u32) -> TraceKey {
        let groups = (self.bodies.len() / self.spec.spread) as u64;
        let group = pass * groups + (index / self.spec.spread) as u64;
        TraceKey::new(self.spec.seed, group * self.spec.traces as u64 + u64::from(trace))
    }

    fn patch(&self, message: &mut [u8], slot: &Slot, pass: u64, index: usize, now: Option<Duration>) {
        let key = self.key(pass, index, slot.trace);
        let Some(span) = message.get_mut(slot.offset as usize..) else {
            return;
        };
        put(span, layout::TRACE_ID, &key.to_bytes());
        put(span, layout::SPAN_ID, &key.span_id(slot.place));
        let parent = SpanPosition { index: 0, ..slot.place };
        put(span, layout::PARENT_ID, &if slot.place.index == 0 { [0; 8] } else { key.span_id(parent) });
        if let Some(now) = now {
            let (start, end) = times(now, slot.place);
            put(span, layout::START, &start.to_le_bytes());
            put(span, layout::END, &end.to_le_bytes());
        }
    }
}

/// Offsets of the fields of a span that are overwritten. These fields come first and have fixed lengths.
mod layout {
    pub(super) const TRACE_ID: usize = 2;
    pub(super) const SPAN_ID: usize = TRACE_ID + 16 + 2;
    pub(super) const PARENT_ID: usize = SPAN_ID + 8 + 2;
    pub(super) const START: usize = PARENT_ID + 8 + 1;
    pub(super) const END: usize = START + 8 + 1;
}

fn put(span: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = span.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}

/// Returns the start and end of a span in nanoseconds: the root takes 50 ms, each further span 0.5 ms less.
fn times(now: Duration, place: SpanPosition) -> (u64, u64) {
    let end = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
    let length = 50_000_000 - u64::from(place.index) * 500_000;
    (end.saturating_sub(length), end)
}

fn check(spec: &BodySpec) -> Result<(), SpecError> {
    if spec.spans == 0 || spec.traces == 0 || spec.spread == 0 {
        return Err(SpecError::Zero);
    }
    if spec.traces > spec.spans {
        return Err(SpecError::TooManyTraces { traces: spec.traces, spans: spec.spans });
    }
    let longest = spec.spans.div_ceil(spec.traces) * spec.spread;
    if longest > MAX_SPANS_PER_TRACE { Err(SpecError::LongTraces(longest)) } else { Ok(()) }
}

/// Returns the place of span `i` of batch `batch` of a group. The span belongs to trace `i % traces`.
fn place(spec: &BodySpec, batch: usize, i: usize) -> SpanPosition {
    let trace = i % spec.traces;
    let per_batch = spec.spans / spec.traces + usize::from(trace < spec.spans % spec.traces);
    let small = |n: usize| u8::try_from(n).unwrap_or(u8::MAX);
    SpanPosition { index: small(batch * per_batch + i / spec.traces), count: small(per_batch * spec.spread) }
}

fn write_body(spec: &BodySpec, index: usize, batch: usize) -> Result<Body, SpecError> {
    let mut random = fastrand::Rng::with_seed(spec.seed ^ (index as u64).wrapping_mul(0x9e37_79b9));
    let now = Duration::from_nanos(1_750_000_000_000_000_000);
    let (mut spans, mut slots, mut span) = (Vec::new(), Vec::with_capacity(spec.spans), Vec::new());
    for i in 0..spec.spans {
        let trace = i % spec.traces;
        let number = (index / spec.spread * spec.traces + trace) as u64;
        let place = place(spec, batch, i);
        span.clear();
        write_span(&mut span, &mut random, TraceKey::new(spec.seed, number), place, now);
        put_message(&mut spans, 2, &span);
        let at = spans.len() - span.len();
        slots.push((at, u32::try_from(trace).unwrap_or(u32::MAX), place));
    }
    let (message, spans_at) = envelope(&mut random, &spans);
    let too_large = || SpecError::TooLarge(message.len());
    let slots: Option<Box<[Slot]>> = slots
        .into_iter()
        .map(|(at, trace, place)| Some(Slot { offset: u32::try_from(at + spans_at).ok()?, trace, place }))
        .collect();
    let framed = frame(0, &message).ok_or_else(too_large)?;
    let message = match spec.compression.encoding().filter(|_| !spec.unique) {
        Some(encoding) => compressed(encoding, &framed).ok_or_else(too_large)?,
        None => framed,
    };
    Ok(Body { slots: slots.ok_or(SpecError::TooLarge(message.len()))?, message })
}

/// Wraps the spans in a resource and a scope; returns the message and the offset of the spans in its gRPC frame.
fn envelope(random: &mut fastrand::Rng, spans: &[u8]) -> (Vec<u8>, usize) {
    let mut scope = Vec::new();
    put_message(&mut scope, 1, b"io.example.http-server");
    put_message(&mut scope, 2, b"1.42.0");
    let mut scope_spans = Vec::with_capacity(spans.len() + 64);
    put_message(&mut scope_spans, 1, &scope);
    let before_spans = scope_spans.len();
    scope_spans.extend_from_slice(spans);

    let mut resource_spans = Vec::with_capacity(scope_spans.len() + 1024);
    put_message(&mut resource_spans, 1, &resource(random));
    put_message(&mut resource_spans, 2, &scope_spans);
    let before_scope = resource_spans.len() - scope_spans.len();
    put_message(&mut resource_spans, 3, b"https://opentelemetry.io/schemas/1.27.0");

    let mut request = Vec::with_capacity(resource_spans.len() + 8);
    put_message(&mut request, 1, &resource_spans);
    let before = request.len() - resource_spans.len();
    (request, PREFIX_LEN + before + before_scope + before_spans)
}

fn resource(random: &mut fastrand::Rng) -> Vec<u8> {
    const SERVICES: [&str; 6] = ["frontend", "cart", "checkout", "payment", "shipping", "recommendation"];
    let service = SERVICES.get(random.usize(..SERVICES.len())).copied().unwrap_or_default();
    let mut resource = Vec::new();
    let pod = format!("{service}-{:08x}-{:05x}", random.u32(..), random.u32(..0xf_ffff));
    let attributes: [(&str, &str); 10] = [
        ("service.name", service),
        ("service.version", "2025.7.1"),
        ("service.instance.id", &format!("{:032x}", random.u128(..))),
        ("deployment.environment.name", "production"),
        ("host.name", &format!("node-{:03}.eu-west-1.example.net", random.u32(..200))),
        ("k8s.namespace.name", "shop"),
        ("k8s.pod.name", &pod),
        ("cloud.region", "eu-west-1"),
        ("telemetry.sdk.language", "go"),
        ("telemetry.sdk.version", "1.38.0"),
    ];
    for (key, value) in attributes {
        put_attribute(&mut resource, 1, key, value);
    }
    resource
}

fn write_span(span: &mut Vec<u8>, random: &mut fastrand::Rng, key: TraceKey, place: SpanPosition, now: Duration) {
    const ROUTES: [&str; 4] = ["/api/v1/cart/{id}", "/api/v1/orders", "/api/v1/products/{id}", "/healthz/deep"];
    let (start, end) = times(now, place);
    let parent = if place.index == 0 { [0; 8] } else { key.span_id(SpanPosition { index: 0, ..place }) };
    let route = ROUTES.get(random.usize(..ROUTES.len())).copied().unwrap_or_default();
    put_message(span, 1, &key.to_bytes());
    put_message(span, 2, &key.span_id(place));
    put_message(span, 4, &parent);
    span.put_u8(7 << 3 | 1);
    span.put_u64_le(start);
    span.put_u8(8 << 3 | 1);
    span.put_u64_le(end);
    put_message(span, 5, format!("GET {route}").as_bytes());
    span.extend_from_slice(&[6 << 3, 2]);
    put_attribute(span, 9, "http.request.method", "GET");
    put_attribute(span, 9, "http.route", route);
    put_attribute(span, 9, "url.path", &format!("/api/v1/items/{:08x}", random.u32(..)));
    put_attribute(span, 9, "server.address", "shop.example.net");
    put_attribute(span, 9, "network.peer.address", &format!("10.{}.{}.7", random.u8(..), random.u8(..)));
    put_attribute(span, 9, "enduser.id", &format!("user-{:08x}", random.u32(..)));
    put_attribute(span, 9, "thread.name", &format!("worker-{}", random.u8(..32)));
    put_attribute(span, 9, "user_agent.original", "okhttp/4.12.0 (shop-android 7.31.0; build 2025)");
    // An empty `status`, and `flags` with the sampled bit.
    span.extend_from_slice(&[15 << 3 | 2, 0, 0x85, 0x01, 1, 1, 0, 0]);
}

fn put_attribute(out: &mut Vec<u8>, field: u8, key: &str, value: &str) {
    let mut any_value = Vec::with_capacity(value.len() + 2);
    put_message(&mut any_value, 1, value.as_bytes());
    let mut pair = Vec::with_capacity(key.len() + any_value.len() + 4);
    put_message(&mut pair, 1, key.as_bytes());
    put_message(&mut pair, 2, &any_value);
    put_message(out, field, &pair);
}

/// Appends a length-delimited field; `field` is at most 15.
fn put_message(out: &mut Vec<u8>, field: u8, value: &[u8]) {
    out.push(field << 3 | 2);
    prost::encoding::encode_varint(value.len() as u64, out);
    out.extend_from_slice(value);
}

fn frame(flag: u8, message: &[u8]) -> Option<Bytes> {
    let len = u32::try_from(message.len()).ok()?;
    let mut framed = BytesMut::with_capacity(PREFIX_LEN + message.len());
    framed.put_u8(flag);
    framed.put_u32(len);
    framed.extend_from_slice(message);
    Some(framed.freeze())
}

fn compressed(encoding: Encoding, framed: &[u8]) -> Option<Bytes> {
    let payload = framed.get(PREFIX_LEN..)?;
    codec::compress(encoding, LEVEL, [payload].into_iter(), payload.len()).ok()
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use prost::Message;

    use super::*;

    fn decode(message: &[u8]) -> ExportTraceServiceRequest {
        ExportTraceServiceRequest::decode(&message[PREFIX_LEN..]).unwrap()
    }

    #[test]
    fn requests_decode_to_the_spans_that_were_declared() {
        for unique in [false, true] {
            let spec = BodySpec { bodies: 12, unique, ..BodySpec::default() };
            let bodies = Bodies::generate(spec).unwrap();
            let mut seen = HashSet::new();
            let passes = if unique { 3 } else { 1 };
            for ticket in 0..12 * passes {
                let request = decode(&bodies.compose(ticket, Some(Duration::from_secs(7))));
                let resource = request.resource_spans[0].resource.as_ref().unwrap();
                assert_eq!(resource.attributes.len(), 10);
                let spans = &request.resource_spans[0].scope_spans[0].spans;
                let found: Vec<_> = spans.iter().map(|s| (s.trace_id.clone(), s.span_id.clone())).collect();
                let declared: Vec<_> = bodies
                    .spans(ticket)
                    .map(|(key, place)| (key.to_bytes().to_vec(), key.span_id(place).to_vec()))
                    .collect();
                assert_eq!(found, declared);
                let traces: HashSet<_> = spans.iter().map(|s| &s.trace_id).collect();
                assert!(traces.len() >= 4, "a batch holds several traces");
                assert!(spans.iter().all(|s| s.attributes.len() == 8 && s.end_time_unix_nano > s.start_time_unix_nano));
                assert!(!unique || spans.iter().all(|s| s.end_time_unix_nano == 7_000_000_000));
                seen.extend(found);
            }
            assert_eq!(seen.len() as u64, 12 * passes * 100, "no span is sent twice");
        }
    }

    #[test]
    fn spans_are_about_400_bytes() {
        let bodies = Bodies::generate(BodySpec { bodies: 4, ..BodySpec::default() }).unwrap();
        let per_span = bodies.compose(0, None).len() / 100;
        assert!((360..=440).contains(&per_span), "{per_span}");
    }

    #[test]
    fn a_trace_is_spread_over_the_batches_of_its_group_and_complete_after_them() {
        let spec = BodySpec { spans: 10, traces: 4, bodies: 8, ..BodySpec::default() };
        let bodies = Bodies::generate(spec).unwrap();
        let mut traces: HashMap<TraceKey, (u64, u8, HashSet<u64>)> = HashMap::new();
        for ticket in 0..8 {
            for (key, place) in bodies.spans(ticket) {
                let trace = traces.entry(key).or_default();
                assert_eq!(trace.0 & place.bit(), 0, "an index is used once");
                trace.0 |= place.bit();
                trace.1 = place.count;
                trace.2.insert(ticket);
            }
        }
        assert_eq!(traces.len(), 8);
        for (bits, count, batches) in traces.values() {
            assert_eq!(*bits, SpanPosition::full(*count));
            assert_eq!(batches.len(), 4);
        }
    }

    #[test]
    fn compressed_requests_inflate_to_the_plain_ones() {
        for compression in [Compression::Gzip, Compression::Zstd] {
            let plain = BodySpec { bodies: 4, unique: true, ..BodySpec::default() };
            let packed = BodySpec { compression, ..plain };
            for (plain, packed) in
                [(plain, packed), (BodySpec { unique: false, ..plain }, BodySpec { unique: false, ..packed })]
            {
                let plain = Bodies::generate(plain).unwrap().compose(1, None);
                let packed = Bodies::generate(packed).unwrap().compose(1, None);
                assert_eq!(packed[0], 1, "the compression flag");
                assert!(packed.len() < plain.len() / 2);
                let encoding = compression.encoding().unwrap();
                let inflated = codec::inflate_uncounted(encoding, &packed[PREFIX_LEN..], plain.len()).unwrap();
                assert_eq!(inflated.payload(), &plain[PREFIX_LEN..]);
            }
        }
    }

    #[test]
    fn memory_bounds_the_number_of_distinct_requests() {
        let spec = BodySpec { max_bytes: 1 << 20, ..BodySpec::default() };
        let n = Bodies::generate(spec).unwrap().len();
        assert!(n < 30 && n.is_multiple_of(4), "{n}");
        assert_eq!(Bodies::generate(BodySpec { max_bytes: 0, ..spec }).unwrap().len(), 4, "one group at least");
    }

    #[test]
    fn impossible_requests_are_refused_with_advice() {
        let spec = BodySpec::default();
        assert!(matches!(Bodies::generate(BodySpec { traces: 4, ..spec }), Err(SpecError::LongTraces(100))));
        assert!(matches!(Bodies::generate(BodySpec { spans: 2, ..spec }), Err(SpecError::TooManyTraces { .. })));
        assert!(matches!(Bodies::generate(BodySpec { spread: 0, ..spec }), Err(SpecError::Zero)));
    }
}
