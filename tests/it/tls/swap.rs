//! Certificates that are replaced on disk under load, as Kubernetes does it: a link is pointed to another folder.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use anyhow::{Context, Result, ensure};

use super::{World, shown};
use tonic::transport::Endpoint;

use crate::{
    fixture::{Client, ExtraConfig, Fixture, span},
    pki::{self, Pair},
};

/// Number of replacements.
const SWAPS: u32 = 6;

/// A mounted Secret: `tls.crt`, `tls.key` and `ca.crt` are links into `..data`, which is a link to a folder.
struct Secret {
    dir: PathBuf,
    turns: u32,
}

impl Secret {
    fn new(dir: PathBuf, pair: &Pair, ca: &str) -> Result<Self> {
        fs::create_dir_all(&dir)?;
        let mut secret = Self { dir, turns: 0 };
        secret.turn(pair, ca)?;
        for name in ["tls.crt", "tls.key", "ca.crt"] {
            symlink(Path::new("..data").join(name), secret.dir.join(name))?;
        }
        Ok(secret)
    }

    fn turn(&mut self, pair: &Pair, ca: &str) -> Result<()> {
        self.turns += 1;
        let folder = PathBuf::from(format!("..{}", self.turns));
        fs::create_dir(self.dir.join(&folder))?;
        pair.write(&self.dir.join(&folder), "tls");
        fs::write(self.dir.join(&folder).join("ca.crt"), ca)?;
        let fresh = self.dir.join("..data_tmp");
        symlink(&folder, &fresh)?;
        fs::rename(fresh, self.dir.join("..data"))?;
        // The old folder is removed at once.
        if self.turns > 1 {
            fs::remove_dir_all(self.dir.join(format!("..{}", self.turns - 1)))?;
        }
        Ok(())
    }
}

fn keys(dir: &Path, ca: &str) -> String {
    let dir = dir.display();
    format!("cert_file: {dir}/tls.crt, key_file: {dir}/tls.key, {ca}: {dir}/ca.crt, reload_interval: 100ms")
}

fn taken(fixture: &Fixture, owner: &str, times: u32) -> Result<()> {
    let labels = [&format!("owner=\"{owner}\""), "result=\"taken\""].map(|label| label.to_owned());
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    fixture.until_metric("spanring_tls_reloads_total", &labels, |count| count >= f64::from(times)).map(drop)
}

/// Connects, sends one request and closes, repeatedly. Returns how often.
async fn come_and_go(endpoint: Endpoint, over: Arc<AtomicBool>) -> Result<u64> {
    for number in 0.. {
        if over.load(Relaxed) {
            return Ok(number);
        }
        let trace = (u128::from(number + 1) << 64) | 1;
        let spans = vec![span(&trace.to_be_bytes(), number)];
        let mut client = Client::connect(&endpoint).await.with_context(|| format!("connection {number}"))?;
        client.export(spans).await.ok().with_context(|| format!("request {number}"))?;
    }
    Ok(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_replaced_under_load_and_no_request_fails() -> Result<()> {
    let world = World::new()?;
    let ca = &world.authority.pem;
    let mut ours = Secret::new(world.dir.path().join("receiver"), &world.good(), ca)?;
    let mut theirs = Secret::new(world.dir.path().join("pool"), &world.good(), ca)?;
    let grpc = format!("tls: {{ {} }},", keys(&ours.dir, "client_ca_file")).leak();
    let pool = format!("tls: {{ {} }},", keys(&theirs.dir, "ca_file")).leak();
    let mut fixture = Fixture::start(3, ExtraConfig { grpc, pool, ..ExtraConfig::default() }).await?;
    for backend in &fixture.backends {
        backend.speak(Some(world.backend(&world.good())?));
    }
    fixture.tls = Some(world.client(Some(&world.good())));
    let load = fixture.load(8).await?;
    let over = Arc::new(AtomicBool::new(false));
    let comers = fixture.tasks.spawn(come_and_go(fixture.endpoint()?, Arc::clone(&over)));
    load.goes_on(100)?;
    for turn in 1..=SWAPS {
        let fresh = world.good();
        ours.turn(&fresh, ca)?;
        theirs.turn(&world.good(), ca)?;
        for backend in &fixture.backends {
            backend.speak(Some(world.backend(&world.good())?));
        }
        taken(&fixture, "otlp_grpc", turn)?;
        taken(&fixture, "tail", turn)?;
        ensure!(pem_of(&shown(&fixture, &world).await?, &fresh), "a new connection must get the new certificate");
        load.goes_on(100)?;
    }
    over.store(true, Relaxed);
    let came = comers.await??;
    ensure!(came > u64::from(SWAPS), "new connections must have been made all the time: {came}");
    let (acknowledged, refused) = load.stop().await?;
    ensure!(refused.is_empty(), "{} requests failed, the first: {:?}", refused.len(), refused.first());
    let account = fixture.account(&acknowledged);
    ensure!(account.missing == 0 && account.duplicates == 0, "{account:?} of {}", acknowledged.len());
    let refusals = fixture.metric("spanring_tls_reloads_total", &["result=\"refused\""])?;
    ensure!(refusals == 0.0, "{refusals} changes were refused");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_outlive_their_certificate_and_invalid_ones_change_nothing() -> Result<()> {
    let world = World::new()?;
    let fixture = world.fixture(2, "").await?;
    let mut client = fixture.client().await?;
    client.export(fixture.spans_at(0, 1)?).await.ok()?;
    let labels = ["listener=\"otlp_grpc\"", "result=\"accepted\""];
    let before = fixture.metric("spanring_receiver_connections_total", &labels)?;
    // Only the key is replaced, so it does not fit the certificate.
    let fresh = world.good();
    pki::replace(&world.dir.path().join("server.key"), &fresh.key);
    let refused = ["owner=\"otlp_grpc\"", "result=\"refused\""];
    fixture.until_metric("spanring_tls_reloads_total", &refused, |count| count >= 1.0)?;
    fixture.serves().await?;
    ensure!(fixture.process.log().contains("does not belong to the first certificate"), "{}", fixture.process.log());
    pki::replace(&world.dir.path().join("server.crt"), &fresh.cert);
    taken(&fixture, "otlp_grpc", 1)?;
    ensure!(pem_of(&shown(&fixture, &world).await?, &fresh), "a new connection must get the new certificate");
    client.export(fixture.spans_at(1, 1)?).await.ok()?;
    // The two new connections are the test's own.
    let after = fixture.until_metric("spanring_receiver_connections_total", &labels, |count| count >= before + 2.0)?;
    ensure!(after - before == 2.0, "the client must still have its connection: {}", after - before);
    Ok(())
}

/// Returns whether a certificate in DER is the certificate of a pair.
fn pem_of(der: &[u8], pair: &Pair) -> bool {
    use rustls::pki_types::{CertificateDer, pem::PemObject};
    CertificateDer::from_pem_slice(pair.cert.as_bytes()).is_ok_and(|certificate| certificate.as_ref() == der)
}
