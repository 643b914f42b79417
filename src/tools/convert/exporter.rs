//! Converts `exporters`: each load-balancing exporter becomes a pool, with a route for each signal that the exporter
//! receives.

use std::time::Duration;

use super::{
    Cost, Note,
    section::{Section, shown, text_of, texts_of},
    service::{Service, exporter_kinds},
    yaml::Yaml,
};
use crate::{
    config::{
        headers,
        node::{Entry, Node, Value},
    },
    settings::{Otlp, addresses::Backend, values::GoDuration},
};

/// Keys of the DNS resolver that have the same meaning here.
const DNS: [&str; 4] = ["hostname", "port", "interval", "timeout"];

/// Keys of the client's TLS that are the same here.
const TLS: [&str; 7] = [
    "ca_file",
    "cert_file",
    "key_file",
    "server_name_override",
    "insecure_skip_verify",
    "min_version",
    "reload_interval",
];

/// Reason for leaving out the exporter's own queue and retries.
const ACKNOWLEDGED: &str = "a request is acknowledged when its backends have it, and tried again elsewhere until then";

/// Returns `pools` of our configuration; adds the routes to `service`.
pub(super) fn pools(root: &mut Section<'_>, service: &mut Service, notes: &mut Vec<Note>) -> Vec<(String, Yaml)> {
    let mut pools: Vec<(String, Yaml)> = Vec::new();
    let Some(mut exporters) = root.section("exporters") else { return pools };
    for (name, mut exporter) in exporters.components(&exporter_kinds()) {
        let suffix = name.split_once('/').map_or("default", |(_, suffix)| suffix);
        let is_taken = pools.iter().any(|(pool, _)| pool == suffix);
        let pool = if is_taken { name.replace('/', "_") } else { suffix.to_owned() };
        let pool = pool.replace(|c: char| c.is_whitespace() || c.is_control(), "_");
        if !exporter.has("resolver") {
            notes.push(exporter.note("has no resolver; left out").costing(Cost::Data));
        } else if route(&mut exporter, name, &pool, service, notes) {
            service.origins.add(&["pools", &pool], &["exporters", name, "protocol", "otlp"]);
            service.origins.add(&["pools", &pool, "resolver"], &["exporters", name, "resolver"]);
            let mut record_origin = |key: &str, theirs: [&str; 2]| {
                let [section, name_of_key] = theirs;
                let theirs = ["exporters", name, "resolver", section, name_of_key];
                service.origins.add(&["pools", &pool, "resolver", "dns", key], &theirs);
            };
            let section = self::pool(&mut exporter, &mut record_origin, notes);
            exporter.rest(notes);
            pools.push((pool, section));
        }
    }
    for (name, section) in exporters.others() {
        let cost = if service.exports_to(name) { Cost::Data } else { Cost::Setting };
        notes.push(section.note("is left out: it is no load-balancing exporter").costing(cost));
    }
    pools
}

/// Adds the routes to the pool of an exporter; returns whether there is one.
fn route(exporter: &mut Section<'_>, name: &str, pool: &str, service: &mut Service, notes: &mut Vec<Note>) -> bool {
    let key = exporter.take("routing_key");
    let written = key.and_then(|key| texts_of(&key.node).pop()).unwrap_or_default();
    let signals = service.signals_to(name);
    if signals.is_empty() {
        notes.push(exporter.note("is in no pipeline; left out"));
    }
    let mut is_routed = false;
    for signal in signals {
        // The exporter's default depends on the signal.
        let by = match (written.as_str(), signal.as_str()) {
            ("", "metrics") => "service",
            ("", _) => "traceID",
            (written, _) => written,
        };
        let say = |message: String| match key {
            Some(key) => exporter.note_of(key, message),
            None => exporter.note(message),
        };
        if by != "traceID" {
            let by = key.filter(|_| !written.is_empty()).map_or(by.to_owned(), |key| shown(&key.node));
            let message = format!("{signal} by {by} cannot be routed yet, only by trace ID; left out");
            notes.push(say(message).costing(Cost::Data));
        } else if signal != "traces" && signal != "logs" {
            notes.push(say(format!("{signal} have no trace ID; left out")).costing(Cost::Data));
        } else if service.route(&signal, pool) {
            is_routed = true;
            if signal == "logs" && written.is_empty() {
                let message = "logs go by trace ID; newer Collectors take the service's name by default";
                notes.push(say(message.to_owned()).costing(Cost::Routing));
            }
        } else {
            let message = format!("{signal} go to one pool only, that of the exporter before; left out");
            notes.push(exporter.note(message).costing(Cost::Data));
        }
    }
    is_routed
}

/// Called with a key of `resolver.dns`, and the section and key of another resolver that it was made from.
type RecordOrigin<'a> = &'a mut dyn FnMut(&str, [&str; 2]);

fn pool(exporter: &mut Section<'_>, record_origin: RecordOrigin<'_>, notes: &mut Vec<Note>) -> Yaml {
    let resolver = exporter.section("resolver").map_or(Yaml::Map(Vec::new()), |mut resolver| {
        let out = self::resolver(&mut resolver, record_origin, notes);
        resolver.rest(notes);
        out
    });
    exporter.leave(
        &[
            ("timeout", "receivers.otlp.deadline bounds the whole of a request"),
            ("retry_on_failure", ACKNOWLEDGED),
            ("sending_queue", ACKNOWLEDGED),
        ],
        notes,
    );
    // Routing by attributes is refused above, so nothing else would use this key.
    exporter.leave(&[("routing_attributes", "routes go by trace ID")], notes);
    let mut out = vec![("resolver".to_owned(), resolver)];
    let mut protocol = exporter.section("protocol");
    let mut otlp = protocol.as_mut().and_then(|protocol| protocol.section("otlp"));
    out.extend(calls(otlp.as_mut(), notes));
    if let Some(otlp) = otlp {
        otlp.rest(notes);
    }
    if let Some(protocol) = protocol {
        protocol.rest(notes);
    }
    out.retain(|(_, value)| !value.is_empty());
    Yaml::Map(out)
}

/// Converts `protocol.otlp`, the settings of the exporter for each backend.
fn calls(otlp: Option<&mut Section<'_>>, notes: &mut Vec<Note>) -> Vec<(String, Yaml)> {
    // The exporter compresses with gzip unless configured otherwise.
    let gzip = || Yaml::text("gzip");
    let Some(otlp) = otlp else {
        return vec![("tls".to_owned(), encrypted()), ("compression".to_owned(), gzip())];
    };
    let mut out = vec![("tls".to_owned(), tls(otlp, notes))];
    let compression = otlp.take("compression");
    let written = compression.and_then(|entry| texts_of(&entry.node).pop());
    let taken = match (written.as_deref(), compression) {
        (None, _) => gzip(),
        (Some("" | "none"), _) => Yaml::text("none"),
        (Some(name @ ("gzip" | "zstd")), _) => Yaml::text(name),
        (Some(name), Some(entry)) if !name.contains('$') => {
            notes.push(otlp.note_of(entry, format!("\"{name}\" is not known here; gzip takes its place")));
            gzip()
        }
        (Some(reference), _) => Yaml::text(reference),
    };
    out.push(("compression".to_owned(), taken));
    out.push(("compression_params".to_owned(), otlp.pass("compression_params")));
    out.push(("timeout".to_owned(), timeout(otlp, notes)));
    out.push(("headers".to_owned(), headers(otlp, notes)));
    out.push(("sending_queue".to_owned(), queue(otlp, notes)));
    out.push(("retry_on_failure".to_owned(), retry(otlp, notes)));
    // The exporter replaces this placeholder by the address of each backend.
    otlp.ignore(&["endpoint"]);
    otlp.leave(&[("auth", "write what it sends under headers")], notes);
    let connections = "connections are Spanring's own";
    otlp.leave(
        &[
            ("keepalive", "a PING goes out only while a call is unanswered"),
            ("balancer_name", connections),
            ("read_buffer_size", connections),
            ("write_buffer_size", connections),
            ("wait_for_ready", connections),
        ],
        notes,
    );
    out
}

/// A `timeout` that is shorter than this gets a finding, since a backend that is merely slow may be ejected.
const SHORT_TIMEOUT: GoDuration = GoDuration(Duration::from_secs(5));

/// Converts `timeout`. An attempt must not last longer than its request.
fn timeout(otlp: &mut Section<'_>, notes: &mut Vec<Note>) -> Yaml {
    let Some(entry) = otlp.take("timeout") else { return Yaml::Scalar(Value::Null) };
    let deadline = GoDuration(Otlp::default().deadline);
    let written = texts_of(&entry.node).pop().and_then(|text| text.parse::<GoDuration>().ok());
    if written.is_none_or(|written| written <= deadline && !written.0.is_zero()) {
        if written.is_some_and(|written| written < SHORT_TIMEOUT) {
            let message = "also decides when a backend is ejected: after twice this time without an answer to any call. Raise \
                           it where backends may be slower";
            notes.push(otlp.note_of(entry, message));
        }
        return Yaml::from(&entry.node);
    }
    let message = format!(
        "becomes {deadline}, since an attempt cannot outlast its request (receivers.otlp.deadline); where clients wait \
         longer than 10s, raise both"
    );
    notes.push(otlp.note_of(entry, message));
    Yaml::text(deadline.to_string())
}

/// Converts `headers`, which is a map or a list of names and values. Findings never contain the values.
fn headers(otlp: &mut Section<'_>, notes: &mut Vec<Note>) -> Yaml {
    let Some(entry) = otlp.take("headers") else { return Yaml::Scalar(Value::Null) };
    let of_pair = |node: &Node| {
        let mut pair = Section::root(node);
        Some((pair.text("name")?, pair.take("value")?.node.clone()))
    };
    let (written, pairs): (usize, Vec<(String, Node)>) = match &entry.node.value {
        Value::Map(entries) => (entries.len(), entries.iter().map(|one| (one.key.clone(), one.node.clone())).collect()),
        Value::List(items) => (items.len(), items.iter().filter_map(of_pair).collect()),
        _ => (1, Vec::new()),
    };
    let mut taken: Vec<(String, Yaml)> = Vec::new();
    for (name, node) in pairs {
        let Some(value) = texts_of(&node).pop().filter(|_| !matches!(node.value, Value::List(_))) else { continue };
        let is_there = taken.iter().any(|(known, _)| known.eq_ignore_ascii_case(&name));
        // The value of a reference is not known here, so it cannot be checked.
        let tried = if value.contains('$') { String::new() } else { value.clone() };
        if !is_there && headers::can_send(&name, tried) {
            taken.push((name, Yaml::text(value)));
        }
    }
    taken.truncate(headers::MAX_NAMES);
    if taken.len() < written {
        let missing = written - taken.len();
        let message = format!(
            "{missing} of {written} headers are left out: twice there, reserved by HTTP or gRPC, above {}, or with \
             characters that no header may have",
            headers::MAX_NAMES
        );
        notes.push(otlp.note_of(entry, message).costing(Cost::Data));
    }
    Yaml::Map(taken)
}

/// Converts `tls`. The exporter uses TLS unless it is turned off; here a pool without a `tls` section is plaintext.
fn tls(otlp: &mut Section<'_>, notes: &mut Vec<Note>) -> Yaml {
    let Some(mut tls) = otlp.section("tls") else { return encrypted() };
    // A missing key may make backends unreachable.
    tls.set_cost(Cost::Data);
    let insecure = tls.take("insecure");
    let written = insecure.and_then(|entry| text_of(&entry.node));
    let is_plaintext = written.as_deref() == Some("true");
    if !is_plaintext {
        identity(&mut tls, notes);
    }
    let mut out = tls.pass_all(&TLS);
    tls.rest(notes);
    match written.as_deref() {
        _ if is_plaintext => Yaml::Map(Vec::new()),
        Some("false") if !out.is_empty() => Yaml::Map(out),
        None if insecure.is_none() && !out.is_empty() => Yaml::Map(out),
        _ => {
            let written = insecure.map_or(Yaml::Scalar(Value::Bool(false)), |entry| Yaml::from(&entry.node));
            out.insert(0, ("insecure".to_owned(), written));
            Yaml::Map(out)
        }
    }
}

/// Removes a certificate whose key is not in a file, and a key whose certificate is not in a file. The Collector also
/// takes either of them as text, which is not supported here.
fn identity(tls: &mut Section<'_>, notes: &mut Vec<Note>) {
    let missing = match (tls.is_set("cert_file"), tls.is_set("key_file")) {
        (true, false) => "key_file",
        (false, true) => "cert_file",
        _ => return,
    };
    let reason = format!(
        "{missing} is missing, and both are read from files; NO CLIENT CERTIFICATE IS SHOWN, so backends that ask for one \
         refuse the connection"
    );
    tls.leave(&[("cert_file", &reason), ("key_file", &reason)], notes);
}

/// Returns a `tls` section that only says that TLS is used.
fn encrypted() -> Yaml {
    Yaml::map([("insecure", Yaml::Scalar(Value::Bool(false)))])
}

fn queue(otlp: &mut Section<'_>, notes: &mut Vec<Note>) -> Yaml {
    let Some(mut queue) = otlp.section("sending_queue") else { return Yaml::Map(Vec::new()) };
    let sizer = queue.text("sizer").unwrap_or_else(|| "requests".to_owned());
    let size = queue.take("queue_size");
    let mut out = Yaml::Map(Vec::new());
    if let Some(size) = size {
        if sizer == "bytes" {
            out = Yaml::map([("queue_size", Yaml::from(&size.node))]);
        } else {
            let message = "counts no bytes; here a queue counts bytes, 16MiB a backend unless said otherwise";
            notes.push(queue.note_of(size, message));
        }
    }
    queue.ignore(&["enabled"]);
    queue.leave(
        &[
            ("num_consumers", "a backend gets up to 32 calls at once"),
            ("storage", ACKNOWLEDGED),
            ("batch", "what waits for one backend is merged anyway"),
            ("block_on_overflow", "a full queue refuses the whole request, to be sent again"),
            ("wait_for_result", ACKNOWLEDGED),
        ],
        notes,
    );
    queue.rest(notes);
    out
}

fn retry(otlp: &mut Section<'_>, notes: &mut Vec<Note>) -> Yaml {
    let Some(mut retry) = otlp.section("retry_on_failure") else { return Yaml::Map(Vec::new()) };
    let mut out = Vec::new();
    for key in ["initial_interval", "max_interval"] {
        let Some(entry) = retry.take(key) else { continue };
        if is_at_most_a_second(entry) {
            out.push((key.to_owned(), Yaml::from(&entry.node)));
        } else {
            let message = "is too long for retries inside a request's deadline (receivers.otlp.deadline); left out";
            notes.push(retry.note_of(entry, message));
        }
    }
    for key in ["multiplier", "randomization_factor"] {
        out.push((key.to_owned(), retry.pass(key)));
    }
    if let Some(entry) = retry.take("enabled")
        && texts_of(&entry.node) == ["false"]
    {
        notes.push(retry.note_of(entry, "retries can't be switched off; budget_percent bounds them"));
    }
    retry.leave(&[("max_elapsed_time", "receivers.otlp.deadline is when retries end")], notes);
    retry.rest(notes);
    out.retain(|(_, value)| !value.is_empty());
    Yaml::Map(out)
}

fn is_at_most_a_second(entry: &Entry) -> bool {
    let text = texts_of(&entry.node).pop().unwrap_or_default();
    text.parse::<GoDuration>().is_ok_and(|duration| duration.0.as_secs_f64() <= 1.0)
}

fn resolver(resolver: &mut Section<'_>, record_origin: RecordOrigin<'_>, notes: &mut Vec<Note>) -> Yaml {
    // Keep an incomplete section, so that the check can report what it lacks.
    let of = |kind: &str, section| Yaml::Map(vec![(kind.to_owned(), section)]);
    if let Some(mut list) = resolver.section("static") {
        let hostnames = hostnames(&mut list, notes);
        list.rest(notes);
        return of("static", Yaml::map([("hostnames", hostnames)]));
    }
    if let Some(mut dns) = resolver.section("dns") {
        let out = DNS.map(|key| (key, if key == "port" { dns.pass(key).numeric() } else { dns.pass(key) }));
        dns.rest(notes);
        return of("dns", Yaml::map(out));
    }
    if let Some(mut k8s) = resolver.section("k8s") {
        if !k8s.has("return_hostnames") {
            let message = "identifies pods that have a host name by it, as the exporter does only with return_hostnames: true; \
                           where that must not be, write return_hostnames: false";
            notes.push(k8s.note(message));
        }
        let out = kubernetes(&mut k8s);
        k8s.rest(notes);
        return of("k8s", out);
    }
    let Some(mut map) = resolver.section("aws_cloud_map") else { return Yaml::Map(Vec::new()) };
    let names = ["service_name", "namespace"].map(|key| (key, map.text(key).unwrap_or_default()));
    let missing = names.iter().find(|(_, name)| name.is_empty());
    let hostname = missing.map_or_else(|| names.each_ref().map(|(_, name)| name.as_str()).join("."), |_| String::new());
    for (key, theirs) in [
        ("hostname", missing.map_or("service_name", |(key, _)| key)),
        ("port", "port"),
        ("interval", "interval"),
        ("timeout", "timeout"),
    ] {
        record_origin(key, ["aws_cloud_map", theirs]);
    }
    let message =
        "becomes a look-up of its DNS name, which only namespaces of a DNS kind have; an answer holds 8 hosts at most";
    notes.push(map.note(message).costing(Cost::Routing));
    let out = Yaml::map([
        ("hostname", Yaml::text(hostname)),
        ("port", map.pass("port").numeric()),
        ("interval", map.pass("interval")),
        ("timeout", map.pass("timeout")),
    ]);
    map.rest(notes);
    of("dns", out)
}

/// Converts the list of backends and removes duplicates. The exporter treats `a` and `a:4317` as two members of its
/// ring.
fn hostnames(list: &mut Section<'_>, notes: &mut Vec<Note>) -> Yaml {
    let Some(entry) = list.take("hostnames") else { return Yaml::Scalar(Value::Null) };
    let Value::List(items) = &entry.node.value else { return Yaml::from(&entry.node) };
    let identity = |node: &Node| {
        let text = texts_of(node).pop().unwrap_or_default();
        text.parse().map_or(text, |backend: Backend| backend.identity())
    };
    let mut seen = Vec::new();
    let mut kept = Vec::new();
    for item in items {
        let identity = identity(item);
        if !seen.contains(&identity) {
            seen.push(identity);
            kept.push(Yaml::from(item));
        }
    }
    if kept.len() < items.len() {
        let message = "names a backend twice, once 4317 is put where the port is missing; it gets one share, not two";
        notes.push(list.note_of(entry, message).costing(Cost::Routing));
    }
    Yaml::List(kept)
}

/// Converts the resolver of Kubernetes, which has the same keys here.
fn kubernetes(k8s: &mut Section<'_>) -> Yaml {
    let ports = match k8s.pass("ports") {
        Yaml::List(ports) => Yaml::List(ports.into_iter().map(Yaml::numeric).collect()),
        Yaml::Scalar(Value::Null) => Yaml::Scalar(Value::Null),
        one => Yaml::List(vec![one.numeric()]),
    };
    let [service, timeout, return_hostnames] =
        ["service", "timeout", "return_hostnames"].map(|key| (key, k8s.pass(key)));
    Yaml::map([service, ("ports", ports), timeout, return_hostnames])
}
