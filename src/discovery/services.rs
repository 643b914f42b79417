//! SRV records (RFC 2782) as backends: their names, ports and addresses. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use hickory_resolver::proto::{
    op::Message,
    rr::{Name, RData, rdata::SRV},
};

use super::address::{check_name, is_unicast};

/// The target of one SRV record, and the addresses that came with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Service {
    /// The name of the target in lower case.
    pub(super) target: Name,
    pub(super) port: u16,
    pub(super) weight: u16,
    /// The addresses of the target in the additional records; none if it has to be looked up.
    pub(super) addresses: BTreeSet<IpAddr>,
}

/// The backends of an answer, each identity once.
pub(super) type Targets = BTreeMap<Arc<str>, Service>;

/// The addresses of the targets of one answer.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Located {
    /// The address of each backend, by identity; `None` if none is known.
    pub(super) addresses: BTreeMap<Arc<str>, Option<SocketAddr>>,
    /// The targets that have the address of another one, which was kept.
    pub(super) merged: BTreeSet<Arc<str>>,
}

impl Service {
    /// Returns the targets of the SRV records of these names: those with the lowest priority. A target that is no host
    /// name, and port 0, mean that nothing is offered there.
    pub(super) fn of(names: &[&Name], message: &Message) -> Vec<Self> {
        let mut addresses = BTreeMap::<&Name, BTreeSet<IpAddr>>::new();
        for record in &message.additionals {
            if let Some(ip) = record.data.ip_addr() {
                addresses.entry(&record.name).or_default().insert(ip.to_canonical());
            }
        }
        let records = message.answers.iter().filter(|record| names.contains(&&record.name));
        let records = records.filter_map(|record| if let RData::SRV(srv) = &record.data { Some(srv) } else { None });
        let usable = records.filter(|srv| srv.port != 0 && check_name(&srv.target.to_ascii()).is_ok());
        let usable: Vec<_> = usable.collect();
        let first = usable.iter().map(|srv| srv.priority).min();
        let preferred = usable.into_iter().filter(|srv| Some(srv.priority) == first);
        let service = |srv: &SRV| Self {
            target: srv.target.to_lowercase(),
            port: srv.port,
            weight: srv.weight,
            addresses: addresses.get(&srv.target).cloned().unwrap_or_default(),
        };
        preferred.map(service).collect()
    }

    /// Returns the identity of the backend: `name:port`, in lower case and without a dot at the end.
    pub(super) fn identity(&self) -> Arc<str> {
        format!("{}:{}", self.target.to_ascii().trim_end_matches('.'), self.port).into()
    }

    /// Removes addresses that cannot be dialled, and returns them.
    pub(super) fn drop_unusable(&mut self) -> BTreeSet<IpAddr> {
        let (usable, unusable) = self.addresses.iter().partition(|ip| is_unicast(**ip));
        self.addresses = usable;
        unusable
    }

    /// Returns the address to dial: `current` if it is still one of them, else the first; A records go before AAAA.
    fn address(&self, current: Option<SocketAddr>) -> Option<SocketAddr> {
        let has_v4 = self.addresses.iter().any(IpAddr::is_ipv4);
        let mut ips = self.addresses.iter().filter(|ip| ip.is_ipv4() == has_v4).peekable();
        let first = ips.peek().copied();
        let current = current.map(|address| address.ip());
        let ip = ips.find(|ip| Some(**ip) == current).or(first)?;
        Some(SocketAddr::new(*ip, self.port))
    }
}

/// Merges records of the same name and port; the greatest weight counts. Also returns the identities that were listed
/// more than once.
pub(super) fn by_identity(services: Vec<Service>) -> (Targets, BTreeSet<Arc<str>>) {
    let (mut targets, mut merged) = (Targets::new(), BTreeSet::new());
    for service in services {
        let identity = service.identity();
        match targets.get_mut(&identity) {
            None => drop(targets.insert(identity, service)),
            Some(known) => {
                known.weight = known.weight.max(service.weight);
                known.addresses.extend(service.addresses);
                merged.insert(identity);
            }
        }
    }
    (targets, merged)
}

/// Chooses the address of each target. Of targets that have the same address, only the first by name is kept: they are
/// one backend, which would get two shares. A target for which no address was found keeps the one it had before, unless
/// another target has that now.
pub(super) fn locate(targets: &Targets, before: impl Fn(&str) -> Option<SocketAddr>) -> Located {
    let (mut located, mut taken) = (Located::default(), BTreeSet::new());
    for (identity, service) in targets {
        match service.address(before(identity)) {
            Some(address) if !taken.insert(address) => drop(located.merged.insert(Arc::clone(identity))),
            address => drop(located.addresses.insert(Arc::clone(identity), address)),
        }
    }
    for (identity, address) in located.addresses.iter_mut().filter(|(_, address)| address.is_none()) {
        *address = before(identity).filter(|before| taken.insert(*before));
    }
    located
}

#[cfg(test)]
mod tests {
    use hickory_proto::{op::OpCode, rr::Record};

    use super::*;

    const NAME: &str = "_otlp-grpc._tcp.c.test.";

    fn message(records: &[(u16, u16, u16, &str)], additional: &[(&str, &str)]) -> Message {
        let mut message = Message::response(1, OpCode::Query);
        let srv = |(priority, weight, port, target): &(u16, u16, u16, &str)| {
            let srv = SRV::new(*priority, *weight, *port, target.parse().unwrap());
            Record::from_rdata(NAME.parse().unwrap(), 5, RData::SRV(srv))
        };
        message.add_answers(records.iter().map(srv));
        let address = |(name, ip): &(&str, &str)| {
            Record::from_rdata(name.parse().unwrap(), 5, RData::from(ip.parse::<IpAddr>().unwrap()))
        };
        message.add_additionals(additional.iter().map(address));
        message
    }

    fn services(records: &[(u16, u16, u16, &str)], additional: &[(&str, &str)]) -> Vec<Service> {
        Service::of(&[&NAME.parse().unwrap()], &message(records, additional))
    }

    /// Returns `identity=address` of the backends of these records, and the merged identities.
    fn located(services: Vec<Service>, before: &[(&str, &str)]) -> (String, String) {
        let before = |identity: &str| {
            let known = before.iter().find(|(known, _)| *known == identity);
            known.map(|(_, address)| address.parse().unwrap())
        };
        let (targets, mut merged) = by_identity(services);
        let located = locate(&targets, before);
        merged.extend(located.merged);
        let text = |(identity, address): (&Arc<str>, &Option<SocketAddr>)| match address {
            Some(address) => format!("{identity}={address}"),
            None => format!("{identity}=?"),
        };
        let all: Vec<String> = located.addresses.iter().map(text).collect();
        (all.join(" "), Vec::from_iter(merged).join(" "))
    }

    fn are(backends: &str, merged: &str) -> (String, String) {
        (backends.to_owned(), merged.to_owned())
    }

    #[test]
    fn the_lowest_priority_with_a_usable_target_counts() {
        let records = [
            (5, 1, 9, "."),
            (5, 1, 0, "no-port.test."),
            (5, 1, 9, "10.0.0.1."),
            (10, 1, 9, "a.test."),
            (20, 1, 9, "b.test."),
        ];
        let found = services(&records, &[]);
        assert_eq!(found.iter().map(|one| one.target.to_string()).collect::<Vec<_>>(), ["a.test."]);
        assert!(services(&[(0, 0, 0, ".")], &[]).is_empty(), "nothing is offered");
        let strange = Service::of(&[&"other.test.".parse().unwrap()], &message(&[(1, 1, 9, "a.test.")], &[]));
        assert!(strange.is_empty(), "records of other names are ignored");
    }

    #[test]
    fn names_are_compared_without_regard_to_case_and_keep_no_dot() {
        let found = services(&[(1, 1, 4317, "Collector-0.C.test.")], &[("collector-0.c.TEST.", "10.0.0.1")]);
        assert_eq!(located(found, &[]), are("collector-0.c.test:4317=10.0.0.1:4317", ""));
    }

    #[test]
    fn records_of_the_same_name_and_port_are_one_backend() {
        let records = [(1, 3, 9, "a.test."), (1, 7, 9, "A.test."), (1, 1, 10, "a.test.")];
        let (targets, merged) = by_identity(services(&records, &[]));
        let weights: Vec<(&str, u16)> = targets.iter().map(|(identity, one)| (&**identity, one.weight)).collect();
        assert_eq!(weights, [("a.test:10", 1), ("a.test:9", 7)]);
        assert_eq!(merged, ["a.test:9".into()].into());
    }

    #[test]
    fn names_of_the_same_address_are_one_backend_by_the_first_name() {
        let records = [(1, 1, 9, "b.test."), (1, 1, 9, "a.test."), (1, 1, 10, "c.test.")];
        let same = [("a.test.", "10.0.0.1"), ("b.test.", "10.0.0.1"), ("c.test.", "10.0.0.1")];
        let expected = are("a.test:9=10.0.0.1:9 c.test:10=10.0.0.1:10", "b.test:9");
        assert_eq!(located(services(&records, &same), &[]), expected);
    }

    #[test]
    fn the_current_address_is_kept_and_a_before_aaaa() {
        let found = || {
            let addresses = [("a.test.", "10.0.0.2"), ("a.test.", "10.0.0.1"), ("a.test.", "fd00::1")];
            services(&[(1, 1, 9, "a.test.")], &addresses)
        };
        assert_eq!(located(found(), &[]).0, "a.test:9=10.0.0.1:9");
        assert_eq!(located(found(), &[("a.test:9", "10.0.0.2:9")]).0, "a.test:9=10.0.0.2:9");
        assert_eq!(located(found(), &[("a.test:9", "[fd00::1]:9")]).0, "a.test:9=10.0.0.1:9");
        let only = services(&[(1, 1, 9, "a.test.")], &[("a.test.", "fd00::1")]);
        assert_eq!(located(only, &[]).0, "a.test:9=[fd00::1]:9");
    }

    #[test]
    fn a_name_without_an_address_keeps_its_last_one_unless_another_has_it_now() {
        let records = [(1, 1, 9, "a.test."), (1, 1, 9, "b.test.")];
        let found = || services(&records, &[("b.test.", "10.0.0.2")]);
        assert_eq!(located(found(), &[]), are("a.test:9=? b.test:9=10.0.0.2:9", ""));
        let kept = are("a.test:9=10.0.0.1:9 b.test:9=10.0.0.2:9", "");
        assert_eq!(located(found(), &[("a.test:9", "10.0.0.1:9")]), kept);
        assert_eq!(located(found(), &[("a.test:9", "10.0.0.2:9")]), are("a.test:9=? b.test:9=10.0.0.2:9", ""));
    }
}
