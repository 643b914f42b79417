//! A minimal OTLP/HTTP client for the load generator: one HTTP/1.1 connection with one request at a time, which is reopened
//! when it is lost.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::sync::Mutex;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::h2client::{Answer, MAX_REPLY, dial, drive, not_connected, rejected_in};
use crate::{lifecycle::Tasks, otlp::framed::PREFIX_LEN, settings::Compression};

/// An OTLP/HTTP client for one address.
#[derive(Debug)]
pub(crate) struct Channel {
    authority: String,
    path: Uri,
    headers: HeaderMap,
    timeout: Duration,
    tasks: Tasks,
    /// Locked while a request is in flight.
    sender: Mutex<Option<SendRequest<Full<Bytes>>>>,
}

impl Channel {
    /// Creates a client for `host:port` (a leading `http://` is dropped). It connects when first used.
    pub(crate) fn new(
        endpoint: &str,
        path: &str,
        compression: Compression,
        timeout: Duration,
        tasks: &Tasks,
    ) -> Result<Self, http::Error> {
        let authority = endpoint.strip_prefix("http://").unwrap_or(endpoint).trim_end_matches('/').to_owned();
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::try_from(authority.as_str())?);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        headers
            .insert(header::USER_AGENT, HeaderValue::from_static(concat!("spanring-load/", env!("CARGO_PKG_VERSION"))));
        if let Some(encoding) = compression.encoding() {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding.as_str()));
        }
        let path = Uri::try_from(path)?;
        Ok(Self { authority, path, headers, timeout, tasks: tasks.clone(), sender: Mutex::default() })
    }

    /// Opens the connection, so that a wrong address is reported before the load begins.
    pub(crate) async fn connect(&self) -> Result<(), String> {
        *self.sender.lock().await = Some(self.open().await?);
        Ok(())
    }

    /// Returns whether no request is in flight.
    pub(crate) fn is_free(&self) -> bool {
        self.sender.try_lock().is_ok()
    }

    /// Sends one message, which has gRPC's prefix, and waits for the reply. Waits until the connection is free before that.
    pub(crate) async fn call(&self, message: Bytes) -> Answer {
        let message = message.slice(PREFIX_LEN.min(message.len())..);
        let mut held = self.sender.lock().await;
        let (answer, sender) = match tokio::time::timeout(self.timeout, self.attempt(held.take(), message)).await {
            Ok((answer, sender)) => (answer, sender),
            Err(_elapsed) => (Answer::TimedOut, None),
        };
        *held = sender;
        answer
    }

    /// Sends the message on the open connection or on a new one. Returns the connection if it is left open.
    async fn attempt(
        &self,
        open: Option<SendRequest<Full<Bytes>>>,
        message: Bytes,
    ) -> (Answer, Option<SendRequest<Full<Bytes>>>) {
        let mut request = Request::new(Full::new(message));
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = self.path.clone();
        *request.headers_mut() = self.headers.clone();
        if let Some(mut sender) = open {
            // An error here says that the server has closed the idle connection.
            if sender.ready().await.is_ok() {
                match sender.try_send_request(request).await {
                    Ok(response) => return self.read(response, sender).await,
                    Err(mut error) => match error.take_message() {
                        Some(unsent) => request = unsent,
                        None => return (Answer::Lost(error.into_error().to_string()), None),
                    },
                }
            }
        }
        let mut sender = match self.open().await {
            Ok(sender) => sender,
            Err(error) => return (Answer::NoConnection(error), None),
        };
        match sender.send_request(request).await {
            Ok(response) => self.read(response, sender).await,
            Err(error) => (Answer::Lost(error.to_string()), None),
        }
    }

    async fn read(
        &self,
        response: http::Response<hyper::body::Incoming>,
        sender: SendRequest<Full<Bytes>>,
    ) -> (Answer, Option<SendRequest<Full<Bytes>>>) {
        let (head, mut body) = response.into_parts();
        let mut bytes = BytesMut::new();
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => {
                    if let Ok(piece) = frame.into_data()
                        && bytes.len() + piece.len() <= MAX_REPLY
                    {
                        bytes.extend_from_slice(&piece);
                    }
                }
                Err(error) => return (Answer::Lost(error.to_string()), None),
            }
        }
        let answer = if head.status.is_success() {
            Answer::Accepted { rejected: rejected_in(&bytes) }
        } else {
            Answer::Status(Box::new(status(head.status, &head.headers, &bytes)))
        };
        (answer, Some(sender))
    }

    async fn open(&self) -> Result<SendRequest<Full<Bytes>>, String> {
        let stream = TokioIo::new(dial(&self.authority).await?);
        let (sender, connection) = handshake(stream).await.map_err(|error| not_connected(&self.authority, &error))?;
        drive(connection, &self.tasks);
        Ok(sender)
    }
}

/// Returns the gRPC status that stands for a refusal. Codes are those that OTLP's clients treat alike.
fn status(http: StatusCode, headers: &HeaderMap, body: &[u8]) -> Status {
    let code = match http.as_u16() {
        429 => Code::ResourceExhausted,
        502..=504 => Code::Unavailable,
        400..=499 => Code::InvalidArgument,
        _ => Code::Unknown,
    };
    let said = tonic_types::Status::decode(body).map(|status| status.message).unwrap_or_default();
    let message = format!("http status {http}: {said}");
    let after = headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    match after {
        Some(seconds) => {
            let details = ErrorDetails::with_retry_info(Some(Duration::from_secs(seconds)));
            Status::with_error_details(code, message, details)
        }
        None => Status::new(code, message),
    }
}
