//! An API server in the same process that has EndpointSlices only: lists in pages, watches with bookmarks, and the ways
//! in which both can fail.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::Notify,
    time::{Instant, timeout_at},
};
use tokio_rustls::TlsAcceptor;

use crate::lifecycle::Tasks;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// A server that can go away and come back at the same address.
pub(super) struct ApiServer {
    pub(super) address: SocketAddr,
    state: Arc<State>,
    /// The listener and its connections; they end when it is stopped.
    up: Mutex<Tasks>,
}

#[derive(Default)]
struct State {
    inner: Mutex<Inner>,
    /// Wakes watches and held requests.
    changed: Notify,
}

#[derive(Default)]
struct Inner {
    version: u64,
    slices: BTreeMap<String, Value>,
    /// The events since the beginning, with their versions.
    events: Vec<(u64, Value)>,
    /// The requests, as paths with their queries.
    requests: Vec<String>,
    script: Script,
}

/// What the server does otherwise than a good one.
#[derive(Clone, Default)]
pub(super) struct Script {
    /// All requests get this status.
    pub(super) refuse: Option<(u16, &'static str)>,
    /// Watches get this status.
    pub(super) refuse_watches: Option<(u16, &'static str)>,
    /// Watches from older versions get an event with the status 410.
    pub(super) forgotten: u64,
    /// Requests with other tokens get 401.
    pub(super) token: Option<String>,
    /// Lists have pages of this many slices; 0 is one page.
    pub(super) page: usize,
    /// Further pages of a list are not answered.
    pub(super) holds_pages: bool,
    /// Nothing more is sent on watches that are open, not even their end.
    pub(super) is_silent: bool,
    /// Watches end at once.
    pub(super) ends_watches: bool,
    /// Watches send this line.
    pub(super) garbage: Option<&'static str>,
}

impl ApiServer {
    pub(super) async fn start() -> Self {
        Self::start_with(None).await
    }

    pub(super) async fn start_with(tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self { address: listener.local_addr().unwrap(), state: Arc::default(), up: Mutex::default() };
        server.serve(listener, tls);
        server
    }

    /// Ends the listener and all connections.
    pub(super) async fn stop(&self) {
        let up = self.up.lock().unwrap().clone();
        up.stop();
        up.wait().await;
    }

    /// Listens again at the same address.
    pub(super) async fn start_again(&self, tls: Option<TlsAcceptor>) {
        self.serve(TcpListener::bind(self.address).await.unwrap(), tls);
    }

    fn serve(&self, listener: TcpListener, tls: Option<TlsAcceptor>) {
        let up = Tasks::new();
        *self.up.lock().unwrap() = up.clone();
        let state = Arc::clone(&self.state);
        let (until, connections) = (up.clone(), up.clone());
        let accepting = async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (state, until, tls) = (Arc::clone(&state), connections.clone(), tls.clone());
                let connection = async move {
                    match tls {
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve_connection(state, stream).await;
                            }
                        }
                        None => serve_connection(state, stream).await,
                    }
                };
                drop(connections.spawn(async move {
                    tokio::select! { () = connection => {}, () = until.stopped() => {} }
                }));
            }
        };
        drop(up.spawn(async move {
            tokio::select! { () = accepting => {}, () = until.stopped() => {} }
        }));
    }

    /// Writes a slice of these endpoints, or removes it.
    pub(super) fn put(&self, name: &str, endpoints: Option<Value>) {
        let mut inner = self.inner();
        inner.version += 1;
        let version = inner.version;
        let slice = |endpoints: Value| {
            json!({
                "metadata": { "name": name, "resourceVersion": version.to_string() },
                "addressType": "IPv4",
                "endpoints": endpoints,
            })
        };
        let (kind, object) = match endpoints {
            Some(endpoints) => {
                let slice = slice(endpoints);
                let is_new = inner.slices.insert(name.to_owned(), slice.clone()).is_none();
                (if is_new { "ADDED" } else { "MODIFIED" }, slice)
            }
            None => {
                inner.slices.remove(name);
                ("DELETED", slice(Value::Null))
            }
        };
        inner.events.push((version, json!({ "type": kind, "object": object })));
        drop(inner);
        self.state.changed.notify_waiters();
    }

    /// Changes what the server does from now on.
    pub(super) fn script(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.inner().script);
        self.state.changed.notify_waiters();
    }

    /// Forgets what has changed, so that watches from the version of now get 410.
    pub(super) fn forget(&self) {
        let mut inner = self.inner();
        inner.version += 1;
        inner.script.forgotten = inner.version;
    }

    /// Returns the number of requests so far that contain `part`.
    pub(super) fn requests(&self, part: &str) -> usize {
        self.inner().requests.iter().filter(|request| request.contains(part)).count()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.state.inner.lock().unwrap()
    }

    /// Writes a kubeconfig for this server into `dir`. The token is in a file of its own, as is the authority.
    pub(super) fn kubeconfig(&self, dir: &Path, scheme: &str) -> PathBuf {
        let (token, authority) = (dir.join("token"), dir.join("ca.crt"));
        let of = |name: &str, key: &str, value: Value| json!([{ "name": name, key: value }]);
        let mut cluster = json!({ "server": format!("{scheme}://{}", self.address) });
        if scheme == "https" {
            cluster["certificate-authority"] = authority.to_str().into();
        }
        let user = if token.exists() { json!({ "tokenFile": token }) } else { json!({}) };
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": of("test", "cluster", cluster),
            "users": of("test", "user", user),
            "contexts": of("test", "context", json!({ "cluster": "test", "user": "test", "namespace": "observability" })),
        });
        let path = dir.join("kubeconfig");
        std::fs::write(&path, config.to_string()).unwrap();
        path
    }
}

async fn serve_connection<S: AsyncRead + AsyncWrite + Unpin>(state: Arc<State>, stream: S) {
    let service = service_fn(move |request| {
        let state = Arc::clone(&state);
        async move { Ok::<_, Infallible>(state.answer(request).await) }
    });
    // Clients break their connections in these tests.
    drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
}

impl State {
    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let uri = request.uri();
        let query: BTreeMap<String, String> =
            form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()).into_owned().collect();
        let of = |key: &str| query.get(key).cloned().unwrap_or_default();
        let script = {
            let mut inner = self.inner.lock().unwrap();
            inner.requests.push(uri.to_string());
            inner.script.clone()
        };
        let token = request.headers().get(header::AUTHORIZATION).and_then(|token| token.to_str().ok());
        let token = token.and_then(|token| token.strip_prefix("Bearer ")).map(str::to_owned);
        if uri.path() != "/apis/discovery.k8s.io/v1/namespaces/observability/endpointslices"
            || of("labelSelector") != "kubernetes.io/service-name=collectors"
        {
            return status(404, "no such thing");
        }
        if script.token.is_some() && script.token != token {
            return status(401, "Unauthorized");
        }
        let is_watch = of("watch") == "1";
        match (script.refuse, script.refuse_watches) {
            (Some((code, message)), _) => status(code, message),
            (None, Some((code, message))) if is_watch => status(code, message),
            _ if is_watch => {
                let limit = Duration::from_secs(of("timeoutSeconds").parse().unwrap());
                self.watch(of("resourceVersion").parse().unwrap(), limit)
            }
            _ => self.list(&of("continue")).await,
        }
    }

    /// The token of the next page has the version of the list, and how many slices the pages before had.
    async fn list(&self, token: &str) -> Response<Body> {
        loop {
            let changed = self.changed.notified();
            {
                let inner = self.inner.lock().unwrap();
                if token.is_empty() || !inner.script.holds_pages {
                    let skip: usize = token.parse().unwrap_or_default();
                    let page = if inner.script.page == 0 { usize::MAX } else { inner.script.page };
                    let items: Vec<&Value> = inner.slices.values().skip(skip).take(page).collect();
                    let is_last = skip + items.len() >= inner.slices.len();
                    let next = if is_last { String::new() } else { (skip + items.len()).to_string() };
                    let metadata = json!({ "resourceVersion": inner.version.to_string(), "continue": next });
                    return whole(200, &json!({ "kind": "EndpointSliceList", "metadata": metadata, "items": items }));
                }
            }
            changed.await;
        }
    }

    fn watch(self: Arc<Self>, since: u64, limit: Duration) -> Response<Body> {
        let ends_at = Instant::now() + limit;
        let lines = stream::unfold((self, since), move |(state, since)| async move {
            let (line, since) = state.next(since, ends_at).await?;
            let frame = Frame::data(Bytes::from(line));
            Some((Ok::<_, Infallible>(frame), (state, since)))
        });
        Response::new(BodyExt::boxed_unsync(StreamBody::new(lines)))
    }

    /// Returns the next line of a watch and the version after it.
    async fn next(&self, since: u64, ends_at: Instant) -> Option<(String, u64)> {
        /// The version after the last line of a watch.
        const OVER: u64 = u64::MAX;
        loop {
            let changed = self.changed.notified();
            {
                let inner = self.inner.lock().unwrap();
                let Script { is_silent, ends_watches, forgotten, garbage, .. } = &inner.script;
                match garbage {
                    _ if *is_silent => {}
                    _ if since == OVER || *ends_watches => return None,
                    Some(garbage) => return Some((format!("{garbage}\n"), OVER)),
                    None if since < *forgotten => {
                        let object = json!({ "kind": "Status", "code": 410, "message": "too old resource version" });
                        return Some((format!("{}\n", json!({ "type": "ERROR", "object": object })), OVER));
                    }
                    None => {
                        if let Some((version, event)) = inner.events.iter().find(|(version, _)| *version > since) {
                            return Some((format!("{event}\n"), *version));
                        }
                    }
                }
            }
            let is_silent = self.inner.lock().unwrap().script.is_silent;
            if timeout_at(ends_at, changed).await.is_err() {
                if !is_silent {
                    return None;
                }
                self.changed.notified().await;
            }
        }
    }
}

fn status(code: u16, message: &str) -> Response<Body> {
    whole(code, &json!({ "kind": "Status", "code": code, "message": message }))
}

fn whole(code: u16, body: &Value) -> Response<Body> {
    let mut response = Response::new(BodyExt::boxed_unsync(Full::from(body.to_string())));
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    response
}
