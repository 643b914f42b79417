//! The address of a running proxy's admin listener, as people write it on the command line: `host:port`, or the URL of the
//! listener. Every other form is an error that says what to write.

use std::{fmt, str::FromStr};

use crate::settings::{
    addresses::{ADMIN_PORT, HostPort, ListenAddress},
    values::ValueError,
};

/// `host:port` of an admin listener, with or without `http://`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AdminAddress(HostPort);

/// The reason why a text is not the address of an admin listener.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AdminAddressError {
    /// A URL with TLS.
    #[error("the admin listener has no TLS; write {0}")]
    Tls(String),
    /// A URL with a path.
    #[error("\"{path}\" is not needed, the command knows its path; write {address}")]
    Path {
        /// The path.
        path: String,
        /// The rest.
        address: String,
    },
    /// A port without a host.
    #[error("\"{0}\" names no host; write localhost:{1}")]
    NoHost(String, u16),
    /// A URL without a port.
    #[error("\"{0}\" has no port; write {0}:{ADMIN_PORT}")]
    NoPort(String),
    /// Everything else.
    #[error(transparent)]
    Address(#[from] ValueError),
}

impl AdminAddress {
    /// Returns the default address of a proxy on this machine.
    pub(crate) fn local() -> Self {
        Self(ListenAddress::<ADMIN_PORT>::local().0)
    }

    /// Returns the host as text, without the brackets of IPv6, and the port.
    pub(crate) fn host_and_port(&self) -> (String, u16) {
        (self.0.host.to_string(), self.0.port)
    }
}

impl FromStr for AdminAddress {
    type Err = AdminAddressError;

    fn from_str(text: &str) -> Result<Self, AdminAddressError> {
        let is_tls = text.starts_with("https://");
        let rest = ["http://", "https://"].iter().find_map(|scheme| text.strip_prefix(scheme)).unwrap_or(text);
        let (address, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let port = |port: &str| port.parse().ok().filter(|port| *port != 0);
        if let Some(port) = address.strip_prefix(':').or(Some(address)).and_then(port) {
            return Err(AdminAddressError::NoHost(text.to_owned(), port));
        }
        let parsed = match address.parse() {
            Err(ValueError::NoPort(host, _)) => return Err(AdminAddressError::NoPort(host)),
            parsed => parsed?,
        };
        if is_tls {
            return Err(AdminAddressError::Tls(address.to_owned()));
        }
        if !matches!(path, "" | "/") {
            return Err(AdminAddressError::Path { path: path.to_owned(), address: address.to_owned() });
        }
        Ok(Self(parsed))
    }
}

impl fmt::Display for AdminAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<String, String> {
        text.parse::<AdminAddress>().map(|address| address.to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn an_address_is_written_with_or_without_its_scheme() {
        for text in ["spanring-0:8888", "http://spanring-0:8888", "http://spanring-0:8888/", "spanring-0:8888/"] {
            assert_eq!(parse(text), Ok("spanring-0:8888".to_owned()));
        }
        assert_eq!(parse("http://[::1]:8888"), Ok("[::1]:8888".to_owned()));
        assert_eq!(AdminAddress::local().host_and_port(), ("127.0.0.1".to_owned(), ADMIN_PORT));
    }

    #[test]
    fn every_other_form_is_an_error_that_says_what_to_write() {
        for (text, expected) in [
            (":8888", "\":8888\" names no host; write localhost:8888"),
            ("8888", "\"8888\" names no host; write localhost:8888"),
            ("http://:8888", "\"http://:8888\" names no host; write localhost:8888"),
            ("spanring-0", "\"spanring-0\" has no port; write spanring-0:8888"),
            ("http://spanring-0/", "\"spanring-0\" has no port; write spanring-0:8888"),
            ("https://a:8888", "the admin listener has no TLS; write a:8888"),
            ("http://a:8888/readyz", "\"/readyz\" is not needed, the command knows its path; write a:8888"),
            ("a:8888/metrics?x", "\"/metrics?x\" is not needed, the command knows its path; write a:8888"),
            ("a:b", "\"a:b\" is not an address; write host:port, or [address]:port for IPv6"),
            ("", "\"\" is not an address; write host:port, or [address]:port for IPv6"),
            ("::1:8888", "\"::1:8888\" is not an address; write host:port, or [address]:port for IPv6"),
        ] {
            assert_eq!(parse(text), Err(expected.to_owned()), "{text}");
        }
    }
}
