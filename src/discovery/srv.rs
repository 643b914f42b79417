//! The `srv` resolver: the targets of the SRV records of one name are the backends. The name of a target is its
//! identity, so that a pod of a StatefulSet is the same backend after a restart with another address.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, stream};
use tokio::time::Instant;

use super::{
    DiscoveryError, IpFamily,
    absences::{Absences, Round},
    address::check_hostname,
    answer::{Answer, Answers, Question},
    fixed::AT_A_TIME,
    metrics::Meters,
    search::Search,
    services::{Located, Service, Targets, by_identity, locate},
    state_log::{LogFields, StateLog},
    system::System,
    weights::{Shares, shares},
};
use crate::endpoint::{Endpoint, Endpoints};

/// How long the share of an absent backend is remembered: as long as membership holds a stable name with the default window
/// of a hand-off.
const SHARE_REMEMBERED_FOR: Duration = Duration::from_secs(105);

/// The state of one pool's `srv` resolver.
pub(super) struct Srv {
    pool: String,
    search: Search,
    system: System,
    meters: Meters,
    /// The backends of the last good answer, by identity.
    known: BTreeMap<Arc<str>, Endpoint>,
    /// The shares of backends that were listed a short time ago, and when each was listed last.
    shares: BTreeMap<Arc<str>, (u32, Instant)>,
    absences: Absences,
    /// Whether the last answer allows that the next round follows soon.
    may_repeat: bool,
    published: Option<Endpoints>,
    log: StateLog,
    /// The identities that were merged with others in the last good answer.
    merged: BTreeSet<Arc<str>>,
}

/// Checks the configured name.
pub(super) fn check(hostname: &str) -> Result<(), DiscoveryError> {
    check_hostname(hostname).map_err(|source| DiscoveryError::Hostname { written: hostname.to_owned(), source })
}

impl Srv {
    pub(super) fn new(hostname: &str, system: System, meters: Meters, pool: &str) -> Self {
        Self {
            pool: pool.to_owned(),
            search: Search::new(hostname),
            system,
            meters,
            known: BTreeMap::new(),
            shares: BTreeMap::new(),
            absences: Absences::default(),
            may_repeat: false,
            published: None,
            log: StateLog::new(),
            merged: BTreeSet::new(),
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
        let fields = LogFields { pool: &self.pool, hostname: self.search.hostname() };
        self.log.note(fields, good, &answers, self.known.len());
        if good {
            self.meters.succeeded();
        }
        self.may_repeat = answers.may_be_repeated_soon();
        if self.known.is_empty() {
            return None;
        }
        let round = Round { asked_at, answered_at, ttl: answers.ttl };
        let endpoints = self.absences.absorb(self.known.values().cloned().collect(), round, |_| good);
        if self.published.as_deref() == Some(&*endpoints) {
            return None;
        }
        let endpoints = Endpoints::from(endpoints);
        self.published = Some(Arc::clone(&endpoints));
        Some(endpoints)
    }

    /// Returns whether to ask again soon.
    pub(super) fn is_restless(&self) -> bool {
        self.may_repeat && self.absences.are_recent(Instant::now())
    }

    /// Asks once, and returns an error unless there is an answer.
    pub(super) async fn ask_once(&mut self) -> Result<Endpoints, DiscoveryError> {
        let (answers, good) = self.ask().await;
        if good { Ok(self.endpoints()) } else { Err(self.unresolved(answers.to_string())) }
    }

    pub(super) fn unresolved(&self, reason: String) -> DiscoveryError {
        DiscoveryError::Unresolved { hostname: self.search.hostname().to_owned(), reason }
    }

    async fn ask(&mut self) -> (Answers, bool) {
        self.system.refresh();
        let answers = self.search.ask(&self.system, Question::Services).await;
        self.meters.count(&answers);
        let Some(Answer::Services(services)) = &answers.srv else { return (answers, false) };
        let (mut targets, mut merged) = by_identity(services.clone());
        self.look_up(&mut targets).await;
        let dropped: BTreeSet<IpAddr> = targets.values_mut().flat_map(Service::drop_unusable).collect();
        let fields = LogFields { pool: &self.pool, hostname: self.search.hostname() };
        self.log.note_dropped(fields, dropped);
        let located = locate(&targets, |identity| self.address_of(identity));
        merged.extend(located.merged.iter().cloned());
        self.note_merged(merged);
        self.take_over(&targets, located);
        (answers, true)
    }

    /// Looks up the targets that came without an address.
    async fn look_up(&self, targets: &mut Targets) {
        let look_up = async |service: &mut Service| {
            let answers = self.system.ask_both(&service.target, IpFamily::Auto).await;
            self.meters.count_target(&answers);
            for answer in answers.all() {
                if let Answer::Addresses(addresses) = answer {
                    service.addresses.extend(addresses);
                }
            }
        };
        let asks: Vec<_> = targets.values_mut().filter(|it| it.addresses.is_empty()).map(look_up).collect();
        stream::iter(asks).buffer_unordered(AT_A_TIME).collect::<()>().await;
    }

    /// Makes the targets of a good answer the known backends.
    fn take_over(&mut self, targets: &Targets, located: Located) {
        let now = Instant::now();
        let weights =
            located.addresses.keys().filter_map(|it| Some((Arc::clone(it), targets.get(it)?.weight))).collect();
        self.shares.retain(|_, (_, listed)| now < *listed + SHARE_REMEMBERED_FOR);
        let held: Shares = self.shares.iter().map(|(identity, (share, _))| (Arc::clone(identity), *share)).collect();
        let shares = shares(&weights, &held);
        self.shares.extend(shares.iter().map(|(identity, share)| (Arc::clone(identity), (*share, now))));
        let endpoint = |(identity, address): (Arc<str>, _)| {
            let weight = shares.get(&identity).copied().unwrap_or(1);
            let endpoint = Endpoint { weight, is_stable_name: true, ..Endpoint::new(Arc::clone(&identity), address) };
            (identity, endpoint)
        };
        self.known = located.addresses.into_iter().map(endpoint).collect();
    }

    fn endpoints(&self) -> Endpoints {
        self.known.values().cloned().collect()
    }

    fn address_of(&self, identity: &str) -> Option<SocketAddr> {
        self.known.get(identity)?.address
    }

    /// Logs the identities that were merged with others, when they change.
    pub(super) fn note_merged(&mut self, merged: BTreeSet<Arc<str>>) {
        if merged != self.merged && !merged.is_empty() {
            let named: Vec<&Arc<str>> = merged.iter().take(super::state_log::NAMED_IN_LOG).collect();
            tracing::warn!(
                pool = self.pool,
                hostname = self.search.hostname(),
                backends = merged.len(),
                merged = ?named,
                "targets that are listed twice, or have the address of another one, are one backend"
            );
        }
        self.merged = merged;
    }
}
