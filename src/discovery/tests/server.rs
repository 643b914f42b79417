//! A name server in the test's process, over UDP and TCP, with answers set by the test.

use std::{
    collections::HashMap,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use hickory_proto::{
    op::{Edns, Message, OpCode, Query, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{CNAME, NS, SRV},
    },
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
};

use crate::{
    discovery::system::{Paths, System},
    lifecycle::Tasks,
};

/// The TTL of records in seconds, unless a test says otherwise: absences are not confirmed while a test runs.
const TTL: u32 = 300;

/// The answer to questions about one name and type.
#[derive(Clone, Debug)]
pub(super) enum Reply {
    Addresses(Vec<IpAddr>, u32),
    Alias(&'static str, Vec<IpAddr>),
    NoData,
    Code(ResponseCode),
    Silence,
    /// One record and the truncation bit over UDP, all records over TCP.
    OverTcp(Vec<IpAddr>),
    /// All records if they fit into the datagram; otherwise a reply that is cut off, with the truncation bit.
    BySize(Vec<IpAddr>),
    /// Records of the name that was asked for, and of another name.
    Mixed(Vec<IpAddr>, Vec<IpAddr>),
    /// A CNAME record without the records of its target.
    AliasOnly(&'static str),
    /// A referral to another name server.
    Referral,
    /// SRV records (weight, port, target), and additional address records.
    Services(Vec<(u16, u16, String)>, Vec<(String, IpAddr)>),
    /// The same over TCP, and only the truncation bit over UDP.
    ServicesOverTcp(Vec<(u16, u16, String)>, Vec<(String, IpAddr)>),
}

/// How a server treats questions with EDNS and the case of names.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Manner {
    /// It supports EDNS.
    #[default]
    Modern,
    /// It does not reply to questions with EDNS.
    DropsEdns,
    /// It replies to questions with EDNS with this code and without the question.
    RefusesEdns(ResponseCode),
    /// It replies with the name in capitals.
    Capitals,
}

pub(super) const NXDOMAIN: Reply = Reply::Code(ResponseCode::NXDomain);
pub(super) const SERVFAIL: Reply = Reply::Code(ResponseCode::ServFail);
pub(super) const REFUSED: Reply = Reply::Code(ResponseCode::Refused);

pub(super) fn addresses(written: &[&str]) -> Reply {
    Reply::Addresses(written.iter().map(|ip| ip.parse().unwrap()).collect(), TTL)
}

#[derive(Debug, Default)]
struct Book {
    manner: Manner,
    answers: HashMap<(String, RecordType), Reply>,
    /// The message IDs and texts of the questions. hickory repeats an unanswered question with the same ID.
    asked: Vec<(u16, String)>,
}

/// The server. Names without an answer do not exist.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) at: SocketAddr,
    book: Arc<Mutex<Book>>,
    tasks: Tasks,
}

impl Server {
    pub(super) async fn start(ip: Ipv4Addr, port: u16) -> Self {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind((ip, port)).await.unwrap();
            // The TCP port of the same number is nearly always free.
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let server = Self { at: udp.local_addr().unwrap(), book: Arc::default(), tasks: Tasks::new() };
        let (book, tasks) = (server.book.clone(), server.tasks.clone());
        tasks.spawn(until_stopped(tasks.clone(), serve_udp(udp, book.clone())));
        server.tasks.spawn(until_stopped(tasks.clone(), async move {
            while let Ok((stream, _)) = tcp.accept().await {
                tasks.spawn(until_stopped(tasks.clone(), serve_tcp(stream, book.clone())));
            }
        }));
        server
    }

    /// Starts a server that listens on UDP only.
    pub(super) async fn start_without_tcp() -> Self {
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let server = Self { at: udp.local_addr().unwrap(), book: Arc::default(), tasks: Tasks::new() };
        let (book, tasks) = (server.book.clone(), server.tasks.clone());
        server.tasks.spawn(until_stopped(tasks, serve_udp(udp, book)));
        server
    }

    /// Sets how the server treats questions from now on.
    pub(super) fn manner(&self, manner: Manner) {
        self.book.lock().unwrap().manner = manner;
    }

    /// Sets the answer about the A records of `name` (absolute).
    pub(super) fn v4(&self, name: &str, reply: Reply) {
        self.book.lock().unwrap().answers.insert((name.to_owned(), RecordType::A), reply);
    }

    /// Sets the answer about the AAAA records of `name` (absolute).
    pub(super) fn v6(&self, name: &str, reply: Reply) {
        self.book.lock().unwrap().answers.insert((name.to_owned(), RecordType::AAAA), reply);
    }

    /// Sets the answer about the SRV records of `name` (absolute).
    pub(super) fn srv(&self, name: &str, reply: Reply) {
        self.book.lock().unwrap().answers.insert((name.to_owned(), RecordType::SRV), reply);
    }

    /// Sets the answer about the CNAME records of `name` (absolute) and about its SRV records: an alias and nothing else.
    pub(super) fn alias(&self, name: &str, target: &'static str) {
        for kind in [RecordType::CNAME, RecordType::SRV] {
            self.book.lock().unwrap().answers.insert((name.to_owned(), kind), Reply::AliasOnly(target));
        }
    }

    /// Returns the questions since the last call, without repetitions, as `name type` or, over TCP, `name type tcp`.
    pub(super) fn asked(&self) -> Vec<String> {
        let asked = std::mem::take(&mut self.book.lock().unwrap().asked);
        let again = |at: usize| asked[..at].contains(&asked[at]);
        (0..asked.len()).filter(|at| !again(*at)).map(|at| asked[at].1.clone()).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

async fn until_stopped(tasks: Tasks, work: impl Future<Output = ()>) {
    tokio::select! { () = tasks.stopped() => {}, () = work => {} }
}

/// A machine with its name server, `resolv.conf` and hosts file.
pub(super) struct Machine {
    pub(super) server: Server,
    pub(super) files: TempDir,
}

impl Machine {
    pub(super) async fn start() -> Self {
        Self::with(Server::start(Ipv4Addr::LOCALHOST, 0).await)
    }

    pub(super) fn with(server: Server) -> Self {
        let machine = Self { server, files: TempDir::new().unwrap() };
        machine.resolv_conf("nameserver 127.0.0.1\n");
        machine
    }

    pub(super) fn resolv_conf(&self, text: &str) {
        fs::write(self.files.path().join("resolv.conf"), text).unwrap();
    }

    pub(super) fn hosts(&self, text: &str) {
        fs::write(self.files.path().join("hosts"), text).unwrap();
    }

    pub(super) fn system(&self) -> System {
        // Answers arrive at once. The long timeout is for test machines under load.
        self.system_with(Duration::from_secs(20))
    }

    pub(super) fn system_with(&self, timeout: Duration) -> System {
        let (dir, port) = (self.files.path(), self.server.at.port());
        let hostname = dir.join("hostname");
        System::at(Paths { resolv_conf: dir.join("resolv.conf"), hosts: dir.join("hosts"), hostname, port }, timeout)
    }
}

async fn serve_udp(socket: UdpSocket, book: Arc<Mutex<Book>>) {
    let mut buffer = vec![0; 4096];
    while let Ok((len, peer)) = socket.recv_from(&mut buffer).await {
        if let Some(reply) = reply(&buffer[..len], &book, false) {
            socket.send_to(&reply, peer).await.unwrap();
        }
    }
}

async fn serve_tcp(mut stream: TcpStream, book: Arc<Mutex<Book>>) {
    while let Ok(len) = stream.read_u16().await {
        let mut question = vec![0; usize::from(len)];
        if stream.read_exact(&mut question).await.is_err() {
            return;
        }
        if let Some(reply) = reply(&question, &book, true) {
            let mut framed = u16::try_from(reply.len()).unwrap().to_be_bytes().to_vec();
            framed.extend(reply);
            if stream.write_all(&framed).await.is_err() {
                return;
            }
        }
    }
}

fn reply(question: &[u8], book: &Mutex<Book>, tcp: bool) -> Option<Vec<u8>> {
    let question = Message::from_vec(question).unwrap();
    let query = question.queries[0].clone();
    let (name, kind) = (query.name().clone(), query.query_type());
    let (scripted, manner) = {
        let mut book = book.lock().unwrap();
        let over = if tcp { " tcp" } else { "" };
        book.asked.push((question.metadata.id, format!("{name} {kind}{over}")));
        (book.answers.get(&(name.to_string(), kind)).cloned().unwrap_or(NXDOMAIN), book.manner)
    };
    let mut message = Message::response(question.metadata.id, OpCode::Query);
    message.metadata.recursion_available = true;
    let mut name = name;
    match (manner, &question.edns) {
        (Manner::DropsEdns, Some(_)) => return None,
        (Manner::RefusesEdns(code), Some(_)) => {
            message.metadata.response_code = code;
            if code == ResponseCode::BADVERS {
                message.set_edns(Edns::new());
            }
            return Some(message.to_vec().unwrap());
        }
        (Manner::Modern, Some(_)) => drop(message.set_edns(Edns::new())),
        (Manner::Capitals, _) => name = Name::from_ascii(name.to_string().to_uppercase()).unwrap(),
        _ => {}
    }
    message.add_query(Query::query(name.clone(), kind));
    let room = match tcp {
        true => u16::MAX,
        false => question.edns.as_ref().map_or(512, Edns::max_payload),
    };
    let records =
        |name: &Name, ips: &[IpAddr], ttl| -> Vec<Record> { ips.iter().map(|ip| record(name, *ip, ttl)).collect() };
    match scripted {
        Reply::Addresses(ips, ttl) => drop(message.add_answers(records(&name, &ips, ttl))),
        Reply::Alias(target, ips) => {
            let target: Name = target.parse().unwrap();
            message.add_answers(records(&target, &ips, TTL));
            message.add_answers([Record::from_rdata(name, TTL, RData::CNAME(CNAME(target)))]);
        }
        Reply::NoData => {}
        Reply::Code(code) => message.metadata.response_code = code,
        Reply::Silence => return None,
        Reply::OverTcp(ips) if tcp => drop(message.add_answers(records(&name, &ips, TTL))),
        Reply::OverTcp(ips) => {
            message.metadata.truncation = true;
            message.add_answers(records(&name, &ips[..1], TTL));
        }
        Reply::BySize(ips) => {
            message.add_answers(records(&name, &ips, TTL));
            let mut bytes = message.to_vec().unwrap();
            if bytes.len() > usize::from(room) {
                bytes.truncate(usize::from(room) - 7);
                bytes[2] |= 0x02;
            }
            return Some(bytes);
        }
        Reply::AliasOnly(target) => {
            message.add_answers([Record::from_rdata(name, TTL, RData::CNAME(CNAME(target.parse().unwrap())))]);
        }
        Reply::Referral => {
            message.metadata.recursion_available = false;
            let server = RData::NS(NS("ns.elsewhere.test.".parse().unwrap()));
            message.add_authorities([Record::from_rdata(Name::root(), TTL, server)]);
        }
        Reply::ServicesOverTcp(..) if !tcp => message.metadata.truncation = true,
        Reply::Services(services, additional) | Reply::ServicesOverTcp(services, additional) => {
            let srv = |(weight, port, target): (u16, u16, String)| {
                let srv = SRV::new(0, weight, port, target.parse().unwrap());
                Record::from_rdata(name.clone(), TTL, RData::SRV(srv))
            };
            message.add_answers(services.into_iter().map(srv));
            message.add_additionals(additional.into_iter().map(|(name, ip)| record(&name.parse().unwrap(), ip, TTL)));
        }
        Reply::Mixed(own, strange) => {
            message.add_answers(records(&name, &own, TTL));
            message.add_answers(records(&"stranger.test.".parse().unwrap(), &strange, TTL));
        }
    }
    Some(message.to_vec().unwrap())
}

fn record(name: &Name, ip: IpAddr, ttl: u32) -> Record {
    Record::from_rdata(name.clone(), ttl, RData::from(ip))
}
