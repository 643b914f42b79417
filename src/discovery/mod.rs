//! Discovery: finds the backends of a pool. A resolver publishes full sets of endpoints through a watch channel.
//!
//! A resolver asks at a fixed interval, independently of requests; every second for a while after an answer lacked a
//! backend that was there before. A set that was good once is replaced only by another good one. An empty or failed answer
//! changes nothing except the metrics; the log has a line whenever the state changes. The resolver of Kubernetes is told of
//! changes instead.
//!
//! The proxy calls [`start`] for each pool; the tools call [`resolve_once`].

mod absences;
mod address;
mod answer;
mod dns;
mod exchange;
mod fixed;
mod hosts;
mod known;
#[cfg(feature = "kubernetes")]
mod kubernetes;
#[cfg(not(feature = "kubernetes"))]
#[path = "without_kubernetes.rs"]
mod kubernetes;
mod metrics;
mod own;
mod parts;
mod resolv;
mod resolvers;
mod search;
mod service;
mod services;
mod srv;
mod state_log;
mod system;
mod weights;

#[cfg(test)]
mod tests;

use std::time::Duration;

use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

pub use self::{
    address::{AddressError, check_backend, check_hostname},
    own::Own,
    resolvers::{Resolvers, Trouble},
    service::{ServiceError, check_service},
};
use self::{dns::Dns, fixed::Fixed, metrics::Meters, resolvers::Publisher, srv::Srv, system::System};
use crate::{
    access::Access,
    endpoint::Endpoints,
    lifecycle::Tasks,
    settings::{DnsResolver, IpFamily, KubernetesResolver, Resolver, SrvResolver, StaticResolver, values::GoDuration},
};

/// The shortest interval. A shorter one is most likely a mistake and would burden the cluster's name servers.
pub const MIN_INTERVAL: Duration = Duration::from_millis(100);

/// The longest interval and timeout. A longer one is most likely a mistake.
pub const MAX_TIME: Duration = Duration::from_secs(24 * 60 * 60);

/// The time between two rounds of questions while a backend is absent: a backend that is away for a few seconds must be
/// seen again before its absence is believed.
const OFTEN: Duration = Duration::from_secs(1);

/// The most backends that a pool can have: owners of slots are 16-bit indices, of which one value is reserved.
pub const MAX_ENDPOINTS: usize = 65_535;

/// The configuration of a pool's resolver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Config {
    /// Backends by name or address, all of them members whether their names resolve or not.
    Static(StaticResolver),
    /// One name whose A and AAAA records are the backends.
    Dns(DnsResolver),
    /// One name whose SRV records name the backends and their ports.
    Srv(SrvResolver),
    /// The pods behind a Service of Kubernetes.
    Kubernetes(KubernetesResolver),
}

/// The reason why discovery cannot start or, from [`resolve_once`], has no answer.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// A static resolver has no entries.
    #[error("a static resolver needs at least one entry in hostnames")]
    NoHostnames,
    /// A static resolver has more entries than a ring can hold.
    #[error("{count} hostnames are more than the {MAX_ENDPOINTS} that a pool can have")]
    TooManyHostnames {
        /// The number of distinct entries.
        count: usize,
    },
    /// An entry or host name is neither an address nor a name.
    #[error("bad hostname {written:?}")]
    Hostname {
        /// As it was configured.
        written: String,
        /// What is wrong with it.
        source: AddressError,
    },
    /// The port is 0, which cannot be dialled.
    #[error("port 0 cannot be dialled")]
    Port,
    /// The name of a Service is invalid.
    #[error("bad service {written:?}: {source}")]
    Service {
        /// As it was configured.
        written: String,
        /// What is wrong with it.
        source: ServiceError,
    },
    /// A Kubernetes resolver has no ports.
    #[error("a k8s resolver needs at least one port in ports")]
    NoPorts,
    /// The program was built without the cargo feature `kubernetes`.
    #[error("this build has no k8s resolver: build it with the cargo feature kubernetes")]
    NotBuilt,
    /// The interval is out of its bounds.
    #[error("the interval {0}")]
    Interval(TimeError),
    /// The timeout is out of its bounds.
    #[error("the timeout {0}")]
    Timeout(TimeError),
    /// The name servers returned no usable address.
    #[error("cannot resolve {hostname:?}: {reason}")]
    Unresolved {
        /// The configured name.
        hostname: String,
        /// The answers of the name servers.
        reason: String,
    },
}

/// The reason why an interval or a timeout is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimeError {
    /// An interval is shorter than [`MIN_INTERVAL`].
    #[error("must be at least {}", GoDuration(MIN_INTERVAL))]
    TooShort,
    /// A timeout is 0.
    #[error("must be longer than 0s")]
    Zero,
    /// It is longer than [`MAX_TIME`].
    #[error("is longer than {}", GoDuration(MAX_TIME))]
    TooLong,
}

impl Config {
    /// The resolver that a pool has; `None` where it has none.
    pub fn of(resolver: &Resolver) -> Option<Self> {
        let list = resolver.r#static.clone().map(Self::Static);
        let list = list.or_else(|| resolver.dns.clone().map(Self::Dns));
        let list = list.or_else(|| resolver.srv.clone().map(Self::Srv));
        list.or_else(|| resolver.k8s.clone().map(Self::Kubernetes))
    }

    /// Returns the error with which [`start`] would fail, if there is one. Nothing is looked up.
    pub fn check(&self) -> Result<(), DiscoveryError> {
        self.interval().map_or(Ok(()), check_interval).map_err(DiscoveryError::Interval)?;
        check_timeout(self.timeout()).map_err(DiscoveryError::Timeout)?;
        match self {
            Self::Static(list) => fixed::entries(&list.hostnames).map(drop),
            Self::Dns(dns) => dns::check(&dns.hostname, dns.port),
            Self::Srv(srv) => srv::check(&srv.hostname),
            Self::Kubernetes(keys) => kubernetes::check(keys),
        }
    }

    /// Returns whether both find the same backends by asking the same questions, however often and for however long.
    fn asks_the_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Static(one), Self::Static(other)) => one.hostnames == other.hostnames,
            (Self::Dns(one), Self::Dns(other)) => {
                let DnsResolver { interval, timeout, .. } = *other;
                DnsResolver { interval, timeout, ..one.clone() } == *other
            }
            (Self::Srv(one), Self::Srv(other)) => one.hostname == other.hostname,
            // Its lists are whole, so that a new watcher has nothing to learn from the one before.
            _ => false,
        }
    }

    /// The time between two rounds of questions; `None` where changes are watched.
    fn interval(&self) -> Option<Duration> {
        match self {
            Self::Static(list) => Some(list.interval),
            Self::Dns(dns) => Some(dns.interval),
            Self::Srv(srv) => Some(srv.interval),
            Self::Kubernetes(_) => None,
        }
    }

    fn timeout(&self) -> Duration {
        match self {
            Self::Static(list) => list.timeout,
            Self::Dns(dns) => dns.timeout,
            Self::Srv(srv) => srv.timeout,
            Self::Kubernetes(keys) => keys.timeout,
        }
    }
}

/// Checks the time between two rounds of questions.
pub fn check_interval(interval: Duration) -> Result<(), TimeError> {
    match interval {
        _ if interval < MIN_INTERVAL => Err(TimeError::TooShort),
        _ if interval > MAX_TIME => Err(TimeError::TooLong),
        _ => Ok(()),
    }
}

/// Checks the time that one question may take.
pub fn check_timeout(timeout: Duration) -> Result<(), TimeError> {
    match timeout {
        Duration::ZERO => Err(TimeError::Zero),
        _ if timeout > MAX_TIME => Err(TimeError::TooLong),
        _ => Ok(()),
    }
}

/// Starts a resolver for a pool. The endpoints that it publishes carry `access`. If `resolvers` already has a resolver,
/// that one continues until the new one has its first good answer. If both ask the same questions, the one that is there
/// goes on with the new interval, timeout and access: it knows which absences are not confirmed yet, and which answers are
/// parts of a larger set.
///
/// A pool's first resolver has published its set when this returns if it is static. A static resolver of addresses only
/// has done so in any case. The others publish once they have an answer. The resolver's task ends with `tasks` or
/// when all receivers are dropped.
pub fn start(
    resolvers: &Resolvers,
    pool: &str,
    config: &Config,
    access: Access,
    tasks: &Tasks,
) -> Result<(), DiscoveryError> {
    match config {
        Config::Kubernetes(keys) => kubernetes::start(resolvers, pool, keys, access, tasks),
        _ => start_on(System::new(config.timeout()), resolvers, pool, config, access, tasks),
    }
}

/// Asks once, for at most `limit`, and returns the set that a proxy started now would use.
///
/// Unlike a proxy, which uses partial answers, this returns an error if any question of a DNS resolver fails. Static
/// entries whose names were not resolved have no address, as in a proxy.
pub async fn resolve_once(config: &Config, limit: Duration) -> Result<Endpoints, DiscoveryError> {
    match config {
        Config::Kubernetes(keys) => kubernetes::resolve_once(keys, limit).await,
        _ => resolve_once_on(System::new(config.timeout().min(limit)), config, limit).await,
    }
}

fn start_on(
    system: System,
    resolvers: &Resolvers,
    pool: &str,
    config: &Config,
    access: Access,
    tasks: &Tasks,
) -> Result<(), DiscoveryError> {
    config.check()?;
    if resolvers.adjust(config, &access) {
        return Ok(());
    }
    let source = Source::new(system, Meters::new(pool, config), pool, config)?;
    let tasks = tasks.child();
    let publisher = resolvers.register(access, tasks.clone());
    let configs = publisher.follow(config);
    let endpoints = if publisher.is_next() { source.replacement(0) } else { source.initial() };
    if let Some(endpoints) = endpoints {
        publisher.publish(&endpoints);
    }
    tasks.spawn(run(source, publisher, configs, tasks.clone()));
    Ok(())
}

async fn resolve_once_on(system: System, config: &Config, limit: Duration) -> Result<Endpoints, DiscoveryError> {
    match Source::new(system, Meters::silent(), "", config)? {
        Source::Fixed(mut fixed) => {
            let resolved = timeout(limit, fixed.poll_once()).await;
            Ok(resolved.ok().flatten().unwrap_or_else(|| fixed.endpoints()))
        }
        Source::Dns(mut dns) => match timeout(limit, dns.ask_once()).await {
            Ok(answer) => answer,
            Err(_) => Err(dns.unresolved(format!("no answer within {limit:?}"))),
        },
        Source::Srv(mut srv) => match timeout(limit, srv.ask_once()).await {
            Ok(answer) => answer,
            Err(_) => Err(srv.unresolved(format!("no answer within {limit:?}"))),
        },
    }
}

/// A resolver of any kind.
enum Source {
    Fixed(Box<Fixed>),
    Dns(Box<Dns>),
    Srv(Box<Srv>),
}

impl Source {
    fn new(system: System, meters: Meters, pool: &str, config: &Config) -> Result<Self, DiscoveryError> {
        config.check()?;
        Ok(match config {
            Config::Static(list) => {
                Self::Fixed(Box::new(Fixed::new(fixed::entries(&list.hostnames)?, system, meters, pool)))
            }
            Config::Dns(dns) => {
                Self::Dns(Box::new(Dns::new(&dns.hostname, dns.port, dns.ip_family, system, meters, pool)))
            }
            Config::Srv(srv) => Self::Srv(Box::new(Srv::new(&srv.hostname, system, meters, pool))),
            // It asks no name server, and is started by itself.
            Config::Kubernetes(_) => return Err(DiscoveryError::NotBuilt),
        })
    }

    /// Returns the set that is known before anything was looked up.
    fn initial(&self) -> Option<Endpoints> {
        match self {
            Self::Fixed(fixed) => Some(fixed.endpoints()),
            Self::Dns(_) | Self::Srv(_) => None,
        }
    }

    /// Returns the set that may replace another resolver's set after `rounds` rounds of questions.
    fn replacement(&self, rounds: u32) -> Option<Endpoints> {
        match self {
            Self::Fixed(fixed) => fixed.replacement(rounds),
            // A set found by DNS is published as soon as `poll_once` returns it.
            Self::Dns(_) | Self::Srv(_) => None,
        }
    }

    /// Returns whether to ask again soon, since an answer has lacked a backend a short time ago.
    fn is_restless(&self) -> bool {
        match self {
            // All of its entries are members, whatever the answers are.
            Self::Fixed(_) => false,
            Self::Dns(dns) => dns.is_restless(),
            Self::Srv(srv) => srv.is_restless(),
        }
    }

    /// Sets the time that one question may take.
    fn set_timeout(&mut self, timeout: Duration) {
        match self {
            Self::Fixed(fixed) => fixed.set_timeout(timeout),
            Self::Dns(dns) => dns.set_timeout(timeout),
            Self::Srv(srv) => srv.set_timeout(timeout),
        }
    }

    /// Asks once. Returns the new set if it changed.
    async fn poll_once(&mut self) -> Option<Endpoints> {
        match self {
            Self::Fixed(fixed) => fixed.poll_once().await,
            Self::Dns(dns) => dns.poll_once().await,
            Self::Srv(srv) => srv.poll_once().await,
        }
    }
}

/// Runs a resolver. The task belongs to its pool and ends with [`Tasks::stop`], when another resolver takes over, or
/// when all receivers are dropped. It has no work in hand then. Of another configuration from `configs` it takes the interval
/// and the timeout, and asks at once.
async fn run(mut source: Source, publisher: Publisher, mut configs: watch::Receiver<Config>, tasks: Tasks) {
    let rounds = async {
        let mut round = 0_u32;
        loop {
            round = round.saturating_add(1);
            let (interval, timeout) = {
                let config = configs.borrow_and_update();
                (config.interval().unwrap_or(MIN_INTERVAL), config.timeout())
            };
            source.set_timeout(timeout);
            let found = source.poll_once().await;
            let is_next = publisher.is_next();
            let found = if is_next && matches!(source, Source::Fixed(_)) { source.replacement(round) } else { found };
            match found {
                Some(endpoints) => publisher.publish(&endpoints),
                None if is_next && round == 1 => publisher.warn_of_waiting(),
                None => {}
            }
            let pause = jittered(if source.is_restless() { interval.min(OFTEN) } else { interval });
            tokio::select! {
                () = sleep(pause) => {}
                Ok(()) = configs.changed() => {}
            }
        }
    };
    tokio::select! {
        biased;
        () = tasks.stopped() => {}
        () = publisher.closed() => {}
        () = rounds => {}
    }
}

/// Returns `interval` ± 10 %, so that replicas that started together do not keep asking at the same time.
fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(0.9 + 0.2 * fastrand::f64())
}
