//! Asks a backend on a separate connection whether it is alive: by `HEAD`, which any HTTP server answers.

use std::{
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, StatusCode, Uri,
    header::{CONNECTION, HOST, USER_AGENT},
};
use http_body_util::Empty;
use hyper::client::conn::http1::Builder;
use hyper_util::rt::TokioIo;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

use super::{ALPN, MAX_BUFFER, target::path_of};
use crate::{
    access::Access,
    dispatch::transport::{Failure, client::authority_of, dialer, silence::SILENCE},
    otlp::Signal,
    settings::OtlpHttp,
};

/// How long the result that the backend is alive is used again. Many calls to a slow backend then cause few probes.
const ALIVE_FOR: Duration = Duration::from_millis(500);

/// The probes of one backend. Its connections share them, so that there is one at a time.
pub(super) struct Probes {
    identity: Arc<str>,
    address: Option<SocketAddr>,
    access: Access,
    path: Uri,
    turn: Semaphore,
    /// When the last probe ended, and whether the backend was alive.
    last: Mutex<Option<(Instant, bool)>>,
}

impl Probes {
    pub(super) fn new(identity: &Arc<str>, address: Option<SocketAddr>, access: &Access, http: &OtlpHttp) -> Self {
        Self {
            identity: Arc::clone(identity),
            address,
            access: access.clone(),
            path: path_of(http, Signal::Traces),
            turn: Semaphore::new(1),
            last: Mutex::default(),
        }
    }

    /// Whether the backend accepts a new connection and answers on it in time. The result of a probe that ends after this was
    /// called is used, whoever began it, and one that ended a moment before if the backend was alive. Also true if this process lacks the resources to connect, since that says nothing
    /// about the backend.
    pub(super) async fn is_alive(&self) -> bool {
        let asked_at = Instant::now();
        // The semaphore is never closed.
        let _turn = self.turn.acquire().await;
        if let Some((ended_at, is_alive)) = *self.last.lock().unwrap_or_else(PoisonError::into_inner)
            && (ended_at > asked_at || is_alive && ended_at + ALIVE_FOR > asked_at)
        {
            return is_alive;
        }
        let Some(address) = self.address else { return false };
        let answer = head(&self.access, &self.identity, address, self.path.clone());
        // Connecting is a part of the time: nothing of it may take as long as a PING's answer.
        let is_alive = match timeout(SILENCE, answer).await {
            Ok(Ok(_status)) => true,
            Ok(Err(failure)) => matches!(failure, Failure::Local(_)),
            Err(_elapsed) => false,
        };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), is_alive));
        is_alive
    }
}

impl fmt::Debug for Probes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Probes").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Sends `HEAD` on a new connection, and returns the status of the answer.
pub(in crate::dispatch::transport) async fn head(
    access: &Access,
    identity: &str,
    address: SocketAddr,
    path: Uri,
) -> Result<StatusCode, Failure> {
    let stream = dialer::dial(access, identity, address, ALPN).await?;
    let (mut sender, connection) = Builder::new()
        .max_buf_size(MAX_BUFFER)
        .handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
        .await
        .map_err(|_| Failure::Protocol)?;
    let host = authority_of(identity, Some(address)).and_then(|host| HeaderValue::from_str(host.as_str()).ok());
    let mut request = Request::new(Empty::new());
    *request.method_mut() = Method::HEAD;
    *request.uri_mut() = path;
    let headers = request.headers_mut();
    headers.insert(HOST, host.ok_or(Failure::ConnectError)?);
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    headers.insert(USER_AGENT, HeaderValue::from_static(concat!("spanring/", env!("CARGO_PKG_VERSION"))));
    let answer = async { sender.send_request(request).await.map(|response| response.status()) };
    let driven = async {
        // Its failure is that of the answer.
        drop(connection.await);
        std::future::pending().await
    };
    tokio::select! {
        biased;
        status = answer => status.map_err(|_| Failure::Reset),
        () = driven => Err(Failure::Reset),
    }
}
