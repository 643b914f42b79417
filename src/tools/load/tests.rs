//! Load runs against sinks on real sockets.

use std::collections::BTreeMap;

use super::*;
use crate::tools::sink::{Behaviour, FailureCode, Sink, SinkConfig, SinksReport};

async fn sinks(n: usize, behaviour: Behaviour, tasks: &Tasks) -> Vec<Sink> {
    let mut sinks = Vec::new();
    for _ in 0..n {
        let config = SinkConfig { behaviour: behaviour.clone(), ..SinkConfig::default() };
        sinks.push(Sink::start(config, tasks).await.unwrap());
    }
    sinks
}

fn config_for(sinks: &[Sink], requests: u64) -> LoadConfig {
    LoadConfig {
        endpoints: sinks.iter().map(|sink| sink.addr.to_string()).collect(),
        body: BodySpec { bodies: 8, unique: true, ..BodySpec::default() },
        until: Until { requests: Some(requests), elapsed: None },
        keep_accepted: true,
        ..LoadConfig::default()
    }
}

#[tokio::test]
async fn sink_and_load_agree_on_every_span() {
    let tasks = Tasks::new();
    let sinks = sinks(1, Behaviour::default(), &tasks).await;
    let run = run_load(config_for(&sinks, 40), &ProgressBar::hidden(), &tasks).await.unwrap();
    assert_eq!((run.report.requests, run.report.spans_acknowledged, run.sent), (40, 4000, 40));
    let report = sinks[0].report();
    let tracked = report.tracked.unwrap();
    assert_eq!((report.requests, report.spans, report.wire_bytes > 1_000_000), (40, 4000, true));
    assert_eq!((tracked.traces, tracked.traces_partial, tracked.duplicates), (120, 0, 0));
    let mut acknowledged: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (key, place) in run.acknowledged() {
        acknowledged.entry(key.to_bytes()).or_default().push(key.span_id(place));
    }
    let mut seen = sinks[0].seen();
    seen.values_mut().chain(acknowledged.values_mut()).for_each(|spans| spans.sort_unstable());
    assert_eq!(acknowledged, seen);
    tasks.stop();
    tasks.wait().await;
}

#[tokio::test]
async fn sink_and_load_agree_on_every_span_over_http() {
    let tasks = Tasks::new();
    let sinks = sinks(2, Behaviour { reject_rate: 0.1, ..Behaviour::default() }, &tasks).await;
    let config = LoadConfig { http: true, connections: 4, in_flight: 6, ..config_for(&sinks, 40) };
    let run = run_load(config, &ProgressBar::hidden(), &tasks).await.unwrap();
    let report = SinksReport::of(&sinks);
    assert_eq!((run.report.spans, run.report.spans_failed, run.report.first_failure), (4000, 0, None));
    let kept: u64 = sinks.iter().map(|sink| sink.report().spans).sum();
    let rejected: u64 = sinks.iter().map(|sink| sink.report().rejected_spans).sum();
    assert_eq!((run.report.spans_acknowledged, run.report.spans_rejected), (kept, rejected), "{report:?}");
    assert!(rejected > 0);
    tasks.stop();
    tasks.wait().await;
}

#[tokio::test]
async fn refusals_over_http_are_those_of_grpc() {
    let tasks = Tasks::new();
    for (failure_code, after, name) in [
        (FailureCode::Unavailable, Some(2_000), "unavailable"),
        (FailureCode::InvalidArgument, None, "invalid_argument"),
        (FailureCode::Http502, None, "unavailable"),
    ] {
        let behaviour =
            Behaviour { failure_rate: 1.0, failure_code, failure_retry_after_ms: after, ..Behaviour::default() };
        let sinks = sinks(1, behaviour, &tasks).await;
        let config = LoadConfig { http: true, connections: 2, ..config_for(&sinks, 8) };
        let run = run_load(config, &ProgressBar::hidden(), &tasks).await.unwrap();
        assert_eq!(run.report.failed, BTreeMap::from([(name.to_owned(), 8)]));
        assert_eq!(run.failed.iter().all(|failed| failed.is_retryable), name == "unavailable");
    }
    tasks.stop();
    tasks.wait().await;
}

#[tokio::test]
async fn the_spans_of_a_trace_go_to_different_endpoints() {
    let tasks = Tasks::new();
    let sinks = sinks(3, Behaviour::default(), &tasks).await;
    let run = run_load(config_for(&sinks, 24), &ProgressBar::hidden(), &tasks).await.unwrap();
    assert_eq!(run.report.spans_acknowledged, 2400);
    let report = SinksReport::of(&sinks);
    assert_eq!((report.traces_split, report.traces_whole), (Some(72), Some(0)), "unsplit load meets no whole trace");
    tasks.stop();
    tasks.wait().await;
}

#[tokio::test]
async fn failed_and_rejected_spans_are_not_counted_as_acknowledged() {
    let tasks = Tasks::new();
    let behaviour = Behaviour {
        failure_rate: 0.3,
        failure_code: FailureCode::InvalidArgument,
        reject_rate: 0.1,
        ..Behaviour::default()
    };
    let sinks = sinks(1, behaviour, &tasks).await;
    let run = run_load(config_for(&sinks, 40), &ProgressBar::hidden(), &tasks).await.unwrap();
    let (load, sink) = (&run.report, sinks[0].report());
    assert_eq!(load.failed, BTreeMap::from([("invalid_argument".to_owned(), sink.failed_requests)]));
    assert_eq!((load.spans_acknowledged, load.spans_rejected), (sink.spans, sink.rejected_spans));
    assert_eq!(load.spans_acknowledged + load.spans_rejected + load.spans_failed, 4000);
    assert!(sink.failed_requests > 0 && sink.rejected_spans > 0);
    tasks.stop();
    tasks.wait().await;
}

#[tokio::test]
async fn an_endpoint_without_a_receiver_is_reported_at_once() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    drop(listener);
    let config = LoadConfig { endpoints: vec![endpoint], ..LoadConfig::default() };
    let error = run_load(config, &ProgressBar::hidden(), &Tasks::new()).await.unwrap_err();
    assert!(error.to_string().contains("is the receiver running?"), "{error}");
}

#[tokio::test]
async fn draining_ends_a_run_without_a_limit() {
    let tasks = Tasks::new();
    let of_sinks = Tasks::new();
    let sinks = sinks(1, Behaviour::default(), &of_sinks).await;
    let config = LoadConfig { until: Until::default(), ..config_for(&sinks, 0) };
    let progress = ProgressBar::hidden();
    let (run, ()) = tokio::join!(run_load(config, &progress, &tasks), async {
        while sinks[0].report().requests < 20 {
            tokio::task::yield_now().await;
        }
        tasks.drain();
    });
    let run = run.unwrap();
    assert_eq!(run.sent % 4, 0, "whole groups");
    assert_eq!(sinks[0].report().tracked.unwrap().traces_partial, 0);
    for tasks in [tasks, of_sinks] {
        tasks.stop();
        tasks.wait().await;
    }
}

#[tokio::test]
async fn clients_are_reported_by_timeout_and_each_endpoint_has_all_timeouts() {
    let tasks = Tasks::new();
    let slow = Behaviour { delay_ms: 300, ..Behaviour::default() };
    let sinks = [sinks(1, slow, &tasks).await, sinks(1, Behaviour::default(), &tasks).await].concat();
    let (short, long) = (Duration::from_millis(40), Duration::from_mins(1));
    let config = LoadConfig { timeouts: vec![short, long], ..config_for(&sinks, 16) };
    let run = run_load(config, &ProgressBar::hidden(), &tasks).await.unwrap();
    let [impatient, patient] = &run.report.clients[..] else { panic!("{:?}", run.report.clients) };
    assert_eq!((impatient.timeout_seconds, patient.timeout_seconds), (0.04, 60.0));
    assert_eq!((impatient.requests, patient.requests), (8, 8));
    assert_eq!(patient.failures, BTreeMap::new());
    // On a busy machine the fast sink may take longer than 40 ms, too.
    let at_slow = u64::try_from(run.failed.len()).unwrap();
    let Failures { requests, first_seconds, last_seconds } = impatient.failures[&FailureKind::Deadline];
    assert!((4..=8).contains(&requests) && requests == at_slow, "{impatient:?}");
    assert!((0.04..=last_seconds).contains(&first_seconds), "{impatient:?}");
    assert!(run.failed.iter().all(|it| (it.timeout, it.kind) == (short, FailureKind::Deadline)), "{:?}", run.failed);
    assert!(run.failed.iter().all(|it| it.answered >= it.sent && it.sent >= run.began), "{:?}", run.failed);
    let mut text = Vec::new();
    run.report.write_text(&mut text).unwrap();
    let said = format!("    clients that wait 0.04 s: {requests} of 8 requests failed with deadline, the first ");
    assert!(String::from_utf8(text).unwrap().contains(&said), "{said}");
    let json = serde_json::to_value(&run.report).unwrap();
    assert_eq!(json["clients"][0]["failures"]["deadline"]["requests"], requests);
    tasks.stop();
    tasks.wait().await;
}

#[test]
fn timeouts_are_one_or_several_and_above_zero() {
    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }
    let parsed = |line: &str| {
        let words = ["load"].into_iter().chain(line.split_whitespace());
        <Line as clap::Parser>::try_parse_from(words).map(|line| config(line.args).timeouts)
    };
    let seconds = |seconds: &[u64]| seconds.iter().copied().map(Duration::from_secs).collect::<Vec<_>>();
    assert_eq!(parsed("").unwrap(), seconds(&[10]));
    assert_eq!(parsed("--timeout 2s,5s --timeout 10s").unwrap(), seconds(&[2, 5, 10]));
    assert!(parsed("--timeout 0s").unwrap_err().to_string().contains("write a duration above 0"));
}
