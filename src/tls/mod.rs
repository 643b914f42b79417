//! TLS of listeners and pools, by rustls with one cryptography provider. Certificates are read from files and reloaded
//! when the files change.
//!
//! - `files` reads PEM files and reports errors in them;
//! - `anchors` verifies peers by the authorities that are valid at the moment;
//! - `server` and `client` build rustls' settings from the files;
//! - `reloadable` holds these settings and replaces them as a whole: later handshakes use the new ones, existing connections
//!   stay;
//! - `failure` classifies failed handshakes by a bounded set of reasons, counts and logs them.
//!
//! **Invariant:** files that cannot be used are logged and ignored. The settings that worked before stay in use.

mod anchors;
mod client;
mod failure;
mod files;
mod reloadable;
mod server;
#[cfg(test)]
pub(crate) mod tests;

use std::{path::PathBuf, sync::Arc, time::Duration};

use rustls::{SupportedProtocolVersion, crypto::CryptoProvider};

pub use self::{
    client::{Client, hello, is_record},
    failure::{Failures, Reason, explain},
    files::{TlsError, Warning},
    reloadable::{Reload, Reloaded, Reloads},
    server::Server,
};
use crate::settings::{RELOAD_INTERVAL, TlsVersion};

/// TLS of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    /// The server's certificate and key.
    pub identity: Identity,
    /// Authorities that sign clients' certificates. If set, clients must present a certificate.
    pub client_ca_file: Option<PathBuf>,
    /// Revocation lists for clients' certificates.
    pub client_crl_file: Option<PathBuf>,
    /// The oldest accepted version.
    pub min_version: TlsVersion,
    /// How often to check the files; with `None` only [`Reloads::now`] does.
    pub reload_interval: Option<Duration>,
}

/// TLS of the connections to a pool's backends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientConfig {
    /// Authorities that sign backends' certificates; without it, those the system trusts.
    pub ca_file: Option<PathBuf>,
    /// The client's certificate and key, for backends that ask for one.
    pub identity: Option<Identity>,
    /// The name that a backend's certificate must be valid for.
    pub name: CheckedName,
    /// Whether any certificate is accepted.
    pub insecure_skip_verify: bool,
    /// The oldest accepted version.
    pub min_version: TlsVersion,
    /// How often to check the files; with `None` only [`Reloads::now`] does.
    pub reload_interval: Option<Duration>,
}

/// The files of a certificate chain and its key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The certificate, followed by the intermediate ones up to the authority.
    pub cert_file: PathBuf,
    /// The certificate's key.
    pub key_file: PathBuf,
}

/// The name that a backend's certificate must be valid for. It is never an address found by discovery.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CheckedName {
    /// The host in the backend's own entry: the name or address in a static pool.
    #[default]
    Entry,
    /// One name for all backends: the configured one, or the name that discovery looks up.
    Is(String),
}

impl Default for ServerConfig {
    /// Defaults for all settings but the files, which have none.
    fn default() -> Self {
        Self {
            identity: Identity::default(),
            client_ca_file: None,
            client_crl_file: None,
            min_version: TlsVersion::default(),
            reload_interval: Some(RELOAD_INTERVAL),
        }
    }
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            ca_file: None,
            identity: None,
            name: CheckedName::default(),
            insecure_skip_verify: false,
            min_version: TlsVersion::default(),
            reload_interval: Some(RELOAD_INTERVAL),
        }
    }
}

static FROM_12: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];
static FROM_13: [&SupportedProtocolVersion; 1] = [&rustls::version::TLS13];

impl TlsVersion {
    /// Returns this version and all newer ones.
    fn and_newer(self) -> &'static [&'static SupportedProtocolVersion] {
        match self {
            Self::Tls12 => &FROM_12,
            Self::Tls13 => &FROM_13,
        }
    }
}

/// Creates the only cryptography provider in use. It is passed explicitly wherever rustls would look for a default.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
