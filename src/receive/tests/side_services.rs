//! Tests of the side services: they are built on demand, their calls are limited, and they end when the drain begins.

use std::{
    convert::Infallible,
    sync::atomic::{AtomicUsize, Ordering},
    task::{Context, Poll, Waker},
};

use futures_util::{StreamExt, stream};
use http_body::{Body, Frame};
use http_body_util::Full;
use tonic::{Code, Status, Streaming, service::Routes};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_server::{Health, HealthServer},
};
use tonic_reflection::{
    pb::v1::{
        ServerReflectionRequest, ServerReflectionResponse, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest,
    },
    server::Builder,
};

use super::*;
use crate::receive::{
    exchange::Exchange,
    reply::ReplyBody,
    side_services::{MAX_HEALTH, MAX_REFLECTION, SideServices},
};

const CHECK: &str = "/grpc.health.v1.Health/Check";

/// A health service that never reports a status.
struct Mute;

#[tonic::async_trait]
impl Health for Mute {
    type WatchStream = stream::Pending<Result<HealthCheckResponse, Status>>;

    async fn check(
        &self,
        _: tonic::Request<HealthCheckRequest>,
    ) -> Result<tonic::Response<HealthCheckResponse>, Status> {
        Err(Status::data_loss("a complete request arrived"))
    }

    async fn watch(&self, _: tonic::Request<HealthCheckRequest>) -> Result<tonic::Response<Self::WatchStream>, Status> {
        Ok(tonic::Response::new(stream::pending()))
    }
}

/// Starts a receiver with reflection. Returns it with a count of how often reflection was built.
async fn started() -> (Receiver, Arc<AtomicUsize>) {
    let made = Arc::<AtomicUsize>::default();
    let (tasks, budget, export) = (Tasks::new(), Budget::new(1 << 30), StandIn::ok());
    let config = GrpcConfig { endpoint: SocketAddr::from(([127, 0, 0, 1], 0)), ..GrpcConfig::default() };
    let count = Arc::clone(&made);
    let bound = crate::receive::bind(&Config { grpc: Some(config), http: None }).unwrap().side_services(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        Routes::new(Builder::configure().build_v1().unwrap())
    });
    let listeners = bound.serve(Arc::clone(&export), budget.clone(), &tasks).listeners();
    (Receiver { address: listeners.grpc.unwrap(), budget, tasks, export }, made)
}

/// Opens a reflection stream, reads one answer and leaves the stream open.
async fn asked(channel: &Channel) -> Result<Streaming<ServerReflectionResponse>, Status> {
    let question = MessageRequest::ListServices(String::new());
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(question) };
    let requests = stream::iter([request]).chain(stream::pending());
    let mut answers = ServerReflectionClient::new(channel.clone()).server_reflection_info(requests).await?.into_inner();
    answers.message().await?.expect("an answer");
    Ok(answers)
}

#[tokio::test]
async fn side_services_are_built_once_at_the_first_request_for_them() {
    let (receiver, made) = started().await;
    receiver.client().await.export(ExportTraceServiceRequest::default()).await.unwrap();
    assert_eq!(made.load(Ordering::Relaxed), 0);
    let channel = Endpoint::from_shared(format!("http://{}", receiver.address)).unwrap().connect().await.unwrap();
    for _ in 0..2 {
        asked(&channel).await.unwrap();
    }
    assert_eq!(made.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn calls_of_side_services_are_limited_and_end_when_the_drain_begins() {
    let (receiver, _made) = started().await;
    let channel = Endpoint::from_shared(format!("http://{}", receiver.address)).unwrap().connect().await.unwrap();
    let mut open = Vec::new();
    for _ in 0..MAX_REFLECTION {
        open.push(asked(&channel).await.unwrap());
    }
    assert_eq!(asked(&channel).await.unwrap_err().code(), Code::ResourceExhausted);
    receiver.client().await.export(ExportTraceServiceRequest::default()).await.unwrap();
    receiver.tasks.drain();
    for mut answers in open {
        assert_eq!(answers.message().await.unwrap_err().code(), Code::Unavailable);
    }
    // The drain must not have to wait for these calls.
    receiver.tasks.wait().await;
}

#[tokio::test(start_paused = true)]
async fn an_unfinished_request_times_out_and_requests_that_are_not_grpc_are_refused() {
    let (tasks, config) = (Tasks::new(), GrpcConfig::default());
    let services = SideServices::new(Box::new(|_| Routes::new(HealthServer::new(Mute))), &tasks);
    let exchange = Arc::new(Exchange::new(StandIn::ok(), Budget::new(1 << 30), &tasks));
    let service = OtlpGrpc::with(Some(services), exchange, &config);
    let mut client = h2_over(serve_service_in_memory(service, &config, &tasks), &tasks).await;
    let mut status = async |request: HttpRequest<()>, question: Option<&'static [u8]>| {
        client = client.clone().ready().await.unwrap();
        let (response, mut sending) = client.send_request(request, false).unwrap();
        if let Some(question) = question {
            sending.send_data(question.into(), true).unwrap();
        }
        let response = response.await.unwrap();
        (response.status().as_u16(), response.headers()["grpc-status"].to_str().unwrap().to_owned())
    };
    let url = format!("http://localhost{CHECK}");
    assert_eq!(status(HttpRequest::get(&url).body(()).unwrap(), None).await, (405, "13".to_owned()));
    assert_eq!(status(HttpRequest::post(&url).body(()).unwrap(), None).await, (415, "3".to_owned()));
    assert_eq!(
        status(head(CHECK), Some(&[0; 5])).await,
        (200, "15".to_owned()),
        "a complete request reaches the service"
    );
    assert_eq!(status(head(CHECK), None).await, (200, "4".to_owned()), "an unfinished request must time out");
    assert_eq!(
        status(head("/grpc.health.v2.Health/Check"), None).await,
        (200, "12".to_owned()),
        "there is no such service"
    );
    tasks.stop();
}

/// The body of a request that never arrives.
struct Unfinished;

impl Body for Unfinished {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Pending
    }
}

#[tokio::test]
async fn checks_that_do_not_arrive_keep_no_place_from_others() {
    let services = SideServices::new(Box::new(|_| Routes::new(HealthServer::new(Mute))), &Tasks::new());
    let mut context = Context::from_waker(Waker::noop());
    let mut unfinished = Vec::new();
    for _ in 0..=MAX_HEALTH {
        let mut answer = Box::pin(services.clone().answer(head(CHECK).map(|()| Unfinished)));
        assert!(answer.as_mut().poll(&mut context).is_pending());
        unfinished.push(answer);
    }
    let whole = |len: usize| head(CHECK).map(|()| Full::new(Bytes::from(vec![0; len])));
    let code = |answer: Response<ReplyBody>| answer.headers()["grpc-status"].to_str().unwrap().to_owned();
    assert_eq!(code(services.clone().answer(whole(5)).await), "15", "a request that is whole is answered");
    assert_eq!(code(services.clone().answer(whole(2_000)).await), "8", "one that is too long is not kept");
    // Watches take places.
    let watch = || head("/grpc.health.v1.Health/Watch").map(|()| Full::new(Bytes::from_static(&[0; 5])));
    let mut watches = Vec::new();
    for _ in 0..MAX_HEALTH {
        let answer = services.clone().answer(watch()).await;
        assert!(!answer.headers().contains_key("grpc-status"));
        watches.push(answer);
    }
    assert_eq!(code(services.clone().answer(watch()).await), "8", "there are only so many");
    drop(watches);
    assert_eq!(code(services.answer(whole(5)).await), "15");
}
