//! Backends that refuse calls: temporarily, permanently, in part, or without gRPC.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use opentelemetry_proto::tonic::{
    collector::logs::v1::{ExportLogsServiceRequest, logs_service_client::LogsServiceClient},
    logs::v1::{LogRecord, ResourceLogs, ScopeLogs},
};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::{
    backend::{Answer, Welcome},
    fixture::{Account, ExtraConfig, Fixture, Reply, keys_of},
    harness,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_08_a_backend_gets_the_pause_it_requests_and_then_the_spans() -> Result<()> {
    let fixture = Fixture::start(2, ExtraConfig::default()).await?;
    fixture.backends[0].answer(|call| {
        let details = ErrorDetails::with_retry_info(Some(Duration::from_millis(600)));
        let busy = Status::with_error_details(Code::ResourceExhausted, "too much", details);
        if call.number == 1 { Answer::Status(busy) } else { Answer::Accept }
    });
    let spans = [fixture.spans_at(0, 2)?, fixture.spans_at(1, 2)?].concat();
    let keys = keys_of(&spans);
    let (took, reply) = fixture.client().await?.timed(spans).await;
    reply.ok()?;
    ensure!(took >= Duration::from_millis(600), "the pause was {took:?}");
    ensure!(fixture.account(&keys) == Account { missing: 0, duplicates: 0, split: 0 });
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_08_resource_exhausted_without_retry_info_is_permanent() -> Result<()> {
    let fixture = Fixture::start(2, ExtraConfig::default()).await?;
    fixture.backends[0].answer(|_| Answer::Status(Status::resource_exhausted("larger than max")));
    let reply = fixture.client().await?.export(fixture.spans_at(0, 2)?).await;
    let (code, message) = reply.permanent()?;
    ensure!(code == Code::ResourceExhausted && message.contains("larger than max"), "{reply:?}");
    ensure!(fixture.backends[0].calls() == 1, "it was tried {} times", fixture.backends[0].calls());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_09_partial_rejections_of_backends_are_summed() -> Result<()> {
    let fixture = Fixture::start(3, ExtraConfig::default()).await?;
    fixture.backends[0].answer(|_| Answer::Partial(2, "two are too old"));
    fixture.backends[1].answer(|_| Answer::Partial(3, "three are too large"));
    let spans = [fixture.spans_at(0, 5)?, fixture.spans_at(1, 5)?, fixture.spans_at(2, 5)?].concat();
    let Reply::Accepted { rejected, message } = fixture.client().await?.export(spans).await else {
        anyhow::bail!("a part was accepted, so all was");
    };
    ensure!(rejected == 5 && message.contains("are too"), "{rejected}: {message}");
    let calls: u64 = fixture.backends.iter().map(|backend| backend.calls()).sum();
    ensure!(calls == 3, "nothing is to be sent again: {calls} calls");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_10_a_part_that_one_backend_refuses_is_reported_and_the_rest_is_delivered() -> Result<()> {
    let fixture = Fixture::start(3, ExtraConfig::default()).await?;
    fixture.backends[0].answer(|_| Answer::Status(Status::invalid_argument("no such tenant")));
    let spans = [fixture.spans_at(0, 4)?, fixture.spans_at(1, 5)?, fixture.spans_at(2, 6)?].concat();
    let good = keys_of(spans.get(4..).context("fifteen spans")?);
    let reply = fixture.client().await?.export(spans).await;
    let Reply::Accepted { rejected, message } = &reply else { anyhow::bail!("{reply:?}") };
    ensure!(*rejected == 4 && message.contains("no such tenant"), "{reply:?}");
    ensure!(fixture.account(&good) == Account { missing: 0, duplicates: 0, split: 0 });
    let alone = fixture.client().await?.export(fixture.spans_at(0, 1)?).await;
    ensure!(alone.permanent()? == (Code::InvalidArgument, "no such tenant"), "{alone:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_10_invalid_data_of_one_client_does_not_fail_others() -> Result<()> {
    let fixture = Fixture::start(1, ExtraConfig::default()).await?;
    // Like a Collector, refuse the whole call because of one bad span, also the spans of other clients.
    fixture.backends[0].answer(|call| {
        let is_bad = call.spans.iter().any(|(trace, _)| trace.first() == Some(&0xbd));
        let then = if is_bad { Answer::Status(Status::internal("bad span")) } else { Answer::Accept };
        Answer::After(Duration::from_millis(30), Box::new(then))
    });
    let mut exports = Vec::new();
    for n in 0..40 {
        let (mut client, mut spans) = (fixture.client().await?, fixture.spans_at(0, 2)?);
        if n % 8 == 0 {
            spans.iter_mut().flat_map(|span| span.trace_id.first_mut()).for_each(|byte| *byte = 0xbd);
        }
        exports.push(fixture.tasks.spawn(async move { (n, keys_of(&spans), client.export(spans).await) }));
    }
    for export in exports {
        let (n, keys, reply) = export.await?;
        if n % 8 == 0 {
            ensure!(reply.permanent()?.0 == Code::Internal, "{reply:?}");
        } else {
            reply.ok()?;
            ensure!(fixture.account(&keys).missing == 0);
        }
    }
    ensure!(fixture.account([]).duplicates == 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_11_a_backend_without_a_logs_service_still_gets_traces() -> Result<()> {
    let fixture = Fixture::start(1, ExtraConfig::default()).await?;
    fixture.backends[0].answer(|call| {
        let has_it = call.path.contains("TraceService");
        if has_it { Answer::Accept } else { Answer::Status(Status::unimplemented("unknown service LogsService")) }
    });
    let log_records = vec![LogRecord { trace_id: fixture.trace().to_vec(), ..LogRecord::default() }];
    let scope_logs = vec![ScopeLogs { log_records, ..ScopeLogs::default() }];
    let resource_logs = vec![ResourceLogs { scope_logs, ..ResourceLogs::default() }];
    let mut client = LogsServiceClient::connect(format!("http://{}", fixture.grpc)).await?;
    let refusal = client.export(ExportLogsServiceRequest { resource_logs }).await.err().context("no logs here")?;
    ensure!(refusal.code() == Code::Unimplemented && refusal.message().contains("LogsService"), "{refusal:?}");
    ensure!(fixture.backends[0].calls() == 1, "no retry can help");
    fixture.serves().await
}

/// Returns what a client is answered when its backend gives this answer.
async fn reply_to(answer: Answer) -> Result<(Fixture, Reply)> {
    let fixture = Fixture::start(1, ExtraConfig { deadline: "1s", ..ExtraConfig::default() }).await?;
    fixture.backends[0].answer(move |_| answer.clone());
    let reply = fixture.client().await?.export(fixture.spans_at(0, 2)?).await;
    Ok((fixture, reply))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_12_gateway_errors_are_retryable_and_other_pages_are_permanent() -> Result<()> {
    const PAGE: &str = "<html><body>Bad Gateway</body></html>";
    let (fixture, reply) = reply_to(Answer::Http(502, "text/html", PAGE)).await?;
    reply.retryable()?;
    ensure!(fixture.backends[0].calls() > 1, "it must be tried again inside the deadline");
    fixture.backends[0].answer(|_| Answer::Accept);
    fixture.serves().await?;
    let (fixture, reply) = reply_to(Answer::Http(404, "text/html", PAGE)).await?;
    ensure!(reply.permanent()?.0 == Code::Unimplemented, "{reply:?}");
    ensure!(reply.permanent()?.1.contains("HTTP 404"), "{reply:?}");
    let told = format!("backend={} code=Unimplemented", fixture.backends[0].address);
    harness::until("the log reports it", || Ok(fixture.process.log().contains(&told).then_some(())))?;
    fixture.backends[0].answer(|_| Answer::Accept);
    fixture.serves().await?;
    let (_fixture, reply) = reply_to(Answer::Http(200, "text/html", PAGE)).await?;
    ensure!(reply.permanent()?.1.contains("text/html"), "{reply:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_12_a_reply_without_trailers_acknowledges_nothing() -> Result<()> {
    let (fixture, reply) = reply_to(Answer::NoTrailers).await?;
    ensure!(matches!(reply, Reply::Refused(_)), "the backend did not say OK: {reply:?}");
    fixture.backends[0].answer(|_| Answer::Accept);
    fixture.serves().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_12_a_backend_that_speaks_http_1_or_nothing_is_retried_and_delays_no_other() -> Result<()> {
    for welcome in [Welcome::Says("HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n"), Welcome::Mute] {
        let fixture = Fixture::start(2, ExtraConfig { deadline: "1s", ..ExtraConfig::default() }).await?;
        fixture.backends[0].welcome(move |_| welcome.clone());
        let (mut client, spans) = (fixture.client().await?, fixture.spans_at(0, 1)?);
        let waiting = fixture.tasks.spawn(async move { client.export(spans).await });
        fixture.client().await?.export(fixture.spans_at(1, 1)?).await.ok()?;
        // An ejected backend has a substitute; before the ejection, the client has to try again.
        if let Reply::Refused(status) = waiting.await? {
            crate::fixture::is_retryable(&status)?;
        }
        fixture.backends[0].welcome(|_| Welcome::Serve);
    }
    Ok(())
}
