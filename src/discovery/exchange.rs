//! One question to one name server, in the manner that it understands.
//!
//! hickory's resolvers ask. One of them has one manner of asking, and not all that answers on port 53 is of today: some
//! refuse or drop questions with an OPT record (EDNS), or cut an answer short and are not to be had over TCP. So a server
//! has a resolver for each manner here, and what is ours is which of them is asked next.
//!
//! One thing hickory cannot do: it reads no datagram above 4,096 bytes (254 A records). Where firewalls let nothing but UDP
//! pass, a larger pool would get no address at all; [`in_fragments`] asks for it after every resolver has failed.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::pin,
    sync::{Mutex, OnceLock, PoisonError},
    time::Duration,
};

use futures_util::future::{Either, select};
use hickory_resolver::{
    Resolver, TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    lookup::Lookup,
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    proto::{
        op::{Edns, Message, MessageType, Query, ResponseCode},
        rr::{Name, RecordType},
    },
};
use tokio::{
    net::UdpSocket,
    time::{Instant, timeout, timeout_at},
};

use super::answer::{Answer, Failure};

/// The payload that EDNS announces: what passes any path unfragmented (DNS flag day 2020).
const PAYLOAD: u16 = 1232;

/// The one announced to a server that cuts its answer short and is not to be had over TCP: all that hickory reads.
const LARGE_PAYLOAD: u16 = 4096;

/// How long an answer to the question with EDNS is awaited before the plain one is asked beside it; a quarter of the time
/// if that is less.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long a server that did not understand EDNS is spoken to without: gateways are replaced by better ones.
const PLAIN_FOR: Duration = Duration::from_secs(600);

/// A name server and what was learned of its manners.
#[derive(Debug)]
pub(super) struct Server {
    at: SocketAddr,
    tcp_only: bool,
    /// With an OPT record.
    edns: Manner,
    /// As of 1987.
    plain: Manner,
    tcp: Manner,
    /// With an OPT record that announces room for a long answer.
    large: Manner,
    plain_until: Mutex<Option<Instant>>,
}

/// A resolver for one server, made when it is first needed: most servers need but one.
#[derive(Debug)]
struct Manner {
    server: NameServerConfig,
    options: ResolverOpts,
    resolver: OnceLock<Result<TokioResolver, NetError>>,
}

impl Server {
    /// `limit` is the longest that a question can take.
    pub(super) fn new(at: SocketAddr, tcp_only: bool, limit: Duration) -> Self {
        let (udp, tcp) = (ConnectionConfig::udp(), ConnectionConfig::tcp());
        Self {
            at,
            tcp_only,
            edns: Manner::new(at, udp.clone(), Some(PAYLOAD), limit),
            plain: Manner::new(at, udp.clone(), None, limit),
            tcp: Manner::new(at, tcp, None, limit),
            large: Manner::new(at, udp, Some(LARGE_PAYLOAD), limit),
            plain_until: Mutex::default(),
        }
    }

    /// Asks until `deadline`. Cancel safety: nothing but the question is lost.
    pub(super) async fn ask(&self, name: &Name, kind: RecordType, deadline: Instant) -> Answer {
        if self.tcp_only {
            return Answer::from_lookup(name, self.tcp.ask(name, kind, deadline).await);
        }
        match self.over_udp(name, kind, deadline).await {
            result if is_cut(&result) => self.otherwise(name, kind, deadline).await,
            result => Answer::from_lookup(name, result),
        }
    }

    /// Asks with EDNS, and without where that is refused, or not answered for a while.
    async fn over_udp(&self, name: &Name, kind: RecordType, deadline: Instant) -> Result<Lookup, NetError> {
        let mut plain = pin!(self.plain.ask(name, kind, deadline));
        if self.is_plain() {
            return plain.await;
        }
        let mut edns = pin!(self.edns.ask(name, kind, deadline));
        let patience = PATIENCE.min(deadline.saturating_duration_since(Instant::now()) / 4);
        let result = match timeout(patience, &mut edns).await {
            Ok(result) => result,
            Err(_) => match select(edns, &mut plain).await {
                Either::Left((result, _)) => result,
                Either::Right((result, _)) if is_answer(&result) || is_cut(&result) => return self.learn(result),
                Either::Right((failure, edns)) => {
                    // A server that has answered one of the two is not awaited much longer for the other.
                    return or(timeout(patience, edns).await.unwrap_or(Err(NetError::Timeout)), failure);
                }
            },
        };
        match rejects_edns(&result) {
            true => self.learn(or(plain.await, result)),
            false => result,
        }
    }

    /// Gets an answer that is too long for a datagram.
    async fn otherwise(&self, name: &Name, kind: RecordType, deadline: Instant) -> Answer {
        // A firewall that drops TCP must not take all of the time.
        let quarter = deadline.saturating_duration_since(Instant::now()) / 4;
        let failure = match Answer::from_lookup(name, self.tcp.ask(name, kind, deadline - quarter * 2).await) {
            Answer::Failed(failure) => failure,
            answer => return answer,
        };
        let large = self.large.ask(name, kind, deadline - quarter).await;
        if is_answer(&large) {
            return Answer::from_lookup(name, large);
        }
        let query = Query::query(name.clone(), kind);
        match timeout_at(deadline, in_fragments(self.at, &query)).await {
            Ok(Ok(Some(message))) => Answer::from_reply(name, &message),
            _ => {
                Answer::Failed(Failure::Other(format!("the answer is cut short, and by TCP there is none: {failure}")))
            }
        }
    }

    fn is_plain(&self) -> bool {
        let until = *self.plain_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Instant::now() < until)
    }

    /// Notes that only the plain question was answered, if it was.
    fn learn(&self, result: Result<Lookup, NetError>) -> Result<Lookup, NetError> {
        if is_answer(&result) {
            *self.plain_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + PLAIN_FOR);
        }
        result
    }
}

impl Manner {
    fn new(at: SocketAddr, mut connection: ConnectionConfig, payload: Option<u16>, limit: Duration) -> Self {
        connection.port = at.port();
        let mut options = ResolverOpts::default();
        options.cache_size = 0;
        options.timeout = limit;
        options.attempts = 0;
        options.edns0 = payload.is_some();
        options.edns_payload_len = payload.unwrap_or_default();
        options.use_hosts_file = ResolveHosts::Never;
        Self { server: NameServerConfig::new(at.ip(), true, vec![connection]), options, resolver: OnceLock::new() }
    }

    async fn ask(&self, name: &Name, kind: RecordType, deadline: Instant) -> Result<Lookup, NetError> {
        let resolver = self.resolver.get_or_init(|| self.resolver()).as_ref().map_err(Clone::clone)?;
        timeout_at(deadline, resolver.lookup(name.clone(), kind)).await.unwrap_or(Err(NetError::Timeout))
    }

    /// Without search list and hosts file, which are in other files here, and without a cache, since every round asks.
    fn resolver(&self) -> Result<TokioResolver, NetError> {
        let config = ResolverConfig::from_name_servers(vec![self.server.clone()]);
        let builder = Resolver::builder_with_config(config, TokioRuntimeProvider::default());
        builder.with_options(self.options.clone()).build()
    }
}

/// Whether a server said what it knows.
fn is_answer(result: &Result<Lookup, NetError>) -> bool {
    matches!(result, Ok(_) | Err(NetError::Dns(DnsError::NoRecordsFound(_))))
}

/// Whether a server said more than came: of what is cut within a record, hickory only says that it cannot be read.
fn is_cut(result: &Result<Lookup, NetError>) -> bool {
    matches!(result, Err(NetError::Truncated | NetError::Proto(_)))
}

/// Whether that is what a server says that does not know EDNS, or not this version of it (RFC 2671 let it be SERVFAIL,
/// too), or what hickory cannot read.
fn rejects_edns(result: &Result<Lookup, NetError>) -> bool {
    use ResponseCode::{BADSIG, BADVERS, FormErr, NotImp, ServFail};
    matches!(
        result,
        Err(NetError::Dns(DnsError::ResponseCode(FormErr | NotImp | BADVERS | BADSIG | ServFail)) | NetError::Proto(_))
    )
}

/// The first, unless it is silence.
fn or(first: Result<Lookup, NetError>, second: Result<Lookup, NetError>) -> Result<Lookup, NetError> {
    if matches!(first, Err(NetError::Timeout)) { second } else { first }
}

/// Asks for an answer of any length by UDP; `None` if even that is cut short, or no answer. The caller bounds the time.
async fn in_fragments(at: SocketAddr, query: &Query) -> io::Result<Option<Message>> {
    let any: SocketAddr =
        if at.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    // A port of its own, to which nobody but the server can send.
    let socket = UdpSocket::bind(any).await?;
    socket.connect(at).await?;
    // Its number is one that nobody who does not see the question can guess.
    let mut question = Message::query();
    question.metadata.recursion_desired = true;
    question.add_query(query.clone());
    let mut edns = Edns::new();
    edns.set_max_payload(u16::MAX);
    question.set_edns(edns);
    socket.send(&question.to_vec().map_err(io::Error::other)?).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // What is not the answer to this question is passed over.
        if let Some(reply) = read(buffer.get(..length).unwrap_or_default(), question.metadata.id, query) {
            return Ok((!reply.metadata.truncation && !reply.answers.is_empty()).then_some(reply));
        }
    }
}

/// The reply to a question.
fn read(bytes: &[u8], id: u16, query: &Query) -> Option<Message> {
    // The number is checked before anything else: a stranger's bytes are not worth the reading.
    let reply = bytes.starts_with(&id.to_be_bytes()).then(|| Message::from_vec(bytes).ok())??;
    let is_reply = reply.metadata.message_type == MessageType::Response;
    (is_reply && reply.queries == [query.clone()]).then_some(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_a_name_server_sends_is_read_or_refused_and_harms_nobody() {
        let name: Name = "tail.test.".parse().unwrap();
        let query = Query::query(name.clone(), RecordType::A);
        let mut like = Message::query();
        like.metadata.id = 7;
        like.add_query(query.clone());
        let mut like = like.to_vec().unwrap();
        like[2] |= 0x80;
        assert!(read(&like, 7, &query).is_some());
        bolero::check!().with_type::<(Vec<u8>, u16, u8)>().for_each(|(bytes, at, bit)| {
            // Anything at all, and a reply with some bytes of it other than they should be.
            let mut bent = like.clone();
            bent.extend(bytes);
            let at = usize::from(*at) % bent.len();
            bent[at] ^= bit;
            for sent in [bytes, &bent] {
                if let Some(message) = read(sent, 7, &query) {
                    drop(Answer::from_reply(&name, &message));
                }
            }
        });
    }
}
