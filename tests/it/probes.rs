//! `grpc.health.v1` and reflection on the OTLP/gRPC port, for probes, clients that watch health, and grpcurl.

use std::future::pending;

use anyhow::{Context, Result, bail, ensure};
use futures_util::{StreamExt, stream};
use tonic::{Code, Streaming, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, ServerReflectionResponse, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use super::{
    fixture::{ExtraConfig, Fixture},
    tls::World,
};

const TRACES: &str = "opentelemetry.proto.collector.trace.v1.TraceService";
const LOGS: &str = "opentelemetry.proto.collector.logs.v1.LogsService";
const HEALTH: &str = "grpc.health.v1.Health";

fn about(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.to_owned() }
}

async fn next(watch: &mut Streaming<HealthCheckResponse>) -> Result<ServingStatus> {
    Ok(watch.message().await?.context("a watch must not end so")?.status())
}

/// Sends a reflection request and leaves the stream open.
async fn ask(channel: &Channel, question: MessageRequest) -> Result<(MessageResponse, impl Send + use<>)> {
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(question) };
    let requests = stream::iter([request]).chain(stream::once(pending()));
    let mut client = ServerReflectionClient::new(channel.clone());
    let mut answers: Streaming<ServerReflectionResponse> = client.server_reflection_info(requests).await?.into_inner();
    let answer = answers.message().await?.context("an answer")?;
    Ok((answer.message_response.context("a message")?, answers))
}

async fn health_and_reflection_beside_exports(fixture: &Fixture) -> Result<()> {
    let channel = fixture.endpoint()?.connect().await?;
    let mut health = HealthClient::new(channel.clone());
    for service in ["", TRACES, LOGS] {
        let status = health.check(about(service)).await?.into_inner().status();
        ensure!(status == ServingStatus::Serving, "{service}: {status:?}");
    }
    let unknown = health.check(about("no.such.Service")).await;
    ensure!(unknown.as_ref().is_err_and(|status| status.code() == Code::NotFound), "{unknown:?}");
    let mut watch = health.watch(about("no.such.Service")).await?.into_inner();
    ensure!(next(&mut watch).await? == ServingStatus::ServiceUnknown);

    let (MessageResponse::ListServicesResponse(list), _open) =
        ask(&channel, MessageRequest::ListServices(String::new())).await?
    else {
        bail!("no list of services")
    };
    let names: Vec<&str> = list.service.iter().map(|service| &*service.name).collect();
    for service in [TRACES, LOGS, HEALTH, "grpc.reflection.v1.ServerReflection"] {
        ensure!(names.contains(&service), "{service} is served, but {names:?}");
    }
    let symbol = MessageRequest::FileContainingSymbol(HEALTH.to_owned());
    let (MessageResponse::FileDescriptorResponse(files), _open) = ask(&channel, symbol).await? else {
        bail!("no description of {HEALTH}")
    };
    ensure!(!files.file_descriptor_proto.is_empty());
    fixture.serves().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_and_reflection_are_served_on_the_otlp_port() -> Result<()> {
    health_and_reflection_beside_exports(&Fixture::start(1, ExtraConfig::default()).await?).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_and_reflection_are_served_on_the_otlp_port_with_tls() -> Result<()> {
    health_and_reflection_beside_exports(&World::new()?.fixture(1, "").await?).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_are_notified_of_a_drain_and_do_not_delay_it() -> Result<()> {
    let mut fixture = Fixture::start(1, ExtraConfig::default()).await?;
    let channel = fixture.endpoint()?.connect().await?;
    let mut watches = Vec::new();
    for service in ["", TRACES] {
        let mut watch = HealthClient::new(channel.clone()).watch(about(service)).await?.into_inner();
        ensure!(next(&mut watch).await? == ServingStatus::Serving);
        watches.push(watch);
    }
    let (_, _open) = ask(&channel, MessageRequest::ListServices(String::new())).await?;
    fixture.serves().await?;
    fixture.process.signal("TERM")?;
    for mut watch in watches {
        ensure!(next(&mut watch).await? == ServingStatus::NotServing);
        let end = watch.message().await;
        ensure!(end.as_ref().is_err_and(|status| status.code() == Code::Unavailable), "{end:?}");
    }
    let status = fixture.process.wait()?;
    ensure!(status.code() == Some(0), "{status}");
    ensure!(!fixture.process.log().contains("not drained in time"), "{}", fixture.process.log());
    Ok(())
}
