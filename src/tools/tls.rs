//! TLS of the generator and of the sink, as it is asked for on the command line.

use std::path::PathBuf;

use crate::tls::{ClientConfig, Identity, ServerConfig};

/// TLS of a generator.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ClientArgs {
    /// Speak TLS, and trust who has a certificate of these authorities (PEM)
    #[arg(long, value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// Show this certificate (PEM, with its chain)
    #[arg(long, value_name = "FILE", requires_all = ["tls_key", "tls_ca"])]
    pub tls_cert: Option<PathBuf>,
    /// The key of --tls-cert (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
}

/// TLS of a sink.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ServerArgs {
    /// Speak TLS with this certificate (PEM, with its chain)
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// The key of --tls-cert (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Demand certificates of these authorities (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_client_ca: Option<PathBuf>,
}

impl ClientArgs {
    /// What is asked for; `None` is plaintext.
    pub(crate) fn config(self) -> Option<ClientConfig> {
        Some(ClientConfig {
            ca_file: Some(self.tls_ca?),
            identity: identity(self.tls_cert, self.tls_key),
            ..ClientConfig::default()
        })
    }
}

impl ServerArgs {
    /// What is asked for; `None` is plaintext.
    pub(crate) fn config(self) -> Option<ServerConfig> {
        let identity = identity(self.tls_cert, self.tls_key)?;
        Some(ServerConfig { identity, client_ca_file: self.tls_client_ca, ..ServerConfig::default() })
    }
}

fn identity(cert_file: Option<PathBuf>, key_file: Option<PathBuf>) -> Option<Identity> {
    cert_file.zip(key_file).map(|(cert_file, key_file)| Identity { cert_file, key_file })
}
