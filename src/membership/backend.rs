//! The health of one backend: consecutive failures, ejection with its growing periods, absence from discovery. Pure.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    OutlierDetection,
    absence::{Absence, Patience, Verdict},
};
use crate::{access::Access, endpoint::Endpoint, health::HealthKind};

/// The reason of an ejection that no delivery caused: the backend's name has had no address for a while.
pub(super) const UNRESOLVED: &str = "unresolved";

/// The period of an ejection varies by up to this share, so that replicas do not probe at the same time.
const JITTER: f64 = 0.1;

/// One member of the pool.
#[derive(Debug)]
pub(super) struct Backend {
    pub(super) endpoint: Endpoint,
    /// Failures since the last answer.
    failures: u32,
    ejection: Option<Ejection>,
    /// Ejections and failed probes since the backend was last healthy for `max_ejection_time`.
    periods: u32,
    returned_at: Option<Instant>,
    unresolved_since: Option<Instant>,
    absence: Option<Absence>,
}

/// The state of an ejected backend, which takes no records until it answers a probe.
#[derive(Clone, Copy, Debug)]
struct Ejection {
    /// When the next probe is due; `None` while a probe runs.
    probe_at: Option<Instant>,
}

/// An ejection that has just begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ejected {
    pub(super) reason: &'static str,
    /// The time until the first probe.
    pub(super) period: Duration,
}

/// The state of a backend, as metrics and the admin pages name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BackendState {
    /// The backend takes the records that it owns.
    Active,
    /// Discovery no longer lists the backend, or lists it as draining. It still answers, so it is held for a while.
    Draining,
    /// The backend fails. Its slots go to others, unless too many backends fail.
    Ejected,
    /// The backend has no address.
    Unresolved,
}

// === impl BackendState ===

impl BackendState {
    /// All states, in the order of their series.
    pub const ALL: [Self; 4] = [Self::Active, Self::Draining, Self::Ejected, Self::Unresolved];

    /// Returns the value of the metric label `state`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Ejected => "ejected",
            Self::Unresolved => "unresolved",
        }
    }
}

// === impl Backend ===

impl Backend {
    /// A backend about whose health nothing is known. The endpoint is that of a table, or what discovery says about it is
    /// noted next, by [`Backend::listed`] or [`Backend::drains`].
    pub(super) fn new(endpoint: Endpoint, now: Instant) -> Self {
        let unresolved_since = endpoint.address.is_none().then_some(now);
        Self { endpoint, failures: 0, ejection: None, periods: 0, returned_at: None, unresolved_since, absence: None }
    }

    pub(super) fn state(&self) -> BackendState {
        match () {
            () if self.endpoint.address.is_none() => BackendState::Unresolved,
            () if self.is_ejected() => BackendState::Ejected,
            () if self.is_absent() => BackendState::Draining,
            () => BackendState::Active,
        }
    }

    pub(super) fn is_ejected(&self) -> bool {
        self.ejection.is_some()
    }

    pub(super) fn is_absent(&self) -> bool {
        self.absence.is_some()
    }

    /// Returns whether the backend has a stable name and its absence is believed, so that others take its slots.
    pub(super) fn is_away(&self) -> bool {
        self.absence.is_some_and(|absence| absence.is_away())
    }

    /// Notes that discovery lists the backend, or misses it without a confirmation. Returns whether it was listed until
    /// now and is not any more, as [`Backend::unlisted`] does.
    ///
    /// Failures at another address or with another access say nothing about
    /// this one, so a changed backend is probed at once. One that was absent is probed at once too: it may just have
    /// been restarted.
    pub(super) fn listed(&mut self, endpoint: &Endpoint, halves_pool: bool, now: Instant) -> bool {
        let is_new_absence = endpoint.is_missing && self.begin_absence(halves_pool, false, now);
        if !endpoint.is_missing
            && self.absence.take().is_some()
            && let Some(ejection) = &mut self.ejection
        {
            ejection.probe_at = Some(now);
        }
        self.change_to(endpoint, now);
        is_new_absence
    }

    /// Notes what discovery says about the backend.
    fn change_to(&mut self, endpoint: &Endpoint, now: Instant) {
        if self.endpoint.address != endpoint.address || self.endpoint.access != endpoint.access {
            self.failures = 0;
            self.periods = 0;
            if let Some(ejection) = &mut self.ejection {
                ejection.probe_at = Some(now);
            }
            self.unresolved_since = match endpoint.address {
                Some(_) => None,
                None => self.unresolved_since.or(Some(now)),
            };
        }
        // What a table depends on does not change while an absence is doubted.
        self.endpoint = Endpoint { is_missing: false, is_draining: false, ..endpoint.clone() };
    }

    /// Notes that discovery does not list the backend, and that this is confirmed. `halves_pool` is whether its set has
    /// half of the members or fewer. Returns whether the backend was listed before.
    pub(super) fn unlisted(&mut self, halves_pool: bool, now: Instant) -> bool {
        self.begin_absence(halves_pool, true, now)
    }

    /// Notes that discovery lists the backend as draining.
    pub(super) fn drains(&mut self, endpoint: &Endpoint, now: Instant) {
        self.absence.get_or_insert(Absence::new(false, now)).set_draining();
        self.change_to(endpoint, now);
    }

    /// Returns whether discovery lists the backend as draining.
    pub(super) fn is_draining(&self) -> bool {
        self.absence.is_some_and(|absence| absence.is_draining())
    }

    /// Notes that the backend is absent. Returns whether it was listed before.
    fn begin_absence(&mut self, halves_pool: bool, is_confirmed: bool, now: Instant) -> bool {
        let was_listed = self.absence.is_none();
        self.absence.get_or_insert(Absence::new(halves_pool, now)).set_unlisted(is_confirmed, now);
        was_listed
    }

    /// Returns what the absence of the backend leads to now; `None` if discovery lists it.
    pub(super) fn verdict(&self, patience: Patience, now: Instant) -> Option<Verdict> {
        let verdict =
            |absence: Absence| absence.verdict(self.endpoint.is_stable_name, self.is_ejected(), patience, now);
        self.absence.map(verdict)
    }

    /// Notes that others take the slots of the absent backend. Returns whether that is new.
    pub(super) fn begin_to_be_away(&mut self) -> bool {
        self.absence.as_mut().is_some_and(Absence::begin_to_be_away)
    }

    /// Returns for how long after the beginning of its absence the backend stays a member, unless it is removed earlier
    /// because it is ejected; `None` if nobody knows, since it is not absent or drains.
    pub(super) fn stays_for(&self, patience: Patience) -> Option<Duration> {
        self.absence?.stays_for(self.endpoint.is_stable_name, patience)
    }

    /// Notes what a delivery observed. Returns the ejection that this causes, if it does.
    pub(super) fn seen(
        &mut self,
        kind: HealthKind,
        config: &OutlierDetection,
        jitter: f64,
        now: Instant,
    ) -> Option<Ejected> {
        if kind == HealthKind::Answered {
            self.failures = 0;
            return None;
        }
        self.failures = self.failures.saturating_add(kind.weight());
        let enough = kind.is_certain() || self.failures >= config.consecutive_failures;
        enough.then(|| self.eject(kind.as_str(), config, jitter, now)).flatten()
    }

    /// Ejects the backend, unless it is ejected already or ejection is switched off.
    pub(super) fn eject(
        &mut self,
        reason: &'static str,
        config: &OutlierDetection,
        jitter: f64,
        now: Instant,
    ) -> Option<Ejected> {
        if self.is_ejected() || config.max_ejection_percent == 0 {
            return None;
        }
        if self.returned_at.is_some_and(|at| now >= at + config.max_ejection_time) {
            self.periods = 0;
        }
        let period = self.next_period(config, jitter);
        self.ejection = Some(Ejection { probe_at: Some(now + period) });
        Some(Ejected { reason, period })
    }

    /// Returns whether the backend has had no address for so long that it is to be ejected.
    pub(super) fn is_long_unresolved(&self, config: &OutlierDetection, now: Instant) -> bool {
        !self.is_ejected() && self.unresolved_since.is_some_and(|since| now >= since + config.base_ejection_time)
    }

    /// If a probe is due, marks it as running and returns the address to probe. A backend without an address is not
    /// probed.
    pub(super) fn begin_probe(&mut self, now: Instant) -> Option<SocketAddr> {
        let address = self.endpoint.address?;
        let ejection = self.ejection.as_mut()?;
        ejection.probe_at.filter(|at| now >= *at)?;
        ejection.probe_at = None;
        Some(address)
    }

    /// Returns whether `probe` used the backend's current address and access.
    pub(super) fn is_reached_by(&self, probe: &Probe) -> bool {
        self.endpoint.address == Some(probe.address) && self.endpoint.access == probe.access
    }

    /// Notes the result of a probe. Returns whether the backend takes records again.
    pub(super) fn probed(&mut self, answered: bool, config: &OutlierDetection, jitter: f64, now: Instant) -> bool {
        if answered {
            return self.come_back(now);
        }
        let period = self.next_period(config, jitter);
        if let Some(ejection) = &mut self.ejection {
            ejection.probe_at = Some(now + period);
        }
        false
    }

    /// Ends the ejection. Returns whether there was one.
    pub(super) fn come_back(&mut self, now: Instant) -> bool {
        self.failures = 0;
        self.returned_at = Some(now);
        self.ejection.take().is_some()
    }

    /// Returns when the next probe is due.
    pub(super) fn next_probe(&self) -> Option<Instant> {
        self.ejection.and_then(|ejection| ejection.probe_at).filter(|_| self.endpoint.address.is_some())
    }

    /// Returns when [`super::state::Input::Timer`] is due for this backend.
    pub(super) fn next_due(&self, config: &OutlierDetection, patience: Patience, now: Instant) -> Option<Instant> {
        let probe = self.next_probe();
        let off = config.max_ejection_percent == 0 || self.is_ejected();
        let unresolved = self.unresolved_since.filter(|_| !off).map(|since| since + config.base_ejection_time);
        let is_stable_name = self.endpoint.is_stable_name;
        let gone = self.absence.and_then(|absence| absence.next_due(is_stable_name, patience, now));
        [probe, unresolved, gone].into_iter().flatten().min()
    }

    /// Returns the next period: `base_ejection_time × 2^(n−1)` up to `max_ejection_time`, ± 10 %. `jitter` is from 0 to
    /// 1.
    fn next_period(&mut self, config: &OutlierDetection, jitter: f64) -> Duration {
        let doubled = 1_u32.checked_shl(self.periods).unwrap_or(u32::MAX);
        self.periods = self.periods.saturating_add(1);
        let period = config.base_ejection_time.saturating_mul(doubled).min(config.max_ejection_time);
        period.mul_f64(1.0 - JITTER + 2.0 * JITTER * jitter)
    }
}

/// A probe to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The backend.
    pub identity: Arc<str>,
    /// The address to probe. The result is ignored if the backend has another address by then.
    pub address: SocketAddr,
    /// The TLS settings and headers to use. The result is ignored if they have changed by then.
    pub access: Access,
}
