//! An OpenTelemetry SDK in front of three proxies and Collectors with tail sampling. Every span that the SDK counts as
//! sent must arrive once, all spans of a trace at the same Collector, and every trace with a failed span must be kept.

use std::{collections::BTreeMap, fs, process::Command};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::{
    harness::{self, Process},
    otelcol::{Stage, Traces, count},
};

/// Traces of a run and spans of each. Three services create the spans, and each service sends to another proxy.
const TRACES: usize = 200;
const SPANS: usize = 7;

/// A trace as the sender reports it.
#[derive(Deserialize)]
struct Sent {
    failed: bool,
    spans: Vec<String>,
}

fn traces_stay_whole(is_gzip: bool) -> Result<()> {
    let (Some(otelcol), Some(sdk)) = (harness::peer("otelcol")?, harness::peer("sdk-python")?) else {
        return Ok(());
    };
    let stage = Stage::start(&otelcol, if is_gzip { "gzip" } else { "none" })?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("sent.json");
    let mut command = Command::new(sdk);
    command.arg("--traces").arg(TRACES.to_string()).arg("--sent").arg(&file);
    command.args(is_gzip.then_some("--gzip"));
    for endpoint in stage.endpoints() {
        command.arg("--endpoint").arg(endpoint.to_string());
    }
    let mut sender = Process::start("sdk-python", &mut command)?;
    let status = sender.wait()?;
    ensure!(status.success(), "the SDK's exporter must get everything through: {status}\n{}", sender.log());

    let sent: BTreeMap<String, Sent> = serde_json::from_str(&fs::read_to_string(&file)?).context("what was sent")?;
    let traces = |is_wanted: fn(&Sent) -> bool| -> Traces {
        let wanted = sent.iter().filter(|(_, sent)| is_wanted(sent));
        wanted.map(|(id, sent)| (id.clone(), sorted(&sent.spans))).collect()
    };
    let (all, failed) = (traces(|_| true), traces(|sent| sent.failed));
    ensure!(all.len() == TRACES && all.values().all(|spans| spans.len() == SPANS), "the sender says {all:?}");

    let outcome = stage.finish(count([&all]), count([&failed]))?;
    ensure!(
        outcome.all_whole()? == all,
        "what came must be what was sent: {:?}",
        difference(&outcome.all_whole()?, &all)
    );
    let kept = outcome.all_kept();
    ensure!(kept == failed, "failed traces and no others must be kept, whole: {:?}", difference(&kept, &failed));
    Ok(())
}

fn sorted(spans: &[String]) -> Vec<String> {
    let mut spans = spans.to_vec();
    spans.sort();
    spans
}

/// Returns the first trace that differs, with its spans on both sides.
fn difference<'a>(one: &'a Traces, other: &'a Traces) -> Option<(&'a str, [Option<&'a Vec<String>>; 2])> {
    let mut ids = one.keys().chain(other.keys());
    ids.find(|id| one.get(*id) != other.get(*id)).map(|id| (id.as_str(), [one.get(id), other.get(id)]))
}

#[test]
fn an_sdks_traces_reach_the_samplers_whole() -> Result<()> {
    traces_stay_whole(false)
}

#[test]
fn the_same_with_gzip_on_both_sides() -> Result<()> {
    traces_stay_whole(true)
}
