//! The backends of a pool as discovery reports them. Discovery makes these sets; the ring, membership and dispatch read them.

use std::{net::SocketAddr, sync::Arc};

use tokio::sync::watch;

use crate::access::Access;

/// One backend as discovery reports it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// What is hashed: `ip:port` in RFC 5952 form from A and AAAA records, `name:port` as written for a static entry.
    pub identity: Arc<str>,
    /// What is dialled; `None` while a static entry's name has not been resolved yet.
    pub address: Option<SocketAddr>,
    /// Share of the ring relative to others; 1 unless configured.
    pub weight: u32,
    /// How it is spoken to, by the configuration that found it.
    pub access: Access,
}

/// The full set that discovery reports now, sorted by identity, without duplicates, never empty.
pub type Endpoints = Arc<[Endpoint]>;

/// What a resolver publishes: `None` until the first good answer.
///
/// A new set can have the old identities in it and only other addresses.
pub type EndpointsReceiver = watch::Receiver<Option<Endpoints>>;

impl Endpoint {
    /// One of weight 1, spoken to in plaintext until whoever publishes it says otherwise.
    pub fn new(identity: impl Into<Arc<str>>, address: Option<SocketAddr>) -> Self {
        Self { identity: identity.into(), address, weight: 1, access: Access::default() }
    }
}
