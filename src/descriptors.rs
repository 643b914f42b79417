//! Shares out the file descriptors that the process may have. Each connection takes one, and the limit of open files
//! counts them all. Clients get what admin, probes, backends and files leave, so that many clients cannot block the
//! rest.
//!
//! The limit is that of the whole process, so the account is kept in statics.

use std::{
    fmt, io,
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpSocket;

use crate::shortage::Shortage;

/// Descriptors that are not connections of clients, operators or backends: standard streams, listeners, the runtime (11
/// when idle), certificates and configuration files while they are read, logs, and sockets for DNS.
const RESERVED: usize = 24;

/// Each of the two listeners for operators gets the limit divided by this number, within the bounds below.
const OPERATORS_DIVISOR: usize = 16;
const MIN_OPERATORS: usize = 2;
const MAX_OPERATORS: usize = 64;

/// The least number of connections to backends. A quarter of what the pools need is added, since new backends are
/// connected before old ones are gone.
const MIN_BACKENDS: usize = 4;

/// The sockets for DNS of one pool.
const DNS_SOCKETS: usize = 2;

/// The connections that a pool is assumed to need until its backends are known.
const UNKNOWN_POOL: usize = 32;

/// The least number of client connections. With fewer, the process does not start.
const MIN_CLIENTS: usize = 4;

/// The limit of open files, set by [`share`].
static LIMIT: OnceLock<usize> = OnceLock::new();

/// The number of connections that all pools need.
static NEEDED: AtomicUsize = AtomicUsize::new(0);

/// The number of connections to backends that are open or being established.
static TO_BACKENDS: AtomicUsize = AtomicUsize::new(0);

/// The configured number of client connections, and the lowest actual bound that was logged for it.
static WANTED: AtomicUsize = AtomicUsize::new(0);
static LOGGED: AtomicUsize = AtomicUsize::new(usize::MAX);

/// How the limit changed at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Raised {
    /// The limit before.
    pub from: Option<u64>,
    /// The limit now.
    pub to: Option<u64>,
}

/// The limit of open files is too low to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the limit of open files is {limit}, and no fewer than {least} will do: raise the hard limit (ulimit -Hn, LimitNOFILE, \
     --ulimit nofile)"
)]
pub struct TooFew {
    limit: usize,
    least: usize,
}

/// The shares of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Plan {
    limit: usize,
    /// Connections of each listener for operators.
    operators: usize,
    /// Connections to backends.
    backends: usize,
    /// Connections of clients.
    clients: usize,
}

/// The descriptors that one pool needs for its backends. They are given back on drop.
#[derive(Debug)]
#[must_use]
pub struct Share(usize);

/// A connection to a backend. It counts until it is dropped.
#[derive(Debug)]
#[must_use]
pub struct ToBackend(());

/// Raises the soft limit of open files to the hard limit. The soft limit is often only 1,024, for programs that use
/// select(2); this one does not.
pub fn raise() -> io::Result<Raised> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // `None` means that there is no limit.
    if current == maximum || current.is_none() {
        return Ok(Raised { from: current, to: current });
    }
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    Ok(Raised { from: current, to: maximum })
}

/// Reads the limit of open files; all bounds follow from it from now on. Fails if the limit is too low to run.
pub fn share() -> Result<(), TooFew> {
    let limit = getrlimit(Resource::Nofile).current.and_then(|limit| usize::try_from(limit).ok());
    let limit = *LIMIT.get_or_init(|| limit.unwrap_or(usize::MAX));
    match Plan::of(limit, 0) {
        Some(_) => Ok(()),
        None => Err(TooFew { limit, least: least() }),
    }
}

/// Returns whether the system would grant a descriptor now. It tries to open a socket, since the limit can be lowered
/// from outside and the machine can run out of descriptors (`ENFILE`).
pub fn is_one_left() -> bool {
    // An unbound socket costs next to nothing and is closed at once.
    match TcpSocket::new_v4() {
        Ok(_) => true,
        Err(error) => Shortage::of(&error).is_none(),
    }
}

/// Returns how many client connections there is room for.
pub fn for_clients() -> usize {
    plan().map_or(usize::MAX, |plan| plan.clients)
}

/// Returns how many connections there is room for at each listener for operators.
pub fn for_operators() -> usize {
    plan().map_or(usize::MAX, |plan| plan.operators)
}

/// Returns whether a backend that has a connection may get a further one. Its first one needs no permission.
pub fn allow_further_connection() -> bool {
    plan().is_none_or(|plan| TO_BACKENDS.load(Relaxed) < plan.backends)
}

/// Counts a connection to a backend that is about to be established.
pub fn count_connection() -> ToBackend {
    TO_BACKENDS.fetch_add(1, Relaxed);
    ToBackend(())
}

/// Sets the configured number of client connections. A warning is logged if there is no room for them.
pub fn want(clients: usize) {
    if WANTED.swap(clients, Relaxed) != clients {
        LOGGED.store(usize::MAX, Relaxed);
    }
    warn_if_short();
}

fn plan() -> Option<Plan> {
    LIMIT.get().and_then(|limit| Plan::of(*limit, NEEDED.load(Relaxed)))
}

fn least() -> usize {
    (0..=RESERVED * 8).find(|limit| Plan::of(*limit, 0).is_some()).unwrap_or(usize::MAX)
}

/// Warns if clients get fewer connections than configured, whenever the number is lower than the last one logged.
fn warn_if_short() {
    let (Some(plan), wanted) = (plan(), WANTED.load(Relaxed)) else { return };
    if plan.clients < wanted && LOGGED.fetch_min(plan.clients, Relaxed) > plan.clients {
        tracing::warn!(
            max_connections = wanted,
            open_files = plan.limit,
            "clients get {} connections instead of {wanted}: {plan}; raise the hard limit (ulimit -Hn, LimitNOFILE, \
             --ulimit nofile) or lower max_connections",
            plan.clients
        );
    }
}

// === impl Plan ===

impl Plan {
    /// Shares out `limit` if the pools need `needed` connections. Returns `None` if the limit is too low.
    fn of(limit: usize, needed: usize) -> Option<Self> {
        let operators = (limit / OPERATORS_DIVISOR).clamp(MIN_OPERATORS, MAX_OPERATORS);
        let rest = limit.checked_sub(RESERVED + 2 * operators)?;
        // Clients always keep a quarter: without clients there is nothing to deliver.
        let most = (rest - rest / 4).min(rest.checked_sub(MIN_CLIENTS)?);
        let backends = (needed + needed / 4).max(MIN_BACKENDS).min(most);
        (most >= MIN_BACKENDS).then_some(Self { limit, operators, backends, clients: rest - backends })
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { limit, operators, backends, .. } = self;
        write!(
            f,
            "of {limit} open files {RESERVED} are kept for files, listeners and DNS, {} for admin and probes, {backends} for \
             connections to backends",
            2 * operators
        )
    }
}

// === impl ToBackend ===

impl Drop for ToBackend {
    fn drop(&mut self) {
        TO_BACKENDS.fetch_sub(1, Relaxed);
    }
}

// === impl Share ===

impl Share {
    /// Returns the share of a pool whose backends are not known yet.
    pub fn unknown() -> Self {
        let mut share = Self(0);
        share.set(UNKNOWN_POOL);
        share
    }

    /// Sets the number of connections to backends that the pool needs now.
    pub fn set(&mut self, connections: usize) {
        let needed = connections + DNS_SOCKETS;
        NEEDED.fetch_add(needed, Relaxed);
        NEEDED.fetch_sub(std::mem::replace(&mut self.0, needed), Relaxed);
        warn_if_short();
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        NEEDED.fetch_sub(self.0, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_get_the_remaining_connections() {
        let plan = |limit, needed| Plan::of(limit, needed).map(|plan| (plan.operators, plan.backends, plan.clients));
        assert_eq!(plan(64, 0), Some((4, 4, 28)));
        assert_eq!(plan(64, 8), Some((4, 10, 22)));
        assert_eq!(plan(256, 12), Some((16, 15, 185)));
        assert_eq!(plan(1_024, 408), Some((64, 510, 362)));
        assert_eq!(plan(1 << 20, 1_000), Some((64, 1_250, 1_047_174)));
        assert_eq!(plan(usize::MAX, 0).map(|(operators, ..)| operators), Some(64));
    }

    #[test]
    fn the_shares_of_a_plan_add_up_to_the_limit() {
        for limit in 0..3_000 {
            for needed in [0, 1, 7, 64, 500, 10_000] {
                match Plan::of(limit, needed) {
                    Some(plan) => {
                        assert_eq!(RESERVED + 2 * plan.operators + plan.backends + plan.clients, limit);
                        assert!(plan.clients >= MIN_CLIENTS && plan.backends >= MIN_BACKENDS, "{plan:?}");
                        assert!(plan.clients >= (limit - RESERVED - 2 * plan.operators) / 4, "{plan:?}");
                    }
                    None => assert!(limit < least(), "{limit}"),
                }
            }
        }
        assert_eq!(least(), 36);
    }

    #[test]
    fn the_message_of_a_limit_that_is_too_low_says_what_to_do() {
        let error = TooFew { limit: 20, least: least() }.to_string();
        assert!(error.contains("is 20") && error.contains("36") && error.contains("LimitNOFILE"), "{error}");
    }
}
