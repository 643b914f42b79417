//! A small certificate authority for one test. It signs certificates and writes them as PEM files.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
};

/// An authority.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate.
    pub(crate) pem: String,
}

/// A certificate and its key.
pub(crate) struct Pair {
    pub(crate) cert: String,
    pub(crate) key: String,
    serial: u64,
}

/// The last serial number of any authority here.
static SERIAL: AtomicU64 = AtomicU64::new(0);

/// Returns a self-signed certificate for 127.0.0.1. It is marked as an authority's, as by `openssl req -x509`, or not.
pub(crate) fn self_signed(is_ca: bool) -> Pair {
    let mut params = Authority::params(&["127.0.0.1", "localhost"]);
    params.is_ca = if is_ca { IsCa::Ca(BasicConstraints::Unconstrained) } else { IsCa::ExplicitNoCa };
    params.extended_key_usages.clear();
    let key = KeyPair::generate().unwrap();
    Pair { cert: params.self_signed(&key).unwrap().pem(), key: key.serialize_pem(), serial: 0 }
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        Self::until(name, 4000)
    }

    /// One that expires with that year's beginning.
    pub(crate) fn until(name: &str, year: i32) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate for these names and addresses, for either side.
    pub(crate) fn issue(&self, names: &[&str]) -> Pair {
        self.sign(Self::params(names))
    }

    /// One that expired years ago.
    pub(crate) fn issue_expired(&self, names: &[&str]) -> Pair {
        let mut params = Self::params(names);
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        self.sign(params)
    }

    /// One that expires with that year's beginning.
    pub(crate) fn issue_until(&self, names: &[&str], year: i32) -> Pair {
        let mut params = Self::params(names);
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        self.sign(params)
    }

    /// The list of what it revoked, which expires with that year's beginning.
    pub(crate) fn revoke(&self, pairs: &[&Pair], year: i32) -> String {
        let revoked = |pair: &&Pair| RevokedCertParams {
            serial_number: SerialNumber::from(pair.serial),
            revocation_time: rcgen::date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2020, 1, 1),
            next_update: rcgen::date_time_ymd(year, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: pairs.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().pem().unwrap()
    }

    fn params(names: &[&str]) -> CertificateParams {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, "spanring test");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params
    }

    fn sign(&self, mut params: CertificateParams) -> Pair {
        let key = KeyPair::generate().unwrap();
        let serial = SERIAL.fetch_add(1, Relaxed) + 1;
        params.serial_number = Some(SerialNumber::from(serial));
        let cert = params.signed_by(&key, &self.issuer).unwrap().pem();
        Pair { cert, key: key.serialize_pem(), serial }
    }
}

impl Pair {
    /// Writes `NAME.crt` and `NAME.key`, each of them whole or not at all.
    pub(crate) fn write(&self, dir: &Path, name: &str) -> (PathBuf, PathBuf) {
        let (cert, key) = (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")));
        replace(&cert, &self.cert);
        replace_with_mode(&key, &self.key, 0o600);
        (cert, key)
    }
}

/// Puts a file in the place of another.
pub(crate) fn replace(path: &Path, text: &str) {
    replace_with_mode(path, text, 0o644);
}

/// Does the same and sets the access mode of the file.
pub(crate) fn replace_with_mode(path: &Path, text: &str, mode: u32) {
    let fresh = path.with_extension("new");
    fs::write(&fresh, text).unwrap();
    fs::set_permissions(&fresh, fs::Permissions::from_mode(mode)).unwrap();
    fs::rename(fresh, path).unwrap();
}

/// A folder with `ca.crt`, an empty list `ca.crl`, and `server` and `client` signed by it for `localhost`,
/// `collector.test`, 127.0.0.1 and ::1.
pub(crate) fn folder(dir: &Path) -> Authority {
    let authority = Authority::new("spanring test authority");
    replace(&dir.join("ca.crt"), &authority.pem);
    replace(&dir.join("ca.crl"), &authority.revoke(&[], 4000));
    for name in ["server", "client"] {
        authority.issue(&["localhost", "collector.test", "127.0.0.1", "::1"]).write(dir, name);
    }
    authority
}
