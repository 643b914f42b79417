//! What was sent compared with what the Collectors wrote down.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::{ResourceSpans, ScopeSpans, status::StatusCode},
};
use prost::Message;

use crate::otelcol::Outcome;

/// The IDs of a trace and of a span.
type Id = (Vec<u8>, Vec<u8>);

/// What has to come of a cell.
pub(super) enum Expected {
    /// These spans, each with its resource and scope.
    Equal(BTreeMap<Id, ResourceSpans>),
    /// So many traces of a service, each with so many spans, all of which are kept.
    OfService { service: String, traces: u64, spans: u64 },
}

/// A span that came: to which Collector, and whether it was kept.
struct Item {
    collector: usize,
    is_kept: bool,
    span: ResourceSpans,
}

/// What came and was not checked yet.
pub(super) struct Came(BTreeMap<Id, Vec<Item>>);

// === impl Expected ===

impl Expected {
    pub(super) fn equal(sent: Vec<ResourceSpans>) -> Self {
        Self::Equal(single(sent).collect())
    }

    /// Returns the number of spans.
    pub(super) fn spans(&self) -> u64 {
        match self {
            Self::Equal(spans) => spans.len() as u64,
            Self::OfService { traces, spans, .. } => traces * spans,
        }
    }

    /// Returns the number of spans whose trace is kept.
    pub(super) fn kept(&self) -> u64 {
        match self {
            Self::Equal(spans) => {
                let failed = failed(spans);
                spans.keys().filter(|(trace, _)| failed.contains(trace)).count() as u64
            }
            Self::OfService { .. } => self.spans(),
        }
    }
}

/// Returns the traces with a failed span.
fn failed(spans: &BTreeMap<Id, ResourceSpans>) -> BTreeSet<&Vec<u8>> {
    let failed = spans.iter().filter(|(_, batch)| {
        let status = batch.scope_spans[0].spans[0].status.as_ref();
        status.is_some_and(|status| status.code() == StatusCode::Error)
    });
    failed.map(|((trace, _), _)| trace).collect()
}

// === impl Came ===

impl Came {
    pub(super) fn new(outcome: &Outcome) -> Self {
        let mut items: BTreeMap<Id, Vec<Item>> = BTreeMap::new();
        for (collector, (all, kept)) in outcome.all.iter().zip(&outcome.kept).enumerate() {
            let kept: BTreeSet<Id> = single(kept.clone()).map(|(id, _)| id).collect();
            for (id, span) in single(all.clone()) {
                let is_kept = kept.contains(&id);
                items.entry(id).or_default().push(Item { collector, is_kept, span });
            }
        }
        Self(items)
    }

    /// Checks what came of a cell, and takes it out.
    pub(super) fn check(&mut self, expected: &Expected) -> Result<()> {
        match expected {
            Expected::Equal(spans) => self.check_equal(spans),
            Expected::OfService { service, traces, spans } => self.check_service(service, *traces, *spans),
        }
    }

    fn check_equal(&mut self, expected: &BTreeMap<Id, ResourceSpans>) -> Result<()> {
        let failed = failed(expected);
        let mut places = BTreeMap::new();
        let (mut wrong, mut first) = (0, None);
        for (id, sent) in expected {
            let came = self.0.remove(id).unwrap_or_default();
            let problem = match &*came {
                [item] if *places.entry(&id.0).or_insert(item.collector) != item.collector => {
                    Some("its trace is at two Collectors".to_owned())
                }
                [item] if item.is_kept != failed.contains(&id.0) => Some(format!("it is kept: {}", item.is_kept)),
                // Their bytes are compared, since NaN is not equal to itself.
                [item] if item.span.encode_to_vec() != sent.encode_to_vec() => Some(difference(sent, &item.span)),
                [_] => None,
                other => Some(format!("it came {} times", other.len())),
            };
            wrong += u32::from(problem.is_some());
            first = first.or_else(|| problem.map(|problem| format!("{id:02x?}: {problem}")));
        }
        ensure!(
            wrong == 0,
            "{wrong} of {} spans are wrong; the first is {}",
            expected.len(),
            first.unwrap_or_default()
        );
        Ok(())
    }

    fn check_service(&mut self, service: &str, traces: u64, spans: u64) -> Result<()> {
        let found: Vec<Id> =
            self.0.iter().filter(|(_, items)| is_of(&items[0].span, service)).map(|(id, _)| id.clone()).collect();
        let mut places: BTreeMap<Vec<u8>, (usize, u64)> = BTreeMap::new();
        for id in found {
            let items = self.0.remove(&id).unwrap_or_default();
            let [item] = &*items else { anyhow::bail!("{id:02x?} came {} times", items.len()) };
            ensure!(item.is_kept, "{id:02x?} is not kept");
            let (collector, count) = places.entry(id.0).or_insert((item.collector, 0));
            ensure!(*collector == item.collector, "its trace is at two Collectors");
            *count += 1;
            let span = &item.span.scope_spans[0].spans[0];
            let note = span.attributes.iter().find(|attribute| attribute.key == "note").context("no attribute")?;
            let is_equal = matches!(text(note), Some("größer als nötig"));
            ensure!(
                is_equal && span.status.as_ref().is_some_and(|status| status.code() == StatusCode::Error),
                "{span:?}"
            );
        }
        let is_whole = places.values().all(|(_, count)| *count == spans);
        ensure!(places.len() as u64 == traces && is_whole, "not {traces} traces of {spans} spans: {places:?}");
        Ok(())
    }

    /// Checks that nothing came that no cell sent.
    pub(super) fn check_rest(&self) -> Result<()> {
        ensure!(self.0.is_empty(), "spans came that nobody sent: {:02x?}", self.0.keys().collect::<Vec<_>>());
        Ok(())
    }
}

fn text(attribute: &KeyValue) -> Option<&str> {
    match attribute.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text),
        _ => None,
    }
}

fn is_of(batch: &ResourceSpans, service: &str) -> bool {
    let attributes = batch.resource.iter().flat_map(|resource| &resource.attributes);
    attributes.filter(|attribute| attribute.key == "service.name").any(|attribute| text(attribute) == Some(service))
}

/// Returns the first lines that differ.
fn difference(sent: &ResourceSpans, came: &ResourceSpans) -> String {
    let [sent, came] = [sent, came].map(|batch| format!("{batch:#?}"));
    let same = sent.lines().zip(came.lines()).take_while(|(one, other)| one == other).count();
    let [sent, came] = [sent, came].map(|text| {
        let lines = text.lines().skip(same.saturating_sub(6)).take(12);
        lines.map(str::trim).collect::<Vec<_>>().join(" ")
    });
    format!("sent … {sent} …, came … {came} …")
}

// === Spans one by one, in one form ===

/// Returns each span with its resource and scope.
fn single(batches: Vec<ResourceSpans>) -> impl Iterator<Item = (Id, ResourceSpans)> {
    batches.into_iter().flat_map(|batch| {
        let ResourceSpans { resource, scope_spans, schema_url } = batch;
        scope_spans.into_iter().flat_map(move |scope_spans| {
            let (resource, schema_url) = (resource.clone(), schema_url.clone());
            let ScopeSpans { scope, spans, schema_url: scope_schema } = scope_spans;
            spans.into_iter().map(move |span| {
                let id = (span.trace_id.clone(), span.span_id.clone());
                let scope_spans =
                    ScopeSpans { scope: scope.clone(), spans: vec![span], schema_url: scope_schema.clone() };
                let (resource, schema_url) = (resource.clone(), schema_url.clone());
                (id, tidy(ResourceSpans { resource, scope_spans: vec![scope_spans], schema_url }))
            })
        })
    })
}

/// Makes a message that is absent and one that is empty the same, as they mean the same; likewise the ID of no parent.
fn tidy(mut batch: ResourceSpans) -> ResourceSpans {
    tidy_all(&mut batch.resource.get_or_insert_default().attributes);
    for scope_spans in &mut batch.scope_spans {
        tidy_all(&mut scope_spans.scope.get_or_insert_default().attributes);
        for span in &mut scope_spans.spans {
            span.status.get_or_insert_default();
            tidy_all(&mut span.attributes);
            span.events.iter_mut().for_each(|event| tidy_all(&mut event.attributes));
            span.links.iter_mut().for_each(|link| tidy_all(&mut link.attributes));
            if span.parent_span_id.iter().all(|byte| *byte == 0) {
                span.parent_span_id.clear();
            }
        }
    }
    batch
}

fn tidy_all(attributes: &mut [KeyValue]) {
    attributes.iter_mut().for_each(|attribute| tidy_value(attribute.value.get_or_insert_default()));
}

fn tidy_value(value: &mut AnyValue) {
    match &mut value.value {
        Some(Value::ArrayValue(list)) => list.values.iter_mut().for_each(tidy_value),
        Some(Value::KvlistValue(map)) => tidy_all(&mut map.values),
        _ => {}
    }
}

// === The comparison itself ===

/// Returns what two Collectors would have written if all went well, except for this change of what they received.
fn outcome(sent: &[ResourceSpans], change: impl Fn(&mut [Vec<ResourceSpans>])) -> Outcome {
    let failed: BTreeMap<Id, ResourceSpans> = single(sent.to_vec()).collect();
    let failed = self::failed(&failed);
    let mut kept = sent.to_vec();
    for scope_spans in kept.iter_mut().flat_map(|batch| &mut batch.scope_spans) {
        scope_spans.spans.retain(|span| failed.contains(&span.trace_id));
    }
    let mut all = vec![sent.to_vec(), Vec::new()];
    change(&mut all);
    Outcome { all, kept: vec![kept, Vec::new()] }
}

#[test]
fn the_comparison_finds_any_change() {
    let sent = super::rich::traces(0, true);
    let expected = Expected::equal(sent.clone());
    let check = |change: &dyn Fn(&mut [Vec<ResourceSpans>])| {
        let mut came = Came::new(&outcome(&sent, change));
        came.check(&expected).and_then(|()| came.check_rest()).map_err(|error| error.to_string())
    };
    check(&|_| {}).unwrap();
    let first = |all: &mut [Vec<ResourceSpans>]| all[0][0].scope_spans[0].spans.remove(0);
    let wrong = |change: &dyn Fn(&mut [Vec<ResourceSpans>]), part: &str| {
        let error = check(change).expect_err(part);
        assert!(error.contains(part), "{error}");
    };
    wrong(&|all| drop(first(all)), "1 of 72 spans are wrong; the first is");
    wrong(&|all| all[0][0].scope_spans[0].spans[0].flags = 1, "flags: 769");
    wrong(&|all| all[0][0].scope_spans[0].spans[0].attributes.swap(0, 1), "72 spans are wrong");
    wrong(&|all| all[0][0].resource.as_mut().unwrap().attributes.truncate(1), "24 of 72 spans are wrong");
    wrong(&|all| all[0][0].scope_spans[0].scope = None, "12 of 72 spans are wrong");
    wrong(&|all| all[1] = all[0].clone(), "it came 2 times");
    let elsewhere = |all: &mut [Vec<ResourceSpans>]| {
        let mut batch = all[0][0].clone();
        batch.scope_spans.truncate(1);
        batch.scope_spans[0].spans = vec![all[0][0].scope_spans[0].spans.remove(1)];
        all[1].push(batch);
    };
    wrong(&elsewhere, "its trace is at two Collectors");
    let foreign = |all: &mut [Vec<ResourceSpans>]| {
        let mut batch = all[0][0].clone();
        batch.scope_spans.truncate(1);
        batch.scope_spans[0].spans.truncate(1);
        batch.scope_spans[0].spans[0].span_id = vec![7; 8];
        all[0].push(batch);
    };
    wrong(&foreign, "spans came that nobody sent");
    let mut not_kept = outcome(&sent, |_| {});
    not_kept.kept[0].clear();
    let error = Came::new(&not_kept).check(&expected).unwrap_err().to_string();
    assert!(error.contains("36 of 72 spans are wrong") && error.contains("it is kept: false"), "{error}");
}
