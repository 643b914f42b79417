//! Who the backends are: a resolver's whole interface is a watch channel of full sets.
//!
//! A resolver is asked again at every interval, never while a request waits. Whatever the answer, a set that was
//! once good is only ever replaced by another good one: an empty or failed answer changes nothing but the metrics
//! and, once per change of state, the log.
//!
//! [`start`] is called by the proxy for each pool, [`resolve_once`] by the tools.

mod address;
mod answer;
mod dns;
mod exchange;
mod fixed;
mod hosts;
mod known;
mod metrics;
mod parts;
mod resolv;
mod resolvers;
mod search;
mod system;
mod trouble;

#[cfg(test)]
mod tests;

use std::time::Duration;

use tokio::time::{sleep, timeout};

pub use self::{
    address::{AddressError, HostPort},
    resolvers::Resolvers,
};
use self::{dns::Dns, fixed::Fixed, metrics::Meters, resolvers::Publisher, system::System};
use crate::{
    access::Access,
    endpoint::Endpoints,
    lifecycle::Tasks,
    settings::{DnsResolver, IpFamily, Resolver, StaticResolver},
};

/// The shortest interval: below it a typing error would be load on the cluster's name servers.
pub const MIN_INTERVAL: Duration = Duration::from_millis(100);

/// The longest interval and timeout: more is a typing error, or a static address.
pub const MAX_TIME: Duration = Duration::from_secs(24 * 60 * 60);

/// The most backends that a pool can have: owners of slots are 16-bit indices, and one value stays free.
pub const MAX_ENDPOINTS: usize = 65_535;

/// Where a pool's backends come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Config {
    /// Backends by name or address, all of them members whether their names resolve or not.
    Static(StaticResolver),
    /// One name whose A and AAAA records are the backends. Their TTLs are not looked at.
    Dns(DnsResolver),
}

/// Why discovery cannot start, or (from [`resolve_once`]) has no answer.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// A static resolver without entries.
    #[error("a static resolver needs at least one entry in hostnames")]
    NoHostnames,
    /// More entries than a ring can hold.
    #[error("{count} hostnames are more than the {MAX_ENDPOINTS} that a pool can have")]
    TooManyHostnames {
        /// Distinct entries.
        count: usize,
    },
    /// An entry or hostname that is no address and no name.
    #[error("bad hostname {written:?}")]
    Hostname {
        /// As it was configured.
        written: String,
        /// What is wrong with it.
        source: AddressError,
    },
    /// A DNS resolver for an address.
    #[error("{written:?} is an address, which the dns resolver cannot look up; use the static resolver")]
    NotAName {
        /// As it was configured.
        written: String,
    },
    /// Port 0, which cannot be dialled.
    #[error("port 0 cannot be dialled")]
    Port,
    /// An interval that would flood the name servers, or that nobody lives to see.
    #[error("interval {0:?} is not between {MIN_INTERVAL:?} and {MAX_TIME:?}")]
    Interval(Duration),
    /// A timeout in which nothing can be answered, or that never ends.
    #[error("timeout {0:?} is not above 0s and up to {MAX_TIME:?}")]
    Timeout(Duration),
    /// The name servers gave nothing usable.
    #[error("cannot resolve {hostname:?}: {reason}")]
    Unresolved {
        /// What was asked for.
        hostname: String,
        /// What the name servers said.
        reason: String,
    },
}

impl Config {
    /// The resolver that a pool has; `None` where it has none.
    pub fn of(resolver: &Resolver) -> Option<Self> {
        let list = resolver.r#static.clone().map(Self::Static);
        list.or_else(|| resolver.dns.clone().map(Self::Dns))
    }

    /// Says what [`start`] would refuse, without asking anybody.
    pub fn check(&self) -> Result<(), DiscoveryError> {
        check_times(self.interval(), self.timeout())?;
        match self {
            Self::Static(list) => fixed::parse(&list.hostnames).map(drop),
            Self::Dns(dns) => dns::check(&dns.hostname, dns.port),
        }
    }

    fn interval(&self) -> Duration {
        match self {
            Self::Static(list) => list.interval,
            Self::Dns(dns) => dns.interval,
        }
    }

    fn timeout(&self) -> Duration {
        match self {
            Self::Static(list) => list.timeout,
            Self::Dns(dns) => dns.timeout,
        }
    }
}

fn check_times(interval: Duration, timeout: Duration) -> Result<(), DiscoveryError> {
    if !(MIN_INTERVAL..=MAX_TIME).contains(&interval) {
        return Err(DiscoveryError::Interval(interval));
    }
    if timeout.is_zero() || timeout > MAX_TIME {
        return Err(DiscoveryError::Timeout(timeout));
    }
    Ok(())
}

/// Starts a resolver of a pool, whose members are spoken to by `access`. If `resolvers` has one already, that one goes on
/// until this one has its first good answer.
///
/// The first one of a pool, if it is static, has published its set when this returns, and so has one of addresses only; a
/// DNS one publishes when it was answered. Its task ends with `tasks`, or when nobody holds the receiver any more.
pub fn start(
    resolvers: &Resolvers,
    pool: &str,
    config: &Config,
    access: Access,
    tasks: &Tasks,
) -> Result<(), DiscoveryError> {
    start_on(System::new(config.timeout()), resolvers, pool, config, access, tasks)
}

/// Asks once, for at most `limit`, and answers with what a proxy that starts now would use.
///
/// Stricter than a proxy, which goes on with half an answer: whoever looks at a ring wants to know.
/// Static entries whose names were not resolved have no address, as in a proxy.
pub async fn resolve_once(config: &Config, limit: Duration) -> Result<Endpoints, DiscoveryError> {
    resolve_once_on(System::new(config.timeout().min(limit)), config, limit).await
}

fn start_on(
    system: System,
    resolvers: &Resolvers,
    pool: &str,
    config: &Config,
    access: Access,
    tasks: &Tasks,
) -> Result<(), DiscoveryError> {
    let source = Source::new(system, Meters::new(pool, config), pool, config)?;
    let tasks = tasks.child();
    let publisher = resolvers.enter(access, tasks.clone());
    let at_once = if publisher.is_next() { source.instead(0) } else { source.at_once() };
    if let Some(endpoints) = at_once {
        publisher.publish(&endpoints);
    }
    tasks.spawn(run(source, publisher, config.interval(), tasks.clone()));
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
    }
}

/// The two kinds of resolvers, behind one loop.
enum Source {
    Fixed(Box<Fixed>),
    Dns(Box<Dns>),
}

impl Source {
    fn new(system: System, meters: Meters, pool: &str, config: &Config) -> Result<Self, DiscoveryError> {
        config.check()?;
        Ok(match config {
            Config::Static(list) => {
                Self::Fixed(Box::new(Fixed::new(fixed::parse(&list.hostnames)?, system, meters, pool)))
            }
            Config::Dns(dns) => {
                Self::Dns(Box::new(Dns::new(&dns.hostname, dns.port, dns.ip_family, system, meters, pool)))
            }
        })
    }

    /// What is known before anybody was asked.
    fn at_once(&self) -> Option<Endpoints> {
        match self {
            Self::Fixed(fixed) => Some(fixed.endpoints()),
            Self::Dns(_) => None,
        }
    }

    /// What may take the place of another resolver's set, after `rounds` of questions.
    fn instead(&self, rounds: u32) -> Option<Endpoints> {
        match self {
            Self::Fixed(fixed) => fixed.instead(rounds),
            // What it finds is good as soon as it finds anything.
            Self::Dns(_) => None,
        }
    }

    /// One round of questions; the new set if it changed.
    async fn poll_once(&mut self) -> Option<Endpoints> {
        match self {
            Self::Fixed(fixed) => fixed.poll_once().await,
            Self::Dns(dns) => dns.poll_once().await,
        }
    }
}

/// A resolver's task: owned by its pool, ended by [`Tasks::stop`], by the one that takes over from it, or with the last
/// receiver; nothing is in hand then.
async fn run(mut source: Source, publisher: Publisher, interval: Duration, tasks: Tasks) {
    let rounds = async {
        let mut round = 0_u32;
        loop {
            round = round.saturating_add(1);
            let found = source.poll_once().await;
            let is_next = publisher.is_next();
            let found = if is_next && matches!(source, Source::Fixed(_)) { source.instead(round) } else { found };
            match found {
                Some(endpoints) => publisher.publish(&endpoints),
                None if is_next && round == 1 => publisher.warn_of_waiting(),
                None => {}
            }
            sleep(jittered(interval)).await;
        }
    };
    tokio::select! {
        biased;
        () = tasks.stopped() => {}
        () = publisher.closed() => {}
        () = rounds => {}
    }
}

/// `interval` ± 10 %, so that replicas that started together do not ask together for ever.
fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(0.9 + 0.2 * fastrand::f64())
}
