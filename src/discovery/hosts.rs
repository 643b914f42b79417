//! The hosts file: addresses that hold without asking anybody.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

/// The longest file that is looked at.
pub(super) const MAX_BYTES: usize = 1024 * 1024;

/// What the file says, by name in small letters and without a dot at its end.
#[derive(Debug, Default)]
pub(super) struct Hosts(HashMap<String, BTreeSet<IpAddr>>);

impl Hosts {
    /// Reads the file's text; a line that begins with no address says nothing.
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

    /// The addresses of a name, if the file knows it.
    pub(super) fn get(&self, name: &str) -> Option<&BTreeSet<IpAddr>> {
        self.0.get(&key(name))
    }
}

fn key(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}
