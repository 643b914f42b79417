//! Forwarded headers: backends get exactly those that the operator named, and a client's headers are never sent with
//! another client's data.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
    trace_service_server::{TraceService, TraceServiceServer},
};
use spanring::lifecycle::Tasks;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Request, Response, Status, metadata::MetadataValue};

use super::{
    harness::{Proxy, metric},
    rig::{client, request, span},
};

/// The headers of a call, and the tenants whose data it carried.
pub(crate) type Call = (http::HeaderMap, BTreeSet<u8>);

/// A slow backend that records the headers and tenants of every call, and refuses the first few with a retryable code.
#[derive(Clone, Default)]
pub(crate) struct Keeper {
    calls: Arc<Mutex<Vec<Call>>>,
    refusals: Arc<AtomicUsize>,
}

#[tonic::async_trait]
impl TraceService for Keeper {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let (headers, _, message) = request.into_parts();
        let scopes = message.resource_spans.iter().flat_map(|resource| &resource.scope_spans);
        let tenants = scopes.flat_map(|scope| &scope.spans).map(|span| span.trace_id[0]).collect();
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).push((headers.into_headers(), tenants));
        // The delay makes other requests wait, so that there is something to merge.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let refuse = self.refusals.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        match refuse {
            Ok(_) => Err(Status::unavailable("not now")),
            Err(_) => Ok(Response::new(ExportTraceServiceResponse::default())),
        }
    }
}

impl Keeper {
    pub(crate) async fn start(&self, tasks: &Tasks) -> Result<SocketAddr> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(self.clone()));
        drop(tasks.spawn(server.serve_with_incoming(TcpListenerStream::new(listener))));
        Ok(address)
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn start(keeper: &Keeper, runtime: &tokio::runtime::Runtime, include: &str, pool: &str) -> Result<Proxy> {
    let backend = runtime.block_on(async { keeper.start(&Tasks::new()).await })?;
    Proxy::start("spanring", |grpc, admin| {
        let text = super::rig::config(grpc, admin, &[backend], pool, "");
        text.replacen("{ endpoint:", &format!("{{ include_metadata: [{include}], endpoint:"), 1)
    })
}

/// Returns spans of one tenant, whose number is the first byte of every trace ID.
fn of_tenant(tenant: u8, spans: u64, name: usize) -> ExportTraceServiceRequest {
    let mut request =
        request((1..=spans).map(|id| span(u128::from(tenant) << 120 | u128::from(id), id)).collect::<Vec<_>>());
    for span in request.resource_spans.iter_mut().flat_map(|r| &mut r.scope_spans).flat_map(|s| &mut s.spans) {
        span.name = "n".repeat(name);
    }
    request
}

fn with_headers(tenant: u8, message: ExportTraceServiceRequest) -> Request<ExportTraceServiceRequest> {
    let mut request = Request::new(message);
    let headers = request.metadata_mut();
    headers.insert("x-scope-orgid", format!("tenant-{tenant}").parse().unwrap());
    headers.append("x-scope-orgid", "second".parse().unwrap());
    headers.insert_bin("x-tenant-bin", MetadataValue::from_bytes(&[tenant, 0, 255]));
    headers.insert("x-private", "not to be passed on".parse().unwrap());
    headers.insert("x-cluster", "the value of a client".parse().unwrap());
    request
}

/// Checks that every call has one tenant's data with that tenant's headers and the operator's.
fn check(calls: &[Call]) -> Result<()> {
    for (headers, tenants) in calls {
        let values: Vec<&[u8]> = headers.get_all("x-scope-orgid").iter().map(|value| value.as_bytes()).collect();
        ensure!(tenants.len() == 1, "a call with the data of {tenants:?} had {values:?}");
        let tenant = *tenants.first().context("no span")?;
        ensure!(values == [format!("tenant-{tenant}").as_bytes(), b"second"], "{values:?} with data of {tenant}");
        let binary = tonic::metadata::MetadataMap::from_headers(headers.clone());
        let binary = binary.get_bin("x-tenant-bin").context("no x-tenant-bin")?.to_bytes()?;
        ensure!(binary[..] == [tenant, 0, 255], "{binary:?}");
        ensure!(
            headers.get("x-cluster").is_some_and(|value| value == "one"),
            "the operator's header must take precedence"
        );
        ensure!(!headers.contains_key("x-private"), "other headers must not be forwarded");
    }
    Ok(())
}

#[test]
fn tenants_in_flight_are_never_merged_and_their_headers_arrive() -> Result<()> {
    const TENANTS: u8 = 6;
    const EACH: u8 = 30;
    let runtime = tokio::runtime::Runtime::new()?;
    let keeper = Keeper::default();
    // Retries must keep their own headers.
    keeper.refusals.store(5, Ordering::Relaxed);
    let named = "X-Scope-OrgID, x-tenant-bin, x-cluster";
    let proxy = start(&keeper, &runtime, named, "headers: { X-Cluster: one }")?;
    runtime.block_on(async {
        // All tenants send on each of two connections.
        let clients = [client(proxy.grpc).await?, client(proxy.grpc).await?];
        let sent = (0..TENANTS * EACH).map(|n| {
            let mut client = clients[usize::from(n) % 2].clone();
            let tenant = n % TENANTS + 1;
            async move { client.export(with_headers(tenant, of_tenant(tenant, 3, 1))).await }
        });
        try_join_all(sent).await?;
        anyhow::Ok(())
    })?;
    let calls = keeper.calls();
    check(&calls)?;
    let tenants: BTreeSet<u8> = calls.iter().flat_map(|(_, tenants)| tenants.clone()).collect();
    ensure!(tenants.len() == usize::from(TENANTS), "{tenants:?}");
    ensure!(
        calls.len() < usize::from(TENANTS * EACH),
        "parts of the same tenant must be merged: {} calls",
        calls.len()
    );
    let crowded = metric(proxy.admin, "spanring_dispatch_crowded_parts_total", &["pool=\"tail\""])?;
    ensure!(crowded == 0.0, "six values have lanes of their own");
    Ok(())
}

#[test]
fn pieces_of_a_large_part_keep_their_headers() -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let keeper = Keeper::default();
    let settings = "headers: { x-cluster: one }\n    max_request_size_mib: 1";
    let proxy = start(&keeper, &runtime, "x-scope-orgid, x-tenant-bin", settings)?;
    runtime.block_on(async {
        client(proxy.grpc).await?.export(with_headers(9, of_tenant(9, 300, 10_000))).await.map_err(anyhow::Error::from)
    })?;
    let calls = keeper.calls();
    ensure!(calls.len() >= 3, "3 MB must go in calls of 1 MiB: {}", calls.len());
    check(&calls)
}

#[test]
fn only_listed_headers_are_forwarded_and_too_many_are_refused() -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let keeper = Keeper::default();
    let proxy = start(&keeper, &runtime, "", "")?;
    let send = |proxy: &Proxy, request| {
        let grpc = proxy.grpc;
        runtime.block_on(async move { anyhow::Ok(client(grpc).await?.export(request).await.map(drop)) })
    };
    send(&proxy, with_headers(1, of_tenant(1, 3, 1)))??;
    let (headers, _) = keeper.calls().pop().context("no call")?;
    ensure!(headers.keys().all(|name| !name.as_str().starts_with("x-")), "{headers:?}");

    let proxy = start(&keeper, &runtime, "x-scope-orgid", "")?;
    let mut large = Request::new(of_tenant(1, 3, 1));
    large.metadata_mut().insert("x-scope-orgid", "v".repeat(5000).parse()?);
    let refused = send(&proxy, large)?.err().context("must be refused")?;
    ensure!(refused.code() == Code::ResourceExhausted, "{refused:?}");
    ensure!(refused.message().contains("include_metadata") && !refused.message().contains("vvv"), "{refused:?}");
    Ok(())
}
