//! The `tls` sections of a listener and of a pool.

use std::time::Duration;

use super::{
    choices::TlsVersion,
    section::{IfWritten, section},
    values::FilePath,
};

/// How often files are read again by default. Kubernetes takes about as long to update a mounted Secret, and reading
/// three small files a minute costs nothing.
pub const RELOAD_INTERVAL: Duration = Duration::from_secs(60);

section! {
    /// `receivers.otlp.protocols.grpc.tls`
    pub struct ServerTls {
        /// File with the listener's certificate, PEM, followed by its intermediate certificates. A `tls` section makes
        /// the listener accept TLS only.
        cert_file: IfWritten<FilePath>,
        /// File with the certificate's private key, PEM.
        key_file: IfWritten<FilePath>,
        /// File with the authorities of client certificates, PEM. With it every client must present a certificate
        /// (mTLS).
        client_ca_file: IfWritten<FilePath>,
        /// File with certificate revocation lists, PEM, one for every authority that signs client certificates. A
        /// client is refused if its certificate is listed, or if the list of its authority is missing or has expired.
        client_crl_file: IfWritten<FilePath>,
        /// The oldest TLS version that is accepted: `1.2` or `1.3`.
        min_version: TlsVersion,
        /// How often, ± 10 %, the files are read again. New connections use the new certificates. `0s` switches this
        /// off.
        reload_interval: Option<Duration> = Some(RELOAD_INTERVAL),
    }

    /// `pools.NAME.tls`
    pub struct ClientTls {
        /// `true` means plaintext, as does a pool without a `tls` section. Any other `tls` section, even an empty one,
        /// means TLS.
        insecure: bool,
        /// File with the authorities of the backends' certificates, PEM. Without it the system's trusted authorities
        /// are used.
        ca_file: IfWritten<FilePath>,
        /// File with the client certificate for backends that ask for one, PEM, with its chain.
        cert_file: IfWritten<FilePath>,
        /// File with that certificate's private key, PEM.
        key_file: IfWritten<FilePath>,
        /// The name that the backends' certificates must contain. Without it this is the `hostname` of `dns`, that of
        /// `srv` without its labels that begin with `_`, the `service` of `k8s`, or each entry's own host in `static`.
        server_name_override: String,
        /// `true` accepts any certificate. Anyone can then impersonate a backend.
        insecure_skip_verify: bool,
        /// The oldest TLS version that is accepted: `1.2` or `1.3`.
        min_version: TlsVersion,
        /// How often, ± 10 %, the files are read again. New connections use the new certificates. `0s` switches this
        /// off.
        reload_interval: Option<Duration> = Some(RELOAD_INTERVAL),
    }
}
