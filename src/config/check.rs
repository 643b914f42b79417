//! What one value can't know of another: bounds, references, addresses. All complaints are found in one go.

use std::{
    collections::BTreeSet,
    net::{SocketAddr, ToSocketAddrs},
    path::Path,
    time::Duration,
};

use super::{
    Config, ConfigError, PoolConfig, RouteConfig, de, headers, memory, said::Said, tls::Complaint, tree::Step,
};
use crate::{
    admin, discovery,
    otlp::Signal,
    pipeline, receive,
    settings::{
        Compression, Headers, HealthCheck, Pool, Route, RoutingKey, ServerTls, Settings,
        addresses::HostPort,
        values::{GoDuration, MIB, WorkerThreads},
    },
};

/// Bound on messages in MiB: lengths in gRPC's prefix and in protobuf end at 2 GiB.
const MAX_MESSAGE_MIB: usize = 2047;

/// The shortest interval between look-ups, as discovery has it: below it name servers are flooded.
const MIN_INTERVAL: Duration = Duration::from_millis(100);

/// The longest time that backends are ejected or held for: more is a slip of the finger.
const MAX_TIME: Duration = Duration::from_secs(24 * 60 * 60);

/// Bound on connections and shards, of which every backend gets some: a slip of the finger is not to open thousands.
const MAX_CONNECTIONS: usize = 64;

/// Whether no message may show what stands at a path of the file.
pub(super) type IsHidden<'a> = &'a dyn Fn(&[Step]) -> bool;

/// Checks the whole; `root` is where the machine's files are looked for.
pub(super) fn check(settings: &Settings, root: &Path, is_hidden: IsHidden<'_>) -> Result<Config, Vec<ConfigError>> {
    let mut check = Check { is_hidden, problems: Vec::new(), warnings: Vec::new() };
    check.receivers(settings);
    let pools = check.pools(settings);
    let routes = check.routes(settings);
    let memory_limit = check.memory(settings, root);
    let grpc = check.address(
        &["receivers", "otlp", "protocols", "grpc", "endpoint"],
        &settings.receivers.otlp.protocols.grpc.endpoint.0,
    );
    let admin = check.address(&["admin", "endpoint"], &settings.admin.endpoint.0);
    let health_check = settings.health_check.as_ref().and_then(|section| check.health_check(section));
    check.ports(&[
        (&["receivers", "otlp", "protocols", "grpc", "endpoint"], grpc),
        (&["admin", "endpoint"], admin),
        (&["health_check", "endpoint"], health_check.as_ref().map(|section| section.endpoint)),
    ]);
    if let (true, Some(grpc), Some(admin), Some(memory_limit)) = (check.problems.is_empty(), grpc, admin, memory_limit)
    {
        let mut config = Config {
            receive: receive(settings, grpc),
            pipeline: pipeline::Config { invalid_trace_id: settings.invalid_trace_id },
            pools,
            routes,
            admin: Some(admin::Config { keys: settings.admin.clone(), endpoint: admin }),
            health_check,
            memory_limit,
            worker_threads: worker_threads(settings.worker_threads),
            shutdown: settings.shutdown,
            logs: settings.telemetry.logs,
            warnings: check.warnings,
        };
        fit_messages_to_memory(&mut config);
        return Ok(config);
    }
    Err(check.problems)
}

/// The receivers, with what was checked of their keys. `endpoint` is the address of the listener.
fn receive(settings: &Settings, endpoint: SocketAddr) -> receive::Config {
    let otlp = &settings.receivers.otlp;
    let keys = otlp.protocols.grpc.clone();
    receive::Config {
        grpc: Some(receive::GrpcConfig {
            endpoint,
            include_metadata: headers::names(&keys.include_metadata).unwrap_or_default(),
            tls: keys.tls.as_ref().map(ServerTls::room),
            deadline: otlp.deadline,
            keys,
        }),
    }
}

/// A message that can never fit would be refused as "try again", for ever.
fn fit_messages_to_memory(config: &mut Config) {
    let limit = config.memory_limit;
    if let Some(grpc) = config.receive.grpc.as_mut().filter(|grpc| grpc.keys.max_recv_msg_size_mib.bytes > limit) {
        config.warnings.push(format!(
            "max_recv_msg_size_mib is {} MiB, but memory_limiter leaves {} MiB: the smaller of them holds",
            grpc.keys.max_recv_msg_size_mib.mebibytes(),
            limit / MIB,
        ));
        grpc.keys.max_recv_msg_size_mib.bytes = limit;
    }
}

fn worker_threads(threads: WorkerThreads) -> usize {
    match threads {
        WorkerThreads::Count(count) => count.get(),
        // It minds affinity and the quota of the cgroup.
        WorkerThreads::Auto => std::thread::available_parallelism().map_or(1, Into::into),
    }
}

struct Check<'a> {
    is_hidden: IsHidden<'a>,
    problems: Vec<ConfigError>,
    warnings: Vec<String>,
}

/// A path as it is complained about.
fn steps(path: &[&str]) -> Vec<Step> {
    // Of routes and hostnames the members are complained about one by one; a pool may be named "0".
    let step = |(at, name): (usize, &&str)| match name.parse() {
        Ok(index) if at > 0 && matches!(path.get(at - 1), Some(&("routes" | "hostnames"))) => Step::Index(index),
        _ => Step::Key((*name).to_owned()),
    };
    path.iter().enumerate().map(step).collect()
}

impl Check<'_> {
    /// Complains without showing any value.
    fn complain(&mut self, path: &[&str], message: impl Into<String>) {
        self.complain_of(&[path], message.into());
    }

    /// Complains about the value at the first of `paths`, in a message that shows the values at all of them.
    fn complain_of(&mut self, paths: &[&[&str]], said: impl Into<Said>) {
        let said = said.into();
        let path = steps(paths.first().copied().unwrap_or_default());
        let is_local = said.is_local;
        self.problems.push(ConfigError { place: None, path, message: self.choose(paths, said), is_local });
    }

    fn choose(&self, paths: &[&[&str]], said: Said) -> String {
        let hides = paths.iter().any(|path| (self.is_hidden)(&steps(path)));
        if hides { said.hidden } else { said.shown }
    }

    fn within<T: PartialOrd + std::fmt::Display>(&mut self, path: &[&str], value: T, least: T, most: T) {
        if !(least <= value && value <= most) {
            let message = format!("is out of range; it must be from {least} to {most}");
            self.complain_of(&[path], Said::before(value, message));
        }
    }

    fn positive(&mut self, path: &[&str], duration: Duration) {
        if duration.is_zero() {
            self.complain(path, "must be longer than 0s");
        }
    }

    fn interval(&mut self, path: &[&str], interval: Duration) {
        if interval < MIN_INTERVAL {
            self.complain(path, format!("must be at least {}ms", MIN_INTERVAL.as_millis()));
        }
    }

    fn at_most_a_day(&mut self, path: &[&str], time: Duration) {
        if time > MAX_TIME {
            self.complain(path, "is longer than 24h");
        }
    }

    /// Looks a listener's address up; IPv4 is preferred, as Go does for `localhost`.
    fn address(&mut self, path: &[&str], endpoint: &HostPort) -> Option<SocketAddr> {
        let found = (endpoint.host.as_str(), endpoint.port).to_socket_addrs().map(Iterator::collect::<Vec<_>>);
        match found {
            Ok(found) => {
                let address = found.iter().find(|address| address.is_ipv4()).or(found.first()).copied();
                if address.is_none() {
                    self.complain_of(
                        &[path],
                        Said::of(&endpoint.host, |host| format!("{host} has no address")).local(),
                    );
                }
                address
            }
            Err(error) => {
                self.complain_of(
                    &[path],
                    Said::of(&endpoint.host, |host| format!("cannot look up {host}: {error}")).local(),
                );
                None
            }
        }
    }

    fn receivers(&mut self, settings: &Settings) {
        let otlp = &settings.receivers.otlp;
        self.positive(&["receivers", "otlp", "deadline"], otlp.deadline);
        let path = |key| ["receivers", "otlp", "protocols", "grpc", key];
        let grpc = &otlp.protocols.grpc;
        self.within(&path("max_recv_msg_size_mib"), grpc.max_recv_msg_size_mib.mebibytes(), 1, MAX_MESSAGE_MIB);
        self.within(&path("max_concurrent_streams"), grpc.max_concurrent_streams, 1, u32::MAX);
        self.within(&path("max_header_list_size"), grpc.max_header_list_size.0, 1 << 10, MIB);
        self.within(&path("max_connections"), grpc.max_connections, 1, usize::MAX);
        self.positive(&path("read_header_timeout"), grpc.read_header_timeout);
        for (_, said) in headers::names(&grpc.include_metadata).err().unwrap_or_default() {
            self.complain_of(&[&path("include_metadata")], said);
        }
        if let Some(tls) = &*grpc.tls {
            self.tls(&path("tls"), tls.check());
        }
    }

    fn tls(&mut self, path: &[&str], found: Result<Vec<Complaint>, Vec<Complaint>>) {
        // With a key that does not belong to its certificate both files are named.
        let at = |key: &'static str| if key.is_empty() { path.to_vec() } else { [path, &[key]].concat() };
        match found {
            Ok(warnings) => {
                for (key, said) in warnings {
                    let at = at(key);
                    let warning = format!("{}: {}", at.join("."), self.choose(&[&at], said));
                    self.warnings.push(warning);
                }
            }
            Err(complaints) => {
                for (key, said) in complaints {
                    self.complain_of(&[&at(key), &at("cert_file")], said);
                }
            }
        }
    }

    /// Listeners may not have one port between them; 0 is any that is free.
    fn ports(&mut self, listeners: &[(&[&str], Option<SocketAddr>)]) {
        let listeners = listeners.iter().filter_map(|(path, address)| Some((*path, (*address)?)));
        let listeners: Vec<(&[&str], SocketAddr)> = listeners.filter(|(_, address)| address.port() != 0).collect();
        for (at, (path, address)) in listeners.iter().enumerate() {
            if let Some((other, _)) = listeners.iter().take(at).find(|(_, other)| collide(*address, *other)) {
                let (port, other_key) = (address.port(), other.join("."));
                let said = Said::both(
                    format!("{other_key} has port {port} already"),
                    format!("{other_key} has its port already"),
                );
                self.complain_of(&[path, other], said);
            }
        }
    }

    fn health_check(&mut self, section: &HealthCheck) -> Option<admin::health_check::Config> {
        if !section.path.starts_with('/') || section.path.contains(['?', '#', ' ']) {
            let said = Said::of(&section.path, |path| format!("{path} is not a path; write /health"));
            self.complain_of(&[&["health_check", "path"]], said);
        }
        let endpoint = self.address(&["health_check", "endpoint"], &section.endpoint.0)?;
        Some(admin::health_check::Config { keys: section.clone(), endpoint })
    }

    fn headers(&mut self, pool: &str, headers: &Headers) {
        for (name, said) in headers.room().err().unwrap_or_default() {
            let path = ["pools", pool, "headers", &name];
            self.complain_of(&[if name.is_empty() { &path[..3] } else { &path[..] }], said);
        }
    }

    fn memory(&mut self, settings: &Settings, root: &Path) -> Option<usize> {
        let limiter = &settings.memory_limiter;
        if let Some(limit) = limiter.limit_mib {
            self.within(&["memory_limiter", "limit_mib"], limit, 1, usize::MAX / MIB);
            return Some(limit.saturating_mul(MIB));
        }
        self.within(&["memory_limiter", "limit_percentage"], limiter.limit_percentage, 1, 100);
        let Some(memory) = memory::available(root) else {
            self.complain(&["memory_limiter"], "this machine does not say how much memory it has; set limit_mib");
            return None;
        };
        usize::try_from(memory / 100 * u64::from(limiter.limit_percentage)).ok()
    }

    fn pools(&mut self, settings: &Settings) -> Vec<PoolConfig> {
        if settings.pools.is_empty() {
            self.complain(
                &["pools"],
                "no pool is named; write pools: { NAME: { resolver: { dns: { hostname: collectors.example } } } }",
            );
        }
        let deadline = settings.receivers.otlp.deadline;
        settings.pools.iter().filter_map(|(name, pool)| self.pool(name, pool, deadline)).collect()
    }

    /// An attempt that may outlast its request is cut short by it, and says nothing of the backend then.
    fn timeout(&mut self, path: &[&str], timeout: Duration, deadline: Duration) {
        if timeout > deadline {
            let [timeout, deadline] = [timeout, deadline].map(GoDuration);
            let advice = "an attempt cannot outlast its request; lower timeout, or raise the deadline";
            let said = Said::both(
                format!("{timeout} is longer than receivers.otlp.deadline, {deadline}: {advice}"),
                format!("is longer than receivers.otlp.deadline: {advice}"),
            );
            self.complain_of(&[path, &["receivers", "otlp", "deadline"]], said);
        }
    }

    fn pool(&mut self, name: &str, pool: &Pool, deadline: Duration) -> Option<PoolConfig> {
        if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c.is_control()) {
            self.complain(&["pools", name], "a pool's name has no spaces and is not empty");
        }
        self.resolver(name, pool);
        let delivery = &pool.delivery;
        let path = |key| ["pools", name, key];
        self.positive(&path("timeout"), delivery.timeout);
        self.timeout(&path("timeout"), delivery.timeout, deadline);
        self.within(&path("max_request_size_mib"), delivery.max_request_size_mib.mebibytes(), 1, MAX_MESSAGE_MIB);
        self.within(&path("connections"), delivery.connections, 1, MAX_CONNECTIONS);
        self.within(&path("shards"), delivery.shards, 1, MAX_CONNECTIONS);
        let level = ["pools", name, "compression_params", "level"];
        match delivery.compression {
            Compression::None => {}
            Compression::Gzip => self.within(&level, delivery.compression_params.level, 1, 9),
            Compression::Zstd => self.within(&level, delivery.compression_params.level, 1, 22),
        }
        if delivery.sending_queue.queue_size.0 < delivery.max_request_size_mib.bytes {
            let (size, least) = (delivery.sending_queue.queue_size, delivery.max_request_size_mib.mebibytes());
            let said = Said::both(
                format!("{size} is less than one call may hold (max_request_size_mib: {least})"),
                "is less than one call may hold (max_request_size_mib)",
            );
            let at: [&[&str]; 2] = [&["pools", name, "sending_queue", "queue_size"], &path("max_request_size_mib")];
            self.complain_of(&at, said);
        }
        let path = |key| ["pools", name, "retry_on_failure", key];
        let retry = &delivery.retry_on_failure;
        self.positive(&path("initial_interval"), retry.initial_interval);
        if retry.max_interval < retry.initial_interval {
            let said = less(retry.max_interval, "initial_interval", retry.initial_interval);
            self.complain_of(&[&path("max_interval"), &path("initial_interval")], said);
        }
        self.within(&path("multiplier"), retry.multiplier, 1.0, 10.0);
        self.within(&path("randomization_factor"), retry.randomization_factor, 0.0, 1.0);
        self.within(&path("budget_percent"), retry.budget_percent, 0, 1000);
        self.headers(name, &pool.headers);
        self.outlier_detection(name, pool);
        if let Some(tls) = &*pool.tls {
            self.tls(&["pools", name, "tls"], tls.check(&pool.resolver));
        }
        Some(PoolConfig {
            name: name.to_owned(),
            discovery: discovery::Config::of(&pool.resolver)?,
            membership: pool.placement.clone(),
            dispatch: pool.delivery.clone().into(),
            headers: pool.headers.room().unwrap_or_default(),
            tls: pool.tls.as_ref().and_then(|tls| tls.room(&pool.resolver)),
        })
    }

    fn outlier_detection(&mut self, name: &str, pool: &Pool) {
        let path = |key| ["pools", name, "outlier_detection", key];
        let detection = &pool.placement.outlier_detection;
        self.within(&path("consecutive_failures"), detection.consecutive_failures, 1, u32::MAX);
        self.interval(&path("base_ejection_time"), detection.base_ejection_time);
        if detection.max_ejection_time < detection.base_ejection_time {
            let said = less(detection.max_ejection_time, "base_ejection_time", detection.base_ejection_time);
            self.complain_of(&[&path("max_ejection_time"), &path("base_ejection_time")], said);
        }
        for (key, time) in
            [("max_ejection_time", detection.max_ejection_time), ("base_ejection_time", detection.base_ejection_time)]
        {
            self.at_most_a_day(&path(key), time);
        }
        self.within(&path("max_ejection_percent"), detection.max_ejection_percent, 0, 100);
        self.at_most_a_day(&["pools", name, "hold_down"], pool.placement.hold_down);
    }

    fn resolver(&mut self, name: &str, pool: &Pool) {
        let path = |section, key| ["pools", name, "resolver", section, key];
        match (&pool.resolver.r#static, &pool.resolver.dns) {
            (Some(list), None) => {
                if list.hostnames.is_empty() {
                    self.complain(
                        &path("static", "hostnames"),
                        "names no backend; write hostnames: [\"collector-0:4317\"]",
                    );
                }
                let mut seen = BTreeSet::new();
                for (index, backend) in list.hostnames.iter().enumerate() {
                    let list = path("static", "hostnames");
                    match discovery::HostPort::parse(&backend.to_string()) {
                        Ok(entry) if seen.insert(entry.identity()) => {}
                        Ok(_) => {
                            let said = Said::both(format!("{backend} is listed twice"), "a backend is listed twice");
                            self.complain_of(&[&list], said);
                        }
                        Err(error) => {
                            let said = Said::both(format!("{backend}: {error}"), error.to_string());
                            self.complain_of(&[&[&list[..], &[&index.to_string()]].concat(), &list], said);
                        }
                    }
                }
                self.interval(&path("static", "interval"), list.interval);
                self.positive(&path("static", "timeout"), list.timeout);
            }
            (None, Some(dns)) => {
                if dns.hostname.is_empty() {
                    self.complain(&path("dns", "hostname"), "is missing; write hostname: collectors.example");
                } else if dns.hostname.contains([':', '/', ' ']) {
                    let said = Said::of(&dns.hostname, |name| {
                        format!("{name} is not a host name; the port has a key of its own, port")
                    });
                    self.complain_of(&[&path("dns", "hostname")], said);
                }
                self.within(&path("dns", "port"), dns.port, 1, u16::MAX);
                self.interval(&path("dns", "interval"), dns.interval);
                self.positive(&path("dns", "timeout"), dns.timeout);
            }
            (None, None) => self.complain(&["pools", name, "resolver"], "is missing; write static or dns"),
            (Some(_), Some(_)) => {
                self.complain(&["pools", name, "resolver"], "has both static and dns; a pool has one resolver");
            }
        }
    }

    fn routes(&mut self, settings: &Settings) -> Vec<RouteConfig> {
        if settings.routes.is_empty() {
            self.complain(
                &["routes"],
                "no route is defined; write routes: [{ signals: [traces], routing_key: trace_id, pool: NAME }]",
            );
        }
        let mut routed = BTreeSet::new();
        settings
            .routes
            .iter()
            .enumerate()
            .map(|(index, route)| self.route(settings, index, route, &mut routed))
            .collect()
    }

    fn route(
        &mut self,
        settings: &Settings,
        index: usize,
        route: &Route,
        routed: &mut BTreeSet<Signal>,
    ) -> RouteConfig {
        let index = index.to_string();
        if route.routing_key != RoutingKey::TraceId {
            let said =
                Said::of(route.routing_key.as_str(), |key| format!("{key} is not supported yet; write trace_id"));
            self.complain_of(&[&["routes", &index, "routing_key"]], said);
        }
        let known: Vec<&str> = settings.pools.keys().map(String::as_str).collect();
        if route.pool.is_empty() {
            self.complain(&["routes", &index], format!("\"pool\" is missing; known pools: {}", known.join(", ")));
        } else if !settings.pools.contains_key(&route.pool) {
            let hidden = format!("is none of the known pools: {}", known.join(", "));
            let said = Said::both(de::unknown("pool", &route.pool, &known), hidden);
            self.complain_of(&[&["routes", &index, "pool"]], said);
        }
        if route.signals.is_empty() {
            self.complain(&["routes", &index, "signals"], "is empty; write signals: [traces]");
        }
        for signal in &route.signals {
            if signal.record_fields().id == 0 {
                let message = format!(
                    "{} have no trace ID; routing them is not supported yet, traces and logs are",
                    signal.as_str()
                );
                self.complain(&["routes", &index, "signals"], message);
            }
            if !routed.insert(*signal) {
                self.complain(&["routes", &index, "signals"], format!("{} are routed already", signal.as_str()));
            }
        }
        RouteConfig { signals: route.signals.clone(), pool: route.pool.clone() }
    }
}

fn less(value: Duration, least_key: &str, least: Duration) -> Said {
    let [value, least] = [value, least].map(GoDuration);
    Said::both(format!("{value} is less than {least_key}, {least}"), format!("is less than {least_key}"))
}

/// Whether only one of two listeners can have its address. Whether `[::]` takes IPv4 too is the system's choice.
fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let any = one.ip().is_unspecified() || other.ip().is_unspecified();
    one == other || (any && one.port() == other.port() && one.is_ipv4() == other.is_ipv4())
}
