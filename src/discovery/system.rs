//! The system's way to name servers: `resolv.conf`, the hosts file, the search list. Re-read when they change.

use std::{
    fs,
    io::Cursor,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    time::{Duration, SystemTime},
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use hickory_resolver::{
    Hosts, Resolver, TokioResolver,
    config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::{
        op::Query,
        rr::{Name, RecordType},
    },
};
use tokio::time::{Instant, sleep_until};

use super::{
    IpFamily,
    answer::{Answer, Answers, Failure},
};

/// Where the system's files are, and the name servers' port; other ones only in tests.
#[derive(Clone, Debug)]
pub(super) struct Paths {
    pub(super) resolv_conf: PathBuf,
    pub(super) hosts: PathBuf,
    pub(super) port: u16,
}

impl Default for Paths {
    fn default() -> Self {
        Self { resolv_conf: "/etc/resolv.conf".into(), hosts: "/etc/hosts".into(), port: 53 }
    }
}

/// Asks name servers as the system would, but tells every kind of answer apart.
///
/// hickory's own walks are not used, since they hide failures: of its list of servers the first reply counts, even
/// REFUSED; of its search list the last one, even after SERVFAIL. So each server has a resolver of its own here.
pub(super) struct System {
    paths: Paths,
    timeout: Duration,
    /// What `resolv.conf` held when it was last looked at, usable or not.
    resolv_conf: Option<Vec<u8>>,
    servers: Vec<TokioResolver>,
    search: Vec<Name>,
    ndots: usize,
    hosts: Hosts,
    hosts_stamp: Option<(SystemTime, u64)>,
}

impl System {
    /// The system's files, read at the first [`System::refresh`]; `timeout` is for one question to all servers.
    pub(super) fn new(timeout: Duration) -> Self {
        Self::at(Paths::default(), timeout)
    }

    /// The same with other files.
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

    /// Takes over the files if they changed. One that is gone, or names no server, leaves what was there before.
    pub(super) fn refresh(&mut self) {
        self.refresh_servers();
        self.refresh_hosts();
    }

    fn refresh_servers(&mut self) {
        // Some hundred bytes from a local file: cheaper than a thread for it.
        let text = fs::read(&self.paths.resolv_conf).unwrap_or_default();
        if self.resolv_conf.as_ref() == Some(&text) {
            return;
        }
        match parse_resolv_conf(&text).and_then(|(config, options)| self.take_over(&config, options.ndots)) {
            Ok(()) => tracing::debug!(servers = self.servers.len(), "resolv.conf taken over"),
            Err(error) if self.servers.is_empty() => {
                tracing::debug!(%error, "no usable resolv.conf; asking the name server on this machine");
                let local = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
                let local = ResolverConfig::from_name_servers(local.map(NameServerConfig::udp_and_tcp).to_vec());
                if let Err(error) = self.take_over(&local, 1) {
                    tracing::debug!(%error, "no name server");
                }
            }
            Err(error) => tracing::debug!(%error, "no usable resolv.conf; the last good one stays in force"),
        }
        self.resolv_conf = Some(text);
    }

    fn take_over(&mut self, config: &ResolverConfig, ndots: usize) -> Result<(), NetError> {
        let servers = config.name_servers().iter().map(|server| self.resolver(server.clone()));
        self.servers = servers.collect::<Result<_, _>>()?;
        // As in glibc: the domain (of `domain` or of the machine's name) counts where no `search` is.
        let domain = config.domain().filter(|_| config.search().is_empty());
        self.search = config.search().iter().chain(domain).cloned().collect();
        self.ndots = ndots;
        Ok(())
    }

    /// A resolver for one server, without cache, search list, hosts file and retries of failed answers.
    fn resolver(&self, mut server: NameServerConfig) -> Result<TokioResolver, NetError> {
        for connection in &mut server.connections {
            connection.port = self.paths.port;
        }
        let config = ResolverConfig::from_name_servers(vec![server]);
        let mut builder = Resolver::builder_with_config(config, TokioRuntimeProvider::default());
        let options = builder.options_mut();
        *options = ResolverOpts::default();
        options.cache_size = 0;
        options.timeout = self.timeout;
        options.attempts = 0;
        // Replies above 512 bytes without TCP: more than 28 A records.
        options.edns0 = true;
        options.use_hosts_file = ResolveHosts::Never;
        builder.build()
    }

    fn refresh_hosts(&mut self) {
        let stamp = fs::metadata(&self.paths.hosts).and_then(|meta| Ok((meta.modified()?, meta.len()))).ok();
        if stamp == self.hosts_stamp {
            return;
        }
        let mut hosts = Hosts::default();
        let text = fs::read(&self.paths.hosts).unwrap_or_default();
        if let Err(error) = hosts.read_hosts_conf(Cursor::new(text)) {
            tracing::debug!(%error, "the hosts file was read in part");
        }
        self.hosts = hosts;
        self.hosts_stamp = stamp;
    }

    /// Asks for the addresses of `hostname`: the hosts file, then the names that the search list makes of it until
    /// one is known or a server fails to say so. Both families are asked for the same name, so that a server that
    /// says NXDOMAIN for want of AAAA records leads nobody to another name's.
    ///
    /// Takes at most the timeout for each of the names. Cancel safety: nothing but the question is lost.
    pub(super) async fn resolve(&self, hostname: &str, family: IpFamily) -> Answers {
        if let Some(answers) = self.in_hosts(hostname, family) {
            return answers;
        }
        let mut answers = Answers::each(hostname, family, &Answer::NoSuchName);
        for name in self.candidates(hostname) {
            answers = self.ask_both(&name, family).await;
            if !answers.is_no_such_name() {
                break;
            }
        }
        answers
    }

    /// The names to ask for, in order.
    fn candidates(&self, hostname: &str) -> Vec<Name> {
        let Ok(name) = Name::from_str_relaxed(hostname) else { return Vec::new() };
        let mut absolute = name.clone();
        absolute.set_fqdn(true);
        if name.is_fqdn() {
            return vec![absolute];
        }
        let dots = hostname.bytes().filter(|byte| *byte == b'.').count();
        let mut names: Vec<Name> = Vec::with_capacity(self.search.len() + 1);
        for domain in &self.search {
            // A name that would be too long does not exist.
            if let Ok(mut name) = name.clone().append_domain(domain) {
                name.set_fqdn(true);
                names.push(name);
            }
        }
        let at = if dots >= self.ndots || name.is_localhost() { 0 } else { names.len() };
        names.insert(at, absolute);
        names
    }

    /// What the hosts file says about the name as written: if anything, that is all there is about it.
    fn in_hosts(&self, hostname: &str, family: IpFamily) -> Option<Answers> {
        let mut name = Name::from_str_relaxed(hostname.to_ascii_lowercase()).ok()?;
        name.set_fqdn(true);
        let look = |kind| {
            let lookup = self.hosts.lookup_static_host(&Query::query(name.clone(), kind))?;
            Some(Answer::from_lookup(&name, Ok(lookup)))
        };
        let (v4, v6) = (look(RecordType::A), look(RecordType::AAAA));
        if v4.is_none() && v6.is_none() {
            return None;
        }
        let wanted = |wanted: bool, found: Option<Answer>| wanted.then(|| found.unwrap_or(Answer::Empty));
        Some(Answers {
            asked: format!("{hostname} in the hosts file"),
            v4: wanted(family.wants_v4(), v4),
            v6: wanted(family.wants_v6(), v6),
        })
    }

    async fn ask_both(&self, name: &Name, family: IpFamily) -> Answers {
        let ask = async |wanted: bool, kind| match wanted {
            true => Some(self.ask(name, kind).await),
            false => None,
        };
        let (v4, v6) = tokio::join!(ask(family.wants_v4(), RecordType::A), ask(family.wants_v6(), RecordType::AAAA));
        Answers { asked: name.to_string(), v4, v6 }
    }

    /// Asks the servers in their order, the next one when one fails or is late; the first answer wins.
    async fn ask(&self, name: &Name, kind: RecordType) -> Answer {
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
                asked.push(async { Answer::from_lookup(name, server.lookup(name.clone(), kind).await) });
                next_at = Instant::now() + step;
            }
            if asked.is_empty() && waiting.len() == 0 {
                return Answer::Failed(first_failure.unwrap_or_else(|| Failure::Other("no name server".to_owned())));
            }
            tokio::select! {
                biased;
                Some(answer) = asked.next() => match answer {
                    Answer::Failed(failure) => {
                        first_failure.get_or_insert(failure);
                        next_at = Instant::now();
                    }
                    answer => return answer,
                },
                () = sleep_until(deadline) => return Answer::Failed(first_failure.unwrap_or(Failure::Timeout)),
                () = sleep_until(next_at), if waiting.len() > 0 => {}
            }
        }
    }
}

#[cfg(all(unix, not(any(target_os = "android", target_vendor = "apple"))))]
fn parse_resolv_conf(text: &[u8]) -> Result<(ResolverConfig, ResolverOpts), NetError> {
    hickory_resolver::system_conf::parse_resolv_conf(text)
}

/// Where name servers are not (only) in that file, it still says when to ask the system again.
#[cfg(not(all(unix, not(any(target_os = "android", target_vendor = "apple")))))]
fn parse_resolv_conf(_: &[u8]) -> Result<(ResolverConfig, ResolverOpts), NetError> {
    hickory_resolver::system_conf::read_system_conf()
}
