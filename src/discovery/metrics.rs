//! Metrics of discovery. The handles are looked up once for each pool.

use std::time::{SystemTime, UNIX_EPOCH};

use metrics::{Counter, Gauge, counter, gauge};

use super::{
    Config,
    answer::{Answer, Answers},
};
use crate::telemetry::metrics::{
    DISCOVERY_LAST_SUCCESS_TIMESTAMP_SECONDS, DISCOVERY_LOOKUPS_TOTAL, DISCOVERY_PARTIAL_ANSWERS,
};

/// The handles of one pool.
#[derive(Debug)]
pub(super) struct Meters {
    last_success: Gauge,
    partial: Gauge,
    v4: Lookups,
    v6: Lookups,
    fixed: Lookups,
    srv: Lookups,
    targets: Lookups,
    kubernetes: Lookups,
}

/// The value of the label `result` of a good answer.
pub(super) const SUCCESS: &str = "success";

/// All values of the label `result` of answers of a Kubernetes API server.
pub(super) const API_RESULTS: [&str; 6] = [SUCCESS, "empty", "denied", "expired", "timeout", "error"];

/// Counters by the label `result`.
#[derive(Debug, Default)]
struct Lookups(Vec<(&'static str, Counter)>);

impl Meters {
    /// Registers, with value 0, the series that this kind of resolver can count.
    pub(super) fn new(pool: &str, config: &Config) -> Self {
        let lookups = |family: &'static str, wanted: bool| match wanted {
            true => Lookups::new(pool, family, &Answer::RESULTS),
            false => Lookups::default(),
        };
        let dns = match config {
            Config::Static(_) | Config::Srv(_) | Config::Kubernetes(_) => None,
            Config::Dns(dns) => Some(dns.ip_family),
        };
        let kubernetes = match config {
            Config::Kubernetes(_) => Lookups::new(pool, "kubernetes", &API_RESULTS),
            Config::Static(_) | Config::Dns(_) | Config::Srv(_) => Lookups::default(),
        };
        let (is_static, is_srv) = (matches!(config, Config::Static(_)), matches!(config, Config::Srv(_)));
        Self {
            last_success: gauge!(DISCOVERY_LAST_SUCCESS_TIMESTAMP_SECONDS, "pool" => pool.to_owned()),
            partial: gauge!(DISCOVERY_PARTIAL_ANSWERS, "pool" => pool.to_owned()),
            v4: lookups("ipv4", dns.is_some_and(super::IpFamily::wants_v4)),
            v6: lookups("ipv6", dns.is_some_and(super::IpFamily::wants_v6)),
            fixed: lookups("static", is_static),
            srv: lookups("srv", is_srv),
            targets: lookups("srv_target", is_srv),
            kubernetes,
        }
    }

    /// Returns handles that record nothing, for [`super::resolve_once`] and tests.
    pub(super) fn silent() -> Self {
        Self {
            last_success: Gauge::noop(),
            partial: Gauge::noop(),
            v4: Lookups::default(),
            v6: Lookups::default(),
            fixed: Lookups::default(),
            srv: Lookups::default(),
            targets: Lookups::default(),
            kubernetes: Lookups::default(),
        }
    }

    /// Counts the answers about the name of a `dns` or `srv` resolver, each family by itself.
    pub(super) fn count(&self, answers: &Answers) {
        for (lookups, answer) in [(&self.v4, &answers.v4), (&self.v6, &answers.v6), (&self.srv, &answers.srv)] {
            lookups.count(answer.as_ref().map(Answer::result));
        }
    }

    /// Counts the answers about a static entry's name as one lookup.
    pub(super) fn count_fixed(&self, answers: &Answers) {
        self.fixed.count(Some(answers.best()));
    }

    /// Counts the answers about the target of an SRV record as one lookup.
    pub(super) fn count_target(&self, answers: &Answers) {
        self.targets.count(Some(answers.best()));
    }

    /// Counts an answer of a Kubernetes API server, or that there was none.
    #[cfg_attr(not(feature = "kubernetes"), expect(dead_code, reason = "there is no such resolver"))]
    pub(super) fn count_kubernetes(&self, result: &'static str) {
        self.kubernetes.count(Some(result));
    }

    /// Records the time of a round in which all answers were good.
    pub(super) fn succeeded(&self) {
        // The wall clock is only displayed; nothing is computed with it.
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last_success.set(since_1970.as_secs_f64());
    }

    /// Records whether the answers are parts of a larger set.
    pub(super) fn partial(&self, are_parts: bool) {
        self.partial.set(u32::from(are_parts));
    }
}

impl Lookups {
    fn new(pool: &str, family: &'static str, results: &[&'static str]) -> Self {
        let counter = |result: &&'static str| {
            let result = *result;
            let labels = [("pool", pool.to_owned()), ("family", family.to_owned()), ("result", String::from(result))];
            (result, counter!(DISCOVERY_LOOKUPS_TOTAL, &labels))
        };
        Self(results.iter().map(counter).collect())
    }

    fn count(&self, result: Option<&'static str>) {
        if let Some((_, counter)) = self.0.iter().find(|(known, _)| Some(*known) == result) {
            counter.increment(1);
        }
    }
}
