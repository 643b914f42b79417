//! Tests of the pages; only the last two use the network.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::spawn_blocking,
};

use super::*;

fn with_state<T>(body: impl FnOnce(&State) -> T) -> T {
    Recorder::scoped(|recorder| {
        let (budget, hosts) = (Budget::new(usize::MAX), Hosts::default());
        body(&State { recorder: recorder.clone(), readiness: Readiness::new(), pools: Pools::new(), budget, hosts })
    })
}

fn ask(state: &State, method: Method, uri: &str) -> (Response<()>, String) {
    let request = Request::builder().method(method).uri(uri).body(()).expect("a request");
    let (parts, body) = respond(state, &request).into_parts();
    let body = futures_util::FutureExt::now_or_never(body.collect()).expect("a whole body").expect("a body");
    (Response::from_parts(parts, ()), String::from_utf8(body.to_bytes().to_vec()).expect("text"))
}

fn get(state: &State, uri: &str) -> (u16, String) {
    let (head, body) = ask(state, Method::GET, uri);
    (head.status().as_u16(), body)
}

#[test]
fn the_first_page_links_to_every_other() {
    with_state(|state| {
        let (status, body) = get(state, "/");
        assert_eq!(status, 200);
        for route in ROUTES {
            assert!(body.contains(&format!("<a href=\"{}\">", route.path)), "{}", route.path);
            // The look-up page requires a query.
            let status = if route.path == LOOKUP { 400 } else { 200 };
            assert_eq!(get(state, route.path).0, status, "{}", route.path);
        }
    });
}

#[test]
fn metrics_are_in_prometheus_text_format() {
    with_state(|state| {
        let (head, body) = ask(state, Method::GET, "/metrics");
        assert_eq!(head.headers()[header::CONTENT_TYPE], "text/plain; version=0.0.4; charset=utf-8");
        assert!(body.contains("# TYPE spanring_build_info gauge\n"), "{body}");
        assert!(body.ends_with('\n'));
    });
}

#[test]
fn readiness_says_what_is_missing() {
    with_state(|state| {
        let listeners = state.readiness.flag("listeners", "not bound yet");
        let table = state.readiness.flag("pool tail", "no backends yet: discovery has found none");
        let expected = "not ready\n[-] listeners: not bound yet\n\
                        [-] pool tail: no backends yet: discovery has found none\n";
        assert_eq!(get(state, "/readyz"), (503, expected.to_owned()));
        listeners.set();
        let expected = "not ready\n[+] listeners: ok\n[-] pool tail: no backends yet: discovery has found none\n";
        assert_eq!(get(state, "/readyz?verbose"), (503, expected.to_owned()));
        table.set();
        assert_eq!(get(state, "/readyz"), (200, "ready\n".to_owned()));
        assert_eq!(get(state, "/readyz?verbose=1"), (200, "ready\n[+] listeners: ok\n[+] pool tail: ok\n".to_owned()));
        listeners.clear();
        assert_eq!(get(state, "/readyz").0, 503);
        listeners.set();
        state.readiness.drain();
        state.readiness.drain();
        assert_eq!(get(state, "/livez"), (200, "alive\n".to_owned()));
        assert_eq!(get(state, "/readyz"), (503, "not ready\n[-] draining: the process is ending\n".to_owned()));
        assert!(!state.readiness.is_ready());
    });
}

#[test]
fn readiness_tells_what_an_operator_should_know_although_all_is_met() {
    with_state(|state| {
        let is_met = Arc::new(AtomicBool::new(false));
        let check = Arc::clone(&is_met);
        let unmet = move || (!check.load(Ordering::Relaxed)).then(|| "no backends yet".to_owned());
        state.readiness.require_and_note("pool tail", unmet, || Some("discovery fails".to_owned()));
        assert_eq!(get(state, "/readyz?verbose"), (503, "not ready\n[-] pool tail: no backends yet\n".to_owned()));
        is_met.store(true, Ordering::Relaxed);
        assert_eq!(get(state, "/readyz?verbose"), (200, "ready\n[+] pool tail: ok; discovery fails\n".to_owned()));
        assert_eq!(get(state, "/readyz"), (200, "ready\n".to_owned()));
    });
}

#[test]
fn pages_are_only_read() {
    with_state(|state| {
        for method in [Method::POST, Method::PUT, Method::DELETE] {
            let (head, _) = ask(state, method, "/metrics");
            assert_eq!(
                (head.status().as_u16(), &head.headers()[header::ALLOW]),
                (405, &HeaderValue::from_static("GET, HEAD, OPTIONS"))
            );
        }
        let (head, body) = ask(state, Method::HEAD, "/livez");
        assert_eq!((head.status().as_u16(), body.as_str()), (200, ""));
        assert_eq!(head.headers()[header::CONTENT_LENGTH], "6");
        let table = state.readiness.flag("pool tail", "no backends yet");
        let options = |uri| {
            let (head, body) = ask(state, Method::OPTIONS, uri);
            assert_eq!((&head.headers()[header::ALLOW], &*body), (&HeaderValue::from_static("GET, HEAD, OPTIONS"), ""));
            head.status().as_u16()
        };
        assert_eq!(["/livez", "/readyz", "/metrics"].map(options), [200, 503, 200], "a probe may ask so");
        table.set();
        assert_eq!(options("/readyz"), 200);
    });
}

#[test]
fn an_unknown_page_lists_those_there_are() {
    with_state(|state| {
        let (status, body) = get(state, "/health");
        assert_eq!(status, 404);
        assert!(ROUTES.iter().all(|route| body.contains(&format!("\n{}: ", route.path))), "{body}");
        assert_eq!(get(state, "/metrics/").0, 404);
    });
}

/// Sends a request for a page and returns the connection.
async fn request(address: SocketAddr, path: &str) -> TcpStream {
    request_at(address, "spanring", path).await
}

async fn request_at(address: SocketAddr, host: &str, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("written");
    stream
}

async fn answer(mut stream: TcpStream) -> String {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    answer
}

#[tokio::test]
async fn pages_are_served_until_tasks_stop() {
    let tasks = Tasks::new();
    let listener = listen::bind("admin", (Ipv4Addr::LOCALHOST, 0).into()).expect("a listener");
    let address = listener.address();
    with_state(|state| serve(listener, state.clone(), &tasks));
    let answer = answer(request(address, "/livez").await).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nalive\n"), "{answer}");

    let _open = TcpStream::connect(address).await.expect("a connection");
    tasks.stop();
    tasks.wait().await;
}

#[tokio::test]
async fn a_page_that_is_asked_for_under_a_foreign_name_is_refused_and_a_probe_is_not() {
    let tasks = Tasks::new();
    let listener = listen::bind("admin", (Ipv4Addr::LOCALHOST, 0).into()).expect("a listener");
    let address = listener.address();
    with_state(|state| serve(listener, state.clone(), &tasks));
    for path in ["/", "/metrics", "/api/v1/ring", "/nothing"] {
        let answer = answer(request_at(address, "attacker.example:8888", path).await).await;
        assert!(answer.starts_with("HTTP/1.1 421 Misdirected Request\r\n"), "{path}: {answer}");
        assert!(answer.contains("set admin.allowed_hosts to [attacker.example]"), "{path}: {answer}");
    }
    for (host, path) in [("attacker.example", "/livez"), ("attacker.example", "/readyz"), ("10.0.0.1", "/metrics")] {
        let answer = answer(request_at(address, host, path).await).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{host}{path}: {answer}");
    }
    let status = async |host: &str, path: &'static str| {
        let channel = tonic::transport::Endpoint::from_shared(format!("http://{address}")).expect("an endpoint");
        let channel = channel.origin(format!("http://{host}").parse().expect("an origin")).connect().await;
        let mut client = tonic::client::Grpc::new(channel.expect("a connection"));
        client.ready().await.expect("it is ready");
        let request = tonic::Request::new(pb::v1::GetRingRequest::default());
        let codec = tonic_prost::ProstCodec::<_, ()>::default();
        client.unary(request, http::uri::PathAndQuery::from_static(path), codec).await.map(tonic::Response::into_inner)
    };
    let ring = "/spanring.admin.v1.Ring/GetRing";
    let refused = status("attacker.example", ring).await.expect_err("a foreign name");
    assert_eq!(refused.code(), tonic::Code::PermissionDenied);
    assert!(refused.message().contains("admin.allowed_hosts"), "{refused:?}");
    status("spanring", ring).await.expect("an answer");
    status("attacker.example", "/grpc.health.v1.Health/Check").await.expect("an answer");
    tasks.stop();
    tasks.wait().await;
}

#[test]
fn pages_are_written_on_blocking_threads_and_probes_need_none() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build().unwrap();
    runtime.block_on(async {
        let tasks = Tasks::new();
        let listener = listen::bind("admin", (Ipv4Addr::LOCALHOST, 0).into()).expect("a listener");
        let address = listener.address();
        with_state(|state| serve(listener, state.clone(), &tasks));
        let (release, held) = std::sync::mpsc::channel::<()>();
        let only_thread = spawn_blocking(move || held.recv());
        let metrics = request(address, "/metrics").await;
        let alive = tokio::time::timeout(Duration::from_secs(10), answer(request(address, "/livez").await));
        let alive = alive.await.expect("an answer although no blocking thread is free");
        assert!(alive.ends_with("alive\n"), "{alive}");
        let mut metrics = Box::pin(answer(metrics));
        assert!(futures_util::poll!(&mut metrics).is_pending(), "it needs a thread, and there is none");
        drop(release);
        only_thread.await.expect("no panic").expect_err("the sender is gone");
        let metrics = metrics.await;
        assert!(metrics.contains("# TYPE spanring_build_info gauge\n"), "{metrics}");
        tasks.stop();
        tasks.wait().await;
    });
}
