//! Reads PEM files: certificates, keys, authorities and revocation lists, and reports what is wrong with them.
//!
//! **Invariant:** messages contain nothing of a file's content, except the subject or issuer of certificates and
//! revocation lists that could be parsed. Error texts of the PEM and X.509 readers are never passed on, since they
//! quote their input: a key whose line ends were lost would appear in the log.

use std::{
    fmt, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use rustls::{
    RootCertStore,
    crypto::CryptoProvider,
    pki_types::{
        CertificateDer, CertificateRevocationListDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
    sign::CertifiedKey,
};
use xxhash_rust::xxh3::Xxh3;

use super::{Identity, anchors::Anchor};

/// The size limit of a file in bytes. The bundles of authorities of operating systems have about 256 KiB.
const MAX_FILE: u64 = 4 << 20;

/// An error with a file of a `tls` section.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct TlsError {
    /// The configuration key that names the file.
    pub key: &'static str,
    /// The error.
    pub problem: Problem,
}

/// The kinds of errors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The file cannot be read.
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// The file contains nothing of the expected kind.
    Nothing {
        /// The file.
        path: PathBuf,
        /// The expected kind.
        what: &'static str,
        /// PEM's label of that kind.
        label: &'static str,
    },
    /// The file contains an encrypted key.
    EncryptedKey {
        /// The file.
        path: PathBuf,
    },
    /// The content is broken or of an unsupported kind.
    Broken {
        /// The file.
        path: PathBuf,
        /// The reason, in our own words, since a library's text could quote the file.
        reason: &'static str,
    },
    /// The key does not belong to the certificate.
    Mismatch {
        /// The file of the key.
        key: PathBuf,
        /// The file of the certificate.
        cert: PathBuf,
    },
    /// The system's store has no trusted authorities.
    NoSystemRoots,
    /// No certificate can be valid for this name.
    NoHostName {
        /// The name.
        name: String,
    },
    /// rustls refused the settings.
    Refused(String),
}

impl Problem {
    fn at(self, key: &'static str) -> TlsError {
        TlsError { key, problem: self }
    }

    /// Writes the message, with the operator's paths and names or without them.
    fn write(&self, f: &mut fmt::Formatter<'_>, is_named: bool) -> fmt::Result {
        let file = |path: &PathBuf| if is_named { path.display().to_string() } else { "the file".to_owned() };
        match self {
            Self::Read { path, reason } => write!(f, "cannot read {}: {reason}", file(path)),
            Self::Nothing { path, what, label } => {
                write!(f, "{} holds no {what} in PEM; it should have a line -----BEGIN {label}-----", file(path))
            }
            Self::EncryptedKey { path } => {
                write!(f, "the key in {} is encrypted; decrypt it: openssl pkey -in KEY -out PLAIN", file(path))
            }
            Self::Broken { path, reason } => write!(f, "cannot use {}: {reason}", file(path)),
            Self::Mismatch { key, cert } if is_named => {
                write!(f, "the key in {} does not belong to the first certificate in {}", key.display(), cert.display())
            }
            Self::Mismatch { .. } => f.write_str("the key does not belong to the first certificate of cert_file"),
            Self::NoSystemRoots => {
                f.write_str("this system has no certificates of authorities; name those of the backends: ca_file")
            }
            Self::NoHostName { name } if is_named => write!(f, "cannot be used: \"{name}\" is not a host name"),
            Self::NoHostName { .. } => f.write_str("cannot be used: it is not a host name"),
            Self::Refused(reason) => write!(f, "cannot be used: {reason}"),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, true)
    }
}

impl std::error::Error for Problem {}

impl TlsError {
    /// Returns the message without the operator's paths and names.
    pub fn unnamed(&self) -> String {
        struct Unnamed<'a>(&'a Problem);
        impl fmt::Display for Unnamed<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.write(f, false)
            }
        }
        Unnamed(&self.problem).to_string()
    }
}

/// A warning about a file that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// The configuration key that names the file.
    pub key: &'static str,
    /// The file.
    pub path: PathBuf,
    /// The warning.
    pub message: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.message)
    }
}

/// The content of a file.
pub(super) struct File {
    key: &'static str,
    path: PathBuf,
    bytes: Vec<u8>,
    /// Whether all users of the machine may read or write the file. Access for a group is accepted, since Kubernetes
    /// mounts Secrets that way.
    is_open: bool,
}

/// The validity of certificates, in Unix time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Validity {
    pub(super) not_before: i64,
    pub(super) not_after: i64,
}

impl File {
    pub(super) fn read(key: &'static str, path: &Path) -> Result<Self, TlsError> {
        let read = |reason: String| Problem::Read { path: path.to_owned(), reason }.at(key);
        let metadata = fs::metadata(path).map_err(|error| read(error.to_string()))?;
        let size = metadata.len();
        if size > MAX_FILE {
            return Err(read(format!("it has {size} bytes, more than {MAX_FILE}")));
        }
        let bytes = fs::read(path).map_err(|error| read(error.to_string()))?;
        let is_open = metadata.permissions().mode() & 0o007 != 0;
        Ok(Self { key, path: path.to_owned(), bytes, is_open })
    }

    pub(super) fn hash_into(&self, hash: &mut Xxh3) {
        hash.update(&(self.bytes.len() as u64).to_le_bytes());
        hash.update(&self.bytes);
    }

    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let certificates = CertificateDer::pem_slice_iter(&self.bytes).collect::<Result<Vec<_>, _>>();
        let certificates = certificates.map_err(|error| self.no_pem(&error))?;
        if certificates.is_empty() {
            return Err(self.nothing("certificate", "CERTIFICATE"));
        }
        Ok(certificates)
    }

    fn private_key(&self) -> Result<PrivateKeyDer<'static>, TlsError> {
        match PrivateKeyDer::from_pem_slice(&self.bytes) {
            Ok(key) => Ok(key),
            Err(pem::Error::NoItemsFound) if self.is_encrypted() => {
                Err(Problem::EncryptedKey { path: self.path.clone() }.at(self.key))
            }
            Err(pem::Error::NoItemsFound) => Err(self.nothing("private key", "PRIVATE KEY")),
            Err(error) => Err(self.no_pem(&error)),
        }
    }

    fn is_encrypted(&self) -> bool {
        String::from_utf8_lossy(&self.bytes).contains("ENCRYPTED")
    }

    /// Converts an error of the PEM reader to our own words, since its text can quote the file.
    fn no_pem(&self, error: &pem::Error) -> TlsError {
        let lines = self.bytes.split(|byte| matches!(byte, b'\n' | b'\r')).filter(|line| !line.is_empty());
        let reason = match error {
            _ if lines.count() == 1 => "the whole file is one line: its line ends were lost",
            pem::Error::IllegalSectionStart { .. } => "a line begins with -----BEGIN and does not end with -----",
            pem::Error::MissingSectionEnd { .. } => "a section has no -----END line: its end is missing",
            pem::Error::Base64Decode(_) => "the text between -----BEGIN and -----END is not base64",
            pem::Error::SectionTooLarge => "a section is too large",
            _ => "it is not PEM",
        };
        self.broken(reason)
    }

    fn broken(&self, reason: &'static str) -> TlsError {
        Problem::Broken { path: self.path.clone(), reason }.at(self.key)
    }

    fn warning(&self, message: String) -> Warning {
        Warning { key: self.key, path: self.path.clone(), message }
    }

    fn nothing(&self, what: &'static str, label: &'static str) -> TlsError {
        Problem::Nothing { path: self.path.clone(), what, label }.at(self.key)
    }

    fn validity(&self, certificate: &CertificateDer<'_>) -> Result<Validity, TlsError> {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
            .map_err(|_| self.broken("a certificate in it is not in X.509"))?;
        let validity = parsed.validity();
        Ok(Validity { not_before: validity.not_before.timestamp(), not_after: validity.not_after.timestamp() })
    }
}

/// The contents of the files of an identity.
pub(super) struct IdentityFiles {
    cert: File,
    key: File,
}

impl IdentityFiles {
    pub(super) fn read(identity: &Identity) -> Result<Self, TlsError> {
        Ok(Self {
            cert: File::read("cert_file", &identity.cert_file)?,
            key: File::read("key_file", &identity.key_file)?,
        })
    }

    pub(super) fn hash_into(&self, hash: &mut Xxh3) {
        self.cert.hash_into(hash);
        self.key.hash_into(hash);
    }

    /// Returns a warning if all users of the machine may read the key.
    pub(super) fn open_key(&self) -> Option<Warning> {
        let message = "every user of this machine can read this key; restrict it: chmod o= FILE";
        let warning = || Warning { key: self.key.key, path: self.key.path.clone(), message: message.to_owned() };
        self.key.is_open.then(warning)
    }

    /// Parses the certificate chain with its key, and returns the time span in which all certificates of the chain are
    /// valid.
    pub(super) fn parse(&self, provider: &CryptoProvider) -> Result<(Arc<CertifiedKey>, Validity), TlsError> {
        let chain = self.cert.certificates()?;
        let key = self.key.private_key()?;
        let mut whole: Option<Validity> = None;
        for certificate in &chain {
            let validity = self.cert.validity(certificate)?;
            whole = Some(whole.map_or(validity, |whole| Validity {
                not_before: whole.not_before.max(validity.not_before),
                not_after: whole.not_after.min(validity.not_after),
            }));
        }
        let validity = whole.unwrap_or(Validity { not_before: i64::MIN, not_after: i64::MAX });
        let certified = CertifiedKey::from_der(chain, key, provider).map_err(|error| match error {
            rustls::Error::InconsistentKeys(rustls::InconsistentKeys::KeyMismatch) => {
                Problem::Mismatch { key: self.key.path.clone(), cert: self.cert.path.clone() }.at("key_file")
            }
            rustls::Error::InvalidCertificate(_) => self.cert.broken("its first certificate cannot be parsed"),
            _ => self.key.broken("its private key is broken or of another kind than RSA, ECDSA and Ed25519"),
        })?;
        Ok((Arc::new(certified), validity))
    }
}

/// Parses the authorities in a file. The validity spans from the first start to the last end, since a renewed authority
/// is listed beside the old one.
pub(super) fn anchors(file: &File) -> Result<(Vec<Anchor>, Validity), TlsError> {
    let mut anchors = Vec::new();
    let mut whole: Option<Validity> = None;
    for certificate in file.certificates()? {
        let validity = file.validity(&certificate)?;
        whole = Some(whole.map_or(validity, |whole| Validity {
            not_before: whole.not_before.min(validity.not_before),
            not_after: whole.not_after.max(validity.not_after),
        }));
        let no_authority = || file.broken("a certificate in it cannot be that of an authority");
        let (subject, raw_subject) = match x509_parser::parse_x509_certificate(&certificate) {
            Ok((_, parsed)) => (parsed.subject().to_string(), parsed.subject().as_raw().to_vec()),
            Err(_) => return Err(no_authority()),
        };
        let mut roots = RootCertStore::empty();
        roots.add(certificate).map_err(|_| no_authority())?;
        let anchor = roots.roots.pop().ok_or_else(no_authority)?;
        anchors.push(Anchor { anchor, subject, raw_subject, validity });
    }
    let validity = whole.unwrap_or(Validity { not_before: i64::MIN, not_after: i64::MAX });
    Ok((anchors, validity))
}

/// Returns warnings about authorities that are not valid now.
pub(super) fn idle_anchors(file: &File, anchors: &[Anchor]) -> Vec<Warning> {
    let now = now();
    let idle = |anchor: &Anchor| {
        let Validity { not_before, not_after } = anchor.validity;
        let when = match () {
            () if not_after < now => format!("expired {} ago", span(now - not_after)),
            () if not_before > now => format!("becomes valid only in {}", span(not_before - now)),
            () => return None,
        };
        Some(format!("the authority {} {when}: it authenticates no peer", anchor.subject))
    };
    let mut messages: Vec<String> = anchors.iter().filter_map(idle).collect();
    if messages.len() == anchors.len() {
        messages.push("no authority in it is valid: every peer is refused".to_owned());
    }
    messages.into_iter().map(|message| file.warning(message)).collect()
}

/// Parses the revocation lists in a file. Returns them with warnings about expired lists and about `anchors` without a
/// list.
pub(super) fn revocation_lists(
    file: &File,
    anchors: &[Anchor],
) -> Result<(Vec<CertificateRevocationListDer<'static>>, Vec<Warning>), TlsError> {
    let lists = CertificateRevocationListDer::pem_slice_iter(&file.bytes).collect::<Result<Vec<_>, _>>();
    let lists = lists.map_err(|error| file.no_pem(&error))?;
    if lists.is_empty() {
        return Err(file.nothing("list of revoked certificates", "X509 CRL"));
    }
    let (now, mut messages, mut issuers) = (now(), Vec::new(), Vec::new());
    for list in &lists {
        let (_, parsed) = x509_parser::parse_x509_crl(list)
            .map_err(|_| file.broken("a list in it is not a list of revoked certificates"))?;
        let until = parsed.next_update().map_or(i64::MAX, |at| at.timestamp());
        if until < now {
            let (issuer, ago) = (parsed.issuer(), span(now - until));
            messages.push(format!(
                "the list of {issuer} expired {ago} ago: certificates of that issuer are refused until there is a newer one"
            ));
        }
        issuers.push(parsed.issuer().as_raw().to_vec());
    }
    for anchor in anchors.iter().filter(|anchor| !issuers.contains(&anchor.raw_subject)) {
        messages.push(format!("it has no list of {}: certificates of that issuer are refused", anchor.subject));
    }
    Ok((lists, messages.into_iter().map(|message| file.warning(message)).collect()))
}

/// Returns the authorities that the system trusts. Those that rustls cannot parse are left out.
pub(super) fn system_roots() -> Result<Arc<RootCertStore>, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _unread) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        return Err(Problem::NoSystemRoots.at("ca_file"));
    }
    Ok(Arc::new(roots))
}

/// Returns the error for a name that no certificate can be valid for.
pub(super) fn no_host_name(key: &'static str, name: &str) -> TlsError {
    Problem::NoHostName { name: name.to_owned() }.at(key)
}

/// Returns the error for settings that rustls refused.
pub(super) fn refused(key: &'static str, error: &dyn fmt::Display) -> TlsError {
    Problem::Refused(error.to_string()).at(key)
}

// === impl Validity ===

impl Validity {
    /// Returns a warning if the certificates are not valid now.
    pub(super) fn complaint(self) -> Option<String> {
        let now = now();
        if self.not_after < now {
            Some(format!("a certificate expired {} ago; peers will refuse it", span(now - self.not_after)))
        } else if self.not_before > now {
            Some(format!(
                "a certificate becomes valid only in {}; peers refuse it until then",
                span(self.not_before - now)
            ))
        } else {
            None
        }
    }
}

/// Returns the current Unix time.
fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    i64::try_from(now).unwrap_or(i64::MAX)
}

/// Formats a duration for people.
fn span(seconds: i64) -> String {
    match seconds {
        172_800.. => format!("{} days", seconds / 86_400),
        7200.. => format!("{} hours", seconds / 3600),
        _ => format!("{} minutes", seconds / 60),
    }
}
