//! Row 13: the TLS of a backend is missing, expired, issued by an unknown authority or for another name, or it rejects
//! our certificate.

use anyhow::{Context, Result, ensure};

use crate::{backend::Tls, fixture::Fixture, pki::Authority, tls::World};

const FAILURES: &str = "spanring_dispatch_tls_handshake_failures_total";

/// Checks that a backend with this TLS is ejected for that reason, that its traces go to the other backends without an
/// error for clients, and that it returns once its TLS is valid.
async fn is_ejected_until_it_is_well(speaks: impl Fn(&World) -> Result<Option<Tls>>, reason: &str) -> Result<()> {
    let world = World::new()?;
    let fixture = world.fixture(3, "").await?;
    let sick = fixture.backends.first().context("a backend")?;
    sick.speak(speaks(&world)?);
    let mut client = fixture.client().await?;
    for _ in 0..5 {
        let spans = [fixture.spans_at(0, 2)?, fixture.spans_at(1, 2)?, fixture.spans_at(2, 2)?].concat();
        client.export(spans).await.ok().context("clients must not see it")?;
    }
    let backend = format!("backend=\"{}\"", sick.address);
    let reason = format!("reason=\"{reason}\"");
    fixture.until_metric(FAILURES, &["pool=\"tail\"", &reason], |count| count >= 1.0)?;
    let connects = fixture.metric("spanring_dispatch_connects_total", &[&backend, "result=\"ok\""])?;
    let failed = fixture.metric("spanring_dispatch_connects_total", &[&backend, "result=\"tls\""])?;
    ensure!(connects + failed >= 1.0, "the attempts must be counted: {connects} and {failed}");
    until_state(&fixture, &backend, "ejected")?;
    ensure!(sick.delivered().is_empty(), "nothing may reach a backend that is not what it should be");
    ensure!(fixture.process.log().contains("TLS handshake failed"), "{}", fixture.process.log());
    sick.speak(Some(world.backend(&world.good())?));
    until_state(&fixture, &backend, "active")?;
    fixture.serves().await
}

fn until_state(fixture: &Fixture, backend: &str, state: &str) -> Result<()> {
    let state = format!("state=\"{state}\"");
    fixture.until_metric("spanring_membership_backend_state", &[backend, &state], |is| is == 1.0).map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn row_13_a_backend_whose_certificate_expired() -> Result<()> {
    let expired = |world: &World| world.backend(&world.authority.issue_expired(&["127.0.0.1"])).map(Some);
    is_ejected_until_it_is_well(expired, "expired").await
}

#[tokio::test(flavor = "multi_thread")]
async fn row_13_a_backend_of_another_authority() -> Result<()> {
    let another = |world: &World| world.backend(&Authority::new("another").issue(&["127.0.0.1"])).map(Some);
    is_ejected_until_it_is_well(another, "unknown_ca").await
}

#[tokio::test(flavor = "multi_thread")]
async fn row_13_a_backend_with_another_name() -> Result<()> {
    let misnamed = |world: &World| world.backend(&world.authority.issue(&["127.0.0.9", "collector.test"])).map(Some);
    is_ejected_until_it_is_well(misnamed, "bad_name").await
}

#[tokio::test(flavor = "multi_thread")]
async fn row_13_a_backend_without_tls() -> Result<()> {
    is_ejected_until_it_is_well(|_| Ok(None), "not_tls").await
}

#[tokio::test(flavor = "multi_thread")]
async fn row_13_a_backend_that_does_not_trust_our_certificate() -> Result<()> {
    // Its own certificate is valid, but it trusts only another authority.
    let distrustful = |world: &World| World::trusting(&Authority::new("another"), &world.good()).map(Some);
    is_ejected_until_it_is_well(distrustful, "unknown_ca").await
}
