//! Asks one question of one name server, with the protocol options that the server supports.
//!
//! The requests themselves are hickory's. A hickory resolver always asks in the same way, but some servers and gateways
//! refuse or drop questions with an OPT record (EDNS), or truncate a reply and cannot be reached over TCP. So this
//! module keeps several resolvers for each server, one for each way of asking, and decides which of them is used next.
//!
//! hickory cannot read datagrams above 4,096 bytes (254 A records). Where a firewall passes UDP only, a larger pool
//! would never get an address. [`ask_with_large_buffer`] therefore asks with a socket of its own after all resolvers
//! have failed.

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

use super::answer::{Failure, Reply, reliable, reply_of};

/// The UDP payload size that is announced with EDNS. Datagrams of this size pass any path without fragmentation (DNS
/// flag day 2020).
const PAYLOAD: u16 = 1232;

/// The payload size that is announced to a server whose reply was truncated and that cannot be reached over TCP. It is
/// the largest that hickory reads.
const LARGE_PAYLOAD: u16 = 4096;

/// How long a reply to the question with EDNS is awaited before the question without EDNS is sent as well; a quarter of
/// the remaining time if that is less.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long a server that rejected EDNS is asked without it. After that EDNS is tried again, since the gateway may have
/// been replaced.
const PLAIN_FOR: Duration = Duration::from_secs(600);

/// A name server and which ways of asking it supports.
#[derive(Debug)]
pub(super) struct Server {
    at: SocketAddr,
    tcp_only: bool,
    /// Over UDP with an OPT record.
    edns: Asker,
    /// Over UDP without an OPT record (RFC 1035).
    plain: Asker,
    tcp: Asker,
    /// Over UDP with an OPT record that announces [`LARGE_PAYLOAD`].
    large: Asker,
    plain_until: Mutex<Option<Instant>>,
}

/// A hickory resolver for one server and one way of asking. It is built on first use, since most servers need only one.
#[derive(Debug)]
struct Asker {
    server: NameServerConfig,
    options: ResolverOpts,
    resolver: OnceLock<Result<TokioResolver, NetError>>,
}

impl Server {
    /// Returns a server that was not asked yet. `limit` is the timeout of its resolvers, so it must be at least the
    /// longest time that a question may take.
    pub(super) fn new(at: SocketAddr, tcp_only: bool, limit: Duration) -> Self {
        let (udp, tcp) = (ConnectionConfig::udp(), ConnectionConfig::tcp());
        Self {
            at,
            tcp_only,
            edns: Asker::new(at, udp.clone(), Some(PAYLOAD), limit),
            plain: Asker::new(at, udp.clone(), None, limit),
            tcp: Asker::new(at, tcp, None, limit),
            large: Asker::new(at, udp, Some(LARGE_PAYLOAD), limit),
            plain_until: Mutex::default(),
        }
    }

    /// Asks until `deadline`.
    ///
    /// Cancel safety: only the question is lost.
    pub(super) async fn ask(&self, name: &Name, kind: RecordType, deadline: Instant) -> Reply {
        if self.tcp_only {
            return reply_of(self.tcp.ask(name, kind, deadline).await);
        }
        match self.over_udp(name, kind, deadline).await {
            result if is_cut(&result) => self.ask_for_long_reply(name, kind, deadline).await,
            result => reply_of(result),
        }
    }

    /// Asks with EDNS first. Asks without it if the server rejects EDNS or does not reply for a while.
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
                Either::Right((result, _)) if is_answer(&result) || is_cut(&result) => {
                    return self.remember_plain(result);
                }
                Either::Right((failure, edns)) => {
                    // The server replied to the question without EDNS. The other reply is not awaited much longer.
                    return unless_timeout(timeout(patience, edns).await.unwrap_or(Err(NetError::Timeout)), failure);
                }
            },
        };
        match rejects_edns(&result) {
            true => self.remember_plain(unless_timeout(plain.await, result)),
            false => result,
        }
    }

    /// Asks for a reply that does not fit into a datagram of the usual size: over TCP, then over UDP with larger
    /// buffers.
    async fn ask_for_long_reply(&self, name: &Name, kind: RecordType, deadline: Instant) -> Reply {
        // TCP gets half of the time: a firewall that drops its packets must not use up all of it.
        let quarter = deadline.saturating_duration_since(Instant::now()) / 4;
        let failure = match reply_of(self.tcp.ask(name, kind, deadline - quarter * 2).await) {
            Err(failure) => failure,
            reply => return reply,
        };
        let large = self.large.ask(name, kind, deadline - quarter).await;
        if is_answer(&large) {
            return reply_of(large);
        }
        let query = Query::query(name.clone(), kind);
        match timeout_at(deadline, ask_with_large_buffer(self.at, &query)).await {
            Ok(Ok(Some(message))) => reliable(message),
            _ => Err(Failure::Other(format!("the reply over UDP is truncated, and over TCP there is none: {failure}"))),
        }
    }

    fn is_plain(&self) -> bool {
        let until = *self.plain_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Instant::now() < until)
    }

    /// If `result` is an answer, remembers that the server answers only without EDNS.
    fn remember_plain(&self, result: Result<Lookup, NetError>) -> Result<Lookup, NetError> {
        if is_answer(&result) {
            *self.plain_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + PLAIN_FOR);
        }
        result
    }
}

impl Asker {
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

    /// Builds the resolver without search list, hosts file and cache: the first two are handled by [`super::system`],
    /// and every round has to ask the server.
    fn resolver(&self) -> Result<TokioResolver, NetError> {
        let config = ResolverConfig::from_name_servers(vec![self.server.clone()]);
        let builder = Resolver::builder_with_config(config, TokioRuntimeProvider::default());
        builder.with_options(self.options.clone()).build()
    }
}

/// Returns whether the server gave an answer, be it records or the information that there are none.
fn is_answer(result: &Result<Lookup, NetError>) -> bool {
    matches!(result, Ok(_) | Err(NetError::Dns(DnsError::NoRecordsFound(_))))
}

/// Returns whether the reply was truncated. hickory reports a reply that ends within a record as unreadable.
fn is_cut(result: &Result<Lookup, NetError>) -> bool {
    matches!(result, Err(NetError::Truncated | NetError::Proto(_)))
}

/// Returns whether the reply is that of a server that does not know EDNS or this version of it (RFC 2671 allowed
/// SERVFAIL for that too), or one that hickory cannot read.
fn rejects_edns(result: &Result<Lookup, NetError>) -> bool {
    use ResponseCode::{BADSIG, BADVERS, FormErr, NotImp, ServFail};
    matches!(
        result,
        Err(NetError::Dns(DnsError::ResponseCode(FormErr | NotImp | BADVERS | BADSIG | ServFail)) | NetError::Proto(_))
    )
}

/// Returns `first`, or `second` if `first` timed out.
fn unless_timeout(first: Result<Lookup, NetError>, second: Result<Lookup, NetError>) -> Result<Lookup, NetError> {
    if matches!(first, Err(NetError::Timeout)) { second } else { first }
}

/// Asks over UDP for a reply of up to 65,535 bytes, which arrives in IP fragments. Returns `None` if even that reply is
/// truncated or has no records. The caller limits the time.
async fn ask_with_large_buffer(at: SocketAddr, query: &Query) -> io::Result<Option<Message>> {
    let any: SocketAddr =
        if at.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    // The socket has a port of its own and is connected, so that only the server can send to it.
    let socket = UdpSocket::bind(any).await?;
    socket.connect(at).await?;
    // hickory draws the message ID at random, so that nobody who does not see the question can guess it.
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
        // Datagrams that do not answer this question are ignored.
        if let Some(reply) = parse_reply(buffer.get(..length).unwrap_or_default(), question.metadata.id, query) {
            return Ok((!reply.metadata.truncation && !reply.answers.is_empty()).then_some(reply));
        }
    }
}

/// Parses a reply to `query` with the message ID `id`; `None` for anything else.
fn parse_reply(bytes: &[u8], id: u16, query: &Query) -> Option<Message> {
    // The ID is compared first, so that a datagram from elsewhere is not parsed at all.
    let reply = bytes.starts_with(&id.to_be_bytes()).then(|| Message::from_vec(bytes).ok())??;
    let is_reply = reply.metadata.message_type == MessageType::Response;
    (is_reply && reply.queries == [query.clone()]).then_some(reply)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::answer::Answer;

    #[test]
    fn any_datagram_is_parsed_or_rejected_without_a_panic() {
        let name: Name = "tail.test.".parse().unwrap();
        let query = Query::query(name.clone(), RecordType::A);
        let mut like = Message::query();
        like.metadata.id = 7;
        like.add_query(query.clone());
        let mut like = like.to_vec().unwrap();
        like[2] |= 0x80;
        assert!(parse_reply(&like, 7, &query).is_some());
        bolero::check!().with_type::<(Vec<u8>, u16, u8)>().for_each(|(bytes, at, bit)| {
            // Random bytes, and a valid reply with random changes.
            let mut bent = like.clone();
            bent.extend(bytes);
            let at = usize::from(*at) % bent.len();
            bent[at] ^= bit;
            for sent in [bytes, &bent] {
                if let Some(message) = parse_reply(sent, 7, &query) {
                    let reply = reliable(message);
                    drop((Answer::addresses(&name, &reply), Answer::services(&name, &reply)));
                }
            }
        });
    }
}
