//! Tests of an API server that fails: the last good set stays, and what changed meanwhile is taken over.

use std::{fs, sync::Arc, time::Duration};

use rcgen::{CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use serde_json::json;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

use super::{ApiServer, LIMIT, PACE, Pace, Rig, keys, ready};

const BOTH: [&str; 2] = ["10.0.0.1:4317", "10.0.0.2:4317"];

#[tokio::test]
async fn a_forgotten_version_is_followed_by_a_list_at_once() {
    // Any wait before a retry would exceed the time limit.
    let mut rig = Rig::running(Pace { first_retry: 10 * LIMIT, ..PACE }).await;
    rig.until("the watch", |rig| rig.server.requests("watch=1") == 1).await;
    tokio::time::sleep(2 * PACE.shortest).await;
    rig.server.forget();
    rig.server.put("c", ready(&["10.0.0.3"]));
    rig.has(&["10.0.0.1:4317", "10.0.0.2:4317", "10.0.0.3:4317"]).await;
    assert_eq!((rig.counted("expired"), rig.server.requests("limit=")), (1, 2));
}

#[tokio::test]
async fn a_version_that_is_forgotten_again_and_again_is_not_listed_without_a_pause() {
    let rig = Rig::running(PACE).await;
    let begun = Instant::now();
    rig.server.script(|script| script.refuse_watches = Some((410, "too old resource version")));
    rig.server.put("c", ready(&["10.0.0.3"]));
    // The watch that is open ends when the server does.
    rig.server.stop().await;
    rig.server.start_again(None).await;
    rig.until("many lists", |rig| rig.server.requests("limit=") >= 11).await;
    assert!(begun.elapsed() >= 9 * PACE.shortest, "{:?}", begun.elapsed());
    assert_eq!(rig.published().len(), 3, "each list is used");
}

#[tokio::test]
async fn an_api_server_that_is_away_changes_nothing_and_what_it_missed_follows() {
    let mut rig = Rig::running(PACE).await;
    for round in 0..2 {
        let before = rig.counted("error");
        rig.server.stop().await;
        rig.counts("error", before + 1).await;
        assert_eq!(rig.published().len(), 2 + round);
        rig.server.put(&format!("away {round}"), ready(&[&format!("10.0.0.{}", 3 + round)]));
        rig.server.start_again(None).await;
        let all: Vec<String> = (1..=3 + round).map(|n| format!("10.0.0.{n}:4317")).collect();
        rig.has(&all.iter().map(String::as_str).collect::<Vec<_>>()).await;
    }
    assert_eq!(rig.server.requests("limit="), 1, "a watch goes on where the one before was cut off");
}

#[tokio::test]
async fn a_watch_that_falls_silent_is_given_up_and_begun_again() {
    let (watch, grace) = (Duration::from_secs(1), Duration::from_millis(200));
    let mut rig = Rig::running(Pace { watch, grace, ..PACE }).await;
    rig.until("the watch", |rig| rig.server.requests("watch=1") == 1).await;
    let begun = Instant::now();
    rig.server.script(|script| script.is_silent = true);
    rig.server.put("c", ready(&["10.0.0.3"]));
    rig.counts("timeout", 0).await;
    assert!(begun.elapsed() < LIMIT);
    assert_eq!(rig.published(), BOTH);
    rig.server.script(|script| script.is_silent = false);
    rig.has(&["10.0.0.1:4317", "10.0.0.2:4317", "10.0.0.3:4317"]).await;
}

#[tokio::test]
async fn watches_end_in_time_and_are_renewed_without_a_list() {
    let mut rig = Rig::running(Pace { watch: Duration::from_secs(1), ..PACE }).await;
    rig.until("three watches", |rig| rig.server.requests("watch=1") == 3).await;
    rig.server.put("c", ready(&["10.0.0.3"]));
    rig.has(&["10.0.0.1:4317", "10.0.0.2:4317", "10.0.0.3:4317"]).await;
    assert_eq!((rig.server.requests("limit="), rig.counted("error"), rig.counted("timeout")), (1, 0, 0));
}

#[tokio::test]
async fn watches_that_end_at_once_are_not_begun_without_a_pause() {
    let pace = Pace { first_retry: Duration::from_millis(50), longest_retry: Duration::from_millis(200), ..PACE };
    let rig = Rig::running(pace).await;
    let begun = Instant::now();
    rig.server.script(|script| script.ends_watches = true);
    rig.until("watches", |rig| rig.server.requests("watch=1") >= 7).await;
    // The waits are 50, 100, 200, 200 and 200 ms, each less 10 % at most.
    assert!(begun.elapsed() >= Duration::from_millis(650), "{:?}", begun.elapsed());
    assert_eq!(rig.published(), BOTH);
}

#[tokio::test]
async fn a_denied_list_or_watch_is_stated_and_tried_again() {
    let mut rig = Rig::start(PACE, &keys()).await;
    // It may have listed already; it must do so again.
    rig.server.script(|script| script.refuse = Some((403, "endpointslices is forbidden")));
    rig.server.stop().await;
    rig.server.start_again(None).await;
    rig.counts("denied", 0).await;
    let reason = "denied by the API server (403): endpointslices is forbidden";
    assert_eq!(rig.resolvers.trouble().reason().as_deref(), Some(reason));
    rig.server.script(|script| script.refuse = None);
    rig.has(&BOTH).await;
    rig.until("it is well", |rig| rig.resolvers.trouble().reason().is_none()).await;

    rig.server.script(|script| script.refuse_watches = Some((401, "Unauthorized")));
    rig.server.stop().await;
    rig.server.start_again(None).await;
    rig.counts("denied", rig.counted("denied")).await;
    rig.server.put("c", ready(&["10.0.0.3"]));
    assert_eq!(rig.published(), BOTH);
    rig.server.script(|script| script.refuse_watches = None);
    rig.has(&["10.0.0.1:4317", "10.0.0.2:4317", "10.0.0.3:4317"]).await;
}

#[tokio::test]
async fn errors_and_lines_that_cannot_be_read_are_followed_by_a_list() {
    let mut rig = Rig::running(PACE).await;
    for (n, garbage) in ["{\"type\":\"ADDED\",\"object\":7}", "{", "{\"type\":\"ERROR\",\"object\":{\"code\":504}}"]
        .into_iter()
        .enumerate()
    {
        let lists = rig.server.requests("limit=");
        rig.server.script(|script| script.garbage = Some(garbage));
        rig.until("a list", |rig| rig.server.requests("limit=") > lists).await;
        assert_eq!(rig.published().len(), 2 + n, "{garbage}");
        rig.server.script(|script| script.garbage = None);
        rig.server.put(&format!("after {n}"), ready(&[&format!("10.0.0.{}", 3 + n)]));
        let all: Vec<String> = (1..=3 + n).map(|n| format!("10.0.0.{n}:4317")).collect();
        rig.has(&all.iter().map(String::as_str).collect::<Vec<_>>()).await;
    }
}

#[tokio::test]
async fn a_service_without_endpoints_keeps_the_last_good_set() {
    let mut rig = Rig::running(PACE).await;
    rig.server.put("b", None);
    rig.has(&BOTH[..1]).await;
    let late = json!([{ "addresses": ["10.0.0.1"], "conditions": { "ready": false } }]);
    rig.server.put("a", Some(late));
    rig.counts("empty", 0).await;
    rig.server.put("a", None);
    rig.counts("empty", 1).await;
    assert_eq!(rig.published(), BOTH[..1]);
    // A list of nothing is no better.
    rig.server.forget();
    rig.server.stop().await;
    rig.server.start_again(None).await;
    rig.counts("empty", 2).await;
    assert_eq!(rig.published(), BOTH[..1]);
    rig.server.put("a", ready(&["10.0.0.9"]));
    rig.has(&["10.0.0.9:4317"]).await;
}

#[tokio::test]
async fn a_token_that_was_replaced_on_disk_is_used() {
    let server = ApiServer::start().await;
    server.put("a", ready(&["10.0.0.1"]));
    server.script(|script| script.token = Some("first".into()));
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("token"), "first").unwrap();
    let config = server.kubeconfig(dir.path(), "http");
    let mut rig = Rig::begin(server, dir, config, PACE, &keys());
    rig.has(&BOTH[..1]).await;

    rig.server.script(|script| script.token = Some("second".into()));
    rig.server.stop().await;
    rig.server.start_again(None).await;
    rig.counts("denied", 1).await;
    assert_eq!(rig.published(), BOTH[..1]);
    rig.server.put("b", ready(&["10.0.0.2"]));
    fs::write(rig.dir.path().join("token"), "second").unwrap();
    rig.has(&BOTH).await;
    // Without the file too, the set stays.
    fs::remove_file(rig.dir.path().join("token")).unwrap();
    rig.server.stop().await;
    let before = rig.counted("error");
    rig.counts("error", before + 1).await;
    assert_eq!(rig.published(), BOTH);
}

/// Returns a new authority in PEM, and a server whose certificate it has signed.
fn authority() -> (String, TlsAcceptor) {
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
        .unwrap();
    (issuer.pem(), TlsAcceptor::from(Arc::new(config)))
}

#[tokio::test]
async fn an_authority_that_was_replaced_on_disk_is_trusted_and_no_other() {
    let [(first, first_tls), (second, second_tls)] = [authority(), authority()];
    let server = ApiServer::start_with(Some(first_tls)).await;
    server.put("a", ready(&["10.0.0.1"]));
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("ca.crt"), first).unwrap();
    let config = server.kubeconfig(dir.path(), "https");
    let mut rig = Rig::begin(server, dir, config, PACE, &keys());
    rig.has(&BOTH[..1]).await;

    rig.server.stop().await;
    rig.server.put("b", ready(&["10.0.0.2"]));
    rig.server.start_again(Some(second_tls)).await;
    let before = rig.counted("error");
    rig.counts("error", before + 1).await;
    assert_eq!(rig.published(), BOTH[..1], "an unknown authority must not be trusted");
    fs::write(rig.dir.path().join("ca.crt"), second).unwrap();
    rig.has(&BOTH).await;
}
