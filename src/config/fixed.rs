//! What only a restart can change: everything else is taken over by a running proxy.

use super::Config;

/// Keys whose change takes a restart.
pub const FIXED: [&str; 6] = [
    "receivers.otlp.protocols.grpc.endpoint",
    // Whether there is any; what it says is taken over.
    "receivers.otlp.protocols.grpc.tls",
    "admin.endpoint",
    "health_check",
    "worker_threads",
    "telemetry.logs.encoding",
];

impl Config {
    /// Takes back what takes a restart to what is `running`, and names the keys in which the two differed.
    pub fn keep_fixed(&mut self, running: &Self) -> Vec<&'static str> {
        let [grpc_endpoint, grpc_tls, admin_endpoint, health_check, worker_threads, log_encoding] = FIXED;
        let mut differ = Vec::new();
        let mut keep = |key, same: bool| {
            if !same {
                differ.push(key);
            }
        };
        let endpoint = |config: &Self| config.receive.grpc.as_ref().map(|grpc| grpc.endpoint);
        keep(grpc_endpoint, endpoint(self) == endpoint(running));
        let tls = |config: &Self| config.receive.grpc.as_ref().and_then(|grpc| grpc.tls.clone());
        let tls_begins_or_ends = tls(self).is_some() != tls(running).is_some();
        keep(grpc_tls, !tls_begins_or_ends);
        keep(admin_endpoint, self.admin == running.admin);
        keep(health_check, self.health_check == running.health_check);
        keep(worker_threads, self.worker_threads == running.worker_threads);
        keep(log_encoding, self.logs.encoding == running.logs.encoding);
        if let (Some(mine), Some(running)) = (&mut self.receive.grpc, &running.receive.grpc) {
            mine.endpoint = running.endpoint;
            mine.keys.endpoint.clone_from(&running.keys.endpoint);
            if tls_begins_or_ends {
                mine.tls.clone_from(&running.tls);
                mine.keys.tls.clone_from(&running.keys.tls);
            }
        }
        self.admin.clone_from(&running.admin);
        self.health_check.clone_from(&running.health_check);
        self.worker_threads = running.worker_threads;
        self.logs.encoding = running.logs.encoding;
        differ
    }
}
