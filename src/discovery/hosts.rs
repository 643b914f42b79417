//! Reads the hosts file, whose addresses take precedence over DNS.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

/// The number of bytes of the file that are read.
pub(super) const MAX_BYTES: usize = 1024 * 1024;

/// The addresses in the file, by name in lower case without a dot at the end.
#[derive(Debug, Default)]
pub(super) struct Hosts(HashMap<String, BTreeSet<IpAddr>>);

impl Hosts {
    /// Parses the file. Lines that do not begin with an IP address are ignored.
    pub(super) fn parse(text: &[u8]) -> Self {
        let mut hosts = HashMap::<_, BTreeSet<_>>::new();
        for line in text.get(..MAX_BYTES).unwrap_or(text).split(|byte| *byte == b'\n') {
            let line = String::from_utf8_lossy(line);
            let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
            let Some(ip) = words.next().and_then(|word| word.parse::<IpAddr>().ok()) else { continue };
            for name in words {
                hosts.entry(key(name)).or_default().insert(ip.to_canonical());
            }
        }
        Self(hosts)
    }

    /// Returns the addresses of `name`, if the file has any.
    pub(super) fn get(&self, name: &str) -> Option<&BTreeSet<IpAddr>> {
        self.0.get(&key(name))
    }
}

fn key(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}
