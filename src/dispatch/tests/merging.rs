//! Tests of merged calls: which parts share a call, and which outcome each of them gets.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{sync::mpsc, time::Instant};
use tonic::{Code, Status};

use crate::{
    dispatch::{Config, PartOutcome},
    settings::Compression,
    testing::*,
};

/// A configuration with one place, so that parts wait while a call is in flight.
fn one_place() -> Config {
    Config { places: 1, ..Config::default() }
}

#[tokio::test]
async fn a_lone_part_is_sent_at_once_and_later_ones_together() {
    let rig_tasks = Tasks::new();
    let mut backend = Script::start(&rig_tasks, None, 100).await;
    let rig = Rig::start_with(one_place(), &[backend.address], rig_tasks);
    let first = rig.submit(vec![part(&["a", "b"], 0)]);
    let call = backend.call().await;
    assert_eq!(call.spans, ["a", "b"]);
    assert_eq!(call.metadata.get("grpc-timeout").unwrap(), "5000m");
    assert!(call.metadata.get("user-agent").unwrap().to_str().unwrap().starts_with("spanring/"));
    let rest: Vec<_> = ["c", "d", "e"].map(|name| rig.submit(vec![part(&[name], 0)])).into();
    assert!(backend.is_quiet(), "there is one place");
    call.accept();
    assert_eq!(outcome(&first).await, accepted());
    let call = backend.call().await;
    assert_eq!(call.spans, ["c", "d", "e"], "the merged message must be the union of its parts, in their order");
    call.accept();
    for join in &rest {
        assert_eq!(outcome(join).await, accepted());
    }
}

#[tokio::test]
async fn a_further_place_opens_when_a_part_has_waited() {
    let tasks = Tasks::new();
    let mut backend = Script::start(&tasks, None, 100).await;
    let rig = Rig::start_with(Config::default(), &[backend.address], tasks);
    let _first = rig.submit(vec![part(&["a"], 0)]);
    let held = backend.call().await;
    let second = rig.submit(vec![part(&["b"], 0)]);
    backend.call().await.accept();
    assert_eq!(outcome(&second).await, accepted(), "must not wait for the held call");
    held.accept();
}

#[tokio::test]
async fn many_small_and_large_parts_merge_to_their_union() {
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let tasks = Tasks::new();
        let mut backend = Script::start(&tasks, None, 100).await;
        let rig = Rig::start_with(
            Config { places: 1, ..with_keys(|keys| keys.compression = compression) },
            &[backend.address],
            tasks,
        );
        let first = rig.submit(vec![part(&["first"], 0)]);
        let call = backend.call().await;
        let sizes = [1, 100, 9_000, 20_000, 300, 8_192, 70_000, 1, 15_000];
        let parts: Vec<_> = sizes.iter().map(|size| large_part(2, size / 2, 0)).collect();
        let joins: Vec<_> = parts.into_iter().map(|part| rig.submit(vec![part])).collect();
        call.accept();
        assert_eq!(outcome(&first).await, accepted());
        let call = backend.call().await;
        assert_eq!(call.spans.len(), 2 * sizes.len(), "{compression:?}");
        call.accept();
        for join in &joins {
            assert_eq!(outcome(join).await, accepted());
        }
    }
}

#[tokio::test]
async fn parts_that_must_go_alone_have_calls_of_their_own() {
    let tasks = Tasks::new();
    let mut backend = Script::start(&tasks, None, 100).await;
    let rig = Rig::start_with(one_place(), &[backend.address], tasks);
    let _first = rig.submit(vec![part(&["a"], 0)]);
    let call = backend.call().await;
    let suspect = Arc::<crate::otlp::ClientConnection>::default();
    suspect.keep_unmerged(Instant::now(), Duration::from_secs(60));
    let _joins = [
        rig.submit(vec![crate::dispatch::Part { alone: true, ..part(&["alone"], 0) }]),
        rig.submit(vec![part(&["b"], 0)]),
        rig.submit_from(vec![part(&["suspect"], 0)], &suspect),
        rig.submit(vec![part(&["c"], 0)]),
    ];
    call.accept();
    let mut seen = Vec::new();
    for _ in 0..3 {
        let call = backend.call().await;
        seen.push(call.spans.clone());
        call.accept();
    }
    seen.sort();
    assert_eq!(seen, [vec!["alone"], vec!["b", "c"], vec!["suspect"]]);
}

#[tokio::test]
async fn a_merged_call_that_is_refused_fails_only_the_bad_part() {
    let tasks = Tasks::new();
    let mut backend = Script::start(&tasks, None, 100).await;
    let rig = Rig::start_with(one_place(), &[backend.address], tasks);
    let _first = rig.submit(vec![part(&["a"], 0)]);
    let call = backend.call().await;
    let (good_client, bad_client) = (Arc::default(), Arc::<crate::otlp::ClientConnection>::default());
    let good = rig.submit_from(vec![part(&["good"], 0)], &good_client);
    let bad = rig.submit_from(vec![part(&["bad", "bad"], 0)], &bad_client);
    call.accept();
    let call = backend.call().await;
    assert_eq!(call.spans, ["good", "bad", "bad"]);
    call.refuse(Status::internal("malformed ID"));
    for _ in 0..2 {
        let call = backend.call().await;
        if call.spans == ["bad", "bad"] { call.refuse(Status::internal("malformed ID")) } else { call.accept() }
    }
    assert_eq!(outcome(&good).await, accepted());
    let expected = PartOutcome::Rejected { code: Code::Internal, message: "malformed ID".into() };
    assert_eq!(outcome(&bad).await, expected);
    assert!(good_client.may_merge(), "the good client must stay merged");
    assert!(!bad_client.may_merge(), "the bad client must go alone for a while");
}

#[tokio::test]
async fn partial_success_of_a_merged_call_is_a_warning_to_each_and_the_next_counts_are_exact() {
    let tasks = Tasks::new();
    let mut backend = Script::start(&tasks, None, 100).await;
    let rig = Rig::start_with(one_place(), &[backend.address], tasks);
    let alone = rig.submit(vec![part(&["a", "b"], 0)]);
    let call = backend.call().await;
    let merged = [rig.submit(vec![part(&["c"], 0)]), rig.submit(vec![part(&["d"], 0)])];
    call.accept_partly(1, "one was bad");
    let exact = PartOutcome::Accepted { rejected: 1, message: Some("one was bad".into()) };
    assert_eq!(outcome(&alone).await, exact, "a call of one part is counted exactly");
    let call = backend.call().await;
    let next = [rig.submit(vec![part(&["e"], 0)]), rig.submit(vec![part(&["f"], 0)])];
    call.accept_partly(1, "one was bad");
    for join in &merged {
        let warning = PartOutcome::Accepted { rejected: 0, message: Some("one was bad".into()) };
        assert_eq!(outcome(join).await, warning);
    }
    for (join, name) in next.iter().zip(["e", "f"]) {
        let call = backend.call().await;
        assert_eq!(call.spans, [name], "parts must go unmerged for a while");
        call.accept_partly(1, "one was bad");
        assert_eq!(outcome(join).await, exact);
    }
}

#[tokio::test]
async fn a_single_record_above_the_limit_goes_alone() {
    let tasks = Tasks::new();
    let mut backend = Script::start(&tasks, None, 100).await;
    let keys = with_keys(|keys| {
        keys.max_request_size_mib.bytes = 1_000;
        keys.sending_queue.queue_size.0 = 2_000;
    });
    let config = Config { places: 1, ..keys };
    let rig = Rig::start_with(config, &[backend.address], tasks);
    let join = rig.submit(vec![large_part(1, 5_000, 0)]);
    backend.call().await.accept();
    assert_eq!(outcome(&join).await, accepted());
}

/// The receive window of [`swallow`] for a call.
const WINDOW: usize = 150_000;

/// Accepts one connection, reports each complete body, and answers no call.
async fn swallow(listener: tokio::net::TcpListener, bodies: mpsc::Sender<usize>, tasks: Tasks) {
    let (stream, _) = listener.accept().await.unwrap();
    let mut builder = h2::server::Builder::new();
    builder.initial_window_size(u32::try_from(WINDOW).unwrap()).initial_connection_window_size(1 << 20);
    let mut peer: h2::server::Connection<_, Bytes> = builder.handshake(stream).await.unwrap();
    while let Some(Ok((mut request, reply))) = peer.accept().await {
        let bodies = bodies.clone();
        tasks.spawn(async move {
            let mut len = 0;
            while let Some(Ok(data)) = request.body_mut().data().await {
                len += data.len();
                if len == WINDOW {
                    request.body_mut().flow_control().release_capacity(WINDOW).unwrap();
                }
            }
            bodies.send(len).await.unwrap();
            // The stream stays open: any frame, even a reset, would wake the connection.
            std::future::pending::<()>().await;
            drop(reply);
        });
    }
}

#[tokio::test(start_paused = true)]
async fn the_partial_packet_after_a_large_write_needs_no_timer() {
    let listener = listen().await;
    let address = listener.local_addr().unwrap();
    let (bodies, mut received) = mpsc::channel(1);
    let tasks = Tasks::new();
    tasks.spawn(swallow(listener, bodies, tasks.clone()));
    // The paused clock does not advance while a thread blocks. If something waits for a timer, it advances after a while.
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let clock = tokio::task::spawn_blocking(move || ended.recv_timeout(Duration::from_secs(5)));
    // The first call is not answered, so the second one begins beside it, at once.
    let config = Config { open_place_bytes: 1, ..Config::default() };
    let rig = Rig::start_with(config, &[address], tasks);
    let start = Instant::now();
    // By the second call the peer's window is known. The peer sends nothing before it has read that many bytes.
    for count in [1, 200] {
        let part = large_part(count, 1_000, 0);
        let len = part.message.payload_len() + 5;
        let _join = rig.submit(vec![part]);
        assert_eq!(received.recv().await, Some(len));
        assert_eq!(start.elapsed(), Duration::ZERO, "it waited for a timer");
    }
    drop(end);
    clock.await.unwrap().unwrap_err();
}
