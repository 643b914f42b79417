//! The TLS settings of listeners.

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
    provider,
    reloadable::{self, Certificate, Made, Reloadable, Source},
};
use crate::lifecycle::Tasks;

/// The TLS settings of a listener, with their files loaded. Clones share them.
#[derive(Clone, Debug)]
pub struct Server(Reloadable<Settings>);

/// A listener's configuration and the protocols that it offers.
#[derive(Clone)]
struct Settings {
    config: ServerConfig,
    alpn: &'static [&'static [u8]],
}

impl Server {
    /// Loads the files. `owner` is the listener's name in metrics and logs; `alpn` lists the offered protocols.
    pub fn load(owner: &str, config: ServerConfig, alpn: &'static [&'static [u8]]) -> Result<Self, TlsError> {
        Reloadable::load(owner, Settings { config, alpn }).map(Self)
    }

    /// Returns the settings for the next handshake.
    pub fn current(&self) -> Arc<rustls::ServerConfig> {
        self.0.current()
    }

    /// Returns these settings as one that can be reloaded.
    pub fn as_reload(&self) -> Arc<dyn Reload> {
        self.0.as_reload()
    }

    /// Reloads the files at the configured interval.
    pub fn watch(&self, tasks: &Tasks) {
        reloadable::watch(&self.0.as_reload(), tasks);
    }

    /// Switches to other settings for future handshakes; existing connections stay. On an error nothing changes.
    pub fn replace(&self, config: ServerConfig, alpn: &'static [&'static [u8]]) -> Result<(), TlsError> {
        self.0.replace(Settings { config, alpn })
    }
}

impl ServerConfig {
    /// Loads the files and returns an error or the warnings about them.
    pub fn check(&self) -> Result<Vec<Warning>, TlsError> {
        let settings = Settings { config: self.clone(), alpn: &[] };
        Ok(settings.make(&settings.read()?)?.warnings())
    }
}

impl Source for Settings {
    type Made = rustls::ServerConfig;
    /// The server's identity, the clients' authorities, and their revocation lists.
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
                    let (found, warnings) = files::revocation_lists(crl, &anchors)?;
                    lists = found;
                    others.extend(warnings);
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
            // A resumed session would skip the check of the client's certificate, so a client could stay connected
            // after its certificate or authority expired or was revoked.
            made.session_storage = Arc::new(NoServerSessionStorage {});
            made.send_tls13_tickets = 0;
        }
        Ok(Made { value: Arc::new(made), certificates, others })
    }
}
