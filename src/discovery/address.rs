//! Parses addresses of backends as operators write them (`host`, `host:port`, `1.2.3.4:port`, `[::1]:port`) into one
//! canonical form.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::settings::addresses::OTLP_GRPC_PORT;

/// The address of a backend as it was configured, parsed and checked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    host: Host,
    port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Host {
    Ip(IpAddr),
    Name(String),
}

/// The reason why a configured address is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// The text is empty.
    #[error("it is empty")]
    Empty,
    /// The text has a scheme or a path, like `http://…`.
    #[error("write name:port, without a scheme or path")]
    Scheme,
    /// An IPv6 address without brackets, like `::1` or `::1:4317`: it is ambiguous where the address ends and the port
    /// begins.
    #[error("write an IPv6 address in brackets, with a port or without: [::1]:4317")]
    Brackets,
    /// The port is not a number from 1 to 65535.
    #[error("the port must be a number from 1 to 65535")]
    Port,
    /// A port is written where the port has a configuration key of its own.
    #[error("write the name alone; the port has a key of its own")]
    NameOnly,
    /// The text is not a host name and not a valid IPv4 address, like `1.2.3` or `010.0.0.1`.
    #[error("it looks like an IPv4 address but is not one")]
    NotIpv4,
    /// The address is `0.0.0.0`, `[::]`, a multicast or the broadcast address.
    #[error("an unspecified, broadcast or multicast address cannot be dialled")]
    NotUnicast,
    /// The name is no host name: labels have 1 to 63 letters, digits, `-` or `_`; the whole name has at most 253
    /// characters.
    #[error("a host name has up to 253 ASCII letters, digits, '-', '_', and single dots between at most 63 of them")]
    Name,
}

impl HostPort {
    /// Parses an entry. The port is 4317 if none is written.
    pub fn parse(written: &str) -> Result<Self, AddressError> {
        if written.is_empty() {
            return Err(AddressError::Empty);
        }
        if written.contains('/') {
            return Err(AddressError::Scheme);
        }
        if let Some(bracketed) = written.strip_prefix('[') {
            let (ip, rest) = bracketed.split_once(']').ok_or(AddressError::Brackets)?;
            // Go accepts an IPv4 address in brackets too, and so do we.
            let ip = ip.parse().map_err(|_| AddressError::Brackets)?;
            let port = match rest.strip_prefix(':') {
                Some(port) => parse_port(port)?,
                None if rest.is_empty() => OTLP_GRPC_PORT,
                None => return Err(AddressError::Brackets),
            };
            return Ok(Self { host: unicast(ip)?, port });
        }
        let (host, port) = match written.split_once(':') {
            Some((_, rest)) if rest.contains(':') => return Err(AddressError::Brackets),
            Some((host, port)) => (host, parse_port(port)?),
            None => (written, OTLP_GRPC_PORT),
        };
        let host = match host.parse::<Ipv4Addr>() {
            Ok(ip) => unicast(IpAddr::V4(ip))?,
            Err(_) => {
                check_name(host)?;
                Host::Name(host.to_owned())
            }
        };
        Ok(Self { host, port })
    }

    /// Returns the identity that is hashed: the address in canonical form or the name as written, and the port.
    pub fn identity(&self) -> String {
        match &self.host {
            Host::Ip(ip) => SocketAddr::new(*ip, self.port).to_string(),
            Host::Name(name) => format!("{name}:{}", self.port),
        }
    }

    /// Returns the address, or `None` if a name has to be resolved first.
    pub fn address(&self) -> Option<SocketAddr> {
        match self.host {
            Host::Ip(ip) => Some(SocketAddr::new(ip, self.port)),
            Host::Name(_) => None,
        }
    }

    /// Returns the name, or `None` if the entry is an IP address.
    pub fn name(&self) -> Option<&str> {
        match &self.host {
            Host::Ip(_) => None,
            Host::Name(name) => Some(name),
        }
    }

    /// Returns the port.
    pub fn port(&self) -> u16 {
        self.port
    }
}

/// Returns whether a backend can have this address.
pub(super) fn is_unicast(ip: IpAddr) -> bool {
    let broadcast = ip == IpAddr::V4(Ipv4Addr::BROADCAST);
    !(ip.is_unspecified() || ip.is_multicast() || broadcast)
}

fn unicast(ip: IpAddr) -> Result<Host, AddressError> {
    // An IPv4-mapped IPv6 address (`::ffff:10.0.0.1`) names the same backend as the IPv4 address.
    let ip = ip.to_canonical();
    if is_unicast(ip) { Ok(Host::Ip(ip)) } else { Err(AddressError::NotUnicast) }
}

fn parse_port(written: &str) -> Result<u16, AddressError> {
    let digits = written.bytes().all(|byte| byte.is_ascii_digit());
    match written.parse() {
        Ok(port) if digits && port != 0 => Ok(port),
        _ => Err(AddressError::Port),
    }
}

/// Checks that `name` is a valid host name, so that it can be looked up in DNS.
pub(super) fn check_name(name: &str) -> Result<(), AddressError> {
    if name.is_empty() {
        return Err(AddressError::Empty);
    }
    if name.contains(':') {
        return Err(AddressError::NameOnly);
    }
    let relative = name.strip_suffix('.').unwrap_or(name);
    let label = |label: &str| {
        let usual = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        (1..=63).contains(&label.len()) && label.bytes().all(usual)
    };
    if relative.len() > 253 || !relative.split('.').all(label) {
        return Err(AddressError::Name);
    }
    // No top-level domain is a number. A name that ends with one is a malformed IPv4 address or one in an old form of
    // inet_aton, and must not be sent to a name server.
    let last = relative.rsplit('.').next().unwrap_or_default();
    if last.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(AddressError::NotIpv4);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(written: &str) -> String {
        HostPort::parse(written).unwrap().identity()
    }

    #[test]
    fn a_missing_port_is_filled_in_and_a_written_one_kept() {
        assert_eq!(identity("collector"), "collector:4317");
        assert_eq!(identity("collector:4317"), "collector:4317");
        assert_eq!(identity("Collector.Obs.svc.:14317"), "Collector.Obs.svc.:14317", "a name stays as written");
        assert_eq!(identity("10.0.0.1"), "10.0.0.1:4317");
        assert_eq!(identity("[::1]"), "[::1]:4317");
        assert_eq!(identity("[10.0.0.1]"), "10.0.0.1:4317", "as Go takes it");
    }

    #[test]
    fn addresses_take_their_canonical_form() {
        assert_eq!(identity("[2001:DB8:0:0:0:0:0:1]:9"), "[2001:db8::1]:9");
        assert_eq!(
            identity("[2001:db8:0:0:1:0:0:1]:9"),
            "[2001:db8::1:0:0:1]:9",
            "the first of equal runs of zeros is shortened"
        );
        assert_eq!(identity("[2001:db8:0:1:1:1:1:1]"), "[2001:db8:0:1:1:1:1:1]:4317", "a single zero is not shortened");
        assert_eq!(identity("[::ffff:10.0.0.1]:9"), "10.0.0.1:9", "an IPv4-mapped address");
    }

    #[test]
    fn invalid_addresses_are_refused_with_their_reason() {
        let cases = [
            ("", AddressError::Empty),
            (":4317", AddressError::Empty),
            ("http://collector:4317", AddressError::Scheme),
            ("::1", AddressError::Brackets),
            ("::1:4317", AddressError::Brackets),
            ("[::1", AddressError::Brackets),
            ("[::1]4317", AddressError::Brackets),
            ("[10.0.1]:4317", AddressError::Brackets),
            ("[collector]:4317", AddressError::Brackets),
            ("collector:", AddressError::Port),
            ("collector:0", AddressError::Port),
            ("collector:+80", AddressError::Port),
            ("collector:65536", AddressError::Port),
            ("010.0.0.1", AddressError::NotIpv4),
            ("10.0.1:4317", AddressError::NotIpv4),
            ("0.0.0.0:4317", AddressError::NotUnicast),
            ("[::]:4317", AddressError::NotUnicast),
            ("[ff02::1]:4317", AddressError::NotUnicast),
            ("224.0.0.1", AddressError::NotUnicast),
            ("a b", AddressError::Name),
            ("a..b", AddressError::Name),
            ("käse", AddressError::Name),
            (".", AddressError::Name),
        ];
        for (written, error) in cases {
            assert_eq!(HostPort::parse(written), Err(error), "{written:?}");
        }
        assert_eq!(HostPort::parse(&"a".repeat(64)), Err(AddressError::Name));
    }
}
