//! `service`, `extensions`, `processors`: which signals go through load balancing, and what the process is told of itself.

use super::{
    Cost, Note,
    origin::Origins,
    section::{Section, kind_of, text_of, texts_of},
    yaml::Yaml,
};
use crate::config::tree::{Entry, Value};

/// Processors that nobody misses here, and why.
const NEEDLESS: [(&str, &str); 2] = [
    ("batch", "what waits for one backend is merged anyway"),
    ("groupbytrace", "a trace's spans reach one backend without being held"),
];

/// What `service` says, and what comes of it.
pub(super) struct Service {
    pipelines: Vec<Pipeline>,
    extensions: Vec<String>,
    /// `routes` of our file.
    pub(super) routes: Vec<Yaml>,
    /// `admin` of our file.
    pub(super) admin: Yaml,
    /// `telemetry` of our file.
    pub(super) telemetry: Yaml,
    /// Where what is written comes from.
    pub(super) origins: Origins,
    routed: Vec<String>,
}

/// A pipeline that leads to a load-balancing exporter.
struct Pipeline {
    signal: String,
    receivers: Vec<String>,
    processors: Vec<String>,
    exporters: Vec<String>,
}

impl Service {
    /// Reads the section `service`; a file without one is taken for a piece that means traces.
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
            pipelines.costs(Cost::Data);
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

    /// Whether a pipeline that leads to load balancing exports there too.
    pub(super) fn exports_to(&self, exporter: &str) -> bool {
        self.pipelines.iter().any(|pipeline| pipeline.exporters.iter().any(|name| name == exporter))
    }

    /// Signals that go to `exporter`; a file without pipelines means traces.
    pub(super) fn signals_to(&self, exporter: &str) -> Vec<String> {
        if self.pipelines.is_empty() {
            return vec!["traces".to_owned()];
        }
        let to = self.pipelines.iter().filter(|pipeline| pipeline.exporters.iter().any(|name| name == exporter));
        let mut signals: Vec<String> = to.map(|pipeline| pipeline.signal.clone()).collect();
        signals.dedup();
        signals
    }

    /// Whether any pipeline takes from `receiver`.
    pub(super) fn takes_from(&self, receiver: &str) -> bool {
        self.pipelines.is_empty() || self.pipelines.iter().any(|one| one.receivers.iter().any(|name| name == receiver))
    }

    /// Adds a route, unless the signal has one: says whether it was added.
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

    /// `memory_limiter` of our file, from the processor of the first pipeline that has one.
    pub(super) fn memory_limiter(&mut self, root: &mut Section<'_>, notes: &mut Vec<Note>) -> Yaml {
        let Some(mut processors) = root.section("processors") else { return Yaml::Map(Vec::new()) };
        let mut limiter = Yaml::Map(Vec::new());
        for (name, mut section) in processors.components(&["memory_limiter"]) {
            if self.is_used(name) && limiter.is_empty() {
                self.origins.add(&["memory_limiter"], &["processors", name]);
                limiter = Yaml::map([
                    ("limit_mib", section.pass("limit_mib")),
                    ("limit_percentage", section.pass("limit_percentage")),
                ]);
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

    /// `health_check` of our file, from the extension of that name; other extensions are named.
    pub(super) fn health_check(&mut self, root: &mut Section<'_>, notes: &mut Vec<Note>) -> Yaml {
        let Some(mut extensions) = root.section("extensions") else { return Yaml::Map(Vec::new()) };
        let mut out = Yaml::Map(Vec::new());
        for (name, mut section) in extensions.components(&["health_check"]) {
            if self.extensions.iter().any(|extension| extension == name) && out.is_empty() {
                self.origins.add(&["health_check"], &["extensions", name]);
                // As the Collector has it when nothing is written.
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

/// Whether a component's name is that of a load-balancing exporter; it was renamed in v0.153.
pub(super) fn is_load_balancing(name: &str) -> bool {
    exporter_kinds().contains(&kind_of(name))
}

/// Both names of the exporter's type.
pub(super) fn exporter_kinds() -> [&'static str; 2] {
    ["loadbalancing", "load_balancing"]
}

fn endpoint(address: String) -> Yaml {
    Yaml::map([("endpoint", Yaml::text(with_host(address)))])
}

/// An address without a host is all interfaces to the Collector; ours wants that written.
pub(super) fn with_host(address: String) -> String {
    if address.starts_with(':') { format!("0.0.0.0{address}") } else { address }
}

/// `readers: [{ pull: { exporter: { prometheus: { host, port } } } }]`
fn prometheus_address(readers: &Entry) -> Option<String> {
    let Value::List(readers) = &readers.node.value else { return None };
    readers.iter().find_map(|reader| {
        let mut prometheus = Section::root(reader).section("pull")?.section("exporter")?.section("prometheus")?;
        let host = prometheus.text("host")?;
        let port = prometheus.take("port").and_then(|entry| text_of(&entry.node))?;
        Some(if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") })
    })
}
