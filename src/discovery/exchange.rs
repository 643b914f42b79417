//! One question to one name server, in the manner that it understands.
//!
//! Not all that answers on port 53 is of today: some refuse or drop questions with an OPT record (EDNS), leave the question
//! out of a refusal, change the case of names, or cut an answer short and are not to be had over TCP. Each of these gets
//! its answer here all the same; what is left is a [`Failure`].

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::RecordType,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::{Instant, sleep_until, timeout_at},
};

use super::answer::Failure;

/// The payload that EDNS announces: what passes any path unfragmented (DNS flag day 2020).
const PAYLOAD: u16 = 1232;

/// The one announced to a server that cuts its answer short and is not to be had over TCP: 500 records in fragments.
const LARGE_PAYLOAD: u16 = u16::MAX;

/// What a datagram may hold where [`PAYLOAD`] was announced: more than that, for servers that do not look at it.
const BUFFER: usize = 4096;

/// How often a question is sent within its time: an answer is not lost with one packet.
const SENDS: u32 = 4;

/// How long a server that did not understand EDNS is spoken to without: gateways are replaced by better ones.
const PLAIN_FOR: Duration = Duration::from_secs(600);

/// A name server and what was learned of its manners.
#[derive(Debug)]
pub(super) struct Server {
    at: SocketAddr,
    tcp_only: bool,
    plain_until: Mutex<Option<Instant>>,
}

/// What came of a question over UDP.
enum Reply {
    Whole(Message),
    Truncated,
}

/// What a datagram or frame is.
enum Read {
    /// Not the answer to this question.
    Foreign,
    Reply(Reply),
    /// The answer, in a form that cannot be read.
    Unreadable(String),
}

/// A question as it is sent.
#[derive(Clone, Copy)]
enum Manner {
    /// With an OPT record that announces room for so much.
    Edns(u16),
    /// As of 1987.
    Plain,
}

impl Server {
    pub(super) fn new(at: SocketAddr, tcp_only: bool) -> Self {
        Self { at, tcp_only, plain_until: Mutex::default() }
    }

    /// Asks until `deadline`. Cancel safety: nothing but the question is lost.
    pub(super) async fn ask(&self, query: &Query, deadline: Instant) -> Result<Message, Failure> {
        if self.tcp_only {
            return self.over_tcp(query, deadline).await;
        }
        let (first, second) = match self.is_plain() {
            true => (Manner::Plain, Manner::Plain),
            false => (Manner::Edns(PAYLOAD), Manner::Plain),
        };
        if let Reply::Whole(message) = self.over_udp(query, [first, second], deadline).await? {
            return Ok(message);
        }
        // A firewall that drops TCP must not take all of the time.
        let half = Instant::now() + deadline.saturating_duration_since(Instant::now()) / 2;
        let failure = match self.over_tcp(query, half).await {
            Ok(message) => return Ok(message),
            Err(failure) => failure,
        };
        match self.over_udp(query, [Manner::Edns(LARGE_PAYLOAD); 2], deadline).await {
            Ok(Reply::Whole(message)) if message.metadata.response_code == ResponseCode::NoError => Ok(message),
            _ => Err(Failure::Other(format!("the answer is cut short, and by TCP there is none: {failure}"))),
        }
    }

    /// Sends the question in the two manners by turns until one is answered.
    async fn over_udp(&self, query: &Query, manners: [Manner; 2], deadline: Instant) -> Result<Reply, Failure> {
        let failed = |error: io::Error| Failure::Other(error.to_string());
        let socket = connect(self.at).await.map_err(failed)?;
        let id = random_id();
        let mut buffer = vec![0; manners.iter().map(|manner| manner.room()).max().unwrap_or(BUFFER)];
        let step = deadline.saturating_duration_since(Instant::now()) / SENDS;
        let (mut sent, mut next_at) = (0, Instant::now());
        // Refusals that questions with EDNS may still account for, and the last of them.
        let (mut owed, mut refusal) = (0, None);
        loop {
            if sent < SENDS && Instant::now() >= next_at {
                let manner = if sent % 2 == 0 { manners[0] } else { manners[1] };
                owed += u32::from(matches!(manner, Manner::Edns(_)));
                socket.send(&question(id, query, manner)?).await.map_err(failed)?;
                sent += 1;
                next_at = Instant::now() + step;
            }
            tokio::select! {
                biased;
                received = socket.recv(&mut buffer) => {
                    let length = received.map_err(failed)?;
                    let reply = match read(buffer.get(..length).unwrap_or_default(), id, query) {
                        Read::Foreign => continue,
                        Read::Reply(Reply::Whole(message)) if owed > 0 && rejects_edns(&message) => {
                            Ok(Reply::Whole(message))
                        }
                        Read::Unreadable(reason) if owed > 0 => Err(Failure::Other(reason)),
                        Read::Unreadable(reason) => return Err(Failure::Other(reason)),
                        Read::Reply(reply) => {
                            self.learn(&reply, owed < sent);
                            return Ok(reply);
                        }
                    };
                    // Asked again at once in the other manner; if that has been done, its answer is awaited.
                    owed -= 1;
                    if sent == 1 {
                        next_at = Instant::now();
                    } else if owed == 0 && sent >= SENDS {
                        return reply;
                    }
                    refusal = Some(reply);
                }
                () = sleep_until(next_at), if sent < SENDS => {}
                () = sleep_until(deadline) => return refusal.unwrap_or(Err(Failure::Timeout)),
            }
        }
    }

    async fn over_tcp(&self, query: &Query, deadline: Instant) -> Result<Message, Failure> {
        match timeout_at(deadline, self.exchange_over_tcp(query)).await {
            Ok(result) => result,
            Err(_) => Err(Failure::Timeout),
        }
    }

    async fn exchange_over_tcp(&self, query: &Query) -> Result<Message, Failure> {
        let failed = |error: io::Error| Failure::Other(error.to_string());
        let mut stream = TcpStream::connect(self.at).await.map_err(failed)?;
        let id = random_id();
        let question = question(id, query, Manner::Plain)?;
        let length = u16::try_from(question.len()).unwrap_or(u16::MAX);
        let mut frame = length.to_be_bytes().to_vec();
        frame.extend(question);
        stream.write_all(&frame).await.map_err(failed)?;
        let mut reply = vec![0; usize::from(stream.read_u16().await.map_err(failed)?)];
        stream.read_exact(&mut reply).await.map_err(failed)?;
        match read(&reply, id, query) {
            Read::Reply(Reply::Whole(message)) => Ok(message),
            Read::Reply(Reply::Truncated) => Err(Failure::Other("the answer is cut short".to_owned())),
            Read::Unreadable(reason) => Err(Failure::Other(reason)),
            Read::Foreign => Err(Failure::Other("the answer is to another question".to_owned())),
        }
    }

    fn is_plain(&self) -> bool {
        let until = *self.plain_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Instant::now() < until)
    }

    /// Notes that only the plain question was answered, or that EDNS is understood after all.
    fn learn(&self, reply: &Reply, asked_plain: bool) {
        let understands = match reply {
            Reply::Whole(message) => message.edns.is_some(),
            Reply::Truncated => return,
        };
        if asked_plain || understands {
            let until = (!understands).then(|| Instant::now() + PLAIN_FOR);
            *self.plain_until.lock().unwrap_or_else(PoisonError::into_inner) = until;
        }
    }
}

impl Manner {
    /// The room for its answer.
    fn room(self) -> usize {
        match self {
            Self::Edns(payload) => usize::from(payload).max(BUFFER),
            Self::Plain => BUFFER,
        }
    }
}

/// A socket of a port of its own, to which nobody but the server can send.
async fn connect(at: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr =
        if at.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(at).await?;
    Ok(socket)
}

/// A number that nobody who does not see the question can guess.
fn random_id() -> u16 {
    Message::query().metadata.id
}

fn question(id: u16, query: &Query, manner: Manner) -> Result<Vec<u8>, Failure> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(query.clone());
    if let Manner::Edns(payload) = manner {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        message.set_edns(edns);
    }
    message.to_vec().map_err(|error| Failure::Other(error.to_string()))
}

/// Reads what came. Numbers are checked before anything else, so that a stranger's bytes are never an error.
fn read(bytes: &[u8], id: u16, query: &Query) -> Read {
    let Some(header) = bytes.first_chunk::<12>() else { return Read::Foreign };
    let [high, low, flags, _, questions_high, questions_low, ..] = *header;
    let (is_reply, is_truncated) = (flags & 0x80 != 0, flags & 0x02 != 0);
    let questions = u16::from_be_bytes([questions_high, questions_low]);
    if u16::from_be_bytes([high, low]) != id || !is_reply || questions > 1 {
        return Read::Foreign;
    }
    if is_truncated {
        // Some cut in the middle of a record; there is nothing to read then.
        return Read::Reply(Reply::Truncated);
    }
    match Message::from_vec(bytes) {
        // The case of the name is the server's to change.
        Ok(message) if message.queries.first().is_some_and(|asked| asked != query) => Read::Foreign,
        // Only who refuses may leave the question out, as those do that did not read it.
        Ok(message) if message.queries.is_empty() && message.metadata.response_code == ResponseCode::NoError => {
            Read::Foreign
        }
        Ok(message) => Read::Reply(Reply::Whole(message)),
        Err(error) => Read::Unreadable(format!("unreadable answer: {error}")),
    }
}

/// Whether that is what a server says that does not know EDNS, or not this version of it.
fn rejects_edns(message: &Message) -> bool {
    match message.metadata.response_code {
        ResponseCode::FormErr | ResponseCode::NotImp | ResponseCode::BADVERS | ResponseCode::BADSIG => true,
        // RFC 2671 let servers say that, too; one that knows EDNS shows it and means the name.
        ResponseCode::ServFail => message.edns.is_none(),
        _ => false,
    }
}

/// Whether a server passes the question on to others instead of answering, as one that serves no clients does.
pub(super) fn is_referral(message: &Message) -> bool {
    let header = &message.metadata;
    header.response_code == ResponseCode::NoError
        && !header.authoritative
        && !header.recursion_available
        && message.answers.is_empty()
        && message.authorities.iter().any(|record| record.record_type() == RecordType::NS)
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::Name;

    use super::*;
    use crate::discovery::answer::Said;

    #[test]
    fn whatever_a_name_server_sends_is_read_or_refused_and_harms_nobody() {
        let name: Name = "tail.test.".parse().unwrap();
        let query = Query::query(name.clone(), RecordType::A);
        let mut like = question(7, &query, Manner::Edns(PAYLOAD)).unwrap();
        like[2] |= 0x80;
        bolero::check!().with_type::<(Vec<u8>, u16, u8)>().for_each(|(bytes, at, bit)| {
            // Anything at all, and a reply with some bytes of it other than they should be.
            let mut bent = like.clone();
            bent.extend(bytes);
            let at = usize::from(*at) % bent.len();
            bent[at] ^= bit;
            for sent in [bytes, &bent] {
                if let Read::Reply(Reply::Whole(message)) = read(sent, 7, &query) {
                    let _ = (Said::read(&name, &message), rejects_edns(&message), is_referral(&message));
                }
            }
        });
    }
}
