//! TLS of a listener.

use std::{sync::Arc, time::Duration};

use rustls::{
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::SingleCertAndKey,
};
use xxhash_rust::xxh3::Xxh3;

use super::{
    Reload, ServerConfig, TlsError, Warning,
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
    type Files = (IdentityFiles, Option<File>);

    fn interval(&self) -> Option<Duration> {
        self.config.reload_interval
    }

    fn read(&self) -> Result<Self::Files, TlsError> {
        let ca = self.config.client_ca_file.as_deref();
        Ok((
            IdentityFiles::read(&self.config.identity)?,
            ca.map(|path| File::read("client_ca_file", path)).transpose()?,
        ))
    }

    fn hash_into((identity, ca): &Self::Files, hash: &mut Xxh3) {
        identity.hash_into(hash);
        ca.iter().for_each(|ca| ca.hash_into(hash));
    }

    fn make(&self, (identity, ca): &Self::Files) -> Result<Made<Self::Made>, TlsError> {
        let provider = provider();
        let (certified, validity) = identity.parse(&provider)?;
        let path = self.config.identity.cert_file.clone();
        let mut certificates = vec![Certificate { key: "cert_file", role: "server", path, validity }];
        let verifier: Arc<dyn ClientCertVerifier> = match ca.as_ref().zip(self.config.client_ca_file.as_ref()) {
            None => WebPkiClientVerifier::no_client_auth(),
            Some((ca, path)) => {
                let (roots, validity) = files::roots(ca)?;
                certificates.push(Certificate {
                    key: "client_ca_file",
                    role: "client_ca",
                    path: path.clone(),
                    validity,
                });
                WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
                    .build()
                    .map_err(|error| files::refused("client_ca_file", &error))?
            }
        };
        let mut made = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(self.config.min_version.and_newer())
            .map_err(|error| files::refused("min_version", &error))?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        made.alpn_protocols = self.alpn.iter().map(|protocol| protocol.to_vec()).collect();
        Ok(Made { value: Arc::new(made), certificates, open_key: identity.open_key() })
    }
}
