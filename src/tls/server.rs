//! TLS of a listener.

use std::{path::PathBuf, sync::Arc, time::Duration};

use rustls::{
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::SingleCertAndKey,
};
use xxhash_rust::xxh3::Xxh3;

use super::{
    Reload, ServerConfig, TlsError, Warning,
    anchors::Clients,
    files::{self, File, IdentityFiles},
    kept::{self, Certificate, Kept, Made, Source},
    provider,
};
use crate::lifecycle::Tasks;

/// TLS of a listener, its files read. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Server(Kept<Settings>);

/// What a listener's files become, with the protocols that run on it.
#[derive(Clone)]
struct Settings {
    config: ServerConfig,
    alpn: &'static [&'static [u8]],
}

impl Server {
    /// Reads the files. `owner` is the listener's name in metrics and logs, `alpn` what runs on it.
    pub fn load(owner: &str, config: ServerConfig, alpn: &'static [&'static [u8]]) -> Result<Self, TlsError> {
        Kept::load(owner, Settings { config, alpn }).map(Self)
    }

    /// What the next handshake uses.
    pub fn current(&self) -> Arc<rustls::ServerConfig> {
        self.0.current()
    }

    /// What can be made again of its files.
    pub fn as_reload(&self) -> Arc<dyn Reload> {
        self.0.as_reload()
    }

    /// Looks at the files as often as the configuration says.
    pub fn watch(&self, tasks: &Tasks) {
        kept::watch(&self.0.as_reload(), tasks);
    }

    /// Takes other settings for handshakes from now on; connections live on. Nothing changes if their files cannot be used.
    pub fn replace(&self, config: ServerConfig, alpn: &'static [&'static [u8]]) -> Result<(), TlsError> {
        self.0.replace(Settings { config, alpn })
    }
}

impl ServerConfig {
    /// Reads the files and says what is wrong with them, or what is worth a warning.
    pub fn check(&self) -> Result<Vec<Warning>, TlsError> {
        let settings = Settings { config: self.clone(), alpn: &[] };
        Ok(settings.make(&settings.read()?)?.warnings())
    }
}

impl Source for Settings {
    type Made = rustls::ServerConfig;
    /// The identity, clients' authorities, and what these revoked.
    type Files = (IdentityFiles, Option<File>, Option<File>);

    fn interval(&self) -> Option<Duration> {
        self.config.reload_interval
    }

    fn read(&self) -> Result<Self::Files, TlsError> {
        let file = |key, path: &Option<PathBuf>| path.as_deref().map(|path| File::read(key, path)).transpose();
        Ok((
            IdentityFiles::read(&self.config.identity)?,
            file("client_ca_file", &self.config.client_ca_file)?,
            file("client_crl_file", &self.config.client_crl_file)?,
        ))
    }

    fn hash_into((identity, ca, crl): &Self::Files, hash: &mut Xxh3) {
        identity.hash_into(hash);
        ca.iter().chain(crl).for_each(|file| file.hash_into(hash));
    }

    fn make(&self, (identity, ca, crl): &Self::Files) -> Result<Made<Self::Made>, TlsError> {
        let provider = provider();
        let (certified, validity) = identity.parse(&provider)?;
        let path = self.config.identity.cert_file.clone();
        let mut certificates = vec![Certificate { key: "cert_file", role: "server", path, validity }];
        let mut others = Vec::from_iter(identity.open_key());
        let verifier: Arc<dyn ClientCertVerifier> = match ca.as_ref().zip(self.config.client_ca_file.as_ref()) {
            None => WebPkiClientVerifier::no_client_auth(),
            Some((ca, path)) => {
                let (anchors, validity) = files::anchors(ca)?;
                others.extend(files::idle_anchors(ca, &anchors));
                let mut lists = Vec::new();
                if let Some(crl) = crl {
                    let (found, said) = files::revocation_lists(crl, &anchors)?;
                    lists = found;
                    others.extend(said);
                }
                certificates.push(Certificate {
                    key: "client_ca_file",
                    role: "client_ca",
                    path: path.clone(),
                    validity,
                });
                let key = if crl.is_some() { "client_crl_file" } else { "client_ca_file" };
                Arc::new(Clients::new(anchors, lists, &provider).map_err(|error| files::refused(key, &error))?)
            }
        };
        let mut made = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(self.config.min_version.and_newer())
            .map_err(|error| files::refused("min_version", &error))?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        made.alpn_protocols = self.alpn.iter().map(|protocol| protocol.to_vec()).collect();
        if ca.is_some() {
            // A session that is taken up again has its certificates not checked again: who was let in once would stay in, whatever
            // became of its certificate or its authority since.
            made.session_storage = Arc::new(NoServerSessionStorage {});
            made.send_tls13_tickets = 0;
        }
        Ok(Made { value: Arc::new(made), certificates, others })
    }
}
