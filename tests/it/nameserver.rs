//! A name server with answers set by the test, and processes that use it as the system's name server.
//!
//! The server listens on port 53 of a random address in 127.0.0.0/8. A process started with [`NameServer::command`]
//! sees a `resolv.conf` of its own that names this address. It is mounted in a private mount namespace, so nothing
//! changes on the machine. Port 53 needs root; so do mounts where user namespaces are not allowed. The bench `faults`
//! uses the server too.

use std::{
    collections::HashMap,
    fs,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::unix::fs::MetadataExt,
    process::{Command, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use hickory_proto::{
    op::{Message, OpCode, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata::SRV},
};
use tempfile::TempDir;

/// The TTL of records in seconds, unless a test sets another one.
const TTL: u32 = 1;

/// The number of addresses that are tried. One is enough unless a name server listens on all addresses.
const TRIES: usize = 8;

/// How long a TCP connection may be idle.
const SILENCE: Duration = Duration::from_secs(30);

/// The answer to questions about one name and type.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    Addresses(Vec<IpAddr>),
    /// The name exists and has no such record.
    NoData,
    Code(ResponseCode),
    Silence,
    /// An empty reply with the truncation bit over UDP, all these addresses over TCP.
    OverTcp(Vec<IpAddr>),
    /// SRV records of these targets, each with its address in an additional record.
    Services(Vec<Target>),
}

/// The target of an SRV record.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// The name (absolute, with a dot at the end).
    pub(crate) name: String,
    pub(crate) weight: u16,
    pub(crate) address: SocketAddr,
}

pub(crate) const NXDOMAIN: Reply = Reply::Code(ResponseCode::NXDomain);
pub(crate) const SERVFAIL: Reply = Reply::Code(ResponseCode::ServFail);
pub(crate) const REFUSED: Reply = Reply::Code(ResponseCode::Refused);

/// The server. Names without an answer do not exist. It stops on drop.
pub(crate) struct NameServer {
    ip: Ipv4Addr,
    book: Arc<Mutex<Book>>,
    files: TempDir,
    /// The arguments of `unshare` that work on this machine.
    namespace: &'static [&'static str],
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Book {
    ttl: u32,
    answers: HashMap<(String, RecordType), Reply>,
    asked: Vec<String>,
}

impl Default for Book {
    fn default() -> Self {
        Self { ttl: TTL, answers: HashMap::new(), asked: Vec::new() }
    }
}

/// Returns a random loopback address, which is almost certainly not in use.
pub(crate) fn loopback() -> Ipv4Addr {
    Ipv4Addr::new(127, fastrand::u8(1..255), fastrand::u8(..), fastrand::u8(1..255))
}

impl NameServer {
    /// Starts a server. Returns `None`, after printing a line, where that is not possible; as root with `CI` set this
    /// is an error.
    pub(crate) fn start() -> Result<Option<Self>> {
        match Self::try_start() {
            Ok(server) => Ok(Some(server)),
            Err(reason) if std::env::var_os("CI").is_some() && is_root()? => Err(reason),
            Err(reason) => {
                // This bypasses the capture of test output, so that a skipped test is not taken for one that passed.
                writeln!(std::io::stderr(), "\nskipped: no name server for processes can be had here: {reason:#}")?;
                Ok(None)
            }
        }
    }

    fn try_start() -> Result<Self> {
        let namespace = namespace()?;
        let (ip, udp, tcp) = bind()?;
        let (book, over) = (Arc::<Mutex<Book>>::default(), Arc::<AtomicBool>::default());
        let threads = [
            std::thread::spawn({
                let (book, over) = (Arc::clone(&book), Arc::clone(&over));
                move || serve_udp(&udp, &book, &over)
            }),
            std::thread::spawn({
                let (book, over) = (Arc::clone(&book), Arc::clone(&over));
                move || serve_tcp(&tcp, &book, &over)
            }),
        ];
        let server = Self { ip, book, files: tempfile::tempdir()?, namespace, over, threads: threads.into() };
        server.resolv_conf("")?;
        Ok(server)
    }

    /// Writes `resolv.conf` with this server and further lines. Running processes see the change.
    pub(crate) fn resolv_conf(&self, more: &str) -> Result<()> {
        // The file is written in place, since a new inode would not be the one that is mounted.
        Ok(fs::write(self.files.path().join("resolv.conf"), format!("nameserver {}\n{more}\n", self.ip))?)
    }

    /// Returns a command for `program` that sees this server as the system's only name server.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("unshare");
        command.args(self.namespace).args(["sh", "-ec", "mount --bind \"$0\" /etc/resolv.conf; exec \"$@\""]);
        command.arg(self.files.path().join("resolv.conf")).arg(program);
        command
    }

    /// Sets the answer about records of this type of `name` (absolute, with a dot at the end).
    pub(crate) fn set_reply(&self, name: &str, kind: RecordType, reply: Reply) {
        lock(&self.book).answers.insert((name.to_owned(), kind), reply);
    }

    /// Sets the answer about A and AAAA records of `name`.
    pub(crate) fn set_both_replies(&self, name: &str, reply: &Reply) {
        self.set_reply(name, RecordType::A, reply.clone());
        self.set_reply(name, RecordType::AAAA, reply.clone());
    }

    /// Sets the addresses of `name`, as A and AAAA records.
    pub(crate) fn resolves(&self, name: &str, addresses: &[IpAddr]) {
        for (kind, is_v4) in [(RecordType::A, true), (RecordType::AAAA, false)] {
            let of_kind: Vec<IpAddr> = addresses.iter().copied().filter(|ip| ip.is_ipv4() == is_v4).collect();
            self.set_reply(name, kind, if of_kind.is_empty() { Reply::NoData } else { Reply::Addresses(of_kind) });
        }
    }

    /// Sets the TTL of all records in seconds.
    pub(crate) fn set_ttl(&self, ttl: u32) {
        lock(&self.book).ttl = ttl;
    }

    /// Returns the questions since the last call, as `name type` or, over TCP, `name type tcp`.
    pub(crate) fn asked(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.book).asked)
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.over.store(true, Relaxed);
        // Both threads wait for a question. An empty datagram and a connection wake them up.
        let at = SocketAddr::from((self.ip, 53));
        drop(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|socket| socket.send_to(&[], at)));
        drop(TcpStream::connect(at));
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

/// Returns the arguments of `unshare` with which a process may mount files in a namespace of its own.
fn namespace() -> Result<&'static [&'static str]> {
    const WAYS: [&[&str]; 2] = [&["--mount"], &["--mount", "--map-root-user"]];
    let mut said = String::new();
    for way in WAYS {
        let mut command = Command::new("unshare");
        command.args(way).args(["mount", "--bind", "/dev/null", "/etc/resolv.conf"]).stdin(Stdio::null());
        let output = command.output().context("cannot run unshare; it is in util-linux")?;
        if output.status.success() {
            return Ok(way);
        }
        said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    }
    bail!("no mounts of one's own without CAP_SYS_ADMIN or user namespaces: {said}")
}

/// Binds port 53 of a free loopback address.
fn bind() -> Result<(Ipv4Addr, UdpSocket, TcpListener)> {
    let mut last = None;
    for _ in 0..TRIES {
        let ip = loopback();
        match UdpSocket::bind((ip, 53)).and_then(|udp| Ok((udp, TcpListener::bind((ip, 53))?))) {
            Ok((udp, tcp)) => return Ok((ip, udp, tcp)),
            Err(error) => last = Some((error, ip)),
        }
    }
    let (error, ip) = last.context("no address was tried")?;
    Err(error).with_context(|| format!("cannot listen on {ip}:53, which takes root"))
}

fn is_root() -> Result<bool> {
    Ok(fs::metadata("/proc/self")?.uid() == 0)
}

fn serve_udp(socket: &UdpSocket, book: &Mutex<Book>, over: &AtomicBool) {
    let mut buffer = vec![0; 4096];
    while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
        if over.load(Relaxed) {
            return;
        }
        if let Some(reply) = buffer.get(..length).and_then(|question| reply(question, book, false)) {
            // The client may have gone.
            drop(socket.send_to(&reply, peer));
        }
    }
}

fn serve_tcp(listener: &TcpListener, book: &Arc<Mutex<Book>>, over: &AtomicBool) {
    while let Ok((stream, _)) = listener.accept() {
        if over.load(Relaxed) {
            return;
        }
        let book = Arc::clone(book);
        std::thread::spawn(move || drop(serve_stream(stream, &book)));
    }
}

fn serve_stream(mut stream: TcpStream, book: &Mutex<Book>) -> Result<()> {
    stream.set_read_timeout(Some(SILENCE))?;
    loop {
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut question)?;
        if let Some(reply) = reply(&question, book, true) {
            let mut framed = u16::try_from(reply.len())?.to_be_bytes().to_vec();
            framed.extend(reply);
            stream.write_all(&framed)?;
        }
    }
}

/// Returns the reply to a question, or `None` if there is to be none.
fn reply(question: &[u8], book: &Mutex<Book>, is_tcp: bool) -> Option<Vec<u8>> {
    let question = Message::from_vec(question).ok()?;
    let query = question.queries.first()?.clone();
    let (name, kind) = (query.name().clone(), query.query_type());
    let (scripted, ttl) = {
        let mut book = lock(book);
        let over = if is_tcp { " tcp" } else { "" };
        book.asked.push(format!("{name} {kind}{over}"));
        (book.answers.get(&(name.to_string(), kind)).cloned().unwrap_or(NXDOMAIN), book.ttl)
    };
    let mut message = Message::response(question.metadata.id, OpCode::Query);
    message.metadata.recursion_available = true;
    message.add_query(query);
    match scripted {
        Reply::OverTcp(_) if !is_tcp => message.metadata.truncation = true,
        Reply::Addresses(ips) | Reply::OverTcp(ips) => drop(message.add_answers(records(&name, &ips, ttl))),
        Reply::Services(targets) => {
            for Target { name: target, weight, address } in targets {
                let target = Name::from_ascii(target).ok()?;
                let srv = RData::SRV(SRV::new(0, weight, address.port(), target.clone()));
                message.add_answer(Record::from_rdata(name.clone(), ttl, srv));
                message.add_additionals(records(&target, &[address.ip()], ttl));
            }
        }
        Reply::NoData => {}
        Reply::Code(code) => message.metadata.response_code = code,
        Reply::Silence => return None,
    }
    message.to_vec().ok()
}

fn records(name: &Name, ips: &[IpAddr], ttl: u32) -> Vec<Record> {
    ips.iter().map(|ip| Record::from_rdata(name.clone(), ttl, RData::from(*ip))).collect()
}

fn lock(book: &Mutex<Book>) -> MutexGuard<'_, Book> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}
