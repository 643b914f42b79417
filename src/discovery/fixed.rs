//! The `static` resolver: every configured entry is always a member. Only the addresses of names are looked up.

use std::{
    collections::{BTreeSet, btree_map::BTreeMap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, stream};

use super::{
    DiscoveryError, IpFamily, MAX_ENDPOINTS,
    address::check_backend,
    answer::Answers,
    known::Known,
    metrics::Meters,
    search::Search,
    state_log::{LogFields, NAMED_IN_LOG, StateLog},
    system::System,
};
use crate::{
    endpoint::{Endpoint, Endpoints},
    settings::addresses::{Backend, HostPort},
};

/// The number of names that are looked up at the same time, with two questions each.
pub(super) const AT_A_TIME: usize = 16;

/// The configured entries, by identity.
pub(super) type Entries = BTreeMap<Arc<str>, Backend>;

/// The state of one pool's `static` resolver.
pub(super) struct Fixed {
    pool: String,
    entries: Vec<Entry>,
    system: System,
    meters: Meters,
    /// The addresses that several entries have, and those entries, as they were logged last.
    shared: Shared,
}

/// Entries by the address that they share.
type Shared = BTreeMap<SocketAddr, Vec<Arc<str>>>;

/// One configured backend.
struct Entry {
    endpoint: Endpoint,
    host: HostPort,
    search: Search,
    known: Known,
    log: StateLog,
}

/// Checks the entries and sorts them by identity, each once.
pub(super) fn entries(hostnames: &[Backend]) -> Result<Entries, DiscoveryError> {
    let mut entries = Entries::new();
    for backend in hostnames {
        let identity = backend.identity();
        match check_backend(backend) {
            Ok(()) => drop(entries.insert(identity.into(), backend.clone())),
            Err(source) => return Err(DiscoveryError::Hostname { written: identity, source }),
        }
    }
    match entries.len() {
        0 => Err(DiscoveryError::NoHostnames),
        count if count > MAX_ENDPOINTS => Err(DiscoveryError::TooManyHostnames { count }),
        _ => Ok(entries),
    }
}

impl Fixed {
    pub(super) fn new(entries: Entries, system: System, meters: Meters, pool: &str) -> Self {
        let entry = |(identity, backend): (Arc<str>, Backend)| Entry {
            endpoint: Endpoint {
                exporter_name: backend.written().map(Into::into),
                ..Endpoint::new(identity, backend.address.address())
            },
            search: Search::new(backend.address.name().unwrap_or_default()),
            host: backend.address,
            known: Known::default(),
            log: StateLog::new(),
        };
        let entries = entries.into_iter().map(entry).collect();
        let mut fixed = Self { pool: pool.to_owned(), entries, system, meters, shared: Shared::new() };
        fixed.note_shared();
        fixed
    }

    /// Returns all entries with the addresses known so far.
    pub(super) fn endpoints(&self) -> Endpoints {
        self.entries.iter().map(|entry| entry.endpoint.clone()).collect()
    }

    /// Returns all entries if they may replace the set of another resolver: all of them have addresses or, after two
    /// rounds, at least half of them.
    pub(super) fn replacement(&self, rounds: u32) -> Option<Endpoints> {
        let known = self.entries.iter().filter(|entry| entry.endpoint.address.is_some()).count();
        let enough = known == self.entries.len() || (rounds >= 2 && 2 * known >= self.entries.len());
        enough.then(|| self.endpoints())
    }

    /// Sets the time that one question may take.
    pub(super) fn set_timeout(&mut self, timeout: Duration) {
        self.system.set_timeout(timeout);
    }

    /// Looks up all names once. Returns the set if an address changed.
    pub(super) async fn poll_once(&mut self) -> Option<Endpoints> {
        let (mut changed, mut all_good) = (false, true);
        for (index, answers) in self.ask().await {
            let Some(entry) = self.entries.get_mut(index) else { continue };
            self.meters.count_fixed(&answers);
            let before = entry.endpoint.address;
            all_good &= entry.absorb(&self.pool, answers);
            changed |= entry.endpoint.address != before;
        }
        self.meters.partial(self.entries.iter().any(|entry| entry.known.joined(IpFamily::Auto).is_some()));
        if all_good {
            self.meters.succeeded();
        }
        if changed {
            self.note_shared();
        }
        changed.then(|| self.endpoints())
    }

    /// Logs the addresses that several entries have, when they change. Such entries stay members of their own: if they were
    /// merged, the ring would depend on what a replica's name server answers.
    fn note_shared(&mut self) {
        let mut shared = Shared::new();
        for Endpoint { identity, address, .. } in self.entries.iter().map(|entry| &entry.endpoint) {
            if let Some(address) = address {
                shared.entry(*address).or_default().push(Arc::clone(identity));
            }
        }
        shared.retain(|_, entries| entries.len() > 1);
        if shared != self.shared && !shared.is_empty() {
            let named: Vec<_> = shared.iter().take(NAMED_IN_LOG).collect();
            tracing::warn!(
                pool = self.pool,
                addresses = shared.len(),
                shared = ?named,
                "several static entries have the same address: this backend gets the share of each of them; list it once"
            );
        }
        self.shared = shared;
    }

    /// Returns the entries that share an address with others.
    #[cfg(test)]
    pub(super) fn sharing(&self) -> Vec<&str> {
        self.shared.values().flatten().map(|identity| &**identity).collect()
    }

    async fn ask(&mut self) -> Vec<(usize, Answers)> {
        let Self { entries, system, .. } = self;
        if entries.iter().all(|entry| entry.host.name().is_none()) {
            return Vec::new();
        }
        system.refresh();
        let named = entries.iter_mut().enumerate().filter(|(_, entry)| entry.host.name().is_some());
        let asks: Vec<_> = named.map(|(index, entry)| entry.ask(index, system)).collect();
        stream::iter(asks).buffer_unordered(AT_A_TIME).collect().await
    }
}

impl Entry {
    async fn ask(&mut self, index: usize, system: &System) -> (usize, Answers) {
        (index, self.search.ask(system, IpFamily::Auto).await)
    }

    /// Processes the answers about the entry's name. Returns whether they were good.
    fn absorb(&mut self, pool: &str, mut answers: Answers) -> bool {
        let fields = LogFields { pool, hostname: self.host.name().unwrap_or_default() };
        self.log.note_dropped(fields, answers.drop_unusable());
        let good = self.known.absorb(IpFamily::Auto, &answers);
        let addresses: BTreeSet<IpAddr> = self.known.addresses(IpFamily::Auto).collect();
        self.log.note(fields, good, &answers, addresses.len());
        self.log.note_parts(fields, self.known.joined(IpFamily::Auto));
        self.log.note_unused(fields, addresses.len());
        // If the name has several addresses, the current one is kept as long as it is among them.
        let current = self.endpoint.address.map(|address| address.ip()).filter(|ip| addresses.contains(ip));
        if let Some(ip) = current.or_else(|| addresses.first().copied()) {
            self.endpoint.address = Some(SocketAddr::new(ip, self.host.port));
        }
        good
    }
}
