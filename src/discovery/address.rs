//! Checks the addresses of backends as operators write them: whether they can be dialled or looked up.

use std::net::IpAddr;

use crate::settings::addresses::{Backend, Host};

/// The reason why a configured address is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// The text is empty.
    #[error("it is empty")]
    Empty,
    /// The port is 0.
    #[error("port 0 cannot be dialled")]
    Port,
    /// An address is written where a name is looked up.
    #[error("an address is not looked up; the static resolver takes addresses")]
    NotAName,
    /// A port is written where the port has a configuration key of its own.
    #[error("write the name alone; the port has a key of its own")]
    NameOnly,
    /// The text is not a host name and not a valid IPv4 address, like `1.2.3` or `010.0.0.1`.
    #[error("it looks like an IPv4 address but is not one")]
    NotIpv4,
    /// The address is of `0.0.0.0/8` or `240.0.0.0/4`, `[::]`, or a multicast address.
    #[error("an unspecified, reserved, broadcast or multicast address cannot be dialled")]
    NotUnicast,
    /// The name is no host name: labels have 1 to 63 letters, digits, `-` or `_`; the whole name has at most 253
    /// characters.
    #[error("a host name has up to 253 ASCII letters, digits, '-', '_', and single dots between at most 63 of them")]
    Name,
}

/// Checks that `backend` can be dialled, after its name was looked up if it has one.
pub fn check_backend(backend: &Backend) -> Result<(), AddressError> {
    if backend.address.port == 0 {
        return Err(AddressError::Port);
    }
    match &backend.address.host {
        Host::Ip(ip) if is_unicast(*ip) => Ok(()),
        Host::Ip(_) => Err(AddressError::NotUnicast),
        Host::Name(name) => check_name(name),
    }
}

/// Checks that `name` is the name of hosts and no address, so that the `dns` resolver can look it up.
pub fn check_hostname(name: &str) -> Result<(), AddressError> {
    match name.trim_matches(['[', ']']).parse::<IpAddr>() {
        Ok(_) => Err(AddressError::NotAName),
        Err(_) => check_name(name),
    }
}

/// Returns whether a backend can have this address: not one of "this network" (`0.0.0.0/8`, `::`), a multicast or
/// broadcast address, or one of the block that was reserved and never used (`240.0.0.0/4`).
pub(super) fn is_unicast(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => (1..224).contains(&ip.octets()[0]),
        IpAddr::V6(ip) => !(ip.is_unspecified() || ip.is_multicast()),
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

    #[test]
    fn addresses_that_a_backend_can_have_are_told_from_others() {
        let can = |ip: &str| is_unicast(ip.parse().unwrap());
        for ip in ["1.0.0.0", "10.0.0.1", "127.0.0.1", "169.254.1.1", "223.255.255.255", "::1", "fe80::1", "fd00::1"] {
            assert!(can(ip), "{ip}");
        }
        for ip in ["0.0.0.0", "0.255.0.1", "224.0.0.1", "239.1.1.1", "240.0.0.0", "255.255.255.255", "::", "ff02::1"] {
            assert!(!can(ip), "{ip}");
        }
    }

    #[test]
    fn invalid_addresses_are_refused_with_their_reason() {
        let check = |written: &str| check_backend(&written.parse().unwrap());
        let cases = [
            ("collector:0", AddressError::Port),
            ("010.0.0.1", AddressError::NotIpv4),
            ("10.0.1:4317", AddressError::NotIpv4),
            ("0.0.0.0:4317", AddressError::NotUnicast),
            ("[::]:4317", AddressError::NotUnicast),
            ("[::ffff:0.0.0.0]:4317", AddressError::NotUnicast),
            ("[ff02::1]:4317", AddressError::NotUnicast),
            ("224.0.0.1", AddressError::NotUnicast),
            ("0.1.2.3", AddressError::NotUnicast),
            ("240.0.0.1:4317", AddressError::NotUnicast),
            ("255.255.255.255", AddressError::NotUnicast),
            ("[::ffff:240.0.0.1]", AddressError::NotUnicast),
            ("a..b", AddressError::Name),
            ("käse", AddressError::Name),
            (".", AddressError::Name),
        ];
        for (written, error) in cases {
            assert_eq!(check(written), Err(error), "{written:?}");
        }
        assert_eq!(check(&"a".repeat(64)), Err(AddressError::Name));
        for written in ["collector", "Collector.Obs.svc.:14317", "10.0.0.1", "[fd00::1]:1", "[::ffff:10.0.0.1]:9"] {
            assert_eq!(check(written), Ok(()), "{written:?}");
        }
        for (name, error) in [
            ("", AddressError::Empty),
            ("a:1", AddressError::NameOnly),
            ("a b", AddressError::Name),
            ("10.0.0.1", AddressError::NotAName),
            ("[::1]", AddressError::NotAName),
        ] {
            assert_eq!(check_hostname(name), Err(error), "{name:?}");
        }
    }
}
