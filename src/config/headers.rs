//! Headers: which of a client's go on to backends, which each pool adds. Values of the latter are secrets.

use std::str::FromStr;

use http::{HeaderName, HeaderValue};

use super::said::Said;
use crate::settings::{Headers, Secret};

/// Names that one list may have.
pub(crate) const MAX_NAMES: usize = 32;

/// Names to which HTTP or gRPC give a meaning between two neighbours, so that they are ours to write.
const RESERVED: [&str; 15] = [
    "accept-encoding",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
];

/// Complaints: the entry, and what is wrong with it.
pub(super) type Complaints = Vec<(String, Said)>;

/// The headers that `names` stand for.
pub(super) fn names(names: &[String]) -> Result<Vec<HeaderName>, Complaints> {
    let mut complaints = bound(names.len());
    let mut known = Vec::new();
    for name in names {
        match self::name(name) {
            Ok(name) if known.contains(&name) => complaints.push((name.to_string(), twice(&name))),
            Ok(name) => known.push(name),
            Err(message) => complaints.push((name.clone(), message)),
        }
    }
    if complaints.is_empty() { Ok(known) } else { Err(complaints) }
}

/// Whether a header can be sent.
pub(crate) fn can_send(name: &str, value: String) -> bool {
    Headers([(name.to_owned(), Secret(value))].into()).room().is_ok()
}

impl Headers {
    /// As they are sent.
    pub(super) fn room(&self) -> Result<Vec<(HeaderName, HeaderValue)>, Complaints> {
        let mut complaints = bound(self.0.len());
        let mut known: Vec<(HeaderName, HeaderValue)> = Vec::new();
        for (name, Secret(value)) in &self.0 {
            match (self::name(name), HeaderValue::from_str(value)) {
                (Err(message), _) => complaints.push((name.clone(), message)),
                (Ok(header), _) if known.iter().any(|(known, _)| *known == header) => {
                    complaints.push((name.clone(), twice(&header)));
                }
                (Ok(_), Err(_)) => {
                    let message = "the value of this header has characters that no header may have (it is not shown)";
                    complaints.push((name.clone(), message.into()));
                }
                (Ok(header), Ok(mut value)) => {
                    // Shown by no `Debug`, kept in no table of HTTP/2.
                    value.set_sensitive(true);
                    known.push((header, value));
                }
            }
        }
        if complaints.is_empty() { Ok(known) } else { Err(complaints) }
    }
}

fn bound(count: usize) -> Complaints {
    let message = || format!("has {count} headers; {MAX_NAMES} are the most");
    (count > MAX_NAMES).then(|| (String::new(), message().into())).into_iter().collect()
}

fn twice(name: &HeaderName) -> Said {
    Said::of(name, |name| format!("{name} is listed twice; case does not matter"))
}

fn name(text: &str) -> Result<HeaderName, Said> {
    let name = HeaderName::from_str(text).map_err(|_| Said::of(text, |name| format!("{name} is not a header name")))?;
    if RESERVED.contains(&name.as_str()) || name.as_str().starts_with("grpc-") {
        return Err(Said::of(&name, |name| format!("{name} is HTTP's or gRPC's own and is not passed on")));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(list: &[&str]) -> Vec<String> {
        let list: Vec<String> = list.iter().map(|name| (*name).to_owned()).collect();
        names(&list).expect_err("bad names").into_iter().map(|(_, said)| said.shown).collect()
    }

    #[test]
    fn names_are_lower_case_and_none_that_have_a_meaning_here() {
        let good = names(&["X-Scope-OrgID".into(), "authorization".into(), "x-trace-bin".into()]).expect("good names");
        assert_eq!(good, ["x-scope-orgid", "authorization", "x-trace-bin"]);
        assert_eq!(complaints(&["x-a", "X-A"]), ["\"x-a\" is listed twice; case does not matter"]);
        assert_eq!(complaints(&["a b", ":path", ""]).len(), 3);
        for reserved in ["grpc-timeout", "Grpc-Tags-Bin", "TE", "content-type", "Connection", "host"] {
            assert!(complaints(&[reserved])[0].ends_with("is HTTP's or gRPC's own and is not passed on"), "{reserved}");
        }
        let many: Vec<String> = (0..=MAX_NAMES).map(|n| format!("x-{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(complaints(&many), ["has 33 headers; 32 are the most"]);
    }

    #[test]
    fn values_are_never_shown() {
        let headers = |value: &str| Headers([("X-Token".to_owned(), Secret(value.to_owned()))].into());
        let room = headers("hunter2").room().expect("good");
        assert_eq!(room[0], (HeaderName::from_static("x-token"), HeaderValue::from_static("hunter2")));
        let shown = format!("{room:?} {:?} {:?}", headers("hunter2"), headers("hunter2\n").room());
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
