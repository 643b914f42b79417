//! How addresses are read from a file: each listener's with its own usual port, backends as a list or as one text.

use std::fmt;

use serde::{Deserializer, de};

use super::values::{Backend, HostPort, TextVisitor};

/// Reads `receivers.otlp.protocols.grpc.endpoint`.
pub(super) fn grpc<'de, D: Deserializer<'de>>(from: D) -> Result<HostPort, D::Error> {
    from.deserialize_str(TextVisitor { expecting: "an address such as localhost:4317", parse: HostPort::of_grpc })
}

/// Reads `admin.endpoint`.
pub(super) fn admin<'de, D: Deserializer<'de>>(from: D) -> Result<HostPort, D::Error> {
    from.deserialize_str(TextVisitor { expecting: "an address such as localhost:8888", parse: HostPort::of_admin })
}

/// Reads `health_check.endpoint`.
pub(super) fn probes<'de, D: Deserializer<'de>>(from: D) -> Result<HostPort, D::Error> {
    from.deserialize_str(TextVisitor { expecting: "an address such as 0.0.0.0:13133", parse: HostPort::of_probes })
}

/// Backends as a list, or as one text: what a variable holds is a list in YAML or with commas.
pub(super) fn backends<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Backend>, D::Error> {
    from.deserialize_any(BackendsVisitor)
}

struct BackendsVisitor;

impl<'de> de::Visitor<'de> for BackendsVisitor {
    type Value = Vec<Backend>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of backends such as [collector-0:4317, collector-1:4317]")
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut items: A) -> Result<Vec<Backend>, A::Error> {
        let mut backends = Vec::new();
        while let Some(backend) = items.next_element()? {
            backends.push(backend);
        }
        Ok(backends)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<Backend>, E> {
        let text = text.trim();
        // "[::1]:4317" begins as a list in YAML does.
        let is_list = text.starts_with('-') || (text.starts_with('[') && text.ends_with(']'));
        let listed = is_list.then(|| serde_saphyr::from_str::<Vec<String>>(text).ok()).flatten();
        let listed = listed.unwrap_or_else(|| text.split(',').map(|one| one.trim().to_owned()).collect());
        let written = listed.iter().filter(|one| !one.is_empty());
        written.map(|one| one.parse().map_err(E::custom)).collect()
    }
}
