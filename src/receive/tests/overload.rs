//! Tests that every refused request is answered, and that refusals do not harm the connection or other requests on it.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use tokio::sync::Semaphore;
use tonic::Code;
use tonic_types::StatusExt;

use super::{connections::waiting, *};
use crate::budget::Division;

/// The number of refused requests, over two connections. h2 closes a connection after 1,024 frames of streams that it
/// has reset and no longer remembers.
const REFUSED: usize = 4_000;

/// The number of requests in flight on each connection.
const AT_ONCE: usize = 40;

const MESSAGE: usize = 128 << 10;

/// Sends a request of [`MESSAGE`] bytes and waits for its answer.
async fn send(client: &SendRequest<Bytes>, head: HttpRequest<()>) -> tonic::Status {
    let mut client = client.clone().ready().await.expect("the connection must stay open");
    let (response, mut body) = client.send_request(head, false).expect("the connection must stay open");
    let mut message = vec![0; 5 + MESSAGE];
    message[1..5].copy_from_slice(&u32::try_from(MESSAGE).unwrap().to_be_bytes());
    // Send it in frames, as most clients do. This may fail if the answer arrives first.
    for frame in message.chunks(16 << 10) {
        body.send_data(Bytes::copy_from_slice(frame), false).ok();
        tokio::task::yield_now().await;
    }
    body.send_data(Bytes::new(), true).ok();
    let (parts, _) = response.await.expect("a refused request must be answered").into_parts();
    grpc_status(&parts.headers)
}

/// Sends `REFUSED` requests with this head and asserts that each is refused with `code`. They use two connections, each
/// of which also has a request in flight that waits at the gate.
async fn refuse(
    receiver: &Receiver,
    (gate, alive): (Arc<Semaphore>, Arc<AtomicUsize>),
    head: fn() -> HttpRequest<()>,
    code: Code,
) {
    let clients = [receiver.h2().await, receiver.h2().await];
    let mut neighbours = Vec::new();
    for client in &clients {
        let mut client = client.clone().ready().await.unwrap();
        let (response, mut body) = client.send_request(traces(), false).unwrap();
        body.send_data(Bytes::from_static(&[0; 5]), true).unwrap();
        neighbours.push(response);
    }
    until("both are in flight", || alive.load(Ordering::SeqCst) == 2).await;
    let mut senders = Vec::new();
    for client in clients.iter().cycle().take(2 * AT_ONCE) {
        let client = client.clone();
        senders.push(receiver.tasks.spawn(async move {
            let mut last = None;
            for _ in 0..REFUSED / (2 * AT_ONCE) {
                let status = send(&client, head()).await;
                assert_eq!(status.code(), code, "{status}");
                last = Some(status);
            }
            last.unwrap()
        }));
    }
    for sender in senders {
        let status = sender.await.unwrap();
        let retry = status.get_details_retry_info().and_then(|info| info.retry_delay);
        assert_eq!(retry.is_some(), code == Code::Unavailable, "{status:?}");
    }
    gate.add_permits(neighbours.len());
    for neighbour in neighbours {
        let (_, _, trailers) = tokio::time::timeout(Duration::from_secs(20), finish(neighbour)).await.unwrap();
        assert_eq!(grpc_status(&trailers).code(), Code::Ok);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retryable_refusals_do_not_end_the_connection_or_its_other_requests() {
    let (export, gate, alive) = waiting();
    let budget = Budget::divided(Division { fixed: 0, clients: 1 << 30, requests: 1 << 20 });
    let receiver = Receiver::with(export, GrpcConfig::default(), budget.clone());
    let _others = budget.take((1 << 20) - (32 << 10)).unwrap();
    refuse(&receiver, (gate, alive), traces, Code::Unavailable).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn permanent_refusals_do_not_end_the_connection_or_its_other_requests() {
    let head = || {
        let mut head = traces();
        head.headers_mut().insert("grpc-encoding", http::HeaderValue::from_static("lzma"));
        head
    };
    let (export, gate, alive) = waiting();
    let receiver = Receiver::with(export, GrpcConfig::default(), Budget::new(1 << 30));
    refuse(&receiver, (gate, alive), head, Code::Unimplemented).await;
}
