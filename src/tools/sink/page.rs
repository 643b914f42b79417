//! The HTTP interface of sinks: `GET /report`, `GET /spans`, `GET` and `PUT /behaviour`.

use std::{convert::Infallible, fmt::Write as _, sync::Arc};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use super::{Behaviour, Sink, SinksReport};
use crate::lifecycle::Tasks;

/// Largest body of a `PUT`, in bytes.
const MAX_BODY: usize = 16 * 1024;

/// Serves the reports of `sinks` until `tasks` stop.
pub(super) async fn serve(listener: TcpListener, sinks: Arc<[Sink]>, tasks: Tasks) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = tasks.stopped() => return,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            continue;
        };
        let (sinks, of_connection) = (Arc::clone(&sinks), tasks.clone());
        tasks.spawn(async move {
            let service = service_fn(|request| {
                let sinks = Arc::clone(&sinks);
                async move { Ok::<_, Infallible>(answer(request, &sinks).await) }
            });
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                result = connection => if let Err(error) = result { tracing::debug!(%error, "http connection ended") },
                () = of_connection.stopped() => {}
            }
        });
    }
}

async fn answer(request: Request<Incoming>, sinks: &[Sink]) -> Response<Full<Bytes>> {
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/report") => json(&SinksReport::of(sinks)),
        (&Method::GET, "/spans") => text(StatusCode::OK, spans(sinks)),
        (&Method::GET, "/behaviour") => {
            json(&sinks.iter().map(|sink| sink.behaviour().as_ref().clone()).collect::<Vec<_>>())
        }
        (&Method::PUT, "/behaviour") => change(request, sinks).await,
        _ => text(StatusCode::NOT_FOUND, "GET /report, GET /spans, GET or PUT /behaviour[?sink=N]\n".to_owned()),
    }
}

/// Changes the behaviour of all sinks, or of the one selected by `?sink=N`, to that in the body.
async fn change(request: Request<Incoming>, sinks: &[Sink]) -> Response<Full<Bytes>> {
    let bad = |what: String| text(StatusCode::BAD_REQUEST, what + "\n");
    let chosen = match request.uri().query().map(|query| query.strip_prefix("sink=").map(str::parse::<usize>)) {
        None => sinks,
        Some(Some(Ok(n))) if n < sinks.len() => sinks.get(n..=n).unwrap_or_default(),
        Some(_) => return bad(format!("write ?sink=N with N below {}", sinks.len())),
    };
    let body = match Limited::new(request.into_body(), MAX_BODY).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return bad(error.to_string()),
    };
    match serde_json::from_slice::<Behaviour>(&body) {
        Ok(behaviour) => {
            for sink in chosen {
                sink.set_behaviour(behaviour.clone());
            }
            json(&behaviour)
        }
        Err(error) => bad(error.to_string()),
    }
}

/// Returns one line for each span: number of the sink, trace ID, span ID.
fn spans(sinks: &[Sink]) -> String {
    let mut lines = String::new();
    for (n, sink) in sinks.iter().enumerate() {
        for (trace, spans) in sink.seen() {
            for span in spans {
                let (trace, span) = (u128::from_be_bytes(trace), u64::from_be_bytes(span));
                if writeln!(lines, "{n} {trace:032x} {span:016x}").is_err() {
                    return lines;
                }
            }
        }
    }
    lines
}

fn json(value: &impl serde::Serialize) -> Response<Full<Bytes>> {
    match serde_json::to_string_pretty(value) {
        Ok(body) => {
            let mut response = text(StatusCode::OK, body + "\n");
            response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
            response
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response
}
