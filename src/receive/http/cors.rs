//! Tells browsers which web pages may send here (cross-origin resource sharing, <https://fetch.spec.whatwg.org>).
//!
//! A page is allowed to send by its origin. Browsers enforce this; other clients need no leave. The port takes no
//! credentials of browsers, but `navigator.sendBeacon` always sends with them, so pages that are allowed by name get leave
//! for that.

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode,
    header::{
        ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
        ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
        ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
    },
    request::Parts,
};
use http_body_util::Full;

use crate::settings;

/// The request headers that every page may set. OTLP needs the content type and, with compression, the encoding.
const USUAL_HEADERS: [&str; 5] = ["accept", "content-type", "content-encoding", "origin", "x-requested-with"];

const ANY: &str = "*";
const TRUE: HeaderValue = HeaderValue::from_static("true");
const POST: HeaderValue = HeaderValue::from_static("POST");
const EVERY_ORIGIN: HeaderValue = HeaderValue::from_static(ANY);
const VARY_ORIGIN: HeaderValue = HeaderValue::from_static("Origin");
const VARY_PREFLIGHT: HeaderValue =
    HeaderValue::from_static("Origin, Access-Control-Request-Method, Access-Control-Request-Headers");

/// The pages that may send here, and what their requests may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cors {
    origins: Vec<Pattern>,
    /// `None` for any.
    headers: Option<Vec<HeaderName>>,
    exposed: Option<HeaderValue>,
    max_age: u32,
}

/// The origins before and after the `*`, or one origin.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Pattern {
    Is(String),
    Between(String, String),
}

/// A value of the section that cannot be used: its key and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unusable {
    /// The key.
    pub key: &'static str,
    /// The value.
    pub value: String,
    /// What is wrong: a clause about the value.
    pub what: &'static str,
}

/// Returns whether a request asks what is allowed.
pub(super) fn is_preflight(parts: &Parts) -> bool {
    parts.method == Method::OPTIONS && parts.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

// === impl Cors ===

impl Cors {
    /// Reads the section. Returns all values that cannot be used.
    pub fn new(keys: &settings::Cors) -> Result<Self, Vec<Unusable>> {
        let mut unusable = Vec::new();
        let mut origins = Vec::new();
        for origin in &keys.allowed_origins {
            match Pattern::new(origin) {
                Ok(pattern) => origins.push(pattern),
                Err(what) => unusable.push(Unusable { key: "allowed_origins", value: origin.clone(), what }),
            }
        }
        let mut names = |key, list: &[String]| {
            let mut names = Vec::new();
            for name in list.iter().filter(|name| *name != ANY) {
                match HeaderName::from_bytes(name.as_bytes()) {
                    Ok(name) => names.push(name),
                    Err(_) => unusable.push(Unusable { key, value: name.clone(), what: "is not the name of a header" }),
                }
            }
            names
        };
        let headers = names("allowed_headers", &keys.allowed_headers);
        let exposed = names("exposed_headers", &keys.exposed_headers);
        let is_any = keys.allowed_headers.iter().any(|name| name == ANY);
        let exposed = exposed.iter().map(HeaderName::as_str).collect::<Vec<_>>().join(", ");
        if !unusable.is_empty() {
            return Err(unusable);
        }
        Ok(Self {
            origins,
            headers: (!is_any).then_some(headers),
            exposed: HeaderValue::from_str(&exposed).ok().filter(|value| !value.is_empty()),
            max_age: keys.max_age,
        })
    }

    /// Answers a request that asks what is allowed. If it is not, the answer says nothing.
    pub(super) fn preflight(&self, asked: &HeaderMap) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::NO_CONTENT;
        let headers = response.headers_mut();
        headers.insert(VARY, VARY_PREFLIGHT);
        let wanted = asked.get(ACCESS_CONTROL_REQUEST_HEADERS);
        let is_post = asked.get(ACCESS_CONTROL_REQUEST_METHOD).is_some_and(|method| method == Method::POST.as_str());
        if !is_post || !wanted.is_none_or(|names| self.allows(names)) || !self.allow_origin(asked.get(ORIGIN), headers)
        {
            return response;
        }
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, POST);
        if let Some(names) = wanted {
            headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, names.clone());
        }
        if self.max_age > 0 {
            headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from(self.max_age));
        }
        response
    }

    /// Lets a page of `origin` read the answer, if it may send here.
    pub(super) fn allow(&self, origin: Option<&HeaderValue>, answer: &mut HeaderMap) {
        answer.append(VARY, VARY_ORIGIN);
        if self.allow_origin(origin, answer)
            && let Some(exposed) = &self.exposed
        {
            answer.insert(ACCESS_CONTROL_EXPOSE_HEADERS, exposed.clone());
        }
    }

    fn allow_origin(&self, origin: Option<&HeaderValue>, answer: &mut HeaderMap) -> bool {
        let Some(value) = origin else { return false };
        let origin = value.as_bytes().to_ascii_lowercase();
        if !self.origins.iter().any(|pattern| pattern.matches(&origin)) {
            return false;
        }
        if self.origins.iter().any(Pattern::is_any) {
            answer.insert(ACCESS_CONTROL_ALLOW_ORIGIN, EVERY_ORIGIN);
        } else {
            answer.insert(ACCESS_CONTROL_ALLOW_ORIGIN, value.clone());
            answer.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, TRUE);
        }
        true
    }

    /// Returns whether a page may set all headers of a list.
    fn allows(&self, names: &HeaderValue) -> bool {
        let Some(allowed) = &self.headers else { return true };
        names.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|name| !name.is_empty()).all(
            |name| {
                let is = |known: &str| known.as_bytes().eq_ignore_ascii_case(name);
                USUAL_HEADERS.iter().any(|known| is(known)) || allowed.iter().any(|known| is(known.as_str()))
            },
        )
    }
}

// === impl Pattern ===

impl Pattern {
    fn new(origin: &str) -> Result<Self, &'static str> {
        let origin = origin.to_ascii_lowercase();
        if HeaderValue::from_str(&origin).is_err() || origin.is_empty() {
            return Err("is not an origin; write https://shop.example.com");
        }
        let Some((before, after)) = origin.split_once('*') else {
            let has_path = origin.split_once("://").is_none_or(|(_, host)| host.contains('/'));
            // Pages of files have the origin null.
            let is_origin = origin == "null" || !has_path;
            return if is_origin {
                Ok(Self::Is(origin))
            } else {
                Err("is not an origin; write https://shop.example.com")
            };
        };
        if after.contains('*') {
            return Err("has more than one *");
        }
        Ok(Self::Between(before.to_owned(), after.to_owned()))
    }

    /// Returns whether the pattern matches an origin in lower case.
    fn matches(&self, origin: &[u8]) -> bool {
        match self {
            Self::Is(known) => known.as_bytes() == origin,
            Self::Between(before, after) => {
                let (before, after) = (before.as_bytes(), after.as_bytes());
                origin.len() >= before.len() + after.len() && origin.starts_with(before) && origin.ends_with(after)
            }
        }
    }

    fn is_any(&self) -> bool {
        matches!(self, Self::Between(before, after) if before.is_empty() && after.is_empty())
    }
}
