//! Addresses, written as `host:port`. A listener's address must have a port; the error suggests the usual one. A
//! backend's default port is 4317.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    str::FromStr,
};

use serde::{Deserializer, Serializer, de};

use super::{
    section::{Printed, Read, Setting},
    values::{ValueError, as_text},
};

/// The port of OTLP/gRPC (IANA).
pub const OTLP_GRPC_PORT: u16 = 4317;

/// The port of OTLP/HTTP (IANA).
pub const OTLP_HTTP_PORT: u16 = 4318;

/// The admin listener's port: where the Collector serves its metrics.
pub const ADMIN_PORT: u16 = 8888;

/// The port for probes, as in the Collector's extension.
pub const PROBES_PORT: u16 = 13133;

/// A host or address, and a port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// The host.
    pub host: Host,
    /// The port.
    pub port: u16,
}

/// A host: an address, or a name as written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Host {
    /// An IPv4 or IPv6 address.
    Ip(IpAddr),
    /// Everything else.
    Name(String),
}

/// A listener's address. `PORT` is its usual port, which errors suggest if none is written. It is not a default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenAddress<const PORT: u16>(pub HostPort);

/// The address of a backend. Its default port is 4317, or that of the pool's protocol. An IPv4-mapped IPv6 address (`::ffff:10.0.0.1`) is converted to the
/// IPv4 address, since both are the same backend.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Backend {
    /// The host and the port.
    pub address: HostPort,
    /// The text as written, where it differs from the identity.
    written: Option<String>,
}

/// The port that an error suggests, if there is a usual one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExamplePort(pub Option<u16>);

impl fmt::Display for ExamplePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(port) => port.fmt(f),
            None => f.write_str("PORT"),
        }
    }
}

impl HostPort {
    /// Parses `host:port`. Without a port, it has `default_port`; if that is `None`, it is an error.
    pub fn parse(text: &str, default_port: Option<u16>) -> Result<Self, ValueError> {
        let bad = || ValueError::Address(text.to_owned());
        if text.contains('/') {
            return Err(ValueError::Url(text.to_owned()));
        }
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, after) = rest.split_once(']').ok_or_else(bad)?;
                // Go accepts an IPv4 address in brackets too: "[${env:POD_IP}]:4317" is used for both families.
                let ip = host.parse().map_err(|_| bad())?;
                (Host::Ip(ip), if after.is_empty() { None } else { Some(after.strip_prefix(':').ok_or_else(bad)?) })
            }
            None => match text.split_once(':') {
                Some((host, port)) => (Host::from(host), Some(port)),
                None => (Host::from(text), None),
            },
        };
        let is_number = |port: &str| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        if let Host::Name(name) = &host {
            if name.is_empty() && port.is_some_and(is_number) {
                return Err(ValueError::NoHost(text.to_owned()));
            }
            if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c == ',' || c == '@') {
                return Err(bad());
            }
        }
        let port = match port {
            Some(port) if is_number(port) => port.parse().map_err(|_| bad())?,
            Some(_) => return Err(bad()),
            None => default_port.ok_or_else(|| match text.parse() {
                Ok(port) => ValueError::PortOnly(port),
                Err(_) => ValueError::NoPort(text.to_owned(), ExamplePort::default()),
            })?,
        };
        Ok(Self { host, port })
    }

    /// The address, or `None` where the host is a name.
    pub fn address(&self) -> Option<SocketAddr> {
        match self.host {
            Host::Ip(ip) => Some(SocketAddr::new(ip, self.port)),
            Host::Name(_) => None,
        }
    }

    /// The name, or `None` where the host is an address.
    pub fn name(&self) -> Option<&str> {
        match &self.host {
            Host::Ip(_) => None,
            Host::Name(name) => Some(name),
        }
    }
}

/// A host that stands without brackets: an IPv4 address, or a name.
impl From<&str> for Host {
    fn from(text: &str) -> Self {
        text.parse().map_or_else(|_| Self::Name(text.to_owned()), |ip: Ipv4Addr| Self::Ip(ip.into()))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

impl From<SocketAddr> for HostPort {
    fn from(address: SocketAddr) -> Self {
        Self { host: Host::Ip(address.ip()), port: address.port() }
    }
}

impl FromStr for HostPort {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        Self::parse(text, None)
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(ip) => SocketAddr::new(*ip, self.port).fmt(f),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

impl<const PORT: u16> ListenAddress<PORT> {
    /// Returns the loopback address with the usual port.
    pub fn local() -> Self {
        Self(SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)).into())
    }
}

impl<const PORT: u16> FromStr for ListenAddress<PORT> {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        text.parse().map(Self).map_err(|error| match error {
            ValueError::NoPort(text, _) => ValueError::NoPort(text, ExamplePort(Some(PORT))),
            error => error,
        })
    }
}

impl<const PORT: u16> fmt::Display for ListenAddress<PORT> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Backend {
    /// The identity that is hashed: the address in canonical form or the name as it is written, and the port.
    pub fn identity(&self) -> String {
        self.address.to_string()
    }

    /// Sets the port, if none is written.
    pub fn set_default_port(&mut self, port: u16) {
        if self.written.as_deref().is_some_and(|text| HostPort::parse(text, None).is_err()) {
            self.address.port = port;
        }
    }

    /// The text as written, where it differs from the identity, for example because it has no port. It is what the
    /// Collector's load-balancing exporter hashes.
    pub fn written(&self) -> Option<&str> {
        self.written.as_deref()
    }
}

impl FromStr for Backend {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let backend = HostPort::parse(text, Some(OTLP_GRPC_PORT)).map(Self::from)?;
        let written = (text != backend.identity()).then(|| text.to_owned());
        Ok(Self { written, ..backend })
    }
}

impl From<HostPort> for Backend {
    fn from(HostPort { host, port }: HostPort) -> Self {
        let host = match host {
            Host::Ip(ip) => Host::Ip(ip.to_canonical()),
            name @ Host::Name(_) => name,
        };
        Self { address: HostPort { host, port }, written: None }
    }
}

/// As written.
impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.written {
            Some(written) => written.fmt(f),
            None => self.address.fmt(f),
        }
    }
}

as_text! {
    ListenAddress<OTLP_GRPC_PORT>: "an address such as localhost:4317";
    ListenAddress<OTLP_HTTP_PORT>: "an address such as localhost:4318";
    ListenAddress<ADMIN_PORT>: "an address such as localhost:8888";
    ListenAddress<PROBES_PORT>: "an address such as 0.0.0.0:13133";
    Backend: "a backend such as collector-0:4317";
}

/// Backends, as a list or as one text, since a variable may contain a list in YAML or names separated by commas.
impl Setting for Vec<Backend> {
    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(BackendsVisitor)
    }

    fn print<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(self.iter().map(Printed))
    }
}

struct BackendsVisitor;

impl<'de> de::Visitor<'de> for BackendsVisitor {
    type Value = Vec<Backend>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of backends such as [collector-0:4317, collector-1:4317]")
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut items: A) -> Result<Vec<Backend>, A::Error> {
        let mut backends = Vec::new();
        while let Some(Read(backend)) = items.next_element()? {
            backends.push(backend);
        }
        Ok(backends)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<Backend>, E> {
        let text = text.trim();
        // "[::1]:4317" begins like a list in YAML, but is an address.
        let is_list = text.starts_with('-') || (text.starts_with('[') && text.ends_with(']'));
        let listed = is_list.then(|| serde_saphyr::from_str::<Vec<String>>(text).ok()).flatten();
        let listed = listed.unwrap_or_else(|| text.split(',').map(|one| one.trim().to_owned()).collect());
        let written = listed.iter().filter(|one| !one.is_empty());
        written.map(|one| one.parse().map_err(E::custom)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_host_and_port() {
        let address =
            |text| HostPort::parse(text, None).map(|a| (a.host.to_string(), a.port)).map_err(|e| e.to_string());
        assert_eq!(address("127.0.0.1:4317"), Ok(("127.0.0.1".into(), 4317)));
        assert_eq!(address("[::1]:4317"), Ok(("::1".into(), 4317)));
        assert_eq!(address("[10.0.0.1]:4317"), Ok(("10.0.0.1".into(), 4317)), "as in Go");
        assert_eq!(address("localhost:0"), Ok(("localhost".into(), 0)));
        assert_eq!(address("localhost"), Err("\"localhost\" has no port; write localhost:PORT".into()));
        let admin = ListenAddress::<ADMIN_PORT>::from_str("127.0.0.1").map_err(|error| error.to_string());
        assert_eq!(
            admin,
            Err("\"127.0.0.1\" has no port; write 127.0.0.1:8888".into()),
            "the port must be that of this listener"
        );
        assert_eq!(
            address("4317"),
            Err(
                "\"4317\" is a port without an address; write 127.0.0.1:4317 (this machine) or 0.0.0.0:4317 (all IPv4 \
                 interfaces)"
                    .into()
            )
        );
        assert!(address(":4317").is_err_and(|e| e.contains("0.0.0.0:4317 (all IPv4 interfaces)")));
        assert!(address("http://a:1").is_err_and(|e| e.contains("is a URL")));
        for bad in [
            "",
            "a:b",
            "a:1:2",
            "::1",
            "::1:4317",
            "[::1",
            "[::1]4317",
            "[a]:1",
            "[10.0.1]:1",
            "a:65536",
            "a:+80",
            "a b:1",
            "a:",
            ":",
        ] {
            assert!(address(bad).is_err(), "{bad}");
        }
        assert_eq!(HostPort::parse("[::1]", Some(4317)).unwrap().to_string(), "[::1]:4317");
        let any = HostPort::parse("[::ffff:0.0.0.0]:1", None).unwrap();
        assert_eq!(any.to_string(), "[::ffff:0.0.0.0]:1", "a listener's address stays as it is written");
    }

    fn identity(written: &str) -> String {
        Backend::from_str(written).unwrap().identity()
    }

    #[test]
    fn a_missing_port_of_a_backend_is_filled_in_and_a_written_one_kept() {
        assert_eq!(identity("collector"), "collector:4317");
        assert_eq!(identity("collector:4317"), "collector:4317");
        assert_eq!(identity("Collector.Obs.svc.:14317"), "Collector.Obs.svc.:14317", "a name stays as written");
        assert_eq!(identity("10.0.0.1"), "10.0.0.1:4317");
        assert_eq!(identity("[::1]"), "[::1]:4317");
        assert_eq!(identity("[10.0.0.1]"), "10.0.0.1:4317", "as Go takes it");
    }

    #[test]
    fn the_text_of_a_backend_is_kept_for_the_rings_that_hash_it() {
        let written = |text: &str| {
            let backend = Backend::from_str(text).unwrap();
            (backend.written().map(str::to_owned), backend.to_string())
        };
        for text in ["collector", "10.0.0.1", "[::1]", "[2001:DB8::1]:4317", "[10.0.0.1]:4317"] {
            assert_eq!(written(text), (Some(text.to_owned()), text.to_owned()));
        }
        for text in ["collector:4317", "10.0.0.1:4317", "[::1]:4317"] {
            assert_eq!(written(text), (None, text.to_owned()), "it is the identity");
        }
    }

    #[test]
    fn addresses_of_backends_take_their_canonical_form() {
        assert_eq!(identity("[2001:DB8:0:0:0:0:0:1]:9"), "[2001:db8::1]:9");
        assert_eq!(
            identity("[2001:db8:0:0:1:0:0:1]:9"),
            "[2001:db8::1:0:0:1]:9",
            "the first of equal runs of zeros is shortened"
        );
        assert_eq!(identity("[2001:db8:0:1:1:1:1:1]"), "[2001:db8:0:1:1:1:1:1]:4317", "a single zero is not shortened");
        assert_eq!(identity("[::ffff:10.0.0.1]:9"), "10.0.0.1:9", "an IPv4-mapped address");
    }
}
