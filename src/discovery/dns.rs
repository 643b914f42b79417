//! The `dns` resolver: the A and AAAA records of one name are the backends.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    DiscoveryError, IpFamily, MAX_ENDPOINTS,
    absences::{Absences, Round},
    address::check_hostname,
    answer::Answers,
    known::Known,
    metrics::Meters,
    search::Search,
    state_log::{LogFields, StateLog},
    system::System,
};
use crate::{
    endpoint::{Endpoint, Endpoints},
    settings::addresses::OTLP_GRPC_PORT,
};

/// The state of one pool's `dns` resolver.
pub(super) struct Dns {
    pool: String,
    search: Search,
    /// The port in the configuration, if there is one.
    port: Option<u16>,
    family: IpFamily,
    system: System,
    meters: Meters,
    known: Known,
    absences: Absences,
    /// Whether the last answers allow that the next round follows soon.
    may_repeat: bool,
    published: Option<Endpoints>,
    log: StateLog,
    /// The number of addresses that were left out because the pool would have more than [`MAX_ENDPOINTS`] backends.
    beyond: usize,
}

/// Checks the configured host name and port.
pub(super) fn check(hostname: &str, port: Option<u16>) -> Result<(), DiscoveryError> {
    if port == Some(0) {
        return Err(DiscoveryError::Port);
    }
    check_hostname(hostname).map_err(|source| DiscoveryError::Hostname { written: hostname.to_owned(), source })
}

/// Returns an address as the Collector's load-balancing exporter hashes it if its `dns` resolver has no `port`.
fn without_port(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    }
}

impl Dns {
    pub(super) fn new(
        hostname: &str,
        port: Option<u16>,
        family: IpFamily,
        system: System,
        meters: Meters,
        pool: &str,
    ) -> Self {
        Self {
            pool: pool.to_owned(),
            search: Search::new(hostname),
            port,
            family,
            system,
            meters,
            known: Known::default(),
            absences: Absences::default(),
            may_repeat: false,
            published: None,
            log: StateLog::new(),
            beyond: 0,
        }
    }

    /// Sets the time that one question may take.
    pub(super) fn set_timeout(&mut self, timeout: Duration) {
        self.system.set_timeout(timeout);
    }

    /// Asks once. Returns the new set if it differs from the last one.
    pub(super) async fn poll_once(&mut self) -> Option<Endpoints> {
        let asked_at = Instant::now();
        let (answers, good) = self.ask().await;
        let answered_at = Instant::now();
        let endpoints = self.endpoints();
        let fields = LogFields { pool: &self.pool, hostname: self.search.hostname() };
        self.log.note(fields, good, &answers, endpoints.len());
        if good {
            self.meters.succeeded();
            self.log.note_count(fields, endpoints.len());
        }
        let joined = self.known.joined(self.family);
        self.log.note_parts(fields, joined);
        self.meters.partial(joined.is_some());
        // Parts of a larger set lack backends in every round.
        self.may_repeat = answers.may_be_repeated_soon() && !self.known.counts_rounds() && joined.is_none();
        if endpoints.is_empty() {
            return None;
        }
        let round = Round { asked_at, answered_at, ttl: answers.ttl };
        let tells = |endpoint: &Endpoint| {
            endpoint.address.is_some_and(|address| self.known.tells_about(self.family, &answers, address.ip()))
        };
        let endpoints = self.absences.absorb(endpoints, round, tells);
        if self.published.as_deref() == Some(&*endpoints) {
            return None;
        }
        let endpoints = Endpoints::from(endpoints);
        self.published = Some(endpoints.clone());
        Some(endpoints)
    }

    /// Returns whether to ask again soon.
    pub(super) fn is_restless(&self) -> bool {
        self.may_repeat && self.absences.are_recent(Instant::now())
    }

    /// Asks once, and returns an error unless the answer is complete.
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
        self.log.note_dropped(LogFields { pool: &self.pool, hostname: self.search.hostname() }, dropped);
        self.meters.count(&answers);
        let good = self.known.absorb(self.family, &answers);
        (answers, good)
    }

    /// Returns the known endpoints, sorted by identity, so that the order of addresses in an answer never matters.
    fn endpoints(&mut self) -> Vec<Endpoint> {
        let endpoint = |ip| {
            let address = SocketAddr::new(ip, self.port.unwrap_or(OTLP_GRPC_PORT));
            let exporter_name = self.port.is_none().then(|| without_port(ip).into());
            Endpoint { exporter_name, ..Endpoint::new(address.to_string(), Some(address)) }
        };
        let mut endpoints: Vec<Endpoint> = self.known.addresses(self.family).map(endpoint).collect();
        endpoints.sort_unstable();
        endpoints.dedup();
        let beyond = endpoints.len().saturating_sub(MAX_ENDPOINTS);
        if beyond != self.beyond && beyond > 0 {
            let (pool, hostname) = (&self.pool, self.search.hostname());
            tracing::warn!(pool, hostname, beyond, "discovery leaves out what exceeds {MAX_ENDPOINTS} backends");
        }
        self.beyond = beyond;
        endpoints.truncate(MAX_ENDPOINTS);
        endpoints
    }

    #[cfg(test)]
    pub(super) fn is_failing(&self) -> bool {
        self.log.is_failing()
    }

    #[cfg(test)]
    pub(super) fn is_count_logged(&self) -> bool {
        self.log.is_count_logged()
    }
}
