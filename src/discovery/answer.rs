//! The kinds of answers about one name that discovery distinguishes, and how hickory's replies map to them.

use std::{collections::BTreeSet, iter::successors, net::IpAddr};

use hickory_resolver::{
    lookup::Lookup,
    net::{DnsError, NetError, NoRecords},
    proto::{
        op::{Message, ResponseCode},
        rr::{Name, RData},
    },
};

use super::{IpFamily, address::is_unicast};

/// The answer to one question (a name and a record type).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// At least one usable address.
    Addresses(BTreeSet<IpAddr>),
    /// The name exists and has no such record (NODATA).
    Empty,
    /// The name does not exist (NXDOMAIN).
    NoSuchName,
    /// No reliable answer.
    Failed(Failure),
}

/// Why a name has no address, ordered by how likely it is that it has one all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Badness {
    /// It does not exist.
    NoSuchName,
    /// It exists and has no address.
    Empty,
    /// No server answered reliably, so the name may have addresses.
    Failed,
}

/// The reason why there was no reliable answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// REFUSED.
    Refused,
    /// SERVFAIL.
    ServFail,
    /// No reply arrived in time.
    Timeout,
    /// Any other error, as reported by its source.
    Other(String),
}

/// The answers about one name, for each address family.
#[derive(Clone, Debug)]
pub(super) struct Answers {
    /// The name that was asked for, after a domain of the search list was appended.
    pub(super) asked: String,
    /// The answer about A records, if they were asked for.
    pub(super) v4: Option<Answer>,
    /// The answer about AAAA records, if they were asked for.
    pub(super) v6: Option<Answer>,
}

impl Answer {
    /// Returns [`Answer::Addresses`], or [`Answer::Empty`] if there are none.
    pub(super) fn of(addresses: BTreeSet<IpAddr>) -> Self {
        if addresses.is_empty() { Self::Empty } else { Self::Addresses(addresses) }
    }

    /// Converts the result of a lookup by hickory.
    pub(super) fn from_lookup(name: &Name, lookup: Result<Lookup, NetError>) -> Self {
        match lookup {
            Ok(lookup) => Self::from_reply(name, lookup.message()),
            Err(NetError::Dns(DnsError::NoRecordsFound(none))) if is_referral(&none) => {
                let reason = "the name server refers to others instead of answering";
                Self::Failed(Failure::Other(reason.to_owned()))
            }
            Err(NetError::Dns(DnsError::NoRecordsFound(none))) => Self::from_code(none.response_code),
            Err(NetError::Dns(DnsError::ResponseCode(code))) => Self::from_code(code),
            Err(NetError::Timeout) => Self::Failed(Failure::Timeout),
            // hickory reports every socket error as `NoConnections`.
            Err(NetError::NoConnections) => Self::Failed(Failure::Other("no connection to the name server".to_owned())),
            Err(error) => Self::Failed(Failure::Other(error.to_string())),
        }
    }

    /// Collects the addresses of `name` and of its aliases (CNAME records). Records of other names are ignored.
    pub(super) fn from_reply(name: &Name, reply: &Message) -> Self {
        let code = reply.metadata.response_code;
        let aliases = aliases(name, reply);
        let addresses: BTreeSet<IpAddr> = (reply.answers.iter())
            .filter(|record| aliases.contains(&&record.name))
            .filter_map(|record| record.data.ip_addr())
            .map(|ip| ip.to_canonical())
            .collect();
        match code {
            ResponseCode::NoError | ResponseCode::NXDomain if !addresses.is_empty() => Self::Addresses(addresses),
            code => Self::from_code(code),
        }
    }

    fn from_code(code: ResponseCode) -> Self {
        match code {
            ResponseCode::NoError => Self::Empty,
            ResponseCode::NXDomain => Self::NoSuchName,
            ResponseCode::Refused => Self::Failed(Failure::Refused),
            ResponseCode::ServFail => Self::Failed(Failure::ServFail),
            other => Self::Failed(Failure::Other(other.to_string())),
        }
    }

    /// Returns the value of the metric label `result`.
    pub(super) fn result(&self) -> &'static str {
        match self {
            Self::Addresses(_) => "success",
            Self::Empty => "empty",
            Self::NoSuchName => "nxdomain",
            Self::Failed(Failure::Refused) => "refused",
            Self::Failed(Failure::ServFail) => "servfail",
            Self::Failed(Failure::Timeout) => "timeout",
            Self::Failed(Failure::Other(_)) => "error",
        }
    }

    /// All values of the metric label `result`.
    pub(super) const RESULTS: [&str; 7] = ["success", "empty", "nxdomain", "refused", "servfail", "timeout", "error"];
}

impl Answers {
    /// Returns the same answer for every family in use.
    pub(super) fn each(asked: &str, family: IpFamily, answer: &Answer) -> Self {
        let wanted = |wanted: bool| wanted.then(|| answer.clone());
        Self { asked: asked.to_owned(), v4: wanted(family.wants_v4()), v6: wanted(family.wants_v6()) }
    }

    /// Returns the answers of a round in which there was no name to ask for.
    pub(super) fn no_such_name(asked: &str, family: IpFamily) -> Self {
        Self::each(asked, family, &Answer::NoSuchName)
    }

    /// Returns whether any family has an address.
    pub(super) fn has_addresses(&self) -> bool {
        self.both().any(|answer| matches!(answer, Answer::Addresses(_)))
    }

    /// Returns whether the name does not exist, according to the answers that decide about that.
    ///
    /// NXDOMAIN is about the name, not about a record type. An NXDOMAIN about A records is conclusive even if the
    /// question about AAAA failed, since some servers drop questions about AAAA. If both were asked, an NXDOMAIN about
    /// AAAA only is not conclusive, since some servers send it for names that have A records (RFC 4074, 4.2).
    fn is_no_such_name(&self) -> bool {
        use Answer::{Failed, NoSuchName};
        matches!(
            (&self.v4, &self.v6),
            (Some(NoSuchName), None | Some(NoSuchName | Failed(_))) | (None, Some(NoSuchName))
        )
    }

    /// Returns whether there is no address and at least one question failed, so that the name may have addresses all
    /// the same.
    pub(super) fn is_failure(&self) -> bool {
        self.badness() == Badness::Failed
    }

    /// Returns how bad the answers are. When several names of the search list have no address, the worst one is
    /// reported.
    pub(super) fn badness(&self) -> Badness {
        if self.has_addresses() || self.is_no_such_name() {
            return Badness::NoSuchName;
        }
        match self.both().any(|answer| matches!(answer, Answer::Failed(_))) {
            true => Badness::Failed,
            false => Badness::Empty,
        }
    }

    /// Iterates over the answers to the questions that were asked.
    pub(super) fn both(&self) -> impl Iterator<Item = &Answer> {
        self.v4.iter().chain(&self.v6)
    }

    /// Returns the `result` label of the best answer. It suits a name for which an address of either family is enough.
    pub(super) fn best(&self) -> &'static str {
        let rank = |answer: &&Answer| match answer {
            Answer::Addresses(_) => 0,
            Answer::Failed(_) => 1,
            Answer::Empty => 2,
            Answer::NoSuchName => 3,
        };
        self.both().min_by_key(rank).map_or("error", Answer::result)
    }

    /// Removes addresses that cannot be dialled, and returns them.
    pub(super) fn drop_unusable(&mut self) -> BTreeSet<IpAddr> {
        let mut dropped = BTreeSet::new();
        for answer in [&mut self.v4, &mut self.v6].into_iter().flatten() {
            if let Answer::Addresses(addresses) = answer {
                dropped.extend(addresses.iter().filter(|ip| !is_unicast(**ip)));
                addresses.retain(|ip| is_unicast(*ip));
                if addresses.is_empty() {
                    *answer = Answer::Empty;
                }
            }
        }
        dropped
    }
}

impl IpFamily {
    pub(super) fn wants_v4(self) -> bool {
        self != Self::Ipv6
    }

    pub(super) fn wants_v6(self) -> bool {
        self != Self::Ipv4
    }
}

/// The longest chain of CNAME records that is followed. Name servers themselves stop at 8 to 16.
const MAX_ALIASES: usize = 16;

/// Returns whether a reply is a referral: it names other servers (NS) and no zone of its own (SOA), as a server sends
/// that does not answer recursive questions (RFC 2308, 2.2).
fn is_referral(none: &NoRecords) -> bool {
    none.response_code == ResponseCode::NoError && none.ns.is_some() && none.soa.is_none()
}

/// Returns `name` and the targets of its CNAME records, in whatever order the records stand.
fn aliases<'a>(name: &'a Name, message: &'a Message) -> Vec<&'a Name> {
    let next = |name: &&'a Name| {
        message.answers.iter().find_map(|record| match &record.data {
            RData::CNAME(target) if record.name == **name => Some(&target.0),
            _ => None,
        })
    };
    successors(Some(name), next).take(MAX_ALIASES).collect()
}
