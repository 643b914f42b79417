//! How the descriptors that the process may have are shared: a connection is a file, and the limit of open files counts
//! them all. Clients get what admin, probes, backends and files leave, so that a crowd of clients cannot keep out the rest.
//!
//! The limit is one of the process, and so is this account: it is kept here once, whoever asks.

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

/// Files that are neither a client's, an operator's nor a backend's connection: standard streams, listeners, the runtime's
/// own (11 when it idles), certificates and the configuration while they are read, logs, sockets for DNS.
const FILES: usize = 24;

/// Connections of each of the two listeners for operators: this part of the limit, within bounds.
const DOOR_PART: usize = 16;
const LEAST_DOOR: usize = 2;
const LARGEST_DOOR: usize = 64;

/// Connections to backends that there is always room for, and those that there is room for beyond what the pools of the moment
/// need: new backends take over before old ones have gone.
const LEAST_BACKENDS: usize = 4;

/// Sockets that one pool needs for DNS.
const RESOLVER: usize = 2;

/// What a pool is taken to need until it knows its backends.
const UNKNOWN: usize = 32;

/// Connections of clients that there is always room for; with fewer the process does not start.
const LEAST_CLIENTS: usize = 4;

/// The limit of open files; not set until it was asked for.
static LIMIT: OnceLock<usize> = OnceLock::new();

/// What the pools need for connections to their backends.
static NEEDED: AtomicUsize = AtomicUsize::new(0);

/// How many connections of clients were asked for, and the lowest bound on them that was told of since.
static WANTED: AtomicUsize = AtomicUsize::new(0);
static TOLD: AtomicUsize = AtomicUsize::new(usize::MAX);

/// What became of the limit at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Raised {
    /// The limit before.
    pub from: Option<u64>,
    /// The limit now.
    pub to: Option<u64>,
}

/// Why the process cannot run with the limit that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the limit of open files is {limit}, and no fewer than {least} will do: raise the hard limit (ulimit -Hn, LimitNOFILE, \
     --ulimit nofile)"
)]
pub struct TooFew {
    limit: usize,
    least: usize,
}

/// How a limit is shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Plan {
    limit: usize,
    /// Connections of each listener for operators.
    door: usize,
    /// Connections to backends.
    backends: usize,
    /// Connections of clients.
    clients: usize,
}

/// What one pool needs for its backends; given back when it is dropped.
#[derive(Debug)]
#[must_use]
pub struct Share(usize);

/// Raises the soft limit of open files to the hard one. The soft one is low, often 1,024, for programs that use select(2); this
/// one does not.
pub fn raise() -> io::Result<Raised> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // None is without a bound.
    if current == maximum || current.is_none() {
        return Ok(Raised { from: current, to: current });
    }
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    Ok(Raised { from: current, to: maximum })
}

/// From now on connections are bounded by the limit that there is. Fails if nothing sensible fits in it.
pub fn share() -> Result<(), TooFew> {
    let limit = getrlimit(Resource::Nofile).current.and_then(|limit| usize::try_from(limit).ok());
    let limit = *LIMIT.get_or_init(|| limit.unwrap_or(usize::MAX));
    match Plan::of(limit, 0) {
        Some(_) => Ok(()),
        None => Err(TooFew { limit, least: least() }),
    }
}

/// Whether a descriptor can be had at the moment. The limit can be lowered from outside while the process runs, and the machine
/// can run out of them (`ENFILE`), so this asks the system.
pub fn is_one_left() -> bool {
    // A socket that is not bound to anything costs next to nothing and goes at once.
    match TcpSocket::new_v4() {
        Ok(_) => true,
        Err(error) => Shortage::of(&error).is_none(),
    }
}

/// How many connections of clients there is room for.
pub fn for_clients() -> usize {
    plan().map_or(usize::MAX, |plan| plan.clients)
}

/// How many connections there is room for at each listener for operators.
pub fn for_operators() -> usize {
    plan().map_or(usize::MAX, |plan| plan.door)
}

/// Says how many connections of clients were asked for, which is told of if they find no room.
pub fn want(clients: usize) {
    if WANTED.swap(clients, Relaxed) != clients {
        TOLD.store(usize::MAX, Relaxed);
    }
    tell();
}

fn plan() -> Option<Plan> {
    LIMIT.get().and_then(|limit| Plan::of(*limit, NEEDED.load(Relaxed)))
}

fn least() -> usize {
    (0..=FILES * 8).find(|limit| Plan::of(*limit, 0).is_some()).unwrap_or(usize::MAX)
}

/// Warns if clients get less than they were to have, each time that it is less than was told before.
fn tell() {
    let (Some(plan), wanted) = (plan(), WANTED.load(Relaxed)) else { return };
    if plan.clients < wanted && TOLD.fetch_min(plan.clients, Relaxed) > plan.clients {
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
    /// Shares `limit` where the pools need `needed`; `None` if it is too low.
    fn of(limit: usize, needed: usize) -> Option<Self> {
        let door = (limit / DOOR_PART).clamp(LEAST_DOOR, LARGEST_DOOR);
        let rest = limit.checked_sub(FILES + 2 * door)?;
        // Clients keep a fourth whatever the pools need: without clients there is nothing to deliver.
        let most = (rest - rest / 4).min(rest.checked_sub(LEAST_CLIENTS)?);
        let backends = (needed + needed / 4).max(LEAST_BACKENDS).min(most);
        (most >= LEAST_BACKENDS).then_some(Self { limit, door, backends, clients: rest - backends })
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { limit, door, backends, .. } = self;
        write!(
            f,
            "of {limit} open files {FILES} are kept for files, listeners and DNS, {} for admin and probes, {backends} for \
             connections to backends",
            2 * door
        )
    }
}

// === impl Share ===

impl Share {
    /// The share of a pool that does not know its backends yet.
    pub fn unknown() -> Self {
        let mut share = Self(0);
        share.set(UNKNOWN);
        share
    }

    /// The pool needs that many connections to its backends now.
    pub fn set(&mut self, connections: usize) {
        let needed = connections + RESOLVER;
        NEEDED.fetch_add(needed, Relaxed);
        NEEDED.fetch_sub(std::mem::replace(&mut self.0, needed), Relaxed);
        tell();
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
    fn clients_get_what_the_others_leave() {
        let plan = |limit, needed| Plan::of(limit, needed).map(|plan| (plan.door, plan.backends, plan.clients));
        assert_eq!(plan(64, 0), Some((4, 4, 28)));
        assert_eq!(plan(64, 8), Some((4, 10, 22)));
        assert_eq!(plan(256, 12), Some((16, 15, 185)));
        assert_eq!(plan(1_024, 408), Some((64, 510, 362)));
        assert_eq!(plan(1 << 20, 1_000), Some((64, 1_250, 1_047_174)));
        assert_eq!(plan(usize::MAX, 0).map(|(door, ..)| door), Some(64));
    }

    #[test]
    fn no_plan_gives_away_more_than_there_is() {
        for limit in 0..3_000 {
            for needed in [0, 1, 7, 64, 500, 10_000] {
                match Plan::of(limit, needed) {
                    Some(plan) => {
                        assert_eq!(FILES + 2 * plan.door + plan.backends + plan.clients, limit);
                        assert!(plan.clients >= LEAST_CLIENTS && plan.backends >= LEAST_BACKENDS, "{plan:?}");
                        assert!(plan.clients >= (limit - FILES - 2 * plan.door) / 4, "{plan:?}");
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
