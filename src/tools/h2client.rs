//! A minimal gRPC client for the load generator: one HTTP/2 connection, which is reopened when it is lost.

use std::{fmt, time::Duration};

use bytes::{Buf, Bytes, BytesMut};
use h2::client::SendRequest;
use http::{HeaderMap, HeaderValue, Method, Request, Uri};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::Mutex,
};
use tokio_rustls::TlsConnector;
use tonic::Status;

use crate::{
    codec::{Encoding, inflate_uncounted},
    lifecycle::Tasks,
    otlp::framed::PREFIX_LEN,
    settings::Compression,
    tls::Client,
};

/// Largest reply that is read. Export replies have a few bytes.
pub(super) const MAX_REPLY: usize = 64 * 1024;

/// Number of streams that may be opened before the server's SETTINGS arrive; gRPC clients use the same number. Without
/// this limit, the server refuses some streams of a burst on a new connection.
const FIRST_STREAMS: usize = 100;

/// Number of attempts to send a message that no server has processed.
const UNPROCESSED_ATTEMPTS: usize = 3;

/// Result of a call.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Acknowledged, except for `rejected` records.
    Accepted { rejected: u64 },
    /// The server answered with an error status.
    Status(Box<Status>),
    /// No connection could be established.
    NoConnection(String),
    /// The connection or stream ended before the reply.
    Lost(String),
    /// No reply arrived before the timeout.
    TimedOut,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accepted { rejected } => write!(f, "accepted, {rejected} rejected"),
            Self::Status(status) => write!(f, "{}: {}", status.code(), status.message()),
            Self::NoConnection(error) => f.write_str(error),
            Self::Lost(error) => write!(f, "connection lost: {error}"),
            Self::TimedOut => f.write_str("no answer in time"),
        }
    }
}

/// A gRPC client for one address.
#[derive(Debug)]
pub(crate) struct Channel {
    authority: String,
    uri: Uri,
    headers: HeaderMap,
    timeout: Duration,
    tls: Option<Client>,
    tasks: Tasks,
    sender: Mutex<Option<SendRequest<Bytes>>>,
}

impl Channel {
    /// Creates a client for `host:port` (a leading `http://` is dropped). It connects when first used.
    pub(crate) fn new(
        endpoint: &str,
        path: &str,
        compression: Compression,
        timeout: Duration,
        tls: Option<Client>,
        tasks: &Tasks,
    ) -> Result<Self, http::Error> {
        let authority = endpoint.strip_prefix("http://").unwrap_or(endpoint).trim_end_matches('/').to_owned();
        let uri = Uri::builder()
            .scheme(if tls.is_some() { "https" } else { "http" })
            .authority(authority.as_str())
            .path_and_query(path)
            .build()?;
        let mut headers = HeaderMap::new();
        headers.insert("content-type", HeaderValue::from_static("application/grpc"));
        headers.insert("te", HeaderValue::from_static("trailers"));
        headers.insert("user-agent", HeaderValue::from_static(concat!("spanring-load/", env!("CARGO_PKG_VERSION"))));
        headers
            .insert("grpc-timeout", HeaderValue::try_from(format!("{}m", timeout.as_millis().clamp(1, 99_999_999)))?);
        if let Some(encoding) = compression.encoding() {
            headers.insert("grpc-encoding", HeaderValue::from_static(encoding.as_str()));
        }
        Ok(Self { authority, uri, headers, timeout, tls, tasks: tasks.clone(), sender: Mutex::new(None) })
    }

    /// Opens the connection, so that a wrong address is reported before the load begins.
    pub(crate) async fn connect(&self) -> Result<(), String> {
        self.sender().await.map(drop)
    }

    /// Sends one framed message and waits for the reply.
    pub(crate) async fn call(&self, message: Bytes) -> Answer {
        match tokio::time::timeout(self.timeout, self.attempt(message)).await {
            Ok(answer) => answer,
            Err(_elapsed) => Answer::TimedOut,
        }
    }

    /// Sends the message, and sends it again on a new connection if the server says that it did not process it.
    async fn attempt(&self, message: Bytes) -> Answer {
        let mut attempts = 1;
        loop {
            let mut sender = match self.sender().await {
                Ok(sender) => sender,
                Err(error) => return Answer::NoConnection(error),
            };
            match self.exchange(&mut sender, message.clone()).await {
                Ok(answer) => return answer,
                Err(error) if attempts < UNPROCESSED_ATTEMPTS && is_unprocessed(&error) => attempts += 1,
                Err(error) => return Answer::Lost(error.to_string()),
            }
            *self.sender.lock().await = None;
        }
    }

    async fn exchange(&self, sender: &mut SendRequest<Bytes>, message: Bytes) -> Result<Answer, h2::Error> {
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        let (response, mut body) = sender.send_request(request, false)?;
        // h2 buffers what exceeds the flow-control window. That is fine, since the message is in memory already.
        body.send_data(message, true)?;
        let (head, mut reply) = response.await?.into_parts();
        let mut bytes = BytesMut::new();
        while let Some(piece) = reply.data().await {
            let piece = piece?;
            reply.flow_control().release_capacity(piece.len())?;
            if bytes.len() + piece.len() <= MAX_REPLY {
                bytes.extend_from_slice(&piece);
            }
        }
        let trailers = reply.trailers().await?;
        let status_in = trailers.as_ref().unwrap_or(&head.headers);
        if status_in.get("grpc-status").is_some_and(|code| code == "0") {
            return Ok(Answer::Accepted { rejected: rejected(&head.headers, bytes.freeze()) });
        }
        let status = Status::from_header_map(status_in)
            .unwrap_or_else(|| Status::unknown(format!("no grpc-status, http status {}", head.status)));
        Ok(Answer::Status(Box::new(status)))
    }

    async fn sender(&self) -> Result<SendRequest<Bytes>, String> {
        let mut held = self.sender.lock().await;
        if let Some(sender) = held.take()
            // The clone is ready at once unless the connection is gone.
            && let Ok(ready) = sender.clone().ready().await
        {
            *held = Some(sender);
            return Ok(ready);
        }
        let opened = self.open().await?;
        *held = Some(opened.clone());
        Ok(opened)
    }

    async fn open(&self) -> Result<SendRequest<Bytes>, String> {
        let failed = |error: &dyn fmt::Display| not_connected(&self.authority, error);
        let stream = dial(&self.authority).await?;
        let Some(tls) = &self.tls else { return self.begin(stream).await.map_err(|error| failed(&error)) };
        let name = tls.name_of(&self.authority).ok_or_else(|| failed(&"it has no name to be checked"))?;
        let stream = TlsConnector::from(tls.current()).connect(name, stream).await.map_err(|error| failed(&error))?;
        self.begin(stream).await.map_err(|error| failed(&error))
    }

    async fn begin<S>(&self, stream: S) -> Result<SendRequest<Bytes>, h2::Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut builder = h2::client::Builder::new();
        builder.max_concurrent_reset_streams(1024).initial_max_send_streams(FIRST_STREAMS);
        let (sender, connection) = builder.handshake(stream).await?;
        drive(connection, &self.tasks);
        Ok(sender)
    }
}

/// Connects to `host:port`.
pub(super) async fn dial(authority: &str) -> Result<TcpStream, String> {
    let stream = TcpStream::connect(authority).await.map_err(|error| not_connected(authority, &error))?;
    stream.set_nodelay(true).map_err(|error| not_connected(authority, &error))?;
    Ok(stream)
}

/// The message of a connection that could not be made.
pub(super) fn not_connected(authority: &str, error: &dyn fmt::Display) -> String {
    format!("cannot connect to {authority}: {error}")
}

/// Drives a connection until it ends or the tasks are stopped.
pub(super) fn drive<E: fmt::Display>(connection: impl Future<Output = Result<(), E>> + Send + 'static, tasks: &Tasks) {
    let stopping = tasks.clone();
    tasks.spawn(async move {
        tokio::select! {
            result = connection => if let Err(error) = result { tracing::debug!(%error, "connection lost") },
            () = stopping.stopped() => {}
        }
    });
}

/// Returns whether the server did not process a request: it had told the client to connect again, and the request's
/// stream came after the last one that it processed (RFC 9113, 6.8). gRPC clients send such a request again by
/// themselves.
fn is_unprocessed(error: &h2::Error) -> bool {
    error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR)
}

/// Returns the number of records that an OK reply rejects; 0 if the reply cannot be decoded.
fn rejected(headers: &HeaderMap, mut reply: Bytes) -> u64 {
    if reply.len() <= PREFIX_LEN {
        return 0;
    }
    let is_compressed = reply.get_u8() == 1;
    let _len = reply.get_u32();
    let encoding = headers.get("grpc-encoding").map(HeaderValue::as_bytes);
    let inflated;
    let message = if is_compressed {
        let encoding = encoding.and_then(Encoding::from_name);
        match encoding.and_then(|encoding| inflate_uncounted(encoding, &reply, MAX_REPLY).ok()) {
            Some(message) => inflated = message.payload().into_owned(),
            None => return 0,
        }
        inflated.as_slice()
    } else {
        reply.as_ref()
    };
    rejected_in(message)
}

/// Returns the number of records that this reply rejects; 0 if it cannot be decoded.
pub(super) fn rejected_in(message: &[u8]) -> u64 {
    let decoded = ExportTraceServiceResponse::decode(message).ok();
    let rejected = decoded.and_then(|reply| reply.partial_success).map_or(0, |partial| partial.rejected_spans);
    u64::try_from(rejected).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use http::Response;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    /// SETTINGS without a setting, and GOAWAY: no stream was processed, and there was no error (RFC 9113, 6.5 and 6.8).
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    const GOAWAY: [u8; 17] = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

    /// Answers one call with status OK.
    async fn accept_one(stream: TcpStream) -> Result<(), h2::Error> {
        let mut connection = h2::server::handshake(stream).await?;
        while let Some(call) = connection.accept().await {
            let (_request, mut reply) = call?;
            let head = Response::builder().header("grpc-status", "0").body(()).expect("a response");
            reply.send_response(head, true)?;
        }
        Ok(())
    }

    #[tokio::test]
    async fn a_request_that_no_server_processed_is_sent_again_on_a_new_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = listener.local_addr().unwrap().to_string();
        let tasks = Tasks::new();
        let server = tasks.spawn(async move {
            let (mut first, _) = listener.accept().await.unwrap();
            first.write_all(&SETTINGS).await.unwrap();
            // The client's preface and settings are 24 and at least 9 bytes long: what follows them is the request.
            let (mut buffer, mut read) = ([0; 4096], 0);
            while !buffer[..read].windows(5).any(|window| window == b"hello") {
                read += first.read(&mut buffer[read..]).await.unwrap();
            }
            first.write_all(&GOAWAY).await.unwrap();
            let (second, _) = listener.accept().await.unwrap();
            drop(first);
            accept_one(second).await
        });
        let timeout = Duration::from_secs(10);
        let channel = Channel::new(&endpoint, "/a/b", Compression::None, timeout, None, &tasks).unwrap();
        let answer = channel.call(Bytes::from_static(b"hello")).await;
        assert!(matches!(answer, Answer::Accepted { rejected: 0 }), "{answer}");
        tasks.stop();
        drop(channel);
        server.abort();
    }
}
