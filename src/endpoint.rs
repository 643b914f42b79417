//! The backends of a pool as discovery reports them. Discovery produces these sets; the ring, membership and dispatch
//! read them.

use std::{net::SocketAddr, sync::Arc};

use tokio::sync::watch;

use crate::access::Access;

/// One backend as discovery reports it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// The identity that is hashed: `ip:port` in RFC 5952 form for A and AAAA records, `name:port` as written for a
    /// static entry, `name:port` in lower case for the target of an SRV record.
    pub identity: Arc<str>,
    /// The address that is dialled; `None` while a static entry's name has not been resolved yet.
    pub address: Option<SocketAddr>,
    /// The share of the ring relative to others; 1 unless configured.
    pub weight: u32,
    /// How to reach it: TLS or plaintext, and the headers of every call. It comes from the configuration that found the
    /// backend.
    pub access: Access,
    /// Whether the backend is about to end: it keeps the traces that began with it and gets no new ones.
    pub is_draining: bool,
    /// Whether the identity is a name that a restarted backend has again, maybe with another address: the name of a pod
    /// of a StatefulSet. If discovery no longer lists it, it stays a member for a while, and others take its slots
    /// meanwhile.
    pub is_stable_name: bool,
    /// Whether the resolver's latest answers lack the backend, and none of them can be believed yet: caches may repeat an
    /// answer until its TTL is over. A set without the backend confirms the absence.
    pub is_missing: bool,
    /// What the Collector's load-balancing exporter hashes for this backend, where that is not the identity: the exporter
    /// fills in no port and changes no spelling. Only the exporter's rings use it.
    pub exporter_name: Option<Arc<str>>,
}

/// The full set of backends that discovery reports now, those that it misses included: sorted by identity, without
/// duplicates, never empty.
pub type Endpoints = Arc<[Endpoint]>;

/// Receives the sets that a resolver publishes: `None` until the first successful answer.
///
/// A new set may have the same identities as the previous one with other addresses.
pub type EndpointsReceiver = watch::Receiver<Option<Endpoints>>;

impl Endpoint {
    /// Creates an endpoint of weight 1 that is connected to in plaintext, unless the caller changes `access`.
    pub fn new(identity: impl Into<Arc<str>>, address: Option<SocketAddr>) -> Self {
        Self {
            identity: identity.into(),
            address,
            weight: 1,
            access: Access::default(),
            is_draining: false,
            is_stable_name: false,
            is_missing: false,
            exporter_name: None,
        }
    }

    /// Whether both are the same backend: they have the same address, however they are spelled, or no address and the same
    /// identity.
    pub fn is_same(&self, other: &Self) -> bool {
        match (self.address, other.address) {
            (Some(one), Some(other)) => one == other,
            _ => self.identity == other.identity,
        }
    }
}
