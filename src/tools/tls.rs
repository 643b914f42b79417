//! TLS options of the load generator and the sink.

use std::path::PathBuf;

use crate::tls::{ClientConfig, Identity, ServerConfig};

/// TLS options of the load generator.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ClientArgs {
    /// Use TLS; trust servers whose certificates these authorities signed (PEM)
    #[arg(long, value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// Present this client certificate (PEM, with its chain)
    #[arg(long, value_name = "FILE", requires_all = ["tls_key", "tls_ca"])]
    pub tls_cert: Option<PathBuf>,
    /// Private key of --tls-cert (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
}

/// TLS options of a sink.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ServerArgs {
    /// Use TLS with this certificate (PEM, with its chain)
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Private key of --tls-cert (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Require client certificates signed by these authorities (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_client_ca: Option<PathBuf>,
}

impl ClientArgs {
    /// Returns the TLS configuration, or `None` for plaintext.
    pub(crate) fn config(self) -> Option<ClientConfig> {
        Some(ClientConfig {
            ca_file: Some(self.tls_ca?),
            identity: identity(self.tls_cert, self.tls_key),
            ..ClientConfig::default()
        })
    }
}

impl ServerArgs {
    /// Returns the TLS configuration, or `None` for plaintext.
    pub(crate) fn config(self) -> Option<ServerConfig> {
        let identity = identity(self.tls_cert, self.tls_key)?;
        Some(ServerConfig { identity, client_ca_file: self.tls_client_ca, ..ServerConfig::default() })
    }
}

fn identity(cert_file: Option<PathBuf>, key_file: Option<PathBuf>) -> Option<Identity> {
    cert_file.zip(key_file).map(|(cert_file, key_file)| Identity { cert_file, key_file })
}
