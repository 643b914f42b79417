//! Compares with messages that are made from OTLP's descriptors, with the reader of `opentelemetry-proto` and with
//! `serde_json`, for random documents and for broken ones.

use opentelemetry_proto::tonic::collector::{
    logs::v1::ExportLogsServiceRequest, metrics::v1::ExportMetricsServiceRequest,
    profiles::v1development::ExportProfilesServiceRequest, trace::v1::ExportTraceServiceRequest,
};
use prost::Message;
use serde::de::{DeserializeOwned, IgnoredAny};

use super::{
    MOST,
    documents::{Documents, REQUESTS, Types},
};
use crate::{json::to_protobuf, otlp::Signal};

fn random(seed: u64) -> impl FnMut(usize) -> usize {
    let mut random = fastrand::Rng::with_seed(seed);
    move |bound| random.usize(..bound)
}

/// Calls a generic function with the type of a signal's request.
macro_rules! of_signal {
    ($signal:expr, $function:ident($($argument:expr),*)) => {
        match $signal {
            Signal::Traces => $function::<ExportTraceServiceRequest>($($argument),*),
            Signal::Metrics => $function::<ExportMetricsServiceRequest>($($argument),*),
            Signal::Logs => $function::<ExportLogsServiceRequest>($($argument),*),
            Signal::Profiles => $function::<ExportProfilesServiceRequest>($($argument),*),
        }
    };
}

#[test]
fn random_documents_become_the_messages_that_they_stand_for() {
    fn check<M: Message + Default + PartialEq>(signal: Signal, json: &str, expected: &[u8], seed: u64) {
        let bytes =
            to_protobuf(signal, json.as_bytes(), MOST).unwrap_or_else(|error| panic!("{seed}: {error}\n{json}"));
        let (found, expected) = (M::decode(bytes.clone()).unwrap(), M::decode(expected).unwrap());
        assert!(found == expected, "seed {seed}\n{json}");
        let shortest = found.encoded_len();
        // Lists in several pieces aside, nothing is padded; prost leaves out what has the value of zero, as we do.
        assert_eq!(bytes.len(), shortest, "seed {seed}\n{json}");
    }
    let types = Types::load();
    for seed in 0..300 {
        let mut documents = Documents::new(&types, seed % 4 == 0, random(seed));
        for signal in Signal::ALL {
            let (json, message) = documents.request(REQUESTS[signal.index()]);
            of_signal!(signal, check(signal, &json, &message, seed));
        }
    }
}

#[test]
fn what_opentelemetry_proto_reads_is_read_the_same() {
    fn check<M: Message + Default + PartialEq + DeserializeOwned>(signal: Signal, json: &str, seed: u64) -> bool {
        let Ok(expected) = serde_json::from_str::<M>(json) else { return false };
        let bytes =
            to_protobuf(signal, json.as_bytes(), MOST).unwrap_or_else(|error| panic!("{seed}: {error}\n{json}"));
        let found = M::decode(bytes).unwrap();
        let is_equal = found == expected;
        // It also lets a null replace the value of a `oneof`, which no JSON of protobuf does.
        let differs = json.contains("null") || (signal == Signal::Metrics && loses_data(json));
        assert!(is_equal || differs, "seed {seed}\n{json}");
        is_equal
    }
    /// Returns whether it leaves out the data of a metric: it does so, without an error, where it cannot read them.
    fn loses_data(json: &str) -> bool {
        let request: ExportMetricsServiceRequest = serde_json::from_str(json).unwrap();
        let mut scopes = request.resource_metrics.iter().flat_map(|resource| &resource.scope_metrics);
        scopes.any(|scope| scope.metrics.iter().any(|metric| metric.data.is_none()))
    }
    let types = Types::load();
    let mut read = [0; 4];
    for seed in 0..200 {
        let mut documents = Documents::new(&types, seed % 4 != 0, random(seed));
        for signal in Signal::ALL {
            let (json, _) = documents.request(REQUESTS[signal.index()]);
            read[signal.index()] += u32::from(of_signal!(signal, check(signal, &json, seed)));
        }
    }
    // It reads none of these documents of profiles; the test of random documents compares them.
    let [traces, metrics, logs, _profiles] = read;
    assert!(traces.min(metrics).min(logs) > 20, "it has to read some of each other signal: {read:?}");
}

#[test]
fn broken_documents_are_refused_or_become_messages() {
    fn check<M: Message + Default>(signal: Signal, json: &[u8]) -> bool {
        // Of what it ignores, serde_json does not check whether it is UTF-8.
        let is_json = str::from_utf8(json).is_ok_and(|json| serde_json::from_str::<IgnoredAny>(json).is_ok());
        // As the value of an unknown field, any JSON is taken and nothing else.
        let wrapped = [b"{\"x\":", json, b"}"].concat();
        let text = String::from_utf8_lossy(json);
        assert_eq!(to_protobuf(signal, &wrapped, MOST).is_ok(), is_json, "{text}");
        let Ok(bytes) = to_protobuf(signal, json, MOST) else { return false };
        assert!(is_json, "{text}");
        M::decode(bytes).unwrap_or_else(|error| panic!("{error}: {text}"));
        true
    }
    let types = Types::load();
    let mut taken = 0;
    for seed in 0..1_000 {
        let signal = Signal::ALL[usize::try_from(seed).unwrap() % 4];
        let (json, _) = Documents::new(&types, seed % 3 == 0, random(seed)).request(REQUESTS[signal.index()]);
        let json = broken(json.into_bytes(), random(seed + 1));
        taken += u32::from(of_signal!(signal, check(signal, &json)));
    }
    assert!((30..970).contains(&taken), "{taken}");
}

/// Breaks a document in a few places: bytes are changed, left out, doubled or cut off.
fn broken(mut json: Vec<u8>, mut below: impl FnMut(usize) -> usize) -> Vec<u8> {
    for _ in 0..=below(3) {
        let at = below(json.len() + 1);
        let end = (at + below(12)).min(json.len());
        match below(7) {
            0 => drop(json.splice(at..end, *b"\"\\{}[],:0-1.eEn u"[below(17)..].first_chunk::<1>().unwrap())),
            1 => drop(json.drain(at..end)),
            2 => drop(json.splice(at..at, json[at..end].to_vec())),
            3 if below(8) == 0 => json.truncate(at),
            4 => json.insert(at, b' '),
            5 => json.insert(at, u8::try_from(below(256)).unwrap()),
            _ => {}
        }
    }
    json
}
