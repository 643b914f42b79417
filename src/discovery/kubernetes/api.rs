//! A client of the Kubernetes API for the EndpointSlices of one Service: where the API server is and what the client
//! shows it comes from `kube`, the requests are made here.
//!
//! `kube`'s own requests would log each failure, repeat some of them, and read bodies of any length.

use std::{error::Error, iter::successors, path::PathBuf, time::Duration};

use bytes::{Bytes, BytesMut};
use form_urlencoded::Serializer;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::{body::Incoming, rt::Executor};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use kube::{
    Config,
    client::ConfigExt,
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use tokio::{
    task::spawn_blocking,
    time::{Instant, timeout, timeout_at},
};
use tower::{BoxError, Layer, Service, ServiceExt, util::BoxService};

use super::{
    super::service::ServiceName,
    failure::Failure,
    slices::{Event, List, Status},
};
use crate::lifecycle::Tasks;

/// The label by which a slice belongs to a Service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// The number of slices in one page of a list. A slice has 100 endpoints unless configured otherwise, so that a page
/// has about 1 MB.
const PAGE_SLICES: &str = "20";

/// The longest page. An object has at most 1.5 MiB in etcd, and a page [`PAGE_SLICES`] of them.
const MAX_PAGE_BYTES: usize = 32 << 20;

/// The longest event of a watch: twice what an object can have in etcd, where it is not written as JSON.
const MAX_EVENT_BYTES: usize = 4 << 20;

/// The longest error that is read.
const MAX_STATUS_BYTES: usize = 64 << 10;

/// A connection without traffic is probed after this time, so that a load balancer that has forgotten it, or a machine
/// that is gone, is noticed. Azure's load balancer forgets connections after four minutes, AWS's after 350 s.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// The time between two such probes. Three without an answer end the connection.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// Where the address of the API server and the credentials come from.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// The files that `KUBECONFIG` names, else the service account of the pod, else `~/.kube/config`.
    Environment,
    /// This kubeconfig.
    #[cfg_attr(not(test), expect(dead_code, reason = "tests cannot set a variable of the environment"))]
    Kubeconfig(PathBuf),
}

/// A client for one Service. It keeps at most one idle connection.
pub(super) struct Api {
    service: HttpClient,
    /// The namespace of the Service.
    namespace: String,
    /// The path and the label selector of the Service's slices.
    slices: String,
    timeout: Duration,
}

/// A watch that has begun.
pub(super) struct Watch {
    body: Incoming,
    /// Bytes that were received and not returned yet. They have no line break before `searched`.
    buffer: BytesMut,
    searched: usize,
    ends_at: Instant,
}

/// Runs the tasks of connections.
#[derive(Clone)]
struct Spawner(Tasks);

impl<F> Executor<F> for Spawner
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        drop(self.0.spawn(future));
    }
}

// === impl Api ===

impl Api {
    /// Reads where the API server is and the credentials. Nothing is sent yet. `timeout` is the time that the API
    /// server has for the beginning of an answer, and for each further part of a list.
    ///
    /// A kubeconfig can name a program that returns a token. It is waited for without a limit.
    pub(super) async fn new(
        place: &Place,
        service: &ServiceName,
        timeout: Duration,
        tasks: &Tasks,
    ) -> Result<Self, Failure> {
        let mut config = config(place).await?;
        // Without TLS there is no need to read all authorities of the system.
        if config.cluster_url.scheme_str() == Some("http") {
            config.root_cert.get_or_insert_default();
        }
        let namespace = service.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let selector = Serializer::new(String::new())
            .append_pair("labelSelector", &format!("{SERVICE_LABEL}={}", service.name))
            .finish();
        let slices = format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices?{selector}");
        let tasks = tasks.clone();
        // It reads files and may run a program.
        let service = spawn_blocking(move || connected(&config, timeout, tasks))
            .await
            .map_err(|error| Failure::Config(error.to_string()))??;
        Ok(Self { service, namespace, slices, timeout })
    }

    /// Returns the namespace of the Service.
    pub(super) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Returns one page of the list of slices. `page` is what the page before named as the next one; empty for the
    /// first.
    pub(super) async fn list(&mut self, page: &str) -> Result<List, Failure> {
        let next = (!page.is_empty()).then_some(("continue", page));
        let response = self.get([("limit", PAGE_SLICES)].into_iter().chain(next)).await?;
        let body = self.read(response.into_body(), MAX_PAGE_BYTES).await?;
        serde_json::from_slice(&body).map_err(|error| Failure::Unreadable(format!("a list: {error}")))
    }

    /// Watches the slices from `version` on. The API server ends it after `limit`; the client waits for that for at most
    /// `grace`.
    pub(super) async fn watch(&mut self, version: &str, limit: Duration, grace: Duration) -> Result<Watch, Failure> {
        let seconds = limit.as_secs().max(1).to_string();
        let ends_at = Instant::now() + limit + grace;
        let query = [
            ("watch", "1"),
            ("allowWatchBookmarks", "true"),
            ("resourceVersion", version),
            ("timeoutSeconds", &seconds),
        ];
        let response = self.get(query).await?;
        Ok(Watch { body: response.into_body(), buffer: BytesMut::new(), searched: 0, ends_at })
    }

    /// Sends a request and returns its answer if it is good.
    async fn get(&mut self, query: impl IntoIterator<Item = (&str, &str)>) -> Result<Response<Incoming>, Failure> {
        let query = Serializer::new(String::new()).extend_pairs(query).finish();
        let request = Request::get(format!("{}&{query}", self.slices))
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, concat!("spanring/", env!("CARGO_PKG_VERSION")))
            .body(Empty::new())
            .map_err(|error| Failure::Config(error.to_string()))?;
        let answered = async { self.service.ready().await?.call(request).await };
        let response = match timeout(self.timeout, answered).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(Failure::Connection(chain(&*error))),
            Err(_) => return Err(Failure::Timeout),
        };
        let code = response.status();
        if code == StatusCode::OK {
            return Ok(response);
        }
        let body = self.read(response.into_body(), MAX_STATUS_BYTES).await.unwrap_or_default();
        let status: Status = serde_json::from_slice(&body).unwrap_or_default();
        Err(Failure::of_status(code.as_u16(), &status.message))
    }

    /// Reads a whole body of at most `limit` bytes.
    async fn read(&self, mut body: Incoming, limit: usize) -> Result<BytesMut, Failure> {
        let mut read = BytesMut::new();
        loop {
            let Ok(frame) = timeout(self.timeout, body.frame()).await else { return Err(Failure::Timeout) };
            let Some(frame) = frame else { return Ok(read) };
            let frame = frame.map_err(|error| Failure::Connection(chain(&error)))?;
            let Ok(data) = frame.into_data() else { continue };
            if read.len() + data.len() > limit {
                return Err(Failure::TooLarge(limit));
            }
            read.extend_from_slice(&data);
        }
    }
}

// === impl Watch ===

impl Watch {
    /// Returns the next event, or `None` once the watch has ended as it should, or was cut off between two reads.
    ///
    /// Cancel safety: no event is lost.
    pub(super) async fn next(&mut self) -> Result<Option<Event>, Failure> {
        loop {
            if let Some(event) = self.received()? {
                return Ok(Some(event));
            }
            let Ok(frame) = timeout_at(self.ends_at, self.body.frame()).await else { return Err(Failure::Timeout) };
            let Some(frame) = frame else { return Ok(None) };
            let frame = frame.map_err(|error| Failure::Connection(chain(&error)))?;
            let Ok(data) = frame.into_data() else { continue };
            if self.buffer.len() + data.len() > MAX_EVENT_BYTES {
                return Err(Failure::TooLarge(MAX_EVENT_BYTES));
            }
            self.buffer.extend_from_slice(&data);
        }
    }

    /// Returns the next event that was received whole, if there is one.
    pub(super) fn received(&mut self) -> Result<Option<Event>, Failure> {
        let found = self.buffer.iter().skip(self.searched).position(|byte| *byte == b'\n');
        let Some(at) = found else {
            self.searched = self.buffer.len();
            return Ok(None);
        };
        let line = self.buffer.split_to(self.searched + at + 1);
        self.searched = 0;
        serde_json::from_slice(&line).map(Some).map_err(|error| Failure::Unreadable(format!("an event: {error}")))
    }
}

/// Reads where the API server is.
async fn config(place: &Place) -> Result<Config, Failure> {
    let failed = |error: KubeconfigError| Failure::Config(chain(&error));
    let options = KubeConfigOptions::default();
    let of_file = match place {
        Place::Kubeconfig(path) => Some(Kubeconfig::read_from(path).map_err(failed)?),
        Place::Environment => Kubeconfig::from_env().map_err(failed)?,
    };
    if let Some(kubeconfig) = of_file {
        return Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(failed);
    }
    let in_cluster = match Config::incluster() {
        Ok(config) => return Ok(config),
        Err(error) => chain(&error),
    };
    Config::from_kubeconfig(&options).await.map_err(|error| {
        let kubeconfig = chain(&error);
        Failure::Config(format!("no service account ({in_cluster}), and no kubeconfig ({kubeconfig})"))
    })
}

/// Sends requests to the API server.
type HttpClient = BoxService<Request<Empty<Bytes>>, Response<Incoming>, BoxError>;

/// Builds the client. It reads the token and certificates, and runs the program that a kubeconfig names for tokens.
fn connected(config: &Config, timeout: Duration, tasks: Tasks) -> Result<HttpClient, Failure> {
    let failed = |error: kube::Error| Failure::Config(chain(&error));
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(timeout));
    connector.set_keepalive(Some(KEEPALIVE));
    connector.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    connector.set_keepalive_retries(Some(3));
    let connector = config.rustls_https_connector_with_connector(connector).map_err(failed)?;
    let client: Client<_, Empty<Bytes>> = Client::builder(Spawner(tasks)).pool_max_idle_per_host(1).build(connector);
    let client = config.extra_headers_layer().map_err(failed)?.layer(client.map_err(BoxError::from));
    let base = config.base_uri_layer();
    Ok(match config.auth_layer().map_err(failed)? {
        Some(auth) => base.layer(auth.layer(client)).boxed(),
        None => base.layer(client).boxed(),
    })
}

/// Returns an error with its causes. The text of some contains that of their cause.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    for one in successors(Some(error), |error: &&(dyn Error + 'static)| (*error).source()) {
        let one = one.to_string();
        if !text.ends_with(&one) {
            text = if text.is_empty() { one } else { format!("{text}: {one}") };
        }
    }
    text
}
