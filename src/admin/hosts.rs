//! The host names under which the admin address may be asked. A request that names another one is refused.
//!
//! A web page that somebody opens can make the browser send requests to any address, under the page's own name, if that name
//! is made to resolve to this address (DNS rebinding). Such a name is one of the public DNS, so these are always allowed:
//! addresses, names without a dot, and names below domains that the public DNS does not have. All others have to be
//! configured. A program that is no browser can name any host: this is no access control.

use std::net::IpAddr;

use http::{Request, header};

/// Domains that the public DNS does not have: reserved ones (RFC 6761, RFC 6762, ICANN's `internal`), and `svc`, below which
/// are the short names of Kubernetes' services.
const PRIVATE_DOMAINS: [&str; 5] = ["internal", "local", "localhost", "svc", "test"];

/// The most bytes of a host that an answer repeats.
const MAX_REPEATED: usize = 128;

/// The names that are allowed beside those that always are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hosts {
    /// Names in lower case.
    names: Vec<String>,
    /// Domains in lower case, below which all names are allowed.
    domains: Vec<String>,
    any: bool,
}

/// A request that is refused because of the host that it names.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this address does not answer for the host {0:?}: ask by an IP address, or set admin.allowed_hosts to [{0}] (or to [\"*\"], \
     which also lets web pages ask that make a browser resolve their own name to this address)"
)]
pub(super) struct Misdirected(String);

impl Hosts {
    /// Allows the host of the endpoint, and these: names, `*.` with a domain, or `*`.
    pub fn new<'a>(endpoint: &'a str, allowed: impl IntoIterator<Item = &'a str>) -> Self {
        let mut hosts = Self::default();
        for host in allowed.into_iter().chain([endpoint]).map(plain) {
            match host.strip_prefix("*.") {
                _ if host == "*" => hosts.any = true,
                Some(domain) => hosts.domains.push(domain.to_owned()),
                None => hosts.names.push(host),
            }
        }
        hosts
    }

    /// Checks the hosts that a request names: HTTP/2's `:authority` or the one in HTTP/1's target, and the header `Host`. A
    /// request may name none; those of browsers always do.
    pub(super) fn check<B>(&self, request: &Request<B>) -> Result<(), Misdirected> {
        let target = request.uri().authority().map(|authority| authority.as_str().as_bytes());
        let headers = request.headers().get_all(header::HOST).iter().map(http::HeaderValue::as_bytes);
        for host in target.into_iter().chain(headers) {
            let host = String::from_utf8_lossy(host);
            if !self.allows(&host) {
                let shown: String = host.chars().take(MAX_REPEATED).collect();
                return Err(Misdirected(plain(without_port(&shown))));
            }
        }
        Ok(())
    }

    fn allows(&self, host: &str) -> bool {
        let host = plain(without_port(host));
        let address = host.trim_start_matches('[').trim_end_matches(']');
        // An IPv6 address may have a zone.
        let address = address.split('%').next().unwrap_or_default();
        if self.any || host.is_empty() || address.parse::<IpAddr>().is_ok() || self.names.contains(&host) {
            return true;
        }
        let is_below = |domain: &str| host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'));
        let is_name = host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        is_name && (!host.contains('.') || PRIVATE_DOMAINS.into_iter().any(is_below))
            || self.domains.iter().any(|domain| is_below(domain))
    }
}

/// Returns a host name as it is compared: in lower case, without the dot at the end.
fn plain(host: &str) -> String {
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

/// Returns the host of `host:port`.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && is_whole(name) => name,
        _ => host,
    }
}

/// Whether this is a host without a port: an IPv6 address has colons too, in brackets if a port follows.
fn is_whole(host: &str) -> bool {
    !host.contains(':') || host.ends_with(']')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(hosts: &Hosts, target: &str, host: Option<&str>) -> Result<(), Misdirected> {
        let request = Request::get(target);
        let request = host.into_iter().fold(request, |request, host| request.header(header::HOST, host));
        hosts.check(&request.body(()).expect("a request"))
    }

    #[test]
    fn addresses_and_names_that_the_public_dns_does_not_have_are_always_allowed() {
        let hosts = Hosts::new("0.0.0.0", []);
        let allowed = [
            "127.0.0.1:8888",
            "10.1.2.3",
            "[::1]:8888",
            "[fe80::1%eth0]:8888",
            "::1",
            "localhost:8888",
            "spanring:8888",
            "my_proxy",
            "spanring-0.spanring.observability.svc:8888",
            "spanring.observability.svc.cluster.local",
            "SPANRING.Internal.:8888",
            "laptop.local",
            "a.test",
            "a.localhost",
            "",
        ];
        for host in allowed {
            assert_eq!(asks(&hosts, "/metrics", Some(host)), Ok(()), "{host}");
        }
        let refused = [
            "attacker.example:8888",
            "127.0.0.1.attacker.example",
            "10.0.0.1.nip.io",
            "localhost.attacker.example:8888",
            "xlocal.example",
            "attacker.com/.local",
            "a.com:80.local",
            "notlocal.xlocal",
            "spanring.dev",
        ];
        for host in refused {
            assert!(asks(&hosts, "/metrics", Some(host)).is_err(), "{host}");
        }
        assert_eq!(asks(&hosts, "/metrics", None), Ok(()), "no browser asks so");
    }

    #[test]
    fn configured_names_are_allowed_too() {
        let hosts = Hosts::new("Admin.Example.com", ["ring.example.com.", "*.obs.example.com"]);
        for host in ["admin.example.com:8888", "ring.example.com", "a.obs.example.com:1", "A.B.obs.example.COM."] {
            assert_eq!(asks(&hosts, "/", Some(host)), Ok(()), "{host}");
        }
        for host in ["example.com", "obs.example.com", "aobs.example.com", "x.ring.example.com"] {
            let text = asks(&hosts, "/", Some(host)).expect_err(host).to_string();
            assert!(text.contains(&format!("admin.allowed_hosts to [{host}]")), "{text}");
        }
        assert_eq!(asks(&Hosts::new("", ["*"]), "/", Some("attacker.example")), Ok(()));
    }

    #[test]
    fn every_host_that_a_request_names_is_checked() {
        let hosts = Hosts::new("", []);
        assert_eq!(asks(&hosts, "http://localhost:8888/", None), Ok(()));
        assert!(asks(&hosts, "http://attacker.example/", None).is_err(), ":authority");
        assert!(asks(&hosts, "http://attacker.example/", Some("localhost")).is_err());
        assert!(asks(&hosts, "http://localhost/", Some("attacker.example")).is_err());
    }
}
