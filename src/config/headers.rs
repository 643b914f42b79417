//! Checks the names and values of headers: those that are forwarded from clients to backends, and those that a pool
//! adds.

use std::str::FromStr;

use http::{HeaderName, HeaderValue};

use super::message::Message;
use crate::settings::{Headers, Secret};

/// The most names that one list may have.
pub(crate) const MAX_NAMES: usize = 32;

/// Headers that belong to one connection or one call of HTTP or gRPC. Only the proxy itself writes them.
const RESERVED: [&str; 16] = [
    "accept-encoding",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
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

/// Errors, each with the name of the header, or an empty name for the whole list, and a message.
pub(super) type Errors = Vec<(String, Message)>;

/// Checks a list of names.
pub(super) fn checked_names(names: &[String]) -> Result<Vec<HeaderName>, Errors> {
    let mut errors = count_error(names.len());
    let mut checked = Vec::new();
    for name in names {
        match checked_name(name) {
            Ok(name) if checked.contains(&name) => errors.push((name.to_string(), listed_twice(&name))),
            Ok(name) => checked.push(name),
            Err(message) => errors.push((name.clone(), message)),
        }
    }
    if errors.is_empty() { Ok(checked) } else { Err(errors) }
}

/// Returns whether a pool can have this header.
pub(crate) fn can_send(name: &str, value: String) -> bool {
    Headers([(name.to_owned(), Secret(value))].into()).checked().is_ok()
}

impl Headers {
    /// Checks the headers, and returns them as they are sent.
    pub(super) fn checked(&self) -> Result<Vec<(HeaderName, HeaderValue)>, Errors> {
        let mut errors = count_error(self.0.len());
        let mut checked: Vec<(HeaderName, HeaderValue)> = Vec::new();
        for (name, Secret(value)) in &self.0 {
            match (checked_name(name), HeaderValue::from_str(value)) {
                (Err(message), _) => errors.push((name.clone(), message)),
                (Ok(header), _) if checked.iter().any(|(known, _)| *known == header) => {
                    errors.push((name.clone(), listed_twice(&header)));
                }
                (Ok(_), Err(_)) => {
                    let message = "the value of this header has characters that no header may have (it is not shown)";
                    errors.push((name.clone(), message.into()));
                }
                (Ok(header), Ok(mut value)) => {
                    // `Debug` does not show it, and HTTP/2 does not put it into its table of headers.
                    value.set_sensitive(true);
                    checked.push((header, value));
                }
            }
        }
        if errors.is_empty() { Ok(checked) } else { Err(errors) }
    }
}

fn count_error(count: usize) -> Errors {
    let message = || format!("has {count} headers; {MAX_NAMES} are the most");
    (count > MAX_NAMES).then(|| (String::new(), message().into())).into_iter().collect()
}

fn listed_twice(name: &HeaderName) -> Message {
    Message::about(name, |name| format!("{name} is listed twice; case does not matter"))
}

fn checked_name(text: &str) -> Result<HeaderName, Message> {
    let is_no_name = |_| Message::about(text, |name| format!("{name} is not a header name"));
    let name = HeaderName::from_str(text).map_err(is_no_name)?;
    if RESERVED.contains(&name.as_str()) || name.as_str().starts_with("grpc-") {
        return Err(Message::about(&name, |name| format!("{name} is HTTP's or gRPC's own and is not passed on")));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(list: &[&str]) -> Vec<String> {
        let list: Vec<String> = list.iter().map(|name| (*name).to_owned()).collect();
        checked_names(&list).expect_err("bad names").into_iter().map(|(_, message)| message.shown).collect()
    }

    #[test]
    fn names_become_lower_case_and_reserved_ones_are_refused() {
        let good =
            checked_names(&["X-Scope-OrgID".into(), "authorization".into(), "x-trace-bin".into()]).expect("good names");
        assert_eq!(good, ["x-scope-orgid", "authorization", "x-trace-bin"]);
        assert_eq!(complaints(&["x-a", "X-A"]), ["\"x-a\" is listed twice; case does not matter"]);
        assert_eq!(complaints(&["a b", ":path", ""]).len(), 3);
        for reserved in ["grpc-timeout", "Grpc-Tags-Bin", "TE", "content-type", "Connection", "Expect", "host"] {
            assert!(complaints(&[reserved])[0].ends_with("is HTTP's or gRPC's own and is not passed on"), "{reserved}");
        }
        let many: Vec<String> = (0..=MAX_NAMES).map(|n| format!("x-{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(complaints(&many), ["has 33 headers; 32 are the most"]);
    }

    #[test]
    fn values_are_never_shown() {
        let headers = |value: &str| Headers([("X-Token".to_owned(), Secret(value.to_owned()))].into());
        let checked = headers("hunter2").checked().expect("good");
        assert_eq!(checked[0], (HeaderName::from_static("x-token"), HeaderValue::from_static("hunter2")));
        let shown = format!("{checked:?} {:?} {:?}", headers("hunter2"), headers("hunter2\n").checked());
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
