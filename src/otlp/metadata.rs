//! The headers of a request that are forwarded to backends. The operator configures their names; their values are never
//! interpreted. With them goes the number of proxies of this kind that the request passed through.

use std::{fmt, hash::Hasher};

use http::{HeaderMap, HeaderName, HeaderValue};
use xxhash_rust::xxh3::Xxh3;

/// Limit of forwarded values in one request.
pub const MAX_VALUES: usize = 64;

/// Limit of the forwarded headers' names and values in bytes, far below the limit that backends have for headers.
pub const MAX_BYTES: usize = 4 << 10;

/// The header with the number of proxies of this kind that a request passed through before it arrives: `1` behind the
/// first one. It ends loops of proxies that are in each other's pools.
pub const HOPS_HEADER: &str = "spanring-hops";

/// Returns how many proxies of this kind the request with these `headers` passed through; 0 if its sender does not say so.
pub fn hops(headers: &HeaderMap) -> u8 {
    headers.get(HOPS_HEADER).and_then(|value| value.to_str().ok()?.parse().ok()).unwrap_or(0)
}

/// The forwarded headers of a request, unchanged. They are equal when all bytes are. Requests with different headers
/// never share a call.
#[derive(Clone, PartialEq, Eq)]
pub struct Metadata {
    /// Hash of all names and values. It is compared first, since it nearly always tells different headers apart.
    hash: u64,
    /// Names in the operator's order; several values of a name in the client's order.
    headers: Box<[(HeaderName, HeaderValue)]>,
    /// The number of proxies of this kind that the request passed through.
    hops: u8,
}

/// A request has more forwarded headers than allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the headers that go on to backends (include_metadata) are more than {MAX_VALUES} values or {MAX_BYTES} bytes")]
pub struct TooMuch;

impl Metadata {
    /// Collects the values of `names` and the number of proxies from `headers`; `None` when there are none.
    pub fn of(names: &[HeaderName], headers: &HeaderMap) -> Result<Option<Self>, TooMuch> {
        let mut found = Vec::new();
        let (mut bytes, mut hash) = (0_usize, Xxh3::new());
        for (name, value) in selected(names, headers) {
            bytes += name.as_str().len() + value.len();
            if found.len() == MAX_VALUES || bytes > MAX_BYTES {
                return Err(TooMuch);
            }
            hash.write(name.as_str().as_bytes());
            hash.write_usize(value.len());
            hash.write(value.as_bytes());
            found.push((name.clone(), value.clone()));
        }
        let hops = hops(headers);
        Ok((!found.is_empty() || hops > 0).then(|| Self { hash: hash.finish(), headers: found.into(), hops }))
    }

    /// Whether `headers` have exactly these values for `names`, and this number of proxies.
    pub fn is_of(&self, names: &[HeaderName], headers: &HeaderMap) -> bool {
        selected(names, headers).eq(self.headers.iter().map(|(name, value)| (name, value)))
            && self.hops == hops(headers)
    }

    /// Adds the values to a request's headers, except for names that these already contain. Counts this proxy as one more
    /// that the request passes through.
    pub fn add_to(&self, headers: &mut HeaderMap) {
        if self.hops > 0 {
            headers.insert(HeaderName::from_static(HOPS_HEADER), u16::from(self.hops.saturating_add(1)).into());
        }
        let mut of_before: Option<(&HeaderName, bool)> = None;
        for (name, value) in &self.headers {
            let taken = match of_before {
                Some((before, taken)) if before == name => taken,
                _ => headers.contains_key(name),
            };
            of_before = Some((name, taken));
            if !taken {
                headers.append(name.clone(), value.clone());
            }
        }
    }
}

fn selected<'a>(
    names: &'a [HeaderName],
    headers: &'a HeaderMap,
) -> impl Iterator<Item = (&'a HeaderName, &'a HeaderValue)> {
    names.iter().flat_map(|name| headers.get_all(name).iter().map(move |value| (name, value)))
}

/// Shows only the names, since values may be tokens.
impl fmt::Debug for Metadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.headers.iter().map(|(name, _)| name)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&'static str]) -> Vec<HeaderName> {
        names.iter().copied().map(HeaderName::from_static).collect()
    }

    fn headers(headers: &[(&'static str, &[u8])]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &[u8])| {
            (HeaderName::from_static(name), HeaderValue::from_bytes(value).unwrap())
        };
        headers.iter().map(pair).collect()
    }

    fn of(pairs: &[(&'static str, &[u8])]) -> Option<Metadata> {
        Metadata::of(&names(&["x-scope-orgid", "x-bin"]), &headers(pairs)).unwrap()
    }

    #[test]
    fn only_what_is_named_goes_on_every_byte_of_it_in_its_order() {
        let all: [(&str, &[u8]); 5] =
            [("x-bin", b"AP8="), ("cookie", b"c"), ("x-scope-orgid", b"b\xff"), ("x-scope-orgid", b""), ("te", b"t")];
        let mut sent = HeaderMap::new();
        of(&all).unwrap().add_to(&mut sent);
        assert_eq!(sent, headers(&[("x-scope-orgid", b"b\xff"), ("x-scope-orgid", b""), ("x-bin", b"AP8=")]));
        assert_eq!(of(&[("cookie", b"c")]), None);
    }

    #[test]
    fn equal_is_what_says_the_same() {
        let one = of(&[("x-scope-orgid", b"a"), ("x-scope-orgid", b"b")]);
        assert_eq!(one, of(&[("x-scope-orgid", b"a"), ("cookie", b"x"), ("x-scope-orgid", b"b")]));
        for other in [&[("x-scope-orgid", &b"b"[..]), ("x-scope-orgid", b"a")][..], &[("x-scope-orgid", b"ab")], &[]] {
            assert_ne!(one, of(other), "{other:?}");
            let is_of = one.as_ref().unwrap().is_of(&names(&["x-scope-orgid", "x-bin"]), &headers(other));
            assert!(!is_of, "{other:?}");
        }
        assert_ne!(of(&[("x-scope-orgid", b"a")]), of(&[("x-bin", b"a")]));
    }

    #[test]
    fn what_the_operator_wrote_for_a_backend_stands_above_what_clients_say() {
        let mut sent = headers(&[("x-scope-orgid", b"fixed")]);
        of(&[("x-scope-orgid", b"a"), ("x-scope-orgid", b"b"), ("x-bin", b"AA")]).unwrap().add_to(&mut sent);
        assert_eq!(sent, headers(&[("x-scope-orgid", b"fixed"), ("x-bin", b"AA")]));
    }

    #[test]
    fn a_client_can_bring_so_much_and_no_more() {
        let name = names(&["x-scope-orgid"]);
        let many = |count: usize, len: usize| {
            let value = HeaderValue::from_bytes(&vec![b'v'; len]).unwrap();
            let headers = (0..count).map(|_| (name[0].clone(), value.clone())).collect();
            Metadata::of(&name, &headers).map(|metadata| metadata.is_some())
        };
        assert_eq!(many(MAX_VALUES, 1), Ok(true));
        assert_eq!(many(MAX_VALUES + 1, 1), Err(TooMuch));
        assert_eq!(many(1, MAX_BYTES - name[0].as_str().len()), Ok(true));
        assert_eq!(many(1, MAX_BYTES), Err(TooMuch));
    }

    #[test]
    fn each_proxy_counts_itself() {
        let behind = |hops: &'static [u8]| Metadata::of(&[], &headers(&[(HOPS_HEADER, hops)])).unwrap();
        let mut sent = headers(&[(HOPS_HEADER, b"1")]);
        behind(b"1").unwrap().add_to(&mut sent);
        assert_eq!(sent, headers(&[(HOPS_HEADER, b"2")]));
        assert_eq!([behind(b"0"), behind(b"none"), behind(b"256")], [None, None, None]);
        assert_ne!(behind(b"1"), behind(b"2"));
        assert!(behind(b"2").unwrap().is_of(&[], &sent));
        assert!(!behind(b"2").unwrap().is_of(&[], &headers(&[(HOPS_HEADER, b"1")])));
    }

    #[test]
    fn values_are_not_shown() {
        let shown = format!("{:?}", of(&[("x-scope-orgid", b"secret")]));
        assert_eq!(shown, "Some([\"x-scope-orgid\"])");
    }
}
