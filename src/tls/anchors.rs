//! Verifies peers by certificate authorities, each of which is used only while its own certificate is valid. rustls
//! checks the validity of all certificates except those of authorities.
//!
//! Each side's verifier is built from the authorities that are valid at the time of a handshake. It is rebuilt when one
//! of them becomes valid or expires.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, CertificateRevocationListDer, ServerName, TrustAnchor, UnixTime},
    server::{
        VerifierBuilderError, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};

use super::files::Validity;

/// A certificate authority.
#[derive(Clone, Debug)]
pub(super) struct Anchor {
    pub(super) anchor: TrustAnchor<'static>,
    /// Its name in readable form, for logs and messages.
    pub(super) subject: String,
    /// Its name as encoded in its certificate.
    pub(super) raw_subject: Vec<u8>,
    pub(super) validity: Validity,
}

/// All authorities, and the verifier built from those that are currently valid.
struct Anchors<V: ?Sized> {
    all: Vec<Anchor>,
    make: Box<Make<V>>,
    current: ArcSwapOption<Current<V>>,
}

type Make<V> = dyn Fn(Arc<RootCertStore>) -> Result<Arc<V>, VerifierBuilderError> + Send + Sync;

/// A verifier and the time span in which it can be used, in Unix time, both ends included.
struct Current<V: ?Sized> {
    since: i64,
    until: i64,
    verifier: Option<Arc<V>>,
}

/// Verifies clients' certificates.
pub(super) struct Clients {
    anchors: Anchors<dyn ClientCertVerifier>,
    hints: Vec<DistinguishedName>,
    provider: Arc<CryptoProvider>,
}

/// Verifies backends' certificates.
pub(super) struct Backends {
    anchors: Anchors<WebPkiServerVerifier>,
    provider: Arc<CryptoProvider>,
}

impl<V: ?Sized> Anchors<V> {
    /// Returns an error if no verifier can be built even from all authorities.
    fn new(all: Vec<Anchor>, make: Box<Make<V>>) -> Result<Self, VerifierBuilderError> {
        make(store(&all))?;
        Ok(Self { all, make, current: ArcSwapOption::empty() })
    }

    /// Returns the verifier of the authorities that are valid at `now`; `None` if none is.
    fn at(&self, now: UnixTime) -> Option<Arc<V>> {
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        if let Some(current) = &*self.current.load()
            && (current.since..=current.until).contains(&now)
        {
            return current.verifier.clone();
        }
        let before = self.current.load_full();
        let (mut since, mut until, mut holding) = (i64::MIN, i64::MAX, Vec::new());
        for anchor in &self.all {
            let Validity { not_before, not_after } = anchor.validity;
            match now {
                _ if now < not_before => until = until.min(not_before - 1),
                _ if now > not_after => {
                    since = since.max(not_after.saturating_add(1));
                    if before.as_ref().is_some_and(|before| before.until == not_after) {
                        tracing::warn!(subject = %anchor.subject, "an authority expired: it authenticates no peer any more");
                    }
                }
                _ => {
                    (since, until) = (since.max(not_before), until.min(not_after));
                    holding.push(anchor.clone());
                }
            }
        }
        // Building cannot fail here: `new` built a verifier from a superset of these authorities.
        let verifier = if holding.is_empty() { None } else { (self.make)(store(&holding)).ok() };
        self.current.store(Some(Arc::new(Current { since, until, verifier: verifier.clone() })));
        verifier
    }
}

fn store(anchors: &[Anchor]) -> Arc<RootCertStore> {
    Arc::new(RootCertStore { roots: anchors.iter().map(|anchor| anchor.anchor.clone()).collect() })
}

/// Returns the error for the case that no authority is valid.
fn unknown_issuer() -> Error {
    Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer)
}

impl Clients {
    /// Creates a verifier of these authorities. If there are revocation lists, every certificate below an authority
    /// must be covered by a list that has not expired and does not name it, as in nginx and Envoy.
    pub(super) fn new(
        anchors: Vec<Anchor>,
        crls: Vec<CertificateRevocationListDer<'static>>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, VerifierBuilderError> {
        let hints = store(&anchors).subjects();
        let own = Arc::clone(provider);
        let make = move |roots| {
            WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&own))
                .with_crls(crls.iter().cloned())
                .enforce_revocation_expiration()
                .build()
        };
        Ok(Self { anchors: Anchors::new(anchors, Box::new(make))?, hints, provider: Arc::clone(provider) })
    }
}

impl Backends {
    /// Creates a verifier of these authorities.
    pub(super) fn new(anchors: Vec<Anchor>, provider: &Arc<CryptoProvider>) -> Result<Self, VerifierBuilderError> {
        let own = Arc::clone(provider);
        let make = move |roots| WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&own)).build();
        Ok(Self { anchors: Anchors::new(anchors, Box::new(make))?, provider: Arc::clone(provider) })
    }
}

impl std::fmt::Debug for Clients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Clients").field("authorities", &self.anchors.all.len()).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Backends {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backends").field("authorities", &self.anchors.all.len()).finish_non_exhaustive()
    }
}

impl ClientCertVerifier for Clients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verifier = self.anchors.at(now).ok_or_else(unknown_issuer)?;
        verifier.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl ServerCertVerifier for Backends {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verifier = self.anchors.at(now).ok_or_else(unknown_issuer)?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
