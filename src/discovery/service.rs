//! The name of a Kubernetes Service as operators write it.

use std::str::FromStr;

/// The greatest length of a name of Kubernetes that is part of a host name (RFC 1123).
const MAX_LABEL: usize = 63;

/// The name of a Service and, where it is written, its namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServiceName {
    /// The Service's name.
    pub(super) name: String,
    /// The namespace; `None` is that of the proxy.
    pub(super) namespace: Option<String>,
}

/// The reason why the name of a Service is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServiceError {
    /// Nothing is written.
    #[error("is missing; write service: NAME.NAMESPACE")]
    Empty,
    /// It has more parts than a name and a namespace.
    #[error("a Service is written NAME.NAMESPACE, without the zone of its name in DNS")]
    Zone,
    /// A part is not a name of Kubernetes.
    #[error("names of Kubernetes have 1 to 63 lower-case letters, digits and '-', the latter not at an end")]
    Label,
}

/// Checks the name of a Service: `NAME` or `NAME.NAMESPACE`.
pub fn check_service(written: &str) -> Result<(), ServiceError> {
    written.parse::<ServiceName>().map(drop)
}

impl FromStr for ServiceName {
    type Err = ServiceError;

    fn from_str(written: &str) -> Result<Self, ServiceError> {
        let (name, namespace) = match written.split_once('.') {
            _ if written.is_empty() => return Err(ServiceError::Empty),
            Some((_, namespace)) if namespace.contains('.') => return Err(ServiceError::Zone),
            Some((name, namespace)) => (name, Some(namespace)),
            None => (written, None),
        };
        if !is_label(name) || !namespace.is_none_or(is_label) {
            return Err(ServiceError::Label);
        }
        Ok(Self { name: name.to_owned(), namespace: namespace.map(str::to_owned) })
    }
}

/// Returns whether `text` can be the name of a namespace, a Service or a pod's host.
pub(super) fn is_label(text: &str) -> bool {
    let usual = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=MAX_LABEL).contains(&text.len()) && text.bytes().all(usual) && !text.starts_with('-') && !text.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_has_a_name_and_perhaps_a_namespace() {
        let parsed = |written: &str| written.parse().map(|ServiceName { name, namespace }| (name, namespace));
        assert_eq!(parsed("collectors"), Ok(("collectors".into(), None)));
        assert_eq!(parsed("a-1.observability"), Ok(("a-1".into(), Some("observability".into()))));
        assert_eq!(parsed(""), Err(ServiceError::Empty));
        for zone in ["a.b.svc", "a.b.svc.cluster.local", "a.b."] {
            assert_eq!(parsed(zone), Err(ServiceError::Zone), "{zone}");
        }
        for bad in ["A", "a.", ".b", "a_b", "-a", "a.b-", "a b", "ä", &"a".repeat(64)] {
            assert_eq!(check_service(bad), Err(ServiceError::Label), "{bad}");
        }
        assert_eq!(check_service(&"a".repeat(63)), Ok(()));
    }
}
