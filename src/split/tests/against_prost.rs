//! Compares the split with a reference that decodes messages with prost and filters their records.
//!
//! The two do not accept the same requests. prost is stricter: it decodes every field that it knows, so it refuses
//! invalid UTF-8, deep nesting and wrong wire types in attributes, which the split passes on unread. It is never laxer:
//! the split must accept whatever prost decodes. prost drops unknown fields. That the split keeps them is tested by the
//! handwritten cases, and by splitting parts again and comparing bytes.

use opentelemetry_proto::tonic::{
    collector::{metrics::v1::ExportMetricsServiceRequest, trace::v1::ExportTraceServiceRequest},
    metrics::v1::{
        ExponentialHistogram, ExponentialHistogramDataPoint, Gauge, Histogram, HistogramDataPoint, Metric,
        NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum, Summary, SummaryDataPoint, metric::Data,
    },
};
use proptest::prelude::*;
use prost::Message;

use super::{messy::Messy, *};

fn messy_request(seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    Messy::new(|bound| random.usize(..bound)).request()
}

/// Removes the spans of all other targets from a decoded request, and messages that have become empty.
fn kept(mut request: ExportTraceServiceRequest, target: Target) -> ExportTraceServiceRequest {
    for resource in &mut request.resource_spans {
        for scope in &mut resource.scope_spans {
            scope.spans.retain(|span| span.trace_id.first().map_or(0, |byte| u32::from(*byte)) == target);
        }
        resource.scope_spans.retain(|scope| !scope.spans.is_empty());
    }
    request.resource_spans.retain(|resource| !resource.scope_spans.is_empty());
    request
}

fn spans(request: &ExportTraceServiceRequest) -> usize {
    request.resource_spans.iter().flat_map(|resource| &resource.scope_spans).map(|scope| scope.spans.len()).sum()
}

/// Asserts that parts are what the reference keeps. Compares encodings, since a NaN in an attribute is not equal to
/// itself.
fn assert_like_the_reference(payload: &[u8], parts: &[(Target, Vec<u8>)]) {
    let Ok(whole) = ExportTraceServiceRequest::decode(payload) else { return };
    let mut seen = 0;
    for (target, part) in parts {
        let part =
            ExportTraceServiceRequest::decode(&part[..]).expect("prost must decode the parts of what it decoded");
        seen += spans(&part);
        assert_eq!(part.encode_to_vec(), kept(whole.clone(), *target).encode_to_vec());
    }
    assert_eq!(seen, spans(&whole), "each span must be in one part");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn messy_requests_are_split_like_the_reference(seed: u64) {
        let payload = messy_request(seed);
        prop_assert!(ExportTraceServiceRequest::decode(&payload[..]).is_ok(), "messy requests must be valid");
        assert_like_the_reference(&payload, &cut_traces(&payload).unwrap());
    }

    #[test]
    fn mutated_requests_are_refused_or_split_like_the_reference(
        seed: u64,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4_u8), 1..4),
    ) {
        let mut payload = messy_request(seed);
        for (place, byte, how) in changes {
            if payload.is_empty() {
                break;
            }
            let at = place.index(payload.len());
            match how {
                0 => payload[at] = byte,
                1 => payload[at] ^= 1 << (byte % 8),
                2 => payload.insert(at, byte),
                _ => drop(payload.remove(at)),
            }
        }
        match cut_traces(&payload) {
            Ok(parts) => assert_like_the_reference(&payload, &parts),
            Err(error) => {
                prop_assert!(error.offset < payload.len());
                prop_assert!(ExportTraceServiceRequest::decode(&payload[..]).is_err(), "prost accepts what the split refused: {error}");
            }
        }
    }

    #[test]
    fn splitting_a_part_again_gives_the_part_of_both_splits(seed: u64) {
        let payload = messy_request(seed);
        let first = |record: &Record<'_>| record.id.first().map_or(0, |byte| u32::from(*byte) % 2);
        let second = |record: &Record<'_>| u32::from(record.bytes.iter().fold(0, |sum, byte| sum ^ byte) % 3);
        let mut again = Vec::new();
        for (target, part) in cut(Signal::Traces.into(), &payload, |record: &Record<'_>| Targets::One(first(record))).unwrap() {
            for (other, part) in cut(Signal::Traces.into(), &part, |record: &Record<'_>| Targets::One(second(record))).unwrap() {
                again.push((10 * target + other, part));
            }
        }
        let both = |record: &Record<'_>| Targets::One(10 * first(record) + second(record));
        let mut at_once = cut(Signal::Traces.into(), &payload, both).unwrap();
        again.sort();
        at_once.sort();
        prop_assert_eq!(again, at_once);
    }

    #[test]
    fn a_tree_of_five_levels_is_split_like_the_reference(seed: u64) {
        let request = metrics(&mut fastrand::Rng::with_seed(seed));
        let payload = request.encode_to_vec();
        let parts = cut(FIVE_LEVELS, &payload, |record: &Record<'_>| Targets::One((record.start % 4) as u32)).unwrap();
        let mut seen = 0;
        for (target, part) in parts {
            let part = ExportMetricsServiceRequest::decode(&part[..]).unwrap();
            let mut expected = request.clone();
            seen += keep_points(&mut expected, |start| start % 4 == u64::from(target));
            prop_assert_eq!(part, expected);
        }
        let mut request = request;
        prop_assert_eq!(seen, keep_points(&mut request, |_| true));
    }
}

/// Request → resource → scope → metric → gauge, sum, histogram, exponential histogram or summary → data point, whose
/// start time is field 2 in all five.
const FIVE_LEVELS: Shape = Shape {
    levels: &[
        Level { children: &[1] },
        Level { children: &[2] },
        Level { children: &[2] },
        Level { children: &[5, 7, 9, 10, 11] },
        Level { children: &[1] },
    ],
    fields: &STARTS,
};

static STARTS: RecordFields = RecordFields::new(0, 2);

fn metrics(random: &mut fastrand::Rng) -> ExportMetricsServiceRequest {
    let mut name = 0;
    let mut metric = |random: &mut fastrand::Rng| {
        name += 1;
        let starts: Vec<_> = (0..random.usize(..5)).map(|_| random.u64(..8)).collect();
        Metric {
            name: format!("metric.{name}"),
            unit: "s".to_owned(),
            data: data(random.u8(..6), starts),
            ..Metric::default()
        }
    };
    let mut scope = |random: &mut fastrand::Rng| ScopeMetrics {
        metrics: (0..random.usize(..5)).map(|_| metric(random)).collect(),
        schema_url: "scope".to_owned(),
        ..ScopeMetrics::default()
    };
    let mut resource = |random: &mut fastrand::Rng| ResourceMetrics {
        scope_metrics: (0..random.usize(..4)).map(|_| scope(random)).collect(),
        schema_url: "resource".to_owned(),
        ..ResourceMetrics::default()
    };
    ExportMetricsServiceRequest { resource_metrics: (0..random.usize(..4)).map(|_| resource(random)).collect() }
}

fn data(kind: u8, starts: Vec<u64>) -> Option<Data> {
    macro_rules! points {
        ($point:ident) => {
            starts
                .into_iter()
                .map(|start_time_unix_nano| $point { start_time_unix_nano, ..$point::default() })
                .collect()
        };
    }
    match kind {
        0 => Some(Data::Gauge(Gauge { data_points: points!(NumberDataPoint) })),
        1 => Some(Data::Sum(Sum {
            data_points: points!(NumberDataPoint),
            aggregation_temporality: 2,
            is_monotonic: true,
        })),
        2 => Some(Data::Histogram(Histogram { data_points: points!(HistogramDataPoint), aggregation_temporality: 1 })),
        3 => Some(Data::ExponentialHistogram(ExponentialHistogram {
            data_points: points!(ExponentialHistogramDataPoint),
            aggregation_temporality: 2,
        })),
        4 => Some(Data::Summary(Summary { data_points: points!(SummaryDataPoint) })),
        _ => None,
    }
}

/// Keeps the points whose start time `keep` accepts, and the messages that contain one. Returns the number of points.
fn keep_points(request: &mut ExportMetricsServiceRequest, keep: impl Fn(u64) -> bool) -> usize {
    let mut kept = 0;
    let mut keep_data = |metric: &mut Metric| {
        macro_rules! retain {
            ($points:expr) => {{
                $points.retain(|point| keep(point.start_time_unix_nano));
                $points.len()
            }};
        }
        let points = match &mut metric.data {
            Some(Data::Gauge(data)) => retain!(data.data_points),
            Some(Data::Sum(data)) => retain!(data.data_points),
            Some(Data::Histogram(data)) => retain!(data.data_points),
            Some(Data::ExponentialHistogram(data)) => retain!(data.data_points),
            Some(Data::Summary(data)) => retain!(data.data_points),
            None => 0,
        };
        kept += points;
        points > 0
    };
    for resource in &mut request.resource_metrics {
        for scope in &mut resource.scope_metrics {
            scope.metrics.retain_mut(&mut keep_data);
        }
        resource.scope_metrics.retain(|scope| !scope.metrics.is_empty());
    }
    request.resource_metrics.retain(|resource| !resource.scope_metrics.is_empty());
    kept
}
