//! Converts `service`, `extensions` and `processors`: which signals are load-balanced, and the telemetry and health
//! check of the process.

use super::{
    Cost, Note,
    origin::Origins,
    section::{Section, kind_of, text_of, texts_of},
    yaml::Yaml,
};
use crate::config::node::{Entry, Value};

/// Processors that are not needed here, and the reasons.
const NEEDLESS: [(&str, &str); 2] = [
    ("batch", "what waits for one backend is merged anyway"),
    ("groupbytrace", "a trace's spans reach one backend without being held"),
];

/// The content of `service`, and the sections of our configuration that are made from it.
pub(super) struct Service {
    pipelines: Vec<Pipeline>,
    extensions: Vec<String>,
    /// `routes` of our file.
    pub(super) routes: Vec<Yaml>,
    /// `admin` of our file.
    pub(super) admin: Yaml,
    /// `telemetry` of our file.
    pub(super) telemetry: Yaml,
    /// Origins of the sections that were written so far.
    pub(super) origins: Origins,
    routed: Vec<String>,
}

/// A pipeline with a load-balancing exporter.
struct Pipeline {
    signal: String,
    receivers: Vec<String>,
    processors: Vec<String>,
    exporters: Vec<String>,
}

impl Service {
    /// Reads the section `service`. A file without it is taken as a fragment whose exporters receive traces.
    pub(super) fn read(root: &mut Section<'_>, notes: &mut Vec<Note>) -> Self {
        let none = || Yaml::Map(Vec::new());
        let mut this = Self {
            pipelines: Vec::new(),
            extensions: Vec::new(),
            routes: Vec::new(),
            admin: none(),
            telemetry: none(),
            origins: Origins::default(),
            routed: Vec::new(),
        };
        this.origins.add(&["telemetry"], &["service", "telemetry"]);
        this.origins.add(&["admin"], &["service", "telemetry", "metrics"]);
        let Some(mut service) = root.section("service") else { return this };
        if let Some(mut pipelines) = service.section("pipelines") {
            for signal in ["traces", "metrics", "logs", "profiles"] {
                for (_, mut pipeline) in pipelines.components(&[signal]) {
                    let mut list = |key| pipeline.take(key).map(|entry| texts_of(&entry.node)).unwrap_or_default();
                    let parts = Pipeline {
                        signal: signal.to_owned(),
                        receivers: list("receivers"),
                        processors: list("processors"),
                        exporters: list("exporters"),
                    };
                    if parts.exporters.iter().any(|name| is_load_balancing(name)) {
                        this.pipelines.push(parts);
                    } else {
                        let message = "leads to no load-balancing exporter; left out";
                        notes.push(pipeline.note(message).costing(Cost::Data));
                    }
                    pipeline.rest(notes);
                }
            }
            pipelines.set_cost(Cost::Data);
            pipelines.rest(notes);
        }
        this.extensions = service.take("extensions").map(|entry| texts_of(&entry.node)).unwrap_or_default();
        if let Some(mut telemetry) = service.section("telemetry") {
            this.read_telemetry(&mut telemetry, notes);
            telemetry.rest(notes);
        }
        service.rest(notes);
        this
    }

    /// Returns whether a pipeline with a load-balancing exporter also exports to `exporter`.
    pub(super) fn exports_to(&self, exporter: &str) -> bool {
        self.pipelines.iter().any(|pipeline| pipeline.exporters.iter().any(|name| name == exporter))
    }

    /// Returns the signals that `exporter` receives; only traces if the file has no pipelines.
    pub(super) fn signals_to(&self, exporter: &str) -> Vec<String> {
        if self.pipelines.is_empty() {
            return vec!["traces".to_owned()];
        }
        let to = self.pipelines.iter().filter(|pipeline| pipeline.exporters.iter().any(|name| name == exporter));
        let mut signals: Vec<String> = to.map(|pipeline| pipeline.signal.clone()).collect();
        signals.dedup();
        signals
    }

    /// Returns whether any pipeline uses `receiver`.
    pub(super) fn takes_from(&self, receiver: &str) -> bool {
        self.pipelines.is_empty() || self.pipelines.iter().any(|one| one.receivers.iter().any(|name| name == receiver))
    }

    /// Adds a route unless the signal has one already; returns whether it was added.
    pub(super) fn route(&mut self, signal: &str, pool: &str) -> bool {
        if self.routed.iter().any(|routed| routed == signal) {
            return false;
        }
        self.routed.push(signal.to_owned());
        self.routes.push(Yaml::map([
            ("signals", Yaml::List(vec![Yaml::text(signal)])),
            ("routing_key", Yaml::text("trace_id")),
            ("pool", Yaml::text(pool)),
        ]));
        true
    }

    /// Returns `memory_limiter` of our configuration, from the first processor of that type that a pipeline uses.
    pub(super) fn memory_limiter(&mut self, root: &mut Section<'_>, notes: &mut Vec<Note>) -> Yaml {
        let Some(mut processors) = root.section("processors") else { return Yaml::Map(Vec::new()) };
        let mut limiter = Yaml::Map(Vec::new());
        for (name, mut section) in processors.components(&["memory_limiter"]) {
            if self.is_used(name) && limiter.is_empty() {
                self.origins.add(&["memory_limiter"], &["processors", name]);
                limiter = Yaml::map(["limit_mib", "limit_percentage"].map(|key| {
                    let entry = section.take(key);
                    let message = "counts the bytes that requests hold, not the process's whole memory as in the Collector; \
                                   leave a quarter of the container's memory besides";
                    notes.extend(entry.map(|entry| section.note_of(entry, message)));
                    (key, entry.map_or(Yaml::Scalar(Value::Null), |entry| Yaml::from(&entry.node)))
                }));
                let reason = "bytes are counted as they come, not by looking at the heap now and then";
                section.leave(
                    &[
                        ("check_interval", reason),
                        ("spike_limit_mib", reason),
                        ("spike_limit_percentage", reason),
                        ("min_gc_interval_when_hard_limited", reason),
                        ("min_gc_interval_when_soft_limited", reason),
                    ],
                    notes,
                );
                section.rest(notes);
            } else {
                notes.push(section.note("is left out: there is one memory_limiter for all"));
            }
        }
        for (kind, reason) in NEEDLESS {
            for (_, section) in processors.components(&[kind]) {
                notes.push(section.note(format!("is left out, and is not needed: {reason}")));
            }
        }
        for (name, section) in processors.others() {
            let cost = if self.is_used(name) { Cost::Data } else { Cost::Setting };
            notes.push(section.note("is left out: Spanring changes no data; let the backends do it").costing(cost));
        }
        limiter
    }

    fn is_used(&self, processor: &str) -> bool {
        self.pipelines.is_empty()
            || self.pipelines.iter().any(|one| one.processors.iter().any(|name| name == processor))
    }

    /// Returns `health_check` of our configuration, from the extension of that type; reports all other extensions.
    pub(super) fn health_check(&mut self, root: &mut Section<'_>, notes: &mut Vec<Note>) -> Yaml {
        let Some(mut extensions) = root.section("extensions") else { return Yaml::Map(Vec::new()) };
        let mut out = Yaml::Map(Vec::new());
        for (name, mut section) in extensions.components(&["health_check"]) {
            if self.extensions.iter().any(|extension| extension == name) && out.is_empty() {
                self.origins.add(&["health_check"], &["extensions", name]);
                // The Collector's default endpoint.
                let address = section.text("endpoint").map_or_else(|| "localhost:13133".to_owned(), with_host);
                out = Yaml::map([("endpoint", Yaml::text(address)), ("path", section.pass("path"))]);
                section.rest(notes);
            } else {
                notes.push(section.note("is in no list of extensions; left out"));
            }
        }
        extensions.rest(notes);
        out
    }

    fn read_telemetry(&mut self, telemetry: &mut Section<'_>, notes: &mut Vec<Note>) {
        if let Some(mut logs) = telemetry.section("logs") {
            let level = logs.text("level").map(|level| level.to_lowercase());
            let encoding = logs.pass("encoding");
            let level = level.map_or(Yaml::Scalar(Value::Null), Yaml::text);
            let logs_out = Yaml::map([("level", level), ("encoding", encoding)]);
            self.telemetry = Yaml::map([("logs", logs_out)]);
            logs.rest(notes);
        }
        let Some(mut metrics) = telemetry.section("metrics") else { return };
        if let Some(address) = metrics.text("address") {
            self.admin = endpoint(address);
        }
        if let Some(readers) = metrics.take("readers") {
            match prometheus_address(readers) {
                Some(address) => self.admin = endpoint(address),
                None => notes.push(metrics.note_of(readers, "is left out: metrics are a page at admin.endpoint")),
            }
        }
        metrics.leave(&[("level", "all metrics are always there")], notes);
        metrics.rest(notes);
    }
}

/// Returns whether a component is a load-balancing exporter. Its type was renamed in v0.153.
pub(super) fn is_load_balancing(name: &str) -> bool {
    exporter_kinds().contains(&kind_of(name))
}

/// Returns both names of the exporter's type.
pub(super) fn exporter_kinds() -> [&'static str; 2] {
    ["loadbalancing", "load_balancing"]
}

fn endpoint(address: String) -> Yaml {
    Yaml::map([("endpoint", Yaml::text(with_host(address)))])
}

/// Adds a host to an address without one: the Collector takes it for all interfaces, we require it.
pub(super) fn with_host(address: String) -> String {
    if address.starts_with(':') { format!("0.0.0.0{address}") } else { address }
}

/// Finds the address in `readers: [{ pull: { exporter: { prometheus: { host, port } } } }]`.
fn prometheus_address(readers: &Entry) -> Option<String> {
    let Value::List(readers) = &readers.node.value else { return None };
    readers.iter().find_map(|reader| {
        let mut prometheus = Section::root(reader).section("pull")?.section("exporter")?.section("prometheus")?;
        let host = prometheus.text("host")?;
        let port = prometheus.take("port").and_then(|entry| text_of(&entry.node))?;
        Some(if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") })
    })
}
