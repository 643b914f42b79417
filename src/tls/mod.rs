//! TLS of listeners and pools: rustls with one provider, certificates read from files and read again when those change.
//!
//! `files` reads PEM and says what is wrong with it; `anchors` checks peers by the authorities that hold; `server` and `client` make of it what rustls takes; `kept` holds that
//! and replaces it whole, so that handshakes from then on have the new one and connections live on; `failure` says in a
//! bounded word why a handshake failed, counts it and logs it.
//!
//! **Invariant:** whatever is on disk, what worked goes on working: files that cannot be used are logged and left alone.

mod anchors;
mod client;
mod failure;
mod files;
mod kept;
mod server;
#[cfg(test)]
pub(crate) mod tests;

use std::{path::PathBuf, sync::Arc, time::Duration};

use rustls::{SupportedProtocolVersion, crypto::CryptoProvider};

pub use self::{
    client::{Client, hello, is_record},
    failure::{Failures, Reason, explain},
    files::{TlsError, Warning},
    kept::{Reload, Reloaded, Reloads},
    server::Server,
};
use crate::settings::{RELOAD_INTERVAL, TlsVersion};

/// TLS of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    /// Who it is.
    pub identity: Identity,
    /// Who may have signed its clients' certificates; clients need one then.
    pub client_ca_file: Option<PathBuf>,
    /// Which of these certificates were revoked.
    pub client_crl_file: Option<PathBuf>,
    /// The oldest version that is spoken.
    pub min_version: TlsVersion,
    /// How often the files are looked at; `None` leaves it to [`Reloads::now`].
    pub reload_interval: Option<Duration>,
}

/// TLS of the connections to a pool's backends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientConfig {
    /// Who may have signed the backends' certificates; without it those whom the system trusts.
    pub ca_file: Option<PathBuf>,
    /// Who we are, if backends ask.
    pub identity: Option<Identity>,
    /// The name that a backend's certificate has to bear.
    pub name: CheckedName,
    /// Whether any certificate will do.
    pub insecure_skip_verify: bool,
    /// The oldest version that is spoken.
    pub min_version: TlsVersion,
    /// How often the files are looked at; `None` leaves it to [`Reloads::now`].
    pub reload_interval: Option<Duration>,
}

/// A certificate with its chain, and its key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The certificate, and those between it and the authority after it.
    pub cert_file: PathBuf,
    /// Its key.
    pub key_file: PathBuf,
}

/// The name that a backend's certificate has to bear. Never an address that discovery found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CheckedName {
    /// The host of the backend's own entry: a static pool's names and addresses.
    #[default]
    Entry,
    /// One for all: what the operator wrote, or the name that discovery looks up.
    Is(String),
}

impl Default for ServerConfig {
    /// Without its files, which have no default.
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
    /// This and all that are newer.
    fn and_newer(self) -> &'static [&'static SupportedProtocolVersion] {
        match self {
            Self::Tls12 => &FROM_12,
            Self::Tls13 => &FROM_13,
        }
    }
}

/// The one provider of cryptography; it is passed on wherever rustls would otherwise look for one.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
