//! Looks up names as the system does: by `resolv.conf`, the hosts file and the name servers in their order. Both files
//! are read again when they change.

use std::{
    fs::{self, File},
    io::Read,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use tokio::time::{Instant, sleep_until};

use super::{
    IpFamily,
    answer::{Answer, Answers, Failure, MAX_ALIASES, Question, Reply, ttl_of},
    exchange::Server,
    hosts::{self, Hosts},
    resolv::{self, ResolvConf},
};

/// The paths of the system's files and the port of name servers. Only tests use other values than the default.
#[derive(Clone, Debug)]
pub(super) struct Paths {
    pub(super) resolv_conf: PathBuf,
    pub(super) hosts: PathBuf,
    /// The file that holds the machine's host name.
    pub(super) hostname: PathBuf,
    pub(super) port: u16,
}

impl Default for Paths {
    fn default() -> Self {
        Self {
            resolv_conf: "/etc/resolv.conf".into(),
            hosts: "/etc/hosts".into(),
            hostname: "/proc/sys/kernel/hostname".into(),
            port: 53,
        }
    }
}

/// The system's resolver configuration, which keeps the different kinds of answers apart.
///
/// hickory's own handling of several servers and search domains hides failures: it takes the first reply of any server,
/// even REFUSED, and the answer about the last search domain, even after a SERVFAIL. So each server has resolvers of
/// its own here, and [`super::search`] handles the search list.
pub(super) struct System {
    paths: Paths,
    timeout: Duration,
    /// The contents of `resolv.conf` when it was last read, valid or not.
    resolv_conf: Option<Vec<u8>>,
    servers: Vec<Server>,
    search: Vec<Name>,
    ndots: usize,
    hosts: Hosts,
    hosts_stamp: Option<(SystemTime, u64)>,
}

impl System {
    /// Uses the system's files, which the first [`System::refresh`] reads. `timeout` is the time for one question, all
    /// servers included.
    pub(super) fn new(timeout: Duration) -> Self {
        Self::at(Paths::default(), timeout)
    }

    /// Uses the files at other paths.
    pub(super) fn at(paths: Paths, timeout: Duration) -> Self {
        Self {
            paths,
            timeout,
            resolv_conf: None,
            servers: Vec::new(),
            search: Vec::new(),
            ndots: 1,
            hosts: Hosts::default(),
            hosts_stamp: None,
        }
    }

    /// Sets the time for one question. The next [`System::refresh`] makes use of it.
    pub(super) fn set_timeout(&mut self, timeout: Duration) {
        if self.timeout != timeout {
            (self.timeout, self.resolv_conf) = (timeout, None);
        }
    }

    /// Reads the files again if they changed. If `resolv.conf` is missing or names no server, the previous contents
    /// stay in use.
    pub(super) fn refresh(&mut self) {
        self.refresh_servers();
        self.refresh_hosts();
    }

    fn refresh_servers(&mut self) {
        // The file has some hundred bytes, so that reading it here costs less than a blocking thread.
        let text = read(&self.paths.resolv_conf, resolv::MAX_BYTES);
        if self.resolv_conf.as_ref() == Some(&text) {
            return;
        }
        let path = self.paths.resolv_conf.display();
        let machine = fs::read_to_string(&self.paths.hostname).unwrap_or_default();
        let mut conf = resolv::parse(&text, &machine, self.paths.port);
        if !conf.findings.is_empty() {
            tracing::warn!(%path, left_out = %conf.findings, "resolv.conf has unusable entries; the others are used");
        }
        if !conf.servers.is_empty() {
            tracing::debug!(%path, servers = conf.servers.len(), "resolv.conf taken over");
            self.take_over(conf);
        } else if self.servers.is_empty() {
            tracing::warn!(%path, "resolv.conf names no usable name server; asking the one on this machine (127.0.0.1)");
            let local = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
            conf.servers = local.map(|ip| SocketAddr::new(ip, self.paths.port)).to_vec();
            self.take_over(conf);
        } else {
            tracing::warn!(%path, "resolv.conf names no usable name server; the previous ones stay in use");
        }
        self.resolv_conf = Some(text);
    }

    fn take_over(&mut self, conf: ResolvConf) {
        let ResolvConf { servers, search, ndots, tcp_only, .. } = conf;
        self.servers = servers.into_iter().map(|at| Server::new(at, tcp_only, self.timeout)).collect();
        self.search = search;
        self.ndots = ndots;
    }

    fn refresh_hosts(&mut self) {
        let stamp = fs::metadata(&self.paths.hosts).and_then(|meta| Ok((meta.modified()?, meta.len()))).ok();
        if stamp != self.hosts_stamp {
            self.hosts = Hosts::parse(&read(&self.paths.hosts, hosts::MAX_BYTES));
            self.hosts_stamp = stamp;
        }
    }

    /// Returns the addresses in the hosts file for the name as written. If there are any, nothing else is asked.
    pub(super) fn in_hosts(&self, hostname: &str, family: IpFamily) -> Option<Answers> {
        let addresses = self.hosts.get(hostname)?;
        let of = |is_v4: bool| {
            let of_family = addresses.iter().copied().filter(|ip| ip.is_ipv4() == is_v4);
            Answer::of(of_family.collect())
        };
        Some(Answers {
            asked: format!("{hostname} in the hosts file"),
            v4: family.wants_v4().then(|| of(true)),
            v6: family.wants_v6().then(|| of(false)),
            srv: None,
            ttl: Duration::ZERO,
        })
    }

    /// Returns the names to ask for, in order: `hostname` with each domain of the search list, and `hostname` itself,
    /// which comes first if it has at least `ndots` dots and last otherwise.
    pub(super) fn candidates(&self, hostname: &str) -> Vec<Name> {
        let Ok(name) = Name::from_ascii(hostname) else { return Vec::new() };
        let mut absolute = name.clone();
        absolute.set_fqdn(true);
        if name.is_fqdn() {
            return vec![absolute];
        }
        let dots = hostname.bytes().filter(|byte| *byte == b'.').count();
        // A name that would be too long with the domain cannot exist.
        let mut names: Vec<Name> =
            self.search.iter().filter_map(|domain| name.clone().append_domain(domain).ok()).collect();
        // The root domain in the search list yields the same name.
        names.retain(|listed| *listed != absolute);
        let at = if dots >= self.ndots || absolute.is_localhost() { 0 } else { names.len() };
        names.insert(at, absolute);
        names
    }

    /// Asks `question` about one name.
    ///
    /// Takes at most the timeout, or that time for each alias of a name with SRV records. Cancel safety: only the
    /// questions are lost.
    pub(super) async fn ask_about(&self, name: &Name, question: Question) -> Answers {
        match question {
            Question::Addresses(family) => self.ask_both(name, family).await,
            Question::Services => {
                let (answer, ttl) = self.ask_for_services(name).await;
                Answers { ttl, ..Answers::each(&name.to_string(), question, &answer) }
            }
        }
    }

    /// Asks for the SRV records of one name.
    ///
    /// hickory takes the target of an SRV record for an alias if the name has an alias too, and reports that it found
    /// no record. So a name without records is asked for its alias, and the alias for its records.
    async fn ask_for_services(&self, name: &Name) -> (Answer, Duration) {
        let mut name = name.clone();
        for _ in 0..MAX_ALIASES {
            let reply = self.ask(&name, RecordType::SRV).await;
            let answer = Answer::services(&name, &reply);
            if !matches!(answer, Answer::Empty | Answer::NoSuchName) {
                return (answer, ttl_of(&reply));
            }
            match self.alias_of(&name).await {
                Ok(Some(alias)) => name = alias,
                Ok(None) => return (answer, Duration::ZERO),
                Err(failure) => return (Answer::Failed(failure), Duration::ZERO),
            }
        }
        (Answer::Failed(Failure::Other("the name is an alias of too many others".to_owned())), Duration::ZERO)
    }

    async fn alias_of(&self, name: &Name) -> Result<Option<Name>, Failure> {
        let mut records = self.ask(name, RecordType::CNAME).await?.answers.into_iter();
        Ok(records.find_map(|record| match record.data {
            RData::CNAME(target) if record.name == *name => Some(target.0),
            _ => None,
        }))
    }

    /// Asks for the A and AAAA records of one name, as far as `family` includes them.
    ///
    /// Takes at most the timeout. Cancel safety: only the questions are lost.
    pub(super) async fn ask_both(&self, name: &Name, family: IpFamily) -> Answers {
        let ask = async |wanted: bool, kind| match wanted {
            true => {
                let reply = self.ask(name, kind).await;
                (Some(Answer::addresses(name, &reply)), ttl_of(&reply))
            }
            false => (None, Duration::ZERO),
        };
        let ((v4, ttl), (v6, other_ttl)) =
            tokio::join!(ask(family.wants_v4(), RecordType::A), ask(family.wants_v6(), RecordType::AAAA));
        Answers { asked: name.to_string(), v4, v6, srv: None, ttl: ttl.max(other_ttl) }
    }

    /// Asks the servers in order. The next one is asked as well when one fails or does not reply in its share of the
    /// time; the first answer counts.
    async fn ask(&self, name: &Name, kind: RecordType) -> Reply {
        let mut waiting = self.servers.iter();
        let count = u32::try_from(self.servers.len()).unwrap_or(u32::MAX).max(1);
        let (deadline, step) = (Instant::now() + self.timeout, self.timeout / count);
        let mut next_at = Instant::now();
        let mut first_failure = None;
        let mut asked = FuturesUnordered::new();
        loop {
            if Instant::now() >= next_at
                && let Some(server) = waiting.next()
            {
                asked.push(server.ask(name, kind, deadline));
                next_at = Instant::now() + step;
            }
            if asked.is_empty() && waiting.len() == 0 {
                return Err(first_failure.unwrap_or_else(|| Failure::Other("no name server".to_owned())));
            }
            tokio::select! {
                biased;
                Some(reply) = asked.next() => match reply {
                    Err(failure) => {
                        first_failure.get_or_insert(failure);
                        next_at = Instant::now();
                    }
                    reply => return reply,
                },
                () = sleep_until(deadline) => return Err(first_failure.unwrap_or(Failure::Timeout)),
                () = sleep_until(next_at), if waiting.len() > 0 => {}
            }
        }
    }
}

/// Reads at most `limit + 1` bytes of the file; returns nothing if it cannot be read.
fn read(path: &Path, limit: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    match File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes)) {
        Ok(_) => bytes,
        Err(_) => Vec::new(),
    }
}
