//! The kinds of answers about one name that discovery distinguishes, and how hickory's replies map to them.

use std::{collections::BTreeSet, iter::successors, net::IpAddr, time::Duration};

use hickory_resolver::{
    lookup::Lookup,
    net::{DnsError, NetError, NoRecords},
    proto::{
        op::{Message, OpCode, ResponseCode},
        rr::{Name, RData},
    },
};

use super::{IpFamily, address::is_unicast, services::Service};

/// What to ask about a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Question {
    /// Its A and AAAA records, as far as the family includes them.
    Addresses(IpFamily),
    /// Its SRV records.
    Services,
}

/// A name server's reply to one question: a message with code NOERROR or NXDOMAIN, or the reason why none is reliable.
pub(super) type Reply = Result<Message, Failure>;

/// The answer to one question (a name and a record type).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// At least one usable address.
    Addresses(BTreeSet<IpAddr>),
    /// At least one SRV record with a target.
    Services(Vec<Service>),
    /// The name exists and has no such record (NODATA).
    Empty,
    /// The name does not exist (NXDOMAIN).
    NoSuchName,
    /// No reliable answer.
    Failed(Failure),
}

/// Why a name has no record, ordered by how likely it is that it has one all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Badness {
    /// It does not exist.
    NoSuchName,
    /// It exists and has no such record.
    Empty,
    /// No server answered reliably, so the name may have records.
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
    /// The answer about SRV records, if they were asked for.
    pub(super) srv: Option<Answer>,
    /// For how long caches may repeat the answers: the greatest TTL of their records.
    pub(super) ttl: Duration,
}

impl From<IpFamily> for Question {
    fn from(family: IpFamily) -> Self {
        Self::Addresses(family)
    }
}

impl Question {
    /// Returns which addresses are asked for, if any are.
    pub(super) fn family(self) -> Option<IpFamily> {
        match self {
            Self::Addresses(family) => Some(family),
            Self::Services => None,
        }
    }
}

/// Converts the result of a lookup by hickory.
pub(super) fn reply_of(lookup: Result<Lookup, NetError>) -> Reply {
    match lookup {
        Ok(lookup) => reliable(lookup.into()),
        Err(NetError::Dns(DnsError::NoRecordsFound(none))) if is_referral(&none) => {
            let reason = "the name server refers to others instead of answering";
            Err(Failure::Other(reason.to_owned()))
        }
        Err(NetError::Dns(DnsError::NoRecordsFound(none))) => reliable(without_records(none.response_code)),
        Err(NetError::Dns(DnsError::ResponseCode(code))) => reliable(without_records(code)),
        Err(NetError::Timeout) => Err(Failure::Timeout),
        // hickory reports every socket error as `NoConnections`.
        Err(NetError::NoConnections) => Err(Failure::Other("no connection to the name server".to_owned())),
        Err(error) => Err(Failure::Other(error.to_string())),
    }
}

/// Returns the message if its code tells which records there are, or that there are none.
pub(super) fn reliable(message: Message) -> Reply {
    match message.metadata.response_code {
        ResponseCode::NoError | ResponseCode::NXDomain => Ok(message),
        ResponseCode::Refused => Err(Failure::Refused),
        ResponseCode::ServFail => Err(Failure::ServFail),
        other => Err(Failure::Other(other.to_string())),
    }
}

/// Returns for how long caches may repeat the records of `reply`. Aliases do not count: what a name lacks is repeated as
/// long as its own records.
pub(super) fn ttl_of(reply: &Reply) -> Duration {
    let records = reply.iter().flat_map(|message| &message.answers);
    let ttls = records.filter(|record| !matches!(record.data, RData::CNAME(_))).map(|record| record.ttl);
    Duration::from_secs(ttls.max().unwrap_or_default().into())
}

fn without_records(code: ResponseCode) -> Message {
    let mut message = Message::response(0, OpCode::Query);
    message.metadata.response_code = code;
    message
}

impl Answer {
    /// Returns [`Answer::Addresses`], or [`Answer::Empty`] if there are none.
    pub(super) fn of(addresses: BTreeSet<IpAddr>) -> Self {
        if addresses.is_empty() { Self::Empty } else { Self::Addresses(addresses) }
    }

    /// Collects the addresses of `name` and of its aliases (CNAME records). Records of other names are ignored.
    pub(super) fn addresses(name: &Name, reply: &Reply) -> Self {
        let message = match reply {
            Ok(message) => message,
            Err(failure) => return Self::Failed(failure.clone()),
        };
        let aliases = aliases(name, message);
        let records = message.answers.iter().filter(|record| aliases.contains(&&record.name));
        let addresses: BTreeSet<IpAddr> =
            records.filter_map(|record| record.data.ip_addr()).map(|ip| ip.to_canonical()).collect();
        if addresses.is_empty() { Self::without_records(message) } else { Self::Addresses(addresses) }
    }

    /// Collects the SRV records of `name` and of its aliases. Records of other names are ignored.
    pub(super) fn services(name: &Name, reply: &Reply) -> Self {
        let message = match reply {
            Ok(message) => message,
            Err(failure) => return Self::Failed(failure.clone()),
        };
        let services = Service::of(&aliases(name, message), message);
        if services.is_empty() { Self::without_records(message) } else { Self::Services(services) }
    }

    fn without_records(message: &Message) -> Self {
        if message.metadata.response_code == ResponseCode::NXDomain { Self::NoSuchName } else { Self::Empty }
    }

    /// Returns the value of the metric label `result`.
    pub(super) fn result(&self) -> &'static str {
        match self {
            Self::Addresses(_) | Self::Services(_) => "success",
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
    /// Returns the same answer to everything that was asked.
    pub(super) fn each(asked: &str, question: impl Into<Question>, answer: &Answer) -> Self {
        let question = question.into();
        let wanted = |wanted: bool| wanted.then(|| answer.clone());
        Self {
            asked: asked.to_owned(),
            v4: wanted(question.family().is_some_and(IpFamily::wants_v4)),
            v6: wanted(question.family().is_some_and(IpFamily::wants_v6)),
            srv: wanted(question == Question::Services),
            ttl: Duration::ZERO,
        }
    }

    /// Returns the answers of a round in which there was no name to ask for.
    pub(super) fn no_such_name(asked: &str, question: impl Into<Question>) -> Self {
        Self::each(asked, question, &Answer::NoSuchName)
    }

    /// Returns whether there are records of any kind that was asked for.
    pub(super) fn has_records(&self) -> bool {
        self.all().any(|answer| matches!(answer, Answer::Addresses(_) | Answer::Services(_)))
    }

    /// Returns whether the name does not exist, according to the answers that decide about that.
    ///
    /// NXDOMAIN is about the name, not about a record type. An NXDOMAIN about A records is conclusive even if the
    /// question about AAAA failed, since some servers drop questions about AAAA. If both were asked, an NXDOMAIN about
    /// AAAA only is not conclusive, since some servers send it for names that have A records (RFC 4074, 4.2).
    fn is_no_such_name(&self) -> bool {
        use Answer::{Failed, NoSuchName};
        if let Some(answer) = &self.srv {
            return *answer == NoSuchName;
        }
        matches!(
            (&self.v4, &self.v6),
            (Some(NoSuchName), None | Some(NoSuchName | Failed(_))) | (None, Some(NoSuchName))
        )
    }

    /// Returns whether there is no record and at least one question failed, so that the name may have records all the
    /// same.
    pub(super) fn is_failure(&self) -> bool {
        self.badness() == Badness::Failed
    }

    /// Returns whether the next round may follow soon. It may not if the name had no record: how often that has to be
    /// repeated before it is believed is counted in rounds (see [`super::search`]).
    pub(super) fn may_be_repeated_soon(&self) -> bool {
        self.is_failure() || self.has_records()
    }

    /// Returns how bad the answers are. When several names of the search list have no record, the worst one is
    /// reported.
    pub(super) fn badness(&self) -> Badness {
        if self.has_records() || self.is_no_such_name() {
            return Badness::NoSuchName;
        }
        match self.all().any(|answer| matches!(answer, Answer::Failed(_))) {
            true => Badness::Failed,
            false => Badness::Empty,
        }
    }

    /// Iterates over the answers to the questions that were asked.
    pub(super) fn all(&self) -> impl Iterator<Item = &Answer> {
        self.v4.iter().chain(&self.v6).chain(&self.srv)
    }

    /// Returns the `result` label of the best answer. It suits a name for which an address of either family is enough.
    pub(super) fn best(&self) -> &'static str {
        let rank = |answer: &&Answer| match answer {
            Answer::Addresses(_) | Answer::Services(_) => 0,
            Answer::Failed(_) => 1,
            Answer::Empty => 2,
            Answer::NoSuchName => 3,
        };
        self.all().min_by_key(rank).map_or("error", Answer::result)
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
pub(super) const MAX_ALIASES: usize = 16;

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
