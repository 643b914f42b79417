//! Converts `receivers`: the OTLP receiver of the pipelines that lead to a load-balancing exporter.

use super::{
    Cost, Note,
    section::{Section, text_of, texts_of},
    service::{Service, with_host},
    yaml::Yaml,
};

/// Keys of the gRPC server that are the same here.
const GRPC: [&str; 2] = ["max_recv_msg_size_mib", "max_concurrent_streams"];

/// Keys of the HTTP server that are the same here.
const HTTP: [&str; 7] = [
    "max_request_body_size",
    "traces_url_path",
    "metrics_url_path",
    "logs_url_path",
    "profiles_url_path",
    "read_header_timeout",
    "idle_timeout",
];

/// Keys of `cors` that are the same here.
const CORS: [&str; 4] = ["allowed_origins", "allowed_headers", "exposed_headers", "max_age"];

/// Keys of the server's TLS that are the same here.
const TLS: [&str; 5] = ["cert_file", "key_file", "client_ca_file", "min_version", "reload_interval"];

/// Returns `receivers` of our configuration.
pub(super) fn receivers(root: &mut Section<'_>, service: &mut Service, notes: &mut Vec<Note>) -> Yaml {
    let Some(mut receivers) = root.section("receivers") else { return Yaml::Map(Vec::new()) };
    let mut out = Yaml::Map(Vec::new());
    for (name, mut otlp) in receivers.components(&["otlp"]) {
        if !service.takes_from(name) {
            notes.push(otlp.note("is in no pipeline that leads to load balancing; left out"));
        } else if out.is_empty() {
            service.origins.add(&["receivers", "otlp"], &["receivers", name]);
            out = Yaml::map([("otlp", self::otlp(&mut otlp, notes))]);
            otlp.rest(notes);
        } else {
            notes.push(otlp.note("is left out: there is one OTLP receiver").costing(Cost::Data));
        }
    }
    for (name, section) in receivers.others() {
        let cost = if service.takes_from(name) { Cost::Data } else { Cost::Setting };
        notes.push(section.note("is left out: Spanring receives OTLP").costing(cost));
    }
    out
}

fn otlp(otlp: &mut Section<'_>, notes: &mut Vec<Note>) -> Yaml {
    let Some(mut protocols) = otlp.section("protocols") else { return Yaml::Map(Vec::new()) };
    let grpc = protocols.section("grpc").map_or(Yaml::Map(Vec::new()), |mut section| {
        let out = grpc(&mut section, notes);
        section.rest(notes);
        out
    });
    let http = protocols.section("http").map_or(Yaml::Map(Vec::new()), |mut section| {
        let out = http(&mut section, notes);
        section.rest(notes);
        out
    });
    protocols.rest(notes);
    Yaml::map([("protocols", Yaml::map([("grpc", grpc), ("http", http)]))])
}

/// Reports what the servers of both protocols decide by the headers of a request.
fn by_headers(server: &mut Section<'_>, notes: &mut Vec<Note>) {
    if let Some(auth) = server.take("auth") {
        let message = "is left out: ANYONE WHO REACHES THIS PORT MAY SEND; Spanring knows clients by their certificates only: \
                       write tls.client_ca_file";
        notes.push(server.note_of(auth, message).costing(Cost::Access));
    }
    if let Some(all) = server.take("include_metadata")
        && texts_of(&all.node) != ["false"]
    {
        let message = "is left out: Spanring passes on the headers that are named, so write their names, for example \
                       include_metadata: [x-scope-orgid]";
        notes.push(server.note_of(all, message).costing(Cost::Data));
    }
}

fn http(http: &mut Section<'_>, notes: &mut Vec<Note>) -> Yaml {
    // The endpoint is always written, so that the section is not empty: an empty one would be left out.
    let address = http.take("endpoint").map(|entry| match text_of(&entry.node) {
        Some(address) => Yaml::text(with_host(address)),
        None => Yaml::from(&entry.node),
    });
    let mut out = vec![("endpoint".to_owned(), address.unwrap_or_else(|| Yaml::text("localhost:4318")))];
    out.extend(http.pass_all(&HTTP));
    tls(http, &mut out, notes);
    by_headers(http, notes);
    if let Some(mut cors) = http.section("cors") {
        out.push(("cors".to_owned(), Yaml::Map(cors.pass_all(&CORS))));
        cors.rest(notes);
    }
    http.ignore(&["transport", "keep_alives_enabled"]);
    let deadline = "receivers.otlp.deadline bounds a request";
    http.leave(&[("read_timeout", deadline), ("write_timeout", deadline)], notes);
    out.retain(|(_, value)| !value.is_empty());
    Yaml::Map(out)
}

/// Converts the section `tls` of a server.
fn tls(server: &mut Section<'_>, out: &mut Vec<(String, Yaml)>, notes: &mut Vec<Note>) {
    if let Some(mut tls) = server.section("tls") {
        tls.set_cost(Cost::Data);
        let mut keys = tls.pass_all(&TLS);
        if keys.is_empty() {
            // Keep the section, so that a TLS listener never becomes plaintext. Without certificate files the check
            // refuses it.
            keys.push(("min_version".to_owned(), Yaml::text("1.2")));
        }
        out.push(("tls".to_owned(), Yaml::Map(keys)));
        tls.rest(notes);
    }
}

fn grpc(grpc: &mut Section<'_>, notes: &mut Vec<Note>) -> Yaml {
    let mut out = Vec::new();
    if let Some(entry) = grpc.take("endpoint") {
        let address = text_of(&entry.node).map(|address| Yaml::text(with_host(address)));
        out.push(("endpoint".to_owned(), address.unwrap_or_else(|| Yaml::from(&entry.node))));
    }
    for key in GRPC {
        out.push((key.to_owned(), grpc.pass(key)));
    }
    tls(grpc, &mut out, notes);
    by_headers(grpc, notes);
    if let Some(mut keepalive) = grpc.section("keepalive") {
        if let Some(mut server) = keepalive.section("server_parameters") {
            let ages = Yaml::map([
                ("max_connection_age", server.pass("max_connection_age")),
                ("max_connection_age_grace", server.pass("max_connection_age_grace")),
                ("max_connection_idle", server.pass("max_connection_idle")),
            ]);
            let keepalive = Yaml::map([("server_parameters", ages)]);
            out.push(("keepalive".to_owned(), keepalive));
            server.rest(notes);
        }
        keepalive.rest(notes);
    }
    grpc.ignore(&["transport"]);
    let buffers = "HTTP/2's windows bound what is read";
    grpc.leave(&[("read_buffer_size", buffers), ("write_buffer_size", buffers)], notes);
    out.retain(|(_, value)| !value.is_empty());
    Yaml::Map(out)
}
