//! The keys whose changes take effect only at the next start. A reload applies all other keys.

use super::Config;
use crate::{admin::health_check, settings::HealthCheck};

/// The keys whose change needs a restart.
pub const RESTART_KEYS: [&str; 9] = [
    "receivers.otlp.protocols.grpc.endpoint",
    // Only adding or removing the section needs a restart; changes inside it do not.
    "receivers.otlp.protocols.grpc.tls",
    // The same, while the section http stays. It can be added and removed without a restart.
    "receivers.otlp.protocols.http.endpoint",
    "receivers.otlp.protocols.http.tls",
    "admin.endpoint",
    "admin.allowed_hosts",
    "health_check",
    "worker_threads",
    "telemetry.logs.encoding",
];

impl Config {
    /// Sets the keys that need a restart to their values in `running`. Returns those that were different.
    pub fn keep_restart_keys(&mut self, running: &Self) -> Vec<&'static str> {
        let grpc = |config: &Self| config.receive.grpc.as_ref().map(|grpc| grpc.endpoint);
        let has_tls = |config: &Self| config.receive.grpc.as_ref().is_some_and(|grpc| grpc.tls.is_some());
        let admin = |config: &Self| config.admin.as_ref().map(|admin| admin.endpoint);
        let hosts = |config: &Self| config.admin.as_ref().map(|admin| admin.keys.allowed_hosts.clone());
        let http = self.receive.http.as_ref().zip(running.receive.http.as_ref());
        // In the order of RESTART_KEYS.
        let is_same = [
            grpc(self) == grpc(running),
            has_tls(self) == has_tls(running),
            http.is_none_or(|(mine, running)| mine.endpoint == running.endpoint),
            http.is_none_or(|(mine, running)| mine.tls.is_some() == running.tls.is_some()),
            admin(self) == admin(running),
            hosts(self) == hosts(running),
            is_same_health_check(self.health_check.as_ref(), running.health_check.as_ref()),
            self.worker_threads == running.worker_threads,
            self.logs.encoding == running.logs.encoding,
        ];
        if let (Some(mine), Some(running)) = (&mut self.receive.grpc, &running.receive.grpc) {
            mine.endpoint = running.endpoint;
            mine.keys.endpoint.clone_from(&running.keys.endpoint);
            if mine.tls.is_some() != running.tls.is_some() {
                mine.tls.clone_from(&running.tls);
                mine.keys.tls.clone_from(&running.keys.tls);
            }
        }
        if let (Some(mine), Some(running)) = (&mut self.receive.http, &running.receive.http) {
            mine.endpoint = running.endpoint;
            mine.keys.endpoint.clone_from(&running.keys.endpoint);
            if mine.tls.is_some() != running.tls.is_some() {
                mine.tls.clone_from(&running.tls);
                mine.keys.tls.clone_from(&running.keys.tls);
            }
        }
        if let (Some(mine), Some(running)) = (&mut self.admin, &running.admin) {
            mine.endpoint = running.endpoint;
            mine.keys.clone_from(&running.keys);
        }
        self.health_check.clone_from(&running.health_check);
        self.worker_threads = running.worker_threads;
        self.logs.encoding = running.logs.encoding;
        RESTART_KEYS.into_iter().zip(is_same).filter(|(_, is_same)| !is_same).map(|(key, _)| key).collect()
    }
}

/// Returns whether both resolve to the same address, even if it is written differently, and all other keys are equal.
fn is_same_health_check(one: Option<&health_check::Config>, other: Option<&health_check::Config>) -> bool {
    let (Some(one), Some(other)) = (one, other) else { return one.is_none() && other.is_none() };
    let keys = HealthCheck { endpoint: other.keys.endpoint.clone(), ..one.keys.clone() };
    one.endpoint == other.endpoint && keys == other.keys
}
