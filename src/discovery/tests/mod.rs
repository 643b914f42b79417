//! Tests of the resolvers with a real name server in the same process. Each test calls the rounds one by one, without
//! sleeping.

mod dns;
mod fixed;
mod manners;
mod resolvers;
mod search;
mod server;
mod srv;
mod task;

use super::Config;
use crate::settings::{
    DnsResolver, StaticResolver,
    addresses::{Backend, Host, HostPort},
};

impl Config {
    /// A static resolver of these entries. An entry that is no address is kept as if it were a host.
    fn fixed<'a>(entries: impl IntoIterator<Item = &'a str>) -> Self {
        Self::Static(StaticResolver { hostnames: backends(entries), ..StaticResolver::default() })
    }

    /// A DNS resolver of that name.
    fn dns(hostname: &str) -> Self {
        Self::Dns(DnsResolver { hostname: hostname.to_owned(), ..DnsResolver::default() })
    }
}

/// These entries as a file has them.
fn backends<'a>(entries: impl IntoIterator<Item = &'a str>) -> Vec<Backend> {
    let as_host = |entry: &str| Backend::from(HostPort { host: Host::Name(entry.to_owned()), port: 4317 });
    entries.into_iter().map(|entry| entry.parse().unwrap_or_else(|_| as_host(entry))).collect()
}
