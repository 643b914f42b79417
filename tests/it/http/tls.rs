//! OTLP/HTTP over TLS: both versions of HTTP by ALPN, and an answer in words for clients without TLS.

use std::{net::SocketAddr, sync::Arc};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    super::{
        fixture::{ExtraConfig, Fixture, encoded, span},
        tls::World,
    },
    wire::{self, Request},
};

const PROTOBUF: &str = "application/x-protobuf";

/// Connects with TLS and asks for a protocol.
async fn connect(world: &World, address: SocketAddr, protocol: &[u8]) -> Result<TlsStream<TcpStream>> {
    connect_with(world, address, &[protocol]).await
}

async fn connect_with(world: &World, address: SocketAddr, protocols: &[&[u8]]) -> Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(world.authority.pem.as_bytes())?)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let stream = TcpStream::connect(address).await?;
    Ok(TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost")?, stream).await?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_offers_both_versions_of_http() -> Result<()> {
    let world = World::new()?;
    let dir = world.dir.path().display();
    let http = format!("tls: {{ cert_file: {dir}/server.crt, key_file: {dir}/server.key }},").leak();
    let fixture = Fixture::start(1, ExtraConfig { http: Some(http), ..ExtraConfig::default() }).await?;
    let address = fixture.http()?;
    let request = || Request::post("/v1/traces", PROTOBUF, encoded(vec![span(&fixture.trace(), 1)]));

    let mut stream = connect(&world, address, b"http/1.1").await?;
    ensure!(stream.get_ref().1.alpn_protocol() == Some(&b"http/1.1"[..]));
    stream.write_all(&request().bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok();
    ensure!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");

    let stream = connect(&world, address, b"h2").await?;
    ensure!(stream.get_ref().1.alpn_protocol() == Some(&b"h2"[..]));
    let (client, connection) = h2::client::handshake(stream).await?;
    drop(fixture.tasks.spawn(async move { connection.await.ok() }));
    let head = ::http::Request::post("https://localhost/v1/traces").header("content-type", PROTOBUF).body(())?;
    let (response, mut body) = client.ready().await?.send_request(head, false)?;
    body.send_data(Bytes::from(request().body), true)?;
    ensure!(response.await?.status() == 200);

    let answer = tokio::task::block_in_place(|| wire::send(address, &request().bytes(), false))?;
    let text = String::from_utf8(answer.body)?;
    ensure!(answer.status == 400 && text.contains("OTLP/HTTP over TLS"), "{text}");
    let delivered = fixture.backends.first().context("a backend")?.delivered();
    ensure!(delivered.len() == 2, "{delivered:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_grpc_port_answers_http1_over_tls_in_words() -> Result<()> {
    let world = World::new()?;
    let dir = world.dir.path().display();
    let grpc = format!("tls: {{ cert_file: {dir}/server.crt, key_file: {dir}/server.key }},").leak();
    let fixture = Fixture::start(1, ExtraConfig { grpc, http: Some(""), ..ExtraConfig::default() }).await?;
    let mut stream = connect(&world, fixture.grpc, b"http/1.1").await?;
    ensure!(stream.get_ref().1.alpn_protocol() == Some(&b"http/1.1"[..]));
    stream.write_all(&Request::post("/v1/traces", PROTOBUF, "").bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok();
    let there =
        format!("this port speaks gRPC over TLS, not HTTP/1.1; OTLP/HTTP is on port {}", fixture.http()?.port());
    ensure!(answer.starts_with("HTTP/1.1 400 ") && answer.contains(&there), "{answer}");
    // Who offers both gets HTTP/2.
    let stream = connect_with(&world, fixture.grpc, &[b"http/1.1", b"h2"]).await?;
    ensure!(stream.get_ref().1.alpn_protocol() == Some(&b"h2"[..]));
    Ok(())
}
