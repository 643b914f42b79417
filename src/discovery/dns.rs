//! The `dns` resolver: the A and AAAA records of one name are the backends.

use std::net::{IpAddr, SocketAddr};

use super::{
    DiscoveryError, IpFamily, MAX_ENDPOINTS,
    address::check_name,
    answer::Answers,
    known::Known,
    metrics::Meters,
    search::Search,
    system::System,
    trouble::{Trouble, Voice},
};
use crate::endpoint::{Endpoint, Endpoints};

/// What the resolver of one pool knows.
pub(super) struct Dns {
    pool: String,
    search: Search,
    port: u16,
    family: IpFamily,
    system: System,
    meters: Meters,
    known: Known,
    published: Option<Endpoints>,
    trouble: Trouble,
    /// Addresses that a ring has no room for.
    beyond: usize,
}

/// Refuses what is no name, and port 0.
pub(super) fn check(hostname: &str, port: u16) -> Result<(), DiscoveryError> {
    let written = || hostname.to_owned();
    if hostname.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() {
        return Err(DiscoveryError::NotAName { written: written() });
    }
    if port == 0 {
        return Err(DiscoveryError::Port);
    }
    check_name(hostname).map_err(|source| DiscoveryError::Hostname { written: written(), source })
}

impl Dns {
    pub(super) fn new(hostname: &str, port: u16, family: IpFamily, system: System, meters: Meters, pool: &str) -> Self {
        Self {
            pool: pool.to_owned(),
            search: Search::new(hostname),
            port,
            family,
            system,
            meters,
            known: Known::default(),
            published: None,
            trouble: Trouble::default(),
            beyond: 0,
        }
    }

    /// One round of questions; the new set if it is another than the last one.
    pub(super) async fn poll_once(&mut self) -> Option<Endpoints> {
        let (answers, good) = self.ask().await;
        let endpoints = self.endpoints();
        let voice = Voice { pool: &self.pool, hostname: self.search.hostname() };
        self.trouble.note(voice, good, &answers, endpoints.len());
        if good {
            self.meters.succeeded();
            self.trouble.note_count(voice, endpoints.len());
        }
        let joined = self.known.joined(self.family);
        self.trouble.note_parts(voice, joined);
        self.meters.partial(joined.is_some());
        if endpoints.is_empty() || self.published.as_deref() == Some(&*endpoints) {
            return None;
        }
        let endpoints = Endpoints::from(endpoints);
        self.published = Some(endpoints.clone());
        Some(endpoints)
    }

    /// The same for those who want one good answer or none.
    pub(super) async fn ask_once(&mut self) -> Result<Endpoints, DiscoveryError> {
        let (answers, good) = self.ask().await;
        if good { Ok(self.endpoints().into()) } else { Err(self.unresolved(answers.to_string())) }
    }

    pub(super) fn unresolved(&self, reason: String) -> DiscoveryError {
        DiscoveryError::Unresolved { hostname: self.search.hostname().to_owned(), reason }
    }

    async fn ask(&mut self) -> (Answers, bool) {
        self.system.refresh();
        let mut answers = self.search.ask(&self.system, self.family).await;
        let dropped = answers.drop_unusable();
        self.trouble.note_dropped(Voice { pool: &self.pool, hostname: self.search.hostname() }, dropped);
        self.meters.count(&answers);
        let good = self.known.absorb(self.family, &answers);
        (answers, good)
    }

    /// What is known, sorted by identity; the same addresses are the same set in whatever order they came.
    fn endpoints(&mut self) -> Vec<Endpoint> {
        let endpoint = |ip| {
            let address = SocketAddr::new(ip, self.port);
            Endpoint::new(address.to_string(), Some(address))
        };
        let mut endpoints: Vec<Endpoint> = self.known.addresses(self.family).map(endpoint).collect();
        endpoints.sort_unstable();
        endpoints.dedup();
        let beyond = endpoints.len().saturating_sub(MAX_ENDPOINTS);
        if beyond != self.beyond && beyond > 0 {
            let (pool, hostname) = (&self.pool, self.search.hostname());
            tracing::warn!(pool, hostname, beyond, "discovery leaves out what is more than {MAX_ENDPOINTS} backends");
        }
        self.beyond = beyond;
        endpoints.truncate(MAX_ENDPOINTS);
        endpoints
    }

    #[cfg(test)]
    pub(super) fn is_failing(&self) -> bool {
        self.trouble.is_failing()
    }

    #[cfg(test)]
    pub(super) fn is_told(&self) -> bool {
        self.trouble.is_told()
    }
}
