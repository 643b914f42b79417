//! The admin listener: `/` (links), `/metrics`, `/livez`, `/readyz`, `/api/v1/…` and gRPC. All of it is read-only.
//!
//! [`respond`] answers all HTTP pages; a new page is a row of `ROUTES`. [`api`] answers questions about the rings, as
//! JSON and as gRPC. [`serve`] puts both on a listener.

pub mod api;
pub mod health_check;
pub mod pb;
mod pools;
mod readiness;

use std::{
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, LazyLock},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use tokio::task::spawn_blocking;
use tonic::{body::Body, service::Routes};
use tower::Service as _;

use self::api::json;
pub use self::{
    pools::{Pool, PoolSet, Pools},
    readiness::{Condition, Flag, Readiness},
};
use crate::{
    descriptors,
    lifecycle::Tasks,
    listen,
    settings::{self, addresses::ADMIN_PORT},
    telemetry::Recorder,
};

/// Limit of connections, enough for scrapers, probes and a few people. A further one takes the place of the one that has
/// been idle or busy for the longest time, so that probes are always answered.
const MAX_CONNECTIONS: usize = 64;

/// The most concurrent requests on an HTTP/2 connection: one, and one that lasts, as watching does.
const MAX_STREAMS: u32 = 2;

/// How long a connection may have no request in progress.
const MAX_IDLE: Duration = Duration::from_secs(10);

/// How long a client may take to receive an answer. Prometheus does not wait longer either.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Time limit for receiving a request's headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

const HTML: &str = "text/html; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";
/// Prometheus' text format.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The admin listener.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The section of the file.
    pub keys: settings::Admin,
    /// The address of its `endpoint`.
    pub endpoint: SocketAddr,
}

impl Default for Config {
    fn default() -> Self {
        Self { keys: settings::Admin::default(), endpoint: (Ipv4Addr::LOCALHOST, ADMIN_PORT).into() }
    }
}

/// The data that the pages show.
#[derive(Clone, Debug)]
pub struct State {
    /// The recorder of metrics.
    pub recorder: Recorder,
    /// The conditions of readiness.
    pub readiness: Readiness,
    /// The running pools.
    pub pools: Pools,
}

/// A page.
struct Route {
    path: &'static str,
    about: &'static str,
    page: fn(&State, query: Option<&str>) -> Answer,
}

/// The content of a response.
struct Answer {
    status: StatusCode,
    content_type: &'static str,
    body: String,
}

/// The only page that requires a query.
const LOOKUP: &str = "/api/v1/lookup";

/// Pages whose status alone carries the answer.
const PROBES: [&str; 2] = ["/livez", "/readyz"];

/// Security headers of every response. They tell browsers that these pages load, frame and submit nothing.
const SECURITY: &[(HeaderName, &str)] = &[
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    ),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
];

/// Every page.
const ROUTES: &[Route] = &[
    Route { path: "/", about: "this page", page: index },
    Route { path: "/metrics", about: "metrics in Prometheus' text format", page: metrics },
    Route { path: "/livez", about: "whether the process answers", page: livez },
    Route { path: "/readyz", about: "whether clients should send here, and why not; ?verbose says all", page: readyz },
    Route { path: "/api/v1/ring", about: "rings as JSON: members, shares, fingerprints; ?pool=", page: json::ring },
    Route {
        path: "/api/v1/backends",
        about: "backends: state, failures, queues, connections; ?pool=",
        page: json::backends,
    },
    Route { path: "/api/v1/changes", about: "the last changes of each ring; ?pool=", page: json::changes },
    Route { path: LOOKUP, about: "the owner of a trace, and why; ?trace_id=&pool=&signal=", page: json::lookup },
];

impl Answer {
    fn text(status: StatusCode, body: impl Into<String>) -> Self {
        Self { status, content_type: TEXT, body: body.into() }
    }
}

fn index(_: &State, _: Option<&str>) -> Answer {
    let rows: String = ROUTES
        .iter()
        .map(|Route { path, about, .. }| format!("<li><a href=\"{path}\">{path}</a>: {about}</li>\n"))
        .collect();
    let version = env!("CARGO_PKG_VERSION");
    let body = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>spanring</title></head>\n\
         <body><h1>spanring {version}</h1>\n<ul>\n{rows}</ul></body></html>\n"
    );
    Answer { status: StatusCode::OK, content_type: HTML, body }
}

fn metrics(state: &State, _: Option<&str>) -> Answer {
    Answer { status: StatusCode::OK, content_type: METRICS, body: state.recorder.render() }
}

fn livez(_: &State, _: Option<&str>) -> Answer {
    Answer::text(StatusCode::OK, "alive\n")
}

fn readyz(state: &State, query: Option<&str>) -> Answer {
    ready_or_not(&state.readiness, query)
}

fn ready_or_not(readiness: &Readiness, query: Option<&str>) -> Answer {
    let conditions = readiness.conditions();
    let ready = conditions.iter().all(|condition| condition.unmet.is_none());
    let verbose =
        query.is_some_and(|query| query.split('&').any(|word| word == "verbose" || word.starts_with("verbose=")));
    let mut body = String::from(if ready { "ready\n" } else { "not ready\n" });
    for Condition { name, unmet } in &conditions {
        match unmet {
            Some(reason) => body.push_str(&format!("[-] {name}: {reason}\n")),
            None if verbose => body.push_str(&format!("[+] {name}: ok\n")),
            None => {}
        }
    }
    Answer::text(if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, body)
}

fn not_found(path: &str) -> Answer {
    if path.starts_with(json::PREFIX) {
        let pages: Vec<&str> =
            ROUTES.iter().map(|route| route.path).filter(|it| it.starts_with(json::PREFIX)).collect();
        let message = format!("no such page; there are: {}", pages.join(", "));
        return json::error(StatusCode::NOT_FOUND, "not_found", &message);
    }
    let pages: String = ROUTES.iter().map(|Route { path, about, .. }| format!("{path}: {about}\n")).collect();
    Answer::text(StatusCode::NOT_FOUND, format!("no such page; there are:\n{pages}"))
}

fn not_allowed(path: &str) -> Answer {
    const MESSAGE: &str = "GET, HEAD and OPTIONS only";
    if path.starts_with(json::PREFIX) {
        return json::error(StatusCode::METHOD_NOT_ALLOWED, "unimplemented", MESSAGE);
    }
    Answer::text(StatusCode::METHOD_NOT_ALLOWED, format!("{MESSAGE}\n"))
}

/// Answers one request. A body is not read.
pub fn respond<B>(state: &State, request: &Request<B>) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    let route = ROUTES.iter().find(|route| route.path == path);
    let page = || route.map_or_else(|| not_found(path), |route| (route.page)(state, request.uri().query()));
    reply(request, PROBES.contains(&path), page)
}

/// Builds the response to a request. Only GET, HEAD and OPTIONS are allowed. At the path of a probe, OPTIONS is
/// answered like GET, without a body, since HAProxy's health checks use OPTIONS by default. Elsewhere OPTIONS returns
/// the allowed methods.
fn reply<B>(request: &Request<B>, is_probe: bool, page: impl FnOnce() -> Answer) -> Response<Full<Bytes>> {
    let method = request.method();
    let Answer { status, content_type, mut body } = match *method {
        Method::GET | Method::HEAD => page(),
        Method::OPTIONS if is_probe => Answer { body: String::new(), ..page() },
        Method::OPTIONS => Answer::text(StatusCode::OK, ""),
        _ => not_allowed(request.uri().path()),
    };
    let length = body.len();
    if *method == Method::HEAD {
        body.clear();
    }
    let body = Bytes::from(body);
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    for (name, value) in SECURITY {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if status == StatusCode::METHOD_NOT_ALLOWED || *method == Method::OPTIONS {
        headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD, OPTIONS"));
    }
    response
}

/// Whether a request is gRPC and not for a page.
fn is_grpc<B>(request: &Request<B>) -> bool {
    let content_type = request.headers().get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    content_type.is_some_and(|it| it.starts_with(b"application/grpc")) && *request.method() == Method::POST
}

/// Serves until `tasks` drain or stop. These are the tasks behind the listeners, since probes must be answered while
/// the proxy drains.
pub fn serve(listener: listen::Bound, state: State, tasks: &Tasks) {
    let (grpc, state) = (api::grpc::routes(&state, tasks), Arc::new(state));
    serve_pages(listener, tasks, grpc, move |request| respond_on_blocking_thread(Arc::clone(&state), request));
}

/// Answers a request as [`respond`] does, on a thread for blocking work. To write the metrics of 200 backends takes
/// milliseconds, in which a worker thread would serve no request. Probes are answered at once, so that they wait for nothing.
async fn respond_on_blocking_thread(state: Arc<State>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    // The body is kept until the answer is there, since dropping it closes the connection.
    let (head, _body) = request.into_parts();
    let request = Request::from_parts(head, ());
    if PROBES.contains(&request.uri().path()) {
        return respond(&state, &request);
    }
    let answered = spawn_blocking(move || respond(&state, &request)).await;
    answered.unwrap_or_else(|_panicked| {
        let mut response = Response::default();
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        response
    })
}

/// Returns the side services of the OTLP/gRPC port: reflection, and `grpc.health.v1`, which agrees with `/readyz` until
/// the tasks drain.
pub fn side_services(readiness: Readiness) -> impl FnOnce(&Tasks) -> Routes + Send {
    move |tasks| api::grpc::health_and_reflection(&readiness, tasks)
}

/// Serves gRPC requests by `grpc`, which is built at the first one, and all others by `respond`, within the limits of
/// this room.
fn serve_pages<G, F, R>(listener: listen::Bound, tasks: &Tasks, grpc: G, respond: F)
where
    G: FnOnce() -> Routes + Send + 'static,
    F: Fn(Request<Incoming>) -> R + Send + Sync + 'static,
    R: Future<Output = Response<Full<Bytes>>> + Send,
{
    let (respond, grpc) = (Arc::new(respond), Arc::new(LazyLock::new(grpc)));
    let limits = listen::Limits {
        protocol: listen::Protocol::Any,
        max_connections: MAX_CONNECTIONS,
        when_full: listen::WhenFull::CloseOldest,
        descriptors: descriptors::for_operators,
        header_timeout: HEADER_TIMEOUT,
        max_concurrent_streams: MAX_STREAMS,
        windows: listen::Windows::SMALL,
        account: None,
        max_header_list_size: 16 << 10,
        max_connection_age: None,
        max_connection_age_grace: None,
        max_connection_idle: Some(MAX_IDLE),
        write_timeout: Some(WRITE_TIMEOUT),
    };
    let service = move |_peer| {
        let (respond, grpc) = (Arc::clone(&respond), Arc::clone(&grpc));
        service_fn(move |request: Request<Incoming>| {
            let (respond, grpc) = (Arc::clone(&respond), Arc::clone(&grpc));
            async move {
                match is_grpc(&request) {
                    true => LazyLock::force(&grpc).clone().call(request).await,
                    false => Ok::<_, Infallible>(respond(request).await.map(Body::new)),
                }
            }
        })
    };
    drop(listener.serve(limits, listen::Plain, service, tasks));
}

#[cfg(test)]
mod tests;
