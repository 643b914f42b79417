//! What OTLP/HTTP clients send arrives unchanged, each trace at one backend; and what they are told when it does not.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use opentelemetry_proto::tonic::{
    collector::{logs::v1::ExportLogsServiceRequest, trace::v1::ExportTraceServiceRequest},
    logs::v1::{LogRecord, ResourceLogs, ScopeLogs},
};
use prost::Message;
use tonic::Status;

use super::{
    super::{
        backend::Answer,
        fixture::{ExtraConfig, Fixture, encoded, keys_of, padded, span},
    },
    bodies::{gzip, zstd},
    wire::{self, Request},
};

const PROTOBUF: &str = "application/x-protobuf";
const JSON: &str = "application/json";
const TRACES: &str = "/v1/traces";

const SERVED: ExtraConfig =
    ExtraConfig { http: Some(""), grpc: "", deadline: "", pool: "", top: "", descriptors: None };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spans_arrive_unchanged_and_each_trace_at_one_backend() -> Result<()> {
    let fixture = Fixture::start(3, SERVED).await?;
    let address = fixture.http()?;
    let mut sent = Vec::new();
    let kinds = [PROTOBUF, JSON].into_iter().flat_map(|kind| ["", "gzip", "zstd"].map(|encoding| (kind, encoding)));
    for (n, (kind, encoding)) in kinds.enumerate() {
        let traces: Vec<[u8; 16]> = (0..60).map(|_| fixture.trace()).collect();
        for half in 0..2 {
            let number = |at: usize| (n * 1_000 + half * 100 + at) as u64;
            let spans: Vec<_> =
                traces.iter().enumerate().map(|(at, trace)| padded(span(trace, number(at)), 2_000)).collect();
            let body = encoded(spans.clone());
            let (body, expected) = match kind {
                JSON => (serde_json::to_vec(&ExportTraceServiceRequest::decode(&body[..])?)?, "{}"),
                _ => (body, ""),
            };
            let body = match encoding {
                "gzip" => gzip(&body),
                "zstd" => zstd(&body),
                _ => body,
            };
            let mut request = Request::post(TRACES, kind, body);
            if !encoding.is_empty() {
                request = request.with("content-encoding", encoding);
            }
            let answer = tokio::task::block_in_place(|| wire::send(address, &request.bytes(), false))?;
            ensure!(answer.status == 200 && answer.body == expected.as_bytes(), "{kind} {encoding}: {answer:?}");
            ensure!(answer.header("content-type") == Some(kind), "{answer:?}");
            sent.extend(spans);
        }
    }
    let account = fixture.account(&keys_of(&sent));
    ensure!((account.missing, account.duplicates, account.split) == (0, 0, 0), "{account:?}");
    let mut arrived = BTreeSet::new();
    for message in fixture.backends.iter().flat_map(super::super::backend::Backend::messages) {
        let request = ExportTraceServiceRequest::decode(message)?;
        let scopes = request.resource_spans.iter().flat_map(|resource| &resource.scope_spans);
        arrived.extend(scopes.flat_map(|scope| scope.spans.iter().map(Message::encode_to_vec)));
    }
    let expected: BTreeSet<_> = sent.iter().map(Message::encode_to_vec).collect();
    ensure!(arrived == expected, "the spans must be the same bytes");
    fixture.serves().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_have_their_path() -> Result<()> {
    let fixture = Fixture::start(1, SERVED).await?;
    let record = LogRecord { trace_id: fixture.trace().to_vec(), ..LogRecord::default() };
    let scope_logs = vec![ScopeLogs { log_records: vec![record], ..ScopeLogs::default() }];
    let request =
        ExportLogsServiceRequest { resource_logs: vec![ResourceLogs { scope_logs, ..ResourceLogs::default() }] };
    let request = Request::post("/v1/logs", PROTOBUF, request.encode_to_vec()).bytes();
    let address = fixture.http()?;
    let answer = tokio::task::block_in_place(|| wire::send(address, &request, false))?;
    ensure!(answer.status == 200, "{answer:?}");
    ensure!(fixture.metric("spanring_receiver_records_total", &["signal=\"logs\"", "outcome=\"accepted\""])? == 1.0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_backends_answer_becomes_a_status_of_http() -> Result<()> {
    let fixture = Fixture::start(1, ExtraConfig { deadline: "1s", ..SERVED }).await?;
    let address = fixture.http()?;
    let send = |answer: Answer| {
        fixture.backends[0].answer(move |_| answer.clone());
        let body = encoded(vec![span(&fixture.trace(), 1), span(&fixture.trace(), 2)]);
        let request = Request::post(TRACES, PROTOBUF, body).bytes();
        tokio::task::block_in_place(|| wire::send(address, &request, false))
    };
    let answer = send(Answer::Partial(1, "one of them"))?;
    let partial =
        opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse::decode(&answer.body[..])?;
    let partial = partial.partial_success.context("a partial success")?;
    ensure!((answer.status, partial.rejected_spans, &*partial.error_message) == (200, 1, "one of them"), "{partial:?}");
    for (status, expected) in [
        (Status::invalid_argument("bad"), 400),
        (Status::unauthenticated("who"), 401),
        (Status::permission_denied("no"), 403),
        (Status::unimplemented("what"), 404),
        (Status::resource_exhausted("large"), 413),
        (Status::internal("oh"), 500),
    ] {
        let answer = send(Answer::Status(status.clone()))?;
        let shown = tonic_types::Status::decode(&answer.body[..])?;
        ensure!((answer.status, shown.code) == (expected, status.code() as i32), "{status:?}: {answer:?}");
        ensure!(answer.header("retry-after").is_none(), "{answer:?}");
        ensure!(shown.message.contains(status.message()), "{shown:?}");
    }
    let answer = send(Answer::Status(Status::unavailable("later")))?;
    ensure!(answer.status == 503 && answer.header("retry-after").is_some(), "{answer:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_browsers_may_send_if_they_are_allowed() -> Result<()> {
    let http = Some("cors: { allowed_origins: [\"https://*.shop.test\"], allowed_headers: [x-key], max_age: 60 },");
    let fixture = Fixture::start(1, ExtraConfig { http, ..SERVED }).await?;
    let address = fixture.http()?;
    let send = |request: &Request| tokio::task::block_in_place(|| wire::send(address, &request.bytes(), false));
    let ask = |origin: &str| {
        let request = Request::post(TRACES, PROTOBUF, "").without("content-type").without_length();
        let request = request.line("OPTIONS /v1/traces HTTP/1.1").with("origin", origin);
        let request = request.with("access-control-request-method", "POST");
        send(&request.with("access-control-request-headers", "content-type,x-key"))
    };
    let allowed = ask("https://www.shop.test")?;
    ensure!(allowed.status == 204, "{allowed:?}");
    ensure!(allowed.header("access-control-allow-origin") == Some("https://www.shop.test"), "{allowed:?}");
    ensure!(allowed.header("access-control-max-age") == Some("60"), "{allowed:?}");
    let refused = ask("https://other.test")?;
    ensure!(refused.header("access-control-allow-origin").is_none(), "{refused:?}");
    let body = encoded(vec![span(&fixture.trace(), 1)]);
    let sent = send(&Request::post(TRACES, PROTOBUF, body).with("origin", "https://www.shop.test"))?;
    ensure!(sent.status == 200, "{sent:?}");
    ensure!(sent.header("access-control-allow-origin") == Some("https://www.shop.test"), "{sent:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_port_says_where_the_other_protocol_is() -> Result<()> {
    let fixture = Fixture::start(1, SERVED).await?;
    let (grpc, http) = (fixture.grpc, fixture.http()?);
    let request = Request::post(TRACES, PROTOBUF, "").bytes();
    let answer = tokio::task::block_in_place(|| wire::send(grpc, &request, false))?;
    let text = String::from_utf8(answer.body)?;
    ensure!(answer.status == 400 && text.contains(&format!("OTLP/HTTP is on port {}", http.port())), "{text}");
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{http}"))?.connect().await?;
    let mut client =
        opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient::new(channel);
    let status = client.export(ExportTraceServiceRequest::default()).await.err().context("it is refused")?;
    ensure!(status.message().contains(&format!("OTLP/gRPC is on port {}", grpc.port())), "{status:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_to_json_are_json() -> Result<()> {
    let fixture = Fixture::start(1, ExtraConfig { deadline: "1s", ..SERVED }).await?;
    let address = fixture.http()?;
    let send = |body: &str| {
        let request = Request::post(TRACES, JSON, body).bytes();
        let answer = tokio::task::block_in_place(|| wire::send(address, &request, false))?;
        ensure!(answer.header("content-type") == Some(JSON), "{answer:?}");
        anyhow::Ok((answer.status, serde_json::from_slice::<serde_json::Value>(&answer.body)?))
    };
    let trace: String = fixture.trace().iter().map(|byte| format!("{byte:02x}")).collect();
    let span = format!(
        r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{{"traceId":"{trace}","spanId":"00000000000000b1"}}]}}]}}]}}"#
    );
    fixture.backends[0].answer(|_| Answer::Partial(1, "one of them"));
    let partial = serde_json::json!({ "rejectedSpans": "1", "errorMessage": "one of them" });
    ensure!(send(&span)? == (200, serde_json::json!({ "partialSuccess": partial })), "{:?}", send(&span)?);
    fixture.backends[0].answer(|_| Answer::Status(Status::unavailable("later")));
    let (status, body) = send(&span)?;
    ensure!(status == 503 && body["code"] == 14, "{status} {body}");
    let (status, body) = send(&span.replace("00000000000000b1", "b1"))?;
    let message = "malformed JSON: the ID has 2 characters instead of 16 at line 1, column 99, in \
                   resourceSpans[0].scopeSpans[0].spans[0].spanId";
    ensure!((status, &body) == (400, &serde_json::json!({ "code": 3, "message": message })), "{status} {body}");
    Ok(())
}
