//! TLS and mTLS with whole processes: which clients are accepted, why others are refused, and certificates that are
//! replaced under load.

mod collector;
mod messages;
mod swap;

use std::path::Path;

use anyhow::{Result, ensure};
use tempfile::TempDir;
use tokio_rustls::TlsConnector;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

use super::{
    backend::Tls,
    fixture::{ExtraConfig, Fixture},
    harness,
    pki::{self, Authority, Pair},
};

/// A folder made by [`pki::folder`], and settings for clients, proxy and backends.
pub(crate) struct World {
    pub(crate) dir: TempDir,
    pub(crate) authority: Authority,
}

impl World {
    pub(crate) fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let authority = pki::folder(dir.path());
        Ok(Self { dir, authority })
    }

    /// Settings of a pool whose backends require client certificates.
    pub(crate) fn pool(&self) -> &'static str {
        format!("tls: {{ {} }},", client_keys(self.dir.path())).leak()
    }

    /// Settings of a receiver that accepts clients with a certificate of the authority.
    pub(crate) fn grpc(&self) -> &'static str {
        let dir = self.dir.path().display();
        format!(
            "tls: {{ cert_file: {dir}/server.crt, key_file: {dir}/server.key, client_ca_file: {dir}/ca.crt, \
             reload_interval: 100ms }},"
        )
        .leak()
    }

    /// Settings of a receiver that asks clients for no certificate.
    pub(crate) fn server(&self) -> String {
        let dir = self.dir.path().display();
        format!("tls: {{ cert_file: {dir}/server.crt, key_file: {dir}/server.key }}")
    }

    /// TLS of a client of this receiver that speaks HTTP/2.
    pub(crate) fn connector(&self) -> Result<TlsConnector> {
        let config = spanring::tls::ClientConfig {
            ca_file: Some(self.dir.path().join("ca.crt")),
            ..spanring::tls::ClientConfig::default()
        };
        Ok(spanring::tls::Client::load("test", config)?.current().into())
    }

    /// TLS of a backend that presents `pair` and requests a certificate of the authority.
    pub(crate) fn backend(&self, pair: &Pair) -> Result<Tls> {
        Self::trusting(&self.authority, pair)
    }

    /// The same for a backend that trusts another authority.
    pub(crate) fn trusting(authority: &Authority, pair: &Pair) -> Result<Tls> {
        let dir = tempfile::tempdir()?;
        let ca_file = dir.path().join("clients.crt");
        pki::replace(&ca_file, &authority.pem);
        let (cert_file, key_file) = pair.write(dir.path(), "backend");
        let config = spanring::tls::ServerConfig {
            identity: spanring::tls::Identity { cert_file, key_file },
            client_ca_file: Some(ca_file),
            ..spanring::tls::ServerConfig::default()
        };
        Ok(spanring::tls::Server::load("backend", config, &[b"h2", b"http/1.1"])?.current())
    }

    /// TLS of a client that trusts the authority and presents this certificate, if any.
    pub(crate) fn client(&self, pair: Option<&Pair>) -> ClientTlsConfig {
        let config =
            ClientTlsConfig::new().domain_name("localhost").ca_certificate(Certificate::from_pem(&self.authority.pem));
        match pair {
            Some(pair) => config.identity(Identity::from_pem(&pair.cert, &pair.key)),
            None => config,
        }
    }

    /// A proxy with mTLS on both sides, and a client with a valid certificate.
    pub(crate) async fn fixture(&self, backends: usize, grpc: &str) -> Result<Fixture> {
        let grpc = format!("{grpc} {}", self.grpc()).leak();
        let mut fixture =
            Fixture::start(backends, ExtraConfig { grpc, pool: self.pool(), ..ExtraConfig::default() }).await?;
        for backend in &fixture.backends {
            backend.speak(Some(self.backend(&self.good())?));
        }
        fixture.tls = Some(self.client(Some(&self.good())));
        Ok(fixture)
    }

    /// A certificate that is valid for all listeners here.
    pub(crate) fn good(&self) -> Pair {
        self.authority.issue(&["localhost", "127.0.0.1"])
    }
}

/// The keys of a pool's `tls` section with the files in a folder.
fn client_keys(dir: &Path) -> String {
    let dir = dir.display();
    format!("ca_file: {dir}/ca.crt, cert_file: {dir}/client.crt, key_file: {dir}/client.key, reload_interval: 100ms")
}

const CLIENT_FAILURES: &str = "spanring_receiver_tls_handshake_failures_total";

#[tokio::test(flavor = "multi_thread")]
async fn traces_arrive_with_mtls_on_both_sides() -> Result<()> {
    let world = World::new()?;
    let fixture = world.fixture(3, "").await?;
    fixture.serves().await?;
    let failures = fixture.metric("spanring_dispatch_tls_handshake_failures_total", &["pool=\"tail\""])?;
    ensure!(failures == 0.0, "{failures} handshakes failed");
    let expiry = "spanring_tls_certificate_expiry_timestamp_seconds";
    for (owner, role) in [("otlp_grpc", "server"), ("otlp_grpc", "client_ca"), ("tail", "client"), ("tail", "ca")] {
        let at = fixture.metric(expiry, &[&format!("owner=\"{owner}\""), &format!("role=\"{role}\"")])?;
        ensure!(at > 1_750_000_000.0, "the expiry of {owner}'s {role} must be known: {at}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_fail_the_handshake_are_counted_by_reason_and_logged_once() -> Result<()> {
    let world = World::new()?;
    let mut fixture = world.fixture(2, "").await?;
    let another = Authority::new("another").issue(&["localhost"]);
    let expired = world.authority.issue_expired(&["localhost"]);
    for (reason, tls) in [
        ("not_tls", None),
        ("no_certificate", Some(world.client(None))),
        ("unknown_ca", Some(world.client(Some(&another)))),
        ("expired", Some(world.client(Some(&expired)))),
    ] {
        fixture.tls = tls;
        refused(&fixture).await?;
        let labels = ["listener=\"otlp_grpc\"", &format!("reason=\"{reason}\"")];
        fixture.until_metric(CLIENT_FAILURES, &labels, |count| count >= 1.0)?;
    }
    // A client that does not trust the proxy sends an alert, which is counted.
    fixture.tls = Some(
        ClientTlsConfig::new()
            .domain_name("localhost")
            .ca_certificate(Certificate::from_pem(&Authority::new("third").pem)),
    );
    refused(&fixture).await?;
    fixture.until_metric(CLIENT_FAILURES, &["reason=\"unknown_ca\""], |count| count >= 2.0)?;
    let lines = fixture.process.log().lines().filter(|line| line.contains("TLS handshake failed")).count();
    ensure!(lines == 1, "one line in ten seconds must do, there are {lines}");
    fixture.tls = Some(world.client(Some(&world.good())));
    fixture.serves().await
}

/// Checks that a client is refused.
async fn refused(fixture: &Fixture) -> Result<()> {
    // With TLS 1.3, a refused client sees an established connection until it waits for an answer.
    let Ok(mut client) = fixture.client().await else { return Ok(()) };
    let spans = fixture.spans_at(0, 1)?;
    let reply = client.export(spans).await;
    ensure!(matches!(reply, super::fixture::Reply::Refused(_)), "it must not be let in: {reply:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_waits_only_for_clients_with_tls() -> Result<()> {
    for connected in [false, true] {
        let world = World::new()?;
        let mut fixture = world.fixture(1, "").await?;
        let mut client = if connected { Some(fixture.client().await?) } else { None };
        if let Some(client) = &mut client {
            client.export(fixture.spans_at(0, 1)?).await.ok()?;
        }
        fixture.process.signal("TERM")?;
        let status = fixture.process.wait()?;
        ensure!(status.success(), "a drained process ends with {status}");
        let log = fixture.process.log();
        ensure!(!log.contains("not drained in time"), "with a client: {connected}; {log}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn load_and_sink_speak_tls() -> Result<()> {
    let world = World::new()?;
    let dir = world.dir.path();
    let spanring = || std::process::Command::new(env!("CARGO_BIN_EXE_spanring"));
    let (_sink, [address]) = harness::on_free_ports(|[address]| {
        let mut command = spanring();
        command.arg("sink").arg("--grpc").arg(address.to_string());
        command.arg("--tls-cert").arg(dir.join("server.crt")).arg("--tls-key").arg(dir.join("server.key"));
        command.arg("--tls-client-ca").arg(dir.join("ca.crt"));
        let ready = harness::Ready::Listening(vec![address]);
        Ok((harness::Process::start("sink", &mut command)?, ready))
    })?;
    let mut load = spanring();
    load.args(["load", "--requests", "20", "--endpoint"]).arg(address.to_string());
    load.arg("--tls-ca").arg(dir.join("ca.crt"));
    ensure!(!load.output()?.status.success(), "a generator without a certificate must not be let in");
    load.arg("--tls-cert").arg(dir.join("client.crt")).arg("--tls-key").arg(dir.join("client.key"));
    let output = load.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Returns the certificate that a new client gets, in DER.
pub(crate) async fn shown(fixture: &Fixture, world: &World) -> Result<Vec<u8>> {
    let dir = world.dir.path();
    let config = spanring::tls::ClientConfig {
        ca_file: Some(dir.join("ca.crt")),
        identity: Some(spanring::tls::Identity { cert_file: dir.join("client.crt"), key_file: dir.join("client.key") }),
        ..spanring::tls::ClientConfig::default()
    };
    let config = spanring::tls::Client::load("test", config)?.current();
    let stream = tokio::net::TcpStream::connect(fixture.grpc).await?;
    let connector = TlsConnector::from(config);
    let stream = connector.connect("localhost".try_into()?, stream).await?;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    Ok(chain.first().map(|certificate| certificate.to_vec()).unwrap_or_default())
}
