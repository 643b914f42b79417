//! Tests of clients that open streams, take no answers or stop inside of frames: what they may hold, and for how long.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;

use super::{
    connections::{GOAWAY, greeting, kinds, raw_request, until_closed},
    *,
};
use crate::budget::{Division, Use};

/// An account in which clients' connections and streams have this share.
fn account(clients: usize) -> Budget {
    Budget::divided(Division { fixed: 0, clients, requests: 1 << 30 })
}

/// Opens streams without their bodies, as many as h2 lets through.
async fn open(client: SendRequest<Bytes>, count: usize) -> Vec<(ResponseFuture, h2::SendStream<Bytes>)> {
    let mut streams = Vec::new();
    for _ in 0..count {
        let mut client = client.clone().ready().await.unwrap();
        streams.push(client.send_request(traces(), false).unwrap());
    }
    streams
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_without_bodies_hold_no_more_than_their_share_and_others_are_served() {
    let budget = account(4 << 20);
    let receiver = Receiver::with(StandIn::ok(), GrpcConfig::default(), budget.clone());
    let mut good = receiver.client().await;
    good.export(ExportTraceServiceRequest::default()).await.expect("a first request");
    let mut hostile = Vec::new();
    for _ in 0..20 {
        hostile.push(open(receiver.h2().await, 100).await);
    }
    let mut refused = 0;
    for (response, _) in hostile.iter_mut().flatten() {
        let Ok(answer) = tokio::time::timeout(Duration::from_millis(1), response).await else { continue };
        assert_eq!(grpc_status(answer.unwrap().headers()).code(), Code::Unavailable);
        refused += 1;
    }
    assert!(refused > 1_000, "{refused} of 2000");
    assert!(budget.clients_used() <= 4 << 20);
    good.export(ExportTraceServiceRequest::default()).await.expect("a client whose requests were answered has room");
    drop(hostile);
    until("all is given back", || budget.used_for(Use::Streams) == 0).await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_not_taken_loses_its_stream_and_then_the_connection() {
    let (tasks, budget) = (Tasks::new(), account(4 << 20));
    let config = GrpcConfig::default();
    let service = OtlpGrpc::new(StandIn::ok(), budget.clone(), &config, &tasks);
    let stream = serve_service_in_memory(service, &config, &tasks);
    let (client, connection) =
        h2::client::Builder::new().initial_window_size(0).handshake::<_, Bytes>(stream).await.unwrap();
    let connection = tasks.spawn(connection);
    let started = tokio::time::Instant::now();
    let seconds = || started.elapsed().as_secs();
    for reset_at in [10, 20] {
        let (response, mut body) = client.clone().ready().await.unwrap().send_request(traces(), false).unwrap();
        body.send_data(Bytes::from_static(&[0; 5]), true).unwrap();
        let mut answer = response.await.unwrap().into_body();
        assert!(answer.data().await.unwrap().is_err(), "the stream must be reset");
        assert_eq!(seconds(), reset_at);
    }
    assert_eq!(budget.used_for(Use::Streams), 0);
    drop(connection.await);
    assert_eq!(seconds(), 30, "20 seconds after the first answer that was not taken");
    tasks.stop();
}

/// The beginning of a connection up to the last five bytes of a request, which are the payload of its DATA frame.
fn all_but_five_bytes() -> Vec<u8> {
    let mut sent = [greeting(), raw_request()].concat();
    sent.truncate(sent.len() - 5);
    sent
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_silent_inside_of_a_frame_loses_its_connection() {
    let (kinds, lived) = until_closed(&all_but_five_bytes()).await;
    assert!(kinds.contains(&GOAWAY), "{kinds:?}");
    assert!((10.0..=11.1).contains(&lived.as_secs_f64()), "{lived:?}");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_sends_a_frame_slowly_keeps_its_connection() {
    let tasks = Tasks::new();
    let mut client = serve_in_memory(StandIn::ok(), &GrpcConfig::default(), &tasks);
    client.write_all(&all_but_five_bytes()).await.unwrap();
    for byte in [0; 5] {
        tokio::time::sleep(Duration::from_secs(9)).await;
        client.write_all(&[byte]).await.expect("the connection is open");
    }
    let mut bytes = Vec::new();
    let closed = tokio::time::timeout(Duration::from_secs(60), client.read_to_end(&mut bytes)).await;
    assert!(closed.is_err() && !kinds(&bytes).contains(&GOAWAY), "{bytes:?}");
    tasks.stop();
}
