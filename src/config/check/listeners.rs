//! Checks `receivers`, `admin` and `health_check`: their keys, and that no two listeners have the same port.

use std::{
    collections::BTreeSet,
    net::{SocketAddr, ToSocketAddrs},
};

use super::{
    super::{headers, message::Message},
    KeyPath, MAX_MESSAGE_MIB, Report, report_tls,
};
use crate::{
    admin,
    otlp::Signal,
    receive,
    settings::{Http, ServerTls, Settings, addresses::HostPort, values::MIB},
};

/// The listeners, with their addresses.
pub(super) struct Listeners {
    pub(super) receive: receive::Config,
    pub(super) admin: admin::Config,
    pub(super) health_check: Option<admin::health_check::Config>,
}

fn http_path() -> KeyPath {
    KeyPath::of(&["receivers", "otlp", "protocols", "http"])
}

fn grpc_path() -> KeyPath {
    KeyPath::of(&["receivers", "otlp", "protocols", "grpc"])
}

/// Checks the keys of the OTLP/gRPC receiver.
pub(super) fn check_grpc(settings: &Settings, report: &mut Report<'_>) {
    let otlp = &settings.receivers.otlp;
    report.positive(&KeyPath::of(&["receivers", "otlp", "deadline"]), otlp.deadline);
    let (at, grpc) = (grpc_path(), &otlp.protocols.grpc);
    let message_size = grpc.max_recv_msg_size_mib.mebibytes();
    report.within(&at.key("max_recv_msg_size_mib"), message_size, 1, MAX_MESSAGE_MIB);
    report.within(&at.key("max_concurrent_streams"), grpc.max_concurrent_streams, 1, u32::MAX);
    report.within(&at.key("max_header_list_size"), grpc.max_header_list_size.0, 1 << 10, MIB);
    report.within(&at.key("max_connections"), grpc.max_connections, 1, usize::MAX);
    report.positive(&at.key("read_header_timeout"), grpc.read_header_timeout);
    for (_, message) in headers::checked_names(&grpc.include_metadata).err().unwrap_or_default() {
        report.error(&at.key("include_metadata"), message);
    }
    if let Some(tls) = &*grpc.tls {
        report_tls(&at.key("tls"), tls.check(), report);
    }
}

/// Checks the keys of the OTLP/HTTP receiver.
pub(super) fn check_http(settings: &Settings, report: &mut Report<'_>) {
    let Some(http) = &*settings.receivers.otlp.protocols.http else { return };
    let at = http_path();
    report.within(&at.key("max_request_body_size"), http.max_request_body_size.0, 1, MAX_MESSAGE_MIB * MIB);
    report.within(&at.key("max_concurrent_streams"), http.max_concurrent_streams, 1, u32::MAX);
    report.within(&at.key("max_header_list_size"), http.max_header_list_size.0, 1 << 10, MIB);
    report.within(&at.key("max_connections"), http.max_connections, 1, usize::MAX);
    report.positive(&at.key("read_header_timeout"), http.read_header_timeout);
    for (_, message) in headers::checked_names(&http.include_metadata).err().unwrap_or_default() {
        report.error(&at.key("include_metadata"), message);
    }
    let mut paths = BTreeSet::new();
    for (key, path) in Signal::ALL.map(|signal| http.path(signal)) {
        check_path(&at.key(key), path, "/v1/traces", report);
        if !paths.insert(path) {
            report.error(&at.key(key), Message::about(path, |path| format!("{path} is the path of another signal")));
        }
    }
    for receive::Unusable { key, value, what } in cors(http).err().unwrap_or_default() {
        report.error(&at.key("cors").key(key), Message::about(&value, |value| format!("{value} {what}")));
    }
    if let Some(tls) = &*http.tls {
        report_tls(&at.key("tls"), tls.check(), report);
    }
}

fn cors(http: &Http) -> Result<Option<receive::Cors>, Vec<receive::Unusable>> {
    let cors = http.cors.as_ref().map(receive::Cors::new).transpose()?;
    // As in the Collector, a section without origins allows nothing.
    Ok(cors.filter(|_| http.cors.as_ref().is_some_and(|cors| !cors.allowed_origins.is_empty())))
}

/// Looks up the address of each listener. Returns `None` if there is an error.
pub(super) fn addresses(settings: &Settings, report: &mut Report<'_>) -> Option<Listeners> {
    let otlp = &settings.receivers.otlp;
    let paths = [grpc_path(), http_path(), KeyPath::of(&["admin"]), KeyPath::of(&["health_check"])];
    let paths = paths.map(|at| at.key("endpoint"));
    let [grpc_at, http_at, admin_at, probes_at] = &paths;
    let grpc = address(grpc_at, &otlp.protocols.grpc.endpoint.0, report);
    let http = otlp.protocols.http.as_ref().map(|keys| (keys, address(http_at, &keys.endpoint.0, report)));
    let admin = address(admin_at, &settings.admin.endpoint.0, report);
    check_hosts(&settings.admin.allowed_hosts, report);
    let probes = settings.health_check.as_ref().map(|keys| {
        check_path(&KeyPath::of(&["health_check", "path"]), &keys.path, "/health", report);
        (keys, address(probes_at, &keys.endpoint.0, report))
    });
    let [http_address, probes_address] =
        [http.and_then(|(_, address)| address), probes.and_then(|(_, address)| address)];
    let all = [(grpc_at, grpc), (http_at, http_address), (admin_at, admin), (probes_at, probes_address)];
    check_ports(&all, report);
    let health_check = match probes {
        Some((keys, address)) => Some(admin::health_check::Config { keys: keys.clone(), endpoint: address? }),
        None => None,
    };
    let keys = otlp.protocols.grpc.clone();
    let grpc = receive::GrpcConfig {
        endpoint: grpc?,
        include_metadata: headers::checked_names(&keys.include_metadata).unwrap_or_default(),
        tls: keys.tls.as_ref().map(ServerTls::config),
        deadline: otlp.deadline,
        keys,
    };
    let http = match http {
        Some((keys, address)) => Some(receive::HttpConfig {
            endpoint: address?,
            paths: receive::Paths::of(keys),
            include_metadata: headers::checked_names(&keys.include_metadata).unwrap_or_default(),
            cors: cors(keys).unwrap_or_default(),
            tls: keys.tls.as_ref().map(ServerTls::config),
            deadline: otlp.deadline,
            keys: keys.clone(),
        }),
        None => None,
    };
    Some(Listeners {
        receive: receive::Config { grpc: Some(grpc), http },
        admin: admin::Config { keys: settings.admin.clone(), endpoint: admin? },
        health_check,
    })
}

fn check_hosts(hosts: &[String], report: &mut Report<'_>) {
    for host in hosts {
        let name = host.strip_prefix("*.").unwrap_or(host);
        let is_name =
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        if host != "*" && !is_name {
            let advice =
                |host: &str| format!("{host} is not a host name; write ring.example.com, without a port, or \"*\"");
            report.error(&KeyPath::of(&["admin", "allowed_hosts"]), Message::about(host, advice));
        }
    }
}

/// Checks the path of a page.
pub(super) fn check_path(at: &KeyPath, path: &str, example: &str, report: &mut Report<'_>) {
    if !path.starts_with('/') || path.contains(['?', '#', ' ']) {
        report.error(at, Message::about(path, |path| format!("{path} is not a path; write {example}")));
    }
}

/// Looks up a listener's address. An IPv4 address is preferred, as Go does for `localhost`.
fn address(path: &KeyPath, endpoint: &HostPort, report: &mut Report<'_>) -> Option<SocketAddr> {
    let found = (endpoint.host.to_string().as_str(), endpoint.port).to_socket_addrs().map(Iterator::collect::<Vec<_>>);
    let message = match found {
        Ok(found) => match found.iter().find(|address| address.is_ipv4()).or(found.first()) {
            Some(address) => return Some(*address),
            None => Message::about(&endpoint.host, |host| format!("{host} has no address")),
        },
        Err(error) => Message::about(&endpoint.host, |host| format!("cannot look up {host}: {error}")),
    };
    report.error(path, message.local());
    None
}

/// Checks that no two listeners have the same port. Port 0 does not count, since it stands for any free port.
fn check_ports(listeners: &[(&KeyPath, Option<SocketAddr>)], report: &mut Report<'_>) {
    let listeners = listeners.iter().filter_map(|(path, address)| Some((*path, (*address)?)));
    let listeners: Vec<(&KeyPath, SocketAddr)> = listeners.filter(|(_, address)| address.port() != 0).collect();
    for (index, (path, address)) in listeners.iter().enumerate() {
        if let Some((other, _)) = listeners.iter().take(index).find(|(_, other)| collide(*address, *other)) {
            let (port, key) = (address.port(), other.text());
            let hidden = format!("{key} has its port already");
            report.error_about(path, &[other], Message::both(format!("{key} has port {port} already"), hidden));
        }
    }
}

/// Returns whether two addresses exclude each other. Whether `[::]` includes IPv4 depends on the system.
fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let any = one.ip().is_unspecified() || other.ip().is_unspecified();
    one == other || (any && one.port() == other.port() && one.is_ipv4() == other.is_ipv4())
}
