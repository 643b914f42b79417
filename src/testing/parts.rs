//! Requests, their parts and the tables that place them.

use std::{net::SocketAddr, sync::Arc};

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    trace::v1::{ResourceSpans, ScopeSpans, Span},
};
use prost::Message;

use crate::{
    dispatch::Part,
    endpoint::Endpoint,
    otlp::{Framed, Signal},
    ring::{Algorithm, Base, Table, members_of},
};

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
    Part::new(Signal::Traces, message, records, backend)
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

/// A table of these backends, some of which are `away`: others have their slots.
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
