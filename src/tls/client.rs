//! The TLS settings of connections to backends.

use std::{sync::Arc, time::Duration};

use rustls::{
    DigitallySignedStruct, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    sign::SingleCertAndKey,
};
use xxhash_rust::xxh3::Xxh3;

use super::{
    CheckedName, ClientConfig, Reload, TlsError, Warning,
    anchors::Backends,
    files::{self, File, IdentityFiles},
    provider,
    reloadable::{self, Certificate, Made, Reloadable, Source},
};
use crate::{lifecycle::Tasks, settings::TlsVersion};

/// The most sessions that are stored for resumption. One is stored for each server name.
const SESSIONS: usize = 1024;

/// The TLS settings of a pool's connections to its backends, with their files loaded. Clones share them.
#[derive(Clone, Debug)]
pub struct Client {
    reloadable: Reloadable<ClientConfig>,
    name: CheckedName,
}

impl Client {
    /// Loads the files. `owner` is the pool's name in metrics and logs.
    pub fn load(owner: &str, config: ClientConfig) -> Result<Self, TlsError> {
        let name = config.name.clone();
        Reloadable::load(owner, config).map(|reloadable| Self { reloadable, name })
    }

    /// Returns the settings for the next handshake.
    pub fn current(&self) -> Arc<rustls::ClientConfig> {
        self.reloadable.current()
    }

    /// Returns the name that the certificate of the backend with this identity must be valid for. It is never an
    /// address that discovery found, unless the operator configured that address.
    pub fn name_of(&self, identity: &str) -> Option<ServerName<'static>> {
        let name = match &self.name {
            CheckedName::Entry => host_of(identity),
            CheckedName::Is(name) => name,
        };
        ServerName::try_from(name.trim_end_matches('.').to_owned()).ok()
    }

    /// Returns these settings as one that can be reloaded.
    pub fn as_reload(&self) -> Arc<dyn Reload> {
        self.reloadable.as_reload()
    }

    /// Reloads the files at the configured interval.
    pub fn watch(&self, tasks: &Tasks) {
        reloadable::watch(&self.reloadable.as_reload(), tasks);
    }
}

impl ClientConfig {
    /// Checks `server_name_override`, without reading files.
    pub fn name_error(&self) -> Option<TlsError> {
        let CheckedName::Is(name) = &self.name else { return None };
        let is_wrong = ServerName::try_from(name.trim_end_matches('.')).is_err();
        is_wrong.then(|| files::no_host_name("server_name_override", name))
    }

    /// Loads the files and returns an error or the warnings about them.
    pub fn check(&self) -> Result<Vec<Warning>, TlsError> {
        if let Some(error) = self.name_error() {
            return Err(error);
        }
        Ok(self.make(&self.read()?)?.warnings())
    }
}

impl Source for ClientConfig {
    type Made = rustls::ClientConfig;
    type Files = (Option<IdentityFiles>, Option<File>);

    fn interval(&self) -> Option<Duration> {
        self.reload_interval
    }

    fn read(&self) -> Result<Self::Files, TlsError> {
        Ok((
            self.identity.as_ref().map(IdentityFiles::read).transpose()?,
            self.ca_file.as_deref().map(|path| File::read("ca_file", path)).transpose()?,
        ))
    }

    fn hash_into((identity, ca): &Self::Files, hash: &mut Xxh3) {
        identity.iter().for_each(|identity| identity.hash_into(hash));
        ca.iter().for_each(|ca| ca.hash_into(hash));
    }

    fn make(&self, (identity, ca): &Self::Files) -> Result<Made<Self::Made>, TlsError> {
        let provider = provider();
        let mut certificates = Vec::new();
        let mut others = Vec::from_iter(identity.as_ref().and_then(IdentityFiles::open_key));
        let builder = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(self.min_version.and_newer())
            .map_err(|error| files::refused("min_version", &error))?;
        let ca = ca.as_ref().zip(self.ca_file.as_ref());
        let builder = match ca {
            _ if self.insecure_skip_verify => {
                let verifier = Arc::new(AnyCertificate(Arc::clone(&provider)));
                builder.dangerous().with_custom_certificate_verifier(verifier)
            }
            None => builder.with_root_certificates(files::system_roots()?),
            Some((ca, path)) => {
                let (anchors, validity) = files::anchors(ca)?;
                others.extend(files::idle_anchors(ca, &anchors));
                let verifier = Backends::new(anchors, &provider).map_err(|error| files::refused("ca_file", &error))?;
                certificates.push(Certificate { key: "ca_file", role: "ca", path: path.clone(), validity });
                builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
            }
        };
        let mut made = match identity.as_ref().zip(self.identity.as_ref()) {
            None => builder.with_no_client_auth(),
            Some((identity, paths)) => {
                let (certified, validity) = identity.parse(&provider)?;
                certificates.push(Certificate {
                    key: "cert_file",
                    role: "client",
                    path: paths.cert_file.clone(),
                    validity,
                });
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified)))
            }
        };
        made.alpn_protocols = vec![b"h2".to_vec()];
        made.resumption = Resumption::in_memory_sessions(SESSIONS);
        Ok(Made { value: Arc::new(made), certificates, others })
    }
}

/// Returns the first bytes that a TLS client sends, for testing whether a peer speaks TLS.
pub fn hello() -> Vec<u8> {
    let provider = provider();
    let mut bytes = Vec::new();
    let config = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(TlsVersion::Tls12.and_newer())
        .map(|builder| builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider))));
    let name = ServerName::try_from("backend.invalid");
    if let (Ok(config), Ok(name)) = (config, name)
        && let Ok(mut connection) = rustls::ClientConnection::new(Arc::new(config.with_no_client_auth()), name)
    {
        // Writing to a vector cannot fail.
        drop(connection.write_tls(&mut bytes));
    }
    bytes
}

/// Returns whether a peer's first bytes are those of a TLS record: its type and the major version.
pub fn is_record([kind, major]: [u8; 2]) -> bool {
    (0x14..=0x17).contains(&kind) && major == 3
}

/// Returns the host of `host:port` or `[address]:port`.
fn host_of(identity: &str) -> &str {
    if let Some((address, _)) = identity.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return address;
    }
    identity.rsplit_once(':').map_or(identity, |(host, _)| host)
}

/// Accepts any certificate (`insecure_skip_verify`). It still verifies that the peer has the certificate's key.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
