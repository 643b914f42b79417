//! Log messages about backends whose TLS fails: the error of each backend, and what to do about it.

use anyhow::{Context, Result, ensure};

use super::World;
use crate::{
    backend::{Tls, Welcome},
    fixture::{ExtraConfig, Fixture, Reply},
    harness::until,
    pki::{self, Authority, Pair},
};

const NEEDS_TLS: &str = "it speaks TLS and its pool is plaintext: add a tls section to the pool";

/// TLS of a backend that presents `pair` and requests no client certificate.
fn showing(pair: &Pair) -> Result<Tls> {
    let dir = tempfile::tempdir()?;
    let (cert_file, key_file) = pair.write(dir.path(), "backend");
    let identity = spanring::tls::Identity { cert_file, key_file };
    let config = spanring::tls::ServerConfig { identity, ..spanring::tls::ServerConfig::default() };
    Ok(spanring::tls::Server::load("backend", config, &[b"h2"])?.current())
}

fn says(fixture: &Fixture, text: &str) -> Result<()> {
    until(&format!("the log says {text:?}"), || Ok(fixture.process.log().contains(text).then_some(())))
        .with_context(|| fixture.process.log())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_message_for_a_plaintext_pool_with_tls_backends_says_to_add_a_section() -> Result<()> {
    let world = World::new()?;
    let fixture = Fixture::start(2, ExtraConfig::default()).await?;
    for backend in &fixture.backends {
        backend.speak(Some(world.backend(&world.good())?));
    }
    let mut client = fixture.client().await?;
    client.export(fixture.spans_at(0, 2)?).await.retryable()?;
    says(&fixture, NEEDS_TLS)?;
    // Clients get the message too, as soon as the failure of the chosen backend is known.
    loop {
        let Reply::Refused(status) = client.export(fixture.spans_at(0, 2)?).await else {
            anyhow::bail!("no backend could have accepted it")
        };
        if status.message().contains(NEEDS_TLS) {
            break;
        }
        tokio::time::sleep(crate::harness::POLL_INTERVAL).await;
    }
    // It is logged once per backend.
    let lines = fixture.process.log().matches(NEEDS_TLS).count();
    ensure!(lines <= 2, "{lines} lines:\n{}", fixture.process.log());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_closes_every_connection_is_not_reported_as_tls() -> Result<()> {
    let fixture = Fixture::start(1, ExtraConfig::default()).await?;
    let backend = fixture.backends.first().context("a backend")?;
    backend.welcome(|_| Welcome::Says("HTTP/1.1 400 Bad Request\r\n\r\n"));
    fixture.client().await?.export(fixture.spans_at(0, 2)?).await.retryable()?;
    until("it was probed twice", || Ok((backend.connections() >= 3).then_some(())))?;
    ensure!(!fixture.process.log().contains(NEEDS_TLS), "{}", fixture.process.log());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_message_about_a_certificate_of_openssl_req_x509_says_how_to_make_it() -> Result<()> {
    let (dir, own) = (tempfile::tempdir()?, pki::self_signed(true));
    pki::replace(&dir.path().join("ca.crt"), &own.cert);
    let pool = format!("tls: {{ ca_file: {}/ca.crt }},", dir.path().display()).leak();
    let fixture = Fixture::start(1, ExtraConfig { pool, ..ExtraConfig::default() }).await?;
    fixture.backends.first().context("a backend")?.speak(Some(showing(&own)?));
    fixture.client().await?.export(fixture.spans_at(0, 2)?).await.retryable()?;
    says(&fixture, "make it again with -addext basicConstraints=critical,CA:FALSE")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_failure_of_one_backend_does_not_hide_that_of_another() -> Result<()> {
    let world = World::new()?;
    let fixture = world.fixture(3, "").await?;
    let sick = [
        showing(&world.authority.issue_expired(&["127.0.0.1"]))?,
        showing(&Authority::new("another").issue(&["127.0.0.1"]))?,
        showing(&world.authority.issue(&["127.0.0.9"]))?,
    ];
    for (backend, tls) in fixture.backends.iter().zip(sick) {
        backend.speak(Some(tls));
    }
    let mut client = fixture.client().await?;
    for n in 0..3 {
        client.export(fixture.spans_at(n, 2)?).await.retryable()?;
    }
    for cause in [
        "a certificate has expired or is not valid yet",
        "the authority that signed it has to be in ca_file",
        "write a name of its certificate as server_name_override",
    ] {
        says(&fixture, cause)?;
    }
    Ok(())
}
