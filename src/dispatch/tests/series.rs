//! Tests of a backend's series: how long they stay on the metrics page, and that they count on after a return.

use tokio::time::Instant;

use crate::{
    dispatch::Config,
    telemetry::{LINGER, Recorder},
    testing::{Rig, Script, Tasks, accepted, outcome, part, wait_until},
};

/// Returns the number of records that a backend accepted, according to the metrics page; `None` if the series is missing.
fn records(page: &str, backend: &Script) -> Option<u64> {
    let series = format!(
        "spanring_dispatch_records_total{{pool=\"test\",backend=\"{}\",signal=\"traces\",outcome=\"accepted\"}} ",
        backend.address
    );
    page.lines().find_map(|line| line.strip_prefix(&series)?.parse().ok())
}

async fn deliver(rig: &Rig, backend: &mut Script) {
    let join = rig.submit(vec![part(&["a"], rig.index_of(backend.address))]);
    backend.call().await.accept();
    assert_eq!(outcome(&join).await, accepted());
}

#[test]
fn series_leave_some_time_after_their_backend_and_a_returning_one_counts_on() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    Recorder::scoped(|recorder| runtime.block_on(scenario(recorder)));
}

async fn scenario(recorder: &Recorder) {
    let tasks = Tasks::new();
    let mut leaver = Script::start(&tasks, None, 100).await;
    let other = Script::start(&tasks, None, 100).await;
    let (both, one) = ([leaver.address, other.address], [other.address]);
    let rig = Rig::start_with(Config::default(), &both, tasks.clone());
    deliver(&rig, &mut leaver).await;
    assert_eq!((records(&recorder.render(), &leaver), records(&recorder.render(), &other)), (Some(1), Some(0)));

    rig.change(2, &one).await;
    recorder.sweep(Instant::now());
    rig.change(3, &both).await;
    deliver(&rig, &mut leaver).await;
    assert_eq!(records(&recorder.render(), &leaver), Some(2), "it came back in time");

    rig.change(4, &one).await;
    // Once its connections are closed, nothing holds the backend.
    wait_until(|| {
        let now = Instant::now();
        recorder.sweep(now);
        recorder.sweep(now + LINGER);
        !recorder.render().contains(&leaver.address.to_string())
    })
    .await;
    assert_eq!(records(&recorder.render(), &other), Some(0), "the series of a present backend must stay");

    rig.change(5, &both).await;
    deliver(&rig, &mut leaver).await;
    assert_eq!(records(&recorder.render(), &leaver), Some(1), "the series must begin at 0 again");

    // When a pool ends, all its series are removed.
    tasks.stop();
    tasks.wait().await;
    drop(rig);
    let now = Instant::now();
    recorder.sweep(now);
    recorder.sweep(now + LINGER);
    let left: Vec<String> =
        recorder.render().lines().filter(|line| line.contains("pool=")).map(str::to_owned).collect();
    assert!(left.is_empty(), "{left:#?}");
}
