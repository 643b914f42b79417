//! What name servers said about one name: the few kinds of answers that discovery tells apart.

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

/// The answer to one question: a name and a type of record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// At least one usable address.
    Addresses(BTreeSet<IpAddr>),
    /// The name exists and has no such record (NODATA).
    Empty,
    /// The name does not exist (NXDOMAIN).
    NoSuchName,
    /// No answer that could be believed.
    Failed(Failure),
}

/// How bad it is that a name has no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Badness {
    /// It does not exist.
    NoSuchName,
    /// It exists and has none.
    Empty,
    /// Nobody knows: it may well have some.
    Failed,
}

/// Why there was no answer that could be believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// REFUSED.
    Refused,
    /// SERVFAIL.
    ServFail,
    /// Nothing came in time.
    Timeout,
    /// Anything else, in the words of whoever noticed.
    Other(String),
}

/// The answers to one round of questions for a name.
#[derive(Clone, Debug)]
pub(super) struct Answers {
    /// The name that was asked for at last, with the part of the search list that was appended.
    pub(super) asked: String,
    /// About A records, if they were wanted.
    pub(super) v4: Option<Answer>,
    /// About AAAA records, if they were wanted.
    pub(super) v6: Option<Answer>,
}

impl Answer {
    /// These addresses, or that there is none.
    pub(super) fn of(addresses: BTreeSet<IpAddr>) -> Self {
        if addresses.is_empty() { Self::Empty } else { Self::Addresses(addresses) }
    }

    /// Reads what hickory made of a reply.
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
            // So hickory calls all that sockets say.
            Err(NetError::NoConnections) => Self::Failed(Failure::Other("no connection to the name server".to_owned())),
            Err(error) => Self::Failed(Failure::Other(error.to_string())),
        }
    }

    /// The addresses of `name` and of its aliases; records of other names in the reply do not count.
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

    /// The value of the metric's label `result`.
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

    /// Every value of the label `result`.
    pub(super) const RESULTS: [&str; 7] = ["success", "empty", "nxdomain", "refused", "servfail", "timeout", "error"];
}

impl Answers {
    /// The same for every family that is wanted.
    pub(super) fn each(asked: &str, family: IpFamily, answer: &Answer) -> Self {
        let wanted = |wanted: bool| wanted.then(|| answer.clone());
        Self { asked: asked.to_owned(), v4: wanted(family.wants_v4()), v6: wanted(family.wants_v6()) }
    }

    /// There is no name to ask for.
    pub(super) fn no_such_name(asked: &str, family: IpFamily) -> Self {
        Self::each(asked, family, &Answer::NoSuchName)
    }

    /// Whether there is an address of any family.
    pub(super) fn has_addresses(&self) -> bool {
        self.both().any(|answer| matches!(answer, Answer::Addresses(_)))
    }

    /// Whether nobody knows the name, and nobody who matters failed to say so.
    ///
    /// NXDOMAIN is about a name and not about a type. Said about A records it settles the matter, so that a server that
    /// drops questions about AAAA makes no name doubtful; said about AAAA it does not, since some servers say it where
    /// there are A records (RFC 4074, 4.2).
    fn is_no_such_name(&self) -> bool {
        use Answer::{Failed, NoSuchName};
        matches!(
            (&self.v4, &self.v6),
            (Some(NoSuchName), None | Some(NoSuchName | Failed(_))) | (None, Some(NoSuchName))
        )
    }

    /// Whether there may be addresses all the same: there is none, and somebody failed to say so.
    pub(super) fn is_failure(&self) -> bool {
        self.badness() == Badness::Failed
    }

    /// What of a name without addresses is told when several of the search list have none.
    pub(super) fn badness(&self) -> Badness {
        if self.has_addresses() || self.is_no_such_name() {
            return Badness::NoSuchName;
        }
        match self.both().any(|answer| matches!(answer, Answer::Failed(_))) {
            true => Badness::Failed,
            false => Badness::Empty,
        }
    }

    /// The answers to what was asked.
    pub(super) fn both(&self) -> impl Iterator<Item = &Answer> {
        self.v4.iter().chain(&self.v6)
    }

    /// One word for all of them: how well a name is known that needs any address, whatever the family.
    pub(super) fn best(&self) -> &'static str {
        let rank = |answer: &&Answer| match answer {
            Answer::Addresses(_) => 0,
            Answer::Failed(_) => 1,
            Answer::Empty => 2,
            Answer::NoSuchName => 3,
        };
        self.both().min_by_key(rank).map_or("error", Answer::result)
    }

    /// Takes out what cannot be dialled, and returns it.
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

/// The longest chain of CNAME records that is followed; name servers stop at 8 to 16 themselves.
const MAX_ALIASES: usize = 16;

/// Whether a server passes the question on to others instead of answering, as one that serves no clients does: it names
/// them, and no zone of its own (RFC 2308, 2.2).
fn is_referral(none: &NoRecords) -> bool {
    none.response_code == ResponseCode::NoError && none.ns.is_some() && none.soa.is_none()
}

/// `name` and what its CNAME records lead to, in whatever order they stand.
fn aliases<'a>(name: &'a Name, message: &'a Message) -> Vec<&'a Name> {
    let next = |name: &&'a Name| {
        message.answers.iter().find_map(|record| match &record.data {
            RData::CNAME(target) if record.name == **name => Some(&target.0),
            _ => None,
        })
    };
    successors(Some(name), next).take(MAX_ALIASES).collect()
}
