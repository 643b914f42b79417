//! The gRPC services, called through generated clients without a network.

use tonic::{Code, Streaming, service::Routes};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use super::*;
use crate::admin::{
    answers::Answers,
    api::{
        grpc::{MAX_WATCHERS, routes},
        health::MAX_WATCHERS as MAX_HEALTH_WATCHERS,
    },
    pb::v1::{
        Cause, GetRingRequest, ListBackendsRequest, ListChangesRequest, WatchRingRequest, WatchRingResponse,
        ring_client::RingClient,
    },
};

impl Rig {
    fn client(&self) -> RingClient<Routes> {
        RingClient::new(self.routes(&Tasks::new()))
    }

    fn routes(&self, tasks: &Tasks) -> Routes {
        routes(&self.state, &Arc::new(Answers::new(self.state.budget.clone())), tasks)()
    }
}

async fn watching(client: &mut RingClient<Routes>, pool: &str) -> Result<Streaming<WatchRingResponse>, tonic::Status> {
    Ok(client.watch_ring(WatchRingRequest { pool: pool.to_owned() }).await?.into_inner())
}

async fn next(stream: &mut Streaming<WatchRingResponse>) -> (u64, Vec<(u64, Cause)>) {
    let message = stream.message().await.expect("a message").expect("no end");
    let generation = message.ring.expect("a ring").generation;
    (generation, message.changes.iter().map(|change| (change.generation, change.cause())).collect())
}

#[tokio::test]
async fn grpc_and_json_say_the_same() {
    let mut rig = Rig::of_three().await;
    rig.feeds[0].refuse("b").await;
    let (mut client, pools) = (rig.client(), rig.state.pools.current());
    let ring = client.get_ring(GetRingRequest::default()).await.expect("a ring").into_inner();
    assert_eq!(ring, super::super::ring(&pools, "").expect("a ring"));
    assert_eq!(ring.pools[0].members[1].state(), crate::admin::pb::v1::State::Ejected);
    let backends = client.list_backends(ListBackendsRequest::default()).await.expect("backends").into_inner();
    assert_eq!(backends, super::super::backends(&pools, "").expect("backends"));
    let changes = client.list_changes(ListChangesRequest::default()).await.expect("changes").into_inner();
    assert_eq!(changes, super::super::changes(&pools, "").expect("changes"));
    let question = LookupRequest { trace_id: rig.trace_of("a"), ..LookupRequest::default() };
    let answer = client.lookup(question.clone()).await.expect("an owner").into_inner();
    assert_eq!(answer, lookup(&pools, &question).expect("an owner"));
    assert_eq!(answer.pools[0].owners[0].identity, "a");
}

#[tokio::test]
async fn questions_without_an_answer_have_the_code_that_fits() {
    let rig = Rig::new(&["tail"]);
    let mut client = rig.client();
    let mut code = async |trace_id: &str, pool: &str, signal: &str| {
        let [trace_id, pool, signal] = [trace_id, pool, signal].map(str::to_owned);
        client.lookup(LookupRequest { trace_id, pool, signal }).await.expect_err("no answer").code()
    };
    assert_eq!(code("1", "", "").await, Code::InvalidArgument);
    assert_eq!(code(TRACE, "head", "").await, Code::NotFound);
    assert_eq!(code(TRACE, "", "metrics").await, Code::NotFound);
    assert_eq!(code(TRACE, "", "spans").await, Code::InvalidArgument);
    assert_eq!(code(TRACE, "", "").await, Code::Unavailable);
    assert_eq!(code(&"1".repeat(20_000), "", "").await, Code::OutOfRange, "tonic's word for a message too long");
}

#[tokio::test]
async fn a_watcher_sees_the_ring_and_then_each_change_with_its_cause() {
    let mut rig = Rig::new(&["tail"]);
    let mut stream = watching(&mut rig.client(), "").await.expect("a stream");
    assert_eq!(next(&mut stream).await, (0, vec![]), "the pool has no table yet");
    rig.feeds[0].discover(&["a", "b", "c"]).await;
    assert_eq!(next(&mut stream).await, (1, vec![(1, Cause::Discovery)]));
    rig.feeds[0].refuse("b").await;
    assert_eq!(next(&mut stream).await, (2, vec![(2, Cause::Ejection)]));
    rig.add("late");
    assert_eq!(next(&mut stream).await, (0, vec![]), "a pool that came later is watched too");
}

#[tokio::test]
async fn a_slow_watcher_gets_the_latest_ring_and_what_it_missed() {
    let mut rig = Rig::of_three().await;
    let watcher = |pools: &Pools| {
        let permit = Arc::new(tokio::sync::Semaphore::new(1)).try_acquire_owned().expect("a permit");
        watch::Watch::begin(pools, "tail", watch::WatchPermit::new(permit, metrics::Gauge::noop()))
    };
    let mut stream = watcher(&rig.state.pools).expect("a stream");
    let mut next = async || {
        let message = futures_util::StreamExt::next(&mut stream).await.expect("no end").expect("a message");
        (message.ring.expect("a ring").generation, message.changes.len())
    };
    assert_eq!(next().await, (1, 0));
    rig.feeds[0].refuse("b").await;
    rig.feeds[0].discover(&["a", "b", "c", "d"]).await;
    rig.feeds[0].discover(&["a", "b", "c", "d", "e"]).await;
    assert_eq!(next().await, (4, 3), "one message for three changes");
}

#[tokio::test]
async fn watchers_are_bounded_and_a_permit_is_freed() {
    let rig = Rig::of_three().await;
    let mut client = rig.client();
    let mut streams = Vec::new();
    for _ in 0..MAX_WATCHERS {
        streams.push(watching(&mut client, "tail").await.expect("a place"));
    }
    assert_eq!(watching(&mut client, "tail").await.expect_err("no place").code(), Code::ResourceExhausted);
    streams.pop();
    assert!(watching(&mut client, "tail").await.is_ok(), "one has gone");
}

#[tokio::test]
async fn a_watch_of_a_pool_ends_with_the_pool() {
    let rig = Rig::of_three().await;
    let mut client = rig.client();
    assert_eq!(watching(&mut client, "head").await.expect_err("no pool").code(), Code::NotFound);
    let mut stream = watching(&mut client, "tail").await.expect("a stream");
    assert_eq!(next(&mut stream).await.0, 1);
    rig.state.pools.remove("tail");
    assert_eq!(stream.message().await.expect_err("it went").code(), Code::NotFound);
}

#[tokio::test]
async fn reflection_lists_the_service_and_its_methods() {
    let rig = Rig::new(&[]);
    let mut client = ServerReflectionClient::new(rig.routes(&Tasks::new()));
    let mut ask = async |question| {
        let request = ServerReflectionRequest { host: String::new(), message_request: Some(question) };
        let mut answers = client.server_reflection_info(futures_util::stream::iter([request])).await.expect("answers");
        answers.get_mut().message().await.expect("an answer").expect("one").message_response
    };
    let Some(MessageResponse::ListServicesResponse(list)) = ask(MessageRequest::ListServices(String::new())).await
    else {
        panic!("no list")
    };
    let names: Vec<&str> = list.service.iter().map(|service| &*service.name).collect();
    assert!(names.contains(&"spanring.admin.v1.Ring") && names.contains(&"grpc.health.v1.Health"), "{names:?}");
    let symbol = "spanring.admin.v1.Ring.WatchRing".to_owned();
    let Some(MessageResponse::FileDescriptorResponse(files)) = ask(MessageRequest::FileContainingSymbol(symbol)).await
    else {
        panic!("no file")
    };
    assert!(!files.file_descriptor_proto.is_empty());
}

#[tokio::test]
async fn health_follows_readiness() {
    let rig = Rig::new(&[]);
    let flag = rig.state.readiness.flag("start", "the process is starting");
    let mut client = HealthClient::new(rig.routes(&Tasks::new()));
    let mut check = async |service: &str| {
        let request = HealthCheckRequest { service: service.to_owned() };
        client.check(request).await.map(|answer| answer.into_inner().status())
    };
    assert_eq!(check("").await.expect("a status"), ServingStatus::NotServing);
    flag.set();
    for service in ["", "spanring.admin.v1.Ring", "opentelemetry.proto.collector.trace.v1.TraceService"] {
        assert_eq!(check(service).await.expect("a status"), ServingStatus::Serving, "{service}");
    }
    assert_eq!(check("spanring.admin.v1").await.expect_err("no service").code(), Code::NotFound);
    rig.state.readiness.drain();
    assert_eq!(check("").await.expect("a status"), ServingStatus::NotServing);
}

#[tokio::test(start_paused = true)]
async fn watchers_of_health_are_bounded_and_hear_the_end() {
    let (rig, tasks) = (Rig::new(&[]), Tasks::new());
    let mut client = HealthClient::new(rig.routes(&tasks));
    let mut streams = Vec::new();
    for _ in 0..MAX_HEALTH_WATCHERS {
        streams.push(client.watch(HealthCheckRequest::default()).await.expect("a place").into_inner());
    }
    let refused = client.watch(HealthCheckRequest::default()).await.expect_err("no place");
    // After UNIMPLEMENTED clients keep sending; after any other error they stop.
    assert_eq!(refused.code(), Code::Unimplemented);
    assert!(client.check(HealthCheckRequest::default()).await.is_ok(), "probes are answered as ever");
    streams.pop();
    assert!(client.watch(HealthCheckRequest::default()).await.is_ok(), "one has gone");
    let stream = &mut streams[0];
    assert_eq!(stream.message().await.expect("a message").expect("no end").status(), ServingStatus::Serving);
    rig.state.readiness.drain();
    tasks.drain();
    assert_eq!(stream.message().await.expect("a message").expect("no end").status(), ServingStatus::NotServing);
    assert_eq!(stream.message().await.expect_err("the end").code(), Code::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn health_is_watched() {
    let rig = Rig::new(&[]);
    let mut client = HealthClient::new(rig.routes(&Tasks::new()));
    let mut watch = async |service: &str| {
        client.watch(HealthCheckRequest { service: service.to_owned() }).await.expect("a stream").into_inner()
    };
    let mut stream = watch("").await;
    assert_eq!(stream.message().await.expect("a message").expect("no end").status(), ServingStatus::Serving);
    rig.state.readiness.drain();
    assert_eq!(stream.message().await.expect("a message").expect("no end").status(), ServingStatus::NotServing);
    let mut unknown = watch("nobody").await;
    let status = unknown.message().await.expect("a message").expect("no end").status();
    assert_eq!(status, ServingStatus::ServiceUnknown);
}
