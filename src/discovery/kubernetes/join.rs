//! Joins the EndpointSlices of a Service to one set of backends. Pure.
//!
//! A pod can be in several slices: in one for each address family, and for a moment in two of the same family while
//! Kubernetes moves it. It is one backend all the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::{
    super::{MAX_ENDPOINTS, address::is_unicast, service::is_label},
    slices::{AddressType, Conditions, Member, Slice},
};
use crate::endpoint::Endpoint;

/// What decides how endpoints become backends.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    /// The Service's name.
    pub(super) service: String,
    /// Its namespace.
    pub(super) namespace: String,
    /// The ports; each is a backend of its own.
    pub(super) ports: Vec<u16>,
    /// Whether a backend is identified by its host name: always, never, or if it has one.
    pub(super) hostnames: Option<bool>,
}

/// The backends of a Service, and the endpoints that are none.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Joined {
    /// The backends, sorted by identity, each once.
    pub(super) endpoints: Vec<Endpoint>,
    /// What was left out.
    pub(super) left_out: LeftOut,
}

/// The numbers of endpoints that were left out, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LeftOut {
    /// They are not ready and not terminating.
    pub(super) not_serving: usize,
    /// They have no host name, and `return_hostnames` demands one.
    pub(super) without_hostname: usize,
    /// They have no address that can be dialled, or a host name that cannot exist.
    pub(super) unusable: usize,
    /// Another one has the same host name or the same address, so they are one backend with it.
    pub(super) merged: usize,
    /// They exceed the number of backends that a pool can have.
    pub(super) beyond: usize,
}

/// A pod, put together from all slices that list it.
#[derive(Debug, Default)]
struct Pod<'a> {
    v4: Option<IpAddr>,
    v6: Option<IpAddr>,
    hostname: Option<&'a str>,
    is_ready: bool,
    is_terminating: bool,
}

/// What identifies a pod in several slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum PodKey<'a> {
    /// The object's unique ID or, without one, its name.
    Object(&'a str),
    /// The host name, for slices that someone wrote by hand.
    Hostname(&'a str),
    /// The address: nothing tells which other address is the same endpoint.
    Address(IpAddr),
}

/// Whether an endpoint gets traces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    /// It is a backend.
    Active,
    /// It keeps what it has, and gets nothing new.
    Draining,
    /// It is no backend.
    None,
}

/// Joins all slices of a Service.
pub(super) fn join<'a>(slices: impl IntoIterator<Item = &'a Slice>, rules: &Rules) -> Joined {
    join_those(slices, rules, |usage| usage != Use::None)
}

/// Returns what would be the backends of a Service if those pods were ready that are not.
pub(super) fn join_unready<'a>(slices: impl IntoIterator<Item = &'a Slice>, rules: &Rules) -> Vec<Endpoint> {
    join_those(slices, rules, |usage| usage == Use::None).endpoints
}

fn join_those<'a>(
    slices: impl IntoIterator<Item = &'a Slice>,
    rules: &Rules,
    is_wanted: impl Fn(Use) -> bool,
) -> Joined {
    let mut left_out = LeftOut::default();
    let mut pods: BTreeMap<PodKey<'a>, Pod<'a>> = BTreeMap::new();
    for (slice, member) in slices.into_iter().flat_map(|slice| slice.endpoints.iter().map(move |one| (slice, one))) {
        let Some(ip) = address(slice.address_type, member) else {
            left_out.unusable += 1;
            continue;
        };
        pods.entry(key(member, ip)).or_default().absorb(member, ip);
    }
    let count = pods.len();
    pods.retain(|_, pod| is_wanted(pod.usage()));
    left_out.not_serving = count - pods.len();
    // As for `auto` of the dns resolver: IPv6 addresses are identities only where there are no IPv4 addresses. So a
    // pod whose two slices are written one after the other does not change its identity in between.
    let has_v4 = pods.values().any(|pod| pod.v4.is_some());
    let mut endpoints: Vec<Endpoint> = Vec::new();
    for pod in pods.values() {
        match pod.place(rules, has_v4) {
            Place::At(host, ip) => endpoints.extend(rules.ports.iter().map(|port| {
                let address = SocketAddr::new(ip, *port);
                let identity = host.map_or_else(
                    || address.to_string(),
                    |host| format!("{host}.{}.{}:{port}", rules.service, rules.namespace),
                );
                let (is_draining, is_stable_name) = (pod.usage() == Use::Draining, host.is_some());
                Endpoint { is_draining, is_stable_name, ..Endpoint::new(identity, Some(address)) }
            })),
            Place::NoHostname => left_out.without_hostname += 1,
            Place::Unusable => left_out.unusable += 1,
            Place::OtherFamily => {}
        }
    }
    (left_out.merged, left_out.beyond) = finish(&mut endpoints);
    Joined { endpoints, left_out }
}

/// Sorts by identity and leaves each identity and each address once: the one that does not drain, if a pod is replaced by
/// another one. Returns how many that do not drain were left out for that, and how many were too many.
fn finish(endpoints: &mut Vec<Endpoint>) -> (usize, usize) {
    let active = |endpoints: &[Endpoint]| endpoints.iter().filter(|endpoint| !endpoint.is_draining).count();
    let before = active(endpoints);
    endpoints.sort_unstable_by_key(|endpoint| (endpoint.is_draining, Arc::clone(&endpoint.identity)));
    let mut taken = BTreeSet::new();
    endpoints.retain(|endpoint| endpoint.address.is_none_or(|address| taken.insert(address)));
    endpoints.sort_unstable_by(|a, b| {
        a.identity.cmp(&b.identity).then(a.is_draining.cmp(&b.is_draining)).then(a.address.cmp(&b.address))
    });
    endpoints.dedup_by(|later, earlier| later.identity == earlier.identity);
    let merged = before - active(endpoints);
    let beyond = endpoints.len().saturating_sub(MAX_ENDPOINTS);
    endpoints.truncate(MAX_ENDPOINTS);
    // A ring is never emptied: where all of them end, they take what comes for as long as they are there.
    if endpoints.iter().all(|endpoint| endpoint.is_draining) {
        endpoints.iter_mut().for_each(|endpoint| endpoint.is_draining = false);
    }
    (merged, beyond)
}

/// Returns the address to dial. The API says that only the first of several is to be used.
fn address(family: AddressType, member: &Member) -> Option<IpAddr> {
    let ip: IpAddr = member.addresses.first()?.parse().ok()?;
    let fits = match family {
        AddressType::IPv4 => ip.is_ipv4(),
        AddressType::IPv6 => ip.is_ipv6(),
        AddressType::Other => false,
    };
    (fits && is_unicast(ip.to_canonical())).then_some(ip)
}

fn key(member: &Member, ip: IpAddr) -> PodKey<'_> {
    let target = member.target_ref.as_ref();
    let object = target.map(|target| if target.uid.is_empty() { &target.name } else { &target.uid });
    match (object.filter(|id| !id.is_empty()), member.hostname.as_deref()) {
        (Some(id), _) => PodKey::Object(id),
        (None, Some(hostname)) if !hostname.is_empty() => PodKey::Hostname(hostname),
        _ => PodKey::Address(ip),
    }
}

/// The place of a pod in the pool.
enum Place<'a> {
    /// It is identified by its host name, or else by its address, and is dialled at the address.
    At(Option<&'a str>, IpAddr),
    /// It has no host name and needs one.
    NoHostname,
    /// Its host name cannot exist.
    Unusable,
    /// It has only an IPv6 address, while others have IPv4 addresses.
    OtherFamily,
}

impl<'a> Pod<'a> {
    /// Adds what one slice says about the pod. It is ready if any slice says so. It is terminating if any slice says
    /// so, since that never ends.
    fn absorb(&mut self, member: &'a Member, ip: IpAddr) {
        let known = if ip.is_ipv4() { &mut self.v4 } else { &mut self.v6 };
        // The smallest one, so that the order of slices does not matter.
        *known = Some(known.map_or(ip, |known| known.min(ip)));
        self.hostname = self.hostname.or(member.hostname.as_deref().filter(|hostname| !hostname.is_empty()));
        let Conditions { ready, terminating } = member.conditions;
        self.is_ready |= ready.unwrap_or(true);
        self.is_terminating |= terminating.unwrap_or(false);
    }

    /// A terminating pod drains whatever `ready` says, which stays true with `publishNotReadyAddresses`, and whatever
    /// `serving` says: the pod may become unready before anybody sees that it ends, and must get nothing new then. If it
    /// does not take what began with it, it is ejected.
    fn usage(&self) -> Use {
        match self {
            Self { is_terminating: true, .. } => Use::Draining,
            Self { is_terminating: false, is_ready: true, .. } => Use::Active,
            Self { is_terminating: false, is_ready: false, .. } => Use::None,
        }
    }

    fn place(&self, rules: &Rules, has_v4: bool) -> Place<'a> {
        let hostname = self.hostname.filter(|_| rules.hostnames != Some(false));
        match (hostname, self.v4.or(self.v6)) {
            (_, None) => Place::Unusable,
            (Some(hostname), _) if !is_label(hostname) => Place::Unusable,
            (Some(hostname), Some(ip)) => Place::At(Some(hostname), ip),
            (None, _) if rules.hostnames == Some(true) => Place::NoHostname,
            (None, Some(ip)) if ip.is_ipv4() || !has_v4 => Place::At(None, ip),
            (None, Some(_)) => Place::OtherFamily,
        }
    }
}

impl LeftOut {
    /// Returns whether an operator should know: it is not the ordinary life of pods.
    pub(super) fn is_odd(&self) -> bool {
        self.without_hostname + self.unusable + self.merged + self.beyond > 0
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { not_serving, without_hostname, unusable, merged, beyond } = self;
        write!(
            f,
            "{not_serving} not ready, {without_hostname} without a hostname, {unusable} without a usable name or address, \
             {merged} with the name or address of another one, {beyond} beyond {MAX_ENDPOINTS}"
        )
    }
}

#[cfg(test)]
mod tests;
