//! A listener that serves only probes, for kubelets and load balancers. Unlike the admin pages, which reveal much and
//! stay local, it reveals little and may be open to the network. It is off unless the configuration has `health_check`,
//! named after the Collector's extension.

use std::{future::ready, net::SocketAddr};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;

use super::{Answer, Hosts, Readiness, api, ready_or_not, reply, serve_pages};
use crate::{lifecycle::Tasks, listen, settings::HealthCheck};

/// The listener for probes.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The section of the file.
    pub keys: HealthCheck,
    /// The address of its `endpoint`.
    pub endpoint: SocketAddr,
}

/// Serves until `tasks` drain or stop. These are the tasks behind the listeners, since probes must be answered while
/// the proxy drains.
pub fn serve(listener: listen::Bound, path: String, readiness: Readiness, tasks: &Tasks) {
    let grpc = api::grpc::health(&readiness, tasks);
    // Probes name any host, and it reveals nothing else.
    serve_pages(listener, tasks, Hosts::new("", ["*"]), grpc, move |request| {
        ready(respond(&path, &readiness, &request))
    });
}

/// Answers 200 when the proxy is ready for clients, else 503; at `/livez` 200 as long as the process answers.
fn respond<B>(path: &str, readiness: &Readiness, request: &Request<B>) -> Response<Full<Bytes>> {
    reply(request, true, || match request.uri().path() {
        asked if asked == path || asked == "/readyz" => ready_or_not(readiness, request.uri().query()),
        "/livez" => Answer::text(StatusCode::OK, "alive\n"),
        _ => Answer::text(StatusCode::NOT_FOUND, format!("no such page; there are: {path}, /livez, /readyz\n")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reports_whether_clients_should_use_this_proxy() {
        let readiness = Readiness::new();
        let table = readiness.flag("pool tail", "no backends yet");
        let status = |method: &str, path: &str, uri: &str| {
            let request = Request::builder().method(method).uri(uri).body(()).expect("a request");
            respond(path, &readiness, &request).status().as_u16()
        };
        let all = |path| ["/", "/readyz", "/livez", "/health?verbose", "/metrics"].map(|uri| status("GET", path, uri));
        assert_eq!(all("/"), [503, 503, 200, 404, 404]);
        table.set();
        assert_eq!(all("/"), [200, 200, 200, 404, 404]);
        assert_eq!(all("/health"), [404, 200, 200, 200, 404]);
        assert_eq!(["HEAD", "OPTIONS", "POST"].map(|method| status(method, "/", "/")), [200, 200, 405]);
        readiness.drain();
        assert_eq!(all("/health"), [404, 503, 200, 503, 404]);
        for method in ["HEAD", "OPTIONS"] {
            assert_eq!(["/", "/livez", "/metrics"].map(|uri| status(method, "/", uri)), [503, 200, 404], "{method}");
        }
    }
}
