//! How the members of a pool are reached: TLS or plaintext, and the headers of every call.
//!
//! An [`Access`] is part of each endpoint from the moment that discovery reports it. Connections, calls and probes use
//! the access of their endpoint and no other. So when a configuration names other backends and other credentials, the
//! previous backends never see these credentials.

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

/// The serial number of the next access, so that each has a number of its own. 0 is the default access.
static SERIAL: AtomicU64 = AtomicU64::new(1);

/// How the members of one set are reached. The default is plaintext without headers. Clones share the data and are
/// equal; all others differ.
#[derive(Clone, Default)]
pub struct Access(Option<Arc<Inner>>);

struct Inner {
    serial: u64,
    tls: Option<(Client, Failures)>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Access {
    /// Creates the access of `pool`: TLS with `client`, or plaintext without it. Every call carries `headers`.
    pub fn new(pool: &str, client: Option<Client>, headers: Vec<(HeaderName, HeaderValue)>) -> Self {
        let failures = || Failures::of_backends(DISPATCH_TLS_HANDSHAKE_FAILURES_TOTAL, "pool", pool);
        let tls = client.map(|client| (client, failures()));
        Self(Some(Arc::new(Inner { serial: SERIAL.fetch_add(1, atomic::Ordering::Relaxed), tls, headers })))
    }

    /// Returns the TLS client, or `None` for plaintext.
    pub fn tls(&self) -> Option<&Client> {
        self.0.as_ref()?.tls.as_ref().map(|(client, _)| client)
    }

    /// Returns the headers of every call.
    pub fn headers(&self) -> &[(HeaderName, HeaderValue)] {
        self.0.as_ref().map_or(&[], |inner| &inner.headers)
    }

    /// Counts and logs a failed TLS handshake with a backend.
    pub fn note_tls_failure(&self, reason: Reason, address: SocketAddr, error: &dyn fmt::Display) {
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
        // The headers are not shown, since they are credentials.
        f.debug_struct("Access")
            .field("serial", &self.serial())
            .field("tls", &self.tls().is_some())
            .field("headers", &self.headers().len())
            .finish()
    }
}
