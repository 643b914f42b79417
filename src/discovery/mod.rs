//! Who the backends are: a resolver's whole interface is a watch channel of full sets.

use std::{net::SocketAddr, sync::Arc};

/// One backend as discovery reports it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// What is hashed: `ip:port` in RFC 5952 form from A and AAAA records, `name:port` as written for a static entry.
    pub identity: Arc<str>,
    /// What is dialled; `None` while a static entry's name has not been resolved yet.
    pub address: Option<SocketAddr>,
    /// Share of the ring relative to others; 1 unless configured.
    pub weight: u32,
}

/// The full set that discovery reports now, sorted by identity, without duplicates, never empty.
pub type Endpoints = Arc<[Endpoint]>;

/// What a resolver publishes: `None` until the first good answer.
pub type EndpointsReceiver = tokio::sync::watch::Receiver<Option<Endpoints>>;
