//! The admin listener: `/` (links), `/metrics`, `/livez`, `/readyz`, `/api/v1/…` and gRPC. All of it is read-only.
//!
//! [`respond`] answers all HTTP pages; a new page is a row of `ROUTES`. [`api`] answers questions about the rings, as
//! JSON and as gRPC. [`serve`] puts both on a listener. `hosts` refuses requests that name a foreign host, and `answers`
//! bounds the memory of answers.

mod answers;
pub mod api;
pub mod health_check;
mod hosts;
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
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use tonic::{Status, body::Body, service::Routes};
use tower::Service as _;

use self::{
    answers::{Answers, Held},
    api::json,
};
pub use self::{
    hosts::Hosts,
    pools::{Pool, PoolSet, Pools},
    readiness::{Condition, Flag, Readiness},
};
use crate::{
    budget::Budget,
    descriptors,
    lifecycle::Tasks,
    listen,
    settings::{self, addresses::ADMIN_PORT},
    telemetry::Recorder,
};

/// Limit of connections, enough for scrapers, probes and a few people. A further one takes the place of the one that has
/// been idle or busy for the longest time, so that probes are always answered.
const MAX_CONNECTIONS: usize = 64;

/// The most concurrent requests on an HTTP/2 connection. Clients ask several questions at once, and some ask before they know
/// this limit: those above it are refused, which most clients report as an error. With 2, `spanring ring lookup` failed now and
/// then. What the answers hold is bounded by the account, not by the number of streams.
pub const MAX_STREAMS: u32 = 16;

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
    /// The account of the memory of answers.
    pub budget: Budget,
    /// The host names that may be asked.
    pub hosts: Hosts,
}

impl Config {
    /// Returns the host names that may be asked.
    pub fn hosts(&self) -> Hosts {
        Hosts::new(&self.keys.endpoint.0.host.to_string(), self.keys.allowed_hosts.iter().map(String::as_str))
    }
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
    body: Bytes,
}

/// The only page that requires a query.
const LOOKUP: &str = "/api/v1/lookup";

/// The page of metrics.
const METRICS_PATH: &str = "/metrics";

/// Pages whose status alone carries the answer.
const PROBES: [&str; 2] = ["/livez", "/readyz"];

/// The path of the gRPC service that probes ask.
const HEALTH_PATH: &str = "/grpc.health.v1.Health/";

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
    Route { path: METRICS_PATH, about: "metrics in Prometheus' text format", page: metrics },
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
        Self { status, content_type: TEXT, body: Bytes::from(body.into()) }
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
    Answer { status: StatusCode::OK, content_type: HTML, body: Bytes::from(body) }
}

fn metrics(state: &State, _: Option<&str>) -> Answer {
    Answer { status: StatusCode::OK, content_type: METRICS, body: Bytes::from(state.recorder.render()) }
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
    for Condition { name, unmet, note } in &conditions {
        match (unmet, note) {
            (Some(reason), _) => body.push_str(&format!("[-] {name}: {reason}\n")),
            (None, Some(note)) if verbose => body.push_str(&format!("[+] {name}: ok; {note}\n")),
            (None, None) if verbose => body.push_str(&format!("[+] {name}: ok\n")),
            (None, _) => {}
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

/// Answers one request, whatever host it names. A body is not read.
pub fn respond<B>(state: &State, request: &Request<B>) -> Response<Full<Bytes>> {
    reply(request, PROBES.contains(&request.uri().path()), || page(state, request.uri()))
}

fn page(state: &State, uri: &Uri) -> Answer {
    let route = ROUTES.iter().find(|route| route.path == uri.path());
    route.map_or_else(|| not_found(uri.path()), |route| (route.page)(state, uri.query()))
}

/// Builds the response to a request. Only GET, HEAD and OPTIONS are allowed. At the path of a probe, OPTIONS is
/// answered like GET, without a body, since HAProxy's health checks use OPTIONS by default. Elsewhere OPTIONS returns
/// the allowed methods.
fn reply<B>(request: &Request<B>, is_probe: bool, page: impl FnOnce() -> Answer) -> Response<Full<Bytes>> {
    let method = request.method();
    let Answer { status, content_type, mut body } = match *method {
        Method::GET | Method::HEAD => page(),
        Method::OPTIONS if is_probe => Answer { body: Bytes::new(), ..page() },
        Method::OPTIONS => Answer::text(StatusCode::OK, ""),
        _ => not_allowed(request.uri().path()),
    };
    let length = body.len();
    if *method == Method::HEAD {
        body.clear();
    }
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
    let answers = Arc::new(Answers::new(state.budget.clone()));
    let grpc = api::grpc::routes(&state, &answers, tasks);
    let (hosts, state) = (state.hosts.clone(), Arc::new(state));
    serve_pages(listener, tasks, hosts, grpc, move |request| answer(Arc::clone(&state), Arc::clone(&answers), request));
}

/// Answers a request as [`respond`] does, within the bounds of `answers`. Probes are answered at once, so that they wait for
/// nothing, whatever host they name.
async fn answer(
    state: Arc<State>,
    answers: Arc<Answers>,
    request: Request<listen::RequestBody>,
) -> Response<Full<Bytes>> {
    // The body is kept until the answer is there, since dropping it closes the connection.
    let (head, _body) = request.into_parts();
    let request = Request::from_parts(head, ());
    let path = request.uri().path();
    if PROBES.contains(&path) || !matches!(*request.method(), Method::GET | Method::HEAD) {
        return respond(&state, &request);
    }
    let page = match state.hosts.check(&request) {
        Err(refusal) => misdirected(path, &refusal.to_string()),
        Ok(()) if path == METRICS_PATH => answers.metrics(state).await,
        Ok(()) => {
            let uri = request.uri().clone();
            answers.write(move || page(&state, &uri)).await
        }
    };
    reply(&request, false, || page)
}

fn misdirected(path: &str, message: &str) -> Answer {
    if path.starts_with(json::PREFIX) {
        return json::error(StatusCode::MISDIRECTED_REQUEST, "permission_denied", message);
    }
    Answer::text(StatusCode::MISDIRECTED_REQUEST, format!("{message}\n"))
}

/// Returns the side services of the OTLP/gRPC port: reflection, and `grpc.health.v1`, which agrees with `/readyz` until
/// the tasks drain.
pub fn side_services(readiness: Readiness) -> impl FnOnce(&Tasks) -> Routes + Send {
    move |tasks| api::grpc::health_and_reflection(&readiness, tasks)
}

/// Serves gRPC requests that name one of `hosts` by `grpc`, which is built at the first one, and all others by `respond`,
/// within the limits of this room.
fn serve_pages<G, F, R>(listener: listen::Bound, tasks: &Tasks, hosts: Hosts, grpc: G, respond: F)
where
    G: FnOnce() -> Routes + Send + 'static,
    F: Fn(Request<listen::RequestBody>) -> R + Send + Sync + 'static,
    R: Future<Output = Response<Full<Bytes>>> + Send,
{
    let (respond, grpc) = (Arc::new(respond), Arc::new((hosts, LazyLock::new(grpc))));
    let limits = listen::Limits {
        protocol: listen::Protocol::Any,
        max_connections: MAX_CONNECTIONS,
        when_full: listen::WhenFull::CloseOldest,
        descriptors: descriptors::for_operators,
        open: listen::OpenConnections::default(),
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
        service_fn(move |request: Request<listen::RequestBody>| {
            let (respond, grpc) = (Arc::clone(&respond), Arc::clone(&grpc));
            async move {
                match is_grpc(&request) {
                    true => {
                        let (hosts, routes) = &*grpc;
                        answer_grpc(hosts, || LazyLock::force(routes).clone(), request).await
                    }
                    false => Ok::<_, Infallible>(respond(request).await.map(Body::new)),
                }
            }
        })
    };
    drop(listener.serve(limits, listen::Plain, service, tasks));
}

/// Answers a gRPC request. What its answer holds is held until HTTP has written it.
async fn answer_grpc(
    hosts: &Hosts,
    routes: impl FnOnce() -> Routes,
    request: Request<listen::RequestBody>,
) -> Result<Response<Body>, Infallible> {
    if !request.uri().path().starts_with(HEALTH_PATH)
        && let Err(refusal) = hosts.check(&request)
    {
        return Ok(Status::permission_denied(refusal.to_string()).into_http());
    }
    let mut response = routes().call(request).await?;
    let Some(held) = response.extensions_mut().remove::<Held>() else { return Ok(response) };
    let keep = move |data| answers::kept(data, held.clone());
    Ok(response.map(|body| Body::new(body.map_frame(move |frame| frame.map_data(&keep)))))
}

#[cfg(test)]
mod tests;
