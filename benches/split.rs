//! Compares the split with prost at 10 to 8,192 spans and 5 and 100 backends, by time and allocations.
//!
//! `cargo bench --bench split`. Both run in one process with one counting allocator. Instead of a ring they use its
//! hash and a table of the same size. The prost version does what a program without a wire-level split does: decode,
//! move each span to its backend, clone each envelope once for each part, encode. `items/s` are spans per second.

#![expect(clippy::expect_used, clippy::indexing_slicing, reason = "a bench that fails may say so by a panic")]

use std::{hint::black_box, num::NonZeroUsize};

use bytes::Bytes;
use divan::{AllocProfiler, Bencher, counter::ItemsCount};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span, Status},
};
use prost::Message;
use spanring::{
    otlp::Signal,
    split::{Record, Scratch, Targets, is_early_cheaper, plan, plan_early},
};
use xxhash_rust::xxh3::xxh3_64;

#[global_allocator]
static ALLOC: AllocProfiler = AllocProfiler::system();

const SPANS: [usize; 4] = [10, 100, 512, 8192];
const SLOTS: usize = 131_072;

fn main() {
    divan::main();
}

/// A table of the same size as the ring's, with the same look-up.
struct Owners(Vec<u16>);

impl Owners {
    fn new(backends: u16) -> Self {
        let mut random = fastrand::Rng::with_seed(7);
        Self((0..SLOTS).map(|_slot| random.u16(..backends)).collect())
    }

    #[inline]
    fn of(&self, id: &[u8]) -> u32 {
        let slot = (xxh3_64(id) >> 47) as usize;
        self.0.get(slot).map_or(0, |owner| u32::from(*owner))
    }
}

#[divan::bench(args = SPANS, consts = [5, 100])]
fn cut<const BACKENDS: u16>(bencher: Bencher<'_, '_>, spans: usize) {
    let (request, owners) = (Bytes::from(request(spans).encode_to_vec()), Owners::new(BACKENDS));
    let mut scratch = Scratch::default();
    bencher.counter(ItemsCount::new(spans)).bench_local(move || {
        let mut router = |record: &Record<'_>| Targets::One(owners.of(record.id));
        let payload = black_box(std::slice::from_ref(&request));
        // The same calls as in the pipeline.
        let room = &mut |_| true;
        let targets = NonZeroUsize::new(BACKENDS.into()).expect("there are some");
        let plan = if is_early_cheaper(request.len(), BACKENDS.into()) {
            plan_early(Signal::Traces, payload, targets, &mut router, &mut scratch, room)
        } else {
            plan(Signal::Traces, payload, &mut router, &mut scratch, room)
        };
        black_box(plan.expect("well-formed").build(room).expect("room"))
    });
}

/// Measures the walk without the copy.
#[divan::bench(args = SPANS, consts = [5, 100])]
fn plan_only<const BACKENDS: u16>(bencher: Bencher<'_, '_>, spans: usize) {
    let (request, owners) = (Bytes::from(request(spans).encode_to_vec()), Owners::new(BACKENDS));
    let mut scratch = Scratch::default();
    bencher.counter(ItemsCount::new(spans)).bench_local(move || {
        let mut router = |record: &Record<'_>| Targets::One(owners.of(record.id));
        let payload = black_box(std::slice::from_ref(&request));
        plan(Signal::Traces, payload, &mut router, &mut scratch, &mut |_| true).expect("well-formed").total_len()
    });
}

#[divan::bench(args = SPANS, consts = [5, 100])]
fn prost_way<const BACKENDS: u16>(bencher: Bencher<'_, '_>, spans: usize) {
    let (request, owners) = (Bytes::from(request(spans).encode_to_vec()), Owners::new(BACKENDS));
    bencher.counter(ItemsCount::new(spans)).bench_local(move || {
        let decoded = ExportTraceServiceRequest::decode(black_box(&request).clone()).expect("well-formed");
        let mut parts = vec![ExportTraceServiceRequest::default(); usize::from(BACKENDS)];
        for resource in decoded.resource_spans {
            regroup(resource, &owners, &mut parts);
        }
        let parts: Vec<_> =
            parts.iter().filter(|part| !part.resource_spans.is_empty()).map(Message::encode_to_vec).collect();
        black_box(parts)
    });
}

/// Moves the spans of one resource into parts. An envelope is cloned when its first span enters a part.
fn regroup(mut resource: ResourceSpans, owners: &Owners, parts: &mut [ExportTraceServiceRequest]) {
    let mut in_resource = vec![false; parts.len()];
    for mut scope in std::mem::take(&mut resource.scope_spans) {
        let mut in_scope = vec![false; parts.len()];
        for span in std::mem::take(&mut scope.spans) {
            let owner = owners.of(&span.trace_id) as usize;
            let part = &mut parts[owner].resource_spans;
            if !std::mem::replace(&mut in_resource[owner], true) {
                part.push(resource.clone());
            }
            let scopes = &mut part.last_mut().expect("just pushed").scope_spans;
            if !std::mem::replace(&mut in_scope[owner], true) {
                scopes.push(scope.clone());
            }
            scopes.last_mut().expect("just pushed").spans.push(span);
        }
    }
}

/// Builds a request as an SDK sends it: spans of about 400 bytes, eight per trace, with a trace's spans next to each
/// other, under one resource with ten attributes and two scopes.
fn request(spans: usize) -> ExportTraceServiceRequest {
    let mut random = fastrand::Rng::with_seed(1);
    let attribute = |key: &str, value: &str| KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(any_value::Value::StringValue(value.to_owned())) }),
        ..KeyValue::default()
    };
    let mut trace_id = vec![0; 16];
    let mut spans: Vec<_> = (0..spans)
        .map(|number| {
            if number % 8 == 0 {
                trace_id = (0..16).map(|_byte| random.u8(..)).collect();
            }
            Span {
                trace_id: trace_id.clone(),
                span_id: random.u64(..).to_be_bytes().to_vec(),
                parent_span_id: random.u64(..).to_be_bytes().to_vec(),
                flags: 0x101,
                name: "GET /api/v1/orders/{id}".to_owned(),
                kind: 2,
                start_time_unix_nano: 1_753_000_000_000_000_000 + random.u64(..1 << 40),
                end_time_unix_nano: 1_753_000_100_000_000_000 + random.u64(..1 << 40),
                attributes: vec![
                    attribute("http.request.method", "GET"),
                    attribute("http.route", "/api/v1/orders/{id}"),
                    attribute("url.path", &format!("/api/v1/orders/{}", random.u32(..))),
                    attribute("server.address", "orders.shop.svc.cluster.local"),
                    attribute("network.protocol.version", "1.1"),
                    attribute("user_agent.original", "okhttp/4.12.0"),
                    attribute("client.address", "10.21.7.113"),
                    attribute("thread.name", "http-nio-8080-exec-7"),
                ],
                status: Some(Status { message: String::new(), code: 1 }),
                ..Span::default()
            }
        })
        .collect();
    let second = spans.split_off(spans.len() / 2);
    let scope = |name: &str, spans| ScopeSpans {
        scope: Some(InstrumentationScope { name: name.to_owned(), version: "2.6.0".to_owned(), ..Default::default() }),
        spans,
        schema_url: String::new(),
    };
    let resource = Resource {
        attributes: (0..10).map(|n| attribute(&format!("resource.attribute.{n}"), "a value of some length")).collect(),
        ..Resource::default()
    };
    let scope_spans = vec![scope("io.opentelemetry.tomcat-10.0", spans), scope("io.opentelemetry.jdbc", second)];
    let schema_url = "https://opentelemetry.io/schemas/1.37.0".to_owned();
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans { resource: Some(resource), scope_spans, schema_url }],
    }
}
