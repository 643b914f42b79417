//! Why handshakes fail, in words that fit a metric; each is counted, and logged now and then.

use std::{
    fmt, io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use metrics::{Counter, counter};
use rustls::{AlertDescription, CertificateError, Error, InvalidMessage, PeerIncompatible};
use tokio::time::Instant;

/// Failures of one listener or pool are logged at most this often.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Why a handshake failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The certificate is not valid for the name that was checked.
    BadName,
    /// The peer closed or reset the connection.
    Closed,
    /// A certificate has expired, or does not hold yet.
    Expired,
    /// The peer has to have a certificate, and has none.
    NoCertificate,
    /// The peer speaks no TLS.
    NotTls,
    /// None of these.
    Other,
    /// No version of TLS is spoken by both.
    ProtocolVersion,
    /// A certificate was revoked, or nothing that still holds says that it was not.
    Revoked,
    /// It was not done in time.
    Timeout,
    /// A certificate was signed by an authority that is not trusted.
    UnknownCa,
}

/// Counts the failed handshakes of a listener or pool, and logs them: one line in ten seconds. Cloning shares both.
#[derive(Clone)]
pub struct Failures(Arc<Inner>);

struct Inner {
    owner: Arc<str>,
    counters: [Counter; Reason::ALL.len()],
    /// When a line was written last, and how many were not since.
    logged: Mutex<(Option<Instant>, u64)>,
}

impl Reason {
    /// All of them.
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

    /// The label's value.
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

    /// Why a handshake, or what came at once after it, failed.
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
            Self::Expired => "a certificate has expired or does not hold yet",
            Self::NoCertificate => "a certificate is required, and none was shown",
            Self::NotTls => "the peer speaks no TLS",
            Self::Other => "the handshake failed",
            Self::ProtocolVersion => "no version of TLS is spoken by both",
            Self::Revoked => "a certificate was revoked, or no revocation list that still holds says that it was not",
            Self::Timeout => "the handshake took too long",
            Self::UnknownCa => "a certificate was signed by an authority that is not trusted",
        })
    }
}

impl Failures {
    /// Counters of `metric`, at 0: `label` is `owner`, and every reason has its own.
    pub fn new(metric: &'static str, label: &'static str, owner: &str) -> Self {
        let owner: Arc<str> = owner.into();
        let counters =
            Reason::ALL.map(|reason| counter!(metric, label => Arc::clone(&owner), "reason" => reason.as_str()));
        Self(Arc::new(Inner { owner, counters, logged: Mutex::default() }))
    }

    /// Counts one. `error` says more of it, if there is more.
    pub fn note(&self, reason: Reason, peer: SocketAddr, error: &dyn fmt::Display) {
        let counted = Reason::ALL.iter().zip(&self.0.counters).find(|(known, _)| **known == reason);
        if let Some((_, counter)) = counted {
            counter.increment(1);
        }
        let owner = &self.0.owner;
        // Who only looks whether a port is open closes it again: that is no news.
        match Some(reason).filter(|reason| *reason != Reason::Closed).and_then(|_| self.0.log_now()) {
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
    /// How many lines were left out since the last, if it is time for one.
    fn log_now(&self) -> Option<u64> {
        let now = Instant::now();
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, unlogged) = &mut *logged;
        if last.is_some_and(|at| now.saturating_duration_since(at) < LOG_INTERVAL) {
            *unlogged += 1;
            return None;
        }
        *last = Some(now);
        Some(std::mem::take(unlogged))
    }
}
