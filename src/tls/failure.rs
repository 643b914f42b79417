//! Classifies failed handshakes by reason, counts them and logs some of them.

use std::{
    collections::HashMap,
    fmt, io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use metrics::{Counter, counter};
use rustls::{AlertDescription, CertificateError, Error, InvalidMessage, OtherError, PeerIncompatible};

use crate::telemetry::LogLimit;

/// The most pairs of backend and reason of one pool that are logged separately. Further ones are only counted until an
/// entry expires.
const MAX_SEPARATE: usize = 64;

/// The reason why a handshake failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The certificate is not valid for the checked name.
    BadName,
    /// The peer closed or reset the connection.
    Closed,
    /// A certificate has expired or is not valid yet.
    Expired,
    /// The peer must present a certificate and has presented none.
    NoCertificate,
    /// The peer does not speak TLS.
    NotTls,
    /// Any other reason.
    Other,
    /// The two sides support no common version of TLS.
    ProtocolVersion,
    /// A certificate was revoked, or no valid revocation list covers it.
    Revoked,
    /// The handshake took too long.
    Timeout,
    /// A certificate was signed by an untrusted authority.
    UnknownCa,
}

/// Counts and logs the failed handshakes of a listener or a pool. At most one line is logged every ten seconds; for a
/// pool, one per backend and reason. Clones share counters and log state.
#[derive(Clone)]
pub struct Failures(Arc<Inner>);

/// The failures that share a limit of log lines: all (`None`), or those of one reason and peer.
type Kind = Option<(Reason, SocketAddr)>;

struct Inner {
    owner: Arc<str>,
    counters: [Counter; Reason::ALL.len()],
    /// Whether each pair of reason and peer has its own limit.
    apart: bool,
    log_limits: Mutex<HashMap<Kind, LogLimit>>,
}

impl Reason {
    /// All reasons.
    pub const ALL: [Self; 10] = [
        Self::BadName,
        Self::Closed,
        Self::Expired,
        Self::NoCertificate,
        Self::NotTls,
        Self::Other,
        Self::ProtocolVersion,
        Self::Revoked,
        Self::Timeout,
        Self::UnknownCa,
    ];

    /// The value of the metric label `reason`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadName => "bad_name",
            Self::Closed => "closed",
            Self::Expired => "expired",
            Self::NoCertificate => "no_certificate",
            Self::NotTls => "not_tls",
            Self::Other => "other",
            Self::ProtocolVersion => "protocol_version",
            Self::Revoked => "revoked",
            Self::Timeout => "timeout",
            Self::UnknownCa => "unknown_ca",
        }
    }

    /// Returns the reason why a handshake, or the first read or write after it, failed.
    pub fn of_io(error: &io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(error) => Self::of(error),
            None => match error.kind() {
                io::ErrorKind::TimedOut => Self::Timeout,
                io::ErrorKind::BrokenPipe
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::UnexpectedEof => Self::Closed,
                _ => Self::Other,
            },
        }
    }

    fn of(error: &Error) -> Self {
        match error {
            Error::InvalidMessage(InvalidMessage::InvalidContentType) => Self::NotTls,
            Error::InvalidMessage(InvalidMessage::UnknownProtocolVersion)
            | Error::PeerIncompatible(
                PeerIncompatible::ServerDoesNotSupportTls12Or13
                | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
                | PeerIncompatible::SupportedVersionsExtensionRequired
                | PeerIncompatible::Tls12NotOffered
                | PeerIncompatible::Tls12NotOfferedOrEnabled,
            )
            | Error::AlertReceived(AlertDescription::ProtocolVersion) => Self::ProtocolVersion,
            Error::NoCertificatesPresented
            | Error::AlertReceived(AlertDescription::CertificateRequired | AlertDescription::NoCertificate) => {
                Self::NoCertificate
            }
            Error::InvalidCertificate(
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. },
            )
            | Error::AlertReceived(AlertDescription::CertificateExpired) => Self::Expired,
            Error::InvalidCertificate(
                CertificateError::Revoked
                | CertificateError::UnknownRevocationStatus
                | CertificateError::ExpiredRevocationList
                | CertificateError::ExpiredRevocationListContext { .. },
            )
            | Error::AlertReceived(AlertDescription::CertificateRevoked) => Self::Revoked,
            Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature)
            | Error::AlertReceived(AlertDescription::UnknownCA) => Self::UnknownCa,
            Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )
            | Error::AlertReceived(AlertDescription::UnrecognisedName) => Self::BadName,
            _ => Self::Other,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BadName => "the certificate is for another name",
            Self::Closed => "the peer closed the connection",
            Self::Expired => "a certificate has expired or is not valid yet",
            Self::NoCertificate => "a certificate is required, and none was presented",
            Self::NotTls => "the peer does not speak TLS",
            Self::Other => "the handshake failed",
            Self::ProtocolVersion => "the two sides support no common version of TLS",
            Self::Revoked => "a certificate was revoked, or no valid revocation list covers it",
            Self::Timeout => "the handshake took too long",
            Self::UnknownCa => "a certificate was signed by an authority that is not trusted",
        })
    }
}

impl Failures {
    /// Creates the failures of a listener, whose peers are too many to be logged separately. Registers one counter of
    /// `metric` per reason, with `label` set to `owner`.
    pub fn new(metric: &'static str, label: &'static str, owner: &str) -> Self {
        Self::of(metric, label, owner, false)
    }

    /// Creates the failures of a pool, whose backends are logged separately, so that one backend's failures do not hide
    /// another's.
    pub fn of_backends(metric: &'static str, label: &'static str, owner: &str) -> Self {
        Self::of(metric, label, owner, true)
    }

    fn of(metric: &'static str, label: &'static str, owner: &str, apart: bool) -> Self {
        let owner: Arc<str> = owner.into();
        let counters =
            Reason::ALL.map(|reason| counter!(metric, label => Arc::clone(&owner), "reason" => reason.as_str()));
        Self(Arc::new(Inner { owner, counters, apart, log_limits: Mutex::default() }))
    }

    /// Counts a failure and logs it unless the limit is reached. `error` has the details.
    pub fn note(&self, reason: Reason, peer: SocketAddr, error: &dyn fmt::Display) {
        let counted = Reason::ALL.iter().zip(&self.0.counters).find(|(known, _)| **known == reason);
        if let Some((_, counter)) = counted {
            counter.increment(1);
        }
        let owner = &self.0.owner;
        // Port scans and health checks connect and close again, which is not worth a warning.
        match Some(reason).filter(|reason| *reason != Reason::Closed).and_then(|_| self.0.log_now(reason, peer)) {
            Some(unlogged) => tracing::warn!(
                %owner, %peer, reason = reason.as_str(), %error, unlogged, "TLS handshake failed: {reason}"
            ),
            None => tracing::debug!(%owner, %peer, reason = reason.as_str(), %error, "TLS handshake failed"),
        }
    }
}

impl fmt::Debug for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Failures").field("owner", &self.0.owner).finish_non_exhaustive()
    }
}

impl Inner {
    /// Returns the number of suppressed lines if a line may be logged now.
    fn log_now(&self, reason: Reason, peer: SocketAddr) -> Option<u64> {
        let key = self.apart.then_some((reason, peer));
        let mut limits = self.log_limits.lock().unwrap_or_else(PoisonError::into_inner);
        if limits.len() >= MAX_SEPARATE && !limits.contains_key(&key) {
            limits.retain(|_, limit| limit.is_in_use());
            if limits.len() >= MAX_SEPARATE {
                return None;
            }
        }
        limits.entry(key).or_insert_with(LogLimit::few).admit()
    }
}

/// Describes for the log why a handshake with a backend failed, and what to do about it.
pub fn explain(error: &io::Error) -> String {
    let what = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    let advice = match what {
        Some(Error::InvalidCertificate(CertificateError::Other(other))) if is_authority(other) => {
            return "its certificate is marked as an authority's (CA:TRUE), as `openssl req -x509` makes it, and a server must \
                    not show such a one; make it again with -addext basicConstraints=critical,CA:FALSE"
                .to_owned();
        }
        Some(Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
            "the authority that signed it has to be in ca_file"
        }
        Some(Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        )) => "if that is the right backend, write a name of its certificate as server_name_override",
        Some(Error::InvalidMessage(InvalidMessage::InvalidContentType)) => {
            "if the backend serves plaintext, remove the tls section of its pool"
        }
        _ => return error.to_string(),
    };
    format!("{error}; {advice}")
}

/// Returns whether this is webpki's error for a server certificate that is marked as an authority's.
fn is_authority(other: &OtherError) -> bool {
    format!("{other:?}").contains("CaUsedAsEndEntity")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::logs::captured;

    #[test]
    fn each_backend_and_reason_has_its_own_line_up_to_a_limit() {
        let peer = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let lines = |failures: &Failures, reasons: &[Reason], ports: std::ops::Range<u16>| {
            let log = captured(|| {
                for _ in 0..3 {
                    for port in ports.clone() {
                        reasons.iter().for_each(|reason| failures.note(*reason, peer(port), &"why"));
                    }
                }
            });
            log.lines().filter(|line| line.contains(" WARN ")).count()
        };
        let both = [Reason::Expired, Reason::UnknownCa];
        let pool = Failures::of_backends("test_failures_total", "pool", "tail");
        assert_eq!(lines(&pool, &both, 1..3), 4);
        assert_eq!(lines(&pool, &both, 1..1000), MAX_SEPARATE - 4, "a pool of many backends must not fill the log");
        let listener = Failures::new("test_failures_total", "listener", "otlp_grpc");
        assert_eq!(lines(&listener, &both, 1..3), 1, "clients are too many to be logged separately");
    }
}
