//! How the members of a pool are spoken to: TLS or plaintext, and the headers of every call.
//!
//! An [`Access`] travels with the endpoints that discovery reports, from the moment they are found until they leave: whoever
//! dials a backend, calls it or probes it uses the access of that endpoint and no other. So a configuration that names other
//! backends and other credentials never shows these to the backends that were there before.

use std::{
    cmp::Ordering,
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{self, AtomicU64},
    },
};

use http::{HeaderName, HeaderValue};

use crate::{
    telemetry::metrics::DISPATCH_TLS_HANDSHAKE_FAILURES_TOTAL,
    tls::{Client, Failures, Reason},
};

/// Makes each access another than all before it.
static SERIAL: AtomicU64 = AtomicU64::new(1);

/// How the members of one set are spoken to. The default is plaintext without headers. Cloning shares it; two are equal if
/// one is a clone of the other.
#[derive(Clone, Default)]
pub struct Access(Option<Arc<Inner>>);

struct Inner {
    serial: u64,
    tls: Option<(Client, Failures)>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Access {
    /// That of `pool`: plaintext without a `client`. Every call bears `headers`.
    pub fn new(pool: &str, client: Option<Client>, headers: Vec<(HeaderName, HeaderValue)>) -> Self {
        let failures = || Failures::of_backends(DISPATCH_TLS_HANDSHAKE_FAILURES_TOTAL, "pool", pool);
        let tls = client.map(|client| (client, failures()));
        Self(Some(Arc::new(Inner { serial: SERIAL.fetch_add(1, atomic::Ordering::Relaxed), tls, headers })))
    }

    /// TLS, unless it is plaintext.
    pub fn tls(&self) -> Option<&Client> {
        self.0.as_ref()?.tls.as_ref().map(|(client, _)| client)
    }

    /// The headers of every call.
    pub fn headers(&self) -> &[(HeaderName, HeaderValue)] {
        self.0.as_ref().map_or(&[], |inner| &inner.headers)
    }

    /// Notes that TLS with a backend failed.
    pub fn refused(&self, reason: Reason, address: SocketAddr, error: &dyn fmt::Display) {
        if let Some((_, failures)) = self.0.as_ref().and_then(|inner| inner.tls.as_ref()) {
            failures.note(reason, address, error);
        }
    }

    fn serial(&self) -> u64 {
        self.0.as_ref().map_or(0, |inner| inner.serial)
    }
}

impl PartialEq for Access {
    fn eq(&self, other: &Self) -> bool {
        self.serial() == other.serial()
    }
}

impl Eq for Access {}

impl PartialOrd for Access {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Access {
    fn cmp(&self, other: &Self) -> Ordering {
        self.serial().cmp(&other.serial())
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the headers: they are credentials.
        f.debug_struct("Access")
            .field("serial", &self.serial())
            .field("tls", &self.tls().is_some())
            .field("headers", &self.headers().len())
            .finish()
    }
}
