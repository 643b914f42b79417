//! Addresses: `host:port`. A listener's address needs its port, and the error says which one is usual; a backend's port is
//! 4317 where it is missing.

use std::{fmt, str::FromStr};

use serde::{Deserializer, Serializer, de};

use super::{
    section::{Printed, Read, Setting},
    values::{ValueError, as_text},
};

/// The port of OTLP/gRPC (IANA).
pub const OTLP_GRPC_PORT: u16 = 4317;

/// The admin listener's port: where the Collector serves its metrics.
pub const ADMIN_PORT: u16 = 8888;

/// The port for probes, as in the Collector's extension.
pub const PROBES_PORT: u16 = 13133;

/// A host or address, and a port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// A name, an IPv4 address, or an IPv6 address without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// A listener's address. `PORT` is its usual port: errors suggest it where none is written, and it is not assumed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenAddress<const PORT: u16>(pub HostPort);

/// A backend: an address whose port is 4317 where it is missing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Backend(pub HostPort);

/// The port that an error suggests, where a usual one is known.
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
    /// Reads `host:port`; without a port it has `default_port`, and where there is none that is an error.
    pub fn parse(text: &str, default_port: Option<u16>) -> Result<Self, ValueError> {
        let bad = || ValueError::Address(text.to_owned());
        if text.contains('/') {
            return Err(ValueError::Url(text.to_owned()));
        }
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, after) = rest.split_once(']').ok_or_else(bad)?;
                // Go takes an IPv4 address in brackets too: "[${env:POD_IP}]:4317" is written for both families.
                let _: std::net::IpAddr = host.parse().map_err(|_| bad())?;
                (host, if after.is_empty() { None } else { Some(after.strip_prefix(':').ok_or_else(bad)?) })
            }
            None => match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            },
        };
        let is_number = |port: &str| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        if host.is_empty() && port.is_some_and(is_number) {
            return Err(ValueError::NoHost(text.to_owned()));
        }
        if host.is_empty() || host.contains(|c: char| c.is_whitespace() || c == ',' || c == '@') {
            return Err(bad());
        }
        let port = match port {
            Some(port) if is_number(port) => port.parse().map_err(|_| bad())?,
            Some(_) => return Err(bad()),
            None => default_port.ok_or_else(|| match text.parse() {
                Ok(port) => ValueError::PortOnly(port),
                Err(_) => ValueError::NoPort(text.to_owned(), ExamplePort::default()),
            })?,
        };
        Ok(Self { host: host.to_owned(), port })
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
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl<const PORT: u16> ListenAddress<PORT> {
    /// The usual port of this machine, reached from this machine alone.
    pub fn local() -> Self {
        Self(HostPort { host: "127.0.0.1".into(), port: PORT })
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

impl FromStr for Backend {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        HostPort::parse(text, Some(OTLP_GRPC_PORT)).map(Self)
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

as_text! {
    ListenAddress<OTLP_GRPC_PORT>: "an address such as localhost:4317";
    ListenAddress<ADMIN_PORT>: "an address such as localhost:8888";
    ListenAddress<PROBES_PORT>: "an address such as 0.0.0.0:13133";
    Backend: "a backend such as collector-0:4317";
}

/// Backends, as a list or as one text: a variable may hold a list in YAML, or names with commas between them.
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
        // "[::1]:4317" begins like a list in YAML, and is none.
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
        let address = |text| HostPort::parse(text, None).map(|a| (a.host, a.port)).map_err(|e| e.to_string());
        assert_eq!(address("127.0.0.1:4317"), Ok(("127.0.0.1".into(), 4317)));
        assert_eq!(address("[::1]:4317"), Ok(("::1".into(), 4317)));
        assert_eq!(address("[10.0.0.1]:4317"), Ok(("10.0.0.1".into(), 4317)), "as Go takes it");
        assert_eq!(address("localhost:0"), Ok(("localhost".into(), 0)));
        assert_eq!(address("localhost"), Err("\"localhost\" has no port; write localhost:PORT".into()));
        let admin = ListenAddress::<ADMIN_PORT>::from_str("127.0.0.1").map_err(|error| error.to_string());
        assert_eq!(admin, Err("\"127.0.0.1\" has no port; write 127.0.0.1:8888".into()), "that of no other listener");
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
        for bad in ["", "a:b", "a:1:2", "::1", "[::1", "[::1]4317", "[a]:1", "a:65536", "a b:1", "a:", ":"] {
            assert!(address(bad).is_err(), "{bad}");
        }
        assert_eq!(HostPort::parse("a", Some(4317)), Ok(HostPort { host: "a".into(), port: 4317 }));
        assert_eq!(HostPort { host: "::1".into(), port: 1 }.to_string(), "[::1]:1");
    }
}
